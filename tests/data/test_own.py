"""Data and weights of one's own: what is done with them, and the sentence where they do not fit."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.space import make_space, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset, epoch_batches, with_label_noise
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import mlp
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from gisgd_ray.training.checkpoint import CheckpointError
from tests.support import reference
from tests.support.reference_lockstep import replica_moments
from tests.support.runs import Finished, config, finish, run, untimed, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

SMALL: dict[str, Any] = {
    "model.width": 6,
    "training.batch_size": 10,
    "training.learning_rate": 0.1,
    "training.max_epochs": 2,
}


def images(n: int = 31, tests: int = 12, classes: int = 3) -> Dataset:
    """n to train on, their labels learnable, of 1 x 4 x 4 pixels."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n + tests, 1, 4, 4, generator=source)
    y = x.flatten(1)[:, :classes].argmax(dim=1)
    return Dataset(
        train_x=x[:n],
        train_y=y[:n],
        test_x=x[n:],
        test_y=y[n:],
        num_classes=classes,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )


def values(n: int = 30) -> Dataset:
    """The same with real targets."""
    data = images(n)
    return replace(
        data,
        train_y=data.train_x.sum(dim=(1, 2, 3)),
        test_y=data.test_x.sum(dim=(1, 2, 3)),
        num_classes=1,
    )


def trial(changes: dict[str, Any] | None = None) -> TrialConfig:
    fields = SMALL | (changes or {})
    if "model.name" in fields:  # which has no width
        del fields["model.width"]
    for section, name in (("model", "mlp"), ("scheme", "sgd")):
        fields.setdefault(f"{section}.name", name)
    return TrialConfig.model_validate(unflatten(fields))


def trained(data: Dataset, changes: dict[str, Any] | None = None) -> Finished:
    return finish(training.start(trial(changes), dataset=data))


# ---------------------------------------------------------------- a last batch of one sample


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_of_one_has_no_dispersion_and_the_row_says_so(seed: int) -> None:
    """31 = 3 * 10 + 1. Rounding once made V of that step 0 in some seeds, and Eq. 3 finite."""
    finished = trained(images(31), {"seed": seed})
    series, row = finished.series, finished.row
    assert series.batch_size.tolist() == [10, 10, 10, 1] * 2
    alone = series.batch_size == 1
    assert np.isnan(series.gradient_dispersion[alone]).all()
    assert np.isfinite(series.gradient_dispersion[~alone]).all()
    for name in ("theorem2_closed_form", "lemma7", "theorem2@0.01", "corollary2@0.01"):
        assert math.isnan(row[f"bound/{name}"]), name
    assert row["bound/undefined_reason"] == (
        "the batch of step 4 is a single sample, whose dispersion is undefined; choose another "
        "training.batch_size, or training.last_batch = 'drop'"
    )
    assert row["bound/remark"] is None


def test_what_the_sentence_says_would_do_does() -> None:
    for changes in ({"training.last_batch": "drop"}, {"training.batch_size": 9}):
        row = trained(images(31), changes).row
        assert row["bound/theorem2_closed_form"] > 0
        assert row["bound/undefined_reason"] is None


@pytest.mark.parametrize(
    ("data", "changes", "said"),
    [
        (images(62), {"training.batch_size": 31}, r"batch_size = 31 gives a last batch \(n = 4000"),
        (images(4600), {"training.batch_size": 4500}, "batch_size = 4500 exceeds the 4000"),
        (images(4600), {"measurement.hessian_samples": 4500}, "hessian_samples = 4500 exceeds"),
        (
            images(30),
            {"training.max_epochs": 20, "training.batch_size": 2, "scheme.name": "clipping"}
            | {"scheme.start_epoch": 2, "training.max_steps": 40},
            "start_epoch = 2 starts no clipping within training.max_steps = 40, an epoch having 2",
        ),
        (values(), {"model.name": "linear", "training.loss": "squared"}, "has one real output"),
    ],
)
def test_the_configured_set_has_no_say(data: Dataset, changes: dict[str, Any], said: str) -> None:
    """What its 4,000 digits would not suit, and these data do; a sweep has nothing but it."""
    assert trained(data, changes).row["status"] == "finished"
    asked = trial(changes)
    with pytest.raises(UserError, match=said):
        training.start(asked)
    with pytest.raises(UserError, match=said):
        validated(asked.flat())
    with pytest.raises(UserError, match=said):
        make_space({**asked.flat(), "seed": [0, 1]}).trials()


