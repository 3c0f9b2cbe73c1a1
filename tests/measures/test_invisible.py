"""No measurement leaves a trace: what may be disturbed is compared bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures.dispersion import BySample, StepMeter
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.networks.losses import per_sample_loss
from gisgd_ray.training.evaluation import evaluate
from tests.support import reference
from tests.support.networks import Builder, case, small_batchnorm, small_conv, small_mlp

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@contextmanager
def nothing_changes(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Parameters, gradients, modes, buffers, RNG and optimizer are bit for bit what they were."""

    def bits(tensor: Tensor) -> bytes:
        return tensor.detach().numpy().tobytes()

    def momenta() -> list[bytes]:
        return [bits(s["momentum_buffer"]) for s in optimizer.state.values()]

    def snapshot() -> dict[str, Any]:
        return {
            "values": {name: bits(value) for name, value in model.state_dict().items()},
            "where": [(id(t), t.data_ptr()) for t in (*model.parameters(), *model.buffers())],
            "grads": [(id(p.grad), None if p.grad is None else bits(p.grad)) for p in kept],
            "requires_grad": [p.requires_grad for p in kept],
            "modes": [module.training for module in model.modules()],
            "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
            "rng": bits(torch.get_rng_state()),
            "numpy rng": np.random.get_state()[1].tobytes(),
            "momentum": momenta(),
            "groups": [
                {k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups
            ],
        }

    kept = list(model.parameters())
    # Held here, so that an object freed and made again cannot pass for the same by its id.
    held = [p.grad for p in kept]
    before = snapshot()
    yield
    after = snapshot()
    del held
    for name, value in before.items():
        assert after[name] == value, name
    attributes = {name for p in kept for name in vars(p)}
    assert attributes == set(), f"left on the parameters: {attributes}"


def in_mid_training(build: Builder) -> tuple[nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """After two steps with momentum, gradients in place (one missing), one module in eval mode."""
    model, x, y = case(build, double=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        per_sample_loss("cross_entropy", model(x), y).mean().backward()
        optimizer.step()
    next(iter(model.parameters())).grad = None
    model[-1].eval()
    return model, optimizer, x, y


class TestInvisible:
    @pytest.mark.parametrize(
        ("build", "method"),
        [
            (small_mlp, "exact"),
            (small_conv, "exact"),
            (small_mlp, "pyhessian"),
            (small_batchnorm, "pyhessian"),
        ],
    )
    @pytest.mark.parametrize("chunk", [4, 100])
    def test_hessian_trace(self, build, method, chunk):
        model, optimizer, x, y = in_mid_training(build)
        with nothing_changes(model, optimizer):
            HessianOperator(model, x, y, "cross_entropy", chunk=chunk).trace(
                method, probes=3, seed=5
            )

    @pytest.mark.parametrize("method", ["exact", "pyhessian"])
    def test_hessian_trace_between_metered_steps(self, method):
        """The meter's BackPACK hooks are on the model, and work as before afterwards."""
        model, optimizer, x, y = in_mid_training(small_conv)
        meter = StepMeter(dispersion=BySample(model))

        def step() -> None:
            model.zero_grad(set_to_none=True)
            losses = per_sample_loss("cross_entropy", model(x), y)
            with meter.watch():
                losses.mean().backward()
            meter.see(losses.detach())
            meter.close(learning_rate=0.1)

        step()
        with nothing_changes(model, optimizer):
            HessianOperator(model, x, y, "cross_entropy").trace(method, probes=3)
        step()
        series = meter.drain()
        for name, column in series.columns().items():
            assert column[:1].tobytes() == column[1:].tobytes(), name

    def test_even_when_the_measurement_fails(self, monkeypatch):
        model, optimizer, x, y = in_mid_training(small_mlp)

        def fail(*_: Any, **__: Any) -> None:
            model(x).sum().backward()
            with torch.no_grad():
                next(iter(model.parameters())).add_(torch.rand(()))
            raise RuntimeError("out of memory")

        monkeypatch.setattr(HessianOperator, "_gauss_newton_trace", fail)
        with nothing_changes(model, optimizer), pytest.raises(RuntimeError):
            HessianOperator(model, x, y, "squared").trace()

    @pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
    def test_evaluate(self, build):
        model, optimizer, x, y = in_mid_training(build)
        truth = reference.mean_loss_and_accuracy(model, x, y, "squared")
        with nothing_changes(model, optimizer):
            found = evaluate(model, x, y, loss="squared")
        assert found == pytest.approx(truth, rel=1e-6)

    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_recording_a_step(self, build):
        """The watched gradient is the plain one to the bit; recording only reads it."""
        model, optimizer, x, y = in_mid_training(build)
        meter = StepMeter(dispersion=BySample(model), capacity=1)
        model.zero_grad(set_to_none=True)
        losses = per_sample_loss("cross_entropy", model(x), y)
        with meter.watch():
            losses.mean().backward()
        watched = [p.grad.clone() for p in model.parameters()]
        meter.see(losses.detach())
        meter.close(learning_rate=0.1)
        with nothing_changes(model, optimizer):
            meter.drain()
        plain, _, _ = case(build, double=False)
        plain.load_state_dict(model.state_dict())
        per_sample_loss("cross_entropy", plain(x), y).mean().backward()
        for p, q, before in zip(model.parameters(), plain.parameters(), watched, strict=True):
            assert torch.equal(p.grad, before)
            assert torch.equal(p.grad, q.grad)
