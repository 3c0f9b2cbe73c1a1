"""Fetching missing files: from a server on this machine, by one process, whole or not at all."""

import multiprocessing
import os
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torchvision

from gisgd_ray.config.catalogue import DATASETS
from gisgd_ray.data import downloads
from gisgd_ray.data.downloads import data_folder, ensure_files, files_of, not_here
from gisgd_ray.data.stored import load_raw
from gisgd_ray.errors import DataError
from tests.support import ondisk

FIRST_GZ = "train-images-idx3-ubyte.gz"
ASKED = 2
"""Requests for one file: torchvision first asks where the address leads."""
LARGE = 400
"""Samples whose images take torchvision several reads, so that half of them shows on the disk."""


@pytest.fixture
def server(monkeypatch):
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    server = ondisk.Server()
    yield server
    server.close()


@pytest.fixture
def publish(server, monkeypatch):
    """Has the server offer a small dataset."""

    def offer(name: str, **sizes: int) -> tuple[ondisk.Written, dict[str, bytes]]:
        written = ondisk.make(name, **sizes)
        files = ondisk.contents(name, written)
        server.files = ondisk.trust(monkeypatch, name, written, files, address=server.address)
        return written, files

    return offer


def assert_loads(name: str, folder: Path, written: ondisk.Written) -> None:
    raw = load_raw(name, folder)
    np.testing.assert_array_equal(raw.train_images, written.train_images)
    np.testing.assert_array_equal(raw.test_labels, written.test_labels)


def failure(name: str, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        ensure_files(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"to supply {name} without a network, put " in message
    assert all(file in message for file in files_of(name).paths)
    return message


class TestDownload:
    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_fetches_once_what_is_missing(self, name, publish, server, tmp_path):
        written, _ = publish(name)
        folder = tmp_path / "not" / "yet"
        assert_loads(name, folder, written)
        assert server.requests == dict.fromkeys(server.files, ASKED)
        assert_loads(name, folder, written)
        assert server.requests == dict.fromkeys(server.files, ASKED)
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == {*files_of(name).paths, f".{name}.lock"}

    def test_leaves_alone_what_is_there(self, publish, tmp_path):
        written, files = publish("mnist")
        ondisk.put(tmp_path, dict(list(files.items())[:2]))
        there = {path: path.stat() for path in tmp_path.rglob("*ubyte")}
        assert_loads("mnist", tmp_path, written)
        assert len(there) == 2
        for path, before in there.items():
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (
                before.st_ino,
                before.st_mtime_ns,
            )

    def test_tries_the_next_mirror(self, publish, server, tmp_path, monkeypatch):
        written, _ = publish("mnist")
        dead = [f"{server.address}gone/", f"http://127.0.0.1:{closed_port()}/"]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [*dead, server.address])
        assert_loads("mnist", tmp_path, written)
        assert server.requests[f"gone/{FIRST_GZ}"] == 1

    @pytest.mark.parametrize("name", ["mnist5k", "teacher"])
    def test_bundled_and_drawn_data_need_nothing(self, name, tmp_path):
        ensure_files(name, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert DATASETS[name].files is None


class TestFailedDownload:
    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_no_server(self, name, publish, server, tmp_path):
        publish(name)
        server.close()
        started = time.monotonic()
        message = failure(name, tmp_path)
        assert time.monotonic() - started < 10
        assert (
            f"{tmp_path / files_of(name).paths[0]}" in message.split(" is missing and could not")[0]
        )
        assert "refused" in message

    @pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
    @pytest.mark.parametrize("fault", ["cut short", "another content", "gone"])
    def test_leaves_nothing_behind_and_can_be_repeated(
        self, name, fault, publish, server, tmp_path
    ):
        written, _ = publish(name)
        file, sound = list(server.files.items())[-1]
        if fault == "cut short":
            server.cut_short.add(file)
        elif fault == "another content":
            server.files[file] = b"<html>Log in to the network</html>"
        else:
            del server.files[file]
        message = failure(name, tmp_path)
        place, server_said = message.split(" is missing and could not be downloaded from ")
        assert place == str(tmp_path / files_of(name).paths[0])
        assert server.address in server_said
        assert file in server_said
        assert ("HTTP Error 404" if fault == "gone" else "corrupted") in server_said
        assert "there is" not in message  # what came by half is none of the user's
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / f".{name}.lock"]
        server.cut_short.clear()
        server.files[file] = sound
        assert_loads(name, tmp_path, written)

    def test_a_server_that_never_answers(self, publish, tmp_path, monkeypatch):
        publish("mnist")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address] * 2)
            monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.3)
            started = time.monotonic()
            message = failure("mnist", tmp_path)
            assert f"downloaded from {address}, {address} (no byte came within 0.3 s); " in message
            assert 0.3 <= time.monotonic() - started < 10

    def test_a_server_that_stops_sending(self, publish, server, tmp_path, monkeypatch):
        written, _ = publish("mnist", num_train=LARGE)
        server.stalled.add(FIRST_GZ)
        monkeypatch.setattr(downloads, "STALL_SECONDS", 0.3)
        monkeypatch.setattr(downloads, "ANSWER_SECONDS", 60)
        started = time.monotonic()
        assert "(no byte came within 0.3 s); " in failure("mnist", tmp_path)
        assert time.monotonic() - started < 10
        server.stalled.clear()
        server.release.set()  # what was given up goes on as well
        assert_loads("mnist", tmp_path, written)

    def test_leftovers_of_a_killed_process(self, publish, server, tmp_path):
        written, _ = publish("mnist", num_train=LARGE)
        process, partial = half_way("mnist", tmp_path, server)
        process.kill()
        process.join()
        assert partial.exists()
        assert not (tmp_path / "MNIST").exists()
        server.stalled.clear()
        assert_loads("mnist", tmp_path, written)
        assert not partial.exists()


