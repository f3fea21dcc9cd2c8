"""What is no position changes nothing, and the network looks as far on the lattice as it should."""

from __future__ import annotations

import pytest
import torch

from sphistex.nn.hist import HiST, LatticeConv
from sphistex.nn.picture import Layout


def network(widths: tuple[int, ...], hexagonal: bool = True) -> HiST:
    torch.manual_seed(0)
    made = HiST(5, 3, widths=widths, mixers=2, hexagonal=hexagonal).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 16, 24)])
@pytest.mark.parametrize("hexagonal", [True, False])
def test_padding_and_what_lies_outside_change_nothing(widths: tuple[int, ...], hexagonal: bool) -> None:
    x, mask = torch.randn(1, 5, 9, 11), torch.rand(1, 9, 11) > 0.3
    hist = network(widths, hexagonal)
    found = hist(x, mask)
    assert found.shape == (1, 3, 9, 11)
    assert not found[:, :, ~mask[0]].any()
    outside = torch.where(mask[:, None], x, torch.randn_like(x))
    torch.testing.assert_close(hist(outside, mask), found)
    wider, there = torch.zeros(1, 5, 14, 20), torch.zeros(1, 14, 20, dtype=torch.bool)
    wider[..., :9, :11], there[:, :9, :11] = x, mask
    torch.testing.assert_close(hist(wider, there)[..., :9, :11], found, atol=1e-5, rtol=1e-4)


def test_kernels_of_hexagonal_lattices_are_hexagons() -> None:
    conv = LatticeConv(1, 1, 3, hexagonal=True)
    torch.nn.init.ones_(conv.conv.weight)
    conv.conv.bias = None
    picture = torch.zeros(1, 1, 7, 7)
    picture[0, 0, 3, 3] = 1
    seen = torch.nonzero(conv(picture)[0, 0]) - 3
    # a position and its six neighbours on the array, as the layout places them
    array = [(4, 4), (4, 2), (4, 6), (3, 3), (3, 5), (5, 3), (5, 5)]
    layout = Layout.of(*zip(*array, strict=True), hexagonal=True)
    expected = {
        (int(r - layout.rows[0]), int(c - layout.columns[0])) for r, c in zip(layout.rows, layout.columns, strict=True)
    }
    assert {tuple(step.tolist()) for step in seen} == expected


@pytest.mark.parametrize("hexagonal", [True, False])
def test_turned_layouts_keep_neighbours(hexagonal: bool) -> None:
    array = torch.tensor([(r, c) for r in range(6) for c in range(9) if not hexagonal or (r + c) % 2 == 0]).numpy()
    layout = Layout.of(*array.T, hexagonal=hexagonal)
    conv = LatticeConv(1, 1, 3, hexagonal=hexagonal)
    torch.nn.init.ones_(conv.conv.weight)
    values = torch.randn(len(array), 1)
    plain = layout.values(conv(layout.picture(values)[None])[0])
    found = set()
    for number in range(24):
        turned = layout.turned(number)
        torch.testing.assert_close(turned.values(conv(turned.picture(values)[None])[0]), plain)
        found.add((tuple(turned.rows), tuple(turned.columns)))
    assert len(found) == (12 if hexagonal else 8)
