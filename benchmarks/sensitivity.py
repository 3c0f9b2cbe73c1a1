"""What Psi costs against full-gradient passes, and the cheap terms against a run without them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import least_seconds, random_mnist, verdict
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.sensitivity import local_gradient_sensitivity
from gisgd_ray.training import loop as training

DRAWS = 20


def psi(samples: int) -> Callable[[], None]:
    """Psi over the whole training set, 20 draws, one std."""
    data = random_mnist(samples)
    state = training.start(trial({}), dataset=data)

    def run() -> None:
        local_gradient_sensitivity(
            state.model,
            Samples(data.train_x, data.train_y, "cross_entropy"),
            WeightNoise([1e-3], 0),
            draws=DRAWS,
            step=1,
        )

    return run


def full_gradient(samples: int, chunk: int) -> Callable[[], None]:
    """As many plain full-gradient passes as there are draws, in chunks of so many samples."""
    data = random_mnist(samples)
    model = training.start(trial({"measurement": {"dispersion": False}}), dataset=data).model

    def run() -> None:
        for _ in range(DRAWS):
            model.zero_grad()
            for x, y in zip(data.train_x.split(chunk), data.train_y.split(chunk), strict=True):
                (F.cross_entropy(model(x), y, reduction="sum") / samples).backward()

    return run


def trial(fields: dict[str, Any]) -> TrialConfig:
    return TrialConfig.model_validate({"data": {"dataset": "mnist5k"}, **fields})


def laptop_sweep(measurement: dict[str, Any]) -> Callable[[], None]:
    """The corners of ``sweeps/lr_batch.py`` at laptop scale, each from its start to its row."""
    corners = [(rate, batch) for rate in (0.05, 0.2) for batch in (20, 120)]

    def run() -> None:
        for rate, batch in corners:
            training_fields = {"learning_rate": rate, "batch_size": batch, "stop_loss": 3e-3}
            fields = {"training": training_fields, "measurement": measurement}
            state = training.start(trial(fields))
            while state.stopped is None:
                training.advance(state)
            training.summary(state)

    return run


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    print(f"sensitivity: MLP 784-512-10, {DRAWS} draws at one std, 1 thread")
    met = True
    for samples, repetitions in ((4_000, 4), (60_000, 2)):
        seconds = least_seconds(
            {
                "psi": psi(samples),
                "whole": full_gradient(samples, samples),
                "chunked": full_gradient(samples, 1_000),
            },
            repetitions=repetitions,
        )
        passes = {name: DRAWS * seconds["psi"] / s for name, s in seconds.items()}
        print(
            f"  {samples:,} samples: {seconds['psi']:.2f} s, as long as {passes['whole']:.1f} "
            f"plain passes of {seconds['whole'] / DRAWS:.3f} s over the whole set at once, or "
            f"{passes['chunked']:.1f} of {seconds['chunked'] / DRAWS:.3f} s in chunks of 1,000"
        )
        what = f"Psi / plain full-gradient pass, {samples:,} samples"
        met &= verdict(what, passes["whole"], at_most=21)
    only_eq3 = {"flatness": False, "smoothness": False}
    seconds = least_seconds(
        {"cheap terms": laptop_sweep({}), "only Eq. 3": laptop_sweep(only_eq3)}, repetitions=1
    )
    print("cheap terms: the four corners of lr_batch.py's laptop grid, one after the other")
    for name, s in seconds.items():
        print(f"  {name}: {s:.2f} s")
    ratio = seconds["cheap terms"] / seconds["only Eq. 3"]
    return verdict("cheap terms / only Eq. 3", ratio, at_most=1.35) and met
