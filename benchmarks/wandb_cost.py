"""What a W&B run costs a trial, online against the tests' own server and offline."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import verdict
from tests.support.wandb_server import Server, environment

TRIAL = """
import json, os, sys, time
from pathlib import Path
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.config.frozen import unflatten
from gisgd_ray.training import loop as training

def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def services():
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        if "wandb-core" in name and int(rest.split()[1]) == os.getpid():
            found.append(int(path.parent.name))
    return found

def run(mode, seed):
    trial = TrialConfig.model_validate(unflatten({"seed": seed, "training.max_steps": 3000,
        "training.stop_loss": None, "training.learning_rate": 0.02, "training.batch_size": 40}))
    settings = WandbSettings(mode, sys.argv[1], "", group="g", project="p")
    state, opening, logging, closing = training.start(trial), 0.0, 0.0, 0.0
    begun = clock = time.perf_counter()
    wandb = WandbRun(settings, trial_id=f"{mode}{seed}", name="x", config=trial.flat())
    opening = time.perf_counter() - clock
    while state.stopped is None:
        point, _ = training.advance(state)
        clock = time.perf_counter()
        wandb.log(point)
        logging += time.perf_counter() - clock
    row = training.summary(state)
    clock = time.perf_counter()
    wandb.finish(row, steps=state.series.table())
    closing = time.perf_counter() - clock
    return {"mode": str(wandb.status), "seconds": time.perf_counter() - begun, "opening": opening,
            "logging": logging, "closing": closing, "points": len(state.history)}

before = resident(os.getpid())
from gisgd_ray.tracking.run import WandbRun, WandbSettings
settings = WandbSettings("online", sys.argv[1], "", group="g", project="p")
first = WandbRun(settings, trial_id="first", name="x", config={})
for step in range(100):
    first.log({"step": step, **{f"metric/{k}": 0.1 * k for k in range(40)}})
here, service = resident(os.getpid()) - before, sum(map(resident, services()))
first.finish({"status": "finished"})
told = [run(mode, seed) for seed in range(4) for mode in ("disabled", "offline", "online")][3:]
print(json.dumps({"runs": told, "here": here / 1e6, "service": service / 1e6}))
"""


def run() -> bool:
    """One process, trials of some seconds in turns; memory after 100 points of a first run."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", TRIAL, folder],
            env={**environment(server, Path(folder)), "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    runs = told["runs"]
    seconds = {
        mode: [run["seconds"] for run in runs if run["mode"] == mode]
        for mode in ("disabled", "offline", "online")
    }
    print(f"wandb: trials of {min(seconds['disabled']):.1f} s with {runs[0]['points']} points")
    met = True
    for mode in ("offline", "online"):
        mine = [run for run in runs if run["mode"] == mode]
        share = sum(sum(run[k] for k in ("opening", "logging", "closing")) for run in mine)
        share /= sum(seconds[mode])
        met &= verdict(f"time in W&B's calls {mode}, share of the trial", share, at_most=0.03)
        ratio = min(seconds[mode]) / min(seconds["disabled"])
        met &= verdict(f"whole trial {mode} / disabled", ratio, at_most=1.03)
        later = max(run["opening"] for run in mine)
        met &= verdict(f"opening a run {mode} after the first, s", later, at_most=0.1)
        print(
            "  of it, s: "
            + ", ".join(f"{k} {min(r[k] for r in mine):.3f}" for k in ("logging", "closing"))
        )
    met &= verdict(
        "memory in the trial's process, W&B's code included, MB", told["here"], at_most=60
    )
    return verdict("memory of W&B's service process, MB", told["service"], at_most=60) and met
