"""One measured epoch against a bare training loop, and against what one would write at first."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

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
from gisgd_ray.data.dataset import Dataset, epoch_batches
from gisgd_ray.networks.models import mlp
from gisgd_ray.training import loop as training
from gisgd_ray.training.stepping import SingleRun

BATCH = 60
RATE = 0.01


def measured(data: Dataset) -> Callable[[], None]:
    """The product's own steps: dispersion, norms and loss range at every one."""
    config = TrialConfig.model_validate(
        {"data": {"dataset": "mnist"}, "training": {"batch_size": BATCH, "learning_rate": RATE}}
    )
    stepper = training.start(config, dataset=data).stepper
    assert isinstance(stepper, SingleRun)

    def run() -> None:
        for indices in epoch_batches(data.num_samples, BATCH, seed=0, epoch=0, last_batch="keep"):
            stepper.train_on(indices, learning_rate=RATE)
        assert len(stepper.drain()) == 1000

    return run


def bare(data: Dataset) -> Callable[[], None]:
    """Only training: shuffled index batches, forward, backward, step."""
    model = mlp((1, 28, 28), 10, width=512)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def run() -> None:
        for indices in torch.randperm(data.num_samples).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[indices]), data.train_y[indices]).backward()
            optimizer.step()

    return run


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
    return DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=BATCH, shuffle=True)


def from_torchvision(folder: Path) -> DataLoader[tuple[Tensor, Tensor]]:
    """torchvision's MNIST with its usual transforms, as in every tutorial."""
    idx.write_mnist(folder)
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    return DataLoader(datasets.MNIST(folder, transform=transform), batch_size=BATCH, shuffle=True)


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    data = random_mnist()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = least_seconds(
            {
                "bare": bare(data),
                "measured": measured(data),
                "DataLoader of tensors + Variance": naive(from_tensors(data)),
                "DataLoader of torchvision's MNIST + Variance": naive(
                    from_torchvision(Path(folder))
                ),
            },
            repetitions=3,
        )
    print(f"epoch: MLP 784-512-10, batch {BATCH}, 60,000 samples, 1 thread")
    for name, s in seconds.items():
        print(f"  {name}: {s:.2f} s, {s / seconds['measured']:.2f} x measured")
    met = verdict("measured / bare", seconds["measured"] / seconds["bare"], at_most=1.6)
    tutorial = seconds["DataLoader of torchvision's MNIST + Variance"]
    return (
        verdict("torchvision loop / measured", tutorial / seconds["measured"], at_least=4) and met
    )
