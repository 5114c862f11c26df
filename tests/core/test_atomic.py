import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core.folders import content, write_folder
from guidon.core import atomic
from guidon.core.atomic import atomic_file, atomic_folder, atomic_path, recover, write_bytes, write_json


def write_and_fail(path, error):
    path.write_text("half")
    raise error


@pytest.fixture(params=["exchange", "two steps"])
def exchange(request, monkeypatch):
    """The system exchanges two folders in one call, or cannot."""
    if request.param == "two steps":
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    return request.param


def test_an_error_of_a_full_disk_names_the_target(tmp_path):
    target = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space left on device") as error, atomic_path(target) as temporary:
        write_and_fail(temporary, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert error.value.filename == str(target)


def test_a_block_that_succeeds_replaces_the_target(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        write_and_fail(temporary, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_are_replaced_whole(tmp_path, exchange):
    target = tmp_path / "frames"
    for text in ("1", "2"):
        write_folder(target, text)
        assert content(tmp_path) == {"frames/a": text, "frames/nested/b": text}
    with pytest.raises(ValueError, match="no"), atomic_folder(target) as folder:
        write_and_fail(folder / "d", ValueError("no"))
    assert content(tmp_path) == {"frames/a": "2", "frames/nested/b": "2"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_folder_that_stepped_aside_comes_back(tmp_path, monkeypatch, error, step):
    target = tmp_path / "frames"
    write_folder(target, "old")
    rename, calls = Path.rename, []

    def failing(self, destination):
        calls.append(self)
        if len(calls) == step:
            raise error
        return rename(self, destination)

    monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)):
        write_folder(target, "new")
    assert content(tmp_path) == {"frames/a": "old", "frames/nested/b": "old"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("heal", ["recover", "next writer", "writer of another file"])
def test_a_kill_between_the_two_steps_is_healed(tmp_path, heal):
    target = tmp_path / "frames"
    write_folder(target, "old")
    code = f"""
        import os, signal
        from pathlib import Path
        from guidon.core import atomic
        atomic._exchange_call = lambda: None
        rename = Path.rename
        def rename_and_die(self, other):
            rename(self, other)
            os.kill(os.getpid(), signal.SIGKILL)
        with atomic.atomic_folder(Path({str(target)!r})) as folder:
            (folder / "a").write_text("new")
            Path.rename = rename_and_die
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == -signal.SIGKILL
    assert not target.exists()
    if heal == "recover":
        recover(target)
    elif heal == "next writer":
        with pytest.raises(ValueError, match="no"), atomic_folder(target):
            raise ValueError("no")
    else:
        write_bytes(tmp_path / "other", b"")
        (tmp_path / "other").unlink()
    assert (target / "a").read_text() == "old"
    write_folder(target, "new")
    assert content(tmp_path) == {"frames/a": "new", "frames/nested/b": "new"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_does_not_replace_a_file(tmp_path, exchange):
    (tmp_path / "frames").write_text("text")
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "frames", "new")
    assert content(tmp_path) == {"frames": "text"}


def test_a_file_does_not_replace_a_folder(tmp_path):
    write_folder(tmp_path / "a", "old")
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "a", b"new")
    assert content(tmp_path) == {"a/a": "old", "a/nested/b": "old"}


def test_everything_in_a_folder_is_synced_before_it_is_moved(tmp_path, monkeypatch, exchange):
    target, synced = tmp_path / "frames", []
    write_folder(target, "old")

    monkeypatch.setattr(atomic, "_sync", lambda path: synced.append((path.name, (target / "a").read_text())))
    write_folder(target, "new")
    *before, last = synced
    assert sorted(before) == [(name, "old") for name in ("a", "b", "frames", "nested")]
    assert last == (tmp_path.name, "new")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_sync_is_reported(tmp_path, monkeypatch, kind):
    target = tmp_path / "a"
    write_json(target, "old") if kind == "file" else write_folder(target, "old")
    before = content(tmp_path)

    def fsync(_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="broken"):
        write_json(target, "new") if kind == "file" else write_folder(target, "new")
    assert content(tmp_path) == before


def test_the_permissions_are_those_of_the_umask_or_of_the_old_one(tmp_path, exchange):
    file, folder = tmp_path / "a", tmp_path / "b"
    umask = os.umask(0o027)
    try:
        write_bytes(file, b"")
        write_folder(folder, "old")
        assert [oct(path.stat().st_mode & 0o777) for path in (file, folder)] == ["0o640", "0o750"]
        file.chmod(0o604)
        folder.chmod(0o705)
        write_bytes(file, b"")
        write_folder(folder, "new")
        assert [oct(path.stat().st_mode & 0o777) for path in (file, folder)] == ["0o604", "0o705"]
    finally:
        os.umask(umask)


def test_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path, exchange):
    (tmp_path / "file").write_text("precious")
    write_folder(tmp_path / "folder", "precious")
    (tmp_path / "a").symlink_to("file")
    (tmp_path / "b").symlink_to("folder")
    write_bytes(tmp_path / "a", b"new")
    write_folder(tmp_path / "b", "new")
    assert not (tmp_path / "a").is_symlink()
    assert not (tmp_path / "b").is_symlink()
    assert content(tmp_path) == {
        "file": "precious", "folder/a": "precious", "folder/nested/b": "precious",
        "a": "new", "b/a": "new", "b/nested/b": "new",
    }  # fmt: skip


def test_missing_parents_are_made(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "c", b"new")
    write_folder(tmp_path / "d" / "e", "new")
    assert content(tmp_path) == {"a/b/c": "new", "d/e/a": "new", "d/e/nested/b": "new"}


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"prompt": "ein Kreis für dich"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"prompt": "ein Kreis für dich"}


def test_an_error_of_the_disk_is_told_as_such(tmp_path):
    """A library may turn it into an error of its own."""

    def library(file):
        file.raw.close()
        file.raw.__init__("/dev/full", "wb")
        try:
            file.raw.write(b"new")  # past the buffer, which would fail again when it is closed
        except OSError:
            raise RuntimeError("unexpected position") from None

    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_file(target) as file:
        library(file)
    assert content(tmp_path) == {"a": "old"}
    with atomic_file(target) as file:
        file.write(b"new")
    assert content(tmp_path) == {"a": "new"}
    with pytest.raises(RuntimeError, match="other"), atomic_file(target) as file:
        raise RuntimeError("other")
    assert content(tmp_path) == {"a": "new"}
