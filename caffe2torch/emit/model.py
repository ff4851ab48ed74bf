"""A built net as a Python file that needs torch alone: modules by layer, and a straight forward pass."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from caffe2torch.emit.definitions import MODEL, definitions, import_lines, known
from caffe2torch.errors import UnsupportedError
from caffe2torch.models import functions
from caffe2torch.models.build_net import CaffeNet, identifier
from caffe2torch.models.builders import Spec
from caffe2torch.models.program import Program, Step, Trace, program

__all__ = ["model_source"]

_WIDTH = 120


def model_source(model: CaffeNet, *, loss: bool = False) -> str:
    """Python source of a class that computes what ``model`` does, under the same names: weights load into both.

    Args:
        model: What ``build_model`` gave.
        loss: With a method ``loss`` of all inputs, as the model has it.

    Raises:
        UnsupportedError: a layer on the way to the results that is not known, or that a factory made.
    """
    return _Writer(model, loss).text()


class _Writer:
    def __init__(self, model: CaffeNet, loss: bool) -> None:
        self.model = model
        self.methods = {"forward": "predictions", **({"loss": "losses"} if loss else {})}
        self.used: dict[str, Step] = {}  # module -> its first step
        self.helpers: set[str] = set()

    def text(self) -> str:
        methods = [line for method in self.methods for line in self._method(method)]
        missing = [step for step in self.used.values() if self.model._specs.get(step.module) is None]
        if missing:
            raise UnsupportedError(
                "the net has layers that no file can be written for",
                found=", ".join(f"{step.layer.name} ({step.layer.type})" for step in missing),
                hint="write their modules by hand, and build the net with build_model(recipe, layers=...)",
            )
        body = [*self._constructor(), *methods]
        recipe = self.model.recipe
        source = PurePath(recipe.sources[0].file).name if recipe.sources else "a recipe"
        name = recipe.net_name or "net"
        class_name = "".join(part[:1].upper() + part[1:] for part in re.findall(r"[A-Za-z0-9]+", name)) or "Net"
        class_name = class_name if class_name[0].isalpha() else f"Net{class_name}"
        helpers = definitions(self.helpers, MODEL)
        head = [
            f'"""{_comment(name)} as {_comment(source)} states it; needs torch alone."""',
            "",
            "from __future__ import annotations",
            "",
            *import_lines("\n".join([*helpers, "class _(nn.Module):", *body])),
            "",
            "",
            *[line for helper in helpers for line in (*helper.splitlines(), "", "")],
            f"class {class_name}(nn.Module):",
            f'    """The net; modules bear the layers\' names, ``# {_comment(source)}:n`` is where each is stated."""',
            "",
        ]
        return "\n".join([*head, *body]).rstrip() + "\n"

    def _constructor(self) -> Iterator[str]:
        yield "    def __init__(self) -> None:"
        yield "        super().__init__()"
        for name, step in self.used.items():
            spec = self.model._specs.get(step.module)
            assert spec is not None
            if not spec.target.__module__.startswith("torch"):
                self.helpers.add(spec.target.__name__)
            if spec.is_module:
                place = step.layer.where
                was = "" if step.layer.name == name else f", {_comment(step.layer.name)}"
                yield from _fitted(
                    f"        self.{name} = {_call(spec)}", f"# {PurePath(place.file).name}:{place.line}{was}"
                )
        yield from self._shared()
        yield ""

    def _shared(self) -> Iterator[str]:
        """Parameters that several layers share, and those that do not learn."""
        first: dict[int, str] = {}
        for name in self.used:
            for attribute, parameter in self.model.get_submodule(name).named_parameters():
                owner = first.setdefault(id(parameter), f"self.{name}.{attribute}")
                if owner != f"self.{name}.{attribute}":
                    yield f"        self.{name}.{attribute} = {owner}"
                elif not parameter.requires_grad:
                    yield f"        {owner}.requires_grad_(False)  # its lr_mult is 0"

    def _method(self, method: str) -> Iterator[str]:
        bodies = {name: self._body(name, method) for name in ("TRAIN", "TEST")}
        (inputs, result, train), (others, _, test) = bodies["TRAIN"], bodies["TEST"]
        names = list(dict.fromkeys((*inputs, *others)))
        optional = [
            f"{name}: Tensor" + ("" if name in inputs and name in others else " | None = None") for name in names
        ]
        yield from _signature(method, sorted(optional, key=lambda one: "None" in one), result)
        if train == test or not test:
            yield from (f"        {line}" for line in train)
        else:
            yield "        if not self.training:"
            yield from (f"            {line}" for line in test)
            yield from (f"        {line}" for line in train)
        yield ""

    def _body(self, phase: str, method: str) -> tuple[list[str], str, list[str]]:
        """Names of the inputs, what is returned, and the lines of a method in a phase."""
        trace = self.model._phases[phase].trace
        if method == "loss":
            return self._loss(trace)
        steps = program(trace, trace.predictions, merge=False)
        names = _variables(trace, steps)
        lines = [self._line(trace, step, names) for step in steps.steps]
        inputs = [names[value] for _, value in steps.inputs]
        if len(steps.results) == 1:
            return inputs, "Tensor", [*lines, f"return {names[steps.results[0]]}"]
        pairs = ", ".join(f"{_quoted(trace.names[value])}: {names[value]}" for value in steps.results)
        return inputs, "dict[str, Tensor]", [*lines, f"return {{{pairs}}}"]

    def _loss(self, trace: Trace) -> tuple[list[str], str, list[str]]:
        """What follows from what ``forward`` gives."""
        if not trace.losses:
            return [], "Tensor", []
        before = program(trace, trace.predictions)
        steps = program(trace, [value for value, _ in trace.losses], merge=False, given=trace.predictions)
        names = _variables(trace, steps, trace.predictions)
        names.update({value: identifier(name, ()) for name, value in before.inputs if value not in names})
        given = ", ".join(names[value] for _, value in before.inputs)
        if len(trace.predictions) == 1:
            lines = [f"{names[trace.predictions[0]]} = self({given})"]
        else:
            lines = [f"found = self({given})"]
            names.update({value: f"found[{_quoted(trace.names[value])}]" for value in trace.predictions})
        lines += [self._line(trace, step, names) for step in steps.steps]
        terms = [f"{names[value]}.sum()" + f" * {weight}" * (weight != 1) for value, weight in trace.losses]
        inputs = [names[value] for _, value in trace.inputs if value in {v for _, v in (*before.inputs, *steps.inputs)}]
        return inputs, "Tensor", [*lines, f"return {' + '.join(terms)}"]

    def _line(self, trace: Trace, step: Step, names: dict[int, str]) -> str:
        self.used.setdefault(step.module, step)
        spec = self.model._specs.get(step.module)
        outside = {value for _, value in trace.inputs}
        bottoms = [
            names[value] + ".detach()" * (place in step.detached and value not in outside)
            for place, value in enumerate(step.inputs)
        ]
        tops = ", ".join(names[value] for value in step.outputs) + "," * (len(step.outputs) == 1 and _is_tuple(spec))
        if spec is not None and not spec.is_module:
            call = (
                f"{_name(spec.target)}({', '.join([*bottoms, *(f'{k}={_quoted(v)}' for k, v in spec.kwargs.items())])})"
            )
        else:
            call = f"self.{step.module}({', '.join(bottoms)})"
        return f"{tops} = {call}" if tops else call


