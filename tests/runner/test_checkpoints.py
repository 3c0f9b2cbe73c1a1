"""The checkpoints of a trial in its storage: which are kept, and which of them is gone on from."""

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from gisgd_ray.results.storage import Storage
from gisgd_ray.runner import checkpoints as kept_ones
from gisgd_ray.runner.checkpoints import Checkpoints, clear_all, step_of
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from gisgd_ray.training.checkpoint import CheckpointError
from tests.support.runs import config, finish, run
from tests.training.test_checkpoint import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


class TestCheckpoints:
    """A trial's checkpoints in its storage."""

    def saved(self, folder: Path, count: int) -> tuple[Checkpoints, training.TrainState]:
        kept, state = Checkpoints(Storage(str(folder)), config()), training.start(config())
        for _ in range(count):
            training.advance(state)
            kept.save(state)
        return kept, state

    def test_the_newest_two_are_kept_in_the_order_of_their_steps(self, tmp_path):
        kept, _ = self.saved(tmp_path, 4)
        names = [f"checkpoints/{config().trial_id}/{step:012d}.ckpt" for step in (12, 8)]
        assert kept.names() == names
        assert sorted(p.name for p in tmp_path.rglob("*.ckpt")) == [
            Path(n).name for n in names[::-1]
        ]
        # Clocks of machines are apart: the older one looks new.
        os.utime(tmp_path / names[0], (0, 0))
        assert kept.newest().step == 12

    def test_a_damaged_newest_one_gives_way_to_the_one_before(self, tmp_path):
        kept, _ = self.saved(tmp_path, 3)
        newest, before = (tmp_path / name for name in kept.names())
        newest.write_bytes(newest.read_bytes()[:1000])
        state = kept.newest()
        assert state.step == 4
        assert_same(finish(state), run())
        before.write_bytes(b"")
        assert kept.newest() is None

    def test_there_is_none_at_first_and_none_after_the_end(self, tmp_path):
        kept = Checkpoints(Storage(str(tmp_path)), config())
        assert kept.newest() is None
        kept, _ = self.saved(tmp_path, 2)
        kept.clear()
        assert kept.newest() is None
        assert list((tmp_path / "checkpoints").iterdir()) == []
        kept.clear()

    def test_a_full_disk_leaves_the_earlier_one(self, tmp_path, monkeypatch):
        kept, state = self.saved(tmp_path, 1)
        training.advance(state)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("gisgd_ray.results.whole_files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            kept.save(state)
        monkeypatch.undo()
        assert len(list(tmp_path.rglob("*.ckpt*"))) == 1
        assert_same(finish(kept.newest()), run())

    def test_where_both_are_unreadable_the_one_that_is_written_next_stays(self, tmp_path):
        kept, _ = self.saved(tmp_path, 3)
        bad = kept.names()
        for name in bad:
            (tmp_path / name).write_bytes(b"damaged")
        again, state = Checkpoints(Storage(str(tmp_path)), config()), training.start(config())
        assert again.newest() is None
        training.advance(state)  # to step 0, the first of them being 4 and 8
        name = again.save(state)
        assert again.names() == [name]
        training.advance(state)
        training.advance(state)
        again.save(state)
        assert [step_of(name) for name in again.names()] == [8, 0]
        assert Checkpoints(Storage(str(tmp_path)), config()).newest().step == 8

    def test_of_one_that_is_unreadable_the_place_is_taken(self, tmp_path):
        kept, _ = self.saved(tmp_path, 3)
        (tmp_path / kept.names()[0]).write_bytes(b"damaged")
        state = kept.newest()
        training.advance(state)
        kept.save(state)
        assert [step_of(name) for name in kept.names()] == [8, 4]
        assert kept.newest().step == 8

    def test_files_that_are_none_are_left_alone(self, tmp_path):
        kept, _ = self.saved(tmp_path, 2)
        for name in ("zzz.ckpt", "1.ckpt.bak", "-1.ckpt", "notes"):
            (tmp_path / "checkpoints" / config().trial_id / name).write_bytes(b"1")
        (tmp_path / "checkpoints" / "stray").write_bytes(b"1")
        assert [step_of(name) for name in kept.names()] == [4, 0]
        assert kept.newest().step == 4
        clear_all(Storage(str(tmp_path)), {"0" * 12})
        assert kept.newest().step == 4

    @pytest.mark.parametrize("times", [1, 3, 4])
    def test_a_storage_that_is_away_for_a_moment_is_asked_again(self, tmp_path, monkeypatch, times):
        self.saved(tmp_path, 2)
        monkeypatch.setattr(kept_ones, "TRIES_AFTER_S", (0.0, 0.0, 0.0))
        storage, left = AwayStorage(str(tmp_path)), times
        storage.left = left
        kept = Checkpoints(storage, config())
        if times < 4:
            assert kept.newest().step == 4
            return
        with pytest.raises(OSError, match="Input/output error"):
            kept.newest()
        assert len(kept.names()) == 2
        assert kept.newest().step == 4

    @pytest.mark.parametrize(
        "fault",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            MemoryError(),
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("where", ["torch.load", "torch.nn.Module.load_state_dict"])
    def test_what_the_machine_lacks_is_no_fault_of_the_checkpoint(
        self, tmp_path, monkeypatch, fault, where
    ):
        kept, _ = self.saved(tmp_path, 2)

        def full(*_: Any, **__: Any) -> None:
            raise fault

        monkeypatch.setattr(where, full)
        with pytest.raises(type(fault)):
            kept.newest()
        monkeypatch.undo()
        assert kept.newest().step == 4

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content.pop("terms"),
            lambda content: content.pop("progress"),
            lambda content: content["progress"].pop("stopped"),
            lambda content: content["terms"].update(news=1),
            lambda content: content["config"].update(seed=1),
            lambda content: content["config"]["training"].update(news=1),
            lambda content: content["models"].append({}),
            lambda content: content["models"][0].popitem(),
            lambda content: content["models"][0].update({"0.weight": torch.zeros(1)}),
            lambda content: content.pop("measured"),
            lambda content: content["measured"].update(begin=1),
            lambda content: content["measured"].pop("points"),
            lambda content: content["unmeasured"].pop("loss"),
            lambda content: content.update(stepper={}),
            lambda content: content.update(config=5),
            lambda content: content.update(progress=None),
        ],
    )
    def test_one_of_another_version_gives_way_to_the_one_before(self, tmp_path, change):
        kept, _ = self.saved(tmp_path, 2)
        path = tmp_path / kept.names()[0]
        rewritten(path, change)
        with pytest.raises(CheckpointError, match=r"of another version of gisgd-ray|belongs to"):
            checkpoint.load(config(), path.read_bytes())
        assert kept.newest().step == 0

    @pytest.mark.parametrize("name", ["000000000004.ckpt", "measured/000000000002.pt"])
    def test_one_with_code_in_it_is_not_run(self, tmp_path, name):
        kept, _ = self.saved(tmp_path, 2)
        folder = tmp_path / "checkpoints" / config().trial_id
        path = folder / name
        rewritten(path, lambda content: content.update(evil=Evil(tmp_path / "was run")))
        with pytest.raises(CheckpointError, match="UnpicklingError"):
            checkpoint.load(
                config(),
                (folder / "000000000004.ckpt").read_bytes(),
                pieces=lambda end: (folder / f"measured/{end:012d}.pt").read_bytes(),
            )
        assert kept.newest().step == 0
        assert not (tmp_path / "was run").exists()


