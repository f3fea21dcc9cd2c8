"""Multiple-instance learning: each spot is a bag of superpixels whose sum must be the spot (HISTEX, eq. 11).

An objective says what the network's output means (``rate``: counts per superpixel) and how well the superpixels of a
bag explain its counts (``loss``). Both hold the scales that they take from the training counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# exp() of the network's output is kept within a factor of e^±8 of a gene's mean.
_MAX_LOG_FOLD = 8.0


class PoissonCounts(nn.Module):
    """Counts of a bag are Poisson with the sum of its superpixels' rates; rates are exp(output) times the gene's mean.

    A sum over the bag keeps the noise model of the counts, where a mean of scaled values would not; the log link keeps
    rates positive and lets effects multiply.

    Parameters
    ----------
    counts
        Training counts (n_bags, n_genes).
    areas
        Superpixels per bag (n_bags,), counted by area.
    balance
        Genes are weighted by (mean count)^-balance: 0 is the plain likelihood, in which abundant genes decide; 1 gives
        every gene the same weight at equal relative error.
    """

    mean_rate: Tensor
    gene_weight: Tensor

    def __init__(self, counts: Tensor, areas: Tensor, balance: float = 0.5) -> None:
        super().__init__()
        mean = counts.mean(0).clamp_min(1.0 / len(counts))
        weight = mean**-balance
        self.register_buffer("mean_rate", mean / areas.mean())
        self.register_buffer("gene_weight", weight / weight.sum())

    def rate(self, output: Tensor) -> Tensor:
        """Expected counts per superpixel, the shape of ``output`` (..., n_genes)."""
        return self.mean_rate * output.clamp(-_MAX_LOG_FOLD, _MAX_LOG_FOLD).exp()

    def loss(self, output: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Negative log-likelihood of each bag, less what no model can change.

        Parameters
        ----------
        output
            (n_models, n_bags, n1, n_genes).
        weight
            Area shares of the superpixels (n_bags, n1).
        counts
            (n_bags, n_genes).

        Returns
        -------
        (n_models, n_bags), averaged over genes.
        """
        expected = bag_sum(self.rate(output), weight)
        return ((expected - counts * (expected + 1e-8).log()) * self.gene_weight).sum(-1)


class ScaledSquares(nn.Module):
    """The paper's objective: the mean of a bag's superpixels must be its min–max scaled expression (eq. 11).

    Outputs go through ELU(α) + α, so that they are positive as in the published code; rates share a spot's counts out
    among its superpixels.
    """

    low: Tensor
    span: Tensor
    area: Tensor

    def __init__(self, counts: Tensor, areas: Tensor, alpha: float = 0.01) -> None:
        super().__init__()
        low, high = counts.min(0).values, counts.max(0).values
        self.alpha = alpha
        self.register_buffer("low", low)
        self.register_buffer("span", (high - low).clamp_min(1e-8))
        self.register_buffer("area", areas.mean())

    def scaled(self, output: Tensor) -> Tensor:
        """Expression on the 0–1 scale of the training spots."""
        return nn.functional.elu(output, alpha=self.alpha) + self.alpha

    def rate(self, output: Tensor) -> Tensor:
        """Expected counts per superpixel, the shape of ``output`` (..., n_genes)."""
        return (self.low + self.span * self.scaled(output)) / self.area

    def loss(self, output: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
        """Squared error of each bag (n_models, n_bags), averaged over genes; arguments as in :class:`PoissonCounts`."""
        mean = bag_sum(self.scaled(output), weight / weight.sum(-1, keepdim=True))
        return ((mean - (counts - self.low) / self.span) ** 2).mean(-1)


Objective = PoissonCounts | ScaledSquares
OBJECTIVES: dict[str, type[PoissonCounts] | type[ScaledSquares]] = {"poisson": PoissonCounts, "squares": ScaledSquares}


def bag_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of (n_models, n_bags, n1, n_genes) over each bag's superpixels, by area → (n_models, n_bags, n_genes)."""
    return torch.einsum("bi,mbig->mbg", weight, values)
