"""An accelerator made of nothing: shapes and devices are PyTorch's own, numbers there are none.

PyTorch's FakeTensorMode carries every tensor's device along and raises where an operation meets
two. Here the device ``lazy`` is the accelerator (a backend that is in every build and never used
otherwise), so that backward passes run too. Every number that is read is 1. What it adds to
PyTorch's own checks: a generator draws only where it lives, and nothing becomes a NumPy array but
what has been brought to the CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from gisgd_ray.data.dataset import Dataset
from gisgd_ray.measures.hessian import HessianOperator

DEVICE = torch.device("lazy:0")


class Numbers(FakeTensorMode):
    """Reads every number as 1."""

    def dispatch(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        return super().dispatch(func, types, args, kwargs or {})


class Generator(torch.Generator):
    """Knows where it was made for; PyTorch makes none for the stand-in."""

    place: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device)
        return made


class Checks(TorchFunctionMode):
    """What PyTorch checks on a true accelerator and not here."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.numpy, torch.Tensor.tolist):
            return _read(args[0], func.__name__)
        found = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and _place(generator) != found.device:
            raise RuntimeError(f"a generator on {_place(generator)} cannot draw on {found.device}")
        return found


def _place(generator: torch.Generator) -> torch.device:
    return generator.place if isinstance(generator, Generator) else generator.device


def _read(tensor: torch.Tensor, how: str) -> Any:
    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} has no {how}()")
    ones = np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return ones if how == "numpy" else ones.tolist()


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    """``model.to``, which for fake tensors wants to swap what it must not."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
            setattr(module, name, there)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model


_AUTOCAST = torch.autocast


def _autocast(kind: str, **options: Any) -> AbstractContextManager[Any]:
    """Mixed precision, which PyTorch knows for some kinds of device only."""
    return nullcontext() if kind == DEVICE.type else _AUTOCAST(kind, **options)


@contextmanager
def accelerator() -> Iterator[None]:
    """Inside, :data:`DEVICE` is an accelerator, and every tensor fake."""
    with pytest.MonkeyPatch.context() as patch, Numbers(allow_non_fake_inputs=True), Checks():
        # Where every number is 1 the iteration for beta never ends before its limit.
        options = HessianOperator.largest_eigenvalue.__kwdefaults__
        patch.setitem(options, "max_iterations", 2)
        patch.setattr(torch, "autocast", _autocast)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(nn.Module, "to", _moved)
        yield


def dataset(like: Dataset) -> Dataset:
    """A data set of the same shapes, there."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=DEVICE)

    return Dataset(
        train_x=there(like.train_x),
        train_y=there(like.train_y),
        test_x=there(like.test_x),
        test_y=there(like.test_y),
        num_classes=like.num_classes,
        normalization_mean=like.normalization_mean,
        normalization_std=like.normalization_std,
    )
