"""Empirical risk minimisation: the plain gradient as it is (Wang & Mao, section 3)."""

from gisgd_ray.schemes.base import Stateless, Step


class SGD(Stateless):
    """g(w, B) = (1/b) sum over z in B of grad l(w, z)."""

    def gradient(self, step: Step) -> float:
        step.plain()
        return 1.0


def build(*_: object) -> SGD:
    return SGD()
