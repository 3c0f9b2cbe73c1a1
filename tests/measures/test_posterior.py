"""Theorem 1's conditional dispersion over replicas, against sums over whole vectors in float64."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures import posterior
from gisgd_ray.measures.posterior import (
    Posteriors,
    conditional_dispersions,
    gram,
    posteriors,
    projected_normals,
)
from gisgd_ray.networks.losses import LossName
from gisgd_ray.randomness import generator
from gisgd_ray.training.lockstep import Lockstep
from tests.support import reference
from tests.support.networks import small_conv, small_mlp
from tests.support.reference_lockstep import conditional_dispersion
from tests.training.test_lockstep import batches, replicas, vector

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

STEP = 4
"""Updates so far: tau = 2 sigma."""


def directions(weights: Tensor, *, seed: int, step: int) -> Tensor:
    """u_1 .. u_R, (R, d), standard normal, whose parts along the weights' differences are those
    of the package's draws."""
    rows, d = weights.shape
    random = generator(seed, "auxiliary noise", step)
    drawn = torch.randn(rows, rows, generator=random, dtype=torch.float64)
    apart = weights - weights[0]
    values, vectors = torch.linalg.eigh(apart @ apart.T)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    # A direction u has the products apart @ u = root @ drawn with the differences.
    torch.manual_seed(0)
    other = torch.randn(d, rows, dtype=torch.float64)
    inverse = torch.linalg.pinv(apart, rtol=1e-12)
    return (other + inverse @ (root @ drawn.T - apart @ other)).T


