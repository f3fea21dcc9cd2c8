"""The encoders that are known by name, and how one is found from what a user gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphistex.encoders.base import SUPERPIXEL_UM, Encoder

BUILT_IN = "efficientnet_lite0"


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder before it is loaded.

    Parameters
    ----------
    name
        Name to ask for.
    build
        Makes the encoder; takes ``weights`` (a path or None) and ``device``.
    dim
        Length of a token.
    mpp
        Microns per pixel of its tiles.
    patch_size
        Pixels per token.
    licence
        Licence of the weights.
    access
        How to get the weights.
    """

    name: str
    build: Callable[..., Encoder]
    dim: int
    mpp: float
    patch_size: int
    licence: str
    access: str


_REGISTRY: dict[str, EncoderInfo] = {}


def register(info: EncoderInfo) -> None:
    """Make an encoder known by name; one of the same name is replaced.

    Raises
    ------
    ValueError
        If a token is not one superpixel of 8 µm.
    """
    check_superpixel(info)
    _REGISTRY[info.name] = info


def list_encoders() -> list[EncoderInfo]:
    """The registered encoders.

    Examples
    --------
    >>> {info.name: info.dim for info in list_encoders()}
    {'efficientnet_lite0': 232, 'uni': 1024}
    """
    return list(_REGISTRY.values())


def get(encoder: Any = "auto", *, weights: str | Path | None = None, device: str | None = None) -> Encoder:
    """Load an encoder.

    Parameters
    ----------
    encoder
        ``"auto"``: UNI if its weights are given, in the Hugging Face cache, or can be had with the token that is
        set; otherwise the built-in one, with a warning. Or a registered name, the name of a vision transformer of
        timm's (``"timm:<name>"`` or just the name), a callable, or an object with ``encode_image_dense`` (LazySlide).
    weights
        File with the weights of a vision transformer (.safetensors, .bin, .pt).
    device
        Torch device; default: that of the settings.

    Raises
    ------
    ValueError
        If the name is unknown, or ``weights`` is given for an encoder that takes none.
    TypeError
        If ``encoder`` is none of these.

    Examples
    --------
    >>> get("efficientnet_lite0", device="cpu").dim
    232
    """
    if device is None:
        from sphistex.settings import settings

        device = settings.device
    if isinstance(encoder, str):
        return _by_name(encoder, weights, device)
    if weights is not None:
        raise ValueError(
            f"weights={str(weights)!r} can only be given with the name of an encoder, not with {encoder!r}"
        )
    found = _adapted(encoder, device)
    check_superpixel(found)
    return found


def check_superpixel(encoder: Encoder | EncoderInfo) -> None:
    """Raise a ValueError unless a token of the encoder covers one superpixel."""
    side_um = encoder.patch_size * encoder.mpp
    if abs(side_um - SUPERPIXEL_UM) > 1e-3:
        raise ValueError(
            f"encoder {encoder.name!r}: patch_size={encoder.patch_size} px at mpp={encoder.mpp:g} µm per pixel make "
            f"tokens of {side_um:g} µm, but a superpixel has {SUPERPIXEL_UM:g}; "
            f"set mpp={SUPERPIXEL_UM / encoder.patch_size:g}"
        )


def _by_name(name: str, weights: str | Path | None, device: str) -> Encoder:
    if name == "auto":
        return _auto(weights, device)
    if name in _REGISTRY:
        return _REGISTRY[name].build(weights=weights, device=device)
    import timm

    from sphistex.encoders.timm_vit import TimmViT

    model = name.removeprefix("timm:")
    if model == name and not timm.is_model(name):
        raise ValueError(
            f"encoder={name!r} is neither 'auto', nor registered ({sorted(_REGISTRY)}), nor a model of timm's (see "
            "`timm.list_models('vit*')`)"
        )
    return TimmViT(model, weights=weights, device=device)


def _auto(weights: str | Path | None, device: str) -> Encoder:
    """UNI where it can be had, otherwise the built-in encoder and one warning that says why."""
    from sphistex.encoders.timm_vit import UNI_HUB_ID, cached_uni, hub_token, uni

    reason = "its weights are neither given, nor in the Hugging Face cache, and no token (HF_TOKEN) is set to get them"
    if weights is not None or cached_uni() is not None:
        return uni(weights=weights, device=device)
    if hub_token() is not None:
        try:
            return uni(device=device)
        except OSError as error:  # no network, or a token without access
            reason = str(error).strip().splitlines()[0]
    warnings.warn(
        f"encoder='auto': the built-in encoder {BUILT_IN!r} (ImageNet) is used, not UNI (pathology): {reason}. To get "
        f"UNI, ask for access at https://huggingface.co/{UNI_HUB_ID} and set HF_TOKEN, or pass weights=<its file>; "
        f"encoder={BUILT_IN!r} silences this warning",
        UserWarning,
        stacklevel=4,
    )
    return _REGISTRY[BUILT_IN].build(device=device)


def _adapted(encoder: Any, device: str) -> Encoder:
    from sphistex.encoders.adapters import CallableEncoder, DenseEncoder

    if hasattr(encoder, "encode_image_dense"):
        return DenseEncoder(encoder, device=device)
    if isinstance(encoder, Encoder):
        return encoder
    if callable(encoder):
        return CallableEncoder(encoder)
    raise TypeError(
        f"encoder={encoder!r} is a {type(encoder).__name__}; give a name, a callable that maps tiles (n, h, w, 3) to "
        "tokens (n, h / patch, w / patch, dim), or an object with encode_image_dense"
    )


def _build_efficientnet(*, weights: str | Path | None = None, device: str = "auto") -> Encoder:
    if weights is not None:
        raise ValueError(f"weights={str(weights)!r}: {BUILT_IN!r} brings its own; leave weights out")
    from sphistex.encoders.efficientnet import EfficientNetLite0

    return EfficientNetLite0(device=device)


def _build_uni(*, weights: str | Path | None = None, device: str = "auto") -> Encoder:
    from sphistex.encoders.timm_vit import uni

    return uni(weights=weights, device=device)


register(
    EncoderInfo(
        name=BUILT_IN,
        build=_build_efficientnet,
        dim=232,
        mpp=0.5,
        patch_size=16,
        licence="Apache-2.0",
        access="installed with sphistex",
    )
)
register(
    EncoderInfo(
        name="uni",
        build=_build_uni,
        dim=1024,
        mpp=0.5,
        patch_size=16,
        licence="CC-BY-NC-ND-4.0",
        access="ask at https://huggingface.co/MahmoodLab/UNI, then set HF_TOKEN, or pass weights=<path>",
    )
)
