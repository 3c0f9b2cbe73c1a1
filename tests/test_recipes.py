"""README's recipes for a dataset, a network and a scheme of one's own, followed to the letter in a
copy of the package."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gisgd_ray.config import catalogue
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.scheme import GMPConfig
from gisgd_ray.config.space import make_space, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data import stored as datasets
from gisgd_ray.data.dataset import normalized
from gisgd_ray.data.stored import RawDataset, load_raw
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.networks.models import build_model
from gisgd_ray.runner.plan import make_plan
from gisgd_ray.schemes import builders
from tests.test_plan import options

ROOT = Path(__file__).parents[1]

PATCHES = {
    "config/data.py": [
        ('DatasetName = Literal["mnist5k", ', 'DatasetName = Literal["spots", "rows", "mnist5k", ')
    ],
    "config/catalogue.py": [
        ('    "mnist5k": 4_000,\n', '    "mnist5k": 4_000,\n    "spots": 60,\n    "rows": 60,\n'),
        (
            '    "mnist5k": ((1, 28, 28), 10),\n',
            '    "mnist5k": ((1, 28, 28), 10),\n    "spots": ((2, 8, 8), 3),\n'
            '    "rows": ((5,), 3),\n',
        ),
    ],
    "data/stored.py": [
        (
            "LOADERS: dict",
            "def _read_mine(name, _folder):\n"
            "    rng = np.random.default_rng(0)\n"
            "    shape = (2, 8, 8) if name == 'spots' else (5,)\n"
            "    labels = rng.integers(3, size=80)\n"
            "    inputs = rng.normal(labels.reshape(-1, *[1] * len(shape)), size=(80, *shape))\n"
            "    inputs = inputs.astype(np.float32)\n"
            "    return RawDataset(train_images=inputs[:60], train_labels=labels[:60],\n"
            "        test_images=inputs[60:], test_labels=labels[60:], num_classes=3)\n\n\n"
            "LOADERS: dict",
        ),
        (
            '    "mnist5k": _read_mnist5k,\n',
            '    "mnist5k": _read_mnist5k,\n    "spots": _read_mine,\n    "rows": _read_mine,\n',
        ),
    ],
    "config/model.py": [
        (
            "ModelConfig = Annotated[\n    MLPConfig\n",
            "class DeepConfig(Frozen):\n"
            '    name: Literal["deep"] = Field("deep", description="model family")\n'
            '    width: int = Field(8, ge=1, description="hidden units")\n\n\n'
            "ModelConfig = Annotated[\n    MLPConfig\n    | DeepConfig\n",
        )
    ],
    "networks/models.py": [
        ("    MLPConfig,\n", "    DeepConfig,\n    MLPConfig,\n"),
        (
            "            case AlexNetConfig():\n",
            "            case DeepConfig():\n"
            "                d, w = int(torch.Size(input_shape).numel()), config.width\n"
            "                model = nn.Sequential(nn.Flatten(), nn.Linear(d, w), nn.ReLU(),\n"
            "                    nn.Linear(w, w), nn.ReLU(), nn.Linear(w, num_classes))\n"
            "            case AlexNetConfig():\n",
        ),
    ],
    "config/scheme.py": [
        (
            "SchemeConfig = Annotated[\n    SGDConfig\n",
            "class HalfConfig(Frozen):\n"
            '    name: Literal["half"] = Field("half", description="training scheme")\n'
            '    factor: float = Field(0.5, gt=0, description="of the gradient")\n\n\n'
            "SchemeConfig = Annotated[\n    SGDConfig\n    | HalfConfig\n",
        )
    ],
    "schemes/builders.py": [
        ("    SGDConfig,\n", "    HalfConfig,\n    SGDConfig,\n"),
        (
            "from gisgd_ray.schemes.sgd",
            "from gisgd_ray.schemes.half import Half\nfrom gisgd_ray.schemes.sgd",
        ),
        (
            "    SGDConfig: lambda *_: SGD(),\n",
            "    SGDConfig: lambda *_: SGD(),\n"
            "    HalfConfig: lambda config, *_: Half(factor=config.factor),\n",
        ),
    ],
}

HALF = """
from gisgd_ray.schemes.base import Stateless


