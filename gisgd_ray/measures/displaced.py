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

        self._model, self.chunk = model, default_chunk(model)
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
class WeightNoise:
    """tau u at some stds tau, with u standard normal and the same for all of them.

    Raises:
        ValueError: a negative or non-finite std.
    """

    stds: Sequence[float]
    """The values of tau."""
    seed: int

    def __post_init__(self) -> None:
        for std in self.stds:
            if not (math.isfinite(std) and std >= 0):
                raise ValueError(f"perturbation stds must be finite and at least 0, not {std}")

    def direction(
        self, like: Sequence[Tensor], *purpose: str | int, dtype: torch.dtype
    ) -> list[Tensor]:
        """u in the shapes of the weights, drawn on their device; a function of (seed, purpose)."""
        device = like[0].device
        generator = torch.Generator(device).manual_seed(derived_seed(self.seed, *purpose))
        sizes = [weight.numel() for weight in like]
        flat = torch.randn(sum(sizes), generator=generator, device=device, dtype=dtype)
        return [part.view_as(w) for part, w in zip(flat.split(sizes), like, strict=True)]


@dataclass(frozen=True)
class Samples:
    """Some samples and the loss on them: with a network, what is differentiated."""

    inputs: Tensor
    """(n, ...)."""
    targets: Tensor
    """(n,), as :func:`gisgd_ray.networks.losses.per_sample_loss` takes them."""
    loss: LossName
    chunk: int | None = None
    """How many pass through a network at once; by default 1,000, or 200 with convolutions, which
    need more memory. It changes memory and time, not the result."""

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, which: slice | Tensor) -> "Samples":
        """Some of them."""
        return replace(self, inputs=self.inputs[which], targets=self.targets[which])

    def thinned(self, most: int) -> "Samples":
        """At most so many of them, evenly spread."""
        return self.at(slice(None, None, math.ceil(len(self) / most)))

    def losses(self, model: DisplacedModel) -> Tensor:
        """l(w, z_i) in the model's precision, (n,)."""
        return torch.cat(list(self._by_chunk(model)))

    def gradient(self, model: DisplacedModel) -> list[Tensor]:
        """That of the mean loss, shaped like the model's weights."""
        for weight in model.weights:
            weight.grad = None
        for losses in self._by_chunk(model):
            (losses.sum() / len(self)).backward()
        return model.gradient()

    def _by_chunk(self, model: DisplacedModel) -> Iterator[Tensor]:
        chunk = self.chunk or model.chunk
        for x, y in zip(self.inputs.split(chunk), self.targets.split(chunk), strict=True):
            y = y.to(model.dtype) if y.is_floating_point() else y
            yield per_sample_loss(self.loss, model(x), y)


def default_chunk(model: nn.Module) -> int:
    """See :class:`Samples`."""
    return 200 if any(isinstance(m, nn.Conv2d) for m in model.modules()) else 1000


def native_dtype(model: nn.Module) -> torch.dtype:
    """The precision of the trainable weights."""
    return next((p.dtype for p in model.parameters() if p.requires_grad), torch.float32)
