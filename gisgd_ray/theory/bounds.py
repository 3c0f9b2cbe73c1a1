"""The bounds of Wang & Mao (ICLR 2022) as pure functions: numbers in, a number out, numpy only.

The arguments mean the same in every function; sums run over the updates t = 1..T:

    subgaussian_constant    R >= 0, in units of the loss
    num_samples             n >= 1, size of the training sample
    num_parameters          d >= 1
    learning_rates          lambda_t >= 0, shape (T,)
    noise_stds              sigma_t > 0, shape (T,): standard deviations, in units of the weights
    dispersions             E V_t(W_{t-1}) >= 0, shape (T,), in squared units of the gradient
    hessian_trace           Tr H = Tr E_Z[Hessian of the loss at W_T]

V_t is the dispersion of the *batch-mean* gradient, E || g(w, B_t) - E_{W,Z} grad l(W, Z) ||^2, not
that of one sample's gradient (b times larger). Lemma 2 and Corollary 1 take V~_t, whose inner mean
is over Z alone. The constants are the paper's; the authors' code differs (it hard-codes R = 0.1,
and its Eq. 3 is 2^(2/3) times larger). The flatness gap is |E[gamma(W_T, S) - gamma(W_T, S')]|.

- A bad argument (a scalar for a sequence, too) raises a ValueError that names it, its value and
  what would do. Where Tr H is not positive and finite, what depends on it is undefined: NaN.
- With every V_t = 0 (or every lambda_t = 0, or R = 0) a trajectory term is 0, and so are Eq. 3 and
  sigma*: the limit of A/sigma + B sigma^2, which no positive sigma attains.
- float64 throughout; noise stds of 1e-12 and far less neither cancel nor overflow.
"""

import math
import reprlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

PerStep = ArrayLike  # one number per update, shape (T,)
Array = NDArray[np.float64]


def lemma2_trajectory(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    noise_stds: PerStep,
    sensitivities: PerStep,
    dispersions: PerStep,
) -> float:
    """Lemma 2 (Neu et al. 2021, Theorem 1): trajectory term; the caller adds the flatness gap.

    2 sqrt( (2 R^2/n) sum_t (lambda_t^2 / sigma_t^2) (Psi_t + V~_t) )
    The leading 2 is the reading that leaves Corollary 1 with the smaller constant.
    Args: the module's table, but `dispersions` are V~_t, and
        sensitivities: Psi(W_{t-1}) >= 0, shape (T,), in squared units of the gradient.
    Returns: the term, in units of the loss. Raises: ValueError.
    >>> round(lemma2_trajectory(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     noise_stds=[1, 0.5], sensitivities=[1, 1], dispersions=[4, 0]), 12)
    6.0
    """
    series = (learning_rates, noise_stds, sensitivities, dispersions)
    return 2 * _linear_trajectory(subgaussian_constant, num_samples, 1, 1, *series)


def theorem1_trajectory(
    *,
    subgaussian_constant: float,
    num_samples: int,
    num_parameters: int,
    learning_rates: PerStep,
    noise_stds: PerStep,
    conditional_dispersions: PerStep,
) -> float:
    """Theorem 1: trajectory term; the caller adds the flatness gap.

    sqrt( (R^2 d/n) sum_t E_{W~_{t-1}} log( 1 + lambda_t^2 D_t(W~_{t-1}) / (d sigma_t^2) ) )
    with D_t(w~) = E[ || g(W_{t-1}, B_t) - E[g(W_{t-1}, Z) | W~_{t-1} = w~] ||^2 | W~_{t-1} = w~ ],
    W~_{t-1} - Delta_{t-1} being the run's own W_{t-1}; with one W_{t-1} D_t = V_t: Eq. 2.
    Args: the module's table, and
        conditional_dispersions: D_t >= 0, in squared units of the gradient; (T, k): k draws of
            W~_{t-1}, whose logs are averaged; or (T,): one a step, or their mean (looser: Jensen).
    Returns: the term, in units of the loss. Raises: ValueError.
    >>> round(theorem1_trajectory(subgaussian_constant=2, num_samples=2, num_parameters=1,
    ...     learning_rates=[1], noise_stds=[1], conditional_dispersions=[[0, math.e**4 - 1]]), 12)
    2.0
    """
    shared = (subgaussian_constant, num_samples, num_parameters, learning_rates, noise_stds)
    return _log_trajectory(*shared, conditional_dispersions=conditional_dispersions)


