"""Local reparameterisation of Gaussian weight noise (Kingma et al. 2015; Molchanov et al. 2017).

With delta ~ N(0, std^2 I) on the weights of a layer, its output for input a is normal. That output
is drawn, for every sample independently::

    linear       W a + b + std sqrt(||a||^2 + 1) eps,              eps ~ N(0, I)   (+ 1: the bias)
    convolution  W * a + b + std sqrt(1 * sum_c a_c^2 + 1) eps     (1 *: the window's sum)
    BatchNorm    (gamma + std eps) x^ + beta + std eps'            eps, eps' by sample and channel

The expectation of the loss, and so of its gradient, is that under weight noise where each sample's
output has the same distribution and the loss is a mean over samples: *exactly* for networks of
linear layers, each used once on vectors, and of BatchNorm in evaluation mode. It is *not* exact for
convolutions with several output positions (nor a linear layer along a sequence), where one draw of
the weights gives correlated noise and this gives independent noise (each position alone has the
right distribution), nor for BatchNorm in train mode, whose statistics mix samples that share the
weights' draw but not this one.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gisgd_ray.errors import UserError, layer_is

SMALLEST_VARIANCE = 1e-30
"""Below it a standard deviation counts as constant: the root has no derivative at 0."""


def check_layers(model: nn.Module) -> None:
    """Raises UserError on a layer with weights whose output noise is not known here."""
    for name, layer in model.named_modules():
        if list(layer.parameters(recurse=False)) and not _is_known(layer):
            raise UserError(
                "scheme.estimator = 'local' knows linear, plain convolution and BatchNorm layers, "
                f"but {layer_is(name, layer)}; choose scheme.estimator = 'weights'"
            )


def _is_known(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear or isinstance(layer, _BatchNorm)


@contextmanager
def noisy_preactivations(
    model: nn.Module, *, std: float, generator: torch.Generator
) -> Iterator[None]:
    """Forward passes inside carry the noise that weight noise of this std would cause."""

    def normal_like(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor).normal_(generator=generator)

    def with_noise(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (given,) = inputs
        if isinstance(layer, _BatchNorm):
            return output + std * _affine_noise(layer, given, normal_like)
        deviation = variance(layer, given).clamp_min(SMALLEST_VARIANCE).sqrt()
        return torch.addcmul(output, std * deviation, normal_like(output))

    layers = [
        layer
        for layer in model.modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(with_noise))
        yield


def variance(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Variance of the layer's output under unit weight noise, broadcast over its channels.

    (b, 1) of a linear layer, (b, 1, H', W') of a convolution.
    """
    squares = inputs.float() if inputs.dtype == torch.bfloat16 else inputs
    squares = squares.square()
    if isinstance(layer, nn.Conv2d):
        ones = squares.new_ones(1, 1, *layer.kernel_size)
        with torch.autocast(inputs.device.type, enabled=False):
            total = F.conv2d(
                squares.sum(dim=1, keepdim=True),
                ones,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
            )
    else:
        assert isinstance(layer, nn.Linear)
        total = squares.sum(dim=-1, keepdim=True)
    return total if layer.bias is None else total + 1


def _affine_noise(
    layer: _BatchNorm, inputs: Tensor, normal_like: Callable[[Tensor], Tensor]
) -> Tensor:
    """eps x^ + eps', one pair of draws for each sample and channel."""
    by_batch = layer.training or layer.running_mean is None
    normalised = F.batch_norm(
        inputs,
        None if by_batch else layer.running_mean,
        None if by_batch else layer.running_var,
        training=by_batch,
        eps=layer.eps,
    )
    shape = (*inputs.shape[:2], *[1] * (inputs.dim() - 2))
    noise = torch.zeros_like(normalised)
    if layer.weight is not None:
        noise = normalised * normal_like(inputs.new_empty(shape))
    return noise if layer.bias is None else noise + normal_like(inputs.new_empty(shape))
