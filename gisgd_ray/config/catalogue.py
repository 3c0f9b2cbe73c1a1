"""What is known of datasets, networks and schemes without loading them."""

from typing import Literal

TRAIN_SIZES: dict[str, int] = {
    "mnist5k": 4_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "teacher": 20_000,
}
"""Training samples of each dataset, known without loading it so that checks come first."""

INPUTS_AND_OUTPUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "mnist5k": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
    "teacher": ((200,), 1),
}
"""Shape of one input, and a network's outputs: the classes, or one real value."""

AUTHORS_NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    **dict.fromkeys(("mnist", "mnist5k"), ((0.1307,), (0.3081,))),
    "cifar10": (
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
    ),
}
"""Means and stds by channel in the authors' code, of inputs scaled to [0, 1]."""

NETWORK_THEOREMS: dict[str, Literal["theorem3", "theorem4"]] = {
    "linear": "theorem3",
    "two_layer_relu": "theorem4",
}
"""Models with a theorem of their own."""

BATCHNORM_MODELS = ("vgg16", "preactresnet18")
"""In training a sample's output depends on the others of its batch."""

SCALING_SCHEMES = ("sgd", "flooding", "clipping")
"""Their gradient is a multiple of the plain one, the factor known at every step."""

SMALLEST_IMAGES = {"alexnet": 27, "vgg16": 32, "preactresnet18": 1}
"""Pixels along the shorter side that a convolutional network needs."""