def by_brute_force(
    models: list[nn.Module],
    x: Tensor,
    y: Tensor,
    stds: list[float],
    *,
    seed: int,
    step: int,
    num_samples: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """D_t (S, R) and the posteriors (S, R, R) of the step, by explicit w~."""
    weights = torch.stack([reference.weights(model) for model in models])
    gradients = [
        torch.stack(list(reference.gradients(model, xs, ys, "cross_entropy")))
        for model, xs, ys in zip(models, x, y, strict=True)
    ]
    drawn = directions(weights, seed=seed, step=step)
    found = [
        [
            conditional_dispersion(
                weights, r, drawn[r], std * step**0.5, gradients, num_samples=num_samples
            )
            for r in range(len(models))
        ]
        for std in stds
    ]
    return (
        np.array([[value for value, _ in row] for row in found]),
        np.array([[p for _, p in row] for row in found]),
    )


def nearby(count: int, *, build: Any = small_mlp) -> list[nn.Module]:
    """Replicas at unequal distances: two of them nearest."""
    models = replicas(build, count)
    with torch.no_grad():
        for r, model in enumerate(models[1:], start=1):
            for weight, first in zip(model.parameters(), models[0].parameters(), strict=True):
                weight.copy_(first + 0.1 * r * weight)
    return models


def noisy(
    models: list[nn.Module],
    stds: list[float],
    *,
    seed: int = 0,
    loss: LossName = "cross_entropy",
    **options: Any,
) -> Lockstep:
    """That measures Theorem 1's dispersion at these stds."""
    posteriors = Posteriors(stds, seed=seed)
    return Lockstep(models, loss=loss, dispersion=True, posteriors=posteriors, **options)


def at_stds(
    models: list[nn.Module], x: Tensor, y: Tensor, stds: list[float], **options: Any
) -> np.ndarray:
    """D_t (S, R) of one step."""
    step = options.pop("step", STEP)
    lockstep = Lockstep(
        models,
        loss="cross_entropy",
        dispersion=True,
        posteriors=Posteriors(stds, seed=7),
        **options,
    )
    lockstep.step(x, y, learning_rate=0.1, step=step)
    found = lockstep.drain().conditional_dispersions
    assert found is not None
    assert found.shape == (1, len(stds), len(models))
    return found[0]


class TestAgainstWholeVectors:
    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    @pytest.mark.parametrize("group", [None, 1, 2])
    def test_posterior_on_one_replica_on_several_and_on_all(self, build, group):
        models = nearby(5, build=build)
        ((x, y),) = batches(5, (6,), (1, 3, 3) if build is small_mlp else (1, 8, 8))
        weights = torch.stack([reference.weights(model) for model in models])
        nearest = float(torch.pdist(weights).min())
        stds = [nearest / 100, nearest / 4, nearest, 1e4 * nearest]
        truth, shares = by_brute_force(models, x, y, stds, seed=7, step=STEP)
        assert shares[0].max(axis=1) == pytest.approx(1, abs=1e-12)
        assert (shares[0].argmax(axis=1) == np.arange(5)).all()
        # The most likely replica has neither all nor a fifth.
        assert ((shares[2].max(axis=1) > 0.3) & (shares[2].max(axis=1) < 0.99)).any()
        assert shares[3] == pytest.approx(0.2, abs=1e-3)
        found = at_stds(models, x, y, stds, group=group)
        np.testing.assert_allclose(found, truth, rtol=2e-5)
        # The four are not one number, or the comparison would not tell.
        assert (np.abs(np.diff(found.mean(axis=1))) > 1e-3 * found.mean()).all()

    def test_on_one_replica_it_is_the_dispersion_of_its_batch(self):
        models = nearby(4)
        ((x, y),) = batches(4, (6,), (1, 3, 3))
        each = [
            reference.batch_moments(m, *b, "cross_entropy")
            for m, *b in zip(models, x, y, strict=True)
        ]
        (found,) = at_stds(models, x, y, [1e-6])
        expected = [moments.gradient_dispersion for moments in each]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_on_all_alike_it_is_between_the_two_dispersions(self):
        """((R-1) V_t + V~_t) / R, whatever the draw."""
        models = nearby(4)
        ((x, y),) = batches(4, (6,), (1, 3, 3))
        lockstep = Lockstep(
            models,
            loss="cross_entropy",
            dispersion=True,
            posteriors=Posteriors([1e9], seed=0),
            num_samples=10,
        )
        lockstep.step(x, y, learning_rate=0.1, step=STEP)
        series = lockstep.drain()
        v, neu = series.gradient_dispersion[0], series.gradient_dispersion_neu[0]
        assert series.conditional_dispersions is not None
        np.testing.assert_allclose(series.conditional_dispersions[0, 0], (3 * v + neu) / 4)

    def test_before_any_noise_only_equal_weights_are_taken_for_each_other(self):
        """At t = 1 there is no Delta: two copies share their posterior, and a near one has none."""
        models = nearby(4)
        models[2].load_state_dict(models[1].state_dict())
        with torch.no_grad():
            models[3].load_state_dict(models[1].state_dict())
            models[3][1].weight[0, 0] += 1e-6
        ((x, y),) = batches(4, (6,), (1, 3, 3))
        gradients = [
            torch.stack(list(reference.gradients(m, *b, "cross_entropy")))
            for m, *b in zip(models, x, y, strict=True)
        ]
        means = [rows.mean(dim=0) for rows in gradients]
        own = [float(((g - g.mean(dim=0)) ** 2).sum()) / 5 / 6 for g in gradients]
        shared = float(((means[1] - means[2]) ** 2).sum()) / 4 + (own[1] + own[2]) / 4
        found = at_stds(models, x, y, [1e-9, 1e6], step=0)
        for row in found:
            np.testing.assert_allclose(row, [own[0], shared, shared, own[3]], rtol=1e-5)


class TestUnbiased:
    @pytest.mark.parametrize("replaced", [True, False])
    def test_over_all_batches(self, replaced):
        """Given the posterior, the mean over all batches is the dispersion about the mean given w~
        of a batch drawn with replacement, and V of Eq. 1 that about the mean over all.

        Three replicas, batches of two out of four samples drawn with or without replacement.
        """
        random = np.random.default_rng(0)
        samples = random.normal(size=(3, 4, 6)) + 3 * random.normal(size=(3, 1, 6))
        shares = np.array([[1, 0, 0], [0.7, 0.25, 0.05], [1 / 3] * 3])
        pairs = list(itertools.product(range(4), repeat=2))
        if not replaced:
            pairs = list(itertools.permutations(range(4), 2))
        share = 0 if replaced else 2 / 4
        total = np.zeros(3)
        for chosen in itertools.product(pairs, repeat=3):
            picked = np.stack([samples[q][list(pair)] for q, pair in enumerate(chosen)])
            means = picked.mean(axis=1)
            total += conditional_dispersions(
                shares,
                gradient_gram=(means - means[0]) @ (means - means[0]).T,
                batch_dispersions=picked.var(axis=1, ddof=1).sum(axis=-1) / 2,
                share=share,
            )
        truths = samples.mean(axis=1)
        within = samples.var(axis=1, ddof=0 if replaced else 1).sum(axis=-1) / 2
        centres = shares @ truths
        expected = [
            sum(
                p * (np.sum((g - centre) ** 2) + v)
                for p, g, v in zip(row, truths, within, strict=True)
            )
            for row, centre in zip(shares, centres, strict=True)
        ]
        np.testing.assert_allclose(total / len(pairs) ** 3, expected, rtol=1e-12)

    def test_draws_have_the_covariance_of_the_weights(self):
        random = np.random.default_rng(1)
        apart = random.normal(size=(5, 40))
        apart -= apart[0]
        root = projected_normals(apart @ apart.T, np.eye(5))
        np.testing.assert_allclose(root.T @ root, apart @ apart.T, atol=1e-12)

    @pytest.mark.parametrize("std", [0.5, 2.0])
    def test_posteriors_are_calibrated(self, std):
        """Over draws of a replica and its noise, the posteriors average to the prior, 1/R each."""
        random = np.random.default_rng(2)
        apart = np.cumsum(random.normal(size=(4, 3)), axis=0)
        products = (apart - apart[0]) @ (apart - apart[0]).T
        found = np.concatenate(
            [
                posteriors(
                    products,
                    projected_normals(products, random.normal(size=(4, 4))),
                    stds=[std],
                    alike=np.eye(4),
                )[0]
                for _ in range(5000)
            ]
        )
        assert found.var() > 0.01  # neither on one nor on all
        error = found.std(axis=0) / math.sqrt(len(found) / 4)
        assert (np.abs(found.mean(axis=0) - 0.25) < 4 * error).all()


class TestNumbers:
    def test_noise_far_smaller_and_larger_than_any_distance(self):
        models = nearby(3)
        ((x, y),) = batches(3, (6,), (1, 3, 3))
        with np.errstate(all="raise", under="ignore"):
            found = at_stds(models, x, y, [1e300, 1e-300, 1e-12, 1e-6])
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found[1], found[2])

    def test_near_replicas_are_told_apart(self):
        """A Gram matrix of the weights themselves would hold their distances to 1e-4 at best."""
        models = replicas(small_mlp, 4)
        start = vector(models[0]).clone()
        with torch.no_grad():
            for model in models:
                for weight, first in zip(model.parameters(), models[0].parameters(), strict=True):
                    weight.copy_(first + 1e-5 * torch.randn_like(weight))
        ((x, y),) = batches(4, (6,), (1, 3, 3))
        apart = float(torch.pdist(torch.stack([vector(m).double() for m in models])).min())
        assert apart < 1e-4 * float(start.norm())
        stds = [apart / 4, apart]
        truth, shares = by_brute_force(models, x, y, stds, seed=7, step=STEP)
        assert 0.3 < shares[1].max(axis=1).mean() < 0.99
        np.testing.assert_allclose(at_stds(models, x, y, stds), truth, rtol=1e-4)

    def test_weights_that_are_not_finite_have_none(self):
        models = nearby(3)
        with torch.no_grad():
            next(models[1].parameters()).fill_(math.nan)
        ((x, y),) = batches(3, (6,), (1, 3, 3))
        assert np.isnan(at_stds(models, x, y, [1e-6, 1.0])).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gram_in_blocks_of_either_precision(self, dtype):
        """And the weights stay as they are."""
        torch.manual_seed(3)
        stacks = {"a": torch.randn(4, 70, 300, dtype=dtype), "b": torch.randn(4, 5, dtype=dtype)}
        before = {name: stack.clone() for name, stack in stacks.items()}
        flat = torch.cat([stack.flatten(1) for stack in stacks.values()], dim=1).double()
        expected = (flat - flat[0]) @ (flat - flat[0]).T
        torch.testing.assert_close(gram(stacks), expected, rtol=1e-12, atol=1e-9)
        assert 2 * posterior._BLOCK < 70 * 300
        for name, stack in stacks.items():
            assert torch.equal(stack, before[name])


