"""The step of a dense network written out: forward, deltas by layer, update; no autograd.

For networks of linear layers with ReLU or nothing between. With the inputs A_l (b, in) of layer l
in a batch and the deltas D_l (b, out), the gradients of the samples' own losses l(w, z_i) at its
output, sample i has the gradient d_i a_i^T in the weight and d_i in the bias, and the batch mean::

    D_l^T A_l / b        D_l^T 1 / b

so that W <- W - lambda c g, with c the scheme's factor, adds a product of two matrices to W: no
gradient need be stored, and c costs nothing. As <d_i a_i^T, d_j a_j^T> = (d_i . d_j)(a_i . a_j),
the Gram matrix of the gradients by sample, K_ij = <g_i, g_j>, (b, b), is, entry by entry::

    K = sum_l (A_l A_l^T + 1 1^T where there is a bias) * (D_l D_l^T)

and all that is measured of them follows from two numbers, with g their mean::

    tr K = sum_i ||g_i||^2        1^T K 1 = b^2 ||g||^2
    s2 = 1/(b-1) sum_i ||g_i - g||^2 = (tr K - 1^T K 1 / b) / (b-1)

The trace takes no more than the norms of the a_i and d_i. To 1^T K 1 a layer's weight gives the sum
of (A A^T) * (D D^T), which is ||D^T A||^2: from the Gram matrices where they are less work than
writing the product and reading it again (:data:`GRAM_WORK`), else from the product, which then is
what the update adds. Products are float32 and sums float64, so that s2 is good to 1e-7 of tr K / b
like the estimators by norms; but at a step whose gradients agree so well that this may matter (one
that ``StepSeries.ill_conditioned_steps`` counts) both numbers are taken again in float64 from the
same A_l and D_l, and nothing cancels.
"""

import math
from collections.abc import Iterator
from itertools import dropwhile
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gisgd_ray.config.catalogue import SCHEMES
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.dispersion import Dispersion, numbers
from gisgd_ray.measures.step_series import ILL_CONDITIONED, Array
from gisgd_ray.networks.losses import LossName, losses_and_gradient
from gisgd_ray.networks.models import FixedReadout
from gisgd_ray.schemes.base import Batch, Meter, Number, Step

GRAM_WORK = 20
"""How many multiplications of Gram matrices take as long as to write, read and add an entry of a
product, on a CPU: so measured from 784 x 64 to 3072 x 512, in batches of 20 to 250."""


def serves(config: TrialConfig, model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a run takes its steps by a :class:`DenseNetwork`, and not by autograd.

    Where the scheme's gradient is the plain one or a multiple of it, the optimizer plain SGD in
    full precision, the dispersion by sample or not measured, and the model dense (see
    :func:`is_dense`). All else is left to autograd, against which these steps are tested.
    """
    return plain_descent(config) and is_dense(model, input_shape)


def plain_descent(config: TrialConfig) -> bool:
    """Whether a trial's steps are along multiples of the plain gradient, in full precision."""
    t, m = config.training, config.measurement
    return (
        SCHEMES[config.scheme.name].gradient != "another"
        and t.momentum == t.weight_decay == 0
        and t.max_gradient_norm is None
        and t.precision != "bfloat16"  # tf32 is float32 on a CPU
        and not (m.dispersion and config.dispersion_estimator == "groups")
    )


def is_dense(model: nn.Module, input_shape: tuple[int, ...], *, on_cpu: bool = True) -> bool:
    """Whether it is an ``nn.Sequential`` of linear layers, ReLU and fixed read-outs on vectors, or
    on what it flattens first.

    Each parameter in one place, and without hooks, which nothing here would call; ``on_cpu``, where
    a look at a number waits for nothing.
    """
    layers = list(leaves(model))
    first = next(dropwhile(lambda layer: type(layer) is nn.Identity, layers), None)
    parameters = [p for layer in layers for p in layer.parameters()]
    parts = (*model.modules(), *parameters)
    return (
        (type(first) is nn.Flatten or len(input_shape) == 1)
        and all(type(layer) in _KNOWN for layer in layers)  # a subclass may compute another thing
        and all((f.start_dim, f.end_dim) == (1, -1) for f in layers if isinstance(f, nn.Flatten))
        and len(set(parameters)) == len(parameters)
        and any(p.requires_grad for p in parameters)
        and (not on_cpu or all(p.is_cpu for p in parameters))
        and not any(getattr(part, name, None) for part in parts for name in _HOOKS)
    )


_KNOWN = (nn.Flatten, nn.Linear, nn.ReLU, nn.Identity, FixedReadout)
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_post_accumulate_grad_hooks",
)


