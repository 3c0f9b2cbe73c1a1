r"""Every quantity that a run reports: each column of ``trials``, ``history`` and ``steps``, once.

Headings and the order of tables, the explanations on pages and in W&B's reports, curves, checks of
what is read from a folder and ``docs/quantities.md`` are made from this list. A column that ends in
``@`` is one of each noise std sigma of the auxiliary process: ``bound/theorem2@`` stands for
``bound/theorem2@0.01`` and so on.

``python -m gisgd_ray.theory.quantities docs/quantities.md`` writes the documentation's table.
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

NBSP = "\N{NO-BREAK SPACE}"
OURS, NEU = "ours", "Neu et al."
"""Details of the bounds that are compared, and of their parts."""

NOTATION = (
    "S is the training sample of n examples, W_t the d weights after t of T updates, λ_t the "
    "learning rate, B_t the batch of b examples, g(w, B) the mean gradient of the loss ℓ over B, "
    "σ_t the std of the auxiliary noise N_t, Δ_t its sum so far. L_S is the mean loss over S; L_μ, "
    "over the population, is taken over the test split S′. Losses are in nats, or of (f − y)²/2."
)


class Group(StrEnum):
    """Of columns that stand together in a table, in its order."""

    TRAINING = "Training"
    BOUND = "Bounds on the gap"
    PARTS = "Parts of Eq. 3"
    TRAJECTORY = "Trajectory term"
    FLATNESS = "Flatness"
    SUM = "Bound: trajectory + flatness"
    PERTURBED_R = "Bound with R at σ"
    OTHER = "Also measured"


class Panel(StrEnum):
    """Where curves of a trial along training stand, in its order."""

    LOSS = "loss"
    ACCURACY = "accuracy"
    GAP = "gap and bounds"
    DISPERSION = "gradient dispersion"
    MEAN_GRADIENT = "mean gradient over μ less that over S, squared"
    GRADIENT_NORM = "gradient norm"
    TRAJECTORY_FACTOR = "trajectory factor of Eq. 3"
    FLATNESS_FACTOR = "flatness factor Tr H of Eq. 3"
    R = "R"
    GRADIENT_FACTOR = "gradient multiplied by"
    LEARNING_RATE = "learning rate"
    ACTIVE_UNITS = "active units"


def at(name: str, noise_std: float) -> str:
    """Column of a metric at one noise std."""
    return f"{name}@{noise_std:g}"


@dataclass(frozen=True)
class Quantity:
    """One column, or one a noise std where the name ends in ``@``."""

    name: str
    symbol: str
    """As a heading or a legend says it."""
    meaning: str
    """In a sentence or two, without markup."""
    unit: str = ""
    """Of numbers that have one; "loss" is nats for cross-entropy, "weight" that of a parameter."""
    latex: str = ""
    """The formula."""
    defined: str = ""
    """What computes it, below ``gisgd_ray.``. A formula of ``theory.bounds`` whose arguments the
    sums over the steps have is evaluated by this entry alone (:mod:`gisgd_ray.training.terms`)."""
    trajectory: str = ""
    """Of a bound that is a trajectory term plus the flatness gap at the same sigma: the term."""
    group: Group | None = None
    """Where tables show it, if they do."""
    detail: str = ""
    """Second line of its heading."""
    panel: Panel | None = None
    """Where its curve stands, if it has one."""
    tables: str = "th"
    """Which have it: t(rials), h(istory), s(teps)."""
    kind: Literal["number", "count", "text", "list"] = "number"
    """A count may be a float in a table, where another trial has none."""
    lower_is_better: bool | None = None
    """None where neither is."""

    @property
    def at_noise_std(self) -> bool:
        return self.name.endswith("@")


_V = r"\mathbb{E}\left[V_t(W_{t-1})\right]"
_LR2 = r"\sum_{t=1}^{T} \lambda_t^2\,"
_FACTOR = rf"\frac{{R^2 T}}{{n}} {_LR2} {_V}"
_GAP = "the flatness gap at the same σ is added"
_ERROR = "Standard error of the one before"

_ENDED = (
    Quantity("trial_id", "trial", "Hash of the trial's configuration", kind="text", tables="th"),
    Quantity("status", "status", "finished, diverged or failed", kind="text", tables="t"),
    Quantity("settings", "settings",
             "What differs from the defaults, as JSON, of which trial_id is the hash", kind="text",
             tables="t"),
    Quantity("stop_reason", "stopped by", "Which rule ended the training, or why the run diverged",
             kind="text", tables="t"),
    Quantity("outside_theorem", "outside the theorem", "What of the training no theorem covers",
             kind="text", tables="t"),
    Quantity("error", "error", "The traceback of a trial that failed", kind="text", tables="t"),
    Quantity("steps", "steps T", "Updates taken", "steps", kind="count", tables="t",
             group=Group.TRAINING),
    Quantity("epochs", "epochs", "Passes over the training split, the last one maybe in part",
             "epochs", tables="t"),
    Quantity("step", "step", "Updates before this point; in the table of steps t", "steps",
             kind="count", tables="hs"),
    Quantity("epoch", "epoch", "Likewise in passes over the training split", "epochs", tables="h"),
    Quantity("num_samples", "n", "Training samples", "samples", kind="count", tables="t"),
    Quantity("num_test_samples", "n′", "Test samples, which stand for the population", "samples",
             kind="count", tables="t"),
    Quantity("num_classes", "K", "Classes; 1 in regression", kind="count", tables="t"),
    Quantity("num_parameters", "d", "Trainable parameters", kind="count", tables="t"),
    Quantity("data/normalization_mean", "mean", "What was taken off the inputs, by channel",
             kind="list", tables="t"),
    Quantity("data/normalization_std", "std", "What the inputs were then divided by, by channel",
             kind="list", tables="t"),
    Quantity("learning_rate", "λ", "Learning rate of the step, or of the last one", "weight²/loss",
             tables="ths", panel=Panel.LEARNING_RATE),
)  # fmt: skip

_EVALUATED = (
    Quantity("train/loss", "train loss", "Mean loss over the training split", "loss",
             group=Group.TRAINING, defined="training.evaluation.evaluate", lower_is_better=True,
             panel=Panel.LOSS),
    Quantity("train/accuracy", "train accuracy",
             "Fraction of the training samples classified as labelled",
             defined="training.evaluation.evaluate", lower_is_better=False, panel=Panel.ACCURACY),
    Quantity("test/loss", "test loss", "Mean loss over the test split", "loss",
             group=Group.TRAINING, defined="training.evaluation.evaluate", lower_is_better=True,
             panel=Panel.LOSS),
    Quantity("test/accuracy", "test accuracy",
             "Fraction of the test samples classified as labelled",
             group=Group.TRAINING, detail="%", defined="training.evaluation.evaluate",
             lower_is_better=False, panel=Panel.ACCURACY),
    Quantity("gap/loss", "true gap",
             "The generalization gap, with its sign, that the bounds bound: test loss less "
             "training loss", "loss", r"L_\mu(W_T) - L_S(W_T)",
             group=Group.TRAINING, detail="test − train",
             defined="training.evaluation.evaluate_splits", lower_is_better=True, panel=Panel.GAP),
    Quantity("gap/loss_stderr", "± of the true gap", f"{_ERROR}, over replicas", "loss"),
    Quantity("gap/accuracy", "accuracy gap", "Training accuracy less test accuracy",
             defined="training.evaluation.evaluate_splits"),
)  # fmt: skip

_BOUNDS = (
    Quantity("bound/theorem2_closed_form", f"Eq.{NBSP}3",
             "Theorem 2 with one noise std for all steps, optimised away: 3/2 times the cube root "
             "of the trajectory factor times the flatness factor", "loss",
             rf"\mathrm{{gen}} \le \frac{{3}}{{2}} \left( {_FACTOR} \cdot "
             r"\mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)] \right)^{1/3}",
             group=Group.BOUND, detail="Theorem 2", defined="theory.bounds.theorem2_closed_form",
             lower_is_better=True),
    Quantity("bound/lemma7", f"Lemma{NBSP}7",
             "Eq. 3 with the squared gradient norm in place of the dispersion: the greater of "
             "the two, but for batches that are a good part of n, without replacement", "loss",
             rf"\mathrm{{gen}} \le \frac{{3}}{{2}} \left( \frac{{R^2 T}}{{n}} {_LR2} "
             r"\mathbb{E}\lVert g(W_{t-1}, B_t) \rVert^2 \cdot "
             r"\mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)] \right)^{1/3}",
             group=Group.BOUND, defined="theory.bounds.lemma7", lower_is_better=True),
    Quantity("bound/theorem3", f"Theorem{NBSP}3",
             "Of a linear network, with ‖x‖ = 1 and the loss (y − w·x)²/2: Lemma 7 with E‖g‖² ≤ "
             "2 E ℓ and Tr H = 1", "loss",
             rf"\mathrm{{gen}} \le 3 \left( \frac{{R^2 T}}{{4n}} {_LR2} "
             r"\mathbb{E}[\ell(W_{t-1}, Z)] \right)^{1/3}",
             group=Group.BOUND, defined="theory.bounds.theorem3", lower_is_better=True),
    Quantity("bound/theorem4", f"Theorem{NBSP}4",
             "Of a two-layer ReLU network of m hidden units; I is 1 where unit r is active on x_i, "
             "else 0", "loss",
             r"\mathrm{gen} \le 3 \left( \frac{R^2 T}{4 n m^2}\, \mathbb{E}\left[ \sum_r "
             rf"I_{{r,i,T}} \right] {_LR2} \mathbb{{E}}\left[ \sum_r I_{{r,i,t}}\, "
             r"\ell(W_{t-1}, Z_i) \right] \right)^{1/3}",
             group=Group.BOUND, defined="theory.bounds.theorem4", lower_is_better=True),
    Quantity("bound/undefined_reason", "undefined", "Why a bound of the row is NaN", kind="text",
             tables="t", defined="training.terms.undefined_reason"),
    Quantity("bound/remark", "remark", "What must be known of a bound that is a number",
             kind="text", tables="t", defined="training.terms.remark"),
)  # fmt: skip

_PARTS = (
    Quantity("term/trajectory_factor", "trajectory factor",
             "The part of Eq. 3 that the steps make: Figure 6 (a) and (c)", "(loss · weight)²",
             _FACTOR, group=Group.PARTS, defined="theory.bounds.trajectory_factor",
             panel=Panel.TRAJECTORY_FACTOR),
    Quantity("term/flatness_factor", "flatness factor",
             "The part of Eq. 3 that the last weights make: the trace of the Hessian over the "
             "training data, Figure 6 (b) and (d); smaller is flatter", "loss/weight²",
             r"\mathrm{Tr}\, \mathbb{E}_Z[H_{W_T}(Z)]",
             group=Group.PARTS, detail="Tr H", defined="measures.hessian.HessianOperator.trace",
             panel=Panel.FLATNESS_FACTOR),
    Quantity("measure/hessian_trace", "Tr H",
             "The same, exact for piecewise-linear networks, else PyHessian's estimate",
             "loss/weight²", defined="measures.hessian.HessianOperator.trace"),
    Quantity("measure/hessian_trace_stderr", "± of Tr H",
             f"{_ERROR}, over the probes or the replicas; 0 where it is exact", "loss/weight²",
             defined="measures.hessian.HessianOperator.trace"),
    Quantity("measure/hessian_trace_estimator", "Tr H from", "How Tr H was found", kind="text"),
    Quantity("measure/subgaussian_constant", "R",
             "The sub-Gaussian constant: half the range of all per-sample losses met in training",
             "loss", r"R = \tfrac{1}{2} \left( \max \ell - \min \ell \right)",
             group=Group.PARTS, defined="training.terms.StepSums.radius", panel=Panel.R),
    Quantity("measure/subgaussian_constant_perturbed_at_optimum", "R",
             "R of the losses at W_T + Δ_T, at σ*: where it is above R, nothing proves Eq. 3",
             "loss", group=Group.PARTS, detail="at σ*", defined="measures.flatness.flatness_gaps"),
    Quantity("term/optimal_noise_std", "σ*",
             "The noise std at which Theorem 2's bound is least: there it equals Eq. 3", "weight",
             rf"\sigma^* = \left( \frac{{1}}{{T\, \mathrm{{Tr}}\, H}} \sqrt{{ \frac{{R^2}}{{n}} "
             rf"{_LR2} {_V} }} \right)^{{1/3}}",
             group=Group.PARTS, defined="theory.bounds.optimal_noise_std"),
    Quantity("term/trajectory_at_optimum", "trajectory term at σ*",
             "Two thirds of Eq. 3, always", "loss", defined="theory.bounds.terms_at_optimum"),
    Quantity("term/flatness_at_optimum", "flatness term at σ*", "The other third", "loss",
             defined="theory.bounds.terms_at_optimum"),
    Quantity("term/theorem2_trajectory_at_optimum", f"Eq.{NBSP}2",
             "Eq. 2's trajectory term at σ*: less than that of Eq. 3, whose log is made linear",
             "loss", group=Group.TRAJECTORY, detail="σ = σ*",
             defined="theory.bounds.theorem2_trajectory"),
    Quantity("measure/flatness_draws_at_optimum", "draws at σ*",
             "Draws of Δ_T at σ*", kind="count"),
    Quantity("measure/test_loss_increase_at_optimum", "test loss increase at σ*",
             "By how much Δ_T raises the test loss at σ*: Eq. 3 takes for granted that it does",
             "loss",
             defined="measures.flatness.flatness_gaps"),
    Quantity("measure/test_loss_increase_stderr_at_optimum", "± of that", _ERROR, "loss"),
)  # fmt: skip

_STEPS = (
    Quantity("measure/gradient_dispersion", "V",
             "Gradient dispersion of the batch mean: its mean over the steps since the point "
             "before, in a trial's row over all steps. Estimated by s²/b; over replicas by their "
             "spread", "(loss/weight)²",
             r"V_t(w) = \mathbb{E} \left\lVert g(w, B_t) - \mathbb{E}_{W,Z}[\nabla \ell(W, Z)] "
             r"\right\rVert^2",
             group=Group.OTHER, detail="Eq. 1",
             defined="measures.step_series.StepSeries.gradient_dispersion", lower_is_better=True,
             panel=Panel.DISPERSION),
    Quantity("measure/gradient_dispersion_neu", "Ṽ",
             "Likewise of Neu et al., the inner mean over Z alone: in a single run the same as V",
             "(loss/weight)²",
             r"\tilde{V}_t(w) = \mathbb{E} \left\lVert g(w, B_t) - \mathbb{E}_Z[\nabla \ell(w, Z)] "
             r"\right\rVert^2",
             group=Group.OTHER, detail=NEU,
             defined="measures.step_series.StepSeries.gradient_dispersion_neu",
             panel=Panel.DISPERSION),
    Quantity("measure/gradient_dispersion_estimator", "V from",
             "How the dispersion was measured", kind="text", tables="t"),
    Quantity("measure/gradient_dispersion_of", "V of",
             "Which gradient it is of: the plain one, or the one that the scheme applies",
             kind="text", tables="t"),
    Quantity("measure/per_sample_dispersion", "s²",
             "Dispersion of the gradients of single samples, unbiased, likewise a mean over steps",
             "(loss/weight)²",
             r"s^2 = \frac{1}{b-1} \sum_{i=1}^{b} \lVert g_i - \bar{g} \rVert^2",
             defined="measures.step_series.StepSeries.per_sample_dispersion"),
    Quantity("measure/between_group_dispersion", "s² between groups",
             "The same from groups of the batch, where samples have no gradients of their own",
             "(loss/weight)²", defined="measures.groups.BetweenGroups"),
    Quantity("measure/gradient_norm", "‖g‖", "Norm of the batch's gradient, likewise",
             "loss/weight", panel=Panel.GRADIENT_NORM,
             defined="training.terms.StepSums.means"),
    Quantity("measure/gradient_factor", "gradient factor",
             "What clipping has multiplied the gradient by, likewise; absent where nothing was "
             "clipped", panel=Panel.GRADIENT_FACTOR,
             defined="training.terms.StepSums.means"),
    Quantity("measure/ill_conditioned_steps", "ill-conditioned steps",
             "Steps whose gradients agree so well that rounding may be 0.1 % of V or more",
             kind="count", tables="t",
             defined="measures.step_series.StepSeries.ill_conditioned_steps"),
    Quantity("measure/active_units", "active units",
             "Hidden units active on a sample, mean over the training data",
             defined="measures.activation.mean_active_units", panel=Panel.ACTIVE_UNITS),
    Quantity("sum/dispersion", "Σ V", "What Figure 1 shows the root of, for ours",
             "(loss/weight)²", r"\sum_{s \le t} V_s",
             defined="training.terms.TrajectoryTerms.metrics"),
    Quantity("sum/dispersion_neu", "Σ Ṽ", "The same of Ṽ", "(loss/weight)²",
             defined="training.terms.TrajectoryTerms.metrics"),
    Quantity("sum/lr2_dispersion", "Σ λ²V", "Σ λ_t² V_t, from which the terms can be made again",
             "weight²",
             defined="training.terms.TrajectoryTerms.metrics"),
    Quantity("sum/lr2_dispersion_neu", "Σ λ²Ṽ", "Σ λ_t² Ṽ_t", "weight²",
             defined="training.terms.TrajectoryTerms.metrics"),
    Quantity("sum/lr2_gradient_norm2", "Σ λ²‖g‖²", "Σ λ_t² ‖g(W_{t-1}, B_t)‖²", "weight²",
             defined="training.terms.TrajectoryTerms.metrics"),
    Quantity("measure/mean_gradient_gap", "‖∇L_μ − ∇L_S‖²",
             "How much larger Ṽ is about the population's mean gradient; the sampling error of S′ "
             "is taken off, so that it may be below 0", "(loss/weight)²",
             r"\lVert \nabla L_\mu(w) - \nabla L_S(w) \rVert^2",
             group=Group.OTHER, detail="at W_T",
             defined="measures.mean_gradient_gap.combined", panel=Panel.MEAN_GRADIENT),
    Quantity("measure/mean_gradient_gap_stderr", "± of that", _ERROR, "(loss/weight)²"),
    Quantity("measure/smoothness", "β",
             "The largest absolute eigenvalue of the Hessian at W_T: the local curvature, in place "
             "of a constant for all weights, which it may fall short of", "loss/weight²",
             r"\beta = \max_i \left\lvert \lambda_i \right\rvert, \quad "
             r"\lambda_i \text{ of } \mathbb{E}_Z[H_{W_T}(Z)]",
             group=Group.OTHER, detail="at W_T",
             defined="measures.hessian.HessianOperator.largest_eigenvalue"),
    Quantity("measure/smoothness_residual", "residual of β",
             "The size of some eigenvalue is within it of β, very likely that of the largest: β is "
             "the larger of what Lanczos' method finds, from below, from two starts; at most "
             "β/1000 but where 100 Hessian-vector products did not do", "loss/weight²",
             defined="measures.hessian.HessianOperator.largest_eigenvalue"),
)  # fmt: skip

_AT_NOISE_STDS = (
    Quantity("term/theorem2_trajectory@", f"Eq.{NBSP}2",
             f"Theorem 2's trajectory term; {_GAP} for the bound. In a single run Theorem 1 is the "
             "same number", "loss",
             r"\sqrt{ \frac{R^2 d}{n} \sum_{t=1}^{T} \log\left( 1 + "
             rf"\frac{{\lambda_t^2\, {_V}}}{{d\, \sigma_t^2}} \right) }}",
             group=Group.TRAJECTORY, detail=OURS, defined="theory.bounds.theorem2_trajectory"),
    Quantity("term/lemma2_trajectory@", f"Lemma{NBSP}2",
             f"The trajectory term of Neu et al. (2021, Theorem 1); {_GAP} for the bound", "loss",
             r"2 \sqrt{ \frac{2 R^2}{n} \sum_{t=1}^{T} "
             r"\frac{\lambda_t^2}{\sigma_t^2}\, "
             r"\mathbb{E}\left[ \Psi(W_{t-1}) + \tilde{V}_t(W_{t-1}) \right] }",
             group=Group.TRAJECTORY, detail=NEU,
             defined="theory.bounds.lemma2_trajectory"),
    Quantity("term/lemma2_without_sensitivity@", f"Lemma{NBSP}2 with Ψ = 0",
             "What Lemma 2's trajectory term is at least, known without measuring Ψ", "loss",
             defined="training.terms.TrajectoryTerms.linear"),
    Quantity("term/theorem1_trajectory@", f"Thm.{NBSP}1",
             "Theorem 1's trajectory term, of replicas: D_t is the dispersion of the gradient "
             "about its mean given the noisy weights, over the replicas that may have been "
             "W_{t-1}. Never above Eq. 2, but for the sampling error of V", "loss",
             r"\sqrt{ \frac{R^2 d}{n} \sum_{t=1}^{T} \mathbb{E} \log\left( 1 + "
             r"\frac{\lambda_t^2\, D_t(\tilde{W}_{t-1})}{d\, \sigma_t^2} \right) }",
             group=Group.TRAJECTORY, defined="theory.bounds.theorem1_trajectory"),
    Quantity("term/corollary1_trajectory@", f"Cor.{NBSP}1",
             f"Corollary 1's trajectory term, Lemma 2's with a smaller constant; {_GAP} for the "
             "bound", "loss",
             r"\sqrt{ \frac{2 R^2}{n} \sum_{t=1}^{T} \frac{\lambda_t^2}{\sigma_t^2}\, "
             r"\mathbb{E}\left[ 3 \Psi(W_{t-1}) + 2 \tilde{V}_t(W_{t-1}) \right] }",
             group=Group.TRAJECTORY, defined="theory.bounds.corollary1_trajectory"),
    Quantity("term/lemma2_population_trajectory@", f"Lemma{NBSP}2, Ṽ about μ",
             "Lemma 2's trajectory term with Ṽ about the population's mean gradient, as it asks",
             "loss",
             defined="training.terms.TrajectoryTerms.lemma2_population_trajectory"),
    Quantity("measure/flatness_gap@", f"flatness{NBSP}gap",
             "How differently the noise Δ_T raises the two losses, in absolute value; a mean over "
             "draws of Δ_T", "loss",
             r"\left\lvert \mathbb{E}[ \gamma(W_T, S) - \gamma(W_T, S') ] \right\rvert, \quad "
             r"\gamma(w, s) = \mathbb{E}_\Delta\left[ L_s(w + \Delta_T) - L_s(w) \right]",
             group=Group.FLATNESS, detail="± 95 %", defined="measures.flatness.flatness_gaps"),
    Quantity("measure/flatness_gap_signed@", "signed flatness gap", "The same with its sign",
             "loss", defined="measures.flatness.flatness_gaps"),
    Quantity("measure/flatness_gap_stderr@", "± over draws",
             f"{_ERROR}, over the draws, or over the replicas", "loss"),
    Quantity("measure/flatness_gap_sampling_stderr@", "± over samples",
             "Its standard error over the samples of S and S′", "loss"),
    Quantity("measure/flatness_draws@", "draws",
             "Draws of Δ_T, all replicas together: 16 or a few more, then twice as many until the "
             "error is below measurement.flatness_target of the gap, measurement.flatness_draws at "
             "most, but 4 of each replica",
             kind="count"),
    Quantity("term/corollary2_flatness@", f"β{NBSP}d{NBSP}Σσ²",
             "Corollary 2's flatness term, for a loss that is β-smooth", "loss",
             r"\beta\, d \sum_{t=1}^{T} \sigma_t^2",
             group=Group.FLATNESS, detail="Cor. 2", defined="theory.bounds.corollary2"),
    Quantity("bound/theorem2@", f"Eq.{NBSP}2",
             "term/theorem2_trajectory@σ + measure/flatness_gap@σ", "loss",
             group=Group.SUM, detail=OURS, trajectory="term/theorem2_trajectory",
             defined="training.terms.bounds_at"),
    Quantity("bound/lemma2_neu@", f"Lemma{NBSP}2", "term/lemma2_trajectory@σ + the flatness gap",
             "loss", group=Group.SUM, detail=NEU, trajectory="term/lemma2_trajectory",
             defined="training.terms.bounds_at"),
    Quantity("bound/lemma2_neu_population@", f"Lemma{NBSP}2",
             "term/lemma2_population_trajectory@σ + the flatness gap", "loss",
             group=Group.SUM, detail="Ṽ about μ", trajectory="term/lemma2_population_trajectory",
             defined="training.terms.bounds_at"),
    Quantity("bound/theorem1@", f"Thm.{NBSP}1",
             "Of replicas: term/theorem1_trajectory@σ + the flatness gap", "loss",
             group=Group.SUM, trajectory="term/theorem1_trajectory",
             defined="training.terms.bounds_at"),
    Quantity("bound/corollary1@", f"Cor.{NBSP}1", "term/corollary1_trajectory@σ + the flatness gap",
             "loss", group=Group.SUM, trajectory="term/corollary1_trajectory",
             defined="training.terms.bounds_at"),
    Quantity("bound/corollary2@", f"Cor.{NBSP}2",
             "term/theorem2_trajectory@σ + term/corollary2_flatness@σ", "loss",
             group=Group.SUM, defined="training.terms.bounds_at"),
    Quantity("measure/subgaussian_constant_perturbed@", "R at σ",
             "Half the range of the losses at W_T + Δ_T, over S, S′ and the draws, which Lemma 1 "
             "asks for: where it is above R from training, nothing proves a bound with the latter",
             "loss", r"\tfrac{1}{2} \left( \max \ell - \min \ell \right) \text{ at } "
             r"W_T + \Delta_T", defined="measures.flatness.flatness_gaps"),
    Quantity("bound/theorem2_perturbed_r@", f"Eq.{NBSP}2", "bound/theorem2@σ with R at σ", "loss",
             group=Group.PERTURBED_R, detail=OURS, defined="training.terms.bounds_at"),
    Quantity("bound/lemma2_neu_perturbed_r@", f"Lemma{NBSP}2", "bound/lemma2_neu@σ with R at σ",
             "loss", group=Group.PERTURBED_R, detail=NEU,
             defined="training.terms.bounds_at"),
    Quantity("measure/test_loss_increase@", "test loss increase",
             "By how much Δ_T raises the test loss, γ(W_T, S′)", "loss",
             defined="measures.flatness.flatness_gaps"),
    Quantity("measure/test_loss_increase_stderr@", "± of that",
             f"{_ERROR}, over draws and samples", "loss"),
    Quantity("measure/local_gradient_sensitivity@", "Ψ",
             "Local gradient sensitivity at a measuring point, over draws of ζ; in a trial's row "
             "its mean over all steps", "(loss/weight)²",
             r"\Psi(w_{t-1}) = \mathbb{E}_\zeta \left\lVert \mathbb{E}_Z[\nabla \ell(w_{t-1}, Z)] "
             r"- \mathbb{E}_Z[\nabla \ell(w_{t-1} + \zeta, Z)] \right\rVert^2, \quad "
             r"\zeta \sim \mathcal{N}\left(0, \sum_{s<t} \sigma_s^2 I\right)",
             group=Group.OTHER, detail="mean over t",
             defined="measures.sensitivity.local_gradient_sensitivity"),
    Quantity("measure/local_gradient_sensitivity_stderr@", "± of Ψ",
             f"{_ERROR}, over the draws, or over the replicas", "(loss/weight)²"),
    Quantity("sum/sensitivity@", "Σ Ψ",
             "What Neu et al.'s curve of Figure 1 adds to Σ V: √(2 Σ (Ψ + V))", "(loss/weight)²",
             r"\sum_{s \le t} \Psi_s", defined="training.sensitivity_terms.SensitivityTerms"),
    Quantity("sum/lr2_sensitivity@", "Σ λ²Ψ", "Σ λ_t² Ψ_t", "weight²",
             defined="training.sensitivity_terms.SensitivityTerms"),
    Quantity("sum/lr2_mean_gradient_gap", "Σ λ²‖∇L_μ − ∇L_S‖²",
             "What comes on top of Σ λ²Ṽ about the population's mean", "weight²",
             defined="training.interpolated.InterpolatedSum"),
    Quantity("measure/sensitivity_interpolation", "Ψ between points",
             "How Ψ was filled in between the steps it was measured at", kind="text", tables="t"),
    Quantity("measure/sensitivity_samples", "samples of Ψ", "Training samples in a draw of Ψ",
             "samples", kind="count", tables="t"),
    Quantity("measure/sensitivity_estimator", "Ψ from",
             "From which samples: two halves of fewer than all take their own noise out, and the "
             "estimate may then be below 0", kind="text", tables="t"),
)  # fmt: skip

_LAUNCHED = (
    Quantity("time/training_s", "training time", "Time of all training steps", "s", tables="t"),
    Quantity("time/training_cpu_s", "training CPU time", "CPU time of the same", "s", tables="t"),
    Quantity("time/measuring_s", "measuring time", "Time at the measuring points", "s",
             tables="t"),
    Quantity("device", "device", "cpu or cuda", kind="text", tables="t"),
    Quantity("hostname", "host", "Machine that the trial ended on", kind="text", tables="t"),
    Quantity("resources/cpus", "CPUs", "CPUs that the trial had", kind="count", tables="t"),
    Quantity("resources/gpus", "GPUs", "GPUs that the trial had, a fraction maybe", tables="t"),
    Quantity("wandb/status", "W&B", "Where the trial's W&B run is", kind="text", tables="t"),
    Quantity("wandb/run", "W&B run", "Its path, [ENTITY/]PROJECT/ID", kind="text", tables="t"),
)  # fmt: skip

_OF_A_STEP = (
    Quantity("batch_size", "b", "Samples in the batch", "samples", tables="s"),
    Quantity("loss", "batch loss", "Mean loss of the batch at W_{t-1}", "loss", tables="s"),
    Quantity("loss_min", "min ℓ", "Least loss in the batch", "loss", tables="s"),
    Quantity("loss_max", "max ℓ", "Greatest loss in the batch", "loss", tables="s"),
    Quantity("squared_gradient_norm", "‖g‖²", "Of the batch's gradient", "(loss/weight)²",
             tables="s"),
    Quantity("mean_squared_norm", "mean ‖g_i‖²", "Over the gradients of the batch's samples",
             "(loss/weight)²", tables="s"),
    Quantity("replica_dispersion", "V over replicas", "NaN in a single run", "(loss/weight)²",
             tables="s"),
    Quantity("active_loss", "active loss", "Theorem 4's Σ_r I ℓ, mean over the batch", "loss",
             tables="s"),
    Quantity("group_dispersion", "s² between groups", "NaN where it is from per-sample norms",
             "(loss/weight)²", tables="s"),
    Quantity("gradient_factor", "gradient factor",
             "What the scheme multiplied the plain gradient by; NaN where it did something else",
             tables="s"),
    Quantity("gradient_dispersion", "V", "Of this step", "(loss/weight)²", tables="s"),
    Quantity("gradient_dispersion_neu", "Ṽ", "Of this step", "(loss/weight)²", tables="s"),
    Quantity("per_sample_dispersion", "s²", "Of this step", "(loss/weight)²", tables="s"),
)  # fmt: skip

QUANTITIES: dict[str, Quantity] = {
    q.name: q
    for part in (_ENDED, _EVALUATED, _BOUNDS, _PARTS, _STEPS, _AT_NOISE_STDS, _LAUNCHED, _OF_A_STEP)
    for q in part
}
"""By name, in the order of tables and explanations."""


def quantity(column: str) -> Quantity | None:
    """What a column of a table holds, its noise std aside; None of a column that is the user's own.

    >>> quantity("bound/theorem2@0.01").meaning
    'term/theorem2_trajectory@σ + measure/flatness_gap@σ'
    """
    stem, at, _ = column.partition("@")
    return QUANTITIES.get(stem + at)


def symbol(column: str) -> str:
    """As a heading says it; a column of the user's own goes by its name."""
    known = quantity(column)
    return known.symbol if known else column


def markdown() -> str:
    """The table of the documentation."""
    lines = [
        "# Quantities",
        "",
        "Made from `gisgd_ray/theory/quantities.py`; do not edit. " + NOTATION,
        "",
        "Tables: t `trials.parquet`, h `history.parquet`, s `steps/<trial_id>.parquet`. A name "
        "that ends in `@σ` is a column for each σ of `measurement.noise_stds`: "
        "`bound/theorem2@0.01`.",
        "",
        "| column | symbol | unit | meaning | tables | code |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for q in QUANTITIES.values():
        name = f"{q.name}σ" if q.at_noise_std else q.name
        formula = f"<br>${q.latex}$" if q.latex else ""
        code = f"`{q.defined}`" if q.defined else ""
        cells = (f"`{name}`", q.symbol, q.unit, f"{q.meaning}.{formula}", q.tables, code)
        lines.append(f"| {' | '.join(cells)} |".replace(NBSP, " "))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
