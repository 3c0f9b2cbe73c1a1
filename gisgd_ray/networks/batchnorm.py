"""BatchNorm in training: whose samples mix, and whose running statistics must stay."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def mixes_samples(layer: nn.Module) -> bool:
    """Whether the layer's output for one sample depends on the others of the batch."""
    return isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Passes inside normalise by their batch as before, but leave the running statistics alone.

    For every pass of a step but the one over the weights and inputs that training is about.
    """
    tracking = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
