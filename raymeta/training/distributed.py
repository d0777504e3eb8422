"""Data parallelism over episodes: sharding, and summing over ranks.

`DistributedDataParallel` hooks into `backward()`, which exact meta-gradients do not use.  Instead
each rank adds up the meta-gradients of its own episodes, and one all-reduce of one flat float64
buffer sums gradients, losses and counts over all ranks: right for shards of any size, even none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """One rank's view of the data-parallel workers of a training run."""

    rank: int = 0
    world_size: int = 1

    def shard(self, indices: Sequence[int]) -> Sequence[int]:
        """This rank's share: contiguous, sizes differing by one at most."""
        size, rest = divmod(len(indices), self.world_size)
        start = self.rank * size + min(self.rank, rest)
        return indices[start : start + size + (self.rank < rest)]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks; every rank gets the same bits."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        """All ranks' shards `[n, ...]` of a table of `num_rows` rows, in order."""
        table = rows.new_zeros(num_rows, *rows.shape[1:])
        table[list(self.shard(range(num_rows)))] = rows
        return self.sum(table)


def join_group(
    rank: int, world_size: int, init_method: str, backend: str, timeout_s: float
) -> Group:
    """Joins the process group that every rank joins with the same `init_method`.

    Args:
        rank: of this process.
        world_size: number of ranks.
        init_method: as torch takes it, such as `tcp://HOST:PORT`, HOST being rank 0's.
        backend: `nccl` where each rank has a GPU of its own, `gloo` elsewhere (NCCL refuses two
            ranks on one device; gloo takes CUDA tensors by way of the host).
        timeout_s: seconds that a rank waits for the others.
    """
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return Group(rank, world_size)
