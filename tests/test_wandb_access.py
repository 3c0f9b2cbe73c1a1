"""What keeps W&B from being online is said in one sentence, before the first trial."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_launch import ROOT
from tests.wandb_server import Server, environment

ASK = "from gisgd_ray.reporting.wandb_access import access; print(access())"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def told(server: Server, folder: Path, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**environment(server, folder), "PYTHONPATH": str(ROOT), **more},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


KEPT = "Runs are kept, for `make sync`."


def test_online_says_where(server: Server, tmp_path: Path) -> None:
    assert told(server, tmp_path) == "W&B: online, in tester/gisgd-ray."
    assert told(server, tmp_path, WANDB_PROJECT="mine") == "W&B: online, in tester/mine."
    assert server.unknown == []


def test_a_wrong_key(server: Server, tmp_path: Path) -> None:
    server.wrong_key()
    assert told(server, tmp_path) == (
        f"W&B: offline, since {server.url} does not take the API key; `wandb login --relogin` or "
        f"set WANDB_API_KEY. {KEPT}"
    )


def test_a_project_without_rights(server: Server, tmp_path: Path) -> None:
    server.deny("tester", "gisgd-ray")
    assert told(server, tmp_path) == (
        "W&B: offline, since this key may not write to the project gisgd-ray; choose another with "
        f"WANDB_PROJECT or WANDB_ENTITY. {KEPT}"
    )


def test_an_unknown_entity(server: Server, tmp_path: Path) -> None:
    assert told(server, tmp_path, WANDB_ENTITY="nobody") == (
        f"W&B: offline, since there is no entity nobody at {server.url}; set WANDB_ENTITY to your "
        f"user or team. {KEPT}"
    )


def test_no_network(server: Server, tmp_path: Path) -> None:
    with server.away():
        sentence = told(server, tmp_path)
    assert sentence.startswith(f"W&B: offline, since {server.url} does not answer (")
    assert sentence.endswith(KEPT)


def test_offline_asks_nobody(server: Server, tmp_path: Path) -> None:
    assert told(server, tmp_path, WANDB_MODE="offline") == (
        f"W&B: offline, since WANDB_MODE is offline. {KEPT}"
    )
    assert server.requests == []
