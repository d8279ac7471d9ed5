"""Muon beside AdamW in one optimizer: what trains the small teacher within the hour."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for everything else.

    A matrix moves along its momentum made orthogonal, so in all directions alike. Its step is as
    long as AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both.
    ``torch.optim.Muon`` takes no other parameters, and orthogonalizes in bfloat16, one matrix at a
    time, which is slow on a CPU.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.01) -> None:
        named = dict(model.named_parameters())
        inner = {name for name, p in named.items() if ".layer." in name and p.ndim == 2}
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named.items() if p.ndim == 2 and name not in inner]},
            {"params": [p for p in named.values() if p.ndim != 2], "weight_decay": 0.0},
            {"params": [named[name] for name in named if name in inner], "muon": True},
        ]
        super().__init__(groups, lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for state in state_dict["state"].values():  # AdamW expects its own count of steps
            state.setdefault("step", torch.tensor(0.0))
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = next(g for g in self.param_groups if g.get("muon"))
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for p in group["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 0.05)
            shapes.setdefault(tuple(p.shape), []).append(p)
        for shape, matrices in shapes.items():
            grads = torch.stack([p.grad for p in matrices if p.grad is not None])
            momenta = torch.stack([self.state[p]["momentum"] for p in matrices])
            ways = orthogonal(grads.lerp(momenta, 0.95))
            for p, way in zip(matrices, ways, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(way, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))
                p.grad = None  # so that AdamW passes it over
        return super().step(closure)


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, rows, columns), with the singular values of each near 1 (five Newton-Schulz steps)."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x
