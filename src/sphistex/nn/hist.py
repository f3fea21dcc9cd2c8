"""HiST: a multi-scale convolutional network from a picture of lattice features to a picture of expression.

Sections differ in shape and have holes: every layer is told which pixels are positions, and all others stay zero, so
that neither padding nor the size of the picture changes what is predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _reach(size: int, *, hexagonal: bool) -> Tensor:
    """Which pixels (size, size) of a kernel are no farther than its radius on the lattice."""
    radius = size // 2
    row, column = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * 2, indexing="ij")
    return (row + column).abs() <= radius if hexagonal else torch.ones(size, size, dtype=torch.bool)


class LatticeConv(nn.Module):
    """Convolution whose kernel has the shape of the lattice: in sheared pictures of hexagonal ones, a hexagon.

    Parameters
    ----------
    d_in, d_out
        Channels.
    size
        Side of the kernel, odd.
    hexagonal
        Which lattice.
    groups, dilation, stride
        As in torch.
    """

    shape: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        size: int = 3,
        *,
        hexagonal: bool,
        groups: int = 1,
        dilation: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (size // 2)
        self.conv = nn.Conv2d(d_in, d_out, size, stride, padding, dilation, groups)
        self.register_buffer("shape", _reach(size, hexagonal=hexagonal), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d_in, height, width) → (n, d_out, height / stride, width / stride)."""
        conv = self.conv
        return nn.functional.conv2d(
            x, conv.weight * self.shape, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, which no other pixel and no padding changes."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, height, width) → the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """Two convolutions, each normalised, activated and kept to the positions."""

    def __init__(self, d_in: int, d_out: int, *, hexagonal: bool, dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(LatticeConv(d, d_out, hexagonal=hexagonal) for d in (d_in, d_out))
        self.norms = nn.ModuleList(ChannelNorm(d_out) for _ in range(2))
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, d_in, height, width) and mask (n, 1, height, width) → (n, d_out, height, width)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nn.functional.gelu(norm(conv(x))) * mask
        return self.dropout(x)


class ConvMixer(nn.Module):
    """Depthwise convolution over a wide neighbourhood with a residual, then a mixture of the channels."""

    def __init__(self, d: int, *, hexagonal: bool, size: int = 7) -> None:
        super().__init__()
        self.spread = LatticeConv(d, d, size, hexagonal=hexagonal, groups=d)
        self.mix = nn.Conv2d(d, d, 1)
        self.norms = nn.ModuleList(ChannelNorm(d) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, d, height, width) → the same shape."""
        x = x + self.norms[0](nn.functional.gelu(self.spread(x))) * mask
        return self.norms[1](nn.functional.gelu(self.mix(x))) * mask


class AttentionGate(nn.Module):
    """How much of a skip connection passes, from the pixel, its neighbours and those farther away."""

    def __init__(self, d: int, *, hexagonal: bool) -> None:
        super().__init__()
        self.looks = nn.ModuleList(
            [
                nn.Conv2d(2 * d, d, 1),
                LatticeConv(2 * d, d, hexagonal=hexagonal),
                LatticeConv(2 * d, d, hexagonal=hexagonal, dilation=2),
            ]
        )
        self.vote = nn.Conv2d(3 * d, d, 1)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """Both (n, d, height, width) → the gated skip, the same shape."""
        both = torch.cat([skip, below], dim=1)
        votes = torch.cat([nn.functional.gelu(look(both)) for look in self.looks], dim=1)
        return skip * self.vote(votes).sigmoid()


class HiST(nn.Module):
    """U-Net with a ConvMixer bottleneck and gated skips.

    Parameters
    ----------
    d_in, d_out
        Channels of the lattice features, and outputs (genes, or classes).
    widths
        Channels of each level; the last is the bottleneck's. One level leaves the section at its own resolution.
    mixers
        Blocks of the bottleneck.
    hexagonal
        Which lattice.
    dropout
        Of whole channels after each block, and of the features.
    linear
        Whether a linear function of the features of the position itself is added.

    References
    ----------
    HiST (Advanced Science 2026): five levels of 64 to 1024 channels, seven blocks, for tens of sections.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        widths: tuple[int, ...] = (64, 128),
        mixers: int = 1,
        hexagonal: bool = True,
        dropout: float = 0.2,
        linear: bool = True,
    ) -> None:
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.features = nn.Dropout(dropout)
        self.embed = nn.Conv2d(d_in, widths[0], 1)
        kind = {"hexagonal": hexagonal}
        self.encode = nn.ModuleList(Block(d, d, **kind, dropout=dropout) for d in widths[:-1])
        self.down = nn.ModuleList(LatticeConv(a, b, **kind, stride=2) for a, b in pairs)
        self.bottleneck = nn.ModuleList(ConvMixer(widths[-1], **kind) for _ in range(mixers))
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.gates = nn.ModuleList(AttentionGate(d, **kind) for d in widths[:-1])
        self.decode = nn.ModuleList(Block(2 * d, d, **kind, dropout=dropout) for d in widths[:-1])
        self.head = nn.Conv2d(widths[0], d_out, 1)
        self.linear = nn.Conv2d(d_in, d_out, 1) if linear else None
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features (n, d_in, height, width) and positions (n, height, width) → (n, d_out, height, width)."""
        size, step = mask.shape[-2:], 2 ** len(self.down)
        # one more than a multiple of the coarsest pixel: otherwise what lies at the border depends on what is behind it
        behind = [-(side - 1) % step for side in size]
        x, mask = (nn.functional.pad(picture, (0, behind[1], 0, behind[0])) for picture in (x, mask))
        there = mask[:, None].to(x.dtype)
        x = self.features(x) * there
        found = nn.functional.gelu(self.embed(x)) * there
        skips, masks = [], [there]
        for block, down in zip(self.encode, self.down, strict=True):
            skips.append(block(found, masks[-1]))
            masks.append(nn.functional.max_pool2d(masks[-1], 3, 2, 1))
            found = nn.functional.gelu(down(skips[-1])) * masks[-1]
        for mixer in self.bottleneck:
            found = mixer(found, masks[-1])
        for level in reversed(range(len(skips))):
            height, width = skips[level].shape[-2:]
            below = nn.functional.interpolate(self.up[level](found), scale_factor=2, mode="nearest")
            below = below[..., :height, :width] * masks[level]
            gated = self.gates[level](skips[level], below)
            found = self.decode[level](torch.cat([gated, below], dim=1), masks[level])
        out = self.head(found)
        if self.linear is not None:
            out = out + self.linear(x)
        return (out * there)[..., : size[0], : size[1]]
