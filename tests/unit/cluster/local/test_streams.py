from __future__ import annotations

import os
import time
from pathlib import Path

from poiesis.cluster.local.streams import Tail, TailReader


def test_a_tail_keeps_the_end_and_begins_with_a_whole_character() -> None:
    tail = Tail(5)
    assert tail.text() == ""
    for piece in (b"abc", b"def", "éé".encode()):
        tail.add(piece)
    assert tail.text() == "féé"
    tail.add("éé".encode())
    assert tail.text() == "éé"


def test_an_empty_tail_keeps_nothing() -> None:
    tail = Tail(0)
    tail.add(b"abc")
    assert tail.text() == ""


def test_memory_does_not_grow_with_the_output() -> None:
    tail = Tail(1000)
    for _ in range(10_000):
        tail.add(b"x" * 400)
    assert len(tail._data) == 1000


def until(reader: TailReader, path: Path, text: str) -> None:
    end = time.monotonic() + 30
    while reader.text(path) != text:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_fifos_are_read_until_they_are_stopped(tmp_path: Path) -> None:
    path = tmp_path / "out"
    os.mkfifo(path)
    reader = TailReader()
    reader.follow(path, 10)
    reader.follow(path, 10)
    for text in ("one", "two"):  # one writer may close it, and another open it
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, text.encode())
        until(reader, path, {"one": "one", "two": "onetwo"}[text])
        os.close(writer)
    reader.stop(path)
    reader.stop(path)
    assert reader.text(path) == ""
    reader.close()


def test_a_missing_fifo_is_empty(tmp_path: Path) -> None:
    reader = TailReader()
    reader.follow(tmp_path / "none", 10)
    assert reader.text(tmp_path / "none") == ""
    reader.close()
