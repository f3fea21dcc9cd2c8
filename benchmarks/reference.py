"""The published training loop, written again as plainly as possible, to be compared with in the same run.

One model after the other; batches of 32 bags from a data loader; two layers of bidirectional cross-attention and a
linear head of the published widths; Adam at 1e-4 on the squared error of min-max scaled means. Own simplifications:
the measured spots are bags and neighbours, not the enhanced ones, and a bag's own spot is not among its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HIDDEN, HEADS, BATCH, LEARNING_RATE = (1024, 512, 512, 512), 8, 32, 1e-4


class Attention(nn.Module):
    def __init__(self, d_query: int, d_key: int, d: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(d_query, d), nn.Linear(d_key, d), nn.Linear(d_key, d)
        self.out = nn.Linear(d, d)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x in (self.query(query), self.key(context), self.value(context))
        )
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, d_spot: int, d_superpixel: int, d: int) -> None:
        super().__init__()
        self.first, self.second = Attention(d_spot, d_superpixel, d), Attention(d_superpixel, d_spot, d)
        self.third = Attention(d, d, d)
        self.ffn = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))

    def forward(self, spots: Tensor, superpixels: Tensor) -> Tensor:
        z1, z2 = self.first(spots, superpixels), self.second(superpixels, spots)
        z3 = self.third(z2, z1)
        return self.ffn(z3) + z3


class Published(nn.Module):
    def __init__(self, n_features: int, n_genes: int, d: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(n_genes, n_features, d), Layer(n_genes, d, d)])
        widths = (n_features + d, *HIDDEN, n_genes)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))

    def forward(self, superpixels: Tensor, spots: Tensor) -> Tensor:
        """(n_bags, n1, n_features), (n_bags, n2, n_genes) to the scaled means of the bags (n_bags, n_genes)."""
        fused = superpixels
        for layer in self.layers:
            fused = layer(spots, fused)
        output = self.head(torch.cat([fused, superpixels], -1))
        return (nn.functional.elu(output, alpha=0.01) + 0.01).mean(1)


def train(
    superpixels: Tensor,
    spots: Tensor,
    target: Tensor,
    *,
    d: int,
    epochs: int,
    models: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_epoch: Callable[[int, float, Published], None] = lambda epoch, seconds, model: None,
) -> list[Published]:
    """Models trained one after the other; ``on_epoch`` gets the epochs and seconds of training so far, and the model.

    Seconds are the ``clock``'s, and ``on_epoch``'s own do not count.
    """
    made, seconds = [], 0.0
    for number in range(models):
        torch.manual_seed(seed + number)
        model = Published(superpixels.shape[-1], target.shape[-1], d).to(target.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        loader = DataLoader(TensorDataset(superpixels, spots, target), BATCH, shuffle=True)
        for epoch in range(epochs):
            started = clock()
            for features, tokens, wanted in loader:
                optimiser.zero_grad()
                nn.functional.mse_loss(model(features, tokens), wanted).backward()
                optimiser.step()
            if target.is_cuda:
                torch.cuda.synchronize(target.device)
            seconds += clock() - started
            on_epoch(epoch + 1, seconds, model)
        made.append(model)
    return made


def operations(n_bags: int, n1: int, n2: int, n_features: int, n_genes: int, d: int) -> float:
    """Multiplications and additions of a training epoch of one model, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Published(n_features, n_genes, d)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, n1, n_features), torch.zeros(1, n2, n_genes)).sum().backward()
    return counter.get_total_flops() * n_bags
