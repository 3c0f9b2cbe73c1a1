"""The bounds' values: against 60-digit decimals, hand-worked, minimised, against one another.

The references in this file are loops over `decimal.Decimal`; they share no code with the package.
How the bounds behave at the edges is in test_bounds_properties.py.
"""

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np
import pytest

from gisgd_ray.theory import bounds

SIGNATURES = {
    "lemma2_trajectory": "subgaussian_constant num_samples learning_rates noise_stds "
    "sensitivities dispersions",
    "theorem1_trajectory": "subgaussian_constant num_samples num_parameters learning_rates "
    "noise_stds conditional_dispersions",
    "lemma5": "num_parameters learning_rate noise_std dispersion",
    "theorem2_trajectory": "subgaussian_constant num_samples num_parameters learning_rates "
    "noise_stds dispersions",
    "theorem2_closed_form": "subgaussian_constant num_samples learning_rates dispersions "
    "hessian_trace",
    "optimal_noise_std": "subgaussian_constant num_samples learning_rates dispersions "
    "hessian_trace",
    "trajectory_factor": "subgaussian_constant num_samples learning_rates dispersions",
    "terms_at_optimum": "subgaussian_constant num_samples learning_rates dispersions hessian_trace",
    "corollary1_trajectory": "subgaussian_constant num_samples learning_rates noise_stds "
    "sensitivities dispersions",
    "corollary2": "subgaussian_constant num_samples num_parameters learning_rates noise_stds "
    "dispersions smoothness",
    "lemma7": "subgaussian_constant num_samples learning_rates squared_gradient_norms "
    "hessian_trace",
    "theorem3": "subgaussian_constant num_samples learning_rates losses",
    "theorem4": "subgaussian_constant num_samples width learning_rates active_losses "
    "final_active_units",
}
ENERGIES = ("dispersions", "conditional_dispersions", "squared_gradient_norms", "losses")
ENERGIES += ("active_losses",)
ENERGY_OF = {
    name: next(a for a in args.split() if a in ENERGIES or a == "dispersion")
    for name, args in SIGNATURES.items()
}
TRAJECTORIES = tuple(name for name in SIGNATURES if name.endswith("_trajectory"))
CUBE_ROOTS = ("theorem2_closed_form", "lemma7", "theorem3", "theorem4")


def call(name: str, arguments: dict[str, Any]) -> Any:
    """Calls a bound with those of the arguments that it takes."""
    taken = {key: arguments[key] for key in SIGNATURES[name].split()}
    return getattr(bounds, name)(**taken)


def random_arguments(seed: int, steps: int = 7, noise_scale: float = 1e-2) -> dict[str, Any]:
    """One valid value for every argument of every function; n, d, m and T all differ."""
    draw = np.random.default_rng(seed)
    return {
        "subgaussian_constant": float(draw.uniform(0.5, 4)),
        "num_samples": int(draw.integers(50, 500)),
        "num_parameters": int(draw.integers(11, 40)),
        "width": 13,
        "learning_rates": draw.uniform(0.01, 0.5, steps),
        "noise_stds": draw.uniform(0.5, 2, steps) * noise_scale,
        "sensitivities": draw.exponential(3, steps),
        "dispersions": draw.exponential(5, steps),
        "conditional_dispersions": draw.exponential(5, (steps, 3)),
        "squared_gradient_norms": draw.exponential(7, steps),
        "losses": draw.exponential(1, steps),
        "active_losses": draw.exponential(9, steps),
        "final_active_units": float(draw.uniform(1, 13)),
        "hessian_trace": float(draw.exponential(40) + 0.1),
        "smoothness": float(draw.exponential(10)),
        "learning_rate": 0.3,
        "noise_std": 0.7 * noise_scale,
        "dispersion": 2.5,
    }


# ---------------------------------------------------------------- the decimal references


def exact(arguments: dict[str, Any]) -> dict[str, Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray | list | tuple):
            return [convert(item) for item in value]
        return Decimal(float(value))

    return {name: convert(value) for name, value in arguments.items()}


