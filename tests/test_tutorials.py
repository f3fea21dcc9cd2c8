"""Tutorials on real data are kept with their outputs. Those are of the present source, light, and tell of no machine.

The other tutorials are run when the documentation is built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

_SOURCES = sorted((Path(__file__).parents[1] / "tutorials" / "real_data").glob("*.md"))
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?::tags:[^\n]*\n\n)?(.*?)^```", re.MULTILINE | re.DOTALL)
_MOST_BYTES = 250_000


@pytest.mark.parametrize("source", _SOURCES, ids=[path.stem for path in _SOURCES])
def test_what_is_shown_is_what_the_source_says(source: Path):
    text = source.read_text(encoding="utf-8")
    cells = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]
    assert shown == [cell.strip() for cell in _CELL.findall(text)], "run make tutorials"
    for cell in cells:
        if cell["cell_type"] == "markdown":
            assert "".join(cell["source"]).strip() in text, "run make tutorials"
        for output in cell.get("outputs", []):
            written = json.dumps(output)
            assert len(written) < _MOST_BYTES
            assert not re.search(r"/(home|root|Users|tmp|usr|opt|work)/|site-packages", written)
