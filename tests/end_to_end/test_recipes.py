"""CONTRIBUTING.md's recipes, followed in a copy of the package; and a step of them left out."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES, DatasetName
from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.records import DatasetRecord
from gisgd_ray.config.scheme import SchemeConfig
from gisgd_ray.config.space import make_space
from gisgd_ray.data.dataset import normalized
from gisgd_ray.data.stored import RawDataset, load_raw
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.networks.models import build_model
from gisgd_ray.runner.plan import make_plan
from gisgd_ray.training.loop import start
from tests.runner.test_plan import options
from tests.support.runs import config, finish

ROOT = Path(__file__).parents[2]

EDITS = {
    "config/catalogue.py": [
        ("DatasetName = Literal[\n", 'DatasetName = Literal[\n    "spots",\n    "rows",\n'),
        (
            "DATASETS = Catalogue(\n    [\n",
            "DATASETS = Catalogue(\n    [\n"
            '        DatasetRecord("spots", "Spots", "mine:read", shape=(2, 8, 8), classes=3,\n'
            "            train=60, test=20),\n"
            '        DatasetRecord("rows", "Rows", "mine:read", shape=(5,), classes=3,\n'
            "            train=60, test=20),\n",
        ),
    ],
    "config/model.py": [
        (
            "ModelConfig = Annotated[\n    MLPConfig\n",
            "class DeepConfig(Frozen):\n"
            '    record: ClassVar = ModelRecord("deep", "deep network", "deep:deep")\n'
            '    name: Literal["deep"] = Field("deep", description="model family")\n'
            '    width: int = Field(8, ge=1, description="hidden units")\n\n\n'
            "ModelConfig = Annotated[\n    MLPConfig\n    | DeepConfig\n",
        )
    ],
    "theory/quantities.py": [
        (
            "_EVALUATED = (\n",
            '_EVALUATED = (\n    Quantity("measure/weight_norm", "‖W‖", "Norm of the weights"),\n',
        )
    ],
    "config/scheme.py": [
        (
            "SchemeConfig = Annotated[\n    SGDConfig\n",
            "class HalfConfig(Frozen):\n"
            '    record: ClassVar = SchemeRecord("half", "Half", "half:build",\n'
            '        gradient="multiple")\n'
            '    name: Literal["half"] = Field("half", description="training scheme")\n'
            '    factor: float = Field(0.5, gt=0, description="of the gradient")\n\n\n'
            "SchemeConfig = Annotated[\n    SGDConfig\n    | HalfConfig\n",
        )
    ],
}
FILES = {
    "data/mine.py": """
import numpy as np

from gisgd_ray.data.stored import RawDataset


def read(name, folder):
    rng = np.random.default_rng(0)
    shape = (2, 8, 8) if name == "spots" else (5,)
    labels = rng.integers(3, size=80)
    inputs = rng.normal(labels.reshape(-1, *[1] * len(shape)), size=(80, *shape))
    inputs = inputs.astype(np.float32)
    return RawDataset(
        train_images=inputs[:60],
        train_labels=labels[:60],
        test_images=inputs[60:],
        test_labels=labels[60:],
        num_classes=3,
    )
""",
    "networks/deep.py": """
import math

from torch import nn


