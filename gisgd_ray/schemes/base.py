"""The interface of a training scheme, the step it is given, and what builds it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gisgd_ray.config.catalogue import SCHEMES
from gisgd_ray.config.scheme import SchemeConfig
from gisgd_ray.device import Precision
from gisgd_ray.networks.batchnorm import frozen_statistics
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import gradient_norm_parts
from gisgd_ray.seeds import derived_seed

Number = Tensor | float
"""On a GPU a tensor, (), so that no step waits for it; on a CPU a float as well, where a look costs
less than another operation on tensors."""


class Batch(NamedTuple):
    """One mini-batch: inputs (b, C, H, W), targets (b,) class indices or real values."""

    inputs: Tensor
    targets: Tensor


class Objective(NamedTuple):
    """Per-sample values (b,) of what a scheme minimises, and of the loss in the same pass."""

    minimised: Tensor
    losses: Tensor


class Meter(Protocol):
    """What watches the plain gradient of a step."""

    @property
    def measures_gradients(self) -> bool:
        """Whether it needs the plain gradient at all."""

    def watch(self) -> AbstractContextManager[object]:
        """Context in which the plain batch-mean loss is differentiated."""

    def see(self, losses: Tensor) -> None:
        """Note the per-sample losses (b,), and the plain gradient in ``.grad`` if it measures."""

    def gradient_norm(self) -> Number | None:
        """||g|| of the gradient seen last; None if it was not taken."""


class Step:
    """One training step: the batch, and the passes that a scheme makes over it.

    A scheme calls :meth:`plain` once, or :meth:`own` once; further passes by :meth:`forward`
    belong into :meth:`aside`. Without ``meter`` nothing is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        loss: LossName,
        precision: Precision = "float32",
        meter: Meter | None = None,
    ):
        self.model, self.batch, self.loss, self.precision = model, batch, loss, precision
        self._meter = meter

    def scale(self, factor: Number) -> None:
        """Multiply the gradient in ``.grad`` by a number."""
        # On a CPU a look costs less than a pass over the gradient; on a GPU it would wait.
        waits = isinstance(factor, Tensor) and not factor.is_cpu
        if waits or factor != 1:
            gradients = [p.grad for p in trainable(self.model) if p.grad is not None]
            torch._foreach_mul_(gradients, factor)

    def forward(self, inputs: Tensor) -> Tensor:
        """The network's outputs (b, K), in full precision whatever that of the pass."""
        if self.precision != "bfloat16":
            outputs: Tensor = self.model(inputs)
            return outputs
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            outputs = self.model(inputs)
        return outputs.float()

    def losses(self, outputs: Tensor) -> Tensor:
        """l(w, z_i) for every sample of the batch, (b,)."""
        return per_sample_loss(self.loss, outputs, self.batch.targets)

    def plain(self) -> Tensor:
        """Forward and backward of the mean batch loss at the current weights, measured.

        Sets ``.grad`` of every parameter to that of (1/b) sum_i l(w, z_i); returns the losses
        l(w, z_i), (b,), detached. The inputs get a ``.grad`` too if they ask for one.
        """
        self.zero_grad()
        losses = self.losses(self.forward(self.batch.inputs))
        with nullcontext() if self._meter is None else self._meter.watch():
            losses.mean().backward()
        losses = losses.detach()
        if self._meter is not None:
            self._meter.see(losses)
        return losses

    def own(self, objective: Callable[[], Objective]) -> None:
        """Forward and backward of another objective, for schemes that need no plain gradient.

        Sets ``.grad`` to the gradient of the mean of ``objective().minimised``. Where the plain
        gradient is measured its pass comes first and leaves no trace; elsewhere the losses of
        the objective's own pass are noted.
        """
        measured = self._meter is not None and self._meter.measures_gradients
        if measured:
            with self.aside():
                self.plain()
        self.zero_grad()
        found = objective()
        found.minimised.mean().backward()
        if self._meter is not None and not measured:
            self._meter.see(found.losses.detach())

    def gradient_norm(self) -> Number:
        """||g(w, B)|| of the plain gradient, which must still be in ``.grad``."""
        norm = None if self._meter is None else self._meter.gradient_norm()
        if norm is None:
            # By the same sums as the meter: measuring must not change a bit of what is clipped.
            norm = torch.linalg.vector_norm(gradient_norm_parts(trainable(self.model)))
        return norm

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def aside(self) -> AbstractContextManager[None]:
        """Context of passes that must not enter BatchNorm's running statistics."""
        return frozen_statistics(self.model)


class Scheme(Protocol):
    """Leaves in ``.grad`` the vector that the optimizer is to descend along.

    One whose record says "plain" or "multiple" does so by :meth:`Step.plain` and :meth:`Step.scale`
    alone: on a dense network there is no ``.grad``, and the factor it returns is what is applied.
    """

    @property
    def draws_by_sample(self) -> "Draws | None":
        """The draws in which every sample of a batch has its own, if there are any."""

    def gradient(self, step: Step) -> Number | None:
        """Make the passes; returns the factor if the result is the plain gradient times a number,
        else None."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the scheme to continue exactly; may be empty."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class Stateless:
    """Mixin for schemes with nothing to remember."""

    draws_by_sample: "Draws | None" = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


@dataclass(frozen=True)
class Setting:
    """What a scheme knows about the run it works in.

    Attributes:
        seed: of the run; a scheme's draws come from streams of their own.
        device: of the weights.
        steps_per_epoch: m.
        planned_steps: T if no stopping rule but the limits ends the run.
        black, white: normalised values of raw pixels 0 and 255 by channel, (C,); images only.
    """

    seed: int
    device: torch.device
    steps_per_epoch: int
    planned_steps: int
    black: Tensor | None = None
    white: Tensor | None = None


class Draws:
    """Random numbers of a scheme: one generator a step, a function of (seed, purpose, count).

    The generator lives where the numbers are used, since they may be as many as the weights; a
    checkpoint holds the count alone.
    """

    def __init__(self, setting: Setting, purpose: str):
        self._seed, self._purpose = setting.seed, purpose
        self._generator = torch.Generator(setting.device)
        self._count = 0
        self.group = 0
        """Which part of a batch the next numbers are for; 0 is the whole batch or its first."""

    def next(self) -> torch.Generator:
        """The next step's generator, at the beginning of its stream."""
        return self._generator.manual_seed(self.next_seed())

    def next_seed(self) -> int:
        """The next step's seed."""
        part = ("group", self.group) if self.group else ()
        seed = derived_seed(self._seed, self._purpose, self._count, *part)
        self._count += 1
        return seed

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = int(state["count"])


def build_scheme(config: SchemeConfig, model: nn.Module, setting: Setting) -> Scheme:
    """The scheme a config names, in its initial state.

    Raises:
        UserError: the scheme does not know a layer of the model, or the function that builds it is
            missing.
    """
    scheme: Scheme = SCHEMES[config.name].function()(config, model, setting)
    return scheme
