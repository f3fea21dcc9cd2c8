"""Gains and losses along the chromosomes, group by group."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex.pl._canvas import DPI, finish
from sphistex.pl._groups import find_groups, group_colours
from sphistex.pl._sources import find_table

# More rows than this cannot be told apart.
_MOST_ROWS = 2000
_REST = "others"
# Width of a label below the heat map; of two that lie closer, the second is put into the next line.
_LABEL_SHARE = 0.025
_CLOSE = ConstrainedLayoutEngine(wspace=0, w_pad=0.02)


def copy_number(
    sdata: SpatialData,
    *,
    table_key: str,
    groupby: str = "subtype",
    key: str = "cnv",
    vmax: float | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Figure | None:
    """Draw copy-number profiles as a heat map: a row per spot, group by group, and the chromosomes side by side.

    Red is a gain, blue a loss. Spots without a group, such as the reference of :func:`sphistex.tl.tumour_subtypes`, are
    at the bottom. Of many spots, the same share of each group is drawn.

    Parameters
    ----------
    sdata
        SpatialData with the table.
    table_key
        Table with profiles of :func:`sphistex.tl.tumour_subtypes` or of infercnvpy.
    groupby
        Column of ``obs`` with the groups.
    key
        Name of the profiles: ``obsm["X_<key>"]`` and ``uns["<key>"]["chr_pos"]``.
    vmax
        Where colours end on either side; by default at the 99th percentile of the absolute values.
    save
        File to save the figure to; its ending says the format.
    return_fig
        Return the figure instead of showing it.

    Returns
    -------
    The figure if ``return_fig``.

    Raises
    ------
    KeyError
        If there is no such table, column or profile.
    ValueError
        If the column holds numbers, or ``vmax`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> import sphistex as sx
    >>> sdata = sx.datasets.simulate(size_um=700, n_genes=20)
    >>> table = sdata.tables["counts"]
    >>> table.obs["side"] = ["left" if column < 8 else "right" for column in table.obs["array_col"]]
    >>> table.obsm["X_cnv"] = np.random.default_rng(0).normal(size=(table.n_obs, 50))
    >>> table.uns["cnv"] = {"chr_pos": {"chr1": 0, "chr2": 30}}
    >>> figure = sx.pl.copy_number(sdata, table_key="counts", groupby="side", return_fig=True)
    >>> [text.get_text() for text in figure.axes[1].get_xticklabels()]
    ['1', '2']
    """
    table = find_table(sdata, "table_key", table_key)
    groups = find_groups(table, table_key, "groupby", groupby)
    if f"X_{key}" not in table.obsm or "chr_pos" not in table.uns.get(key, {}):
        raise KeyError(
            f"key={key!r}: table {table_key!r} has no copy-number profiles of that name; sphistex.tl.tumour_subtypes "
            f"makes some where it is given gene positions. obsm holds {list(table.obsm)}"
        )
    if vmax is not None and not vmax > 0:
        raise ValueError(f"vmax={vmax!r} must be a positive number")
    colours = group_colours([groups], [(table, groupby)], None)
    codes = np.where(groups.cat.codes < 0, len(groups.cat.categories), groups.cat.codes)
    order = np.argsort(codes, kind="stable")
    order = order[:: -(-len(order) // _MOST_ROWS)]
    profiles = table.obsm[f"X_{key}"][order]
    profiles = np.asarray(profiles.toarray() if sparse.issparse(profiles) else profiles, dtype=np.float32)
    vmax = vmax or float(np.percentile(np.abs(profiles), 99)) or 1.0
    norm = Normalize(-vmax, vmax)

    figure, (side, ax) = plt.subplots(
        1, 2, width_ratios=(1, 40), figsize=(9, 4.5), layout=_CLOSE, dpi=DPI, facecolor="white"
    )
    ax.imshow(profiles, aspect="auto", interpolation="nearest", cmap="RdBu_r", norm=norm)
    _mark_groups(side, ax, codes[order], [*groups.cat.categories, _REST], [*colours.values(), "0.7"])
    _mark_chromosomes(ax, {str(name): int(first) for name, first in table.uns[key]["chr_pos"].items()})
    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=ax, extend="both", shrink=0.6, aspect=25, pad=0.01)
    bar.set_label("log expression above the reference", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return finish(figure, save, return_fig)


def _mark_groups(side: Axes, ax: Axes, codes: NDArray[np.intp], names: list[str], colours: list[str]) -> None:
    """Name the groups at the side of the heat map, and draw lines between them."""
    side.set(xticks=[], ylim=(len(codes) - 0.5, -0.5), xlim=(0, 1))
    side.spines[:].set_visible(False)
    ax.set_yticks([])
    ticks = []
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        side.axhspan(rows[0] - 0.5, rows[-1] + 0.5, color=colours[code], linewidth=0)
        ticks.append((rows.mean(), names[code]))
        if rows[0]:
            ax.axhline(rows[0] - 0.5, color="black", linewidth=0.8)
    side.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=9)
    side.tick_params(length=0)


def _mark_chromosomes(ax: Axes, starts: dict[str, int]) -> None:
    """Name the chromosomes below the heat map, and draw lines between them."""
    ends = [*list(starts.values())[1:], int(ax.get_xlim()[1] + 0.5)]
    for first in list(starts.values())[1:]:
        ax.axvline(first - 0.5, color="black", linewidth=0.5)
    middle = [(first + last - 1) / 2 for first, last in zip(starts.values(), ends, strict=True)]
    names: list[str] = []
    for name, place, before in zip(starts, middle, [-np.inf, *middle], strict=False):
        crowded = place - before < _LABEL_SHARE * ends[-1] and not names[-1].startswith("\n")
        names.append("\n" * crowded + name.removeprefix("chr"))
    ax.set_xticks(middle, names, fontsize=8)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel("chromosome", fontsize=9)
