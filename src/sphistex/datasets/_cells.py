"""Cells of a simulated section: what each type looks like, where it lives, and where each one lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sphistex.datasets import _tissue as ts
from sphistex.datasets._tissue import PLAN_UM, Mask, Tissue


@dataclass(frozen=True)
class CellType:
    """How a type of cell looks under haematoxylin, and how much RNA it holds.

    Parameters
    ----------
    long_um, short_um
        Half axes of the nucleus.
    variation
        Relative spread of the nucleus' size (pleomorphism).
    darkness
        Optical density of its chromatin.
    vesicular
        0: chromatin spread evenly; 1: all at the rim, with a nucleolus.
    body_um
        Radius of the cytoplasm; 0 where none is seen.
    rna
        RNA of one cell, relative.
    """

    name: str
    long_um: float
    short_um: float
    variation: float
    darkness: float
    vesicular: float
    body_um: float
    rna: float


CELL_TYPES = (
    CellType("tumour", 5.4, 4.1, 0.17, 1.05, 0.7, 8.0, 2.4),
    CellType("epithelium", 4.6, 2.9, 0.09, 1.05, 0.35, 0.0, 1.5),
    CellType("myoepithelium", 4.2, 1.3, 0.15, 1.25, 0.0, 0.0, 0.7),
    CellType("fibroblast", 7.0, 1.5, 0.25, 1.15, 0.1, 0.0, 0.9),
    CellType("lymphocyte", 2.9, 2.7, 0.08, 1.6, 0.0, 0.0, 0.6),
    CellType("macrophage", 4.4, 3.2, 0.15, 0.85, 0.5, 8.5, 1.5),
    CellType("endothelium", 5.5, 1.2, 0.15, 1.3, 0.0, 0.0, 0.9),
    CellType("adipocyte", 4.5, 1.1, 0.15, 1.3, 0.0, 0.0, 0.6),
)
TYPE_NAMES = tuple(kind.name for kind in CELL_TYPES)


def place(tissue: Tissue, rng: np.random.Generator) -> pd.DataFrame:
    """Fill the compartments with cells that do not overlap.

    Returns
    -------
    One row per cell: ``type`` (index into `CELL_TYPES`), ``x_um``, ``y_um``, ``angle`` of the long axis in radians,
    ``long_um``, ``short_um``.
    """
    candidates = [
        (np.full(len(xy), TYPE_NAMES.index(name)), xy, np.full(len(xy), spacing_um / 2))
        for name, mask, per_mm2, spacing_um in _habitats(tissue)
        for xy in [ts.scatter(mask, rng.poisson(mask.sum() * PLAN_UM**2 * per_mm2 / 1e6), rng)]
    ]
    types, xy, radii = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
    kept = ts.spread(xy, radii, rng)
    types, xy = types[kept], xy[kept]
    axes = np.array([(kind.long_um, kind.short_um) for kind in CELL_TYPES])[types]
    variation = np.array([kind.variation for kind in CELL_TYPES])[types]
    axes = axes * np.exp(rng.normal(0, variation)[:, None] + rng.normal(0, 0.08, axes.shape))
    return pd.DataFrame(
        {
            "type": types,
            "x_um": xy[:, 0],
            "y_um": xy[:, 1],
            "angle": _angles(tissue, types, xy, rng),
            "long_um": axes[:, 0],
            "short_um": axes[:, 1],
        }
    )


def _habitats(tissue: Tissue) -> list[tuple[str, Mask, float, float]]:
    """Where each type may lie: (type, mask, candidates per mm², spacing in µm)."""
    where = {name: tissue.compartment == code for code, name in enumerate(ts.COMPARTMENTS)}
    depth, stroma = tissue.inward_um, where["stroma"] & (tissue.solid_um > 3)
    membranes = where["adipose"] & (tissue.solid_um > 0)
    return [
        ("tumour", where["tumour"] & (tissue.solid_um > 4), 40_000, 10.2),
        ("lymphocyte", where["tumour"], 350, 7.0),
        ("macrophage", where["tumour"], 120, 10.0),
        ("epithelium", where["gland"] & (depth > 3.5) & (tissue.solid_um > 4.5), 90_000, 6.2),
        ("myoepithelium", where["gland"] & (depth < 2.0), 12_000, 7.0),
        ("fibroblast", stroma, 1_800, 9.0),
        ("lymphocyte", stroma, 250, 7.0),
        ("macrophage", stroma, 110, 10.0),
        ("lymphocyte", where["immune"], 70_000, 6.1),
        ("macrophage", where["immune"], 900, 10.0),
        ("fibroblast", where["immune"], 700, 8.0),
        ("endothelium", where["vessel"] & (tissue.solid_um < 3.5), 16_000, 11.0),
        ("endothelium", stroma, 150, 9.0),
        ("adipocyte", membranes, 3_000, 16.0),
    ]


def _angles(tissue: Tissue, types: NDArray, xy: NDArray, rng: np.random.Generator) -> NDArray:
    """Long axes: spindle cells lie along fibres and walls, gland cells point at the lumen, round cells anywhere."""
    rows, columns = (xy[:, ::-1] / PLAN_UM).astype(int).T
    names = np.array(TYPE_NAMES)[types]
    angle = rng.uniform(0, np.pi, len(types))
    for field, along, members in (
        (tissue.fibre_um, True, ("fibroblast",)),
        (tissue.inward_um, False, ("epithelium",)),
        (tissue.inward_um, True, ("myoepithelium",)),
        (tissue.solid_um, True, ("endothelium", "adipocyte")),
    ):
        down, right = np.gradient(gaussian_filter(field, 1.0))
        chosen = np.isin(names, members)
        slope = np.arctan2(down[rows[chosen], columns[chosen]], right[rows[chosen], columns[chosen]])
        angle[chosen] = slope + (np.pi / 2 if along else 0.0) + rng.normal(0, 0.15, chosen.sum())
    return angle


def rna_by_type(cells: pd.DataFrame, shape: tuple[int, int], pitch_um: float, spread_um: float = 4.0) -> NDArray:
    """RNA of each cell type in each superpixel: (n_superpixels, n_types), relative units.

    A cell's RNA lies around its nucleus with standard deviation ``spread_um``, and grows with the nucleus' area.
    """
    block = round(pitch_um / PLAN_UM)
    rows, columns = (np.floor(cells[axis].to_numpy() / PLAN_UM).astype(int) for axis in ("y_um", "x_um"))
    rna = np.zeros((shape[0] * shape[1], len(CELL_TYPES)), np.float32)
    for code, kind in enumerate(CELL_TYPES):
        chosen = (cells["type"] == code).to_numpy()
        area = (cells["long_um"] * cells["short_um"]).to_numpy()[chosen] / (kind.long_um * kind.short_um)
        plan = np.zeros((shape[0] * block, shape[1] * block), np.float32)
        np.add.at(plan, (rows[chosen], columns[chosen]), kind.rna * area)
        plan = gaussian_filter(plan, spread_um / PLAN_UM)
        rna[:, code] = plan.reshape(shape[0], block, shape[1], block).sum(axis=(1, 3)).ravel()
    return rna
