"""What keeps W&B from being online is said in one sentence, before the first trial."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment

ASK = "from gisgd_ray.tracking.access import access; print(access())"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def told(server: Server, folder: Path, ask: str = ASK, **more: str) -> str:
    told = {**environment(server, folder), "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env={k: v for k, v in told.items() if v},
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
        "W&B: offline, since this key may not write to tester/gisgd-ray; name another project or "
        f"entity. {KEPT}"
    )


def test_an_unknown_entity(server: Server, tmp_path: Path) -> None:
    assert told(server, tmp_path, WANDB_ENTITY="nobody") == (
        f"W&B: offline, since {server.url} has no nobody/gisgd-ray for this key; check the entity "
        f"for its spelling (entity nobody not found during upsertModel). {KEPT}"
    )


def test_no_network(server: Server, tmp_path: Path) -> None:
    begun = time.monotonic()
    with server.away():
        sentence = told(server, tmp_path)
    assert sentence.startswith(f"W&B: offline, since {server.url} does not answer (")
    assert sentence.endswith(f"connect: connection refused). {KEPT}")
    assert time.monotonic() - begun < 60  # W&B's own client tries for many minutes


def test_a_server_that_only_listens(tmp_path: Path) -> None:
    with Server() as server, socket.create_server(("127.0.0.1", 0)) as deaf:
        where = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        sentence = told(server, tmp_path, WANDB_BASE_URL=where)
    assert sentence.startswith(f"W&B: offline, since {where} does not answer (")
    # Its own process has given up, and is not waited for when this one ends.
    assert "busy" not in sentence


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_takes_nothing(server: Server, tmp_path: Path, status: int) -> None:
    server.fail(status, 100)
    sentence = told(server, tmp_path)
    assert sentence.startswith(f"W&B: offline, since {server.url} does not answer (")
    assert f"HTTP {status}" in sentence


@pytest.mark.parametrize("key", ["", "short"])
def test_without_a_key_that_can_be_one(server: Server, tmp_path: Path, key: str) -> None:
    nobody = {"WANDB_API_KEY": key, "HOME": str(tmp_path), "NETRC": "/dev/null"}
    sentence = told(server, tmp_path, **nobody)
    if key:
        assert sentence.startswith(
            "W&B: offline, since AuthenticationError: WANDB_API_KEY invalid: "
        )
    else:
        assert sentence == f"W&B: offline, since nobody has logged in with wandb login. {KEPT}"
    assert server.requests == []


@pytest.mark.parametrize("mode", ["", "run"])
def test_who_has_logged_in_is_online(server: Server, tmp_path: Path, mode: str) -> None:
    assert told(server, tmp_path, WANDB_MODE=mode) == "W&B: online, in tester/gisgd-ray."


def test_disabled_is_as_asked(server: Server, tmp_path: Path) -> None:
    ask = ASK.replace("access())", "access().silent)")
    assert told(server, tmp_path, ask, WANDB_MODE="disabled") == "True"
    assert server.requests == []


def test_an_address_that_is_none(server: Server, tmp_path: Path) -> None:
    sentence = told(server, tmp_path, WANDB_BASE_URL="http://127.0.0.1:99999")
    assert sentence == (
        "W&B: disabled, since W&B does not take its settings (1 validation error for Settings "
        "base_url Input should be a valid URL, invalid port number)."
    )


def test_offline_asks_nobody(server: Server, tmp_path: Path) -> None:
    for mode in ("offline", "dryrun"):
        assert told(server, tmp_path, WANDB_MODE=mode) == (
            f"W&B: offline, since WANDB_MODE is {mode}. {KEPT}"
        )
    assert server.requests == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_project_that_cannot_be(server: Server, tmp_path: Path, mode: str) -> None:
    line = told(server, tmp_path, WANDB_MODE=mode, WANDB_PROJECT="a/b")
    assert line.startswith(
        "W&B: disabled, since W&B does not take its settings (Invalid project name 'a/b': "
    )
    assert server.requests == []


@pytest.mark.parametrize("mode", ["", "OFFLINE"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUN_ID", "a/b:c"),
        ("RUN_ID", " x "),
        ("RESUME", "bogus"),
        ("TAGS", "t" * 200),
        ("FORK_FROM", "x"),
        ("RESUME_FROM", "y"),
        ("REINIT", "zzz"),
        ("CONFIG_PATHS", "/nope"),
        ("SERVICE", "3-1-unix-/tmp/of-a-process-that-is-gone"),
    ],
)
def test_another_runs_variables_change_nothing(
    server: Server, tmp_path: Path, mode: str, name: str, value: str
) -> None:
    line = told(server, tmp_path, WANDB_MODE=mode, **{f"WANDB_{name}": value})
    kept = f"W&B: offline, since WANDB_MODE is offline. {KEPT}"
    assert line == (kept if mode else "W&B: online, in tester/gisgd-ray.")


@pytest.mark.parametrize("mode", ["OFFLINE", "DryRun", " offline"])
def test_the_mode_in_any_letters(server: Server, tmp_path: Path, mode: str) -> None:
    line = told(server, tmp_path, WANDB_MODE=mode)
    assert line == f"W&B: offline, since WANDB_MODE is {mode.strip().lower()}. {KEPT}"
    ask = ASK.replace("access())", "access().silent)")
    assert told(server, tmp_path, ask, WANDB_MODE="DISABLED") == "True"
    assert server.requests == []
