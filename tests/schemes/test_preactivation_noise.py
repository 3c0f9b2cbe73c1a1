"""Noise in the pre-activations: its distribution, and the expected gradient where it is exact."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gisgd_ray.config.scheme import GMPConfig
from gisgd_ray.errors import UserError
from gisgd_ray.schemes.base import Setting, build_scheme
from gisgd_ray.schemes.gmp import check_layers
from gisgd_ray.schemes.preactivation_noise import noisy_preactivations, variance
from gisgd_ray.schemes.sgd import SGD
from tests.schemes.test_gmp import difference, gmp, gradient
from tests.support.networks import case, small_batchnorm, small_conv, small_tanh
from tests.support.reference import sample_loss

STD = 0.4


def batchnorm(layer: nn.BatchNorm1d | nn.BatchNorm2d, *, training: bool) -> nn.Module:
    """With affine parameters and running statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(2)
    for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        with torch.no_grad():
            value.uniform_(0.3, 1.5, generator=generator)
    return layer.train(training)


def linear_layers() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Layers whose noise has one variance for all channels, and shapes of one input."""
    yield nn.Linear(3, 2), (3,)
    yield nn.Linear(3, 2, bias=False), (3,)
    yield nn.Conv2d(2, 2, 2), (2, 3, 3)
    yield nn.Conv2d(2, 2, 3, padding=1, bias=False), (2, 2, 3)
    yield nn.Conv2d(1, 2, (2, 3), stride=2, padding=(0, 1), bias=False), (1, 4, 5)
    yield nn.Conv2d(1, 2, 2, dilation=2, padding="same"), (1, 3, 2)


def layers() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    yield from linear_layers()
    for training in (True, False):
        yield batchnorm(nn.BatchNorm2d(2), training=training), (2, 2, 2)
        yield batchnorm(nn.BatchNorm1d(3), training=training), (3,)


def inputs(shape: tuple[int, ...], *, n: int = 3) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3)).double()


def jacobian(layer: nn.Module, x: Tensor) -> Tensor:
    """d output / d weights, (b, outputs of one sample, weights): the output is linear in them, so
    that its columns are the outputs at the unit vectors."""
    layer = copy.deepcopy(layer)
    parameters = list(layer.parameters())
    units = torch.eye(sum(p.numel() for p in parameters), dtype=x.dtype)
    columns = []
    with torch.no_grad():
        for unit in units:
            nn.utils.vector_to_parameters(unit, parameters)
            columns.append(layer(x).flatten(1))
    return torch.stack(columns, dim=2)


def described(layer: object) -> str:
    return str(layer) if isinstance(layer, nn.Module) else ""


class TestLayers:
    @pytest.mark.parametrize(("layer", "shape"), list(linear_layers()), ids=described)
    def test_variance_is_that_under_weight_noise(self, layer, shape):
        layer, x = layer.double(), inputs(shape)
        exact = jacobian(layer, x).square().sum(2)
        found = variance(layer, x)
        assert found.shape[1] == 1
        assert torch.allclose(found.expand_as(layer(x)).flatten(1), exact, rtol=1e-12, atol=0)

    @pytest.mark.parametrize(("layer", "shape"), list(layers()), ids=described)
    def test_noise_of_one_sample_is_that_of_the_weights_but_between_positions(self, layer, shape):
        """Means and covariances of 20,000 draws, all samples and outputs of the layer."""
        layer, x = layer.double(), inputs(shape)
        draws, b = 20_000, len(x)
        generator = torch.Generator().manual_seed(4)
        with noisy_preactivations(layer, std=STD, generator=generator), torch.no_grad():
            # Copies of the batch leave the statistics of BatchNorm what they are.
            noisy = layer(x.repeat(draws, *[1] * len(shape)))
        with torch.no_grad():
            noise = ((noisy.unflatten(0, (draws, b)) - layer(x)) / STD).flatten(1)
        by_sample = jacobian(layer, x)
        blocks = [j @ j.T for j in by_sample]
        if isinstance(layer, nn.Conv2d):
            assert max((block - block.diag().diag()).abs().max() for block in blocks) > 0.3
            blocks = [block.diag().diag() for block in blocks]
        exact = torch.block_diag(*blocks)
        variances = exact.diag()
        assert (noise.mean(0).abs() < 5 * (variances / draws).sqrt()).all()
        error = ((variances.outer(variances) + exact.square()) / draws).sqrt()
        assert ((noise.T @ noise / draws - exact).abs() < 5 * error).all()

    @pytest.mark.parametrize("build", [small_conv, small_batchnorm])
    def test_outside_nothing_changes(self, build):
        model, x, _ = case(build)
        model.eval()
        clean = model(x)
        with noisy_preactivations(model, std=STD, generator=torch.Generator()):
            assert not torch.equal(model(x), clean)
        assert torch.equal(model(x), clean)

    def test_an_input_of_zeros_has_a_gradient(self):
        """The standard deviation is 0 there, where the root has no derivative."""
        layer = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
        x = torch.zeros(2, 3)
        with noisy_preactivations(layer, std=STD, generator=torch.Generator()):
            layer(x).sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


def tiny(*modules: nn.Module, shape: tuple[int, ...] = (3,)) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with weights of a fixed seed, three samples, and labels in 0 .. 1."""
    torch.manual_seed(5)
    model = nn.Sequential(*modules).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.7)
    return model, inputs(shape), torch.tensor([0, 1, 1])


