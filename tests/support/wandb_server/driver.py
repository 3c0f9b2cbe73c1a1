"""Run as a process of its own: the real client, told what to do by lines of JSON."""

import json
import os
import sys
from typing import Any

import wandb

from gisgd_ray.tracking import run as wandb_runs


def settings() -> wandb.Settings:
    """A trial's, but the environment says how often lines are posted."""
    chosen = wandb_runs._slim(15.0)
    interval = os.environ.get("WANDB__FILE_STREAM_TRANSMIT_INTERVAL")
    if interval:
        chosen.x_file_stream_transmit_interval = float(interval)
    return chosen


def main() -> None:
    """A line in, ``{"do": what, ...}``; a line out, ``{"fault": None}`` or what went wrong."""
    run: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        told: dict[str, Any] = {"fault": None}
        try:
            if asked["do"] == "init":
                run = wandb.init(**asked["arguments"], reinit="create_new", settings=settings())
                told |= {"resumed": run.resumed, "step": run.starting_step, "folder": run.dir}
            elif asked["do"] == "log":
                for point in asked["points"]:
                    run.log(point)
            elif asked["do"] == "summary":
                run.summary.update(asked["values"])
            elif asked["do"] == "finish":
                run.finish(exit_code=asked["exit_code"])
            else:
                raise ValueError(f"no such thing to do: {asked['do']}")
        except Exception as fault:
            told["fault"] = f"{type(fault).__name__}: {fault}"
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
