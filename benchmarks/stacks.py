"""Trials in a stack against one alone: time per trial and step, and launches of kernels.

On a GPU where there is one, else on one core, where launches are counted as a GPU would make them:
operations that are neither views nor allocations.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import verdict
from gisgd_ray.config.space import validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import GPU, Device
from gisgd_ray.runner.stacks import begun, fastest_size, step_seconds
from gisgd_ray.training.stack import Stack

TEACHER = {"data.dataset": "teacher", "training.loss": "squared", "training.batch_size": 100}
NETWORKS: dict[str, dict[str, Any]] = {
    "MLP 784-16-10, batch 60": {"model.width": 16},
    "MLP 784-64-10, batch 60": {"model.width": 64},
    "MLP 784-512-10, batch 60": {"model.width": 512},
    "linear, d = 200, batch 100": {"model.name": "linear", **TEACHER},
}
SIZES = (2, 8, 20, 32, 128)
OF_LAUNCHES = 32


def trials(fields: dict[str, Any], count: int) -> list[TrialConfig]:
    return [validated({**fields, "seed": seed}) for seed in range(count)]


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would launch a kernel for."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        aliases = [each.alias_info for each in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not view and not func._schema.name.startswith(("aten::empty", "aten::_local"))
        return func(*args, **(kwargs or {}))


def launches(configs: list[TrialConfig], steps: int = 20) -> float:
    """Per trial and step of a stack, after its first steps."""
    states = begun(configs, Device())
    stack = Stack(states)
    stack.train(pause=lambda: states[0].step >= 5)
    with Launches() as counted:
        stack.train(pause=lambda: states[0].step >= 5 + steps)
    return counted.count / steps / len(states)


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    on_gpu = torch.cuda.is_available()
    device = GPU() if on_gpu else Device()
    print(
        f"stacks: time per trial and step, {device.name if isinstance(device, GPU) else '1 core'}"
    )
    met = True
    for name, fields in NETWORKS.items():
        sizes = SIZES if on_gpu else SIZES[: 2 if fields.get("model.width") == 512 else 4]
        alone = step_seconds(trials(fields, 1), device)
        found = [step_seconds(trials(fields, size), device) / alone for size in sizes]
        each = ", ".join(f"{ratio:.2f} ({size})" for ratio, size in zip(found, sizes, strict=True))
        print(f"  {name}: {1e6 * alone:.0f} us alone; of that in a stack of so many: {each}")
        chosen = fastest_size(trials(fields, max(sizes)), device)
        if chosen > 1:
            ratio = step_seconds(trials(fields, chosen), device) / alone
            met &= verdict(f"of {chosen}, as measuring chooses, / alone", ratio, at_most=1)
    counted = launches(trials(NETWORKS["MLP 784-16-10, batch 60"], OF_LAUNCHES))
    return (
        verdict(f"launches per trial and step in a stack of {OF_LAUNCHES}", counted, at_most=2)
        and met
    )
