"""Train an ensemble of networks on bags, in one pass, each stopped by the spots that it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sphistex.nn.checkpoint import Checkpoint
from sphistex.nn.histex import HISTEX
from sphistex.nn.layers import Dropout
from sphistex.nn.memory import Portions, freed_memory_kept
from sphistex.nn.mil import Objective
from sphistex.nn.precision import computing_in
from sphistex.nn.seeds import seeded

_EVALUATION_BAGS = 256
# Steps of an epoch at least, where there are few spots: with fewer it is over before anything is learnt.
_STEPS_PER_EPOCH = 16
_SMALLEST_BATCH, _LARGEST_BATCH = 16, 64
# Weights that AdamW's fused pass takes at once.
_AT_ONCE = 16
# Superpixels of a batch's bags at least; small bags, such as bins, make larger batches.
_INSTANCES_PER_BATCH = 1000


@dataclass
class BagData:
    """What a network is trained on; all tensors on one device.

    Parameters
    ----------
    features
        (contexts, n_instances, d_features), the superpixels that lie in some bag.
    index, weight
        (n_bags, n1): each bag's rows of ``features`` and their share of area inside the spot; padding has weight 0.
    counts
        (n_bags, n_genes).
    spots, spot_mask
        (n_bags, n2, d_spots) tokens of each bag's neighbouring spots and (n_bags, n2), False at padding.
    depth, section
        (n_sections, n_genes) by what factor more counts are taken in each section, and the bags' sections (n_bags,);
        None where there is one section.
    dtype
        What the network computes in; its weights and the losses stay float32.
    draw
        Makes ``counts``, ``spots`` and ``spot_mask`` anew, for every epoch, from random numbers; None keeps them.
    """

    features: Tensor
    index: Tensor
    weight: Tensor
    counts: Tensor
    spots: Tensor
    spot_mask: Tensor
    depth: Tensor | None = None
    section: Tensor | None = None
    dtype: torch.dtype = torch.float32
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]] | None = None
    _scratch: Tensor | None = field(default=None, repr=False)

    def drawn(self, generator: torch.Generator) -> BagData:
        """The data of an epoch."""
        if self.draw is None:
            return self
        counts, spots, mask = (drawn.to(self.counts.device) for drawn in self.draw(generator))
        return replace(self, counts=counts, spots=spots, spot_mask=mask, draw=None)

    def __len__(self) -> int:
        return len(self.counts)

    def depth_of(self, bags: Tensor) -> Tensor | None:
        """Depth of the sections of some bags (..., n), (..., n, n_genes)."""
        return None if self.depth is None or self.section is None else self.depth[self.section[bags]]

    def latent(self, network: HISTEX, bags: Tensor) -> Tensor:
        """Latent map of the superpixels of some bags (n,), or of others for each model (n_models, n).

        Returns
        -------
        (n_models, n, n1, d_latent).
        """
        superpixels, spots = self._gathered(self.index[bags]), self.spots[bags]
        if bags.ndim == 1:
            superpixels, spots = superpixels[:, None], spots[None]
        with computing_in(self.dtype, self.counts.device):
            return network(spots, superpixels, self.spot_mask[bags], self.weight[bags] > 0)

    def _gathered(self, index: Tensor) -> Tensor:
        """Features of some superpixels (contexts, *index.shape, d_features), in memory that the next step uses again.

        Memory taken anew is cleared by the system page by page, which takes longer than the copy.
        """
        contexts, _, d_features = self.features.shape
        n = contexts * index.numel() * d_features
        if self._scratch is None or self._scratch.numel() < n:
            self._scratch = self.features.new_empty(n)
        out = self._scratch[:n].view(contexts, index.numel(), d_features)
        for features, chosen in zip(self.features, out, strict=True):
            torch.index_select(features, 0, index.ravel(), out=chosen)
        return out.view(contexts, *index.shape, d_features)


@dataclass
class TrainingLog:
    """Losses of every model by epoch: on the way through the bags that it sees, and of those held out after it.

    Parameters
    ----------
    train_of, validation_of
        One list for each model, up to the epoch in which it stopped.
    best_epoch
        The epoch whose weights each model ends with.
    """

    train_of: list[list[float]]
    validation_of: list[list[float]]
    best_epoch: list[int]

    @classmethod
    def of(cls, n_models: int) -> TrainingLog:
        """An empty one."""
        return cls([[] for _ in range(n_models)], [[] for _ in range(n_models)], [0] * n_models)

    @classmethod
    def joined(cls, logs: Iterable[TrainingLog]) -> TrainingLog:
        """The log of models that were trained apart, as if together."""
        each = [(log.train_of, log.validation_of, log.best_epoch) for log in logs]
        return cls(*(list(chain.from_iterable(parts)) for parts in zip(*each, strict=True)))

    @property
    def train(self) -> list[float]:
        """Mean over models by epoch; one that has stopped counts with its last."""
        return _mean_curve(self.train_of)

    @property
    def validation(self) -> list[float]:
        """As ``train``, of the held-out bags; NaN where there are none."""
        return _mean_curve(self.validation_of)

    def __len__(self) -> int:
        """Epochs so far."""
        return max(map(len, self.train_of))

    def going_on(self, patience: int | None) -> list[int]:
        """Models that are not done: their held-out loss has improved in the last ``patience`` epochs."""
        since = [len(losses) - 1 - best for losses, best in zip(self.validation_of, self.best_epoch, strict=True)]
        return [model for model, epochs in enumerate(since) if patience is None or epochs < patience]

    def add(self, model: int, train: float, validation: float, *, judged: bool) -> bool:
        """Note a model's losses in another epoch; whether this is its best so far, or the last if nothing judges it."""
        best = not judged or validation < np.fmin.reduce([np.inf, *self.validation_of[model]])
        self.train_of[model].append(train)
        self.validation_of[model].append(validation)
        if best:
            self.best_epoch[model] = len(self.validation_of[model]) - 1
        return bool(best)


