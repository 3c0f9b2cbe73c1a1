"""VGG16, PreActResNet18, crops and Hessian diagonals again, without a module of the package.

The networks are functions of their tensors in the order of the state dict. BatchNorm is written
out; in train mode it also gives the running statistics after the pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import reference

VGG16_BLOCKS = (2, 2, 3, 3, 3)
"""Convolutions of each block; a pooling layer ends it."""

MOMENTUM, EPS = 0.1, 1e-5


@dataclass
class Pass:
    """One forward pass over the tensors of a state dict."""

    tensors: Iterator[Tensor]
    training: bool
    statistics: list[Tensor] = field(default_factory=list)
    """Running mean, variance and count of every BatchNorm after the pass, in order."""

    @staticmethod
    def of(model: nn.Module, *, training: bool) -> "Pass":
        """With copies of the model's tensors, so that what either changes the other keeps."""
        return Pass(iter([t.detach().clone() for t in model.state_dict().values()]), training)

    def convolution(self, x: Tensor, *, stride: int = 1, bias: bool = False) -> Tensor:
        """Its kernel is 3x3 or 1x1; what it gives out is as large as its input, or half of that."""
        weight = next(self.tensors)
        padding = weight.shape[-1] // 2
        offset = next(self.tensors) if bias else None
        return F.conv2d(x, weight, offset, stride=stride, padding=padding)

    def batch_norm(self, x: Tensor) -> Tensor:
        scale, shift, mean, variance, count = (next(self.tensors) for _ in range(5))
        if self.training:
            numbers = x.transpose(0, 1).flatten(1)  # (C, b H W)
            size = numbers.shape[1]
            used = numbers.mean(dim=1), numbers.var(dim=1, correction=0)
            unbiased = used[1] * size / (size - 1)
            mean = (1 - MOMENTUM) * mean + MOMENTUM * used[0]
            variance = (1 - MOMENTUM) * variance + MOMENTUM * unbiased
            count = count + 1
        else:
            used = mean, variance
        self.statistics += [mean, variance, count]
        centre, spread, scale, shift = (v[:, None, None] for v in (*used, scale, shift))
        return (x - centre) / (spread + EPS).sqrt() * scale + shift

    def linear(self, x: Tensor) -> Tensor:
        weight = next(self.tensors)
        return x @ weight.T + next(self.tensors)

    def end(self) -> None:
        assert not list(self.tensors), "the model has more tensors than the paper's network"


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def vgg16(run: Pass, x: Tensor) -> Tensor:
    """Blocks of convolution, BatchNorm, ReLU; then three linear layers."""
    for convolutions in VGG16_BLOCKS:
        for _ in range(convolutions):
            x = relu(run.batch_norm(run.convolution(x, bias=True)))
        b, channels, height, width = x.shape
        windows = x[:, :, : height // 2 * 2, : width // 2 * 2]
        windows = windows.reshape(b, channels, height // 2, 2, width // 2, 2)
        x = windows.amax(dim=(3, 5))
    x = x.flatten(1)
    x = relu(run.linear(x))
    x = relu(run.linear(x))
    x = run.linear(x)
    run.end()
    return x


def preactresnet18(run: Pass, x: Tensor) -> Tensor:
    """BatchNorm and ReLU come before the convolutions; the shortcut branches off after them."""
    x = run.convolution(x)
    for stage in range(4):
        for block in range(2):
            shrinks = stage > 0 and block == 0
            activated = relu(run.batch_norm(x))
            inside = run.convolution(activated, stride=2 if shrinks else 1)
            inside = run.convolution(relu(run.batch_norm(inside)))
            shortcut = run.convolution(activated, stride=2) if shrinks else x
            x = inside + shortcut
    x = relu(run.batch_norm(x)).mean(dim=(2, 3))
    x = run.linear(x)
    run.end()
    return x


def hessian_trace(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: str, *, at_once: int = 256
) -> float:
    """Tr H of the mean loss, from the dense diagonal blocks e^T H e over every weight.

    As :func:`tests.support.reference.hessian_trace`, for a few thousand weights.
    """
    double = reference.in_float64(model)
    scores = double(inputs.double())
    values = [reference.sample_loss(s, int(y), loss) for s, y in zip(scores, labels, strict=True)]
    parameters = list(double.parameters())
    first = torch.autograd.grad(sum(values) / len(values), parameters, create_graph=True)
    total = 0.0
    for weight, gradient in zip(parameters, first, strict=True):
        for directions in torch.eye(weight.numel(), dtype=torch.float64).split(at_once):
            (products,) = torch.autograd.grad(
                gradient,
                weight,
                directions.view(-1, *weight.shape),
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
            total += float((products.flatten(1) * directions).sum())
    return total


def batch_gradient(
    model: nn.Module, objective: Callable[[nn.Module, Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Gradient of ``objective(model, x, y)``, (d,); the model's BatchNorm is in train mode.

    On a copy of the model with its mode, which takes the blame for running statistics.
    """
    copied = reference.in_float64(model)
    copied.train(model.training)
    found = torch.autograd.grad(objective(copied, x, y), list(copied.parameters()))
    return torch.cat([g.flatten() for g in found])


def mean_loss(loss: str) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """L of a batch that goes through the network as one."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        scores = model(x.double())
        values = [reference.sample_loss(s, int(k), loss) for s, k in zip(scores, y, strict=True)]
        return sum(values) / len(values)

    return objective


def mean_square_between(groups: Sequence[tuple[int, Tensor]]) -> float:
    """1/(G-1) sum_j m_j ||g_j - gbar||^2 from pairs (m_j, g_j), gbar the mean over all samples."""
    total = sum(size for size, _ in groups)
    centre = sum(size * gradient for size, gradient in groups) / total
    spread = [size * float(((gradient - centre) ** 2).sum()) for size, gradient in groups]
    return sum(spread) / (len(groups) - 1)


def crop(
    image: Tensor, *, row: int, column: int, mirrored: bool, padding: int, black: Sequence[float]
) -> Tensor:
    """One crop (C, H, W) of the image (C, H, W) in its frame, pixel by pixel."""
    channels, height, width = image.shape
    result = torch.empty_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                across = width - 1 - j if mirrored else j
                above, left = i + row - padding, across + column - padding
                inside = 0 <= above < height and 0 <= left < width
                result[c, i, j] = image[c, above, left] if inside else black[c]
    return result
