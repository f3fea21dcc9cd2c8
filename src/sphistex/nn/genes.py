"""From the latent map to counts of any genes: all that is needed once the networks have run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sphistex.nn.context import Window
from sphistex.nn.mil import OBJECTIVES, Objective

if TYPE_CHECKING:
    from sphistex.nn.interpolation import Interpolation
    from sphistex.nn.residuals import SmoothResiduals
    from sphistex.nn.resolver import SuperResolver

# Superpixels whose counts are made at once: few enough to stay in the processor's cache.
_SUPERPIXELS_AT_ONCE = 2048


@dataclass(frozen=True)
class GeneReader:
    """Reads counts of any genes from the latent map of any block.

    Parameters
    ----------
    weight, bias
        The networks' last layer, (n_models, d_latent, n_genes) and (n_models, 1, n_genes).
    kind, objective
        Name of the objective, and the objective with its scales.
    average
        How the models' maps are combined.
    pitch_um
        Side of a superpixel.
    image_share
        Share of the networks, with their residuals, in the map of each gene (n_genes,).
    correction
        Smoothed residuals of the spots; None without.
    interpolation
        What genes are mixed with that the model is not sure of; None where it is sure of all.
    """

    weight: Tensor
    bias: Tensor
    kind: str
    objective: Objective
    average: str
    pitch_um: float
    image_share: NDArray[np.float32]
    correction: SmoothResiduals | None
    interpolation: Interpolation | None

    @classmethod
    def of(
        cls, model: SuperResolver, correction: SmoothResiduals | None, interpolation: Interpolation | None
    ) -> GeneReader:
        """That of a fitted model, on its device."""
        loadings = model.module.network.loadings
        return cls(
            loadings.weight.detach(),
            loadings.bias.detach(),
            model.parameters.objective,
            model.module.objective,
            model.parameters.average,
            model.pitch_um,
            model.image_share.astype(np.float32),
            correction,
            interpolation,
        )

    @property
    def n_genes(self) -> int:
        """How many genes it can read."""
        return len(self.image_share)

    def take(self, genes: NDArray[np.intp]) -> GeneReader:
        """That of some genes."""
        index = torch.from_numpy(np.asarray(genes, dtype=np.int64)).to(self.weight.device)
        return replace(
            self,
            weight=self.weight[..., index],
            bias=self.bias[..., index],
            objective=_objective(
                self.kind, {name: x[index] if x.ndim else x for name, x in self.objective.state_dict().items()}
            ),
            image_share=self.image_share[genes],
            correction=None if self.correction is None else self.correction.take(genes),
            interpolation=None if self.interpolation is None else self.interpolation.take(genes),
        )

    @torch.no_grad()
    def counts(
        self, window: Window, inside: NDArray[np.bool_], latent: Tensor, genes: slice = slice(None)
    ) -> NDArray[np.float32]:
        """Counts of some genes in a block.

        Parameters
        ----------
        window
            Where the block lies on the grid.
        inside
            Which of its superpixels are wanted, (n_rows, n_columns).
        latent
            Their latent map (n_models, n_superpixels, d_latent).
        genes
            Which genes.

        Returns
        -------
        (n_superpixels, n_genes).
        """
        values = self._by_networks(latent, genes)
        if self.correction is not None:
            values += self.correction.on_lattice(*window, self.pitch_um, genes)[inside]
            np.maximum(values, 0, out=values)
        if self.interpolation is not None:
            share = self.image_share[genes]
            values *= share
            values += (1 - share) * self.interpolation.on_lattice(*window, self.pitch_um, inside, genes)
        return values

    def _by_networks(self, latent: Tensor, genes: slice) -> NDArray[np.float32]:
        """Counts per superpixel by the networks alone (n_superpixels, n_genes)."""
        weight, bias = self.weight[..., genes], self.bias[..., genes]
        chosen = torch.arange(self.n_genes, device=weight.device)[genes]
        out = torch.empty(latent.shape[1], weight.shape[-1], device=latent.device)
        for first in range(0, len(out), _SUPERPIXELS_AT_ONCE):
            part = slice(first, first + _SUPERPIXELS_AT_ONCE)
            maps = self.objective.rate(torch.baddbmm(bias, latent[:, part].float(), weight), chosen)
            out[part] = maps.median(0).values if self.average == "median" else maps.mean(0)
        return out.cpu().numpy()

    def to_arrays(self) -> dict[str, Any]:
        """As plain arrays, numbers and words, in dictionaries."""
        arrays: dict[str, Any] = {
            "weight": self.weight.cpu().numpy(),
            "bias": self.bias.cpu().numpy(),
            "kind": self.kind,
            "objective": {name: x.cpu().numpy() for name, x in self.objective.state_dict().items()},
            "average": self.average,
            "pitch_um": float(self.pitch_um),
            "image_share": self.image_share,
        }
        if self.correction is not None:
            arrays["correction"] = _arrays(self.correction)
        if self.interpolation is not None:
            arrays["interpolation"] = _arrays(self.interpolation) | {"smooth": _arrays(self.interpolation.smooth)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> GeneReader:
        """Back from :meth:`to_arrays`, on the CPU."""
        from sphistex.nn.interpolation import Interpolation  # here, as they need SciPy, and the networks' maps do not
        from sphistex.nn.residuals import SmoothResiduals

        correction, interpolation = arrays.get("correction"), arrays.get("interpolation")
        return cls(
            torch.from_numpy(arrays["weight"]),
            torch.from_numpy(arrays["bias"]),
            str(arrays["kind"]),
            _objective(str(arrays["kind"]), {k: torch.as_tensor(v) for k, v in arrays["objective"].items()}),
            str(arrays["average"]),
            float(arrays["pitch_um"]),
            arrays["image_share"],
            None if correction is None else SmoothResiduals(**correction),
            None
            if interpolation is None
            else Interpolation(**interpolation | {"smooth": SmoothResiduals(**interpolation["smooth"])}),
        )


def _objective(kind: str, scales: dict[str, Tensor]) -> Objective:
    """An objective with given scales."""
    n_genes = max(x.numel() for x in scales.values())
    device = next(iter(scales.values())).device
    made = OBJECTIVES[kind](torch.zeros(1, n_genes), torch.ones(1)).to(device)
    made.load_state_dict(scales)
    return made


def _arrays(fitted: SmoothResiduals | Interpolation) -> dict[str, NDArray]:
    """The arrays of a dataclass; numbers of spots and genes in single precision."""
    large = ("coefficients", "density")
    return {
        name: value.astype(np.float32) if name in large else value
        for name, value in vars(fitted).items()
        if isinstance(value, np.ndarray)
    }
