import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from guidon.core import atomic
from guidon.core.atomic import atomic_file, atomic_folder, atomic_path, recover, write_bytes, write_json
from guidon.core.locks import LOCK_NAME


def write_and_fail(path, error):
    path.write_text("half")
    raise error


def content(folder):
    """Every file under a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(target, text):
    with atomic_folder(target) as folder:
        (folder / "nested").mkdir()
        (folder / "a").write_text(text)
        (folder / "nested" / "b").write_text(text)


def kill_while_it_writes(target, kind="atomic_path", machine=None):
    """Kill a process in the middle of its block. Returns the workspace that it leaves behind."""
    code = f"""
        import time
        from pathlib import Path
        from guidon.core import atomic
        {f"atomic._machine = lambda: {machine!r}" if machine else ""}
        with atomic.{kind}(Path({str(target)!r})) as temporary:
            (temporary / "a" if temporary.is_dir() else temporary).write_text("half")
            print("writing", flush=True)
            time.sleep(60)
    """
    before = set(target.parent.iterdir())
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (workspace,) = set(target.parent.iterdir()) - before
    return workspace


def make_old(path):
    """Let a path look as if nobody had touched it for two days."""
    os.utime(path, times=(time.time() - 2 * 24 * 3600,) * 2, follow_symlinks=False)


@pytest.fixture(params=["exchange", "two steps"])
def exchange(request, monkeypatch):
    """The system exchanges two folders in one call, or cannot."""
    if request.param == "two steps":
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    return request.param


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


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim, target = tmp_path / "victim", tmp_path / "a.txt"
    victim.mkdir()
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / atomic._workspace_name(target)).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_bytes(target, b"new")
    assert not list(victim.iterdir())


def test_a_planted_link_is_not_swept(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "a"
    victim.mkdir()
    (victim / "precious").write_text("text")
    (victim / LOCK_NAME).write_text("")
    (tmp_path / atomic._workspace_name(target)).symlink_to(victim)
    write_bytes(target, b"new")
    assert (victim / "precious").read_text() == "text"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_the_workspace_of_another_user_is_left_alone(tmp_path):
    workspace = tmp_path / atomic._workspace_name(tmp_path / "a")
    (workspace / atomic._OLD / "a").mkdir(parents=True)
    os.chown(workspace, 12345, 12345)
    make_old(workspace)
    recover(tmp_path / "a")
    write_bytes(tmp_path / "a", b"new")
    assert (workspace / atomic._OLD / "a").exists()


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, ".hidden", "a.tar.gz", "a." + "b" * 250, "line\nbreak.txt"])
def test_any_name_of_a_file_can_be_written(tmp_path, name):
    kill_while_it_writes(tmp_path / name)
    write_bytes(tmp_path / name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


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


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
def test_killed_in_the_middle_the_target_is_untouched_and_the_next_writer_sweeps(tmp_path, kind):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old") if kind == "atomic_path" else write_folder(target, "old")
    before = content(tmp_path)
    workspace = kill_while_it_writes(target, kind)
    assert {name: text for name, text in content(tmp_path).items() if not name.startswith(workspace.name)} == before
    write_bytes(tmp_path / "another file", b"new")
    assert content(tmp_path) == before | {"another file": "new"}


def test_a_workspace_without_its_lock_file_is_swept(tmp_path):
    """A process was killed between making the two."""
    (tmp_path / atomic._workspace_name(tmp_path / "a")).mkdir()
    write_bytes(tmp_path / "a", b"new")
    assert content(tmp_path) == {"a": "new"}


def test_a_writer_that_lives_is_not_swept(tmp_path):
    """A thread of the same process, even one that has been silent for long."""
    target = tmp_path / "a"
    with atomic_path(target) as temporary:
        temporary.write_text("first")
        make_old(temporary.parent)
        thread = threading.Thread(target=write_bytes, args=(target, b"second"))
        thread.start()
        thread.join()
        assert content(target.parent)["a"] == "second"
    assert content(tmp_path) == {"a": "first"}


@pytest.mark.parametrize("reason", ["another machine", "no locks"])
def test_what_may_live_elsewhere_is_swept_after_a_day(tmp_path, monkeypatch, reason):
    target = tmp_path / "a"
    workspace = kill_while_it_writes(target, machine="01234567" if reason == "another machine" else None)
    if reason == "no locks":
        monkeypatch.setattr(atomic, "flock", lambda *_, **__: None)
    write_bytes(target, b"new")
    assert workspace.exists()
    make_old(workspace)
    write_bytes(target, b"new")
    assert content(tmp_path) == {"a": "new"}


def test_leftovers_of_earlier_versions_are_swept_after_a_day(tmp_path):
    target = tmp_path / "a.txt"
    leftovers = [tmp_path / name for name in (".a.123.tmp.txt", ".a.txt.123.old")]
    others = [tmp_path / name for name in (".a.tmp.txt", ".b.123.tmp.txt", ".a.123.tmp", ".a.x.tmp.txt")]
    for path in (*leftovers, *others):
        path.write_text("")
    write_bytes(target, b"new")
    assert all(path.exists() for path in leftovers)
    for path in (*leftovers, *others):
        make_old(path)
    write_bytes(target, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


@pytest.mark.parametrize("heal", ["recover", "next writer"])
def test_a_folder_that_an_earlier_version_moved_away_comes_back(tmp_path, heal):
    target = tmp_path / "frames"
    write_folder(tmp_path / ".frames.123.old", "old")
    if heal == "recover":
        recover(target)
    else:
        with pytest.raises(ValueError, match="no"), atomic_folder(target):
            raise ValueError("no")
    assert content(tmp_path) == {"frames/a": "old", "frames/nested/b": "old"}
