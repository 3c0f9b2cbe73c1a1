"""Squared norms of per-sample gradients, from the backward pass that training does anyway.

Seen at each layer: its input a_i and the gradient d_i at its output. Only norms are kept. For a
linear layer ||d_i a_i^T||^2 is the product ||d_i||^2 ||a_i||^2; for a convolution, with columns x_l
of the unfolded input and d_l of the output gradient,
||sum_l d_l x_l^T||^2 = sum_{l,l'} (d_l . d_l') (x_l . x_l'). The bias adds ||sum_l d_l||^2.

:class:`LayerNorms` does this for linear and plain convolution layers with two hooks a layer;
:class:`BackpackNorms` leaves it to BackPACK's ``BatchL2Grad``, which knows more layers but costs a
third more of a small network's step and forms the per-sample gradients of convolutions in memory.
:func:`per_sample_norms` chooses.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gisgd_ray.errors import UserError, layer_is
from gisgd_ray.networks.batchnorm import mixes_samples

# The first layer's input needs no gradient, and BackPACK does not ask for it.
warnings.filterwarnings("ignore", message="Full backward hook is firing")

BACKPACK_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Embedding,
)
"""Layers of which BackPACK 1.7 gives per-sample squared norms (BatchNorm in eval mode only)."""


class PerSampleNorms(Protocol):
    """Use: forward; ``with norms.watch(): losses.mean().backward()``; ``norms.squared(b)``."""

    def watch(self) -> AbstractContextManager[object]:
        """Context of one ``backward()`` of a batch-mean loss."""

    def squared(self, batch_size: int) -> Tensor:
        """||grad l(w, z_i)||^2, shape (b,), of the backward pass just watched; read once."""


def per_sample_norms(model: nn.Module) -> PerSampleNorms:
    """The cheapest estimator that covers the model.

    Raises:
        UserError: none does; names the layer.
    """
    if uncovered_layer(model) is None:
        return LayerNorms(model)
    return BackpackNorms(model)


class _Seen(NamedTuple):
    """A layer in the last forward pass."""

    layer: nn.Module
    inputs: Tensor
    output: Tensor


class LayerNorms:
    """Per-sample squared gradient norms of linear (input (b, features)) and convolution layers.

    The hooks stay on the model until :meth:`remove`.

    Raises:
        UserError: a layer that is not covered (see :func:`uncovered_layer`).
    """

    def __init__(self, model: nn.Module):
        uncovered = uncovered_layer(model)
        if uncovered is not None:
            raise UserError(_refusal("linear and plain convolution layers", uncovered))
        self._watching = False
        self._total: Tensor | None = None
        self._seen: list[_Seen] | None = None
        self._handles = [
            layer.register_forward_hook(self._forward)
            for layer in model.modules()
            if list(layer.parameters(recurse=False))
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def watch(self) -> Iterator[None]:
        self._watching, self._total = True, None
        try:
            yield
        finally:
            self._watching = False

    def squared(self, batch_size: int) -> Tensor:
        assert self._total is not None, "no backward pass was watched"
        total, self._total = self._total, None
        # Seen are the gradients of the batch mean, 1/b of the samples' own: hence b^2.
        return total * float(batch_size) ** 2

    @contextmanager
    def one_forward(self) -> Iterator[None]:
        """Keep the layers of the forward pass inside, for :meth:`squared_of`."""
        self._seen = []
        try:
            yield
        finally:
            self._seen = None

    def squared_of(self, outputs: Tensor) -> Tensor:
        """||grad_w f(x_i)||^2, shape (b,), of one scalar a sample from the forward pass kept.

        ``outputs`` (b,): entry i depends on sample i alone. May be called repeatedly; neither
        computes nor touches the parameters' gradients.
        """
        assert self._seen is not None, "call inside one_forward()"
        gradients = torch.autograd.grad(
            outputs.sum(), [seen.output for seen in self._seen], retain_graph=True
        )
        parts = [
            squared_norm(seen.layer, seen.inputs, gradient)
            for seen, gradient in zip(self._seen, gradients, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        kept = inputs[0].detach()
        if self._seen is not None:
            self._seen.append(_Seen(layer, kept, output))
            return

        def backward(gradient: Tensor) -> None:
            if self._watching:
                part = squared_norm(layer, kept, gradient.detach())
                self._total = part if self._total is None else self._total + part

        output.register_hook(backward)


class BackpackNorms:
    """Per-sample squared gradient norms by BackPACK's ``BatchL2Grad``.

    Raises:
        UserError: a layer that BackPACK does not know or that mixes samples.
    """

    def __init__(self, model: nn.Module):
        uncovered = uncovered_layer(model, covered=_backpack_covers)
        if uncovered is not None:
            raise UserError(_refusal("layers that BackPACK can split by sample", uncovered))
        self._parameters: list[nn.Parameter] = []
        for layer in model.modules():
            own = list(layer.parameters(recurse=False))
            if own:  # layers without parameters need no hook
                extend(layer)
                self._parameters += own

    def watch(self) -> AbstractContextManager[object]:
        return cast(AbstractContextManager[object], backpack(BatchL2Grad()))

    def squared(self, batch_size: int) -> Tensor:
        parts = [p.batch_l2 for p in self._parameters]  # type: ignore[attr-defined]
        for parameter in self._parameters:
            del parameter.batch_l2  # type: ignore[attr-defined]
        return torch.stack(parts).sum(dim=0) * float(batch_size) ** 2


def squared_norm(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Tensor:
    """||gradient of weight and bias||^2 of one linear or convolution layer by sample, (b,).

    ``inputs`` of the layer, and ``gradient`` at its output, of the samples' own losses or scaled
    alike.
    """
    if inputs.dtype == torch.bfloat16:  # squares of mixed precision are summed in full
        inputs = inputs.float()
    gradient = gradient.to(inputs.dtype)
    if isinstance(layer, _BatchNorm):
        return _batchnorm_squares(layer, inputs, gradient)
    if type(layer) is nn.Linear:
        # vector_norm makes no copy of the squares: three times as fast as square().sum().
        squares: Tensor = torch.linalg.vector_norm(inputs, dim=1).square()
        if layer.bias is not None:
            squares = squares + 1  # the gradient of the bias is d_i itself
        deltas: Tensor = torch.linalg.vector_norm(gradient, dim=1).square()
        return squares * deltas
    assert type(layer) is nn.Conv2d
    columns = F.unfold(
        inputs,
        layer.kernel_size,
        dilation=layer.dilation,
        padding=cast(tuple[int, int], layer.padding),
        stride=layer.stride,
    )  # (b, k, L): k weights of one filter, L output positions
    deltas = gradient.flatten(start_dim=2)  # (b, m, L): m filters
    (_, k, positions), m = columns.shape, deltas.shape[1]
    if positions * (m + k) < m * k:
        # Few positions: two L x L Gram matrices instead of the m x k gradient.
        squares = (columns.mT @ columns).mul_(deltas.mT @ deltas).sum(dim=(1, 2))
    else:
        squares = (deltas @ columns.mT).square().sum(dim=(1, 2))
    if layer.bias is not None:
        squares = squares + deltas.sum(dim=2).square().sum(dim=1)
    return squares


def _batchnorm_squares(layer: _BatchNorm, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Of scale and shift in evaluation mode, where the normalised input is a constant."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *[1] * (inputs.dim() - 2))
    centred = inputs - layer.running_mean.view(shape)
    normalised = centred * (layer.running_var + layer.eps).rsqrt().view(shape)
    places = list(range(2, inputs.dim()))
    by_weight = [gradient * normalised] if layer.weight is not None else []
    by_weight += [gradient] if layer.bias is not None else []
    by_channel = torch.stack(by_weight)
    if places:
        by_channel = by_channel.sum(dim=[place + 1 for place in places])
    return by_channel.square().sum(dim=(0, 2))


def uncovered_layer(
    model: nn.Module, *, covered: Callable[[nn.Module], bool] | None = None
) -> str | None:
    """The first layer, in words, that keeps :class:`LayerNorms` from the model, or None.

    Covered are linear, plain convolution and, in evaluation mode, BatchNorm layers. In train mode
    BatchNorm, with or without weights, mixes the samples of a batch; a layer or weight in two
    places has gradients whose norms do not add up by place.
    """
    covered = covered or _is_supported
    seen: set[nn.Parameter] = set()
    for name, layer in model.named_modules(remove_duplicate=False):
        own = list(layer.parameters(recurse=False))
        if (own and not covered(layer)) or mixes_samples(layer):
            return layer_is(name, layer)
        if not seen.isdisjoint(own):
            return f"{name!r} shares its parameters with another"
        seen.update(own)
    return None


def _is_supported(layer: nn.Module) -> bool:
    if not all(p.requires_grad for p in layer.parameters(recurse=False)):
        return False
    # By exact type: a subclass may compute something else.
    if type(layer) is nn.Conv2d:
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return True  # where its mode mixes samples it is refused before
    return type(layer) is nn.Linear


def _backpack_covers(layer: nn.Module) -> bool:
    if not all(p.requires_grad for p in layer.parameters(recurse=False)):
        return False
    if isinstance(layer, _ConvNd):
        # With groups BatchL2Grad is off by a factor, and other padding it takes for zeros.
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        if not plain or isinstance(layer.padding, str) or any(layer.output_padding):
            return False
    if isinstance(layer, nn.Embedding):
        plain = layer.padding_idx is None and layer.max_norm is None
        if not plain or layer.scale_grad_by_freq or layer.sparse:
            return False
    return type(layer) in BACKPACK_LAYERS  # by exact type, as BackPACK looks them up


def _refusal(what: str, uncovered: str) -> str:
    return (
        f"measurement.dispersion = true needs {what}, used once each and with all parameters "
        f"trainable, but layer {uncovered}; set measurement.dispersion = false"
    )


def gradient_norm_parts(parameters: list[Tensor]) -> Tensor:
    """Norms of disjoint parts of the ``.grad``, one vector.

    The parts are the rows of each parameter (its slices along the first axis) and whole vectors:
    on the CPU a float32 norm adds up in few accumulators, and over AlexNet's 4096 x 4096 layer at
    once ||g||^2 is off by up to 1e-3; over rows, summed in float64 by the caller, by 1e-8.
    """
    return norm_parts([p.grad for p in parameters if p.grad is not None])


def norm_parts(tensors: list[Tensor]) -> Tensor:
    """The same of any tensors shaped like parameters."""
    rows = [t.flatten(1) if t.dim() > 1 else t.reshape(1, -1) for t in tensors]
    return torch.cat([torch.linalg.vector_norm(r, dim=1) for r in rows])
