"""What a trial takes, how many share a GPU, and which trials are tried out to know."""

import math
from typing import Any

import pytest
import torch

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import GPU
from gisgd_ray.errors import UserError
from gisgd_ray.runner import cli
from gisgd_ray.runner.resources import (
    MARGIN,
    PROBED,
    WEIGHT,
    Resources,
    count_parameters,
    gpu_share,
    largest_trials,
    peak_bytes,
    rough_bytes,
)
from tests.support.runs import config

GB = 10**9
NETWORKS = [("cifar10", name) for name in ("mlp", "alexnet", "vgg16", "preactresnet18")] + [
    ("teacher", name) for name in ("linear", "two_layer_relu")
]


def trial(**fields: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        unflatten({path.replace("__", "."): value for path, value in fields.items()})
    )


# ---------------------------------------------------------------- what a trial takes


@pytest.mark.parametrize("gpus", [0, 0.0001, 0.5, 1, 2, 8.0])
def test_the_shares_of_gpus_that_a_trial_can_have(gpus: float) -> None:
    given = cli.parse([f"--gpus-per-trial={gpus}"], prog="", description="")
    assert given.gpus_per_trial == gpus


def test_a_trial_on_a_part_of_a_gpu_is_given_twice_as_much_up_to_all_of_it() -> None:
    shares, resources = [], Resources(cpus=2, gpus=0.3)
    while (roomier := resources.roomier(most_cpus=64)) is not None:
        resources = roomier
        shares.append(resources.gpus)
    assert shares == [0.6, 1.0]
    assert resources == Resources(cpus=2, gpus=1.0, threads=2)


def test_a_trial_on_cpus_is_given_twice_as_many_up_to_the_machines() -> None:
    counts, resources = [], Resources(cpus=3)
    while (roomier := resources.roomier(most_cpus=16)) is not None:
        resources = roomier
        counts.append(resources.cpus)
    assert counts == [6, 12, 16]


@pytest.mark.parametrize(
    "resources", [Resources(gpus=1.0), Resources(gpus=2), Resources(cpus=4), Resources(cpus=5)]
)
def test_a_trial_that_has_a_machine_or_gpu_to_itself_gets_no_more(resources: Resources) -> None:
    assert resources.roomier(most_cpus=4) is None


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        (Resources(cpus=2), 2),
        (Resources(cpus=2, threads=1), 1),
        (Resources(cpus=2, gpus=0.1), 2),
        (Resources(cpus=2, gpus=0.1, threads=3), 3),
    ],
)
def test_more_room_leaves_the_threads_as_they_are(resources: Resources, threads: int) -> None:
    """The order of sums, and so every bit of a result, depends on them."""
    once = resources.roomier(most_cpus=16)
    assert once is not None
    twice = once.roomier(most_cpus=16)
    assert twice is not None
    assert (once.threads, twice.threads) == (threads, threads)


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(), "1 CPU"),
        (Resources(cpus=4, threads=1), "4 CPUs"),
        (Resources(gpus=0.3333), "1 CPU and 0.3333 of a GPU"),
        (Resources(cpus=2, gpus=1.0), "2 CPUs and 1 of a GPU"),
    ],
)
def test_resources_for_people(resources: Resources, text: str) -> None:
    assert str(resources) == text


# ---------------------------------------------------------------- how many share a GPU


@pytest.mark.parametrize(
    ("peak", "memory", "cpus_to_a_gpu", "cpus", "share"),
    [
        (10 * GB, 100 * GB, 64, 1, 0.125),  # memory: 100 / 11.5 = 8.7
        (10 * GB, 92 * GB, 64, 1, 0.125),  # exactly 8
        (10 * GB, 92 * GB - 1, 64, 1, 0.1428),  # just not: 7
        (1 * GB, 100 * GB, 16, 1, 0.0625),  # CPUs: 16
        (1 * GB, 100 * GB, 16, 3, 0.2),  # CPUs: 5, and one is left over
        (1 * GB, 100 * GB, 3, 1, 0.3333),
        (20 * GB, 80 * GB, 8, 2, 0.3333),  # memory: 3, CPUs: 4
        (60 * GB, 80 * GB, 8, 1, 1.0),  # one by memory
        (1 * GB, 80 * GB, 2, 4, 1.0),  # at least one, though the machine has too few CPUs
        (1 * GB, 80 * GB, 2.5, 1, 0.5),
    ],
)
def test_the_share_by_hand(
    peak: int, memory: int, cpus_to_a_gpu: float, cpus: int, share: float
) -> None:
    assert gpu_share(peak, memory=memory, cpus_to_a_gpu=cpus_to_a_gpu, cpus=cpus) == share


def test_as_many_fit_as_are_meant_to_by_memory_and_by_cpus() -> None:
    for together in range(1, 101):
        by_cpus = gpu_share(1, memory=10**6, cpus_to_a_gpu=together, cpus=1)
        by_memory = gpu_share(
            10**6, memory=math.ceil(MARGIN * 10**6 * together), cpus_to_a_gpu=1e6, cpus=1
        )
        assert by_cpus == by_memory
        assert round(by_cpus, 4) == by_cpus  # Ray counts in ten-thousandths
        assert math.floor(1 / by_cpus) == together


