"""One measured epoch against a bare training loop, and against what one would write at first."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import Variance
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

from benchmarks import idx
from benchmarks.timing import least_seconds, random_mnist, verdict
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.networks.models import build_model, mlp
from gisgd_ray.training import loop as training

RATE = 0.01


@dataclass(frozen=True)
class Workload:
    """A network, data of the shape it is for, and what a measured epoch may take of a bare one."""

    title: str
    fields: dict[str, Any]
    """Of the trial."""
    loss: Callable[[Tensor, Tensor], Tensor]
    at_most: float


def halved_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(outputs.squeeze(1), targets)


def of_mnist(width: int, at_most: float) -> Workload:
    return Workload(
        f"MLP 784-{width}-10, batch 60, 60,000 samples",
        {"data": {"dataset": "mnist"}, "model": {"name": "mlp", "width": width}},
        F.cross_entropy,
        at_most,
    )


MLP = of_mnist(512, 0.95)
NARROW = of_mnist(64, 0.80)
FIGURE7 = Workload(
    "linear network of Figure 7, d = 200, batch 100, 20,000 samples",
    {
        "data": {"dataset": "teacher"},
        "model": {"name": "linear"},
        "training": {"loss": "squared", "batch_size": 100},
    },
    halved_square,
    0.60,
)


def measured(workload: Workload, data: Dataset) -> Callable[[], None]:
    """The product's own steps: dispersion, norms and loss range at every one."""
    state = training.start(TrialConfig.model_validate(workload.fields), dataset=data)
    epochs = count()

    def run() -> None:
        begun = next(epochs) * state.steps_per_epoch
        for step in range(begun, begun + state.steps_per_epoch):
            state.stepper.step(step, learning_rate=RATE)
        assert len(state.stepper.drain()) == state.steps_per_epoch

    return run


def bare(workload: Workload, data: Dataset) -> Callable[[], None]:
    """Only training: shuffled index batches, forward, backward, step."""
    config = TrialConfig.model_validate(workload.fields)
    model = build_model(config.model, data.input_shape, data.num_classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> None:
        for indices in torch.randperm(data.num_samples).split(config.training.batch_size):
            optimizer.zero_grad()
            workload.loss(model(data.train_x[indices]), data.train_y[indices]).backward()
            optimizer.step()

    return run


def teacher() -> Dataset:
    """Random inputs and targets of the shape of Figure 7's data."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(20_000, 200, generator=generator))
    y = torch.randn(20_000, generator=generator)
    return Dataset(
        train_x=x,
        train_y=y,
        test_x=x[:1000],
        test_y=y[:1000],
        num_classes=1,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )


def naive(loader: DataLoader[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """A DataLoader, and BackPACK's Variance at every step."""
    model = extend(mlp((1, 28, 28), 10, width=512))
    criterion = extend(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> None:
        dispersions = []
        for x, y in loader:
            optimizer.zero_grad()
            with backpack(Variance()):
                criterion(model(x), y).backward()
            dispersions.append(sum(float(p.variance.sum()) for p in model.parameters()))
            optimizer.step()

    return run


def from_tensors(data: Dataset) -> DataLoader[tuple[Tensor, Tensor]]:
    """The inputs already normalised in memory."""
    return DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=60, shuffle=True)


def from_torchvision(folder: Path) -> DataLoader[tuple[Tensor, Tensor]]:
    """torchvision's MNIST with its usual transforms, as in every tutorial."""
    idx.write_mnist(folder)
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return DataLoader(datasets.MNIST(folder, transform=transform), batch_size=60, shuffle=True)


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    data = random_mnist()
    met = True
    for workload, given in ((NARROW, data), (FIGURE7, teacher())):
        pair = {"bare": bare(workload, given), "measured": measured(workload, given)}
        met &= compared(workload, least_seconds(pair, repetitions=5))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = least_seconds(
            {
                "bare": bare(MLP, data),
                "measured": measured(MLP, data),
                "DataLoader of tensors + Variance": naive(from_tensors(data)),
                "DataLoader of torchvision's MNIST + Variance": naive(
                    from_torchvision(Path(folder))
                ),
            },
            repetitions=3,
        )
    met &= compared(MLP, seconds)
    tutorial = seconds["DataLoader of torchvision's MNIST + Variance"]
    return (
        verdict("torchvision loop / measured", tutorial / seconds["measured"], at_least=7) and met
    )


def compared(workload: Workload, seconds: dict[str, float]) -> bool:
    """Print them, and whether the measured epoch is as fast as it shall be."""
    print(f"epoch: {workload.title}, 1 thread")
    for name, s in seconds.items():
        print(f"  {name}: {s:.2f} s, {s / seconds['measured']:.2f} x measured")
    ratio = seconds["measured"] / seconds["bare"]
    return verdict("measured / bare", ratio, at_most=workload.at_most)
