"""The bounds' scaling laws, numerics, limits, refused arguments and interface."""

import ast
import doctest
import inspect
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gisgd_ray.theory import bounds
from tests.theory.test_bounds import (
    CUBE_ROOTS,
    ENERGIES,
    ENERGY_OF,
    SIGNATURES,
    TRAJECTORIES,
    call,
    random_arguments,
    reference,
)

# ---------------------------------------------------------------- scaling laws


def scaled(arguments: dict[str, Any], factor: float, *names: str) -> dict[str, Any]:
    return {k: np.asarray(v) * factor if k in names else v for k, v in arguments.items()}


@pytest.mark.parametrize(
    ("arguments", "trajectory", "log_too", "eq3", "best_std"),
    [
        # each argument times 64: the exponents e in (result times 64^e); where log_too is false,
        # `trajectory` is that of Lemma 2 and Corollary 1 alone
        (("subgaussian_constant",), 1, True, 2 / 3, 1 / 3),
        (("num_samples",), -1 / 2, True, -1 / 3, -1 / 6),
        (("learning_rates",), 1, False, 2 / 3, 1 / 3),
        ((*ENERGIES, "sensitivities"), 1 / 2, False, 1 / 3, 1 / 6),
        (("noise_stds",), -1, False, 0, 0),
        (("noise_stds", "learning_rates"), 0, True, 2 / 3, 1 / 3),
        (("hessian_trace",), 0, True, 1 / 3, -1 / 3),
    ],
)
def test_scaling(
    arguments: tuple[str, ...], trajectory: float, log_too: bool, eq3: float, best_std: float
) -> None:
    before = random_arguments(5)
    after = scaled(before, 64, *arguments)

    def exponent(name: str) -> float:
        return math.log(np.sum(call(name, after)) / np.sum(call(name, before)), 64)

    for name in TRAJECTORIES:
        if log_too or not name.startswith("theorem"):
            assert exponent(name) == pytest.approx(trajectory, abs=1e-12), name
    for name in ("theorem2_closed_form", "terms_at_optimum", "lemma7"):
        assert exponent(name) == pytest.approx(eq3, abs=1e-12), name
    if arguments != ("hessian_trace",):
        assert exponent("theorem3") == pytest.approx(eq3, abs=1e-12)
        assert exponent("theorem4") == pytest.approx(eq3, abs=1e-12)
        assert exponent("trajectory_factor") == pytest.approx(3 * eq3, abs=1e-12)
    assert exponent("optimal_noise_std") == pytest.approx(best_std, abs=1e-12)


def test_theorem4_scaling_in_width_and_active_units() -> None:
    a = random_arguments(6)
    wider = dict(a, width=8 * a["width"])
    assert call("theorem4", wider) == pytest.approx(call("theorem4", a) / 4, rel=1e-14)
    a["final_active_units"] = 1
    fuller = dict(a, final_active_units=8)
    assert call("theorem4", fuller) == pytest.approx(call("theorem4", a) * 2, rel=1e-14)


def test_running_twice_as_long() -> None:
    """T enters the trajectory terms through the sum only, Eq. 3 as a factor too."""
    a = random_arguments(7)
    twice = {k: np.concatenate([v, v]) if isinstance(v, np.ndarray) else v for k, v in a.items()}
    expected = dict.fromkeys(TRAJECTORIES, 2**0.5) | dict.fromkeys(CUBE_ROOTS, 4 ** (1 / 3))
    expected |= {"trajectory_factor": 4, "optimal_noise_std": 2 ** (-1 / 6)}
    for name, ratio in expected.items():
        assert call(name, twice) == pytest.approx(ratio * call(name, a), rel=1e-13), name


def test_log_terms_depend_on_dispersion_per_parameter() -> None:
    a = random_arguments(8)
    more = scaled(a, 5, "num_parameters", "dispersions", "conditional_dispersions")
    for name in ("theorem1_trajectory", "theorem2_trajectory"):
        assert call(name, more) == pytest.approx(math.sqrt(5) * call(name, a), rel=1e-13)


