"""Processes that run a sweep's script, forked from one that has imported what takes seconds.

Ray is not among that: each driver imports it by itself, once its environment is set.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType

import torchvision  # noqa: F401

# Before anything else imports torch.
import sweeps.lr_batch

assert sweeps

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Driver:
    """``python SCRIPT WORDS`` or ``python -c PROGRAM WORDS``, as a ``subprocess.Popen`` would."""

    def __init__(
        self,
        script: Path,
        words: list[str],
        *,
        environment: dict[str, str],
        program: str | None = None,
        own_group: bool = False,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name, name) for name in ("out", "err")]
        given = (script, words, environment, program, own_group, os.getcwd(), self._said)
        self._process: ForkServerProcess = CONTEXT.Process(target=_drive, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """None as long as it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def said(self) -> tuple[str, str]:
        """What it has written to its output and its errors so far."""
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        assert self.status is not None, (f"it runs still after {seconds:g} s", *self.said())
        return self.status


def _drive(
    script: Path,
    words: list[str],
    environment: dict[str, str],
    program: str | None,
    own_group: bool,
    folder: str,
    said: list[Path],
) -> None:
    """In the new process."""
    if own_group:
        os.setsid()
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script) if program is None else "-c", *words]
    try:
        if program is None:
            sys.path.insert(0, str(script.parent))
            runpy.run_path(str(script), run_name="__main__")
        else:
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(program, main.__dict__)
    finally:
        # multiprocessing leaves them out.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