def lemma5(
    *, num_parameters: int, learning_rate: float, noise_std: float, dispersion: float
) -> float:
    """Lemma 5: what one noisy update tells about the sample, I(G_t + N_t; S | W~_{t-1}), in nats.

    <= (d/2) log( 1 + lambda_t^2 V_t / (d sigma_t^2) )
    Args: the module's table, one number each: lambda_t, sigma_t and V_t of the step.
    Returns: the bound, in nats; sqrt( (2 R^2/n) * its sum ) is Theorem 2's. Raises: ValueError.
    >>> lemma5(num_parameters=2, learning_rate=0.5, noise_std=0.5, dispersion=2) == math.log(2)
    True
    """
    size = _number("num_parameters", num_parameters)
    series = _checked(0, learning_rate=learning_rate, noise_std=noise_std, dispersion=dispersion)
    return size / 2 * float(_logs(size, *series))


def theorem2_trajectory(
    *,
    subgaussian_constant: float,
    num_samples: int,
    num_parameters: int,
    learning_rates: PerStep,
    noise_stds: PerStep,
    dispersions: PerStep,
) -> float:
    """Theorem 2, Eq. 2: trajectory term; the caller adds the flatness gap.

    sqrt( (R^2 d/n) sum_t log( 1 + lambda_t^2 V_t / (d sigma_t^2) ) )
    Args: the module's table. Returns: the term, in units of the loss. Raises: ValueError.
    >>> round(theorem2_trajectory(subgaussian_constant=2, num_samples=2, num_parameters=1,
    ...     learning_rates=[1, 1], noise_stds=[1, 1], dispersions=[math.e**2 - 1, 0]), 12)
    2.0
    """
    shared = (subgaussian_constant, num_samples, num_parameters, learning_rates, noise_stds)
    return _log_trajectory(*shared, dispersions=dispersions)


def theorem2_closed_form(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    dispersions: PerStep,
    hessian_trace: float,
) -> float:
    """Theorem 2, Eq. 3: the whole bound, the noise std equal at all steps and optimised away.

    (3/2) ( (R^2 T/n) sum_t lambda_t^2 V_t * Tr H )^(1/3) = min over sigma of A/sigma + B sigma^2
    with A = sqrt( (R^2/n) sum_t lambda_t^2 V_t ) and B = (T/2) Tr H. It bounds the signed gap, and
    assumes L_mu(w_T) <= E L_mu(w_T + Delta_T).
    Args: the module's table. Returns: the bound, in units of the loss, or NaN. Raises: ValueError.
    >>> round(theorem2_closed_form(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     dispersions=[1, 3], hessian_trace=2), 12)
    3.0
    """
    shared = (subgaussian_constant, num_samples, learning_rates)
    return _closed_form(*shared, hessian_trace, dispersions=dispersions)


def optimal_noise_std(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    dispersions: PerStep,
    hessian_trace: float,
) -> float:
    """Theorem 2's sigma*, the noise std at which A/sigma + B sigma^2 is least and equals Eq. 3.

    (A / (2 B))^(1/3) = ( sqrt( (R^2/n) sum_t lambda_t^2 V_t ) / (T Tr H) )^(1/3)
    Args: the module's table. Returns: sigma*, in units of the weights, or NaN, or 0 (a limit that
    is itself no valid noise std; see the module). Raises: ValueError.
    >>> round(optimal_noise_std(subgaussian_constant=1, num_samples=1, learning_rates=[1, 1],
    ...     dispersions=[9, 7], hessian_trace=2), 12)
    1.0
    """
    steps, root = _root(subgaussian_constant, num_samples, learning_rates, dispersions=dispersions)
    trace = _number("hessian_trace", hessian_trace)
    return math.cbrt(root / steps) / math.cbrt(trace) if 0 < trace < math.inf else math.nan