def estimates(
    model: nn.Module, x: Tensor, y: Tensor, *, estimator: str, steps: int, loss: str, draws: int = 1
) -> Tensor:
    """Gradients of the perturbed loss alone, one a step, (steps, d)."""
    scheme = gmp(rho=1.0, noise_std=STD, estimator=estimator, draws=draws)
    found = [gradient(scheme, model, x, y, loss) for _ in range(steps)]
    return torch.stack([nn.utils.parameters_to_vector(gradients) for gradients in found])


def local_means(model: nn.Module, x: Tensor, y: Tensor, *, loss: str) -> Tensor:
    """40 means of 1000 independent draws: copies of a sample have each their own, (40, d)."""
    copies = (x.repeat(1000, *[1] * (x.dim() - 1)), y.repeat(1000))
    return estimates(model, *copies, estimator="local", steps=40, loss=loss)


def weights_means(model: nn.Module, x: Tensor, y: Tensor, *, loss: str) -> Tensor:
    """40 means of 50 draws shared by the batch, (40, d)."""
    return estimates(model, x, y, estimator="weights", draws=50, steps=40, loss=loss)


def errors(found: Tensor, expected: Tensor, variance: Tensor | float = 0.0) -> float:
    """Largest |mean - expected| in standard errors, over the components."""
    squares = found.var(0) / len(found) + variance
    return float(((found.mean(0) - expected).abs() / squares.sqrt()).max())


