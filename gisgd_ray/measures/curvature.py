"""Trace of the Hessian of the mean loss: exact where the network allows, else estimated.

Exact (PAPER section 2, derived). In a piecewise-linear network every d^2 f / d w_i^2 is zero, so
Tr H equals the trace of the Gauss-Newton matrix. With p = softmax(f(x))::

    cross-entropy   Tr H(x) = sum_k p_k || grad_w l(w, (x, k)) ||^2
    squared loss    Tr H(x) = sum_k || grad_w f_k(x) ||^2

K passes of per-sample gradient *norms*: no probes, no second-order graph, independent of labels.

Estimated. PyHessian's Hutchinson probes, a fixed number of them (its own stopping rule compares
running means, which is no accuracy), reported with the standard error over probes.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from backpack import disable
from pyhessian import hessian
from torch import Tensor, nn

from gisgd_ray.errors import UserError
from gisgd_ray.measures.displaced import default_chunk
from gisgd_ray.measures.invisible import invisible
from gisgd_ray.networks.losses import LossName, MeanLoss
from gisgd_ray.networks.models import is_piecewise_linear
from gisgd_ray.networks.per_sample import LayerNorms, uncovered_layer


@dataclass(frozen=True)
class HessianTrace:
    """Tr E_Z[H_w(Z)] with its standard error (0 when exact) and the estimator that gave it."""

    value: float
    standard_error: float
    estimator: Literal["exact", "pyhessian"]


def hessian_trace(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    method: Literal["auto", "exact", "pyhessian"] = "auto",
    probes: int = 50,
    seed: int = 0,
    chunk: int | None = None,
) -> HessianTrace:
    """Trace at the current weights over (inputs (n, ...), targets (n,)); leaves no trace itself.

    ``chunk`` samples are differentiated at once; by default 1,000, or 200 with convolutions, whose
    unfolded inputs are large. It changes memory and time, not the result.

    Raises:
        UserError: ``exact`` asked of a network that it does not cover.
    """
    chunk = chunk or default_chunk(model)
    with invisible(model, seed=seed, purpose="hessian_trace"):
        if method == "exact" or (method == "auto" and _why_not_exact(model) is None):
            value = exact_trace(model, inputs, loss=loss, chunk=chunk)
            return HessianTrace(value, 0.0, "exact")
        return _pyhessian_trace(model, inputs, targets, loss=loss, probes=probes, chunk=chunk)


def exact_trace(model: nn.Module, inputs: Tensor, *, loss: LossName, chunk: int) -> float:
    """Mean over samples of the exact Tr H(x); call through :func:`hessian_trace`."""
    obstacle = _why_not_exact(model)
    if obstacle is not None:
        raise UserError(
            "measurement.hessian_trace = 'exact' needs a piecewise-linear network (linear, plain "
            f"convolution, ReLU, pooling), but {obstacle}; use 'pyhessian' or 'auto'"
        )
    norms = LayerNorms(model)
    total = 0.0
    try:
        for x in inputs.split(chunk):
            with norms.one_forward():
                scores = model(x)
                weights = scores.detach().softmax(dim=1).double()
                for k in range(scores.shape[1]):
                    if loss == "cross_entropy":
                        squared = norms.squared_of(scores.logsumexp(dim=1) - scores[:, k])
                        total += float((squared.double() * weights[:, k]).sum())
                    else:
                        total += float(norms.squared_of(scores[:, k]).double().sum())
    finally:
        norms.remove()
    return total / len(inputs)


def _why_not_exact(model: nn.Module) -> str | None:
    """What keeps the exact form from this network in its present mode, or None."""
    uncovered = uncovered_layer(model)
    if uncovered is not None:
        return f"layer {uncovered}"
    if any(getattr(module, "inplace", False) for module in model.modules()):
        return "a layer overwrites the output of the one before (inplace = True)"
    return None if is_piecewise_linear(model) else "it has a layer of another kind"


def _pyhessian_trace(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, loss: LossName, probes: int, chunk: int
) -> HessianTrace:
    batches = list(zip(inputs.split(chunk), targets.split(chunk), strict=True))
    with warnings.catch_warnings(), disable():
        # PyTorch warns that create_graph may leak through .grad; invisible() drops those grads.
        warnings.filterwarnings("ignore", message=".*create_graph=True.*")
        single = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
        # Its flag means one device, "cuda", and moves what is there already: only where its probes
        # are drawn need be told.
        estimator = hessian(model, MeanLoss(loss), cuda=False, **single)
        estimator.device = inputs.device
        # Only a tolerance of -inf switches its stopping rule off: the rule divides by the running
        # mean without its sign, so that with tol=0 a negative mean still ends it at once.
        draws = torch.tensor(estimator.trace(maxIter=probes, tol=-math.inf), dtype=torch.float64)
    error = float(draws.std(correction=1)) / len(draws) ** 0.5
    return HessianTrace(float(draws.mean()), error, "pyhessian")
