"""Simulated sections: an H&E image, Visium spots, and the truth at 8 µm that real spots never come with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

from sphistex._checks import is_number
from sphistex.bags import Bags
from sphistex.datasets import _cells, _expression, _stain, _tissue
from sphistex.grid import Grid

SPOT_RADIUS_UM = 27.5
SPOT_PITCH_UM = 100.0
# Below this a section has no room for its compartments, nor for a handful of spots.
_SMALLEST_UM = 200.0


def simulate(
    *,
    size_um: float | tuple[float, float] = 2000.0,
    n_genes: int = 200,
    depth: float = 1000.0,
    n_sections: int = 1,
    seed: int = 0,
) -> SpatialData:
    """Simulate tissue sections measured with Visium.

    Each section has a tumour with septa, glands and ducts, fibrous stroma, lymphocyte aggregates, fat and vessels,
    an irregular border and empty slide around it. Nuclei look as their cell type does. A gene's expected counts in a
    superpixel are, up to scale,

        (Σ_t RNA of type t there · profile of the gene in t) · exp(Σ_k loading_k · gradient_k),

    where the gradients are smooth and uncorrelated with the cells, so that the image does not show them. Counts are
    negative binomial. The spots' counts and the truth's counts are *independent* draws from the same rates: a method
    that copies the spots' noise is not rewarded for it, as it is when spots are made by summing the very bins that
    are scored.

    Parameters
    ----------
    size_um
        (height, width) of the image in µm, or one number for a square.
    n_genes
        Number of genes.
    depth
        Mean counts of a spot, summed over the ``n_genes`` genes.
    n_sections
        Number of sections; they share the genes, not the tissue.
    seed
        The same seed gives the same data.

    Returns
    -------
    SpatialData with, for one section, in the coordinate system ``global`` (pixels of the image, 0.5 µm each):

    - images ``image``: uint8, (c, y, x), c = r, g, b;
    - shapes ``spots`` and table ``counts``: Visium spots on tissue, 55 µm disks on a hexagonal lattice of 100 µm;
    - labels ``truth_labels``: one pixel per superpixel of 8 µm, ids from 1 on tissue and 0 elsewhere;
    - table ``truth``, which annotates them: ``X`` sampled counts, ``layers["expected"]`` their expectation,
      ``obsm["rna"]`` the RNA of each cell type, ``obs["compartment"]``.

    ``var`` says of each gene its ``kind`` ("marker", "mixed", "gradient", "broad"), ``cell_type`` and ``dispersion``.
    With several sections the names end in ``_1``, ``_2``, ... and the coordinate systems are ``section_1``, ...

    Raises
    ------
    ValueError
        If an argument is not a positive number, or the section too small to hold tissue.

    Examples
    --------
    >>> sdata = simulate(size_um=300, n_genes=20)
    >>> sdata["image"].shape, sdata["truth_labels"].shape
    ((3, 600, 600), (38, 38))
    """
    height_um, width_um = _size(size_um)
    for name, value, least in (("n_genes", n_genes, 1), ("n_sections", n_sections, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number of at least {least}")
    if not (is_number(depth) and depth > 0):
        raise ValueError(f"depth={depth!r}: give the mean counts of a spot, a positive number")

    shape_px = (round(height_um / _stain.MPP), round(width_um / _stain.MPP))
    genes = _expression.draw_genes(n_genes, np.random.default_rng([seed, 0]))
    generators = [np.random.default_rng([seed, number]) for number in range(1, n_sections + 1)]
    sections = [_grow(shape_px, genes, rng) for rng in generators]
    _scale(sections, genes, depth)
    elements: dict[str, Any] = {}
    for number, (section, rng) in enumerate(zip(sections, generators, strict=True), start=1):
        suffix, system = (f"_{number}", f"section_{number}") if n_sections > 1 else ("", "global")
        elements |= _elements(section, genes, shape_px, suffix, system, rng)
    return SpatialData.init_from_elements(elements)


def _size(size_um: float | tuple[float, float]) -> tuple[float, float]:
    try:
        height, width = (float(side) for side in np.broadcast_to(size_um, 2))
    except (TypeError, ValueError) as error:
        raise ValueError(f"size_um={size_um!r}: give one number or (height, width), in µm") from error
    if not (np.isfinite([height, width]).all() and min(height, width) >= _SMALLEST_UM):
        raise ValueError(f"size_um={size_um!r}: each side must be at least {_SMALLEST_UM:g} µm")
    return height, width


@dataclass
class _Section:
    """A section before it is measured."""

    tissue: _tissue.Tissue
    cells: pd.DataFrame
    grid: Grid
    rna: NDArray[np.float32]  # (n_tissue, n_types)
    compartment: NDArray[np.uint8]  # (rows, columns) of the grid
    rate: NDArray[np.float32]  # (n_tissue, n_genes), expected counts
    bags: Bags
    array_rc: NDArray[np.intp]
    xy_px: NDArray[np.float64]

    @property
    def on_tissue(self) -> NDArray[np.bool_]:
        return self.compartment != _tissue.BACKGROUND

    @property
    def weights(self) -> sparse.csr_matrix:
        """Share of each tissue superpixel in each spot."""
        return self.bags.weights[:, self.on_tissue.ravel()]


def _grow(shape_px: tuple[int, int], genes: _expression.Genes, rng: np.random.Generator) -> _Section:
    """Lay out a section, fill it with cells, and say what they express (up to scale)."""
    grid = Grid.over_image(shape_px, mpp=_stain.MPP)
    block = round(grid.pitch_um / _tissue.PLAN_UM)
    tissue = _tissue.lay_out((grid.shape[0] * block, grid.shape[1] * block), rng)
    cells = _cells.place(tissue, rng)
    compartment = _majority(tissue.compartment, block)
    inside = compartment != _tissue.BACKGROUND
    rna = _cells.rna_by_type(cells, grid.shape, grid.pitch_um)
    fields = _expression.gradients(rna, inside, grid.pitch_um, rng)
    rate = _expression.relative_rates(genes, rna, fields, inside)
    array_rc, xy_px, bags = _spots(shape_px, grid, inside)
    return _Section(tissue, cells, grid, rna[inside.ravel()], compartment, rate, bags, array_rc, xy_px)


def _majority(plan: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    """Most frequent compartment of each superpixel."""
    rows, columns = plan.shape[0] // block, plan.shape[1] // block
    cells = plan.reshape(rows, block, columns, block)
    votes = [(cells == code).sum(axis=(1, 3)) for code in range(len(_tissue.COMPARTMENTS))]
    return np.argmax(votes, axis=0).astype(np.uint8)


def _spots(shape_px: tuple[int, int], grid: Grid, inside: NDArray[np.bool_]) -> tuple[NDArray, NDArray, Bags]:
    """Visium's lattice centred on the image: (row, column), centres in px, and bags of the spots that lie on tissue."""
    size_um = np.array(shape_px) * _stain.MPP
    step_um = np.array([SPOT_PITCH_UM * np.sqrt(3) / 2, SPOT_PITCH_UM / 2])
    n = np.floor((size_um - 2 * SPOT_RADIUS_UM) / step_um).astype(int) + 1
    array_rc = np.argwhere(np.indices(n).sum(axis=0) % 2 == 0)
    corner = (size_um - (n - 1) * step_um) / 2
    xy_px = (corner + array_rc * step_um)[:, ::-1] / _stain.MPP
    bags = Bags.from_disks(grid, xy_px, SPOT_RADIUS_UM / _stain.MPP)
    share = bags.weights @ inside.ravel().astype(float) / np.asarray(bags.weights.sum(axis=1)).ravel()
    kept = share > 0.5
    return array_rc[kept], xy_px[kept], bags.take(kept)