def test_a_last_batch_is_that_of_the_data_at_hand() -> None:
    """4,000 = 400 * 10, and these are 30 = 3 * 10: neither is the other's."""
    assert trained(images(30)).row["bound/undefined_reason"] is None
    unmeasured = trained(images(31), {"measurement.dispersion": False}).row
    assert "was not measured" in unmeasured["bound/undefined_reason"]


def test_across_replicas_a_batch_of_one_has_a_dispersion() -> None:
    """Eq. 1's V is between runs; Neu et al.'s, within the batch, is undefined."""
    finished = trained(images(31), {"replicas": 2})
    assert finished.row["bound/theorem2_closed_form"] > 0
    assert math.isnan(finished.row["measure/gradient_dispersion_neu"])
    assert math.isnan(finished.row["bound/theorem1@0.01"])
    reason = finished.row["bound/undefined_reason"]
    assert reason.startswith("Theorem 1, Lemma 2, Corollary 1: the batch of step 4 is a single")
    changes = {"replicas": 2, "measurement.hessian_trace": "off"}
    both = trained(images(31), changes).row["bound/undefined_reason"]
    assert both == f"measurement.hessian_trace is off; {reason}"


# ---------------------------------------------------------------- identical samples


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_identical_samples_are_remarked_upon(loss: str) -> None:
    data = images(30)
    same = replace(
        data, train_x=data.train_x[:1].expand(30, 1, 4, 4), train_y=data.train_y[:1].expand(30)
    )
    row = trained(same, {"training.loss": loss, "training.max_epochs": 20}).row
    assert row["bound/theorem2_closed_form"] < 0.05 * row["gap/loss"]
    assert row["bound/remark"].startswith("the dispersion is 0, or no more than rounding, at every")
    assert trained(data).row["bound/remark"] is None


@pytest.mark.parametrize("batch_size", [4, 30])
@pytest.mark.parametrize("seed", range(3))
def test_of_replicas_identical_samples_are_remarked_upon_too(seed: int, batch_size: int) -> None:
    """Between replicas of their own W_0 V is what it is, and Eqs. 2 and 3 have their terms."""
    data = images(30)
    same = replace(
        data, train_x=data.train_x[:1].expand(30, 1, 4, 4), train_y=data.train_y[:1].expand(30)
    )
    changes = {"replicas": 3, "seed": seed, "training.batch_size": batch_size}
    row = trained(same, changes).row
    assert row["measure/gradient_dispersion_neu"] < 1e-6 < row["measure/gradient_dispersion"]
    assert row["bound/remark"].startswith("the dispersion V~ within the replicas is 0, or no more ")
    assert "Theorem 1, at noise that leaves no doubt of the replica, has a" in row["bound/remark"]
    alike = training.start(trial(changes), dataset=same, initial_state=weights(1))
    remark = finish(alike).row["bound/remark"]
    assert "Theorem 1, Eqs. 2 and 3 have a trajectory term of 0" in remark
    assert "sampling error" not in remark


def test_of_replicas_that_are_alike_v_is_that_within_them() -> None:
    """One W_0 and the whole set as the batch: nothing differs over the replicas, and yet the
    dispersion of a batch drawn with replacement is there."""
    changes = {"replicas": 3, "training.batch_size": 30, "measurement.noise_stds": (0.01,)}
    state = training.start(trial(changes), dataset=images(30), initial_state=weights(1))
    finished = finish(state)
    series, row = finished.series, finished.row
    np.testing.assert_allclose(series.gradient_dispersion, series.gradient_dispersion_neu)
    ours, theirs = (row[f"term/theorem{i}_trajectory@0.01"] for i in (1, 2))
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert row["bound/remark"] is None


