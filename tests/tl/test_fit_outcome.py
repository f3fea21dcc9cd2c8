"""Outcomes of a cohort whose tables hold a planted programme; no images are needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.special import expit

from sphistex import settings
from sphistex.tl import OutcomeModel, fit_outcome
from sphistex.tl._cohort import Sections, patient_rows

_ROW_COLUMN = np.array([(row, column) for row in range(6) for column in range(12) if (row + column) % 2 == 0])
_TUMOUR = _ROW_COLUMN[:, 1] >= 6
_QUICK: dict[str, Any] = {"table_key": "counts", "folds": 4, "n_models": 1, "n_permutations": 0, "seed": 0}
_SURVIVAL: dict[str, Any] = {"time": "time", "event": "event"} | _QUICK

Cohort = tuple[dict[str, AnnData], pd.DataFrame]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    before, settings.progress = settings.progress, False
    yield
    settings.progress = before


def _cohort(n: int = 60, n_genes: int = 12, seed: int = 0) -> Cohort:
    """The first three genes follow z in the right half of each section, which a marker gene tells from the left."""
    rng = np.random.default_rng(seed)
    z = rng.permutation(np.linspace(-2, 2, n))
    sections = {}
    for number in range(n):
        values = 1.5 + 0.5 * rng.normal(size=(len(_ROW_COLUMN), n_genes))
        values[_TUMOUR, :3] += 0.5 * z[number]
        values[_TUMOUR, 3] += 2
        obs = pd.DataFrame(_ROW_COLUMN, columns=["array_row", "array_col"], index=map(str, range(len(values))))
        obs["predicted_region"] = pd.Categorical(np.where(_TUMOUR, "tumour", "stroma"))
        var = pd.DataFrame(index=[f"g{gene}" for gene in range(n_genes)])
        sections[f"S{number}"] = AnnData(values.astype(np.float32), obs=obs, var=var)
    clinical = pd.DataFrame(
        {
            "patient": [f"P{number}" for number in range(n)],
            "time": rng.exponential(20 * np.exp(-2 * z)) + 0.01,
            "event": (rng.random(n) < 0.75).astype(int),
            "response": rng.random(n) < expit(3 * z),
            "age": rng.normal(60, 10, n).round(),
        },
        index=list(sections),
    )
    return sections, clinical


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return _cohort()


@pytest.fixture(scope="module")
def survival(cohort: Cohort) -> OutcomeModel:
    pytest.importorskip("sksurv")
    return fit_outcome(*cohort, **_SURVIVAL | {"n_permutations": 5}, covariates=["age"])


def test_survival_programme_is_found(survival: OutcomeModel):
    scores, patients = survival.scores, survival.predictions
    assert (scores["metric"] == "concordance").all() and (scores["n_patients"] == 60).all()
    assert (scores["score"] > 0.7).all()
    assert ((scores["low"] < scores["score"]) & (scores["score"] < scores["high"]) & (scores["low"] > 0.5)).all()
    assert (scores["p_logrank"] < 0.01).all()
    for model in ("network", "pooled"):
        high = patients[f"{model}_group"] == "high"
        assert high.sum() == 30
        assert patients.loc[high, model].min() > patients.loc[~high, model].max()
    assert (patients.groupby("fold")["event"].sum() >= patients["event"].sum() // 4).all()


def test_what_tells_patients_apart_is_attributed_to_the_tumour(cohort: Cohort, survival: OutcomeModel):
    found = np.array([survival.attribution(section) for section in cohort[0].values()])
    inside, outside = found[:, _TUMOUR].sum(1), found[:, ~_TUMOUR].sum(1)
    assert inside.var() > 5 * outside.var()
    assert np.corrcoef(inside, inside + outside)[0, 1] > 0.9


def test_genes_of_the_programme_have_the_largest_coefficients(survival: OutcomeModel):
    assert set(survival.coefficients.drop("age").abs().nlargest(3).index) == {"g0", "g1", "g2"}


def test_shuffled_outcomes_are_not_predicted(survival: OutcomeModel):
    scores = survival.scores
    assert scores["shuffled"].between(0.4, 0.57).all()
    assert ((scores["shuffled_high"] > 0.5) & (scores["shuffled_high"] < scores["score"])).all()
    assert (scores["p_permutation"] == 1 / 6).all()


def test_left_out_patients_leave_no_trace(cohort: Cohort, survival: OutcomeModel):
    """Whatever one patient's section and covariates are, others of the same fold are predicted the same."""
    sections, clinical = cohort
    fold = survival.predictions["fold"]
    other, *same = fold.index[fold == fold.iloc[0]]
    changed = sections[other].copy()
    changed.X = 8 * np.random.default_rng(0).random(changed.shape).astype(np.float32)
    older = clinical.copy()
    older.loc[other, "age"] = 1000.0
    again = fit_outcome(sections | {other: changed}, older, **_SURVIVAL, covariates=["age"]).predictions
    for model in ("network", "pooled"):
        assert again.loc[same, model].to_numpy() == pytest.approx(survival.predictions.loc[same, model], abs=1e-6)
        assert not np.isclose(again.loc[other, model], survival.predictions.loc[other, model])
        rest = fold.index[fold != fold.iloc[0]]
        assert not np.allclose(again.loc[rest, model], survival.predictions.loc[rest, model])


