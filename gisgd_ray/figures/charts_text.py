"""Texts of matplotlib figures as HTML: mathtext to Unicode letters, subscripts and superscripts."""

import html
import re

GREEK = dict(
    zip(
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "varepsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "varphi",
            "chi",
            "psi",
            "omega",
        ],
        "αβγδϵεζηθικλμνξπρστυφφχψω",
        strict=True,
    )
) | dict(
    zip(
        [
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Pi",
            "Sigma",
            "Upsilon",
            "Phi",
            "Psi",
            "Omega",
        ],
        "ΓΔΘΛΞΠΣΥΦΨΩ",
        strict=True,
    )
)
SIGNS = {
    "times": "×",
    "cdot": "·",
    "pm": "±",
    "leq": "≤",
    "le": "≤",
    "geq": "≥",
    "ge": "≥",
    "neq": "≠",
    "approx": "≈",
    "sim": "∼",
    "propto": "∝",
    "infty": "∞",
    "sum": "Σ",
    "prod": "Π",
    "int": "∫",
    "partial": "∂",
    "nabla": "∇",
    "sqrt": "√",
    "to": "→",
    "rightarrow": "→",
    "leftarrow": "←",
    "in": "∈",
    "ell": "ℓ",
    "prime": "′",
    "ldots": "…",
    "dots": "…",
    "Vert": "‖",
    "quad": " ",
    "log": "log",
    "ln": "ln",
    "exp": "exp",
    "max": "max",
    "min": "min",
    "Tr": "Tr",
}
FONTS = [
    "mathdefault",
    "mathrm",
    "mathit",
    "mathbf",
    "mathcal",
    "mathregular",
    "text",
    "operatorname",
    "left",
    "right",
]
ACCENTS = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304", "dot": "\u0307", "vec": "\u20d7"}
_TOKEN = re.compile(r"\\([A-Za-z]+)|\\(.)|([_^{}])|([^\\_^{}])", re.DOTALL)


def as_html(text: str) -> str:
    """A label fit for HTML and for plotly, which reads the same few tags.

    Braces are escaped too: plotly takes ``%{...}`` for a value to be filled in.

    >>> as_html(r"$\\sigma^2$ < 1"), as_html("$10^{-5}$"), as_html(r"cost \\$5")
    ('σ<sup>2</sup> &lt; 1', '10<sup>−5</sup>', 'cost $5')
    """
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0:  # an odd dollar sign is one
        return _escape(text)
    shown = [_math(part) if i % 2 else _escape(part) for i, part in enumerate(parts)]
    return "".join(shown)


def _escape(text: str) -> str:
    text = html.escape(text.replace("\\$", "$"), quote=True).replace("\n", "<br>")
    return text.replace("{", "&#123;").replace("}", "&#125;")


def _math(text: str) -> str:
    tokens: list[Token] = [(m[1], m[2], m[3], m[4]) for m in _TOKEN.finditer(text)]
    shown, _ = _group(tokens, 0)
    return shown


Token = tuple[str | None, str | None, str | None, str | None]


def _group(tokens: list[Token], place: int) -> tuple[str, int]:
    """Everything up to the closing brace, and where to go on."""
    parts = []
    while place < len(tokens) and tokens[place][2] != "}":
        part, place = _one(tokens, place)
        parts.append(part)
    return "".join(parts), place + 1


def _one(tokens: list[Token], place: int) -> tuple[str, int]:
    """One symbol, group, subscript or superscript."""
    if place >= len(tokens):
        return "", place
    name, escaped, mark, plain = tokens[place]
    place += 1
    if mark == "{":
        return _group(tokens, place)
    if mark in ("_", "^"):
        inner, place = _one(tokens, place)
        tag = "sub" if mark == "_" else "sup"
        return f"<{tag}>{inner}</{tag}>", place
    if name in ACCENTS:
        inner, place = _one(tokens, place)
        return inner + ACCENTS[name], place
    if name == "sqrt":
        inner, place = _one(tokens, place)
        return f"√({inner})" if len(inner) > 1 else f"√{inner}", place
    if name is not None:  # a font, or a sign with a name
        return GREEK.get(name) or SIGNS.get(name) or ("" if name in FONTS else _escape(name)), place
    if escaped is not None:
        return {",": " ", ";": " ", ":": " ", " ": " ", "!": "", "|": "‖"}.get(
            escaped, _escape(escaped)
        ), place
    return (_escape(plain or "").replace("-", "−"), place)
