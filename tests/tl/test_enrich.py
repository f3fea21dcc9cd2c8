"""Planted programmes are found in the spots that have them and among their markers."""

from __future__ import annotations

import json
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats
from spatialdata import SpatialData, read_zarr

from sphistex import io, tl

N, N_GENES, N_SETS, PER_SET = 80, 200, 5, 20
# Only the first half of the spots express these genes, of the second set, more.
SET = slice(PER_SET, 2 * PER_SET)


@pytest.fixture
def sdata() -> SpatialData:
    rng = np.random.default_rng(0)
    rate = np.tile(rng.gamma(2.0, 4.0, N_GENES), (N, 1))
    rate[: N // 2, SET] *= 2.5
    obs = pd.DataFrame({"half": pd.Categorical(["high"] * (N // 2) + ["low"] * (N // 2))})
    obs.index = [f"spot{i}" for i in range(N)]
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    return SpatialData(tables={"spots": AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs, var)})


@pytest.fixture
def sets() -> dict[str, list[str]]:
    genes = [f"gene{i}" for i in range(N_GENES)]
    return {f"set {i}": genes[i * PER_SET : (i + 1) * PER_SET] for i in range(N_SETS)}


def logged(table: AnnData) -> np.ndarray:
    counts = table.X.toarray()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def test_markers_are_the_planted_genes(sdata):
    found = tl.markers(sdata, table_key="spots", groupby="half")
    assert len(found) == 2 * N_GENES
    high = found[found["group"] == "high"]
    assert set(high["gene"][:PER_SET]) == set(sdata.tables["spots"].var_names[SET])
    assert high["score"].is_monotonic_decreasing
    # the normalisation takes 2.5-fold planted genes to a little less
    assert high["log2_fold_change"][:PER_SET].between(0.7, 1.7).all()
    np.testing.assert_allclose(high["q"], stats.false_discovery_control(high["p"]))


def test_markers_do_not_depend_on_what_is_read_at_once(sdata, monkeypatch: pytest.MonkeyPatch):
    whole = tl.markers(sdata, table_key="spots", groupby="half")
    monkeypatch.setattr("sphistex.tl._expression._NUMBERS", 30 * N)
    pd.testing.assert_frame_equal(tl.markers(sdata, table_key="spots", groupby="half"), whole)


def test_markers_agree_with_a_rank_sum_test(sdata):
    found = tl.markers(sdata, table_key="spots", groupby="half")
    values = logged(sdata.tables["spots"])[:, 7]
    expected = stats.mannwhitneyu(values[: N // 2], values[N // 2 :], use_continuity=False, method="asymptotic").pvalue
    own = found[(found["group"] == "high") & (found["gene"] == "gene7")]
    assert own["p"].item() == pytest.approx(expected, rel=1e-6)


def test_of_many_spots_fewer_are_compared_but_all_of_a_small_group(sdata, monkeypatch: pytest.MonkeyPatch):
    rare = np.arange(40_000) % 800 == 7
    rate = np.where(rare[:, None] & (np.arange(6) == 2), 8, 4)
    counts = np.random.default_rng(0).poisson(rate).astype(np.float32)
    obs = pd.DataFrame({"kind": np.where(rare, "rare", "common")}, index=np.arange(len(rare)).astype(str))
    sdata.tables["many"] = AnnData(counts, obs=obs, var=pd.DataFrame(index=list("abcdef")))
    some = tl.markers(sdata, table_key="many", groupby="kind", method="t-test")
    monkeypatch.setattr(sys.modules["sphistex.tl.markers"], "_N_COMPARED", len(rare))
    every = tl.markers(sdata, table_key="many", groupby="kind", method="t-test")
    of_rare = [found[found["group"] == "rare"].set_index("gene") for found in (some, every)]
    assert of_rare[0].index[0] == "c"
    # of a third of the small group, scores would be smaller by the root of three
    assert of_rare[0]["score"]["c"] == pytest.approx(of_rare[1]["score"]["c"], rel=0.1)
    assert not some["score"].equals(every["score"])


def test_scores_are_t_values_of_membership_in_the_set(sdata, sets):
    pytest.importorskip("decoupler")
    tl.enrich(sdata, table_key="spots", gene_sets=sets)
    table = sdata.tables["spots"]
    scores = table.obsm["enrichment"]
    assert scores.index.equals(table.obs_names) and set(scores.columns) == set(sets)
    member = table.var_names.isin(sets["set 3"]).astype(float)
    for spot in (0, 50):
        fit = stats.linregress(member, logged(table)[spot])
        assert scores["set 3"].iloc[spot] == pytest.approx(fit.slope / fit.stderr, rel=1e-4)
    high = table.obs["half"] == "high"
    assert scores.loc[high, "set 1"].min() > scores.loc[~high, "set 1"].max()


def test_the_planted_set_is_over_represented_and_no_other(sdata, sets):
    pytest.importorskip("decoupler")
    tl.enrich(sdata, table_key="spots", gene_sets=sets, groupby="half", n_markers=30)
    found = sdata.tables["spots"].uns["enrichment"]["over_representation"]
    assert len(found) == 2 * N_SETS
    best = found[(found["group"] == "high") & (found["gene_set"] == "set 1")].iloc[0]
    assert best["n_overlap"] == PER_SET and best["q"] < 1e-6 and best["log_odds_ratio"] > 3
    assert (found[(found["gene_set"] != "set 1")]["q"] > 0.05).all()
    # Fisher's test of the markers against all genes of the table
    outside = best["n_markers"] - PER_SET
    fisher = stats.fisher_exact([[PER_SET, 0], [outside, N_GENES - PER_SET - outside]], alternative="greater")
    assert best["p"] == pytest.approx(fisher.pvalue)
    assert set(best["genes"].split(", ")) == set(sets["set 1"])


def test_scores_do_not_depend_on_what_is_read_at_once(sdata, sets, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("decoupler")
    table = sdata.tables["spots"]
    lone = table.X.tolil()
    lone[:, 5], lone[0, 5] = 0, 3  # a gene that most parts do not hold
    table.X = lone.tocsr()
    tl.enrich(sdata, table_key="spots", gene_sets=sets)
    whole = table.obsm["enrichment"]
    monkeypatch.setattr("sphistex.tl._expression._NUMBERS", 7 * N_GENES)
    tl.enrich(sdata, table_key="spots", gene_sets=sets)
    pd.testing.assert_frame_equal(table.obsm["enrichment"], whole, rtol=1e-4)


def test_an_empty_spot_has_no_scores(sdata, sets):
    pytest.importorskip("decoupler")
    table = sdata.tables["spots"]
    tl.enrich(sdata, table_key="spots", gene_sets=sets)
    whole = table.obsm["enrichment"]
    kept = np.arange(N) != 3
    table.X = sparse.diags_array(kept.astype(np.float32)).tocsr() @ table.X
    tl.enrich(sdata, table_key="spots", gene_sets=sets)
    assert table.obsm["enrichment"].iloc[3].isna().all()
    pd.testing.assert_frame_equal(table.obsm["enrichment"][kept], whole[kept], rtol=1e-4)


def test_a_file_a_mapping_and_a_list_are_read_alike(sdata, sets, tmp_path: Path):
    pytest.importorskip("decoupler")
    file = tmp_path / "sets.gmt"
    file.write_text("".join(f"{name}\tsome words\t" + "\t".join(genes) + "\n" for name, genes in sets.items()))
    assert io.read_gmt(file) == sets
    table = sdata.tables["spots"]
    for given in (file, sets):
        tl.enrich(sdata, table_key="spots", gene_sets=given, key_added=type(given).__name__)
    tl.enrich(sdata, table_key="spots", gene_sets=sets["set 2"], key_added="list")
    pd.testing.assert_frame_equal(table.obsm[type(file).__name__], table.obsm["dict"])
    np.testing.assert_array_equal(table.obsm["list"]["genes"], table.obsm["dict"]["set 2"])


def test_results_are_stored_whatever_the_sets_are_called(sdata, sets, tmp_path: Path):
    pytest.importorskip("decoupler")
    sets = {f"{name} WNT/β-catenin": genes for name, genes in sets.items()}
    sdata.write(tmp_path / "section.zarr")
    tl.enrich(sdata, table_key="spots", gene_sets=sets, groupby="half")
    stored = read_zarr(tmp_path / "section.zarr").tables["spots"]
    pd.testing.assert_frame_equal(stored.obsm["enrichment"], sdata.tables["spots"].obsm["enrichment"])
    assert "set 1 WNT_β-catenin" in stored.obsm["enrichment"]
    assert set(stored.uns["enrichment"]) == {"made_by", "params", "markers", "over_representation"}


def test_sets_with_few_genes_in_the_table_are_left_out(sdata, sets):
    pytest.importorskip("decoupler")
    sets["small"] = ["gene1", "gene2", "ELSEWHERE"]
    with pytest.warns(UserWarning, match=r"1 sets have fewer than min_genes=5 there.*'small'"):
        tl.enrich(sdata, table_key="spots", gene_sets=sets)
    assert "small" not in sdata.tables["spots"].obsm["enrichment"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"table_key": "nowhere"}, KeyError, "table_key='nowhere'.*'spots'"),
        ({"groupby": "nothing"}, KeyError, "groupby='nothing'.*'half'"),
        ({"groupby": "alone"}, ValueError, r"groupby='alone': 1 of the 3 groups are one spot each.*\['one'\]"),
        ({"groupby": "measured"}, ValueError, "groupby='measured': 80 of the 80 groups are one spot each"),
        ({"groupby": "same"}, ValueError, "groupby='same' has 1 groups"),
        ({"gene_sets": {}}, ValueError, "gene_sets is empty"),
        ({"gene_sets": None}, TypeError, "gene_sets is a NoneType: give a GMT file"),
        ({"gene_sets": pd.DataFrame({"source": ["a"]})}, TypeError, "gene_sets is a DataFrame: give a GMT file"),
        ({"gene_sets": {"": ["gene1"]}}, ValueError, "a set has no name"),
        ({"gene_sets": {"a": "gene1"}}, TypeError, r"\['a'\] must each be a list"),
        ({"gene_sets": {"a": None, "b": ["gene1"]}}, TypeError, r"\['a'\] must each be a list"),
        ({"gene_sets": None}, TypeError, "gene_sets is a NoneType"),
        ({"gene_sets": pd.DataFrame({"source": ["a"], "target": ["gene1"]})}, TypeError, "gene_sets is a DataFrame"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b' cannot be stored"),
        ({"gene_sets": {"a": ["TP53", "BRCA2"]}}, ValueError, "0 of the 2 genes of 1 gene sets"),
        ({"gene_sets": {"a": ["ENSG00000139618"]}}, ValueError, "gene symbols, such as.*Ensembl ids, such as"),
        ({"gene_sets": {"a": ["GENE1", "GENE2"]}}, ValueError, "upper and lower case"),
        ({"gene_sets": {"a": ["gene1", "gene2"]}}, ValueError, "min_genes=5.*the most are 2"),
        ({"gene_sets": "nowhere.gmt"}, FileNotFoundError, "nowhere.gmt"),
        ({"min_genes": 0}, ValueError, "min_genes=0"),
        ({"max_q": 2}, ValueError, "max_q=2"),
        ({"key_added": "spatial"}, ValueError, "key_added='spatial' is in table 'spots' already"),
    ],
)
def test_mistakes_are_named_and_nothing_is_added(sdata, sets, arguments, error, message):
    pytest.importorskip("decoupler")
    table = sdata.tables["spots"]
    table.obs["alone"], table.obs["same"] = ["one"] + ["many"] * (N - 2) + ["others"], "one"
    table.obs["alone"] = pd.Categorical(["one"] + ["many"] * 40 + ["others"] * (N - 41))
    table.obs["measured"] = np.linspace(0, 1, N)
    table.obsm["spatial"] = np.zeros((N, 2))
    with pytest.raises(error, match=message):
        tl.enrich(sdata, **({"table_key": "spots", "gene_sets": sets} | arguments))
    assert set(table.obsm) == {"spatial"} and not table.uns


def test_ids_in_another_column_are_pointed_out(sdata):
    pytest.importorskip("decoupler")
    var = sdata.tables["spots"].var
    var["gene_ids"] = [f"ENSG{i:011d}" for i in range(N_GENES)]
    with pytest.raises(ValueError, match=r"var\['gene_ids'\] holds 8 of these: set table.var_names"):
        tl.enrich(sdata, table_key="spots", gene_sets=list(var["gene_ids"][:8]))


def test_versions_of_ids_are_pointed_out(sdata):
    pytest.importorskip("decoupler")
    table = sdata.tables["spots"]
    table.var_names = [f"ENSG{i:011d}" for i in range(N_GENES)]
    with pytest.raises(ValueError, match="differ in the versions of the ids"):
        tl.enrich(sdata, table_key="spots", gene_sets=[f"{gene}.3" for gene in table.var_names[:8]])


def test_names_and_numbers_can_be_groups_of_one_column(sdata):
    sdata.tables["spots"].obs["mixed"] = pd.Series(
        [1, "a"] * (N // 2), index=sdata.tables["spots"].obs_names, dtype=object
    )
    table = tl.markers(sdata, table_key="spots", groupby="mixed")
    assert list(table["group"].cat.categories) == ["1", "a"]


def test_a_file_that_begins_with_a_mark_of_its_encoding_is_read(tmp_path: Path):
    file = tmp_path / "sets.gmt"
    file.write_text("A\tabout\tgene1\n", encoding="utf-8-sig")
    assert io.read_gmt(file) == {"A": ["gene1"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tabout\tgene1\nB about gene2\n", "line 2, is not a gene set: 'B about gene2'"),
        ("A\tabout\n", "line 1, is not a gene set"),
        ("A\t\tgene1\nA\t\tgene2\n", "line 2: there was a gene set 'A' before"),
        ("\n\n", "holds no gene sets"),
    ],
)
def test_malformed_files_are_named_by_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "sets.gmt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        io.read_gmt(file)


def test_a_mark_at_the_beginning_is_no_part_of_a_name_and_other_files_are_named(tmp_path: Path):
    (tmp_path / "sets.gmt").write_text("A\t\tgene1\n", encoding="utf-8-sig")
    assert io.read_gmt(tmp_path / "sets.gmt") == {"A": ["gene1"]}
    for name in ("no.gmt", "no.gmt.gz"):
        (tmp_path / name).write_bytes(bytes(range(256)))
        with pytest.raises(ValueError, match=f"{name} cannot be read as the text"):
            io.read_gmt(tmp_path / name)


def test_without_decoupler_the_extra_is_named(sdata, sets, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(ImportError, match=r'pip install "sphistex\[enrichment\]"'):
        tl.enrich(sdata, table_key="spots", gene_sets=sets)


class _Answers(BaseHTTPRequestHandler):
    """One set, of which the first query holds two genes, in the form in which g:Profiler answers."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(question)
        query, genes = next(iter(question["query"].items()))
        result = {"source": "GO:BP", "native": "GO:1", "name": "a/b", "p_value": 0.001, "significant": True}
        result |= {"description": "", "term_size": 20, "query_size": len(genes), "intersection_size": 2}
        result |= {"effective_domain_size": N_GENES, "precision": 1, "recall": 1, "query": query, "parents": []}
        result |= {"intersections": [["IEA"], ["IEA"], *[None] * (len(genes) - 2)]}
        ids = {"mapping": {gene: [f"E{gene}"] for gene in genes}, "ensgs": [f"E{gene}" for gene in genes]}
        meta = {"query_metadata": {"queries": {query: genes}}, "genes_metadata": {"query": {query: ids}}}
        body = json.dumps({"result": [result], "meta": meta}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_gprofiler_is_asked_about_markers_against_the_genes_of_the_table(sdata, monkeypatch: pytest.MonkeyPatch):
    gprofiler = pytest.importorskip("gprofiler")
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        local = partial(gprofiler.GProfiler, base_url=f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(gprofiler, "GProfiler", local)
        tl.enrich(sdata, table_key="spots", gene_sets="gprofiler:hsapiens", groupby="half")
        server.shutdown()
    table = sdata.tables["spots"]
    (asked,) = _Answers.asked
    assert asked["background"] == list(table.var_names) and asked["organism"] == "hsapiens"
    markers = table.uns["enrichment"]["markers"]
    assert asked["query"]["high"] == list(markers.loc[markers["group"] == "high", "gene"])
    (found,) = table.uns["enrichment"]["over_representation"].to_dict("records")
    assert found["gene_set"] == "GO:BP a_b" and found["q"] == 0.001 and found["n_overlap"] == 2
    assert found["genes"] == ", ".join(asked["query"]["high"][:2])
    assert "enrichment" not in table.obsm


def test_what_gprofiler_does_not_answer_is_said(sdata):
    pytest.importorskip("gprofiler")
    with pytest.raises(ConnectionError, match="no result for organism 'nobody'.*GMT"):
        tl.enrich(sdata, table_key="spots", gene_sets="gprofiler:nobody", groupby="half")
    with pytest.raises(ValueError, match="pass groupby="):
        tl.enrich(sdata, table_key="spots", gene_sets="gprofiler:hsapiens")
    assert not sdata.tables["spots"].uns
