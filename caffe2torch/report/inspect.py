"""A recipe by itself, before anything is bound: what ``caffe2torch inspect`` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from caffe2torch.recipe import LearnableBlob, NetRecipe, Severity
from caffe2torch.report.markdown import escape, markdown_table, note_items
from caffe2torch.report.solver_table import solver_dict, solver_line
from caffe2torch.report.text import WIDTH, Column, layout, note_text, wrap
from caffe2torch.report.wording import json_text, stated_text, visible
from caffe2torch.verification.report import note_dict
from caffe2torch.wording import shape_text

__all__ = ["recipe_dict", "render_recipe"]

COLUMNS = (
    Column("blob", folds=True),
    Column("type", folds=True),
    Column("role"),
    Column("shape"),
    Column("lr_mult", right=True),
    Column("decay_mult", right=True),
    Column("stated"),
    Column("line", right=True),
)


def render_recipe(recipe: NetRecipe, style: str = "text", *, width: int = WIDTH) -> str:
    """A recipe as ``text``, ``json`` or ``md``. Raises ``ValueError`` for another style."""
    match style:
        case "text":
            return "\n".join(_text(recipe, width)) + "\n"
        case "json":
            return json_text(recipe_dict(recipe))
        case "md":
            return "\n".join(_markdown(recipe)) + "\n"
        case _:
            raise ValueError(f"unknown style {style!r}; there are 'text', 'json' and 'md'")


def recipe_dict(recipe: NetRecipe) -> dict[str, object]:
    """The recipe for JSON: blobs in Caffe's learnable order."""
    return {
        "net": recipe.net_name,
        "solver": None if recipe.solver is None else solver_dict(recipe.solver),
        "blobs": [_blob_dict(blob) for blob in recipe.blobs],
        "notes": [note_dict(note) for note in recipe.notes],
    }


def _blob_dict(blob: LearnableBlob) -> dict[str, object]:
    return {
        "layer": blob.layer,
        "layer_type": blob.layer_type,
        "blob": blob.index,
        "role": blob.role,
        "shape": None if blob.shape is None else list(blob.shape),
        "lr_mult": blob.lr_mult,
        "decay_mult": blob.decay_mult,
        "stated": {"lr_mult": str(blob.stated.lr_mult), "decay_mult": str(blob.stated.decay_mult)},
        "where": str(blob.where),
        "shared_with": [
            {"layer": use.layer, "layer_type": use.layer_type, "blob": use.index, "where": str(use.where)}
            for use in blob.shared_with
        ],
    }


def _text(recipe: NetRecipe, width: int) -> Iterator[str]:
    yield visible(recipe.net_name or "a net without a name")
    if recipe.solver is not None:
        yield from wrap(solver_line(recipe.solver), width)
    yield ""
    yield from layout(COLUMNS, [_cells(blob) for blob in recipe.blobs], width)
    shared = [blob for blob in recipe.blobs if blob.shared_with]
    if shared:
        yield ""
    for blob in shared:
        users = ", ".join(f"{use.layer}/{use.index}" for use in blob.shared_with)
        yield from wrap(visible(f"{blob.name} is shared with {users}"), width)
    if recipe.notes:
        yield ""
        for note in sorted(recipe.notes, key=lambda note: note.severity is not Severity.WARNING):
            yield from wrap(note_text(note), width)
    yield ""
    yield _summary(recipe)


def _markdown(recipe: NetRecipe) -> Iterator[str]:
    yield f"# {escape(recipe.net_name or 'a net without a name')}"
    if recipe.solver is not None:
        yield from ("", escape(solver_line(recipe.solver)))
    yield from ("", _summary(recipe), "")
    titles = ("blob", "type", "role", "shape", "lr_mult", "decay_mult", "stated", "where", "shared with")
    yield from markdown_table(titles, (_markdown_cells(blob) for blob in recipe.blobs))
    if recipe.notes:
        yield from ("", "## Notes", "")
        yield from note_items(recipe.notes)


def _cells(blob: LearnableBlob) -> tuple[str, ...]:
    return (
        visible(blob.name),
        visible(blob.layer_type),
        visible(blob.role),
        shape_text(blob.shape),
        f"{blob.lr_mult:g}",
        f"{blob.decay_mult:g}",
        stated_text(blob),
        f"{blob.where.line}:{blob.where.column}",
    )


def _markdown_cells(blob: LearnableBlob) -> tuple[str, ...]:
    numbers = _cells(blob)[3:-1]
    shared = ", ".join(f"{use.layer}/{use.index}" for use in blob.shared_with)
    names = (escape(blob.name), escape(blob.layer_type), escape(blob.role))
    return *names, *numbers, escape(str(blob.where)), escape(shared)


def _summary(recipe: NetRecipe) -> str:
    """How many blobs there are, by multipliers."""
    counts = Counter((blob.lr_mult, blob.decay_mult) for blob in recipe.blobs)
    total = len(recipe.blobs)
    kinds = ", ".join(f"{count} at ({lr:g}, {decay:g})" for (lr, decay), count in counts.most_common())
    return f"{total} blob{'s' if total != 1 else ''} (lr_mult, decay_mult): {kinds or 'none'}"