def plain(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    return nn.utils.parameters_to_vector(gradient(SGD(), model, x, y, loss))


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(torch.autograd.grad(value, list(model.parameters())))


def linear_network_loss(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """E L of a network of linear layers alone, any depth, squared loss.

    With a = E h and A = E h h^T of a layer's input, its output has E = W a + b and
    E h h^T = E[(W h + b)(W h + b)^T] + std^2 (tr A + 1) I.
    """
    total = 0.0
    for sample, label in zip(x, y, strict=True):
        mean, second = sample, torch.outer(sample, sample)
        for layer in model:
            w, b = layer.weight, layer.bias
            cross = torch.outer(w @ mean, b)
            noise = STD**2 * (second.trace() + 1) * torch.eye(len(w), dtype=w.dtype)
            second = w @ second @ w.T + cross + cross.T + torch.outer(b, b) + noise
            mean = w @ mean + b
        total = total + second.trace() - 2 * mean[label] + 1
    return total / (2 * len(x))


def relu_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """E relu(z), E relu(z)^2."""
    normal = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    ratio = mean / deviation
    below, density = normal.cdf(ratio), normal.log_prob(ratio).exp()
    first = mean * below + deviation * density
    return first, (mean**2 + deviation**2) * below + mean * deviation * density


def tanh_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """E tanh(z), E tanh(z)^2, by Gauss-Hermite quadrature."""
    nodes, weights = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(120))
    values = torch.tanh(mean.unsqueeze(-1) + deviation.unsqueeze(-1) * nodes)
    weights = weights / math.sqrt(2 * math.pi)
    return values @ weights, values.square() @ weights


def hidden_layer_loss(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """E L of linear - activation - linear, squared loss: for one sample hidden units are
    independent, so that the first two moments of each are all that counts."""
    first, activation, last = model
    deviation = STD * (x.square().sum(1, keepdim=True) + 1).sqrt()
    moments = relu_moments if isinstance(activation, nn.ReLU) else tanh_moments
    pre = first(x)
    mean, second = moments(pre, deviation.expand_as(pre))
    one_hot = F.one_hot(y, 2).to(x.dtype)
    squared_bias = (last(mean) - one_hot).square().sum(1)
    through_units = (second - mean.square()) @ last.weight.square().sum(0)
    own = STD**2 * len(last.bias) * (second.sum(1) + 1)
    return (squared_bias + through_units + own).mean() / 2


LINEAR = [nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, 2)]


class TestExactForLinearLayers:
    @pytest.mark.parametrize("means", [local_means, weights_means])
    @pytest.mark.parametrize(
        ("modules", "expected_loss"),
        [
            (LINEAR, linear_network_loss),
            ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)], hidden_layer_loss),
            ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)], hidden_layer_loss),
        ],
        ids=["linear network", "relu", "tanh"],
    )
    def test_both_estimators_have_the_gradient_of_the_expected_loss(
        self, modules, expected_loss, means
    ):
        model, x, y = tiny(*modules)
        exact = flat_gradient(expected_loss(model, x, y), model)
        found = means(model, x, y, loss="squared")
        assert errors(found, exact) < 4.5
        assert errors(found, plain(model, x, y, "squared")) > 15

    @pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, "batchnorm"])
    def test_deeper_networks_and_batchnorm_in_evaluation_agree_with_weight_noise(
        self, activation, loss
    ):
        """The reference: 20,000 draws on the weights, one gradient each."""
        if activation == "batchnorm":
            between = [nn.BatchNorm1d(3), nn.Tanh()]
        else:
            between = [activation(), nn.Linear(3, 3), activation()]
        model, x, y = tiny(nn.Linear(3, 3), *between, nn.Linear(3, 2))
        if activation == "batchnorm":
            batchnorm(model[1], training=False)
        model.eval()
        reference = weight_noise_gradients(model, x, y, loss)
        found = local_means(model, x, y, loss=loss)
        spread = reference.var(0) / len(reference)
        assert errors(found, reference.mean(0), spread) < 4.5
        assert errors(found, plain(model, x, y, loss), spread) > 15

    def test_has_weight_rho_in_the_gradient(self):
        model, x, y = case(small_tanh)
        clean, noisy, mixed = (
            gradient(scheme, model, x, y)
            for scheme in (SGD(), *(gmp(rho=r, estimator="local", noise_std=0.3) for r in (1, 0.3)))
        )
        expected = [0.7 * a + 0.3 * b for a, b in zip(clean, noisy, strict=True)]
        assert difference(mixed, expected) < 1e-12
        assert difference(mixed, clean) > 0.01


