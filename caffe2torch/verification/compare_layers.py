"""What the net has and the model has not: two computations held against each other, layer by layer.

A layer that binding paired is compared with its module, what stands between two pairs with what the model computes
there. Where either side cannot be read with certainty, nothing is claimed: the layer counts as not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import Enum
from itertools import combinations
from math import prod

from caffe2torch.binding.computation import (
    UNKNOWN,
    Chain,
    Computation,
    Edge,
    Operation,
    cropped,
    extended,
    never_negative,
)
from caffe2torch.binding.graph import INPUT
from caffe2torch.recipe import Shape
from caffe2torch.verification.aligned_computations import OUTPUT, align
from caffe2torch.verification.layer_differences import Comparison, Difference
from caffe2torch.verification.layer_settings import (
    SETTINGS,
    SPATIAL,
    commute,
    described,
    effective_poolings,
    named,
    phrases,
    same,
)
from caffe2torch.wording import shape_text

__all__ = ["Sizes", "compare_layers"]


class Sizes(Enum):
    """How a net's shapes came about."""

    STATED = 1  # the file states them, and the model was run at that size
    GIVEN = 2  # the file states none; they follow from the size that the model was run at
    OTHER = 3  # the model was run at another size


_APPLIES = {
    **dict.fromkeys(("SoftmaxWithLoss", "SoftmaxWithLossOHEM", "WeightedSoftmaxWithLoss"), "softmax"),
    "SigmoidCrossEntropyLoss": "sigmoid",
}
"""What a loss does to its scores itself."""

_MAY_LACK = ("activation", "dropout", "LRN", "softmax")
"""Kinds that nothing else undoes, so that what is known of one side is enough."""

_MOST_LEFT = 6  # operations of a kind in one place that may be too many, before only the first ones are looked at


def compare_layers(
    net: Computation,
    model: Computation,
    bound: Iterable[tuple[int, str]],
    *,
    sizes: Sizes = Sizes.STATED,
    cancelled: Collection[int] = (),
) -> Comparison:
    """Hold a model's computation against a net's.

    Args:
        net: What the net computes.
        model: What the model was seen to compute.
        bound: Blobs (indices) and the tensors that stand for them.
        sizes: How the net's shapes came about.
        cancelled: Blobs (indices) of biases that a batch norm subtracts again: it is no difference to have none.
    """
    return _Comparing(net, model, list(bound), sizes, frozenset(cancelled)).run()


