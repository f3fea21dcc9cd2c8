"""The network against equations 6–10 written out in numpy, and the symmetries that the equations imply."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from sphistex.nn.attention import BCA, CrossAttention
from sphistex.nn.histex import HISTEX, Embedding
from sphistex.nn.layers import LayerNorm, Linear

N_MODELS, N_BAGS, N_SUPERPIXELS, N_SPOTS, D_FEATURES, D_SPOT, D, HEADS, N_GENES = 2, 3, 7, 6, 10, 5, 8, 2, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def inputs():
    spots = torch.randn(1, N_BAGS, N_SPOTS, D_SPOT)
    superpixels = torch.randn(1, N_BAGS, N_SUPERPIXELS, D_FEATURES)
    return spots, superpixels


@pytest.fixture
def network():
    return HISTEX(N_MODELS, D_FEATURES, D_SPOT, N_GENES, d=D, heads=HEADS, hidden=(9,)).double().eval()


# --- the equations, for one model and one bag ---------------------------------------------------------------------


def np_linear(layer, model, x):
    return (
        x @ layer.weight[model].detach().numpy() + layer.bias.expand(len(layer.weight), 1, -1)[model].detach().numpy()
    )


def np_attention(block, model, query, context):
    """CA(Q, K, V) = [head_1, ..., head_m] W, head_h = softmax(Q_h K_h^T / sqrt(d_h)) V_h (eq. 6-7)."""
    q, k, v = (
        np_linear(layer, model, x) for layer, x in ((block.query, query), (block.key, context), (block.value, context))
    )
    d_h = q.shape[-1] // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * d_h, (h + 1) * d_h)
        score = q[:, part] @ k[:, part].T / np.sqrt(d_h)
        weight = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        heads.append(weight @ v[:, part])
    return np_linear(block.out, model, np.hstack(heads))


def np_feed_forward(layers, model, x):
    for layer in layers:
        if isinstance(layer, Linear):
            x = np_linear(layer, model, x)
        elif isinstance(layer, torch.nn.GELU):
            x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
    return x


def np_bca(block, model, spots, superpixels):
    """Z1 = CA(G,H,H), Z2 = CA(H,G,G), Z3 = CA(Z2,Z1,Z1) [+ Z2], BCA = FFN(Z3) + Z3 (eq. 8-9)."""
    z1 = np_attention(block.spots_to_superpixels, model, spots, superpixels)
    z2 = np_attention(block.superpixels_to_spots, model, superpixels, spots)
    z3 = np_attention(block.fuse, model, z2, z1) + (z2 if block.residual else 0)
    return np_feed_forward(block.ffn, model, z3) + z3


def np_histex(network, model, spots, superpixels):
    """L = [BCA(G, BCA(G, H)), H], then the FFN (eq. 10)."""
    fused = superpixels
    for block in network.bca:
        fused = np_bca(block, model, spots, fused)
    return np_feed_forward([*network.head, network.loadings], model, np.hstack([fused, superpixels]))


# ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_network_is_equations_6_to_10(inputs, residual):
    network = HISTEX(N_MODELS, D_FEATURES, D_SPOT, N_GENES, d=D, heads=HEADS, hidden=(9,), residual=residual)
    network = network.double().eval()
    spots, superpixels = (x.double() for x in inputs)
    out = network.loadings(network(spots, superpixels[None])).numpy()
    for model in range(N_MODELS):
        for bag in range(N_BAGS):
            expected = np_histex(network, model, spots[0, bag].numpy(), superpixels[0, bag].numpy())
            np.testing.assert_allclose(out[model, bag], expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(("residual", "reaches"), [(False, False), (True, True)])
def test_spots_reach_a_bag_of_one_superpixel_through_the_residual_only(inputs, residual, reaches):
    """As published, spots only decide how superpixels are weighted: with one there is nothing to decide."""
    spots, superpixels = inputs
    network = HISTEX(N_MODELS, D_FEATURES, D_SPOT, N_GENES, d=D, heads=HEADS, hidden=(9,), residual=residual).eval()
    one, other = (network(s, superpixels[None, :, :, :1]) for s in (spots, spots.roll(1, dims=1)))
    assert (one - other).abs().max().item() > 1e-3 if reaches else torch.allclose(one, other, atol=1e-5)


@torch.no_grad()
def test_default_dimensions_are_the_papers():
    network = HISTEX(1, 1024, 30, N_GENES)
    assert len(network.bca) == 2
    assert network.attend(torch.randn(1, 2, 6, 30), torch.randn(1, 2, 37, 1024)).shape == (1, 2, 37, 512)
    assert network.head[0].get_parameter("weight").shape[1] == 1024 + 512


@torch.no_grad()
def test_superpixel_order_permutes_the_output(network, inputs):
    spots, superpixels = (x.double() for x in inputs)
    order = torch.randperm(N_SUPERPIXELS)
    found = network(spots, superpixels[None, :, :, order])
    torch.testing.assert_close(found, network(spots, superpixels[None])[:, :, order])


@torch.no_grad()
def test_neighbour_order_does_not_matter(network, inputs):
    spots, superpixels = (x.double() for x in inputs)
    order = torch.randperm(N_SPOTS)
    torch.testing.assert_close(network(spots[:, :, order], superpixels[None]), network(spots, superpixels[None]))


@torch.no_grad()
def test_padding_changes_nothing(network, inputs):
    spots, superpixels = (x.double() for x in inputs)
    padded_spots = torch.cat([spots, torch.full_like(spots[:, :, :2], 50.0)], dim=2)
    padded_superpixels = torch.cat([superpixels, torch.full_like(superpixels[:, :, :3], -50.0)], dim=2)
    spot_mask = torch.arange(N_SPOTS + 2).expand(N_BAGS, -1) < N_SPOTS
    superpixel_mask = torch.arange(N_SUPERPIXELS + 3).expand(N_BAGS, -1) < N_SUPERPIXELS
    out = network(padded_spots, padded_superpixels[None], spot_mask, superpixel_mask)
    torch.testing.assert_close(out[:, :, :N_SUPERPIXELS], network(spots, superpixels[None]))


@torch.no_grad()
def test_models_of_an_ensemble_are_independent(network, inputs):
    spots, superpixels = (x.double() for x in inputs)
    before = network(spots, superpixels[None])
    for parameter in network.parameters():
        parameter[1] += 1.0
    after = network(spots, superpixels[None])
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


@torch.no_grad()
def test_shared_and_repeated_inputs_agree():
    linear, norm = Linear(3, 4, 5), LayerNorm(3, 4)
    x = torch.randn(1, 2, 6, 4)
    torch.testing.assert_close(linear(x), linear(x.expand(3, -1, -1, -1)))
    torch.testing.assert_close(norm(x), norm(x.expand(3, -1, -1, -1)))


def test_every_parameter_is_used(network, inputs):
    spots, superpixels = (x.double() for x in inputs)
    network.loadings(network(spots, superpixels[None])).sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert not unused


@torch.no_grad()
@pytest.mark.parametrize(("contexts", "widths"), [(1, [8]), (2, [4, 4]), (3, [4, 2, 2])])
def test_half_of_h_is_made_from_the_superpixel_itself(contexts, widths):
    embedding = Embedding(N_MODELS, D_FEATURES, contexts, 8, dropout=0.0).double()
    features = torch.randn(contexts, 1, N_BAGS, N_SUPERPIXELS, D_FEATURES, dtype=torch.float64)
    found = embedding(features)
    assert found.shape == (N_MODELS, N_BAGS, N_SUPERPIXELS, 8)
    for context, part in enumerate(np.split(np.arange(8), np.cumsum(widths)[:-1])):
        other = features.clone()
        other[context] += 1.0
        changed = (embedding(other) != found).flatten(0, 2).any(0)
        assert changed[part].all()
        assert changed.sum() == len(part)


@torch.no_grad()
def test_features_are_h_as_they_are_where_nothing_is_embedded():
    features = torch.randn(2, 1, N_BAGS, N_SUPERPIXELS, D_FEATURES)
    torch.testing.assert_close(Embedding(N_MODELS, D_FEATURES, 2, None, 0.5)(features), torch.cat([*features], -1))


def test_heads_must_divide_d():
    with pytest.raises(ValueError, match="multiple of heads"):
        CrossAttention(1, 4, 4, d=10, heads=3)
    BCA(1, 4, 4, d=9, heads=3)
