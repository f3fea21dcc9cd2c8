"""Settings refuse what they cannot use, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

import sphistex as sx
from sphistex.settings import Settings


def test_the_package_attribute_is_the_object_and_not_the_module():
    assert isinstance(sx.settings, Settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("device", "gpu"), ("device", None), ("n_workers", 0), ("n_workers", 1.5), ("seed", -1), ("seed", True)],
)
def test_impossible_values_are_refused(name: str, value: object):
    settings = Settings()
    before = getattr(settings, name)
    with pytest.raises(ValueError, match=rf"settings\.{name}="):
        setattr(settings, name, value)
    assert getattr(settings, name) == before


def test_misspelt_settings_are_refused():
    with pytest.raises(AttributeError, match="n_worker does not exist"):
        Settings().n_worker = 2  # type: ignore[attr-defined]


def test_progress_must_be_true_or_false():
    with pytest.raises(TypeError, match="progress"):
        Settings(progress="no")  # type: ignore[arg-type]


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings().cache_dir == tmp_path / "sphistex"
    assert Settings(cache_dir="~/elsewhere").cache_dir == Path.home() / "elsewhere"  # type: ignore[arg-type]
