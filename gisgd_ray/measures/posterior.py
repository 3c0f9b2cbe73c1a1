"""Theorem 1's dispersion over replicas: about the mean of the gradient given the noisy weights.

The R replicas W^(r) stand for the law of W_{t-1}. With w~ = W^(r) + tau u, tau^2 = sum_{s<t}
sigma_s^2 and u standard normal (Wang & Mao 2022, Theorem 1; PAPER section 3, item 2)::

    pi_q(w~) = exp(-||w~ - W^(q)||^2 / (2 tau^2)) / (the sum of these over q)
    D_t(w~)  = sum_q pi_q ||g_q - m||^2 + sum_q pi_q (pi_q + (1 - pi_q) b/n) s2_q / b

with m = sum_q pi_q g_q, and g_q and s2_q of replica q's batch of size b, as in
:mod:`gisgd_ray.measures.dispersion`. The replicas draw their batches independently, each without
replacement from n samples, and so with G_q = E_Z grad l(W^(q), Z) the first sum has the expectation
sum_q pi_q ||G_q - M||^2 + sum_q pi_q (1 - pi_q) (1 - b/n) s2_q / b, as far as W and B are
independent (see there): the second then makes D_t unbiased for

    E[ ||g(W, B) - E[g(W, Z) | w~]||^2 | w~ ] = sum_q pi_q ||G_q - M||^2 + sum_q pi_q s2_q / b

where M = sum_q pi_q G_q. Where pi is on one replica alone, at the usual noise, D_t = s2_q / b;
where it is on all alike, D_t = ((R-1) V_t + V~_t) / R.

Of the weights only their Gram matrix is needed, whatever their number:
||W^(r) + tau u - W^(q)||^2 = ||W^(r) - W^(q)||^2 + 2 tau (W^(r) - W^(q)).u + tau^2 ||u||^2, and the
numbers W^(q).u are jointly Gaussian with that matrix as their covariance. Of the gradients as well.

The order Theorem 1 <= Eq. 2 (log concave; conditional variance <= variance) is one of expectations.
Of estimates: the mean over draws of log(1 + c D_t) never exceeds log(1 + c (mean D_t)), and where
every posterior is on its own replica mean D_t is V~_t exactly. There Theorem 1 exceeds Eq. 2 only
if V_t comes out below V~_t, by its sampling error over R replicas. It shows where the weights
differ little between replicas, and the row then has a remark. (In both terms the log is of
estimates from single batches: low by up to about half their squared relative error.)
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gisgd_ray.networks.taps import Tensors
from gisgd_ray.randomness import generator

Array = NDArray[np.float64]

SURELY_APART = 20.0
"""Replicas so many tau apart: their odds exceed exp(40) unless a standard normal falls below -8."""

_BLOCK = 8192
"""Entries of each row in float64 at once: a cache's worth, for 20 rows."""


def gram(stacks: Tensors) -> Tensor:
    """Inner products of the rows of (R, *shape), each less the first row: (R, R) float64.

    Differences of rows, all that is needed, do not cancel in it however close the rows lie.
    """
    first = next(iter(stacks.values()))
    total = first.new_zeros(len(first), len(first), dtype=torch.float64)
    for stack in stacks.values():
        for block in stack.flatten(1).split(_BLOCK, dim=1):
            apart = block.double() - block[:1].double()
            total += apart @ apart.T
    return total


def alike(stacks: Tensors) -> Array:
    """Which rows of (R, *shape) are equal in all entries, as 0 and 1: (R, R)."""
    flat = [stack.flatten(1) for stack in stacks.values()]
    same = [torch.stack([(rows == row).all(dim=1) for row in rows]) for rows in flat]
    return torch.stack(same).all(dim=0).double().cpu().numpy()


def squared_distances(gram: Array) -> Array:
    """||x_r - x_q||^2, (R, R), from the inner products of the x_r."""
    squares = np.diag(gram)
    return np.maximum(squares[:, None] + squares[None] - 2 * gram, 0)


def projected_normals(weight_gram: Array, normals: Array) -> Array:
    """(W^(q) - W^(1)).u_r, (R, R), of standard normal vectors u_r as long as the weights.

    Args:
        weight_gram: (R, R), see :func:`gram`.
        normals: (R, R) standard normals, row r for u_r.
    """
    values, vectors = np.linalg.eigh(weight_gram)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T  # symmetric, and so unique
    return np.asarray(normals @ root)


def posteriors(
    weight_gram: Array, projections: Array, *, stds: Sequence[float], alike: Array
) -> Array:
    """pi_q(w~_r) for each std, (S, R, R): row r of the draw w~_r = W^(r) + tau u_r.

    Args:
        weight_gram: (R, R), see :func:`gram`.
        projections: (R, R), see :func:`projected_normals`.
        stds: the values of tau >= 0.
        alike: (R, R), 1 where replicas' weights are equal, else 0: all that counts where tau = 0.
    """
    along = np.diag(projections)[:, None] - projections  # (W^(r) - W^(q)).u_r
    distances = np.sqrt(squared_distances(weight_gram))
    found = []
    for std in stds:
        with np.errstate(over="ignore", divide="ignore"):  # infinitely unlikely: -inf
            logs = -0.5 * (distances / std) ** 2 - along / std if std > 0 else np.log(alike)
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        found.append(odds / odds.sum(axis=1, keepdims=True))
    return np.stack(found)


