"""Passes a spot machine's notice on to the trials, which then save themselves: ``python -m
gisgd_ray.runner.notice``, started beside Ray on machines that may be taken away (``cluster.yaml``).

AWS gives two minutes’ notice, at an address that only the machine itself can ask; nothing in Ray
listens there. Trials answer SIGTERM with a checkpoint (:mod:`gisgd_ray.runner.trainable`).
"""

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS = "http://169.254.169.254"
EVERY_S = 5.0
TRAINABLE = "ray::TrialTrainable"
"""How Ray names the processes of trials."""


def is_taken_away(address: str = ADDRESS) -> bool:
    """Whether AWS has said that it will stop or end this machine."""
    try:
        ask = urllib.request.Request(
            f"{address}/latest/api/token",
            method="PUT",
            headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
        )
        with urllib.request.urlopen(ask, timeout=2) as answer:
            token = answer.read().decode()
        notice = urllib.request.Request(
            f"{address}/latest/meta-data/spot/instance-action",
            headers={"X-aws-ec2-metadata-token": token},
        )
        with urllib.request.urlopen(notice, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # 404 as long as all is well
        return False


def trial_processes() -> list[int]:
    """Processes of trials on this machine that are this user's."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(TRAINABLE.encode()):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def warn(pids: list[int]) -> None:
    """SIGTERM for each of them."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGTERM)
        except (ProcessLookupError, PermissionError):
            continue


def main(address: str = ADDRESS, every_s: float = EVERY_S) -> None:
    """Wait for the notice, and pass it on."""
    while not is_taken_away(address):
        time.sleep(every_s)
    pids = trial_processes()
    print(f"this machine will be taken away: warning {len(pids)} trials", flush=True)
    warn(pids)


if __name__ == "__main__":
    main()
