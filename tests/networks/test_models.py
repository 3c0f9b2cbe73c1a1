"""The networks: shapes, sizes, initial weights, and when the exact trace applies to them."""

import math

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.model import (
    AlexNetConfig,
    LinearConfig,
    MLPConfig,
    ModelConfig,
    TwoLayerReLUConfig,
)
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import (
    alexnet,
    build_model,
    is_piecewise_linear,
    linear,
    mlp,
    num_parameters,
    trainable,
    two_layer_relu,
)


def alexnet_size(
    channels: int, *, filters: int, pooled: int, classes: int, hidden: int = 4096
) -> int:
    """d from the layer table of the paper, weights and biases."""
    f = filters
    convolutions = [(channels, f, 3), (f, 3 * f, 5), (3 * f, 6 * f, 3), (6 * f, 256, 3)]
    convolutions += [(256, 256, 3)]
    layers = [(i * k * k, o) for i, o, k in convolutions]
    layers += [(256 * pooled * pooled, hidden), (hidden, hidden), (hidden, classes)]
    return sum((inputs + 1) * outputs for inputs, outputs in layers)


class TestShapesAndSizes:
    @pytest.mark.parametrize(("shape", "width"), [((1, 28, 28), 512), ((3, 32, 32), 100)])
    def test_mlp(self, shape, width):
        model = mlp(shape, 10, width=width)
        inputs = math.prod(shape)
        assert num_parameters(model) == inputs * width + width + width * 10 + 10
        assert model(torch.zeros(3, *shape)).shape == (3, 10)

    @pytest.mark.parametrize(
        ("shape", "filters", "classes", "pooled"),
        [((1, 28, 28), 10, 10, 1), ((3, 32, 32), 60, 100, 1), ((3, 64, 64), 4, 10, 3)],
    )
    def test_alexnet(self, shape, filters, classes, pooled):
        with torch.device("meta"):
            model = alexnet(shape, classes, filters=filters)
            assert model(torch.zeros(2, *shape)).shape == (2, classes)
        size = alexnet_size(shape[0], filters=filters, pooled=pooled, classes=classes)
        assert num_parameters(model) == size

    @pytest.mark.parametrize("hidden", [1, 7, 4096])
    def test_hidden_units_of_alexnet(self, hidden):
        with torch.device("meta"):
            model = alexnet((1, 28, 28), 10, filters=3, hidden=hidden)
            assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        size = alexnet_size(1, filters=3, pooled=1, classes=10, hidden=hidden)
        assert num_parameters(model) == size
        layers = [layer.out_features for layer in model if isinstance(layer, nn.Linear)]
        assert layers == [hidden, hidden, 10]

    def test_fields_of_alexnet_reach_it(self):
        model = build_model(AlexNetConfig(filters=2, hidden=5), (1, 28, 28), 10, seed=0)
        size = alexnet_size(1, filters=2, pooled=1, classes=10, hidden=5)
        assert num_parameters(model) == size

    @pytest.mark.parametrize(("shape", "width"), [((200,), 100), ((3, 2, 2), 1)])
    def test_networks_with_one_real_output(self, shape, width):
        inputs = math.prod(shape)
        for model, size in (
            (linear(shape), inputs),
            (two_layer_relu(shape, width=width), inputs * width),
        ):
            assert num_parameters(model) == size
            assert model(torch.zeros(3, *shape)).tolist() == [[0.0]] * 3  # no bias

    def test_alexnet_layer_by_layer(self):
        """Appendix E.1: what each layer hands on, for a 32 x 32 image."""
        sizes = []
        with torch.device("meta"):
            values = torch.zeros(1, 3, 32, 32)
            for layer in alexnet((3, 32, 32), 10, filters=64):
                values = layer(values)
                if not isinstance(layer, nn.ReLU):
                    sizes.append(tuple(values.shape[1:]))
        assert sizes == [
            *[(64, 17, 17), (64, 8, 8)],
            *[(192, 8, 8), (192, 3, 3)],
            *[(384, 3, 3), (256, 3, 3), (256, 3, 3), (256, 1, 1)],
            *[(256,), (4096,), (4096,), (10,)],
        ]

    def test_smallest_images_for_alexnet(self):
        with torch.device("meta"):
            model = alexnet((1, 27, 27), 10, filters=2)
            assert model(torch.zeros(1, 1, 27, 27)).shape == (1, 10)
        for height, width in ((26, 26), (26, 40), (40, 26), (2, 2)):
            said = rf"alexnet.* at least 27x27 pixels, not {height}x{width}"
            with pytest.raises(UserError, match=said):
                alexnet((1, height, width), 10, filters=2)

    def test_frozen_parameters_do_not_count(self):
        model = mlp((1, 2, 2), 3, width=5)
        model[1].bias.requires_grad_(False)
        assert num_parameters(model) == 20 + 15 + 3
        assert [p.shape for p in trainable(model)] == [(5, 4), (3, 5), (3,)]


