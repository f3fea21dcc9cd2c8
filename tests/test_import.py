"""What importing the package costs, and what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_BLOCKER = """
import sys

class Without:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in {blocked!r} else self._finder.find_spec(name, *args)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
_SPATIALDATA_STACK = {
    "spatialdata",
    "spatialdata_io",
    "spatialdata_plot",
    "squidpy",
    "scanpy",
    "anndata",
    "geopandas",
    "xarray",
}
_NOT_WITH_TORCH = {"dask", "pandas", "scipy", "shapely", "skimage", "sklearn", "tifffile", "zarr"}
_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_TIMED_IMPORT = """
import sys, time
start = time.perf_counter()
import sphistex
print(time.perf_counter() - start, *sorted({"torch", "spatialdata", "anndata", "numpy"} & set(sys.modules)))
"""


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_loads_nothing_heavy():
    seconds, *heavy = min((_python(_TIMED_IMPORT).split() for _ in range(3)), key=lambda run: float(run[0]))
    assert float(seconds) < 0.5
    assert heavy == []


@pytest.mark.parametrize("module", ["nn", "encoders", "grid", "bags", "metrics"])
def test_computing_core_imports_without_spatialdata(module: str):
    _python(_BLOCKER.format(blocked=_SPATIALDATA_STACK) + f"import sphistex.{module}")


def test_blocked_imports_are_really_blocked():
    code = _BLOCKER.format(blocked=_SPATIALDATA_STACK) + "import spatialdata"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "No module named 'spatialdata'" in done.stderr


def test_gpu_benchmark_runs_where_there_is_only_torch_and_timm(tmp_path: Path):
    out = tmp_path / "gpu.json"
    sizes = "--device cpu --side 256 --spots 24 --genes 10 --models 2 --epochs 2 --reference-epochs 1".split()
    run = f"""
import runpy
sys.path.insert(0, {str(_BENCHMARKS)!r})
sys.argv = {["gpu.py", *sizes, "--out", str(out)]!r}
runpy.run_path({str(_BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""
    _python(_BLOCKER.format(blocked=_SPATIALDATA_STACK | _NOT_WITH_TORCH) + run)
    steps = json.loads(out.read_text())["steps"]
    assert [step["what"] for step in steps] == ["features", "training", "published loop", "prediction"]
    assert all(step["share_of_peak"] > 0 for step in steps)


def test_every_public_name_resolves():
    import sphistex

    assert all(getattr(sphistex, name) is not None for name in sphistex.__all__)
    assert set(sphistex.__all__) <= set(dir(sphistex))
    with pytest.raises(AttributeError, match="no attribute 'super_resolv'"):
        _ = sphistex.super_resolv  # type: ignore[attr-defined]


def test_version_is_that_of_the_project():
    import sphistex

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert sphistex.__version__ == project["version"]
