"""What takes the steps of a trial: one run, or several replicas in lockstep.

The step loop (:mod:`gisgd_ray.training`) knows neither: it asks a :class:`Stepper` for update t at
a rate, and measures on the replicas' models, of which the deterministic setting has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gisgd_ray.config import TrialConfig
from gisgd_ray.data import Dataset, epoch_batches, steps_per_epoch
from gisgd_ray.lockstep import Lockstep
from gisgd_ray.losses import per_sample_loss
from gisgd_ray.measures.dispersion import StepMeter, StepSeries
from gisgd_ray.models import trainable
from gisgd_ray.schemes import Batch, build_scheme


@dataclass(frozen=True)
class Replica:
    """One run: the weights it is at, and the data that its seed gives it."""

    seed: int
    model: nn.Module
    dataset: Dataset


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


class SingleRun:
    """The deterministic setting: one run, by any scheme and PyTorch's SGD."""

    def __init__(self, config: TrialConfig, replica: Replica):
        t = config.training
        self.replicas: Sequence[Replica] = (replica,)
        self._loss = t.loss
        self.optimizer = torch.optim.SGD(
            trainable(replica.model),
            lr=t.learning_rate,
            momentum=t.momentum,
            nesterov=t.nesterov,
            weight_decay=t.weight_decay,
        )
        self.scheme = build_scheme(config.scheme)
        self.meter = StepMeter(
            replica.model,
            batch_size=t.batch_size,
            dispersion=config.measurement.dispersion,
            activation=config.network_theorem == "theorem4",
        )
        data = replica.dataset
        self._trajectory = BatchingTrajectory(
            config, replica.seed, num_samples=data.num_samples, device=data.train_x.device
        )

    def step(self, step: int, *, learning_rate: float) -> None:
        self.train_on(self._trajectory.batch(step), learning_rate=learning_rate)

    def train_on(self, indices: Tensor, *, learning_rate: float) -> None:
        """W_t = W_{t-1} - lambda_t * the scheme's gradient on batch B_t = S[indices]."""
        (replica,) = self.replicas
        model, data = replica.model, replica.dataset
        batch = Batch(data.train_x[indices], data.train_y[indices])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

        def plain(batch: Batch) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            losses = per_sample_loss(self._loss, model(batch.inputs), batch.targets)
            with self.meter.watch():
                losses.mean().backward()
            losses = losses.detach()
            self.meter.record(losses, learning_rate=learning_rate)
            return losses

        self.scheme.gradient(model, batch, plain)
        self.optimizer.step()

    def drain(self) -> StepSeries:
        return self.meter.drain()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scheme": self.scheme.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheme.load_state_dict(state["scheme"])


class ReplicatedRun:
    """The stochastic setting: replicas of one configuration, their seeds apart, in lockstep.

    Each trains on its own labels and in its own order; a step of all of them is one call.
    """

    def __init__(self, config: TrialConfig, replicas: Sequence[Replica]):
        self.replicas: Sequence[Replica] = tuple(replicas)
        self._lockstep = Lockstep(
            [replica.model for replica in replicas],
            loss=config.training.loss,
            dispersion=config.measurement.dispersion,
        )
        data = [replica.dataset for replica in replicas]
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
        )

    def drain(self) -> StepSeries:
        return self._lockstep.drain()

    def state_dict(self) -> dict[str, Any]:
        return {}  # plain SGD: the weights are all there is

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def build_stepper(config: TrialConfig, replicas: Sequence[Replica]) -> Stepper:
    """The stepper of the trial's setting."""
    if config.replicas is None:
        (replica,) = replicas
        return SingleRun(config, replica)
    return ReplicatedRun(config, replicas)
