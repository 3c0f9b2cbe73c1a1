"""Numbers as people read them on a page: few digits, a true minus, a dash for NaN."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

DASH = "–"


class Cell(str):
    """The text of a cell, with the number that a table sorts it by; None where it has none.

    >>> cell = Cell("27.4 ± 1.2", 27.41)
    >>> cell, cell.value
    ('27.4 ± 1.2', 27.41)
    """

    value: float | None

    def __new__(cls, text: str, value: float | None) -> "Cell":
        cell = super().__new__(cls, text)
        cell.value = None if value is None or math.isnan(value) else float(value)
        return cell


def format_number(value: Any, *, digits: int = 4) -> str:
    """A measured number to ``digits`` significant digits; integers in full; NaN as a dash.

    Outside [1e-3, 1e6) it is in powers of ten, with one digit less.

    >>> format_number(0.0461884), format_number(5799.55), format_number(1200)
    ('0.04619', '5,800', '1,200')
    >>> format_number(-1.5e-7), format_number(float("nan"))
    ('−1.50 × 10⁻⁷', '–')
    """
    if is_missing(value):
        return DASH
    if float(value).is_integer() and not isinstance(value, float):
        return _true_minus(f"{value:,}")
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = _exponent(value, digits)
    if not -3 <= exponent < 6:
        mantissa, _, power = f"{value:.{max(0, digits - 2)}e}".partition("e")
        return _true_minus(f"{mantissa} × 10{_superscript(int(power))}")
    return _true_minus(f"{value:,.{max(0, digits - 1 - exponent)}f}")


def format_mean_std(mean: float, std: float) -> str:
    """``mean ± std``, both to the decimal that shows two digits of the std.

    A NaN std (of a single value) is left out.

    >>> format_mean_std(1859.05, 12.34), format_mean_std(0.1824, 0.0021)
    ('1,859 ± 12', '0.1824 ± 0.0021')
    >>> format_mean_std(2.5e-7, 1e-8)
    '(2.50 ± 0.10) × 10⁻⁷'
    """
    if not math.isfinite(mean) or not math.isfinite(std):
        return format_number(mean)
    mean, std = float(mean), float(std)
    largest = _exponent(max(abs(mean), std), 4)
    if not -3 <= largest < 6 and abs(largest) < 300:
        scaled = format_mean_std(mean / 10.0**largest, std / 10.0**largest)
        return f"({scaled}) × 10{_superscript(largest)}"
    if std == 0:
        return f"{format_number(int(mean) if mean.is_integer() else mean)} ± 0"
    decimals = max(0, 1 - _exponent(std, 2))
    if decimals > 5 - largest or abs(largest) >= 300:  # more digits of the mean than anyone wants
        return f"{format_number(mean)} ± {format_number(std, digits=2)}"
    return _true_minus(f"{mean:,.{decimals}f} ± {std:,.{decimals}f}")


def field_name(path: str) -> str:
    """A dotted field's name in a list of settings.

    >>> field_name("training.batch_size"), field_name("scheme.name")
    ('batch_size', 'scheme')
    """
    section, _, name = path.rpartition(".")
    return section if name == "name" else name


def format_setting(value: Any) -> str:
    """A configuration value in full, as it would be typed.

    >>> format_setting(1e-06), format_setting([0.01, 500.0]), format_setting(None)
    ('1e-06', '[0.01, 500]', 'null')
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return f"[{', '.join(format_setting(v) for v in value)}]"
    if is_missing(value):
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def format_noise_std(value: float) -> str:
    """A noise std, powers of ten as such.

    >>> format_noise_std(1e-06), format_noise_std(0.03)
    ('10⁻⁶', '0.03')
    """
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"10{_superscript(int(exponent))}" if float(mantissa) == 1 else f"{value:g}"


def suffixes(trials: pd.DataFrame) -> dict[str, Cell]:
    """The noise stds of the table's columns, largest first: "@1e-06" -> "10⁻⁶".

    >>> suffixes(pd.DataFrame(columns=["bound/a@1e-06", "term/b@0.03", "gap/loss"]))
    {'@0.03': '0.03', '@1e-06': '10⁻⁶'}
    """
    stds = {}
    for name in map(str, trials.columns):
        _, _, noise = name.partition("@")
        try:
            std = float(noise)
        except ValueError:  # no noise std
            continue
        if std > 0:
            stds[f"@{noise}"] = std
    ordered = sorted(stds.items(), key=lambda pair: -pair[1])
    return {at: Cell(format_noise_std(std), std) for at, std in ordered}


def known(row: Mapping[str, Any], name: str) -> Any:
    """The row's value, None where it has none or NaN."""
    value = row.get(name)
    return None if is_missing(value) else value


def is_missing(value: Any) -> bool:
    """None, NaN or pandas' NA; a list or array never is."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _exponent(value: float, digits: int) -> int:
    """Power of ten of the value once it is rounded to so many significant digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _true_minus(text: str) -> str:
    return text.replace("-", "−")


def counted(count: float, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "trial"), counted(1200, "point")
    ('1 trial', '1,200 points')
    """
    return f"{count:,g} {noun}" if count == 1 else f"{count:,.10g} {noun}s"
