"""Several processes that train one network on several GPUs or machines.

Started by ``torchrun`` or by SLURM's ``srun``, both of which tell each process its place in environment variables; a
process that is told nothing trains alone. Each process computes the gradient of its share of every batch, and all take
the same step on the mean of the gradients.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from event_sam3d_ros.errors import ConfigurationError

DEFAULT_PORT = 29_500  # torchrun's


@dataclass(frozen=True)
class Place:
    """A process's ``rank`` among ``count``, its ``local_rank`` on its machine, and where rank 0 listens."""

    rank: int
    local_rank: int
    count: int
    address: str
    port: int


def find_place(environment: Mapping[str, str]) -> Place | None:
    """What torchrun (RANK, WORLD_SIZE, ...) or SLURM (SLURM_PROCID, SLURM_NTASKS, ...) says; None for a lone process.

    Raises ConfigurationError for variables that contradict each other or are no numbers.
    """
    prefix = "SLURM_" if "RANK" not in environment and "SLURM_PROCID" in environment else ""
    rank, count, local = (
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if prefix else ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if rank not in environment or environment.get(count, "1") == "1":
        return None
    try:
        place = Place(
            rank=int(environment[rank]),
            local_rank=int(environment.get(local, 0)),
            count=int(environment[count]),
            address=environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_JOB_NODELIST", "localhost")),
            port=int(environment.get("MASTER_PORT") or DEFAULT_PORT + int(environment.get("SLURM_JOB_ID", 0)) % 1000),
        )
    except ValueError as error:
        raise ConfigurationError(f"{rank}, {count}, {local} or MASTER_PORT is not a number: {error}") from error
    if not 0 <= place.rank < place.count:
        raise ConfigurationError(f"{rank}={place.rank} is outside 0 to {count}-1={place.count - 1}")
    return place


def _first_host(nodes: str) -> str:
    """The first name of SLURM's list of machines: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


@dataclass(frozen=True)
class Team:
    """The processes of one training run, seen from one of them. ``device``: what this process computes on."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and draws the progress bar."""
        return self.rank == 0

    def share(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's samples of a whole batch, on its device."""
        return {name: tensor[self.rank :: self.count].to(self.device) for name, tensor in batch.items()}

    def same(self, value: int) -> bool:
        """Whether all processes hold the same number."""
        return self.count == 1 or float(mean(torch.tensor(float(value), device=self.device))) == value

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are averaged over all processes; it starts with rank 0's weights."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # a step need not use all weights: events or RGB may be missing from it
        return nn.parallel.DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def whole_batch(rows: int) -> tuple[int, slice]:
    """The size of the batch of which this process has ``rows`` samples, and which of its samples those are.

    What chance decides for each sample is drawn for the whole batch, from random numbers that all processes share, and
    each takes its own rows of it; else two processes would train on other choices than one.
    """
    rank, count = _rank_and_count()
    return rows * count, slice(rank, None, count)


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, the same in each; no gradient goes through it."""
    _, count = _rank_and_count()
    if count == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / count


def _rank_and_count() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def join(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Team]:
    """Meets the other processes, if there are any; once, for torchrun's store keeps the addresses of a first meeting,
    and a second one would wait for them. At the end of the block all wait for each other. ``device``: "cpu" or "cuda"
    (with a number for a lone process only: in a team each takes the GPU of its local rank)."""
    place = find_place(environment)
    if place is None:
        yield Team(torch.device(device))
        return
    chosen = torch.device("cuda", place.local_rank) if device.startswith("cuda") else torch.device(device)
    if chosen.type == "cuda":
        if place.local_rank >= torch.cuda.device_count():
            raise ConfigurationError(
                f"process {place.local_rank} of this machine has no GPU of its own: it has "
                f"{torch.cuda.device_count()}; start no more processes than GPUs, or give --device cpu"
            )
        torch.cuda.set_device(chosen)
    if not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            init_method=f"tcp://{place.address}:{place.port}" if "RANK" not in environment else "env://",
            rank=place.rank,
            world_size=place.count,
        )
        atexit.register(distributed.destroy_process_group)
    yield Team(chosen, place.rank, place.count)
    distributed.barrier()  # the next phase reads what the first process has written
