"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from caffe2torch.cli.output import REPORTS, known_suffixes, say
from caffe2torch.net.phases import PHASES
from caffe2torch.recipe import NetRecipe
from caffe2torch.report import FORMATS
from caffe2torch.verification.report import FaultKind

if TYPE_CHECKING:
    from torch import nn

    from caffe2torch.binding.bind import UnclaimedMultipliers

__all__ = [
    "InputPath",
    "accept_options",
    "accumulation_option",
    "assignment",
    "definition",
    "draft_to",
    "input_shape",
    "model_options",
    "multipliers",
    "one_or_two_files",
    "options_of_every_verb",
    "read_files",
    "read_model",
    "refuse_reading_options",
    "report_options",
]

READING = "caffe2torch.reading"


def assignment(text: str) -> tuple[str, float]:
    """``KEY=NUMBER``; the key may hold ``=`` itself, since a layer's name may."""
    key, _, number = text.rpartition("=")
    try:
        if not key:
            raise ValueError
        return key, float(number)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form KEY=NUMBER, such as conv_classifier=10") from None


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``NAME=N,C,H,W``: the shape of a blob whose size the net does not state."""
    key, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
        if not key or min(shape) < 1:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form NAME=N,C,H,W, such as data=1,3,224,224") from None
    return key, shape


def definition(text: str) -> tuple[str, str]:
    """``NAME=VALUE``; the value may hold ``=`` itself."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE, such as NUM_LABELS=21")
    return name, value


def multipliers(text: str) -> tuple[str, tuple[float, float]]:
    """``[PATTERN:]lr_mult=N,decay_mult=N``; without a pattern it is about every parameter."""
    pattern, colon, pair = text.rpartition(":")
    try:
        given = dict(part.split("=") for part in pair.split(","))
        return pattern if colon else _EVERY, (float(given.pop("lr_mult")), float(given.pop("decay_mult")))
    except (KeyError, ValueError):
        raise click.BadParameter(
            f"{text!r} is not of the form lr_mult=1,decay_mult=1 or PATTERN:lr_mult=1,decay_mult=1"
        ) from None


_EVERY = ".*"


def _unclaimed(
    _ctx: click.Context, _param: click.Parameter, value: tuple[tuple[str, tuple[float, float]], ...]
) -> UnclaimedMultipliers | None:
    """What ``bind`` takes: a pair for all parameters, or one for each pattern, the one for all others at the end."""
    pairs = dict(value)
    if pairs.keys() <= {_EVERY}:
        return pairs.get(_EVERY)
    return dict(sorted(pairs.items(), key=lambda item: item[0] == _EVERY))


class InputPath(click.Path):
    """A file to read; ``-`` is standard input, which one file can come from."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, ``/dev/stdin`` for ``-``."""
        if value != "-":
            return super().convert(value, param, ctx)
        if ctx is not None and ctx.meta.get("stdin"):
            self.fail("standard input can be one file, and is another one already", param, ctx)
        if ctx is not None:
            ctx.meta["stdin"] = True
        return "/dev/stdin"


def one_or_two_files(function: Callable[..., object]) -> Callable[..., object]:
    """``NET SOLVER``, or a solver alone that names or holds its net."""
    return click.argument("files", nargs=-1, metavar="[NET] [SOLVER]", type=InputPath())(function)


def _keep(ctx: click.Context, param: click.Parameter, value: object) -> None:
    ctx.meta[str(param.name)] = value


def _keep_stated(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """How prototxts are read; only what is stated, which a lock has no use for."""
    if ctx.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT:
        ctx.meta.setdefault(READING, {})[param.name] = value


_kept: dict[str, Any] = {"expose_value": False, "callback": _keep}
_read_with: dict[str, Any] = {"expose_value": False, "callback": _keep_stated}


def options_of_every_verb(function: Callable[..., object]) -> Callable[..., object]:
    """How the files are read, and what is printed: kept with the command rather than handed through every verb."""
    for option in (
        click.option("--no-color", is_flag=True, hidden=True, **_kept),  # as in 0.1
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            show_default=True,
            help="Colours; auto: on a terminal, unless NO_COLOR is set.",
            **_kept,
        ),
        click.option("--quiet", is_flag=True, help="Print errors alone.", **_kept),
        click.option(
            "--define",
            "defines",
            multiple=True,
            type=definition,
            metavar="NAME=VALUE",
            help="The value of a template's placeholder ${NAME}.",
            **_read_with,
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            type=input_shape,
            metavar="NAME=N,C,H,W",
            help="The shape of an input that the net does not state.",
            **_read_with,
        ),
        click.option("--level", type=int, help="The net state's level.", **_read_with),
        click.option(
            "--stage", "stages", multiple=True, help="A stage of the net state, besides the solver's own.", **_read_with
        ),
        click.option(
            "--phase",
            type=click.Choice(PHASES),
            default="TRAIN",
            show_default=True,
            help="Which layers of the net take part.",
            **_read_with,
        ),
    ):
        function = option(function)
    return function


