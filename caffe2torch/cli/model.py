"""``caffe2torch model NET``: the net as a Python file that needs torch alone."""

from __future__ import annotations

import ast
import warnings

import click

from caffe2torch.cli.options import one_or_two_files, options_of_every_verb, read_files
from caffe2torch.cli.output import Outputs, echo

_PARTS = ("optimizer", "loss")


def _parts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    del ctx, param
    parts = tuple(value.split(",")) if value else ()
    for part in parts:
        if part not in _PARTS:
            raise click.BadParameter(f"{part!r} is none of {', '.join(_PARTS)}")
    return parts


@click.command("model")
@one_or_two_files
@click.option("-o", "--output", type=click.Path(), metavar="FILE.py", help="Write the file instead of printing it.")
@click.option(
    "--with",
    "parts",
    callback=_parts,
    metavar="PARTS",
    help="What else the file holds: loss (the net's own), optimizer (with scheduler and fillers), or loss,optimizer.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@options_of_every_verb
def command(
    files: tuple[str, ...],
    output: str | None,
    parts: tuple[str, ...],
    force: bool,
) -> None:
    """Write NET as a torch module: stock modules by layer name, and a straight forward pass.

    \b
    caffe2torch model lenet_train_test.prototxt -o model.py
    caffe2torch model train.prototxt solver.prototxt --with loss,optimizer -o training.py
    """
    outputs = Outputs(output, inputs=files, force=force)
    recipe = read_files(files)
    outputs.check_against(recipe)

    import torch

    from caffe2torch.emit.model import model_source
    from caffe2torch.models.build_net import build_model, unstated_size

    if (error := unstated_size(recipe)) is not None:
        raise error
    with torch.device("meta"), warnings.catch_warnings(action="ignore", category=UserWarning):
        model = build_model(recipe)  # what it would warn of is an error of model_source
    text = model_source(model, loss="loss" in parts)
    if "optimizer" in parts:
        from caffe2torch.translation import translate

        text = _joined(text, translate(recipe, model=model).source(initialize=True, loss=False))
    if output is None:
        echo(text)
    else:
        outputs.write({output: text})


def _joined(first: str, second: str) -> str:
    """Two modules as one: the first's docstring, the imports of both, then what each of them defines."""
    imports: set[str] = set()
    bodies = []
    for text in (first, second):
        nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        imports.update(ast.unparse(node) for node in nodes if getattr(node, "module", "") != "__future__")
        bodies.append("\n".join(text.splitlines()[max(node.end_lineno or 0 for node in nodes) :]).strip("\n"))
    torchs, others = (sorted(one for one in imports if ("torch" in one) is wanted) for wanted in (True, False))
    head = [f'"""{ast.get_docstring(ast.parse(first))}"""', "", "from __future__ import annotations", ""]
    imported = [line for lines in (others, torchs) for line in (*sorted(lines, key=_is_from), "")]
    return "\n".join([*head, *imported, "", "\n\n\n".join(bodies)]) + "\n"


def _is_from(line: str) -> bool:
    return line.startswith("from")
