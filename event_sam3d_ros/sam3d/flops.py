"""Counting the arithmetic of a network without doing it: run it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in ``function()``; a multiply-add is
    two.

    torch's own counter is blind to one kernel, the one that computes attention on the CPU.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops}) as counter:
        function()
    return counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """``query``: shape (B, heads, N, D), ``key``, ``value``: (B, heads, M, D)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])
