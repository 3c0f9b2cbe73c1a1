"""The training schemes against plain SGD: time of a step, GMP's memory, rates on a GPU.

Every step goes through ``SingleRun.train_on``, as in a trial. The schemes take turns by blocks of a
few steps; a ratio is the median over the rounds of the ratio within a round. On the CPU, with one
thread, the time is that of the processor, so that other people's work on the machine counts little.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.timing import verdict
from gisgd_ray.config import catalogue
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.augmentation import Augmentation
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import TrainState
from gisgd_ray.training.stepping import AutogradRun, SingleRun

RATE = 1e-4  # on random labels, for any number of steps
BATCHES = 20

SCHEMES: dict[str, dict[str, Any]] = {
    "SGD": {"name": "sgd"},
    "clipping, running minimum": {"name": "clipping", "start_epoch": 0},
    # Half the norms are above the one before.
    "clipping, lag": {"name": "clipping", "variant": "lag", "lag": 1, "start_epoch": 0},
    "GMP k=3, weights": {"name": "gmp"},
    "GMP k=3, local": {"name": "gmp", "estimator": "local"},
    "AMP": {"name": "amp"},
    "SAM": {"name": "sam"},
    "label smoothing": {"name": "label_smoothing"},
    "dropout": {"name": "dropout"},
    "flooding": {"name": "flooding"},
    "MixUp": {"name": "mixup"},
    "adversarial": {"name": "adversarial"},
}

TARGETS = {
    "clipping, running minimum": 1.02,
    "clipping, lag": 1.02,
    "GMP k=3, weights": 4.1,
    "GMP k=3, local": 2.2,
    "AMP": 2.1,
    "SAM": 2.1,
}

TABLES = {
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "max_gradient_norm": 50,
    "initialization": "kaiming",
}
"""The optimizer of Tables 1-3."""


@dataclass(frozen=True)
class Workload:
    """A network on random images, and how many steps are timed at once, how many times."""

    model: str
    dataset: str
    shape: tuple[int, ...]
    batch: int
    steps: int
    rounds: int
    dispersion: bool = False
    size: dict[str, int] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        how = "dispersion at every step" if self.dispersion else "nothing measured"
        size = "".join(f" of {name} {value}" for name, value in self.size.items())
        return f"{self.model}{size}, batch {self.batch}, {how}"

    def started(
        self,
        scheme: dict[str, Any],
        *,
        device: str = "cpu",
        dispersion: bool = False,
        by_autograd: bool = False,
    ) -> TrainState:
        """A trial before its first step, which else is written out where it can be."""
        config = TrialConfig.model_validate(
            {
                "data": {"dataset": self.dataset},
                "model": {"name": self.model, **self.size},
                "scheme": scheme,
                "training": {"batch_size": self.batch, **self.training},
                "measurement": {"dispersion": self.dispersion or dispersion},
            }
        )
        state = training.start(config, device=device, dataset=self.images(device))
        if by_autograd and not isinstance(state.stepper, AutogradRun):
            state.stepper = AutogradRun(config, state.replicas[0])
        return state

    def images(self, device: str = "cpu") -> Dataset:
        """A few batches of random images of the dataset's shape."""
        generator = torch.Generator().manual_seed(0)
        count, channels = BATCHES * self.batch, self.shape[0]
        x = torch.randn(count, *self.shape, generator=generator).to(device)
        y = torch.randint(10, (count,), generator=generator).to(device)
        return Dataset(
            train_x=x,
            train_y=y,
            test_x=x,
            test_y=y,
            num_classes=10,
            normalization_mean=(0.5,) * channels,
            normalization_std=(0.25,) * channels,
        )


MLP = Workload("mlp", "mnist", (1, 28, 28), batch=60, steps=20, rounds=24)
ALEXNET = Workload("alexnet", "cifar10", (3, 32, 32), batch=60, steps=1, rounds=10)
VGG16 = Workload("vgg16", "cifar10", (3, 32, 32), batch=50, steps=1, rounds=5, training=TABLES)
PREACTRESNET18 = replace(VGG16, model="preactresnet18")


def block(state: TrainState, steps: int) -> Callable[[], None]:
    """So many steps of one trial."""
    stepper = state.stepper
    assert isinstance(stepper, SingleRun)
    device = state.dataset.train_x.device
    batches = torch.arange(state.num_samples, device=device).split(state.config.training.batch_size)
    taken = 0

    def run() -> None:
        nonlocal taken
        for _ in range(steps):
            stepper.train_on(batches[taken % BATCHES], step=taken, learning_rate=RATE)
            taken += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def median_ratios(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, dict[str, float]]:
    """Median seconds of the first candidate, and every other's ratio to it.

    The one that begins changes, and there is one round before to warm up.
    """
    names = list(candidates)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        begins = round_ % len(names)
        for name in names[begins:] + names[:begins]:
            begun = clock()
            candidates[name]()
            if round_ > 0:
                taken[name].append(clock() - begun)
    first, *others = taken
    return statistics.median(taken[first]), {
        name: statistics.median(a / b for a, b in zip(taken[name], taken[first], strict=True))
        for name in others
    }


