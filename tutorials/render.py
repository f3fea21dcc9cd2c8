"""Run the tutorials that need real data, and keep each beside its source as a light notebook with its outputs.

    SPHISTEX_DATA=data python tutorials/render.py --out tutorials/real_data

The documentation shows these notebooks as they are; the other tutorials are run whenever it is built.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient

SOURCES = Path(__file__).parent / "real_data"


def main() -> None:
    """Render all tutorials of the folder, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="file names without .md; by default all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the notebooks")
    arguments = parser.parse_args()
    data = os.environ.get("SPHISTEX_DATA")
    if not data or not Path(data).is_dir():
        parser.error(f"SPHISTEX_DATA={data!r} does not name the folder with the real sections")
    os.environ["SPHISTEX_DATA"] = str(Path(data).resolve())  # notebooks run elsewhere
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or sorted(path.stem for path in SOURCES.glob("*.md")):
        notebook = execute(SOURCES / f"{name}.md")
        nbformat.write(notebook, arguments.out / f"{name}.ipynb")


def execute(source: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, and nothing that differs from run to run or tells of the machine."""
    notebook = read_myst_markdown_notebook(source.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_without_addresses(output) for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def _without_addresses(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output without places in memory, as in ``<object at 0x7f...>``."""
    for holder, key in ((output, "text"), (output.get("data", {}), "text/plain")):
        if key in holder:
            holder[key] = re.sub(r" at 0x[0-9a-f]+", "", holder[key])
    return output


if __name__ == "__main__":
    main()
