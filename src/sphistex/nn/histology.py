"""A model from lattice features to expression and regions: fitted to measured sections, applied to any."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sphistex.nn.hist import HiST
from sphistex.nn.picture import Layout
from sphistex.nn.seeds import seeded
from sphistex.nn.threads import threads_for

# Standard deviations below this are nothing that varies.
_LEAST_SD = 1e-4


@dataclass(frozen=True)
class LatticeSection:
    """A section as values per position.

    Parameters
    ----------
    layout
        Where the positions are.
    features
        (n, d_features).
    expression
        Log-normalised expression (n, n_genes); None where it was not measured.
    regions
        Class of each position (n,), -1 where it is not known; None where no regions are learnt.
    versions
        Features of the same positions otherwise stained, like ``features``, to learn from as well.
    """

    layout: Layout
    features: NDArray[np.float32]
    expression: NDArray[np.float32] | None = None
    regions: NDArray[np.int64] | None = None
    versions: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class HistologyParameters:
    """How a histology model is fitted.

    Parameters
    ----------
    components
        Principal components of the standardised features that the network looks at.
    widths, mixers
        Channels of the network's levels, and blocks of its bottleneck, see ``sphistex.nn.hist.HiST``. With a
        handful of sections a single level is best; the published network has (64, 128, 256, 512, 1024) and 7.
    center
        Whether each section's features are standardised by themselves. This takes away what differs between slides,
        such as their stain, but also between patients: it is for maps within sections, not for comparing sections.
    ridge
        Weight of a ridge regression on all features of the position itself, beside the networks; 0 leaves it out.
    alpha
        Penalty of the ridge regression, on standardised features.
    dropout
        Share of the features, and of the whole channels, that are left out.
    cutout
        Share of the positions that are hidden, drawn anew in every step.
    correlation
        Weight of one minus the correlation of each gene within a section, beside its squared error.
    n_models
        Networks whose predictions are averaged.
    epochs, learning_rate, weight_decay
        Training, by AdamW with one cycle of the learning rate.
    """

    components: int = 64
    widths: tuple[int, ...] = (64,)
    mixers: int = 1
    center: bool = False
    ridge: float = 0.5
    alpha: float = 3000.0
    dropout: float = 0.3
    cutout: float = 0.1
    correlation: float = 0.5
    n_models: int = 3
    epochs: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


def histology_parameters(**changes: Any) -> HistologyParameters:
    """The default parameters with some of them changed.

    Raises
    ------
    ValueError
        If a parameter does not exist, or a value makes no sense.

    Examples
    --------
    >>> histology_parameters(epochs=10).epochs
    10
    """
    known = list(asdict(HistologyParameters()))
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"unknown parameters {unknown}: choose from {known}")
    if not isinstance(changes.get("widths", ()), list | tuple):
        raise ValueError(f"widths={changes['widths']!r} must be the channels of each level, such as (64,)")
    # plain numbers: a saved model keeps them as JSON, which knows none of numpy's
    plain = {name: _plain_number(name, value) for name, value in changes.items() if name != "widths"}
    widths = tuple(_plain_number("widths", width, whole=True) for width in changes.get("widths", ()))
    chosen = HistologyParameters(**(plain | {"widths": widths} if "widths" in changes else plain))
    for name in ("components", "n_models", "epochs", "learning_rate", "alpha"):
        if not getattr(chosen, name) > 0:
            raise ValueError(f"{name}={getattr(chosen, name)!r} must be positive")
    for name, low, high in (("dropout", 0, 1), ("cutout", 0, 1), ("ridge", 0, 1.0001)):
        if not low <= getattr(chosen, name) < high:
            raise ValueError(f"{name}={getattr(chosen, name)!r} must be at least 0 and below 1 (ridge: at most 1)")
    for name in ("mixers", "correlation", "weight_decay"):
        if not getattr(chosen, name) >= 0:
            raise ValueError(f"{name}={getattr(chosen, name)!r} must be at least 0")
    if not chosen.widths or min(chosen.widths) < 1:
        raise ValueError(f"widths={chosen.widths!r} must be the channels of at least one level")
    return chosen


def _plain_number(name: str, value: Any, *, whole: bool = False) -> Any:
    """A parameter as a number of Python's, of the kind that its default is."""
    kind = int if whole else type(getattr(HistologyParameters, name))
    accepted = {bool: bool | np.bool_, int: int | np.integer, float: int | float | np.integer | np.floating}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        said = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}={value!r} must be {said}")
    return kind(value)


