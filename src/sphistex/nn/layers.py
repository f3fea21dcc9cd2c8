"""Layers of several independent models at once: every parameter has a leading model dimension.

An ensemble then trains and predicts in one pass of batched matrix products instead of one model after the other.
Inputs are (n_models, ..., d); an input with one model (1, ..., d) is shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_LOWEST = torch.iinfo(torch.int64).min


class Linear(nn.Module):
    """``n_models`` independent linear maps, with torch's initial weights."""

    bias: Tensor

    def __init__(self, n_models: int, d_in: int, d_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = d_in**-0.5
        self.weight = nn.Parameter(torch.empty(n_models, d_in, d_out).uniform_(-bound, bound))
        if bias:
            self.bias = nn.Parameter(torch.zeros(n_models, 1, d_out))
        else:
            self.register_buffer("bias", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n_models or 1, ..., d_in) → (n_models, ..., d_out)."""
        n_models, d_in, d_out = self.weight.shape
        lead = x.shape[1:-1]
        if x.shape[0] == 1 and n_models > 1:  # a shared input is one wide product, not n_models copies of it
            wide = self.weight.permute(1, 0, 2).reshape(d_in, n_models * d_out)
            out = (x.reshape(-1, d_in) @ wide).unflatten(-1, (n_models, d_out)).transpose(0, 1) + self.bias
        else:
            out = torch.baddbmm(self.bias, x.reshape(x.shape[0], -1, d_in), self.weight)
        return out.reshape(n_models, *lead, d_out)


class LayerNorm(nn.Module):
    """``n_models`` independent layer normalisations over the last dimension."""

    def __init__(self, n_models: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_models, d))
        self.bias = nn.Parameter(torch.zeros(n_models, d))

    def forward(self, x: Tensor) -> Tensor:
        """(n_models, ..., d) → the same shape."""
        shape = (len(self.weight),) + (1,) * (x.ndim - 2) + (x.shape[-1],)
        return nn.functional.layer_norm(x, x.shape[-1:]) * self.weight.view(shape) + self.bias.view(shape)


class Dropout(nn.Module):
    """Dropout as in torch, with ``p`` rounded to 1/256, and from a generator of its own for every model.

    On the CPU torch draws one random number for each element, which takes longer than the layer before it; here each
    draw gives eight.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = min(round(256 * p), 255)
        self.generators: Sequence[torch.Generator] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(n_models, ...) → the same shape."""
        if not self.training or not self.threshold:
            return x
        kept = self._random_bytes(x).ge_(self.threshold)  # in place: bytes become numbers much faster than booleans do
        return x * kept.to(x.dtype).mul_(256 / (256 - self.threshold))

    def _random_bytes(self, x: Tensor) -> Tensor:
        """One for each element; from torch's global generator where there are no others."""
        each = x[0].numel()
        generators = [None] * len(x) if self.generators is None else self.generators
        where = x.device if generators[0] is None else generators[0].device
        words = torch.empty((len(x), -(-each // 8)), dtype=torch.int64, device=where)
        for row, generator in zip(words, generators, strict=True):
            row.random_(_LOWEST, None, generator=generator)
        return words.to(x.device).view(torch.uint8)[:, :each].view(x.shape)


class FeedForward(nn.Sequential):
    """Linear layers of the given widths, with an activation and dropout between them.

    ``activation=None`` leaves them linear, as in the published HISTEX head. ``last=False`` puts activation and dropout
    behind the last layer too, for another one to follow.
    """

    def __init__(
        self,
        n_models: int,
        widths: tuple[int, ...],
        *,
        activation: type[nn.Module] | None = nn.GELU,
        dropout: float = 0.0,
        last: bool = True,
    ) -> None:
        layers: list[nn.Module] = []
        pairs = list(pairwise(widths))
        for i, (d_in, d_out) in enumerate(pairs):
            layers.append(Linear(n_models, d_in, d_out))
            if last and i == len(pairs) - 1:
                break
            if activation is not None:
                layers.append(activation())
            if dropout:
                layers.append(Dropout(dropout))
        super().__init__(*layers)
