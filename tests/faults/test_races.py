"""Processes and threads that write the same file or folder at once: none fails, and nothing is ever a mix."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.harness import chance, count, leftovers, trials
from guidon.cli.outputs import prepare_folder
from guidon.core import atomic
from guidon.core.atomic import atomic_folder, recover, write_json
from guidon.core.locks import try_held
from guidon.media.files import load_video, save_video


def work_together(workers: int, kind: str, work: Callable[[int], None]) -> list[str]:
    """Run ``work(number)`` in several processes, or threads, at once. Returns their errors."""
    make = multiprocessing.get_context("fork")
    errors = make.SimpleQueue()
    start = make.Barrier(workers) if kind == "processes" else threading.Barrier(workers)

    def attempt(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.put(f"{type(error).__name__}: {error}")

    kind_of_worker = make.Process if kind == "processes" else threading.Thread
    running = [kind_of_worker(target=attempt, args=(number,)) for number in range(workers)]
    for worker in running:
        worker.start()
    for worker in running:
        worker.join()
    found = []
    while not errors.empty():
        found.append(errors.get())
    return found


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text(text)


def read_folder(target: Path) -> set[str]:
    """The different texts in the folder. It may be exchanged while it is read, so it is opened once."""
    descriptor = os.open(target, os.O_RDONLY)
    try:
        texts = set()
        for name in ("a", "b", "c"):
            file = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            texts.add(os.read(file, 100).decode())
            os.close(file)
        return texts
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["processes", "threads"])
@pytest.mark.parametrize("what", ["file", "folder", "folder in two steps", "frames", "frames in two steps"])
def test_the_last_writer_wins_and_none_fails(tmp_path, monkeypatch, kind, what):
    """Writers of one target, which also sweep each other's folder all the time."""
    if "two steps" in what:
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    target, times, workers = tmp_path / "target", count(300, 30), 3 if kind == "processes" else 8

    def work(number: int) -> None:
        for k in range(times):
            if what == "file":
                write_json(target, [f"{number} {k}"] * 3)
            elif "frames" in what:
                save_video(np.full((3, 8, 8, 3), number, np.uint8), target, format="frames")
            else:
                write_folder(target, f"{number} {k}")

    with trials(f"races: {what}, {kind}") as found:
        for error in work_together(workers, kind, work):
            found.failed(error)
        if what == "file":
            texts = {target.read_text()}
        elif "frames" in what:
            texts = set(load_video(target)[0].flat)
        else:
            texts = read_folder(target)
        found.check(len(texts) == 1, f"{workers} {kind} wrote {times} times each: {texts}")
        found.check(not leftovers(tmp_path), f"left: {leftovers(tmp_path)}")


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_reader_sees_a_whole_folder_at_any_time(tmp_path, kind):
    if atomic._exchange_call() is None:
        pytest.skip("this system cannot exchange two folders in one call")
    target, seconds = tmp_path / "target", count(20, 1)
    write_folder(target, "first")
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < end:
            if number < 2:
                write_folder(target, str(number))
                continue
            try:
                texts = read_folder(target)
            except FileNotFoundError as error:
                if error.filename == str(target):  # a file of an old folder may be deleted while it is read
                    raise
                continue
            assert len(texts) == 1, texts

    with trials(f"races: readers of a folder, {kind}") as found:
        for error in work_together(4, kind, work):
            found.failed(error)
        found.check(len(read_folder(target)) == 1, "the end")


@pytest.mark.parametrize("what", ["folder", "folder in two steps"])
def test_writers_that_are_killed_leave_a_whole_folder(tmp_path, monkeypatch, what):
    if what == "folder in two steps":
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    target, moments = tmp_path / "target", chance(what)
    write_folder(target, "first")

    def work(number: int) -> None:
        for k in range(1_000_000):
            write_folder(target, f"{number} {k}")

    with trials(f"races: killed writers, {what}") as found:
        for _ in range(count(200, 8)):
            writers = [multiprocessing.get_context("fork").Process(target=work, args=(number,)) for number in range(3)]
            for writer in writers:
                writer.start()
            time.sleep(moments.uniform(0.02, 0.1))
            for writer in writers:  # one after the other: those that live on meet what the first one left
                writer.kill()
                time.sleep(moments.uniform(0, 0.02))
            for writer in writers:
                writer.join()
            recover(target)
            texts = read_folder(target) if target.exists() else set()
            found.check(len(texts) == 1, f"it holds {texts}, beside {leftovers(tmp_path)}")
        write_folder(target, "last")
        found.check(read_folder(target) == {"last"} and not leftovers(tmp_path), f"left: {leftovers(tmp_path)}")


def test_an_output_folder_is_never_refused_because_others_check_it(tmp_path):
    times = count(3000, 300)

    def work(number: int) -> None:
        for k in range(times):
            prepare_folder(tmp_path / "out")
            if k % 3 == number:
                write_json(tmp_path / "out" / f"{number}.json", k)

    with trials("races: prepare_folder") as found:
        for error in work_together(4, "processes", work):
            found.failed(error)
        found.check(not leftovers(tmp_path), f"left: {leftovers(tmp_path)}")
        found.check(len(list((tmp_path / "out").iterdir())) == 3, "the files are there")


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_lock_is_held_by_one_at_a_time(tmp_path, kind):
    times, witness = count(2000, 200), tmp_path / "witness"

    def work(number: int) -> None:
        for _ in range(times):
            with try_held(tmp_path) as is_held:
                if is_held:
                    witness.touch(exist_ok=False)  # fails if another one is inside
                    witness.unlink()

    with trials(f"races: lock, {kind}") as found:
        for error in work_together(6, kind, work):
            found.failed(error)
        found.check(not list(tmp_path.iterdir()), "left")
