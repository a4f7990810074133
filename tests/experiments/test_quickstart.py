"""The notebook runs from top to bottom and says what its text promises."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).parents[2] / "experiments" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def text_of(notebook):
    """Everything that was printed."""
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )


def test_the_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_notebook_runs_and_beats_its_mean_member(executed):
    text = text_of(executed)
    values = {
        line[:11].strip(): float(line.split("NLL ")[1].split()[0])
        for line in text.splitlines()
        if "NLL" in line
    }
    assert values["ensemble"] < values["mean member"] < 0.5
    assert "(16, 360, 10)" in text
    assert "(21, 360, 10)" in text  # the group


def test_the_notebook_shows_its_figures(executed):
    images = [
        output
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 3  # learning curves, reliability, digits
