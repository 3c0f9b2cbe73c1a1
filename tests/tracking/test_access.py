"""What keeps W&B from being online is said in one sentence, before the first trial."""

import http.client
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.tracking import access as wandb_access
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment

ASK = "from gisgd_ray.tracking.access import access; print(access())"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def told(server: Server, folder: Path, ask: str = ASK, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ask],
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
    begun = time.monotonic()
    with server.away():
        sentence = told(server, tmp_path)
    assert sentence == (
        f"W&B: offline, since {server.url} does not answer ([Errno 111] Connection refused). {KEPT}"
    )
    assert time.monotonic() - begun < 60  # W&B's own client tries for minutes


def test_a_server_that_only_listens(tmp_path: Path) -> None:
    with Server() as server, socket.create_server(("127.0.0.1", 0)) as deaf:
        where = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        sentence = told(server, tmp_path, WANDB_BASE_URL=where)
    assert sentence == f"W&B: offline, since {where} does not answer (timed out). {KEPT}"


def test_a_server_with_a_certificate_unknown_to_python_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert wandb_access.no_answer("https://wandb.example.org") == ""


def test_a_server_that_speaks_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert wandb_access.no_answer("http://127.0.0.1:22") == "SSH-2.0"


def test_an_address_that_is_none(server: Server, tmp_path: Path) -> None:
    sentence = told(server, tmp_path, WANDB_BASE_URL="http://127.0.0.1:99999")
    assert sentence == (
        "W&B: disabled, since W&B does not take its settings (1 validation error for Settings "
        "base_url Input should be a valid URL, invalid port number)."
    )


def test_offline_asks_nobody(server: Server, tmp_path: Path) -> None:
    assert told(server, tmp_path, WANDB_MODE="offline") == (
        f"W&B: offline, since WANDB_MODE is offline. {KEPT}"
    )
    assert server.requests == []


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_project_that_cannot_be(server: Server, tmp_path: Path, mode: str) -> None:
    line = told(server, tmp_path, WANDB_MODE=mode, WANDB_PROJECT="a/b")
    assert line.startswith(
        "W&B: disabled, since W&B does not take its settings (Invalid project name 'a/b': "
    )
    assert server.requests == []
