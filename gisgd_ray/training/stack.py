"""Trials of one shape advanced together: each step one product of matrices for all of them.

A small network's step is mostly the calling of operations. Trials on networks of one shape, with
batches of one size and the same loss, share those calls: the weights of all lie in one stack a
parameter, (R, out, in), and what :mod:`gisgd_ray.training.dense` writes out for one network is
written out for all, by batched products. Rates, seeds, data, labels, order of the batches, scheme
and stopping rule are each trial's own, and so are its state, its meter and its checkpoints: who
shares a stack changes a trial's numbers by rounding alone.

(Replicas of one trial, of which the gradients themselves are compared at every step, are
:mod:`gisgd_ray.training.lockstep`'s.)
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.networks.losses import LossName, losses_and_gradient
from gisgd_ray.networks.models import FixedReadout, build_model
from gisgd_ray.schemes.base import Batch, Number
from gisgd_ray.training import dense
from gisgd_ray.training.lockstep import stacked
from gisgd_ray.training.loop import learning_rate, measuring_is_due, next_point, taking_steps
from gisgd_ray.training.state import TrainState
from gisgd_ray.training.stepping import DenseRun, SingleRun


def shape(config: TrialConfig) -> Hashable:
    """What trials must have in common to share a stack; None for one that can share none."""
    t, m = config.training, config.measurement
    if config.replicas is not None or config.data.augmented or not dense.plain_descent(config):
        return None
    if not _is_dense(config.model, config.data.dataset):
        return None
    network = (config.model, config.data.dataset, config.network_theorem)
    return (*network, t.batch_size, t.loss, t.precision, m.dispersion)


@lru_cache(maxsize=1024)
def _is_dense(model: ModelConfig, dataset: str) -> bool:
    data = DATASETS[dataset]
    with torch.device("meta"):
        network = build_model(model, data.shape, data.outputs, seed=0)
    return dense.is_dense(network, data.shape, on_cpu=False)


class Stack:
    """R runs, advanced by the same calls.

    From here on the weights of each are views into the stack, and its own stepper takes a step
    only together with the others. A run that is over leaves by a new stack of the rest.

    Args:
        states: of one :func:`shape`, at whichever steps.

    Raises:
        ValueError: states of different shapes, or of one that can share no stack.
    """

    def __init__(self, states: Sequence[TrainState]):
        shapes = {shape(state.config) for state in states}
        if len(shapes) != 1 or None in shapes:
            raise ValueError(f"trials of shapes {shapes} share no stack")
        self.states = tuple(states)
        t = states[0].config.training
        self._network = StackedNetwork([state.model for state in states], t.loss)
        self._rows = [_Row(self._network, r) for r in range(len(states))]
        self._runs: list[DenseRun] = []
        self._memory: dict[tuple[int, ...], Tensor] = {}
        for state, row in zip(states, self._rows, strict=True):
            assert isinstance(state.stepper, SingleRun)
            (replica,), kept = state.stepper.replicas, state.stepper.state_dict()
            run = _StackedRun(state.config, replica, network=row)
            run.load_state_dict(kept)
            self._runs.append(run)
            state.stepper = run

    def train(self, pause: Callable[[], bool] | None = None) -> list[TrainState]:
        """Take steps until a measuring point is due for one (which are returned), or ``pause`` says
        so after a step; as :func:`gisgd_ray.training.loop.train` does for one run alone.
        """
        with taking_steps(self.states):
            left = min(next_point(state) - state.step for state in self.states)
            paused = False
            while left > 0 and not paused:
                self._step()
                left -= 1
                paused = pause is not None and pause()
        return [state for state in self.states if measuring_is_due(state)]

    @torch.inference_mode()
    def _step(self) -> None:
        """One step of every run: those side by side whose batches are of one size together."""
        batches = [
            run.trajectory.batch(state.step)
            for run, state in zip(self._runs, self.states, strict=True)
        ]
        for _, group in groupby(range(len(batches)), key=lambda r: len(batches[r])):
            chosen = list(group)
            self._step_of(slice(chosen[0], chosen[-1] + 1), [batches[r] for r in chosen])

    def _step_of(self, chosen: slice, batches: Sequence[Tensor]) -> None:
        states, runs = self.states[chosen], self._runs[chosen]
        data = [state.dataset for state in states]
        inputs = self._gathered([each.train_x for each in data], batches)
        targets = self._gathered([each.train_y for each in data], batches)
        self._network.passes(chosen, inputs, targets)
        for state, run, x, y in zip(states, runs, inputs, targets, strict=True):
            rate = learning_rate(state.config, state.step // state.steps_per_epoch)
            run.descend(Batch(x, y), rate)
            state.step += 1
        self._network.descend([row.rate for row in self._rows[chosen]])

    def _gathered(self, sources: Sequence[Tensor], batches: Sequence[Tensor]) -> Tensor:
        """(G, b, ...): of each source the samples of its batch; one call where all are the same.

        Valid until the next step: memory of such a size is not taken anew each time.
        """
        first = sources[0]
        of_all = (len(batches), len(batches[0]), *first.shape[1:])
        if of_all not in self._memory:
            self._memory[of_all] = first.new_empty(of_all)
        gathered = self._memory[of_all]
        if all(source is first for source in sources):
            chosen = torch.cat(tuple(batches))
            torch.index_select(first, 0, chosen, out=gathered.flatten(0, 1))
            return gathered
        for source, batch, row in zip(sources, batches, gathered, strict=True):
            torch.index_select(source, 0, batch, out=row)
        return gathered


class _StackedRun(DenseRun):
    """A run that shares a stack."""

    def step(self, step: int, *, learning_rate: float) -> None:
        del step, learning_rate
        raise RuntimeError("it takes its steps with its stack")


class _Row:
    """One network of a stack, as a step of it sees it once the passes of all have been made."""

    def __init__(self, network: "StackedNetwork", index: int):
        self._network, self._index = network, index
        self.rate: Number = 0.0

    def passes(self, batch: Batch, loss: LossName) -> Tensor:
        """The losses (b,): the passes are made."""
        del batch, loss
        return self._network.losses[self._at]

    def trace(self) -> Number:
        return self._network.traces()[self._at]

    def total(self) -> Number:
        return self._network.totals()[self._at]

    def in_float64(self) -> tuple[float, float]:
        return self._network.in_float64(self._at)

    def gradient_norm(self) -> Number:
        norm: Number = self.total() ** 0.5 / self._network.losses.shape[1]
        return norm

    def active_units(self) -> Tensor:
        return self._network.active_units()[self._at]

    def descend(self, rate: Number) -> None:
        """Note how far: the stack descends for all."""
        self.rate = rate

    @property
    def _at(self) -> int:
        return self._index - self._network.chosen.start


class StackedNetwork:
    """The layers of R dense models of one shape, whose weights become views into it, and the A_l
    and D_l of a batch each, (G, b, ...), for G of them that lie side by side.

    In turn: :meth:`passes`, what is to be known of each K, :meth:`descend`.

    Raises:
        ValueError: models of different shapes.
    """

    def __init__(self, models: Sequence[nn.Module], loss: LossName):
        self._loss: LossName = loss
        self._layers: list[_Linear | _ReLU | _Readout] = []
        for same in zip(*(dense.leaves(model) for model in models), strict=True):
            if isinstance(same[0], nn.Linear):
                self._layers.append(_Linear(same))
            elif isinstance(same[0], nn.ReLU):
                self._layers.append(_ReLU())
            elif isinstance(same[0], FixedReadout):
                self._layers.append(_Readout(same))
        self._linear = [layer for layer in self._layers if isinstance(layer, _Linear)]
        self._trained = [layer for layer in self._linear if layer.is_trained]
        self.chosen = slice(0, len(models))
        """Which networks the last passes were of."""
        self.losses = torch.empty(0)
        """(G, b) of the last passes."""
        self._traces: Sequence[Number] | None = None
        self._totals: Sequence[Number] | None = None

    def passes(self, chosen: slice, inputs: Tensor, targets: Tensor) -> None:
        """Forward and backward of networks side by side: inputs (G, b, ...), targets (G, b)."""
        self.chosen, self._traces, self._totals = chosen, None, None
        hidden = inputs.flatten(2)
        for layer in self._layers:
            hidden = layer.forward(chosen, hidden)
        losses, delta = losses_and_gradient(self._loss, hidden.flatten(0, 1), targets.flatten(0, 1))
        self.losses, delta = losses.view(targets.shape), delta.view(hidden.shape)
        first = self._trained[0]
        for layer in reversed(self._layers):
            if layer is first:
                break
            delta = layer.backward(chosen, delta)
        first.keep(delta)

    def traces(self) -> Sequence[Number]:
        """tr K of each, (G,): floats, or on an accelerator a tensor, float64."""
        if self._traces is None:
            self._traces = _numbers(_sum_of_squares([layer.norms() for layer in self._trained]))
        return self._traces

    def totals(self) -> Sequence[Number]:
        """1^T K 1 of each, likewise; where it is 0, rounding below it reads as 0."""
        if self._totals is None:
            grams = [gram for layer in self._trained if (gram := layer.gram()) is not None]
            rows = [row for layer in self._trained if (row := layer.rows()) is not None]
            total = _sum_of_squares(rows) if rows else self.losses.new_zeros(())
            for gram in grams:
                total = total + gram.sum(dim=2).sum(dim=1, dtype=torch.float64)
            self._totals = _numbers(total.clamp(min=0))
        return self._totals

    def in_float64(self, index: int) -> tuple[float, float]:
        """tr K and 1^T K 1 of one again, from products in float64."""
        found = [layer.in_float64(index) for layer in self._trained]
        return sum(trace for trace, _ in found), sum(total for _, total in found)

    def active_units(self) -> Tensor:
        """How many outputs of the first linear layer are at least 0, by sample, (G, b)."""
        return (self._linear[0].outputs >= 0).sum(dim=2)

    def descend(self, rates: Sequence[Number]) -> None:
        """W_r <- W_r - rate_r g_r."""
        if any(isinstance(rate, Tensor) for rate in rates):  # as clipping's on a GPU
            given = [r if isinstance(r, Tensor) else self.losses.new_full((), r) for r in rates]
            steps = torch.stack(given).to(self.losses)
        else:
            steps = torch.tensor(rates).to(self.losses)
        steps = steps.div_(-self.losses.shape[1]).view(-1, 1, 1)
        for layer in self._trained:
            layer.descend(self.chosen, steps)


def _sum_of_squares(parts: Sequence[Tensor]) -> Tensor:
    """Over all entries of (G, ...) each, (G,) float64."""
    norms: Tensor = torch.linalg.vector_norm(torch.cat(tuple(parts), 1), dim=1, dtype=torch.float64)
    return norms.square_()


def _numbers(values: Tensor) -> Sequence[Number]:
    found: Sequence[Number] = values.tolist() if values.is_cpu else values.unbind()
    return found


class _Linear:
    """A layer of every network: what :class:`gisgd_ray.training.dense.DenseNetwork` does, by
    batched products."""

    def __init__(self, layers: Sequence[nn.Linear]):
        if len({layer.weight.shape for layer in layers}) > 1:
            raise ValueError("networks of different shapes")
        first = layers[0]
        biased = isinstance(first.bias, Tensor)
        self._weight = stacked([layer.weight for layer in layers])
        self._bias = stacked([layer.bias for layer in layers]) if biased else None
        self._trains_weight = first.weight.requires_grad
        self._trains_bias = biased and first.bias.requires_grad
        self.is_trained = self._trains_weight or self._trains_bias
        self._inputs = self._delta = self.outputs = torch.empty(0)
        self._product: Tensor | None = None
        self._one = self._weight.new_ones(())
        # Fresh memory of a product's size costs a page fault every 4 kB.
        self._memory: Tensor | None = None

    def forward(self, chosen: slice, inputs: Tensor) -> Tensor:
        weight = self._weight[chosen].transpose(1, 2)
        if self._bias is None:
            self.outputs = torch.bmm(inputs, weight)
        else:
            self.outputs = torch.baddbmm(self._bias[chosen].unsqueeze(1), inputs, weight)
        self._inputs = inputs
        return self.outputs

    def backward(self, chosen: slice, delta: Tensor) -> Tensor:
        self.keep(delta)
        return torch.bmm(delta, self._weight[chosen])

    def keep(self, delta: Tensor) -> None:
        self._delta, self._product = delta, None

    def norms(self) -> Tensor:
        """||g_i|| by sample, (G, b): ||d_i|| sqrt(||a_i||^2 + 1)."""
        deltas: Tensor = torch.linalg.vector_norm(self._delta, dim=2)
        if not self._trains_weight:
            return deltas
        inputs: Tensor = torch.linalg.vector_norm(self._inputs, dim=2)
        return deltas.mul_(inputs.hypot_(self._one) if self._trains_bias else inputs)

    def gram(self) -> Tensor | None:
        """(A A^T + 1 1^T) * (D D^T), (G, b, b); None where D^T A is written instead."""
        if not (self._trains_weight and self._by_gram):
            return None
        other = self._inputs.transpose(1, 2)
        if self._trains_bias:
            gram = torch.baddbmm(self._one, self._inputs, other)
        else:
            gram = torch.bmm(self._inputs, other)
        return gram.mul_(torch.bmm(self._delta, self._delta.transpose(1, 2)))

    def rows(self) -> Tensor | None:
        """The norms of the rows of D^T A, with D^T 1 beside it, (G, out); None where the Gram
        matrix serves."""
        if not self._trains_weight:
            return self._delta.sum(dim=1)
        if self._by_gram:
            return None
        # By rows: a float32 norm over the whole of a large matrix is off by up to 1e-3.
        rows: Tensor = torch.linalg.vector_norm(self._multiplied(), dim=2)
        return rows.hypot_(self._delta.sum(dim=1)) if self._trains_bias else rows

    def in_float64(self, index: int) -> tuple[float, float]:
        return dense.sums_in_float64(
            self._inputs[index],
            self._delta[index],
            weight=self._trains_weight,
            bias=self._trains_bias,
        )

    def descend(self, chosen: slice, steps: Tensor) -> None:
        """W + steps D^T A, with ``steps`` (G, 1, 1) already of the batch's mean and downward."""
        if self._trains_weight and self._by_gram:
            delta = (self._delta * steps).transpose(1, 2)
            self._weight[chosen].baddbmm_(delta, self._inputs)
        elif self._trains_weight:
            self._weight[chosen].addcmul_(self._multiplied(), steps)
        if self._trains_bias:
            assert self._bias is not None
            self._bias[chosen].addcmul_(self._delta.sum(dim=1), steps.squeeze(2))

    @property
    def _by_gram(self) -> bool:
        """Whether D^T A is never written, as for one network alone."""
        return dense.by_gram(self._delta.shape[1], self._weight.shape[1:])

    def _multiplied(self) -> Tensor:
        """D^T A, (G, out, in)."""
        if self._product is None:
            if self._memory is None:
                self._memory = torch.empty_like(self._weight)
            product = self._memory[: len(self._delta)]
            self._product = torch.bmm(self._delta.transpose(1, 2), self._inputs, out=product)
        return self._product


class _ReLU:
    def forward(self, _: slice, inputs: Tensor) -> Tensor:
        self._outputs = inputs.relu()
        return self._outputs

    def backward(self, _: slice, delta: Tensor) -> Tensor:
        return delta.mul_(self._outputs.sign())


class _Readout:
    def __init__(self, layers: Sequence[FixedReadout]):
        self._weights = torch.stack([layer.weights for layer in layers])

    def forward(self, chosen: slice, hidden: Tensor) -> Tensor:
        return torch.bmm(hidden, self._weights[chosen].unsqueeze(2))

    def backward(self, chosen: slice, delta: Tensor) -> Tensor:
        return delta * self._weights[chosen].unsqueeze(1)
