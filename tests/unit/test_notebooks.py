"""Every notebook runs on a recorded result of a real run, draws what it promises, and is kept without outputs."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests/data/results/three-tier").iterdir())
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def executed(path: Path, monkeypatch: pytest.MonkeyPatch, **env: str) -> nbformat.NotebookNode:
    for key, value in {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                       **env}.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3",
                   resources={"metadata": {"path": str(ROOT)}}).execute()
    return notebook


def images(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))


@pytest.mark.parametrize("result", RECORDED, ids=lambda path: path.name)
def test_the_comparison_is_drawn(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(ROOT / "notebooks/compare.ipynb", monkeypatch, LABCTL_RESULT=str(result))
    assert images(notebook) == 4
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "three-tier" in said and "agent-nft" in said
    keep = os.environ.get("KEEP_FIGURES")  # to look at them
    if keep:
        import base64

        for number, out in enumerate(o for c in notebook.cells for o in c.get("outputs", []) if "data" in o):
            (Path(keep) / f"{result.name}-{number}.png").write_bytes(base64.b64decode(out["data"]["image/png"]))


def test_a_result_that_is_none_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match=r"has no summary\.json"):
        executed(ROOT / "notebooks/compare.ipynb", monkeypatch, LABCTL_RESULT=str(tmp_path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_figures_have_a_caption_and_nothing_is_kept_of_a_run(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    for before, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            if "plt.show()" in cell.source:
                assert "**How to read it.**" in before.source