def trajectory_factor(
    *, subgaussian_constant: float, num_samples: int, learning_rates: PerStep, dispersions: PerStep
) -> float:
    """Theorem 2, Eq. 3: the factor that Figure 6 sets against the flatness factor, which is Tr H.

    (R^2 T/n) sum_t lambda_t^2 V_t, so that Eq. 3 = (3/2) (this * Tr H)^(1/3)
    Args: the module's table. Returns: the factor, in (loss * weight)^2. Raises: ValueError.
    >>> round(trajectory_factor(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     dispersions=[1, 3]), 12)
    4.0
    """
    steps, root = _root(subgaussian_constant, num_samples, learning_rates, dispersions=dispersions)
    return steps * root * root


def terms_at_optimum(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    dispersions: PerStep,
    hessian_trace: float,
) -> tuple[float, float]:
    """Theorem 2, Eq. 3: its trajectory and flatness terms at sigma*, which sum to it.

    (A/sigma*, B sigma*^2), always as 2 to 1: 2/3 and 1/3 of Eq. 3. (Figure 6 plots the factors.)
    Args: the module's table. Returns: both, in units of the loss, or NaN. Raises: ValueError.
    >>> [round(term, 12) for term in terms_at_optimum(subgaussian_constant=1, num_samples=2,
    ...     learning_rates=[1, 1], dispersions=[1, 3], hessian_trace=2)]
    [2.0, 1.0]
    """
    shared = (subgaussian_constant, num_samples, learning_rates)
    total = _closed_form(*shared, hessian_trace, dispersions=dispersions)
    return 2 * total / 3, total / 3


def corollary1_trajectory(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    noise_stds: PerStep,
    sensitivities: PerStep,
    dispersions: PerStep,
) -> float:
    """Corollary 1: trajectory term, tighter than Lemma 2's; the caller adds the flatness gap.

    sqrt( (2 R^2/n) sum_t (lambda_t^2 / sigma_t^2) (3 Psi_t + 2 V~_t) )
    Args: those of `lemma2_trajectory`. Returns: the term, in units of the loss. Raises: ValueError.
    >>> round(corollary1_trajectory(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     noise_stds=[1, 0.5], sensitivities=[2, 0], dispersions=[1, 1]), 12)
    4.0
    """
    series = (learning_rates, noise_stds, sensitivities, dispersions)
    return _linear_trajectory(subgaussian_constant, num_samples, 3, 2, *series)


def corollary2(
    *,
    subgaussian_constant: float,
    num_samples: int,
    num_parameters: int,
    learning_rates: PerStep,
    noise_stds: PerStep,
    dispersions: PerStep,
    smoothness: float,
) -> float:
    """Corollary 2: the whole bound, trajectory and flatness, for a beta-smooth loss.

    sqrt( (R^2 d/n) sum_t log( 1 + lambda_t^2 V_t / (d sigma_t^2) ) ) + beta d sum_t sigma_t^2
    Args: the module's table, and
        smoothness: beta >= 0, the largest absolute eigenvalue of the Hessian.
    Returns: the bound, in units of the loss; NaN where beta is not finite. Raises: ValueError.
    >>> round(corollary2(subgaussian_constant=1, num_samples=2, num_parameters=2, smoothness=3,
    ...     learning_rates=[1, 1], noise_stds=[1, 0.5], dispersions=[0, 0]), 12)
    7.5
    """
    shared = (subgaussian_constant, num_samples, num_parameters, learning_rates, noise_stds)
    trajectory = _log_trajectory(*shared, dispersions=dispersions)
    beta = _number("smoothness", smoothness)
    flatness = beta * num_parameters * _norm(_checked(1, noise_stds=noise_stds)[0]) ** 2
    return trajectory + flatness if beta < math.inf else math.nan


