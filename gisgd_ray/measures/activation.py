"""Active units of a two-layer ReLU network, for Theorem 4: I_{r,i,t} = 1{w_{t-1,r}.x_i >= 0}."""

import torch
from torch import Tensor, nn

from gisgd_ray.networks.models import FixedReadout


def hidden_layer(model: nn.Module) -> nn.Linear:
    """The layer of w_1, ..., w_m in :func:`gisgd_ray.networks.models.two_layer_relu`.

    Raises:
        ValueError: the model is another.
    """
    layers = list(model.children())
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Flatten, nn.Linear, nn.ReLU, FixedReadout]:
        raise ValueError(f"active units are those of a two-layer ReLU network, not of {model}")
    hidden = layers[1]
    assert isinstance(hidden, nn.Linear)
    return hidden


class ActiveUnits:
    """Counts, in every forward pass with gradients, the active units of each sample."""

    def __init__(self, model: nn.Module):
        self._counts: Tensor | None = None
        self._handle = hidden_layer(model).register_forward_hook(self._forward)

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del layer, inputs
        if output.requires_grad:
            self._counts = (output.detach() >= 0).sum(dim=1)

    def counts(self) -> Tensor:
        """sum_r I_{r,i,t} of the last batch, (b,) int64; read once."""
        assert self._counts is not None, "no forward pass was seen"
        counts, self._counts = self._counts, None
        return counts


@torch.no_grad()
def mean_active_units(model: nn.Module, inputs: Tensor, *, chunk: int = 2_000) -> float:
    """E_i[sum_r 1{w_r.x_i >= 0}] at the present weights over ``inputs`` (n, ...).

    At W_T this is Theorem 4's E[sum_r I_{r,i,T}], since m Tr H_{W_T} is what its proof needs there.
    """
    weight = hidden_layer(model).weight
    parts = (x.flatten(1) @ weight.T >= 0 for x in inputs.split(chunk))
    return sum(int(part.sum()) for part in parts) / len(inputs)
