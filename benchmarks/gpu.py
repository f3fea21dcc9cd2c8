"""Features, training and prediction on one GPU, where there is nothing but torch, timm, numpy and safetensors.

    PYTHONPATH=src python benchmarks/gpu.py --out gpu.json
    PYTHONPATH=src python benchmarks/gpu.py --profile

A section of 13,312 px at 0.5 um/px (832 x 832 superpixels), UNI's architecture with random weights, 3,500 spots, 1,000
genes, 5 models. Without a GPU everything runs on the CPU, and is small unless sizes are given. Rates are compared with
the largest matrix product of the same device, number type and run. Of the prediction the networks' part is measured;
smoothed residuals and interpolation, which need SciPy, are in speed.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import reference
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sphistex.encoders.base import resolve_device
from sphistex.encoders.batching import Batches
from sphistex.encoders.tiling import Block, Tiling
from sphistex.encoders.timm_vit import UNI_ARCHITECTURE, TimmViT
from sphistex.nn import HISTEX, FeatureMap, parameters
from sphistex.nn.genes import GeneReader
from sphistex.nn.mil import PoissonCounts
from sphistex.nn.precision import fastest_dtype
from sphistex.nn.prediction import Mapper
from sphistex.nn.profiles import LogProfiles
from sphistex.nn.training import BagData, folds, initialise_at_mean, suitable_batch, train

FULL = {"side": 13_312, "architecture": UNI_ARCHITECTURE, "spots": 3500, "genes": 1000, "models": 5, "epochs": 40}
SMALL = {"side": 512, "architecture": "vit_tiny_patch16_224", "spots": 64, "genes": 30, "models": 2, "epochs": 2}
PATCH_PX, BAG_SIDE, CHUNK, PATTERN_PX = 16, 7, 64, 1024
NEIGHBOURS = 6  # of the published loop
PLACE = 4  # numbers that say where a neighbouring spot lies
# As sphistex does: superpixels of all bags at most, bags chosen at random where there are more.
MAX_INSTANCES = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, help="of the image in px")
    parser.add_argument("--architecture", help="a vision transformer of timm's with patches of 16 px")
    parser.add_argument("--batch", type=int, help="tiles encoded at once")
    parser.add_argument("--readers", type=int, default=8, help="threads that read tiles")
    parser.add_argument("--spots", type=int)
    parser.add_argument("--enhanced", action="store_true", help="the positions between spots are bags as well")
    parser.add_argument("--genes", type=int)
    parser.add_argument("--models", type=int)
    parser.add_argument("--epochs", type=int, help="epochs of a fit; one without improvement ends early")
    parser.add_argument("--reference-epochs", type=int, default=2, help="epochs of the published loop, one model")
    parser.add_argument("--profile", action="store_true", help="print where each step's time goes; trains two epochs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    for name, value in (FULL if device.type == "cuda" else SMALL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.profile:
        arguments.epochs = min(arguments.epochs, 2)
    found = {"device": device_name(device), "torch": torch.__version__, "timm": timm.__version__}
    found["peak_tflops"] = peak(Clock(device))
    print(json.dumps(found))
    sizes = {k: v for k, v in vars(arguments).items() if isinstance(v, int | str)}
    clock, measure = Clock(device, arguments.profile), Measure(device, found["peak_tflops"])
    feature_map = measure("features", lambda: features(arguments, clock))
    trained = measure("training", lambda: training(arguments, clock, len(feature_map)))
    measure("published loop", lambda: published(arguments, clock, trained.data))
    measure("prediction", lambda: prediction(arguments, clock, trained, feature_map))
    if arguments.out:
        arguments.out.write_text(json.dumps({**found, "sizes": sizes, "steps": measure.rows}, indent=1))


class Clock:
    """Runs functions: what they return, and their seconds until the device is done; prints where these go if wanted."""

    def __init__(self, device: torch.device, profile: bool = False) -> None:
        self.device, self._profile = device, profile

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        with torch.profiler.profile() if self._profile else nullcontext() as profiler:
            started = time.perf_counter()
            result = function()
            self._wait()
            seconds = time.perf_counter() - started
        if profiler is not None:
            by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
            print(profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60))
        return result, seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak(clock: Clock) -> float:
    """The rate of a large matrix product in the number type that networks compute in, in TFLOP/s."""
    size, repeats = (8192, 20) if clock.device.type == "cuda" else (1024, 3)
    a, b = torch.randn(2, size, size, device=clock.device).to(fastest_dtype(clock.device))
    a @ b
    _, seconds = clock(lambda: [a @ b for _ in range(repeats)])
    return repeats * 2 * size**3 / seconds / 1e12


def counted(function: Callable[[], Any]) -> float:
    """Multiplications and additions of what a function computes, by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    )


