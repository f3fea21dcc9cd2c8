"""The whole model on plain arrays: fit it on bags, predict maps block by block, save and load it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import Tensor, nn

from sphistex.bags import Bags
from sphistex.calibration import MIN_SPOTS, Calibration
from sphistex.lattice import enhancement_matrix
from sphistex.metrics.explained import explained
from sphistex.nn.context import FeatureMap, Window
from sphistex.nn.held_out import HeldOut, predict_held_out
from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import OBJECTIVES, Objective
from sphistex.nn.neighbours import Positions
from sphistex.nn.parameters import FitParameters
from sphistex.nn.pooling import PLACE_UM, mean_of, pooling
from sphistex.nn.precision import fastest_dtype
from sphistex.nn.prediction import Mapper
from sphistex.nn.profiles import PROFILES, Profile
from sphistex.nn.training import BagData, TrainingLog, folds, initialise_at_mean, train

# Superpixels that a model is trained on at most, so that their features fit in memory whatever the section's size.
_MAX_INSTANCES = 300_000
# Bins closer than this are pooled into larger bags for training.
_SMALLEST_BAG_UM = 16.0
# Spots whose counts are drawn into halves at once.
_SPOTS_AT_ONCE = 256
# Superpixels of a batch's bags at least; small bags, such as bins, make larger batches.
_INSTANCES_PER_BATCH = 1000


@dataclass(frozen=True)
class Spots:
    """Measured spots of a section.

    Parameters
    ----------
    xy_um
        Centres (n_spots, 2) in µm from the image's top-left corner, x first.
    radius_um
        Radii (n_spots,).
    pitch_um
        Distance between neighbours.
    counts
        Raw counts (n_spots, n_genes).
    """

    xy_um: NDArray[np.float64]
    radius_um: NDArray[np.float64]
    pitch_um: float
    counts: NDArray[np.float32]


@dataclass
class SuperResolver:
    """A fitted model: turns a section's features and spots into counts per superpixel.

    Made by :func:`sphistex.tl.fit`; applied by :func:`sphistex.tl.predict`.

    Parameters
    ----------
    genes
        The genes it predicts.
    parameters
        How it was fitted.
    module
        Networks, objective, spot profiles and feature scaling, with all fitted numbers.
    pitch_um
        Side of a superpixel.
    window_um
        Radius of the spots that it was fitted on, and so of the windows in which it predicts.
    image_share
        Share of the network, with its residuals, in the map of each gene (n_genes,); the rest is
        interpolation of the spots.
    encoder
        Which features it expects: ``encoder``, ``revision``, ``dim`` and how they were made.
    info
        How it was made: seed, versions, loss curves, time.
    scores
        How well each gene was predicted at spots that were left out, see :func:`sphistex.metrics.explained`; None
        where no spots were.
    calibration
        How far predictions lie from what was measured there; None where too few spots were left out.
    """

    genes: list[str]
    parameters: FitParameters
    module: Parts
    pitch_um: float
    window_um: float
    image_share: NDArray[np.float64]
    encoder: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    scores: pd.DataFrame | None = None
    calibration: Calibration | None = None

    @classmethod
    def fit(
        cls,
        features: FeatureMap,
        bags: Bags,
        spots: Spots,
        genes: Sequence[str],
        parameters: FitParameters,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, float, float], None] = lambda epoch, train, validation: None,
    ) -> SuperResolver:
        """Fit on one section.

        Parameters
        ----------
        features
            Feature map with the parameters' context.
        bags
            The spots as bags of tissue superpixels.
        spots
            The same spots with their counts of ``genes``.
        genes, parameters
            What to predict and how to fit.
        seed, device
            Same seed, same device: same model.
        on_epoch
            Called with (epoch, training loss, validation loss).
        """
        spots, bags = _pooled(spots, bags)
        sources, bags_um, train_bags = _training_bags(spots, bags, features.mask, parameters)
        chosen = _within_memory(train_bags, seed)
        train_bags, sources, bags_um = train_bags.take(chosen), sources[chosen], bags_um[chosen]
        index, weight = train_bags.padded()
        instances, index = np.unique(index, return_inverse=True)
        vectors = torch.from_numpy(features.gather(instances))
        places, _ = pooling(spots.xy_um, spots.pitch_um)
        counts = torch.from_numpy(np.asarray(places @ spots.counts, dtype=np.float32))
        bag_counts = torch.from_numpy(np.asarray(sources @ spots.counts, dtype=np.float32))
        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(seed)
            module = _build(parameters, vectors.shape[1], counts, bag_counts, torch.from_numpy(weight).sum(1))
            module.scaling.adapt(vectors)
            window_um, image_alone = float(np.median(spots.radius_um)), np.ones(len(genes))
            resolver = cls(list(genes), parameters, module.to(device), bags.grid.pitch_um, window_um, image_alone)
            positions = resolver._positions(spots)
            nearest = positions.nearest(bags_um)

            def draw() -> tuple[Tensor, Tensor, Tensor]:
                """Two independent halves of the spots' counts: one to be explained, one to be seen."""
                explained, seen = _halves(spots.counts)
                counts = torch.from_numpy(np.asarray(sources @ explained, dtype=np.float32))
                tokens = torch.from_numpy(nearest.tokens(resolver._profiles(positions.sums @ seen)))
                shown = _without_nearest(nearest.index.shape, parameters.own_dropout)
                return counts.to(device), tokens.to(device), shown.to(device)

            data = BagData(
                features=resolver._by_context(vectors),
                index=torch.from_numpy(index.reshape(weight.shape)).to(device),
                weight=torch.from_numpy(weight).to(device),
                counts=bag_counts.to(device),
                spots=torch.from_numpy(nearest.tokens(positions.profiles)).to(device),
                spot_mask=torch.ones(nearest.index.shape, dtype=torch.bool, device=device),
                dtype=resolver.dtype,
                draw=draw if parameters.thinned and parameters.layers else None,
            )
            held_out = _held_out(sources, parameters, seed)
            log = train(
                module.network,
                module.objective,
                data,
                held_out.to(device),
                epochs=parameters.epochs,
                patience=parameters.patience,
                batch_size=max(parameters.batch_size, _INSTANCES_PER_BATCH * len(weight) // train_bags.weights.nnz),
                learning_rate=parameters.learning_rate,
                weight_decay=parameters.weight_decay,
                schedule=parameters.schedule,
                genes_per_step=parameters.genes_per_step,
                seed=seed,
                on_epoch=on_epoch,
            )
            # where every place is measured, or bags are made of others, none is unseen by leaving one out
            left_out = held_out.any(0) & (spots.pitch_um >= PLACE_UM and parameters.spots == "measured")
            if left_out.sum() >= MIN_SPOTS:
                resolver._judge(
                    predict_held_out(
                        module.network,
                        module.objective,
                        data,
                        held_out.numpy(),
                        bags_um,
                        residuals=parameters.residuals,
                        seed=seed,
                    ),
                    seed,
                )
        resolver.info = _provenance(log, seed, device) | {"n_left_out": int(left_out.sum())}
        return resolver

    def predict(
        self, features: FeatureMap, bags: Bags, spots: Spots, *, seed: int = 0
    ) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        """Counts per superpixel, block by block.

        Parameters
        ----------
        features, bags, spots
            As in :meth:`fit`, of the section to predict.
        seed
            Of the choice of the residuals' length scale, where there are very many spots.

        Yields
        ------
        A block of the grid (rows, columns) and its rates (n_rows, n_columns, n_genes), zero outside the tissue.
        """
        mapper = self.mapper(features, bags, spots, seed=seed)
        for window in features.blocks():
            inside = features.mask[window]
            rates = np.zeros((*inside.shape, len(self.genes)), dtype=np.float32)
            for genes, values in mapper.parts(window):
                rates[inside, genes] = values
            yield window, rates

    def mapper(self, features: FeatureMap, bags: Bags, spots: Spots, *, seed: int = 0) -> Mapper:
        """What makes latent maps and counts of any block; arguments as in :meth:`predict`."""
        spots, bags = _pooled(spots, bags)
        return Mapper.of(self, features, bags, spots, seed=seed)

    def predict_tissue(
        self,
        features: FeatureMap,
        bags: Bags,
        spots: Spots,
        *,
        seed: int = 0,
        on_block: Callable[[int], None] = lambda n_superpixels: None,
    ) -> NDArray[np.float32]:
        """Counts of all superpixels of the tissue.

        Parameters
        ----------
        features, bags, spots, seed
            As in :meth:`predict`.
        on_block
            Called after every block with the number of its superpixels.

        Returns
        -------
        (n_tissue_superpixels, n_genes), row by row.
        """
        out = np.empty((int(features.mask.sum()), len(self.genes)), dtype=np.float32)
        mapper = self.mapper(features, bags, spots, seed=seed)
        for window in features.blocks():
            places = features.places(window)
            for genes, values in mapper.parts(window):
                out[places, genes] = values
            on_block(len(places))
        return out

    def save(self, path: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, path / "model.safetensors")
        header = {
            "genes": self.genes,
            "parameters": self.parameters.to_json(),
            "pitch_um": self.pitch_um,
            "window_um": self.window_um,
            "encoder": self.encoder,
            "info": self.info,
            "scores": None if self.scores is None else self.scores.to_dict("list"),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "image_share": self.image_share.tolist(),
        }
        (path / "model.json").write_text(json.dumps(header, indent=1))

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> SuperResolver:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If ``path`` holds no model.
        """
        path = Path(path)
        if not (path / "model.json").is_file() or not (path / "model.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no saved SuperResolver (model.json and model.safetensors).")
        header = json.loads((path / "model.json").read_text())
        parameters = FitParameters.from_json(header.pop("parameters"))
        scores, calibration = header.pop("scores"), header.pop("calibration")
        header["scores"] = (
            None if scores is None else pd.DataFrame(scores, index=pd.Index(header["genes"], name="gene"))
        )
        header["image_share"] = np.array(header["image_share"])
        header["calibration"] = None if calibration is None else Calibration.from_json(calibration)
        state = load_file(path / "model.safetensors")
        d_features = len(state["scaling.mean"])
        n_spots = state["profile.loadings"].shape[1] if "profile.loadings" in state else 1
        blank = torch.zeros(n_spots, len(header["genes"]))
        module = _build(parameters, d_features, blank, blank, torch.ones(n_spots))
        module.load_state_dict(state)
        return cls(parameters=parameters, module=module.to(device).eval(), **header)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its networks compute in."""
        if self.parameters.precision == "auto":
            return fastest_dtype(self.device)
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.parameters.precision]

    def _judge(self, held_out: HeldOut, seed: int) -> None:
        """Learn from left-out spots how far to trust the predictions."""
        if self.parameters.mixed:
            self.image_share = held_out.image_share()
            held_out = held_out.mixed(self.image_share)
        self.scores = explained(held_out.expected, held_out.interpolated, held_out.counts, genes=self.genes, seed=seed)
        self.calibration = Calibration.learn(held_out, self.pitch_um, seed=seed)

    def _positions(self, spots: Spots) -> Positions:
        """What bags attend to."""
        sums, pitch_um = pooling(spots.xy_um, spots.pitch_um)
        if self.parameters.spots == "enhanced":
            sums = enhancement_matrix(mean_of(sums) @ spots.xy_um, pitch_um) @ sums
        place_um = pitch_um if self.parameters.profile == "components" else None
        profiles = self._profiles(sums @ spots.counts)
        return Positions(mean_of(sums) @ spots.xy_um, sums, profiles, self.parameters.neighbours, place_um)

    def _profiles(self, counts: NDArray[np.floating]) -> NDArray[np.float32]:
        """What bags see (n, d) of positions with ``counts`` (n, n_genes)."""
        return self.module.profile(torch.from_numpy(counts).float().to(self.device)).cpu().numpy()

    def _by_context(self, vectors: Tensor) -> Tensor:
        """Features (n, d_features) scaled, and those of each context by itself (contexts, n, d_features / contexts)."""
        scaled = self.module.scaling(vectors.to(self.device)).to(self.dtype)
        return scaled.unflatten(-1, (len(self.parameters.context), -1)).movedim(1, 0).contiguous()


