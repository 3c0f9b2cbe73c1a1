"""The teacher's data of Figures 7 and 8."""

import math

import pytest
import torch

from gisgd_ray.config.data import DataConfig
from gisgd_ray.data import dataset as data
from gisgd_ray.data import teacher
from gisgd_ray.data.dataset import Dataset, load_dataset
from gisgd_ray.data.teacher import HIDDEN, INPUTS, teacher_samples
from gisgd_ray.randomness import generator
from tests.support import ondisk


@pytest.fixture(scope="module")
def full() -> Dataset:
    """Seed 0 in full: a second or two."""
    return load_dataset(DataConfig(dataset="teacher"), seed=0)


@pytest.fixture
def few_tests(monkeypatch):
    """Ten test samples, where their number does not matter."""
    ondisk.resize(monkeypatch, "teacher", test=10)
    data._drawn.cache_clear()
    yield
    data._drawn.cache_clear()


def test_sizes_norms_and_targets_are_the_papers(full):
    assert full.train_x.shape == (20_000, 200)
    assert full.test_x.shape == (20_000, 200)
    assert (INPUTS, HIDDEN) == (200, 10_000)
    assert (full.num_classes, full.input_shape, full.num_samples) == (1, (200,), 20_000)
    for x, y in ((full.train_x, full.train_y), (full.test_x, full.test_y)):
        assert torch.allclose(x.norm(dim=1), torch.ones(len(x)), atol=1e-6)
        assert x.dtype == y.dtype == torch.float32
        assert y.shape == (20_000,)
        assert y.abs().max() <= 1
        # tanh of something of variance about 1/2: neither nearly linear nor saturated.
        assert 0.15 < float(y.var()) < 0.35


def test_inputs_are_uniform_on_the_sphere(full):
    """Every coordinate has mean 0 and variance 1/200, and the projections are uncorrelated."""
    x = full.train_x.double()
    assert float(x.mean(dim=0).abs().max()) < 5 / (200 * len(x)) ** 0.5
    moments = 200 * x.T @ x / len(x)
    assert float((moments - torch.eye(200)).abs().max()) < 6 * (2 / len(x)) ** 0.5


@pytest.mark.usefixtures("few_tests")
def test_nothing_is_normalised_further(full):
    inputs, targets, _, _ = teacher_samples(0, num_train=6)
    assert torch.equal(full.train_x[:6], inputs)
    assert torch.allclose(full.train_y[:6], targets, atol=1e-6)
    assert (full.normalization_mean, full.normalization_std) == ((0.0,), (1.0,))


@pytest.mark.usefixtures("few_tests")
@pytest.mark.parametrize("seed", [3, 4])
def test_the_targets_are_the_teachers(seed):
    """By hand, unit after unit; one teacher, whatever the seed."""
    train_x, train_y, test_x, test_y = teacher_samples(seed, num_train=2)
    source = generator(0, "teacher")
    weights = torch.randn(10_000, 200, generator=source).double()
    signs = [1.0 if bit else -1.0 for bit in torch.randint(2, (10_000,), generator=source)]
    for x, y in ((train_x[1], train_y[1]), (test_x[9], test_y[9])):
        total = 0.0
        for weight, sign in zip(weights, signs, strict=True):
            total += sign * max(0.0, float(weight @ x.double()))
        assert float(y) == pytest.approx(math.tanh(total / 100), abs=1e-5)


@pytest.mark.usefixtures("few_tests")
@pytest.mark.parametrize(
    ("size", "larger"),
    # torch.randn draws the end of a size that is no multiple of 16 otherwise.
    [(2, 3), (10, 50), (48, 51), (49, 51), (1, 17)],
)
def test_samples_nest_in_size(size, larger):
    small, large = (teacher_samples(1, num_train=n) for n in (size, larger))
    assert torch.equal(small[0], large[0][:size])
    assert torch.allclose(small[1], large[1][:size], atol=1e-6)
    assert torch.equal(small[2], large[2])
    assert torch.equal(small[3], large[3])


@pytest.mark.usefixtures("few_tests")
def test_samples_differ_between_seeds_and_splits():
    small, other = (teacher_samples(seed, num_train=10) for seed in (1, 2))
    for part in range(4):
        assert not torch.equal(small[part], other[part])
    assert not torch.equal(small[0], small[2])


@pytest.mark.usefixtures("few_tests")
def test_chunks_do_not_show(monkeypatch):
    whole = teacher_samples(1, num_train=20)
    for chunk in (1, 7, 20):
        monkeypatch.setattr(teacher, "_CHUNK", chunk)
        for part, expected in zip(teacher_samples(1, num_train=20), whole, strict=True):
            # Sums of 10,000 terms in float32, which a processor may add up in another order.
            torch.testing.assert_close(part, expected, rtol=0, atol=5e-6)


@pytest.mark.usefixtures("few_tests")
def test_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = teacher_samples(1, num_train=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert all(map(torch.equal, teacher_samples(1, num_train=3), first))


@pytest.mark.usefixtures("few_tests")
def test_a_fraction_of_the_training_sample(full):
    part = load_dataset(DataConfig(dataset="teacher", train_fraction=0.01), seed=0)
    assert (len(part.train_y), len(part.test_y)) == (200, 10)
    assert torch.equal(part.train_x, full.train_x[:200])
    assert torch.equal(part.test_x, full.test_x[:10])


@pytest.mark.usefixtures("few_tests")
def test_trials_of_one_seed_share_the_samples():
    """Replicas and repeated trials need not draw them again; another seed draws others."""
    config = DataConfig(dataset="teacher", train_fraction=0.001)
    first, again, other = (load_dataset(config, seed=seed) for seed in (0, 0, 1))
    assert first.train_x.data_ptr() == again.train_x.data_ptr()
    assert not torch.equal(first.train_x, other.train_x)
    assert not torch.equal(first.test_x, other.test_x)


@pytest.mark.usefixtures("few_tests")
def test_no_folder_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("GISGD_DATA", str(tmp_path / "none"))
    load_dataset(DataConfig(dataset="teacher", train_fraction=0.001), seed=0)
    assert not list(tmp_path.iterdir())
