"""A sweep from its command line: dry runs, bad input, and the choice of scale."""

import errno
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner import cli, steps
from gisgd_ray.runner import main as sweep
from gisgd_ray.runner.cluster import Connection
from gisgd_ray.runner.plan import make_plan
from sweeps.lr_batch import SWEEP

ROOT = Path(__file__).parents[2]
RATE, BATCH = "training.learning_rate", "training.batch_size"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may start or join Ray, or train."""

    def connect(*, start_local: bool = True) -> Connection:
        assert not start_local, "Ray was asked for"
        return Connection(False, "no Ray cluster is running")

    monkeypatch.setattr(steps, "connect", connect)
    monkeypatch.setattr(steps, "largest_memory", lambda: 2**40)
    monkeypatch.setattr(steps, "sweep_cost", lambda *_, **__: None)


@pytest.fixture
def dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs Figure 6's command line dry; gives the exit status, stdout and stderr."""

    def run(*argv: str, scale: str = "laptop") -> tuple[int, str, str]:
        given = [*argv, "--dry-run", "--scale", scale]
        status = sweep.main(SWEEP, [*given, *([] if "--out" in argv else ["--out", str(tmp_path)])])
        return status, *capsys.readouterr()

    return run


def test_dry_run_lists_the_trials(dry_run: Any, tmp_path: Path) -> None:
    status, out, err = dry_run(f"--{RATE}", "0.05,0.1", "--seeds", "2")
    said, *lines, total, cost = out.splitlines()
    folder = tmp_path / "lr_batch"
    assert (status, err) == (0, "")
    assert said == "Scale laptop: asked for with --scale; no Ray cluster is running."
    assert cost == steps.NO_GPU_YET
    assert total == f"Figure 6: 16 trials, 16 to run, results in {folder}"
    assert len(lines) == len({line.split()[0] for line in lines}) == 16
    assert lines[0].endswith("  to run    learning_rate=0.05 batch_size=20 seed=0")
    assert not folder.exists()


