"""Empirical risk minimisation: the plain gradient as it is (Wang & Mao, section 3)."""

from torch import nn

from gisgd_ray.schemes.base import Batch, PlainGradient, Stateless


class SGD(Stateless):
    """g(w, B) = (1/b) sum over z in B of grad l(w, z)."""

    def gradient(self, model: nn.Module, batch: Batch, plain: PlainGradient) -> None:
        del model
        plain(batch)
