"""Killed at random moments of features, training and prediction, the whole job ends as if it had not been."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import sphistex as sx

DRIVER = textwrap.dedent("""
    import os, random, shutil, signal, sys, time, warnings
    from pathlib import Path

    import numpy as np
    import torch
    from safetensors.numpy import load_file
    from spatialdata import read_zarr

    import sphistex as sx
    import sphistex.tl.super_resolve

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sx.settings.progress = False
    module = sys.modules["sphistex.tl.super_resolve"]
    PHASES = {"superpixel_features": "features", "fitted": "training", "predict_section": "prediction"}

    def colour(tiles):
        time.sleep(0.2)
        n, h, w, _ = tiles.shape
        return tiles.reshape(n, h // 16, 16, w // 16, 16, 3).mean((2, 4)) / 255

    def resolve(store, tell):
        for name, phase in PHASES.items():
            def entered(*args, function=getattr(module, name), phase=phase, **kwargs):
                os.write(tell, f"{phase} ".encode())
                return function(*args, **kwargs)
            setattr(module, name, entered)
        model = sx.tl.super_resolve(
            read_zarr(store), encoder=colour, epochs=25, n_models=2, d=32, hidden=(32,), context=(0, 2), device="cpu"
        )
        model.save(store.with_suffix(".model"))

    def child(work):
        # all work is done in children: a fork of a process that has started threads would hang
        listen, tell = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(listen)
            work(tell)
            os._exit(0)
        os.close(tell)
        return pid, listen

    def completed(work):
        pid, listen = child(lambda _: work())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(listen)

    def moments(store):
        \"\"\"A run to the end: when its phases began, and when it ended.\"\"\"
        pid, listen = child(lambda tell: resolve(store, tell))
        found = []
        while phase := os.read(listen, 100):
            found.append(time.monotonic())
        found.append(time.monotonic())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(listen)
        return found

    def kill_in(store, phase, seconds):
        \"\"\"Whether a run could be killed so many seconds after this phase began.\"\"\"
        pid, listen = child(lambda tell: resolve(store, tell))
        said = b""
        while phase not in said.decode() and (more := os.read(listen, 100)):
            said += more
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(listen)
        assert status in (0, -signal.SIGKILL), status
        return status != 0

    def done(store):
        return (store / "tables" / "superres").exists()

    def look(store):
        found = read_zarr(store)
        assert set(found.images) - {"superpixel_features"} == {"image"}
        assert "superres" not in found.tables or "superres_labels" in found.labels
        print(*(["done"] if "superres" in found.tables else []), flush=True)

    def compare(store, reference):
        found, expected = (read_zarr(path).tables["superres"] for path in (store, reference))
        np.testing.assert_array_equal(found.X, expected.X)
        if not (model := store.with_suffix(".model")).exists():
            return  # killed when all was in place
        found, expected = (load_file(path.with_suffix(".model") / "model.safetensors") for path in (store, reference))
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)

    folder, kills, rng, round_ = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0), 0
    reference = shutil.copytree(folder / "section.zarr", folder / "reference.zarr")
    began = moments(reference)
    lasted = {phase: end - begin for phase, begin, end in zip(PHASES.values(), began, began[1:])}
    while kills > 0:
        store = shutil.copytree(folder / "section.zarr", folder / f"round{round_}.zarr")
        round_ += 1
        assert round_ < 30
        for phase in PHASES.values():
            if done(store):  # sooner than expected
                break
            if kill_in(store, phase, rng.uniform(0, lasted[phase])):
                kills -= 1
                print("killed", phase, end=" ", flush=True)
                completed(lambda: look(store))
        if not done(store):
            moments(store)
        completed(lambda: compare(store, reference))
""")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_the_result_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    sx.datasets.simulate(size_um=700, n_genes=8).write(tmp_path / "section.zarr")
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), "20"], capture_output=True, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    killed = Counter(line.split()[1] for line in run.stdout.splitlines() if line.startswith("killed"))
    assert killed.total() >= 20
    assert set(killed) == {"features", "training", "prediction"}