class _Comparing:
    """Both sides with one set of names for their nodes, and what was found so far."""

    def __init__(
        self,
        net: Computation,
        model: Computation,
        bound: list[tuple[int, str]],
        sizes: Sizes,
        cancelled: frozenset[int],
    ) -> None:
        self.found = Comparison()
        self.sized, self.stated = sizes is not Sizes.OTHER, sizes is Sizes.STATED
        self.cancelled, self.training = cancelled, model.training
        self.net, self.model = align(cropped(net), cropped(model), bound)
        self.bound = {blob for blob, _ in bound}
        self.moved: set[int] = set()  # names before or after which a pooling may stand

    def run(self) -> Comparison:
        for pair, ours in self.net.units.items():
            self._unit(ours, self.model.units.get(pair, []))
        for key, edges in self.net.edges.items():
            self._way(key, edges, self.model.edges.get(key, []))
        for name in self.net.single:
            self._inputs(name)
        if self.sized:
            self._sizes()
        left = [one for one in self.net.of.named if one.name not in self.found.seen]
        for one in sorted(left, key=lambda one: (one.where.line, one.where.column) if one.where else (0, 0)):
            self.found.unseen[one.name] = None
        distinct = {(one.setting, one.layer, one.module): one for one in reversed(self.found.differences)}
        self.found.differences = list(reversed(distinct.values()))
        return self.found

    # What a layer and its module compute themselves.

    def _unit(self, ours: list[int], theirs: list[int]) -> None:
        owns = [own for node in theirs if (own := self.model.of.own.get(node)) is not None]
        module = next((self.model.name_of(node) for node in theirs), "")
        for node in ours:
            own = self.net.of.own.get(node)
            family = [one for one in owns if own is not None and _family(one) == _family(own)]
            if own is None or not family or any(one.settings != family[0].settings for one in family):
                continue
            biases = {tensor.key for tensor in self.net.unit_of(node).tensors if tensor.role == "bias"}
            but = ("bias",) if biases & self.cancelled or biases & self.bound else ()  # bound: it is added elsewhere
            if own.settings.get("transposed") and self._cropped_before(name := self.net.names[node]):
                but = (*but, "padding")
                self.moved.add(name)
            self._pair(own, replace(family[0], name=module), self.net.names[node], but=but)
            averages = [one.settings.get("moving average") for one in (family[0], own)]
            if None not in averages and not same(*averages):
                self.found.averages.append((averages[0], averages[1]))  # type: ignore[arg-type]  # neither is None

    def _cropped_before(self, name: int) -> bool:
        """Whether the model crops what comes to a layer, where the net may crop what it gives."""
        return any(one.kind == "crop" for _, edge in self.model.into.get(name, ()) for one in edge.chain)

    def _pair(self, net: Operation, model: Operation, at: int, but: Collection[str] = ()) -> None:
        """Compare the settings that both have, ``but`` some."""
        ours, theirs = net.settings, model.settings
        if net.kind == "pooling":
            poolings = effective_poolings(net, model)
            if poolings is None:
                return
            ours, theirs = poolings
        elif net.kind == "softmax":
            if ours["axes"] != theirs["axes"]:
                return
            but = ("function",) if at == OUTPUT else but  # what reads the output decides whether it wants logarithms
        self.found.seen.add(net.name)
        names = SETTINGS[net.kind]
        if ours.get("transposed") != theirs.get("transposed") or len(ours.get("kernel") or ()) != len(
            theirs.get("kernel") or ()
        ):
            names = tuple(name for name in names if name in ("groups", "bias"))  # the same map, otherwise written
        if not self.training:
            but = (*but, "statistics", "updates")
        if not any(theirs.get("padding", ())) or (net.kind == "convolution" and not any(ours["padding"])):
            but = (*but, "pads with")
        for name in names:
            if name in but or name not in ours or name not in theirs or same(ours[name], theirs[name]):
                continue
            yours, caffes = phrases(net.kind, name, theirs[name])[0], phrases(net.kind, name, ours[name])[1]
            self._differs(name, yours, caffes, net, model, at)
            if name in ("function", "statistics", "region"):
                break  # what follows belongs to it

    def _differs(
        self, setting: str, yours: str, caffes: str, net: Operation, model: Operation, at: int | None, effect: str = ""
    ) -> None:
        found = Difference(setting, yours, caffes, model.name, net.name, net.where, effect, at=at)
        self.found.differences.append(found)

    # What is computed between two layers.

    def _way(self, key: tuple[int, int], ours: list[Edge], theirs: list[Edge]) -> None:
        chains = [_distinct(ours), _distinct(theirs)]
        kinds = [[[operation.kind for operation in chain] for chain in side] for side in chains]
        if len(chains[0]) == len(chains[1]) == 1 or kinds[0] == kinds[1]:
            for net, model in zip(*chains, strict=True):
                self._chains(key, net, model, theirs[0])
        elif theirs:
            self._unread(key)

    def _chains(self, key: tuple[int, int], net: Chain, model: Chain, edge: Edge) -> None:
        """Compare what is computed in a row, kind by kind."""
        net, model = _plain(net), self._flattened(key, net, _plain(model), edge)
        if self._channels_last(key[0]):
            model = (UNKNOWN, *model)
        known = [all(one.kind != "unknown" for one in side) for side in (net, model)]
        if not known[1] or UNKNOWN in net:
            self._unread(key)
        places: list[tuple[int, int]] = []
        for kind in dict.fromkeys(operation.kind for operation in (*net, *model)):
            if kind not in SETTINGS:
                continue
            xs, ys = ([place for place, one in enumerate(side) if one.kind == kind] for side in (net, model))
            pairs = _paired(net, model, xs, ys) if len(xs) == len(ys) or all(known) else []
            for x, y in pairs:
                self._placed(key, net[x], model, y, known=all(known))
            places += pairs
            xs_left, ys_left = set(xs) - {x for x, _ in pairs}, set(ys) - {y for _, y in pairs}
            undecided = xs and ys and not pairs
            if not undecided and (kind in _MAY_LACK or all(known)):  # what is not known may undo it
                lacking = [net[x] for x in sorted(xs_left)] if known[1] else []
                self._lacks(kind, key, lacking, [model[y] for y in sorted(ys_left)] if known[0] else [])
        if all(known):
            self._order(key, net, model, sorted(places))

    def _placed(self, key: tuple[int, int], net: Operation, model: Chain, y: int, *, known: bool) -> None:
        """Compare two operations, as far as what stands around the model's leaves a difference its meaning."""
        other_image = net.kind == "softmax" or (net.kind == "pooling" and net.input != model[y].input)
        if other_image and UNKNOWN in model[:y]:
            return  # what is not known before it may have made the image another one
        not_negative = any(never_negative((one,)) for one in model[y + 1 :])
        pads_alike = net.kind == "pooling" and (not_negative or not known or not self.model.label(key[0]))
        self._pair(net, model[y], key[1], but=("pads with",) if pads_alike else ())

    def _lacks(self, kind: str, key: tuple[int, int], xs: list[Operation], ys: list[Operation]) -> None:
        """Say that one side has none of a kind, where that is certain."""
        if not (xs or ys) or any(side.near_junction(kind, key) for side in (self.net, self.model)):
            return
        if kind == "dropout" and not self.training:
            return
        by_data = INPUT in key and kind in ("activation", "scaling")  # the data layer may do the same
        by_size = kind == "pooling" and (not self.sized or self._moved(key, xs, ys))
        if kind == "crop" or by_data or by_size:
            self._unread(key)
            return
        place, nearest = self._between(key), self.net.layer_at(key)
        for x in (one if one.name else replace(one, name=nearest.name, where=nearest.where) for one in xs):
            if OUTPUT in key and (kind == "softmax" or x.settings.get("function") in ("sigmoid", "tanh")):
                continue  # a loss or what reads the output may do it
            self._differs(x.kind, f"no {named(x)}{place}", described(x), x, Operation(kind), key[1])
            self.found.seen.add(x.name)
        losses = self.net.of.judged.get(self.net.nodes_of.get(key[0], INPUT), set()) if key[1] == OUTPUT else set()
        for y in ys:
            own = [loss for loss in losses if named(y).removeprefix("log ") == _APPLIES.get(loss)]
            if own and named(y).startswith("log "):
                continue  # the softmax of a log softmax is that softmax
            if own and named(y) == "sigmoid":
                self.found.notes[
                    f"it ends in a sigmoid, and {own[0]} applies one itself: right for a loss of "
                    "probabilities as BCELoss, wrong for one of scores as BCEWithLogitsLoss"
                ] = None
                continue
            if never_negative((y,)) and y.settings.get("slope") == 0 and self.model.never_negative(key[0]):
                continue
            layer = replace(self.net.layer_at(key), kind=y.kind)
            applied = f"its {own[0]} applies one itself" if own else ""
            self._differs(y.kind, described(y), f"none{place}", layer, y, key[1], applied)

    def _moved(self, key: tuple[int, int], xs: list[Operation], ys: list[Operation]) -> bool:
        """Whether an average comes before a map of single numbers on one side and after it on the other."""
        ends = [(self.model, key[1], 0)] if xs else [(self.net, key[0], 1)] if ys else []
        for side, name, end in ends:
            near = (
                one.kind
                for way, edges in side.edges.items()
                if way[end] == name
                for edge in edges
                for one in edge.chain
            )
            if "pooling" in near and {named(one) for one in (*xs, *ys)} == {"average pooling"}:
                self.moved.add(name)
                return True
        return False

    def _inputs(self, name: int) -> None:
        """Say that a layer takes another value, where all that the value is made of is known."""
        ours, theirs = ({source for source, _ in side.into.get(name, ())} for side in (self.net, self.model))
        if not self.model.label(name) or not ours or not theirs or ours == theirs:
            return
        sides = ((self.net, ours), (self.model, theirs))
        net, model = (side.origin(min(sources)) if len(sources) == 1 else None for side, sources in sides)
        if net is None or model is None or any(UNKNOWN in e.chain for side, _ in sides for _, e in side.into[name]):
            self._unread((INPUT, name))
        elif net != model:
            module = Operation("input", name=self.model.label(name))
            yours, caffes = self.model.described(model), self.net.described(net)
            effect = ""
            if isinstance(net, tuple) and isinstance(model, tuple) and Counter(net) == Counter(model):
                same = self.net.described(model).rpartition(" of ")[2]
                yours += "" if yours.endswith(same) else f" (Caffe's {same})"
                effect = "weights of Caffe need its order, a training from scratch does not"
            yours += " as the input"
            self._differs("input", yours, caffes, self.net.layer_at((name, name)), module, name, effect)

    def _channels_last(self, name: int) -> bool:
        """Whether a model's node gives images whose channels are its last axis, as a linear layer may."""
        node = self.model.nodes_of.get(name)
        own = None if node is None else self.model.of.own.get(node)
        return own is not None and own.kind == "linear" and len(self.model.of.shapes.get(node or 0) or ()) > 2

    def _order(self, key: tuple[int, int], net: Chain, model: Chain, places: list[tuple[int, int]]) -> None:
        for (x, y), (later, earlier) in combinations(places, 2):
            if earlier < y and not commute(net[x], net[later]):
                yours, caffes = (
                    f"{named(side[a])} before {named(side[b])}" for side, a, b in ((model, earlier, y), (net, x, later))
                )
                self._differs("order", yours, caffes, net[x], model[y], key[1])

    def _flattened(self, key: tuple[int, int], net: Chain, model: Chain, edge: Edge) -> Chain:
        """The model's chain without a new order of axes: an image that it flattens in another order is a difference."""
        orders = [one for one in model if one.kind == "order"]
        if not orders:
            return model
        owns = [
            side.of.own.get(side.nodes_of[key[1]]) if key[1] in side.nodes_of else None
            for side in (self.net, self.model)
        ]
        axes, sizes = orders[0].settings["axes"], orders[0].output or ()
        known = all(one.kind not in ("unknown", "order") for one in net) and UNKNOWN not in model
        flat = (
            edge.shape is not None and len(edge.shape) == 2 and edge.shape[-1] == prod(size or 0 for size in sizes[1:])
        )
        linear = all(own is not None and own.kind == "linear" for own in owns)
        if not (known and flat and linear and len(orders) == 1 and axes[0] == 0 and owns[0]):
            return tuple(UNKNOWN if one.kind == "order" else one for one in model)
        yours = f"an image that is flattened in the order {', '.join(map(str, axes))} of its axes"
        caffes = ", ".join(map(str, range(len(axes))))
        node = self.model.nodes_of[key[1]]
        module = Operation("order", name=self.model.name_of(node))
        effect = "it matters where weights of Caffe are loaded"
        self._differs("order", yours, caffes, owns[0], module, key[1], effect)
        return tuple(one for one in model if one.kind != "order")

    def _unread(self, key: tuple[int, int]) -> None:
        self.found.unread[self._between(key).strip() or "between two junctions"] = None

    def _between(self, key: tuple[int, int]) -> str:
        names = [self.model.label(name) for name in key]
        if names[0] and names[1]:
            return f" between {names[0]} and {names[1]}"
        return f" after {names[0]}" if names[0] else f" before {names[1]}" if names[1] else ""

    # Sizes: where a layer's output has another one, and all that it comes from has the same.

    def _sizes(self) -> None:
        wrong: dict[int, tuple[Shape, Shape]] = {}
        for name, node in self.net.single.items():
            other = self.model.single.get(name)
            own = self.net.of.own.get(node)
            if other is None or own is None or own.kind not in ("convolution", "linear", "batch norm"):
                continue
            if self._channels_last(name) or name in self.moved:
                continue
            sizes = _spatial(self.net.of.shapes.get(node), self.model.of.shapes.get(other))
            if sizes is None or sizes[0] == sizes[1]:
                continue
            units, junctions = self.net.behind(node)
            if not units & wrong.keys() and (self.stated or self._certain({name, *junctions})):
                self._size(sizes, {name, *junctions}, own, self.model.name_of(other))
            wrong[name] = sizes
        for key, edges in self.net.edges.items():
            theirs = self.model.edges.get(key, [])
            if key[1] != OUTPUT or len(edges) != 1 or len(theirs) != 1:
                continue
            orders = any(one.kind in ("order", "unknown") for one in theirs[0].chain)
            if orders or self._channels_last(key[0]) or key[0] in self.moved:
                continue
            flat = edges[0].shape is not None and len(edges[0].shape) == 2
            if flat and (edges[0].shape or ())[1:2] != (theirs[0].shape or ())[1:2]:
                continue  # not an image of what the net gives in a row
            if _same_numbers(edges[0].shape, theirs[0].shape):
                continue  # a Reshape at one end, which a port leaves to its loss
            sizes = _spatial(edges[0].shape, theirs[0].shape)
            if sizes is None or sizes[0] == sizes[1] or self.net.origins(key[0]) & wrong.keys():
                continue
            if not (self.stated or self._certain({OUTPUT})):
                continue
            last = self.net.layer_at((key[0], key[0]))
            self._size(sizes, {OUTPUT, key[0]}, last, "")

    def _certain(self, names: set[int]) -> bool:
        """Whether the net's layers before these are all known, and none gives a size that the file fixes."""
        edges = [edge for name in names for _, edge in self.net.into.get(name, ())]
        chain = [operation for edge in edges for operation in edge.chain]
        return not any(one.kind == "unknown" or one.settings.get("size") == "of the file" for one in chain)

    def _size(self, sizes: tuple[Shape, Shape], at: set[int], layer: Operation, module: str) -> None:
        """A size that differs: an effect of a setting that does, or a difference of its own."""
        caffes, yours = map(shape_text, sizes)
        for place, one in enumerate(self.found.differences):
            if one.at in at and one.setting in SPATIAL:
                if not one.effect:
                    text = f"the output of {module or layer.name} is {yours}, Caffe's is {caffes}"
                    self.found.differences[place] = replace(one, effect=text)
                return
        self._differs("output size", f"an output of {yours}", caffes, layer, Operation("", name=module), None)


