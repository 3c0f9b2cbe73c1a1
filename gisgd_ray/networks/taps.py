"""Gradients and per-sample gradient norms of linear and convolution layers, for stacked networks.

With weights in a stack of R networks and the network mapped over it (``torch.func``), hooks on
tensors do not work. Instead each layer with parameters gives out its output plus a tap, a zero: the
gradient in the tap is the gradient d_i at the output. From d_i and the layer's input a_i follow the
batch gradient, sum_i d_i a_i^T for a linear layer, and the norms of its per-sample parts (see
``measures.per_sample``), a few networks at a time if need be.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.grad import conv2d_weight

from gisgd_ray.errors import UserError
from gisgd_ray.networks.per_sample import squared_norm

Tensors = dict[str, Tensor]


class TappedLayer(NamedTuple):
    """A layer in G networks, as one batch of each has gone through it."""

    name: str
    layer: nn.Module
    inputs: Tensor
    """a, (G, b, ...)."""
    delta: Tensor
    """Gradient of each network's batch-mean loss in the output, (G, b, ...)."""


class Taps:
    """Taps on every layer with parameters of a network whose weights are given in each call.

    Args:
        skeleton: on the "meta" device; its layers get hooks. All must be linear (with inputs
            (b, features)) or plain convolution layers (``uncovered_layer(skeleton) is None``).
    """

    def __init__(self, skeleton: nn.Module):
        self._skeleton = skeleton
        self._layers = {
            name: layer
            for name, layer in skeleton.named_modules()
            if list(layer.parameters(recurse=False))
        }
        self._shapes: dict[torch.Size, dict[str, torch.Size]] = {}
        self._added: Tensors | None = None
        self._seen: Tensors = {}
        self._outputs: dict[str, torch.Size] = {}
        for name, layer in self._layers.items():
            layer.register_forward_hook(self._hook(name))

    @contextmanager
    def added(self, taps: Tensors | None, seen: Tensors) -> Iterator[None]:
        """Context of one forward pass, which adds the taps and puts the layers' inputs in seen."""
        self._added, self._seen, self._outputs = taps, seen, {}
        try:
            yield
        finally:
            self._added, self._seen = None, {}

    def zeros(self, inputs: Tensor) -> Tensors:
        """A zero in the shape of each layer's output for the batch ``inputs[r]``.

        Raises:
            UserError: a layer that a forward pass uses twice, or not at all.
        """
        shape = inputs.shape[1:]
        if shape not in self._shapes:
            with self.added(None, {}):
                self._skeleton(torch.empty(shape, dtype=inputs.dtype, device="meta"))
            for name in self._layers.keys() - self._outputs.keys():
                raise UserError(_refusal(name, "not used"))
            self._shapes[shape] = self._outputs
        # One number in memory, however large the output.
        return {name: inputs.new_zeros(()).expand(s) for name, s in self._shapes[shape].items()}

    def layers(self, seen: Tensors, deltas: Tensors, chosen: slice) -> list[TappedLayer]:
        """Each layer with its inputs and output gradients in the chosen networks."""
        return [
            TappedLayer(name, layer, seen[name][chosen], deltas[name][chosen])
            for name, layer in self._layers.items()
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in self._seen:
                raise UserError(_refusal(name, "used twice"))
            self._seen[name], self._outputs[name] = inputs[0], output.shape
            return output if self._added is None else output + self._added[name]

        return forward


def gradients(layers: Sequence[TappedLayer], memory: Tensors) -> Tensors:
    """The gradients of each network's batch-mean loss, by parameter name, each (G, *shape).

    ``memory`` keeps the large ones from call to call, which may overwrite what the last returned:
    fresh memory of this size costs a page fault every 4 kB. Empty at first, and no larger group
    may follow the first.
    """
    found: Tensors = {}
    for name, layer, inputs, delta in layers:
        prefix = f"{name}." if name else ""
        if type(layer) is nn.Conv2d:
            weight = partial(
                _conv2d_weight,
                weight_size=layer.weight.shape,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
            )
            found[f"{prefix}weight"] = vmap(weight)(inputs, delta)
        else:
            if name not in memory:
                memory[name] = delta.mT @ inputs
            out = memory[name][: len(delta)]
            found[f"{prefix}weight"] = torch.bmm(delta.mT, inputs, out=out)
        if layer.bias is not None:
            found[f"{prefix}bias"] = delta.sum(dim=(1, *range(3, delta.dim())))
    return found


def squared_norms(layers: Sequence[TappedLayer]) -> Tensor:
    """||grad l(W_r, z_i)||^2 of every sample, (G, b)."""
    parts = [
        squared_norm(layer, inputs.flatten(0, 1), delta.flatten(0, 1))
        for _, layer, inputs, delta in layers
    ]
    networks, b = layers[0].delta.shape[:2]
    # Those of the batch mean are 1/b of the samples' own: hence b^2.
    return torch.stack(parts).sum(dim=0).view(networks, b) * float(b) ** 2


def _conv2d_weight(inputs: Tensor, delta: Tensor, **options: object) -> Tensor:
    weight: Tensor = conv2d_weight(inputs, grad_output=delta, **options)
    return weight


def _refusal(name: str, how: str) -> str:
    return (
        "measurement.dispersion = true with replicas needs layers that are used once each, but "
        f"{name!r} is {how}; set measurement.dispersion = false, or replicas = null"
    )
