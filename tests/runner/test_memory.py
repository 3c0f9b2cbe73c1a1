"""What does not fit is refused with the figure, before anything starts."""

import pytest

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.runner.resources import (
    count_parameters,
    draws_bytes,
    machine_memory,
    replicas_bytes,
    require_memory,
)
from gisgd_ray.training.loop import start

MLP = 784 * 512 + 512 + 512 * 10 + 10


def trial(**fields: object) -> TrialConfig:
    return TrialConfig.model_validate(fields)


def refused(config: TrialConfig, available: int) -> str:
    with pytest.raises(UserError) as caught:
        require_memory([TrialConfig(), config], available)
    return str(caught.value)


def test_parameters_are_counted_without_weights() -> None:
    assert count_parameters(TrialConfig()) == MLP
    assert count_parameters(trial(model={"name": "alexnet"}, data={"dataset": "cifar10"})) > 2e7
    teacher = {"data": {"dataset": "teacher"}, "training": {"loss": "squared"}}
    assert count_parameters(trial(model={"name": "linear"}, **teacher)) == 200
    assert count_parameters(trial(model={"name": "two_layer_relu"}, **teacher)) == 20_000


def test_the_shapes_are_those_of_the_data() -> None:
    data = start(TrialConfig()).dataset
    known = DATASETS["mnist5k"]
    assert (known.shape, known.classes) == (data.input_shape, data.num_classes)


def test_draws() -> None:
    measured = {"sensitivity": True, "sensitivity_draws": 10**9, "noise_stds": [1e-2, 1e-4]}
    config = trial(measurement=measured)
    assert draws_bytes(config)["sensitivity_draws"] == 10**9 * 2 * 2 * 8
    weights = 2 * 4 * MLP
    assert refused(config, 10**9 + weights) == (
        "measurement.sensitivity_draws = 1000000000 takes 32 GB of memory, and there are 1 GB; "
        "choose fewer, as in the default of 20"
    )
    fits = {**measured, "sensitivity_draws": 10**9 // 32 - 20}
    require_memory([trial(measurement=fits)], 10**9 + weights)
    require_memory([trial(measurement={**measured, "sensitivity": False})], 10**9)
    for field in ("flatness_draws", "hessian_probes"):
        asked = trial(measurement={field: 10**12, "hessian_trace": "pyhessian"})
        assert refused(asked, 10**10).startswith(f"measurement.{field} = 1000000000000 takes ")


def test_replicas() -> None:
    config = trial(replicas=100_000)
    assert replicas_bytes(config, MLP) == 4 * MLP * 100_001
    assert refused(config, 4 * MLP * 21 + 1_000) == (
        "replicas = 100000 takes 163 GB of memory, and there are 34.2 MB; choose at most 20"
    )
    require_memory([trial(replicas=20)], 4 * MLP * 21 + 1_000)


def test_a_network_too_large_by_itself() -> None:
    assert "choose a smaller one" in refused(trial(model={"name": "mlp", "width": 10**9}), 10**10)


def test_this_machine_has_memory_for_the_default() -> None:
    require_memory([TrialConfig()], machine_memory())
