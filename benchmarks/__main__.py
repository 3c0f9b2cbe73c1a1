"""Ratios measured side by side in one run; ``python -m benchmarks [name ...]``.

Every timing is the least or the median of several repetitions that take turns, so that a busy
moment of the machine hits all of them alike. The data are random, of MNIST's or CIFAR's shape.
"""

import argparse
import platform
import sys

import ray
import torch

from benchmarks import (
    checkpoint,
    epoch,
    lockstep,
    memory,
    scale,
    schemes,
    sensitivity,
    stacks,
    sweep_overhead,
    trace,
    wandb_cost,
)

BENCHMARKS = {
    "epoch": epoch.run,
    "trace": trace.run,
    "sensitivity": sensitivity.run,
    "lockstep": lockstep.run,
    "stacks": stacks.run,
    "memory": memory.run,
    "checkpoint": checkpoint.run,
    "schemes": schemes.run,
    "sweep": sweep_overhead.run,
    "scale": scale.run,
    "wandb": wandb_cost.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    print(f"torch {torch.__version__}, ray {ray.__version__}, Python {platform.python_version()}")
    missed = [name for name in names for _ in range(not BENCHMARKS[name]())]
    if missed:
        print(f"target missed: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