def model_options(function: Callable[..., object]) -> Callable[..., object]:
    """The options that say which model a net is bound to, how, and what is asked of the optimizer beyond the files."""
    for option in (
        click.option(
            "--without", multiple=True, metavar="RULE", help="Go without a fork's rule that is not translated."
        ),
        click.option(
            "--finetune", multiple=True, type=assignment, metavar="LAYER=FACTOR", help="A further factor on lr_mult."
        ),
        click.option(
            "--unclaimed",
            multiple=True,
            type=multipliers,
            callback=_unclaimed,
            metavar="[PATTERN:]lr_mult=N,decay_mult=N",
            help="For parameters without a blob: all, or those whose names match.",
        ),
        click.option("--skip", multiple=True, metavar="LAYER", help="A layer that the model does without."),
        click.option("--reshaped", multiple=True, metavar="LAYER", help="A layer of another shape in the model."),
        click.option("--names", type=InputPath(), metavar="FILE.toml", help="Which layer is which module."),
        click.option(
            "--model", metavar="MODULE:FACTORY", help="The model: port:Net, 'port.py:Net(3, classes=11)', ..."
        ),
    ):
        function = option(function)
    return function


def accept_options(function: Callable[..., object]) -> Callable[..., object]:
    """What is known to differ and accepted, and whether layers count."""
    kinds = ", ".join((*FaultKind, "model:PATTERN"))
    for option in (
        click.option("--strict", is_flag=True, help="A layer's setting that differs from the net's is wrong, too."),
        click.option(
            "--accept",
            multiple=True,
            metavar="KIND",
            help=f"A kind of departure that you know of: it makes nothing wrong. One of {kinds} "
            "(model:features.3.stride, say).",
        ),
    ):
        function = option(function)
    return function


def accumulation_option(function: Callable[..., object]) -> Callable[..., object]:
    """What the training loop does with the gradients of ``iter_size`` passes."""
    return click.option(
        "--accumulation",
        type=click.Choice(["sum", "mean"]),
        default="sum",
        show_default=True,
        help="Your loop sums the gradients of iter_size passes, as Caffe, or averages them, as most trainers do.",
    )(function)


def report_options(function: Callable[..., object]) -> Callable[..., object]:
    """The options that say where the report goes, and as what."""
    for option in (
        click.option(
            "--only",
            type=click.Choice(["wrong"]),
            help="In text, only the checks and rows that are not right.",
        ),
        click.option("--full", is_flag=True, help="In text, every row, however many there are."),
        click.option("--force", is_flag=True, help="Replace files that exist."),
        click.option(
            "--format",
            "style",
            type=click.Choice([style for style, one in FORMATS.items() if one.printed]),
            default="text",
            show_default=True,
            help="What is printed; a page goes into a file: --report FILE.html.",
        ),
        click.option(
            "--report",
            "report_files",
            multiple=True,
            type=click.Path(),
            callback=known_suffixes,
            metavar="FILE",
            help=f"Write the report: {', '.join(REPORTS)}; several times for several.",
        ),
    ):
        function = option(function)
    return function


def read_model(model: str | None, names: str | None) -> tuple[nn.Module | None, dict[str, str] | None]:
    """The model that ``--model`` names, and the names that ``--names`` gives it."""
    from caffe2torch.binding.names import read_names
    from caffe2torch.cli.loading import load_model

    return None if model is None else load_model(model), None if names is None else read_names(names)


@contextlib.contextmanager
def draft_to(path: str | None, *, force: bool) -> Iterator[None]:
    """Where net and model do not bind completely, write a names file to complete; the error then names it."""
    from caffe2torch.binding.messages import IncompleteBindingError
    from caffe2torch.outputs import write_files

    try:
        yield
    except IncompleteBindingError as error:
        if path is not None:
            write_files({path: error.draft}, force=force)
            say(f"wrote {path}\n", err=True)
            error.hint = f"complete the draft in {path}, and give it to --names; or {error.hint}"
        else:
            error.hint = f"{error.hint}; --write-names FILE.toml writes a draft to complete"
        raise


def read_files(files: tuple[str, ...]) -> NetRecipe:
    """The recipe of ``NET SOLVER``, of ``NET`` alone, or of a ``SOLVER`` that names or holds its net."""
    from caffe2torch.reading import read_recipe

    if not 1 <= len(files) <= 2:
        raise click.UsageError(f"expected a net and a solver prototxt, got {len(files)} files")
    asked = {**click.get_current_context().meta.get(READING, {})}
    inputs, defines = dict(asked.pop("inputs", ())), dict(asked.pop("defines", ()))
    return read_recipe(*files, inputs=inputs, defines=defines, **asked)


def refuse_reading_options() -> None:
    """Refuse options that say how prototxts are read, where there are none."""
    if stated := click.get_current_context().meta.get(READING):
        options = ", ".join(f"--{name.removesuffix('s')}" for name in stated)
        raise click.UsageError(f"{options}: say how prototxts are read, and a lock needs none")
