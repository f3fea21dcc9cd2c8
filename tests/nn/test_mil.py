"""The objectives against scipy and eq. 11 written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from sphistex.nn.layers import Linear
from sphistex.nn.mil import Objective, PoissonCounts, ScaledSquares, bag_sum
from sphistex.nn.precision import fastest_dtype

N_MODELS, N_BAGS, N_SUPERPIXELS, N_GENES = 2, 5, 7, 3


def loss_of(objective: Objective, output: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The loss of an output: a latent map that is read as it is."""
    as_it_is = Linear(len(output), output.shape[-1], output.shape[-1]).to(output.dtype)
    as_it_is.weight.data.copy_(torch.eye(output.shape[-1]))
    as_it_is.requires_grad_(False)
    return objective.loss(output, as_it_is, weight, counts)


@pytest.fixture
def bags() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output of a network, area shares with padding, and counts."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(N_MODELS, N_BAGS, N_SUPERPIXELS, N_GENES, generator=generator, dtype=torch.float64)
    weight = torch.rand(N_BAGS, N_SUPERPIXELS, generator=generator, dtype=torch.float64)
    weight[0, -2:] = 0
    counts = torch.poisson(torch.full((N_BAGS, N_GENES), 6.0, dtype=torch.float64), generator=generator)
    return output, weight, counts


def test_bag_sum_weights_superpixels_by_area(bags: tuple[torch.Tensor, ...]) -> None:
    values, weight, _ = bags
    expected = (values.numpy() * weight.numpy()[None, :, :, None]).sum(2)
    np.testing.assert_allclose(bag_sum(values, weight), expected)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_poisson_loss_is_the_log_likelihood_up_to_what_no_model_changes(bags, balance: float) -> None:
    output, weight, counts = bags
    objective = PoissonCounts(counts, weight.sum(1), balance)
    mean = counts.numpy().mean(0)
    gene_weight = mean**-balance / (mean**-balance).sum()
    rate = mean / weight.numpy().sum(1).mean() * np.exp(output.numpy())
    expected = np.einsum("bi,mbig->mbg", weight.numpy(), rate)
    reference = -(poisson.logpmf(counts.numpy(), expected) * gene_weight).sum(-1)
    loss = loss_of(objective, output, weight, counts).numpy()
    np.testing.assert_allclose(loss[0] - loss[1], reference[0] - reference[1], rtol=1e-6)
    np.testing.assert_allclose(objective.rate(output), rate)


def test_poisson_loss_is_least_at_the_true_rates(bags) -> None:
    log_rate, weight, _ = bags
    objective = PoissonCounts(torch.ones(N_BAGS, N_GENES).double(), weight.sum(1))
    counts = bag_sum(objective.rate(log_rate[:1]), weight)[0]  # what is expected is what was counted
    truth = log_rate[:1].clone().requires_grad_()
    best = loss_of(objective, truth, weight, counts)
    best.sum().backward()
    np.testing.assert_allclose(truth.grad, 0, atol=1e-7)
    for step in torch.randn(20, *truth.shape, generator=torch.Generator().manual_seed(1)).double() * 0.3:
        assert (loss_of(objective, truth.detach() + step, weight, counts) >= best.detach() - 1e-9).all()


@pytest.mark.parametrize("objective", [PoissonCounts, ScaledSquares])
def test_gradients_agree_with_differences(bags, objective: type[PoissonCounts] | type[ScaledSquares]) -> None:
    output, weight, counts = bags
    fitted = objective(counts, weight.sum(1))
    assert torch.autograd.gradcheck(lambda x: loss_of(fitted, x, weight, counts), output.requires_grad_())


@pytest.mark.parametrize("objective", [PoissonCounts, ScaledSquares])
def test_padding_says_nothing(bags, objective: type[PoissonCounts] | type[ScaledSquares]) -> None:
    output, weight, counts = bags
    fitted, other = objective(counts, weight.sum(1)), output.clone()
    other[:, 0, -2:] = 5.0
    np.testing.assert_array_equal(loss_of(fitted, output, weight, counts), loss_of(fitted, other, weight, counts))


