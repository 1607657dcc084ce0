"""Measuring the memory that a computation takes, also where there is none: on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes in the tensors that ``function()`` makes, where they are most.

    What an operation needs inside itself is not seen: a convolution's workspace, and the scores of attention, which
    the kernels that torch has for GPUs and CPUs don't hold either.
    """
    meter = _Meter()
    with torch.inference_mode(), meter:  # else operations are taken to pieces before the meter sees them
        function()
    return meter.peak


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.users: dict[int, int] = {}  # live tensors by their storage, which views share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                self.now += 0 if self.users.get(key) else size
                self.users[key] = self.users.get(key, 0) + 1
                weakref.finalize(tensor, self._release, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def _release(self, key: int, size: int) -> None:
        self.users[key] -= 1
        self.now -= 0 if self.users[key] else size