def lemma7(
    *,
    subgaussian_constant: float,
    num_samples: int,
    learning_rates: PerStep,
    squared_gradient_norms: PerStep,
    hessian_trace: float,
) -> float:
    """Lemma 7: the whole bound; Eq. 3 with the batch gradient's squared norm for its dispersion.

    (3/2) ( (R^2 T/n) sum_t lambda_t^2 E||g(W_{t-1}, B_t)||^2 * Tr H )^(1/3)
    Args: the module's table, and
        squared_gradient_norms: E||g(W_{t-1}, B_t)||^2 >= 0, shape (T,).
    Returns: the bound, in units of the loss, or NaN. Raises: ValueError.
    >>> round(lemma7(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     squared_gradient_norms=[1, 3], hessian_trace=2), 12)
    3.0
    """
    shared = (subgaussian_constant, num_samples, learning_rates)
    return _closed_form(*shared, hessian_trace, squared_gradient_norms=squared_gradient_norms)


def theorem3(
    *, subgaussian_constant: float, num_samples: int, learning_rates: PerStep, losses: PerStep
) -> float:
    """Theorem 3: the whole bound for a linear network, ||x|| = 1 and loss (y - w.x)^2 / 2.

    3 ( (R^2 T/(4 n)) sum_t lambda_t^2 E l(W_{t-1}, Z) )^(1/3)
    It is Lemma 7 with E||g||^2 <= 2 E l and Tr H = 1, hence always defined.
    Args: the module's table, and
        losses: E l(W_{t-1}, Z) >= 0, the factor 1/2 included, shape (T,).
    Returns: the bound, in units of the loss. Raises: ValueError.
    >>> round(theorem3(subgaussian_constant=1, num_samples=2, learning_rates=[1, 1],
    ...     losses=[1, 3]), 12)
    3.0
    """
    return _closed_form(subgaussian_constant, num_samples, learning_rates, 2.0, losses=losses)


def theorem4(
    *,
    subgaussian_constant: float,
    num_samples: int,
    width: int,
    learning_rates: PerStep,
    active_losses: PerStep,
    final_active_units: float,
) -> float:
    """Theorem 4: the whole bound for a two-layer ReLU net, m^(-1/2) sum_r A_r ReLU(w_r.x).

    3 ( (R^2 T/(4 n m^2)) E[sum_r I_{r,i,T}] sum_t lambda_t^2 E[sum_r I_{r,i,t} l(W_{t-1}, Z_i)]
    )^(1/3), I_{r,i,t} = 1{w_{t-1,r}.x_i >= 0}, ||x|| = 1, A_r = +-1 fixed, loss (y - f)^2 / 2. It
    is Lemma 7 with E||g||^2 <= (2/m) E[sum_r I_{r,i,t} l] and Tr H = E[sum_r I_{r,i,T}] / m.
    Args: the module's table, and
        width: m >= 1, hidden units. final_active_units: E[sum_r I_{r,i,T}], from 0 to m, or NaN.
        active_losses: E[sum_r I_{r,i,t} l(W_{t-1}, Z_i)] >= 0, shape (T,).
    Returns: the bound, in units of the loss; NaN if final_active_units is 0. Raises: ValueError.
    >>> round(theorem4(subgaussian_constant=1, num_samples=2, width=4, learning_rates=[1, 1],
    ...     active_losses=[4, 12], final_active_units=4), 12)
    3.0
    """
    units, active = _number("width", width), _number("final_active_units", final_active_units)
    if active > units * (1 + 1e-6):  # room for a mean taken in float32
        raise ValueError(f"final_active_units must be from 0 to width = {units:.0f}, got {active}")
    shared = (subgaussian_constant, num_samples, learning_rates)
    return _closed_form(*shared, 2 * active / units**2, active_losses=active_losses)


def _scale(constant: float, samples: int) -> float:
    """R / sqrt(n)."""
    return _number("subgaussian_constant", constant) / math.sqrt(_number("num_samples", samples))


def _norm(values: Array) -> float:
    """Euclidean norm of non-negative values: pairwise summation, squares that cannot overflow."""
    largest = float(values.max())
    return largest * math.sqrt(np.square(values / largest).sum()) if largest > 0 else 0.0


