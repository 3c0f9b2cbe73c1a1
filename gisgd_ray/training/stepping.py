"""What takes the steps of a trial: one run, or several replicas in lockstep.

The step loop (:mod:`gisgd_ray.training.loop`) knows neither: it asks a :class:`Stepper` for update
t at a rate, and measures on the replicas' models, of which the deterministic setting has one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gisgd_ray.config.checks import planned_steps, steps_per_epoch
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.augmentation import Augmentation, pixel_range
from gisgd_ray.data.dataset import Dataset, epoch_batches
from gisgd_ray.measures.activation import ActiveUnits
from gisgd_ray.measures.dispersion import BySample, Dispersion, StepMeter
from gisgd_ray.measures.displaced import Samples
from gisgd_ray.measures.groups import BetweenGroups, BetweenGroupsOfApplied
from gisgd_ray.measures.posterior import Posteriors
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.networks.losses import LossName
from gisgd_ray.networks.models import trainable
from gisgd_ray.schemes.base import Batch, Meter, Setting, Step, build_scheme
from gisgd_ray.training.dense import ByGram, DenseNetwork, DenseStep, Passes, serves
from gisgd_ray.training.lockstep import Lockstep


@dataclass(frozen=True)
class Replica:
    """One run: the weights it is at, and the data that its seed gives it."""

    seed: int
    model: nn.Module
    dataset: Dataset

    def samples(self, loss: LossName) -> tuple[Samples, Samples]:
        """S and S', with the loss on them."""
        data = self.dataset
        return Samples(data.train_x, data.train_y, loss), Samples(data.test_x, data.test_y, loss)


class BatchingTrajectory:
    """B_1, B_2, ... of one seed: its sample indices, epoch after epoch."""

    def __init__(self, config: TrialConfig, seed: int, *, num_samples: int, device: torch.device):
        t = config.training
        self._epoch_of: dict[str, Any] = {"seed": seed, "last_batch": t.last_batch}
        self._sizes = (num_samples, t.batch_size)
        self._steps = steps_per_epoch(num_samples, t.batch_size, t.last_batch)
        self._device = device
        self._epoch = -1
        self._batches: tuple[Tensor, ...] = ()

    def batch(self, step: int) -> Tensor:
        """Indices (b,) of the batch that update ``step`` + 1 takes."""
        epoch, position = divmod(step, self._steps)
        if epoch != self._epoch:
            self._batches = epoch_batches(
                *self._sizes, epoch=epoch, device=self._device, **self._epoch_of
            )
            self._epoch = epoch
        return self._batches[position]


