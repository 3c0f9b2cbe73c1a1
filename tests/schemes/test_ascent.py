"""AMP, SAM and passes at other weights, against autograd at weights displaced by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gisgd_ray.networks.models import trainable
from gisgd_ray.schemes.ascent import AMP, SAM
from gisgd_ray.schemes.base import Batch, Step
from gisgd_ray.schemes.perturbed import StandIns, folded
from tests.support.networks import case, small_batchnorm, small_mlp

Named = dict[str, Tensor]


def batch_loss(model: nn.Module, weights: Named, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy at these weights; the model's own buffers stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return F.cross_entropy(functional_call(model, {**weights, **buffers}, (x,)), y)


def gradient_at(model: nn.Module, weights: Named, x: Tensor, y: Tensor) -> Named:
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(batch_loss(model, leaves, x, y), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def weights_of(model: nn.Module) -> Named:
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def moved(weights: Named, step: Named) -> Named:
    return {name: weights[name] + step[name] for name in weights}


def norm(tensor: Tensor) -> float:
    return float((tensor**2).sum() ** 0.5)


def assert_gradient(model: nn.Module, expected: Named) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


BOTH = pytest.mark.parametrize("build", [small_mlp, small_batchnorm])


@BOTH
class TestGradient:
    @pytest.mark.parametrize("rate", [1.0, 0.5])
    def test_of_amp_is_that_in_a_ball_around_every_tensor(self, build, rate):
        model, x, y = case(build)
        before = weights_of(model)
        plain = gradient_at(model, before, x, y)
        norms = sorted(norm(g) for g in plain.values())
        # Some tensors stay inside their ball after a step of this rate, others are projected.
        radius = rate * (norms[1] + norms[2]) / 2
        step = {name: min(rate, radius / norm(g)) * g for name, g in plain.items()}
        lengths = [norm(s) for s in step.values()]
        assert sum(length < radius * (1 - 1e-9) for length in lengths) == 2
        assert sum(length == pytest.approx(radius) for length in lengths) == len(norms) - 2
        expected = gradient_at(model, moved(before, step), x, y)
        scheme = AMP(radius=radius, inner_learning_rate=rate)
        assert scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy")) is None
        assert_gradient(model, expected)

    def test_of_sam_is_that_at_the_edge_of_one_ball(self, build):
        model, x, y = case(build)
        before = weights_of(model)
        plain = gradient_at(model, before, x, y)
        length = sum(norm(g) ** 2 for g in plain.values()) ** 0.5
        radius = 3 * length  # beyond a step of rate 1, where AMP would have stopped
        step = {name: radius / length * g for name, g in plain.items()}
        expected = gradient_at(model, moved(before, step), x, y)
        scheme = SAM(radius=radius)
        assert scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy")) is None
        assert_gradient(model, expected)
        # To first order the loss rises by radius * ||g||, the most within the ball.
        near = {name: 1e-6 / length * g for name, g in plain.items()}
        rise = batch_loss(model, moved(before, near), x, y) - batch_loss(model, before, x, y)
        assert float(rise) == pytest.approx(1e-6 * length, rel=1e-3)

    @pytest.mark.parametrize("kind", [AMP, SAM])
    def test_of_every_step_starts_from_the_weights_then(self, build, kind):
        """One scheme over three steps against a fresh one each time."""
        model, x, y = case(build)
        scheme = kind(radius=0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            kind(radius=0.3).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
            expected = [p.grad.clone() for p in model.parameters()]
            scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
            for found, wanted in zip(model.parameters(), expected, strict=True):
                assert torch.equal(found.grad, wanted)
            optimizer.step()


class RaisesAtSecondPass(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.passes, self.seen = inner, 0, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 2:
            self.seen = next(self.parameters()).detach().clone()
            raise RuntimeError("out of memory")
        return self.inner(x)


SCHEMES = pytest.mark.parametrize("scheme", [AMP, SAM])


@SCHEMES
class TestWeights:
    @BOTH
    def test_come_back_to_the_bit(self, scheme, build):
        model, x, y = case(build, double=False)
        with torch.no_grad():
            for p in model.parameters():  # weights that no sum and difference would bring back
                p.mul_(1 + 1e-3 * torch.randn_like(p))
        before, identities = weights_of(model), [id(p) for p in model.parameters()]
        scheme(radius=100.0).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        assert [id(p) for p in model.parameters()] == identities
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
            assert weight.requires_grad

    def test_come_back_when_the_second_pass_fails(self, scheme):
        inner, x, y = case(small_batchnorm)
        model = RaisesAtSecondPass(inner)
        before = weights_of(model)
        with pytest.raises(RuntimeError, match="out of memory"):
            scheme(radius=1.0).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        assert not torch.equal(model.seen, next(iter(before.values())))  # it was elsewhere
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
        assert inner[1].track_running_stats

    def test_without_gradient_stay_and_give_no_nan(self, scheme):
        """Half the squared distance of 0 to 0: the gradient is 0, and so has no direction."""
        model = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(model.weight)
        batch = Batch(torch.randn(5, 3), torch.zeros(5))
        scheme(radius=0.5).gradient(Step(model, batch, loss="squared"))
        assert torch.equal(model.weight.grad, torch.zeros(1, 3))
        assert torch.equal(model.weight, torch.zeros(1, 3))

    def test_of_one_tensor_without_gradient_leave_the_others_alone(self, scheme):
        """No hidden unit is active: three of four tensors have gradient 0."""
        model, x, y = case(small_mlp)
        with torch.no_grad():
            model[1].bias.fill_(-100)
        before = weights_of(model)
        plain = gradient_at(model, before, x, y)
        assert [norm(g) > 0 for g in plain.values()] == [False, False, False, True]
        step = {name: torch.zeros_like(g) for name, g in plain.items()}
        step["3.bias"] = 0.01 * plain["3.bias"] / norm(plain["3.bias"])
        scheme(radius=0.01).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        assert_gradient(model, gradient_at(model, moved(before, step), x, y))


@SCHEMES
def test_batchnorm_sees_the_batch_once_and_at_the_clean_weights(scheme):
    model, x, y = case(small_batchnorm)
    clean, _, _ = case(small_batchnorm)
    clean(x)
    scheme(radius=1.0).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
    assert int(model[1].num_batches_tracked) == 1
    for found, expected in zip(model.buffers(), clean.buffers(), strict=True):
        assert torch.equal(found, expected)
    model.eval()
    assert model[1].track_running_stats


class TestStandIns:
    def test_the_model_computes_with_them_and_its_weights_are_not_touched(self):
        model, x, _ = case(small_mlp, double=False)
        weights, before = trainable(model), weights_of(model)
        own = model(x).detach()
        aside = StandIns()
        with aside.placed(model) as stand_ins:
            assert list(stand_ins) == weights
            first = [s.data_ptr() for s in stand_ins.values()]
            assert not set(first) & {w.data_ptr() for w in weights}
            assert [id(p) for p in model.parameters()] == [id(s) for s in stand_ins.values()]
            with torch.no_grad():
                for weight, stand_in in stand_ins.items():
                    stand_in.copy_(2 * weight)
            assert not torch.equal(model(x), own)
            model(x).sum().backward()
            assert all(s.grad is not None for s in stand_ins.values())
        assert [id(p) for p in model.parameters()] == [id(w) for w in weights]
        assert all(w.grad is None and w.is_leaf and w.requires_grad for w in weights)
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])
        assert torch.equal(model(x), own)
        with aside.placed(model) as stand_ins:  # one copy: the same memory again
            assert [s.data_ptr() for s in stand_ins.values()] == first

    def test_the_weights_are_back_after_a_failure(self):
        model, _, _ = case(small_mlp)
        weights, before, aside = trainable(model), weights_of(model), StandIns()

        def fail() -> None:
            with aside.placed(model) as stand_ins, torch.no_grad():
                for stand_in in stand_ins.values():
                    stand_in.zero_()
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert [id(p) for p in model.parameters()] == [id(w) for w in weights]
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name])

    def test_what_is_not_trained_stays(self):
        model, _, _ = case(small_mlp)
        frozen = next(model.parameters()).requires_grad_(False)
        with StandIns().placed(model) as stand_ins:
            assert frozen not in stand_ins
            assert next(model.parameters()) is frozen

    def test_shared_weights_have_one_stand_in(self):
        layer = nn.Linear(2, 2, bias=False)
        model = nn.ModuleList([layer, nn.Linear(2, 2, bias=False)])
        shared = model[1].weight = layer.weight
        with StandIns().placed(model) as stand_ins:
            assert list(stand_ins) == [shared]
            assert model[0].weight is model[1].weight is stand_ins[shared]
        assert model[0].weight is model[1].weight is shared


class TwoParts(nn.Module):
    """Its second weight is used only when asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(2.0))
        self.second = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: float, *, both: bool) -> Tensor:
        return x * self.first + (x * self.second if both else 0.0)