# ---------------------------------------------------------------- numerics


@pytest.mark.parametrize("noise_std", [1e-6, 1e-12, 1e-60, 1e-200])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_tiny_noise_neither_overflows_nor_cancels(name: str, noise_std: float) -> None:
    a = random_arguments(0) | {"noise_stds": np.full(7, noise_std)}
    with np.errstate(all="raise", under="ignore"):
        assert call(name, a) == pytest.approx(reference(name, a), rel=2e-14, abs=0)


@pytest.mark.parametrize("noise_std", [1e3, 1e10, 1e100])
@pytest.mark.parametrize("name", ["theorem1_trajectory", "theorem2_trajectory"])
def test_large_noise_keeps_its_digits(name: str, noise_std: float) -> None:
    """log(1 + x) = x at x below the rounding of 1, where log without log1p gives 0 or noise."""
    a = random_arguments(0) | {"noise_stds": np.full(7, noise_std), "num_parameters": 10**9}
    mean = np.reshape(a[ENERGY_OF[name]], (7, -1)).mean(axis=1)
    relaxed = a["subgaussian_constant"] * math.sqrt(
        math.fsum((a["learning_rates"] / noise_std) ** 2 * mean) / a["num_samples"]
    )
    assert call(name, a) == pytest.approx(relaxed, rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("constant", "energy_scale", "trace"),
    [(1e-170, 1.0, 40.0), (1e170, 1.0, 1e-300), (1e120, 1e-250, 1e300), (1.0, 1e305, 1e300)],
)
def test_closed_form_at_extreme_magnitudes(
    constant: float, energy_scale: float, trace: float
) -> None:
    a = scaled(random_arguments(1), energy_scale, *ENERGIES)
    a |= {"subgaussian_constant": constant, "hessian_trace": trace}
    with np.errstate(all="raise", under="ignore"):
        for name in ("theorem2_closed_form", "lemma7", "optimal_noise_std", "terms_at_optimum"):
            assert call(name, a) == pytest.approx(reference(name, a), rel=1e-13, abs=0), name


def test_a_million_updates_are_summed_accurately_and_fast() -> None:
    steps = 10**6
    v = np.full(steps, 0.1)  # one running sum rounds the same way every time: wrong by 1e-11
    v[0] = 0.3
    common = {"subgaussian_constant": 1.0, "num_samples": 1000, "learning_rates": np.full(steps, 1)}
    closed: Callable[..., float] = bounds.theorem2_closed_form

    start = time.perf_counter()
    eq3 = closed(**common, dispersions=v, hessian_trace=2.0)
    eq2 = bounds.theorem2_trajectory(
        **common, num_parameters=10, noise_stds=np.full(steps, 1e-2), dispersions=v
    )
    assert time.perf_counter() - start < 5  # 0.2 s here

    assert eq3 == pytest.approx(1.5 * (steps / 1000 * math.fsum(v) * 2) ** (1 / 3), rel=1e-14)
    logs = math.fsum(math.log1p(x / 10 / 1e-4) for x in v)
    assert eq2 == pytest.approx(math.sqrt(10 / 1000 * logs), rel=1e-14)


def test_float32_input_is_summed_in_float64() -> None:
    v = np.full(100_000, 0.1, dtype=np.float32)
    value = bounds.trajectory_factor(
        subgaussian_constant=np.float32(1), num_samples=np.int32(10**5), learning_rates=v * 0 + 1,
        dispersions=v,
    )  # fmt: skip
    assert value == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-14)


