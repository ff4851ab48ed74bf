"""Which definitions of our own source an emitted file needs, each cut down to what one solver needs of it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from caffe2torch.emit.folding import Folding
from caffe2torch.emit.printing import parse_with_comments, printed
from caffe2torch.recipe import SolverSettings

__all__ = ["Carried", "carry"]

MODULES = (
    "recipe",
    "solver/float32",
    "solver/lr_policy",
    "optim/build",
    "optim/norm",
    "optim/step",
    "optim/solvers",
    "optim/schedule",
)
"""Where definitions may come from, in the order in which an emitted file has them. They are read, not imported."""

NOT_OF_THE_SOLVER = ("snapshot/fillers", "binding/layout")
"""Where definitions come from that no solver has a say in."""

CALLED_BY_TORCH = {"step", "get_lr", "state_dict", "load_state_dict"}


@dataclass(frozen=True, slots=True)
class Carried:
    """By name the modules to import from ("" for modules themselves), definitions as lines, settings they read."""

    imports: dict[str, str]
    definitions: dict[str, list[str]]
    constants: dict[str, Any]


def carry(solver: SolverSettings, roots: Sequence[str]) -> Carried:
    """The definitions named ``roots`` and all that they need, for ``solver`` and no other."""
    folding = Folding(solver)
    definitions, imports = _ours(MODULES)
    others, other_imports = _ours(NOT_OF_THE_SOLVER)
    imports = other_imports | imports
    folded: dict[str, ast.stmt] = {}
    wanted = set(roots)
    while wanted:
        name = wanted.pop()
        if name in definitions:
            folded[name] = _brief(_without_dead_names(folding.block([definitions[name]])[0]))
        else:
            folded[name] = _brief(others[name])
        wanted |= _names(folded[name]) & (definitions | others).keys() - folded.keys()
    _drop_idle_methods(list(folded.values()))
    kept = _reached(folded, roots)
    used = set().union(*(_names(folded[name]) for name in kept))
    return Carried(
        {name: origin for name, origin in imports.items() if name in used},
        {name: printed([folded[name]]) for name in definitions | others if name in kept},
        {name: value for name, value in folding.constants.items() if name in used},
    )


def _ours(modules: Sequence[str]) -> tuple[dict[str, ast.stmt], dict[str, str]]:
    """What modules of ours define by name, and by name what they import from elsewhere."""
    definitions: dict[str, ast.stmt] = {}
    imports: dict[str, str] = {}
    for module in modules:
        text = resources.files("caffe2torch").joinpath(f"{module}.py").read_text(encoding="utf-8")
        for node in parse_with_comments(text).body:
            match node:
                case ast.Import(names):
                    imports |= {alias.name: "" for alias in names}
                case ast.ImportFrom(origin, names) if not (origin or "").startswith("caffe2torch"):
                    imports |= {alias.name: str(origin) for alias in names}
                case ast.ImportFrom(_, names):  # from ourselves: under another name, that is a definition
                    renamed = [alias for alias in names if alias.asname]
                    definitions |= {str(a.asname): ast.parse(f"{a.asname} = {a.name}").body[0] for a in renamed}
                case ast.Assign([ast.Name(name)]) | ast.ClassDef(name) | ast.FunctionDef(name):
                    definitions[name] = node
    return definitions, imports


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _reached(definitions: dict[str, ast.stmt], roots: Sequence[str]) -> set[str]:
    """The names of the definitions that ``roots`` lead to."""
    reached: set[str] = set()
    wanted = set(roots)
    while wanted:
        name = wanted.pop()
        if name in definitions and name not in reached:
            reached.add(name)
            wanted |= _names(definitions[name])
    return reached


def _drop_idle_methods(definitions: Sequence[ast.stmt]) -> None:
    """Drop from classes the methods and attributes that nothing else mentions any more, until none is left."""
    classes = [node for node in definitions if isinstance(node, ast.ClassDef)]
    while True:
        mentions = [(getattr(member, "name", ""), _attributes(member)) for node in classes for member in node.body]
        before = sum(len(node.body) for node in classes)
        for node in classes:
            node.body = [member for member in node.body if not _is_idle(member, mentions)]
        if sum(len(node.body) for node in classes) == before:
            return


def _is_idle(member: ast.stmt, mentions: Sequence[tuple[str, set[str]]]) -> bool:
    match member:
        case ast.FunctionDef(name) | ast.Assign([ast.Name(name)]):
            wanted = name.startswith("__") or name in CALLED_BY_TORCH
            return not wanted and not any(name in attributes for other, attributes in mentions if other != name)
    return False


def _attributes(node: ast.AST) -> set[str]:
    return {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}


def _without_dead_names(node: ast.stmt) -> ast.stmt:
    """A function without assignments to names that nothing reads, and without defaulted parameters of that kind."""
    if not isinstance(node, ast.FunctionDef):
        return node
    while True:
        before = ast.dump(node)
        read = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load)}
        node.body = [kept for statement in node.body if (kept := _reading(statement, read))]
        while node.args.defaults and node.args.args[-1].arg not in read:
            node.args.args.pop()
            node.args.defaults.pop()
        if ast.dump(node) == before:
            return node


def _reading(statement: ast.stmt, read: set[str]) -> ast.stmt | None:
    """What is left of an assignment to names of which only those in ``read`` are read."""
    match statement:
        case ast.Assign([ast.Name(name)]) if name not in read:
            return None
        case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
            pairs = zip(targets, values, strict=True)
            kept = [(target, value) for target, value in pairs if isinstance(target, ast.Name) and target.id in read]
            if not kept:
                return None
            if len(kept) == 1:
                statement.targets, statement.value = [kept[0][0]], kept[0][1]
            else:
                statement.targets = [ast.Tuple([target for target, _ in kept], ast.Store())]
                statement.value = ast.Tuple([value for _, value in kept], ast.Load())
    return statement


def _brief(node: ast.stmt) -> ast.stmt:
    """A function with the first paragraph of its docstring: further ones speak of what is not carried."""
    if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node, clean=False)):
        first, *rest = docstring.split("\n\n")
        node.body[0] = ast.Expr(ast.Constant(first + "\n    " if rest and "\n" in first else first))
    return node
