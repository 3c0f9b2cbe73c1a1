"""Passes at weights other than the current ones, as GMP, AMP and SAM make them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gisgd_ray.models import trainable

Fold = Callable[[Tensor, Tensor], object]
"""(kept gradient of one weight, its gradient in a further pass): changes the former in place."""


class WeightsAside:
    """Holds the weights while others stand in their place: the one copy a scheme keeps.

    The copy is made once and used again at every step.
    """

    def __init__(self) -> None:
        self.clean: list[Tensor] = []

    @contextmanager
    def kept(self, weights: list[Tensor]) -> Iterator[None]:
        """Inside, ``clean`` holds the weights, which may be overwritten; they come back bit for
        bit, also when a pass fails."""
        with torch.no_grad():
            if not self.clean:
                self.clean = [torch.empty_like(w) for w in weights]
            torch._foreach_copy_(self.clean, [w.detach() for w in weights])
            try:
                yield
            finally:
                torch._foreach_copy_([w.detach() for w in weights], self.clean)


@contextmanager
def folded(model: nn.Module, fold: Fold) -> Iterator[None]:
    """Each ``backward()`` inside folds its gradients into the ``.grad`` there was before.

    Every weight's gradient is folded as soon as it is known and then dropped: the passes need no
    second gradient in memory. A weight that had no gradient before has none after.
    """
    weights = [w for w in trainable(model) if w.grad is not None]
    others = [w for w in trainable(model) if w.grad is None]
    kept = {w: w.grad for w in weights}

    def hook(weight: Tensor) -> None:
        before, gradient = kept[weight], weight.grad
        assert before is not None
        assert gradient is not None
        with torch.no_grad():
            fold(before, gradient)
        weight.grad = None

    for weight in weights:
        weight.grad = None
    handles = [w.register_post_accumulate_grad_hook(hook) for w in weights]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights:
            before = kept[weight]
            assert before is not None
            weight.grad = before
        for weight in others:
            weight.grad = None
