"""The training run: its state, the step loop, evaluation, stopping. Plain PyTorch.

Reads top to bottom: :func:`start` builds a :class:`TrainState`; :func:`advance` trains up to the
next measuring point and returns what was measured there; ``state.stopped`` says when and why it is
over; :func:`summary` is the row of the finished run.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.config import Schedule, TrialConfig
from gisgd_ray.data import Dataset, epoch_batches, load_dataset, steps_per_epoch
from gisgd_ray.losses import LossName, per_sample_loss
from gisgd_ray.measures.curvature import HessianTrace, hessian_trace
from gisgd_ray.measures.dispersion import StepMeter, StepSeries
from gisgd_ray.models import build_model, num_parameters, trainable
from gisgd_ray.schemes import Batch, Scheme, build_scheme
from gisgd_ray.terms import UNDEFINED_REASON, TrajectoryTerms, bound_metrics, undefined_reason

Point = dict[str, Any]
"""One measuring point: ``step``, ``epoch`` and every metric known there."""

EVALUATION_CHUNK = 2_000

EVALUATED = (
    "train/loss",
    "train/accuracy",
    "test/loss",
    "test/accuracy",
    "gap/loss",
    "gap/accuracy",
)
"""What :func:`evaluate_splits` gives, in its order."""


@dataclass
class TrainState:
    """Everything a run consists of between two measuring points."""

    config: TrialConfig
    dataset: Dataset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheme: Scheme
    meter: StepMeter
    steps_per_epoch: int
    terms: TrajectoryTerms
    step: int = 0
    """Updates applied so far, t; the weights are W_t."""
    stretches: list[StepSeries] = field(default_factory=list)
    """The steps so far in pieces; read them as ``series``."""
    history: list[Point] = field(default_factory=list)
    """All measuring points so far."""
    batches: tuple[Tensor, ...] = ()
    """The current epoch's batches, kept for when measuring points are closer than epochs."""
    batches_of: int = -1
    """The epoch they belong to."""
    stopped: str | None = None
    """Why the run is over, or None while it goes on."""
    diverged: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: {"time/training_s": 0.0, "time/measuring_s": 0.0}
    )

    @property
    def series(self) -> StepSeries:
        """Every step so far; joined on demand, since joining copies all of them."""
        self.stretches = [StepSeries.concatenate(self.stretches)]
        return self.stretches[0]

    def add_steps(self, steps: StepSeries) -> None:
        """Append the next steps."""
        self.stretches.append(steps)
        self.terms.add(steps)

    @property
    def last_point(self) -> Point:
        """The latest measuring point, empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def epoch(self) -> float:
        """Epochs completed, a fraction inside one."""
        return self.step / self.steps_per_epoch


def start(
    config: TrialConfig,
    *,
    device: torch.device | str = "cpu",
    dataset: Dataset | None = None,
) -> TrainState:
    """A run before its first step; the same config gives the same W_0, data and batches.

    ``dataset`` replaces the configured one, for data of one's own in a notebook.

    Raises:
        DataError: the dataset cannot be read.
        UserError: the model does not suit the data or the measurements.
    """
    if dataset is None:
        dataset = load_dataset(config.data, seed=config.seed, device=device)
    model = build_model(
        config.model,
        dataset.input_shape,
        dataset.num_classes,
        seed=config.seed,
        initialization=config.training.initialization,
    ).to(device)
    t = config.training
    optimizer = torch.optim.SGD(
        trainable(model),
        lr=t.learning_rate,
        momentum=t.momentum,
        nesterov=t.nesterov,
        weight_decay=t.weight_decay,
    )
    return TrainState(
        config=config,
        dataset=dataset,
        model=model.train(),
        optimizer=optimizer,
        scheme=build_scheme(config.scheme),
        meter=StepMeter(model, batch_size=t.batch_size, dispersion=config.measurement.dispersion),
        steps_per_epoch=steps_per_epoch(dataset.num_samples, t.batch_size, t.last_batch),
        terms=TrajectoryTerms(
            num_samples=dataset.num_samples,
            num_parameters=num_parameters(model),
            noise_stds=config.measurement.noise_stds,
        ),
    )


def advance(state: TrainState) -> tuple[Point, StepSeries]:
    """Train up to the next measuring point; what is measured there, and the steps on the way.

    The first call measures W_0 and takes no step. After the last, ``state.stopped`` is set.
    """
    begun = time.perf_counter()
    new_steps = StepSeries.empty()
    if state.history:
        _train(state)
        new_steps = state.meter.drain()
        new_steps = _cut_at_divergence(state, new_steps)
        state.add_steps(new_steps)
    trained = time.perf_counter()
    point = _measure(state, new_steps)
    state.history.append(point)
    state.seconds["time/training_s"] += trained - begun
    state.seconds["time/measuring_s"] += time.perf_counter() - trained
    return point, new_steps


def _train(state: TrainState) -> None:
    """Take steps until a measuring point is due."""
    while True:
        epoch, position = divmod(state.step, state.steps_per_epoch)
        rate = learning_rate(state.config, epoch)
        for indices in _epoch(state, epoch)[position:]:
            train_step(state, indices, learning_rate=rate)
            if evaluation_is_due(state) or trace_is_due(state):
                return


def _epoch(state: TrainState, epoch: int) -> tuple[Tensor, ...]:
    """The batches of one epoch (from 0), as index tensors."""
    if state.batches_of != epoch:
        t = state.config.training
        state.batches = epoch_batches(
            state.dataset.num_samples,
            t.batch_size,
            seed=state.config.seed,
            epoch=epoch,
            last_batch=t.last_batch,
            device=state.dataset.train_x.device,
        )
        state.batches_of = epoch
    return state.batches


def train_step(state: TrainState, indices: Tensor, *, learning_rate: float) -> None:
    """W_t = W_{t-1} - lambda_t * scheme's gradient on batch B_t = S[indices]."""
    batch = Batch(state.dataset.train_x[indices], state.dataset.train_y[indices])
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate

    def plain(batch: Batch) -> Tensor:
        state.optimizer.zero_grad(set_to_none=True)
        losses = per_sample_loss(
            state.config.training.loss, state.model(batch.inputs), batch.targets
        )
        with state.meter.watch():
            losses.mean().backward()
        losses = losses.detach()
        state.meter.record(losses, learning_rate=learning_rate)
        return losses

    state.scheme.gradient(state.model, batch, plain)
    state.optimizer.step()
    state.step += 1


