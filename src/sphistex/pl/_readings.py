"""What a result says, one gene or one superpixel at a time: nothing of the size of the table is held or made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from sphistex.calibration import Calibration
from sphistex.pl._sources import Lattice, open_result, values_of
from sphistex.tl._lazy import LazyCounts
from sphistex.tl._trust import calibration_of

# Columns of obs that say where a superpixel lies, and nothing about it.
_PLACE = ("region", "instance_id", "array_row", "array_col")
_LEVEL = 0.9


@dataclass(frozen=True)
class GeneMap:
    """One gene everywhere.

    Parameters
    ----------
    counts
        Expected counts (rows, columns) per superpixel; NaN where there is none.
    certainty
        How certain it is on which side of the gene's mean the expression of each superpixel lies, from 0.5 to 1;
        None where the result has no calibration.
    """

    counts: NDArray[np.float32]
    certainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class Readings:
    """Reads a result.

    Parameters
    ----------
    table, made
        The result, its counts open, and how it was made.
    lattice
        Where its superpixels lie.
    place
        Row of the table of each superpixel (rows, columns), -1 where there is none.
    calibration
        How far it can be trusted; None where that is not known.
    unjudged
        Why it is not known.
    """

    table: AnnData
    made: dict[str, Any]
    lattice: Lattice
    place: NDArray[np.int32] = field(repr=False)
    calibration: Calibration | None
    unjudged: str = ""

    @classmethod
    def of(cls, sdata: SpatialData, key: str) -> Readings:
        """Those of the result ``key``; a lazy one is opened."""
        table, made = open_result(sdata, key)
        lattice = Lattice.of(sdata, table, made)
        place = np.full(lattice.shape, -1, dtype=np.int32)
        place[lattice.row_column(table.obsm["spatial"])] = np.arange(table.n_obs)
        try:
            return cls(table, made, lattice, place, calibration_of(table, key))
        except ValueError as error:
            return cls(table, made, lattice, place, None, str(error))

    @property
    def genes(self) -> list[str]:
        """All genes."""
        return list(self.table.var_names)

    def gene(self, name: str) -> GeneMap:
        """The map of a gene."""
        values = values_of(self.table, name)
        if self.calibration is None:
            return GeneMap(self._raster(values), None)
        one = self.calibration.take([self.table.var_names.get_loc(name)])
        above = one.probability_above(values[:, None], np.ones(len(values)), one.mean)[:, 0]
        return GeneMap(self._raster(values), self._raster(np.maximum(above, 1 - above)))

    def _raster(self, values: NDArray) -> NDArray[np.float32]:
        raster = values.astype(np.float32)[self.place]
        raster[self.place < 0] = np.nan
        return raster

    def row_at(self, x_um: float, y_um: float) -> int | None:
        """Row of the table whose superpixel lies there; None beside the tissue."""
        window = self.lattice.window
        pitch_um = self.lattice.pitch_px * self.lattice.mpp
        row, column = int((y_um - window.top) // pitch_um), int((x_um - window.left) // pitch_um)
        inside = 0 <= row < self.lattice.shape[0] and 0 <= column < self.lattice.shape[1]
        return int(self.place[row, column]) if inside and self.place[row, column] >= 0 else None

    def centre_um(self, row: int) -> tuple[float, float]:
        """Where the superpixel of a row of the table lies on the image."""
        x, y = (np.asarray(self.table.obsm["spatial"])[row] + self.lattice.moved_px) * self.lattice.mpp
        return float(x), float(y)

    def profile(self, row: int) -> pd.DataFrame:
        """All genes of one superpixel, those first that stand out most there.

        Returns
        -------
        Table with index ``gene`` and columns ``counts`` and, where the mean over the spots is known, ``times_mean``;
        genes stand out by their distance from the mean in units of its counting noise, otherwise by their counts.
        """
        found = pd.DataFrame({"counts": self._counts_at(row)}, index=pd.Index(self.genes, name="gene"))
        if self.calibration is None:
            return found.sort_values("counts", ascending=False, kind="stable")
        mean = np.maximum(self.calibration.mean, 1e-9)
        found["times_mean"] = found["counts"] / mean
        order = np.argsort(-((found["counts"] - mean) / np.sqrt(mean)).to_numpy(), kind="stable")
        return found.iloc[order]

    def _counts_at(self, row: int) -> NDArray[np.float32]:
        counts = self.table.X
        if isinstance(counts, LazyCounts) and counts.rows is None:
            where = self.table.obs[["array_row", "array_col"]].iloc[row].to_numpy() + np.asarray(self.made["crop"])
            return counts.counts.at(int(where[0]), int(where[1]))
        found = counts[[row]]
        found = found.compute() if hasattr(found, "compute") else found
        return np.asarray(found.toarray() if sparse.issparse(found) else found, dtype=np.float32).ravel()

    def interval(self, gene: str, counts: float) -> tuple[float, float] | None:
        """Between which counts the expression behind ``counts`` expected in one superpixel lies, in 90 % of them."""
        if self.calibration is None:
            return None
        one = self.calibration.take([self.table.var_names.get_loc(gene)])
        lower, upper = one.expression_interval(np.array([[counts]]), np.ones(1), _LEVEL)
        return float(lower[0, 0]), float(upper[0, 0])

    def annotations(self, row: int) -> dict[str, str]:
        """What the table says of a superpixel beside its counts and place."""
        said = self.table.obs.drop(columns=list(_PLACE), errors="ignore").iloc[row]
        return {str(name): f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in said.items()}