def conditional_dispersions(
    posteriors: Array, *, gradient_gram: Array, batch_dispersions: Array, share: float
) -> Array:
    """D_t(w~_r) of every draw, in squared units of the gradient: (..., R) of (..., R, R).

    Args:
        posteriors: rows r for the draws w~_r.
        gradient_gram: (R, R), of the batch gradients (see :func:`gram`).
        batch_dispersions: s2_q / b, (R,).
        share: b/n, of the samples in a batch; 0 if they are drawn with replacement.
    """
    # A variance as half the mean squared distance of two draws: nothing cancels.
    between = ((posteriors @ squared_distances(gradient_gram)) * posteriors).sum(axis=-1) / 2
    own = posteriors * (posteriors + (1 - posteriors) * share)
    with np.errstate(invalid="ignore"):  # of a batch of one sample s2 is not known
        return np.asarray(between + own @ batch_dispersions)


class Posteriors:
    """D_t(W~_{t-1}) at every step of R replicas, one draw of W~ = W^(r) + Delta for each replica.

    At the usual noise the replicas lie far apart, and the posteriors need not be looked at: the
    least distance is measured once in a while, and by every step it shrinks by twice the longest
    update at most. Where that leaves it open, the Gram matrices of the weights and of the gradients
    are kept, from which :meth:`drain` makes the posteriors. Which way a step went cannot be seen in
    its numbers, but for some exp(-40) of them. A step waits for its device.

    Args:
        noise_stds: sigma, the same at all steps; S of them.
        seed: of the draws, which are functions of (seed, t).
    """

    def __init__(self, noise_stds: Sequence[float], *, seed: int):
        self._noise_stds, self._seed = tuple(noise_stds), seed
        self._steps: list[int] = []
        self._apart: float | None = None
        """No two replicas are nearer than this; None: to be measured."""
        self._mixed: dict[int, dict[str, Array]] = {}
        """Gram matrices of the steps that need them, by place since the last drain."""
        self._gradients: list[Tensors] = []

    def begin(self, weights: Tensors, step: int) -> bool:
        """Before the update ``step`` + 1 of the weights (R, *shape): whether it needs gradients."""
        self._steps.append(step)
        reach = SURELY_APART * max(self._noise_stds) * step**0.5
        if self._apart is not None and self._apart > reach:
            return False
        products = gram(weights).cpu().numpy()
        squares = squared_distances(products)
        np.fill_diagonal(squares, np.inf)
        self._apart = float(squares.min()) ** 0.5
        if self._apart > reach:  # not so of NaN either
            return False
        same = alike(weights) if step == 0 else np.eye(len(products))
        self._mixed[len(self._steps) - 1] = {"weights": products, "alike": same}
        return True

    def add(self, gradients: Tensors) -> None:
        """Take in the gradients (G, *shape) of the next replicas, if :meth:`begin` asked for them.

        They may be overwritten afterwards.
        """
        self._gradients.append({name: stack.clone() for name, stack in gradients.items()})

    def end(self, longest: Tensor) -> None:
        """After the update: the longest one of any replica, ()."""
        if self._gradients:
            names = self._gradients[0]
            whole = {name: torch.cat([group[name] for group in self._gradients]) for name in names}
            self._mixed[len(self._steps) - 1]["gradients"] = gram(whole).cpu().numpy()
            self._gradients = []
        assert self._apart is not None
        self._apart -= 2 * float(longest)

    def drain(self, batch_dispersions: Array, shares: Array) -> Array:
        """D_t of the steps since the last call, (T, S, R), from s2_r / b (T, R) and b/n (T,).

        The weights may have been changed when the next step comes.
        """
        found = np.repeat(batch_dispersions[:, None], len(self._noise_stds), axis=1)
        for place, known in self._mixed.items():
            step, within = self._steps[place], batch_dispersions[place]
            rows = len(within)
            random = generator(self._seed, "auxiliary noise", step)
            normals = torch.randn(rows, rows, generator=random, dtype=torch.float64).numpy()
            if not all(np.isfinite(matrix).all() for matrix in known.values()):
                found[place] = np.nan
                continue
            of_draws = posteriors(
                known["weights"],
                projected_normals(known["weights"], normals),
                stds=[noise_std * step**0.5 for noise_std in self._noise_stds],
                alike=known["alike"],
            )
            found[place] = conditional_dispersions(
                of_draws,
                gradient_gram=known["gradients"],
                batch_dispersions=within,
                share=float(shares[place]),
            )
        self._steps, self._mixed, self._apart = [], {}, None
        return found
