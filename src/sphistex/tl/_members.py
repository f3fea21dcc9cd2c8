"""The models of an ensemble trained on different workers of a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sphistex._cluster import bounded_map
from sphistex.encoders.base import resolve_device
from sphistex.nn.histex import HISTEX
from sphistex.nn.mil import Objective
from sphistex.nn.training import BagData, TrainingLog, train
from sphistex.settings import settings

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class OnWorkers:
    """In the place of :func:`sphistex.nn.training.train`: every model of the ensemble is a task of its own.

    The data go to the workers through a file, which they must be able to read, as they must the store of the sections.
    There each model leaves its checkpoints as well, so that the worker that takes over from one that died goes on with
    them.

    Parameters
    ----------
    client
        Client of the cluster.
    folder
        Where that file and the checkpoints are.
    device
        Where to train, as told by the user: ``"auto"`` is what the worker has.
    """

    client: Client
    folder: Path
    device: str

    def __call__(
        self, network: HISTEX, objective: Objective, data: BagData, held_out: Tensor, **how: Any
    ) -> TrainingLog:
        """See :func:`sphistex.nn.training.train`; all that is told of epochs is the log."""
        how = {name: value for name, value in how.items() if name != "on_epoch"}
        job = self._handed_over((network, objective, data, held_out, how))
        members = range(network.n_models)
        done: dict[int, tuple[dict[str, Tensor], TrainingLog]] = {}
        with tqdm(total=len(members), desc="training", unit="model", disable=not settings.progress) as bar:
            task = partial(_train_member, job, self.device)
            for member, trained in bounded_map(self.client, task, members, in_flight=len(members)):
                done[member] = trained
                bar.update()
        states, logs = zip(*(done[member] for member in members), strict=True)
        network.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})
        network.eval()
        return TrainingLog.joined(logs)

    def _handed_over(self, job: tuple[Any, ...]) -> Path:
        """The file in which the workers find what they need."""
        path = self.folder / "job.pt"
        unready = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(job, unready, pickle_module=cloudpickle)  # the functions inside are no one's by name
            os.replace(unready, path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            raise OSError(
                f"what is trained on the cluster goes to its workers through {path}, which cannot be written: {error}. "
                "Make room or give permission, or close the client to train here"
            ) from error
        return path


def _train_member(job: Path, device: str, member: int) -> tuple[dict[str, Tensor], TrainingLog]:
    """Weights of one model, on the CPU, and its log."""
    if not job.exists():
        raise FileNotFoundError(
            f"{job} cannot be read by the worker: workers must see the folder of the SpatialData store, or the cache "
            "folder of the settings if there is no store"
        )
    network, objective, data, held_out, how = torch.load(job, map_location=resolve_device(device), weights_only=False)
    network = network.take([member])
    checkpoint = job.with_name(f"member-{member}.pt")
    log = train(network, objective, data, held_out, members=[member], checkpoint=checkpoint, **how)
    return {name: value.cpu() for name, value in network.state_dict().items()}, log
