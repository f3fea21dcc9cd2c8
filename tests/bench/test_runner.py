"""A benchmark scores what it says, where it says, and leaves it in files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

import sphistex as sx
from sphistex.bench import Method, Problem
from sphistex.bench.costs import measured
from sphistex.bench.datasets import find
from sphistex.bench.genes import choose, held
from sphistex.bench.methods import histex
from sphistex.bench.report import interval
from sphistex.bench.scores import CEILING
from sphistex.bench.trials import make_trials
from sphistex.cli import main
from sphistex.metrics.lattice import superpixels_of

AREAS = [("a", "tissue"), ("b", "off-spot"), ("c", "tissue"), ("c", "off-spot")]


def nearest(problem: Problem) -> NDArray[np.float32]:
    values = sx.metrics.baselines.nearest(problem.spots.xy_um, problem.density, problem.places_um)  # type: ignore[attr-defined]
    return values.astype(np.float32)


def flat(problem: Problem) -> NDArray[np.float32]:
    return np.ones((len(problem.places_um), len(problem.genes)), np.float32)


@pytest.fixture(scope="module", autouse=True)
def features_are_made_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sx.settings, "cache_dir", tmp_path_factory.mktemp("cache"))
        patch.setattr(sx.settings, "progress", False)
        yield


@pytest.fixture(scope="module")
def section() -> SpatialData:
    """Counts are Poisson, so that halves of them are independent."""
    sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    truth = sdata.tables["truth"]
    truth.X = sparse.csr_matrix(np.random.default_rng(1).poisson(truth.layers["expected"]).astype(np.float32))
    return sdata


@pytest.fixture(scope="module")
def store(section: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "small.zarr"
    section.write(path)
    return path


def expected(section: SpatialData) -> Method:
    """A method that knows the rates."""

    def method(problem: Problem) -> NDArray[np.float32]:
        truth = section.tables["truth"]
        pitch_px = problem.bags.grid.pitch_px
        rates = (
            superpixels_of(truth.obsm["spatial"], pitch_px, problem.mask.shape)
            @ truth[:, problem.genes].layers["expected"]
        )
        return rates[problem.mask.ravel()]

    return method


def only_in_spots(section: SpatialData) -> Method:
    """A method that is right inside spots, and knows nothing elsewhere."""
    right = expected(section)

    def method(problem: Problem) -> NDArray[np.float32]:
        covered = np.asarray(problem.bags.weights.sum(0)).ravel()[problem.mask.ravel()] > 0
        return np.where(covered[:, None], right(problem), 1.0).astype(np.float32)

    return method


@pytest.fixture(scope="module")
def made(section: SpatialData, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("bench")
    methods = {
        "nearest": nearest,
        "linear": flat,
        "sphistex": expected(section),
        "in spots": only_in_spots(section),
    }
    return out, sx.bench.run(str(store), methods=methods, out=out)


def mean_r(scores: pd.DataFrame, protocol: str, area: str, scale_um: float = 16) -> pd.Series:
    part = scores.query("protocol == @protocol and area == @area and scale_um == @scale_um and statistic == 'pearson'")
    return part.groupby("method").value.mean()


def test_the_table_holds_every_method_area_gene_scale_and_statistic(made: tuple[Path, pd.DataFrame]) -> None:
    out, scores = made
    assert list(scores[["protocol", "area"]].drop_duplicates().itertuples(index=False, name=None)) == AREAS
    n_genes = scores.gene.nunique()
    for (_, area), part in scores[scores.method != CEILING].groupby(["protocol", "area"]):
        scales = {"pearson": [8, 16, 32, 64], "spearman": [16, 32, 64], "rmse": [8], "ssim": [8], "spot_error": [55]}
        if area == "off-spot":
            scales = {"pearson": [8, 16], "spearman": [16]}
        scales["ceiling_share"] = scales["pearson"]
        found = part.groupby("statistic").scale_um.unique().map(sorted).to_dict()
        assert found == scales
        assert (part.groupby(["method", "statistic", "scale_um"]).gene.nunique() == n_genes).all()
        assert part.method.nunique() == 4
        assert part.value.notna().all() or part.statistic[part.value.isna()].eq("ceiling_share").all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "scores.csv"), scores, check_dtype=False)
    costs = pd.read_csv(out / "costs.csv")
    assert set(costs.protocol) == {"a+b", "c"} and len(costs) == 8
    assert (costs.peak_gib > 0.05).all() and (costs.seconds >= 0).all()


@pytest.mark.parametrize("area", ["tissue", "off-spot"])
def test_who_knows_the_rates_reaches_the_ceiling_of_independent_halves(
    made: tuple[Path, pd.DataFrame], area: str
) -> None:
    r = mean_r(made[1], "c", area)
    assert r["sphistex"] / r[CEILING] == pytest.approx(1, abs=0.03)
    assert r["nearest"] / r[CEILING] < 0.8


def test_off_spot_sees_nothing_of_the_spots(made: tuple[Path, pd.DataFrame]) -> None:
    for protocol, everywhere in (("b", "a"), ("c", "c")):
        assert mean_r(made[1], protocol, "off-spot", 8)["in spots"] == 0
        assert mean_r(made[1], everywhere, "tissue", 8)["in spots"] > 0.1


def test_spots_are_made_of_the_counts_that_protocols_say(section: SpatialData) -> None:
    how = {"genes": "all", "encoder": "efficientnet_lite0", "seed": 3, "device": "cpu"}
    both, half = make_trials(section, protocols="abc", **how)  # type: ignore[arg-type]
    assert [both.name, half.name] == ["a+b", "c"]
    whole, scored = both.areas[0].truth, half.areas[0].truth
    # of the counts in the tissue, one half is scored and the other is what the spots are made of
    assert 0.48 < scored.sum() / whole.sum() < 0.52
    assert half.problem.spots.counts.sum() / both.problem.spots.counts.sum() == pytest.approx(0.5, abs=0.02)
    again = make_trials(section, protocols="c", **how)[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.problem.spots.counts, half.problem.spots.counts)
    assert both.problem.features.features is half.problem.features.features, "the image is described once"


def test_the_report_holds_the_numbers_of_the_table(made: tuple[Path, pd.DataFrame]) -> None:
    out, scores = made
    report = (out / "report.md").read_text()
    for protocol, area in AREAS:
        block = report.split(f"## small, protocol {protocol}, {area}")[1].split("\n## ")[0]
        r = mean_r(scores, protocol, area)
        line = next(line for line in block.splitlines() if line.startswith("| sphistex |"))
        assert f" {r['sphistex']:.3f} " in line
        assert f" {r['sphistex'] / r[CEILING]:.0%} " in line
        assert f"| nearest | {r['sphistex'] - r['nearest']:+.3f} (" in block
    assert "| in spots | " in report.split("Genes worse than linear")[1]
    assert {path.name for path in out.iterdir()} >= {"bars.png", "maps_small.png"}
    assert min((out / name).stat().st_size for name in ("bars.png", "maps_small.png")) > 10_000


def test_the_interval_covers_a_known_difference() -> None:
    rng = np.random.default_rng(0)
    limits = np.array([interval(rng.normal(0.05, 0.2, 60), seed=seed) for seed in range(60)])
    covered = (limits[:, 0] < 0.05) & (limits[:, 1] > 0.05)
    assert 0.85 <= covered.mean() <= 1
    assert np.diff(limits).mean() == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(60), rel=0.15)


def with_truth(section: SpatialData, table: AnnData) -> SpatialData:
    elements = {"images": {"image": section.images["image"]}, "shapes": {"spots": section.shapes["spots"]}}
    made = SpatialData(**elements, tables={"counts": section.tables["counts"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.tables["truth"] = table
    return made


def test_fractions_of_counts_skip_halves_and_say_so(
    section: SpatialData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = section.tables["truth"].copy()
    table.X = table.X * np.float32(0.3)
    with_truth(section, table).write(tmp_path / "cells.zarr")
    scores = sx.bench.run([str(tmp_path / "cells.zarr")], methods={"nearest": nearest}, out=tmp_path / "out")
    assert "Protocol c is skipped: the truth holds fractions" in caplog.text
    assert set(scores.protocol) == {"a", "b"}
    assert CEILING not in set(scores.method), "fractions have no ceiling"
    with pytest.raises(ValueError, match="protocols='c': nothing could be scored"):
        sx.bench.run(str(tmp_path / "cells.zarr"), methods={"nearest": nearest}, protocols="c", out=tmp_path / "out")


def test_a_finer_truth_is_summed_and_a_coarser_one_refused(section: SpatialData) -> None:
    how = {"protocols": "a", "genes": "all", "encoder": "efficientnet_lite0", "seed": 0, "device": "cpu"}
    truth = section.tables["truth"]
    finer = AnnData(sparse.vstack([truth.X] * 2), var=truth.var[[]])
    finer.obsm["spatial"] = np.vstack([truth.obsm["spatial"] - 4, truth.obsm["spatial"] + 4])
    plain, doubled = (make_trials(with_truth(section, t), **how)[0] for t in (truth, finer))  # type: ignore[arg-type]
    assert plain.problem.genes == doubled.problem.genes
    np.testing.assert_array_equal(2 * plain.areas[0].truth.toarray(), doubled.areas[0].truth.toarray())
    coarse = truth[(truth.obs["array_row"] % 2 == 0) & (truth.obs["array_col"] % 2 == 0)].copy()
    with pytest.raises(ValueError, match="every 32 px, which is coarser than the superpixels of 16 px"):
        make_trials(with_truth(section, coarse), **how)  # type: ignore[arg-type]


def test_without_a_truth_spots_are_held_out(section: SpatialData) -> None:
    bare = SpatialData(
        images={"image": section.images["image"]},
        shapes={"spots": section.shapes["spots"]},
        tables={"counts": section.tables["counts"].copy()},
    )
    # as arrays of legacy ST count, where neighbours in a row are one apart
    bare.tables["counts"].obs["array_col"] //= 2
    trials = make_trials(bare, protocols="abc", genes=8, encoder="efficientnet_lite0", seed=0, device="cpu")
    assert [trial.name for trial in trials] == ["held-out scattered", "held-out blocks"]
    for trial in trials:
        problem, (area,) = trial.problem, trial.areas
        n_spots = bare.tables["counts"].n_obs
        assert len(problem.spots.counts) + area.truth.shape[0] == n_spots
        assert 0.1 < area.truth.shape[0] / n_spots < 0.4
        assert not (area.reading @ problem.bags.weights[:, problem.mask.ravel()].T).nnz, "spots do not overlap"
        # what the true rates say of a held-out spot is what it measured, up to noise
        r = sx.metrics.pearson(area.reading @ expected(section)(problem), area.truth.toarray())
        assert np.nanmean(r) > 0.7
        assert area.ceiling(problem.genes, 0).value.between(0, 1).all()


def test_half_of_the_genes_vary_most_and_half_are_abundant() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (60, 30)).astype(np.float32)
    counts[:, 0] = rng.poisson(1000.0, 60)  # abundant and even
    counts[:30, 1] *= 20  # varied
    counts[:, 2] = rng.poisson(2000.0, 60)
    table = AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=["even", "varied", "MT-1", *map(str, range(27))]))
    places = sparse.csr_matrix(counts)
    assert choose(table, places, 2) == ["even", "varied"]
    assert choose(table, places, ["varied"]) == ["varied"]
    assert choose(table, places, "variable:1") == ["varied"]
    counts[1:, 5] = 0
    assert "2" not in choose(table, sparse.csr_matrix(counts), "all")


def test_genes_without_counts_are_named_and_left_out(section: SpatialData) -> None:
    table = section.tables["truth"].copy()
    lost = table.var_names[3]
    table.X = sparse.csr_matrix(table.X @ sparse.diags((np.arange(20) != 3).astype(np.float32)))
    genes = list(table.var_names[:5])
    with pytest.warns(UserWarning, match=f"without counts in the spots are left out: {lost}"):
        trial, *_ = make_trials(
            with_truth(section, table), protocols="a", genes=genes, encoder="efficientnet_lite0", seed=0, device="cpu"
        )
    assert trial.problem.genes == [gene for gene in genes if gene != lost]


def test_unknown_genes_are_found_before_the_image_is_looked_at(section: SpatialData) -> None:
    known = section.tables["counts"].var_names[0]
    with pytest.warns(UserWarning, match="does not have: nobody"):
        assert held(section.tables["counts"], [known, "nobody"]) == [known]

    def encoder(_tiles: NDArray) -> NDArray:
        raise AssertionError("the image was looked at")

    with pytest.raises(KeyError, match="genes are not in"), pytest.warns(UserWarning, match="nobody"):
        make_trials(section, protocols="a", genes=["nobody"], encoder=encoder, seed=0, device="cpu")


def test_the_share_of_the_ceiling_is_that_of_every_gene(made: tuple[Path, pd.DataFrame]) -> None:
    part = made[1].query("protocol == 'c' and area == 'tissue' and scale_um == 16")
    r = part[part.statistic == "pearson"].pivot(index="gene", columns="method", values="value")
    share = part[part.statistic == "ceiling_share"].pivot(index="gene", columns="method", values="value")
    np.testing.assert_allclose(share.sphistex * r[CEILING], r.sphistex)


def test_a_path_is_a_section_with_or_without_a_slash(store: Path) -> None:
    assert find(store, None).name == find(f"{store}/", None).name == "small"


def test_sections_of_the_paper_are_scored_on_the_papers_genes(tmp_path: Path) -> None:
    folder = tmp_path / "mouse-brain-hd"
    (folder / "binned_outputs" / "square_008um").mkdir(parents=True)
    for name in ("brain_feature_slice.h5", "brain_tissue_image.btf"):
        (folder / name).touch()
    assert find("mouse-brain-hd", tmp_path).genes == "variable:1000"


def test_where_the_peak_cannot_be_forgotten_time_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sphistex.bench.costs._FORGET_PEAK", tmp_path)  # a folder cannot be written to
    with measured() as cost:
        pass
    assert cost.peak_gib > 0


def test_areas_without_room_are_named(section: SpatialData) -> None:
    wide = SpatialData(
        images={"image": section.images["image"]},
        shapes={"spots": section.shapes["spots"].assign(radius=section.shapes["spots"].radius * 6)},
        tables={"counts": section.tables["counts"]},
    )
    wide.tables["truth"] = section.tables["truth"].copy()
    how = {"genes": "all", "encoder": "efficientnet_lite0", "seed": 0, "device": "cpu"}
    with pytest.warns(UserWarning, match="protocol b, off-spot: left out"):
        (trial,) = make_trials(wide, protocols="ab", **how)  # type: ignore[arg-type]
    assert [area.name for area in trial.areas] == ["tissue"]


def test_what_a_cpu_only_begins_is_said(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histex, "EPOCHS_ON_CPU", 1)
    methods = ["nearest", "paper-no-attention"]
    sx.bench.run(store, methods=methods, protocols="c", genes=2, out=tmp_path, device="cpu")
    said = pd.read_csv(tmp_path / "costs.csv", keep_default_na=False).set_index("method").cut_short
    assert said.to_dict() == {"nearest": "", "paper-no-attention": "1 model for 4 epochs instead of 5 for 500 each"}
    assert f"- paper-no-attention: {said['paper-no-attention']}\n" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"datasets": "lung"}, ValueError, "there is no 'lung'; there are simulated"),
        ({"datasets": ["simulated", "simulated"]}, ValueError, "none twice"),
        ({"datasets": "nowhere.zarr"}, FileNotFoundError, "with a table 'truth'"),
        ({"datasets": "kidney"}, FileNotFoundError, "visium_hd_kidney lacks bins_8um.h5ad, he.png"),
        ({"datasets": "breast-xenium-2"}, FileNotFoundError, "experiment.xenium.*10xgenomics.com/datasets"),
        ({"datasets": "mouse-brain-hd"}, FileNotFoundError, "binned_outputs/square_008um.*10xgenomics.com/datasets"),
        ({"methods": ["nearest", "magic"]}, ValueError, "methods=.*'magic'.*choose from"),
        ({"methods": {}}, ValueError, "methods={}: give at least one"),
        ({"protocols": "ad"}, ValueError, "protocols='ad'"),
        ({"genes": "EPCAM"}, TypeError, "genes='EPCAM'"),
        ({"genes": 0}, ValueError, "genes=0"),
        ({"genes": "variable:many"}, TypeError, "genes='variable:many'"),
        ({"weights": "none.pt"}, ValueError, "weights='none.pt'"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"device": "gpu"}, ValueError, "device='gpu'"),
        ({"encoder": "nobody"}, (KeyError, ValueError), "nobody"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path: Path, changes: dict, error: type, message: str) -> None:
    arguments = {"datasets": "simulated", "data": tmp_path, "out": tmp_path / "out"} | changes
    with pytest.raises(error, match=message):
        sx.bench.run(**arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"out=.* cannot be written"):
        sx.bench.run("simulated", out=tmp_path / "out")


def test_named_sections_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPHISTEX_DATA", raising=False)
    with pytest.raises(ValueError, match="data=None.*SPHISTEX_DATA"):
        find("kidney", None)


def test_a_method_that_returns_something_else_is_refused_and_the_others_are_kept(store: Path, tmp_path: Path) -> None:
    methods = {"nearest": nearest, "short": lambda problem: flat(problem)[1:]}
    with pytest.raises(ValueError, match="'short' must return finite counts"):
        sx.bench.run(str(store), methods=methods, protocols="a", out=tmp_path)
    assert "nearest" in set(pd.read_csv(tmp_path / "scores.csv").method)


def test_the_command_writes_files(store: Path, tmp_path: Path) -> None:
    options = ["--methods", "nearest,linear", "--protocols", "c", "--genes", "8", "--out", str(tmp_path), "--quiet"]
    done = CliRunner().invoke(main, ["bench", str(store), *options])
    assert done.exit_code == 0, done.output
    assert "report.md" in done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"scores.csv", "costs.csv", "report.md", "bars.png", "maps_small.png"}
    assert set(pd.read_csv(tmp_path / "scores.csv").method) == {"nearest", "linear", CEILING}
    refused = CliRunner().invoke(main, ["bench", "lung", "--out", str(tmp_path / "none")])
    assert refused.exit_code == 1 and "there is no 'lung'" in refused.output


@pytest.mark.real_data
def test_the_pancreas_is_read(data_dir: Path) -> None:
    source = find("pancreas", data_dir)
    section = source.read()
    assert source.genes == "all"
    assert {"counts", "truth"} <= set(section.tables)
    assert section["truth"].n_vars == 377
    assert section["counts"].n_obs > 500
