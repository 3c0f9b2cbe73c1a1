"""Numbers as text."""

import doctest
import math
from typing import Any

import pandas as pd
import pytest

from gisgd_ray import numbers
from gisgd_ray.numbers import (
    format_mean_std,
    format_noise_std,
    format_number,
    format_setting,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0461884, "0.04619"),
        (27.117858, "27.12"),
        (9.99996, "10.00"),
        (5799.55, "5,800"),
        (914.1234, "914.1"),
        (123_456.7, "123,457"),
        (999_999.6, "1.00 × 10⁶"),
        (0.001, "0.001000"),
        (0.00099996, "0.001000"),
        (0.00012345, "1.23 × 10⁻⁴"),
        (-0.5, "−0.5000"),
        (-1.5e-7, "−1.50 × 10⁻⁷"),
        (5.4136e24, "5.41 × 10²⁴"),
        (5e-324, "4.94 × 10⁻³²⁴"),
        (0.0, "0"),
        (1200, "1,200"),
        (-3, "−3"),
        (pd.Series([1200])[0], "1,200"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (NAN, "–"),
        (None, "–"),
        (pd.NA, "–"),
    ],
)
def test_format_number(value: Any, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (27.117858, 1.234, "27.1 ± 1.2"),
        (0.1824, 0.0021, "0.1824 ± 0.0021"),
        (1859.05, 12.34, "1,859 ± 12"),
        (1859.05, 1234.5, "1,859 ± 1,234"),
        (27.0, 0.0996, "27.00 ± 0.10"),
        (-3.25, 0.5, "−3.25 ± 0.50"),
        (27.117858, 0.0, "27.12 ± 0"),
        (1200.0, 0.0, "1,200 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (27.117858, 1e-9, "27.12 ± 1 × 10⁻⁹"),
        (2.5e-7, 1e-8, "(2.50 ± 0.10) × 10⁻⁷"),
        (3e9, 2e10, "(0.3 ± 2.0) × 10¹⁰"),
        (27.117858, NAN, "27.12"),
        (NAN, NAN, "–"),
        (math.inf, NAN, "∞"),
        (5e-324, 5e-324, "4.94 × 10⁻³²⁴ ± 5 × 10⁻³²⁴"),
    ],
)
def test_format_mean_std(mean: float, std: float, text: str) -> None:
    assert format_mean_std(mean, std) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05, "0.05"),
        (1e-06, "1e-06"),
        (500.0, "500"),
        (0.012345678, "0.012345678"),
        (True, "true"),
        (None, "null"),
        (NAN, "null"),
        ([], "[]"),
        ([0.01, 1e-06], "[0.01, 1e-06]"),
        (pd.Series([1, 2]).to_numpy(), "[1, 2]"),
        ("keep", "keep"),
    ],
)
def test_format_setting(value: Any, text: str) -> None:
    assert format_setting(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.01, "10⁻²"), (1.0, "10⁰"), (0.03, "0.03")])
def test_format_noise_std(value: float, text: str) -> None:
    assert format_noise_std(value) == text


def test_docstring_examples() -> None:
    assert doctest.testmod(numbers).failed == 0
