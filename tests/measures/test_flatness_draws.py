"""How many draws the flatness gap takes, and how well it knows its own errors.

Mostly on the loss 1/2 (w.x - y)^2, where all is known: a pair's gamma is Delta^T A Delta / 2 with
A = X^T X / n, of mean tau^2 tr(A) / 2 and, for a difference M of two such, variance
tau^4 tr(M^2) / 2.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.flatness import (
    LEAST_DRAWS,
    FlatnessGap,
    FlatnessRun,
    combined,
    flatness_gaps,
    half_widths,
    pairs_due,
)
from gisgd_ray.theory.quantities import at
from tests.measures.test_flatness import SEED, deltas
from tests.support.runs import run

TAU = 0.3


def run_of(train: Tensor, test: Tensor, *stds: float, seed: int = SEED) -> FlatnessRun:
    """The linear network with w = 0 and y = 0, in float64."""
    model = nn.Linear(train.shape[1], 1, bias=False).double()
    nn.init.zeros_(model.weight)
    data = (Samples(x, torch.zeros(len(x), dtype=x.dtype), "squared") for x in (train, test))
    return FlatnessRun(model, *data, WeightNoise(stds, seed))


def gap(
    train: Tensor, test: Tensor, *, draws: int = 32, target: float = 0.1, seed: int = SEED
) -> FlatnessGap:
    """Of a single run at one std."""
    run = run_of(train, test, TAU, seed=seed)
    [(found,)] = flatness_gaps([run], draws=[draws], target=target)
    return found


def whitened(x: Tensor) -> Tensor:
    """Samples whose X^T X / n is the identity."""
    return math.sqrt(len(x)) * torch.linalg.qr(x).Q


def scatter(relative: float) -> tuple[Tensor, Tensor]:
    """S and S' whose difference of gammas has this relative standard deviation by pair.

    M = 0.2 I + c diag(1, -1, ...) has a mean of tau^2 d / 10 and tr(M^2) = d (0.04 + c^2).
    """
    d = 40
    generator = torch.Generator().manual_seed(3)
    train, test = (whitened(torch.randn(60, d, generator=generator).double()) for _ in range(2))
    c = math.sqrt((relative * 0.2) ** 2 * d / 2 - 0.04)
    signs = torch.tensor([1.0, -1.0]).repeat(d // 2).double()
    return train * (5.2 + c * signs).sqrt(), test * math.sqrt(5)


DRAWS = {"measurement.flatness_draws": MeasurementConfig().flatness_draws}
"""As by default, and not as few as other tests take."""


class TestClosedForm:
    def test_mean_and_error_over_draws(self):
        train, test = scatter(0.5)
        found = gap(train, test, draws=2000, target=0.0)
        assert found.signed == pytest.approx(TAU**2 * 4, abs=4 * found.standard_error)
        m = train.T @ train / 60 - test.T @ test / 60
        exact = math.sqrt(TAU**4 * float((m @ m).trace()) / 2 / 1000)
        assert exact == pytest.approx(0.5 * TAU**2 * 4 / math.sqrt(1000))  # as it was made
        assert found.standard_error == pytest.approx(exact, rel=0.1)

    def test_samples_and_range_by_loops(self):
        torch.manual_seed(4)
        train, test = torch.randn(9, 5).double(), 2 * torch.randn(6, 5).double()
        found = gap(train, test, draws=8)
        moved = deltas(nn.Linear(5, 1, bias=False), TAU, pairs=4)
        loss = [[[float(d @ x) ** 2 / 2 for x in s] for d in moved] for s in (train, test)]
        by_sample = [np.mean(each, axis=0) for each in loss]
        assert found.train_samples == pytest.approx(by_sample[0], rel=1e-9)
        assert found.test_samples == pytest.approx(by_sample[1], rel=1e-9)
        met = [value for sample in loss for draw in sample for value in draw]
        assert found.loss_range == pytest.approx((min(met), max(met)), rel=1e-9)
        estimate = combined([found])
        variances = [each.var(ddof=1) / len(each) for each in by_sample]
        assert estimate.sampling_error == pytest.approx(math.sqrt(sum(variances)))
        assert estimate.test_increase == pytest.approx(by_sample[1].mean())
        between = np.var([np.mean(draw) for draw in loss[1]], ddof=1) / 4
        assert estimate.test_increase_error == pytest.approx(math.sqrt(between + variances[1]))
        assert estimate.subgaussian_constant == pytest.approx((max(met) - min(met)) / 2)


class TestWhenToStop:
    @pytest.mark.parametrize(
        ("relative", "most", "draws"),
        [(0.25, 256, 16), (0.45, 256, 64), (0.8, 256, 128), (0.8, 60, 60), (3.0, 64, 64)],
    )
    def test_at_the_target_or_the_budget(self, relative, most, draws):
        """Twice as many until the error is a tenth; of pairs that scatter by 0.8, 64 are needed."""
        found = gap(*scatter(relative), draws=most)
        assert found.draws == draws
        if draws < most:
            assert found.standard_error <= 0.1 * found.value
        before = gap(*scatter(relative), draws=draws // 2 if draws > 16 else 16, target=0.0)
        # The draws of the shorter run are the first of the longer one.
        assert found.train[: len(before.train)].tolist() == before.train.tolist()
        assert draws == 16 or before.standard_error > 0.1 * before.value

    def test_each_std_has_a_budget_of_its_own(self):
        run = run_of(*scatter(3.0), TAU, 2 * TAU, 3 * TAU)
        found = flatness_gaps([run], draws=[16, 40, 4], target=0.1)
        assert [each.draws for (each,) in found] == [16, 40, 4]

    @pytest.mark.parametrize("draws", [4, 6, 14])
    def test_fewer_than_the_least_are_all_taken(self, draws):
        assert gap(*scatter(0.25), draws=draws, target=1.0).draws == draws

    def test_without_a_target_all_are_taken(self):
        assert gap(*scatter(0.25), target=0.0).draws == 32

    def test_no_noise_needs_no_further_draws(self):
        run = run_of(*scatter(0.5), 0.0, 1e200, TAU, seed=0)
        found = flatness_gaps([run], draws=[64] * 3, target=0.1)
        assert [each.draws for (each,) in found] == [16, 16, 64]


def coverage(
    relative: float, *, most: int, repetitions: int, runs: int = 1, between: float = 0.0
) -> float:
    """How often the 95 % interval by the draws holds the mean of normal pairs that scatter so.

    Of several runs, whose own means scatter by ``between``, ``most`` pairs all together.
    """
    generator = np.random.default_rng(0)
    first, most = math.ceil(LEAST_DRAWS / 2 / runs), most // runs
    hits = 0
    for _ in range(repetitions):
        of_run = 1 + between * generator.standard_normal((runs, 1))
        pairs = of_run + relative * generator.standard_normal((runs, most))
        due, count = min(first, most), 0
        while due > count:
            count = due
            means = pairs[0, :count] if runs == 1 else pairs[:, :count].mean(axis=1)
            due = pairs_due(means, count, target=0.1, most=most)
        error = means.std(ddof=1) / math.sqrt(len(means))
        width, _ = half_widths(error, 0.0, independent=len(means))
        hits += abs(means.mean() - 1) <= width
    return hits / repetitions


class TestSeveralRuns:
    """What ends the draws is the error of the runs' mean, which the row reports."""

    @pytest.mark.parametrize("runs", [2, 3, 5, 20])
    @pytest.mark.parametrize("relative", [0.25, 0.6, 3.0])
    def test_at_the_target_or_the_budget(self, runs, relative):
        samples = scatter(relative)
        for seed in range(4):
            each = [run_of(*samples, TAU, 0.0, seed=100 * seed + i) for i in range(runs)]
            found, still = flatness_gaps(each, draws=[200, 200], target=0.1)
            estimate = combined(found)
            pairs, least, most = len(found[0].train), max(2, math.ceil(8 / runs)), 100 // runs
            assert all(len(gap.train) == pairs for gap in found)
            looks = [min(least * 2**k, most) for k in range(8)]
            assert pairs in looks
            assert estimate.draws == 2 * pairs * runs <= 200
            assert pairs == most or estimate.standard_error <= 0.1 * abs(estimate.signed)
            if pairs > least:  # at the look before it was not known
                before = [run_of(*samples, TAU, 0.0, seed=100 * seed + i) for i in range(runs)]
                for one in before:
                    one.draw([looks[looks.index(pairs) - 1], 1])
                fewer = combined([one.gaps()[0] for one in before])
                assert fewer.standard_error > 0.1 * abs(fewer.signed)
            # No noise: 0 by all draws, and no further ones.
            assert combined(still).draws == 2 * least * runs

    def test_drawn_in_rounds_or_at_once(self):
        once, rounds = (run_of(*scatter(0.6), TAU, 0.0, seed=7) for _ in range(2))
        once.draw([12, 12])
        for due in ([3, 2], [6, 12], [12, 12], [12, 12]):
            rounds.draw(due)
        for a, b in zip(once.gaps(), rounds.gaps(), strict=True):
            assert repr(vars(a)) == repr(vars(b))
            assert a.train.tolist() == b.train.tolist()
            assert a.train_samples.tolist() == b.train_samples.tolist()

    @pytest.mark.parametrize(
        ("replicas", "draws"), [(2, {16, 32}), (3, {18, 30}), (5, {20, 30}), (8, {32}), (9, {36})]
    )
    def test_of_a_trial(self, replicas, draws):
        """32 at most by default, and two pairs of each replica at least."""
        changes = {"replicas": replicas, "measurement.smoothness": False, **DRAWS}
        changes |= {"measurement.noise_stds": [0.3, 0.01], "training.max_steps": 6}
        row = run(changes).row
        for std in (0.3, 0.01):
            found = row[at("measure/flatness_draws", std)]
            assert found in draws
            error = row[at("measure/flatness_gap_stderr", std)]
            known = error <= 0.1 * row[at("measure/flatness_gap", std)]
            assert known or found == max(draws)