@freed_memory_kept()
def train(
    network: HISTEX,
    objective: Objective,
    data: BagData,
    held_out: Tensor,
    *,
    members: Sequence[int] | None = None,
    epochs: int,
    patience: int | None,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    schedule: bool = True,
    genes_per_step: int | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float, float], None] = lambda epoch, train, validation: None,
) -> TrainingLog:
    """Fit all models of ``network`` at once, in place.

    Models share nothing: each draws its own random numbers and stops by itself. After an interruption they come out
    the same to the last bit (``checkpoint``; on a CPU), and alone the same as among others (``members``), but that in
    float32 the products of a small model may be rounded otherwise than those of several.

    Parameters
    ----------
    network, objective, data
        What is trained, by what, on what.
    held_out
        (n_models, n_bags), True where a model does not see a bag. After each epoch these bags are scored, and every
        model ends with the weights of its own best epoch. Without any, the last epoch's weights are kept.
    members
        Which models of the ensemble, rows of ``held_out``, ``network`` holds; None for all.
    epochs, patience
        Largest number of epochs, and epochs without an improvement after which a model has stopped (None: never).
    batch_size
        Bags per step. Where there is no memory for as many, their gradient is the sum of smaller portions'.
    learning_rate, weight_decay
        Of AdamW; the rate is that of steps that look at all genes, and is raised where they look at fewer.
    schedule
        Raise the learning rate over the first epochs and lower it to zero over all ``epochs`` (one cycle).
    genes_per_step
        Genes, drawn anew in every step, whose counts are explained in it; None for all. Validation looks at all.
    seed
        Seed of the order of the bags and genes, of the dropout and of what is drawn.
    checkpoint
        File from which an interrupted training with the same arguments goes on; None keeps nothing.
    on_epoch
        Called with (epoch, training loss, validation loss).

    Raises
    ------
    MemoryError
        If the device has no memory for a single bag.
    """
    members = list(range(len(held_out)) if members is None else members)
    judged = held_out[members].any(1).tolist()
    device = data.counts.device
    drawing = device if device.type == "cuda" else "cpu"  # not every device draws all 64 bits of a number
    # of all models, so that batches are the same whichever of them are here
    seen, unseen = (_listed(chosen)[members] for chosen in (~held_out, held_out))
    steps_per_epoch = -(-seen.shape[1] // batch_size)
    n_genes = data.counts.shape[1]
    rate = learning_rate * _rate_for(n_genes / (genes_per_step or n_genes))
    run = _Run.of(network, rate, weight_decay, epochs * steps_per_epoch if schedule else None)
    kept_on_disk = Checkpoint(checkpoint)
    if (state := kept_on_disk.load()) is not None:
        run.restore(state)
    compared = data.drawn(seeded(seed, 0, 0, 0))  # the same for every epoch
    portions = Portions(max(batch_size, _EVALUATION_BAGS))

    for epoch in range(len(run.log), epochs):
        if not (going_on := run.log.going_on(patience)):
            break
        common = seeded(seed, 1 + epoch, 0, 0)
        own = [seeded(seed, 1 + epoch, 1 + member, 0) for member in members]
        _draw_dropout_from(network, [seeded(seed, 1 + epoch, 1 + member, 1, device=drawing) for member in members])
        network.train()
        shown = data.drawn(common)
        running = torch.zeros(len(members), device=device)
        for bags in _shuffled(seen, own).split(batch_size, dim=1):
            genes = _drawn_genes(n_genes, genes_per_step, common, device)
            running += portions.of(bags, partial(_gradient, network, objective, shown, genes))
            run.step()
        network.eval()
        losses = portions.of(unseen, partial(_validation, network, objective, compared))
        for model, values in enumerate(zip((running / steps_per_epoch).tolist(), losses.tolist(), strict=True)):
            if model in going_on and run.log.add(model, *values, judged=judged[model]):
                run.keep(model)
        kept_on_disk.keep(run.state())
        on_epoch(epoch, run.log.train[-1], run.log.validation[-1])
    _draw_dropout_from(network, None)
    network.load_state_dict(run.kept)
    network.eval()
    return run.log


@dataclass
class _Run:
    """All that changes while training."""

    network: HISTEX
    optimiser: torch.optim.Optimizer
    cycle: torch.optim.lr_scheduler.LRScheduler | None
    kept: dict[str, Tensor]
    log: TrainingLog

    @classmethod
    def of(cls, network: HISTEX, learning_rate: float, weight_decay: float, cycle_steps: int | None) -> _Run:
        """The beginning."""
        optimiser = torch.optim.AdamW(_groups(network), learning_rate, weight_decay=weight_decay)
        cycle = None
        if cycle_steps is not None:
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, cycle_steps, pct_start=0.15)
        kept = copy.deepcopy(network.state_dict())
        return cls(network, optimiser, cycle, kept, TrainingLog.of(network.n_models))

    def step(self) -> None:
        """Follow the gradient that there is."""
        self.optimiser.step()
        if self.cycle is not None:
            self.cycle.step()

    def keep(self, model: int) -> None:
        """Remember the weights of a model as its best."""
        for name, value in self.network.state_dict().items():
            self.kept[name][model] = value[model]

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` takes: tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "cycle": None if self.cycle is None else self.cycle.state_dict(),
            "kept": self.kept,
            "log": asdict(self.log),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.cycle is not None:
            self.cycle.load_state_dict(state["cycle"])
        for name, value in state["kept"].items():
            self.kept[name].copy_(value)
        self.log = TrainingLog(**state["log"])


def _groups(network: HISTEX) -> list[dict[str, Any]]:
    """Weights that are stepped in one pass, and others.

    On a CPU that pass takes some at once, and what is left one by one, which is rounded otherwise: only where no part
    of a model is left are its last bits the same whether other models lie beside it or not.
    """
    whole = [weight.is_cuda or weight[0].numel() % _AT_ONCE == 0 for weight in network.parameters()]
    groups = [
        {"params": [weight for weight, found in zip(network.parameters(), whole, strict=True) if found == fused]}
        | {"fused": fused}
        for fused in (True, False)
    ]
    return [group for group in groups if group["params"]]


def _rate_for(steps: float) -> float:
    """How much higher the learning rate must be where a gene is looked at in one of so many steps.

    Adam steps by a gradient's mean over the root of its mean square. What is not seen in every step, or only by chance,
    is so learnt more slowly: half as far where one step in four sees a gene. The power is somewhat more than that root,
    and the limit holds for many thousands of genes; both are measured.
    """
    return min(max(1.0, steps) ** 0.75, 3.0)


def _gradient(
    network: HISTEX, objective: Objective, data: BagData, genes: Tensor | None, portions: Sequence[Tensor]
) -> Tensor:
    """Add up the gradient of a batch of bags, given in portions (n_models, n); its mean loss (n_models,)."""
    network.zero_grad(set_to_none=True)
    total = torch.zeros(network.n_models, device=data.counts.device)
    n_bags = _how_many(portions).clamp_min(1)
    for bags in portions:
        latent = data.latent(network, bags)
        counts, depth = data.counts[bags], data.depth_of(bags)
        loss = objective.loss(latent, network.loadings, data.weight[bags], counts, genes, depth)
        loss = (loss * (bags >= 0)).sum(1) / n_bags
        # the models share nothing, so that the sum of their losses trains each on its own
        loss.sum().backward()
        total += loss.detach()
    return total


@torch.no_grad()
def _validation(network: HISTEX, objective: Objective, data: BagData, portions: Sequence[Tensor]) -> Tensor:
    """Mean loss of each model's held-out bags, without dropout, (n_models,); NaN where there are none."""
    total = torch.zeros(network.n_models, device=data.counts.device)
    for bags in portions:
        latent = data.latent(network, bags)
        counts, depth = data.counts[bags], data.depth_of(bags)
        loss = objective.loss(latent, network.loadings, data.weight[bags], counts, None, depth)
        total += (loss * (bags >= 0)).sum(1)
    return total / _how_many(portions)


def _how_many(portions: Sequence[Tensor]) -> Tensor:
    """Bags of each model, without padding, (n_models,)."""
    return torch.stack([(bags >= 0).sum(1) for bags in portions]).sum(0)


def _draw_dropout_from(network: HISTEX, generators: Sequence[torch.Generator] | None) -> None:
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generators = generators


def _drawn_genes(n_genes: int, how_many: int | None, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """Some genes at random, or None for all."""
    if how_many is None or how_many >= n_genes:
        return None
    return torch.randperm(n_genes, generator=generator)[:how_many].to(device)


def _listed(chosen: Tensor) -> Tensor:
    """The bags (n_models, n_bags) that are True for each model, (n_models, n) with -1 behind the last."""
    rows = [torch.nonzero(row).ravel() for row in chosen]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _shuffled(bags: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Each model's bags in an order of its own."""
    orders = (torch.randperm(bags.shape[1], generator=generator) for generator in generators)
    return torch.stack([row[order.to(row.device)] for row, order in zip(bags, orders, strict=True)])


def _mean_curve(curves: list[list[float]]) -> list[float]:
    """Mean by epoch of curves of which some end earlier, and stay where they are."""
    n = max(map(len, curves))
    return np.mean([curve + curve[-1:] * (n - len(curve)) for curve in curves], axis=0).tolist()


def folds(n_bags: int, n_models: int, *, share: float = 0.2, seed: int = 0) -> Tensor:
    """Which bags each model does not see, (n_models, n_bags) boolean.

    With enough models every bag is held out by one of them in turn; otherwise each holds out ``share`` of the bags.
    """
    order = torch.randperm(n_bags, generator=torch.Generator().manual_seed(seed))
    parts = max(n_models, round(1 / share))
    part = torch.empty(n_bags, dtype=torch.long)
    part[order] = torch.arange(n_bags) % parts
    return part[None] == torch.arange(n_models)[:, None]


def suitable_batch(weight: Tensor, held_out: Tensor) -> int:
    """Bags per step that suit the number of bags that a model sees, and their size (weights (n_bags, n1))."""
    n_seen = int((~held_out).sum(1).max())
    by_steps = min(max(n_seen // _STEPS_PER_EPOCH, _SMALLEST_BATCH), _LARGEST_BATCH)
    return max(by_steps, _INSTANCES_PER_BATCH * len(weight) // int((weight > 0).sum()))


def initialise_at_mean(network: HISTEX) -> None:
    """Shrink the last layer so that training starts near every gene's mean (for a log link)."""
    with torch.no_grad():
        network.loadings.weight.mul_(0.1)