@pytest.mark.parametrize("asked", ["laptop", "paper", "auto"])
@pytest.mark.parametrize("only", ["laptop", "paper"])
def test_a_sweep_of_one_scale_runs_at_that_one(
    only: str, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = replace(SWEEP, panels={only: SWEEP.spaces("laptop")})
    assert sweep.main(one, ["--dry-run", "--scale", asked, "--out", str(tmp_path)]) == 0
    said, *_, total, _cost = capsys.readouterr().out.splitlines()
    why = "asked for with --scale" if asked == only else "the only one of this sweep"
    assert said == f"Scale {only}: {why}; no Ray cluster is running."
    assert total.startswith("Figure 6: 36 trials, 36 to run, ")


def test_dry_run_tells_what_is_finished(dry_run: Any, tmp_path: Path) -> None:
    argv = (f"--{RATE}", "0.05", f"--{BATCH}", "20,40,80", "--seeds", "1")
    options = cli.parse(["--scale", "laptop", *argv], prog="", description="")
    trials = make_plan(SWEEP.spaces("laptop"), options, "laptop").trials
    journal = Journal(tmp_path / "lr_batch")
    for trial, trial_status in zip(trials, ("finished", "diverged", "failed"), strict=True):
        journal.add_row(trial.trial_id, row_of(trial, {"status": trial_status}))
    _, *lines, total, note, _ = dry_run(*argv)[1].splitlines()
    assert note.endswith("lr_batch holds results already: a launch needs --resume.")
    assert [line.split()[1] for line in lines] == ["finished", "finished", "to"]
    assert total.startswith("Figure 6: 3 trials, 1 to run, ")


def test_dry_run_without_data_cannot_tell_the_time(
    dry_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise DataError("cifar10 is not there; put it into data")

    monkeypatch.setattr(steps, "sweep_cost", missing)
    status, out, _ = dry_run("--seeds", "1")
    assert status == 0
    assert out.splitlines()[-1] == (
        "Time: not known, since a trial cannot be tried out: cifar10 is not there; put it into data"
    )


BAD_INPUT = {
    f"--{RATE} -1": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE}=-1": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE} -1e-3": f"{RATE} = -0.001: input should be greater than 0",
    f"--{RATE} -.5": f"{RATE} = '-.5': input should be greater than 0",
    f"--{RATE} 0.1,-2": f"{RATE} = -2: input should be greater than 0",
    f"--{RATE} -1,2": f"{RATE} = -1: input should be greater than 0",
    f"--{RATE} -inf": f"{RATE} = '-inf': input should be a finite number",
    f"--{RATE} NaN": f"{RATE} = nan: input should be a finite number",
    f"--{RATE}=abc": f"{RATE} = 'abc': input should be a valid number, "
    "unable to parse string as a number",
    f"--{BATCH} 20.5": f"{BATCH} = 20.5: input should be a valid integer, "
    "got a number with a fractional part",
    f"--{BATCH} 5000": f"{BATCH} = 5000 exceeds the 4000 training samples of data.dataset = "
    "'mnist5k' at data.train_fraction = 1; choose at most 4000",
    "--seeds 0": "--seeds = 0: input should be greater than or equal to 1",
    "--seeds -1": "--seeds = -1: input should be greater than or equal to 1",
    "--seeds two": "--seeds = two: input should be a valid integer, "
    "unable to parse string as an integer",
    "--seed x --seeds 2": "seed = 'x': input should be a valid integer, "
    "unable to parse string as an integer",
    "--samples 3": "samples = 3 needs a field with a distribution",
    f"--{RATE}": f"--{RATE}: expected one argument; --help lists every option",
    f"--{RATE} --{BATCH} 20": f"--{RATE}: expected one argument; --help lists every option",
    f"--{RATE} 0.1 0.2": "'0.2' belongs to no option; a grid is one word, as in 0.1,0.2",
    "--learning_rate=1": f"--learning_rate is not an option; did you mean --{RATE}?",
    "--cpu-per-trial 2": "--cpu-per-trial is not an option; did you mean --cpus-per-trial?",
    "--xyz": "--xyz is not an option; --help lists every option",
    "--checkpoint-every 0": "--checkpoint-every = 0: input should be greater than or equal to 0.1",
    "--retries -1": "--retries = -1: input should be greater than or equal to 0",
    "--reuse nowhere": "--reuse nowhere holds no results (there is no nowhere/journal); name the "
    "folder of a sweep on this machine, as in results/lr_batch",
    "--gpus-per-trial inf": "--gpus-per-trial = inf: input should be a finite number, or auto",
    "--gpus-per-trial half": "--gpus-per-trial = half: input should be a valid number, "
    "unable to parse string as a number, or auto",
    "--cpus-per-trial 0": "--cpus-per-trial = 0: input should be greater than or equal to 1",
    "--panel x": "--panel x: at scale laptop this sweep has mlp_mnist5k",
    "--model.name alexnet --model.width 3": "--model.width: at scale laptop model.name is alexnet, "
    "which has no field width",
    "--gpus-per-trial 1.5": "--gpus-per-trial = 1.5: input should be 0, a fraction up to 1 or a "
    "whole number, or auto",
    "--gpus-per-trial -0.5": "--gpus-per-trial = -0.5: input should be greater than or equal to 0, "
    "or auto",
    "--wandb-requests 0": "--wandb-requests = 0: input should be greater than 0",
    "--sampling-seed -1": "--sampling-seed = -1: input should be greater than or equal to 0",
    "--out ": "--out = '': input should name a folder",
    "--training.stop_loss true": "training.stop_loss = True: input should be a number, not true or "
    "false",
    "--out s3:// --take-over": "s3:// cannot be used for results (it names no bucket); give a "
    "folder, or a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX",
    "--replicas 1e12": "replicas = 1000000000000.0: input should be less than or equal to 1000000",
    "--seeds": "--seeds: expected one argument; --help lists every option",
    "--resume=false": "--resume=false: --resume takes no value; give --resume alone, or leave it "
    "out",
    "--help tests": "--help tests: there is help about all, data, model, scheme, training, "
    "measurement, seed, replicas",
}


@pytest.mark.parametrize("argv", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(dry_run: Any, argv: str) -> None:
    assert dry_run(*argv.split(" ")) == (2, "", f"error: {BAD_INPUT[argv]}\n")


AT_ONCE = [
    *BAD_INPUT,
    "--out s3://",
    "--out ftp://x/y",
    "--out /dev/null/below",
    "--take-over --out results",
    "--replicas 1e12",
    f"--{RATE} choice(0.1,-1)",
]


def test_bad_input_is_told_before_anything_heavy_is_loaded() -> None:
    """PyTorch, Ray and W&B take seconds; all in one fresh Python that has none of them."""
    code = (
        "import contextlib, io, json, sys\n"
        "from gisgd_ray.runner.main import main\n"
        "from sweeps.lr_batch import SWEEP\n"
        f"for argv in {[argv.split(' ') for argv in AT_ONCE]!r}:\n"
        "    told = io.StringIO()\n"
        "    with contextlib.redirect_stderr(told):\n"
        "        status = main(SWEEP, [*argv, '--scale', 'laptop'])\n"
        "    heavy = [name for name in ('torch', 'ray', 'wandb') if name in sys.modules]\n"
        "    print(status, told.getvalue().count('error: '), told.getvalue().count('\\n'), heavy)\n"
        "    assert not heavy, argv\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 1 1 []"] * len(AT_ONCE)


def test_a_trial_that_does_not_suit_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep's own check sees every trial, and what it refuses is bad input."""
    asked: list[int] = []

    def check(config: TrialConfig) -> None:
        asked.append(config.training.batch_size)
        if config.training.batch_size > 80:
            raise UserError("training.batch_size is too large for this figure; choose at most 80")

    argv = ["--dry-run", "--scale", "laptop", "--out", str(tmp_path), f"--{RATE}", "0.1"]
    argv += ["--seeds", "1"]
    checked = replace(SWEEP, check=check)
    assert sweep.main(checked, [*argv, f"--{BATCH}", "20,80"]) == 0
    assert asked == [20, 80]
    capsys.readouterr()
    assert sweep.main(checked, argv) == 2
    message = "training.batch_size is too large for this figure; choose at most 80"
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_scale_that_does_not_exist(dry_run: Any) -> None:
    status, out, err = dry_run(scale="huge")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err == "error: --scale = huge: input should be 'auto', 'laptop' or 'paper'\n"


def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before Ray is started (see the fixture above)."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "below"
    assert sweep.main(SWEEP, ["--scale", "laptop", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"error: output folder {out / 'lr_batch'} cannot be written (Not a directory); choose "
        "another with --out\n"
    )


def test_with_scale_auto_a_fault_at_both_scales_is_told_before_ray(dry_run: Any) -> None:
    status, _, err = dry_run(f"--{BATCH}", "100000", scale="auto")
    assert status == 2
    assert "100000 exceeds the 4000 training samples" in err


@pytest.mark.parametrize(("gpus", "status"), [(0, 2), (4, 0)])
def test_with_scale_auto_a_fault_at_one_scale_matters_at_that_scale(
    dry_run: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, status: int
) -> None:
    n = 10_000  # sound for MNIST and CIFAR-10, not for the laptop's 4,000 digits
    monkeypatch.setattr(steps, "connect", lambda **_: Connection(True, "joined Ray"))
    monkeypatch.setattr(steps, "cluster_gpus", lambda: gpus)
    found, _, err = dry_run(f"--{BATCH}", str(n), scale="auto")
    assert found == status
    if status:
        assert "error: at scale laptop: training.batch_size = 10000 exceeds the 4000" in err


@pytest.mark.parametrize(
    ("connection", "gpus", "scale", "trials"),
    [("", 0, "laptop", 36), ("joined Ray", 0, "laptop", 36), ("joined Ray", 4, "paper", 33)],
)
def test_auto_is_paper_on_a_cluster_with_a_gpu(
    dry_run: Any,
    monkeypatch: pytest.MonkeyPatch,
    connection: str,
    gpus: int,
    scale: str,
    trials: int,
) -> None:
    asked: list[dict[str, Any]] = []
    found = Connection(bool(connection), connection or "no Ray cluster is running")
    monkeypatch.setattr(steps, "connect", lambda **given: asked.append(given) or found)
    monkeypatch.setattr(steps, "cluster_gpus", lambda: gpus)
    status, out, _ = dry_run(scale="auto")
    assert status == 0
    assert asked == [{"start_local": False}]
    assert out.startswith(f"Scale {scale}: ")
    assert f"Figure 6: {trials} trials, {trials} to run" in out


def test_a_disk_that_fills_while_the_page_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "figures/figure6.pdf")

    monkeypatch.setattr(sweep, "_main", full)
    assert sweep.main(SWEEP, []) == 2
    assert capsys.readouterr().err == (
        "error: No space left on device: figures/figure6.pdf; nothing measured is lost: make room, "
        "then run the same command with --resume\n"
    )


@pytest.mark.parametrize(
    ("script", "fields", "sentence"),
    [
        ("trajectory", ["--measurement.sensitivity", "false"], "measurement.sensitivity = false"),
        ("trajectory", ["--measurement.dispersion", "false"], "measurement.dispersion = false"),
        ("trajectory", ["--replicas", "3"], "replicas = 3: Figure 1 is of the deterministic"),
        ("stochastic", ["--replicas", "null"], "replicas = null is the deterministic setting"),
        ("stochastic", ["--replicas", "1"], "the stochastic setting needs at least 2"),
        ("stochastic", ["--measurement.dispersion", "false"], "measurement.dispersion = false"),
        ("bound_verification", ["--measurement.hessian_trace", "off"], "hessian_trace = 'off'"),
        ("linear_relu", ["--model.name", "mlp"], "Theorem 3 of model 'linear'"),
        ("linear_relu", ["--measurement.network_theorem", "off"], "Figures 7 and 8 show"),
        ("trajectory", ["--measurement.noise_stds", "1e39"], "at most 1e6"),
        ("double_descent", ["--measurement.dispersion", "false"], "measurement.dispersion = false"),
        ("clipping", ["--training.stop_loss", "0.01"], "training.stop_loss = 0.01 may end runs"),
    ],
)
def test_what_a_figure_cannot_show_is_refused_before_anything_starts(
    script: str, fields: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = importlib.import_module(f"sweeps.{script}").SWEEP
    assert sweep.main(declared, ["--scale", "laptop", "--dry-run", *fields]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "script",
    [
        "lr_batch",
        "trajectory",
        "bound_verification",
        "stochastic",
        "linear_relu",
        "double_descent",
        "clipping",
        "regularizers",
    ],
)
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_every_sweep_is_planned_at_both_scales(
    script: str, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = importlib.import_module(f"sweeps.{script}").SWEEP
    assert sweep.main(declared, ["--scale", scale, "--dry-run"]) == 0
    assert "to run, results in" in capsys.readouterr().out
