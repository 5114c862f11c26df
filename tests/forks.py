"""Work in a copy of this process, which has imported already what a new one would import for seconds."""

import os
import sys
import traceback
from collections.abc import Callable


def in_fork(work: Callable[[], object], without: tuple[str, ...] = ()) -> None:
    """Do ``work`` in a fork of this process, as if it had not imported the packages ``without`` yet.

    Raises:
        AssertionError: ``work`` failed, with its traceback.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        failure = "it ended early"
        try:
            for name in [name for name in sys.modules if name.partition(".")[0] in without]:
                del sys.modules[name]
            work()
            failure = ""
        except BaseException:
            failure = traceback.format_exc()
        finally:
            os.write(writer, failure.encode()[-4096:])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        failure = pipe.read()
    _, status = os.waitpid(process, 0)
    assert not failure, failure
    assert status == 0, f"the process ended with status {status}"
