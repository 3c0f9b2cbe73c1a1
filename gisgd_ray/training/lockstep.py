"""R runs of one shape advanced together, and the gradient dispersion across them.

The stochastic setting of the paper (Figure 5) needs R replicas of a run, alike but for W_0 and the
order of the batches, at the same step t at the same time: its V_t is about the mean of the
gradient over W as well as over Z (Eq. 1). With g_r the batch-mean gradient of replica r::

    W_r  <-  W_r - lambda g_r                                        plain SGD
    V~_t =   mean_r s2_r / b                                         (Neu et al.)
    V_t  =   1/(R-1) sum_r ||g_r - mean_r g_r||^2 + (b/n) V~_t       (Eq. 1)

with s2_r the per-sample dispersion inside replica r's batch, of b of the n samples (see
``measures.dispersion``), and D_t of Theorem 1, about the mean given the noisy weights (see
``measures.posterior``). The weights lie in one stack a parameter, over which the network is mapped
(``torch.func``). Gradients are formed a few replicas at a time: those of all would be as large as
the weights themselves, and on a CPU out of the cache before they are read.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from math import inf
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from gisgd_ray.errors import UserError, layer_is
from gisgd_ray.measures.posterior import Posteriors
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.networks.batchnorm import mixes_samples
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.per_sample import uncovered_layer
from gisgd_ray.networks.taps import Taps, Tensors, gradients, squared_norms

GROUP_BYTES = 8_000_000
"""Gradients formed at once on a CPU: more fall out of its cache before they are read, and with
fewer a small network pays for Python."""


class Lockstep:
    """R models advanced together by plain SGD, and what is measured of them at every step.

    From here on the parameters and buffers of ``models[r]`` are views into the stack: evaluating,
    measuring, ``state_dict`` and ``load_state_dict`` (which copies in place) work on each model as
    before, and see and change the stack. What *replaces* a model's tensors (``model.to``,
    ``load_state_dict(assign=True)``) parts it from the stack. ``torch.save`` writes the storage
    behind a view, all R replicas: clone first when saving one.

    Buffers are constants here. Gradients are never left in ``.grad``.

    Args:
        models: R networks of one architecture, on one device, with their own weights.
        loss: differentiated is its mean over each replica's batch.
        dispersion: whether to measure gradient norms and dispersions, else NaN.
        posteriors: measures Theorem 1's dispersion as well, with ``dispersion``.
        num_samples: n, of which the batches of an epoch are drawn without replacement, the same n
            in every replica; None: every batch is drawn independently.
        group: replicas whose gradients are formed at once; by default all of them on an
            accelerator; on a CPU as many as :data:`GROUP_BYTES` hold, or one with convolutions.
            No result depends on it, but for rounding.

    Raises:
        UserError: a layer that mixes the samples of a batch or draws random numbers, or with
            ``dispersion`` one whose per-sample norms are not known.
        ValueError: no models, models that differ in shape, or a group below 1.
    """

    parameters: Tensors
    """Trainable parameters by name, each (R, *shape)."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        loss: LossName,
        dispersion: bool,
        posteriors: Posteriors | None = None,
        num_samples: int | None = None,
        group: int | None = None,
    ):
        _check_alike(models)
        _refuse_unsupported(models[0], dispersion=dispersion)
        self.loss: LossName = loss
        self.num_replicas = len(models)
        self._num_samples = inf if num_samples is None else num_samples
        self._skeleton = _skeleton(models[0])
        self._taps = Taps(self._skeleton) if dispersion else None
        self.parameters = {}
        self._fixed: Tensors = {}
        for name, first in models[0].named_parameters():
            kind = self.parameters if first.requires_grad else self._fixed
            kind[name] = stacked([model.get_parameter(name) for model in models])
        for name, _ in models[0].named_buffers():
            self._fixed[name] = stacked([model.get_buffer(name) for model in models])
        self._spread = _Spread(self.parameters) if dispersion else None
        self._posteriors = posteriors
        on_cpu = next(iter(self.parameters.values())).device.type == "cpu"
        convolves = any(isinstance(layer, _ConvNd) for layer in self._skeleton.modules())
        if group is None:
            of_one = sum(s[0].numel() * s.element_size() for s in self.parameters.values())
            fit = max(1, GROUP_BYTES // of_one)
            group = (1 if convolves else fit) if on_cpu else len(models)
        if group < 1:
            raise ValueError(f"group = {group} must be at least 1")
        self._group = group
        # Mapped over several networks a convolution is a grouped one, twice as slow on a CPU.
        apart = self._taps is None or (on_cpu and convolves)
        self._passed = group if apart else len(models)
        self._memory: Tensors = {}
        self._rates: list[float | Tensor] = []
        self._batch_sizes: list[int] = []
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def step(
        self, inputs: Tensor, targets: Tensor, *, learning_rate: float | Tensor, step: int = 0
    ) -> None:
        """W_r <- W_r - lambda_r g(W_r, B_r) in every replica, measured at the weights before.

        Args:
            inputs: ``(R, b, ...)``, the batch of each replica; b may differ from step to step.
            targets: ``(R, b)``, classes or, with the squared loss, real values.
            learning_rate: one number, or one for each replica, ``(R,)``.
            step: updates so far, t - 1, over which the auxiliary noise has added up.

        Raises:
            ValueError: a first axis that is not R; nothing has been updated then.
        """
        replicas, b = self.num_replicas, inputs.shape[1]
        rates = learning_rate if isinstance(learning_rate, Tensor) else None
        for what, axes in (
            ("inputs", inputs.shape[:1]),
            ("targets", targets.shape[:1]),
            ("learning_rate", (replicas,) if rates is None else rates.shape),
        ):
            if tuple(axes) != (replicas,):
                raise ValueError(f"{what} of {tuple(axes)} replicas, expected ({replicas},)")

        mixed = self._posteriors is not None and self._posteriors.begin(self.parameters, step)
        losses: list[Tensor] = []
        squared: list[Tensor] = []
        for start in range(0, replicas, self._passed):
            chosen = slice(start, start + self._passed)
            found, (group_losses, seen) = self._differentiate(chosen, inputs, targets)
            losses.append(group_losses)
            if self._taps is None or self._spread is None:
                self._descend(start, found, learning_rate)
                continue
            for first in range(0, len(group_losses), self._group):
                own = slice(first, first + self._group)
                layers = self._taps.layers(seen, found, own)
                squared.append(squared_norms(layers))
                weights = gradients(layers, self._memory)
                self._descend(start + first, weights, learning_rate)
                if mixed and self._posteriors is not None:
                    self._posteriors.add(weights)
                self._spread.add(weights)  # the last use: it overwrites them
        norms = self._record(torch.cat(losses), squared)
        if self._posteriors is not None:
            self._posteriors.end((norms * learning_rate).max())
        self._rates.append(cast(float, learning_rate) if rates is None else rates.double().mean())
        self._batch_sizes.append(b)

    def drain(self) -> StepSeries:
        """One row for every step since the last call; waits for the device."""
        if not self._rows:
            return StepSeries.empty()
        of_all, of_each = torch.stack(self._rows).cpu().split([4, 2 * self.num_replicas], dim=1)
        loss, loss_min, loss_max, dispersion = of_all.T.numpy().copy()
        squares, gradients = of_each.numpy().reshape(len(of_each), 2, -1).swapaxes(0, 1)  # (T, R)
        sizes = np.array(self._batch_sizes, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            within = (squares - gradients) / (sizes[:, None] - 1)  # s2_r / b, (T, R)
        within = np.where(within < 0, 0.0, within)
        share = sizes / self._num_samples
        draws = None
        if self._posteriors is not None:
            draws = self._posteriors.drain(within, share)
        # Of batches of one sample, within which nothing is known, the 1/n is left out.
        dispersion += np.where(sizes > 1, share * within.mean(axis=1), 0.0)
        between = self._spread is not None and self.num_replicas > 1
        series = StepSeries(
            learning_rate=np.array([float(rate) for rate in self._rates]),
            batch_size=sizes,
            loss=loss,
            loss_min=loss_min,
            loss_max=loss_max,
            squared_gradient_norm=gradients.mean(axis=1),
            mean_squared_norm=squares.mean(axis=1),
            replica_dispersion=dispersion if between else None,
            active_loss=np.full(len(loss), np.nan),
            group_dispersion=None,
            gradient_factor=np.ones(len(loss)),
            conditional_dispersions=draws,
        )
        self._rates, self._batch_sizes, self._rows = [], [], []
        return series

    def _differentiate(
        self, chosen: slice, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensors, tuple[Tensor, Tensors]]:
        """Of some replicas: gradients of the weights, or of the taps if there are any, with the
        losses (G, b) and the inputs (G, b, ...) of the layers."""
        differentiate = vmap(
            grad(self._mean_loss, argnums=0 if self._taps is None else 1, has_aux=True),
            in_dims=(0, None, 0, 0, 0),
        )
        of_group = (
            {name: stack[chosen] for name, stack in self.parameters.items()},
            {} if self._taps is None else self._taps.zeros(inputs),
            {name: stack[chosen] for name, stack in self._fixed.items()},
            inputs[chosen],
            targets[chosen],
        )
        return cast(tuple[Tensors, tuple[Tensor, Tensors]], differentiate(*of_group))

    def _descend(self, first: int, found: Tensors, learning_rate: float | Tensor) -> None:
        """Update the replicas from the first on, of which these are the gradients."""
        for name, gradient in found.items():
            chosen = slice(first, first + len(gradient))
            weights = self.parameters[name][chosen]
            if isinstance(learning_rate, Tensor):
                rate = learning_rate[chosen].to(weights).view(-1, *[1] * (weights.dim() - 1))
                weights.addcmul_(gradient, rate, value=-1)
            else:
                weights.sub_(gradient, alpha=learning_rate)

    def _mean_loss(
        self, weights: Tensors, taps: Tensors, fixed: Tensors, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensors]]:
        """Of one replica: the batch's mean loss; beside it all losses (b,) and layer inputs."""
        seen: Tensors = {}
        with nullcontext() if self._taps is None else self._taps.added(taps, seen):
            outputs = functional_call(self._skeleton, (weights, fixed), (inputs,))
        losses = per_sample_loss(self.loss, outputs, targets)
        return losses.mean(), (losses, seen)

    def _record(self, losses: Tensor, squared: list[Tensor]) -> Tensor:
        """Note one step: losses (R, b) and squared norms in groups of (G, b); ||g_r||, (R,)."""
        values = losses.double()
        nothing = torch.full_like(values[:, 0], torch.nan)
        squares, gradients, dispersion = nothing, nothing, nothing[0]
        if self._spread is not None:
            squares = torch.cat(squared).double().mean(dim=1)
            gradients, dispersion = self._spread.moments()
        of_all = torch.stack([values.mean(), *values.aminmax(), dispersion])
        self._rows.append(torch.cat([of_all, squares, gradients]))
        return gradients.sqrt()


class _Spread:
    """||g_r - mean_r g_r||^2 summed over replicas that come in groups, without cancellation.

    About the first replica's gradient p, with d_r = g_r - p and s = sum_r d_r::

        mean_r g_r = p + s / R
        M2 = sum_r ||g_r - mean_r g_r||^2 = sum_r ||d_r||^2 - ||s||^2 / R

    Since d_1 = 0, ||s||^2 <= (R-1) sum_r ||d_r||^2: the difference is never below 1/R of its first
    term, however closely the gradients agree. Norms are taken in float32 along rows (slices of a
    parameter along its first axis) and summed in float64, good to 1e-8.
    """

    def __init__(self, stacks: Tensors):
        # Kept from step to step: fresh memory of this size costs a page fault every 4 kB.
        self._pivot = {name: torch.empty_like(stack[0]) for name, stack in stacks.items()}
        self._sum = {name: torch.empty_like(stack[0]) for name, stack in stacks.items()}
        self._norms: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._count = 0

    def add(self, found: Tensors) -> None:
        """Take in the gradients (G, *shape) of a group; they are overwritten."""
        self._norms.append(_squares(found))
        for name, gradient in found.items():
            if self._count == 0:
                self._pivot[name].copy_(gradient[0])
                self._sum[name].zero_()
            gradient.sub_(self._pivot[name])
            for centred in gradient:
                self._sum[name].add_(centred)
        self._squares.append(_squares(found).sum())
        self._count += len(self._norms[-1])

    def moments(self) -> tuple[Tensor, Tensor]:
        """||g_r||^2, (R,), and V_t = M2 / (R-1), (), NaN for a single replica; float64 each.

        Of all replicas since the last call.
        """
        replicas, norms = self._count, torch.cat(self._norms)
        sums = _squares({name: total[None] for name, total in self._sum.items()})[0]
        m2 = torch.stack(self._squares).sum() - sums / replicas
        self._norms, self._squares, self._count = [], [], 0
        return norms, m2 / (replicas - 1) if replicas > 1 else m2 * torch.nan


def _squares(stacks: Tensors) -> Tensor:
    """Squared norms of (G, *shape) over all parameters, (G,) float64; rows as in _Spread."""
    found = []
    for stack in stacks.values():
        along = tuple(range(min(2, stack.dim() - 1), stack.dim()))
        norms: Tensor = torch.linalg.vector_norm(stack, dim=along)
        found.append(norms.double().square().view(len(stack), -1).sum(dim=1))
    return torch.stack(found).sum(dim=0)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(R, *shape), of which the given tensors become views."""
    stack = tensors[0].new_empty((len(tensors), *tensors[0].shape))
    for r, tensor in enumerate(tensors):
        stack[r].copy_(tensor.detach())
        tensor.data = stack[r]  # which frees its own memory before the next row is filled
    return stack


def _skeleton(model: nn.Module) -> nn.Module:
    """The model without its hooks and numbers, to call with those of each replica."""
    numbers: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    numbers |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    hooks = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name.endswith("_hooks")
    ]
    return deepcopy(model, numbers | {id(value): type(value)() for value in hooks})


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise ValueError("no models")

    def form(model: nn.Module) -> object:
        parts = (*model.named_parameters(), *model.named_buffers())
        return str(model), [(n, t.shape, t.dtype, t.device, t.requires_grad) for n, t in parts]

    first = form(models[0])
    for r, model in enumerate(models):
        if form(model) != first:
            raise ValueError(f"models[{r}] differs in shape from models[0]")


def _refuse_unsupported(model: nn.Module, *, dispersion: bool) -> None:
    for name, layer in model.named_modules():
        random = isinstance(layer, _DropoutNd) and layer.training and layer.p > 0
        if random or mixes_samples(layer):
            raise UserError(
                "replicas advanced together take layers that treat the samples of a batch one by "
                f"one and draw no random numbers, but {layer_is(name, layer)}; set replicas = null"
            )
    uncovered = uncovered_layer(model) if dispersion else None
    if uncovered is not None:
        raise UserError(
            "measurement.dispersion = true with replicas needs linear and plain convolution "
            "layers, used once each and with all parameters trainable, but layer "
            f"{uncovered}; set measurement.dispersion = false, or replicas = null"
        )
