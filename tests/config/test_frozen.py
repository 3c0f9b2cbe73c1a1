"""Fields as a notebook gives them: arrays, tensors, series, ranges; and what is not taken."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from gisgd_ray.config.space import Choice, SearchSpace, Uniform, make_space, validated
from gisgd_ray.config.training import TrainingConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError

RATE, BATCH = "training.learning_rate", "training.batch_size"
STDS, MILESTONES = "measurement.noise_stds", "training.lr_milestones"


@pytest.mark.parametrize(
    ("path", "given", "plain"),
    [
        (RATE, np.logspace(-2, -1, 3), [0.01, 10**-1.5, 0.1]),
        (RATE, np.float32(0.25), 0.25),
        (RATE, np.array(0.25), 0.25),
        ("seed", range(3), [0, 1, 2]),
        ("seed", np.arange(3), [0, 1, 2]),
        (BATCH, torch.tensor([20, 30]), [20, 30]),
        (BATCH, pd.Series([20, 30], index=["a", "b"]), [20, 30]),
        (BATCH, pd.Index([20, 30]), [20, 30]),
        (BATCH, (np.int64(20), np.int32(30)), [20, 30]),
        ("measurement.flatness", np.bool_(False), False),
        ("data.dataset", np.array(["mnist5k", "svhn"]), ["mnist5k", "svhn"]),
        # One value of a field that takes lists, and grids of it.
        (STDS, np.array([1e-3, 1e-2]), [1e-3, 1e-2]),
        (STDS, np.array([[1e-3, 1e-2], [1e-4, 1e-5]]), [[1e-3, 1e-2], [1e-4, 1e-5]]),
        (STDS, [np.array([1e-3]), (np.float64(1e-4),)], [[1e-3], [1e-4]]),
        (MILESTONES, range(1, 3), [1, 2]),
    ],
)
def test_arrays_are_what_their_lists_are(path: str, given: Any, plain: Any) -> None:
    found, expected = make_space({path: given}), make_space({path: plain})
    assert [t.trial_id for t in found.trials()] == [t.trial_id for t in expected.trials()]
    assert found.swept_fields() == expected.swept_fields()
    assert SearchSpace(fields={path: given}).trials() == expected.trials()


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (Choice(values=np.array([20, 30])), Choice(values=(20, 30))),
        ({"kind": "choice", "values": np.array([20, 30])}, Choice(values=(20, 30))),
        (
            {"kind": "uniform", "low": np.int64(20), "high": np.float32(30)},
            Uniform(low=20, high=30),
        ),
    ],
)
def test_arrays_in_distributions(given: Any, plain: Any) -> None:
    found, expected = (make_space({BATCH: each}, samples=5).trials() for each in (given, plain))
    assert [t.trial_id for t in found] == [t.trial_id for t in expected]


def test_a_trial_takes_them_too() -> None:
    training = {"learning_rate": np.float64(0.25), "lr_milestones": np.arange(1, 3)}
    measurement = {"sensitivity": np.bool_(True)}
    plain = TrialConfig(
        seed=3,
        training=TrainingConfig(learning_rate=0.25, lr_milestones=(1, 2)),
        measurement={"sensitivity": True},
    )
    found = TrialConfig(seed=np.int64(3), training=training, measurement=measurement)
    assert (found, found.trial_id) == (plain, plain.trial_id)
    assert type(found.training.learning_rate) is float
    assert TrainingConfig(**training) == plain.training


REFUSED: dict[str, Any] = {
    f"{BATCH} = {{40}} is a set, which has no order; give a list": {40},
    f"{BATCH}: a map is read once only; give list(...) of it": map(int, "4"),
    f"{BATCH}: a generator is read once only; give list(...) of it": (each for each in [40]),
    f"{BATCH}: a dict_keys is read once only; give list(...) of it": {40: 1}.keys(),
    f"{BATCH}.values = {{40}} is a set, which has no order; give a list": {
        "kind": "choice",
        "values": {40},
    },
    f"{BATCH} = [] is an empty grid; give at least one value": np.array([]),
    f"{BATCH} = [40]: input should be a valid integer": np.array([[40]]),
    f"{BATCH} = nan: input should be a finite number": np.array([40, np.nan]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_list_is_refused_in_a_sentence(said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        make_space({BATCH: REFUSED[said]}).trials()


def test_a_trial_refuses_them_too() -> None:
    said = "learning_rate = {0.1} is a set, which has no order; give a list"
    with pytest.raises(ValidationError, match=said):
        TrialConfig(training={"learning_rate": {0.1}})
    with pytest.raises(UserError, match=f"^training: {said}$"):
        validated({RATE: {0.1}})


def test_a_long_range_is_counted_and_not_listed() -> None:
    with pytest.raises(UserError, match=r"these are 1,000,000,000 trials \(seed 1,000,000,000\)"):
        make_space({"seed": range(10**9)}).trials()
