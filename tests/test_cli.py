"""The commands, run for real on small sections."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sphistex.cli import main

QUICK = ["--epochs", "2", "--n-models", "1", "--quiet"]
BUILT_IN = ["--encoder", "efficientnet_lite0"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a section that nobody has super-resolved."""
    from sphistex import datasets

    store = tmp_path_factory.mktemp("section") / "section.zarr"
    datasets.simulate(size_um=600, n_genes=12).write(store)
    return store


@pytest.fixture(scope="module")
def resolved(section: Path) -> tuple[Path, Result]:
    """Another store after `run`, with pictures and model beside it."""
    store = section.parent / "resolved.zarr"
    shutil.copytree(section, store)
    extras = ["--pictures", store.parent / "pictures", "--save-model", store.parent / "model"]
    return store, call("run", store, "--genes", "6", *BUILT_IN, *QUICK, *extras)


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sphistex", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("sphistex, version"), done.stderr


@pytest.mark.parametrize("arguments", [[], ["demo"], ["run"], ["report"], ["view"], ["bench"]])
def test_help_is_there_at_once(arguments: list[str]):
    code = f"from sphistex.cli import main; main({[*arguments, '--help']!r})"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    assert "Usage:" in done.stdout
    assert min(seconds) < 0.5


def test_help_of_run_names_every_argument_of_super_resolve_that_a_command_line_can_give():
    text = call("run", "--help").output
    for option in ("--genes", "--encoder", "--weights", "--preset", "--image", "--shapes", "--table", "--mpp"):
        assert option in text
    for option in (
        "--key-added",
        "--overwrite",
        "--seed",
        "--device",
        "--conserve-counts",
        "--drop-genes",
        "--lazy",
        "--pictures",
    ):
        assert option in text


def test_run_of_all_genes_can_leave_them_to_be_computed_when_they_are_read(section, tmp_path):
    from spatialdata import read_zarr

    from sphistex import tl

    store = tmp_path / "lazy.zarr"
    shutil.copytree(section, store)
    done = call("run", store, "--genes", "all", "--lazy", *BUILT_IN, *QUICK, "--pictures", tmp_path / "pictures")
    assert done.exit_code == 0, done.output
    sdata = read_zarr(store)
    assert sdata.tables["superres"].X is None
    tl.open_genes(sdata)
    assert sdata.tables["superres"].n_vars == 12
    assert (sdata.tables["superres"][:, :2].X.compute() > 0).any()
    assert (tmp_path / "pictures" / "expression.png").exists()


def test_run_writes_the_result_into_the_store(resolved):
    store, done = resolved
    assert done.exit_code == 0, done.output
    from spatialdata import read_zarr

    table = read_zarr(store).tables["superres"]
    assert table.n_vars == 6
    assert f"{table.n_obs:,} superpixels × 6 genes" in done.output
    assert np.asarray(table.X).min() >= 0


def test_run_draws_and_saves_the_model_on_request(resolved):
    from sphistex.nn import SuperResolver

    store, done = resolved
    for name in ("features", "expression", "training"):
        assert (store.parent / "pictures" / f"{name}.png").stat().st_size > 10_000, done.output
    assert len(SuperResolver.load(store.parent / "model").genes) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--genes", "tumour_1,nonsense"], "nonsense"),
        (["--image", "nowhere"], "image_key='nowhere'"),
        (["--encoder", "nobody"], "nobody"),
        (["--preset", "best"], "preset='best'"),
        (["--mpp", "2"], "mpp=2"),
        (["--epochs", "0"], "epochs=0"),
    ],
)
def test_mistakes_are_one_line_and_leave_the_store_as_it_was(section: Path, arguments: list[str], message: str):
    before = sorted(section.rglob("*"))
    done = call("run", section, *arguments, "--quiet")
    assert done.exit_code == 1
    *_, last = done.output.strip().splitlines()
    assert last.startswith("Error: ") and message in last
    assert "Traceback" not in done.output
    assert sorted(section.rglob("*")) == before


def test_a_result_is_replaced_only_when_told_to(resolved):
    store, _ = resolved
    done = call("run", store, *BUILT_IN, *QUICK)
    assert done.exit_code == 1
    assert "superres" in done.output and "overwrite" in done.output


