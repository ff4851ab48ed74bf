"""Source to a syntax tree that keeps its comments, and back to text."""

from __future__ import annotations

import ast
import copy
import io
import re
import tokenize
from collections.abc import Sequence
from itertools import pairwise

WIDTH = 120

__all__ = ["comments_of", "parse_with_comments", "printed"]


def parse_with_comments(source: str) -> ast.Module:
    """Parse a module; each statement gets its comments: those behind it, and those on the lines before it."""
    module = ast.parse(source)
    statements = sorted((node for node in ast.walk(module) if isinstance(node, ast.stmt)), key=_first_line)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            owner = next(node for node in statements if _last_line(node) >= token.start[0])
            comments_of(owner).append(token.string.split("  # type:")[0])
    return module


def comments_of(statement: ast.stmt) -> list[str]:
    """The comments that ``parse_with_comments`` found for a statement, to read or to change."""
    comments: list[str] = statement.__dict__.setdefault("comments", [])
    return comments


def printed(statements: Sequence[ast.stmt], indent: str = "") -> list[str]:
    """The lines of a block, each comment on a line of its own above what it speaks of."""
    lines: list[str] = []
    for i, statement in enumerate(statements):
        if i and isinstance(statement, ast.FunctionDef):
            lines.append("")
        lines += [f"{indent}{comment}" for comment in comments_of(statement)]
        if i == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            lines += f'{indent}"""{statement.value.value!s}"""'.split("\n")
        else:
            lines += _statement(statement, indent)
    return lines


def _text(node: ast.AST, indent: str) -> list[str]:
    """A statement without blocks in it, as lines: double quotes, no more than ``WIDTH`` wide where it can be split."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
        values = ", ".join(ast.unparse(value) for value in node.value.elts)
        text = f"{ast.unparse(node.targets[0]).strip('()')} = {values}"
    else:
        text = ast.unparse(node)
    if isinstance(node, ast.FunctionDef):
        text = re.sub(r"(?<=[^\s=])=(?=[^\s=])", " = ", text)
    quoted = re.sub(r"(?<![\w\"])(f?)'([^'\"\\]*)'", r'\1"\2"', text)
    return [part for line in quoted.split("\n") for part in _split(indent + line)]


def _split(line: str) -> list[str]:
    """A line that is too long, opened at the longest of its outermost brackets, one element a line."""
    if len(line) <= WIDTH:
        return [line]
    depth, groups = 0, []
    for i, character in enumerate(line):
        if character in "([{":
            depth += 1
            if depth == 1:
                commas = [i]
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                groups.append([*commas, i])
        elif character == "," and depth == 1:
            commas.append(i)
    commas = max(groups, key=lambda group: group[-1] - group[0])
    indent = line[: len(line) - len(line.lstrip())]
    elements = [line[begin + 1 : end].strip() for begin, end in pairwise(commas)]
    if len(elements) == 1 and (parts := re.fullmatch(r"(.*) (for \w+ in .*)", elements[0])) and _closes(parts[1]):
        inner = [piece for part in parts.groups() for piece in _split(f"{indent}    {part}")]  # a comprehension
    else:
        inner = [piece for element in elements if element for piece in _split(f"{indent}    {element},")]
    return [line[: commas[0] + 1], *inner, indent + line[commas[-1] :]]


def _closes(text: str) -> bool:
    """Whether each bracket that is opened in ``text`` is closed in it."""
    return all(text.count(opened) == text.count(closed) for opened, closed in ("()", "[]", "{}"))


def _statement(node: ast.stmt, indent: str) -> list[str]:
    inner = indent + "    "
    match node:
        case ast.If(test, body, orelse):
            hollow_if = ast.If(test, [ast.Pass()], [])
            lines = [*_text(hollow_if, indent)[:-1], *printed(body, inner)]
            if len(orelse) == 1 and isinstance(orelse[0], ast.If):
                first, *rest = _statement(orelse[0], indent)
                return [*lines, f"{indent}el{first.strip()}", *rest]
            return [*lines, f"{indent}else:", *printed(orelse, inner)] if orelse else lines
        case ast.Try(body, handlers, _, last):
            lines = [f"{indent}try:", *printed(body, inner)]
            for handler in handlers:
                lines += [f"{indent}except {ast.unparse(handler.type or ast.Name('Exception'))}:"]
                lines += printed(handler.body, inner)
            return [*lines, f"{indent}finally:", *printed(last, inner)] if last else lines
        case ast.FunctionDef() | ast.ClassDef() | ast.For() | ast.With():
            hollow = copy.copy(node)
            hollow.body = [ast.Pass()]
            lines = [*_text(hollow, indent)[:-1], *printed(node.body[:1], inner)]
            if isinstance(node, ast.ClassDef):
                lines.append("")
            return [*lines, *printed(node.body[1:], inner)]
    return _text(node, indent)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _last_line(node: ast.stmt) -> int:
    """Where a statement ends that has no block; a block's own statements come after it."""
    has_block = hasattr(node, "body") or isinstance(node, ast.Match)
    return _first_line(node) - 1 if has_block else node.end_lineno or 0