def forward(config: ModelConfig, shape: tuple[int, ...], *, initialization: str) -> Tensor:
    model = build_model(config, shape, 10, seed=7, initialization=initialization)
    image = torch.linspace(-1, 1, math.prod(shape)).view(1, *shape)
    with torch.no_grad():
        return model(image)[0]


class TestForward:
    """Pinned values: a change here changes every published number."""

    @pytest.mark.parametrize(
        ("initialization", "first", "norm"),
        [("pytorch", -0.184788, 0.345579), ("xavier", 0.373264, 4.047273)],
    )
    def test_mlp(self, initialization, first, norm):
        outputs = forward(MLPConfig(width=32), (1, 28, 28), initialization=initialization)
        assert float(outputs[0]) == pytest.approx(first, abs=1e-5)
        assert float(outputs.norm()) == pytest.approx(norm, abs=1e-5)

    def test_alexnet(self):
        outputs = forward(AlexNetConfig(filters=4), (3, 32, 32), initialization="pytorch")
        assert float(outputs[0]) == pytest.approx(-0.002371, abs=1e-5)
        assert float(outputs.norm()) == pytest.approx(0.038070, abs=1e-5)

    def test_mlp_by_hand(self):
        model = mlp((1, 1, 2), 1, width=2)
        with torch.no_grad():
            for p, values in zip(
                model.parameters(),
                ([[1.0, 2.0], [-1.0, 1.0]], [0.5, -4.0], [[3.0, 7.0]], [-1.0]),
                strict=True,
            ):
                p.copy_(torch.tensor(values))
        # Hidden: relu(1 + 4 + 0.5) = 5.5 and relu(-1 + 2 - 4) = 0.
        assert model(torch.tensor([[[[1.0, 2.0]]]])).item() == 15.5

    @pytest.mark.parametrize(
        ("config", "initialization", "value"),
        [
            (LinearConfig(), "pytorch", -0.337964),
            (LinearConfig(), "xavier", 0.418932),
            (TwoLayerReLUConfig(), "pytorch", 0.134455),
            (TwoLayerReLUConfig(), "xavier", -0.031799),
        ],
    )
    def test_one_real_output(self, config, initialization, value):
        outputs = forward(config, (200,), initialization=initialization)
        assert outputs.tolist() == [pytest.approx(value, abs=1e-5)]

    def test_linear_by_hand(self):
        model = linear((2,))
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([[3.0, -0.5]]))
        assert model(torch.tensor([[1.0, 2.0], [-1.0, 4.0]])).tolist() == [[2.0], [-5.0]]

    def test_two_layer_relu_by_hand(self):
        model = two_layer_relu((2,), width=4)
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0], [-3.0, 0.0], [0.5, 0.0]]))
            model[3].signs.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        # Hidden: relu(5), relu(1), relu(-3) = 0, relu(0.5); m^(-1/2) = 1/2.
        assert model(torch.tensor([[1.0, 2.0]])).tolist() == [[(5 - 1 + 0 - 0.5) / 2]]

    def test_two_layer_relu_by_brute_force(self):
        model = build_model(TwoLayerReLUConfig(width=9), (5,), 1, seed=1)
        weight, signs = model[1].weight.tolist(), model[3].signs.tolist()
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        for x, output in zip(inputs, model(inputs), strict=True):
            total = 0.0
            for sign, w in zip(signs, weight, strict=True):
                total += sign * max(0.0, sum(a * b for a, b in zip(w, x.tolist(), strict=True)))
            assert output.tolist() == [pytest.approx(total / 3, abs=1e-6)]