def learning_rate(config: TrialConfig, epoch: int) -> float:
    """lambda in one epoch (from 0): the configured rate times lr_factor per milestone passed."""
    passed = sum(epoch >= milestone for milestone in config.training.lr_milestones)
    return config.training.learning_rate * config.training.lr_factor**passed


def is_due(state: TrainState, schedule: Schedule | None = None) -> bool:
    """Whether the schedule (by default that of evaluation) fires after the current step."""
    schedule = schedule or state.config.training.evaluation
    period = schedule.every * (state.steps_per_epoch if schedule.unit == "epoch" else 1)
    at_limit = state.step >= state.config.training.max_epochs * state.steps_per_epoch
    return state.step % period == 0 or at_limit


def evaluation_is_due(state: TrainState) -> bool:
    """Whether the evaluation schedule, and so the stopping rule, is due after the current step."""
    return is_due(state) or state.step == state.config.training.max_steps


def trace_is_due(state: TrainState) -> bool:
    """Whether the Hessian trace has been asked for after the current step, on schedule."""
    m = state.config.measurement
    scheduled = m.hessian_schedule is not None and is_due(state, m.hessian_schedule)
    return scheduled and m.hessian_trace != "off"


def _cut_at_divergence(state: TrainState, steps: StepSeries) -> StepSeries:
    """Mark the run as diverged at its first bad batch loss; drop the steps after it."""
    limit = state.config.training.divergence_loss
    bad = ~(steps.loss <= limit)  # also true of NaN
    if not bad.any():
        return steps
    first = int(bad.argmax())
    state.diverged = True
    state.step = state.step - len(steps) + first + 1
    state.stopped = f"batch loss {steps.loss[first]:.4g} at step {state.step}"
    return steps.head(first + 1)


