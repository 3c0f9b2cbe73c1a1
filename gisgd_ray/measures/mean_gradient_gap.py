"""How far the training sample's mean gradient lies from the population's, at the run's own weights.

V~_t is about E_Z grad l(w, Z), Z ~ mu (Wang & Mao 2022, Lemma 2; PAPER section 2). What a batch of
S shows, s2 / b, is the dispersion about the mean over S, L_S standing for the mean loss over S::

    E_B || g(w, B) - grad L_mu(w) ||^2  =  E_B || g(w, B) - grad L_S(w) ||^2  +  Gamma(w)
    Gamma(w) = || grad L_mu(w) - grad L_S(w) ||^2

Of a w that does not depend on S, Gamma is s2 / n in expectation (and the first term s2 / b times
(n - b) / n: together s2 / b). Of a w that fits the labels of S, more.

A fresh sample S' of n' (the test split) estimates Gamma without bias once its own sampling error,
s2' / n', is taken off: || grad L_S' - grad L_S ||^2 has the expectation Gamma + s2' / n'. It is
taken off by leaving out what a part of S' has in common with itself. With S' in K blocks at random
and D_k = grad L_{block k} - grad L_S::

    Gamma  =  1/(K (K-1)) sum_{k != l} D_k . D_l

which for K = n' is || grad L_S' - grad L_S ||^2 - s2' / n' to the letter (a U-statistic). Of fewer
blocks the expectation is the same; the part of the variance that remains at Gamma = 0 is K/(K-1)
times as large; the blocks tell the standard error; and no norms by sample are needed, so that it
serves every network. S and w are held: the error is that of S' alone. It may come out negative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from backpack import disable
from numpy.typing import NDArray
from torch import nn

from gisgd_ray.measures.displaced import DisplacedModel, Samples, native_dtype
from gisgd_ray.measures.invisible import invisible
from gisgd_ray.randomness import generator

BLOCKS = 10
"""K; so many gradients are held at once: 400 MB at d = 10^7."""

_COLUMNS = 1_000_000
"""Of them so many entries are multiplied at once, in float64."""


@dataclass(frozen=True)
class MeanGradientGapEstimate:
    """Gamma = ||grad L_mu - grad L_S||^2, in squared units of the gradient."""

    value: float
    """Unbiased, hence signed; NaN of a test split of one sample."""
    standard_error: float
    """Over S', by the jackknife over its blocks: up to sqrt 2 too large where Gamma is 0; NaN of
    fewer than three blocks."""


def block_products(
    model: nn.Module, train: Samples, test: Samples, *, blocks: int = BLOCKS
) -> NDArray[np.float64]:
    """D_k . D_l of all pairs of blocks at the current weights, (K, K); leaves no trace.

    Costs a gradient pass over S and one over S'. Which samples make a block depends on their
    number alone, so that replicas which share S' share the blocks.

    Args:
        model: any network; in evaluation mode while measured. Frozen parameters are left out.
        train: S.
        test: S'.
        blocks: K, at most; n' where there are fewer samples.

    Raises:
        ValueError: no samples in a split, or nothing trainable.
    """
    if len(train) == 0 or len(test) == 0:
        raise ValueError("the mean gradient gap needs samples in both splits")
    order = torch.randperm(len(test), generator=generator(0, "mean_gradient_gap"))
    parts = order.to(test.inputs.device).tensor_split(min(blocks, len(test)))
    with invisible(model, purpose="mean_gradient_gap"), disable():
        at_w = DisplacedModel(model, native_dtype(model))
        of_train, *of_blocks = (
            torch.cat([g.flatten() for g in samples.gradient(at_w)])
            for samples in (train, *map(test.at, parts))
        )
    differences = torch.stack([of_block - of_train for of_block in of_blocks])
    products = torch.zeros(len(parts), len(parts), dtype=torch.float64, device=of_train.device)
    for columns in differences.split(_COLUMNS, dim=1):
        exact = columns.double()
        products += exact @ exact.T
    return products.cpu().numpy()


def combined(products: Sequence[NDArray[np.float64]]) -> MeanGradientGapEstimate:
    """Gamma from the :func:`block_products` of each run of one configuration: their mean over runs.

    The error is that of S', which the runs may share; what Gamma varies with W is not in it.

    Raises:
        ValueError: no runs.
    """
    if not products:
        raise ValueError("no mean gradient gap to combine")
    mean = np.mean(products, axis=0)
    blocks = len(mean)
    if blocks < 2:
        return MeanGradientGapEstimate(math.nan, math.nan)
    # Of each block, the mean of its products with the others.
    by_block = (mean.sum(axis=1) - mean.diagonal()) / (blocks - 1)
    value = float(by_block.mean())
    if blocks < 3:
        return MeanGradientGapEstimate(value, math.nan)
    # Without block k the estimate is value + 2/(K-2) (value - by_block_k).
    squares = float(((by_block - value) ** 2).sum())
    variance = (blocks - 1) / blocks * 4 / (blocks - 2) ** 2 * squares
    return MeanGradientGapEstimate(value, math.sqrt(variance))
