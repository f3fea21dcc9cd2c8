"""A section as one small picture: what an encoder sees at and around every position of a spot lattice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, TableModel
from xarray import DataArray

from sphistex import encoders
from sphistex._store import add_element, check_apart, check_free, record
from sphistex.bags import Bags
from sphistex.encoders.stain import Restained
from sphistex.grid import Grid
from sphistex.tl._chunks import CHUNK
from sphistex.tl._positions import Positions, find_positions, region_of
from sphistex.tl.features import make_features

SCALES = (1, 2, 4)
# Layers with features of the same tissue otherwise stained.
VERSION = "stain_"


def lattice_features(
    sdata: SpatialData,
    *,
    encoder: Any = "auto",
    weights: str | Path | None = None,
    image_key: str | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    mpp: float | None = None,
    spot_pitch_um: float | None = None,
    tissue_key: str = "tissue",
    lattice: Literal["hexagonal", "square"] | None = None,
    pitch_um: float = 100.0,
    diameter_um: float = 55.0,
    scales: Sequence[int] = SCALES,
    stain_versions: int = 0,
    key_added: str = "lattice_features",
    overwrite: bool = False,
    device: str | None = None,
) -> None:
    """Describe the tissue at every position of a spot lattice, and its surroundings, by an image encoder.

    The positions are the measured spots, or a lattice laid over the tissue of an image without any. At scale 1 the
    encoder's tokens inside the spot are averaged; at scale s the image is first shrunk s times, and the tokens are
    those inside a disk that is s times as wide. Encoders with a class token, such as UNI, give that of their tiles as
    well. Tokens are made as by :func:`superpixel_features`: in bounded memory, on all GPUs or on a cluster, and after
    an interruption the same call goes on.

    Parameters
    ----------
    sdata
        SpatialData with an H&E image, and spots with counts if there are any.
    encoder, weights, device
        See :func:`superpixel_features`.
    image_key, shapes_key, table_key, spot_pitch_um
        As in :func:`super_resolve`; needed only where there are several candidates.
    mpp
        Microns per image pixel; by default from the spots or, without any, as :func:`sphistex.io.read_image` noted
        them.
    tissue_key
        Tissue mask; it is made if it does not exist.
    lattice
        Lay a ``"hexagonal"`` or ``"square"`` lattice over the tissue, whether there are spots or not. By default the
        spots, or, without any, a hexagonal one.
    pitch_um, diameter_um
        Distance and diameter in µm of the positions of that lattice: those of the sections that a model was, or will
        be, trained on.
    scales
        How many times the spot's diameter is looked at.
    stain_versions
        How many further versions to make, each of the image with its haematoxylin and its eosin made up to 20 % weaker
        or stronger: :func:`fit_histology` shows them to its networks in turn. Each takes as long as the features.
    key_added
        Name of the new table.
    overwrite
        Replace a table of that name.

    Returns
    -------
    Adds ``sdata.tables[key_added]``: ``X`` features (n_positions, n_scales * dim), float32, of the positions on
    tissue; ``var["scale"]``; ``obs["array_row"]`` and ``obs["array_col"]`` as on Visium arrays; ``obsm["spatial"]``
    centres in pixels of the full-resolution image; the further versions in
    ``layers["stain_1"]`` and so on. It annotates the spots, or ``sdata.shapes[key_added + "_spots"]``.

    Raises
    ------
    KeyError, ValueError
        If elements cannot be used, spots lie on no lattice, there is no tissue, or an argument makes no sense.

    References
    ----------
    HiST (Advanced Science 2026): a slide as a small picture with encoder features as channels.

    Examples
    --------
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> sx.tl.lattice_features(sdata, encoder="efficientnet_lite0")
    >>> sdata.tables["lattice_features"].n_obs <= sdata.tables["counts"].n_obs
    True
    """
    check_free(sdata, "tables", key_added, overwrite=overwrite)
    check_apart(key_added, [tissue_key])
    scales = check_scales(scales)
    check_versions(stain_versions)
    positions = find_positions(
        sdata,
        image_key=image_key,
        shapes_key=shapes_key,
        table_key=table_key,
        mpp=mpp,
        spot_pitch_um=spot_pitch_um,
        tissue_key=tissue_key,
        lattice=lattice,
        pitch_um=pitch_um,
        diameter_um=diameter_um,
    )
    if positions.shapes is not None:
        check_free(sdata, "shapes", region_of(key_added), overwrite=overwrite)
    found = encoder_of_lattice(encoder, weights, device)
    table = _table(positions, _at_scales(sdata, positions, found, scales, device), scales, key_added)
    for version in range(1, stain_versions + 1):
        changed = _at_scales(sdata, positions, Restained(found, version), scales, device)
        table.layers[f"{VERSION}{version}"] = changed
    table.uns[key_added] = {
        "encoder": found.name,
        "revision": found.revision,
        "dim": found.dim,
        "scales": list(scales),
        "stain_versions": int(stain_versions),
        "image_key": positions.image_key,
        "mpp": positions.mpp,
        "lattice": {
            "kind": positions.kind,
            "pitch_um": positions.pitch_um,
            "diameter_um": float(2 * np.median(positions.radius_px) * positions.mpp),
        },
    }
    made_from = {"table_key": positions.table_key} if positions.table_key else {}
    record(sdata, key_added, table.uns[key_added] | made_from)
    if positions.shapes is not None:
        record(sdata, region_of(key_added), {"table_key": key_added})
        add_element(sdata, "shapes", region_of(key_added), positions.shapes, overwrite=overwrite)
    add_element(sdata, "tables", key_added, table, overwrite=overwrite)


def encoder_of_lattice(encoder: Any, weights: str | Path | None, device: str | None) -> encoders.Encoder:
    """The encoder, with its class token if it has one."""
    found = encoders.get(encoder, weights=weights, device=device)
    return found.with_class_token() if hasattr(found, "with_class_token") else found


def check_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """The scales as whole numbers, each once."""
    chosen = tuple(int(scale) for scale in scales)
    if not chosen or min(chosen) < 1 or len(set(chosen)) < len(chosen) or list(chosen) != list(scales):
        raise ValueError(f"scales={scales!r} must be different whole numbers of at least 1, such as {SCALES}")
    return chosen


def check_versions(stain_versions: int) -> None:
    """Raise a ValueError for what is no number of versions."""
    if isinstance(stain_versions, bool) or not isinstance(stain_versions, int | np.integer) or stain_versions < 0:
        raise ValueError(f"stain_versions={stain_versions!r} must be a whole number of at least 0")


def _at_scales(
    sdata: SpatialData,
    positions: Positions,
    encoder: encoders.Encoder,
    scales: Sequence[int],
    device: str | None,
) -> NDArray[np.float32]:
    """Features of all scales side by side, (n_positions, n_scales * dim)."""
    return np.concatenate([_at_scale(sdata, positions, encoder, scale, device) for scale in scales], axis=1)


def _at_scale(
    sdata: SpatialData, positions: Positions, encoder: encoders.Encoder, scale: int, device: str | None
) -> NDArray[np.float32]:
    """Mean tokens (n_positions, dim) of the image shrunk ``scale`` times, in disks as many times as wide.

    To the encoder, and to the map that is made for it, a shrunk image is one with fewer microns to the pixel.
    """
    image = sdata.images[positions.image_key]
    grid = Grid.over_image(positions.image_shape, positions.mpp / scale)
    tissue = _shrunk(positions.tissue, grid.shape, scale)
    draft = SpatialData(
        images={positions.image_key: image},
        labels={"tissue": Labels2DModel.parse(DataArray(tissue.astype(np.uint8), dims=("y", "x")))},
    )
    key = f"lattice-{scale}"
    work = make_features(
        draft,
        encoder=encoder,
        image_key=positions.image_key,
        labels_key="tissue",
        mpp=grid.mpp,
        key_added=key,
        device=device,
        warn_if_coarse=scale == 1,
    )
    bags = Bags.from_disks(grid, positions.xy_px, positions.radius_px * scale).within(tissue)
    pooled = _pooled(draft.images[key].data, bags.weights)
    shutil.rmtree(work, ignore_errors=True)  # large, and of no use to anything else
    return pooled


def _shrunk(tissue: NDArray[np.bool_], shape: tuple[int, int], scale: int) -> NDArray[np.bool_]:
    """The mask on a coarser grid: tissue where any of it is."""
    coarse = np.zeros(shape, dtype=bool)
    row, column = (np.minimum(index // scale, size - 1) for index, size in zip(np.nonzero(tissue), shape, strict=True))
    coarse[row, column] = True
    return coarse


def _pooled(features: Any, weights: sparse.csr_matrix) -> NDArray[np.float32]:
    """Weighted mean over each bag (n_bags, n_superpixels) of a lazy map (dim, rows, columns), chunk by chunk."""
    dim, _, width = features.shape
    entries = weights.tocoo()
    share = entries.data / np.asarray(weights.sum(1)).ravel()[entries.row]
    row, column = np.divmod(entries.col, width)
    chunks, chunk_of, counts = np.unique(
        np.stack([row, column], axis=1) // CHUNK, axis=0, return_inverse=True, return_counts=True
    )
    of_chunks = np.split(np.argsort(chunk_of.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    out = np.zeros((weights.shape[0], dim), dtype=np.float32)
    for (top, left), here in zip(chunks * CHUNK, of_chunks, strict=True):
        tokens = np.asarray(features[:, top : top + CHUNK, left : left + CHUNK])
        tokens = tokens[:, row[here] - top, column[here] - left].T.astype(np.float32)
        bags, place = np.unique(entries.row[here], return_inverse=True)
        out[bags] += sparse.csr_matrix((share[here], (place, np.arange(len(here)))), dtype=np.float32) @ tokens
    return out


def _table(positions: Positions, values: NDArray[np.float32], scales: Sequence[int], key_added: str) -> ad.AnnData:
    dim = values.shape[1] // len(scales)
    var = pd.DataFrame(
        {"scale": np.repeat(list(scales), dim)}, index=[f"scale{scale}_{i}" for scale in scales for i in range(dim)]
    )
    region = positions.shapes_key or region_of(key_added)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([region] * len(values)),
            "instance_id": positions.instances,
            "array_row": positions.array[:, 0],
            "array_col": positions.array[:, 1],
        },
        index=pd.Index(positions.names),
    )
    table = ad.AnnData(values, obs=obs, var=var, obsm={"spatial": positions.xy_px})
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
