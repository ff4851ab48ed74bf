"""A parsed net to its layers and learnable blobs, as ``Net::Init`` builds them (``net.cpp``), sizes of data unknown."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from typing import Any, NamedTuple

from caffe2torch.errors import NetError, SourceLocation
from caffe2torch.net.forks import SIGNS_BY_TYPE, Dialect, read_dialect, unknown_names
from caffe2torch.net.layer_rules import Node
from caffe2torch.net.layer_settings import layer_settings
from caffe2torch.net.layer_types import blob_rules, top_shapes
from caffe2torch.net.learnable_blobs import Learnables, append_blobs
from caffe2torch.net.phases import NetState, included
from caffe2torch.net.porting_notes import Notes, beyond_the_optimizer, data_transforms
from caffe2torch.net.shape_arithmetic import MAX_COUNT, MisfitError, agree
from caffe2torch.net.upgrade import UpgradedLayer, UpgradedLayers, upgrade
from caffe2torch.prototxt.schema import Parsed, without_type
from caffe2torch.recipe import Layer, LearnableBlob, NetRecipe, Note, Shape
from caffe2torch.wording import shape_text

__all__ = ["NetState", "read_layers", "with_inputs"]

Inputs = Mapping[str, Sequence[int]]


def read_layers(
    parsed: Parsed, state: NetState | None = None, inputs: Inputs | None = None, tested: NetState | None = None
) -> tuple[str, tuple[Layer, ...], tuple[LearnableBlob, ...], tuple[Note, ...]]:
    """Read a net's layers of one state, and its learnable blobs.

    Args:
        parsed: The net.
        state: Phase, level and stages, which decide which layers take part; phase TRAIN if absent.
        inputs: Shapes of blobs that the file does not state, by blob name; they win over what it states.
        tested: The state of the test net, for the note on what the two do to their data.

    Returns:
        The net's name, its layers, its learnable blobs in Caffe's order, and notes.

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
    state, inputs = state or NetState(), inputs or {}
    _check_inputs(inputs)
    notes = Notes()
    upgraded = upgrade(parsed)
    renamed = {note.where for note in upgraded.notes}
    for note in chain(upgraded.notes, (note for note in parsed.notes if note.where not in renamed)):
        notes.add(note)
    names: dict[str, SourceLocation] = {}
    has_unknown = parsed.block.has_unknown
    if has_unknown:
        unknown_names(parsed.block, "net", names)
    drafts, transforming, signs = _Drafts(upgraded.layers, array("i"), has_unknown), array("i"), []
    for index, message in enumerate(upgraded.layers.messages()):
        if message.HasField("transform_param"):
            transforming.append(index)
        if message.type in SIGNS_BY_TYPE:
            signs.append((message.type, upgraded.layers[index].where))
        if _takes_part(upgraded.layers, index, message, state):
            if not message.type:  # refused before millions of ``layer { }`` take memory
                raise without_type(upgraded.layers[index].message.name, upgraded.layers[index].where)
            drafts.numbers.append(index)
    dialect = read_dialect(signs, names)
    built = _build(drafts, dialect, BlobShapes(inputs))
    while built.shapes.learned:
        built = _build(drafts, dialect, built.shapes.again())
    layers = tuple(built.layers)
    _check_made(layers, inputs, parsed.source.file)
    for note in built.notes.finish():
        notes.add(note)
    _explain_missing(built, upgraded.layers, state, notes)
    beyond_the_optimizer(layers, notes)
    _note_the_data(upgraded.layers, transforming, [one for one in (state, tested) if one is not None], notes)
    return upgraded.net.name, layers, built.learnables.finish(), notes.finish()


def _takes_part(layers: UpgradedLayers, index: int, message: Any, state: NetState) -> bool:
    """Whether a layer takes part; most have no rules to look at."""
    return not (message.include or message.exclude) or included(message, layers[index].where, state)


def _note_the_data(layers: UpgradedLayers, numbers: Sequence[int], states: Sequence[NetState], notes: Notes) -> None:
    """Add the note on what the layers of these numbers, which have a ``transform_param``, do to the data."""

    def taking_part(state: NetState) -> Iterator[UpgradedLayer]:
        return (layer for i in numbers if _takes_part(layers, i, (layer := layers[i]).message, state))

    read = {
        state.phase: (layer_settings(layer.message, layer.type, layer.block) for layer in taking_part(state))
        for state in states
    }
    if line := data_transforms(read):
        notes.info(next(layer.where for state in states for layer in taking_part(state)), line)


