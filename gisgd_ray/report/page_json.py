"""JSON that may stand inside a ``<script>`` of a page."""

import json
import math
from typing import Any

from markupsafe import Markup


def script_json(value: Any) -> Markup:
    r"""Compact ASCII JSON in which nothing can end the script; NaN and infinities are null.

    >>> print(script_json({"a": [1.5, float("nan"), "</script>\u2028"]}))
    {"a":[1.5,null,"\u003c/script\u003e\u2028"]}
    """
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