class TestCoverage:
    """By simulation: how often the 95 % interval holds the right value."""

    @pytest.mark.parametrize("relative", [0.25, 0.35, 0.45, 2.0])
    @pytest.mark.parametrize("most", [16, 128])
    def test_of_the_draws(self, relative, most):
        """That they end where they look sure costs a little, at a scatter where some runs do."""
        found = coverage(relative, most=most, repetitions=4000)
        assert 0.925 < found < 0.962  # the error of the simulation is 0.0035

    @pytest.mark.parametrize("runs", [2, 3, 5])
    @pytest.mark.parametrize(("relative", "between"), [(0.3, 0.0), (0.8, 0.0), (0.3, 0.3)])
    def test_over_runs(self, runs, relative, between):
        """A little more, as two or three means agree by chance more often than 8 pairs do."""
        found = coverage(relative, most=16, runs=runs, between=between, repetitions=3000)
        assert 0.91 < found < 0.962

    def test_of_draws_and_samples_together(self):
        """S and S' drawn anew: the right value is that of the distributions they are from."""
        generator = torch.Generator().manual_seed(6)
        right = TAU**2 / 2 * (1 - 1.3**2) * 20
        hits = by_draws = 0
        for seed in range(250):
            train, test = (torch.randn(40, 20, generator=generator).double() for _ in range(2))
            estimate = combined([gap(train, 1.3 * test, seed=seed)])
            widths = half_widths(
                estimate.standard_error,
                estimate.sampling_error,
                independent=estimate.draws // 2,
            )
            hits += abs(estimate.signed - right) <= math.hypot(*widths)
            by_draws += abs(estimate.signed - right) <= widths[0]
        assert hits / 250 > 0.93
        assert by_draws / 250 < 0.9  # the draws alone do not tell it