@dataclass
class Predicted:
    """What a model says of a section: expression (n, n_genes) and probabilities of the classes (n, n_classes)."""

    expression: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class _Module(nn.Module):
    """All fitted numbers, so that they move between devices and are saved as one."""

    mean: Tensor
    scale: Tensor
    components: Tensor
    level: Tensor
    spread: Tensor
    slope: Tensor

    def __init__(
        self, parameters: HistologyParameters, d_features: int, n_genes: int, n_classes: int, hexagonal: bool
    ) -> None:
        super().__init__()
        n_components = min(parameters.components, d_features)
        d_out = n_genes + n_classes
        for name, shape in {
            "mean": (d_features,),
            "scale": (d_features,),
            "components": (d_features, n_components),
            "level": (d_out,),
            "spread": (d_out,),
            "slope": (d_features, d_out),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.center = parameters.center
        self.networks = nn.ModuleList(
            HiST(
                n_components,
                d_out,
                widths=parameters.widths,
                mixers=parameters.mixers,
                hexagonal=hexagonal,
                dropout=parameters.dropout,
            )
            for _ in range(parameters.n_models)
        )

    def of_section(self, features: NDArray[np.float32]) -> Tensor:
        """Features (n, d_features), standardised within their section if so chosen."""
        values = torch.as_tensor(features, dtype=torch.float32, device=self.mean.device)
        return (values - values.mean(0)) / values.std(0).clamp_min(_LEAST_SD) if self.center else values

    def standardised(self, features: NDArray[np.float32]) -> Tensor:
        """(n, d_features)."""
        return (self.of_section(features) - self.mean) / self.scale


@dataclass(repr=False)
class HistologyModel:
    """From the lattice features of a section to its expression and its regions.

    Parameters
    ----------
    parameters
        How it was fitted.
    module
        Everything fitted.
    genes, classes
        What is predicted; ``classes`` is empty where no regions were learnt.
    hexagonal
        Which lattice.
    features
        How lattice features are made for it: encoder, revision, scales, lattice.
    info
        Seed, losses, versions.
    """

    parameters: HistologyParameters
    module: _Module
    genes: list[str]
    classes: list[str]
    hexagonal: bool
    features: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        classes = f" and {len(self.classes)} regions" if self.classes else ""
        return f"HistologyModel of {len(self.genes)} genes{classes}, fitted to {self.info.get('n_sections')} sections"

    @classmethod
    def fit(
        cls,
        sections: Sequence[LatticeSection],
        genes: Sequence[str],
        classes: Sequence[str] = (),
        parameters: HistologyParameters | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> HistologyModel:
        """Fit to measured sections, all of the same lattice.

        Expression is learnt as the squared error of standardised genes and their correlation within each section,
        regions as cross-entropy in which every class weighs the same.

        Raises
        ------
        ValueError
            If there is no section, or their lattices differ.
        """
        parameters = HistologyParameters() if parameters is None else parameters
        if not sections:
            raise ValueError("there is no section to fit to")
        if len({one.layout.hexagonal for one in sections}) > 1:
            raise ValueError(
                "some sections lie on a hexagonal lattice and others on a square one: fit a model for each"
            )
        device = torch.device(device)
        hexagonal = sections[0].layout.hexagonal
        numbers = max(len(one.features) for one in sections) * max(parameters.widths)
        with torch.random.fork_rng([device] if device.type == "cuda" else []), threads_for(numbers):
            torch.manual_seed(seed)  # of the initial weights
            module = _Module(parameters, sections[0].features.shape[1], len(genes), len(classes), hexagonal)
            model = cls(parameters, module.to(device), list(genes), list(classes), hexagonal)
            model._prepare(sections)
            losses = model._train(sections, seed, on_epoch)
        model.info = {
            "seed": seed,
            "device": str(device),
            "n_sections": len(sections),
            "n_positions": sum(len(one.features) for one in sections),
            "train_loss": losses,
            "versions": {name: version(name) for name in ("sphistex", "torch", "numpy")}
            | {"python": platform.python_version()},
        }
        return model

    @torch.no_grad()
    def predict(self, section: LatticeSection) -> Predicted:
        """Expression and regions of the positions of a section."""
        self.module.eval()
        values = self.module.standardised(section.features)
        picture, mask = self._picture(values @ self.module.components, section.layout)
        found = torch.stack([network(picture, mask)[0] for network in self.module.networks]).mean(0)
        found = section.layout.values(found.cpu())
        share = self.parameters.ridge
        found = (1 - share) * found + share * (values @ self.module.slope).cpu()
        found = found * self.module.spread.cpu() + self.module.level.cpu()
        n_genes = len(self.genes)
        return Predicted(found[:, :n_genes].clamp_min(0).numpy(), found[:, n_genes:].softmax(1).numpy())

    # ---------------------------------------------------------------------------------------------- fitting

    def _prepare(self, sections: Sequence[LatticeSection]) -> None:
        """Scales, components and ridge regression, of the training sections alone."""
        module, parameters = self.module, self.parameters
        seen = [(one, values) for one in sections for values in (one.features, *one.versions)]
        features = torch.cat([module.of_section(values).cpu() for _, values in seen])
        targets = torch.cat([self._targets(one) for one, _ in seen])
        module.mean.copy_(features.mean(0))
        module.scale.copy_(features.std(0).clamp_min(_LEAST_SD))
        values = (features - module.mean.cpu()) / module.scale.cpu()
        n_genes = len(self.genes)
        module.level[:n_genes] = targets[:, :n_genes].mean(0)
        module.spread.fill_(1.0)
        module.spread[:n_genes] = targets[:, :n_genes].std(0).clamp_min(_LEAST_SD)
        _, singular, right = torch.linalg.svd(values, full_matrices=False)
        n = min(module.components.shape[1], len(singular))
        # the first component has unit variance, the others keep their size relative to it
        module.components[:, :n] = right[:n].T / (singular[0] / len(values) ** 0.5)
        if parameters.ridge:
            wanted = (targets - module.level.cpu()) / module.spread.cpu()
            known = ~wanted.isnan().any(1)
            # versions of a position are not as many positions
            alpha = parameters.alpha * len(seen) / len(sections)
            module.slope.copy_(_ridge(values[known], wanted[known], alpha))

    def _targets(self, section: LatticeSection) -> Tensor:
        """Expression, and scores of the classes (n, n_genes + n_classes): 2 for the own class, -2 for others."""
        expression = torch.as_tensor(section.expression).float()
        if not self.classes:
            return expression
        regions = torch.as_tensor(section.regions)
        scores = torch.full((len(regions), len(self.classes)), -2.0)
        scores[torch.arange(len(regions)), regions.clamp_min(0)] = 2.0
        scores[regions < 0] = torch.nan
        return torch.cat([expression, scores], dim=1)

    def _train(
        self, sections: Sequence[LatticeSection], seed: int, on_epoch: Callable[[int, float], None]
    ) -> list[float]:
        """Train all networks; the mean loss of each epoch."""
        parameters, module = self.parameters, self.module
        device = module.mean.device
        inputs = [
            [module.standardised(values) @ module.components for values in (one.features, *one.versions)]
            for one in sections
        ]
        level, spread = (values[: len(self.genes)] for values in (module.level, module.spread))
        wanted = [(torch.as_tensor(one.expression).float().to(device) - level) / spread for one in sections]
        regions = [None if one.regions is None else torch.as_tensor(one.regions).to(device) for one in sections]
        weights = self._class_weights(sections).to(device)
        optimiser = torch.optim.AdamW(
            module.networks.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, parameters.learning_rate, total_steps=parameters.epochs * len(sections), pct_start=0.15
        )
        losses = []
        module.train()
        for epoch in range(parameters.epochs):
            generator = seeded(seed, 1 + epoch)
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))  # of the dropout
            total = 0.0
            for number in torch.randperm(len(sections), generator=generator).tolist():
                turned = sections[number].layout.turned(int(torch.randint(24, (1,), generator=generator)))
                values = inputs[number][0]
                if len(inputs[number]) > 1:
                    values = inputs[number][int(torch.randint(len(inputs[number]), (1,), generator=generator))]
                loss = torch.zeros((), device=device)
                for network in module.networks:
                    shown = (torch.rand(len(values), 1, generator=generator) >= parameters.cutout).to(device)
                    picture, mask = self._picture(values * shown, turned)
                    out = turned.values(network(picture, mask)[0])
                    loss = loss + self._loss(out, wanted[number], regions[number], weights)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                cycle.step()
                total += loss.item() / len(module.networks)
            losses.append(total / len(sections))
            on_epoch(epoch, losses[-1])
        module.eval()
        return losses

    def _loss(self, out: Tensor, wanted: Tensor, regions: Tensor | None, weights: Tensor) -> Tensor:
        n_genes = wanted.shape[1]
        loss = nn.functional.mse_loss(out[:, :n_genes], wanted)
        loss = loss + self.parameters.correlation * (1 - correlation(out[:, :n_genes], wanted)).mean()
        if regions is not None and (regions >= 0).any():
            loss = loss + nn.functional.cross_entropy(out[:, n_genes:], regions, weights, ignore_index=-1)
        return loss

    def _class_weights(self, sections: Sequence[LatticeSection]) -> Tensor:
        """So that every class weighs the same."""
        if not self.classes:
            return torch.zeros(0)
        known = np.concatenate([one.regions for one in sections if one.regions is not None])
        counts = np.bincount(known[known >= 0], minlength=len(self.classes))
        return torch.as_tensor(counts.sum() / len(counts) / np.maximum(counts, 1), dtype=torch.float32)

    def _picture(self, values: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Picture (1, channels, height, width) and mask (1, height, width)."""
        return layout.picture(values)[None], layout.mask[None].to(values.device)

    # ------------------------------------------------------------------------------------------ save and load

    def save(self, path: str | Path) -> None:
        """Write ``histology.safetensors`` and ``histology.json`` into the folder ``path``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, path / "histology.safetensors")
        names = ("genes", "classes", "hexagonal", "features", "info")
        header = {name: getattr(self, name) for name in names} | {"parameters": asdict(self.parameters)}
        (path / "histology.json").write_text(json.dumps(header, indent=1))

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> HistologyModel:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If ``path`` holds no model.
        """
        path = Path(path)
        if not (path / "histology.json").is_file() or not (path / "histology.safetensors").is_file():
            raise FileNotFoundError(f"{path} holds no saved HistologyModel (histology.json and histology.safetensors)")
        header = json.loads((path / "histology.json").read_text())
        parameters = histology_parameters(**header.pop("parameters"))
        state = load_file(path / "histology.safetensors")
        module = _Module(
            parameters, len(state["mean"]), len(header["genes"]), len(header["classes"]), header["hexagonal"]
        )
        module.load_state_dict(state)
        return cls(parameters=parameters, module=module.to(device).eval(), **header)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each column (n, n_genes) → (n_genes,); about 0 where a column hardly varies."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / ((a * a).sum(0) * (b * b).sum(0) + 1e-3).sqrt()


def _ridge(values: Tensor, wanted: Tensor, alpha: float) -> Tensor:
    """Coefficients (d, n_outputs), from whichever of the two ways is smaller."""
    n, d = values.shape
    if d <= n:
        return torch.linalg.solve(values.T @ values + alpha * torch.eye(d), values.T @ wanted)
    return values.T @ torch.linalg.solve(values @ values.T + alpha * torch.eye(n), wanted)
