"""Dynamic gradient clipping: traces by hand, the gradient it applies, whole runs by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import pytest
import torch

from gisgd_ray.config.scheme import ClippingConfig
from gisgd_ray.data.dataset import epoch_batches
from gisgd_ray.schemes.base import Batch, Setting, Step
from gisgd_ray.schemes.clipping import Clipping
from gisgd_ray.training import loop as training
from tests.support import reference
from tests.support.networks import case, small_batchnorm, small_mlp
from tests.support.runs import Finished, config, finish, optimizer_bits, series_bits, weight_bits

Variant = Literal["running_minimum", "lag"]
NORMS = (5.0, 3.0, 4.0, 2.0, 6.0, 2.5, 1.0, 8.0, 1.0, 0.5)


def clipping(start_step: int | None = 0, **options: Any) -> Clipping:
    """A start that is found by itself is looked for after epochs of 3 steps; a given one counts."""
    place = Setting(0, torch.device("cpu"), 3 if start_step is None else 1, planned_steps=15)
    return Clipping(ClippingConfig(start_epoch=start_step, **options), place)


def factors(norms: Sequence[float], **options: Any) -> list[float]:
    """What the gradients of these norms are multiplied by, one step after the other."""
    scheme = clipping(**options)
    return [float(scheme.scale(torch.tensor(norm))) for norm in norms]


class TestTracesByHand:
    """For norms above 1 (t = 1 .. 10): 5, 3, 4, 2, 6, 2.5, 1, 8, 1, 0.5."""

    @pytest.mark.parametrize(
        ("alpha", "expected"),
        [
            # T_c = 2. t = 3: 4 < inf, G = 4. t = 4: 2 < 4, G = 2. t = 5: 6 > 2, so 0.1 * 2 / 6.
            # t = 6: 2.5 > 2, so 0.1 * 2 / 2.5. t = 7: G = 1. t = 8: 8 > 1, so 0.1 / 8.
            # t = 9: 1 is not above 1. t = 10: G = 0.5.
            (0.1, [1, 1, 1, 1, 1 / 30, 0.08, 1, 0.0125, 1, 1]),
            (1.0, [1, 1, 1, 1, 1 / 3, 0.8, 1, 0.125, 1, 1]),
        ],
    )
    def test_running_minimum_from_an_infinite_threshold(self, alpha, expected):
        assert factors(NORMS, factor=alpha, start_step=2) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("alpha", "expected"),
        [
            # G = 2.5 throughout the two steps before the start, whatever their norms.
            # t = 3: 4 > 2.5, so 0.1 * 2.5 / 4. t = 4: G = 2. From there on as above.
            (0.1, [1, 1, 0.0625, 1, 1 / 30, 0.08, 1, 0.0125, 1, 1]),
            (1.0, [1, 1, 0.625, 1, 1 / 3, 0.8, 1, 0.125, 1, 1]),
        ],
    )
    def test_running_minimum_from_a_given_threshold(self, alpha, expected):
        found = factors(NORMS, factor=alpha, start_step=2, initial_threshold=2.5)
        assert found == pytest.approx(expected)

    def test_the_thresholds_of_the_running_minimum(self):
        scheme, seen = clipping(start_step=2, initial_threshold=2.5), []
        for norm in NORMS:
            scheme.scale(torch.tensor(norm))
            seen.append(float(scheme.state_dict()["threshold"]))
        assert seen == [2.5, 2.5, 2.5, 2, 2, 2, 1, 1, 1, 0.5]

    @pytest.mark.parametrize(
        ("alpha", "expected"),
        [
            # K = 2. t = 1, 2: nothing two steps earlier. t = 3: 4 < 5. t = 4: 2 < 3.
            # t = 5: 6 > 4, so 0.1 * 4 / 6. t = 6: 2.5 > 2, so 0.1 * 2 / 2.5. t = 7: 1 < 6.
            # t = 8: 8 > 2.5, so 0.1 * 2.5 / 8. t = 9: 1 is not above 1. t = 10: 0.5 < 8, the norm
            # of step 8 before it was clipped.
            (0.1, [1, 1, 1, 1, 1 / 15, 0.08, 1, 0.03125, 1, 1]),
            (1.0, [1, 1, 1, 1, 2 / 3, 0.8, 1, 0.3125, 1, 1]),
        ],
    )
    def test_lag_from_the_first_step(self, alpha, expected):
        found = factors(NORMS, variant="lag", factor=alpha, lag=2)
        assert found == pytest.approx(expected)

    def test_norms_before_the_start_count_as_history(self):
        # T_c = 5: step 5 is left alone; step 6 compares with the 2 of step 4.
        found = factors(NORMS, variant="lag", lag=2, start_step=5)
        assert found == pytest.approx([1, 1, 1, 1, 1, 0.08, 1, 0.03125, 1, 1])

    def test_a_lag_of_one_compares_with_the_norm_before_clipping(self):
        # 4 > 3, 6 > 2, 8 > 1. The step after 6 has 2.5: below 6, above the 0.2 applied.
        expected = [1, 1, 0.3 / 4, 1, 0.2 / 6, 1, 1, 0.1 / 8, 1, 1]
        assert factors(NORMS, variant="lag", lag=1) == pytest.approx(expected)

    def test_a_norm_equal_to_the_threshold_is_not_clipped(self):
        assert factors((2.0, 2.0, 2.0)) == [1, 1, 1]
        assert factors((2.0, 2.0, 2.0), variant="lag", lag=1) == [1, 1, 1]


class TestAutomaticStart:
    NORMS = (5.0, 3.0, 4.0, 2.0, 6.0, 2.5, 1.0, 8.0, 3.0, 9.0, 0.5, 1.0, 2.0)
    """Epochs of 3 steps with means 4, 3.5, 4, 3.5: the third rises, so that T_c = 9."""

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            # t = 10: 9 > 1.5, so 0.1 * 1.5 / 9. t = 11: G = 0.5. t = 12: 1 > 0.5, so 0.05, although
            # the mean of this epoch falls. t = 13: 2 > 0.5, so 0.05 / 2.
            ({"initial_threshold": 1.5}, [1 / 60, 1, 0.05, 0.025]),
            # G = 9 at first: t = 11: G = 0.5.
            ({}, [1, 1, 0.05, 0.025]),
            # t = 10: 9 > 8. t = 11: 0.5 < 3. t = 12: 1 < 9. t = 13: 2 > 0.5.
            ({"variant": "lag", "lag": 2}, [0.8 / 9, 1, 1, 0.025]),
        ],
    )
    def test_begins_with_the_epoch_after_the_one_that_rose_and_stays(self, options, expected):
        found = factors(self.NORMS, start_step=None, **options)
        assert found == pytest.approx([1] * 9 + expected)

    @pytest.mark.parametrize("variant", ["running_minimum", "lag"])
    def test_never_begins_when_no_epoch_rises(self, variant):
        # Means 6, 6, 5, 5, 0.5: equal is not above. Within the epochs the norms do rise.
        norms = (1.0, 2.0, 15.0, 3.0, 5.0, 10.0, 2.0, 3.0, 10.0, 1.0, 4.0, 10.0, 0.1, 0.4, 1.0)
        found = factors(norms, variant=variant, start_step=None, lag=1, initial_threshold=0.01)
        assert found == [1] * 15

    @pytest.mark.parametrize("variant", ["running_minimum", "lag"])
    def test_the_first_epoch_has_none_to_exceed(self, variant):
        norms = (100.0, 200.0, 300.0, 1.0, 2.0, 3.0, 0.5, 1.0, 1.5)
        found = factors(norms, variant=variant, start_step=None, lag=1, initial_threshold=0.01)
        assert found == [1] * 9


class OnADevice(torch.Tensor):
    """A tensor that one must not look at, as on a GPU a look waits."""

    is_cpu = False

    def look(self) -> float:
        raise AssertionError("looked at")

    item = __bool__ = __float__ = look


@pytest.mark.parametrize(
    "options",
    [
        {"start_step": 2},
        {"start_step": 2, "initial_threshold": 2.5},
        {"variant": "lag", "lag": 2},
        {"start_step": None, "initial_threshold": 1.5},
        {"start_step": None, "variant": "lag", "lag": 2},
    ],
)
def test_on_a_device_by_tensors_that_nothing_looks_at(options):
    norms, scheme = TestAutomaticStart.NORMS, clipping(**options)
    found = [scheme.scale(torch.tensor(norm).as_subclass(OnADevice)) for norm in norms]
    found = [float(torch.as_tensor(scale).as_subclass(torch.Tensor)) for scale in found]
    assert found == pytest.approx(factors(norms, **options), rel=1e-6)
    assert min(found) < 1


def test_a_state_from_a_gpu_is_read_on_a_cpu():
    """Its numbers are tensors, and become numbers."""
    options = {"start_step": None, "variant": "lag", "lag": 2}
    scheme, restored = clipping(**options), clipping(**options)
    for norm in TestAutomaticStart.NORMS:
        scheme.scale(norm)
    numbers = scheme.state_dict()
    assert numbers["started"] is True
    double = {"dtype": torch.float64}
    norms = [torch.tensor(norm, **double) for norm in numbers["last_norms"]]
    tensors = {n: torch.tensor(v, **double) for n, v in numbers.items() if n.startswith("epoch")}
    tensors |= {"threshold": torch.tensor(math.inf), "started": torch.tensor(True)}
    restored.load_state_dict(numbers | tensors | {"last_norms": norms})
    assert repr(restored.state_dict()) == repr(numbers)


class TestAppliedGradient:
    @pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
    def test_keeps_the_direction_and_has_alpha_times_the_threshold_for_norm(self, build):
        model, x, y = case(build)
        step = Step(model, Batch(x, y), loss="cross_entropy")
        step.plain()
        plain = [p.grad.clone() for p in model.parameters()]
        norm = math.sqrt(sum(float((g**2).sum()) for g in plain))
        threshold = norm / 3
        scheme = clipping(initial_threshold=threshold)
        factor = scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        assert factor == pytest.approx(0.1 / 3, rel=1e-6)
        applied = [p.grad for p in model.parameters()]
        # The threshold is remembered in float32.
        for found, before in zip(applied, plain, strict=True):
            torch.testing.assert_close(found, before * (0.1 / 3), rtol=1e-6, atol=0)
        length = math.sqrt(sum(float((g**2).sum()) for g in applied))
        assert length == pytest.approx(0.1 * threshold, rel=1e-6)
        assert float(scheme.state_dict()["threshold"]) == pytest.approx(threshold, rel=1e-6)

    def test_a_shorter_gradient_is_left_alone_and_lowers_the_threshold(self):
        model, x, y = case(small_mlp)
        Step(model, Batch(x, y), loss="cross_entropy").plain()
        plain = [p.grad.clone() for p in model.parameters()]
        norm = math.sqrt(sum(float((g**2).sum()) for g in plain))
        scheme = clipping(initial_threshold=1.1 * norm)
        factor = scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        assert float(factor) == 1
        for parameter, before in zip(model.parameters(), plain, strict=True):
            assert torch.equal(parameter.grad, before)
        assert float(scheme.state_dict()["threshold"]) == pytest.approx(norm, rel=1e-6)


SHORT: dict[str, Any] = {
    "data.train_fraction": 0.01,
    "data.label_noise": 0.4,
    "model.width": 8,
    "training.batch_size": 16,
    "training.max_epochs": 5,
    "training.stop_at_full_accuracy": False,
    "measurement.hessian_trace": "off",
    "measurement.flatness": False,
    "measurement.smoothness": False,
    "scheme.name": "clipping",
    "scheme.factor": 0.3,
    "seed": 2,
}
"""n = 40: epochs of 16, 16 and 8 samples, fifteen steps; the third epoch's mean norm rises."""