def reference_linear(a: dict[str, Any], psi_weight: int, v_weight: int) -> Decimal:
    total = Decimal(0)
    for rate, std, psi, v in zip(
        a["learning_rates"], a["noise_stds"], a["sensitivities"], a["dispersions"], strict=True
    ):
        total += rate**2 / std**2 * (psi_weight * psi + v_weight * v)
    return (2 * a["subgaussian_constant"] ** 2 / a["num_samples"] * total).sqrt()


def reference_logarithmic(a: dict[str, Any], draws: list[list[Decimal]]) -> Decimal:
    d, total = a["num_parameters"], Decimal(0)
    for rate, std, values in zip(a["learning_rates"], a["noise_stds"], draws, strict=True):
        logs = [(1 + rate**2 * v / (d * std**2)).ln() for v in values]
        total += sum(logs, Decimal(0)) / len(logs)
    return (a["subgaussian_constant"] ** 2 * d / a["num_samples"] * total).sqrt()


def reference_weighted(a: dict[str, Any], energy: str) -> Decimal:
    """(R^2 T/n) sum_t lambda_t^2 energy_t."""
    rates = a["learning_rates"]
    total = sum((rate**2 * e for rate, e in zip(rates, a[energy], strict=True)), Decimal(0))
    return a["subgaussian_constant"] ** 2 * len(rates) / a["num_samples"] * total


def cube_root(x: Decimal) -> Decimal:
    return x ** (Decimal(1) / 3)


def reference(name: str, arguments: dict[str, Any]) -> Any:
    with localcontext(Context(prec=60, Emax=10**6, Emin=-(10**6))):
        a = exact(arguments)
        singles = [[v] for v in a["dispersions"]]
        t, h = len(a["learning_rates"]), a["hessian_trace"]
        match name:
            case "lemma2_trajectory":
                return float(2 * reference_linear(a, 1, 1))
            case "corollary1_trajectory":
                return float(reference_linear(a, 3, 2))
            case "theorem1_trajectory":
                return float(reference_logarithmic(a, a["conditional_dispersions"]))
            case "theorem2_trajectory":
                return float(reference_logarithmic(a, singles))
            case "corollary2":
                squares = sum((std**2 for std in a["noise_stds"]), Decimal(0))
                flatness = a["smoothness"] * a["num_parameters"] * squares
                return float(reference_logarithmic(a, singles) + flatness)
            case "lemma5":
                ratio = a["learning_rate"] ** 2 * a["dispersion"] / a["noise_std"] ** 2
                d = a["num_parameters"]
                return float(d / 2 * (1 + ratio / d).ln())
            case "trajectory_factor":
                return float(reference_weighted(a, "dispersions"))
            case "theorem2_closed_form":
                return float(cube_root(reference_weighted(a, "dispersions") * h) * 3 / 2)
            case "lemma7":
                return float(cube_root(reference_weighted(a, "squared_gradient_norms") * h) * 3 / 2)
            case "theorem3":
                return float(3 * cube_root(reference_weighted(a, "losses") / 4))
            case "theorem4":
                inside = reference_weighted(a, "active_losses") * a["final_active_units"]
                return float(3 * cube_root(inside / (4 * a["width"] ** 2)))
            case "optimal_noise_std" | "terms_at_optimum":
                root = (reference_weighted(a, "dispersions") / t).sqrt()  # A
                slope = t * h / 2  # B
                std = cube_root(root / (2 * slope))
                if name == "optimal_noise_std":
                    return float(std)
                return float(root / std), float(slope * std**2)
    raise AssertionError(name)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("noise_scale", [1.0, 1e-2, 1e-6, 1e-12, 1e-40])
def test_matches_decimal_arithmetic(name: str, noise_scale: float) -> None:
    for seed in range(5):
        arguments = random_arguments(seed, noise_scale=noise_scale)
        expected = reference(name, arguments)
        assert call(name, arguments) == pytest.approx(expected, rel=2e-14, abs=0)


@pytest.mark.parametrize("name", SIGNATURES)
def test_one_update(name: str) -> None:
    arguments = random_arguments(9, steps=1)
    assert call(name, arguments) == pytest.approx(reference(name, arguments), rel=2e-14, abs=0)


# ---------------------------------------------------------------- worked by hand, T = 2

