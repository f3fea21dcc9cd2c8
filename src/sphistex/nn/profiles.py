"""Spot counts as tokens: what of a spot's expression its neighbours' superpixels get to see."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# More genes than this are not decomposed as they are.
_MANY_GENES = 4096


class LogProfiles(nn.Module):
    """Principal components of library-normalised, log-transformed, standardised counts, and the log library size.

    A few components keep what is common to many genes and leave most of the spots' noise behind.
    """

    target: Tensor
    mean: Tensor
    loadings: Tensor
    depth: Tensor

    def __init__(self, counts: Tensor, n_components: int = 20) -> None:
        super().__init__()
        n_components = min(n_components, *counts.shape)
        self.register_buffer("target", counts.sum(1).median().clamp_min(1.0))
        self.register_buffer("mean", torch.zeros(counts.shape[1]).to(counts))
        self.register_buffer("depth", torch.ones(counts.shape[1]).to(counts))
        log = self._log(counts)
        self.mean.copy_(log.mean(0))
        scale = log.std(0).clamp_min(0.1)
        singular, right = _components(log.sub_(self.mean).div_(scale), n_components)
        # the first component gets unit variance, the others keep their size relative to it
        unit = len(counts) ** 0.5 / singular[0].clamp_min(1e-6)
        self.register_buffer("loadings", (right / scale[:, None]) * unit)

    def forward(self, counts: Tensor) -> Tensor:
        """Counts (n, n_genes) → tokens (n, n_components + 1)."""
        counts = counts / self.depth
        size = torch.log((counts.sum(1, keepdim=True) + 1) / self.target)
        return torch.cat([(self._log(counts) - self.mean) @ self.loadings, size], dim=1)

    def at_depth(self, depth: Tensor) -> LogProfiles:
        """The same where more counts of each gene are taken by a factor (n_genes,)."""
        other = copy.deepcopy(self)
        other.depth *= depth
        return other

    def _log(self, counts: Tensor) -> Tensor:
        return torch.log1p(counts / counts.sum(1, keepdim=True).clamp_min(1.0) * self.target)


def _components(values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The largest singular values (n,) of (n_spots, n_genes), and what they belong to (n_genes, n).

    Many genes are looked at through the spots' products with each other, which hold as much in less memory.
    """
    n_spots, n_genes = values.shape
    if n_genes <= max(_MANY_GENES, n_spots):
        _, singular, right = torch.linalg.svd(values, full_matrices=False)
        return singular[:n], right[:n].T
    products = torch.zeros(n_spots, n_spots, dtype=torch.float64, device=values.device)
    for part in values.split(_MANY_GENES, dim=1):
        products += part.double() @ part.double().T
    squares, left = torch.linalg.eigh(products)
    singular = squares[-n:].flip(0).clamp_min(1e-12 * float(squares[-1]) + 1e-12).sqrt().to(values)
    return singular, values.T @ left[:, -n:].flip(1).to(values) / singular


class MinMaxProfiles(nn.Module):
    """All genes, scaled to 0–1 over the training spots, as in the paper."""

    low: Tensor
    span: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        low, high = counts.min(0).values, counts.max(0).values
        self.register_buffer("low", low)
        self.register_buffer("span", (high - low).clamp_min(1e-8))

    def forward(self, counts: Tensor) -> Tensor:
        """Counts (n, n_genes) → tokens (n, n_genes)."""
        return (counts - self.low) / self.span

    def at_depth(self, depth: Tensor) -> MinMaxProfiles:
        """The same where more counts of each gene are taken by a factor (n_genes,)."""
        other = copy.deepcopy(self)
        other.low *= depth
        other.span *= depth
        return other


Profile = LogProfiles | MinMaxProfiles
PROFILES: dict[str, type[LogProfiles] | type[MinMaxProfiles]] = {"components": LogProfiles, "scaled": MinMaxProfiles}