CASES: dict[str, dict[str, Any]] = {
    "running minimum, automatic": {},
    "running minimum, after one epoch, G given": {
        "scheme.start_epoch": 1,
        "scheme.initial_threshold": 2.0,
    },
    "running minimum, at once": {"scheme.start_epoch": 0, "scheme.factor": 1.0},
    "lag, automatic": {"scheme.variant": "lag", "scheme.lag": 2},
    "lag, after two epochs": {"scheme.variant": "lag", "scheme.lag": 4, "scheme.start_epoch": 2},
}


def algorithm(changes: dict[str, Any]) -> Callable[[list[float]], float]:
    """The factor of the last of the norms so far, from the paper's words and all of them."""
    alpha, lag = changes["scheme.factor"], changes.get("scheme.lag")
    start = changes.get("scheme.start_epoch")
    given = changes.get("scheme.initial_threshold", math.inf)

    def begins(norms: list[float]) -> int | None:
        """T_c, as far as it can be known."""
        if start is not None:
            return 3 * start
        means = [sum(norms[i : i + 3]) / 3 for i in range(0, len(norms) - 2, 3)]
        rises = [i for i in range(1, len(means)) if means[i] > means[i - 1]]
        return 3 * (rises[0] + 1) if rises else None

    def factor(norms: list[float]) -> float:
        *earlier, norm = norms
        begin = begins(earlier)
        if begin is None or len(earlier) < begin:
            return 1.0
        if lag is not None:
            threshold = earlier[-lag] if len(earlier) >= lag else math.inf
        else:
            threshold = min([given, *earlier[begin:]])
        return alpha * threshold / norm if norm > threshold else 1.0

    return factor


