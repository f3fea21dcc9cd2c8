"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Pictures are drawn, but no window is opened.
os.environ.setdefault("MPLBACKEND", "Agg")

_BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real sections; a test that asks for it is skipped where there is none."""
    folder = Path(os.environ.get("SPHISTEX_DATA") or _BESIDE_CHECKOUT)
    if not folder.is_dir():
        pytest.skip(f"no real data: there is no folder {folder}, and SPHISTEX_DATA does not name another")
    return folder
