"""Maps of a fitted model, block by block: the latent map, and counts of some genes from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sphistex.nn.context import FeatureMap, Window, with_halo
from sphistex.nn.genes import GeneReader
from sphistex.nn.memory import Portions
from sphistex.nn.precision import computing_in
from sphistex.nn.windows import Windows

if TYPE_CHECKING:
    from sphistex.bags import Bags
    from sphistex.nn.inputs import Spots
    from sphistex.nn.neighbours import Positions
    from sphistex.nn.residuals import SmoothResiduals
    from sphistex.nn.resolver import SuperResolver

# Distance between prediction windows in their radii: every superpixel lies in about four of them.
_STRIDE = 0.87
_WINDOWS_AT_ONCE = 256
_BAGS_AT_ONCE = 256
# Genes whose counts of a block are made at once.
_GENES_AT_ONCE = 1024
# Sides of blocks, and about what a superpixel of a block takes in the meantime, features of 1,024 values included.
_BLOCKS = (128, 96, 64, 32)
_BYTES_PER_SUPERPIXEL = 45_000


def block_within(memory_gb: float) -> int:
    """Side in superpixels of the largest blocks that a sixth of the memory is enough for.

    Examples
    --------
    >>> block_within(4.0), block_within(0.5)
    (96, 32)
    """
    fitting = [side for side in _BLOCKS if side**2 * _BYTES_PER_SUPERPIXEL <= memory_gb / 6 * 2**30]
    return max(fitting, default=_BLOCKS[-1])


@dataclass(frozen=True)
class Mapper:
    """What it takes to predict any block of a section, and any genes of it.

    Parameters
    ----------
    model
        The fitted model, scaled for the section.
    features
        Feature map of the section with the model's context.
    positions
        The spots that superpixels attend to.
    reader
        Makes counts of the latent map.
    windows
        How many windows, each a bag of superpixels, are looked at at once.
    """

    model: SuperResolver
    features: FeatureMap
    positions: Positions
    reader: GeneReader
    windows: Portions = field(default_factory=lambda: Portions(_WINDOWS_AT_ONCE))

    @classmethod
    def of(cls, model: SuperResolver, features: FeatureMap, bags: Bags, spots: Spots, *, seed: int) -> Mapper:
        """Learn from the section's spots what its superpixels attend to, and what the model leaves unexplained.

        Of a section without spots the model is all there is.
        """
        from sphistex.nn.inputs import Inputs  # here, as they need SciPy, and the networks' maps do not
        from sphistex.nn.interpolation import Interpolation

        section = Inputs(features, bags, spots)
        model, section = model.at(section, seed=seed), section.pooled
        spots, bags = section.spots, section.bags
        positions = model._positions(spots)
        correction = interpolation = None
        if not len(spots):
            model = replace(model, image_share=np.ones(len(model.genes)))
            return cls(model, features, positions, GeneReader.of(model, None, None))
        if model.parameters.residuals:
            correction = _unexplained(model, features, bags, spots, positions, seed)
        if (model.image_share < 1).any():
            density = spots.counts / np.asarray(bags.weights.sum(1), dtype=np.float32)
            interpolation = Interpolation.fit(spots.xy_um, density, seed=seed)
        return cls(model, features, positions, GeneReader.of(model, correction, interpolation))

    @torch.no_grad()
    def latent(self, window: Window) -> Tensor:
        """Latent map of a block's tissue, (n_models, n_superpixels, d_latent)."""
        model = self.model
        if model.parameters.layers:
            superpixels, attended = self._attend(window)
        else:
            superpixels = self._embed(window)[:, torch.from_numpy(self.features.mask[window].ravel()).to(model.device)]
            attended = superpixels[..., :0]
        with computing_in(model.dtype, model.device):
            return model.module.network.read(attended, superpixels)

    def counts(self, window: Window, latent: Tensor, genes: slice) -> NDArray[np.float32]:
        """Counts of some genes in a block's tissue (n_superpixels, n_genes), from its latent map."""
        return self.reader.counts(window, self.features.mask[window], latent, genes)

    def parts(self, window: Window) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Counts of a block's tissue (n_superpixels, n_some_genes), some genes after the other."""
        latent = self.latent(window)
        for first in range(0, self.reader.n_genes, _GENES_AT_ONCE):
            genes = slice(first, first + _GENES_AT_ONCE)
            yield genes, self.counts(window, latent, genes)

    def _embed(self, window: Window) -> Tensor:
        """H of all superpixels of a block, row by row, (n_models or 1, n, d_features)."""
        model, embedding = self.model, self.model.module.network.embed
        if not embedding.parts:
            vectors = self.features.read(*window)
            return embedding(model._by_context(torch.from_numpy(vectors.reshape(-1, vectors.shape[-1])))[:, None])
        radii = self.features.context
        outer, inner = with_halo(window, max(radii), self.features.mask.shape)
        tissue = torch.from_numpy(self.features.mask[outer]).to(model.device, torch.float32)
        raw = torch.from_numpy(np.asarray(self.features.features[(slice(None), *outer)])).to(model.device)
        scaling = model.module.scaling
        mean, std = (x.unflatten(0, (len(radii), -1)) for x in (scaling.mean, scaling.std))
        scaled = ((raw.flatten(1).T.float() - mean[0]) / std[0]).to(model.dtype)
        parts = []
        # The mean over surroundings is linear, as is the layer: it is taken of the layer's few outputs.
        for radius, part, centre, spread in zip(radii, embedding.parts, mean, std, strict=True):
            weight = part.weight * (std[0] / spread)[:, None]
            offset = part.bias + (((mean[0] - centre) / spread) @ part.weight)[:, None]
            wide = weight.permute(1, 0, 2).flatten(1).to(scaled.dtype)
            product = (scaled @ wide).float().unflatten(0, tissue.shape) * tissue[..., None]
            product = _mean_around(product, tissue, radius)[inner].flatten(0, 1)
            parts.append(product.unflatten(-1, (len(weight), -1)).transpose(0, 1) + offset)
        return embedding.after(torch.cat(parts, dim=-1).to(model.dtype))

    def _attend(self, window: Window) -> tuple[Tensor, Tensor]:
        """H (n_models or 1, n, d_features) of a block's tissue, and what the attention made of it (n_models, n, d)."""
        model, mask = self.model, self.features.mask
        windows = Windows(model.window_um / model.pitch_um, max(1, round(_STRIDE * model.window_um / model.pitch_um)))
        centres, members, weight = windows.over(*window, mask)
        outer, inner = with_halo(window, 2 * windows.reach, mask.shape)
        superpixels = self._embed(outer)
        shape = tuple(part.stop - part.start for part in outer)
        low = np.array([part.start for part in outer])
        place = torch.from_numpy(np.ravel_multi_index(tuple(np.moveaxis(members - low, -1, 0)), shape)).to(model.device)
        blend = torch.from_numpy(weight).to(model.device)

        def blended(portions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            """Sum of what the attention makes of the superpixels in all windows, and of their weights."""
            size = model.parameters.n_models, superpixels.shape[1], model.parameters.d
            total = torch.zeros(size, device=model.device)
            share = torch.zeros(superpixels.shape[1], device=model.device)
            for part in portions:
                tokens = self.positions.around((centres[part.cpu().numpy()][:, ::-1] + 0.5) * model.pitch_um)
                seen = torch.from_numpy(tokens)[None].to(model.device)
                with computing_in(model.dtype, model.device):
                    attended = model.module.network.attend(seen, superpixels[:, place[part]], None, blend[part] > 0)
                where = place[part].flatten()
                _add_at(total, where, (attended.float() * blend[part][..., None]).flatten(1, 2))
                _add_at(share[None], where, blend[part].flatten()[None])
            return total, share

        total, share = self.windows.of(torch.arange(len(centres), device=model.device), blended)
        inside = np.zeros(shape, dtype=bool)
        inside[inner] = mask[window]
        chosen = torch.from_numpy(np.flatnonzero(inside)).to(model.device)
        return superpixels[:, chosen], total[:, chosen] / share[chosen, None].clamp_min(1e-6)


@torch.no_grad()
def _unexplained(
    model: SuperResolver, features: FeatureMap, bags: Bags, spots: Spots, positions: Positions, seed: int
) -> SmoothResiduals:
    """Smoothed difference between measured and predicted spots, in counts per superpixel."""
    from sphistex.nn.pooling import mean_of, pooling
    from sphistex.nn.residuals import SmoothResiduals

    pool, _ = pooling(spots.xy_um, spots.pitch_um)
    residuals = np.asarray(pool @ spots.counts, dtype=np.float64)  # of places: there may be many more bins
    network, objective = model.module.network, model.module.objective

    def predicted(portions: Sequence[Tensor]) -> NDArray[np.float64]:
        """Counts of the places."""
        total = np.zeros_like(residuals)
        for some in portions:
            part = some.cpu().numpy()
            index, weight = (torch.from_numpy(x).to(model.device) for x in bags.take(part).padded())
            instances, place = torch.unique(index, return_inverse=True)
            vectors = model._by_context(torch.from_numpy(features.gather(instances.cpu().numpy())))
            tokens = torch.from_numpy(positions.around(spots.xy_um[part])).to(model.device)
            with computing_in(model.dtype, model.device):
                latent = network(tokens[None], vectors[:, place][:, None], None, weight > 0)
            found = objective.expected(latent, network.loadings, weight)
            expected = found.median(0).values if model.parameters.average == "median" else found.mean(0)
            total += pool[:, part] @ expected.cpu().numpy()
        return total

    residuals -= Portions(_BAGS_AT_ONCE).of(torch.arange(len(spots.counts), device=model.device), predicted)
    area = pool @ np.asarray(bags.weights.sum(1))
    return SmoothResiduals.fit(mean_of(pool) @ spots.xy_um, residuals / area, seed=seed)


def _mean_around(values: Tensor, tissue: Tensor, radius: int) -> Tensor:
    """Mean over the tissue of the (2 radius + 1)² superpixels around each; (n_rows, n_columns, c), zero elsewhere."""
    if not radius:
        return values
    area = _sum_around(_sum_around(tissue, radius, 0), radius, 1).clamp_min(0.5)
    return _sum_around(_sum_around(values, radius, 0), radius, 1) / area[..., None]


def _sum_around(values: Tensor, radius: int, axis: int) -> Tensor:
    """Sum over ``[i - radius, i + radius]`` along an axis, of what is there."""
    size = values.shape[axis]
    sums = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.cumsum(axis)], dim=axis)
    i = torch.arange(size, device=values.device)
    last, first = (i + radius + 1).clamp_max(size), (i - radius).clamp_min(0)
    return sums.index_select(axis, last) - sums.index_select(axis, first)


def _add_at(total: Tensor, where: Tensor, values: Tensor) -> None:
    """Add values (m, k, ...) to the places ``where`` (k,) of total (m, n, ...), in the same order every time.

    On a GPU ``index_add_`` adds in whatever order its threads come.
    """
    if total.device.type == "cpu":
        total.index_add_(1, where, values)
    else:
        total.transpose(0, 1).index_put_((where,), values.transpose(0, 1), accumulate=True)
