"""Train an ensemble of networks on bags, in one pass, each stopped by the spots that it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import Objective

_EVALUATION_BAGS = 256


@dataclass
class BagData:
    """What a network is trained on; all tensors on one device.

    Parameters
    ----------
    features
        (n_instances, d_features), the superpixels that lie in some bag.
    index, weight
        (n_bags, n1): each bag's rows of ``features`` and their share of area inside the spot; padding has weight 0.
    counts
        (n_bags, n_genes).
    spots, spot_mask
        (n_bags, n2, d_spots) tokens of each bag's neighbouring spots and (n_bags, n2), False at padding.
    draw
        Makes ``counts``, ``spots`` and ``spot_mask`` anew, for every epoch; None keeps them.
    """

    features: Tensor
    index: Tensor
    weight: Tensor
    counts: Tensor
    spots: Tensor
    spot_mask: Tensor
    draw: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None

    def drawn(self) -> BagData:
        """The data of an epoch."""
        if self.draw is None:
            return self
        counts, spots, mask = self.draw()
        return replace(self, counts=counts, spots=spots, spot_mask=mask, draw=None)

    def __len__(self) -> int:
        return len(self.counts)

    def output(self, network: HISTEX, bags: Tensor) -> Tensor:
        """The network's output for the superpixels of some bags, (n_models, n_bags, n1, n_genes)."""
        superpixels = self.features[self.index[bags]][None]
        return network(self.spots[bags][None], superpixels, self.spot_mask[bags], self.weight[bags] > 0)


@dataclass
class TrainingLog:
    """Losses per epoch, averaged over models: on the way through the seen bags, and of the held-out ones after it."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)


def train(
    network: HISTEX,
    objective: Objective,
    data: BagData,
    held_out: Tensor,
    *,
    epochs: int,
    patience: int | None,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    schedule: bool = True,
    seed: int = 0,
    on_epoch: Callable[[int, float, float], None] = lambda epoch, train, validation: None,
) -> TrainingLog:
    """Fit all models of ``network`` at once, in place.

    Parameters
    ----------
    network, objective, data
        What is trained, by what, on what.
    held_out
        (n_models, n_bags), True where a model does not see a bag. After each epoch these bags are scored, and every
        model ends with the weights of its own best epoch. Without any, the last epoch's weights are kept.
    epochs, patience
        Largest number of epochs, and epochs without an improvement of any model before training ends (None: never).
    batch_size
        Bags per step.
    learning_rate, weight_decay
        Of AdamW.
    schedule
        Raise the learning rate over the first epochs and lower it to zero over all ``epochs`` (one cycle).
    seed
        Seed of the order of the bags, of the dropout and of what is drawn.
    on_epoch
        Called with (epoch, training loss, validation loss).
    """
    torch.manual_seed(seed)
    device = data.counts.device
    seen = (~held_out).to(data.counts)
    validating = bool(held_out.any())
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps_per_epoch = -(-len(data) // batch_size)
    cycle = None
    if schedule:
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.15
        )
    best = torch.full((len(held_out),), torch.inf, device=device)
    unseen = data.drawn()  # the same for every epoch, so that these can be compared
    kept, log = copy.deepcopy(network.state_dict()), TrainingLog(best_epoch=[0] * len(held_out))

    for epoch in range(epochs):
        network.train()
        shown = data.drawn()
        running = torch.zeros(len(held_out), device=device)
        for bags in torch.randperm(len(data)).to(device).split(batch_size):
            loss = objective.loss(shown.output(network, bags), shown.weight[bags], shown.counts[bags])
            share = seen[:, bags]
            loss = (loss * share).sum(1) / share.sum(1).clamp_min(1)
            optimiser.zero_grad(set_to_none=True)
            # the models share nothing, so that the sum of their losses trains each on its own
            loss.sum().backward()
            optimiser.step()
            if cycle is not None:
                cycle.step()
            running += loss.detach()
        log.train.append((running / steps_per_epoch).mean().item())
        validation = _validation(network, objective, unseen, held_out)
        log.validation.append(validation.mean().item())
        on_epoch(epoch, log.train[-1], log.validation[-1])
        improved = validation < best if validating else torch.ones_like(best, dtype=torch.bool)
        for model in torch.nonzero(improved).ravel().tolist():
            best[model], log.best_epoch[model] = validation[model], epoch
            for name, value in network.state_dict().items():
                kept[name][model] = value[model]
        if patience is not None and validating and epoch - max(log.best_epoch) >= patience:
            break
    network.load_state_dict(kept)
    network.eval()
    return log


@torch.no_grad()
def _validation(network: HISTEX, objective: Objective, data: BagData, held_out: Tensor) -> Tensor:
    """Mean loss of each model's held-out bags, without dropout, (n_models,); NaN where there are none."""
    network.eval()
    total = torch.zeros(len(held_out), device=held_out.device)
    for bags in torch.nonzero(held_out.any(0)).ravel().split(_EVALUATION_BAGS):
        total += (
            objective.loss(data.output(network, bags), data.weight[bags], data.counts[bags]) * held_out[:, bags]
        ).sum(1)
    return total / held_out.sum(1)


def folds(n_bags: int, n_models: int, *, share: float = 0.2, seed: int = 0) -> Tensor:
    """Which bags each model does not see, (n_models, n_bags) boolean.

    With enough models every bag is held out by one of them in turn; otherwise each holds out ``share`` of the bags.
    """
    order = torch.randperm(n_bags, generator=torch.Generator().manual_seed(seed))
    parts = max(n_models, round(1 / share))
    part = torch.empty(n_bags, dtype=torch.long)
    part[order] = torch.arange(n_bags) % parts
    return part[None] == torch.arange(n_models)[:, None]


def initialise_at_mean(network: HISTEX) -> None:
    """Shrink the last layer so that training starts near every gene's mean (for a log link)."""
    with torch.no_grad():
        network.head[-1].get_parameter("weight").mul_(0.1)
