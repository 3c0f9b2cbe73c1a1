"""A spot machine's notice, from a server that answers as AWS's does."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gisgd_ray.runner import notice


class Metadata(BaseHTTPRequestHandler):
    taken_away = False

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200, b"a token")

    def do_GET(self) -> None:
        assert self.path == "/latest/meta-data/spot/instance-action"
        if self.headers["X-aws-ec2-metadata-token"] != "a token":
            self._answer(401)
        elif type(self).taken_away:
            self._answer(200, b'{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def aws() -> Iterator[str]:
    Metadata.taken_away = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_notice_is_told_from_its_absence(aws: str) -> None:
    assert not notice.is_taken_away(aws)
    Metadata.taken_away = True
    assert notice.is_taken_away(aws)


def test_nobody_answers() -> None:
    assert not notice.is_taken_away("http://127.0.0.1:9")


def test_trials_are_told_and_nobody_else(aws: str) -> None:
    sleep = "import time; print(0, flush=True); time.sleep(60)"
    trial, other = (
        subprocess.Popen([name, "-c", sleep], executable=sys.executable, stdout=subprocess.PIPE)
        for name in ("ray::TrialTrainable.train", "ray::IDLE")
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", f"from gisgd_ray.runner import notice; notice.main({aws!r}, 0.05)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for process in (trial, other):
            assert process.stdout is not None
            process.stdout.readline()
        assert trial.pid in notice.trial_processes()
        assert other.pid not in notice.trial_processes()
        with pytest.raises(subprocess.TimeoutExpired):
            watcher.wait(timeout=0.5)
        Metadata.taken_away = True
        assert trial.wait(timeout=10) == -signal.SIGTERM
        assert watcher.wait(timeout=10) == 0
        assert other.poll() is None
    finally:
        for process in (trial, other, watcher):
            process.kill()
            process.wait()
