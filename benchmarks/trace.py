"""The exact Hessian trace against PyHessian with 50 probes, on the 5,000 bundled digits."""

import torch

from benchmarks.timing import least_seconds, verdict
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import load_dataset
from gisgd_ray.measures.hessian import HessianOperator, HessianTrace
from gisgd_ray.training.loop import advance, start


def run() -> bool:
    torch.set_num_threads(1)
    data = load_dataset(DataConfig(), seed=0)
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    state = start(
        TrialConfig.model_validate({"training": {"learning_rate": 0.1, "max_epochs": 10}})
    )
    while state.stopped is None:
        advance(state)
    found: dict[str, list[HessianTrace]] = {"exact": [], "pyhessian": []}

    def measure(method: str) -> None:
        # PyHessian at its best: one batch, whose first backward pass all probes share.
        chunk = 5_000 if method == "pyhessian" else None
        hessian = HessianOperator(state.model, x, y, "cross_entropy", chunk=chunk)
        seed = len(found[method])
        trace = hessian.trace(method, probes=50, seed=seed)  # type: ignore[arg-type]
        found[method].append(trace)

    seconds = least_seconds(
        {"exact": lambda: measure("exact"), "pyhessian": lambda: measure("pyhessian")},
        repetitions=4,
    )
    exact = found["exact"][0]
    print("trace: MLP 784-512-10 after 10 epochs, 5,000 digits, 1 thread")
    print(f"  exact {exact.value:.3f} in {seconds['exact']:.2f} s")
    for estimate in found["pyhessian"]:
        off = (estimate.value - exact.value) / estimate.standard_error
        print(
            f"  PyHessian, 50 probes: {estimate.value:.2f} +- {estimate.standard_error:.2f} "
            f"({off:+.2f} standard errors)"
        )
    print(f"  PyHessian takes {seconds['pyhessian']:.2f} s")
    first = found["pyhessian"][0]
    off = abs(first.value - exact.value) / first.standard_error
    met = verdict("PyHessian / exact, time", seconds["pyhessian"] / seconds["exact"], at_least=10)
    return verdict("first estimate off, in standard errors", off, at_most=2) and met
