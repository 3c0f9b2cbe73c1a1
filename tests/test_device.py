"""What is asked of a device; on a GPU, what of a run can be repeated to the bit."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gisgd_ray.config.space import validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import GPU, STAND_IN, Device, device_of, gpu, started_gpus
from gisgd_ray.errors import UserError
from gisgd_ray.runner.estimate import with_few_draws
from gisgd_ray.training import loop as training
from tests.support import kinds
from tests.support.runs import config, finish, series_bits, untimed

PACKAGE = Path(training.__file__).parents[1]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def test_nothing_else_in_the_package_names_cuda() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "device.py"]
    found = [p.name for p in files if re.search(r"torch\.cuda|\"cuda\"|is_cuda", p.read_text())]
    # A page tells by the rows on what they ran; PyHessian's flag is named where it is not used.
    assert sorted(found) == ["hessian.py", "page_facts.py"]


@pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), "meta"])
def test_a_device_by_its_name(where: torch.device | str) -> None:
    found = device_of(where)
    assert type(found) is Device
    assert found.torch == torch.device(where)
    assert device_of(found) is found


def test_on_the_cpu_nothing_is_set_and_nothing_waited_for() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    device = Device()
    device.set_arithmetic("tf32")
    device.synchronize()
    device.empty_cache()
    assert torch.are_deterministic_algorithms_enabled() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert started_gpus() == []


@no_gpu
@pytest.mark.parametrize("ask", [gpu, lambda: device_of("cuda:0"), lambda: started("cuda")])
def test_a_gpu_that_is_not_there_is_told_in_a_sentence(ask: Any) -> None:
    with pytest.raises(UserError) as caught:
        ask()
    assert re.fullmatch(
        r"PyTorch \S+ can use no GPU on \S+ \([^\n]+\); see that nvidia-smi lists one there, or "
        "run on CPUs with --gpus-per-trial 0",
        str(caught.value),
    )


@no_gpu
def test_the_order_of_cublas_sums_is_set_before_cuda_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with pytest.raises(UserError):
        GPU()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(UserError):
        GPU()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_stand_in_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STAND_IN, "gisgd_ray.device:Device")
    assert type(gpu()) is Device


def test_a_trial_is_tried_out_and_measured_as_at_its_end() -> None:
    trial = config({"training.max_epochs": 50, "measurement.sensitivity": True})
    state = training.start(trial)
    training.try_out(state, 4)
    assert (state.step, state.stopped, len(state.series)) == (4, "broken off", 4)
    tried = training.summary(state)
    whole = finish(training.start(trial.changed({"training.max_steps": 4}))).row
    whole["stop_reason"] = "broken off"
    assert untimed(tried) == untimed(whole)


def test_one_that_ends_before_is_left_at_its_end() -> None:
    state = training.start(config({"training.max_steps": 2}))
    training.try_out(state, 3)
    assert (state.step, state.stopped) == (2, "max_steps")


def test_the_fewest_draws_are_those_that_a_trial_may_have() -> None:
    few = with_few_draws(TrialConfig()).measurement
    assert (few.sensitivity_draws, few.flatness_draws, few.hessian_probes) == (2, 4, 2)
    rest = {"sensitivity_draws", "flatness_draws", "hessian_probes"}
    assert few.model_dump(exclude=rest) == TrialConfig().measurement.model_dump(exclude=rest)


def test_no_configuration_is_changed_past_its_rules() -> None:
    """pydantic's ``model_copy(update=...)`` validates nothing: ``TrialConfig.changed`` does."""
    root = PACKAGE.parent
    files = [p for part in ("gisgd_ray", "sweeps", "tests") for p in (root / part).rglob("*.py")]
    unchecked = re.compile(r"\.model_copy\(|\.model_construct\(|\.copy\(\s*update=")
    found = [path.name for path in files if unchecked.search(path.read_text())]
    assert found == []


# ---------------------------------------------------------------- on a GPU

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def started(device: str) -> training.TrainState:
    return training.start(config(), device=device)


def bits(trial: TrialConfig) -> Any:
    """Everything that a run on the GPU leaves, to the bit."""
    done = finish(training.start(trial, device="cuda"))
    models = [replica.model.state_dict() for replica in done.state.replicas]
    weights = [v.cpu().numpy().tobytes() for model in models for v in model.values()]
    return weights, series_bits(done.series), untimed(done.row)


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"data.dataset": "mnist", "model.width": 512, "measurement.sensitivity": True},
    "alexnet": {"data.dataset": "cifar10"},  # its max-pools overlap
    "vgg16": {"data.dataset": "cifar10"},
    "preactresnet18": {"data.dataset": "cifar10"},
    "linear": {"data.dataset": "teacher", "training.loss": "squared"},
    "two_layer_relu": {"data.dataset": "teacher", "training.loss": "squared"},
}


@pytest.mark.parametrize("network", [pytest.param(name, marks=on_a_gpu) for name in NETWORKS])
def test_a_run_on_a_gpu_repeats_to_the_bit(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds.few_samples(tmp_path, monkeypatch, num_train=600)
    fields = {"training.max_epochs": 2, "training.stop_loss": None, "model.name": network}
    trial = validated({**fields, **NETWORKS[network]})
    assert bits(trial) == bits(trial)


@pytest.mark.parametrize("count", [pytest.param(5, marks=on_a_gpu)])
def test_replicas_on_a_gpu_repeat_to_the_bit(count: int) -> None:
    trial = config({"replicas": count})
    assert bits(trial) == bits(trial)
