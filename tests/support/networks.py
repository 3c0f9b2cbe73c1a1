"""Networks small enough for a dense Hessian."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gisgd_ray.networks.models import mlp


def small_mlp() -> nn.Sequential:
    return mlp((1, 3, 3), 4, width=6)


def small_conv() -> nn.Sequential:
    """Convolutions with stride and padding, max- and average-pooling, 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, stride=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(4, 4),
    )


def small_batchnorm() -> nn.Sequential:
    """BatchNorm whose running statistics are not the initial ones."""
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([0.2, -0.1, 0.0]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.0]))
    features = [nn.Conv2d(1, 3, 3, stride=2), norm, nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(27, 4))


def small_groupnorm() -> nn.Sequential:
    """Treats its samples one by one, by a layer whose norms by sample nobody knows here."""
    features = [nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(36, 4))


def small_tanh() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 4))


def small_in_place() -> nn.Sequential:
    """Its ReLU overwrites what the layer before gave out."""
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))


Builder = Callable[[], nn.Sequential]
_SIZES: dict[Builder, int] = {
    **dict.fromkeys((small_mlp, small_tanh, small_in_place), 3),
    **dict.fromkeys((small_conv, small_batchnorm, small_groupnorm), 8),
}


def case(build: Builder, *, n: int = 11, double: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in training mode, inputs (n, 1, size, size) and labels in 0 .. 3."""
    torch.manual_seed(0)
    size = _SIZES[build]
    model, inputs = build().train(), torch.randn(n, 1, size, size)
    labels = torch.randint(4, (n,))
    return (model.double(), inputs.double(), labels) if double else (model, inputs, labels)