class Parts(nn.Module):
    """Everything with fitted numbers, so that it moves between devices and is saved as one."""

    def __init__(self, network: HISTEX, objective: Objective, profile: Profile, scaling: Standardise) -> None:
        super().__init__()
        self.network, self.objective, self.profile, self.scaling = network, objective, profile, scaling


class Standardise(nn.Module):
    """Features with mean 0 and standard deviation 1 over the training superpixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, d_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_features))
        self.register_buffer("std", torch.ones(d_features))

    def adapt(self, vectors: Tensor) -> None:
        """Take mean and standard deviation from (n, d_features)."""
        self.mean.copy_(vectors.mean(0))
        self.std.copy_(vectors.std(0).clamp_min(1e-4))

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., d_features) → the same shape."""
        return (vectors - self.mean) / self.std


def _pooled(spots: Spots, bags: Bags) -> tuple[Spots, Bags]:
    """Spots and bags, with bins that are much smaller than spots pooled.

    A bag of a single bin would cost as much as a spot, and hold next to no counts.
    """
    if spots.pitch_um >= _SMALLEST_BAG_UM:
        return spots, bags
    pool, pitch_um = pooling(spots.xy_um, spots.pitch_um, at_least_um=_SMALLEST_BAG_UM, at_most=None)
    counts = np.asarray(pool @ spots.counts, dtype=np.float32)
    pooled = Spots(mean_of(pool) @ spots.xy_um, np.sqrt(pool @ spots.radius_um**2), pitch_um, counts)
    return pooled, Bags(sparse.csr_matrix(pool @ bags.weights), bags.grid)