def _logs(size: float, rates: Array, stds: Array, dispersions: Array) -> Array:
    """log(1 + ratio^2), ratio = lambda_t sqrt(V_t / d) / sigma_t, never squaring a large ratio."""
    ratio = rates * np.sqrt(dispersions / size) / stds
    large = np.maximum(ratio, 1)
    return np.asarray(2 * np.log(large) + np.log1p(np.square(np.minimum(ratio, 1 / large))))


def _linear_trajectory(constant: float, samples: int, a: int, b: int, *series: PerStep) -> float:
    """sqrt( (2 R^2/n) sum_t (lambda_t^2 / sigma_t^2) (a Psi_t + b V~_t) )."""
    names = ("learning_rates", "noise_stds", "sensitivities", "dispersions")
    rates, stds, psi, v = _checked(1, **dict(zip(names, series, strict=True)))
    return math.sqrt(2) * _scale(constant, samples) * _norm(rates * np.sqrt(a * psi + b * v) / stds)


def _log_trajectory(
    constant: float, samples: int, size: int, rates: PerStep, stds: PerStep, **last: PerStep
) -> float:
    """sqrt( (R^2 d/n) sum_t log(...) ), the logs averaged over a second axis of the dispersions."""
    d = _number("num_parameters", size)
    series = _checked(1, learning_rates=rates, noise_stds=stds, **last)
    logs = _logs(d, *(array.reshape(len(array), -1) for array in series)).mean(axis=1)
    return _scale(constant, samples) * math.sqrt(d * logs.sum())


def _root(constant: float, samples: int, rates: PerStep, **energies: PerStep) -> tuple[int, float]:
    """T and A = sqrt( (R^2/n) sum_t lambda_t^2 energy_t ), from the one named sequence given."""
    lambdas, energy = _checked(1, learning_rates=rates, **energies)
    return len(lambdas), _scale(constant, samples) * _norm(lambdas * np.sqrt(energy))


def _closed_form(r: float, n: int, rates: PerStep, trace: float, **energies: PerStep) -> float:
    """(3/2) ( (R^2 T/n) sum_t lambda_t^2 energy_t * trace )^(1/3), as a product of cube roots."""
    steps, root = _root(r, n, rates, **energies)
    flatness = _number("hessian_trace", trace)
    if not 0 < flatness < math.inf:
        return math.nan
    return 1.5 * math.cbrt(steps) * math.cbrt(flatness) * math.cbrt(root) ** 2


def _number(name: str, value: float) -> float:
    return float(_checked(0, **{name: value})[0])


def _checked(axes: int, **arguments: ArrayLike) -> list[Array]:
    """The arguments as float64 arrays of so many axes, all equally long, each fit for its name."""
    arrays: list[Array] = []
    kind = "a sequence, one number per update" if axes else "a single number"
    for name, value in arguments.items():
        try:
            raw = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be {kind}, got {reprlib.repr(value)}") from error
        draws = name == "conditional_dispersions" and raw.ndim == 2
        if raw.dtype.kind not in "biuf" or raw.ndim != axes + draws or not raw.size:
            raise ValueError(f"{name} must be {kind}, got shape {raw.shape}: {reprlib.repr(value)}")
        arrays.append(array := raw.astype(np.float64))
        if array.shape[:1] != arrays[0].shape[:1]:
            lengths = f"{len(array)} entries against {len(arrays[0])}"
            raise ValueError(f"{name} must be as long as {next(iter(arguments))}, got {lengths}")
        rule, fits = "finite and >= 0", np.isfinite(array) & (array >= 0)
        if name in ("num_samples", "num_parameters", "width"):
            rule, fits = "a whole number >= 1", fits & (array >= 1) & (array == np.floor(array))
        elif name in ("noise_std", "noise_stds"):
            rule, fits = "finite and > 0", fits & (array > 0)
        elif name in ("smoothness", "final_active_units"):  # estimates: NaN in, NaN out
            rule, fits = ">= 0", ~(array < 0)
        if name != "hessian_trace" and not fits.all():
            first = tuple(np.argwhere(~fits)[0])
            where = f" at t = {first[0] + 1}" if axes else ""
            raise ValueError(f"{name} must be {rule}, got {array[first]}{where}")
    return arrays
