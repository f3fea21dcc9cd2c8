"""What the image did not explain at the measured spots, smoothed over the section.

Each gene's residuals are a Gaussian process with an exponential kernel plus independent noise (the nugget): copying
the residuals exactly would copy the spots' noise. Length scale and nugget are chosen per gene by marginal likelihood;
a gene whose residuals are noise gets a signal of zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from sphistex._parts import gene_parts

LENGTHS_UM = (60.0, 120.0, 240.0, 480.0)
SIGNAL_TO_NOISE = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
# The choice of length and nugget needs no more spots than this; its cost grows with their third power.
_MAX_SPOTS_FOR_CHOICE = 1200
# More spots than this are solved in parts, each with what lies within this many lengths around it: maps differ by
# less than 0.5 % of their standard deviation.
_MAX_SPOTS_TOGETHER, _SURROUNDINGS = 1000, 3.0
# Beyond this many lengths the exponential kernel is nothing, also summed over many spots.
_REACH = 12.0
# Nodes of a lattice on which smooth maps are evaluated before they are interpolated, per length.
_NODES_PER_LENGTH = 4
# Others that say what a left-out spot's residual is.
_NEAREST = 60


@dataclass(frozen=True)
class SmoothResiduals:
    """Smoothed residuals, evaluated anywhere.

    Parameters
    ----------
    xy_um
        Spot centres (n_spots, 2).
    coefficients
        Kernel coefficients (n_spots, n_genes).
    length_um, signal_to_noise
        What was chosen for each gene (n_genes,).
    evidence
        By how much the logarithm of the likelihood is above that of noise alone (n_genes,).
    """

    xy_um: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    length_um: NDArray[np.float64]
    signal_to_noise: NDArray[np.float64]
    evidence: NDArray[np.float64]

    @classmethod
    def fit(cls, xy_um: NDArray, residuals: NDArray, *, seed: int = 0) -> SmoothResiduals:
        """Choose length scale and nugget of every gene and solve for its coefficients.

        Parameters
        ----------
        xy_um
            Spot centres (n_spots, 2) in µm.
        residuals
            (n_spots, n_genes), with about the same noise at every spot.
        seed
            Which spots are looked at for the choice where there are very many.

        Examples
        --------
        >>> import numpy as np
        >>> xy = np.random.default_rng(0).uniform(0, 2000, (300, 2))
        >>> field = np.sin(xy[:, :1] / 300)
        >>> smooth = SmoothResiduals.fit(xy, field + np.random.default_rng(1).normal(0, 0.5, (300, 1)))
        >>> bool(np.abs(smooth(xy) - field).mean() < 0.25)
        True
        """
        xy_um, residuals = np.asarray(xy_um, float), np.asarray(residuals)
        length, ratio, evidence = _choose(xy_um, residuals, seed)
        coefficients = np.zeros(residuals.shape, np.result_type(residuals, np.float32))
        for genes, one_length, one_ratio in _alike(length, ratio):
            index = np.flatnonzero(genes)
            for part in gene_parts(len(xy_um), len(index)):
                some = index[part]
                solved = _solved(xy_um, residuals[:, some].astype(np.float64), one_length, one_ratio)
                coefficients[:, some] = one_ratio * solved
        return cls(xy_um, coefficients, length, ratio, evidence)

    def take(self, genes: NDArray[np.intp]) -> SmoothResiduals:
        """Those of some genes."""
        return SmoothResiduals(
            self.xy_um,
            self.coefficients[:, genes],
            self.length_um[genes],
            self.signal_to_noise[genes],
            self.evidence[genes],
        )

    def __call__(self, xy_um: NDArray) -> NDArray[np.float64]:
        """Smoothed residuals at places (n, 2) in µm → (n, n_genes)."""
        xy_um = np.asarray(xy_um, float)
        out = np.zeros((len(xy_um), self.coefficients.shape[1]))
        for length in np.unique(self.length_um[self.signal_to_noise > 0]):
            genes = (self.length_um == length) & (self.signal_to_noise > 0)
            near = self._near(xy_um, length)
            out[:, genes] = _kernel(xy_um, self.xy_um[near], length) @ self.coefficients[np.ix_(near, genes)]
        return out

    def on_lattice(
        self, rows: slice, columns: slice, pitch_um: float, genes: slice = slice(None)
    ) -> NDArray[np.float32]:
        """Smoothed residuals of a block of superpixels, (n_rows, n_columns, n_genes).

        They are evaluated at nodes of a coarser lattice, a quarter of the length scale apart, and interpolated
        linearly between them. The nodes are tied to the grid and not to the block.

        Parameters
        ----------
        rows, columns
            The block.
        pitch_um
            Side of a superpixel.
        genes
            Which genes.
        """
        length, signal = self.length_um[genes], self.signal_to_noise[genes]
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = np.zeros((*shape, len(length)), dtype=np.float32)
        for one in np.unique(length[signal > 0]):
            stride = max(1, round(one / pitch_um / _NODES_PER_LENGTH))
            (down, spread_down), (across, spread_across) = (_nodes(part, stride) for part in (rows, columns))
            nodes = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
            places = (nodes + 0.5) * pitch_um
            near = self._near(places, one)
            kernel = np.exp((cdist(places, self.xy_um[near]) / -one).astype(np.float32))
            these = (length == one) & (signal > 0)
            coefficients = self.coefficients[near, genes][:, these].astype(np.float32)
            at_nodes = (kernel @ coefficients).reshape(len(down), -1)
            out[..., these] = spread_across @ (spread_down @ at_nodes).reshape(shape[0], len(across), -1)
        return out

    def _near(self, xy_um: NDArray, length: float) -> NDArray[np.bool_]:
        """Spots that matter to some places."""
        low, high = xy_um.min(0) - _REACH * length, xy_um.max(0) + _REACH * length
        return ((self.xy_um >= low) & (self.xy_um <= high)).all(1)


def _nodes(part: slice, stride: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Multiples of the stride around ``[start, stop)``, and the weights (stop - start, n_nodes) between them."""
    nodes = np.arange(part.start // stride, -(-(part.stop - 1) // stride) + 1) * stride
    distance = np.abs(np.arange(part.start, part.stop)[:, None] - nodes) / stride
    return nodes, np.maximum(1 - distance, 0).astype(np.float32)


def left_out(xy_um: NDArray, residuals: NDArray, spots: NDArray[np.intp], *, seed: int = 0) -> NDArray[np.float64]:
    """What the smoothed residuals of the others say of some spots.

    Length and nugget are chosen as in :meth:`SmoothResiduals.fit`. Only the nearest others are looked at: behind them,
    the rest hardly matter to an exponential kernel.

    Parameters
    ----------
    xy_um
        Spot centres (n_spots, 2).
    residuals
        (n_spots, n_genes).
    spots
        Which of them are wanted (n,).
    seed
        As in :meth:`SmoothResiduals.fit`.

    Returns
    -------
    (n, n_genes).
    """
    xy_um, residuals = np.asarray(xy_um, float), np.asarray(residuals)
    k = min(_NEAREST, len(xy_um) - 1)
    out = np.zeros((len(spots), residuals.shape[1]))
    if k < 1:
        return out
    others = KDTree(xy_um).query(xy_um[spots], k=k + 1)[1][:, 1:]
    apart = np.linalg.norm(xy_um[others][:, :, None] - xy_um[others][:, None], axis=-1)
    away = np.linalg.norm(xy_um[others] - xy_um[spots][:, None], axis=-1)
    rows = np.repeat(np.arange(len(spots)), k)
    for genes, length, ratio in _alike(*_choose(xy_um, residuals, seed)[:2]):
        system = ratio * np.exp(-apart / length) + np.eye(k)
        weights = np.linalg.solve(system, ratio * np.exp(-away / length)[..., None])
        matrix = sparse.csr_matrix((weights.ravel(), (rows, others.ravel())), shape=(len(spots), len(xy_um)))
        out[:, genes] = matrix @ residuals[:, genes]
    return out


def _alike(length: NDArray, ratio: NDArray) -> Iterator[tuple[NDArray[np.bool_], float, float]]:
    """Genes (n_genes,) that share a length scale and a signal, and these; those without a signal are left out."""
    for one_length, one_ratio in sorted({(a, b) for a, b in zip(length, ratio, strict=True) if b > 0}):
        yield (length == one_length) & (ratio == one_ratio), one_length, one_ratio


def _solved(xy_um: NDArray, residuals: NDArray, length_um: float, signal_to_noise: float) -> NDArray[np.float64]:
    """Residuals (n_spots, n_genes) multiplied by the inverse of their covariance, in units of the noise.

    This is what the smooth map leaves of a spot's residual, and what lies a few lengths away hardly changes that.
    Where there are many spots, every part of the section is therefore solved with its surroundings only: time then
    grows with the number of spots and not with its third power, and memory no longer with its square.
    """
    out = np.empty_like(residuals)
    for inner in _parts(xy_um, np.arange(len(xy_um))):
        margin = _SURROUNDINGS * length_um
        low, high = xy_um[inner].min(0) - margin, xy_um[inner].max(0) + margin
        near = np.flatnonzero(((xy_um >= low) & (xy_um <= high)).all(1))
        system = cho_factor(_system(xy_um[near], length_um, signal_to_noise), lower=True)
        out[inner] = cho_solve(system, residuals[near])[np.searchsorted(near, inner)]
    return out


def _parts(xy_um: NDArray, spots: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Some spots, halved across their longer side until no part has too many."""
    if len(spots) <= _MAX_SPOTS_TOGETHER:
        return [spots]
    axis = int(np.ptp(xy_um[spots], axis=0).argmax())
    order = spots[np.argsort(xy_um[spots, axis], kind="stable")]
    half = len(order) // 2
    return _parts(xy_um, order[:half]) + _parts(xy_um, order[half:])


def _system(xy_um: NDArray, length_um: float, signal_to_noise: float) -> NDArray[np.float64]:
    """Covariance of the spots in units of the noise."""
    system = signal_to_noise * _kernel(xy_um, xy_um, length_um)
    system[np.diag_indices_from(system)] += 1.0
    return system


def _kernel(a: NDArray, b: NDArray, length_um: float) -> NDArray[np.float64]:
    return np.exp(-cdist(a, b) / length_um)


def _choose(
    xy_um: NDArray, residuals: NDArray, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Length scale and signal-to-noise ratio of each gene with the largest marginal likelihood, and its logarithm.

    The logarithm is counted from that of noise alone.

    In the kernel's eigenbasis the covariance is diagonal, so that every ratio costs one pass over the residuals.
    """
    if len(xy_um) > _MAX_SPOTS_FOR_CHOICE:
        chosen = np.random.default_rng(seed).choice(len(xy_um), _MAX_SPOTS_FOR_CHOICE, replace=False)
        xy_um, residuals = xy_um[chosen], residuals[chosen]
    options = np.array(list(product(LENGTHS_UM, SIGNAL_TO_NOISE)))
    likelihood = np.empty((len(LENGTHS_UM), len(SIGNAL_TO_NOISE), residuals.shape[1]))
    for of_length, length in zip(likelihood, LENGTHS_UM, strict=True):
        values, vectors = eigh(_kernel(xy_um, xy_um, length))
        variances = [ratio * np.maximum(values, 0)[:, None] + 1.0 for ratio in SIGNAL_TO_NOISE]
        for some in gene_parts(*residuals.shape):
            squares = (vectors.T @ residuals[:, some].astype(np.float64)) ** 2
            for found, variance in zip(of_length, variances, strict=True):
                noise = np.maximum((squares / variance).mean(0), 1e-300)
                found[some] = -0.5 * (len(xy_um) * np.log(noise) + np.log(variance).sum())
    of_option = likelihood.reshape(len(options), -1)
    length, ratio = options[np.argmax(of_option, axis=0)].T
    noise_alone = of_option[SIGNAL_TO_NOISE.index(0.0)]
    return length, ratio, np.max(of_option, axis=0) - noise_alone
