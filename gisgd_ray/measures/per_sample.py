"""Squared norms of per-sample gradients, from the backward pass that training does anyway.

BackPACK's first-order hooks see each layer's input a_i and the gradient d_i at its output. Only
norms are kept. For a linear layer ||d_i a_i^T||^2 is the product ||d_i||^2 ||a_i||^2; for a
convolution, with columns x_l of the unfolded input and d_l of the output gradient,
||sum_l d_l x_l^T||^2 = sum_{l,l'} (d_l . d_l') (x_l . x_l').

The two module extensions here replace those of BackPACK's ``BatchL2Grad`` (through its public
``set_module_extension``): its linear one costs more of a small network's step than the norms are
worth, and its convolution one always forms the per-sample gradients in memory.
"""

import warnings
import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gisgd_ray.errors import UserError

# The first layer's input needs no gradient, and BackPACK does not ask for it.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")


# The first layer's input needs no gradient; BackPACK's hook there is meant to fire all the same.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


class _LinearSquaredNorm(FirstOrderModuleExtension):  # type: ignore[misc]
    """Squared gradient norm of weight and bias of a linear layer together, input (b, in).

    The bias gradient of sample i is d_i itself, so both together are ||d_i||^2 (||a_i||^2 + 1).
    """

    def __init__(self) -> None:
        super().__init__(params=["weight"])

    def weight(
        self, ext: Any, module: nn.Linear, g_inp: Any, g_out: tuple[Tensor], backproped: Any
    ) -> Tensor:
        del ext, g_inp, backproped
        squares = _input(module).square().sum(dim=1)
        if module.bias is not None:
            squares = squares + 1
        return squares * g_out[0].square().sum(dim=1)


class _Conv2dSquaredNorm(FirstOrderModuleExtension):  # type: ignore[misc]
    """Squared gradient norm of weight and bias of a convolution together, input (b, C, H, W)."""

    def __init__(self) -> None:
        super().__init__(params=["weight"])

    def weight(
        self, ext: Any, module: nn.Conv2d, g_inp: Any, g_out: tuple[Tensor], backproped: Any
    ) -> Tensor:
        del ext, g_inp, backproped
        columns = F.unfold(
            _input(module),
            module.kernel_size,
            dilation=module.dilation,
            padding=cast(tuple[int, int], module.padding),
            stride=module.stride,
        )  # (b, k, L): k weights of one filter, L output positions
        deltas = g_out[0].flatten(start_dim=2)  # (b, m, L): m filters
        (_, k, positions), m = columns.shape, deltas.shape[1]
        if positions * (m + k) < m * k:
            # Few positions: two L x L Gram matrices instead of the m x k gradient.
            grams = (columns.mT @ columns).mul_(deltas.mT @ deltas)
            squares = grams.sum(dim=(1, 2))
        else:
            squares = (deltas @ columns.mT).square().sum(dim=(1, 2))
        if module.bias is not None:
            squares = squares + deltas.sum(dim=2).square().sum(dim=1)
        return squares


def _input(module: nn.Module) -> Tensor:
    """The layer's input that BackPACK kept in the forward pass."""
    return cast(Tensor, module.input0)


class PerSampleNorms:
    """Per-sample squared gradient norms of a model whose layers process samples independently.

    Linear layers take inputs of shape (b, features). Use: forward pass;
    ``with norms.watch(): losses.mean().backward()``; ``norms.squared(b)``.

    Raises:
        UserError: a layer with parameters that is not covered (see :func:`uncovered_layer`).
    """

    def __init__(self, model: nn.Module):
        self._extension = BatchL2Grad()
        self._extension.set_module_extension(nn.Linear, _LinearSquaredNorm(), overwrite=True)
        self._extension.set_module_extension(nn.Conv2d, _Conv2dSquaredNorm(), overwrite=True)
        self._parameters: list[nn.Parameter] = []
        uncovered = uncovered_layer(model)
        if uncovered is not None:
            raise UserError(
                f"measurement.dispersion = true needs linear and plain convolution layers, used "
                f"once each and with all parameters trainable, but layer {uncovered}; set "
                "measurement.dispersion = false"
            )
        for layer in model.modules():
            if not list(layer.parameters(recurse=False)):
                # Layers without parameters need no hook: leaving them out saves half the cost.
                continue
            extend(layer)
            self._parameters.append(cast(nn.Parameter, layer.weight))

    def watch(self) -> backpack:
        """Context for one ``backward()`` of a batch-mean loss."""
        return backpack(self._extension)

    def squared(self, batch_size: int) -> Tensor:
        """||grad l(w, z_i)||^2, shape (b,), of the backward pass just watched; read once.

        BackPACK sees the gradients of the batch mean, 1/b of the samples' own: hence b^2.
        """
        total: Tensor | None = None
        for parameter in self._parameters:
            squares = parameter.batch_l2  # type: ignore[attr-defined]
            del parameter.batch_l2  # type: ignore[attr-defined]
            total = squares if total is None else total + squares
        assert total is not None, "a model without trainable layers has no gradient"
        return total.detach() * float(batch_size) ** 2


def uncovered_layer(model: nn.Module) -> str | None:
    """The first layer, in words, that keeps :class:`PerSampleNorms` from the model, or None.

    Covered are linear and plain convolution layers. BatchNorm in train mode, with or without
    weights, mixes the samples of a batch; a layer or weight in two places has gradients whose
    norms do not add up by place.
    """
    seen: set[nn.Parameter] = set()
    for name, layer in model.named_modules(remove_duplicate=False):
        own = list(layer.parameters(recurse=False))
        if (own and not _is_supported(layer)) or _mixes_samples(layer):
            return f"{name!r} is {layer}"
        if not seen.isdisjoint(own):
            return f"{name!r} shares its parameters with another"
        seen.update(own)
    return None


def _is_supported(layer: nn.Module) -> bool:
    if not all(p.requires_grad for p in layer.parameters(recurse=False)):
        return False
    # By type, as BackPACK looks them up: a subclass may compute something else.
    if type(layer) is nn.Conv2d:
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    return type(layer) is nn.Linear


def _mixes_samples(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


def gradient_norm_parts(parameters: list[Tensor]) -> Tensor:
    """Norms of disjoint parts of the ``.grad``, shape (:func:`num_norm_parts`,).

    The parts are the rows of each parameter (its slices along the first axis) and whole vectors:
    on the CPU a float32 norm adds up in few accumulators, and over AlexNet's 4096 x 4096 layer at
    once ||g||^2 is off by up to 1e-3; over rows, summed in float64 by the caller, by 1e-8.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    rows = [g.flatten(1) if g.dim() > 1 else g.unsqueeze(0) for g in grads]
    return torch.cat([torch.linalg.vector_norm(r, dim=1) for r in rows])


def num_norm_parts(parameters: list[Tensor]) -> int:
    """How many norms :func:`gradient_norm_parts` returns."""
    return sum(len(p) if p.dim() > 1 else 1 for p in parameters)
