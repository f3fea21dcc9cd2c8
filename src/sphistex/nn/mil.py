"""Multiple-instance learning: each spot is a bag of superpixels whose sum must be the spot (HISTEX, eq. 11).

An objective says what the network's output means (``rate``: counts per superpixel) and how well the superpixels of a
bag explain its counts (``loss``). Both hold the scales that they take from the training counts.

The output of all superpixels for all genes is by far the largest array of a training step, and is never needed: the
loss takes the latent map and the last layer, and keeps the bags' sums.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from sphistex.nn.layers import Linear

# A superpixel's rate is kept within a factor of e^±8 of a gene's mean.
_MAX_LOG_FOLD = 8.0
# In training only what would overflow is bounded: so much more than any spot holds that gradients always lead back.
_OVERFLOW = 16.0


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

    def rate(self, output: Tensor, genes: Tensor | None = None) -> Tensor:
        """Expected counts per superpixel, the shape of ``output`` (..., n_genes)."""
        return _of_genes(self.mean_rate, genes) * output.clamp(-_MAX_LOG_FOLD, _MAX_LOG_FOLD).exp()

    def at_depth(self, depth: Tensor) -> PoissonCounts:
        """The same where more counts of each gene are taken by a factor (n_genes,)."""
        other = copy.deepcopy(self)
        other.mean_rate *= depth
        return other

    def expected(
        self, latent: Tensor, loadings: Linear, weight: Tensor, genes: Tensor | None = None, depth: Tensor | None = None
    ) -> Tensor:
        """Expected counts of each bag (n_models, n_bags, n_genes); arguments as in :meth:`loss`."""
        total = _SumOfExponentials.apply(latent, *_of(loadings, genes), weight)
        total = total * _of_genes(self.mean_rate, genes)
        return total if depth is None else total * _of_genes(depth, genes)

    def loss(
        self,
        latent: Tensor,
        loadings: Linear,
        weight: Tensor,
        counts: Tensor,
        genes: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each bag, less what no model can change.

        Parameters
        ----------
        latent
            Of the bags' superpixels, (n_models, n_bags, n1, d_latent).
        loadings
            The layer that reads genes from it.
        weight
            Area shares of the superpixels (n_bags, n1), or one for each model.
        counts
            (n_bags, n_genes), or one for each model.
        genes
            Indices of those to look at; None for all. The loss is about the same then.
        depth
            By what factor more counts of each gene are taken in a bag, shaped as ``counts``; None where in none.

        Returns
        -------
        (n_models, n_bags), averaged over genes.
        """
        expected = self.expected(latent, loadings, weight, genes, depth)
        gene_weight = _of_genes(self.gene_weight, genes)
        loss = expected - _of_genes(counts, genes) * (expected + 1e-8).log()
        return (loss * (gene_weight / gene_weight.sum())).sum(-1)


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

    def rate(self, output: Tensor, genes: Tensor | None = None) -> Tensor:
        """Expected counts per superpixel, the shape of ``output`` (..., n_genes)."""
        return (_of_genes(self.low, genes) + _of_genes(self.span, genes) * self.scaled(output)) / self.area

    def at_depth(self, depth: Tensor) -> ScaledSquares:
        """The same where more counts of each gene are taken by a factor (n_genes,)."""
        other = copy.deepcopy(self)
        other.low *= depth
        other.span *= depth
        return other

    def expected(
        self, latent: Tensor, loadings: Linear, weight: Tensor, genes: Tensor | None = None, depth: Tensor | None = None
    ) -> Tensor:
        """Expected counts of each bag (n_models, n_bags, n_genes); arguments as in :class:`PoissonCounts`."""
        low, span = _of_genes(self.low, genes), _of_genes(self.span, genes)
        total = low + span * self._mean(latent, loadings, weight, genes)
        total = total * (weight.sum(-1, keepdim=True) / self.area)
        return total if depth is None else total * _of_genes(depth, genes)

    def loss(
        self,
        latent: Tensor,
        loadings: Linear,
        weight: Tensor,
        counts: Tensor,
        genes: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Squared error of each bag (n_models, n_bags), averaged over genes; arguments as in :class:`PoissonCounts`."""
        counts = _of_genes(counts, genes) if depth is None else _of_genes(counts, genes) / _of_genes(depth, genes)
        target = (counts - _of_genes(self.low, genes)) / _of_genes(self.span, genes)
        return ((self._mean(latent, loadings, weight, genes) - target) ** 2).mean(-1)

    def _mean(self, latent: Tensor, loadings: Linear, weight: Tensor, genes: Tensor | None) -> Tensor:
        """Scaled expression of each bag (n_models, n_bags, n_genes)."""
        matrix, bias = _of(loadings, genes)
        output = torch.baddbmm(bias, latent.flatten(1, -2).to(matrix.dtype), matrix).unflatten(1, latent.shape[1:-1])
        return bag_sum(self.scaled(output), weight / weight.sum(-1, keepdim=True))


class _SumOfExponentials(torch.autograd.Function):
    """Sum over each bag's superpixels, by area, of the exponential of their output.

    The largest array, of all superpixels and genes, is made once and overwritten in place; sums come before what is
    linear after them, and so does the bias, as the exponential of a sum is a product.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, latent: Tensor, matrix: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        matrix, weight = (x.to(latent.dtype) for x in (matrix, weight))
        folds = latent.flatten(1, -2) @ matrix
        rates = folds.clamp_max_(_OVERFLOW).exp_().unflatten(1, latent.shape[1:-1])
        total = (weight[..., None, :] @ rates).squeeze(-2)
        factor = bias.exp()
        total = total.to(factor.dtype) * factor
        ctx.save_for_backward(latent, matrix, weight, rates, factor, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        latent, matrix, weight, rates, factor, total = ctx.saved_tensors  # type: ignore[attr-defined]
        of_bias = (gradient * total).sum(1, keepdim=True)
        of_output = (rates * (gradient * factor).to(rates.dtype)[..., None, :]).flatten(1, -2)
        weight = weight.unsqueeze(-1)
        of_matrix = _product((latent * weight).flatten(1, -2).transpose(1, 2), of_output)
        of_latent = (of_output @ matrix.transpose(1, 2)).view_as(latent) * weight
        return of_latent, of_matrix.to(gradient.dtype), of_bias, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, on CPUs model by model: each is then rounded as if it were alone, on a worker of a cluster."""
    return a @ b if a.is_cuda else torch.stack([one @ other for one, other in zip(a, b, strict=True)])


Objective = PoissonCounts | ScaledSquares
OBJECTIVES: dict[str, type[PoissonCounts] | type[ScaledSquares]] = {"poisson": PoissonCounts, "squares": ScaledSquares}


def bag_sum(values: Tensor, weight: Tensor) -> Tensor:
    """Sum of (n_models, n_bags, n1, n_genes) over each bag's superpixels, by area → (n_models, n_bags, n_genes).

    ``weight`` is (n_bags, n1), or one for each model.
    """
    return (weight[..., None, :].to(values.dtype) @ values).squeeze(-2)


def _of(loadings: Linear, genes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of some genes."""
    return _of_genes(loadings.weight, genes), _of_genes(loadings.bias, genes)


def _of_genes(values: Tensor, genes: Tensor | None) -> Tensor:
    return values if genes is None else values.index_select(-1, genes)
