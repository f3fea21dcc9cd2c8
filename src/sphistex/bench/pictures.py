"""What a benchmark found, as pictures: bars of all methods, and maps beside the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from sphistex.bench.problem import Problem
from sphistex.bench.report import MAIN_UM, by_gene, interval, main_scale, panels
from sphistex.bench.scores import CEILING, Area
from sphistex.metrics import coarsen
from sphistex.metrics.lattice import Values, maps
from sphistex.pl._canvas import DPI, Window, add_scale_bar, draw_raster, finish
from sphistex.pl._canvas import panels as empty_panels

_MOST_GENES = 5
_FACTOR = 2
_CMAP = "viridis"
_BAR_INCHES, _PANEL_INCHES = 0.3, 4.6
_COLOUR, _CEILING_COLOUR = "#4878a8", "#c0392b"


@dataclass
class Gallery:
    """Maps of a few genes of one section, summed over 16 µm: what is kept of each method for the picture.

    Parameters
    ----------
    genes
        Which genes.
    columns
        Where they are among those that methods predict.
    sums
        (n_genes, rows, columns) of the truth and of each method, NaN outside the tissue.
    """

    genes: list[str]
    columns: list[int]
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(cls, area: Area, problem: Problem, ceiling: pd.DataFrame) -> Gallery:
        """The genes that have the largest noise ceiling at 16 µm, or where it is unknown the most counts."""
        counts = pd.Series(np.asarray(area.truth.sum(0)).ravel(), index=problem.genes)
        known = ceiling[ceiling.scale_um == MAIN_UM].set_index("gene").value.astype(float)
        genes = list((known if len(known) else counts).nlargest(_MOST_GENES).index)
        columns = [problem.genes.index(gene) for gene in genes]
        return cls(genes, columns, {"truth": _blocks(area.truth[:, columns], problem)})

    def add(self, method: str, values: NDArray[np.float32], problem: Problem) -> None:
        """Keep the maps of a method, unless they are there."""
        if method not in self.sums:
            self.sums[method] = _blocks(values[:, self.columns], problem)

    def draw(self, path: Path) -> None:
        """A row for each gene, a column for the truth and for each method, on one colour scale per gene."""
        shown = ~np.isnan(self.sums["truth"][0])
        rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
        crop = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        height, width = (float(part.stop - part.start) * MAIN_UM for part in crop)
        window = Window(0.0, 0.0, width, height)
        figure, axes = empty_panels(len(self.genes), len(self.sums), window)
        for row, gene, number in zip(axes, self.genes, range(len(self.genes)), strict=True):
            high = max(np.nanpercentile(values[number], 99.5) for values in self.sums.values())
            norm = Normalize(0, max(high, 1e-3))
            for ax, values in zip(row, self.sums.values(), strict=True):
                draw_raster(ax, values[number][crop], window, cmap=_CMAP, norm=norm)
            row[0].set_ylabel(gene, fontsize=15, fontstyle="italic")
            bar = figure.colorbar(ScalarMappable(norm, _CMAP), ax=row.tolist(), extend="max", shrink=0.8, pad=0.01)
            bar.set_label(f"counts per {MAIN_UM:g} × {MAIN_UM:g} µm", fontsize=11)
            bar.ax.tick_params(labelsize=11)
            bar.outline.set_visible(False)
        add_scale_bar(axes[0, 0])
        for ax, name in zip(axes[0], self.sums, strict=True):
            ax.set_title(name, fontsize=15)
        finish(figure, path, return_fig=False)


def _blocks(values: Values, problem: Problem) -> NDArray[np.float64]:
    """Sums over 16 µm of some genes (n_superpixels, n_genes), as (n_genes, rows, columns)."""
    raster = maps(values, problem.mask, slice(None))
    sums, kept = coarsen(raster, problem.mask, _FACTOR)
    out = np.full((values.shape[1], *kept.shape), np.nan)
    out[:, kept] = sums.T
    return out


def bars(scores: pd.DataFrame, path: Path, *, seed: int) -> None:
    """Draw the mean r of every method with its interval over genes: a row for each section, a panel for each area."""
    rows: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for (dataset, protocol, area), table in panels(scores):
        title = f"{dataset}: {area}" if area.startswith(protocol) else f"{dataset}: ({protocol}), {area}"
        rows.setdefault(dataset, []).append((title, table))
    n_columns = max(len(row) for row in rows.values())
    size = (_PANEL_INCHES * n_columns, (_BAR_INCHES * scores.method.nunique() + 0.9) * len(rows))
    figure, axes = plt.subplots(len(rows), n_columns, squeeze=False, figsize=size, dpi=DPI)
    figure.set_layout_engine("constrained", h_pad=0.12)
    for line, row in zip(axes, rows.values(), strict=True):
        for ax in line[len(row) :]:
            ax.set_axis_off()
        for ax, (title, table) in zip(line, row, strict=False):
            _bars(ax, table, seed)
            ax.set_title(title, fontsize=12)
    handles, names = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower right", frameon=False, fontsize=11)
    finish(figure, path, return_fig=False)


def _bars(ax: Axes, table: pd.DataFrame, seed: int) -> None:
    scale = main_scale(table)
    r = by_gene(table, "pearson", scale)
    ceiling = r.pop(CEILING).mean() if CEILING in r else None
    mean = r.mean()
    limits = np.array([interval(r[method], seed=seed) for method in r])
    errors = np.abs(limits.T - mean.to_numpy())
    ax.barh(list(r.columns), mean, xerr=errors, color=_COLOUR, height=0.7, error_kw={"elinewidth": 1, "capsize": 2})
    if ceiling is not None:
        ax.axvline(ceiling, color=_CEILING_COLOUR, linestyle="--", linewidth=1.3, label=CEILING)
    ax.invert_yaxis()  # the first method on top
    ax.set_xlabel(f"mean r at {scale:g} µm, {len(r)} genes", fontsize=11)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)