@pytest.mark.parametrize("objective", [PoissonCounts, ScaledSquares])
def test_rates_are_finite_and_not_negative_whatever_the_network_says(bags, objective) -> None:
    _, weight, counts = bags
    rate = objective(counts, weight.sum(1)).rate(torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e2]).double()[:, None])
    assert torch.isfinite(rate).all()
    assert (rate >= 0).all()
    assert (rate.diff(dim=0) >= 0).all()


def test_genes_weigh_the_same_at_equal_relative_error_where_they_are_balanced() -> None:
    counts = torch.tensor([[1.0, 100.0], [3.0, 300.0], [2.0, 200.0]])
    weight = torch.ones(3, 4)
    balanced = PoissonCounts(counts, weight.sum(1), balance=1.0)
    outputs = torch.zeros(2, 3, 4, 2)
    outputs[0, ..., 0] = outputs[1, ..., 1] = 0.5  # the rare gene wrong by a factor; the abundant one by the same
    zero = loss_of(balanced, torch.zeros(1, 3, 4, 2), weight, counts)
    wrong = (loss_of(balanced, outputs, weight, counts) - zero).sum(1)
    assert wrong[0].item() == pytest.approx(wrong[1].item(), rel=1e-4)


def test_scaled_squares_are_equation_11(bags) -> None:
    output, weight, counts = (x.numpy() for x in bags)
    low, high = counts.min(0), counts.max(0)
    positive = np.where(output > 0, output, 0.01 * np.expm1(output)) + 0.01
    share = weight / weight.sum(1, keepdims=True)
    mean = np.einsum("bi,mbig->mbg", share, positive)
    reference = ((mean - (counts - low) / (high - low)) ** 2).mean(-1)
    objective = ScaledSquares(bags[2], bags[1].sum(1))
    np.testing.assert_allclose(loss_of(objective, *bags), reference)


def test_scaled_rates_of_a_perfect_fit_add_up_to_the_spots_counts() -> None:
    counts = torch.tensor([[2.0, 10.0], [8.0, 40.0], [5.0, 30.0]])
    weight = torch.ones(3, 4)
    objective = ScaledSquares(counts, weight.sum(1))
    target = (counts - counts.min(0).values) / (counts.max(0).values - counts.min(0).values)
    output = target - 0.01
    output = torch.where(output > 0, output, torch.log1p((output / 0.01).clamp_min(-1 + 1e-7)))
    output = output[None, :, None].expand(1, 3, 4, 2)
    np.testing.assert_allclose(bag_sum(objective.rate(output), weight)[0], counts, rtol=1e-4)
    assert loss_of(objective, output, weight, counts).max() < 1e-6


@pytest.fixture
def read() -> tuple[torch.Tensor, Linear]:
    """A latent map, and the layer that reads genes from it."""
    torch.manual_seed(0)
    latent = torch.randn(N_MODELS, N_BAGS, N_SUPERPIXELS, 6, dtype=torch.float64, requires_grad=True)
    return latent, Linear(N_MODELS, 6, N_GENES).double()


@pytest.mark.parametrize("kind", [PoissonCounts, ScaledSquares])
def test_bags_are_expected_to_hold_the_sum_of_their_superpixels_rates(bags, read, kind) -> None:
    _, weight, counts = bags
    latent, loadings = read
    objective = kind(counts, weight.sum(1))
    rates = objective.rate(loadings(latent))
    torch.testing.assert_close(objective.expected(latent, loadings, weight), bag_sum(rates, weight))


