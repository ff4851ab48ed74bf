"""The example notebook: run it, and write it anew with what it prints.

    python tests/stored_notebook.py

runs every cell and stores the outputs. A cell whose metadata says ``"varies": true`` prints numbers whose last digits
differ from machine to machine; the test runs it and does not compare.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from places import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "port_segnet_basic.ipynb"


def executed(path: Path = NOTEBOOK, timeout: int = 300) -> Any:
    """The notebook after a run in a fresh kernel, in its own folder. A cell that raises ends it."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": path.parent}}
    # A long print arrives in pieces, in more or fewer of them each time.
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", coalesce_streams=True, resources=where).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)  # times of day
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    output.data.pop("text/plain", None)  # the same once more, and long
    return notebook


def shown(cell: Any) -> str:
    """What a reader sees below a cell: text as it is printed, pages without their markup and style."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "text/html" in data:
            page = re.sub(r"<(style|script)\b.*?</\1>", "", data["text/html"], flags=re.DOTALL)
            parts.append(" ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split()))
        else:
            parts.append(output.get("text") or data.get("text/plain", ""))
    return "\n".join(parts)


if __name__ == "__main__":
    fresh = executed()
    fresh.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(fresh)
    nbformat.write(fresh, NOTEBOOK)
