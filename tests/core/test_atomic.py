import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from guidon.core.atomic import atomic_folder, atomic_path, write_json


def write_and_fail(path, error):
    path.write_text("half")
    raise error


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


def test_folders_are_replaced_whole(tmp_path):
    target = tmp_path / "frames"
    for names in (("a", "b"), ("c",)):
        with atomic_folder(target) as folder:
            for name in names:
                (folder / name).write_text(name)
        assert sorted(path.name for path in target.iterdir()) == sorted(names)
    with pytest.raises(ValueError, match="no"), atomic_folder(target) as folder:
        write_and_fail(folder / "d", ValueError("no"))
    assert [path.name for path in target.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_stepped_aside_comes_back(tmp_path, monkeypatch, error):
    target = tmp_path / "frames"
    target.mkdir()
    (target / "a").write_text("old")
    rename = Path.rename

    def failing(self, destination):
        if self.name.endswith(".tmp"):
            raise error
        return rename(self, destination)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error), atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"prompt": "ein Kreis für dich"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"prompt": "ein Kreis für dich"}


def test_killed_in_the_middle_the_target_is_untouched(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    code = f"""
        from pathlib import Path
        from guidon.core.atomic import atomic_path
        with atomic_path(Path({str(target)!r})) as temporary:
            temporary.write_bytes(b"half")
            print("writing", flush=True)
            import time; time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
    assert list(tmp_path.iterdir()) == [target]
