"""The whole model on plain arrays: fit it on bags, predict maps block by block, save and load it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sphistex.bags import Bags
from sphistex.calibration import MIN_SPOTS, Calibration
from sphistex.lattice import enhancement_matrix
from sphistex.metrics.explained import explained
from sphistex.nn.bagging import TrainingBags, far_apart, padded, side_by_side, training_bags
from sphistex.nn.context import FeatureMap, Window
from sphistex.nn.held_out import HeldOut, predict_held_out
from sphistex.nn.histex import HISTEX
from sphistex.nn.inputs import Inputs, Spots
from sphistex.nn.mil import OBJECTIVES, Objective
from sphistex.nn.neighbours import Neighbours, Positions
from sphistex.nn.parameters import FitParameters
from sphistex.nn.pooling import PLACE_UM, mean_of, pooling
from sphistex.nn.precision import fastest_dtype
from sphistex.nn.prediction import Mapper
from sphistex.nn.profiles import PROFILES, Profile
from sphistex.nn.scaling import Scaling, density, depth, sampled
from sphistex.nn.thinning import drawn_half
from sphistex.nn.training import BagData, TrainingLog, initialise_at_mean, suitable_batch, train

# Spots whose counts are drawn into halves at once.
_SPOTS_AT_ONCE = 256


@dataclass(repr=False)
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
        Networks, objective, spot profiles and the scaling of each section, with all fitted numbers.
    pitch_um
        Side of a superpixel.
    window_um
        Radius of the spots that it was fitted on, and so of the windows in which it predicts.
    image_share
        Share of the network, with its residuals, in the map of each gene (n_genes,); the rest is
        interpolation of the spots.
    sections
        ``identity`` of each section that it was fitted to, see :class:`sphistex.nn.Inputs`.
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
    sections: list[str] = field(default_factory=list)
    encoder: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    scores: pd.DataFrame | None = None
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        sections = f"{len(self.sections)} section{'s' * (len(self.sections) != 1)}"
        return f"SuperResolver of {len(self.genes)} genes, {self.parameters.n_models} models, fitted to {sections}"

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
        genes, parameters, seed, device, on_epoch
            As in :meth:`fit_sections`.
        """
        section = Inputs(features, bags, spots)
        return cls.fit_sections([section], genes, parameters, seed=seed, device=device, on_epoch=on_epoch)

    @classmethod
    def fit_sections(
        cls,
        sections: Sequence[Inputs],
        genes: Sequence[str],
        parameters: FitParameters,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        train: Callable[..., TrainingLog] = train,
        on_epoch: Callable[[int, float, float], None] = lambda epoch, train, validation: None,
    ) -> SuperResolver:
        """Fit one model to the spots of all sections.

        Every section has its own scaling of the features and its own depth of each gene, and its bags see its own
        spots only.

        Parameters
        ----------
        sections
            With features that have the parameters' context, spots at about the same distance, and their counts of
            ``genes``.
        genes, parameters
            What to predict and how to fit.
        seed, device
            Same seed, same device: same model.
        train
            What trains the networks, with the arguments of :func:`sphistex.nn.training.train`.
        on_epoch
            Called with (epoch, training loss, validation loss).
        """
        known = [section.identity for section in sections]
        sections = [section.pooled for section in sections]
        bags = training_bags(sections, parameters, seed)
        vectors = [torch.from_numpy(x.features.gather(one.instances)) for x, one in zip(sections, bags, strict=True)]
        average = density(sections)
        depths = [depth(section, average) for section in sections]
        with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(seed)
            module = _build(
                parameters,
                vectors[0].shape[1],
                _float(np.concatenate([_places(x) / its_depth for x, its_depth in zip(sections, depths, strict=True)])),
                _float(np.concatenate([one.sources @ x.spots.counts for x, one in zip(sections, bags, strict=True)])),
                torch.cat([torch.from_numpy(one.weight).sum(1) for one in bags]),
                average,
            )
            module.scalings = nn.ModuleList(Scaling.of(x, y) for x, y in zip(vectors, depths, strict=True))
            window_um = float(np.median(np.concatenate([section.spots.radius_um for section in sections])))
            pitch_um, image_alone = sections[0].bags.grid.pitch_um, np.ones(len(genes))
            resolver = cls(list(genes), parameters, module.to(device), pitch_um, window_um, image_alone, known)
            data = resolver._training_data(sections, bags, vectors)
            held_out = torch.cat([one.held_out for one in bags], dim=1)
            log = train(
                module.network,
                module.objective,
                data,
                held_out.to(device),
                epochs=parameters.epochs,
                patience=parameters.patience,
                batch_size=parameters.batch_size or suitable_batch(data.weight, held_out),
                learning_rate=parameters.learning_rate,
                weight_decay=parameters.weight_decay,
                schedule=parameters.schedule,
                genes_per_step=parameters.genes_per_step,
                seed=seed,
                on_epoch=on_epoch,
            )
            # where every place is measured, or bags are made of others, none is unseen by leaving one out
            closest_um = min(section.spots.pitch_um for section in sections)
            left_out = held_out.any(0) & (closest_um >= PLACE_UM and parameters.spots == "measured")
            if left_out.sum() >= MIN_SPOTS:
                resolver._judge(
                    predict_held_out(
                        module.network,
                        module.objective,
                        data,
                        held_out.numpy(),
                        far_apart(bags),
                        residuals=parameters.residuals,
                        seed=seed,
                    ),
                    seed,
                )
        resolver.info = _provenance(log, seed, device) | {"n_left_out": int(left_out.sum())}
        return resolver

    def at(self, section: Inputs, *, seed: int = 0) -> SuperResolver:
        """The model for one section, which predicts at its depth, from features that are scaled as its own are.

        Parameters
        ----------
        section
            One that the model was fitted to; or another one of the same tissue. Of that the scaling is learnt from its
            spots; without spots, from its features alone, and the depth is that of all sections of the fit together.
        seed
            Of the superpixels that are looked at for the scaling of another section.
        """
        if section.identity in self.sections:
            scaling = self.module.scaling_of(self.sections.index(section.identity))
        else:
            pooled = section.pooled
            of_genes = depth(pooled, self.module.average.cpu().numpy())
            scaling = Scaling.of(sampled(pooled, seed), of_genes).to(self.device)
        return replace(self._scaled(scaling), sections=[section.identity])

    def predict(
        self, features: FeatureMap, bags: Bags, spots: Spots, *, seed: int = 0
    ) -> Iterator[tuple[Window, NDArray[np.float32]]]:
        """Counts per superpixel, block by block.

        Parameters
        ----------
        features, bags, spots
            As in :meth:`fit`, of the section to predict; there may be no spots.
        seed
            Of the choice of the residuals' length scale, where there are very many spots.

        Yields
        ------
        A block of the grid (rows, columns) and its rates (n_rows, n_columns, n_genes), zero outside the tissue.
        """
        mapper = Mapper.of(self, features, bags, spots, seed=seed)
        for window in features.blocks():
            inside = features.mask[window]
            rates = np.zeros((*inside.shape, len(self.genes)), dtype=np.float32)
            for genes, values in mapper.parts(window):
                rates[inside, genes] = values
            yield window, rates

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
        mapper = Mapper.of(self, features, bags, spots, seed=seed)
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
            "sections": self.sections,
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
        d_features, n_genes = len(state["scalings.0.mean"]), len(header["genes"])
        n_spots = state["profile.loadings"].shape[1] if "profile.loadings" in state else 1
        blank = torch.zeros(n_spots, n_genes)
        module = _build(parameters, d_features, blank, blank, torch.ones(n_spots), np.zeros(n_genes))
        module.scalings = nn.ModuleList(Scaling(d_features, n_genes) for _ in header["sections"])
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

    def _training_data(
        self, sections: Sequence[Inputs], bags: Sequence[TrainingBags], vectors: list[Tensor]
    ) -> BagData:
        """What the networks are trained on: the bags of all sections; ``vectors`` is empty afterwards."""
        scalings = [self.module.scaling_of(number) for number in range(len(sections))]
        scaled = [self._scaled(scaling) for scaling in scalings]
        seen = [_Seen.by(*each) for each in zip(scaled, sections, bags, strict=True)]
        index, weight = side_by_side(bags)
        there = torch.from_numpy(padded([np.ones(one.nearest.index.shape, dtype=bool) for one in seen]))

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            """Two independent halves of the spots' counts: one to be explained, one to be seen."""
            counts, tokens = zip(*(one.halves(generator) for one in seen), strict=True)
            shown = _without_some(there, self.parameters, generator)
            return _float(np.concatenate(counts)), _float(padded(tokens)), shown

        data = BagData(
            # unscaled, each is let go at once
            features=torch.cat([model._by_context(vectors.pop(0)) for model in scaled], dim=1),
            index=torch.from_numpy(index).to(self.device),
            weight=torch.from_numpy(weight).to(self.device),
            counts=_float(np.concatenate([one.counts() for one in seen])).to(self.device),
            spots=_float(padded([one.tokens() for one in seen])).to(self.device),
            spot_mask=there.to(self.device),
            dtype=self.dtype,
            draw=draw if self.parameters.thinned and self.parameters.layers else None,
        )
        if len(sections) > 1:
            data.depth = torch.stack([scaling.depth for scaling in scalings])
            data.section = torch.arange(len(bags)).repeat_interleave(torch.tensor([len(one) for one in bags]))
            data.section = data.section.to(self.device)
        return data

    def _scaled(self, scaling: Scaling) -> SuperResolver:
        """The model as if it had been fitted to this section alone; networks are shared."""
        by = scaling.depth
        parts = self.module
        module = Parts(parts.network, parts.objective.at_depth(by), parts.profile.at_depth(by), parts.average * by)
        module.scalings = nn.ModuleList([scaling.at_same_depth()])
        calibration = self.calibration
        if calibration is not None:
            calibration = replace(calibration, mean=calibration.mean * by.cpu().numpy())
        return replace(self, module=module, calibration=calibration)

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
    """Everything with fitted numbers, so that it moves between devices and is saved as one.

    ``scalings`` has one for each section; ``average`` are the mean counts per superpixel at a depth of 1 (n_genes,).
    """

    average: Tensor

    def __init__(self, network: HISTEX, objective: Objective, profile: Profile, average: Tensor) -> None:
        super().__init__()
        self.network, self.objective, self.profile = network, objective, profile
        self.scalings = nn.ModuleList()
        self.register_buffer("average", average)

    @property
    def scaling(self) -> Scaling:
        """That of the only section, or of the one that the model has been scaled for."""
        return self.scaling_of(0)

    def scaling_of(self, number: int) -> Scaling:
        """That of a section."""
        scaling = self.scalings[number]
        assert isinstance(scaling, Scaling)
        return scaling