def _measure(state: TrainState, new_steps: StepSeries) -> Point:
    """Everything due at the current weights, as one point."""
    config, data = state.config, state.dataset
    point: Point = {"step": state.step, "epoch": state.epoch}
    # The rate of the last step taken, not that of the epoch which begins here.
    point["learning_rate"] = learning_rate(config, max(state.step - 1, 0) // state.steps_per_epoch)
    if state.stopped is not None:
        # Diverged on the way: the weights are already some steps past the last step kept.
        point |= dict.fromkeys(EVALUATED, math.nan)
    else:
        point |= evaluate_splits(state)
        # A point that only the trace's schedule asked for must not end the run.
        if evaluation_is_due(state):
            state.stopped, state.diverged = stop_reason(state, point)
    if len(new_steps) > 0:
        point["measure/gradient_dispersion"] = float(new_steps.gradient_dispersion.mean())
        point["measure/per_sample_dispersion"] = float(new_steps.per_sample_dispersion.mean())
        point["measure/gradient_norm"] = float((new_steps.squared_gradient_norm**0.5).mean())
    sizes = {"num_samples": data.num_samples, "num_parameters": num_parameters(state.model)}
    point |= state.terms.metrics()
    over = state.stopped is not None and config.measurement.hessian_trace != "off"
    if not state.diverged and (over or trace_is_due(state)):
        trace = measure_trace(state)
        point["measure/hessian_trace"] = trace.value
        point["measure/hessian_trace_stderr"] = trace.standard_error
        point["measure/hessian_trace_estimator"] = trace.estimator
        point |= bound_metrics(state.series, **sizes, hessian_trace=trace.value)
    return point


def evaluate_splits(state: TrainState) -> Point:
    """Loss and accuracy on the whole train and test split, and the gaps.

    ``gap/loss`` = test - train (an estimate of gen, signed); ``gap/accuracy`` = train - test.
    """
    data, loss = state.dataset, state.config.training.loss
    train_loss, train_accuracy = evaluate(state.model, data.train_x, data.train_y, loss=loss)
    test_loss, test_accuracy = evaluate(state.model, data.test_x, data.test_y, loss=loss)
    gaps = (test_loss - train_loss, train_accuracy - test_accuracy)
    values = (train_loss, train_accuracy, test_loss, test_accuracy, *gaps)
    return dict(zip(EVALUATED, values, strict=True))


@torch.no_grad()
def evaluate(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, loss: LossName
) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) in evaluation mode; the model's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct = torch.zeros((), dtype=torch.int64, device=inputs.device)
    for x, y in zip(inputs.split(EVALUATION_CHUNK), targets.split(EVALUATION_CHUNK), strict=True):
        outputs = model(x)
        total += per_sample_loss(loss, outputs, y).double().sum()
        correct += (outputs.argmax(dim=1) == y).sum()
    for module, training in modes:
        module.training = training
    return float(total) / len(targets), float(correct) / len(targets)


def stop_reason(state: TrainState, point: Point) -> tuple[str | None, bool]:
    """Why the run ends at this point (None: it goes on), and whether that is divergence."""
    t = state.config.training
    train_loss = point["train/loss"]
    if not math.isfinite(train_loss) or train_loss > t.divergence_loss:
        return f"training loss {train_loss:.4g} at step {state.step}", True
    if t.stop_loss is not None and train_loss < t.stop_loss:
        return "stop_loss", False
    full_accuracy = t.stop_at_full_accuracy
    if full_accuracy is None:
        full_accuracy = state.config.data.label_noise > 0
    if full_accuracy and point["train/accuracy"] == 1.0:
        return "full_accuracy", False
    if t.max_steps is not None and state.step >= t.max_steps:
        return "max_steps", False
    if state.step >= t.max_epochs * state.steps_per_epoch:
        return "max_epochs", False
    return None, False


def measure_trace(state: TrainState) -> HessianTrace:
    """Tr H at the current weights over the training data (E_Z of Eq. 3 is over S)."""
    m, data = state.config.measurement, state.dataset
    assert m.hessian_trace != "off"
    samples = slice(m.hessian_samples)
    return hessian_trace(
        state.model,
        data.train_x[samples],
        data.train_y[samples],
        loss=state.config.training.loss,
        method=m.hessian_trace,
        probes=m.hessian_probes,
        seed=state.config.seed,
    )


def summary(state: TrainState) -> dict[str, Any]:
    """The finished run's row, without its configuration: status and final metrics.

    The three per-step measures are means over all steps of the run here, and over the steps since
    the point before in the history.
    """
    series = state.series
    trace = state.last_point.get("measure/hessian_trace", math.nan)
    dispersion_mean = {
        "measure/gradient_dispersion": series.gradient_dispersion,
        "measure/per_sample_dispersion": series.per_sample_dispersion,
        "measure/gradient_norm": series.squared_gradient_norm**0.5,
    }
    sizes = {
        "num_samples": state.dataset.num_samples,
        "num_parameters": num_parameters(state.model),
    }
    return {
        "status": "diverged" if state.diverged else "finished",
        "stop_reason": state.stopped,
        "outside_theorem": state.config.outside_theorem(),
        "steps": state.step,
        "epochs": state.epoch,
        **sizes,
        "data/normalization_mean": list(state.dataset.normalization_mean),
        "data/normalization_std": list(state.dataset.normalization_std),
        **{k: v for k, v in state.last_point.items() if k not in ("step", "epoch")},
        **bound_metrics(series, **sizes, hessian_trace=trace),
        **{k: float(v.mean()) if len(v) else math.nan for k, v in dispersion_mean.items()},
        "measure/ill_conditioned_steps": series.ill_conditioned_steps,
        UNDEFINED_REASON: "the run diverged, so that no Hessian trace was measured at its end"
        if state.diverged
        else undefined_reason(
            series,
            hessian_trace=trace,
            trace_off=state.config.measurement.hessian_trace == "off",
        ),
        **state.seconds,
    }