def test_samples_that_nearly_agree_are_not_taken_for_rounding() -> None:
    data = images(100)
    near = replace(
        data,
        train_x=data.train_x[:1] + 3e-3 * data.train_x,
        train_y=data.train_y[:1].expand(100),
    )
    finished = trained(near, {"training.batch_size": 20})
    series = finished.series
    ratio = series.per_sample_dispersion / series.mean_squared_norm
    assert (ratio < 1e-4).all()
    assert (ratio > 1e-6).all()
    assert finished.row["bound/remark"] is None
    assert finished.row["measure/ill_conditioned_steps"] == len(series)


def test_theorem_1_is_above_eq_2_only_with_a_remark() -> None:
    """With two replicas V is a sample variance of two; one W_0 leaves it the batches' alone."""
    above = 0
    for seed in range(12):
        changes = {"replicas": 2, "seed": seed, "training.max_steps": 5}
        state = training.start(
            trial({**changes, "training.batch_size": 8}),
            dataset=images(40),
            initial_state=weights(1),
        )
        row = finish(state).row
        is_above = row["term/theorem1_trajectory@0.01"] > row["term/theorem2_trajectory@0.01"]
        above += is_above
        assert row["bound/remark"] is not None or not is_above
        if is_above:
            assert "Theorem 1 above Eq. 2" in row["bound/remark"]
    assert 0 < above < 12


def test_an_epoch_of_few_batches_does_not_make_v_small() -> None:
    """Drawn without replacement, the batches of 300 replicas at one W_0 differ by 5/6 of what their
    samples say: V, which is V~ there, was so much too small."""
    changes = {"replicas": 300, "training.max_steps": 1, "training.batch_size": 20}
    unmeasured = {"measurement.flatness": False, "measurement.hessian_trace": "off"}
    state = training.start(
        trial({**changes, **unmeasured}), dataset=images(120), initial_state=weights(1)
    )
    (v,), (neu,) = (
        getattr(finish(state).series, name)
        for name in ("gradient_dispersion", "gradient_dispersion_neu")
    )
    assert v == pytest.approx(neu, rel=0.05)


def test_replicas_with_samples_of_their_own_lack_no_share_of_v() -> None:
    """Their batches are from the population, as they are, and V is the plain sample variance."""
    changes = {
        "data.dataset": "teacher",
        "data.train_fraction": 0.006,
        "model.name": "linear",
        "training.loss": "squared",
        "training.batch_size": 60,
        "training.max_steps": 1,
        "replicas": 2,
        "measurement.flatness": False,
    }
    state = training.start(trial(changes))
    batches = [
        (r.dataset, epoch_batches(120, 60, seed=r.seed, epoch=0, last_batch="keep")[0])
        for r in state.replicas
    ]
    truth = replica_moments(
        [deepcopy(replica.model) for replica in state.replicas],
        torch.stack([data.train_x[indices] for data, indices in batches]),
        torch.stack([data.train_y[indices] for data, indices in batches]),
        "squared",
    )
    found = finish(state).series.gradient_dispersion[0]
    assert found == pytest.approx(truth.gradient_dispersion, rel=1e-4)


def test_the_samples_of_a_set_are_the_same_tensor_in_every_replica() -> None:
    """By which replicas are known to share them, whatever their labels."""
    for changes in ({"data.label_noise": 0.4}, {"data.train_fraction": 0.5}):
        own = training.start(trial({"replicas": 3, **changes}), dataset=images(60))
        configured = training.start(config({"replicas": 3, **changes}))
        for state in (own, configured):
            first, *others = (replica.dataset.train_x for replica in state.replicas)
            assert all(other is first for other in others)


# ---------------------------------------------------------------- the population's mean