def test_genes_can_come_from_a_file(resolved, tmp_path: Path):
    from spatialdata import read_zarr

    store, _ = resolved
    wanted = list(read_zarr(store).tables["counts"].var_names[[3, 1]])
    (tmp_path / "genes.txt").write_text("\n".join(wanted) + "\n")
    done = call("run", store, "--genes", tmp_path / "genes.txt", "--key-added", "two", *BUILT_IN, *QUICK)
    assert done.exit_code == 0, done.output
    assert sorted(read_zarr(store).tables["two"].var_names) == sorted(wanted)


def test_several_stores_get_one_model(resolved, tmp_path: Path):
    from spatialdata import read_zarr

    store, _ = resolved
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    extras = ["--key-added", "both", "--pictures", tmp_path / "pictures", "--genes", "5"]
    done = call("run", store, other, *extras, *BUILT_IN, *QUICK)
    assert done.exit_code == 0, done.output
    for one, folder in ((store, "1_resolved"), (other, "2_other")):
        assert read_zarr(one).tables["both"].uns["both"]["n_sections"] == 2
        assert (tmp_path / "pictures" / folder / "expression.png").stat().st_size > 10_000
    done = call("run", store, store, *BUILT_IN, *QUICK)
    assert "Error: " in done.output and "twice" in done.output


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path):
    done = call("run", tmp_path)
    assert done.exit_code == 1
    assert f"{tmp_path} is not a SpatialData folder" in done.output


def test_faults_of_the_program_keep_their_traceback(section: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_args: object, **_kwargs: object) -> None:
        np.zeros(3).reshape(2, 2)

    monkeypatch.setattr("spatialdata.read_zarr", broken)
    done = call("run", section)
    assert isinstance(done.exception, ValueError)
    assert "reshape" in str(done.exception)


def test_demo_writes_store_pictures_and_summary(tmp_path: Path):
    from spatialdata import read_zarr

    done = call("demo", "--out", tmp_path / "demo", "--size-um", "600", "--genes", "12", *QUICK)
    assert done.exit_code == 0, done.output
    summary = (tmp_path / "demo" / "summary.txt").read_text()
    assert summary in done.output
    for words in ("nearest spot", "linear interpolation", "sphistex", "noise ceiling", "64 µm", "Peak memory"):
        assert words in summary
    for name in ("features", "expression", "training"):
        assert (tmp_path / "demo" / f"{name}.png").stat().st_size > 10_000
    assert {"superres", "truth", "counts"} <= set(read_zarr(tmp_path / "demo" / "demo.zarr").tables)


def test_demo_refuses_a_size_that_holds_no_tissue(tmp_path: Path):
    done = call("demo", "--out", tmp_path / "demo", "--size-um", "50", "--quiet")
    assert done.exit_code == 1
    assert "size_um=50" in done.output


def test_perfect_result_reaches_the_ceiling():
    from sphistex import datasets
    from sphistex._demo import accuracy

    sdata = datasets.simulate(size_um=700, n_genes=8)
    truth = sdata.tables["truth"]
    result = truth.copy()
    result.X = truth.layers["expected"].copy()
    first = truth.obs[["array_row", "array_col"]].min().to_numpy()
    result.obs[["array_row", "array_col"]] -= first
    elements = {"image_key": "image", "shapes_key": "spots", "table_key": "counts", "coordinate_system": "global"}
    result.uns["superres"] = {"section": elements, "mpp": 0.5, "pitch_um": 8.0, "crop": first}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sdata.tables["superres"] = result
    scores, n_superpixels = accuracy(sdata)
    assert n_superpixels == truth.n_obs
    assert list(scores.columns) == [8.0, 16.0, 32.0, 64.0]
    np.testing.assert_allclose(scores.loc[("expected", "sphistex")], 1.0, atol=1e-6)
    np.testing.assert_allclose(scores.loc[("counts", "sphistex")], scores.loc[("counts", "noise ceiling")], atol=1e-6)
    assert (scores.loc["counts"].loc["noise ceiling"] > scores.loc["counts"].loc["linear interpolation"]).all()


