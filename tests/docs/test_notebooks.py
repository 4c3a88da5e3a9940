"""The example notebooks run as they stand, cell by cell, and have no outputs that would grow old."""

import nbformat
import pytest

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_is_short(notebook):
    cells = nbformat.read(notebook, 4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert not [line for c in cells if c.cell_type == "code" for line in c.source.splitlines() if len(line) > 120]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path) if len(str(tmp_path)) < 30 else "/tmp")
    read = nbformat.read(notebook, 4)
    NotebookClient(read, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    errors = [o for cell in read.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert not errors
    shown = "".join(str(o) for cell in read.cells for o in cell.get("outputs", []))
    if notebook.stem == "whole_run":
        assert "<iframe" in shown
        assert "<b>notebook</b> finished" in shown
    if notebook.stem == "own_network":
        assert (tmp_path / "fused.onnx").exists()