@pytest.mark.parametrize(("tests", "said"), [(1, "takes two test samples"), (2, "less than -V~")])
def test_a_gap_of_means_that_cannot_be_is_told(tests: int, said: str) -> None:
    """Estimated from few test samples it may be negative, and by more than V~."""
    changes = {
        "training.batch_size": 40,
        "measurement.sensitivity": True,
        "measurement.sensitivity_draws": 2,
        "measurement.flatness_draws": 4,
        "measurement.noise_stds": (1e-6,),
    }
    told = 0
    for seed in range(8):
        row = trained(images(40, tests), {**changes, "seed": seed}).row
        undefined = math.isnan(row["bound/lemma2_neu_population@1e-06"])
        assert row["bound/lemma2_neu@1e-06"] > 0
        assert (said in (row["bound/undefined_reason"] or "")) == undefined
        told += undefined
    assert told


# ---------------------------------------------------------------- fraction and label noise


def test_label_noise_and_the_fraction_apply_to_what_is_given() -> None:
    data = images(40)
    state = training.start(
        trial({"data.label_noise": 0.5, "data.train_fraction": 0.5, "seed": 3}), dataset=data
    )
    order = np.random.RandomState(0).permutation(40)[:20]
    kept = {"num_classes": 3, "seed": 3}
    expected = with_label_noise(data.train_y[order], 0.5, split="train", **kept)
    assert torch.equal(state.dataset.train_x, data.train_x[order])
    assert torch.equal(state.dataset.train_y, expected)
    assert not torch.equal(expected, data.train_y[order])
    assert torch.equal(
        state.dataset.test_y, with_label_noise(data.test_y, 0.5, split="test", **kept)
    )
    assert state.num_samples == 20
    assert state.steps_per_epoch == 2


def test_replicas_have_noise_of_their_own() -> None:
    state = training.start(trial({"data.label_noise": 0.5, "replicas": 2}), dataset=images(30))
    first, second = (r.dataset.train_y for r in state.replicas)
    assert not torch.equal(first, second)


def test_the_configured_data_given_are_the_configured_run() -> None:
    """Clean and whole, then reduced and made noisy by the same settings."""
    noisy = {"data.label_noise": 0.2}
    whole = training.start(config({"data.train_fraction": 1.0})).dataset
    given = finish(training.start(config(noisy), dataset=whole))
    assert weight_bits(given.state) == weight_bits(run(noisy).state)
    assert untimed(given.row) == untimed(run(noisy).row)


# ---------------------------------------------------------------- what does not go together

REAL = {"training.loss": "squared"}
GROUPS = {"measurement.dispersion_estimator": "groups", "measurement.dispersion_groups": 4}
REFUSED: list[tuple[Dataset, dict[str, Any], str]] = [
    (images(9), {}, "training.batch_size = 10 exceeds the 9 training samples of the given dataset"),
    (images(30), {"data.train_fraction": 0.2}, "exceeds the 6 training samples of the given"),
    (images(30), {"measurement.hessian_samples": 31}, "hessian_samples = 31 exceeds the 30"),
    (
        images(30),
        {"measurement.hessian_schedule": {"every": 7, "unit": "step"}},
        "never fires during training: its first point would be step 7, and the last step is 6",
    ),
    (
        images(31),
        GROUPS,
        r"dispersion_groups = 4 is more than the last batch \(n = 31\) of size = 1",
    ),
    (
        images(30),
        {
            "scheme.name": "clipping",
            "scheme.variant": "lag",
            "scheme.lag": 6,
            "scheme.start_epoch": 0,
        },
        "scheme.lag = 6 leaves no step with a norm that much earlier: training has 6 steps",
    ),
    (values(), {}, "the given dataset has real targets: training.loss = 'cross_entropy' does not"),
    (values(), {**REAL, "data.label_noise": 0.1}, "label_noise = 0.1 needs classes, and the given"),
    (
        values(),
        {**REAL, "scheme.name": "label_smoothing"},
        "'label_smoothing' needs classes, and the given dataset has real targets",
    ),
    (
        images(30),
        {"model.name": "linear", **REAL},
        "model.name = 'linear' has one real output, but the given dataset has classes; give real",
    ),
    (images(30), {"model.name": "alexnet"}, "those of the given dataset are 4x4; choose another"),
    (images(30), {"data.crop_padding": 4}, "crop_padding = 4 leaves crops without any of the 4x4"),
    (
        images(31),
        {"measurement.dispersion_estimator": "groups"},
        r"the last batch \(n = 31\) of size = 1; choose another batch size, or",
    ),
    (
        images(30),
        {"data.normalization": "authors"},
        "data.normalization = 'authors' does not apply: the given dataset is taken as it is",
    ),
]


