"""The notebook runs from top to bottom in a kernel of its own."""

from pathlib import Path

import jupytext
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "guidance_in_diffusers.py"


def test_the_notebook_runs(tmp_path):
    notebook = jupytext.read(NOTEBOOK)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "the pipeline is as it was: True" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
