"""What of the driver's environment crosses to the trials."""

import os
import subprocess
import sys

import pytest

from gisgd_ray.tracking.environment import account, put_on


def test_account_and_settings_cross_and_no_run_of_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"WANDB_API_KEY": "k", "WANDB_BASE_URL": "http://x", "WANDB_PROJECT": "p"}
    others = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SERVICE", "WANDB_RESUME", "WANDB_NAME")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in {**given, **dict.fromkeys(others, "y")}.items():
        monkeypatch.setenv(name, value)
    assert account() == given
    put_on({"WANDB_API_KEY": "the driver's"})
    assert {n: v for n, v in os.environ.items() if n.startswith("WANDB_")} == {
        "WANDB_API_KEY": "the driver's"
    }
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="no /proc here")
@pytest.mark.parametrize("given", ["--out=s3://KEY:SECRET@bucket/x?a=b", "--out=results"])
def test_keys_are_taken_out_of_the_command_line(given: str) -> None:
    program = (
        "from gisgd_ray.runner.handover import hide_keys; hide_keys()\n"
        "print(open('/proc/self/cmdline').read())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, given], capture_output=True, text=True, check=True
    ).stdout
    assert "SECRET" not in shown
    assert ("--out=s3://bucket/x" if "KEY" in given else given) in shown
