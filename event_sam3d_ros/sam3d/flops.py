"""Counting the arithmetic of a network without doing it: run it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in ``function()``; a multiply-add is
    two.

    The formulas are torch's. Its own counter is blind to attention on the CPU and stumbles over views of parameters.
    """
    counter = _FlopCounter()
    with torch.no_grad(), counter:
        function()
    return counter.total


class _FlopCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result)
        return result


def _cpu_attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    """``query``: (B, heads, N, D), ``key``, ``value``: (B, heads, M, D)."""
    return 2 * query[..., 0].numel() * key.shape[2] * (query.shape[3] + value.shape[3])


_FORMULAS = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
