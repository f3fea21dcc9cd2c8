"""What becomes of a patient, from pictures of expression: a tiny ConvNeXt V2 over the lattice, and its losses.

Cohorts have tens of patients, and a section has hundreds of positions: the network has a few hundred weights, sees only
some positions in each step, is kept from telling positions apart where that does not tell patients apart, and several
are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sphistex.nn.picture import Layout
from sphistex.nn.seeds import seeded

_WIDTH, _BLOCKS, _EXPANSION = 8, 1, 2
_STEPS, _LEARNING_RATE, _WEIGHT_DECAY = 100, 0.01, 1.0
_DROPOUT, _HIDDEN_POSITIONS = 0.3, 0.3
# What differs within every section alike tells no patients apart: left alone, it is given weights by chance.
_EVENNESS = 0.3
# Steps from the mean picture to the section along which gradients are averaged.
_PATH_STEPS = 32


@dataclass(frozen=True)
class Pictures:
    """Sections as pictures of one size, and which patients they are of.

    Parameters
    ----------
    values
        (n_sections, channels, height, width), zero where there is no position.
    mask
        Positions, (n_sections, height, width) boolean.
    pooled
        Those of them that count; the others are only surroundings.
    share
        Share of each section in its patient, (n_patients, n_sections); rows add up to 1.
    covariates
        (n_patients, n_covariates).
    """

    values: Tensor
    mask: Tensor
    pooled: Tensor
    share: Tensor
    covariates: Tensor

    @classmethod
    def of(
        cls,
        layouts: Sequence[Layout],
        values: Sequence[NDArray[np.floating]],
        pooled: Sequence[NDArray[np.bool_]],
        patient: NDArray[np.integer],
        covariates: NDArray[np.floating],
    ) -> Pictures:
        """Of sections given by position.

        Parameters
        ----------
        layouts, values, pooled
            Of each section: where its positions are, their channels (n, channels), and which of them count (n,).
        patient
            Row of ``covariates`` of each section's patient (n_sections,); no row is without a section.
        covariates
            (n_patients, n_covariates).
        """
        shape = tuple(np.max([layout.shape for layout in layouts], axis=0).tolist())

        def stacked(pictures: Sequence[Tensor]) -> Tensor:
            out = pictures[0].new_zeros((len(pictures), *pictures[0].shape[:-2], *shape))
            for row, picture in zip(out, pictures, strict=True):
                row[..., : picture.shape[-2], : picture.shape[-1]] = picture
            return out

        member = F.one_hot(torch.as_tensor(patient, dtype=torch.int64), len(covariates)).float().T
        each = list(zip(layouts, values, pooled, strict=True))
        return cls(
            stacked([layout.picture(channels) for layout, channels, _ in each]),
            stacked([layout.mask for layout in layouts]),
            stacked([layout.picture(counts[:, None])[0] > 0 for layout, _, counts in each]),
            member / member.sum(1, keepdim=True),
            torch.as_tensor(covariates, dtype=torch.float32),
        )

    def take(self, patients: NDArray[np.integer]) -> Pictures:
        """Some of the patients, with their sections."""
        rows = torch.as_tensor(patients, dtype=torch.int64)
        share = self.share[rows]
        sections = torch.nonzero(share.sum(0))[:, 0]
        covariates = self.covariates[rows]
        return Pictures(
            self.values[sections], self.mask[sections], self.pooled[sections], share[:, sections], covariates
        )

    def to(self, device: torch.device | str) -> Pictures:
        """The same on another device."""
        moved = (part.to(device) for part in (self.values, self.mask, self.pooled, self.share, self.covariates))
        return Pictures(*moved)

    def without(self, hidden: Tensor) -> Pictures:
        """As if some positions (n_sections, height, width) had not been measured; no section loses all that count."""
        hidden = hidden & (self.pooled & ~hidden).any((1, 2))[:, None, None]
        return replace(self, mask=self.mask & ~hidden, pooled=self.pooled & ~hidden)


class OutcomeNetwork(nn.Module):
    """One number for each patient: the log of the relative hazard, or the log odds of a response.

    Positions are looked at with their neighbours, averaged over the section, and joined by the covariates before the
    last layer. What is not on the mask, such as padding, changes nothing.

    Parameters
    ----------
    channels, covariates
        How many there are.
    hexagonal
        Whether pictures are of a hexagonal lattice, whose pixels have six neighbours.

    References
    ----------
    Woo et al., ConvNeXt V2, CVPR 2023.
    """

    def __init__(self, channels: int, covariates: int, *, hexagonal: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(channels, _WIDTH)
        self.blocks = nn.ModuleList(_Block(_WIDTH, hexagonal) for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.last = nn.Linear(_WIDTH + covariates, 1)

    def forward(self, pictures: Pictures) -> Tensor:
        """(n_patients,)."""
        return self.read(self.look(pictures), pictures)

    def look(self, pictures: Pictures) -> Tensor:
        """What is seen at each position, (n_sections, height, width, channels)."""
        mask = pictures.mask[..., None]
        x = self.stem(pictures.values.movedim(1, -1)) * mask
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def read(self, seen: Tensor, pictures: Pictures) -> Tensor:
        """What that says of the patients (n_patients,)."""
        mean = F.dropout(pictures.share @ _mean(seen, pictures.pooled), _DROPOUT, self.training)
        return self.last(torch.cat([mean, pictures.covariates], dim=1))[:, 0]

    def unevenness(self, seen: Tensor, pictures: Pictures) -> Tensor:
        """How much positions of a section differ in what they add to it: mean of their variance."""
        added = seen @ self.last.weight[0, : seen.shape[-1]]
        gap = added - _mean(added, pictures.pooled)[:, None, None]
        return _mean(gap.square(), pictures.pooled).mean()


def _mean(values: Tensor, pooled: Tensor) -> Tensor:
    """Mean of values (n, height, width, ...) over the positions that count, (n, ...)."""
    counts = pooled.reshape(pooled.shape + (1,) * (values.ndim - 3))
    return (values * counts).sum((1, 2)) / counts.sum((1, 2))


class _Block(nn.Module):
    """Depthwise convolution, layer norm, two layers with GELU and global response normalisation, residual."""

    kernel_mask: Tensor

    def __init__(self, width: int, hexagonal: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.reduce = nn.Linear(width, _EXPANSION * width), nn.Linear(_EXPANSION * width, width)
        self.gain = nn.Parameter(torch.zeros(_EXPANSION * width))
        self.shift = nn.Parameter(torch.zeros(_EXPANSION * width))
        kernel_mask = torch.ones(3, 3)
        if hexagonal:  # in the sheared picture of a Layout these two are no neighbours
            kernel_mask[0, 0] = kernel_mask[2, 2] = 0
        self.register_buffer("kernel_mask", kernel_mask, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, height, width, channels), zero outside the mask, to the same."""
        weight = self.depthwise.weight * self.kernel_mask
        seen = F.conv2d(x.movedim(-1, 1), weight, self.depthwise.bias, padding=1, groups=x.shape[-1]).movedim(1, -1)
        inner = F.gelu(self.expand(self.norm(seen))) * mask
        # the root of zero has no gradient
        response = (inner.square().sum((1, 2), keepdim=True) + 1e-6).sqrt()
        inner = inner + self.gain * inner * response / response.mean(-1, keepdim=True) + self.shift
        return x + self.reduce(inner) * mask