def leaves(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested ``nn.Sequential`` in order; any other module is one."""
    if type(model) is not nn.Sequential:
        yield model
        return
    for part in model:
        yield from leaves(part)


class DenseNetwork:
    """The layers of a dense model, whose weights it trains, and a batch's A_l and D_l.

    In turn: :meth:`passes`, what is to be known of K, :meth:`descend`.
    """

    def __init__(self, model: nn.Module):
        self._layers: list[_Linear | _ReLU | _Readout] = []
        for layer in leaves(model):
            if isinstance(layer, nn.Linear):
                self._layers.append(_Linear(layer))
            elif isinstance(layer, nn.ReLU):
                self._layers.append(_ReLU())
            elif isinstance(layer, FixedReadout):
                self._layers.append(_Readout(layer))
        self._linear = [layer for layer in self._layers if isinstance(layer, _Linear)]
        self._trained = [layer for layer in self._linear if layer.is_trained]
        self._size = 0
        self._total: float | None = None

    def passes(self, batch: Batch, loss: LossName) -> Tensor:
        """Forward and backward; the losses l(w, z_i), (b,)."""
        outputs = self.forward(batch.inputs)
        losses, delta = losses_and_gradient(loss, outputs, batch.targets)
        self.backward(delta)
        return losses

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (b, K) of inputs (b, ...)."""
        self._size, self._total = len(inputs), None
        hidden = inputs.flatten(1)
        for layer in self._layers:
            hidden = layer.forward(hidden)
        return hidden

    def backward(self, delta: Tensor) -> None:
        """D_l of every layer down to the first that is trained, from the gradients (b, K) of the
        samples' losses in their outputs, which may be overwritten."""
        first = self._trained[0]
        for layer in reversed(self._layers):
            if layer is first:
                break
            delta = layer.backward(delta)
        first.keep(delta)

    def trace(self) -> float:
        """tr K = sum_i ||g_i||^2."""
        return sum(layer.trace() for layer in self._trained)

    def total(self) -> float:
        """1^T K 1 = b^2 ||g||^2; where it is 0, rounding below it reads as 0."""
        if self._total is None:
            self._total = max(sum(layer.total() for layer in self._trained), 0.0)
        return self._total

    def in_float64(self) -> tuple[float, float]:
        """tr K and 1^T K 1 again, from products in float64."""
        trace, total = np.sum([layer.in_float64() for layer in self._trained], axis=0).tolist()
        return trace, total

    def gradient_norm(self) -> float:
        """||g||."""
        return math.sqrt(self.total()) / self._size

    def active_units(self) -> Tensor:
        """How many outputs of the first linear layer are at least 0, by sample, (b,)."""
        return (self._linear[0].outputs >= 0).sum(dim=1)

    def descend(self, rate: Number) -> None:
        """W <- W - rate g."""
        for layer in self._trained:
            layer.descend(float(rate) / self._size)


class _Linear:
    def __init__(self, layer: nn.Linear):
        self._weight, self._bias = layer.weight, layer.bias
        self._trains_weight = layer.weight.requires_grad
        self._trains_bias = layer.bias is not None and layer.bias.requires_grad
        self.is_trained = self._trains_weight or self._trains_bias
        self._inputs = self._delta = self.outputs = torch.empty(0)
        self._product: Tensor | None = None
        self._sums: Tensor | None = None
        # Fresh memory of a product's size costs a page fault every 4 kB.
        self._memory: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        self._inputs, self.outputs = inputs, F.linear(inputs, self._weight, self._bias)
        return self.outputs

    def backward(self, delta: Tensor) -> Tensor:
        self.keep(delta)
        return delta @ self._weight

    def keep(self, delta: Tensor) -> None:
        self._delta, self._product, self._sums = delta, None, None

    def trace(self) -> float:
        """sum_i ||d_i||^2 (||a_i||^2 + 1)."""
        deltas = _float64(torch.linalg.vector_norm(self._delta, dim=1))
        trace = 0.0
        if self._trains_weight:
            norms = deltas * _float64(torch.linalg.vector_norm(self._inputs, dim=1))
            trace += float(norms @ norms)
        if self._trains_bias:
            trace += float(deltas @ deltas)
        return trace

    def total(self) -> float:
        """||D^T A||^2 + ||D^T 1||^2."""
        total = 0.0
        if self._trains_weight and self._by_gram:
            gram = (self._inputs @ self._inputs.T).mul_(self._delta @ self._delta.T)
            total += float(_float64(gram.sum(dim=1)).sum())
        elif self._trains_weight:
            # By rows: a float32 norm over the whole of a large matrix is off by up to 1e-3.
            norms = _float64(torch.linalg.vector_norm(self._multiplied(), dim=1))
            total += float(norms @ norms)
        if self._trains_bias:
            sums = _float64(self._summed())
            total += float(sums @ sums)
        return total

    def in_float64(self) -> tuple[float, float]:
        return sums_in_float64(
            self._inputs, self._delta, weight=self._trains_weight, bias=self._trains_bias
        )

    def descend(self, rate: float) -> None:
        if self._trains_weight and self._by_gram:
            self._weight.addmm_(self._delta.T, self._inputs, alpha=-rate)
        elif self._trains_weight:
            self._weight.add_(self._multiplied(), alpha=-rate)
        if self._trains_bias:
            self._bias.add_(self._summed(), alpha=-rate)

    @property
    def _by_gram(self) -> bool:
        """Whether D^T A is never written: measured or not, so that no bit of W depends on it."""
        return by_gram(len(self._delta), self._weight.shape)

    def _multiplied(self) -> Tensor:
        """D^T A, (out, in)."""
        if self._product is None:
            if self._memory is None:
                self._memory = torch.empty_like(self._weight, requires_grad=False)
            self._product = torch.mm(self._delta.T, self._inputs, out=self._memory)
        return self._product

    def _summed(self) -> Tensor:
        """D^T 1, (out,)."""
        if self._sums is None:
            self._sums = self._delta.sum(dim=0)
        return self._sums


def sums_in_float64(
    inputs: Tensor, delta: Tensor, *, weight: bool, bias: bool
) -> tuple[float, float]:
    """A layer's part of tr K and 1^T K 1, of A (b, in) and D (b, out), by what it trains."""
    inputs, delta = inputs.double(), delta.double()
    squares, trace, total = delta.square().sum(dim=1), 0.0, 0.0
    if weight:
        trace += float(squares @ inputs.square().sum(dim=1))
        total += float((delta.T @ inputs).square().sum())
    if bias:
        trace += float(squares.sum())
        total += float(delta.sum(dim=0).square().sum())
    return trace, total


def by_gram(batch_size: int, shape: tuple[int, ...]) -> bool:
    """Whether Gram matrices are less work than the product, for weights of this shape."""
    outs, ins = shape
    return batch_size**2 * (outs + ins) < GRAM_WORK * outs * ins


def _float64(vector: Tensor) -> Array:
    """For the sums of a few numbers, which take NumPy a third of PyTorch's time."""
    return vector.numpy().astype(np.float64)


class _ReLU:
    def forward(self, inputs: Tensor) -> Tensor:
        self._outputs = inputs.relu()
        return self._outputs

    def backward(self, delta: Tensor) -> Tensor:
        return delta.mul_(self._outputs.sign())


class _Readout:
    def __init__(self, layer: FixedReadout):
        self._layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        outputs: Tensor = self._layer(hidden)
        return outputs

    def backward(self, delta: Tensor) -> Tensor:
        return delta * self._layer.weights


class Passes(Protocol):
    """What a step on a dense network is made of: a :class:`DenseNetwork`, or one of a stack."""

    def passes(self, batch: Batch, loss: LossName) -> Tensor:
        """Forward and backward; the losses l(w, z_i), (b,)."""

    def trace(self) -> Number:
        """tr K."""

    def total(self) -> Number:
        """1^T K 1."""

    def in_float64(self) -> tuple[float, float]:
        """Both again, from products in float64."""

    def gradient_norm(self) -> Number:
        """||g||."""

    def active_units(self) -> Tensor:
        """How many outputs of the first linear layer are at least 0, by sample, (b,)."""

    def descend(self, rate: Number) -> None:
        """W <- W - rate g."""


class DenseStep(Step):
    """A step on a dense network, for schemes whose gradient is a multiple of the plain one; taken
    where autograd is off.

    Nothing is left in ``.grad``: the factor that the scheme returns goes into the update.
    """

    def __init__(
        self,
        network: Passes,
        model: nn.Module,
        batch: Batch,
        *,
        loss: LossName,
        meter: Meter | None = None,
    ):
        super().__init__(model, batch, loss=loss, meter=meter)
        self._network = network

    def plain(self) -> Tensor:
        """The losses l(w, z_i), (b,), of the batch, whose A_l and D_l are in the network then."""
        losses = self._network.passes(self.batch, self.loss)
        if self._meter is not None:
            self._meter.see(losses)
        return losses

    def gradient_norm(self) -> Number:
        norm = None if self._meter is None else self._meter.gradient_norm()
        if norm is None:
            norm = self._network.gradient_norm()
        return norm

    def scale(self, factor: Number) -> None:
        """Nothing is to be done before the update."""

    def descend(self, rate: Number) -> None:
        """W <- W - rate g."""
        self._network.descend(rate)


class ByGram(Dispersion):
    """s2 of the plain gradient by sample, from tr K and 1^T K 1."""

    needs_plain_gradient = True

    def __init__(self, network: Passes):
        self._network = network
        self._traces: list[Number] = []
        self._totals: list[Number] = []

    def see(self, batch_size: int) -> None:
        trace, total = self._network.trace(), self._network.total()
        # On a GPU nobody looks, and the row counts such steps.
        if not isinstance(trace, Tensor) and trace - total / batch_size < ILL_CONDITIONED * trace:
            trace, total = self._network.in_float64()
        self._traces.append(trace)
        self._totals.append(total)

    def gradient_norm(self) -> Number:
        return self._network.gradient_norm()

    def columns(self, sizes: Array) -> dict[str, Array]:
        traces, totals = numbers(self._traces), numbers(self._totals)
        self._traces, self._totals = [], []
        return {
            "mean_squared_norm": traces / sizes,
            "squared_gradient_norm": totals / sizes**2,
        }
