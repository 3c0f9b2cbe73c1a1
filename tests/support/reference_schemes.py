"""Brute forces of training schemes: the stated objective in one graph, differentiated once."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gisgd_ray.seeds import derived_seed
from tests.support.reference import sample_loss

Weights = list[Tensor]


def gmp_deltas(model: nn.Module, *, seed: int, step: int, std: float, draws: int) -> list[Weights]:
    """delta_1 .. delta_k of one step: one stream, named by (seed, step), weight after weight."""
    stream = torch.Generator().manual_seed(derived_seed(seed, "gmp", step))
    return [
        [torch.empty_like(w).normal_(0, std, generator=stream) for w in model.parameters()]
        for _ in range(draws)
    ]


def gmp_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: str,
    deltas: list[Weights],
    *,
    rho: float,
    variant: str,
) -> Weights:
    """Gradient of the objective with these draws, the model left as it is.

    average: (1-rho) L(w) + rho/k sum L(w + delta_i); absolute: L(w) + rho/k sum |L(w + delta_i) -
    L(w)|. L is the mean loss of the batch.
    """
    names = [name for name, _ in model.named_parameters()]
    w = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def risk(weights: Weights) -> Tensor:
        state = {name: value.clone() for name, value in model.named_buffers()}
        state |= dict(zip(names, weights, strict=True))
        outputs = functional_call(model, state, (inputs,))
        losses = [sample_loss(f, y, loss) for f, y in zip(outputs, labels.tolist(), strict=True)]
        return sum(losses) / len(losses)

    clean = risk(w)
    noisy = [risk([a + b for a, b in zip(w, delta, strict=True)]) for delta in deltas]
    if variant == "average":
        objective = (1 - rho) * clean + rho * sum(noisy) / len(noisy)
    else:
        assert variant == "absolute"
        objective = clean + rho * sum(abs(value - clean) for value in noisy) / len(noisy)
    return list(torch.autograd.grad(objective, w))
