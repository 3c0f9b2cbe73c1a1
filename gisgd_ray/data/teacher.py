"""The regression data of Figures 7 and 8: a teacher network's answers to random unit vectors.

Appendix E.4: d_0 = 200 inputs, X ~ N(0, I) scaled to ||x|| = 1, Y = tanh of a two-layer ReLU
network with 10,000 hidden units, so that |Y| <= 1. Where the paper is silent: the teacher is
f*(x) = M^(-1/2) sum_r A_r ReLU(w_r.x), as in Theorem 4, with w_r ~ N(0, I) and A_r = +-1. Then
f*(x) has variance 1/2 over teachers, and tanh bends it without saturating.

One teacher for all seeds: it is the distribution mu. The samples S and S' are drawn anew for every
seed, so that the mean of the gap over seeds estimates the expectation over S that is bounded.
"""

import torch
from torch import Tensor

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.randomness import generator

INPUTS = 200
HIDDEN = 10_000
_CHUNK = 2_000


def teacher_samples(seed: int, *, num_train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (n, 200) and targets (n,), float32: train_x, train_y, test_x, test_y.

    A smaller training sample of the same seed is the beginning of a larger one.
    """
    source = generator(0, "teacher")
    weights = torch.randn(HIDDEN, INPUTS, generator=source)
    signs = 2.0 * torch.randint(2, (HIDDEN,), generator=source) - 1.0
    parts: list[Tensor] = []
    for split, size in (("train", num_train), ("test", DATASETS["teacher"].test)):
        # torch.randn's last 16 values depend on how many there are: an even number of rows of 200
        # has no such rest.
        even = size + size % 2
        inputs = torch.randn(even, INPUTS, generator=generator(seed, "teacher", split))[:size]
        inputs = inputs / inputs.norm(dim=1, keepdim=True)
        targets = [(x @ weights.T).relu() @ signs / HIDDEN**0.5 for x in inputs.split(_CHUNK)]
        parts += [inputs, torch.cat(targets).tanh()]
    train_x, train_y, test_x, test_y = parts
    return train_x, train_y, test_x, test_y