class TestShortCut:
    def test_of_replicas_that_are_surely_apart_no_gradient_is_kept(self, monkeypatch):
        """And of the weights one Gram matrix until they may have met."""
        seen: list[int] = []
        whole = posterior.gram
        monkeypatch.setattr(posterior, "gram", lambda stacks: seen.append(1) or whole(stacks))
        steps = batches(3, (6,) * 10, (1, 3, 3))
        lockstep = Lockstep(
            replicas(small_mlp, 3),
            loss="cross_entropy",
            dispersion=True,
            posteriors=Posteriors([1e-6], seed=0),
        )
        for step, (x, y) in enumerate(steps):
            lockstep.step(x, y, learning_rate=1e-3, step=step)
        assert len(seen) == 1
        found = lockstep.drain()
        assert found.conditional_dispersions is not None
        mean = found.conditional_dispersions.mean(axis=(1, 2))
        np.testing.assert_allclose(mean, found.gradient_dispersion_neu, rtol=1e-9)

    @pytest.mark.parametrize("std", [0.002, 0.02, 0.2])
    def test_it_changes_no_number(self, std, monkeypatch):
        """Distances of 1 to 2, updates of 0.1: now open, now not."""

        def measured() -> np.ndarray:
            lockstep = Lockstep(
                nearby(4),
                loss="cross_entropy",
                dispersion=True,
                posteriors=Posteriors([std, std / 10], seed=0),
            )
            for step, (x, y) in enumerate(batches(4, (6,) * 12, (1, 3, 3))):
                lockstep.step(x, y, learning_rate=0.05, step=step)
            found = lockstep.drain().conditional_dispersions
            assert found is not None
            return found

        short = measured()
        monkeypatch.setattr(posterior, "SURELY_APART", math.inf)
        np.testing.assert_allclose(short, measured(), rtol=1e-12)

    def test_replicas_that_run_into_each_other_are_noticed(self, monkeypatch):
        """Lines fitted to the same points, 20 apart and nearer by a tenth at every step: surely
        apart at first, then within the noise."""
        torch.manual_seed(0)
        centred = torch.cat([torch.ones(6, 1), torch.randn(6, 3)], dim=1)
        x, y = 6**0.5 * torch.linalg.qr(centred).Q[None, :, 1:], torch.randn(1, 6)

        def measured() -> np.ndarray:
            models: list[nn.Module] = []
            for r in range(4):
                models.append(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)))
                with torch.no_grad():
                    for parameter in models[-1].parameters():
                        parameter.fill_(10.0 * r)
            lockstep = Lockstep(
                models, loss="squared", dispersion=True, posteriors=Posteriors([0.05], seed=0)
            )
            for step in range(60):
                lockstep.step(x.expand(4, -1, -1), y.expand(4, -1), learning_rate=0.1, step=step)
            found = lockstep.drain().conditional_dispersions
            assert found is not None
            return found[:, 0]

        short = measured()
        with monkeypatch.context() as patched:
            patched.setattr(posterior, "SURELY_APART", 0.0)
            own = measured()
        np.testing.assert_array_equal(short[:10], own[:10])
        assert (short[-1] < 0.5 * own[-1]).all()  # where all are alike, a fourth of it
        monkeypatch.setattr(posterior, "SURELY_APART", math.inf)
        np.testing.assert_allclose(short, measured(), rtol=1e-9)
