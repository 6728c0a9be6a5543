"""What a training loop needs to know of its fellow workers: rank, size, and three collective operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Communicator:
    """A worker alone: rank 0 of 1, every operation leaves things as they are."""

    rank: int = 0
    size: int = 1

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker rank 0's values, in place."""

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the workers, in place; one message for all of them."""

    def gather(self, x: Tensor) -> Tensor:
        """Every worker's `(b, ...)`, rank after rank, `(size * b, ...)`; only this worker's rows carry a gradient."""
        return x


class ProcessGroup(Communicator):
    """The workers of the default `torch.distributed` process group (gloo on CPU, NCCL on GPUs).

    Args:
        first: only the first so many of them, all when empty. Every worker makes this together, those too that do not belong.
    """

    def __init__(self, first: int | None = None) -> None:
        self.rank, self.size = dist.get_rank(), first or dist.get_world_size()
        self._group = None if first is None else dist.new_group(list(range(first)))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """See `Communicator`."""
        for tensor in tensors:
            dist.broadcast(tensor, src=0, group=self._group)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """See `Communicator`."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, x: Tensor) -> Tensor:
        """See `Communicator`."""
        parts = [torch.empty_like(x, requires_grad=False) for _ in range(self.size)]
        dist.all_gather(parts, x.detach().contiguous(), group=self._group)
        parts[self.rank] = x
        return torch.cat(parts)


def share(count: int, group: int, communicator: Communicator) -> Tensor:
    """Rows of a global batch that this worker takes.

    The minibatch deviation compares row i with rows i + count / group, i + 2 count / group, ...; a share holds whole groups in
    the same order, so that the deviation of a share is that of the global batch.

    Args:
        count: rows of the global batch.
        group: rows of a deviation group; 1 where there are none.
        communicator: who asks.

    Returns:
        `(count / size,)`, ascending.

    Raises:
        ValueError: the groups cannot be shared out evenly.
    """
    columns = count // group
    if columns % communicator.size:
        raise ValueError(f"{count} rows in groups of {group} cannot be shared out evenly among {communicator.size} workers")
    mine = columns // communicator.size
    rows = torch.arange(count).view(group, columns)
    return rows[:, communicator.rank * mine : (communicator.rank + 1) * mine].flatten()
