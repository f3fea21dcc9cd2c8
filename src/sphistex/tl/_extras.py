"""Packages that only some functions need."""

from __future__ import annotations

from importlib.util import find_spec


def check_extra(package: str, what: str, *, extra: str) -> None:
    """Raise an ImportError that says what to install, if a package is not there; it is not imported yet."""
    if find_spec(package) is None:
        raise ImportError(f'{what} needs {package}: pip install "sphistex[{extra}]"')