def test_order_of_the_rows_does_not_matter():
    sections, clinical = _cohort(n=20)
    first = fit_outcome(sections, clinical, response="response", **_QUICK | {"folds": 2})
    again = fit_outcome(sections, clinical.iloc[::-1], response="response", **_QUICK | {"folds": 2})
    pd.testing.assert_frame_equal(first.predictions, again.predictions)


def test_response_is_predicted_and_told_as_a_probability(cohort: Cohort):
    model = fit_outcome(*cohort, response="response", **_QUICK)
    assert (model.scores["metric"] == "auc").all() and (model.scores["score"] > 0.75).all()
    assert model.predictions[["network", "pooled"]].stack().between(0, 1).all()


def test_sections_of_a_patient_stay_together():
    """Every section twice is every patient once, and where a patient's sections are the same nothing changes."""
    sections, clinical = _cohort(n=24)
    twice = sections | {f"{name}b": table for name, table in sections.items()}
    rows = pd.concat([clinical, clinical.set_axis([f"{name}b" for name in clinical.index])])
    how = _QUICK | {"folds": 2, "response": "response", "patient": "patient"}
    once, both = fit_outcome(sections, clinical, **how), fit_outcome(twice, rows, **how)
    assert both.predictions.index.tolist() == clinical["patient"].tolist()
    assert both.predictions["pooled"].to_numpy() == pytest.approx(once.predictions["pooled"], abs=1e-3)


def test_one_row_a_patient_serves_lists_of_sections_as_repeated_rows_serve_each_of_them():
    sections, clinical = _cohort(n=24)
    by_patient = {"P0": [sections["S0"], sections["S1"]], "P1": (sections["S2"],)}
    by_patient |= {f"P{number}": sections[f"S{number + 1}"] for number in range(2, 23)}
    rows = clinical.drop("S1").set_axis(list(by_patient))
    how: dict[str, Any] = _QUICK | {"folds": 2, "response": "response", "covariates": ["age"]}
    listed = fit_outcome(by_patient, rows, **how)
    repeated = clinical.assign(patient=["P0", "P0", *list(by_patient)[1:]])
    repeated.loc["S1", ["response", "age"]] = repeated.loc["S0", ["response", "age"]]
    each = fit_outcome(sections, repeated, patient="patient", **how)
    pd.testing.assert_frame_equal(listed.predictions, each.predictions)
    assert listed.info["n_sections"] == 24
    said = listed.predict(by_patient, rows)
    assert said.index.tolist() == list(by_patient)
    np.testing.assert_array_equal(said, each.predict(sections, repeated))


def test_lists_of_sections_that_hold_none_are_refused(cohort: Cohort):
    sections, clinical = cohort
    for value, error, message in (
        ([], ValueError, r"sections\['S3'\] is an empty list"),
        (["S3.zarr"], TypeError, r"sections\['S3'\] holds str: give SpatialData"),
    ):
        with pytest.raises(error, match=message):
            fit_outcome(sections | {"S3": value}, clinical, response="response", **_QUICK)
    with pytest.raises(ValueError, match="some of them twice"):
        fit_outcome({"S3": [sections["S3"]], "S3[0]": sections["S4"]}, clinical, response="response", **_QUICK)