# ---------------------------------------------------------------- limits and undefined results


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("zeroed", ["energy", "learning_rates", "subgaussian_constant"])
def test_nothing_learned_costs_nothing(name: str, zeroed: str) -> None:
    a = random_arguments(0)
    if zeroed == "energy":
        a = scaled(a, 0, ENERGY_OF[name], "sensitivities")
    else:
        a = scaled(a, 0, zeroed, zeroed[:-1])
    if name == "corollary2":
        flatness = a["smoothness"] * a["num_parameters"] * np.sum(a["noise_stds"] ** 2)
        assert call(name, a) == pytest.approx(flatness, rel=1e-14)
    elif not (name == "lemma5" and zeroed == "subgaussian_constant"):
        assert np.all(np.asarray(call(name, a)) == 0)


def test_sensitivity_alone_still_counts() -> None:
    a = scaled(random_arguments(0), 0, "dispersions")
    assert call("lemma2_trajectory", a) > call("corollary1_trajectory", a) > 0


@pytest.mark.parametrize("trace", [0.0, -0.0, -3.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dispersion", [0.0, 2.0])
@pytest.mark.parametrize(
    "name", ["theorem2_closed_form", "lemma7", "optimal_noise_std", "terms_at_optimum"]
)
def test_undefined_curvature_is_nan(name: str, dispersion: float, trace: float) -> None:
    a = random_arguments(0) | {"hessian_trace": trace}
    a |= {"dispersions": np.full(7, dispersion), "squared_gradient_norms": np.full(7, dispersion)}
    assert np.all(np.isnan(call(name, a)))


def test_undefined_final_activity_and_smoothness_are_nan() -> None:
    a = random_arguments(0)
    assert math.isnan(call("theorem4", a | {"final_active_units": 0}))
    assert math.isnan(call("theorem4", a | {"final_active_units": math.nan}))
    assert math.isnan(call("corollary2", a | {"smoothness": math.nan}))
    assert math.isnan(call("corollary2", a | {"smoothness": math.inf}))
    assert call("corollary2", a | {"smoothness": 0}) == call("theorem2_trajectory", a)


def test_every_unit_active_is_allowed() -> None:
    a = random_arguments(0)
    assert call("theorem4", a | {"final_active_units": 13}) > 0
    assert call("theorem4", a | {"final_active_units": np.float32(13.000001)}) > 0


# ---------------------------------------------------------------- bad arguments

COUNTS = ("num_samples", "num_parameters", "width")
ESTIMATES = ("hessian_trace", "smoothness", "final_active_units")
SCALARS = ("subgaussian_constant", "learning_rate", "noise_std", "dispersion")


def bad_values(name: str) -> list[tuple[Any, str]]:
    """Bad values for an argument, each with what the message must show of it."""
    shared = [("seven", "seven"), (None, "None"), (1j, "1j")]
    if name in COUNTS:
        return [*shared, (0, "0"), (-3, "-3"), (2.5, "2.5"), (math.nan, "nan"), (math.inf, "inf"),
                ([4], "[4]")]  # fmt: skip
    if name in ESTIMATES:
        extra = [] if name == "hessian_trace" else [(-0.25, "-0.25")]
        extra += [(14, "14"), (math.inf, "inf")] if name == "final_active_units" else []
        return [*shared, ([4.5], "[4.5]"), *extra]
    if name in SCALARS:
        zero = [(0, "0.0")] if name == "noise_std" else []
        return [*shared, (-1.5, "-1.5"), (math.nan, "nan"), (math.inf, "inf"), ([4], "[4]"), *zero]
    good = list(random_arguments(0)["dispersions"])
    values = [
        *shared,
        (0.125, "0.125"),
        ([], "(0,)"),
        (np.ones((7, 2, 2)), "(7, 2, 2)"),
        ([[1], [2, 3]], "[[1], [2, 3]]"),
        (["x"] * 7, "'x'"),
        ([1, None, 3, 4, 5, 6, 7], "None"),
        ([*good[:2], -0.75, *good[3:]], "-0.75 at t = 3"),
        ([math.nan, *good[1:]], "nan at t = 1"),
        ([*good[:-1], math.inf], "inf at t = 7"),
        ([*good, -1.0], "8" if name != "learning_rates" else "-1.0 at t = 8"),
        (good[:-1], "6"),
        (good[:1], "1"),
    ]
    if name == "conditional_dispersions":
        values.append((np.zeros((7, 0)), "(7, 0)"))
        values.append((np.array([[1.0, 2.0]] * 5 + [[1, -4.5]] + [[1, 2]]), "-4.5 at t = 6"))
        values.append((np.ones((6, 2)), "6"))
    else:
        values.append((np.ones((7, 2)), "(7, 2)"))
    if name == "noise_stds":
        values.append(([*good[:4], 0, *good[5:]], "0.0 at t = 5"))
    return values


@pytest.mark.parametrize(
    ("function", "argument"), [(f, a) for f in SIGNATURES for a in SIGNATURES[f].split()]
)
def test_bad_argument(function: str, argument: str) -> None:
    for value, shown in bad_values(argument):
        with pytest.raises(ValueError, match=" must be ") as caught:
            call(function, random_arguments(0) | {argument: value})
        message = str(caught.value)
        assert shown in message
        assert "\n" not in message
        if isinstance(value, list) and shown in ("1", "6"):  # a length: both are named
            assert argument in message
            assert "7" in message
        else:
            assert message.startswith(f"{argument} must be ")


def test_the_message_says_what_would_do() -> None:
    a = random_arguments(0)
    with pytest.raises(ValueError, match=r"num_samples must be a whole number >= 1, got 0"):
        call("theorem3", a | {"num_samples": 0})
    with pytest.raises(ValueError, match=r"noise_stds must be finite and > 0, got 0\.0 at t = 2"):
        call("lemma2_trajectory", a | {"noise_stds": [1, 0, 1, 1, 1, 1, 1]})
    with pytest.raises(ValueError, match=r"losses must be as long as learning_rates, got 2 .* 7"):
        call("theorem3", a | {"losses": [1, 2]})
    with pytest.raises(ValueError, match=r"final_active_units must be from 0 to width = 13, got 1"):
        call("theorem4", a | {"final_active_units": 14})


# ---------------------------------------------------------------- the interface


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_and_docstring(name: str) -> None:
    function = getattr(bounds, name)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == SIGNATURES[name].split()
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.default is inspect.Parameter.empty for p in parameters.values())
    text = inspect.getdoc(function)
    assert all(part in text for part in ("Args:", "Returns:", "Raises:", ">>> "))
    assert any(word in text.splitlines()[0] for word in ("Lemma", "Theorem", "Corollary"))
    assert name not in TRAJECTORIES or "the caller adds the flatness gap" in text


def test_no_public_function_is_missed() -> None:
    public = {n for n, f in inspect.getmembers(bounds, inspect.isfunction) if n[0] != "_"}
    assert public == set(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_accepts_any_sequence_returns_floats_and_changes_nothing(name: str) -> None:
    a = random_arguments(0)
    kept = {k: np.array(v) for k, v in a.items()}
    value = call(name, a)
    assert all(np.array_equal(kept[k], a[k]) for k in a)
    as_lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in a.items()}
    as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in as_lists.items()}
    strided = {k: np.repeat(v, 2, 0)[::2] if np.ndim(v) else np.array(v) for k, v in a.items()}
    for same in (as_lists, as_tuples, strided):
        assert call(name, same) == value
    results = value if isinstance(value, tuple) else (value,)
    assert all(type(result) is float for result in results)


def test_doctests() -> None:
    results = doctest.testmod(bounds)
    assert results.failed == 0
    assert results.attempted >= len(SIGNATURES)


def test_needs_only_numpy() -> None:
    nodes = list(ast.walk(ast.parse(inspect.getsource(bounds))))
    roots = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    roots |= {str(n.module).split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    assert roots <= {"math", "reprlib", "numpy"}