class TestInitialization:
    def test_a_function_of_the_seed_alone(self):
        config = MLPConfig(width=16)
        first = build_model(config, (1, 8, 8), 10, seed=3)
        torch.manual_seed(99)
        torch.rand(5)
        again = build_model(config, (1, 8, 8), 10, seed=3)
        other = build_model(config, (1, 8, 8), 10, seed=4)
        for p, q, r in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)
            assert not torch.equal(p, r)

    @pytest.mark.parametrize("initialization", ["pytorch", "xavier"])
    def test_the_seed_decides_weights_and_signs(self, initialization):
        config = TwoLayerReLUConfig(width=64)
        first, again, other = (
            build_model(config, (20,), 1, seed=seed, initialization=initialization).state_dict()
            for seed in (3, 3, 4)
        )
        assert list(first) == ["1.weight", "3.signs"]  # a checkpoint holds both
        for name, values in first.items():
            assert torch.equal(values, again[name])
            assert not torch.equal(values, other[name])

    def test_signs_are_fair_and_not_trained(self):
        model = build_model(TwoLayerReLUConfig(width=4000), (3,), 1, seed=0)
        signs = model[3].signs.clone()
        assert set(signs.tolist()) == {-1.0, 1.0}
        assert abs(float(signs.sum())) < 4 * 4000**0.5
        assert [p.shape for p in trainable(model)] == [(4000, 3)]
        assert not model[3].signs.requires_grad
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 3)).sum().backward()
        before = model[1].weight.detach().clone()
        optimizer.step()
        assert torch.equal(model[3].signs, signs)
        assert not torch.equal(model[1].weight, before)

    @pytest.mark.parametrize("initialization", ["pytorch", "xavier"])
    def test_leaves_the_global_generator_alone(self, initialization):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        build_model(MLPConfig(width=4), (1, 8, 8), 10, seed=3, initialization=initialization)
        assert torch.equal(torch.get_rng_state(), before)

    def test_pytorch_default_is_uniform_within_its_bound(self):
        model = build_model(MLPConfig(width=300), (1, 28, 28), 10, seed=0)
        bound = 1 / math.sqrt(784)
        for values in (model[1].weight.detach(), model[1].bias.detach()):
            assert float(values.abs().max()) <= bound
            assert float(values.abs().mean()) == pytest.approx(bound / 2, rel=0.15)

    def test_xavier_normal_weights_and_standard_normal_linear_biases(self):
        model = build_model(MLPConfig(width=400), (1, 28, 28), 10, seed=0, initialization="xavier")
        for weight in (model[1].weight.detach(), model[3].weight.detach()):
            std = math.sqrt(2 / sum(weight.shape))
            assert float(weight.std()) == pytest.approx(std, rel=0.05)
            assert abs(float(weight.mean())) < 4 * std / math.sqrt(weight.numel())
            # Normal, not uniform: the fourth moment is 3 std^4 (uniform: 1.8).
            assert float((weight**4).mean()) / std**4 == pytest.approx(3, rel=0.15)
        bias = model[1].bias.detach()
        assert float(bias.std()) == pytest.approx(1, rel=0.15)
        assert abs(float(bias.mean())) < 0.2

    def test_xavier_leaves_convolution_biases_at_the_default(self):
        config = AlexNetConfig(filters=20)
        model = build_model(config, (1, 28, 28), 10, seed=0, initialization="xavier")
        convolution = model[3]
        assert isinstance(convolution, nn.Conv2d)
        fan_in, fan_out = 20 * 25, 60 * 25
        std = math.sqrt(2 / (fan_in + fan_out))
        assert float(convolution.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert float(convolution.bias.detach().abs().max()) <= 1 / math.sqrt(fan_in)


class TestPiecewiseLinear:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Linear(4, 4, bias=False),
            nn.Conv2d(4, 4, 3, stride=2, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Identity(),
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU())),
            nn.BatchNorm1d(4).eval(),
            nn.BatchNorm2d(4).eval(),
        ],
    )
    def test_is(self, layer):
        assert is_piecewise_linear(nn.Sequential(layer, nn.Flatten(), nn.Linear(4, 2)))

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Tanh(),
            nn.Sigmoid(),
            nn.GELU(),
            nn.Softmax(dim=1),
            nn.LayerNorm(4),
            nn.Bilinear(4, 4, 4),
            nn.BatchNorm1d(4),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, track_running_stats=False).eval(),
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh())),
        ],
    )
    def test_is_not(self, layer):
        model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))
        model[0].eval()
        assert not is_piecewise_linear(model)

    def test_the_papers_networks_are(self):
        assert is_piecewise_linear(mlp((1, 4, 4), 3, width=2))
        assert is_piecewise_linear(linear((4,)))
        assert is_piecewise_linear(two_layer_relu((4,), width=2))
        with torch.device("meta"):
            assert is_piecewise_linear(alexnet((1, 28, 28), 10, filters=2))
