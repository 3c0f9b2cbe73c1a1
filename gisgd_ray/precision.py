"""Arithmetic of the training passes.

On a GPU, PyTorch computes the convolutions of float32 networks in TF32 (10 bits of mantissa) unless
told otherwise; a gradient dispersion close to convergence is then mostly rounding. Here float32
means float32, and TF32 is a choice like bfloat16.
"""

from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


def set_float32_arithmetic(precision: Precision, device: torch.device | str) -> None:
    """How this process multiplies float32 numbers on a GPU from now on; nothing on a CPU."""
    if torch.device(device).type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