def test_only_the_region_counts(cohort: Cohort):
    """The programme is in the tumour alone: the stroma predicts nothing."""
    how = _QUICK | {"folds": 3, "response": "response"}
    tumour, stroma = (fit_outcome(*cohort, region=region, **how).scores for region in ("tumour", ["stroma"]))
    assert tumour.loc["pooled", "score"] > 0.75 > 0.65 > stroma.loc["pooled", "score"]


def test_saved_and_read_it_says_the_same_of_new_patients(survival: OutcomeModel, tmp_path):
    sections, clinical = _cohort(n=8, seed=7)
    survival.save(tmp_path / "model")
    read = OutcomeModel.load(tmp_path / "model")
    clinical = clinical.drop(columns=["time", "event"])
    said = survival.predict(sections, clinical)
    pd.testing.assert_frame_equal(read.predict(sections, clinical), said)
    pd.testing.assert_frame_equal(read.scores, survival.scores)
    pd.testing.assert_frame_equal(read.predictions, survival.predictions)
    pd.testing.assert_series_equal(read.attribution(sections["S0"]), survival.attribution(sections["S0"]))
    with pytest.raises(FileNotFoundError, match="holds no saved OutcomeModel"):
        OutcomeModel.load(tmp_path)
    with pytest.raises(KeyError, match="lacks 1 of 12 genes"):
        survival.predict({"S0": sections["S0"][:, :11]}, clinical.loc[["S0"]])


def _with(clinical: pd.DataFrame, column: str, value: object, rows: Any = "S3") -> pd.DataFrame:
    changed = clinical.astype({column: object if isinstance(value, str) else float})
    changed.loc[rows, column] = value
    return changed


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda table: table.drop("S3"), {}, r"without a row in clinical: \['S3'\]"),
        (lambda table: table.rename({"S3": "T3"}), {}, r"without a section: \['T3'\]"),
        (lambda table: table.iloc[[0, *range(len(table))]], {}, r"several rows for \['S0'\]"),
        (lambda table: _with(table, "time", 0), {}, r"time='time' is not above 0 for \['S3'\]"),
        (lambda table: _with(table, "time", np.nan), {}, r"'time' is missing or infinite for \['S3'\]"),
        (lambda table: _with(table, "event", 2), {}, r"'event' has the values \[2.0\]"),
        (lambda table: _with(table, "event", 0, slice(None)), {}, "none of the 60 patients had the event"),
        (lambda table: _with(table, "event", 0, table.index[3:]), {}, r"folds=4: only \d of 60 patients had the event"),
        (lambda table: _with(table, "age", np.nan), {"covariates": ["age"]}, r"'age' is missing or infinite"),
        (lambda table: _with(table, "age", "old"), {"covariates": ["age"]}, "pandas.get_dummies"),
        (lambda table: _with(table, "response", 1, slice(None)), {"response": "response"}, "have the same response"),
        (lambda table: table, {"covariates": ["time"]}, "hold the outcome itself"),
        (lambda table: table, {"event": None}, "give either time and event, or response"),
        (lambda table: table, {"folds": 61}, "folds=61: there are only 60 patients"),
        (
            lambda table: _with(table, "event", 0, table.index[1:]),
            {},
            "only 1 of 60 patients had the event.*add patients",
        ),
        (lambda table: _with(table, "age", "old"), {"covariates": ["age"]}, "such as 'old', not numbers"),
        (lambda table: table.assign(time=pd.to_timedelta(table["time"], "D")), {}, "numbers of days"),
        (
            lambda table: table.join(table["age"].rename("age2")).rename({"age2": "age"}, axis=1),
            {"covariates": ["age"]},
            "several",
        ),
        (lambda table: table, {"covariates": ["age", "age"]}, "several"),
        (lambda table: table.assign(patient=1), {"covariates": ["patient"]}, "nothing to learn from"),
        (lambda table: table, {"folds": 1}, "folds=1: give a whole number of at least 2"),
        (lambda table: table, {"genes": 0}, "genes=0"),
        (lambda table: table, {"genes": ["g0", "g0"]}, "none twice"),
        (lambda table: table, {"region": "necrosis"}, "region='necrosis': no position of"),
        (lambda table: table.assign(patient="P0"), {"patient": "patient"}, "differs between the sections of patients"),
    ],
)
def test_bad_input_is_named(cohort: Cohort, change: Any, arguments: dict[str, Any], message: str):
    pytest.importorskip("sksurv")
    outcome = {"time": None, "event": None} if "response" in arguments else {}
    with pytest.raises(ValueError, match=message):
        fit_outcome(cohort[0], change(cohort[1]), **_SURVIVAL | outcome | arguments)