class Half(Stateless):
    def __init__(self, *, factor):
        self.factor = factor

    def gradient(self, step):
        return step.plain().new_ones(()) * self.factor
"""

RUN = """
import gisgd_ray, sys
from gisgd_ray.runner import cli
from gisgd_ray.training import loop as training
from gisgd_ray.config.trial import TrialConfig
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
    print(config.data.dataset, row["train/loss"] < 1.2, row["bound/theorem2_closed_form"] > 0)
"""


def test_a_dataset_a_network_and_a_scheme_of_ones_own(tmp_path: Path) -> None:
    package = tmp_path / "gisgd_ray"
    shutil.copytree(ROOT / "gisgd_ray", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in PATCHES.items():
        text = (package / name).read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, (name, old)
            text = text.replace(old, new, 1)
        (package / name).write_text(text, encoding="utf-8")
    (package / "schemes" / "half.py").write_text(HALF)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["spots True True", "rows True True"]


# ---------------------------------------------------------------- a step that was left out


@pytest.mark.parametrize("table", ["TRAIN_SIZES", "INPUTS_AND_OUTPUTS"])
def test_a_dataset_that_a_table_lacks(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(getattr(catalogue, table), "svhn")
    said = f"'svhn' has no entry in {table} of gisgd_ray/config/catalogue.py; add its "
    with pytest.raises(UserError, match=said):
        validated({"data.dataset": "svhn"})


def test_a_dataset_without_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(datasets.LOADERS, "svhn")
    said = "data.dataset = 'svhn' has no entry in LOADERS of gisgd_ray/data/stored.py; add the "
    with pytest.raises(UserError, match=said):
        load_raw("svhn", tmp_path)
    with pytest.raises(UserError, match=said):
        make_plan({"one": make_space({"data.dataset": ["mnist5k", "svhn"]})}, options(), "laptop")


def test_a_scheme_without_a_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(builders.BUILDERS, GMPConfig)
    said = (
        "scheme.name = 'gmp' has no entry in BUILDERS of gisgd_ray/schemes/builders.py; add "
        "GMPConfig and what builds it there"
    )
    with pytest.raises(UserError, match=said):
        make_plan({"one": make_space({"scheme.name": ["sgd", "gmp"]})}, options(), "laptop")


def test_a_network_without_a_case() -> None:
    other = SimpleNamespace(name="mine")
    said = r"model.name = 'mine' has no case in build_model of gisgd_ray/networks/models.py; add"
    with pytest.raises(UserError, match=said):
        build_model(other, (3,), 2, seed=0)  # type: ignore[arg-type]


def test_every_name_has_all_that_the_recipes_ask_for() -> None:
    names = DataConfig.model_fields["dataset"].annotation.__args__  # type: ignore[union-attr]
    assert set(names) == catalogue.TRAIN_SIZES.keys() == catalogue.INPUTS_AND_OUTPUTS.keys()
    assert set(names) == {*datasets.LOADERS, "teacher"}
    schemes_known = TrialConfig.model_fields["scheme"].annotation.__args__  # type: ignore[union-attr]
    assert set(schemes_known) == set(builders.BUILDERS)


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
            "gives 40 training samples, and TRAIN_SIZES in gisgd_ray/config/catalogue.py has 250; "
            "correct one of them",
        ),
        (raw(VECTORS[:249], np.zeros(250, int)), "249 training inputs, and their labels are 250"),
        (raw(VECTORS[:, :3]), r"\(3,\) as shape of an input, and INPUTS_AND_.* has \(4,\)"),
        (raw(VECTORS, classes=7), "7 classes, and INPUTS_AND_OUTPUTS in .* has 10"),
        (raw(VECTORS, np.arange(250)), "must be integers from 0 to 9, not int64 from 0 to 249"),
        (raw(VECTORS, np.ones(250)), r"must be integers from 0 to 9, not float64 from 1.0 to 1.0"),
    ],
)
def test_a_loader_that_does_not_give_what_the_tables_say(
    given: RawDataset, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(catalogue.TRAIN_SIZES, "mine", 250)
    monkeypatch.setitem(catalogue.INPUTS_AND_OUTPUTS, "mine", ((4,), 10))
    monkeypatch.setitem(datasets.LOADERS, "mine", lambda *_: given)
    with pytest.raises(DataError, match=said):
        load_raw("mine", tmp_path)