def _is_tuple(spec: Spec | None) -> bool:
    """Whether a function gives a tuple even for one top."""
    return spec is not None and spec.target in (functions.slice_tops, functions.split, functions.filtered)


def _variables(trace: Trace, steps: Program, given: Iterable[int] = ()) -> dict[int, str]:
    """A variable for every value: its blob's name, unless an older value of the blob is still needed."""
    last = {value: place for place, step in enumerate(steps.steps) for value in step.inputs}
    last.update(dict.fromkeys(steps.results, len(steps.steps)))
    reserved = {"self", "torch", "nn", "F", "math", *known(MODEL)}
    names: dict[int, str] = {}
    holder: dict[str, int] = {}
    made = [(-1, value) for value in (*(value for _, value in steps.inputs), *given)]
    made += [(place, value) for place, step in enumerate(steps.steps) for value in step.outputs]
    for place, value in made:
        if value not in names:
            taken = reserved | {name for name, other in holder.items() if last.get(other, -1) > place}
            names[value] = identifier(trace.names[value], taken)
            holder[names[value]] = value
    return names


def _signature(method: str, inputs: list[str], result: str) -> Iterator[str]:
    line = f"    def {method}(self{''.join(f', {one}' for one in inputs)}) -> {result}:"
    if len(line) <= _WIDTH:
        yield line
        return
    yield f"    def {method}("
    yield from (f"        {one}," for one in ("self", *inputs))
    yield f"    ) -> {result}:"


def _fitted(code: str, comment: str) -> Iterator[str]:
    if len(code) + len(comment) + 2 <= _WIDTH:
        yield f"{code}  {comment}"
        return
    yield f"        {comment}"
    yield code


def _call(spec: Spec) -> str:
    arguments = [*map(_quoted, spec.args), *(f"{name}={_quoted(value)}" for name, value in spec.kwargs.items())]
    return f"{_name(spec.target)}({', '.join(arguments)})"


def _name(target: Any) -> str:
    """How a file that imports ``torch`` and ``nn`` calls it."""
    if isinstance(target, type) and target.__module__.startswith("torch.nn"):
        return f"nn.{target.__name__}"
    return target.__name__ if target.__module__.startswith("caffe2torch") else f"torch.{target.__name__}"


def _quoted(value: object) -> str:
    """A literal, strings in double quotes."""
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str) else repr(value)


def _comment(text: str) -> str:
    """Text from a prototxt that cannot end a comment or a docstring."""
    return re.sub(r'[\\"\r\n\x00-\x1f\x7f-\x9f\u2028\u2029]', "?", text)
