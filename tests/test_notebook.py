"""The notebooks run from top to bottom, each in a kernel of its own."""

from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "guidance_in_diffusers.py"


SHOWN = """import guidon
from guidon.core import progress
guidon.load({model!r})("a red circle moves left", steps=2)"""


def test_the_notebook_runs(tmp_path, tiny_model):
    """At its end, a clip plays, and its progress is shown where stderr is the notebook's."""
    notebook = jupytext.read(NOTEBOOK)
    notebook.cells.append(new_code_cell(SHOWN.format(model=str(tiny_model))))
    notebook.cells.append(new_code_cell("with progress.late_progress('denoising', after=0) as on_step: on_step(1, 2)"))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "the pipeline is as it was: True" in printed
    clip = notebook.cells[-2]["outputs"][-1]
    line = notebook.cells[-1]["outputs"]
    assert clip["data"]["text/plain"].startswith("<Video 'a red circle moves left', 64x64, 16 frames at 8 fps")
    assert '<img src="data:image/webp;base64,' in clip["data"]["text/html"]
    assert {output["name"] for output in line} == {"stderr"}
    assert "1/2" in "".join(output["text"] for output in line)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_the_notebook_of_channels_ends_in_a_report(tmp_path):
    notebook = jupytext.read(EXAMPLES / "which_channels.py")
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "<DiffusersPipeline 'diffusers:DiTPipeline', DiTPipeline, on cpu> with 4 latent channels" in printed
    assert "| channel | energy | cosine with cond |" in printed
    assert "Two prompts are too few" in printed
    assert "report: which-channels/report.html" in printed
    assert (tmp_path / "which-channels" / "report.html").stat().st_size > 50_000
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