@dataclass(frozen=True)
class _Seen:
    """What the bags of a section see of its spots while training."""

    model: SuperResolver
    spots: Spots
    bags: TrainingBags
    positions: Positions
    nearest: Neighbours

    @classmethod
    def by(cls, model: SuperResolver, section: Inputs, bags: TrainingBags) -> _Seen:
        """With the model scaled for the section."""
        positions = model._positions(section.spots)
        return cls(model, section.spots, bags, positions, positions.nearest(bags.xy_um))

    def counts(self) -> NDArray[np.floating]:
        """Counts of the bags (n_bags, n_genes)."""
        return np.asarray(self.bags.sources @ self.spots.counts)

    def tokens(self) -> NDArray[np.float32]:
        """What they see in all, (n_bags, k, d_spots)."""
        return self.nearest.tokens(self.positions.profiles)

    def halves(self, generator: torch.Generator) -> tuple[NDArray[np.floating], NDArray[np.float32]]:
        """The bags' counts from one half of those of the spots, and what they see of the other half."""
        explained, seen = _halves(self.spots.counts, generator)
        tokens = self.nearest.tokens(self.model._profiles(self.positions.sums @ seen))
        return self.bags.sources @ explained, tokens


def _halves(counts: NDArray[np.float32], generator: torch.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Counts drawn into two halves whose noise is independent, each on the scale of the whole."""
    first = np.empty_like(counts)
    for some in range(0, len(counts), _SPOTS_AT_ONCE):
        part = slice(some, some + _SPOTS_AT_ONCE)
        drawn = drawn_half(np.floor(counts[part]), generator)
        first[part] = 2 * drawn + counts[part] % 1
    return first, 2 * counts - first


def _without_some(there: Tensor, parameters: FitParameters, generator: torch.Generator) -> Tensor:
    """Which of the neighbours that are ``there`` (n_bags, k) are shown: of some bags not the nearest, of some none."""
    shown, chance = there.clone(), torch.rand(len(there), generator=generator)
    if shown.shape[1] > 1:
        shown[:, 0] &= chance >= parameters.own_dropout
    shown[chance < parameters.spotless] = False
    return shown


def _places(section: Inputs) -> NDArray[np.floating]:
    """Counts of the places at which a section is looked at (n_places, n_genes)."""
    sums, _ = pooling(section.spots.xy_um, section.spots.pitch_um)
    return np.asarray(sums @ section.spots.counts)


def _float(values: NDArray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _build(
    parameters: FitParameters,
    d_features: int,
    counts: Tensor,
    bag_counts: Tensor,
    areas: Tensor,
    average: NDArray[np.floating],
) -> Parts:
    """All parts with fitted numbers, before training, but for the scaling of the sections."""
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
    return Parts(network, OBJECTIVES[parameters.objective](bag_counts, areas), profile, _float(average))


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
