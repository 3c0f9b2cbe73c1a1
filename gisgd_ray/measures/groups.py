"""Gradient dispersion between independent groups of a batch.

Where samples have no gradients of their own (BatchNorm in train mode normalises by the batch), or
the gradient is no sum over samples, batch B of size b is split into G groups of sizes m_1 .. m_G
and each is differentiated as a batch by itself. With g_j the gradient of group j and
gbar = (1/b) sum_j m_j g_j::

    s2 = 1/(G-1) sum_j m_j || g_j - gbar ||^2          (mean square between groups)

For a gradient that is a mean over samples, E[s2] is the per-sample dispersion (the mean square
within and between groups have one expectation: analysis of variance), so that s2 / b estimates V_t
without bias like the estimator by sample, with which it coincides at G = b; its variance is
larger, the fewer the groups. With BatchNorm it is the dispersion of a network that normalises by
groups of b/G samples.
"""

import torch
from torch import Tensor, nn

from gisgd_ray.measures.dispersion import Dispersion, GradientNorm, to_float64
from gisgd_ray.measures.step_series import Array
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import norm_parts
from gisgd_ray.schemes.base import Batch, Scheme, Step


class BetweenGroups(Dispersion):
    """s2 between groups, of the plain gradient.

    Takes one more pass over the batch, and two more copies of the gradient while it lasts.
    """

    needs_plain_gradient = True

    def __init__(self, model: nn.Module, groups: int):
        self._groups = groups
        self._gradient = GradientNorm(trainable(model))
        self._between: list[Tensor] = []

    def before(self, step: Step, scheme: Scheme) -> None:
        self._between.append(self.measure(step, scheme))

    def see(self, batch_size: int) -> None:
        del batch_size
        self._gradient.note()

    def gradient_norm(self) -> Tensor | None:
        return self._gradient.norm()

    def columns(self, sizes: Array) -> dict[str, Array]:
        del sizes
        between, self._between = self._between, []
        return {
            "group_dispersion": to_float64(torch.stack(between)),
            "squared_gradient_norm": self._gradient.squares(),
        }

    def measure(self, step: Step, scheme: Scheme) -> Tensor:
        """s2 (float64, ()) at the current weights; the scheme and the model stay as they are.

        ``step`` must be without a meter.
        """
        mean: list[Tensor] = []
        count, total = 0, torch.zeros((), dtype=torch.float64, device=step.batch.inputs.device)
        parts = zip(
            step.batch.inputs.tensor_split(self._groups),
            step.batch.targets.tensor_split(self._groups),
            strict=True,
        )
        for place, (inputs, targets) in enumerate(parts):
            group = Step(
                step.model, Batch(inputs, targets), loss=step.loss, precision=step.precision
            )
            with group.aside():
                self._differentiate(group, scheme, place)
            gradient = [p.grad for p in trainable(step.model) if p.grad is not None]
            size = len(inputs)
            if not mean:
                mean, count = gradient, size
                continue
            # Centred at every step (Chan et al. 1979): no cancellation when the groups agree.
            torch._foreach_sub_(gradient, mean)
            squares = norm_parts(gradient).double().square().sum()
            total = total + squares * (count * size / (count + size))
            torch._foreach_add_(mean, gradient, alpha=size / (count + size))
            count += size
        step.zero_grad()
        return total / (self._groups - 1)

    def _differentiate(self, group: Step, scheme: Scheme, place: int) -> None:
        """Leave the gradient of the group at this place in ``.grad``."""
        del scheme, place
        group.plain()


class BetweenGroupsOfApplied(BetweenGroups):
    """The same of a gradient that the scheme applies and that is no multiple of the plain one.

    It is the scheme's with each group as the batch and its state that of the step. Random draws
    that a batch shares (GMP's delta, MixUp's lambda) the groups share as well; of draws by sample
    (dropout, GMP's ``local``) each group has its own. In expectation that is the dispersion of the
    whole batch's gradient where the scheme is linear in the batch (GMP's average, dropout, label
    smoothing, adversarial); elsewhere of a group's own ascent, mixing or absolute difference.
    """

    needs_plain_gradient = False

    def see(self, batch_size: int) -> None:
        del batch_size

    def close(self) -> None:
        self._gradient.note()

    def gradient_norm(self) -> None:
        return None

    def _differentiate(self, group: Step, scheme: Scheme, place: int) -> None:
        state, draws = scheme.state_dict(), scheme.draws_by_sample
        if draws is not None:
            draws.group = place
        try:
            scheme.gradient(group)
        finally:
            if draws is not None:
                draws.group = 0
        scheme.load_state_dict(state)
