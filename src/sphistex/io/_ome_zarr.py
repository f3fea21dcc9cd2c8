"""OME-Zarr images as lazy arrays, level by level of their pyramid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da

# Microns in the units of NGFF.
_UM = {"nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def open_ome_zarr(path: Path) -> tuple[list[da.Array], str, float | None]:
    """Levels of an image from fine to coarse, their axes such as ``"cyx"``, and microns per pixel, if it says so.

    Raises
    ------
    ValueError
        If the folder is no OME-Zarr image, or one with several time points or planes.
    """
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    location = parse_url(path)
    nodes = [] if location is None else [node for node in Reader(location)() if "axes" in node.metadata]
    if not nodes:
        raise ValueError(
            f"{str(path)!r} is a folder, but no OME-Zarr image; of several images in one folder name one, such as "
            f"{str(path / '0')!r}"
        )
    levels, axes = nodes[0].data, nodes[0].metadata["axes"]
    names = [axis if isinstance(axis, str) else axis["name"] for axis in axes]
    single = [place for place, name in enumerate(names) if name not in "cyx"]
    if any(levels[0].shape[place] > 1 for place in single):
        sizes = dict(zip(names, levels[0].shape, strict=True))
        raise ValueError(f"{str(path)!r} has the axes {sizes}: a single plane at a single time is needed")
    levels = [level.squeeze(tuple(single)) for level in levels]
    return levels, "".join(name for name in names if name in "cyx"), _mpp(nodes[0].metadata, names)


def _mpp(metadata: dict[str, Any], names: list[str]) -> float | None:
    place = names.index("x")
    axis = metadata["axes"][place]
    unit = None if isinstance(axis, str) else axis.get("unit")
    scales = [step["scale"] for step in metadata.get("coordinateTransformations", [[]])[0] if step["type"] == "scale"]
    return float(scales[0][place]) * _UM[unit] if scales and unit in _UM else None
