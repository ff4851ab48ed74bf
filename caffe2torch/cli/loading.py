"""Import a model's factory and call it, with what a user's code may do on the way turned into one clear error."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from caffe2torch.errors import ModelError, describe
from caffe2torch.wording import did_you_mean

__all__ = ["call_factory", "load_factory", "load_model", "parse_spec"]


def load_factory(text: str) -> Callable[..., Any]:
    """The factory of ``MODULE:FACTORY``, with its arguments bound if the text has some.

    Raises ``ModelError`` when it cannot be imported or found, or cannot be called.
    """
    spec = parse_spec(text)
    found = _find(spec)
    if not callable(found):
        raise ModelError(f"{spec.factory!r} in {spec.module} is no class or function, but {_kind(found)}")

    def factory(*args: Any, **kwargs: Any) -> Any:
        with _importable(spec):
            return found(*args, *spec.args, **{**spec.kwargs, **kwargs})

    return factory


def call_factory(text: str, *args: Any) -> Any:
    """What the factory that ``text`` names makes of ``args``, an optimizer of a model say.

    Raises ``ModelError`` as ``load_factory`` does, and when the factory raises.
    """
    factory = load_factory(text)
    try:
        return factory(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's function raises, SystemExit included
        takes = f"it is called with {len(args)} arguments" if args else "it is called without arguments"
        hint = f"{takes}, and gives what the option is about" if isinstance(error, TypeError) else None
        raise ModelError(f"{text} raises {describe(error)}", where=_line(error), hint=hint) from error


def load_model(text: str) -> nn.Module:
    """Build the model that ``text`` names; a module that is built already is taken as it is.

    Raises ``ModelError`` when the factory cannot be found, raises, or returns something that is no ``nn.Module``.
    """
    spec = parse_spec(text)
    if spec.module == "torchvision" and "." not in spec.factory:
        return _torchvision(spec)
    found = _find(spec)
    if isinstance(found, nn.Module) and not spec.called:
        return found
    if not callable(found):
        raise ModelError(f"{spec.factory!r} in {spec.module} is no class or function, but {_kind(found)}")
    with _importable(spec):
        return _built(spec, found, spec.args, spec.kwargs)


def _torchvision(spec: Spec) -> nn.Module:
    try:
        from torchvision import models  # type: ignore[import-untyped]  # it ships no types
    except ImportError:
        raise ModelError(
            f"{spec.text!r} needs torchvision, which is not installed", hint="pip install torchvision"
        ) from None
    try:
        builder = models.get_model_builder(spec.factory)
    except ValueError:
        raise ModelError(
            f"torchvision has no model {spec.factory!r}", hint=did_you_mean(spec.factory, models.list_models())
        ) from None
    weightless = {name: None for name in inspect.signature(builder).parameters if name.startswith("weights")}
    return _built(spec, builder, spec.args, {**weightless, **spec.kwargs})


def _built(spec: Spec, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    try:
        model = factory(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's constructor raises
        raise ModelError(
            f"{spec.text} raises {describe(error)}",
            where=_line(error),
            hint=f"give it arguments: '{spec.module}:{spec.factory}(...)'" if isinstance(error, TypeError) else None,
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.text} returns {_kind(model)}", expected="a torch.nn.Module")
    return model


def _line(error: BaseException) -> str | None:
    """The place in the user's own code that an error comes from: the last one that no installed package holds."""
    installed = tuple({*sysconfig.get_paths().values(), str(Path(__file__).parent.parent)})
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(installed)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own and not own[-1].filename.startswith("<") else None


def _find(spec: Spec) -> Any:
    """The object that the spec names, from its module or script."""
    found: Any = _imported(spec)
    for part in spec.factory.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            raise ModelError(f"{spec.module} has no {part!r}", hint=did_you_mean(part, public))
        found = getattr(found, part)
    return found