def _halves(counts: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Counts drawn into two halves whose noise is independent, each on the scale of the whole."""
    first = np.empty_like(counts)
    for some in range(0, len(counts), _SPOTS_AT_ONCE):
        part = slice(some, some + _SPOTS_AT_ONCE)
        whole = torch.from_numpy(np.floor(counts[part]))
        drawn = torch.binomial(whole, torch.tensor(0.5).expand(whole.shape)).numpy()
        first[part] = 2 * drawn + counts[part] % 1
    return first, 2 * counts - first


def _without_nearest(shape: tuple[int, ...], share: float) -> Tensor:
    """Which neighbours (n_bags, k) are shown where a share of the bags, chosen at random, is not shown the nearest."""
    shown = torch.ones(shape, dtype=torch.bool)
    if shape[1] > 1:
        shown[:, 0] = torch.rand(shape[0]) >= share
    return shown


def _training_bags(
    spots: Spots, bags: Bags, mask: NDArray[np.bool_], parameters: FitParameters
) -> tuple[sparse.csr_matrix, NDArray[np.float64], Bags]:
    """Which measured spots each bag on tissue is the mean of, the bags' centres in µm, and the bags."""
    sources = sparse.identity(len(spots.xy_um), format="csr")
    if parameters.enhanced_bags:
        sources = enhancement_matrix(spots.xy_um, spots.pitch_um)
        disks = Bags.from_disks(
            bags.grid, sources @ spots.xy_um / bags.grid.mpp, sources @ spots.radius_um / bags.grid.mpp
        )
        bags = disks.within(mask)
    on_tissue = np.asarray(bags.weights.sum(1)).ravel() > 0
    return sources[on_tissue], (sources @ spots.xy_um)[on_tissue], bags.take(on_tissue)


def _within_memory(bags: Bags, seed: int) -> NDArray[np.intp]:
    """As many of the bags, chosen at random, as there is memory for their superpixels; in order."""
    order = np.random.default_rng(seed).permutation(len(bags.weights.indptr) - 1)
    used = np.cumsum(np.diff(bags.weights.indptr)[order]) <= _MAX_INSTANCES
    return np.sort(order[used])


def _held_out(sources: sparse.csr_matrix, parameters: FitParameters, seed: int) -> Tensor:
    """Bags that each model does not see: held-out spots, and what was made from them."""
    n_bags, n_spots = sources.shape
    if not parameters.holdout:
        return torch.zeros(parameters.n_models, n_bags, dtype=torch.bool)
    spots = folds(n_spots, parameters.n_models, share=parameters.holdout, seed=seed).numpy()
    return torch.from_numpy(np.asarray((sources @ spots.T) > 0).T.copy())


def _build(parameters: FitParameters, d_features: int, counts: Tensor, bag_counts: Tensor, areas: Tensor) -> Parts:
    """All parts with fitted numbers, before training."""
    profile = PROFILES[parameters.profile](counts)
    d_spots = profile(counts[:1]).shape[1] + (4 if parameters.profile == "components" else 0)
    network = HISTEX(
        parameters.n_models,
        d_features // len(parameters.context),
        d_spots,
        counts.shape[1],
        contexts=len(parameters.context),
        embed=parameters.embed,
        d=parameters.d,
        heads=parameters.heads,
        layers=parameters.layers,
        residual=parameters.residual,
        hidden=parameters.hidden,
        activation=None if parameters.linear_head else nn.GELU,
        dropout=parameters.dropout,
    )
    if parameters.objective == "poisson":
        initialise_at_mean(network)
    return Parts(network, OBJECTIVES[parameters.objective](bag_counts, areas), profile, Standardise(d_features))


def _provenance(log: TrainingLog, seed: int, device: torch.device | str) -> dict[str, Any]:
    """How a model was made, as plain values."""
    return {
        "seed": seed,
        "device": str(device),
        "train_loss": log.train,
        "validation_loss": log.validation,
        "best_epoch": log.best_epoch,
        "versions": {name: version(name) for name in ("sphistex", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
