import fcntl
import json
import os
import signal
import threading
import time

import pytest
import torch

from forks import in_fork
from guidon.core.errors import InputError
from guidon.training.data import shards as module
from guidon.training.data.shards import Shards

KEYS = [f"{number:04}" for number in range(10)]


def tensor_of(key):
    return torch.full((2, 3), float(key), dtype=torch.float16)


def fill(folder, keys=KEYS, make=tensor_of, kind="things"):
    """Fill a folder. Returns the shards, the keys that were made, and what could not be loaded."""
    made, found = [], Shards(folder, kind)
    failed = found.fill(keys, lambda key: key, lambda key, _: made.append(key) or {key: make(key)}, lambda *_: None)
    return found, made, failed


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(module, "GROUP", 3)
    monkeypatch.setattr(module, "LOOK", 0.01)


def test_tensors_are_made_once_and_read_as_they_were(tmp_path):
    found, made, failed = fill(tmp_path)
    assert (made, failed) == (KEYS, {})
    again, made, _ = fill(tmp_path, KEYS[::-1])
    assert made == []
    for shards in (found, again):
        assert all(torch.equal(shards.read(key), tensor_of(key)) for key in KEYS)
    assert len(list(tmp_path.glob("things-*.safetensors"))) == 4
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]


def test_what_is_added_is_made_alone(tmp_path):
    fill(tmp_path, KEYS[2:7])
    _, made, _ = fill(tmp_path)
    assert sorted(made) == KEYS[:2] + KEYS[7:]


def test_types_and_other_tensors_of_a_key_are_kept(tmp_path):
    shards = Shards(tmp_path, "things")
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
    shards.fill(["a"], str, lambda key, _: {key + kind: torch.ones(2, dtype=dtype) for kind, dtype in zip(("", "b", "c", "d"), kinds, strict=True)}, lambda *_: None)  # fmt: skip
    shards = Shards(tmp_path, "things")
    assert [shards.read("a" + kind).dtype for kind in ("", "b", "c", "d")] == list(kinds)
    assert "a" not in Shards(tmp_path, "other")


def test_what_cannot_be_loaded_is_told_and_the_rest_is_made(tmp_path):
    def load(key):
        if key in KEYS[3:5]:
            raise InputError(f"{key} is broken")
        return key

    shards = Shards(tmp_path, "things")
    failed = shards.fill(KEYS, load, lambda key, _: {key: tensor_of(key)}, lambda *_: None)
    assert list(failed) == KEYS[3:5]
    assert sum(key in shards for key in KEYS) == 8


def test_progress_ends_at_all(tmp_path):
    told = []
    Shards(tmp_path, "things").fill(KEYS, str, lambda key, _: {key: tensor_of(key)}, lambda *step: told.append(step))
    assert told[-1] == (10, 10)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_damaged_shard_is_made_again(tmp_path, capsys):
    fill(tmp_path)
    paths = sorted(tmp_path.glob("*.safetensors"))
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(whole[0][:-1])
    paths[1].write_bytes(whole[1][:-1] + b"\1")
    paths[2].write_bytes(whole[2].replace(b'"F16"', b'"I16"'))
    paths[3].write_bytes(b"")
    shards, made, _ = fill(tmp_path)
    assert made == KEYS
    assert capsys.readouterr().err.count("it is made again") == 4
    assert all(torch.equal(shards.read(key), tensor_of(key)) for key in KEYS)


def test_no_changed_type_or_shape_is_read(tmp_path):
    fill(tmp_path, KEYS[:1])
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    for old, new in ((b'"F16"', b'"B16"'), (b"[2,3]", b"[3,2]"), (b"0000", b"0001")):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        assert fill(tmp_path, KEYS[:1])[1] == KEYS[:1]
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert set(header["__metadata__"]) == {"format", "digests"}


def test_damage_while_it_is_used_is_an_error(tmp_path):
    shards, _, _ = fill(tmp_path, KEYS[:1])
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match="start again"):
        shards.read(KEYS[0])
    path.unlink()
    with pytest.raises(InputError, match="start again"):
        shards.read(KEYS[0])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_what_was_done_is_kept_where_work_stops(tmp_path, stop):
    def make(key):
        if key == KEYS[7]:
            raise stop
        return tensor_of(key)

    with pytest.raises(stop):
        fill(tmp_path, make=make)
    assert fill(tmp_path)[1] == KEYS[7:]


def test_what_was_done_is_kept_where_work_stops_in_between(tmp_path):
    def on_step(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Shards(tmp_path, "things").fill(KEYS, str, lambda key, _: {key: tensor_of(key)}, on_step)
    assert sum(key in Shards(tmp_path, "things") for key in KEYS) == 2


def test_a_killed_process_loses_one_group_at_the_most(tmp_path):
    """And with it nothing that it stored since, which it does every few seconds."""

    def make(key):
        if key == KEYS[7]:
            os.kill(os.getpid(), signal.SIGKILL)
        return tensor_of(key)

    with pytest.raises(AssertionError):
        in_fork(lambda: fill(tmp_path, make=make))
    shards, made, _ = fill(tmp_path)
    assert made == KEYS[6:]
    assert all(torch.equal(shards.read(key), tensor_of(key)) for key in KEYS)


@pytest.mark.parametrize("often", ["FLUSH", "MOST_BYTES"])
def test_a_group_is_stored_in_between(tmp_path, monkeypatch, often):
    monkeypatch.setattr(module, often, -1)
    monkeypatch.setattr(module, "GROUP", 99)
    shards, _, _ = fill(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 10
    assert all(torch.equal(shards.read(key), tensor_of(key)) for key in KEYS)


def test_two_processes_divide_the_work(tmp_path):
    """Both begin together. Nothing is made twice, and both have everything at the end."""
    log = tmp_path / "made"
    go = threading.Event()

    def make(key):
        with log.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(f"{key} {os.getpid()}\n")
        time.sleep(0.02)
        return tensor_of(key)

    def work():
        go.wait()
        shards, _, _ = fill(tmp_path, make=make)
        assert all(torch.equal(shards.read(key), tensor_of(key)) for key in KEYS)

    threads = [threading.Thread(target=work) for _ in range(2)]  # locks hold between threads as between processes
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == KEYS