def test_from_the_file_of_a_slide_to_a_predicted_table(section: Path, tmp_path: Path) -> None:
    from PIL import Image
    from spatialdata import read_zarr

    from sphistex import tl

    sdata = read_zarr(section)
    sdata.tables["counts"].obs["half"] = np.where(np.arange(sdata.tables["counts"].n_obs) % 2, "a", "b")
    measured = type(sdata)(
        images={"image": sdata.images["image"]},
        shapes={"spots": sdata.shapes["spots"]},
        tables={"counts": sdata.tables["counts"]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tl.fit_histology(
            measured, genes=5, regions_key="half", encoder="efficientnet_lite0", epochs=2, n_models=1
        )
    model.save(tmp_path / "model")
    Image.fromarray(np.moveaxis(np.asarray(sdata.images["image"].data), 0, -1)).save(tmp_path / "slide.tif")
    command = ["predict-histology", tmp_path / "slide.tif", "--model", tmp_path / "model", "--quiet"]
    refused = call(*command, "--mpp", 0.5)
    assert refused.exit_code != 0
    assert "--out" in refused.output
    done = call(*command, "--mpp", 0.5, "--out", tmp_path / "slide.zarr", "--pictures", tmp_path / "pictures")
    assert done.exit_code == 0, done.output
    table = read_zarr(tmp_path / "slide.zarr").tables["histology"]
    assert list(table.var_names) == model.genes
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"histology.png", "regions.png"}


@pytest.fixture
def some_model(tmp_path: Path) -> Path:
    from sphistex import encoders
    from sphistex.nn.histology import HistologyModel, LatticeSection, histology_parameters
    from sphistex.nn.picture import Layout

    rng = np.random.default_rng(0)
    layout = Layout.of([0, 0, 1, 1], [0, 2, 1, 3], hexagonal=True)
    section = LatticeSection(layout, rng.random((4, 3), dtype=np.float32), rng.random((4, 2), dtype=np.float32))
    parameters = histology_parameters(epochs=1, n_models=1, widths=(4,))
    model = HistologyModel.fit([section], ["g0", "g1"], parameters=parameters)
    model.features = {
        "encoder": "efficientnet_lite0",
        "revision": encoders.get("efficientnet_lite0").revision,
        "scales": [1],
        "lattice": {"kind": "hexagonal", "pitch_um": 100.0, "diameter_um": 55.0},
    }
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_what_cannot_be_predicted_from_leaves_nothing_behind(some_model: Path, tmp_path: Path) -> None:
    import tifffile
    import timm
    import torch

    pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, photometric="rgb", tile=(128, 128), compression="zlib")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "slide.tif").read_bytes()[:-300_000])
    out, vit = tmp_path / "out.zarr", tmp_path / "vit.pt"
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), vit)

    def refused(said: str, picture: str, *options: Any, model: Path = some_model) -> None:
        done = call("predict-histology", tmp_path / picture, "--model", model, "--out", out, "--quiet", *options)
        assert done.exit_code == 1
        assert said in done.output
        assert not out.exists()
        assert not list(tmp_path.glob(".out.zarr*"))

    refused("holds no saved HistologyModel", "slide.tif", "--mpp", 0.5, model=tmp_path)
    refused("give --mpp", "slide.tif")
    refused("Is the file complete", "cut.tif", "--mpp", 0.5)
    refused("key_added='a/b' cannot be stored", "slide.tif", "--mpp", 0.5, "--key-added", "a/b")
    for name in ("image", "tissue", "lattice_features", "lattice_features_spots"):
        refused(f"key_added='{name}' is ", "slide.tif", "--mpp", 0.5, "--key-added", name)
    refused("mpp=20.0 must be the microns per pixel", "slide.tif", "--mpp", 20)
    refused("--image, --table: ", "slide.tif", "--mpp", 0.5, "--image", "image", "--table", "counts")
    refused("neither 'auto', nor registered", "slide.tif", "--mpp", 0.5, "--encoder", "nonsense")
    refused("encoder", "slide.tif", "--mpp", 0.5, "--encoder", "vit_tiny_patch16_224", "--weights", vit)


def test_any_spatialdata_folder_is_known_as_one(some_model: Path, tmp_path: Path) -> None:
    from spatialdata import SpatialData
    from spatialdata._io.format import SpatialDataContainerFormats
    from spatialdata.models import Image2DModel

    image = Image2DModel.parse(np.zeros((3, 20, 20), dtype=np.uint8))
    old = tmp_path / "old.zarr"
    SpatialData(images={"he": image, "dapi": image}).write(old, sdata_formats=SpatialDataContainerFormats["0.1"])
    for options, said in (((), "several images"), (("--image", "he"), "mpp=None")):
        assert said in call("predict-histology", old, "--model", some_model, "--quiet", *options).output
