"""What a sweep takes the cluster to be."""

from pathlib import Path

import pytest
import yaml

from gisgd_ray.cluster import startable_gpus

ROOT = Path(__file__).parents[1]


def test_the_gpus_a_cluster_may_start_count(tmp_path: Path) -> None:
    # `ray up` leaves the cluster's configuration on the head under this form.
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert startable_gpus(path) == 8


@pytest.mark.parametrize("text", ["", "cluster_name: x", "available_node_types: 3", "a: [", "- 1"])
def test_no_or_another_configuration_counts_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    assert startable_gpus(path) == 0
    path.write_text(text)
    assert startable_gpus(path) == 0