class TestWhatSixDrawsGot:
    """200 digits, 20 epochs: the gap at sigma = 0.03 from the first 6 draws, and from 400.

    Seed 7 gave 0.57 +- 0.05 where 400 draws give 0.32 +- 0.03, seed 8 gave 0.13 +- 0.05 for 0.36.
    """

    @pytest.mark.parametrize(("seed", "told"), [(7, 0.572), (8, 0.131)])
    def test_is_within_its_error_now(self, seed, told):
        changes = {"seed": seed, "training.max_epochs": 20, "measurement.noise_stds": [0.03]}
        finished = run(changes | {"measurement.smoothness": False, **DRAWS})
        row = finished.row

        def drawn(draws: int) -> FlatnessGap:
            noise = WeightNoise([0.03 * finished.state.step**0.5], seed)
            (replica,) = finished.state.replicas
            one = FlatnessRun(replica.model, *replica.samples("cross_entropy"), noise)
            [(found,)] = flatness_gaps([one], draws=[draws], target=0.0)
            return found

        six, many = drawn(6), drawn(400)
        assert six.value == pytest.approx(told, abs=1e-3)
        assert abs(six.value - many.value) > 3 * math.hypot(six.standard_error, many.standard_error)
        now, error = (
            row[at("measure/flatness_gap", 0.03)],
            row[at("measure/flatness_gap_stderr", 0.03)],
        )
        assert row[at("measure/flatness_draws", 0.03)] == 32
        assert row[at("measure/flatness_gap_signed", 0.03)] == -now
        assert abs(now - many.value) < math.hypot(error, many.standard_error)
        assert abs(now - many.value) < 0.3 * abs(six.value - many.value)