class TestWhatWasTold:
    """Measuring points and steps, beside the checkpoints, in pieces that are written once."""

    def saved(self, folder: Path, points: list[int]) -> Checkpoints:
        """A trial saved after so many of its points."""
        kept, state = Checkpoints(Storage(str(folder)), config()), training.start(config())
        for count in range(1, points[-1] + 1):
            training.advance(state)
            if count in points:
                kept.save(state)
        return kept

    def piece(self, folder: Path, points: int) -> Path:
        return folder / "checkpoints" / config().trial_id / f"measured/{points:012d}.pt"

    @pytest.mark.parametrize("points", [[1, 2, 3, 4], [2, 3], [1, 4], [3]])
    def test_is_all_there_however_often_the_trial_was_saved(self, tmp_path, points):
        kept = self.saved(tmp_path, points)
        assert [p.name for p in sorted(tmp_path.rglob("measured/*"))] == [
            f"{count:012d}.pt" for count in points
        ]
        before, state = self.piece(tmp_path, points[0]), kept.newest()
        content = before.read_bytes()
        assert_same(finish(state), run())
        kept.save(state)
        assert before.read_bytes() == content
        again = Checkpoints(Storage(str(tmp_path)), config()).newest()
        assert_same(finish(again), run())

    def test_a_checkpoint_does_not_grow_with_it(self, tmp_path):
        whole = len(checkpoint.dump(run().state))
        self.saved(tmp_path, [1, 2, 3])
        first, second = (path.stat().st_size for path in sorted(tmp_path.rglob("*.ckpt")))
        assert abs(second - first) < 1000
        assert whole > second

    @pytest.mark.parametrize("damage", ["missing", "cut", "of another end", "another version's"])
    def test_without_it_the_checkpoint_before_is_taken(self, tmp_path, damage):
        kept = self.saved(tmp_path, [1, 2, 3])
        path, before = self.piece(tmp_path, 3), self.piece(tmp_path, 2)
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "of another end":
            path.write_bytes(before.read_bytes())
        else:
            rewritten(path, lambda content: content.pop("points"))
        state = kept.newest()
        assert state.step == 4
        training.advance(state)
        kept.save(state)  # in the place of what could not be read
        assert_same(finish(Checkpoints(Storage(str(tmp_path)), config()).newest()), run())
        self.piece(tmp_path, 1).unlink()
        assert kept.newest() is None

    def test_alone_such_a_checkpoint_is_refused(self, tmp_path):
        kept = self.saved(tmp_path, [2])
        with pytest.raises(CheckpointError, match="what the run has measured is not in it"):
            checkpoint.load(config(), (tmp_path / kept.names()[0]).read_bytes())

    def test_two_attempts_at_once_leave_a_whole(self, tmp_path):
        """One of them believed dead: they save at other points, in turns."""
        first, second = (Checkpoints(Storage(str(tmp_path)), config()) for _ in range(2))
        for attempt, points in ((first, 1), (second, 2), (first, 3), (second, 3), (first, 4)):
            state = training.start(config())
            for _ in range(points):
                training.advance(state)
            attempt.save(state)
            newest = Checkpoints(Storage(str(tmp_path)), config()).newest()
            assert_same(finish(newest), run())


class AwayStorage(Storage):
    """Its first reads fail."""

    left = 0

    def read(self, name: str) -> bytes:
        if self.left:
            self.left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(name)


class Evil:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def rewritten(path: Path, change: Any) -> None:
    """Change a checkpoint's content, its checksum made anew."""
    head = len(checkpoint.MAGIC) + 32
    content = torch.load(io.BytesIO(path.read_bytes()[head:]), weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    path.write_bytes(checkpoint.MAGIC + hashlib.sha256(body).digest() + body)
