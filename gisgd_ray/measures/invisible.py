"""Measuring without a trace: what a measurement may disturb is put back bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gisgd_ray.randomness import isolated_rng


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards every module in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def invisible(model: nn.Module, *, seed: int = 0, purpose: str = "measurement") -> Iterator[None]:
    """Run a measurement on ``model`` in evaluation mode and restore all it may have changed.

    Restored: ``.grad`` of every parameter (the same tensor objects, untouched inside), train or
    eval mode of every module, buffers, parameter values, and the global random generators, which
    inside are seeded from (seed, purpose) so that the measurement itself is repeatable.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        with evaluating(model), isolated_rng(seed, purpose):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