@pytest.mark.parametrize("kind", [PoissonCounts, ScaledSquares])
def test_gradients_reach_latent_map_and_loadings(bags, read, kind) -> None:
    _, weight, counts = bags
    latent, loadings = read
    objective = kind(counts, weight.sum(1))

    def loss(latent: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        loadings.weight.data, loadings.bias.data = matrix.detach(), bias.detach()
        return torch.func.functional_call(
            Read(objective, loadings), {"loadings.weight": matrix, "loadings.bias": bias}, (latent, weight, counts)
        )

    matrix, bias = (x.detach().clone().requires_grad_() for x in (loadings.weight, loadings.bias))
    assert torch.autograd.gradcheck(loss, (latent, matrix, bias))


class Read(torch.nn.Module):
    """The loss as a module, so that its parameters can be given."""

    def __init__(self, objective: Objective, loadings: Linear) -> None:
        super().__init__()
        self.objective, self.loadings = objective, loadings

    def forward(self, latent: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(latent, self.loadings, weight, counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_would_overflow_is_brought_back(dtype: torch.dtype) -> None:
    loadings, weight, counts = Linear(1, 1, 1), torch.ones(1, 3), torch.full((1, 1), 100.0)
    loadings.weight.data.fill_(1.0)
    latent = torch.tensor([-1000.0, 7.5, 1000.0], dtype=dtype).view(1, 1, 3, 1).requires_grad_()
    loss = PoissonCounts(counts, weight.sum(1)).loss(latent, loadings, weight, counts)
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert latent.grad is not None
    assert torch.isfinite(latent.grad).all()
    assert latent.grad.ravel()[2] > 0, "downhill is towards the others"


@pytest.mark.parametrize("kind", [PoissonCounts, ScaledSquares])
def test_the_losses_of_some_genes_at_a_time_average_to_that_of_all(bags, read, kind) -> None:
    _, weight, counts = bags
    latent, loadings = read
    objective = kind(counts, weight.sum(1))
    each = torch.stack([objective.loss(latent, loadings, weight, counts, torch.tensor([g])) for g in range(N_GENES)])
    share = objective.gene_weight if kind is PoissonCounts else torch.full((N_GENES,), 1 / N_GENES).double()
    torch.testing.assert_close(torch.einsum("gmb,g->mb", each, share), objective.loss(latent, loadings, weight, counts))


def test_half_precision_agrees(bags, read) -> None:
    _, weight, counts = (x.float() for x in bags)
    latent, loadings = read[0].detach().float(), read[1].float()
    objective = PoissonCounts(counts, weight.sum(1))
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        loadings.zero_grad()
        loss = objective.loss(latent.to(dtype), loadings, weight, counts)
        assert loss.dtype == torch.float32
        loss.sum().backward()
        gradients[dtype] = loss.detach(), loadings.weight.grad.clone()
    (exact, of_exact), (half, of_half) = gradients.values()
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02)
    assert torch.nn.functional.cosine_similarity(of_half.ravel(), of_exact.ravel(), 0) > 0.999


@pytest.mark.skipif(fastest_dtype("cpu") != torch.bfloat16, reason="a processor that multiplies bfloat16")
def test_in_half_precision_a_model_has_the_same_gradient_alone_and_among_others() -> None:
    """So that what the workers of a cluster train is what one process trains; at sizes as in use."""
    torch.manual_seed(0)
    loadings = Linear(3, 128, 256)
    latent, weight = torch.randn(3, 32, 49, 128).bfloat16(), torch.rand(3, 32, 49)
    counts = torch.poisson(torch.rand(3, 32, 256))
    objective = PoissonCounts(counts[0], weight[0].sum(1))

    def gradient(models: slice) -> torch.Tensor:
        some = Linear(len(range(3)[models]), 128, 256)
        some.weight.data, some.bias.data = loadings.weight.data[models], loadings.bias.data[models]
        objective.loss(latent[models], some, weight[models], counts[models]).sum().backward()
        assert some.weight.grad is not None
        return some.weight.grad

    together = gradient(slice(None))
    for model in range(3):
        assert torch.equal(gradient(slice(model, model + 1))[0], together[model])