@pytest.mark.parametrize(("data", "changes", "said"), REFUSED)
def test_settings_are_judged_on_the_data_at_hand(
    data: Dataset, changes: dict[str, Any], said: str
) -> None:
    asked = trial(changes)
    with pytest.raises(UserError, match=said) as caught:
        training.start(asked, dataset=data)
    assert "\n" not in str(caught.value)


def changed(**tensors: Callable[[Dataset], Any]) -> Dataset:
    data = images(30)
    return replace(data, **{name: value(data) for name, value in tensors.items()})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(test_x=lambda d: d.test_x[:0], test_y=lambda d: d.test_y[:0]), "no test samples"),
        (changed(train_x=lambda d: d.train_x.double()), "train_x is torch.float64, expected float"),
        (
            changed(train_x=lambda d: d.train_x[:, 0, 0, 0], test_x=lambda d: d.test_x[:, 0, 0, 0]),
            r"train_x has the shape \(30,\), expected \(samples, ...\)",
        ),
        (changed(train_x=lambda d: d.train_x.sum()), r"train_x has the shape \(\), expected"),
        (changed(test_y=lambda d: d.test_y.sum()), r"test_y has the shape \(\), expected \(12,"),
        (changed(train_x=lambda d: d.train_x / 0), "train_x is not finite everywhere"),
        (changed(test_x=lambda d: d.test_x.where(d.test_x < 1, math.nan)), "test_x is not finite"),
        (changed(train_x=lambda d: d.train_x.numpy()), "train_x is a ndarray; give a torch.Tensor"),
        (changed(train_y=lambda d: d.train_y[1:]), r"train_y has the shape \(29,\), expected \(30"),
        (changed(test_y=lambda d: d.test_y[:, None]), r"test_y has the shape \(12, 1\), expected"),
        (
            changed(test_x=lambda d: d.test_x[..., :3]),
            r"an input of test_x has the shape \(1, 4, 3",
        ),
        (changed(train_y=lambda d: d.train_y.int()), "train_y is torch.int32; give classes as"),
        (
            changed(train_y=lambda d: d.train_y.float()),
            "float32 with num_classes = 3; real targets",
        ),
        (
            changed(test_y=lambda d: d.test_y.int()),
            "test_y is torch.int32, and train_y torch.int64",
        ),
        (changed(num_classes=lambda _: 2), "train_y has classes from 0 to 2, and num_classes = 2"),
        (changed(num_classes=lambda _: 3.0), "num_classes = 3.0 is a float; give .* an int"),
        (changed(num_classes=lambda _: None), "num_classes = None is a NoneType; give"),
        (changed(test_y=lambda d: d.test_y - 1), "test_y has classes from -1 to 1, and"),
        (changed(normalization_std=lambda _: (1.0, 2.0)), "normalization_std has 2 values, and an"),
    ],
)
def test_tensors_that_do_not_fit_are_told(data: Dataset, said: str) -> None:
    with pytest.raises(UserError, match=f"the given dataset.*{said}") as caught:
        training.start(trial(), dataset=data)
    assert "\n" not in str(caught.value)