def _imported(spec: Spec) -> Any:
    script = Path(spec.module)
    try:
        with _importable(spec):
            if script.suffix != ".py":
                return importlib.import_module(spec.module)
            if not script.is_file():
                raise ModelError(f"there is no script {spec.module!r}")
            name = script.stem
            loader = importlib.util.spec_from_file_location(name, script.resolve())
            if loader is None or loader.loader is None:
                raise ModelError(f"{spec.module!r} cannot be imported")
            module = importlib.util.module_from_spec(loader)
            sys.modules.setdefault(name, module)  # dataclasses and pickle look a class up by its module
            loader.loader.exec_module(module)
            return module
    except (ModelError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        missing = f"there is no module {error.name!r}"
        if error.name == spec.module.partition(".")[0]:
            raise ModelError(
                missing, hint="run from its folder, install it, or name the script: path/to/it.py:Net"
            ) from None
        raise ModelError(f"{spec.module} cannot be imported: {missing}") from error
    except BaseException as error:  # whatever a user's module does while it is imported
        raise ModelError(
            f"{spec.module} raises, while it is imported, {describe(error)}", where=_line(error)
        ) from error


@contextlib.contextmanager
def _importable(spec: Spec) -> Iterator[None]:
    """Import as Python would: from the working directory, and from a script's own folder; prints go to stderr."""
    script = Path(spec.module)
    folders = [str(script.resolve().parent)] if script.suffix == ".py" else []
    before = list(sys.path)
    sys.path[:0] = [*folders, str(Path.cwd())]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = before


def _kind(value: object) -> str:
    return "nothing" if value is None else f"an object of type {type(value).__name__}"


# Models by what a command line can say: ``MODULE:FACTORY``, a script's path, a name of torchvision's, arguments.
#
# ==============================  =====================================================================
# ``port.nets:Net``               class or function ``Net`` of the module ``port.nets``, called
# ``port.nets:Net(3, width=64)``  the same with arguments, which are Python literals and nothing else
# ``path/to/train.py:build``      ``build`` of a script, which is imported as if its folder were on the path
# ``torchvision:resnet50``        ``torchvision.models.get_model("resnet50")``, without pretrained weights
# ==============================  =====================================================================


@dataclass(frozen=True, slots=True)
class Spec:
    """``module`` (or a script's path), the dotted name of the factory in it, and its literal arguments.

    ``called``: whether the text has parentheses.
    """

    text: str
    module: str
    factory: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    called: bool = False


def parse_spec(text: str) -> Spec:
    """Take ``MODULE:FACTORY`` or ``MODULE:FACTORY(ARGUMENTS)`` apart; nothing is imported or evaluated.

    Raises ``ModelError`` for any other form, and for arguments that are no literals.

    >>> spec = parse_spec("nets/segnet.py:Net(4, classes=['crop', 'weed'])")
    >>> spec.module, spec.factory, spec.args, spec.kwargs
    ('nets/segnet.py', 'Net', (4,), {'classes': ['crop', 'weed']})
    """
    head, parenthesis, _ = text.partition("(")
    module, colon, name = head.rpartition(":")
    if not colon or not module or not all(part.isidentifier() for part in name.strip().split(".")):
        raise ModelError(
            f"{text!r} does not say where a model is",
            expected="MODULE:FACTORY, path/to/script.py:FACTORY or torchvision:NAME, with or without (arguments)",
            hint=f"name the factory: {text}:Net" if text.endswith(".py") else None,
        )
    if not parenthesis:
        return Spec(text, module, name.strip())
    try:
        call = ast.parse(text[len(module) + 1 :].strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != name.strip():
            raise ValueError
        if len({keyword.arg for keyword in call.keywords} - {None}) < len(call.keywords):
            raise ValueError  # ** or a name given twice
        args = tuple(ast.literal_eval(one) for one in call.args)
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ModelError(
            f"{text!r} is not one call with literal arguments",
            expected="numbers, strings, True, False, None, and lists, tuples and dicts of them",
        ) from None
    return Spec(text, module, name.strip(), args, kwargs, called=True)
