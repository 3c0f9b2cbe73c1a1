"""What a W&B report says in words: formulas in LaTeX, tables in Markdown. No W&B here."""

from collections.abc import Iterable, Mapping, Sequence

from gisgd_ray.claims.claim import HOW_JUDGED, Claim
from gisgd_ray.figures.tables import Table
from gisgd_ray.report.comparison import Comparison

MOST_ROWS = 200
"""Of a table in a report, which is a single text there."""

GIVEN = (
    "T steps with learning rates λ_t on n samples and d parameters. R is half the range of all "
    "per-instance losses met in training, V_t the dispersion of the batch-mean gradient (Eq. 1), "
    "σ_t the standard deviation of the auxiliary noise, γ(w, s) the flatness "
    "E_Δ[L_s(w + Δ_T) - L_s(w)]. Losses are in nats."
)

FORMULAS: tuple[tuple[str, str], ...] = (
    (
        "Theorem 2, Eq. 3 (ours): the noise std equal at all steps and optimised away.",
        r"\mathrm{gen} \le \frac{3}{2} \left( \frac{R^2 T}{n} \sum_{t=1}^{T} \lambda_t^2\, "
        r"\mathbb{E}[V_t(W_{t-1})] \cdot \mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)] \right)^{1/3}",
    ),
    (
        "The noise std at which Eq. 3 is attained.",
        r"\sigma^* = \left( \frac{A}{2B} \right)^{1/3}, \quad "
        r"A = \sqrt{ \frac{R^2}{n} \sum_{t=1}^{T} \lambda_t^2\, \mathbb{E}[V_t(W_{t-1})] }, \quad "
        r"B = \frac{T}{2}\, \mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)]",
    ),
    (
        "Theorem 2, Eq. 2 (ours): the trajectory term, term/theorem2_trajectory@σ; the bound adds "
        "the flatness gap |E[γ(W_T, S) - γ(W_T, S')]|.",
        r"\sqrt{ \frac{R^2 d}{n} \sum_{t=1}^{T} \log\left( 1 + "
        r"\frac{\lambda_t^2\, \mathbb{E}[V_t(W_{t-1})]}{d\, \sigma_t^2} \right) }",
    ),
    (
        "Lemma 2 (Neu et al. 2021): the trajectory term, term/lemma2_trajectory@σ; the bound adds "
        "the same gap. Without its sensitivity Ψ it is term/lemma2_without_sensitivity@σ at least.",
        r"2 \sqrt{ \frac{2 R^2}{n} \sum_{t=1}^{T} \frac{\lambda_t^2}{\sigma_t^2}\, "
        r"\mathbb{E}\left[ \Psi(W_{t-1}) + \tilde{V}_t(W_{t-1}) \right] }",
    ),
)
"""What every report states: what it is, and the formula."""

DISPERSION = r"V_t(w) = \mathbb{E} \left\| g(w, B_t) - \mathbb{E}_{W,Z}[\nabla \ell(W, Z)] "
DISPERSION += r"\right\|^2"
MEANINGS: dict[str, tuple[str, str]] = {
    "measure/gradient_dispersion": (
        "V_t, mean over the steps since the point before; over all steps in a run's summary",
        DISPERSION,
    ),
    "measure/gradient_dispersion_neu": (
        "Ṽ_t of Neu et al., likewise; in a single run the same as V_t",
        r"\tilde{V}_t(w) = \mathbb{E} \left\| g(w, B_t) - \mathbb{E}_Z[\nabla \ell(w, Z)] "
        r"\right\|^2",
    ),
    "measure/mean_gradient_gap": (
        "how much larger Ṽ_t is about the population's mean gradient, the test split standing for "
        "μ, its sampling error taken off",
        r"\left\| \nabla L_\mu(w) - \nabla L_S(w) \right\|^2",
    ),
    "measure/local_gradient_sensitivity@": (
        "Ψ, the local gradient sensitivity at a measuring point",
        r"\Psi(w_{t-1}) = \mathbb{E}_\zeta \left\| \mathbb{E}_Z[\nabla \ell(w_{t-1}, Z)] - "
        r"\mathbb{E}_Z[\nabla \ell(w_{t-1} + \zeta, Z)] \right\|^2, \quad "
        r"\zeta \sim \mathcal{N}\left(0, \textstyle\sum_{s=1}^{t-1} \sigma_s^2 I\right)",
    ),
    "sum/dispersion": (
        "the sum that Figure 1 shows the root of, for ours",
        r"\sum_{s \le t} V_s",
    ),
    "sum/sensitivity@": (
        "what Neu et al.'s curve of Figure 1 adds to it: √(2 Σ (Ψ + V))",
        r"\sum_{s \le t} \Psi_s",
    ),
    "term/trajectory_factor": (
        "the trajectory factor, in (loss · weight)²",
        r"\frac{R^2 T}{n} \sum_{t=1}^{T} \lambda_t^2\, V_t",
    ),
    "term/flatness_factor": (
        "the flatness factor, over the training data",
        r"\mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)]",
    ),
    "bound/theorem2_closed_form": ("Eq. 3 above", ""),
    "bound/theorem3": (
        "Theorem 3, for a linear network with ‖x‖ = 1 and loss (y - w·x)²/2",
        r"3 \left( \frac{R^2 T}{4n} \sum_{t=1}^{T} \lambda_t^2\, "
        r"\mathbb{E}[\ell(W_{t-1}, Z)] \right)^{1/3}",
    ),
    "bound/theorem4": (
        "Theorem 4, for a two-layer ReLU network of m hidden units, "
        "I_{r,i,t} = 1{w_{t-1,r}·x_i ≥ 0}",
        r"3 \left( \frac{R^2 T}{4 n m^2}\, \mathbb{E}\left[ \sum_r I_{r,i,T} \right] "
        r"\sum_{t=1}^{T} \lambda_t^2\, \mathbb{E}\left[ \sum_r I_{r,i,t}\, \ell(W_{t-1}, Z_i) "
        r"\right] \right)^{1/3}",
    ),
    "gap/loss": (
        "the generalization gap, signed, that the bounds bound",
        r"L_\mu(W) - L_S(W) \approx \mathrm{test\ loss} - \mathrm{train\ loss}",
    ),
    "train/accuracy": ("the fraction of the training samples classified as labelled", ""),
    "test/accuracy": ("the fraction of the test samples classified as labelled", ""),
    "measure/gradient_factor": (
        "what clipping has multiplied the gradient by, mean over the steps since the point "
        "before; none where nothing was clipped",
        "",
    ),
    "time/training_s": ("the time of all training steps of a run, in s", ""),
    "term/theorem2_trajectory@": ("Eq. 2's trajectory term above", ""),
    "term/lemma2_trajectory@": ("Lemma 2's trajectory term above", ""),
}
"""What a metric is, in words and as a formula; ``@`` stands for any noise std."""