@lru_cache
def by_hand(name: str) -> reference.Run:
    """The run in float64 from its definition: V_t of the plain gradient, the factor, W_T."""
    changes = SHORT | CASES[name]
    state = training.start(config(changes))
    x, y = state.dataset.train_x, state.dataset.train_y
    epochs = [
        epoch_batches(40, 16, epoch=e, seed=2, last_batch="keep", device=torch.device("cpu"))
        for e in range(5)
    ]
    factor_of, norms = algorithm(changes), []
    run, current = reference.Run(), reference.in_float64(state.model)
    for indices in chain(*epochs):
        bx, by = x[indices], y[indices]
        moments = reference.batch_moments(current, bx, by, "cross_entropy")
        norms.append(math.sqrt(moments.squared_gradient_norm))
        factor = factor_of(norms)
        run.note(
            gradient_factor=factor,
            gradient_norm=norms[-1],
            gradient_dispersion=moments.gradient_dispersion,
        )
        gradient = reference.mean_gradient(current, bx, by, "cross_entropy")
        current = reference.with_weights(
            current, reference.weights(current) - 0.1 * factor * gradient
        )
    run.weights = reference.weights(current)
    return run


@lru_cache
def ours(name: str, **measurement: Any) -> Finished:
    asked = {f"measurement.{field}": value for field, value in measurement.items()}
    return finish(training.start(config(SHORT | CASES[name] | asked)))


