"""Train an ensemble of networks on bags, in one pass, each stopped by the spots that it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import Objective
from sphistex.nn.precision import computing_in

_EVALUATION_BAGS = 256


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
        Makes ``counts``, ``spots`` and ``spot_mask`` anew, for every epoch; None keeps them.
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
    draw: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    _scratch: Tensor | None = field(default=None, repr=False)

    def drawn(self) -> BagData:
        """The data of an epoch."""
        if self.draw is None:
            return self
        counts, spots, mask = self.draw()
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
    genes_per_step: int | None = None,
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
    genes_per_step
        Genes, drawn anew in every step, whose counts are explained in it; None for all. Validation looks at all.
    seed
        Seed of the order of the bags and genes, of the dropout and of what is drawn.
    on_epoch
        Called with (epoch, training loss, validation loss).
    """
    torch.manual_seed(seed)
    device = data.counts.device
    validating = bool(held_out.any())
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    seen, unseen = _listed(~held_out), _listed(held_out)
    steps_per_epoch = -(-seen.shape[1] // batch_size)
    cycle = None
    if schedule:
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, learning_rate, total_steps=epochs * steps_per_epoch, pct_start=0.15
        )
    best = torch.full((len(held_out),), torch.inf, device=device)
    compared = data.drawn()  # the same for every epoch
    kept, log = copy.deepcopy(network.state_dict()), TrainingLog(best_epoch=[0] * len(held_out))

    for epoch in range(epochs):
        network.train()
        shown = data.drawn()
        running = torch.zeros(len(held_out), device=device)
        for bags in _shuffled(seen).to(device).split(batch_size, dim=1):
            genes = _drawn_genes(data.counts.shape[1], genes_per_step, device)
            latent = shown.latent(network, bags)
            loss = objective.loss(
                latent, network.loadings, shown.weight[bags], shown.counts[bags], genes, shown.depth_of(bags)
            )
            there = bags >= 0
            loss = (loss * there).sum(1) / there.sum(1).clamp_min(1)
            optimiser.zero_grad(set_to_none=True)
            # the models share nothing, so that the sum of their losses trains each on its own
            loss.sum().backward()
            optimiser.step()
            if cycle is not None:
                cycle.step()
            running += loss.detach()
        log.train.append((running / steps_per_epoch).mean().item())
        validation = _validation(network, objective, compared, unseen)
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


def _drawn_genes(n_genes: int, how_many: int | None, device: torch.device) -> Tensor | None:
    """Some genes at random, or None for all."""
    if how_many is None or how_many >= n_genes:
        return None
    return torch.randperm(n_genes)[:how_many].to(device)


def _listed(chosen: Tensor) -> Tensor:
    """The bags (n_models, n_bags) that are True for each model, (n_models, n) with -1 behind the last."""
    rows = [torch.nonzero(row).ravel() for row in chosen]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def _shuffled(bags: Tensor) -> Tensor:
    """Each model's bags in an order of its own."""
    return torch.stack([row[torch.randperm(len(row)).to(row.device)] for row in bags])


@torch.no_grad()
def _validation(network: HISTEX, objective: Objective, data: BagData, unseen: Tensor) -> Tensor:
    """Mean loss of each model's held-out bags, without dropout, (n_models,); NaN where there are none."""
    network.eval()
    total = torch.zeros(len(unseen), device=data.counts.device)
    for bags in unseen.split(_EVALUATION_BAGS, dim=1):
        latent = data.latent(network, bags)
        loss = objective.loss(latent, network.loadings, data.weight[bags], data.counts[bags], None, data.depth_of(bags))
        total += (loss * (bags >= 0)).sum(1)
    return total / (unseen >= 0).sum(1)


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
        network.loadings.weight.mul_(0.1)
