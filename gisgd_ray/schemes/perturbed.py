"""Passes at weights other than the current ones, as GMP, AMP and SAM make them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Fold = Callable[[Tensor, Tensor], object]
"""(kept gradient of one weight, its gradient in a further pass): changes the former in place."""


class StandIns:
    """Weights that take the place of a model's: the one copy that a scheme keeps.

    The model's own weights are never written to, so that nothing is copied back. The stand-ins are
    made once and used again at every step.
    """

    def __init__(self) -> None:
        self._of: dict[Tensor, nn.Parameter] = {}

    @contextmanager
    def placed(self, model: nn.Module) -> Iterator[dict[Tensor, nn.Parameter]]:
        """Inside, the model computes with the stand-ins of its trainable weights.

        Yields them by weight, in the order of the weights and with any values at first. Afterwards
        the weights are back, also when a pass fails.
        """
        places = [
            (module, name, weight)
            for module in model.modules()
            for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
            if weight.requires_grad
        ]
        for _, _, weight in places:
            if weight not in self._of:
                self._of[weight] = nn.Parameter(torch.empty_like(weight))
        try:
            for module, name, weight in places:
                setattr(module, name, self._of[weight])
            yield {weight: self._of[weight] for _, _, weight in places}
        finally:
            for module, name, weight in places:
                setattr(module, name, weight)


@contextmanager
def folded(
    weights: Iterable[Tensor], fold: Fold, *, stand_ins: Mapping[Tensor, Tensor] | None = None
) -> Iterator[None]:
    """Each ``backward()`` inside folds its gradients into the ``.grad`` there was before.

    Every weight's gradient, or that of its stand-in, is folded as soon as it is known and then
    dropped: the passes need no second gradient in memory. A weight that had no gradient before has
    none after.
    """
    used = {weight: (stand_ins or {}).get(weight, weight) for weight in weights}
    kept = {used[weight]: weight.grad for weight in used}

    def hook(weight: Tensor) -> None:
        before, gradient = kept[weight], weight.grad
        weight.grad = None
        assert gradient is not None
        if before is not None:
            with torch.no_grad():
                fold(before, gradient)

    for weight in kept:
        weight.grad = None
    try:
        with ExitStack() as hooks:
            for weight in kept:
                hooks.enter_context(weight.register_post_accumulate_grad_hook(hook))
            yield
    finally:
        for weight, in_pass in used.items():
            in_pass.grad = None
            weight.grad = kept[in_pass]