def deep(input_shape, outputs, *, width):
    d = math.prod(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(d, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
""",
    "training/measured/weight_norm.py": """
from gisgd_ray.training.measure import Measure


class WeightNorm(Measure):
    at_every_point = True

    def measure(self, state, point):
        norm2 = sum(p.square().sum().item() for p in state.model.parameters())
        return {"measure/weight_norm": norm2**0.5}
""",
    "schemes/half.py": """
from gisgd_ray.schemes.base import Stateless


class Half(Stateless):
    def __init__(self, *, factor):
        self.factor = factor

    def gradient(self, step):
        factor = step.plain().new_ones(()) * self.factor
        step.scale(factor)
        return factor


def build(config, model, setting):
    return Half(factor=config.factor)
""",
}

RUN = """
import gisgd_ray, sys, torch
from gisgd_ray.runner import cli
from gisgd_ray.training import loop as training
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.networks.models import build_model
from gisgd_ray.runner.plan import make_plan
from gisgd_ray.config.space import make_space
assert gisgd_ray.__file__.startswith(sys.argv[1])
space = make_space({"data.dataset": ["spots", "rows"], "model.name": "deep", "scheme.name": "half",
    "scheme.factor": 0.7, "training.batch_size": 20, "training.max_epochs": 4,
    "training.learning_rate": 0.1, "data.label_noise": 0.1})
plan = make_plan({"one": space}, cli.parse([], prog="x", description=""), "laptop")
for config in plan.trials:
    state = training.start(config)
    while state.stopped is None:
        training.advance(state)
    row = training.summary(state)
    assert row["steps"] == 12, row
    norm = torch.cat([p.flatten() for p in state.model.parameters()]).norm().item()
    assert abs(row["measure/weight_norm"] - norm) < 1e-4, row
    assert all(point["measure/weight_norm"] > 0 for point in state.history)
    print(config.data.dataset, row["train/loss"] < 1.2, row["bound/theorem2_closed_form"] > 0)
"""


def test_a_dataset_a_model_a_scheme_and_a_measure_of_ones_own(tmp_path: Path) -> None:
    package = tmp_path / "gisgd_ray"
    shutil.copytree(ROOT / "gisgd_ray", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in EDITS.items():
        text = (package / name).read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, (name, old)
            text = text.replace(old, new, 1)
        (package / name).write_text(text, encoding="utf-8")
    for name, text in FILES.items():
        assert not (package / name).exists()
        (package / name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["spots True True", "rows True True"]


# ---------------------------------------------------------------- a step that was left out


def sections(union: Any) -> tuple[Any, ...]:
    return get_args(get_args(union)[0])


def test_a_record_for_every_name_and_no_other() -> None:
    assert tuple(DATASETS) == get_args(DatasetName)
    for catalogue, union in ((MODELS, ModelConfig), (SCHEMES, SchemeConfig)):
        assert list(catalogue) == [s.model_fields["name"].default for s in sections(union)]


def test_every_record_names_a_function() -> None:
    for catalogue in (DATASETS, MODELS, SCHEMES):
        assert all(callable(record.function()) for record in catalogue.values())


@pytest.mark.parametrize("name", MODELS)
def test_what_a_models_record_says_of_it_is_so(name: str) -> None:
    known = MODELS[name]
    section = next(s for s in sections(ModelConfig) if s.model_fields["name"].default == name)
    side = known.smallest_image or 1
    with torch.device("meta"):
        model = build_model(section(), (3, side, side), 10, seed=0).eval()
        assert len(model(torch.zeros(2, 3, side, side))) == 2
    mixing = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert bool(mixing) == known.batchnorm


@pytest.mark.parametrize("name", SCHEMES)
def test_what_a_schemes_record_says_of_its_gradient_is_so(name: str) -> None:
    factors = []
    state = start(config({"scheme.name": name}))
    scheme = state.stepper.scheme
    gradient = scheme.gradient
    scheme.gradient = lambda step: factors.append(gradient(step)) or factors[-1]
    finish(state)
    known = [factor is not None for factor in factors]
    assert known == [SCHEMES[name].gradient != "another"] * 12
    assert SCHEMES[name].gradient != "plain" or all(factor == 1 for factor in factors)


@pytest.mark.parametrize(
    ("catalogue", "path", "name"),
    [
        (DATASETS, "data.dataset", "svhn"),
        (MODELS, "model.name", "alexnet"),
        (SCHEMES, "scheme.name", "gmp"),
    ],
)
def test_a_step_that_was_left_out(
    catalogue: Any, path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space({path: name})
    record = catalogue[name]
    file = record.made_by.split(":")[0]
    for made_by, left_out in (("none:build", "build"), (f"{file}:none", "none")):
        monkeypatch.setitem(catalogue, name, replace(record, made_by=made_by))
        said = (
            f"{path} = {name!r} needs a function {left_out} in gisgd_ray/{record.package}/"
            f"{made_by.split(':')[0]}.py, which its record in gisgd_ray/config/"
            f"{record.declared_in} names"
        )
        with pytest.raises(UserError, match=said):
            make_plan({"one": space}, options(), "laptop")
    kept = dict(catalogue)
    try:
        del catalogue[name]
        with pytest.raises(UserError, match=f"{name!r} has no record; CONTRIBUTING.md says"):
            make_plan({"one": space}, options(), "laptop")
    finally:
        catalogue.clear()
        catalogue.update(kept)


# ---------------------------------------------------------------- what a loader may give


def raw(inputs: np.ndarray, labels: np.ndarray | None = None, classes: int = 10) -> RawDataset:
    labels = np.arange(len(inputs)) % 10 if labels is None else labels
    return RawDataset(
        train_images=inputs,
        train_labels=labels,
        test_images=inputs[:5],
        test_labels=labels[:5],
        num_classes=classes,
    )


RNG = np.random.default_rng(0)
VECTORS = RNG.normal(3.0, 2.0, size=(250, 4))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
def test_floats_and_vectors_are_normalised_by_channel(shape: tuple[int, ...], dtype: str) -> None:
    inputs = RNG.normal(3.0, 9.0, size=(250, *shape)).astype(dtype)
    found = normalized(raw(inputs))
    axes = tuple(axis for axis in range(inputs.ndim) if axis != 1)
    exact = inputs.astype(np.float64)
    mean, std = exact.mean(axis=axes, keepdims=True), exact.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(found.train_x.numpy(), (exact - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.normalization_std, std.ravel())
    assert found.input_shape == shape
    assert found.train_x.dtype.is_floating_point
    assert found.train_x.dtype.itemsize == 4


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_what_never_varies_is_not_divided(dtype: str) -> None:
    inputs = np.zeros((20, 2, 3, 3), dtype=dtype)
    inputs[:, 1] = RNG.integers(255, size=(20, 3, 3))
    found = normalized(raw(inputs))
    assert not found.train_x[:, 0].any()
    assert found.normalization_std[0] == 1
    assert found.train_x.isfinite().all()


def test_inputs_that_are_no_numbers_are_refused() -> None:
    inputs = VECTORS.copy()
    inputs[7, 2] = np.nan
    with pytest.raises(DataError, match="the training inputs are not all finite numbers"):
        normalized(raw(inputs))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            raw(VECTORS[:40]),
            "gives 40 training samples, and its record in gisgd_ray/config/catalogue.py has 250; "
            "correct one of them",
        ),
        (raw(VECTORS[:249], np.zeros(250, int)), "249 training inputs, and their labels are 250"),
        (raw(VECTORS[:, :3]), r"\(3,\) as shape of an input, and its record in .* has \(4,\)"),
        (raw(VECTORS, classes=7), "7 classes, and its record in .* has 10"),
        (raw(VECTORS, np.arange(250)), "must be integers from 0 to 9, not int64 from 0 to 249"),
        (raw(VECTORS, np.ones(250)), r"must be integers from 0 to 9, not float64 from 1.0 to 1.0"),
    ],
)
def test_a_reader_that_does_not_give_what_its_record_says(
    given: RawDataset, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = DatasetRecord("mine", "", "mine:read", shape=(4,), classes=10, train=250, test=5)
    monkeypatch.setitem(DATASETS, "mine", mine)
    monkeypatch.setattr(DatasetRecord, "function", lambda _: lambda *_: given)
    with pytest.raises(DataError, match=said):
        load_raw("mine", tmp_path)
