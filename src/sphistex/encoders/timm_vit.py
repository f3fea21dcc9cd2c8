"""Vision transformers through timm: UNI, and any other by its timm name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from sphistex.encoders.base import SUPERPIXEL_UM, autocast, resolve_device, to_device, to_host

UNI_HUB_ID = "MahmoodLab/UNI"
UNI_FILE = "pytorch_model.bin"
UNI_ARCHITECTURE = "vit_large_patch16_224"


class TimmViT:
    """Patch tokens of a timm vision transformer, after its last norm and without class and register tokens.

    One token is one superpixel: the tiles are taken at ``8 / patch size`` µm per pixel.

    Parameters
    ----------
    model_name
        Any name that :func:`timm.create_model` takes, such as ``"vit_small_patch16_224"`` or ``"hf-hub:owner/model"``.
    name
        Name for records, default ``"timm:<model_name>"``.
    weights
        File with the weights (.safetensors, or a state dict of PyTorch), instead of timm's pretrained ones.
    device
        Torch device, or ``"auto"``.
    tile_size
        Side of the tiles in px, rounded down to whole patches.
    revision
        What the weights are, if known; default: the sha256 of the file, or timm's tag of the pretrained weights.
    mean, std
        Normalisation of the RGB values in [0, 1], default: that of the model.
    class_token
        Whether the class token of its tile is put behind each token.
    **kwargs
        Passed to :func:`timm.create_model`.

    Raises
    ------
    ValueError
        If the model is not a vision transformer, or the weights are of another one.
    FileNotFoundError
        If there is no file ``weights``.
    """

    halo_px = 32

    def __init__(
        self,
        model_name: str,
        *,
        name: str | None = None,
        weights: str | Path | None = None,
        device: str = "auto",
        tile_size: int = 224,
        revision: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        class_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self._made_with = {
            "model_name": model_name,
            "name": name,
            "weights": None if weights is None else Path(weights).absolute(),
            "device": device,
            "tile_size": tile_size,
            "mean": mean,
            "std": std,
            "class_token": class_token,
            **kwargs,
        }
        self.name = name or f"timm:{model_name}"
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"weights={str(weights)!r}: no such file")
        self.device = resolve_device(device)
        options = {"num_classes": 0, "dynamic_img_size": True} | kwargs
        try:
            net: Any = timm.create_model(model_name, pretrained=weights is None, **options)
        except TypeError as error:  # what timm says when a model has no dynamic_img_size
            raise ValueError(f"encoder={self.name!r} is not a vision transformer of timm's: {error}") from error
        if weights is not None:
            _load(net, Path(weights))
        self._net = net.eval().to(self.device)
        self.patch_size = int(self._net.patch_embed.patch_size[0])
        self.mpp = SUPERPIXEL_UM / self.patch_size
        self._class_token = class_token and self._net.num_prefix_tokens > 0
        self.dim = int(self._net.num_features) * (1 + self._class_token)
        self.tile_size = tile_size // self.patch_size * self.patch_size
        self.revision = revision or (_pretrained_tag(self._net) if weights is None else sha256(Path(weights)))
        config = timm.data.resolve_model_data_config(self._net)
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (mean or config["mean"], std or config["std"])
        )

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Tokens (n, h / patch, w / patch, dim) of RGB tiles (n, h, w, 3)."""
        rows, columns = (side // self.patch_size for side in tiles.shape[1:3])
        with torch.inference_mode(), autocast(self.device):
            pixels = to_device(tiles, self.device).permute(0, 3, 1, 2)
            tokens = self._net.forward_features((pixels.float() / 255 - self._mean) / self._std)
            patches = tokens[:, self._net.num_prefix_tokens :]
            if self._class_token:
                patches = torch.cat([patches, tokens[:, :1].expand_as(patches)], dim=-1)
            patches = to_host(patches)
        return patches.reshape(len(tiles), rows, columns, self.dim)

    def with_class_token(self) -> TimmViT:
        """The same encoder with the class token of its tile behind each token, if it has one."""
        if self._class_token or not self._net.num_prefix_tokens:
            return self
        return _again(self._made_with | {"class_token": True, "revision": self.revision})

    def on(self, device: str) -> TimmViT:
        """The same encoder on another device."""
        return _again(self._made_with | {"device": device, "revision": self.revision})

    def __reduce__(self) -> tuple[Any, ...]:
        # Made again from its name and weights: a worker may have another device, and weights are large to send.
        return _again, (self._made_with | {"revision": self.revision},)


def _again(arguments: dict[str, Any]) -> TimmViT:
    return TimmViT(**arguments)


def uni(*, weights: str | Path | None = None, device: str = "auto") -> TimmViT:
    """UNI (ViT-L/16, 1024-d) from a file, the Hugging Face cache, or the hub with a token that has access.

    References
    ----------
    Chen et al., Towards a general-purpose foundation model for computational pathology (Nature Medicine 2024).
    """
    revision = None
    if weights is None:
        weights = cached_uni() or _download_uni()
        revision = (
            f"{UNI_HUB_ID}@{Path(weights).parent.name}"  # the hub's cache keeps files as snapshots/<commit>/<file>
        )
    return TimmViT(
        UNI_ARCHITECTURE,
        name="uni",
        weights=weights,
        device=device,
        revision=revision,
        mean=timm.data.IMAGENET_DEFAULT_MEAN,
        std=timm.data.IMAGENET_DEFAULT_STD,
        init_values=1e-5,
    )


def cached_uni() -> Path | None:
    """UNI's weights in the Hugging Face cache, if they are there; does not touch the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(UNI_HUB_ID, UNI_FILE)
    return Path(found) if isinstance(found, str) else None


def hub_token() -> str | None:
    """Hugging Face token of this machine (``HF_TOKEN`` or ``hf auth login``), if there is one."""
    from huggingface_hub import get_token

    return get_token()


def sha256(path: Path) -> str:
    """``sha256:`` and the digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _download_uni() -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if hub_token() is None:
        raise PermissionError(
            f"the weights of UNI are neither in the Hugging Face cache nor given: ask for access at "
            f"https://huggingface.co/{UNI_HUB_ID} and set HF_TOKEN, or pass weights=<path of its {UNI_FILE}>"
        )
    try:
        # Asked first, because the download itself tries for half a minute before it sees that there is no network.
        get_hf_file_metadata(hf_hub_url(UNI_HUB_ID, UNI_FILE), timeout=5)
        return Path(hf_hub_download(UNI_HUB_ID, UNI_FILE))
    except Exception as error:
        raise ConnectionError(
            f"{UNI_HUB_ID} could not be had with the token: {type(error).__name__}: {error}"
        ) from error


def _load(net: torch.nn.Module, path: Path) -> None:
    """Load weights; those of a classification head may be left over, nothing may be missing."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state))
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ
        raise ValueError(f"weights={str(path)!r} are not of this model: {str(error)[:500]}") from error
    unexpected = [key for key in unexpected if not key.startswith("head.")]
    if missing or unexpected:
        raise ValueError(
            f"weights={str(path)!r} are not of this model: {len(missing)} parameters are missing (such as "
            f"{missing[:3]}) and {len(unexpected)} unknown ({unexpected[:3]})"
        )


def _pretrained_tag(net: Any) -> str:
    """Where timm took pretrained weights from: hub id and commit, as far as the cache knows."""
    from huggingface_hub import try_to_load_from_cache

    hub_id = net.pretrained_cfg.get("hf_hub_id")
    found = try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
    if isinstance(found, str):
        return f"{hub_id}@{Path(found).parent.name}"
    return f"timm {timm.__version__} {net.pretrained_cfg.get('tag') or net.pretrained_cfg.get('url')}"
