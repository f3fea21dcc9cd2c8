"""A fitted outcome model: what it says of other patients, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import expit
from spatialdata import SpatialData

from sphistex.nn.outcome import Ensemble, Pictures
from sphistex.tl._cohort import gather_cohort
from sphistex.tl._outcome_parts import Penalised, Scaling


@dataclass
class OutcomeModel:
    """Survival or response from sections: a network on the maps, and a penalised linear model on their means.

    Made by :func:`sphistex.tl.fit_outcome`; the two models inside are fitted to all of its patients, while ``scores``
    and ``predictions`` are of patients that were left out.

    Parameters
    ----------
    kind
        ``"survival"`` or ``"response"``.
    scaling, network, pooled
        How sections become channels and means, and the two models.
    hexagonal
        Whether the sections' lattice is.
    columns
        ``table_key``, ``region``, ``region_key``, ``patient`` and ``covariates``, as given to the fit.
    scores
        One row for each model: ``metric`` (``"concordance"`` or ``"auc"``), its ``score`` on patients that were left
        out with the ends ``low`` and ``high`` of its 95 % interval (bootstrap over patients), the mean score where
        outcomes were ``shuffled`` and the upper end of their 95 % range, ``p_permutation``, of survival ``p_logrank``
        between the halves of higher and lower risk, ``n_patients`` and ``n_events`` (or responses).
    predictions
        One row for each patient, predicted when left out: ``fold``, the outcome, ``network`` and ``pooled`` (log
        relative hazard, or probability of a response), and of survival ``network_group`` and ``pooled_group``
        (``"high"``: above the median).
    info
        How it was made.
    """

    kind: str
    scaling: Scaling
    network: Ensemble
    pooled: Penalised
    hexagonal: bool
    columns: dict[str, Any]
    scores: pd.DataFrame
    predictions: pd.DataFrame
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def genes(self) -> list[str]:
        """Genes that sections must have."""
        return self.scaling.genes

    @property
    def coefficients(self) -> pd.Series:
        """Of the linear model, for one standard deviation of a gene's mean, or of a covariate."""
        return pd.Series(self.pooled.coefficients, index=[*self.genes, *self.columns["covariates"]])

    def predict(
        self,
        sections: Mapping[Any, SpatialData | AnnData | Sequence[SpatialData | AnnData]],
        clinical: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """What both models say of other patients.

        Parameters
        ----------
        sections
            As for :func:`sphistex.tl.fit_outcome`, with all genes of the model.
        clinical
            Table with a row for each section or patient, and in it the patient and the covariates if the model was
            fitted with any; outcomes are not looked at. Without a table every key of ``sections`` is a patient.

        Returns
        -------
        One row for each patient: ``network`` and ``pooled``, the logs of the hazards relative to the mean patient of
        the fit, or probabilities of a response.
        """
        cohort = gather_cohort(sections, clinical, genes=self.genes, **self.columns)
        self._check_lattice(cohort.hexagonal)
        said = {
            "network": self.network.predict(self.scaling.pictures(cohort)),
            "pooled": self.pooled.predict(self.scaling.features(cohort)),
        }
        return pd.DataFrame(said, index=cohort.patients).transform(expit if self.kind == "response" else np.asarray)

    def attribution(self, section: SpatialData | AnnData) -> pd.Series:
        """What each position of a section adds to what the network says of it.

        Returns
        -------
        One value for each row of the table, in units of the log hazard or log odds. They add up to the difference from
        a section whose expression is everywhere the mean of the cohort.

        References
        ----------
        Integrated gradients: Sundararajan et al., ICML 2017.
        """
        columns = self.columns | {"covariates": [], "patient": None}
        cohort = gather_cohort({"this section": section}, None, genes=self.genes, **columns)
        self._check_lattice(cohort.hexagonal)
        layout = cohort.layouts[0]
        values = (cohort.values(0, self.genes) - self.scaling.mean) @ self.scaling.loadings
        # covariates only add a constant
        covariates = np.zeros((1, len(self.columns["covariates"])))
        pictures = Pictures.of([layout], [values], cohort.pooled, np.zeros(1, dtype=int), covariates)
        shares = layout.values(self.network.attribution(pictures))[:, 0].numpy()
        return pd.Series(shares, index=cohort.tables[0].obs_names, name="attribution")

    def save(self, path: str | Path) -> None:
        """Write ``outcome.safetensors`` and ``outcome.json`` into the folder ``path``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        arrays = {f"network.{name}": value.detach().cpu() for name, value in self.network.state_dict().items()}
        arrays |= {f"scaling.{name}": torch.from_numpy(value) for name, value in _arrays(self.scaling).items()}
        arrays["pooled.coefficients"] = torch.from_numpy(self.pooled.coefficients)
        save_file({name: value.contiguous() for name, value in arrays.items()}, path / "outcome.safetensors")
        header = {
            "kind": self.kind,
            "genes": self.genes,
            "n_models": len(self.network.networks),
            "hexagonal": self.hexagonal,
            "pooled": {"intercept": self.pooled.intercept, "penalty": self.pooled.penalty},
            "columns": self.columns,
            "scores": self.scores.reset_index().to_dict("list"),
            "predictions": self.predictions.reset_index().to_dict("list"),
            "info": self.info,
        }
        (path / "outcome.json").write_text(json.dumps(header, indent=1, default=_plain))

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> OutcomeModel:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If ``path`` holds no model.
        """
        path = Path(path)
        if not (path / "outcome.json").is_file() or not (path / "outcome.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no saved OutcomeModel (outcome.json and outcome.safetensors)")
        header = json.loads((path / "outcome.json").read_text())
        arrays = load_file(path / "outcome.safetensors")
        scaling = Scaling(header.pop("genes"), **{name: of.numpy() for name, of in _under("scaling.", arrays).items()})
        network = Ensemble.of(
            header.pop("n_models"),
            scaling.loadings.shape[1],
            len(scaling.covariates_mean),
            hexagonal=header["hexagonal"],
        )
        network.load_state_dict(_under("network.", arrays))
        pooled = Penalised(arrays["pooled.coefficients"].numpy(), **header.pop("pooled"))
        for name, index in (("scores", "model"), ("predictions", "patient")):
            header[name] = pd.DataFrame(header[name]).set_index(index)
        return cls(scaling=scaling, network=network.to(device).eval(), pooled=pooled, **header)

    def _check_lattice(self, hexagonal: bool) -> None:
        if hexagonal != self.hexagonal:
            kinds = {True: "hexagonal", False: "square"}
            raise ValueError(f"the lattice is {kinds[hexagonal]}, that of the model {kinds[self.hexagonal]}")


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of numpy, and, as text, dates and other names of patients."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _arrays(scaling: Scaling) -> dict[str, NDArray[np.float64]]:
    return {
        one.name: np.ascontiguousarray(getattr(scaling, one.name)) for one in fields(scaling) if one.name != "genes"
    }


def _under(prefix: str, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