def test_numbers_in_columns_of_objects_and_categories_are_numbers(cohort: Cohort):
    sections, clinical = cohort
    same = clinical.astype({"event": object, "age": "category", "response": bool})
    columns = ["event", "age", "response"]
    rows = patient_rows(Sections.listed(sections), same, None, columns)
    pd.testing.assert_frame_equal(rows[columns], clinical.loc[list(sections), columns].astype(float))


def test_as_few_patients_as_can_be_compared(cohort: Cohort, tmp_path: Path):
    pytest.importorskip("sksurv")
    sections, clinical = cohort

    def few(n: int, **changes: Any) -> OutcomeModel:
        some = clinical.iloc[:n].assign(event=1, day=pd.date_range("2020-01-01", periods=n))
        return fit_outcome(
            {name: sections[name] for name in some.index}, some, **_SURVIVAL | {"n_permutations": 1} | changes
        )

    with pytest.raises(ValueError, match="there are 2.*OutcomeModel.predict"):
        few(2)
    with pytest.raises(ValueError, match="must leave two or more"):
        few(3, folds=2)
    model = few(3, folds=np.int64(3), patient="day")
    model.save(tmp_path / "model")
    assert OutcomeModel.load(tmp_path / "model").predictions.index[0].startswith("2020-01-01")
    few(4, folds=2)


def test_tables_that_do_not_fit_are_named(cohort: Cohort):
    sections, clinical = cohort
    raw, square, other = (sections["S1"].copy() for _ in range(3))
    raw.X = raw.X * 100
    square.obs["array_col"] = square.obs["array_col"] // 2
    other.var_names = [f"h{gene}" for gene in range(other.n_vars)]
    twice, text = sections["S1"].copy(), sections["S1"].copy()
    twice.var_names = ["g0", "g0", *twice.var_names[2:]]
    text.obs["array_row"] = text.obs["array_row"].astype(str)
    for table, message in (
        (raw, "log-normalised"),
        (square, "square"),
        (other, "shares no gene"),
        (twice, "duplicated gene names"),
        (text, "must be a whole number"),
        (sections["S1"][:0], "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_outcome(sections | {"S1": table}, clinical, response="response", **_QUICK)
    with pytest.raises(ValueError, match=r"\['S0', 'S1'\] are one and the same object, and of several patients"):
        fit_outcome(sections | {"S0": sections["S1"]}, clinical, response="response", **_QUICK)
    with pytest.raises(KeyError, match="lacks 1 of 2 genes"):
        fit_outcome(sections, clinical, response="response", genes=["g0", "CD8A"], **_QUICK)
    with pytest.raises(KeyError, match="are no columns of clinical"):
        fit_outcome(sections, clinical, response="responded", **_QUICK)
    with pytest.raises(TypeError, match="genes=None"):
        fit_outcome(sections, clinical, response="response", **_QUICK | {"genes": None})
    with pytest.raises(TypeError, match="give a dictionary of sections"):
        fit_outcome(list(sections.values()), clinical, response="response", **_QUICK)  # type: ignore[arg-type]


def test_without_the_extra_survival_says_what_to_install(cohort: Cohort, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sksurv", None)
    with pytest.raises(ImportError, match=r'pip install "sphistex\[clinical\]"'):
        fit_outcome(*cohort, **_SURVIVAL)
