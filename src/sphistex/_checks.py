"""Checks of a section's parts, made before any long work: every error says what was received and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from xarray import DataArray

MIN_TISSUE_SPOTS = 20

_RGBA_NAMES = [{"r", "0", "red"}, {"g", "1", "green"}, {"b", "2", "blue"}, {"a", "3", "alpha"}]
_SUPPORTED = "supported are 8-bit (uint8) RGB images, or RGBA whose alpha is dropped"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no text, truth value or array that may look like one.

    Examples
    --------
    >>> is_number(0.5), is_number(np.float32(2)), is_number("2"), is_number(np.nan), is_number(True)
    (True, True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and bool(np.isfinite(float(value)))


def check_rgb(image: DataArray, name: str) -> DataArray:
    """Return the three colour channels of an 8-bit RGB(A) image with dimensions (c, y, x).

    Raises
    ------
    ValueError
        If the image is not a two-dimensional 8-bit RGB or RGBA image.
    """
    if set(image.dims) != {"c", "y", "x"}:
        raise ValueError(f"image {name!r} has dimensions {image.dims}, not (c, y, x); {_SUPPORTED}")
    channels = image.sizes["c"]
    if channels == 1:
        raise ValueError(f"image {name!r} has a single channel; {_SUPPORTED}: repeat a grey channel three times")
    if channels not in (3, 4):
        raise ValueError(f"image {name!r} has {channels} channels; {_SUPPORTED}")
    if channels == 4 and "c" in image.coords and not _is_rgba(image.coords["c"].values):
        names = [str(value) for value in image.coords["c"].values]
        raise ValueError(
            f"image {name!r} has the channels {names}, which are not red, green, blue, alpha; {_SUPPORTED}"
        )
    if image.dtype != np.uint8:
        raise ValueError(
            f"image {name!r} has dtype {image.dtype}; {_SUPPORTED}: convert it, e.g. 16-bit by `image >> 8`"
        )
    return image.transpose("c", "y", "x").isel(c=slice(0, 3))


def _is_rgba(names: NDArray[Any]) -> bool:
    return all(str(name).lower() in known for name, known in zip(names, _RGBA_NAMES, strict=True))


def check_counts(table: AnnData, name: str, *, strict: bool = False) -> None:
    """Check that ``table.X`` holds raw counts and that gene names are unique.

    Raises
    ------
    ValueError
        If counts are missing, negative or not finite, if gene names repeat, or, with ``strict``, if counts are not
        whole numbers.

    Warns
    -----
    UserWarning
        If counts are not whole numbers, as after normalisation.
    """
    repeated = table.var_names[table.var_names.duplicated()].unique()
    if len(repeated):
        raise ValueError(
            f"table {name!r} has {len(repeated)} duplicated gene names ({_some(repeated)}); "
            "make them unique with `sdata.tables[...].var_names_make_unique()`"
        )
    if table.X is None:
        raise ValueError(f"table {name!r} has no X; put the raw counts there")
    values = table.X.data if sparse.issparse(table.X) else np.asarray(table.X)
    if not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"table {name!r} has X of dtype {values.dtype}; it must hold raw counts")
    if not np.isfinite(values).all():
        raise ValueError(f"table {name!r} has {int((~np.isfinite(values)).sum())} counts that are NaN or infinite")
    if values.size and values.min() < 0:
        raise ValueError(
            f"table {name!r} has negative values (minimum {values.min():g}), not counts; {_raw_hint(table)}"
        )
    fractional = np.flatnonzero(values.ravel() % 1)
    if len(fractional):
        reason = (
            f"table {name!r} looks normalised: {len(fractional) / values.size:.0%} of its values are not whole numbers "
            f"(such as {values.ravel()[fractional[0]]:g}), but raw counts are expected; {_raw_hint(table)}"
        )
        if strict:
            raise ValueError(reason)
        warnings.warn(reason, UserWarning, stacklevel=3)


def _raw_hint(table: AnnData) -> str:
    for layer in ("counts", "raw_counts", "raw"):
        if layer in table.layers:
            return f"put layers[{layer!r}] into X"
    return "put the raw counts into X"


def check_genes(table: AnnData, genes: Sequence[str], name: str = "table") -> list[str]:
    """Return ``genes`` as a list, all of them in the table and none twice.

    Raises
    ------
    TypeError
        If ``genes`` is a single string.
    ValueError
        If ``genes`` is empty or names a gene twice.
    KeyError
        If genes are not in the table.
    """
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} is a string; pass a list such as [{genes!r}]")
    chosen = [str(gene) for gene in genes]
    if not chosen:
        raise ValueError("genes is empty; name at least one gene, or leave it out")
    missing = [gene for gene in chosen if gene not in table.var_names]
    if missing:
        raise KeyError(f"{len(missing)} of {len(chosen)} genes are not in {name!r}: {_some(missing)}")
    repeated = sorted({gene for gene in chosen if chosen.count(gene) > 1}) if len(set(chosen)) < len(chosen) else []
    if repeated:
        raise ValueError(f"genes names some genes more than once: {_some(repeated)}")
    return chosen


def check_open(table: AnnData, name: str) -> None:
    """Refuse a result without counts.

    Raises
    ------
    ValueError
        If ``X`` is None, as in a lazy result that was read from disk.
    """
    if table.X is None:
        raise ValueError(
            f"table {name!r} has no counts in X: a lazy result that was read from disk gets them back with "
            f"sphistex.tl.open_genes(sdata, key={name!r})"
        )


def check_tissue_spots(on_tissue: NDArray[np.bool_]) -> None:
    """Refuse a section with too few spots on tissue to learn from.

    Raises
    ------
    ValueError
        If fewer than 20 spots lie on tissue.
    """
    found = int(np.count_nonzero(on_tissue))
    if found < MIN_TISSUE_SPOTS:
        raise ValueError(
            f"only {found} of {len(on_tissue)} spots lie on tissue, at least {MIN_TISSUE_SPOTS} are needed; "
            "look at the tissue mask, and pass your own with `sphistex.pp.tissue_mask(sdata, mask=...)` if it is wrong"
        )


def _some(names: Any, most: int = 10) -> str:
    shown = ", ".join(repr(str(name)) for name in list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_spot_size(spot_diameter_um: float, spot_pitch_um: float) -> None:
    """Check that spots have a size, a distance, and room beside each other."""
    for name, value in (("spot_diameter_um", spot_diameter_um), ("spot_pitch_um", spot_pitch_um)):
        if not (is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a positive number of microns")
    if spot_diameter_um > spot_pitch_um:
        raise ValueError(
            f"spot_diameter_um={spot_diameter_um:g} is larger than spot_pitch_um={spot_pitch_um:g}: spots would overlap"
        )
