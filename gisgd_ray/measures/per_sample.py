"""Squared norms of per-sample gradients, from the backward pass that training does anyway.

BackPACK's first-order hooks see each layer's input a_i and the gradient d_i at its output. Only
norms are kept. For a linear layer ||d_i a_i^T||^2 is the product ||d_i||^2 ||a_i||^2; for a
convolution, with columns x_l of the unfolded input and d_l of the output gradient,
||sum_l d_l x_l^T||^2 = sum_{l,l'} (d_l . d_l') (x_l . x_l').

The two module extensions here replace those of BackPACK's ``BatchL2Grad`` (through its public
``set_module_extension``): its linear one costs more of a small network's step than the norms are
worth, and its convolution one always forms the per-sample gradients in memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from gisgd_ray.errors import UserError


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
        squares = module.input0.square().sum(dim=1)
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
            module.input0,
            module.kernel_size,
            dilation=module.dilation,
            padding=module.padding,
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


class PerSampleNorms:
    """Per-sample squared gradient norms of a model whose layers process samples independently.

    Linear layers take inputs of shape (b, features). Use: forward pass; ``with norms.watch(): losses.mean().backward()``; ``norms.squared(b)``.

    Raises:
        UserError: a layer with parameters that BackPACK cannot split by sample (BatchNorm in
            train mode mixes the samples of a batch).
    """

    def __init__(self, model: nn.Module):
        self._extension = BatchL2Grad()
        self._extension.set_module_extension(nn.Linear, _LinearSquaredNorm(), overwrite=True)
        self._extension.set_module_extension(nn.Conv2d, _Conv2dSquaredNorm(), overwrite=True)
        self._parameters: list[nn.Parameter] = []
        for name, layer in model.named_modules():
            if not list(layer.parameters(recurse=False)):
                # Layers without parameters need no hook: leaving them out saves half the cost.
                continue
            if not _is_supported(layer):
                raise UserError(
                    f"measurement.dispersion = true needs linear and plain convolution layers with "
                    f"all parameters trainable, but layer {name!r} is {layer}; set "
                    "measurement.dispersion = false"
                )
            extend(layer)
            self._parameters.append(layer.weight)

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


def _is_supported(layer: nn.Module) -> bool:
    if not all(p.requires_grad for p in layer.parameters(recurse=False)):
        return False
    if isinstance(layer, nn.Conv2d):
        return (
            layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    return isinstance(layer, nn.Linear)


def gradient_norm_parts(parameters: list[Tensor]) -> Tensor:
    """Norm of each parameter tensor's ``.grad``, shape (len(parameters),)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads))