def meaning(name: str) -> tuple[str, str]:
    """In words and in LaTeX; both empty for a metric that is in no table of the README."""
    stem, at, _ = name.partition("@")
    return MEANINGS.get(stem + at, ("", ""))


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup, and it is one line.

    >>> escaped("a | b*\\nc_d <e>")
    'a \\\\| b\\\\* c\\\\_d \\\\<e\\\\>'
    """
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|*_`<>[]$~" else c for c in line)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already; rows beyond :data:`MOST_ROWS` are counted only."""
    lines = [headings, ["---"] * len(headings), *rows]
    shown = ["| " + " | ".join(line) + " |" for line in lines[: MOST_ROWS + 2]]
    left = len(lines) - len(shown)
    more = f"\n\n… and {left} more rows, in report.html and trials.parquet." if left > 0 else ""
    return "\n".join(shown) + more


def claims_markdown(claims: Sequence[Claim]) -> str:
    """The paper's claims with this run's verdicts, and how those were reached."""
    rows = [
        [escaped(claim.text), f"**{escaped(claim.verdict)}**", *map(escaped, (claim.evidence,)),
         escaped(claim.test)]
        for claim in claims
    ]  # fmt: skip
    table = markdown_table(["the paper says", "verdict", "evidence", "test"], rows)
    return f"{table}\n\n{escaped(HOW_JUDGED)}"


def comparison_markdown(comparison: Comparison) -> str:
    """Ours against Neu et al.'s, a line for every combination (or trial) and noise std."""
    headings = [
        " ".join(filter(None, (column.group, column.heading, column.detail)))
        for column in comparison.columns
    ]
    rows = []
    for block in comparison.blocks:
        named = ", ".join(f"{name} = {value}" for name, value in block.settings)
        named = ", ".join(filter(None, (named, block.status)))
        facts = ", ".join(f"{name} {value}" for name, value in block.facts)
        rows += [
            [*map(escaped, (named, line.noise_std, *line.cells, facts))] for line in block.lines
        ]
    return markdown_table(["setting", "σ", *map(escaped, headings), "without σ"], rows)


def paper_table_markdown(table: Table) -> str:
    """A table as the paper prints it, its title and caption around it."""
    rows = [
        [
            escaped(row.label),
            *(
                f"**{escaped(c)}**" if i in row.bold else escaped(c)
                for i, c in enumerate(row.cells)
            ),
        ]
        for row in table.rows
    ]
    parts = [
        f"**{escaped(table.title)}**",
        markdown_table(["", *map(escaped, table.headings)], rows),
    ]
    return "\n\n".join([*parts, escaped(table.caption)]).strip()


def facts_markdown(facts: Mapping[str, str]) -> str:
    """What was run, the command aside."""
    rows = [[escaped(name), escaped(text)] for name, text in facts.items() if name != "command"]
    return markdown_table(["", ""], rows)