class TestProcesses:
    def test_several_at_once_download_once(self, publish, server, tmp_path):
        written, _ = publish("mnist")
        processes = [start_fetching("mnist", tmp_path) for _ in range(4)]
        for process in processes:
            process.join(timeout=60)
        assert [process.exitcode for process in processes] == [0] * 4
        assert server.requests == dict.fromkeys(server.files, ASKED)
        assert_loads("mnist", tmp_path, written)

    def test_one_that_waits_takes_over_from_one_that_is_killed(self, publish, server, tmp_path):
        written, _ = publish("mnist", num_train=LARGE)
        first, partial = half_way("mnist", tmp_path, server)
        second = start_fetching("mnist", tmp_path)
        second.join(timeout=3)
        assert second.exitcode is None
        assert server.requests[FIRST_GZ] == ASKED  # half way, the lock is held
        server.stalled.clear()
        first.kill()
        second.join(timeout=60)
        assert second.exitcode == 0
        assert server.requests[FIRST_GZ] == 2 * ASKED
        assert_loads("mnist", tmp_path, written)
        assert not partial.exists()


class TestFolder:
    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_complete_folder_is_only_read(self, name, publish, server, tmp_path, monkeypatch):
        """So it works on a read-only file system: no lock, no new file, no network."""
        written, files = publish(name)
        ondisk.put(tmp_path, files)

        def refuse(*args: object, **options: object) -> None:
            raise AssertionError(f"something was written: {args} {options}")

        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(downloads, "file_lock", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        assert_loads(name, tmp_path, written)
        assert sorted(tmp_path.rglob("*")) == before
        assert not server.requests

    @pytest.mark.parametrize("function", ["mkdir", "lock"])
    def test_incomplete_folder_that_cannot_be_written(
        self, function, publish, server, tmp_path, monkeypatch
    ):
        _, files = publish("mnist")
        ondisk.put(tmp_path, dict(list(files.items())[:3]))

        def refuse(path: Path, **_: object) -> None:
            raise OSError(30, "Read-only file system", str(path))

        target = (Path, "mkdir") if function == "mkdir" else (downloads, "file_lock")
        monkeypatch.setattr(*target, refuse)
        message = failure("mnist", tmp_path)
        assert message.startswith(f"{tmp_path / files_of('mnist').paths[3]} is missing and cannot")
        assert f"the folder {tmp_path} cannot be written" in message
        assert "Read-only file system" in message
        assert not server.requests

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_incomplete_folder_without_permission(self, publish, tmp_path):
        publish("mnist")
        tmp_path.chmod(0o555)
        assert "cannot be written" in failure("mnist", tmp_path)

    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_archive_is_unpacked_without_a_network(self, name, publish, server, tmp_path):
        written, _ = publish(name)
        ondisk.put(tmp_path, server.files)
        assert_loads(name, tmp_path, written)
        assert not server.requests

    def test_archive_in_a_folder_that_cannot_be_written(
        self, publish, server, tmp_path, monkeypatch
    ):
        publish("cifar10")
        ondisk.put(tmp_path, server.files)

        def refuse(path: Path, **_: object) -> None:
            raise OSError(30, "Read-only file system", str(path))

        monkeypatch.setattr(downloads, "file_lock", refuse)
        message = failure("cifar10", tmp_path)
        said = (
            f"{tmp_path / 'cifar-10-python.tar.gz'} cannot be unpacked, as the folder {tmp_path} "
        )
        assert message.startswith(f"{said}cannot be written (")
        assert not server.requests

    def test_damaged_archive(self, publish, server, tmp_path):
        publish("cifar10")
        (content,) = server.files.values()
        path = tmp_path / "cifar-10-python.tar.gz"
        path.write_bytes(content[:100])
        message = failure("cifar10", tmp_path)
        assert message.startswith(f"{path} is damaged: expected MD5 {ondisk.md5(content)}, found ")
        assert "(100 bytes)" in message
        assert not server.requests

    def test_where_it_is(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("GISGD_DATA", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert data_folder() == tmp_path / ".cache" / "gisgd_ray"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert data_folder() == tmp_path / "cache" / "gisgd_ray"
        monkeypatch.setenv("GISGD_DATA", "~/sets")
        assert data_folder() == tmp_path / "sets"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def half_way(name: str, folder: Path, server: ondisk.Server) -> tuple[BaseProcess, Path]:
    """A process that fetches a file which stops half way, and what it has of the file."""
    server.stalled.add(FIRST_GZ)
    process = start_fetching(name, folder)
    there = f".{name}.partial-*/MNIST/raw/{FIRST_GZ}"
    wait_for(lambda: any(path.stat().st_size for path in folder.glob(there)))
    return process, next(folder.glob(there))


def start_fetching(name: str, folder: Path) -> BaseProcess:
    """``ensure_files`` in a process of its own, a copy of this one with the server's MD5 sums."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=ensure_files, args=(name, folder), daemon=True)
    process.start()
    return process


def wait_for(condition, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestMisplaced:
    """What people have, and where it belongs: told, and never taken without being told."""

    @pytest.mark.parametrize(
        ("name", "there", "place"),
        [
            # Kaggle's names.
            ("mnist", "train-images.idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte"),
            ("mnist", "MNIST/raw/t10k-labels.idx1-ubyte", "MNIST/raw/t10k-labels-idx1-ubyte"),
            ("mnist", "MNIST/raw/TRAIN-IMAGES-IDX3-UBYTE", "MNIST/raw/train-images-idx3-ubyte"),
            (
                "fashion_mnist",
                "data/FashionMNIST/raw/train-images-idx3-ubyte (1).gz",
                "FashionMNIST/raw/train-images-idx3-ubyte.gz",
            ),
            (
                "mnist",
                "MNIST/raw/train-images-idx3-ubyte/train-images-idx3-ubyte",
                "MNIST/raw/train-images-idx3-ubyte",
            ),
            ("cifar10", "cifar/cifar-10-batches-py/test_batch", "cifar-10-batches-py/test_batch"),
            ("cifar10", "data_batch_2", "cifar-10-batches-py/data_batch_2"),
            ("cifar100", "cifar-100-python.tar (1).gz", "cifar-100-python.tar.gz"),
            ("svhn", "svhn/train_32x32.mat", "train_32x32.mat"),
        ],
    )
    def test_says_what_is_there_and_where_it_belongs(
        self, name, there, place, publish, server, tmp_path
    ):
        publish(name)
        server.close()
        ondisk.put(tmp_path, {there: b"something"})
        said = f"; there is {tmp_path / there}: if that is it, move it to {tmp_path / place}"
        assert failure(name, tmp_path).endswith(said)
        assert not_here(name, tmp_path).endswith(said)

    def test_counts_the_others(self, publish, server, tmp_path):
        publish("mnist")
        server.close()
        files = [f"{kind}.idx{n}-ubyte" for kind in ("train", "t10k") for n in (1, 3)]
        names = [f.replace(".", "-labels." if "idx1" in f else "-images.") for f in files]
        ondisk.put(tmp_path, dict.fromkeys(names, b"something"))
        assert failure("mnist", tmp_path).endswith(", and 3 more likewise")

    @pytest.mark.parametrize(
        ("name", "there"),
        [
            ("mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
            ("fashion_mnist", "MNIST/raw/train-images-idx3-ubyte"),
            ("cifar10", "cifar-10-python.tar"),  # another sum than the archive's
            ("svhn", "extra_32x32.mat"),
            ("mnist", "a/b/c/d/train-images.idx3-ubyte"),
        ],
    )
    def test_takes_nothing_else_for_it(self, name, there, publish, server, tmp_path):
        publish(name)
        server.close()
        ondisk.put(tmp_path, {there: b"something"})
        assert "there is" not in failure(name, tmp_path)


class TestNotHere:
    @pytest.mark.parametrize("name", ondisk.REAL_NAMES)
    def test_says_what_there_is_to_download_and_does_not(self, name, publish, server, tmp_path):
        _, files = publish(name)
        size = files_of(name).megabytes
        assert not_here(name, tmp_path / "none") == (
            f"{name} is not in {tmp_path / 'none'} ({size} MB, which the sweep itself will "
            "download)"
        )
        ondisk.put(tmp_path, files)
        assert not_here(name, tmp_path) == ""
        assert server.requests == {}

    def test_an_archive_stands_for_its_files(self, tmp_path):
        ondisk.put(tmp_path, {"cifar-10-python.tar.gz": b"something"})
        assert not_here("cifar10", tmp_path) == ""
        assert not_here("mnist5k", tmp_path) == not_here("teacher", tmp_path) == ""


class TestWhatIsInTheWay:
    """It is there and not missing: nothing is downloaded, and the sentence says what it is."""

    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_a_folder_in_a_files_place(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / (files_of("mnist").paths[0] + end)
        path.mkdir(parents=True)
        said = f"{path} is a folder, and a file of the data set belongs there; move it away"
        assert failure("mnist", tmp_path).startswith(f"{said}; to supply mnist without a network")
        assert not_here("mnist", tmp_path) == said

    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_a_link_to_nothing(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / (files_of("mnist").paths[1] + end)
        path.parent.mkdir(parents=True)
        path.symlink_to(tmp_path / "gone")
        said = f"{path} is a link to {tmp_path / 'gone'}, which is no file; mend it or delete it"
        assert failure("mnist", tmp_path).startswith(f"{said}; ")

    @pytest.mark.parametrize("below", ["", "further/down"])
    def test_a_file_where_the_folder_belongs(self, tmp_path: Path, below: str) -> None:
        file = tmp_path / "data"
        file.write_text("a file")
        said = f"{file} is a file and not a folder; the data sets need a folder there"
        for name in ("mnist", "cifar10"):
            assert failure(name, file / below).startswith(f"{said}; ")

    def test_a_folder_that_is_a_link_to_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        folder.symlink_to(tmp_path / "gone")
        said = f"{folder} is a link to {tmp_path / 'gone'}, which is not there; "
        assert failure("svhn", folder).startswith(said)

    def test_a_file_where_a_folder_within_belongs(self, tmp_path: Path) -> None:
        within = tmp_path / Path(files_of("mnist").paths[0]).parts[0]
        within.write_text("a file")
        assert failure("mnist", tmp_path).startswith(f"{within} is a file and not a folder; ")
