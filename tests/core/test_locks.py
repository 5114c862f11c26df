import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import ExitStack

import pytest

from guidon.core import locks
from guidon.core.errors import InputError
from guidon.core.locks import LOCK_NAME, held, try_held


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of ``tmp_path``."""
    code = f"""
        from pathlib import Path
        from guidon.core.locks import held
        with held(Path({str(tmp_path)!r}), "training"):
            print("held", flush=True)
            import time; time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_that_is_free_is_held_and_left_as_it_was(tmp_path):
    for _ in range(2):
        with held(tmp_path, "training"):
            assert f"training by process {os.getpid()} on " in (tmp_path / LOCK_NAME).read_text()
        assert not list(tmp_path.iterdir())


def test_the_second_is_told_who_holds_the_folder(tmp_path, other_process):
    with pytest.raises(InputError) as refused, held(tmp_path, "training"):
        pass
    assert all(word in str(refused.value) for word in (str(tmp_path), "training", f"process {other_process.pid} "))
    with try_held(tmp_path) as is_held:
        assert not is_held
    with try_held(tmp_path, ".other.lock") as is_held:
        assert is_held


def test_a_killed_owner_holds_nothing(tmp_path, other_process):
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with held(tmp_path, "training"):
        pass
    assert not list(tmp_path.iterdir())


def test_threads_exclude_each_other(tmp_path):
    """No two threads are inside at once, though the lock file is deleted and made all the time."""
    inside, most, entered = 0, 0, 0

    def work():
        nonlocal inside, most, entered
        for _ in range(100_000):
            if entered >= 300:
                return
            with try_held(tmp_path) as is_held:
                if is_held:
                    inside += 1
                    most, entered = max(most, inside), entered + 1
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered >= 300


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / LOCK_NAME).symlink_to("precious")
    with pytest.raises(InputError, match="cannot be written"), held(tmp_path, "training"):
        pass
    assert (tmp_path / "precious").read_text() == "text"


def test_a_folder_that_is_absent_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"), held(tmp_path / "absent", "training"):
        pass


@pytest.mark.parametrize("found", ["no module", "no locks"])
def test_without_locks_the_work_goes_on_with_one_warning(tmp_path, monkeypatch, found):
    if found == "no module":
        monkeypatch.setattr(locks, "fcntl", None)
    else:

        def flock(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(locks.fcntl, "flock", flock)
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("default")
        for _ in range(2):
            stack.enter_context(held(tmp_path, "training"))
    assert [str(warning.message) for warning in caught] == [
        f"the filesystem of {tmp_path} has no locks: work in it from one place only"
    ]
