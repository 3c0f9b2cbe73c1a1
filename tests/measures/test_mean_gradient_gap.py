"""||grad L_mu - grad L_S||^2 against loops over samples in float64, and over many fresh samples."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures.displaced import Samples
from gisgd_ray.measures.mean_gradient_gap import MeanGradientGapEstimate, block_products, combined
from gisgd_ray.networks.losses import LossName
from gisgd_ray.theory import bounds
from gisgd_ray.training.interpolated import InterpolatedSum
from tests.measures.test_invisible import in_mid_training, nothing_changes
from tests.support import reference_sensitivity as reference
from tests.support.networks import case, small_batchnorm, small_conv, small_groupnorm, small_mlp
from tests.support.runs import run, untimed

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def gradients(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """grad l(w, z_i) of every sample, (n, d) float64."""
    still = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad))
    return torch.stack(reference.sample_gradients(model, still, x, y, loss))


def by_samples(of_train: Tensor, of_test: Tensor) -> float:
    """||grad L_S' - grad L_S||^2 - s2' / n'."""
    n = len(of_test)
    s2 = float((of_test - of_test.mean(dim=0)).square().sum()) / (n - 1)
    return float((of_test.mean(dim=0) - of_train.mean(dim=0)).square().sum()) - s2 / n


def measured(
    model: nn.Module, *splits: Tensor, loss: LossName, chunk: int | None = None, **options: int
) -> MeanGradientGapEstimate:
    train, test = Samples(*splits[:2], loss, chunk), Samples(*splits[2:], loss, chunk)
    return combined([block_products(model, train, test, **options)])


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, small_groupnorm])
@pytest.mark.parametrize("chunk", [4, None])
def test_a_block_a_sample_is_the_formula_itself(build, loss, chunk):
    model, x, y = case(build, n=19)
    found = measured(model, x[:8], y[:8], x[8:], y[8:], loss=loss, blocks=11, chunk=chunk)
    expected = by_samples(
        *(gradients(model, *part, loss) for part in ((x[:8], y[:8]), (x[8:], y[8:])))
    )
    assert found.value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_real_targets():
    model, x, _ = case(small_mlp, n=20)
    model = nn.Sequential(model, nn.Linear(4, 1)).double()
    y = torch.randn(20, dtype=torch.float64)
    found = measured(model, x[:9], y[:9], x[9:], y[9:], loss="squared", blocks=11)
    both = [gradients(model, *part, "squared") for part in ((x[:9], y[:9]), (x[9:], y[9:]))]
    assert found.value == pytest.approx(by_samples(*both), rel=1e-9)


def test_unbiased_over_fresh_samples_and_its_standard_error():
    """S fixed, S' drawn 400 times from 60 points of which mu is made; ragged blocks of 4 or 5."""
    model, x, y = case(small_mlp, n=80, double=False)
    population, train = gradients(model, x[20:], y[20:], "squared"), (x[:20], y[:20])
    of_train = gradients(model, *train, "squared").mean(dim=0)
    truth = float((population.mean(dim=0) - of_train).square().sum())
    rng = torch.Generator().manual_seed(0)
    values, errors, naive = [], [], []
    for _ in range(400):
        drawn = 20 + torch.randint(60, (41,), generator=rng)
        found = measured(model, *train, x[drawn], y[drawn], loss="squared")
        values.append(found.value)
        errors.append(found.standard_error)
        mean = population[drawn - 20].mean(dim=0)
        naive.append(float((mean - of_train).square().sum()))
    scatter = np.std(values, ddof=1)
    assert abs(np.mean(values) - truth) < 4 * scatter / 20
    assert np.mean(naive) - truth > 8 * scatter / 20  # what is taken off is not small here
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(scatter, rel=0.15)


def test_where_there_is_no_gap_the_estimates_have_both_signs():
    """mu is uniform on S: the estimates scatter about 0, their errors at most sqrt 2 too large."""
    model, x, y = case(small_mlp, n=30, double=False)
    rng = torch.Generator().manual_seed(1)
    values, errors = [], []
    for _ in range(300):
        drawn = torch.randint(30, (40,), generator=rng)
        found = measured(model, x, y, x[drawn], y[drawn], loss="squared")
        values.append(found.value)
        errors.append(found.standard_error)
    scatter = np.std(values, ddof=1)
    assert abs(np.mean(values)) < 4 * scatter / 300**0.5
    assert min(values) < 0 < max(values)
    assert 1.0 < math.sqrt(np.mean(np.square(errors))) / scatter < 1.7


def test_the_jackknife_by_leaving_blocks_out():
    rng = np.random.default_rng(0)
    differences = rng.normal(1.0, size=(6, 3))
    products = differences @ differences.T

    def u_statistic(kept: list[int]) -> float:
        pairs = [products[k, m] for k in kept for m in kept if k != m]
        return sum(pairs) / len(pairs)

    found = combined([products])
    assert found.value == pytest.approx(u_statistic(list(range(6))))
    without = [u_statistic([k for k in range(6) if k != left]) for left in range(6)]
    variance = 5 / 6 * sum((value - found.value) ** 2 for value in without)
    assert found.standard_error == pytest.approx(math.sqrt(variance))
    # Of replicas: the mean, and the jackknife of the mean.
    other = (differences + 1) @ (differences + 1).T
    both = combined([products, other])
    assert both.value == pytest.approx((found.value + combined([other]).value) / 2)
    assert both.standard_error == combined([(products + other) / 2]).standard_error