class TestFolded:
    def test_every_backward_is_folded_into_the_gradients_before(self):
        model = TwoParts()
        model(3.0, both=True).backward()
        kept = [p.grad for p in model.parameters()]
        with folded(trainable(model), lambda sum_, new: sum_.mul_(10).add_(new)):
            for x in (4.0, 5.0):
                model(x, both=True).backward()
                assert [p.grad for p in model.parameters()] == [None, None]
        # ((3 * 10) + 4) * 10 + 5, in the tensors there were.
        assert [float(p.grad) for p in model.parameters()] == [345, 345]
        assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))

    def test_a_weight_without_a_gradient_before_has_none_after(self):
        model = TwoParts()
        model(3.0, both=False).backward()
        with folded(trainable(model), lambda mean, new: mean.lerp_(new, 0.5)):
            model(5.0, both=True).backward()
        assert float(model.first.grad) == 4
        assert model.second.grad is None

    def test_nothing_is_left_behind_after_a_failure(self):
        model = TwoParts()
        model(3.0, both=True).backward()

        def fail() -> None:
            with folded(trainable(model), lambda sum_, new: sum_.add_(new)):
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert [float(p.grad) for p in model.parameters()] == [3, 3]
        model(4.0, both=True).backward()  # accumulates as ever
        assert [float(p.grad) for p in model.parameters()] == [7, 7]

    def test_shared_weights_are_folded_once(self):
        layer = nn.Linear(2, 2, bias=False)
        model = nn.Sequential(layer, layer)
        x = torch.tensor([[1.0, 2.0]])
        model(x).sum().backward()
        once, calls = layer.weight.grad.clone(), []

        def fold(sum_: Tensor, new: Tensor) -> None:
            calls.append(new.clone())
            sum_.add_(new)

        with folded(trainable(model), fold):
            model(x).sum().backward()
        assert len(calls) == 1
        torch.testing.assert_close(layer.weight.grad, 2 * once)


@SCHEMES
def test_there_is_nothing_to_remember(scheme):
    (model, x, y), used = case(small_mlp), scheme(radius=0.1)
    used.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
    assert used.state_dict() == {}
