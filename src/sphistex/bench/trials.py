"""From a section to what methods are given, and what their maps are scored against."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from skimage.morphology import convex_hull_image
from spatialdata import SpatialData

from sphistex._elements import INPUT_RECORD
from sphistex._section import Section, resolve_section
from sphistex.bench.genes import Genes, choose, held
from sphistex.bench.problem import Problem
from sphistex.bench.scores import OFF_SPOT, TISSUE, Area, is_fractional
from sphistex.grid import SUPERPIXEL_UM
from sphistex.metrics import coarsen, thin_counts
from sphistex.metrics.lattice import check_fine, superpixels_of
from sphistex.nn import FeatureMap, Spots
from sphistex.pp.pseudo_spots import disk_members
from sphistex.tl._inputs import spots_on_tissue, tissue_of
from sphistex.tl.features import superpixel_features

logger = logging.getLogger("sphistex")

HELD_OUT = "held-out"
_CONTEXT = (0, 1, 5)
# A feature map of no more bytes is held in memory.
_SMALL = 1_000_000_000
_FACTORS = (1, 2, 4, 8)
# Between spots there is hardly room for wider blocks.
_OFF_SPOT_FACTORS = (1, 2)
# Of spots without a finer truth, one in so many is held out; in blocks, squares of so many array positions a side.
_ONE_IN, _BLOCK = 4, 3


@dataclass(frozen=True)
class Trial:
    """What every method is fitted to once, and the areas in which its map is scored."""

    problem: Problem
    areas: list[Area]

    @property
    def name(self) -> str:
        """The protocols that share the fit, or how spots are held out."""
        if self.areas[0].protocol == HELD_OUT:
            return self.areas[0].name
        return "+".join(dict.fromkeys(area.protocol for area in self.areas))


def make_trials(
    sdata: SpatialData, *, protocols: str, genes: Genes, encoder: Any, seed: int, device: str
) -> list[Trial]:
    """Describe the section's image once, choose the genes, and make the spots of every protocol.

    Parameters
    ----------
    sdata
        Spots, and where there is one their table ``"truth"``. Without it spots are held out. It is not changed.
    protocols
        Of ``"a"``, ``"b"`` and ``"c"``, those wanted of a section with a truth.
    genes
        Which genes, see :func:`sphistex.bench.genes.choose`.
    encoder
        A loaded encoder, or what :func:`sphistex.tl.superpixel_features` takes.
    seed, device
        Of what is random, and where to compute.

    Raises
    ------
    KeyError, ValueError
        If the section or its truth cannot be used.
    """
    section = resolve_section(sdata)
    if section.outlines_px is not None:
        raise ValueError(f"shapes {section.shapes_key!r} are no disks: a benchmark needs spots, not bins or cells")
    truth = sdata.tables["truth"] if "truth" in sdata.tables else None
    if truth is not None:
        check_fine(truth.obsm["spatial"], section.grid.pitch_px)
    shared = {"genes": held(section.table if truth is None else truth, genes), "seed": seed, "device": device}
    features = _describe(sdata, section, encoder, device)
    if truth is None:
        return _held_out(section, features, **shared)
    return _against_truth(section, features, truth, protocols, **shared)


def _describe(sdata: SpatialData, section: Section, encoder: Any, device: str) -> FeatureMap:
    """Features of the superpixels; made beside the section, which may be a store that is not ours to change."""
    draft = SpatialData(
        images={section.image_key: sdata.images[section.image_key]},
        shapes={section.shapes_key: sdata.shapes[section.shapes_key]},
    )
    recorded = sdata.attrs.get("sphistex", {}).get(INPUT_RECORD, {})
    draft.attrs = {"sphistex": {INPUT_RECORD: recorded}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*too coarse")  # was said when the section was resolved
        superpixel_features(draft, encoder=encoder, device=device)
    features = draft.images["superpixel_features"].data
    held = np.asarray(features) if features.nbytes < _SMALL else features
    return FeatureMap(held, tissue_of(draft, section, "tissue"), _CONTEXT)


def _problem(
    section: Section,
    features: FeatureMap,
    used: NDArray[np.bool_] | NDArray[np.intp],
    counts: NDArray,
    genes: list[str],
    **how: Any,
) -> Problem:
    """The spots ``used`` of a section, whose ``counts`` these are."""
    spots = Spots(
        xy_um=section.xy_px[used] * section.mpp,
        radius_um=section.radius_px[used] * section.mpp,
        pitch_um=section.pitch_um,
        counts=np.asarray(counts, dtype=np.float32),
    )
    return Problem(features, section.bags.within(features.mask).take(used), spots, genes, **how)


def _with_counts(genes: list[str], *spots: sparse.spmatrix) -> NDArray[np.intp]:
    """Which of the genes have counts in all of these spots."""
    seen = np.all([np.asarray(counts.sum(0)).ravel() > 0 for counts in spots], axis=0)
    if not seen.all():
        lost = [gene for gene, held in zip(genes, seen, strict=True) if not held]
        warnings.warn(f"genes without counts in the spots are left out: {', '.join(lost)}", UserWarning, stacklevel=2)
    if not seen.any():
        raise ValueError(f"genes: none of {', '.join(genes[:10])} has counts in the spots")
    return np.flatnonzero(seen)


# ------------------------------------------------------------------------------------------ against a truth


def _against_truth(
    section: Section, features: FeatureMap, table: AnnData, protocols: str, *, genes: Genes, **how: Any
) -> list[Trial]:
    grid = section.grid
    whole = sparse.csr_matrix(
        superpixels_of(table.obsm["spatial"], grid.pitch_px, grid.shape) @ sparse.csr_matrix(table.X)
    )
    # tissue that lies beside all that was measured has no truth
    measured = convex_hull_image((np.diff(whole.indptr) > 0).reshape(grid.shape))
    features = dataclasses.replace(features, mask=features.mask & measured)
    mask = features.mask
    used = spots_on_tissue(section, mask)
    centres_um, radius_um = section.xy_px[used] * section.mpp, float(np.median(section.radius_px)) * section.mpp
    members = disk_members(grid, centres_um, radius_um)
    spots = AnnData(sparse.csr_matrix(members @ whole), var=pd.DataFrame(index=table.var_names))
    names = choose(spots, whole[mask.ravel()], genes)
    whole = sparse.csr_matrix(whole[:, table.var_names.get_indexer(names)])
    splits = _splits(whole, protocols, how["seed"])
    sums = {protocol: members @ seen for protocol, (seen, _) in splits.items()}
    kept = _with_counts(names, *sums.values()) if sums else np.arange(0)
    off_spot = mask & (np.asarray(section.bags.weights.sum(0)).reshape(mask.shape) == 0)
    trials = []
    for shared, (_, scored) in splits.items():
        named = [(p, area) for p in shared for area in (TISSUE, OFF_SPOT) if (p, area) in _SCORED]
        truths = scored[:, kept], whole[:, kept]
        areas = [_area(p, area, mask, off_spot if area == OFF_SPOT else mask, *truths) for p, area in named]
        counts = sums[shared][:, kept].toarray()
        problem = _problem(section, features, used, counts, [names[i] for i in kept], **how)
        trials.append(Trial(problem, [area for area in areas if area.factors]))
        for area in areas:
            if not area.factors:
                message = f"protocol {area.protocol}, {area.name}: left out, as there are fewer than two superpixels"
                warnings.warn(message, UserWarning, stacklevel=2)
    return [trial for trial in trials if trial.areas]


_SCORED = {("a", TISSUE), ("b", OFF_SPOT), ("c", TISSUE), ("c", OFF_SPOT)}


def _splits(
    whole: sparse.csr_matrix, protocols: str, seed: int
) -> dict[str, tuple[sparse.csr_matrix, sparse.csr_matrix]]:
    """What the spots are made from and what is scored against, by the protocols that share them."""
    splits = {}
    if shared := "".join(protocol for protocol in "ab" if protocol in protocols):
        splits[shared] = whole, whole
    if "c" in protocols and is_fractional(whole):
        logger.warning(
            "Protocol c is skipped: the truth holds fractions of counts (of cells or turned bins that lie across "
            "superpixels), which cannot be drawn into two independent halves. Transcripts or bins on the grid can."
        )
    elif "c" in protocols:
        first, second = thin_counts(whole, seed=seed)
        splits["c"] = sparse.csr_matrix(first), sparse.csr_matrix(second)
    return splits


def _area(
    protocol: str,
    name: str,
    mask: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    truth: sparse.csr_matrix,
    whole: sparse.csr_matrix,
) -> Area:
    """The superpixels ``scored`` of the tissue, at the scales of which there are blocks."""
    factors, min_share = (_FACTORS, 0.5) if name == TISSUE else (_OFF_SPOT_FACTORS, 1.0)
    places = np.zeros(mask.shape)
    there = [f for f in factors if coarsen(places, scored, f, min_share=min_share)[1].sum() > 1]
    return Area(
        protocol,
        name,
        reading=sparse.identity(int(mask.sum()), np.float32, "csr")[scored[mask]],
        truth=sparse.csc_matrix(truth[scored.ravel()]),
        mask=scored,
        factors=tuple(there),
        pitch_um=SUPERPIXEL_UM,
        min_share=min_share,
        independent_half=protocol == "c",
        whole=sparse.csc_matrix(whole[scored.ravel()]),
    )


# ---------------------------------------------------------------------------------------- held-out spots


def _held_out(section: Section, features: FeatureMap, *, genes: Genes, **how: Any) -> list[Trial]:
    """Spots that no method sees are what maps are summed over and scored against."""
    used = np.flatnonzero(spots_on_tissue(section, features.mask))
    table = section.table[used]
    counts = sparse.csr_matrix(table.X)
    names = choose(AnnData(counts, var=pd.DataFrame(index=table.var_names)), counts, genes)
    counts = counts[:, table.var_names.get_indexer(names)]
    tests = {name: pick(table) for name, pick in _PICKS.items()}
    kept = _with_counts(names, *(counts[~test] for test in tests.values()))
    counts, names = counts[:, kept], [names[i] for i in kept]
    bags = section.bags.within(features.mask)
    trials = []
    for name, test in tests.items():
        weights = bags.take(used[test]).weights[:, features.mask.ravel()]
        truth = sparse.csc_matrix(counts[test])
        area = Area(
            HELD_OUT,
            f"{HELD_OUT} {name}",
            reading=sparse.csr_matrix(weights.astype(np.float32)),
            truth=truth,
            mask=np.ones((int(test.sum()), 1), bool),
            factors=(1,),
            pitch_um=2 * float(np.median(section.radius_px)) * section.mpp,
            min_share=1.0,
            independent_half=False,
            whole=truth,
        )
        seen = counts[~test].toarray()
        trials.append(Trial(_problem(section, features, used[~test], seen, names, **how), [area]))
    return trials


def _scattered(table: AnnData) -> NDArray[np.bool_]:
    return np.arange(table.n_obs) % _ONE_IN == 0


def _blocks(table: AnnData) -> NDArray[np.bool_]:
    """Squares of the array, every other one along rows and columns; no neighbour of their middle is seen."""
    place = table.obs[["array_row", "array_col"]].to_numpy(float)
    block = np.floor((place - place.min(0)) / _BLOCK).astype(int)
    return (block % 2 == 1).all(1)


_PICKS: dict[str, Callable[[AnnData], NDArray[np.bool_]]] = {"scattered": _scattered, "blocks": _blocks}
