"""Faults of a network of the user's own: told on one line, the remedy included."""

import doctest
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gisgd_ray import errors
from gisgd_ray.errors import UserError
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.networks.per_sample import LayerNorms
from gisgd_ray.schemes.preactivation_noise import check_layers
from gisgd_ray.training.lockstep import _refuse_unsupported


class MyNet(nn.Module):
    """A weight of its own, and layers below it that a repr would list line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("refuse", "remedy"),
    [
        (LayerNorms, "; set measurement.dispersion = false"),
        (
            lambda net: _refuse_unsupported(net.eval(), dispersion=True),
            "; set measurement.dispersion = false, or replicas = null",
        ),
        (check_layers, "; choose scheme.estimator = 'weights'"),
        (
            lambda net: HessianOperator(
                net, torch.ones(2, 4), torch.zeros(2), "squared"
            ).trace_exact(),
            "; use 'pyhessian' or 'auto'",
        ),
    ],
)
def test_a_network_is_named_on_one_line(refuse: Callable[[nn.Module], None], remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse(MyNet())
    said = str(caught.value)
    assert "\n" not in said
    assert f"'' (the network as a whole) is MyNet(){remedy}" in said


def test_a_layer_is_named_with_its_options() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    with pytest.raises(UserError, match=r"but '1' is Dropout\(p=0.5, inplace=False\); set"):
        _refuse_unsupported(net, dispersion=False)


def test_doctests() -> None:
    assert doctest.testmod(errors).failed == 0
