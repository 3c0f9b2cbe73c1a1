"""VGG16 and PreActResNet18 against the same networks written out, and the size of every network."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import vgg

from gisgd_ray.config.model import (
    AlexNetConfig,
    LinearConfig,
    MLPConfig,
    ModelConfig,
    PreActResNet18Config,
    TwoLayerReLUConfig,
    VGG16Config,
)
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import build_model, num_parameters, vgg16
from tests.support import reference_networks as reference

SMALL_VGG16 = VGG16Config(filters=3, hidden=7)
SMALL_RESNET = PreActResNet18Config(filters=3)
BY_HAND: list[tuple[ModelConfig, Callable[[reference.Pass, Tensor], Tensor]]] = [
    (SMALL_VGG16, reference.vgg16),
    (SMALL_RESNET, reference.preactresnet18),
]


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=source, dtype=torch.float64)


def convolutions(sizes: list[tuple[int, int]], *, kernel: int = 3, bias: bool) -> int:
    """Weights and biases of convolutions from so many channels to so many."""
    return sum((kernel * kernel * inputs + bias) * outputs for inputs, outputs in sizes)


VGG16_CHANNELS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG16_FEATURES = (
    convolutions(list(pairwise(VGG16_CHANNELS)), bias=True) + sum(VGG16_CHANNELS[1:]) * 2
)

RESNET_CONVOLUTIONS = (
    convolutions([(3, 64)], bias=False)
    + convolutions([(64, 64)] * 4, bias=False)
    + convolutions([(64, 128), *[(128, 128)] * 3], bias=False)
    + convolutions([(128, 256), *[(256, 256)] * 3], bias=False)
    + convolutions([(256, 512), *[(512, 512)] * 3], bias=False)
    + convolutions([(64, 128), (128, 256), (256, 512)], kernel=1, bias=False)
)
# Scale and shift before every 3x3 convolution but the stem, and after the last block.
RESNET_NORMS = 2 * (4 * 64 + (64 + 3 * 128) + (128 + 3 * 256) + (256 + 3 * 512) + 512)

SIZES: list[tuple[ModelConfig, tuple[int, ...], int, int, int]] = [
    (MLPConfig(), (1, 28, 28), 10, 784 * 512 + 512 + 512 * 10 + 10, 407_050),
    (
        AlexNetConfig(),
        (3, 32, 32),
        10,
        (3 * 9 + 1) * 64
        + (64 * 25 + 1) * 192
        + (192 * 9 + 1) * 384
        + (384 * 9 + 1) * 256
        + (256 * 9 + 1) * 256
        + (256 + 1) * 4096
        + (4096 + 1) * 4096
        + (4096 + 1) * 10,
        20_323_146,
    ),
    (LinearConfig(), (200,), 1, 200, 200),
    (TwoLayerReLUConfig(), (200,), 1, 200 * 100, 20_000),
    (
        VGG16Config(),
        (3, 32, 32),
        10,
        VGG16_FEATURES + 513 * 4096 + 4097 * 4096 + 4097 * 10,
        33_646_666,
    ),
    (
        VGG16Config(),
        (3, 32, 32),
        100,
        VGG16_FEATURES + 513 * 4096 + 4097 * 4096 + 4097 * 100,
        33_646_666 + 90 * 4097,
    ),
    (
        PreActResNet18Config(),
        (3, 32, 32),
        10,
        RESNET_CONVOLUTIONS + RESNET_NORMS + 513 * 10,
        11_172_170,
    ),
    (
        PreActResNet18Config(),
        (3, 32, 32),
        100,
        RESNET_CONVOLUTIONS + RESNET_NORMS + 513 * 100,
        11_172_170 + 90 * 513,
    ),
]


class TestSizesAndShapes:
    @pytest.mark.parametrize(
        ("config", "shape", "classes", "by_layer", "total"),
        SIZES,
        ids=[f"{config.name}-{classes}" for config, _, classes, _, _ in SIZES],
    )
    def test_parameters_at_the_papers_size(self, config, shape, classes, by_layer, total):
        with torch.device("meta"):
            model = build_model(config, shape, classes, seed=0)
            assert model(torch.zeros(7, *shape)).shape == (7, classes)
        assert by_layer == total
        assert num_parameters(model) == total

    @pytest.mark.parametrize("samples", [1, 7])
    @pytest.mark.parametrize(
        ("config", "shapes"),
        [
            (MLPConfig(width=5), [(3, 32, 32), (1, 28, 28), (3, 64, 64)]),
            (AlexNetConfig(filters=2, hidden=5), [(3, 32, 32), (1, 28, 28), (3, 64, 64)]),
            (LinearConfig(), [(200,)]),
            (TwoLayerReLUConfig(width=5), [(200,)]),
            (VGG16Config(filters=2, hidden=5), [(3, 32, 32), (3, 64, 64), (1, 40, 70)]),
            (PreActResNet18Config(filters=2), [(3, 32, 32), (1, 28, 28), (3, 64, 64), (2, 5, 9)]),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_outputs(self, config, shapes, samples):
        for shape in shapes:
            outputs = 1 if len(shape) == 1 else 6
            model = build_model(config, shape, outputs, seed=0).eval()
            found = model(torch.zeros(samples, *shape))
            assert found.shape == (samples, outputs)
            assert found.dtype == torch.float32

    def test_smallest_images_for_vgg16(self):
        for height, width in ((28, 28), (31, 64), (64, 31), (8, 8)):
            said = rf"vgg16.* at least 32x32 pixels, not {height}x{width}"
            with pytest.raises(UserError, match=said):
                build_model(VGG16Config(filters=1), (3, height, width), 10, seed=0)


class TestAgainstTheNetworkWrittenOut:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 40, 70)])
    @pytest.mark.parametrize(("config", "by_hand"), BY_HAND)
    def test_outputs_and_running_statistics(self, config, by_hand, shape, training):
        model = build_model(config, shape, 5, seed=1, initialization="kaiming").double()
        with torch.no_grad():  # nothing at a value that would hide it
            for name, tensor in model.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    tensor.add_(0.2 * images(1, *tensor.shape, seed=len(name))[0].abs())
        x = images(4, *shape)
        for _ in range(2):
            run = reference.Pass.of(model.train(training), training=training)
            expected = by_hand(run, x)
            found = model(x)
            assert float(expected.std(dim=0).min()) > 1e-3  # the images arrive at the outputs
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            kept = list(model.buffers())
            assert len(kept) == len(run.statistics)
            torch.testing.assert_close(kept, run.statistics, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize(("config", "by_hand"), BY_HAND)
    def test_gradients(self, config, by_hand):
        """To every parameter, as they would be without modules."""
        model = build_model(config, (3, 32, 32), 5, seed=1, initialization="kaiming").double()
        x, y = images(4, 3, 32, 32), torch.tensor([0, 4, 2, 2])
        nn.functional.cross_entropy(model.train()(x), y).backward()
        tensors = [t.detach().clone() for t in model.state_dict().values()]
        leaves = [t.requires_grad_() for t in tensors if t.is_floating_point()]
        outputs = by_hand(reference.Pass(iter(tensors), training=True), x)
        nn.functional.cross_entropy(outputs, y).backward()
        expected = [leaf.grad for leaf in leaves if leaf.grad is not None]
        found = [p.grad for p in model.parameters()]
        assert len(found) == len(expected)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)

    def test_the_convolutions_of_vgg16_are_torchvisions(self):
        torch.manual_seed(0)
        theirs = vgg.make_layers(vgg.cfgs["D"], batch_norm=True).eval()
        with torch.device("meta"):
            model = vgg16((3, 32, 32), 10)
        ours = model[: len(theirs)]
        shapes = [[p.shape for p in layers.parameters()] for layers in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert num_parameters(ours) == num_parameters(theirs) == VGG16_FEATURES
        assert type(model[len(theirs)]) is nn.Flatten
        ours.load_state_dict(theirs.state_dict(), assign=True)
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x), theirs(x))


class TestPinned:
    """A change here changes every published number."""

    @pytest.mark.parametrize(
        ("config", "initialization", "training", "evaluating"),
        [
            (SMALL_VGG16, "pytorch", 0.7070584, 0.1770273),
            (SMALL_VGG16, "xavier", -0.7711758, -0.8012173),
            (SMALL_VGG16, "kaiming", 1.8865214, 0.378887),
            (SMALL_RESNET, "pytorch", -0.1539961, -0.2643237),
            (SMALL_RESNET, "xavier", 6.7046236, 5.5915417),
            (SMALL_RESNET, "kaiming", 2.0647055, 0.2029361),
            (MLPConfig(width=32), "kaiming", -42.854396, -42.854396),
            (AlexNetConfig(filters=3, hidden=7), "kaiming", -2.3426443, -2.3426443),
        ],
    )
    def test_weighted_sum_of_the_outputs(self, config, initialization, training, evaluating):
        """In train mode, then in evaluation mode with the running statistics of that one pass."""
        model = build_model(config, (3, 32, 32), 10, seed=7, initialization=initialization).double()
        x = torch.linspace(-1, 1, 2 * 3072, dtype=torch.float64).pow(3).view(2, 3, 32, 32)
        weights = torch.linspace(-1, 2, 20, dtype=torch.float64).view(2, 10)
        with torch.no_grad():
            found = [float((model.train(mode)(x) * weights).sum()) for mode in (True, False)]
        assert found == pytest.approx([training, evaluating], rel=1e-5, abs=0)


class TestInitialization:
    @pytest.mark.parametrize("initialization", ["pytorch", "kaiming"])
    @pytest.mark.parametrize("config", [SMALL_VGG16, SMALL_RESNET], ids=lambda c: c.name)
    def test_a_function_of_the_seed_alone(self, config, initialization):
        def built(seed: int) -> dict[str, Tensor]:
            model = build_model(config, (3, 32, 32), 10, seed=seed, initialization=initialization)
            return model.state_dict()

        torch.manual_seed(99)
        before = torch.get_rng_state()
        first = built(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(5)
        again, other = built(3), built(4)
        for name, values in first.items():
            assert torch.equal(values, again[name])
            if values.dim() > 1:
                assert not torch.equal(values, other[name])

    @pytest.mark.parametrize(
        ("config", "shape"),
        [
            (MLPConfig(width=200), (3, 32, 32)),
            (AlexNetConfig(filters=20, hidden=40), (3, 32, 32)),
            (VGG16Config(filters=8, hidden=60), (3, 32, 32)),
            (PreActResNet18Config(filters=8), (3, 32, 32)),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    def test_kaiming_normal_weights_by_fan_out_and_zero_biases(self, config, shape):
        model = build_model(config, shape, 10, seed=0, initialization="kaiming")
        layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
        kurtoses = []
        for layer in layers:
            weight = layer.weight.detach().double()
            if isinstance(layer, nn.BatchNorm2d):
                assert (weight == 1).all()
            else:
                fan_out = weight.shape[0] * math.prod(weight.shape[2:])
                std = math.sqrt(2 / fan_out)
                n = weight.numel()
                assert float(weight.square().mean().sqrt()) == pytest.approx(
                    std, rel=4 / math.sqrt(2 * n)
                )
                assert abs(float(weight.mean())) < 4 * std / math.sqrt(n)
                kurtoses.append(float((weight / std).pow(4).sum()))
            if layer.bias is not None:
                assert (layer.bias == 0).all()
        weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
        assert sum(kurtoses) / weights == pytest.approx(3, rel=0.1)  # uniform: 1.8

    @pytest.mark.parametrize("initialization", ["xavier", "kaiming"])
    def test_reaches_the_convolutions_inside_blocks(self, initialization):
        default, asked = (
            build_model(SMALL_RESNET, (3, 32, 32), 10, seed=0, initialization=name)
            for name in ("pytorch", initialization)
        )
        for layer, other in zip(default.modules(), asked.modules(), strict=True):
            redrawn = isinstance(layer, nn.Conv2d | nn.Linear)
            for p, q in zip(
                layer.parameters(recurse=False), other.parameters(recurse=False), strict=True
            ):
                assert torch.equal(p, q) is not redrawn


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MLPConfig(width=5), (3, 32, 32)),
        (AlexNetConfig(filters=2, hidden=5), (3, 32, 32)),
        (LinearConfig(), (20,)),
        (TwoLayerReLUConfig(width=5), (20,)),
        (SMALL_VGG16, (3, 32, 32)),
        (SMALL_RESNET, (3, 32, 32)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_layer_is_used_once_and_leaves_its_input_alone(config, shape, training):
    """What hooks see of a layer, in the pass or after it, is what the layer saw."""
    model = build_model(config, shape, 4, seed=0).train(training)
    layers = [m for m in model.modules() if not list(m.children())]
    used: list[nn.Module] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        used.append(layer)
        seen.extend((tensor, tensor.detach().clone()) for tensor in (*inputs, output))

    for layer in layers:
        layer.register_forward_hook(note)
    x = images(3, *shape).float()
    before = x.clone()
    model(x)
    assert torch.equal(x, before)
    assert sorted(map(id, used)) == sorted(map(id, layers))
    for tensor, kept in seen:
        assert torch.equal(tensor, kept)
