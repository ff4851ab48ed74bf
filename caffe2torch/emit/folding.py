"""Our own source with a solver put in: settings become constants, branches that it never takes are left out."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from caffe2torch.emit.printing import comments_of
from caffe2torch.recipe import LrPolicy, PolicyType, Regularization, SolverSettings, SolverType
from caffe2torch.solver import requirements as solver_plan

__all__ = ["Folding"]

UNKNOWN = object()
"""What an expression is that depends on more than the solver."""


class Folding(ast.NodeTransformer):
    """Evaluates what depends on ``solver`` alone, and collects in ``constants`` the settings that are still read.

    In the source, ``solver``, ``settings`` and ``self.solver`` stand for the solver, ``policy`` for its policy. Handed
    on as a whole they vanish, as parameter, argument and attribute; a number of theirs becomes a constant's name;
    where they alone decide, the decision is made.
    """

    def __init__(self, solver: SolverSettings) -> None:
        self.constants: dict[str, Any] = {}
        self.names: dict[str, Any] = {
            "solver": solver,
            "settings": solver,
            "self": SimpleNamespace(solver=solver),
            "policy": solver.policy,
            **{kind.__name__: kind for kind in (PolicyType, Regularization, SolverType)},
            **{name: getattr(solver_plan, name) for name in solver_plan.__all__},
            "max": max,
            "__builtins__": {},
        }

    def value(self, node: ast.expr) -> Any:
        """What ``node`` evaluates to, or ``UNKNOWN``."""
        if not all(inner.id in self.names for inner in ast.walk(node) if isinstance(inner, ast.Name)):
            return UNKNOWN
        try:
            return eval(compile(ast.fix_missing_locations(ast.Expression(node)), "<ours>", "eval"), self.names)
        except AttributeError:  # of ``self``, which is here for its solver alone
            return UNKNOWN

    def is_whole(self, node: ast.expr) -> bool:
        """Whether ``node`` is the solver or its policy as a whole."""
        return isinstance(node, ast.Name | ast.Attribute) and isinstance(self.value(node), SolverSettings | LrPolicy)

    def truth(self, test: ast.expr) -> bool | None:
        """Whether a test holds; ``None`` if that is seen only when the emitted file runs."""
        match test:
            case ast.BoolOp(op, parts):
                truths = [self.truth(part) for part in parts]
                decisive = isinstance(op, ast.Or)
                if decisive in truths:
                    return decisive
                return None if None in truths else not decisive
            case ast.Compare(ast.Name("iteration"), [ast.Lt()], [bound]) if self.value(bound) == 0:
                return False  # no iteration comes before the first
        value = self.value(test)
        return None if value is UNKNOWN else bool(value)

    # Statements

    def block(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """The statements that are left of a block, up to one that ends it."""
        left: list[ast.stmt] = []
        for statement in statements:
            choices = _choices(statement)
            new = self.visit(statement)
            left += new if isinstance(new, list) else [new] if new else []
            if isinstance(statement, ast.Return) and choices > _choices(statement):
                comments_of(statement).clear()  # they speak of the choice
            if left and isinstance(left[-1], ast.Return | ast.Raise):
                break
        match left:
            case [*_, ast.Assign([ast.Name(name)], value) as last, ast.Return(ast.Name(returned))] if name == returned:
                left[-2:] = [ast.copy_location(ast.Return(value), last)]
                comments_of(left[-1]).extend(comments_of(last))
        return left

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Blocks first, as wholes: what follows a return that is always reached goes."""
        names = [name for name in ("body", "orelse", "finalbody") if isinstance(getattr(node, name, None), list)]
        blocks = {name: self.block(getattr(node, name)) for name in names}
        for name in names:
            setattr(node, name, [])
        super().generic_visit(node)
        for name, block in blocks.items():
            setattr(node, name, block)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """A decided ``if`` leaves one of its blocks."""
        truth = self.truth(node.test)
        return self.generic_visit(node) if truth is None else self.block(node.body if truth else node.orelse)

    def visit_Match(self, node: ast.Match) -> list[ast.stmt]:
        """Only what the solver decides is matched on: one case is left."""
        subject = self.value(node.subject)
        return self.block(next(case.body for case in node.cases if self.applies(case, subject)))

    def applies(self, case: ast.match_case, subject: Any) -> bool:
        """Whether a case is the one for a value."""
        return subject in self.alternatives(case.pattern) and (case.guard is None or bool(self.truth(case.guard)))

    def alternatives(self, pattern: ast.pattern) -> Iterable[Any]:
        """The values that a case is for."""
        match pattern:
            case ast.MatchOr(patterns):
                return [value for one in patterns for value in self.alternatives(one)]
            case ast.MatchValue(value):
                return [self.value(value)]
        raise NotImplementedError(f"a case for {ast.unparse(pattern)}")

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """``self.solver = solver`` goes."""
        return None if self.is_whole(node.value) else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        """``__getstate__`` is there for the solver alone; and what only passes its call on may as well be inherited."""
        self.generic_visit(node)
        own = ", ".join(arg.arg for arg in node.args.args[1:])
        passes_on = ast.unparse(node.body[-1]) == f"super().{node.name}({own})" and len(node.body) <= 2
        return None if passes_on or node.name == "__getstate__" else node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """So do the parameters."""
        node.args = [arg for arg in node.args if arg.arg not in ("solver", "settings", "policy")]
        return self.generic_visit(node)

    # Expressions

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """A decided choice leaves one of its sides."""
        truth = self.truth(node.test)
        return self.generic_visit(node) if truth is None else self.visit(node.body if truth else node.orelse)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Of several conditions, those are left that are not decided."""
        value = self.value(node)
        if value is not UNKNOWN:
            return ast.Constant(value)
        idle = isinstance(node.op, ast.And)  # "and True" says nothing, nor does "or False"
        node.values = [part for part in node.values if self.value(part) is not idle]
        return self.generic_visit(node) if len(node.values) > 1 else self.visit(node.values[0])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A question about the solver is answered; otherwise the solver goes as an argument."""
        value = self.value(node)
        if value is not UNKNOWN:
            return ast.Constant(value)
        node.args = [arg for arg in node.args if not self.is_whole(arg)]
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A setting becomes a constant's name."""
        if not isinstance(node.ctx, ast.Load) or not self.is_whole(node.value):
            return self.generic_visit(node)
        value = self.value(node)
        if value is None or isinstance(value, bool):
            return ast.Constant(value)
        self.constants[node.attr.upper()] = value
        return ast.Name(node.attr.upper(), ast.Load())


def _choices(node: ast.AST) -> int:
    return sum(isinstance(inner, ast.IfExp) for inner in ast.walk(node))
