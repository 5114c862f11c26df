"""The notebooks run from top to bottom, each in a kernel of its own.

The kernels are forks of this process: what a notebook imports takes much longer than what it does.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jupytext
from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SHOWN = """import guidon
from guidon.core import progress
guidon.load({model!r})("a red circle moves left", steps=2)"""
PROGRESS = "with progress.late_progress('denoising', after=0) as on_step: on_step(1, 2)"


@contextmanager
def kernel(connection: str) -> Iterator[BlockingKernelClient]:
    """A client of a new kernel, whose pictures are shown under its cells."""
    import matplotlib.pyplot
    from diffusers import DiTPipeline, WanPipeline
    from ipykernel.kernelapp import IPKernelApp

    _ = matplotlib.pyplot, DiTPipeline, WanPipeline  # what both notebooks import
    write_connection_file(connection)
    process = os.fork()
    if not process:
        try:
            IPKernelApp.launch_instance(argv=["-f", connection, "--matplotlib=inline"])
        finally:
            os._exit(0)
    client = BlockingKernelClient(connection_file=connection)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()
        os.kill(process, signal.SIGKILL)  # on a busy machine the message that asks it to end may be lost
        os.waitpid(process, 0)


def run(name: str, folder: Path, *more: str, fewer: tuple[str, str] = ("", "")) -> list[list[dict]]:
    """The outputs of every cell of a notebook, run in a folder, and of ``more`` cells. None fails.

    ``fewer`` is a text of its cells and what takes its place.
    """
    cells = [
        cell.source.replace(*fewer) for cell in jupytext.read(EXAMPLES / f"{name}.py").cells if cell.cell_type == "code"
    ]
    found = []
    with kernel(str(folder / "kernel.json")) as client:
        for code in (f"%cd {folder}", *cells, *more):
            outputs: list[dict] = []
            found.append(outputs)

            def keep(message: dict, outputs: list[dict] = outputs) -> None:
                if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
                    outputs.append(message["content"])

            client.execute_interactive(code, output_hook=keep, timeout=300)
            failed = ["\n".join(output["traceback"]) for output in outputs if "traceback" in output]
            assert not failed, failed[0]
    return found


def printed(cells: list[list[dict]]) -> str:
    return "".join(output.get("text", "") for outputs in cells for output in outputs)


def pictures(cells: list[list[dict]]) -> int:
    return sum("image/png" in output.get("data", {}) for outputs in cells for output in outputs)


def test_the_notebook_runs(tmp_path, tiny_model):
    """At its end, a clip plays, and its progress is shown where stderr is the notebook's."""
    cells = run("guidance_in_diffusers", tmp_path, SHOWN.format(model=str(tiny_model)), PROGRESS)
    assert "the pipeline is as it was: True" in printed(cells)
    clip, line = cells[-2][-1], cells[-1]
    assert clip["data"]["text/plain"].startswith("<Video 'a red circle moves left', 64x64, 16 frames at 8 fps")
    assert '<img src="data:image/webp;base64,' in clip["data"]["text/html"]
    assert {output["name"] for output in line} == {"stderr"}
    assert "1/2" in "".join(output["text"] for output in line)
    assert pictures(cells) == 2


def test_the_notebook_of_channels_ends_in_a_report(tmp_path):
    cells = run(
        "which_channels",
        tmp_path,
        fewer=('STEPS, LOOKS = ["207", "360"], 4, 6, 2', 'STEPS, LOOKS = ["207", "360"], 4, 2, 1'),
    )
    text = printed(cells)
    assert "<DiffusersPipeline 'diffusers:DiTPipeline', DiTPipeline, on cpu> with 4 latent channels" in text
    assert "| channel | energy | cosine with cond |" in text
    assert "Two prompts are too few" in text
    assert "report: which-channels/report.html" in text
    assert (tmp_path / "which-channels" / "report.html").stat().st_size > 50_000
    assert pictures(cells) == 2
