"""Everything that decides how a model is fitted, and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np


@dataclass(frozen=True)
class FitParameters:
    """Parameters of a fit.

    Parameters
    ----------
    context
        Radii in superpixels of the surroundings whose mean features are added; 0 is the superpixel itself.
    n_models
        Models of the ensemble, trained in one pass.
    average
        How the models' maps are combined.
    objective
        ``"poisson"``: likelihood of the spots' counts, log link; ``"squares"``: the paper's squared error of scaled
        means.
    embed
        Width to which the features are reduced first, half of it for the superpixel itself and the other half for its
        surroundings; None takes them as they are.
    layers, d, heads
        Bidirectional cross-attention; 0 layers leave the neighbouring spots out.
    residual
        Whether what the spots express is added to what the attention makes of it. Without, as published, it only
        weighs superpixels.
    hidden, linear_head, dropout
        The head: widths of its hidden layers, whether they have no activation between them, and dropout.
    neighbours
        Neighbouring spots that a bag attends to.
    spots
        What these are: the ``"measured"`` spots, or the linearly ``"enhanced"`` ones (eq. 1–3).
    profile
        What is seen of them: principal ``"components"`` with the place relative to the bag, or all genes ``"scaled"``.
    thinned
        Whether a bag sees one half of the spots' counts while training, drawn anew every epoch, and explains the other
        half. Without, as published, it is given its own answer.
    own_dropout
        Share of the bags that, in an epoch, are not shown the nearest spot, their own: between spots there is none.
    spotless
        Share of the bags that, in an epoch, are shown no spot at all: a section may have only an image. It needs
        ``thinned``.
    enhanced_bags
        Whether enhanced spots are bags as well.
    epochs, patience, learning_rate, weight_decay, schedule, genes_per_step
        Training; see :func:`sphistex.nn.training.train`.
    batch_size
        Bags per step; None: as many as suit the section, so that also of few spots an epoch takes enough steps.
    precision
        What networks compute in: ``"auto"`` is bfloat16 where the device has instructions for it; weights, sums and
        losses are float32 in any case.
    holdout
        Share of the spots that each model does not see and that stop its training; 0 for none.
    residuals
        Whether smoothed residuals of the measured spots are added to the map.
    mixed
        Whether the map of a gene is mixed with interpolation of the spots, as far as this explains left-out spots
        better than the network alone: what the image does not show is then not read out of it.
    """

    context: tuple[int, ...] = (0, 1, 5)
    n_models: int = 3
    average: Literal["mean", "median"] = "mean"
    objective: Literal["poisson", "squares"] = "poisson"
    embed: int | None = 128
    layers: int = 1
    residual: bool = True
    d: int = 128
    heads: int = 4
    hidden: tuple[int, ...] = (256,)
    linear_head: bool = False
    dropout: float = 0.3
    neighbours: int = 7
    spots: Literal["measured", "enhanced"] = "measured"
    profile: Literal["components", "scaled"] = "components"
    thinned: bool = True
    own_dropout: float = 0.2
    spotless: float = 0.05
    enhanced_bags: bool = False
    epochs: int = 40
    patience: int | None = 5
    batch_size: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: bool = True
    genes_per_step: int | None = 256
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    holdout: float = 0.2
    residuals: bool = True
    mixed: bool = True

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FitParameters:
        """Back from :meth:`to_json`."""
        restored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**restored)


PRESETS = {
    "default": FitParameters(),
    # The published configuration, with the attention scaled as the text says. Neighbours include the bag's own spot.
    "paper": FitParameters(
        context=(0,),
        embed=None,
        n_models=5,
        average="median",
        objective="squares",
        layers=2,
        residual=False,
        d=512,
        heads=8,
        hidden=(1024, 512, 512, 512),
        linear_head=True,
        dropout=0.0,
        neighbours=6,
        spots="enhanced",
        profile="scaled",
        thinned=False,
        own_dropout=0.0,
        spotless=0.0,
        enhanced_bags=True,
        epochs=500,
        patience=None,
        batch_size=32,
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule=False,
        genes_per_step=None,
        precision="float32",
        holdout=0.0,
        residuals=False,
        mixed=False,
    ),
}


def parameters(preset: str = "default", **changes: Any) -> FitParameters:
    """Parameters of a preset with some of them changed.

    Raises
    ------
    TypeError, ValueError
        If the preset or a parameter does not exist, or a value makes no sense.

    Examples
    --------
    >>> parameters("paper", epochs=10).epochs
    10
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} does not exist: choose one of {sorted(PRESETS)}.")
    known = {field.name for field in fields(FitParameters)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown fit parameters {unknown}: choose from {sorted(known)}.")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
    }
    chosen = replace(PRESETS[preset], **given)
    _check_types(chosen)
    for name, least in _AT_LEAST.items():
        if getattr(chosen, name) is not None and not getattr(chosen, name) >= least:
            raise ValueError(f"{name}={getattr(chosen, name)!r} must be at least {least}.")
    if not chosen.learning_rate > 0:
        raise ValueError(f"learning_rate={chosen.learning_rate!r} must be positive.")
    for name in ("dropout", "own_dropout", "spotless", "holdout"):
        if not 0 <= getattr(chosen, name) < 1:
            raise ValueError(f"{name}={getattr(chosen, name)!r} must be at least 0 and below 1.")
    if not chosen.context or min(chosen.context) < 0:
        raise ValueError(f"context={chosen.context!r} must hold at least one radius, and none below 0.")
    if min(chosen.hidden, default=1) < 1:
        raise ValueError(f"hidden={chosen.hidden!r} must be the widths of the hidden layers.")
    if chosen.layers and chosen.d % chosen.heads:
        raise ValueError(f"d={chosen.d} cannot be divided into heads={chosen.heads}: choose d as a multiple of heads.")
    return chosen


_AT_LEAST = {
    **dict.fromkeys(("n_models", "epochs", "patience", "batch_size", "genes_per_step", "neighbours", "d", "heads"), 1),
    **dict.fromkeys(("layers", "weight_decay"), 0),
}
_TYPES: dict[Any, Any] = {
    int: Integral,
    float: Real,
    bool: (bool, np.bool_),
    int | None: (Integral, type(None)),
    tuple[int, ...]: tuple,
}


def _check_types(chosen: FitParameters) -> None:
    """Refuse choices that do not exist and values of another type, which would fail only after hours."""
    for name, kind in get_type_hints(FitParameters).items():
        value = getattr(chosen, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name}={value!r} does not exist: choose one of {list(get_args(kind))}.")
        elif not isinstance(value, _TYPES[kind]):
            raise TypeError(
                f"{name}={value!r} must be {getattr(kind, '__name__', kind)}, as in {name}={_default(name)!r}."
            )


def _default(name: str) -> Any:
    return getattr(PRESETS["default"], name)
