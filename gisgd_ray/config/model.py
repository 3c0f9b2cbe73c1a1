"""Sections of the networks (PAPER section 5), each with its record."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gisgd_ray.config.frozen import Frozen
from gisgd_ray.config.records import ModelRecord


class MLPConfig(Frozen):
    """One hidden ReLU layer (paper, section 5 and appendix E.1)."""

    record: ClassVar = ModelRecord("mlp", "MLP", "models:mlp")
    name: Literal["mlp"] = Field("mlp", description="model family")
    width: int = Field(512, ge=1, description="hidden units")


class AlexNetConfig(Frozen):
    """AlexNet for 32x32 (or 28x28) images, without dropout or BatchNorm (appendix E.1)."""

    record: ClassVar = ModelRecord("alexnet", "AlexNet", "models:alexnet", smallest_image=27)
    name: Literal["alexnet"] = Field("alexnet", description="model family")
    filters: int = Field(
        64, ge=1, description="filters F of the first layer; then 3F, 6F, 256, 256"
    )
    hidden: int = Field(4096, ge=1, description="units of each of the two fully connected layers")


class LinearConfig(Frozen):
    """f(w, x) = w.x, of Theorem 3 and Figure 7; one real output."""

    record: ClassVar = ModelRecord("linear", "linear network", "models:linear", theorem="theorem3")
    name: Literal["linear"] = Field("linear", description="model family")


class TwoLayerReLUConfig(Frozen):
    """f(w, x) = m^(-1/2) sum_r A_r ReLU(w_r.x), A_r = +-1 fixed; of Theorem 4 and Figure 8."""

    record: ClassVar = ModelRecord(
        "two_layer_relu", "two-layer ReLU network", "models:two_layer_relu", theorem="theorem4"
    )
    name: Literal["two_layer_relu"] = Field("two_layer_relu", description="model family")
    width: int = Field(100, ge=1, description="hidden units m")


class VGG16Config(Frozen):
    """VGG16 with BatchNorm for images of at least 32x32 (Tables 1-3)."""

    record: ClassVar = ModelRecord(
        "vgg16", "VGG16", "models:vgg16", smallest_image=32, batchnorm=True
    )
    name: Literal["vgg16"] = Field("vgg16", description="model family")
    filters: int = Field(
        64, ge=1, description="filters F of the first block; then 2F, 4F, 8F, 8F (paper: 64)"
    )
    hidden: int = Field(4096, ge=1, description="units of each of the two fully connected layers")


class PreActResNet18Config(Frozen):
    """ResNet-18 with pre-activation blocks and BatchNorm for small images (Tables 1-2)."""

    record: ClassVar = ModelRecord(
        "preactresnet18",
        "PreActResNet18",
        "residual:preactresnet18",
        smallest_image=1,
        batchnorm=True,
    )
    name: Literal["preactresnet18"] = Field("preactresnet18", description="model family")
    filters: int = Field(
        64, ge=1, description="filters F of the first stage; then 2F, 4F, 8F (paper: 64)"
    )


ModelConfig = Annotated[
    MLPConfig
    | AlexNetConfig
    | LinearConfig
    | TwoLayerReLUConfig
    | VGG16Config
    | PreActResNet18Config,
    Field(discriminator="name"),
]
