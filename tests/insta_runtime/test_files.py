"""Atomic file writing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from insta_runtime.files import atomic_file, atomic_path, partial_path


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("concurrent", [False, True])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool, concurrent: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path, durable=durable, concurrent=concurrent) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert not partial_path(path).exists()


def test_the_replaced_file_is_kept_as_a_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "file", tmp_path / "file.previous"
    for contents in (b"first", b"second", b"third"):
        with atomic_file(path, backup=backup) as file:
            file.write(contents)
    assert (path.read_bytes(), backup.read_bytes()) == (b"third", b"second")


def test_permissions_are_as_given(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "private", mode=0o600) as file:
        file.write(b"")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_the_temporary_file_has_the_suffix_that_its_writer_needs(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "film.mp4", suffix=".mp4") as part:
        assert part.suffix == ".mp4"
        part.write_bytes(b"film")
    assert (tmp_path / "film.mp4").read_bytes() == b"film"


def test_concurrent_writers_do_not_mix_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([letter]) * 100_000 for letter in b"abcd"]

    def write(data: bytes) -> None:
        for _ in range(20):
            with atomic_file(path, concurrent=True) as file:
                file.write(data[:50_000])
                file.write(data[50_000:])

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
