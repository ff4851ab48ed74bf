"""A parsed net to its layers and learnable blobs, as ``Net::Init`` builds them (``net.cpp``), sizes of data unknown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from caffe2torch.errors import NetError, Where
from caffe2torch.net.forks import Dialect, read_dialect, unknown_names
from caffe2torch.net.layer_rules import Node
from caffe2torch.net.layer_settings import layer_settings
from caffe2torch.net.layer_types import blob_rules, top_shapes
from caffe2torch.net.learnable_blobs import Learnables, append_blobs
from caffe2torch.net.phases import NetState, included
from caffe2torch.net.porting_notes import Notes, beyond_the_optimizer
from caffe2torch.net.shape_arithmetic import MisfitError, agree, spell
from caffe2torch.net.upgrade import UpgradedLayer, upgrade
from caffe2torch.prototxt.schema import Parsed
from caffe2torch.recipe import Layer, LearnableBlob, Note, Shape, TrainingRecipe

__all__ = ["NetState", "read_layers", "with_inputs"]

_KEPT = re.compile(r"^((?!.* in (?:Net|Solver)Parameter\b).* in \w+Parameter\b.*); ignored$")
"""What the schema does not know of a layer is not lost: it stands in the layer's settings."""


def read_layers(
    parsed: Parsed, state: NetState | None = None, inputs: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[str, tuple[Layer, ...], tuple[LearnableBlob, ...], tuple[Note, ...]]:
    """A net's name, the layers of this state, its learnable blobs in Caffe's order, and notes.

    ``inputs`` gives shapes of blobs that the file does not state, by blob name; they win over what it states.

    Raises:
        NetError: a net that Caffe refuses: a layer with more ``param`` blocks than blobs, a shared blob whose shape or
            multipliers do not match, settings that fit no blob; or an input that the net does not have.

    >>> from caffe2torch.prototxt.schema import parse_net
    >>> from caffe2torch.recipe import Source
    >>> text = 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    >>> _, _, blobs, _ = read_layers(parse_net(Source("net.prototxt", text)), inputs={"x": (1, 3)})
    >>> [(blob.name, blob.shape) for blob in blobs]
    [('ip/0', (2, 3)), ('ip/1', (2,))]
    """
    state = state or NetState()
    notes = Notes()
    upgraded = upgrade(parsed)
    renamed = {note.where for note in upgraded.notes}
    for note in (*upgraded.notes, *(note for note in parsed.notes if note.where not in renamed)):
        notes.add(replace(note, message=_KEPT.sub(r"\1; kept as written", note.message)))
    names: dict[str, Where] = {}
    unknown_names(parsed.block, "net", names)
    dialect = read_dialect([(layer.type, layer.where) for layer in upgraded.layers], names)
    drafts = [
        _Draft(layer, layer_settings(layer.message, layer.type, layer.block if names else None))
        for layer in upgraded.layers
        if included(layer.message, layer.where, state)
    ]
    walk = _walk(drafts, dialect, inputs or {}, {})
    while walk.learned:  # sizes that an Eltwise showed of a data blob: walk again with them
        walk = _walk(drafts, dialect, inputs or {}, {**walk.known, **walk.learned})
    if strangers := set(inputs or {}) - walk.shapes.keys():
        made = [top for draft in drafts if not draft.layer.message.bottom for top in draft.layer.message.top]
        raise NetError(
            f"the net has no blob {min(strangers)!r} to give a shape to",
            where=parsed.source.file,
            hint="its data blobs: " + (", ".join(map(repr, made)) or "none"),
        )
    for note in walk.notes.finish():
        notes.add(note)
    _explain_missing(walk, upgraded.layers, state, notes)
    layers, blobs = tuple(walk.layers), walk.learnables.finish()
    beyond_the_optimizer(layers, notes)
    return upgraded.net.name, layers, blobs, notes.finish()


@dataclass(frozen=True, slots=True)
class _Draft:
    layer: UpgradedLayer
    settings: Mapping[str, object]


@dataclass(slots=True)
class _Walk:
    """One pass over the layers. ``known`` are the hints that it began with, ``learned`` those that it found."""

    known: Mapping[str, Shape]
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    learned: dict[str, Shape] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    missing: list[tuple[str, str, Where]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    learnables: Learnables = field(default_factory=Learnables)
    notes: Notes = field(default_factory=Notes)


def _walk(
    drafts: Sequence[_Draft], dialect: Dialect, inputs: Mapping[str, tuple[int, ...]], known: dict[str, Shape]
) -> _Walk:
    walk = _Walk(known)
    for draft in drafts:
        layer, message = draft.layer, draft.layer.message
        bottoms, tops = tuple(message.bottom), tuple(message.top)
        for name in bottoms:
            if name not in walk.shapes:
                walk.missing.append((name, message.name, layer.where))
                walk.shapes[name] = inputs.get(name)
        node = Node(
            message.name,
            layer.type,
            draft.settings,
            tuple(walk.shapes[name] for name in bottoms),
            bottoms,
            tops,
            len(message.param),
            dialect,
        )
        blobs = append_blobs(walk.learnables, walk.notes, node, layer)
        shapes = _shape_tops(walk, node, layer, inputs)
        for text in dict.fromkeys(node.assumptions):
            walk.notes.info(layer.where, text)
        for i, (name, shape) in enumerate(zip(tops, shapes, strict=True)):
            in_place = i < len(bottoms) and bottoms[i] == name
            if name in walk.shapes and not in_place and name not in bottoms:
                walk.notes.warn(layer.where, f"blob {name!r} is made by more than one layer; Caffe refuses this net")
            walk.shapes[name] = shape
        walk.layers.append(Layer(message.name, layer.type, bottoms, tops, draft.settings, shapes, blobs, layer.where))
    return walk


def _shape_tops(
    walk: _Walk, node: Node, layer: UpgradedLayer, inputs: Mapping[str, tuple[int, ...]]
) -> tuple[Shape | None, ...]:
    """The shapes of a layer's tops. What Caffe refuses for sizes alone does not change what is learned: a warning."""
    try:
        shapes = list(top_shapes(node))
        if node.type == "Eltwise" and shapes and shapes[0] is not None:
            _learn(walk, node, shapes[0])
        for i, name in enumerate(node.top_names):
            if not node.bottoms and name in walk.known:
                shapes[i] = agree(shapes[i], walk.known[name])
    except MisfitError as misfit:
        text = f"layer {node.name!r} ({node.type}): {misfit.message}; shapes after it are unknown"
        walk.notes.warn(layer.where, text)
        shapes = [None] * len(node.top_names)
    if node.bottoms:
        walk.sources.difference_update(node.top_names)
    else:
        walk.sources.update(set(node.top_names) - inputs.keys())
    for i, name in enumerate(node.top_names):
        if name in inputs:
            given = inputs[name]
            try:
                agree(shapes[i], given)
            except MisfitError:
                walk.notes.warn(
                    layer.where, f"blob {name!r} is {spell(shapes[i])} in the file, and taken as {spell(given)}"
                )
            shapes[i] = given
    return tuple(shapes)


def _learn(walk: _Walk, node: Node, shape: Shape) -> None:
    """An Eltwise whose bottoms must be equal tells the size of a data blob that the file does not state."""
    for name, bottom in zip(node.bottom_names, node.bottoms, strict=True):
        if name in walk.sources and bottom != shape and walk.known.get(name) != shape:
            walk.learned[name] = shape


def _explain_missing(walk: _Walk, layers: Sequence[UpgradedLayer], state: NetState, notes: Notes) -> None:
    """Bottoms that no layer of this state makes: Caffe refuses the net; we know its blobs all the same."""
    rules = [rule for layer in layers for rule in (*layer.message.include, *layer.message.exclude)]
    stages = {stage for rule in rules for stage in rule.stage}
    for name, layer, where in walk.missing:
        text = f"layer {layer!r} takes blob {name!r}, which no layer before it makes in phase {state.phase}"
        if stages - set(state.stages):
            given = ", ".join(state.stages) or "none"
            text += f" (the net's rules ask for the stages {', '.join(sorted(stages))}; given: {given})"
        notes.warn(where, text + "; Caffe refuses this net")


# A recipe whose open sizes are filled in from the shapes of its inputs, after the files were read.


def with_inputs(recipe: TrainingRecipe, inputs: Mapping[str, Sequence[int]]) -> TrainingRecipe:
    """The recipe with every size that follows from ``inputs`` (blob name to shape); sizes it has are kept.

    What ``read_recipe(..., inputs=...)`` does while reading, for a recipe that was read without. Raises ``NetError``
    for a blob that the net does not have, and for shapes that contradict what the file states.
    """
    made = {name for layer in recipe.layers for name in (*layer.bottoms, *layer.tops)}
    for name in inputs:
        if name not in made:
            sources = [top for layer in recipe.layers if not layer.bottoms for top in layer.tops]
            hint = f"its data blobs: {', '.join(map(repr, sources)) or 'none'}"
            raise NetError(f"the net has no blob {name!r} to give a shape to", hint=hint)
    shapes: dict[str, Shape | None] = {name: tuple(shape) for name, shape in inputs.items()}
    sizes: dict[int, Shape | None] = {number: blob.shape for number, blob in enumerate(recipe.blobs)}
    layers = []
    for layer in recipe.layers:
        try:
            found = _visit(layer, shapes, sizes, inputs)
        except MisfitError as misfit:
            raise NetError(f"layer {layer.name!r}: {misfit.message}", where=layer.where, hint=misfit.hint) from None
        shapes.update(zip(layer.tops, found, strict=True))
        layers.append(replace(layer, top_shapes=found))
    blobs = tuple(replace(blob, shape=sizes[number]) for number, blob in enumerate(recipe.blobs))
    return replace(recipe, blobs=blobs, layers=tuple(layers))


def _visit(
    layer: Layer,
    shapes: Mapping[str, Shape | None],
    sizes: dict[int, Shape | None],
    inputs: Mapping[str, Sequence[int]],
) -> tuple[Shape | None, ...]:
    """Fill in the sizes of a layer's blobs; returns the shapes of its tops."""
    bottoms = tuple(shapes.get(name) for name in layer.bottoms)
    node = Node(layer.name, layer.type, layer.settings, bottoms, layer.bottoms, layer.tops, 0, Dialect())
    rules = blob_rules(node) or ()
    if len(rules) == len(layer.blobs):  # else a fork's layer, whose blobs the reader knew better
        for number, rule in zip(layer.blobs, rules, strict=True):
            sizes[number] = _filled(sizes[number], rule.shape)
    found = [_filled(old, new) for old, new in zip(layer.top_shapes, top_shapes(node), strict=True)]
    return tuple(tuple(inputs[top]) if top in inputs else shape for top, shape in zip(layer.tops, found, strict=True))


def _filled(known: Shape | None, found: Shape | None) -> Shape | None:
    """What was known, with what is new where sizes were open."""
    if known is not None and found is not None and len(known) == len(found):
        merged = tuple(new if old is None else old for old, new in zip(known, found, strict=True))
        return agree(known, merged)
    return found if known is None else known