def weight_noise_gradients(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """grad L(w + delta) by explicit draws of delta, (20,000, d)."""
    generator = torch.Generator().manual_seed(6)
    buffers = dict(model.named_buffers())
    moved = {
        name: p.detach() + STD * torch.randn(20_000, *p.shape, generator=generator).double()
        for name, p in model.named_parameters()
    }

    def risk(weights: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(model, weights | buffers, (x,))
        return sum(sample_loss(f, k, loss) for f, k in zip(outputs, y.tolist(), strict=True)) / 3

    found = vmap(grad(risk))(moved)
    return torch.cat([part.flatten(1) for part in found.values()], dim=1)


def pooled_loss(model: nn.Sequential, x: Tensor, y: Tensor, *, shared: bool) -> Tensor:
    """E L of convolution - average over all positions - linear, squared loss.

    The average of a channel has the variance std^2 (|| mean patch ||^2 + 1) if one draw of the
    kernel serves all P positions, and std^2 sum_p (|| patch_p ||^2 + 1) / P^2 if each has its own.
    """
    convolution, pool, flatten, last = model
    patches = F.unfold(x, convolution.kernel_size)  # (b, patch, P)
    if shared:
        variances = STD**2 * (patches.mean(2).square().sum(1) + 1)
    else:
        variances = STD**2 * (patches.square().sum(1) + 1).mean(1) / patches.shape[2]
    mean = flatten(pool(convolution(x)))
    squared_bias = (last(mean) - F.one_hot(y, 2)).square().sum(1)
    through_channels = variances * last.weight.square().sum()
    second = mean.square().sum(1) + mean.shape[1] * variances
    return (squared_bias + through_channels + STD**2 * 2 * (second + 1)).mean() / 2


class TestWhereItIsNotExact:
    @pytest.mark.parametrize("side", [3, 2])
    def test_convolutions_of_more_than_one_position(self, side):
        """Each estimator has the closed form of its own noise; with one position they coincide."""
        modules = (nn.Conv2d(1, 2, 2), nn.AvgPool2d(side - 1), nn.Flatten(), nn.Linear(2, 2))
        model, x, y = tiny(*modules, shape=(1, side, side))
        x = x + 0.7
        shared, independent = (
            flat_gradient(pooled_loss(model, x, y, shared=shared), model)
            for shared in (True, False)
        )
        local = local_means(model, x, y, loss="squared")
        weights = weights_means(model, x, y, loss="squared")
        assert errors(weights, shared) < 4.5
        assert errors(local, independent) < 4.5
        if side == 2:
            assert torch.allclose(shared, independent, rtol=1e-12)
        else:
            assert errors(weights, independent) > 6
            assert errors(local, shared) > 6

    def test_batchnorm_in_training(self):
        """Noise on the weight and bias ahead of it, which the batch shares, is normalised away,
        so that scale and shift have the clean gradient; noise of each sample's own is not."""
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).double()
        nn.init.constant_(model[0].weight, 10 * STD)
        x = torch.tensor([[10.0], [11.0], [12.0]], dtype=torch.float64)
        y = 2 * (x.squeeze(1) - 11)
        clean = plain(model, x, y, "squared")[2:]
        local, weights = (
            estimates(model, x, y, estimator=estimator, steps=400, loss="squared")[:, 2:]
            for estimator in ("local", "weights")
        )
        assert errors(weights, clean) < 4.5
        assert errors(local, clean) > 10


class TestUnknownLayers:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.GroupNorm(2, 4),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
            nn.PReLU(),
            nn.ConvTranspose2d(4, 4, 3),
        ],
        ids=described,
    )
    def test_are_refused_in_one_sentence(self, layer):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(layer))
        place = Setting(0, torch.device("cpu"), steps_per_epoch=1, planned_steps=1)
        with pytest.raises(UserError) as caught:
            build_scheme(GMPConfig(estimator="local"), model, place)
        message = str(caught.value)
        assert "'1.0'" in message
        assert type(layer).__name__ in message
        assert "scheme.estimator = 'weights'" in message
        assert "\n" not in message
        build_scheme(GMPConfig(estimator="weights"), model, place)

    def test_the_known_ones_are_not(self):
        for layer, _ in layers():
            check_layers(nn.Sequential(layer, nn.ReLU(), nn.MaxPool2d(2)))
