"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum steps made orthogonal.

torch.optim.Muon is not used, for it computes in bfloat16, which CPUs without units for it do 13 times more slowly than
this does in the weights' own precision, and takes no convolution kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz iteration whose slope at zero is as large as can be (the post's coefficients): after five steps
# all singular values lie in about 0.7 .. 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """(n, m) -> (n, m), with the same singular vectors and singular values near 1."""
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; a kernel (out, in, h, w) is seen as the matrix (out, in * h * w).

    ``lr``: a step's spectral norm, times sqrt(max(1, out / in)); momentum is Nesterov's.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients; ``closure`` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(weight)
        mean = state["mean"]
        mean.lerp_(weight.grad, 1 - group["momentum"])
        ahead = weight.grad.lerp(mean, group["momentum"]).flatten(1)
        scale = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonalise(ahead).view_as(weight), alpha=-group["lr"] * scale)