@pytest.mark.parametrize("name", CASES)
class TestWholeRun:
    def test_factors_and_weights_are_those_of_the_loop_by_hand(self, name):
        found, expected = ours(name), by_hand(name)
        factor = expected.column("gradient_factor")
        assert 2 <= (factor < 1).sum() <= 12
        np.testing.assert_allclose(found.series.gradient_factor, factor, rtol=1e-4)
        weights = reference.weights(found.state.model)
        torch.testing.assert_close(weights, expected.weights, rtol=1e-4, atol=1e-5)

    def test_the_dispersion_is_of_the_plain_gradient(self, name):
        series, expected = ours(name).series, by_hand(name)
        for column, wanted in (
            (series.gradient_dispersion, expected.column("gradient_dispersion")),
            (series.squared_gradient_norm, expected.column("gradient_norm") ** 2),
        ):
            np.testing.assert_allclose(column, wanted, rtol=1e-3)

    def test_or_of_the_applied_one_which_is_the_factor_squared_times_that(self, name):
        plain, applied = ours(name).series, ours(name, dispersion_of="applied").series
        squared = plain.gradient_factor**2
        assert series_bits(without_norms(applied)) == series_bits(without_norms(plain))
        for column in ("gradient_dispersion", "squared_gradient_norm", "mean_squared_norm"):
            expected = squared * getattr(plain, column)
            np.testing.assert_allclose(getattr(applied, column), expected, rtol=1e-6)

    def test_or_by_groups_of_either_gradient(self, name):
        by_groups = {"dispersion_estimator": "groups", "dispersion_groups": 3}
        plain = ours(name, **by_groups).series
        applied = ours(name, dispersion_of="applied", **by_groups).series
        assert (plain.group_dispersion > 0).all()
        expected = plain.gradient_factor**2 * plain.group_dispersion
        np.testing.assert_allclose(applied.group_dispersion, expected, rtol=1e-5)
        norms = plain.gradient_factor**2 * plain.squared_gradient_norm
        np.testing.assert_allclose(applied.squared_gradient_norm, norms, rtol=1e-5)

    def test_the_factors_need_no_dispersion(self, name):
        unmeasured, measured = ours(name, dispersion=False).series, ours(name).series
        np.testing.assert_allclose(unmeasured.gradient_factor, measured.gradient_factor, rtol=1e-5)
        assert np.isnan(unmeasured.gradient_dispersion).all()

    def test_the_row_has_the_mean_factor(self, name):
        found = ours(name)
        mean = found.series.gradient_factor.mean()
        assert found.row["measure/gradient_factor"] == pytest.approx(mean)


