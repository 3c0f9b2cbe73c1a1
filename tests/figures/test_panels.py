"""Panels: which trials are shown and judged together."""

import numpy as np
import pandas as pd

from gisgd_ray.results.panels import Title, panels, setting_text
from tests.support.tables import trial

RATE = "training.learning_rate"


def test_a_panel_for_each_model_and_dataset_in_the_order_of_the_trials() -> None:
    names = ("two_layer_relu", "linear", "alexnet", "mlp", "perceptron")
    frame = pd.DataFrame([trial(n, model__name=n) for n in names] + [trial("z", model__name="mlp")])
    found = panels(frame, [])
    assert list(map(str, found)) == [
        "two-layer ReLU network on mnist",
        "linear network on mnist",
        "AlexNet on mnist",
        "MLP on mnist",
        "perceptron on mnist",
    ]
    assert list(found[Title("mlp", "mnist")]["trial_id"]) == ["mlp", "z"]


def test_the_axes_and_the_seed_do_not_split_a_panel_and_all_else_does() -> None:
    rows = [
        trial(
            f"{rate}{noise}{seed}", training__learning_rate=rate, data__label_noise=noise, seed=seed
        )
        for rate in (0.1, 0.2)
        for noise in (0.0, 0.5)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    assert list(panels(frame, [RATE, "data.label_noise"])) == [Title("mlp", "mnist")]
    split = panels(frame, [RATE])
    title = Title("mlp", "mnist")
    assert list(split) == [title.with_setting("data.label_noise", noise) for noise in (0.0, 0.5)]
    assert {len(part) for part in split.values()} == {4}
    assert len(panels(frame, [])) == 4


def test_lists_tell_panels_apart_too() -> None:
    """A tuple field comes back from Parquet as an array, which is no key."""
    rows = [
        trial(str(i), training__lr_milestones=np.array(milestones, int), training__stop_loss=None)
        for i, milestones in enumerate([[], [1, 2], [1, 2], []])
    ]
    found = panels(pd.DataFrame(rows), [])
    assert [list(part["trial_id"]) for part in found.values()] == [["0", "3"], ["1", "2"]]
    assert str(list(found)[1]) == "MLP on mnist, lr_milestones = [1, 2]"


def test_no_trials_no_panels() -> None:
    assert panels(pd.DataFrame(columns=["trial_id", "status"]), []) == {}


def test_a_title_is_printed_from_what_it_is_of() -> None:
    """Names of a user's own, and values that look like parts of a title, are left as they are."""
    title = Title("my_net", "a_set on b", (("data.label_noise", 0.2), ("scheme.name", "label_x")))
    assert str(title) == "my_net on a_set on b, label_noise = 0.2, scheme = label_x"
    assert title.printed == "my_net on a_set on b, label noise = 0.2, scheme = label_x"
    assert Title("mlp", "mnist5k").printed == "MLP on MNIST-5k"


def test_a_tagged_part_goes_by_its_section() -> None:
    assert setting_text("scheme.name", "flooding") == "scheme = flooding"
    assert setting_text("model.width", 64) == "width = 64"
    assert setting_text("replicas", 20.0) == "replicas = 20"
    assert setting_text("training.stop_loss", float("nan")) == "stop_loss = null"