def test_samples_too_few():
    model, x, y = case(small_mlp)
    one, two, three = (measured(model, x, y, x[:n], y[:n], loss="squared") for n in (1, 2, 3))
    assert math.isnan(one.value)
    assert math.isfinite(two.value)
    assert math.isnan(two.standard_error)
    assert three.standard_error > 0
    with pytest.raises(ValueError, match="samples in both splits"):
        measured(model, x, y, x[:0], y[:0], loss="squared")
    with pytest.raises(ValueError, match="no mean gradient gap"):
        combined([])


@pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
def test_leaves_no_trace(build):
    model, optimizer, x, y = in_mid_training(build)
    with nothing_changes(model, optimizer):
        measured(model, x, y, x[:7], y[:7], loss="cross_entropy")


# ---------------------------------------------------------------- in a run

SENSITIVE = {
    "measurement.sensitivity": True,
    "measurement.sensitivity_draws": 2,
    "measurement.noise_stds": [0.01, 1e-6],
}
GAP = "measure/mean_gradient_gap"


def test_at_the_end_and_where_psi_or_the_trace_is():
    assert [p["step"] for p in run().points if GAP in p] == [12]
    traced = run({"measurement.hessian_schedule": {"every": 2}})
    assert [p["step"] for p in traced.points if GAP in p] == [0, 8, 12]
    sensitive = run({**SENSITIVE, "measurement.sensitivity_schedule": {"every": 2, "unit": "log"}})
    assert [p["step"] for p in sensitive.points if GAP in p] == [0, 1, 3, 10, 12]
    assert not any(GAP in p for p in run({"measurement.mean_gradient_gap": False}).points)


def test_of_the_final_weights_by_loops():
    finished = run({"model.width": 3, "seed": 2})
    model, data = finished.state.model, finished.state.dataset
    of_train, of_test = (
        gradients(model, *part, "cross_entropy")
        for part in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    row = finished.row
    # Of ten blocks and of all samples: the same up to a tenth of the standard error or so.
    error = row[f"{GAP}_stderr"]
    assert row[GAP] == pytest.approx(by_samples(of_train, of_test), rel=0, abs=0.3 * error)
    assert 0 < error < row[GAP]


def test_at_w_0_it_is_what_a_sample_of_n_has():
    """W_0 knows nothing of S: E ||grad L_mu - grad L_S||^2 = s2 / n, over seeds."""
    values, expected = [], []
    for seed in range(12):
        changes = {"seed": seed, "training.max_steps": 1, "data.label_noise": 1.0}
        finished = run({**changes, "measurement.hessian_schedule": {"every": 1, "unit": "step"}})
        values.append(finished.points[0][GAP])
        expected.append(finished.series.per_sample_dispersion[0] / 200)
    ratios = np.array(values) / np.array(expected)
    assert abs(ratios.mean() - 1) < 4 * ratios.std(ddof=1) / 12**0.5
    assert ratios.std(ddof=1) < 0.5


def test_lemma_2_about_the_populations_mean():
    finished = run({**SENSITIVE, "measurement.sensitivity_schedule": {"every": 5, "unit": "step"}})
    row, series = finished.row, finished.series
    known = {p["step"]: p[GAP] for p in finished.points if GAP in p}
    assert sorted(known) == [0, 5, 10, 12]
    steps = np.interp(np.arange(12), list(known), list(known.values()))
    total = float((series.learning_rate**2 * steps).sum())
    assert row["sum/lr2_mean_gradient_gap"] == pytest.approx(total, rel=1e-12)
    for std in (0.01, 1e-6):
        at = f"@{std:g}"
        by_hand = bounds.lemma2_trajectory(
            subgaussian_constant=row["measure/subgaussian_constant"],
            num_samples=200,
            learning_rates=[1.0],
            noise_stds=[std],
            sensitivities=[row[f"sum/lr2_sensitivity{at}"]],
            dispersions=[row["sum/lr2_dispersion_neu"] + total],
        )
        assert row[f"term/lemma2_population_trajectory{at}"] == pytest.approx(by_hand, rel=1e-12)
        bound = by_hand + row[f"measure/flatness_gap{at}"]
        assert row[f"bound/lemma2_neu_population{at}"] == pytest.approx(bound, rel=1e-12)
        assert row[f"bound/lemma2_neu_population{at}"] > row[f"bound/lemma2_neu{at}"]


def test_replicas():
    """The mean over runs that share S and S'."""
    both = run({"replicas": 2}).row
    alone = [run({"seed": seed}).row[GAP] for seed in (0, 1)]
    assert both[GAP] == pytest.approx(sum(alone) / 2, rel=1e-3)


def test_measuring_it_changes_nothing_else():
    plain = run({**SENSITIVE, "measurement.mean_gradient_gap": False}).row
    row = run(SENSITIVE).row
    assert untimed({name: row[name] for name in plain}) == untimed(plain)


def test_interpolated_sum():
    found = InterpolatedSum()
    found.add_point(1.0)
    found.add_steps(np.array([0.5, 0.5]))
    found.add_steps(np.array([0.1]))
    assert found.total == 0.0
    found.add_point(4.0)  # W_0, W_1, W_2: 1, 2, 3
    assert found.total == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.01 * 3)
    found.add_point(9.0)  # no step since
    found.add_steps(np.array([1.0]))
    found.add_point(7.0)
    assert found.total == pytest.approx(0.78 + 9)
