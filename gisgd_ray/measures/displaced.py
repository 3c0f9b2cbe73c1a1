"""A network at displaced weights w + std * u, and what its losses and gradients are on samples."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.seeds import derived_seed


class DisplacedModel:
    """The model at weights w + std * u, in a precision of its choice, on weights of its own.

    ``weights`` are the trainable parameters' counterparts, in order; frozen ones and buffers are
    those of the model, rounded to the same precision.

    Raises:
        ValueError: nothing trainable.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        def converted(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor

        self._model = model
        self._tensors = {name: converted(buffer) for name, buffer in model.named_buffers()}
        self._centre: list[Tensor] = []
        self.weights: list[Tensor] = []
        for name, parameter in model.named_parameters():
            self._tensors[name] = value = converted(parameter)
            if parameter.requires_grad:
                self._centre.append(value)
                self._tensors[name] = value.clone().requires_grad_()
                self.weights.append(self._tensors[name])
        if not self.weights:
            raise ValueError("the model has no trainable parameters to perturb")
        self.dtype = dtype

    def normal(self, *purpose: str | int, dtype: torch.dtype, seed: int) -> list[Tensor]:
        """u, standard normal, shaped like the weights; a function of (seed, purpose) alone."""
        device = self.weights[0].device
        generator = torch.Generator(device).manual_seed(derived_seed(seed, *purpose))
        count = sum(w.numel() for w in self.weights)
        flat = torch.randn(count, generator=generator, device=device, dtype=dtype)
        parts = flat.split([w.numel() for w in self.weights])
        return [part.view_as(w) for part, w in zip(parts, self.weights, strict=True)]

    @torch.no_grad()
    def move(self, direction: Iterable[Tensor] = (), *, std: float = 0.0) -> None:
        """Go to w + std * direction."""
        shifts = [part.to(self.dtype) for part in direction]
        if not shifts:
            torch._foreach_copy_(self.weights, self._centre)
        for weight, centre, shift in zip(self.weights, self._centre, shifts, strict=False):
            torch.add(centre, shift, alpha=std, out=weight)

    def gradient(self) -> list[Tensor]:
        """The ``.grad`` of the weights; zeros where the loss does not depend on them."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return [weight.grad for weight in self.weights if weight.grad is not None]

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            inputs = inputs.to(self.dtype)
        outputs: Tensor = functional_call(self._model, self._tensors, (inputs,))
        return outputs


@dataclass(frozen=True)
class Samples:
    """Some samples, (n, ...) and (n,), their loss, and how many pass through a network at once."""

    inputs: Tensor
    targets: Tensor
    loss: LossName
    chunk: int

    def at(self, which: slice | Tensor) -> "Samples":
        """Some of them."""
        return replace(self, inputs=self.inputs[which], targets=self.targets[which])

    def thinned(self, most: int) -> "Samples":
        """At most so many of them, evenly spread."""
        return self.at(slice(None, None, math.ceil(len(self.inputs) / most)))

    def losses(self, model: DisplacedModel) -> Tensor:
        """l(w, z_i) in the model's precision, (n,)."""
        return torch.cat(list(self._by_chunk(model)))

    def gradient(self, model: DisplacedModel) -> list[Tensor]:
        """That of the mean loss, shaped like the model's weights."""
        for weight in model.weights:
            weight.grad = None
        for losses in self._by_chunk(model):
            (losses.sum() / len(self.inputs)).backward()
        return model.gradient()

    def _by_chunk(self, model: DisplacedModel) -> Iterator[Tensor]:
        for x, y in zip(self.inputs.split(self.chunk), self.targets.split(self.chunk), strict=True):
            y = y.to(model.dtype) if y.is_floating_point() else y
            yield per_sample_loss(self.loss, model(x), y)


def default_chunk(model: nn.Module) -> int:
    """Samples differentiated at once: 1,000, or 200 with convolutions, which need more memory."""
    return 200 if any(isinstance(m, nn.Conv2d) for m in model.modules()) else 1000


def check_stds(stds: Sequence[float]) -> None:
    """Raises ValueError on a negative or non-finite perturbation std."""
    for std in stds:
        if not (math.isfinite(std) and std >= 0):
            raise ValueError(f"perturbation stds must be finite and at least 0, not {std}")


def native_dtype(model: nn.Module) -> torch.dtype:
    """The precision of the trainable weights."""
    return next((p.dtype for p in model.parameters() if p.requires_grad), torch.float32)