@pytest.mark.parametrize("cpus", [0.5, 64])
def test_a_trial_that_exceeds_a_gpu_is_refused(cpus: float) -> None:
    with pytest.raises(UserError) as caught:
        gpu_share(75 * GB, memory=80 * GB, cpus_to_a_gpu=cpus, cpus=1)
    assert str(caught.value) == (
        "the largest trial takes 75 GB of GPU memory, and the GPU has 80 GB; choose a smaller "
        "batch or network, or a larger GPU"
    )


# ---------------------------------------------------------------- which are tried out


def test_the_largest_batches_and_widest_networks_come_first() -> None:
    fields = [(width, size) for width in (64, 512) for size in (20, 2000, 200)]
    trials = [trial(model__width=w, training__batch_size=b, model__name="mlp") for w, b in fields]
    order = [(512, 2000), (64, 2000), (512, 200), (512, 20), (64, 200), (64, 20)]
    assert [fields[trials.index(t)] for t in largest_trials(trials, 6)] == order
    assert largest_trials(trials) == largest_trials(trials, 6)[:PROBED]


def test_seeds_are_one_configuration() -> None:
    trials = [trial(training__batch_size=b, seed=s) for s in range(5) for b in (20, 40)]
    chosen = largest_trials(trials)
    assert [t.training.batch_size for t in chosen] == [40, 20]
    assert set(chosen) <= set(trials)


def test_nothing_is_largest_of_nothing() -> None:
    assert largest_trials([]) == []


@pytest.mark.parametrize("width", [16, 512])
@pytest.mark.parametrize("batch_size", [1, 60])
def test_the_bytes_of_an_mlp_by_hand(width: int, batch_size: int) -> None:
    given = trial(
        model__name="mlp",
        model__width=width,
        training__batch_size=batch_size,
        measurement__dispersion=False,
    )
    # Flattened input, hidden units before and after ReLU, outputs.
    activations = 784 + 2 * width + 10
    parameters = 784 * width + width + width * 10 + 10
    weights_and_gradients = 2 * 2 * parameters
    assert rough_bytes(given) == WEIGHT * (weights_and_gradients + batch_size * activations)


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({}, 0),
        ({"training__momentum": 0.9}, 1),
        ({"scheme__name": "sam"}, 1),
        ({"scheme__name": "gmp", "training__momentum": 0.9}, 2),
        ({"scheme__name": "dropout"}, 0),
    ],
)
def test_copies_of_the_weights_count(fields: dict[str, Any], copies: int) -> None:
    plain, given = trial(), trial(**fields)
    more = rough_bytes(given) - rough_bytes(plain)
    assert more == 2 * WEIGHT * copies * count_parameters(plain)


def test_every_replica_has_activations_of_its_own() -> None:
    each = 784 + 2 * 512 + 10
    runs = [trial(replicas=5, training__batch_size=b) for b in (60, 61)]
    assert rough_bytes(runs[1]) - rough_bytes(runs[0]) == WEIGHT * 5 * each
    assert rough_bytes(runs[0]) > 2 * rough_bytes(trial())


@pytest.mark.parametrize(("dataset", "name"), NETWORKS)
def test_every_network_is_reckoned_and_grows_with_the_batch(dataset: str, name: str) -> None:
    loss = {"training__loss": "squared"} if dataset == "teacher" else {}
    one, two, four = (
        rough_bytes(
            trial(data__dataset=dataset, model__name=name, training__batch_size=size, **loss)
        )
        for size in (100, 200, 400)
    )
    assert 0 < one < two
    assert four - two == 2 * (two - one)


# ---------------------------------------------------------------- on a GPU

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]


def _measured(queue: Any, given: TrialConfig) -> None:
    """In a process of its own, as the probe is."""
    queue.put((peak_bytes(given, GPU()), GPU().memory))


def _trained(queue: Any, barrier: Any, given: TrialConfig, share: float) -> None:
    from gisgd_ray.training import loop as training

    torch.cuda.set_per_process_memory_fraction(share)
    state = training.start(given, device="cuda")
    barrier.wait(timeout=120)
    while state.stopped is None:
        training.advance(state)
    queue.put(state.step)


@pytest.mark.parametrize("width", [pytest.param(w, marks=on_a_gpu) for w in (16, 8192)])
def test_two_trials_of_the_share_measured_run_together(width: int) -> None:
    given = config({"model.width": width, "training.max_epochs": 2, "training.stop_loss": None})
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    probe = context.Process(target=_measured, args=(queue, given))
    probe.start()
    peak, memory = queue.get(timeout=90)
    probe.join()
    # Weights, and the gradient of the step.
    assert 2 * WEIGHT * count_parameters(given) <= peak < memory
    share = gpu_share(peak, memory=memory, cpus_to_a_gpu=2, cpus=1)
    assert share == 0.5
    barrier = context.Barrier(2)
    # Each is held to what was measured for it, margin included, and not to half of the GPU.
    each = MARGIN * peak / memory
    pair = [context.Process(target=_trained, args=(queue, barrier, given, each)) for _ in range(2)]
    for process in pair:
        process.start()
    assert [queue.get(timeout=90) for _ in pair] == [8, 8]
    for process in pair:
        process.join()