def test_real_targets_are_trained_on() -> None:
    finished = trained(values(), REAL)
    row, data = finished.row, finished.state.dataset
    assert math.isnan(row["test/accuracy"])
    assert row["bound/theorem2_closed_form"] > 0
    double = reference.in_float64(finished.state.model)
    outputs = double(data.test_x.double())[:, 0].detach()
    loss = float((outputs - data.test_y.double()).square().mean() / 2)
    assert row["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_numpys_whole_number_of_classes_is_one() -> None:
    assert trained(changed(num_classes=lambda _: np.int64(3))).row["num_classes"] == 3


@pytest.mark.parametrize("tests", [1, 2])
def test_a_single_test_sample_has_no_sampling_error_and_the_row_says_so(tests: int) -> None:
    row = trained(images(30, tests=tests)).row
    errors = [v for k, v in row.items() if k.startswith("measure/flatness_gap_sampling_stderr")]
    assert len(errors) == 3
    assert all(math.isnan(error) == (tests == 1) for error in errors)
    assert math.isfinite(row["bound/theorem2@0.01"])
    said = "the sampling error of the flatness gap is unknown, for the test split has a single"
    assert (said in (row["bound/remark"] or "")) == (tests == 1)


# ---------------------------------------------------------------- W_0


def weights(seed: int, width: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return mlp((1, 4, 4), 3, width=width).state_dict()


def test_an_own_w_0_is_trained_from() -> None:
    data, own = images(30), weights(5)
    started = training.start(trial(), dataset=data, initial_state=own)
    assert all(torch.equal(v, own[name]) for name, v in started.model.state_dict().items())
    found = finish(started)
    assert not torch.equal(found.state.model[1].weight, own["1.weight"])
    assert torch.equal(own["1.weight"], weights(5)["1.weight"])  # which the run leaves alone
    # The seed's own W_0, given: the run is the same to the bit.
    plain = training.start(trial({"seed": 2}), dataset=data)
    again = {name: value.clone() for name, value in plain.model.state_dict().items()}
    other = training.start(trial({"seed": 2}), dataset=data, initial_state=again)
    assert weight_bits(finish(plain).state) == weight_bits(finish(other).state)


def test_an_own_w_0_of_replicas() -> None:
    data, both = images(30), [weights(1), weights(2)]
    one = training.start(trial({"replicas": 2}), dataset=data, initial_state=both[0])
    two = training.start(trial({"replicas": 2}), dataset=data, initial_state=both)
    for state, expected in ((one, [both[0]] * 2), (two, both)):
        for replica, own in zip(state.replicas, expected, strict=True):
            assert torch.equal(replica.model[1].weight, own["1.weight"])


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights(0).items() if key != name}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (without("3.bias"), "initial_state lacks 3.bias, which the network has"),
        ({**weights(0), "5.bias": torch.zeros(3)}, "initial_state has 5.bias, which the network"),
        (
            weights(0, width=7),
            r"initial_state: 1.weight is \(7, 16\), expected a tensor of \(6, 16",
        ),
        ({**weights(0), "3.bias": [0.0] * 3}, "3.bias is list, expected a tensor of"),
        ({**weights(0), "3.bias": torch.full((3,), math.nan)}, "3.bias is not finite everywhere"),
        ([weights(0)] * 3, "initial_state has 3 state dicts for 1 runs; give one for all, or"),
        ([without("1.bias")], r"initial_state\[0\] lacks 1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_told(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        training.start(trial(), dataset=images(30), initial_state=given)


# ---------------------------------------------------------------- a checkpoint


def test_a_checkpoint_goes_on_with_the_same_data_only() -> None:
    """It once went on with the configured set, without a word."""
    data = images(30)
    state = training.start(trial(), dataset=data, initial_state=weights(3))
    training.advance(state)
    training.advance(state)
    content = checkpoint.dump(state)
    with pytest.raises(CheckpointError, match="was started on a dataset of its own; go on with"):
        checkpoint.load(trial(), content)
    again = finish(checkpoint.load(trial(), content, dataset=data))
    expected = finish(state)
    assert weight_bits(again.state) == weight_bits(expected.state)
    configured = training.start(config())
    with pytest.raises(CheckpointError, match="was started on the configured data; go on without"):
        checkpoint.load(config(), checkpoint.dump(configured), dataset=data)