HAND = {
    "subgaussian_constant": 3,
    "num_samples": 30,
    "num_parameters": 2,
    "width": 10,
    "learning_rates": [0.5, 2],
    "noise_stds": [0.25, 4],  # (lambda/sigma)^2 = 4, 1/4
    "sensitivities": [1, 8],
    "dispersions": [2, 4],
    "conditional_dispersions": [[2, 0], [4, 12]],
    "squared_gradient_norms": [4, 1.75],  # sum lambda^2 E = 1 + 7 = 8
    "losses": [10, 5],  # sum lambda^2 l = 2.5 + 20 = 22.5
    "active_losses": [100, 87.5],  # sum lambda^2 E = 25 + 350 = 375
    "final_active_units": 6,
    "hessian_trace": 45,
    "smoothness": 0.5,
    "learning_rate": 0.5,
    "noise_std": 0.25,
    "dispersion": 2,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lemma2_trajectory", 6.0),  # 2 sqrt(18/30 (4*3 + 12/4)) = 2 sqrt(0.6 * 15)
        ("corollary1_trajectory", math.sqrt(21.6)),  # 0.6 (4*(3+4) + (24+8)/4) = 0.6 * 36
        ("theorem2_trajectory", math.sqrt(0.6 * math.log(7.5))),  # ln(1 + 8/2) + ln(1 + 1/2)
        # (ln 5 + ln 1)/2 + (ln 1.5 + ln 2.5)/2
        ("theorem1_trajectory", math.sqrt(0.3 * math.log(18.75))),
        ("lemma5", math.log(5)),  # (2/2) ln(1 + 4*2/2)
        # the term of Theorem 2 + 0.5 * 2 * (1/16 + 16)
        ("corollary2", math.sqrt(0.6 * math.log(7.5)) + 16.0625),
        ("theorem3", 4.5),  # 3 (9*2/(4*30) * 22.5)^(1/3) = 3 (27/8)^(1/3)
        ("theorem4", 4.5),  # 3 (9*2/(4*30*100) * 6 * 375)^(1/3) = 3 (27/8)^(1/3)
        ("lemma7", 9.0),  # 1.5 (9*2/30 * 8 * 45)^(1/3) = 1.5 * 216^(1/3)
        ("theorem2_closed_form", 9.0),
        ("terms_at_optimum", (6.0, 3.0)),
        ("trajectory_factor", 4.8),  # 9*2/30 * 8
        ("optimal_noise_std", (math.sqrt(2.4) / 90) ** (1 / 3)),  # A = sqrt(0.3*8), 2B = 2*45
    ],
)
def test_worked_by_hand(name: str, expected: Any) -> None:
    arguments = dict(HAND)
    if name in ("theorem2_closed_form", "terms_at_optimum", "trajectory_factor") or "std" in name:
        arguments["dispersions"] = HAND["squared_gradient_norms"]
    assert call(name, arguments) == pytest.approx(expected, rel=1e-14)


# ---------------------------------------------------------------- the optimal noise std