class Measure:
    """Runs steps, which return a result and a row of figures; adds peak memory and the share of the peak rate."""

    def __init__(self, device: torch.device, peak_tflops: float) -> None:
        self.device, self.peak_tflops = device, peak_tflops
        self.rows: list[dict[str, Any]] = []

    def __call__(self, name: str, step: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        result, row = step()
        row = {"what": name, **row, "share_of_peak": row["tflops"] / self.peak_tflops}
        row["peak_rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if self.device.type == "cuda":
            row["peak_device_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        return result


# ------------------------------------------------------------------------------------------------- features


class Slide:
    """An RGB image (3, side, side); what is read of it is cut out of one repeated pattern."""

    def __init__(self, side: int) -> None:
        self.shape = (3, side, side)
        self._pattern = np.random.default_rng(0).integers(0, 256, (3, PATTERN_PX, PATTERN_PX), dtype=np.uint8)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        rows, columns = (np.arange(part.start, part.stop) % PATTERN_PX for part in key[1:])
        return self._pattern[:, rows[:, None], columns]


def features(arguments: argparse.Namespace, clock: Clock) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """The feature map (dim, rows, columns) of a slide, read tile by tile."""
    tiling = Tiling.of(random_encoder(arguments.architecture, clock.device))
    batches = Batches(tiling.encoder, arguments.batch)
    slide, side = Slide(arguments.side), arguments.side // PATCH_PX
    tissue = np.ones((side, side), dtype=bool)
    parts = [slice(first, min(first + CHUNK, side)) for first in range(0, side, CHUNK)]
    blocks = [tiling.block(*rows_and_columns, tissue) for rows_and_columns in product(parts, repeat=2)]
    out = np.zeros((tiling.encoder.dim, side, side), dtype=np.float16)

    def read(block: Block) -> NDArray[np.uint8]:
        window = tiling.window(slide.shape, tiling.encoder.mpp, block)
        return window.resampled(window.of_image(slide))

    def encode(block: Block, picture: NDArray[np.uint8]) -> NDArray[np.float16]:
        return tiling.join(batches(tiling.cut(picture, block)), block, tissue)

    def run() -> None:
        with ThreadPoolExecutor(arguments.readers) as threads:
            for block, picture in ahead(threads, read, blocks, arguments.readers):
                out[:, block.rows, block.columns] = encode(block, picture)

    first = blocks[0]
    operations = counted(lambda: encode(first, read(first))) / len(first.tiles)  # the device warms up
    _, seconds = clock(run)
    tiles = sum(len(block.tiles) for block in blocks)
    row = {"seconds": seconds, "tiles": tiles, "tiles_per_s": tiles / seconds, "gflop_per_tile": operations / 1e9}
    return out, {**row, "tflops": tiles * operations / seconds / 1e12}


def random_encoder(architecture: str, device: torch.device) -> TimmViT:
    """The encoder as sphistex loads it from a file, of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.safetensors"
        options = {"num_classes": 0, "dynamic_img_size": True, "init_values": 1e-5}
        save_file(timm.create_model(architecture, pretrained=False, **options).state_dict(), weights)
        return TimmViT(architecture, weights=weights, device=str(device), revision="random", init_values=1e-5)


def ahead(
    threads: ThreadPoolExecutor, read: Callable[[Block], NDArray], blocks: list[Block], how_many: int
) -> Iterator[tuple[Block, NDArray]]:
    """Blocks and their pictures, in order, some of them read ahead."""
    waiting: deque[tuple[Block, Any]] = deque()
    for block in blocks:
        waiting.append((block, threads.submit(read, block)))
        if len(waiting) > how_many:
            ready, picture = waiting.popleft()
            yield ready, picture.result()
    for ready, picture in waiting:
        yield ready, picture.result()


# ------------------------------------------------------------------------------------------------- training


def training(arguments: argparse.Namespace, clock: Clock, dim: int) -> tuple[Any, dict[str, Any]]:
    """A fit of all models; of it, the epochs."""
    device, chosen = clock.device, parameters(n_models=arguments.models)
    data, profile = bag_data(arguments, device, dim, chosen)
    areas = data.weight.sum(1)

    def fit(epochs: int, times: list[float]) -> Any:
        torch.manual_seed(0)
        network = HISTEX(
            chosen.n_models,
            dim,
            data.spots.shape[-1],
            data.counts.shape[1],
            contexts=len(chosen.context),
            embed=chosen.embed,
            d=chosen.d,
            heads=chosen.heads,
            layers=chosen.layers,
            residual=chosen.residual,
            hidden=chosen.hidden,
            dropout=chosen.dropout,
        )
        initialise_at_mean(network)
        objective = PoissonCounts(data.counts, areas).to(device)
        log = train(
            network.to(device),
            objective,
            data,
            held_out.to(device),
            epochs=epochs,
            patience=chosen.patience,
            batch_size=suitable_batch(data.weight, held_out),
            learning_rate=chosen.learning_rate,
            weight_decay=chosen.weight_decay,
            schedule=chosen.schedule,
            genes_per_step=chosen.genes_per_step,
            on_epoch=lambda *_: times.append(time.perf_counter()),
        )
        return network, objective, log

    held_out = folds(len(data), chosen.n_models, share=chosen.holdout)
    operations = counted(lambda: fit(1, []))  # the device warms up
    times = [time.perf_counter()]
    (network, objective, log), seconds = clock(lambda: fit(arguments.epochs, times))
    per_epoch = (times[-1] - times[1]) / (len(times) - 2) if len(times) > 2 else seconds
    trained = float((~held_out).sum())
    row = {
        "seconds": seconds,
        "epochs": len(times) - 1,
        "bags": len(data),
        "bags_models_per_s": trained / per_epoch,
        "gflop_per_bag": operations / trained / 1e9,
        "tflops": operations / per_epoch / 1e12,
        "validation_loss": [log.validation[0], min(log.validation)],
    }
    return SimpleNamespace(network=network, objective=objective, data=data, profile=profile, parameters=chosen), row


def bag_data(arguments: argparse.Namespace, device: torch.device, dim: int, chosen: Any) -> tuple[BagData, LogProfiles]:
    """Bags of superpixels whose random features decide the counts; halves of these are drawn for every epoch."""
    size, dtype = BAG_SIDE**2, fastest_dtype(device)
    n_bags = min(arguments.spots * (4 if arguments.enhanced else 1), MAX_INSTANCES // size)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    superpixels = torch.empty(len(chosen.context), n_bags * size, dim, dtype=dtype, device=device)
    hidden, effects = normal(dim, 16) / dim**0.5, 0.3 * normal(16, arguments.genes)
    level = 0.2 * normal(arguments.genes).exp()
    counts = torch.empty(n_bags, arguments.genes, device=device)
    for first in range(0, n_bags, 256):
        bags = slice(first, min(first + 256, n_bags))
        rows = slice(bags.start * size, bags.stop * size)
        own = normal(rows.stop - rows.start, dim)
        superpixels[0, rows] = own.to(dtype)
        superpixels[1:, rows] = normal(len(superpixels) - 1, *own.shape).to(dtype)
        rates = level * (own @ hidden @ effects).exp()
        counts[bags] = torch.poisson(rates.unflatten(0, (-1, size)).sum(1), generator)
    measured = counts[: arguments.spots]
    profile = LogProfiles(measured.cpu()).to(device)
    order = torch.rand(n_bags, len(measured), generator=generator, device=device).topk(chosen.neighbours).indices
    place, host = torch.zeros(n_bags, chosen.neighbours, PLACE, device=device), counts.cpu()

    def tokens(seen: Tensor) -> Tensor:
        return torch.cat([profile(seen[: arguments.spots])[order], place], -1)

    def draw(drawn: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As a fit does: one half of the counts is to be explained, the other is seen."""
        seen = 2 * torch.binomial(host, torch.tensor(0.5).expand(host.shape), generator=drawn).to(device)
        shown = torch.ones(order.shape, dtype=torch.bool, device=device)
        shown[:, 0] = (torch.rand(n_bags, generator=drawn) >= chosen.own_dropout).to(device)
        return 2 * counts - seen, tokens(seen), shown

    index = torch.arange(n_bags * size, device=device).view(n_bags, size)
    shown = torch.ones(order.shape, dtype=torch.bool, device=device)
    weight = torch.ones(index.shape, device=device)
    return BagData(superpixels, index, weight, counts, tokens(counts), shown, dtype=dtype, draw=draw), profile


def published(arguments: argparse.Namespace, clock: Clock, data: BagData) -> tuple[None, dict[str, Any]]:
    """The published loop on the same bags, one model; its epochs after the first."""
    device, superpixels = clock.device, data.features[0].float()[data.index]
    scaled = (data.counts - data.counts.min(0).values) / (data.counts.max(0).values - data.counts.min(0).values + 1e-8)
    tokens = scaled[torch.randint(len(scaled), (len(scaled), NEIGHBOURS), device=device)]
    d, epochs = parameters().d, arguments.reference_epochs
    times: list[float] = []

    def on_epoch(_epoch: int, seconds: float, _model: Any) -> None:
        times.append(seconds)

    clock(lambda: reference.train(superpixels, tokens, scaled, d=d, epochs=epochs + 1, on_epoch=on_epoch))
    per_epoch = (times[-1] - times[0]) / epochs
    operations = reference.operations(len(scaled), BAG_SIDE**2, NEIGHBOURS, superpixels.shape[-1], scaled.shape[-1], d)
    rate = len(scaled) / per_epoch
    return None, {"d": d, "bags_models_per_s": rate, "tflops": operations / per_epoch / 1e12}


# ----------------------------------------------------------------------------------------------- prediction


class Nearest:
    """Tokens of the spots nearest to places, without SciPy's trees."""

    def __init__(self, xy_um: NDArray, profiles: Tensor, k: int) -> None:
        self._xy_um, self._profiles, self._k = torch.from_numpy(xy_um), profiles.float().cpu(), k

    def around(self, centres_um: NDArray) -> NDArray[np.float32]:
        index = torch.cdist(torch.from_numpy(centres_um), self._xy_um).topk(self._k, largest=False).indices
        return torch.cat([self._profiles[index], torch.zeros(*index.shape, PLACE)], -1).numpy()


def prediction(
    arguments: argparse.Namespace, clock: Clock, trained: Any, feature_map: NDArray[np.float16]
) -> tuple[None, dict[str, Any]]:
    """Counts of all superpixels and genes by the networks, block by block."""
    side, n_genes, n_contexts = feature_map.shape[1], arguments.genes, len(trained.parameters.context)
    device = clock.device
    blank = torch.zeros(n_contexts * len(feature_map), device=device)
    model: Any = SimpleNamespace(  # what a map asks of a fitted model, which itself needs SciPy
        module=SimpleNamespace(
            network=trained.network, objective=trained.objective, scaling=SimpleNamespace(mean=blank, std=blank + 1)
        ),
        parameters=trained.parameters,
        image_share=np.ones(n_genes),
        pitch_um=8.0,
        window_um=27.5,
        device=device,
        dtype=fastest_dtype(device),
    )
    places = np.random.default_rng(0).uniform(0, side * model.pitch_um, (arguments.spots, 2))
    positions: Any = Nearest(
        places, trained.profile(trained.data.counts[: arguments.spots]), model.parameters.neighbours
    )
    mask = np.ones((side, side), dtype=bool)
    features = FeatureMap(feature_map, mask, model.parameters.context)
    mapper = Mapper(model, features, positions, GeneReader.of(model, None, None))
    windows = list(mapper.features.blocks())

    def block(window: Any) -> None:
        for _ in mapper.parts(window):
            pass

    operations = counted(lambda: block(windows[0])) * mask.size / mask[windows[0]].size  # the device warms up
    _, seconds = clock(lambda: [block(window) for window in windows])
    row = {"seconds": seconds, "superpixels": mask.size, "superpixels_per_s": mask.size / seconds}
    return None, {**row, "tflops": operations / seconds / 1e12}


if __name__ == "__main__":
    main()
