"""The tutorials run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.md"))
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", _TUTORIALS, ids=[path.stem for path in _TUTORIALS])
def test_tutorial_runs(tutorial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = _CELL.findall(tutorial.read_text(encoding="utf-8"))
    assert cells
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(cells), tutorial.name, "exec"), {"__name__": tutorial.stem})
