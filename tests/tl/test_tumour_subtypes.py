"""Planted subtypes come back: of expression, and of a gain of half a chromosome."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score
from spatialdata import SpatialData, read_zarr

from sphistex import tl
from sphistex.tl._gene_positions import read_gene_positions

N_TUMOUR, N_NORMAL, N_GENES, PER_CHROMOSOME = 90, 40, 360, 120
# The first half of the second of three chromosomes.
ARM = slice(PER_CHROMOSOME, PER_CHROMOSOME * 3 // 2)
CNV: dict[str, Any] = {"window_size": 20, "step": 5}


def section(changed: slice | np.ndarray, factor: float, seed: int = 0) -> SpatialData:
    """A table of counts in which a third of the tumour spots express some genes more."""
    rng = np.random.default_rng(seed)
    n = N_TUMOUR + N_NORMAL
    rate = np.tile(rng.gamma(2.0, 5.0, N_GENES), (n, 1))
    rate[:N_TUMOUR] *= rng.lognormal(0, 0.5, N_GENES)  # what all tumour spots have in common
    planted = np.zeros(n, dtype=bool)
    planted[: N_TUMOUR // 3] = True
    rate[np.ix_(planted, np.arange(N_GENES)[changed])] *= factor
    order = rng.permutation(n)
    counts = rng.poisson(rate * rng.uniform(0.8, 1.2, (n, 1)))[order].astype(np.float32)
    kind = np.where(np.arange(n) < N_TUMOUR, "tumour", "stroma")[order]
    obs = pd.DataFrame(
        {"planted": planted[order], "tissue": pd.Categorical(kind), "is_tumour": kind == "tumour"},
        index=[f"spot{i}" for i in range(n)],
    )
    return SpatialData(tables={"spots": AnnData(counts, obs=obs, var=pd.DataFrame(index=gene_names()))})


def gene_names() -> list[str]:
    return [f"gene{i}" for i in range(N_GENES)]


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    file = tmp_path / "genes.tsv"
    table = pd.DataFrame({"gene": gene_names(), "chromosome": np.repeat(["1", "2", "10"], PER_CHROMOSOME)})
    table["start"] = 1000 * (np.arange(N_GENES) % PER_CHROMOSOME)
    table["end"] = table["start"] + 500
    table.sample(frac=1, random_state=1).to_csv(file, sep="\t", index=False)
    return file


def agreement(sdata: SpatialData) -> float:
    obs = sdata.tables["spots"].obs
    obs = obs[obs["is_tumour"]]
    return adjusted_rand_score(obs["planted"], obs["subtype"])


def test_planted_expression_comes_back_and_its_number_of_clusters():
    sdata = section(np.arange(0, N_GENES, 12), 2.0)
    tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour")
    obs = sdata.tables["spots"].obs
    assert list(obs["subtype"].cat.categories) == ["1", "2"]
    assert agreement(sdata) == 1.0
    assert (obs["subtype"].isna() == ~obs["is_tumour"]).all()
    assert (obs["subtype"] == "1").sum() == N_TUMOUR * 2 // 3  # the largest comes first
    found = sdata.tables["spots"].uns["subtype"]
    judged = found["silhouette"].set_index("n_subtypes")["silhouette"]
    assert judged.idxmax() == 2 and judged[2] > found["silhouette_by_chance"]


def test_counts_and_their_logarithms_give_the_same():
    sdata = section(np.arange(0, N_GENES, 12), 2.0)
    tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour", n_subtypes=3)
    table = sdata.tables["spots"]
    of_counts = table.obs["subtype"].copy()
    table.X = np.log1p(table.X / table.X.sum(1, keepdims=True) * 1e4)
    tl.tumour_subtypes(sdata, table_key="spots", tumour=("tissue", ["tumour"]), n_subtypes=3)
    assert table.obs["subtype"].equals(of_counts)


@pytest.mark.parametrize("seed", range(3))
def test_a_tumour_of_one_kind_is_one_subtype(seed: int):
    sdata = section(slice(0, 0), 1.0, seed)
    with pytest.warns(UserWarning, match="they are all of one subtype"):
        tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour")
    table = sdata.tables["spots"]
    assert set(table.obs["subtype"].dropna()) == {"1"}
    assert table.uns["subtype"]["n_components"] == {"expression": 0}


def test_a_tumour_of_one_kind_has_profiles_of_one_kind(positions: Path):
    pytest.importorskip("infercnvpy")
    sdata = section(slice(0, 0), 1.0)
    with pytest.warns(UserWarning, match="they are all of one subtype"):
        tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour", gene_positions=positions, **CNV)
    table = sdata.tables["spots"]
    assert table.uns["subtype"]["n_components"] == {"expression": 0, "copy_number": 0}
    assert len(table.obsm["X_cnv"]) == table.n_obs


def test_a_gradient_is_told_from_subtypes():
    sdata = section(slice(0, 0), 1.0)
    table = sdata.tables["spots"]
    share = np.random.default_rng(3).normal(size=(table.n_obs, 1))
    table.X[:, ::6] *= np.exp(0.4 * share)
    with pytest.warns(UserWarning, match="spots differ, but by degrees"):
        tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour", n_subtypes=2)


@pytest.mark.parametrize("by", ["copy_number", "both"])
def test_a_gain_of_an_arm_is_found(positions: Path, by):
    pytest.importorskip("infercnvpy")
    sdata = section(ARM, 1.5)
    tl.tumour_subtypes(
        sdata, table_key="spots", tumour="is_tumour", gene_positions=positions, by=by, n_subtypes=2, **CNV
    )
    assert agreement(sdata) > 0.9
    table = sdata.tables["spots"]
    starts = table.uns["cnv"]["chr_pos"]
    assert list(starts) == ["chr1", "chr2", "chr10"]
    profile = table.obsm["X_cnv"]
    per_chromosome = starts["chr2"] - starts["chr1"]
    assert profile.shape == (table.n_obs, 3 * per_chromosome)
    gained = profile[table.obs["planted"]].mean(0) - profile[table.obs["is_tumour"] & ~table.obs["planted"]].mean(0)
    # a window is of 20 genes: those that begin with the first 8 of 60 genes, every fifth, lie on the arm
    arm = np.arange(len(gained)) - starts["chr2"]
    on_arm, off_arm = (arm >= 0) & (arm <= 8), (arm < 0) | (arm >= 12)
    assert gained[on_arm].min() > 0.5 * np.log(1.5)
    assert np.abs(gained[off_arm]).max() < 0.3 * np.log(1.5)
    # where nothing was changed, the reference is diploid
    assert np.abs(profile[~table.obs["is_tumour"]].mean(0)).max() < 0.05


def test_a_gain_that_expression_drowns_is_found_by_copy_number(positions: Path):
    pytest.importorskip("infercnvpy")
    sdata = section(ARM, 1.5)
    table = sdata.tables["spots"]
    rng = np.random.default_rng(5)
    programme = rng.permutation(N_GENES)[: N_GENES // 6]  # genes all over the chromosomes, in a random half
    busy = rng.random(table.n_obs) < 0.5
    table.X[np.ix_(busy, programme)] *= 3
    arguments: dict[str, Any] = {"table_key": "spots", "tumour": "is_tumour", "n_subtypes": 2}
    tl.tumour_subtypes(sdata, **arguments)
    assert agreement(sdata) < 0.3
    tl.tumour_subtypes(sdata, **arguments, gene_positions=positions, by="copy_number", **CNV)
    assert agreement(sdata) > 0.9


def test_profiles_are_the_same_whatever_is_read_at_once(positions: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("infercnvpy")
    sdata = section(ARM, 1.5)
    arguments: dict[str, Any] = {
        "table_key": "spots",
        "tumour": "is_tumour",
        "gene_positions": positions,
        "n_subtypes": 2,
        **CNV,
    }
    tl.tumour_subtypes(sdata, **arguments)
    at_once = sdata.tables["spots"].obsm["X_cnv"]
    monkeypatch.setattr("sphistex.tl._expression._NUMBERS", 50 * N_GENES)
    tl.tumour_subtypes(sdata, **arguments)
    np.testing.assert_allclose(sdata.tables["spots"].obsm["X_cnv"], at_once, atol=1e-6)


def test_results_are_stored_and_what_else_was_there_stays(tmp_path: Path):
    sdata = section(np.arange(0, N_GENES, 6), 2.0)
    sdata.tables["spots"].obs["kind"] = sdata.tables["spots"].obs["is_tumour"] * 2  # clusters by number
    sdata.tables["spots"].obs.iloc[:9, -1] //= 2
    sdata.write(tmp_path / "section.zarr")
    sdata.tables["spots"].X = np.log1p(sdata.tables["spots"].X)
    before = sdata.tables["spots"].X.copy()
    sdata.tables["spots"].obs["mine"] = 1
    tl.tumour_subtypes(sdata, table_key="spots", tumour=("kind", [1, 2]), n_subtypes=2)
    stored = read_zarr(tmp_path / "section.zarr").tables["spots"]
    assert stored.obs["subtype"].astype(str).equals(sdata.tables["spots"].obs["subtype"].astype(str))
    params = stored.uns["subtype"]["params"]
    assert params["by"] == "expression" and list(params["tumour"]) == ["kind", "1", "2"]
    np.testing.assert_array_equal(sdata.tables["spots"].X, before)
    assert not (stored.X % 1).any()
    assert "mine" in sdata.tables["spots"].obs and "mine" not in stored.obs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'.*'spots'"),
        ({"tumour": "cancer"}, KeyError, "tumour='cancer' is not among the obs columns.*'is_tumour'"),
        ({"tumour": "tissue"}, ValueError, r"not a boolean column.*\['stroma', 'tumour'\]"),
        ({"tumour": ("tissue", "cancer")}, ValueError, r"no \['cancer'\], but \['stroma', 'tumour'\]"),
        ({"tumour": ["a", "b", "c"]}, ValueError, "tumour is a list: give the name of a boolean column"),
        ({"tumour": pd.Series([True])}, ValueError, "tumour is a Series: give the name of a boolean column"),
        ({"tumour": None}, ValueError, "tumour is None"),
        ({"n_subtypes": 2.0}, ValueError, "n_subtypes=2.0: give a number of clusters"),
        ({"n_subtypes": None}, ValueError, "n_subtypes=None: give a number of clusters"),
        ({"reference": ("tissue", "stroma")}, ValueError, "reference=.* needs gene_positions="),
        ({"key_added": "my subtypes"}, ValueError, "key_added='my subtypes' cannot be stored"),
        ({"n_subtypes": 1}, ValueError, "n_subtypes=1: give a number of clusters from 2 on"),
        ({"n_subtypes": []}, ValueError, r"n_subtypes=\[\]"),
        ({"n_subtypes": N_TUMOUR}, ValueError, f"are {N_TUMOUR} spots, too few for {N_TUMOUR} clusters"),
        ({"by": "copy_number"}, ValueError, "needs gene_positions="),
        ({"by": "looks"}, ValueError, "by='looks'"),
        ({"key_added": "tissue"}, ValueError, "key_added='tissue' is in table 'spots' already"),
    ],
)
def test_mistakes_are_named_and_nothing_is_added(arguments, error, message):
    sdata = section(slice(0, 0), 1.0)
    before = list(sdata.tables["spots"].obs)
    with pytest.raises(error, match=message):
        tl.tumour_subtypes(sdata, **({"table_key": "spots", "tumour": "is_tumour"} | arguments))
    assert list(sdata.tables["spots"].obs) == before and not sdata.tables["spots"].uns


def test_a_boolean_column_may_lack_values():
    sdata = section(slice(0, 0), 1.0)
    table = sdata.tables["spots"]
    known = table.obs["is_tumour"].astype(object)
    known.iloc[0] = np.nan
    table.obs["merged"] = known
    tl.tumour_subtypes(sdata, table_key="spots", tumour="merged", n_subtypes=2)
    assert table.obs["subtype"].notna().equals(known.eq(True))


def test_chromosomes_are_called_alike_however_they_are_written(tmp_path: Path):
    lines = ["Gene,Chromosome,Start,End", "a,1,1,2", "b,,1,2", "c,Chr2,1,2", "d,chrX,1,2"]
    (tmp_path / "genes.csv").write_text("\n".join(lines))
    assert read_gene_positions(tmp_path / "genes.csv")["chromosome"].to_dict() == {
        "a": "chr1",
        "c": "chr2",
        "d": "chrX",
    }


def test_predictions_are_logarithms_and_may_be_a_little_below_0():
    sdata = section(np.arange(0, N_GENES, 6), 2.0)
    table = sdata.tables["spots"]
    table.X = np.log1p(table.X / table.X.sum(1, keepdims=True) * 1e4) - 0.2
    with pytest.raises(ValueError, match="negative"):
        tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour", n_subtypes=2)
    table.uns["spots"] = {"lattice": {"kind": "hexagonal", "pitch_um": 100.0}}
    tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour", n_subtypes=2)
    assert agreement(sdata) == 1.0


def test_scaled_values_are_refused():
    sdata = section(slice(0, 0), 1.0)
    sdata.tables["spots"].X -= 5
    with pytest.raises(ValueError, match="negative, NaN or infinite"):
        tl.tumour_subtypes(sdata, table_key="spots", tumour="is_tumour")


def test_mistakes_about_copy_number_are_named(positions: Path, tmp_path: Path):
    pytest.importorskip("infercnvpy")
    sdata = section(slice(0, 0), 1.0)

    def fails(message: str, error: type[Exception] = ValueError, **arguments: Any) -> None:
        given: dict[str, Any] = {"table_key": "spots", "tumour": "is_tumour", "gene_positions": positions} | arguments
        with pytest.raises(error, match=message):
            tl.tumour_subtypes(sdata, **given)

    fails("reference= and tumour= have 40 spots in common", reference=("tissue", "stroma"), tumour=("tissue", "stroma"))
    fails("there is no such file", FileNotFoundError, gene_positions=tmp_path / "nowhere.gtf")
    fails("give a GTF file", gene_positions=Path(__file__))
    fails("window_size=0", window_size=0)
    bad = tmp_path / "bad.csv"
    bad.write_text("symbol,chromosome,start,end\ngene1,1,1,2\n")
    fails(r"no columns \['gene'\].*'symbol'", gene_positions=bad)
    bad.write_text("gene,chromosome,start,end\nENSG00000139618,13,1,2\n")
    fails("places none of the 360 genes. The table has gene symbols.*Ensembl ids", gene_positions=bad)
    bad.write_text("gene,chromosome,start,end\ngene1,1,1,2\ngene2,1,5,8\n")
    fails("places 2 of the 360 genes, and no autosome has ten", gene_positions=bad)
    bad.write_text("gene,chromosome,start,end\ngene1,1,far,2\n")
    fails(r"'start' must hold positions in base pairs: \['far'\]", gene_positions=bad)
    for name in ("no.csv", "no.gtf", "no.tsv.gz", "no.gtf.gz"):
        (tmp_path / name).write_bytes(bytes(range(256)))
        fails(f"{name}' cannot be read as the text", gene_positions=tmp_path / name)
    bad.write_text("")
    fails("bad.csv' cannot be read as the text", gene_positions=bad)
    sdata.tables["spots"].obs["is_tumour"] = True
    fails("0 spots are not tumour")


def test_without_infercnvpy_the_extra_is_named(positions: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "infercnvpy", None)
    with pytest.raises(ImportError, match=r'pip install "sphistex\[cnv\]"'):
        tl.tumour_subtypes(section(slice(0, 0), 1.0), table_key="spots", tumour="is_tumour", gene_positions=positions)


def test_gtf_files_know_genes_by_symbol_and_id(tmp_path: Path):
    lines = [
        "#!genome-build GRCh38",
        '13\thavana\tgene\t32315086\t32400268\t.\t+\t.\tgene_id "ENSG00000139618.19"; gene_name "BRCA2";',
        '13\thavana\texon\t32315086\t32315667\t.\t+\t.\tgene_id "ENSG00000139618.19"; gene_name "BRCA2";',
        'chr17\thavana\tgene\t7661779\t7687550\t.\t-\t.\tgene_id "ENSG00000141510"; gene_name "TP53";',
        '1\thavana\tgene\t1\t9\t.\t-\t.\tgene_id "ENSG00000000001"; gene_name "Y_RNA";',
        '2\thavana\tgene\t1\t9\t.\t-\t.\tgene_id "ENSG00000000002"; gene_name "Y_RNA";',
    ]
    file = tmp_path / "genes.gtf.gz"
    with gzip.open(file, "wt") as out:
        out.write("\n".join(lines))
    found = read_gene_positions(file)
    assert found.loc["BRCA2"].tolist() == ["chr13", 32315086, 32400268]
    assert found.loc["ENSG00000139618"].equals(found.loc["BRCA2"].rename("ENSG00000139618"))
    assert found.loc["TP53", "chromosome"] == "chr17"
    assert "Y_RNA" not in found.index and "ENSG00000000002" in found.index