def _family(operation: Operation) -> str:
    """A fully connected layer and a convolution may be the same map."""
    return "linear" if operation.kind == "convolution" else operation.kind


def _distinct(edges: Sequence[Edge]) -> list[Chain]:
    found: list[Chain] = []
    for edge in edges:
        if edge.chain not in found:
            found.append(edge.chain)
    return sorted(found, key=lambda chain: [operation.kind for operation in chain])


def _plain(chain: Chain) -> Chain:
    """The chain with factors as late as they may come, and without a ReLU of what is not negative anyway."""
    found: Chain = ()
    for operation in chain:
        if operation.settings.get("slope") == 0 and never_negative(found):
            continue
        one = UNKNOWN if operation.kind == "padding" else operation  # a padding that nothing took up
        if found and found[-1].kind == "scaling" and one.kind not in ("scaling", "unknown") and commute(found[-1], one):
            found = (*extended(found[:-1], one), found[-1])
        else:
            found = extended(found, one)
    return found


def _paired(net: Chain, model: Chain, xs: list[int], ys: list[int]) -> list[tuple[int, int]]:
    """Places of operations of a kind that stand for each other, in their order; if one side has more, those alike."""
    few, many = (xs, ys) if len(xs) <= len(ys) else (ys, xs)
    sides = (net, model) if few is xs else (model, net)

    def alike(chosen: tuple[int, ...]) -> int:
        return sum(named(sides[0][a]) == named(sides[1][b]) for a, b in zip(few, chosen, strict=True))

    best = max(combinations(many[: len(few) + _MOST_LEFT], len(few)), key=alike)
    pairs = list(zip(few, best, strict=True))
    return pairs if few is xs else [(x, y) for y, x in pairs]


def _same_numbers(net: Shape | None, model: Shape | None) -> bool:
    """Whether two shapes hold as many numbers for each image."""
    counts = [
        None if not shape or None in shape[1:] else prod(size or 0 for size in shape[1:]) for shape in (net, model)
    ]
    return counts[0] is not None and counts[0] == counts[1]


def _spatial(net: Shape | None, model: Shape | None) -> tuple[Shape, Shape] | None:
    """The two sizes of images; ``None`` where they cannot be compared."""
    if net is None or model is None or len(model) < 3 or None in net[2:]:
        return None
    if len(net) == 2:
        return (1,) * (len(model) - 2), model[2:]
    return (net[2:], model[2:]) if len(net) == len(model) else None