def _scale(sections: list[_Section], genes: _expression.Genes, depth: float) -> None:
    """Bring the rates to the wanted depth and abundances, over all sections together."""
    mean = np.vstack([section.weights @ section.rate for section in sections]).mean(axis=0)
    factor = (genes.abundance * depth / mean).astype(np.float32)
    for section in sections:
        section.rate *= factor


def _elements(
    section: _Section,
    genes: _expression.Genes,
    shape_px: tuple[int, int],
    suffix: str,
    coordinate_system: str,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Picture, spots and truth of one section, under their names."""
    image = _stain.render(section.tissue, section.cells, shape_px, rng)
    ids = np.zeros(section.grid.shape, np.int32)
    ids[section.on_tissue] = np.arange(1, section.on_tissue.sum() + 1)
    spots = gpd.GeoDataFrame(
        {"radius": np.full(len(section.xy_px), SPOT_RADIUS_UM / _stain.MPP)},
        geometry=gpd.points_from_xy(*section.xy_px.T),
    )
    pixels = {coordinate_system: Identity()}
    superpixels = {coordinate_system: Scale([section.grid.pitch_px] * 2, axes=("x", "y"))}
    return {
        f"image{suffix}": Image2DModel.parse(
            image, dims=("c", "y", "x"), c_coords=["r", "g", "b"], chunks=(3, 1024, 1024), transformations=pixels
        ),
        f"truth_labels{suffix}": Labels2DModel.parse(ids, dims=("y", "x"), transformations=superpixels),
        f"spots{suffix}": ShapesModel.parse(spots, transformations=pixels),
        f"counts{suffix}": _spot_table(section, genes, f"spots{suffix}", rng),
        f"truth{suffix}": _truth_table(section, genes, f"truth_labels{suffix}", rng),
    }


def _spot_table(section: _Section, genes: _expression.Genes, region: str, rng: np.random.Generator) -> ad.AnnData:
    """Counts of the spots; the columns of `obs` are those of a Visium table."""
    n = len(section.xy_px)
    obs = pd.DataFrame(
        {
            "in_tissue": np.ones(n, int),
            "array_row": section.array_rc[:, 0],
            "array_col": section.array_rc[:, 1],
            "region": pd.Categorical([region] * n),
            "spot_id": np.arange(n),
        },
        index=[f"spot-{row}x{column}" for row, column in section.array_rc],
    )
    counts = _expression.draw_counts(section.rate, genes.dispersion, rng, section.weights)
    table = ad.AnnData(counts, obs=obs, var=genes.var.copy(), obsm={"spatial": section.xy_px})
    return TableModel.parse(table, region=region, region_key="region", instance_key="spot_id")


def _truth_table(section: _Section, genes: _expression.Genes, region: str, rng: np.random.Generator) -> ad.AnnData:
    """Counts of the tissue's superpixels, their expectation, and what is there."""
    rows, columns = np.nonzero(section.on_tissue)
    names = pd.Categorical.from_codes(section.compartment[rows, columns], categories=list(_tissue.COMPARTMENTS))
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([region] * len(rows)),
            "instance_id": np.arange(1, len(rows) + 1),
            "array_row": rows,
            "array_col": columns,
            "compartment": names.remove_unused_categories(),
        },
        index=[f"truth-{row}x{column}" for row, column in zip(rows, columns, strict=True)],
    )
    counts = _expression.draw_counts(section.rate, genes.dispersion, rng)
    rna = pd.DataFrame(section.rna, index=obs.index, columns=list(_cells.TYPE_NAMES))
    table = ad.AnnData(counts, obs=obs, var=genes.var.copy(), layers={"expected": section.rate})
    table.obsm = {"spatial": section.grid.centres_px(rows, columns), "rna": rna}
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")