@pytest.mark.parametrize("seed", range(6))
def test_eq3_is_the_minimum_of_the_relaxation(seed: int) -> None:
    a = random_arguments(seed)
    energy = sum(r * r * v for r, v in zip(a["learning_rates"], a["dispersions"], strict=True))
    root = math.sqrt(a["subgaussian_constant"] ** 2 / a["num_samples"] * energy)
    slope = len(a["learning_rates"]) / 2 * a["hessian_trace"]

    low, high = -9.0, 3.0  # log10 of sigma
    for _ in range(3):  # each grid 1000 times finer than the last
        grid = np.linspace(low, high, 2001)
        best = int(np.argmin(root / 10**grid + slope * 100**grid))
        assert 0 < best < 2000
        low, high = grid[best - 1], grid[best + 1]
    minimiser = 10 ** ((low + high) / 2)
    minimum = root / minimiser + slope * minimiser**2

    std = call("optimal_noise_std", a)
    assert std == pytest.approx(minimiser, rel=1e-5)
    assert call("theorem2_closed_form", a) == pytest.approx(minimum, rel=1e-10)

    trajectory, flatness = call("terms_at_optimum", a)
    assert trajectory == pytest.approx(root / std, rel=1e-13)
    assert flatness == pytest.approx(slope * std**2, rel=1e-13)
    assert trajectory == pytest.approx(2 * flatness, rel=1e-15)
    assert trajectory + flatness == pytest.approx(call("theorem2_closed_form", a), rel=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_eq3_is_above_eq2_at_the_optimal_noise_std(seed: int) -> None:
    a = random_arguments(seed)
    std = call("optimal_noise_std", a)
    a["noise_stds"] = np.full(7, std)
    flatness = call("terms_at_optimum", a)[1]
    assert call("theorem2_trajectory", a) + flatness < call("theorem2_closed_form", a)
    a["num_parameters"] = 10**18  # then d log(1 + x/d) = x, and Eq. 2 becomes the relaxation
    whole = call("theorem2_trajectory", a) + flatness
    assert whole == pytest.approx(call("theorem2_closed_form", a), rel=1e-13)


def test_eq3_from_the_two_factors_of_figure_6() -> None:
    a = random_arguments(3)
    product = call("trajectory_factor", a) * a["hessian_trace"]
    assert call("theorem2_closed_form", a) == pytest.approx(1.5 * product ** (1 / 3), rel=1e-14)


# ---------------------------------------------------------------- how the results relate


@pytest.mark.parametrize("seed", range(20))
def test_orderings(seed: int) -> None:
    a = random_arguments(seed, noise_scale=10.0 ** -(seed % 7))
    assert call("corollary1_trajectory", a) < call("lemma2_trajectory", a)
    ratios = (a["learning_rates"] / a["noise_stds"]) ** 2 * a["dispersions"]
    relaxation = a["subgaussian_constant"] * math.sqrt(sum(ratios) / a["num_samples"])
    assert call("theorem2_trajectory", a) < relaxation
    assert relaxation < call("lemma2_trajectory", a)
    assert call("theorem2_trajectory", a) < call("corollary2", a)

    per_draw = call("theorem1_trajectory", a)
    averaged = dict(a, conditional_dispersions=a["conditional_dispersions"].mean(axis=1))
    assert per_draw < call("theorem1_trajectory", averaged)  # Jensen: mean of logs, not log of mean


def test_corollary1_is_smaller_by_sqrt_4_3_in_psi_and_sqrt_2_in_v() -> None:
    a = random_arguments(0)
    only_psi, only_v = dict(a, dispersions=np.zeros(7)), dict(a, sensitivities=np.zeros(7))
    ratio_psi = call("lemma2_trajectory", only_psi) / call("corollary1_trajectory", only_psi)
    ratio_v = call("lemma2_trajectory", only_v) / call("corollary1_trajectory", only_v)
    assert ratio_psi**2 == pytest.approx(4 / 3)
    assert ratio_v**2 == pytest.approx(2)


def test_theorem1_equals_theorem2_on_equal_dispersions() -> None:
    a = random_arguments(1)
    v = a["dispersions"]
    for shape in (v, v[:, None], np.repeat(v[:, None], 4, axis=1)):
        value = call("theorem1_trajectory", dict(a, conditional_dispersions=shape))
        assert value == pytest.approx(call("theorem2_trajectory", a), rel=1e-15)


def test_theorem2_sums_lemma5() -> None:
    a = random_arguments(2)
    series = zip(a["learning_rates"], a["noise_stds"], a["dispersions"], strict=True)
    nats = math.fsum(
        call("lemma5", dict(a, learning_rate=rate, noise_std=std, dispersion=v))
        for rate, std, v in series
    )
    expected = a["subgaussian_constant"] * math.sqrt(2 * nats / a["num_samples"])
    assert call("theorem2_trajectory", a) == pytest.approx(expected, rel=1e-14)


def test_theorems_3_and_4_are_lemma7() -> None:
    a = random_arguments(4)
    linear = dict(a, squared_gradient_norms=2 * a["losses"], hessian_trace=1)
    assert call("theorem3", a) == pytest.approx(call("lemma7", linear), rel=1e-14)
    relu = dict(
        a,
        squared_gradient_norms=2 / a["width"] * a["active_losses"],
        hessian_trace=a["final_active_units"] / a["width"],
    )
    assert call("theorem4", a) == pytest.approx(call("lemma7", relu), rel=1e-14)
    assert call("theorem2_closed_form", a) < call(
        "lemma7", dict(a, squared_gradient_norms=a["dispersions"] + 1)
    )