def cox_losses(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood of each event (n_events,), Breslow's where times are equal.

    Parameters
    ----------
    risk
        Logs of the relative hazards (n_patients,).
    time
        Until the event, or until last seen (n_patients,).
    event
        Whether there was one (n_patients,) boolean; at least one.

    Examples
    --------
    >>> cox_losses(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False])).exp().round()
    tensor([3., 2.])
    """
    at_risk = time[None] >= time[:, None]
    everyone = risk.expand(len(risk), -1).masked_fill(~at_risk, -torch.inf)
    return (torch.logsumexp(everyone, dim=1) - risk)[event]


@dataclass(frozen=True)
class Outcome:
    """What became of patients: either ``time`` and ``event``, or a ``response``, each (n_patients,)."""

    time: NDArray[np.float64] | None = None
    event: NDArray[np.bool_] | None = None
    response: NDArray[np.bool_] | None = None

    @property
    def kind(self) -> str:
        """``"survival"`` or ``"response"``."""
        return "response" if self.event is None else "survival"

    @property
    def happened(self) -> NDArray[np.bool_]:
        """Events or responses (n_patients,)."""
        happened = self.response if self.event is None else self.event
        assert happened is not None
        return happened

    def __len__(self) -> int:
        return len(self.happened)

    def take(self, patients: NDArray) -> Outcome:
        """That of some patients, in their order."""
        parts = (self.time, self.event, self.response)
        return Outcome(*(None if part is None else part[patients] for part in parts))

    def losses(self, output: Tensor) -> Tensor:
        """Of what is said of these patients (n_patients,): one for each event, or for each response."""
        happened = torch.as_tensor(self.happened, device=output.device)
        if self.time is None:
            return F.binary_cross_entropy_with_logits(output, happened.to(output.dtype), reduction="none")
        return cox_losses(output, torch.as_tensor(self.time, dtype=output.dtype, device=output.device), happened)


class Ensemble(nn.Module):
    """Networks that differ in their random numbers; what they say is averaged."""

    def __init__(self, networks: Sequence[OutcomeNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @classmethod
    def of(cls, n_models: int, channels: int, covariates: int, *, hexagonal: bool) -> Ensemble:
        """Untrained."""
        return cls([OutcomeNetwork(channels, covariates, hexagonal=hexagonal) for _ in range(n_models)])

    @classmethod
    def fit(
        cls,
        pictures: Pictures,
        outcome: Outcome,
        *,
        hexagonal: bool,
        n_models: int = 3,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Ensemble:
        """Train on all patients at once in every step: the partial likelihood is one of all of them."""
        device = torch.device(device)
        pictures = pictures.to(device)
        networks = []
        for number in range(n_models):
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seeded(seed, number).initial_seed())
                network = OutcomeNetwork(pictures.values.shape[1], pictures.covariates.shape[1], hexagonal=hexagonal)
                _train(network.to(device), pictures, outcome)
            networks.append(network.eval())
        return cls(networks).eval()

    def forward(self, pictures: Pictures) -> Tensor:
        """(n_patients,)."""
        return torch.stack([network(pictures) for network in self.networks]).mean(0)

    @torch.no_grad()
    def predict(self, pictures: Pictures) -> NDArray[np.float64]:
        """(n_patients,) log relative hazard, or log odds."""
        return self(pictures.to(next(self.parameters()).device)).double().cpu().numpy()

    def attribution(self, pictures: Pictures) -> Tensor:
        """What each position adds to what is said of its patient, (n_sections, height, width).

        Gradient times input, with gradients averaged along the way from a section in which every channel has its mean
        everywhere (integrated gradients): a patient's positions add up to the difference between the two sections.
        """
        pictures = pictures.to(next(self.parameters()).device)
        total = torch.zeros_like(pictures.values)
        for step in range(_PATH_STEPS):
            values = (pictures.values * ((step + 0.5) / _PATH_STEPS)).requires_grad_()
            (gradient,) = torch.autograd.grad(self(replace(pictures, values=values)).sum(), values)
            total += gradient
        return (total * pictures.values).sum(1).detach().cpu() / _PATH_STEPS


def _train(network: OutcomeNetwork, pictures: Pictures, outcome: Outcome) -> None:
    fused = pictures.values.device.type in ("cpu", "cuda")  # one pass over the weights
    optimiser = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=fused)
    network.train()
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * math.sin(math.pi * (step + 0.5) / _STEPS)
        hidden = torch.rand(pictures.mask.shape).to(pictures.mask.device) < _HIDDEN_POSITIONS
        shown = pictures.without(hidden)
        seen = network.look(shown)
        loss = outcome.losses(network.read(seen, shown)).mean() + _EVENNESS * network.unevenness(seen, shown)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if outcome.kind == "survival":  # a relative hazard has no level: that of the patients here is 1
        with torch.no_grad():
            network.eval()
            network.last.bias.sub_(network(pictures).mean())