def ratios_to_sgd(workload: Workload) -> bool:
    """Every scheme's step relative to that of SGD, measured and taken alike: by autograd where the
    scheme's gradient is no multiple of the plain one."""
    plain: dict[str, Callable[[], object]] = {}
    others: dict[str, Callable[[], object]] = {}
    for name, scheme in SCHEMES.items():
        multiple = catalogue.SCHEMES[scheme["name"]].gradient != "another"
        (plain if multiple else others)[name] = block(workload.started(scheme), workload.steps)
    by_autograd = workload.started(SCHEMES["SGD"], by_autograd=True)
    others = {"SGD by autograd": block(by_autograd, workload.steps), **others}
    if workload.model == "vgg16":
        by_groups = workload.started(SCHEMES["SGD"], dispersion=True)
        others["SGD, dispersion by groups"] = block(by_groups, workload.steps)
    met = True
    for candidates in (plain, others):
        first = next(iter(candidates))
        seconds, ratios = median_ratios(candidates, rounds=workload.rounds)
        taken = 1000 * seconds / workload.steps
        print(f"schemes: {workload}, 1 thread, {first} {taken:.2f} ms a step")
        for name, ratio in ratios.items():
            # Clipping takes a norm, which a dense network's step does not else have unmeasured.
            needs_norm = workload.model == "mlp" and not workload.dispersion
            if name in TARGETS and not (needs_norm and candidates is plain):
                met &= verdict(f"{name} / {first}", round(ratio, 2), at_most=TARGETS[name])
            else:
                print(f"  {name} / {first}: {ratio:.2f}")
    return met


def augmentation_share() -> bool:
    """Crops and mirroring of one batch, beside a whole step of VGG16 without."""
    state, repeats = VGG16.started(SCHEMES["SGD"]), 20
    data = state.config.changed({"data.crop_padding": 4, "data.flip": True}).data
    augmentation = Augmentation.of(data, state.dataset, seed=0)
    assert augmentation is not None
    images = state.dataset.train_x[: VGG16.batch]

    def augment() -> None:
        for step in range(repeats):
            augmentation(images, step)

    seconds, ratios = median_ratios(
        {"SGD": block(state, 1), "augmentation": augment}, rounds=VGG16.rounds
    )
    share = 100 * ratios["augmentation"] / repeats
    print(f"augmentation: padding 4, flip, {VGG16.batch} images; {10 * share * seconds:.2f} ms")
    return verdict("per cent of a step of VGG16", share, at_most=5)


class PeakMemory(TorchDispatchMode):
    """Most bytes held at once by tensors that were made inside, between any two operations."""

    def __init__(self) -> None:
        super().__init__()
        self._live: weakref.WeakKeyDictionary[torch.UntypedStorage, int]
        self._live, self._bytes, self.peak = weakref.WeakKeyDictionary(), 0, 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        for given in _storages((args, kwargs)):  # the weights and the data were there before
            self._live.setdefault(given, 0)
        result = func(*args, **(kwargs or {}))
        for made in _storages(result):
            if made not in self._live:
                self._live[made] = made.nbytes()
                self._bytes += made.nbytes()
                weakref.finalize(made, self._forget, made.nbytes())
        self.peak = max(self.peak, self._bytes)
        return result

    def _forget(self, size: int) -> None:
        self._bytes -= size


def _storages(nested: Any) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(nested)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def peak_of_steps(workload: Workload, scheme: dict[str, Any]) -> tuple[int, TrainState]:
    """Bytes on top of the weights at the worst moment of the first two steps of a trial."""
    state = workload.started(scheme, by_autograd=True)
    with PeakMemory() as memory:
        block(state, 2)()
    return memory.peak, state


def gmp_memory(workload: Workload) -> bool:
    """What GMP holds more than SGD at its worst moment, in copies of the parameters."""
    plain, state = peak_of_steps(workload, SCHEMES["SGD"])
    sizes = [p.numel() * p.element_size() for p in state.model.parameters()]
    most = 1 + max(sizes) / sum(sizes)
    print(
        f"memory: {workload.model}, batch {workload.batch}, {sum(sizes) / 1e6:.1f} MB of "
        f"parameters; SGD takes {plain / 1e6:.1f} MB more at its peak"
    )
    met = True
    for draws in (1, 3, 10):
        extra = peak_of_steps(workload, {"name": "gmp", "draws": draws})[0] - plain
        what = f"GMP k={draws} on top of SGD, in copies of the parameters"
        met &= verdict(what, round(extra / sum(sizes), 2), at_most=round(most + 0.05, 2))
    return met


def on_gpu() -> bool:
    """GMP against ERM, and images a second, by wall time with the device waited for."""
    if not torch.cuda.is_available():
        print("schemes on a GPU: there is none")
        return True
    print(f"schemes on {torch.cuda.get_device_name()}, wall time")
    vgg16 = {
        name: block(VGG16.started(SCHEMES[name], device="cuda"), 20)
        for name in ("SGD", "GMP k=3, weights", "GMP k=3, local", "AMP", "SAM")
    }
    _, ratios = median_ratios(vgg16, rounds=10, clock=time.perf_counter)
    for name in ("GMP k=3, local", "AMP", "SAM"):
        print(f"  VGG16, {name} / SGD: {ratios[name]:.2f}")
    met = verdict("VGG16, GMP k=3, weights / SGD", ratios["GMP k=3, weights"], at_most=1.76)
    for workload in (VGG16, PREACTRESNET18):
        for precision in ("float32", "bfloat16"):
            cast = replace(workload, training={**TABLES, "precision": precision})
            seconds, _ = median_ratios(
                {"SGD": block(cast.started(SCHEMES["SGD"], device="cuda"), 50)},
                rounds=5,
                clock=time.perf_counter,
            )
            print(f"  {cast.model}, {precision}: {50 * cast.batch / seconds:,.0f} images/s")
    return met


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    met = [
        ratios_to_sgd(workload)
        for workload in (
            replace(MLP, dispersion=True),
            replace(MLP, dispersion=True, size={"width": 64}),
            MLP,
            replace(ALEXNET, dispersion=True),
            ALEXNET,
            VGG16,
        )
    ]
    met += [augmentation_share(), gmp_memory(MLP), gmp_memory(ALEXNET), on_gpu()]
    return all(met)
