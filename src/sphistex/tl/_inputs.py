"""A section as the arrays that the model takes: features, bags and spots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from spatialdata import SpatialData

from sphistex._checks import check_tissue_spots
from sphistex._section import Section
from sphistex.nn import FeatureMap, Inputs, Spots
from sphistex.nn.prediction import block_within
from sphistex.settings import settings
from sphistex.tl._feature_store import check_complete


def gather_inputs(
    sdata: SpatialData,
    section: Section,
    genes: Sequence[str],
    *,
    features_key: str,
    tissue_key: str,
    context: tuple[int, ...],
) -> Inputs:
    """Arrays of a section whose feature map and tissue mask exist; spots are those on tissue.

    Raises
    ------
    KeyError
        If there is no feature map or no mask of that name.
    ValueError
        If they are not on the section's grid, or too few spots lie on tissue.
    OSError
        If chunks of the feature map are missing or damaged on disk.
    """
    mask = tissue_of(sdata, section, tissue_key)
    if features_key not in sdata.images:
        raise KeyError(
            f"features_key={features_key!r} is not in sdata.images ({sorted(sdata.images)}): "
            "make it with sphistex.tl.superpixel_features(sdata)."
        )
    features = sdata.images[features_key].data
    if features.shape[1:] != mask.shape:
        raise ValueError(
            f"features_key={features_key!r} has {features.shape[1:]} superpixels, the grid of image "
            f"{section.image_key!r} {mask.shape}: make it again with sphistex.tl.superpixel_features(overwrite=True)."
        )
    check_complete(sdata, features_key)
    bags = section.bags.within(mask)
    kept = spots_on_tissue(section, mask) if section.has_spots else np.zeros(0, dtype=bool)
    counts = section.table[kept, list(genes)].X
    spots = Spots(
        xy_um=section.xy_px[kept] * section.mpp,
        radius_um=section.radius_px[kept] * section.mpp,
        pitch_um=section.pitch_um,
        counts=np.asarray(counts.toarray() if sparse.issparse(counts) else counts, dtype=np.float32),
    )
    return Inputs(FeatureMap(features, mask, context, block=block_within(settings.memory_gb)), bags.take(kept), spots)


def tissue_of(sdata: SpatialData, section: Section, tissue_key: str) -> np.ndarray:
    """The tissue mask (rows, columns) as booleans, checked against the section's grid."""
    if tissue_key not in sdata.labels:
        raise KeyError(
            f"tissue_key={tissue_key!r} is not in sdata.labels ({sorted(sdata.labels)}): "
            "make it with sphistex.pp.tissue_mask(sdata)."
        )
    mask = np.asarray(sdata.labels[tissue_key]) > 0
    if mask.shape != section.grid.shape:
        raise ValueError(
            f"tissue_key={tissue_key!r} has shape {mask.shape}, the grid of image {section.image_key!r} at "
            f"{section.mpp:.4g} µm per pixel {section.grid.shape}: make it again with sphistex.pp.tissue_mask; of a "
            "part that was cut out of a section, work on the whole section, or make mask and result again."
        )
    return mask


def spots_on_tissue(section: Section, mask: np.ndarray) -> np.ndarray:
    """Which spots (n_spots,) have at least half of their area on tissue; refuses a section with too few."""
    whole, inside = (np.asarray(b.weights.sum(1)).ravel() for b in (section.bags, section.bags.within(mask)))
    kept = inside >= 0.5 * np.maximum(whole, 1e-9)
    check_tissue_spots(kept)
    return kept


def encoder_of(sdata: SpatialData, features_key: str) -> dict[str, Any]:
    """How a feature map was made, as far as a model depends on it."""
    made = sdata.attrs.get("sphistex", {}).get(features_key, {})
    names = ("encoder", "revision", "dim", "pitch_um", "halo_px")
    return {name: made[name] for name in names if name in made} | {"dim": int(sdata.images[features_key].sizes["c"])}
