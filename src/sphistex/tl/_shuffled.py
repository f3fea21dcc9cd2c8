"""What a result would be if its image said nothing: the same fit to features that were dealt out anew."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask.array as da
import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from xarray import DataArray

from sphistex._section import Section
from sphistex.nn import FeatureMap, FitParameters
from sphistex.settings import settings
from sphistex.tl._inputs import tissue_of
from sphistex.tl.fit import fit
from sphistex.tl.predict import predict

_CHUNK = 64
# What the result without an image is called.
NULL = "shuffled"


def check_repeatable(
    sdata: SpatialData, made: dict[str, Any], section: Section, table: AnnData, table_key: str
) -> None:
    """Refuse a result that cannot be made again.

    Raises
    ------
    KeyError, ValueError
        If it is of another section's model, has been cut, or its feature map is gone.
    """
    if "unjudged" in made:
        raise ValueError(
            f"table_key={table_key!r} was predicted by the model of another section, which is not fitted again here: "
            "pass null=False"
        )
    if made["features_key"] not in sdata.images:
        raise KeyError(
            f"null=True: the feature map {made['features_key']!r} of result {table_key!r} is not in sdata.images "
            f"({sorted(sdata.images)}): make it again with sphistex.tl.superpixel_features, or pass null=False"
        )
    if table.n_obs != int(tissue_of(sdata, section, str(made["tissue_key"])).sum()):
        raise ValueError(f"table_key={table_key!r} has been cut since it was made: take the whole, or pass null=False")


@contextmanager
def shuffled_result(
    sdata: SpatialData, table: AnnData, made: dict[str, Any], section: Section, seed: int
) -> Iterator[AnnData]:
    """Table of the superpixels of a result, fitted and predicted as that was, with features shuffled among them.

    Spots, parameters and seed are the same, and so are smoothing and interpolation of the spots; only where which
    features lie is left to chance. ``sdata`` is not changed. A lazy table is readable until the block ends.
    """
    features_key, tissue_key = str(made["features_key"]), str(made["tissue_key"])
    mask = tissue_of(sdata, section, tissue_key)
    before = settings.cache_dir
    before.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=before, prefix="shuffled-") as folder, warnings.catch_warnings():
        # of its genes nothing is wanted but how they look
        warnings.simplefilter("ignore", UserWarning)
        draft = SpatialData(
            images={
                section.image_key: sdata.images[section.image_key],
                features_key: _shuffled(sdata.images[features_key], mask, Path(folder), seed),
            },
            labels={tissue_key: sdata.labels[tissue_key]},
            shapes={section.shapes_key: sdata.shapes[section.shapes_key]},
            tables={section.table_key: sdata.tables[section.table_key]},
            attrs=dict(sdata.attrs),
        )
        elements = made["section"] | {"mpp": made["mpp"], "features_key": features_key, "tissue_key": tissue_key}
        settings.cache_dir = Path(folder)  # where a fit of an object in memory leaves its files
        try:
            model = fit(
                draft, genes=list(table.var_names), **elements, seed=int(made["seed"]), **_parameters(made["params"])
            )
            predict(
                draft,
                model,
                **elements,
                conserve_counts=bool(made["conserve_counts"]),
                lazy="latent_key" in made,
                key_added=NULL,
            )
            yield draft.tables[NULL]
        finally:
            settings.cache_dir = before


def _shuffled(features: DataArray, mask: NDArray[np.bool_], folder: Path, seed: int) -> DataArray:
    """The same vectors, each at the place of another superpixel of the tissue; in a file, read as it is needed."""
    read = FeatureMap(features.data, mask)
    places = np.random.default_rng(seed).permutation(np.argwhere(mask))
    shape = (*mask.shape, features.sizes["c"])
    out = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=features.dtype, shape=shape)
    for window in read.blocks():
        row, column = places[read.places(window)].T
        out[row, column] = np.asarray(read.features[(slice(None), *window)])[:, mask[window]].T
    return features.copy(data=da.from_array(out, chunks=(_CHUNK, _CHUNK, shape[2])).transpose(2, 0, 1))


def _parameters(recorded: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a fit from what a table holds of them, where None is left out and lists may be arrays."""
    found = {field.name: recorded.get(field.name) for field in fields(FitParameters)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}
