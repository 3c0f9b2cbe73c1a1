"""Of drivers that begin at the same moment at most one has the bucket."""

import random
import threading
import time
from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.storage import Storage
from gisgd_ray.runner.mirror import OWNER, Mirror
from tests.runner.test_mirror import files, put


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def mirror(tmp_path: Path, bucket: Path) -> Mirror:
    return Mirror(tmp_path / "here", Storage(str(bucket)))


class SlowStorage(Storage):
    """Stops before every request until it is let go on, so that requests come in any order."""

    def __init__(self, where: str):
        super().__init__(where)
        self.may, self.waits = threading.Semaphore(0), threading.Semaphore(0)

    def _turn(self) -> None:
        self.waits.release()
        self.may.acquire()

    def write(self, name: str, content: bytes) -> None:
        self._turn()
        super().write(name, content)

    def read(self, name: str) -> bytes:
        self._turn()
        return super().read(name)

    def names(self, folder: str = "", *, recursive: bool = False) -> list[str]:
        self._turn()
        return super().names(folder, recursive=recursive)

    def delete(self, name: str) -> None:
        self._turn()
        super().delete(name)


@pytest.mark.parametrize("seed", range(40))
def test_of_two_drivers_that_begin_at_once_at_most_one_has_the_place(
    tmp_path: Path, seed: int
) -> None:
    """Whatever the order in which the bucket answers them."""
    storages = [SlowStorage(str(tmp_path / "bucket")) for _ in range(2)]
    mirrors = [Mirror(tmp_path / str(i), storage) for i, storage in enumerate(storages)]
    won: list[int] = []

    def begin(i: int) -> None:
        if mirrors[i]._claimed(take_over=False) is None:
            won.append(i)
        ended.add(i)
        storages[i].waits.release()

    ended: set[int] = set()
    drivers = [threading.Thread(target=begin, args=(i,)) for i in range(2)]
    for driver in drivers:
        driver.start()
    order = random.Random(seed)
    for storage in storages:
        storage.waits.acquire()
    while len(ended) < 2:
        i = order.choice([i for i in range(2) if i not in ended])
        storages[i].may.release()
        storages[i].waits.acquire()
    for driver in drivers:
        driver.join()
    assert len(won) <= 1
    left = files(tmp_path / "bucket")
    assert left == ({OWNER: mirrors[won[0]]._name} if won else {})


def test_drivers_that_stood_back_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gisgd_ray.runner.mirror.PAUSE_S", 0.05)
    told: list[str] = []

    def drive(i: int) -> None:
        try:
            with Mirror(tmp_path / str(i), Storage(str(tmp_path / "bucket"))).owned(False):
                told.append("began")
                time.sleep(1)
        except UserError as refused:
            told.append(str(refused))

    drivers = [threading.Thread(target=drive, args=(i,)) for i in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert told.count("began") <= 1
    assert sum("is writing to" in text for text in told) == 3 - told.count("began")
    assert files(tmp_path / "bucket") == {}


def test_a_claim_of_a_driver_that_is_gone_is_told_and_taken_over(
    mirror: Mirror, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gisgd_ray.runner.mirror.PAUSE_S", 0.0)
    put(bucket, {f"{OWNER}-1": b"host-1 4711 x"})
    with pytest.raises(UserError, match=r"driver on host-1 \(process 4711\) is writing to .*over"):
        mirror.owned(take_over=False).__enter__()
    assert files(bucket) == {f"{OWNER}-1": b"host-1 4711 x"}
    with mirror.owned(take_over=True):
        assert list(files(bucket)) == [OWNER]
    assert files(bucket) == {}


@pytest.mark.parametrize("note", [b"", b"odd", b"\xff\xfe"])
def test_a_note_that_says_little_is_a_note(mirror: Mirror, bucket: Path, note: bytes) -> None:
    put(bucket, {OWNER: note})
    with pytest.raises(UserError, match="add --take-over if it is gone"):
        mirror.owned(take_over=False).__enter__()