def without_norms(series: Any) -> Any:
    """Without the columns that depend on which gradient is measured."""
    gone = np.zeros(len(series))
    names = ("squared_gradient_norm", "mean_squared_norm")
    return replace(series, **dict.fromkeys(names, gone))


WITH_MOMENTUM = SHORT | {"training.momentum": 0.9, "training.nesterov": True}
PLAIN = {name: value for name, value in WITH_MOMENTUM.items() if not name.startswith("scheme.")}


class TestWithoutEffect:
    """Bit for bit plain SGD, over a whole run with momentum."""

    @pytest.mark.parametrize(
        "scheme",
        [
            pytest.param({"variant": "lag", "lag": 15}, id="a lag as long as the run"),
            pytest.param({"start_step": 15}, id="a start after the last step"),
            pytest.param({"start_step": 14}, id="an infinite threshold at the last step"),
        ],
    )
    def test_it_is_sgd(self, scheme):
        sgd = finish(training.start(config(PLAIN)))
        state = training.start(config(PLAIN))
        state.stepper.scheme = clipping(factor=1.0, **scheme)
        found = finish(state)
        assert weight_bits(found.state) == weight_bits(sgd.state)
        assert optimizer_bits(found.state) == optimizer_bits(sgd.state)
        assert series_bits(found.series) == series_bits(sgd.series)
        assert (found.series.gradient_factor == 1).all()
        assert "measure/gradient_factor" not in found.row

    def test_with_any_alpha_as_long_as_nothing_is_clipped(self):
        sgd = finish(training.start(config(PLAIN)))
        late = {"scheme.start_epoch": 4, "scheme.variant": "lag", "scheme.lag": 14}
        found = finish(training.start(config(WITH_MOMENTUM | late)))
        assert (found.series.gradient_factor[:14] == 1).all()
        assert series_bits(found.series.head(14)) == series_bits(sgd.series.head(14))


def test_an_epoch_is_that_of_the_data_trained_on():
    """A dataset of one's own has as many steps an epoch as it has, not as the configured one."""
    changes = SHORT | {"scheme.start_epoch": 1, "scheme.initial_threshold": 1e-3}
    data = training.start(config(changes)).dataset
    half = replace(data, train_x=data.train_x[:20], train_y=data.train_y[:20])
    whole = {"data.train_fraction": 1.0}  # of what is given
    found = finish(training.start(config(changes | whole), dataset=half))
    assert found.state.steps_per_epoch == 2
    clipped = found.series.gradient_factor < 1
    assert not clipped[:2].any()
    assert clipped[2:].any()
    assert clipped[2]


@pytest.mark.parametrize("options", [{}, {"variant": "lag", "lag": 2}])
def test_restored_after_any_step_it_continues_alike(options):
    """More than once from one state, which later steps leave as it is."""
    norms, options = TestAutomaticStart.NORMS, {"start_step": None, **options}
    expected = factors(norms, **options)
    for done in range(len(norms) + 1):
        original = clipping(**options)
        for norm in norms[:done]:
            original.scale(torch.tensor(norm))
        state, rest = original.state_dict(), norms[done:]
        for scheme in (original, clipping(**options), clipping(**options)):
            if scheme is not original:
                scheme.load_state_dict(state)
            assert [float(scheme.scale(torch.tensor(norm))) for norm in rest] == expected[done:]
