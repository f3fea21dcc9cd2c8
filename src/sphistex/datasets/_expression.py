"""Expression of a simulated section: what each cell type expresses, and gradients that no picture shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sphistex.datasets._cells import CELL_TYPES, TYPE_NAMES
from sphistex.datasets._tissue import smooth_noise

# Share of the genes of each kind.
KINDS = {"marker": 0.40, "mixed": 0.25, "gradient": 0.15, "broad": 0.20}
# How far the gradients reach, in µm, on sections large enough to hold them.
_REACH_UM = (120.0, 160.0, 200.0, 250.0, 300.0)
_CHUNK = 64


@dataclass(frozen=True)
class Genes:
    """A panel of genes.

    Parameters
    ----------
    var
        One row per gene: ``kind``, ``cell_type`` (of markers and mixed genes, otherwise empty), ``dispersion``
        (variance = mean + dispersion · mean² at one superpixel).
    profile
        Expression per unit of RNA of each cell type, (n_types, n_genes).
    per_area
        Expression per unit of tissue area whatever the cells, (n_genes,).
    loading
        Weights of the latent gradients on the log of the expression, (n_gradients, n_genes).
    abundance
        Wanted share of each gene in the counts, (n_genes,); adds up to 1.
    """

    var: pd.DataFrame
    profile: NDArray[np.float64]
    per_area: NDArray[np.float64]
    loading: NDArray[np.float64]
    abundance: NDArray[np.float64]

    @property
    def dispersion(self) -> NDArray[np.float64]:
        """Dispersion of each gene, (n_genes,)."""
        return self.var["dispersion"].to_numpy()


def draw_genes(n_genes: int, rng: np.random.Generator) -> Genes:
    """Draw a panel: markers, the same modulated by gradients (mixed), gradients alone, and broadly expressed genes."""
    bounds = np.round(np.cumsum([0.0, *KINDS.values()]) * n_genes).astype(int)
    kind = np.repeat(list(KINDS), np.diff(bounds))
    # Markers go round the types, so that a small panel has one of each.
    of_type = np.isin(kind, ("marker", "mixed"))
    home = np.where(of_type, np.arange(n_genes) % len(CELL_TYPES), -1)

    profile = np.exp(rng.normal(0, 0.25, (len(CELL_TYPES), n_genes)))
    raised = np.exp(rng.normal(np.log(20.0), 0.5, n_genes))
    profile[home[of_type], np.flatnonzero(of_type)] *= raised[of_type]
    # Many markers are shared by a second type, more weakly.
    second = rng.integers(len(CELL_TYPES), size=n_genes)
    shared = of_type & (rng.random(n_genes) < 0.4)
    profile[second[shared], np.flatnonzero(shared)] *= np.sqrt(raised[shared])
    profile[:, kind == "gradient"] = 0.0

    strength = pd.Series({"marker": 0.0, "mixed": 0.7, "gradient": 1.1, "broad": 0.15})[kind].to_numpy()
    loading = rng.standard_normal((len(_REACH_UM), n_genes))
    loading *= strength / np.linalg.norm(loading, axis=0)
    abundance = np.exp(rng.normal(0, 1.0, n_genes))
    var = pd.DataFrame(
        {
            "kind": pd.Categorical(kind, categories=list(KINDS)),
            "cell_type": np.where(of_type, np.array(TYPE_NAMES)[home], ""),
            "dispersion": rng.gamma(2.0, 0.1, n_genes),
        },
        index=pd.Index(_names(kind, home), name="gene"),
    )
    return Genes(var, profile, (kind == "gradient").astype(float), loading, abundance / abundance.sum())


def _names(kind: NDArray, home: NDArray) -> list[str]:
    mixed = np.where(kind == "mixed", "_mixed", "").astype(object)
    stem = np.where(home >= 0, np.array(TYPE_NAMES, object)[home] + mixed, kind)
    number = pd.Series(stem).groupby(stem).cumcount() + 1
    return [f"{name}_{i}" for name, i in zip(stem, number, strict=True)]


def gradients(
    rna: NDArray, tissue: NDArray[np.bool_], pitch_um: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Smooth latent fields that are uncorrelated with the cells: (n_superpixels, n_gradients), variance 1.

    On a section of a few millimetres a smooth field resembles some compartment by chance; that part is taken out by
    regression on the smoothed cell-type map.
    """
    reach = [min(scale, min(tissue.shape) * pitch_um / 6) for scale in _REACH_UM]
    fields = np.stack([smooth_noise(tissue.shape, scale, rng, pitch_um).ravel() for scale in reach], axis=1)
    maps = rna.reshape(*tissue.shape, -1)
    seen = np.stack([gaussian_filter(maps[..., code], 5.0).ravel() for code in range(maps.shape[-1])], axis=1)
    seen = np.hstack([seen / (seen.std(axis=0) + 1e-9), np.ones((len(seen), 1))])
    inside = tissue.ravel()
    fields = fields - seen @ np.linalg.lstsq(seen[inside], fields[inside], rcond=None)[0]
    return fields / fields[inside].std(axis=0)


def relative_rates(genes: Genes, rna: NDArray, fields: NDArray, tissue: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Unscaled expected counts of the tissue's superpixels, (n, n_genes)."""
    inside = tissue.ravel()
    background = 0.02 * rna[inside].sum(axis=1).mean()
    cells = rna[inside] @ genes.profile + background * genes.profile.mean(axis=0)
    return ((cells + genes.per_area) * np.exp(fields[inside] @ genes.loading)).astype(np.float32)


def draw_counts(
    rate: NDArray, dispersion: NDArray, rng: np.random.Generator, weights: sparse.csr_matrix | None = None
) -> sparse.csr_matrix:
    """Negative binomial counts of every superpixel, or, with ``weights`` (n_spots, n_superpixels), of every spot.

    A spot's counts are a Poisson draw of the weighted sum of its superpixels' overdispersed rates.
    """
    parts = []
    for start in range(0, rate.shape[1], _CHUNK):
        genes = slice(start, start + _CHUNK)
        noisy = _overdisperse(rate[:, genes], dispersion[genes], rng)
        parts.append(sparse.csc_matrix(rng.poisson(noisy if weights is None else weights @ noisy).astype(np.float32)))
    return sparse.hstack(parts, format="csr")


def _overdisperse(rate: NDArray, dispersion: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rates times gamma noise of mean 1 and variance ``dispersion``: Poisson counts of them are negative binomial."""
    shape = (1 / np.maximum(dispersion, 1e-6)).astype(np.float32)
    return rate * rng.standard_gamma(np.broadcast_to(shape, rate.shape), dtype=np.float32) / shape
