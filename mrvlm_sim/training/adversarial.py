"""Adversarial training: every batch is attacked before it is learned from (Madry et al., 2018)."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from mrvlm_sim.agents.card import AdversarialTraining
from mrvlm_sim.metrics.attacks.gradient import PGD


def attacked(
    tokens: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    adversary: AdversarialTraining,
    done: float,
    rng: np.random.Generator,
) -> Mapping[str, Tensor]:
    """Tokens (B, N, values) in [0, 1], changed to raise the loss, after so great a part of all updates.

    The attacker may change every token of every view by eps, on its own. That holds all that it could do to the sensor
    frame, as the values of a view are means over pixels, and more. It sees how the jitter fell, and the size grows
    from nothing over the first `warm_up` of the updates (Gowal et al., 2018): a network that can do nothing yet learns
    nothing from being attacked.
    """
    eps = adversary.eps * min(1.0, done / adversary.warm_up)
    if eps == 0:
        return tokens
    size = eps if adversary.steps == 1 else PGD.relative_step * eps / adversary.steps
    cameras = list(tokens)
    changed = {c: _within(tokens[c], tokens[c] + _noise(tokens[c], eps, rng), eps) for c in cameras}
    for _ in range(adversary.steps):
        leaves = {c: changed[c].detach().requires_grad_() for c in cameras}
        slopes = torch.autograd.grad(loss(leaves), [leaves[c] for c in cameras])
        changed = {
            c: _within(tokens[c], leaves[c].detach() + size * slope.sign(), eps)
            for c, slope in zip(cameras, slopes, strict=True)
        }
    return changed


def _noise(tokens: Tensor, eps: float, rng: np.random.Generator) -> Tensor:
    generator = torch.Generator(tokens.device).manual_seed(int(rng.integers(2**62)))
    return torch.empty_like(tokens).uniform_(-eps, eps, generator=generator)


def _within(clean: Tensor, changed: Tensor, eps: float) -> Tensor:
    return (clean + (changed - clean).clamp(-eps, eps)).clamp(0, 1)
