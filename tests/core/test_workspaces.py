"""What dead writers leave behind, and who deletes it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from core.folders import content, write_folder
from guidon.core import workspaces
from guidon.core.atomic import atomic_folder, atomic_path, recover, write_bytes
from guidon.core.locks import LOCK_NAME


def kill_while_it_writes(target, kind="atomic_path", machine=None):
    """Kill a process in the middle of its block. Returns the workspace that it leaves behind."""
    code = f"""
        import time
        from pathlib import Path
        from guidon.core import atomic, workspaces
        {f"workspaces._machine = lambda: {machine!r}" if machine else ""}
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


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim, target = tmp_path / "victim", tmp_path / "a.txt"
    victim.mkdir()
    monkeypatch.setattr(workspaces.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / workspaces._workspace_name(target)).symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_bytes(target, b"new")
    assert not list(victim.iterdir())


def test_a_planted_link_is_not_swept(tmp_path):
    victim, target = tmp_path / "victim", tmp_path / "a"
    victim.mkdir()
    (victim / "precious").write_text("text")
    (victim / LOCK_NAME).write_text("")
    (tmp_path / workspaces._workspace_name(target)).symlink_to(victim)
    write_bytes(target, b"new")
    assert (victim / "precious").read_text() == "text"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give a folder away")
def test_the_workspace_of_another_user_is_left_alone(tmp_path):
    workspace = tmp_path / workspaces._workspace_name(tmp_path / "a")
    (workspace / workspaces._OLD / "a").mkdir(parents=True)
    os.chown(workspace, 12345, 12345)
    make_old(workspace)
    recover(tmp_path / "a")
    write_bytes(tmp_path / "a", b"new")
    assert (workspace / workspaces._OLD / "a").exists()


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, ".hidden", "a.tar.gz", "a." + "b" * 250, "line\nbreak.txt"])
def test_any_name_of_a_file_can_be_written(tmp_path, name):
    kill_while_it_writes(tmp_path / name)
    write_bytes(tmp_path / name, b"new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


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
    (tmp_path / workspaces._workspace_name(tmp_path / "a")).mkdir()
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
        monkeypatch.setattr(workspaces, "flock", lambda *_, **__: None)
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
