"""The Hessian of the mean loss over some samples: products, trace, largest eigenvalue.

Products. H v, by differentiating the gradient twice (Pearlmutter 1994).

Trace, exact (PAPER section 2, derived). In a piecewise-linear network every d^2 f / d w_i^2 is
zero, so Tr H equals the trace of the Gauss-Newton matrix. With p = softmax(f(x))::

    cross-entropy   Tr H(x) = sum_k p_k || grad_w l(w, (x, k)) ||^2
    squared loss    Tr H(x) = sum_k || grad_w f_k(x) ||^2

K passes of per-sample gradient *norms*: no probes, no second-order graph, independent of labels.

Trace, estimated. PyHessian's Hutchinson probes, a fixed number of them (its own stopping rule
compares running means, which is no accuracy), reported with the standard error over probes.

Largest eigenvalue. Lanczos' method: see :mod:`gisgd_ray.measures.lanczos`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from backpack import disable
from pyhessian import hessian
from torch import Tensor, nn

from gisgd_ray.errors import UserError
from gisgd_ray.measures import lanczos
from gisgd_ray.measures.displaced import default_chunk
from gisgd_ray.measures.invisible import evaluating, invisible
from gisgd_ray.networks.losses import LossName, MeanLoss, per_sample_loss
from gisgd_ray.networks.models import is_piecewise_linear, trainable
from gisgd_ray.networks.per_sample import LayerNorms, uncovered_layer
from gisgd_ray.seeds import derived_seed


@dataclass(frozen=True)
class HessianTrace:
    """Tr E_Z[H_w(Z)] with its standard error (0 when exact) and the estimator that gave it."""

    value: float
    standard_error: float
    estimator: Literal["exact", "pyhessian"]


class HessianOperator:
    """H = 1/n sum_i grad^2 l(w, z_i), d x d, at the model's current weights; leaves no trace.

    >>> H = HessianOperator(model, inputs, targets, "cross_entropy")
    >>> H @ v, H.trace().value, H.largest_eigenvalue().value

    Args:
        model: any network; in evaluation mode while measured. Frozen parameters are left out.
        inputs: (n, ...).
        targets: (n,), as :func:`gisgd_ray.networks.losses.per_sample_loss` takes them.
        loss: which.
        chunk: samples differentiated at once; by default 1,000 for the trace and 5,000 for
            products, or with convolutions, whose unfolded inputs are large, 200 and 500. It changes
            memory and time, not the result. Products whose samples are one chunk are cheapest: the
            gradient's graph is built once and kept.

    Raises:
        ValueError: no samples, or nothing trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: LossName,
        *,
        chunk: int | None = None,
    ):
        self._weights = trainable(model)
        if len(inputs) == 0 or not self._weights:
            raise ValueError("a Hessian needs samples and trainable parameters")
        self._model, self._inputs, self._targets, self._loss = model, inputs, targets, loss
        convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
        self._chunk = chunk or default_chunk(model)
        self._product_chunk = chunk or (500 if convolves else 5000)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """H v of a vector (d,), or H V of some, the columns of (d, k); of the weights' dtype."""
        with invisible(self._model, purpose="hessian"), self._products() as product:
            if vectors.dim() == 1:
                return product(vectors)
            return torch.stack([product(vector) for vector in vectors.T], dim=1)

    def trace(
        self,
        method: Literal["auto", "exact", "pyhessian"] = "auto",
        *,
        probes: int = 50,
        seed: int = 0,
    ) -> HessianTrace:
        """Tr H: by ``auto`` exact where the network allows, else estimated.

        Raises:
            UserError: ``exact`` asked of a network that it does not cover.
        """
        if method == "exact" or (method == "auto" and self._why_not_exact() is None):
            return self.trace_exact()
        return self.trace_estimate(probes, seed=seed)

    def trace_exact(self) -> HessianTrace:
        """Tr H of a piecewise-linear network.

        Raises:
            UserError: it is none, or has layers whose norms by sample are not known.
        """
        obstacle = self._why_not_exact()
        if obstacle is not None:
            raise UserError(
                "measurement.hessian_trace = 'exact' needs a piecewise-linear network (linear, "
                f"plain convolution, ReLU, pooling), but {obstacle}; use 'pyhessian' or 'auto'"
            )
        total = 0.0
        with invisible(self._model):
            norms = LayerNorms(self._model)
            try:
                for x in self._inputs.split(self._chunk):
                    total += self._gauss_newton_trace(norms, x)
            finally:
                norms.remove()
        return HessianTrace(total / len(self._inputs), 0.0, "exact")

    def trace_estimate(self, probes: int = 50, *, seed: int = 0) -> HessianTrace:
        """Tr H by so many of Hutchinson's probes, with its standard error over them."""
        parts = (self._inputs.split(self._chunk), self._targets.split(self._chunk))
        batches = list(zip(*parts, strict=True))
        single = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
        with invisible(self._model, seed=seed, purpose="hessian_trace"), _second_order():
            # Its flag means one device, "cuda", and moves what is there already: only where its
            # probes are drawn need be told.
            estimator = hessian(self._model, MeanLoss(self._loss), cuda=False, **single)
            estimator.device = self._inputs.device
            # Only a tolerance of -inf switches its stopping rule off: the rule divides by the
            # running mean without its sign, so that with tol=0 a negative mean still ends it.
            found = estimator.trace(maxIter=probes, tol=-math.inf)
        draws = torch.tensor(found, dtype=torch.float64)
        error = float(draws.std(correction=1)) / len(draws) ** 0.5
        return HessianTrace(float(draws.mean()), error, "pyhessian")

    def largest_eigenvalue(
        self, *, seed: int = 0, tolerance: float = 1e-3, max_iterations: int = 100
    ) -> lanczos.Eigenvalue:
        """max_i |lambda_i(H)|, with starts that are drawn on the model's device from ``seed``.

        ``tolerance``, ``max_iterations`` and errors are those of
        :func:`gisgd_ray.measures.lanczos.largest_eigenvalue`.
        """
        device = self._weights[0].device
        generator = torch.Generator(device).manual_seed(derived_seed(seed, "smoothness"))

        def start() -> Tensor:
            parts = [
                torch.randn(w.numel(), generator=generator, device=device, dtype=w.dtype)
                for w in self._weights
            ]
            return torch.cat(parts)

        with (
            invisible(self._model, seed=seed, purpose="smoothness"),
            self._products() as product,
        ):
            return lanczos.largest_eigenvalue(
                product, start, tolerance=tolerance, max_iterations=max_iterations
            )

    def _why_not_exact(self) -> str | None:
        """What keeps the exact trace from this network in evaluation mode, or None."""
        with evaluating(self._model):
            uncovered = uncovered_layer(self._model)
            known = is_piecewise_linear(self._model)
        if uncovered is not None:
            return f"layer {uncovered}"
        if any(getattr(module, "inplace", False) for module in self._model.modules()):
            return "a layer overwrites the output of the one before (inplace = True)"
        return None if known else "it has a layer of another kind"

    def _gauss_newton_trace(self, norms: LayerNorms, inputs: Tensor) -> float:
        """Summed over these samples."""
        total = 0.0
        with norms.one_forward():
            scores = self._model(inputs)
            weights = scores.detach().softmax(dim=1).double()
            for k in range(scores.shape[1]):
                if self._loss == "cross_entropy":
                    squared = norms.squared_of(scores.logsumexp(dim=1) - scores[:, k])
                    total += float((squared.double() * weights[:, k]).sum())
                else:
                    total += float(norms.squared_of(scores[:, k]).double().sum())
        return total

    @contextmanager
    def _products(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """v -> H v, (d,) each, while the weights stay."""
        chunk = self._product_chunk
        chunks = list(zip(self._inputs.split(chunk), self._targets.split(chunk), strict=True))
        with _second_order():
            whole = self._gradient(*chunks[0]) if len(chunks) == 1 else None

            def product(vector: Tensor) -> Tensor:
                v = [
                    part.view_as(weight)
                    for part, weight in zip(
                        vector.split([w.numel() for w in self._weights]),
                        self._weights,
                        strict=True,
                    )
                ]
                if whole is not None:
                    image = self._derivative(whole, v, keep=True)
                else:
                    image = [torch.zeros_like(w) for w in self._weights]
                    for x, y in chunks:
                        part = self._derivative(self._gradient(x, y), v, keep=False)
                        torch._foreach_add_(image, part)
                return torch.cat([part.reshape(-1) for part in image])

            yield product

    def _gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """What these samples add to that of the mean loss, to be differentiated once more."""
        losses = per_sample_loss(self._loss, self._model(inputs), targets)
        return list(
            torch.autograd.grad(
                losses.sum() / len(self._inputs),
                self._weights,
                create_graph=True,
                materialize_grads=True,
            )
        )

    def _derivative(self, gradient: list[Tensor], v: list[Tensor], *, keep: bool) -> list[Tensor]:
        """Of gradient . v in the weights."""
        # Where the gradient is constant in w there is nothing to differentiate.
        known = [(g, part) for g, part in zip(gradient, v, strict=True) if g.requires_grad]
        if not known:
            return [torch.zeros_like(w) for w in self._weights]
        outputs, directions = zip(*known, strict=True)
        return list(
            torch.autograd.grad(
                outputs, self._weights, directions, retain_graph=keep, materialize_grads=True
            )
        )


@contextmanager
def _second_order() -> Iterator[None]:
    """Without BackPACK's hooks, and without the warning that create_graph may leak through .grad:
    :func:`invisible` drops those grads."""
    with disable(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*create_graph=True.*")
        yield