def with_inputs(recipe: NetRecipe, inputs: Inputs) -> NetRecipe:
    """Fill in the sizes of a recipe that follow from the shapes of its inputs.

    ``read_recipe(..., inputs=...)`` does the same while it reads.

    Args:
        recipe: A recipe that was read without these shapes.
        inputs: Shapes by blob name.

    Returns:
        The recipe with every size that follows; those that it has are kept.

    Raises:
        NetError: a blob that the net does not have, or shapes that contradict what the file states.
    """
    _check_inputs(inputs)
    _check_made(recipe.layers, inputs)
    stated = {top: shape for layer in recipe.layers if not layer.bottoms for top, shape in _tops(layer)}
    shapes = BlobShapes(inputs, {top: shape for top, shape in stated.items() if shape is not None})
    filled = _fill(recipe, shapes)
    while shapes.learned:
        shapes = shapes.again()
        filled = _fill(recipe, shapes)
    return filled


@dataclass(slots=True)
class BlobShapes:
    """The shapes of the blobs that layers pass on, inferred in one pass over the layers.

    Attributes:
        inputs: Shapes that the user gave.
        known: Sizes of data blobs that are known before the pass.
        shapes: What the pass found so far, by blob.
        learned: Sizes of data blobs that an Eltwise showed, since its bottoms must be equal: for another pass.
    """

    inputs: Inputs
    known: Mapping[str, Shape] = field(default_factory=dict)
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    learned: dict[str, Shape] = field(default_factory=dict)
    _sources: set[str] = field(default_factory=set)

    def again(self) -> BlobShapes:
        """A new pass, which knows what this one learned."""
        return BlobShapes(self.inputs, {**self.known, **self.learned})

    def bottoms(self, names: Iterable[str]) -> tuple[Shape | None, ...]:
        """The shapes of a layer's bottoms."""
        found = []
        for name in names:
            if name not in self.shapes:
                given = self.inputs.get(name)
                self.shapes[name] = None if given is None else tuple(given)
            found.append(self.shapes[name])
        return tuple(found)

    def tops(self, node: Node) -> tuple[Shape | None, ...]:
        """The shapes of a layer's tops. Raises ``MisfitError``."""
        found = list(top_shapes(node))
        if node.type == "Eltwise" and found and found[0] is not None:
            for name, bottom in zip(node.bottom_names, node.bottoms, strict=True):
                if name in self._sources and bottom != found[0] and self.known.get(name) != found[0]:
                    self.learned[name] = found[0]
        for i, name in enumerate(node.top_names):
            if not node.bottoms and name in self.known and name not in self.inputs:
                found[i] = agree(found[i], self.known[name])
        return tuple(found)

    def keep(self, node: Node, tops: Sequence[Shape | None]) -> tuple[Shape | None, ...]:
        """Take these as the shapes of a layer's tops, but for those that the user gave; they are returned."""
        if node.bottoms:
            self._sources.difference_update(node.top_names)
        else:
            self._sources.update(set(node.top_names) - self.inputs.keys())
        kept = tuple(tops)
        if self.inputs:
            named = zip(node.top_names, tops, strict=True)
            kept = tuple(tuple(self.inputs[name]) if name in self.inputs else top for name, top in named)
        self.shapes.update(zip(node.top_names, kept, strict=True))
        return kept


class _Drafts(NamedTuple):
    """The layers that take part, by their numbers in the net; ``has_unknown``: it has fields outside of the schema."""

    layers: UpgradedLayers
    numbers: array[int]
    has_unknown: bool


