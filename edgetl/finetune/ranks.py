"""Several processes that train one network: who am I, and what do the others say?

Every process runs the whole stage; what is written, and what people read, comes from the first alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["ALONE", "Ranks", "joined"]

T = TypeVar("T")

# While the first one trains a head on many pictures the others wait; a process that fails is noticed by its parent.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Ranks:
    """One process's place among those that train together.

    Attributes:
        rank: Of this process, from 0.
        count: Of all processes.
        local: Of this process on its machine, from 0.
        devices: Processes on each machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    devices: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.count // self.devices

    def device(self) -> torch.device:
        """Returns this process's GPU, or the CPU."""
        return torch.device("cuda", self.local) if torch.cuda.is_available() else torch.device("cpu")

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this process's share: every one of them, where there are too few to share."""
        return items[self.rank :: self.count] if self.shares(items) else items

    def shares(self, items: Sequence[Any]) -> bool:
        """Tells whether `part` gives every process something of its own."""
        return self.count > 1 and len(items) >= self.count

    def gathered(self, mine: T) -> list[T]:
        """Returns what every process has, in the order of ranks."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found

    def flags(self, mine: int) -> int:
        """Returns the bits that any process has set."""
        if self.count == 1:
            return mine
        flags = torch.tensor([mine >> bit & 1 for bit in range(8)], dtype=torch.int32, device=self._wire())
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return sum(int(value) << bit for bit, value in enumerate(flags.tolist()))

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Returns the sums over all processes."""
        if self.count == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float32, device=self._wire())
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.count > 1:
            dist.barrier()

    def _wire(self) -> torch.device:
        """Returns where tensors have to be to be exchanged."""
        return self.device() if dist.get_backend() == "nccl" else torch.device("cpu")


ALONE = Ranks()


@contextmanager
def joined(rank: int, devices: int, nodes: int) -> Iterator[Ranks]:
    """Joins the processes of one training; MASTER_ADDR and MASTER_PORT say where they meet.

    Args:
        rank: Of this process, from 0; those of one machine are neighbours.
        devices: Processes on each machine.
        nodes: Machines.
    """
    count, local = devices * nodes, rank % devices
    node = rank // devices
    # Lightning reads these: it then starts no processes of its own.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local), NODE_RANK=str(node), WORLD_SIZE=str(count))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Ranks(rank, count, local, devices)
    finally:
        dist.destroy_process_group()
