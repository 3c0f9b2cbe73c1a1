"""Which layers per-sample gradient norms are right for, and which are refused; the rest of
:mod:`gisgd_ray.networks.per_sample` is tested through its users in test_dispersion.py."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gisgd_ray.errors import UserError
from gisgd_ray.measures.dispersion import BySample
from gisgd_ray.networks import per_sample
from tests.measures.test_dispersion import assert_equals_brute_force, data

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def network(*layers: nn.Module, channels: int = 4) -> nn.Sequential:
    """A convolution to so many channels, the layers, a linear one; on 1 x 6 x 6 images."""
    features = nn.Sequential(nn.Conv2d(1, channels, 3), *layers, nn.Flatten())
    with torch.no_grad():
        size = features(torch.zeros(2, 1, 6, 6)).shape[1]
    return nn.Sequential(*features, nn.Linear(size, 3))


def evaluating(norm: _BatchNorm) -> _BatchNorm:
    """BatchNorm with statistics, scale and shift of its own, in evaluation mode."""
    norm.eval()
    norm.running_mean.copy_(torch.linspace(-0.5, 0.5, norm.num_features))
    norm.running_var.copy_(torch.linspace(0.5, 2, norm.num_features))
    with torch.no_grad():
        for parameter, low in zip(norm.parameters(), (-1.5, -0.3), strict=False):
            parameter.copy_(torch.linspace(low, 1, norm.num_features))
    return norm


def without_shift(norm: _BatchNorm) -> _BatchNorm:
    """BatchNorm with a scale alone."""
    norm.register_parameter("bias", None)
    return norm


class TestCovered:
    @pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
    @pytest.mark.parametrize(
        ("layers", "estimator"),
        [
            ([nn.ReLU(inplace=True), nn.Conv2d(4, 3, 2)], per_sample.LayerNorms),
            ([evaluating(nn.BatchNorm2d(4, affine=False))], per_sample.LayerNorms),
            ([evaluating(nn.BatchNorm2d(4)), nn.ReLU()], per_sample.LayerNorms),
            ([evaluating(without_shift(nn.BatchNorm2d(4)))], per_sample.LayerNorms),
            ([nn.Flatten(2), evaluating(nn.BatchNorm1d(4, eps=0.1))], per_sample.LayerNorms),
            ([nn.Flatten(), evaluating(nn.BatchNorm1d(64)), nn.ReLU()], per_sample.LayerNorms),
            (
                [nn.Unflatten(1, (2, 2)), evaluating(nn.BatchNorm3d(2)), nn.ReLU()],
                per_sample.BackpackNorms,
            ),
            ([nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)], per_sample.BackpackNorms),
            ([nn.Flatten(2), nn.Conv1d(4, 3, 3, stride=2, bias=False)], per_sample.BackpackNorms),
            (
                [nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, 2, padding=1, dilation=2)],
                per_sample.BackpackNorms,
            ),
        ],
    )
    def test_layers(self, layers, estimator, loss):
        torch.manual_seed(0)
        model = network(*copy.deepcopy(layers))  # hooks must not outlive a case
        assert type(per_sample.per_sample_norms(model)) is estimator
        x, y = data(5, 1, 6, 6, classes=3)
        assert_equals_brute_force(model, x, y, loss=loss, batch_sizes=(3, 2))

    def test_both_estimators_agree_where_both_apply(self):
        torch.manual_seed(0)
        norm = evaluating(nn.BatchNorm2d(4))
        model = network(norm, nn.ReLU(), nn.Conv2d(4, 3, 2, stride=2, padding=1))
        x, y = data(5, 1, 6, 6, classes=3)
        found = []
        for build in (per_sample.LayerNorms, per_sample.BackpackNorms):
            norms = build(model)
            losses = nn.functional.cross_entropy(model(x), y, reduction="none")
            with norms.watch():
                losses.mean().backward()
            found.append(norms.squared(5))
        torch.testing.assert_close(*found, rtol=1e-5, atol=0)

    def test_only_the_last_watched_backward_counts(self):
        torch.manual_seed(0)
        model = network(nn.ReLU())
        x, y = data(6, 1, 6, 6, classes=3)
        norms = per_sample.LayerNorms(model)

        def backward(samples: slice) -> None:
            nn.functional.cross_entropy(model(x[samples]), y[samples]).backward()

        with norms.watch():
            backward(slice(3))
        expected = norms.squared(3)
        with norms.watch():
            backward(slice(3, 6))  # never read
        with norms.watch():
            backward(slice(3))
        backward(slice(3, 6))  # not watched
        assert torch.equal(norms.squared(3), expected)

    def test_removed_hooks_are_gone(self):
        model = network(nn.ReLU())
        norms = per_sample.LayerNorms(model)
        assert any(layer._forward_hooks for layer in model)
        norms.remove()
        assert not any(layer._forward_hooks for layer in model)


class TestRefused:
    @pytest.mark.parametrize(
        ("layer", "said"),
        [
            (nn.BatchNorm2d(4), "BatchNorm2d"),
            (nn.BatchNorm2d(4, affine=False), "BatchNorm2d"),
            (nn.BatchNorm2d(4, track_running_stats=False).eval(), "BatchNorm2d"),
            # BackPACK 1.7.1 takes these, and gives wrong norms (off by 1.3 to 7 times).
            (nn.Conv2d(4, 4, 3, groups=4, padding=1), "groups=4"),
            (nn.Conv2d(4, 4, 3, groups=2), "groups=2"),
            (nn.ConvTranspose2d(4, 4, 3, groups=2), "groups=2"),
            (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "circular"),
            (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "reflect"),
            # These end in an exception inside BackPACK.
            (nn.Conv2d(4, 4, 3, padding="same"), "padding=same"),
            (nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1), "output_padding"),
            (nn.GroupNorm(2, 4), "GroupNorm"),
            (nn.PReLU(), "PReLU"),
        ],
    )
    def test_layers(self, layer, said):
        model = network()
        model[1] = copy.deepcopy(layer)
        with pytest.raises(UserError, match=rf"layer '1' is .*{said}.*dispersion = false"):
            BySample(model)

    def test_embeddings_with_a_rule_for_their_gradient(self):
        for options in ({"padding_idx": 0}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}):
            model = nn.Sequential(nn.Embedding(5, 3, **options), nn.Flatten(), nn.Linear(6, 3))
            with pytest.raises(UserError, match="layer '0' is Embedding"):
                BySample(model)

    def test_a_subclass_may_compute_something_else(self):
        class Doubling(nn.Linear):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(inputs)

        with pytest.raises(UserError, match="layer '0' is Doubling"):
            BySample(nn.Sequential(Doubling(2, 2)))

    def test_frozen_and_shared_layers(self):
        frozen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        frozen[2].bias.requires_grad_(False)
        with pytest.raises(UserError, match=r"layer '2' is Linear.*dispersion = false"):
            BySample(frozen)
        layer = nn.Linear(4, 4)
        with pytest.raises(UserError, match="layer '1' shares its parameters"):
            BySample(nn.Sequential(layer, layer))
        tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        tied[2].weight = tied[0].weight
        with pytest.raises(UserError, match="layer '2' shares its parameters"):
            BySample(tied)
