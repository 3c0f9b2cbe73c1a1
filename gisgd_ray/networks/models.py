"""The networks of the paper (section 5 and appendix E.1), built from a config and a seed.

All are plain ``nn.Sequential`` of modules used once, with out-of-place ReLU, as BackPACK needs.
"""

import math

import torch
from torch import Tensor, nn

from gisgd_ray.config.catalogue import MODELS
from gisgd_ray.config.model import ModelConfig
from gisgd_ray.errors import UserError
from gisgd_ray.networks.residual import PreActBlock
from gisgd_ray.randomness import isolated_rng


class FixedReadout(nn.Module):
    """h -> m^(-1/2) sum_r A_r h_r, (b, m) -> (b, 1), with A_r = +-1 drawn once and not trained."""

    signs: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("signs", 2.0 * torch.randint(2, (width,)) - 1.0)

    @property
    def weights(self) -> Tensor:
        """m^(-1/2) A_r, (m,)."""
        return self.signs / math.sqrt(len(self.signs))

    def forward(self, hidden: Tensor) -> Tensor:
        outputs = hidden @ self.signs / math.sqrt(len(self.signs))
        return outputs.unsqueeze(1)


PIECEWISE_LINEAR = (
    nn.Linear,
    nn.Conv2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    FixedReadout,
)
"""Module types whose output is, at a fixed activation pattern, affine in input and in weights."""


def mlp(input_shape: tuple[int, ...], num_classes: int, *, width: int) -> nn.Sequential:
    """One hidden ReLU layer: (b, *input_shape) -> (b, num_classes)."""
    inputs = int(torch.Size(input_shape).numel())
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, num_classes)
    )


def linear(input_shape: tuple[int, ...], _outputs: int = 1) -> nn.Sequential:
    """f(w, x) = w.x, without bias (section 4, Theorem 3): (b, *input_shape) -> (b, 1)."""
    inputs = int(torch.Size(input_shape).numel())
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 1, bias=False))


def two_layer_relu(input_shape: tuple[int, ...], _outputs: int = 1, *, width: int) -> nn.Sequential:
    """m^(-1/2) sum_r A_r ReLU(w_r.x) (section 4, Theorem 4): (b, *input_shape) -> (b, 1)."""
    inputs = int(torch.Size(input_shape).numel())
    hidden = nn.Linear(inputs, width, bias=False)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), FixedReadout(width))


def alexnet(
    input_shape: tuple[int, ...], num_classes: int, *, filters: int, hidden: int = 4096
) -> nn.Sequential:
    """AlexNet for small images: (b, C, H, W) -> (b, num_classes).

    Appendix E.1 with the strides and paddings of the authors' code, no dropout, no BatchNorm.

    Raises:
        UserError: the images are too small for the three pooling layers.
    """
    channels, height, width = input_shape
    _require_size("alexnet", height, width)

    def conv(inputs: int, outputs: int, size: int, stride: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding), nn.ReLU()]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2)

    f = filters
    features = [
        *conv(channels, f, 3, 2, 2),
        pool(),
        *conv(f, 3 * f, 5, 1, 2),
        pool(),
        *conv(3 * f, 6 * f, 3, 1, 1),
        *conv(6 * f, 256, 3, 1, 1),
        *conv(256, 256, 3, 1, 1),
        pool(),
        nn.Flatten(),
    ]

    def pooled(size: int) -> int:
        size = (size + 4 - 3) // 2 + 1
        for _ in range(3):
            size = (size - 3) // 2 + 1
        return size

    classifier = [
        nn.Linear(256 * pooled(height) * pooled(width), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    ]
    return nn.Sequential(*features, *classifier)


def vgg16(
    input_shape: tuple[int, ...], num_classes: int, *, filters: int = 64, hidden: int = 4096
) -> nn.Sequential:
    """VGG16 with BatchNorm (Simonyan & Zisserman 2015, D): (b, C, H, W) -> (b, num_classes).

    Thirteen 3x3 convolutions with F, F; 2F, 2F; 4F x 3; 8F x 3; 8F x 3 filters, each with BatchNorm
    and ReLU, a 2x2 max-pool after every block, then 8F-hidden-hidden-K without dropout.

    Raises:
        UserError: the images are too small for the five pooling layers.
    """
    channels, height, width = input_shape
    _require_size("vgg16", height, width)
    layers: list[nn.Module] = []
    inputs = channels
    for convolutions, multiple in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        for _ in range(convolutions):
            outputs = multiple * filters
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(inputs * (height // 32) * (width // 32), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def _require_size(name: str, height: int, width: int) -> None:
    needed = MODELS[name].smallest_image or 1
    if min(height, width) < needed:
        raise UserError(
            f"model.name = {name!r} needs images of at least {needed}x{needed} pixels, not "
            f"{height}x{width}; choose another data.dataset, or model.name = 'preactresnet18' or "
            "'mlp'"
        )


def build_model(
    config: ModelConfig,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int,
    initialization: str = "pytorch",
) -> nn.Sequential:
    """The configured network on the CPU, its weights a function of the seed alone.

    ``num_classes`` is the number of outputs: 1 in regression.

    The draw uses a stream of its own ("initialization"), so that neither the data nor the order
    of batches changes W_0, and building a model disturbs no other random number.

    Raises:
        UserError: the images are too small, or the function that builds the network is missing.
    """
    build = MODELS[config.name].function()
    with isolated_rng(seed, "initialization"):
        model: nn.Sequential = build(
            input_shape, num_classes, **config.model_dump(exclude={"name"})
        )
        if initialization == "xavier":
            initialize_xavier(model)
        elif initialization == "kaiming":
            initialize_kaiming(model)
    return model


@torch.no_grad()
def initialize_xavier(model: nn.Module) -> None:
    """Xavier-normal weights and N(0, 1) linear biases, as in the authors' code."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)


@torch.no_grad()
def initialize_kaiming(model: nn.Module) -> None:
    """Kaiming-normal weights by fan-out (He et al. 2015) and zero biases, as in AMP's code."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def is_piecewise_linear(model: nn.Module) -> bool:
    """Whether every layer is affine in its input and in its own weights at a fixed pattern.

    Then d^2 f / d w_i^2 = 0 for every weight and the exact Hessian trace applies. BatchNorm
    counts in evaluation mode only, when its statistics are constants.
    """
    leaves = [module for module in model.modules() if not list(module.children())]
    # What another container does with its parts is not known.
    if not all(
        isinstance(m, nn.Sequential | PreActBlock) for m in model.modules() if m not in leaves
    ):
        return False
    return all(
        isinstance(leaf, PIECEWISE_LINEAR)
        or (
            isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d)
            and not leaf.training
            and leaf.running_mean is not None  # without running statistics it takes the batch's
        )
        for leaf in leaves
    )


def num_parameters(model: nn.Module) -> int:
    """d: trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trainable(model: nn.Module) -> list[Tensor]:
    """The trainable parameters in a fixed order."""
    return [p for p in model.parameters() if p.requires_grad]
