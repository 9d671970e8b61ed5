"""Run the notebooks whole and write them with their outputs into the documentation: `make notebooks`."""

import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from traitlets.config import Config

from eenet.reporting import write_text

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "notebooks"
PLAIN = Config({"NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]}})


def render(path: Path) -> None:
    """Run one notebook and write its page and figures."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):
                output.data["text/plain"] = strip_ansi(output.data["text/plain"])
        if "outputs" in cell:  # what is said beside has paths of the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    files = {"unique_key": path.stem, "output_files_dir": path.stem}
    page, resources = MarkdownExporter(config=PLAIN).from_notebook_node(notebook, files)
    shutil.rmtree(PAGES / path.stem, ignore_errors=True)
    for name, figure in resources["outputs"].items():
        (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / name).write_bytes(figure)
    title, _, body = page.lstrip().partition("\n")
    write_text(PAGES / f"{path.stem}.md", f"{title}\n\n*The notebook `notebooks/{path.name}`, run whole.*\n{body}")


if __name__ == "__main__":
    for number, notebook in enumerate(sorted(HERE.glob("*.ipynb")), start=1):
        if len(sys.argv) == 1 or str(number) in sys.argv[1:]:
            render(notebook)
            print(notebook.stem, flush=True)
