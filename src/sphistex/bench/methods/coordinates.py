"""An autoencoder whose latent space is the section: expression → coordinates → expression.

The principle of STAGE (Li et al. 2024, Nucleic Acids Research 52(9), 4843–4856): the decoder, which has learnt to make
the spots' expression from where they lie, is asked for every other place.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sphistex.bench.problem import Problem

EPOCHS = 500
LEARNING_RATE = 1e-3
WIDTHS = (512, 128)
# As published; a code that is free to leave the section says nothing about places between the spots.
RECONSTRUCTION_WEIGHT = 0.1


def coordinates(problem: Problem) -> NDArray[np.float32]:
    """Train the autoencoder on the spots and decode the places of the superpixels."""
    mean, std = problem.density.mean(0), np.maximum(problem.density.std(0), 1e-8)
    centre = problem.spots.xy_um.mean(0)
    expression = torch.from_numpy((problem.density - mean) / std).float().to(problem.device)
    xy, places = (
        torch.from_numpy((um - centre) / problem.spots.pitch_um).float().to(problem.device)
        for um in (problem.spots.xy_um, problem.places_um)
    )
    decoder = _train(expression, xy, problem.seed)
    with torch.no_grad():
        decoded = np.concatenate([decoder(part).cpu().numpy() for part in places.split(65_536)])
    return np.maximum(decoded * std + mean, 0).astype(np.float32)


def _train(expression: Tensor, xy: Tensor, seed: int) -> nn.Sequential:
    """The decoder from coordinates (n, 2) to expression (n, n_genes), of an autoencoder whose code is ``xy``."""
    with torch.random.fork_rng([xy.device] if xy.device.type == "cuda" else []):
        torch.manual_seed(seed)
        encoder = _network(expression.shape[1], *WIDTHS, 2).to(xy.device)
        decoder = _network(2, *WIDTHS[::-1], expression.shape[1]).to(xy.device)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        code = encoder(expression)
        reconstruction = nn.functional.mse_loss(decoder(code), expression)
        loss = nn.functional.mse_loss(code, xy) + RECONSTRUCTION_WEIGHT * reconstruction
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return decoder


def _network(*widths: int) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for d_in, d_out in zip(widths[1:-1], widths[2:], strict=True):
        layers += [nn.GELU(), nn.Linear(d_in, d_out)]
    return nn.Sequential(*layers)