class Stepper(Protocol):
    """Takes the updates of a trial."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """The runs it advances."""

    def step(self, step: int, *, learning_rate: float) -> None:
        """Update ``step`` + 1: W_{t} from W_{t-1} with t = ``step`` + 1."""

    def drain(self) -> StepSeries:
        """What was measured at the steps since the last call."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the models' weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class SingleRun(ABC):
    """The deterministic setting: one run."""

    def __init__(
        self,
        config: TrialConfig,
        replica: Replica,
        *,
        dispersion: Dispersion,
        active: Callable[[], Tensor] | None,
    ):
        t = config.training
        self.replicas: Sequence[Replica] = (replica,)
        self._training = t
        self.scheme = build_scheme(config.scheme, replica.model, setting(config, replica))
        # What is no multiple of the plain gradient is measured itself; else the factor serves.
        applied = config.measurement.dispersion_of == "applied"
        self._scaled = applied and not config.measures_composite
        self.meter = StepMeter(dispersion=dispersion, active=active)
        data = replica.dataset
        self._augmentation = Augmentation.of(config.data, data, seed=replica.seed)
        self.trajectory = BatchingTrajectory(
            config, replica.seed, num_samples=data.num_samples, device=data.train_x.device
        )

    def step(self, step: int, *, learning_rate: float) -> None:
        self.train_on(self.trajectory.batch(step), step=step, learning_rate=learning_rate)

    def train_on(self, indices: Tensor, *, learning_rate: float, step: int = 0) -> None:
        """W_t = W_{t-1} - lambda_t * the scheme's gradient on batch B_t = S[indices].

        ``step`` = t - 1 names the augmentation's draw.
        """
        (replica,) = self.replicas
        data = replica.dataset
        # index_select takes a third of the time of an index in brackets.
        inputs = data.train_x.index_select(0, indices)
        if self._augmentation is not None:
            inputs = self._augmentation(inputs, step)
        self.descend(Batch(inputs, data.train_y.index_select(0, indices)), learning_rate)

    @abstractmethod
    def descend(self, batch: Batch, learning_rate: float) -> None:
        """Measure the batch and take the step."""

    def drain(self) -> StepSeries:
        series = self.meter.drain()
        return series.of_applied_gradient if self._scaled else series

    def state_dict(self) -> dict[str, Any]:
        return {"scheme": self.scheme.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheme.load_state_dict(state["scheme"])


class AutogradRun(SingleRun):
    """Any network and scheme, and PyTorch's SGD."""

    def __init__(self, config: TrialConfig, replica: Replica):
        t, model = config.training, replica.model
        self.optimizer = torch.optim.SGD(
            trainable(model),
            lr=t.learning_rate,
            momentum=t.momentum,
            nesterov=t.nesterov,
            weight_decay=t.weight_decay,
        )
        active = ActiveUnits(model).counts if config.network_theorem == "theorem4" else None
        super().__init__(config, replica, dispersion=_dispersion(config, model), active=active)

    def descend(self, batch: Batch, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.meter.before(self._step(batch), self.scheme)
        factor = self.scheme.gradient(self._step(batch, meter=self.meter))
        self.meter.close(learning_rate=learning_rate, factor=factor)
        limit = self._training.max_gradient_norm
        if limit is not None:
            nn.utils.clip_grad_norm_(trainable(self.replicas[0].model), limit)
        self.optimizer.step()

    def _step(self, batch: Batch, meter: Meter | None = None) -> Step:
        t, (replica,) = self._training, self.replicas
        return Step(replica.model, batch, loss=t.loss, precision=t.precision, meter=meter)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "optimizer" in state:  # a DenseRun on a CPU, perhaps resumed on a GPU, has none
            self.optimizer.load_state_dict(state["optimizer"])
        super().load_state_dict(state)


class DenseRun(SingleRun):
    """Dense networks, plain SGD and schemes whose gradient is a multiple of the plain one (see
    :func:`gisgd_ray.training.dense.serves`); ``network`` may be one of a stack of such."""

    def __init__(self, config: TrialConfig, replica: Replica, network: Passes | None = None):
        self._network = network or DenseNetwork(replica.model)
        dispersion = ByGram(self._network) if config.measurement.dispersion else Dispersion()
        active = self._network.active_units if config.network_theorem == "theorem4" else None
        super().__init__(config, replica, dispersion=dispersion, active=active)

    @torch.inference_mode()  # as no_grad, for a tenth less of a small network's step
    def train_on(self, indices: Tensor, *, learning_rate: float, step: int = 0) -> None:
        super().train_on(indices, learning_rate=learning_rate, step=step)

    def descend(self, batch: Batch, learning_rate: float) -> None:
        model, loss = self.replicas[0].model, self._training.loss
        step = DenseStep(self._network, model, batch, loss=loss, meter=self.meter)
        factor = self.scheme.gradient(step)
        assert factor is not None, "a scheme's record says that its gradient is a multiple"
        self.meter.close(learning_rate=learning_rate, factor=factor)
        if isinstance(factor, Tensor) and factor.is_cpu:
            factor = factor.item()
        step.descend(learning_rate * factor)


def _dispersion(config: TrialConfig, model: nn.Module) -> Dispersion:
    """The estimator that the trial asks for."""
    if not config.measurement.dispersion:
        return Dispersion()
    if config.measures_composite:
        return BetweenGroupsOfApplied(model, config.measurement.dispersion_groups)
    if config.dispersion_estimator == "groups":
        return BetweenGroups(model, config.measurement.dispersion_groups)
    return BySample(model)


class ReplicatedRun:
    """The stochastic setting: replicas of one configuration, their seeds apart, in lockstep.

    Each trains on its own labels and in its own order; a step of all of them is one call.
    """

    def __init__(self, config: TrialConfig, replicas: Sequence[Replica]):
        self.replicas: Sequence[Replica] = tuple(replicas)
        data = [replica.dataset for replica in replicas]
        # Samples of its own (teacher data) a replica draws, like its batches, from the population;
        # others are kept, and the same tensor.
        shared = all(each.train_x is data[0].train_x for each in data[1:])
        m = config.measurement
        posteriors = None
        if m.dispersion and m.noise_stds:
            posteriors = Posteriors(m.noise_stds, seed=replicas[0].seed)
        self._lockstep = Lockstep(
            [replica.model for replica in replicas],
            loss=config.training.loss,
            dispersion=m.dispersion,
            posteriors=posteriors,
            num_samples=data[0].num_samples if shared else None,
        )
        self._trajectories = [
            BatchingTrajectory(config, r.seed, num_samples=d.num_samples, device=d.train_x.device)
            for r, d in zip(replicas, data, strict=True)
        ]

    def step(self, step: int, *, learning_rate: float) -> None:
        chosen = [
            (replica.dataset, trajectory.batch(step))
            for replica, trajectory in zip(self.replicas, self._trajectories, strict=True)
        ]
        self._lockstep.step(
            torch.stack([data.train_x[indices] for data, indices in chosen]),
            torch.stack([data.train_y[indices] for data, indices in chosen]),
            learning_rate=learning_rate,
            step=step,
        )

    def drain(self) -> StepSeries:
        return self._lockstep.drain()

    def state_dict(self) -> dict[str, Any]:
        return {}  # plain SGD: the weights are all there is

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def setting(config: TrialConfig, replica: Replica) -> Setting:
    """What the scheme of a run knows about it."""
    data, t = replica.dataset, config.training
    # Of the data trained on, which need not be the configured set.
    per_epoch = steps_per_epoch(data.num_samples, t.batch_size, t.last_batch)
    black = white = None
    if len(data.input_shape) == 3:
        black, white = pixel_range(data)
    return Setting(
        seed=replica.seed,
        device=trainable(replica.model)[0].device,
        steps_per_epoch=per_epoch,
        planned_steps=planned_steps(config, per_epoch),
        black=black,
        white=white,
    )


def build_stepper(config: TrialConfig, replicas: Sequence[Replica]) -> Stepper:
    """The stepper of the trial's setting."""
    if config.replicas is None:
        (replica,) = replicas
        if serves(config, replica.model, replica.dataset.input_shape):
            return DenseRun(config, replica)
        return AutogradRun(config, replica)
    return ReplicatedRun(config, replicas)
