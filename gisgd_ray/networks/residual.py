"""PreActResNet18 for small images (He et al., ECCV 2016, "Identity mappings")."""

from torch import Tensor, nn


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), two 3x3 convolutions; (b, C, H, W) -> (b, C', H', W').

    Where the shape changes, the sum takes a 1x1 convolution of relu(bn(x)) instead of x.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int):
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(x)
        skipped = x if self.shortcut is None else self.shortcut(activated)
        result: Tensor = self.residual(activated) + skipped
        return result


def preactresnet18(
    input_shape: tuple[int, ...], num_classes: int, *, filters: int = 64
) -> nn.Sequential:
    """(b, C, H, W) -> (b, num_classes); 3x3 stem without pooling, as for CIFAR.

    Four stages of two blocks with F, 2F, 4F, 8F filters, the last three begun with stride 2; then
    BatchNorm, ReLU, global average pooling and one linear layer.
    """
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], filters, 3, padding=1, bias=False)]
    inputs = filters
    for stage in range(4):
        outputs = filters * 2**stage
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PreActBlock(inputs, outputs, stride=stride))
            inputs = outputs
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, num_classes),
    )
