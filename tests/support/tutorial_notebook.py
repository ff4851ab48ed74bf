"""The tutorial as a notebook, made from its page, so that there is one text.

    python tests/support/tutorial_notebook.py

writes it anew. Nothing is run here: the page's blocks are run by ``tests/docs``, and a notebook shows what it prints.
"""

from __future__ import annotations

import json
import re
from typing import Any

from docs_pages import FENCE, Block, blocks_of, commands_of
from places import REPOSITORY

PAGE = REPOSITORY / "docs" / "tutorial.md"
NOTEBOOK = REPOSITORY / "examples" / "tutorial.ipynb"


def notebook_of(page: str) -> dict[str, Any]:
    """A notebook with a cell for each text and each block of the page; a reader's output takes the place of ours."""
    cells: list[dict[str, Any]] = []
    end = 0
    for match, block in zip(FENCE.finditer(page), blocks_of(page), strict=True):
        cells += [prose(page[end : match.start()]), code(block)]
        end = match.end()
    cells.append(prose(page[end:]))
    cells = [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cell for cell in cells if cell["source"])]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def prose(text: str) -> dict[str, Any]:
    """A text cell; links to other pages start at the folder of the notebook."""
    text = re.sub(r"\]\(([\w.-]+\.md)", r"](../docs/\1", text)
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip()}


def code(block: Block) -> dict[str, Any]:
    """A code cell: Python as it is, a file that is written, commands for the shell; without text for an output."""
    match block:
        case Block(title=str(title)):
            source = f"%%writefile {title}\n{block.text}"
        case Block(language="python"):
            source = block.text
        case Block(language="console"):
            source = "\n".join(f"!{command}" for _, command, _ in commands_of(block) if command != "echo $?")
        case Block(language="sh"):
            source = "%cd ..\n" + "".join(f"%{line}\n" for line in block.text.splitlines())
        case _:
            source = ""
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source.strip()}


def text_of(page: str) -> str:
    """The notebook as its file has it."""
    return json.dumps(notebook_of(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(text_of(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
