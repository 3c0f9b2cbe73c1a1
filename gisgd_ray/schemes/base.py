"""The interface of a training scheme."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Batch(NamedTuple):
    """One mini-batch: inputs (b, C, H, W), targets (b,) class indices."""

    inputs: Tensor
    targets: Tensor


PlainGradient = Callable[[Batch], Tensor]
"""Forward and backward of the mean batch loss at the current weights, measured on the way: sets
``.grad`` of every parameter to grad of (1/b) sum_i l(w, z_i), returns the losses l(w, z_i) (b,)."""


class Scheme(Protocol):
    """Leaves in ``.grad`` the vector that the optimizer is to descend along."""

    def gradient(self, model: nn.Module, batch: Batch, plain: PlainGradient) -> None:
        """Call ``plain(batch)`` exactly once, then turn ``.grad`` into the scheme's gradient."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the scheme to continue exactly; may be empty."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class Stateless:
    """Mixin for schemes with nothing to remember."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
