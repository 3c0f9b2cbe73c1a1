"""The numbers of the paper's Tables 1-3: test accuracy in %, mean and std over 10 runs."""

from typing import NamedTuple


class Accuracy(NamedTuple):
    """In percent."""

    mean: float
    std: float


DATASETS = ("svhn", "cifar10", "cifar100")
_VGG16 = """
ERM              96.86 0.060  93.68 0.193  72.16 0.297
Dropout          97.04 0.049  93.78 0.147  72.28 0.337
Label smoothing  96.93 0.070  93.71 0.158  72.51 0.179
Flooding         96.85 0.085  93.74 0.145  72.07 0.271
MixUp            96.91 0.057  94.52 0.112  73.19 0.254
Adv. training    97.06 0.091  93.51 0.130  70.88 0.145
AMP              97.27 0.015  94.35 0.147  74.40 0.168
GMP3             97.18 0.057  94.33 0.094  74.45 0.256
GMP10            97.09 0.068  94.45 0.158  75.09 0.285
GMP3 absolute    97.10 0.054  94.21 0.139  74.80 0.113
"""
_PREACTRESNET18 = """
ERM              97.05 0.063  94.98 0.212  75.69 0.303
Dropout          97.20 0.065  95.14 0.148  75.52 0.351
Label smoothing  97.22 0.087  95.15 0.115  77.93 0.256
Flooding         97.16 0.047  95.03 0.082  75.50 0.234
MixUp            97.26 0.044  95.91 0.117  78.22 0.210
Adv. training    97.23 0.080  95.01 0.085  74.77 0.229
AMP              97.70 0.025  96.03 0.091  78.49 0.308
GMP3             97.43 0.037  95.64 0.053  78.05 0.208
GMP10            97.34 0.058  95.71 0.073  78.07 0.170
"""


def _parse(text: str) -> dict[str, dict[str, Accuracy]]:
    """Scheme -> dataset -> accuracy."""
    table = {}
    for line in text.strip().splitlines():
        name, numbers = line[:17].strip(), [float(part) for part in line[17:].split()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        table[name] = dict(zip(DATASETS, (Accuracy(*pair) for pair in pairs), strict=True))
    return table


TABLES = {"vgg16": _parse(_VGG16), "preactresnet18": _parse(_PREACTRESNET18)}
"""Tables 1 and 3 (vgg16) and 2: model -> scheme -> dataset -> accuracy."""

GMP3_TIME = 1.76
"""Time of GMP3 relative to ERM, of VGG16 on the authors' GPU (appendix E.7)."""
