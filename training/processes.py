"""The processes that train together: one, or as many as `accelerate launch` or `torchrun` started.

A batch of n samples is shared by rows: process i of p makes the samples i n / p to (i + 1) n / p of the same
batch that one process would make alone. Gradients are averaged, so that the curve does not depend on p beyond
rounding. Which process group that takes (NCCL, gloo) and the copies of the model in it are `accelerate`'s.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require
from ..runtime.errors import EngineError, InputError


class Processes:
    """This process alone; `_SeveralProcesses` is the same for several.

    Attributes:
        device: where this process computes.
        count, index: how many there are, and which one this is.
    """

    def __init__(self, device: torch.device, count: int = 1, index: int = 0) -> None:
        self.device, self.count, self.index = device, count, index

    @property
    def main(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self.index == 0

    def rows(self, batch: int) -> range:
        """This process's part of a batch of that many samples.

        Raises:
            InputError: the batch does not split evenly.
        """
        if batch % self.count:
            raise InputError(
                f"A batch of {batch} does not split into {self.count} equal parts.",
                f"Start another number of processes, or make 'batch' a multiple of {self.count}.",
            )
        own = batch // self.count
        return range(self.index * own, (self.index + 1) * own)

    def wrap(self, module: nn.Module, *, some_unread: bool = False) -> nn.Module:
        """A module whose backward pass averages gradients over the processes, with process 0's weights.

        Args:
            module: the same in every process.
            some_unread: trained parameters may get no gradient. Looking for them takes time.
        """
        return module

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, element by element; no gradient."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return flag

    def balance(self, mean: Tensor, count: Tensor) -> Tensor:
        """Make a mean over this process's items weigh as much as its share of all items.

        The average over processes of the result is the mean over all items, whichever process has them.

        Args:
            mean: scalar, over `count` items.
            count: scalar, the items (or the sum of their weights) in this process; no gradient.
        """
        return mean

    def from_main(self, value: Any) -> Any:
        """`value` of process 0, in every process."""
        return value

    def close(self) -> None:
        """Leave the group."""


class _SeveralProcesses(Processes):
    def __init__(self, device: str) -> None:
        require("train", "accelerate")
        from accelerate import Accelerator

        # The recipe says the precision, whatever the launcher was told.
        self._accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
        state = self._accelerator.state
        super().__init__(self._accelerator.device, state.num_processes, state.process_index)
        if self.device.type != device:
            raise EngineError(f"--device {device} was asked for, but accelerate chose {self.device}.")
        # One that is refused at once must not leave while others still connect to it: they would say that its
        # connection was closed, and not why.
        self._accelerator.wait_for_everyone()

    def wrap(self, module: nn.Module, *, some_unread: bool = False) -> nn.Module:
        from accelerate.utils import DistributedDataParallelKwargs

        self._accelerator.ddp_handler = DistributedDataParallelKwargs(
            broadcast_buffers=False,  # they never change: where they would, in stage "depth", `Run` refuses
            find_unused_parameters=some_unread,
        )
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def mean(self, values: Tensor) -> Tensor:
        result: Tensor = self._accelerator.reduce(values.detach(), "mean")
        return result

    def any(self, flag: bool) -> bool:
        return bool(self.mean(torch.tensor(float(flag), device=self.device)) > 0)

    def balance(self, mean: Tensor, count: Tensor) -> Tensor:
        average = self.mean(count.float())
        return mean * (count / torch.where(average > 0, average, 1.0))

    def from_main(self, value: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value if self.main else None])[0]

    def close(self) -> None:
        self._accelerator.end_training()


def join_processes(device: str) -> Processes:
    """Join the processes started with this one, as the launcher's environment tells.

    Args:
        device: "cpu" or "cuda" (of several GPUs: the one of this process's local rank).

    Raises:
        EngineError: there is no such device here, or several processes without `accelerate`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "--device cuda was asked for, but PyTorch finds no CUDA device.",
            "Use --device cpu, or install a PyTorch with CUDA and the driver it needs.",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _SeveralProcesses(device)
    return Processes(torch.device(device))
