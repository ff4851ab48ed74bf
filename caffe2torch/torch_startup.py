"""Keep torch from importing its compiler for work that compiles nothing.

Constructing a ``torch.optim`` optimizer and entering a dispatch mode first exclude themselves from compilation
(``torch._disable_dynamo``), and operations on meta tensors ask whether a condition is symbolic. For either torch
imports its compiler and sympy, which takes half as long as importing torch itself.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

__all__ = ["compiler_not_imported"]

_COMPILER = "torch._dynamo"
_SYMBOLIC = "torch.fx.experimental.symbolic_shapes"
_PLAIN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true"), lambda condition: condition
    ),
    "sym_and": lambda *conditions: all(conditions),
    "sym_or": lambda *conditions: any(conditions),
    "sym_eq": lambda one, other: one == other if isinstance(one, int) else [*one] == [*other],
}
"""What functions of that module do with conditions and sizes that are not symbolic."""

_CACHE = "__dynamo_disable"  # the attribute in which torch keeps what ``disable`` returned for a function


class _Postponed(ModuleType):
    """Stands for a module of torch's that is not imported yet, and answers what needs no import.

    Anything else that is asked of it imports the module itself, which takes its place.
    """

    def __init__(self, name: str, answers: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name)
        vars(self).update(answers)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and self.__name__ == _SYMBOLIC:  # ``from ... import`` asks whether it is a package
            raise AttributeError(name)
        self.give_way()
        return getattr(importlib.import_module(self.__name__), name)

    def give_way(self) -> None:
        """Leave ``sys.modules`` to the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextlib.contextmanager
def compiler_not_imported() -> Iterator[None]:
    """While this is active torch does not import its compiler, unless something is compiled.

    Also a decorator. Nothing of it remains afterwards; a compiler that is imported already is left alone.
    """
    excluded: list[Callable[..., Any]] = []

    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        excluded.append(function)
        return function

    answers: dict[str, dict[str, Callable[..., Any]]] = {
        _COMPILER: {"disable": disable, "graph_break": lambda *_: None},  # where nothing compiles there is no graph
        _SYMBOLIC: {name: _unless_symbolic(name, plain) for name, plain in _PLAIN.items()},
    }
    postponed = [_Postponed(name, functions) for name, functions in answers.items() if name not in sys.modules]
    sys.modules.update({module.__name__: module for module in postponed})
    try:
        yield
    finally:
        for module in postponed:
            module.give_way()
        for function in excluded:  # torch excludes it itself the next time
            with contextlib.suppress(AttributeError):
                delattr(function, _CACHE)


def _unless_symbolic(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain`` where all arguments are plain values, else torch's function of this name."""

    def answer(*arguments: Any) -> Any:
        if _is_plain(arguments):
            return plain(*arguments)
        if isinstance(module := sys.modules.get(_SYMBOLIC), _Postponed):
            module.give_way()
        return getattr(importlib.import_module(_SYMBOLIC), name)(*arguments)

    return answer


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, int)
