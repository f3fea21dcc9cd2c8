"""What an encoder sees of the same tissue when it is stained more weakly or more strongly."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sphistex.encoders.base import Encoder

# By what share the amounts of haematoxylin and of eosin are changed at most.
STRENGTH = 0.2


class Restained:
    """An encoder of tiles whose amounts of haematoxylin and of eosin are both changed by factors drawn from a seed.

    Parameters
    ----------
    encoder
        The encoder of the changed tiles.
    seed
        Of the factors, each from 0.8 to 1.2.

    References
    ----------
    Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled
    stain-invariant convolutional networks (IEEE TMI 2018): stains are told apart by colour deconvolution.

    Examples
    --------
    >>> from sphistex import encoders
    >>> encoder = Restained(encoders.get("efficientnet_lite0"), seed=1)
    >>> encoder(np.full((1, 224, 224, 3), 200, np.uint8)).shape
    (1, 14, 14, 232)
    """

    def __init__(self, encoder: Encoder, seed: int) -> None:
        self.encoder = encoder
        self.factors = np.append(np.random.default_rng(seed).uniform(1 - STRENGTH, 1 + STRENGTH, 2), 1.0)
        self.mpp, self.patch_size, self.dim = encoder.mpp, encoder.patch_size, encoder.dim
        self.tile_size, self.halo_px, self.revision = encoder.tile_size, encoder.halo_px, encoder.revision
        self.name = f"{encoder.name} of stains × {self.factors[0]:.3f} and {self.factors[1]:.3f}"
        if hasattr(encoder, "device"):
            self.device = encoder.device
        if hasattr(encoder, "on"):
            self.on = self._on

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Tokens (n, h / patch_size, w / patch_size, dim) of the changed tiles (n, h, w, 3)."""
        return self.encoder(restained(tiles, self.factors))

    def _on(self, device: str) -> Restained:
        changed: Any = copy.copy(self)
        changed.encoder = self.encoder.on(device)  # type: ignore[attr-defined]
        changed.device = changed.encoder.device
        return changed


def restained(tiles: NDArray[np.uint8], factors: NDArray[np.floating]) -> NDArray[np.uint8]:
    """RGB (..., 3) with the amounts of haematoxylin, eosin and the rest (DAB) multiplied by ``factors`` (3,)."""
    from skimage.color import hed2rgb, rgb2hed

    return (hed2rgb(rgb2hed(tiles) * factors) * 255).round().astype(np.uint8)