@dataclass(slots=True)
class _Built:
    """What one pass over the layers gives."""

    shapes: BlobShapes
    missing: list[tuple[str, str, SourceLocation]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    learnables: Learnables = field(default_factory=Learnables)
    notes: Notes = field(default_factory=Notes)


def _build(drafts: _Drafts, dialect: Dialect, shapes: BlobShapes) -> _Built:
    built, forks = _Built(shapes), tuple(dialect.clues)
    for number in drafts.numbers:
        layer = drafts.layers[number]
        own = layer_settings(layer.message, layer.type, layer.block if drafts.has_unknown else None)
        message, where = layer.message, layer.where
        bottoms, tops = tuple(message.bottom), tuple(message.top)
        absent = dict.fromkeys(name for name in bottoms if name not in shapes.shapes)
        built.missing += [(name, message.name, where) for name in absent]
        sizes, count = shapes.bottoms(bottoms), len(message.param)
        node = Node(message.name, layer.type, own, sizes, bottoms, tops, count, dialect)
        blobs = append_blobs(built.learnables, built.notes, node, layer)
        own_tops: set[str] = set()
        twice = []
        for name in tops:
            if (name in shapes.shapes or name in own_tops) and name not in bottoms:
                twice.append(name)
            own_tops.add(name)
        found = _shape_tops(built, node, layer)
        for text in dict.fromkeys(node.assumptions):
            built.notes.info(where, text)
        for name in twice:
            built.notes.warn(where, f"blob {name!r} is made by more than one layer; Caffe refuses this net")
        built.layers.append(
            Layer(node.name, node.type, bottoms, tops, node.settings, found, blobs, where, count, forks)
        )
    return built


def _shape_tops(built: _Built, node: Node, layer: UpgradedLayer) -> tuple[Shape | None, ...]:
    """The shapes of a layer's tops. What Caffe refuses for sizes alone does not change what is learned: a warning."""
    inputs = built.shapes.inputs
    try:
        found = built.shapes.tops(node)
    except MisfitError as misfit:
        text = f"layer {node.name!r} ({node.type}): {misfit.message}; shapes after it are unknown"
        built.notes.warn(layer.where, text)
        found = (None,) * len(node.top_names)
    for name, shape in zip(node.top_names, found, strict=True):
        if (largest := max([size or 0 for size in shape or ()], default=0)) > MAX_COUNT:
            raise NetError(
                f"layer {node.name!r} ({node.type}): blob {name!r} is too large",
                where=layer.where,
                found=f"an axis of {largest:.3g}",
                expected=f"at most {MAX_COUNT}, as for every size in Caffe",
            )
        if name in inputs:
            given = tuple(inputs[name])
            try:
                agree(shape, given)
            except MisfitError:
                text = f"blob {name!r} is {shape_text(shape)} in the file, and taken as {shape_text(given)}"
                built.notes.warn(layer.where, text)
    return built.shapes.keep(node, found)


def _check_inputs(inputs: Inputs) -> None:
    for name, shape in inputs.items():
        if any(size < 1 for size in shape) or prod(shape) > MAX_COUNT:
            raise NetError(
                f"the shape given for blob {name!r} is none that a blob can have",
                found=shape_text(tuple(shape)) if max(shape, default=0) <= MAX_COUNT else f"a size of {max(shape):.6g}",
                expected=f"sizes of at least 1, at most {MAX_COUNT} numbers together",
            )


def _check_made(layers: Sequence[Layer], inputs: Inputs, file: str | None = None) -> None:
    """Refuse shapes for blobs that the net does not have."""
    made = {name for layer in layers for name in (*layer.bottoms, *layer.tops)}
    if foreign := inputs.keys() - made:
        sources = [top for layer in layers if not layer.bottoms for top in layer.tops]
        raise NetError(
            f"the net has no blob {min(foreign)!r} to give a shape to",
            where=file,
            hint=f"its data blobs: {', '.join(map(repr, sources)) or 'none'}",
        )


def _explain_missing(built: _Built, layers: UpgradedLayers, state: NetState, notes: Notes) -> None:
    """Bottoms that no layer of this state makes: Caffe refuses the net; we know its blobs all the same."""
    if not built.missing:
        return
    rules = [rule for message in layers.messages() for rule in (*message.include, *message.exclude)]
    stages = {stage for rule in rules for stage in rule.stage}
    for name, layer, where in built.missing:
        text = f"layer {layer!r} takes blob {name!r}, which no layer before it makes in phase {state.phase}"
        if stages - set(state.stages):
            given = ", ".join(state.stages) or "none"
            text += f" (the net's rules ask for the stages {', '.join(sorted(stages))}; given: {given})"
        notes.warn(where, text + "; Caffe refuses this net")


def _tops(layer: Layer) -> Iterable[tuple[str, Shape | None]]:
    return zip(layer.tops, layer.top_shapes, strict=True)


def _fill(recipe: NetRecipe, shapes: BlobShapes) -> NetRecipe:
    """One pass over a recipe's layers, which adds sizes to those that it has."""
    sizes: dict[int, Shape | None] = {number: blob.shape for number, blob in enumerate(recipe.blobs)}
    layers = []
    for layer in recipe.layers:
        bottoms, dialect = shapes.bottoms(layer.bottoms), Dialect.of_forks(layer.forks, layer.where)
        node = Node(
            layer.name, layer.type, layer.settings, bottoms, layer.bottoms, layer.tops, layer.param_blocks, dialect
        )
        try:
            for number, rule in zip(layer.blobs, blob_rules(node) or (), strict=False):
                sizes[number] = _filled(sizes[number], rule.shape)
            found = [_filled(old, new) for (_, old), new in zip(_tops(layer), shapes.tops(node), strict=True)]
        except MisfitError as misfit:
            raise NetError(f"layer {layer.name!r}: {misfit.message}", where=layer.where, hint=misfit.hint) from None
        layers.append(replace(layer, top_shapes=shapes.keep(node, found)))
    blobs = tuple(replace(blob, shape=sizes[number]) for number, blob in enumerate(recipe.blobs))
    return replace(recipe, blobs=blobs, layers=tuple(layers))


def _filled(known: Shape | None, found: Shape | None) -> Shape | None:
    """What was known, with what is new where sizes were open."""
    if known is not None and found is not None and len(known) == len(found):
        merged = tuple(new if old is None else old for old, new in zip(known, found, strict=True))
        return agree(known, merged)
    return found if known is None else known
