"""data.normalization: by the data's own moments, the authors' numbers, or the user's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.space import SearchSpace, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data import dataset as data
from gisgd_ray.data.dataset import load_dataset, normalized
from gisgd_ray.data.stored import RawDataset, load_raw
from gisgd_ray.errors import UserError
from gisgd_ray.runner import cli
from gisgd_ray.training import loop as training
from tests.support import ondisk
from tests.support.runs import config


def digits(normalization: str) -> data.Dataset:
    return load_dataset(DataConfig(normalization=normalization), seed=0)


@pytest.mark.parametrize(
    ("asked", "mean", "std"),
    [
        ("authors", 0.1307, 0.3081),
        ("0.1307/0.3081", 0.1307, 0.3081),
        ("0/1", 0.0, 1.0),
        ("-0.5/2e0", -0.5, 2.0),
    ],
)
def test_digits_by_numbers(asked: str, mean: float, std: float) -> None:
    raw = load_raw("mnist5k", Path("nowhere"))
    found = digits(asked)
    for x, images in ((found.train_x, raw.train_images), (found.test_x, raw.test_images)):
        expected = (torch.from_numpy(images).double() / 255 - mean) / std
        torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)
    assert (found.normalization_mean, found.normalization_std) == ((mean,), (std,))


def test_one_process_keeps_them_apart() -> None:
    auto, other, again = digits("auto"), digits("0/1"), digits("auto")
    assert torch.equal(auto.train_x, again.train_x)
    assert not torch.equal(auto.train_x, other.train_x)
    assert torch.equal(auto.train_y, other.train_y)


def test_the_authors_numbers_for_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(125.3, 123.0, 113.9) and (63.0, 62.1, 66.7) out of 255."""
    written = ondisk.make("cifar10", num_train=50, num_test=10)
    files = ondisk.contents("cifar10", written)
    ondisk.put(tmp_path, files)
    ondisk.trust(monkeypatch, "cifar10", written, files)
    monkeypatch.setenv("GISGD_DATA", str(tmp_path))
    asked = DataConfig(dataset="cifar10", normalization="authors")
    found = load_dataset(asked, seed=0).train_x.double()
    for channel, (mean, std) in enumerate(((125.3, 63.0), (123.0, 62.1), (113.9, 66.7))):
        expected = (torch.from_numpy(written.train_images[:, channel]).double() - mean) / std
        torch.testing.assert_close(found[:, channel], expected, rtol=1e-5, atol=1e-6)


def test_floats_by_numbers_one_for_all_or_each() -> None:
    inputs = np.random.default_rng(0).normal(3.0, 2.0, size=(30, 2, 4, 4))
    labels = np.arange(30) % 3
    raw = RawDataset(
        train_images=inputs,
        train_labels=labels,
        test_images=inputs[:5],
        test_labels=labels[:5],
        num_classes=3,
    )
    each = normalized(raw, moments=((1.0, 2.0), (4.0, 5.0)))
    shift, scale = np.array([[1.0], [2.0]])[..., None], np.array([[4.0], [5.0]])[..., None]
    np.testing.assert_allclose(each.train_x.numpy(), (inputs - shift) / scale, atol=1e-6)
    alike = normalized(raw, moments=((1.0,), (4.0,)))
    np.testing.assert_allclose(alike.test_x.numpy(), (inputs[:5] - 1) / 4, atol=1e-6)
    assert alike.normalization_std == (4.0, 4.0)


def test_the_row_records_what_was_done() -> None:
    state = training.start(config({"data.normalization": "0.25/0.5", "training.max_steps": 1}))
    while state.stopped is None:
        training.advance(state)
    row = training.summary(state)
    assert (row["data/normalization_mean"], row["data/normalization_std"]) == ([0.25], [0.5])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"data.dataset": "svhn", "data.normalization": "authors"},
            "data.normalization = 'authors': the authors' code has no numbers for data.dataset = "
            "'svhn', only for mnist5k, mnist, cifar10; choose 'auto', or numbers",
        ),
        (
            {"data.dataset": "cifar10", "data.normalization": "0:0/1:1"},
            "data.normalization = '0:0/1:1' has 2 channels, and data.dataset = 'cifar10' has 3; "
            "give one mean and std for all, or 3 of each",
        ),
        (
            {"data.dataset": "teacher", "training.loss": "squared", "data.normalization": "0/1"},
            "data.normalization = '0/1' does not apply: data.dataset = 'teacher' is taken as "
            "it is; choose 'auto'",
        ),
        (
            {"data.normalization": "0.1307,0.3081"},
            "data.normalization = '0.1307,0.3081' must be auto, authors, or as many means as stds "
            "above 0, as in 0.1307/0.3081 or 0.49:0.48:0.45/0.25:0.24:0.26",
        ),
    ],
)
def test_what_does_not_fit_is_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(fields)
    assert str(caught.value) == said


def test_on_the_command_line_a_comma_makes_a_grid() -> None:
    argv = ["--data.normalization", "auto,authors,-0.5/0.3081", "--data.dataset", "mnist5k"]
    options = cli.parse(argv, prog="sweep", description="A sweep.")
    trials = cli.apply({"a": SearchSpace()}, options, scale="laptop")["a"].trials()
    assert [t.data.normalization for t in trials] == ["auto", "authors", "-0.5/0.3081"]
    assert [t.data.moments for t in trials] == [
        None,
        ((0.1307,), (0.3081,)),
        ((-0.5,), (0.3081,)),
    ]
    assert len({t.trial_id for t in trials}) == 3
    assert TrialConfig.model_validate(trials[2].model_dump(mode="json")) == trials[2]
