"""Which unit of the model is the counterpart of which unit of the net, and by which evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from caffe2torch.binding.branches import (
    MarksOf,
    branch_marks,
    inputs_joined_otherwise,
    joined_otherwise,
    no_marks,
    unseen,
)
from caffe2torch.binding.candidates import bits, candidates, possible
from caffe2torch.binding.graph import Op, Unit, UnitKind, Wiring, without_units
from caffe2torch.binding.isomorphism import Matching, explain, match_rest, match_whole, without_tails
from caffe2torch.binding.layout import fit
from caffe2torch.binding.model_graph import ModelGraph
from caffe2torch.binding.names import name_hints
from caffe2torch.binding.net_graph import NetGraph, layers_with_blobs
from caffe2torch.binding.plan import Evidence
from caffe2torch.binding.sharing import shared_otherwise
from caffe2torch.binding.surroundings import match_parts
from caffe2torch.binding.tensor_matching import Clash, Counterpart, Findings, match_tensors
from caffe2torch.recipe import NetRecipe
from caffe2torch.wording import listed

__all__ = ["find_counterparts"]


def find_counterparts(
    net: NetGraph,
    model: ModelGraph,
    named: Mapping[str, str],
    skipped: Collection[int],
    reshaped: Collection[int] = (),
) -> Findings:
    """Find counterparts by structure where the model's wiring was seen, by names for the rest.

    Args:
        net: The net.
        model: The model.
        named: Layer to module path, as the user states.
        skipped: Blobs (indices) that the model does without.
        reshaped: Blobs (indices) that may have another shape in the model.
    """
    findings, rest = Findings(), list(model.units)

    seen = None if model.wiring is None else model.wiring.computation
    marks: MarksOf = no_marks
    if model.wiring is not None and model.traced.startswith("torch.fx"):
        marks = unseen
    elif seen is not None:
        marks = branch_marks(net.recipe, seen)
    absent = _absent(net, model, named) - frozenset(skipped)
    if model.wiring is not None:
        if model.ended:
            findings = _parts(net.recipe, net.without(absent.union(skipped)), model.wiring, named, marks)
        else:
            findings = _by_wiring(net, model.wiring, named, absent, skipped, frozenset(reshaped), marks)
            if not findings.agree:
                findings.clashes = _clashes(net, model.wiring, absent, skipped, reshaped)
        pairs = {one.layer: one.module.name for one in findings.found}
        findings.reordered = joined_otherwise(net.wiring, model.wiring, pairs)
        if seen is not None:
            findings.reordered |= dict.fromkeys(inputs_joined_otherwise(net.recipe, seen, pairs), False)
        if findings.reordered:
            layers = ", ".join(map(repr, listed([*findings.reordered], 6)))
            findings.warnings.append(f"the model concatenates the inputs of {layers} in another order than the net")
        used = {tensor.key for unit in model.wiring.units for tensor in unit.tensors}
        rest = [unit for unit in model.units if not any(tensor.key in used for tensor in unit.tensors)]
        if model.ended:
            by_place = (Evidence.STRUCTURE, Evidence.NEARBY, Evidence.REMAINDER)
            findings.found = [
                one
                for one in findings.found
                if one.evidence not in by_place or not any(_alike(one.module, unit) for unit in rest)
            ]
    covered = {blob for one in findings.found for blob in one.blobs}
    findings.absent = absent - covered
    covered |= absent
    open_units = [unit for unit in net.units if not any(tensor.key in covered for tensor in unit.tensors)]
    if rest and open_units:
        findings.found += _by_names(net.recipe, open_units, rest, named)
    return findings


def _clashes(
    net: NetGraph, model: Wiring, absent: frozenset[int], skipped: Collection[int], reshaped: Collection[int]
) -> list[Clash]:
    """What only one side shares, whatever was skipped of it: leaving out one of two uses makes no port right."""
    shared = [
        [
            wiring.units[unit]
            for unit, count in Counter(node.unit for node in wiring.nodes).items()
            if unit is not None and count > 1
        ]
        for wiring in (net.wiring, model)
    ]
    if not any(shared):
        return []
    kept = {
        number
        for unit in net.units
        if unit in shared[0] or any(_alike(unit, one) for one in shared[1])
        for number in _blobs(unit)
    }
    for out in dict.fromkeys((absent, absent.union(skipped) - kept)):
        one = net.without(out)
        if clashes := shared_otherwise(_without_other_kinds(one, model), _without_other_kinds(model, one), reshaped):
            return clashes
    return []


def _absent(net: NetGraph, model: ModelGraph, named: Mapping[str, str]) -> frozenset[int]:
    """Blobs of layers that Caffe does not train and that no module of the model could be: ports compute them instead.

    A bilinear Deconvolution is an interpolation there, a fixed Scale a number.
    """
    modules = {*model.units, *(model.wiring.units if model.wiring is not None else ())}
    return frozenset(
        number
        for unit in net.units
        if unit.kind is not UnitKind.NORM
        and all(net.recipe.blobs[number].lr_mult == 0 for number in _blobs(unit))
        and named.keys().isdisjoint(unit.parts)
        and not any(_alike(unit, module) for module in modules)
        for number in _blobs(unit)
    )


def _alike(unit: Unit, module: Unit) -> bool:
    """Whether two units could be counterparts by kind, groups and sizes."""
    return (module.kind, module.groups) == (unit.kind, unit.groups) and fit(unit.shape, module.sizes) is not None


def _by_wiring(
    net: NetGraph,
    model: Wiring,
    named: Mapping[str, str],
    absent: frozenset[int],
    skipped: Collection[int],
    reshaped: frozenset[int],
    marks: MarksOf,
) -> Findings:
    """Counterparts by structure, with names where the structure leaves a choice or differs.

    The net as it is, or without the layers to be skipped, may equal the model as a whole; or without kinds of units
    that only one side has; or without units that only the model has. If none does: what the user states, then names
    whose shapes fit, then what surrounds a unit.
    """
    nets = [net.without(absent)]
    if skipped:
        nets.append(net.without(absent.union(skipped)))
    certain: dict[str, str] = {}
    if reshaped:
        stated = _whole_but_extra(nets[-1], model, named, reshaped, marks)
        if stated is not None and not stated.conflicting:
            return stated
        certain = {} if stated is None else {one.layer: one.module.name for one in stated.found}
    for one in nets:
        findings = _whole(one, model, named, marks, certain)
        if findings is not None:
            return findings
    for one in nets:
        findings = _whole(_without_other_kinds(one, model), _without_other_kinds(model, one), named, marks)
        if findings is not None:
            findings.agree = False
            return findings
    return (
        _whole_but_extra(nets[-1], model, named, reshaped, marks)
        or _whole_but_extra(without_tails(nets[-1]), without_tails(model), named, reshaped, marks)
        or _parts(net.recipe, nets[-1], model, named, marks)
    )


def _without_other_kinds(wiring: Wiring, other: Wiring) -> Wiring:
    """The wiring without units of a kind that the other has not at all: batch norms of a net made without."""
    kinds = {unit.kind for unit in other.units}
    return without_units(wiring, {number for number, unit in enumerate(wiring.units) if unit.kind not in kinds})


def _whole(
    net: Wiring,
    model: Wiring,
    named: Mapping[str, str],
    marks: MarksOf,
    certain: Mapping[str, str] | None = None,
) -> Findings | None:
    """Counterparts by structure where the wirings are equal as wholes; ``certain`` are layers whose place stands."""
    known = _named_pairs(net, model, named)
    equal, alike = name_hints(net.units, model.units)
    findings = Findings(agree=True)
    pairs = {**_named_pairs(net, model, certain or {}), **known}
    matching = match_whole(net, model, pairs, (equal, alike), marks)
    if matching is None and known:
        matching = match_whole(net, model, {}, (known, equal, alike), marks)
        if matching is not None:
            taken = set(known.values())
            rest = {one: other for one, other in matching.pairs.items() if one not in known and other not in taken}
            matching = replace(matching, pairs={**known, **rest})
            findings.agree = False
            findings.warnings.append("names contradicts the wiring of net and model; names was followed")
    if matching is None:
        return None
    rivals = _note_ties(findings, net, model, matching)
    for one, other in matching.pairs.items():
        if one in known:
            evidence = Evidence.NAMED
        elif equal.get(one) == other:
            evidence = Evidence.EQUAL_NAMES
        elif alike.get(one) == other:
            evidence = Evidence.SPELLING
        else:
            evidence = Evidence.REMAINDER if one in matching.by_name else Evidence.STRUCTURE
        findings.found.append(_counterpart(net.units[one], model.units[other], evidence, rivals.get(one, ())))
    findings.warnings += _misplaced(net, model, matching.pairs, equal, known)
    return findings


def _note_ties(findings: Findings, net: Wiring, model: Wiring, matching: Matching) -> dict[int, tuple[Unit, ...]]:
    """Add what nothing decided to the findings; returns what each unit could be."""
    could_be: dict[int, tuple[Unit, ...]] = {}
    findings.leads += [len(findings.ties) + lead for lead in matching.leads]
    for ones, others in matching.ties:
        modules = tuple(model.units[other] for other in others)
        findings.ties.append((tuple(net.units[one] for one in ones), modules))
        could_be.update(dict.fromkeys(ones, modules))
    return could_be


def _misplaced(
    net: Wiring, model: Wiring, pairs: Mapping[int, int], equal: Mapping[int, int], known: Collection[int]
) -> Iterator[str]:
    """What to say of layers whose place is not that of the module of their own name."""
    for one, other in pairs.items():
        if equal.get(one, other) != other and one not in known:
            yield (
                f"layer {net.units[one].name!r} stands where module {model.units[other].name} stands, not where the "
                f"module of its own name does; bound by structure"
            )


def _whole_but_extra(
    net: Wiring, model: Wiring, named: Mapping[str, str], reshaped: frozenset[int], marks: MarksOf
) -> Findings | None:
    """Counterparts by structure where the model has more units; branches joined in the net's order, else in any."""
    concats = [any(node.op is Op.CONCAT for node in wiring.nodes) for wiring in (net, model)]
    orders = (True, False) if all(concats) else (True,)
    return next(filter(None, (_but_extra(net, model, named, reshaped, marks, ordered=one) for one in orders)), None)


def _but_extra(
    net: Wiring,
    model: Wiring,
    named: Mapping[str, str],
    reshaped: frozenset[int],
    marks: MarksOf,
    *,
    ordered: bool,
) -> Findings | None:
    """As ``_whole_but_extra``; names decide where several units could be left out.

    What is left when these are, is matched as a whole, so that branches are told apart as ever.
    """
    stated = _named_pairs(net, model, named)
    known = dict(stated)
    other_sizes = {number for number, unit in enumerate(net.units) if not reshaped.isdisjoint(_blobs(unit))}
    evidence = dict.fromkeys(known, Evidence.NAMED)
    found = candidates(net, model, known, other_sizes, ordered=ordered)
    both = name_hints(net.units, model.units)
    for hints, kind in zip(both, (Evidence.EQUAL_NAMES, Evidence.SPELLING), strict=True):
        more = {one: hints[one] for one, others in found.items() if len(others) > 1 and hints.get(one) in others}
        if more:
            evidence.update(dict.fromkeys(more, kind))
            known.update(more)
            found = candidates(net, model, known, other_sizes, ordered=ordered)
    if not all(found.values()):
        return None
    found = possible(net, model, known, other_sizes, found, ordered=ordered)
    pairs = {one: others[0] for one, others in found.items() if len(others) == 1}
    if not all(found.values()):
        return None
    kept: tuple[Collection[int], Collection[int]] = (pairs, set(pairs.values()))
    every = {other for others in found.values() for other in others}
    sure = set(stated)
    if len(pairs) == len(found) or len(every) == len(found):  # which units are left out is certain
        kept = found, every
    else:  # units without a pair are left out, too, though they may tell others apart
        free = found
        if ordered:
            free = candidates(net, model, known, other_sizes, ordered=False)
            free = possible(net, model, known, other_sizes, free, ordered=False)
        sure |= {one for one, others in free.items() if len(others) == 1}
    fixed = {one: other for one, other in pairs.items() if one in sure}
    loose = other_sizes.intersection(kept[0])
    sizes = loose - fixed.keys(), {other for one in loose for other in found[one]} - set(fixed.values())
    rest = match_rest(net, model, kept, fixed, both, marks, any_size=sizes)
    if rest is None or (rest.pairs != pairs and match_rest(net, model, (pairs, set(pairs.values())), pairs) is None):
        return None
    findings = Findings()
    findings.warnings += _misplaced(net, model, rest.pairs, both[0], evidence)
    rivals = _note_ties(findings, net, model, rest)
    for one, other in rest.pairs.items():
        by = evidence.get(one, Evidence.STRUCTURE) if other == pairs.get(one) else Evidence.STRUCTURE
        findings.found.append(_counterpart(net.units[one], model.units[other], by, rivals.get(one, ())))
    findings.conflicting = {
        net.units[one].name: tuple(model.units[other].name for other in others)
        for one, others in found.items()
        if len(others) > 1 and one not in rest.pairs
    }
    return findings


def _parts(recipe: NetRecipe, net: Wiring, model: Wiring, named: Mapping[str, str], marks: MarksOf) -> Findings:
    """Counterparts by names, and near these by structure."""
    findings = Findings()
    known = _named_pairs(net, model, named)
    evidence = dict.fromkeys(known, Evidence.NAMED)
    both = name_hints(net.units, model.units)
    for hints, kind in zip(both, (Evidence.EQUAL_NAMES, Evidence.SPELLING), strict=True):
        for one, other in hints.items():
            free = one not in known and other not in known.values()
            if free and not match_tensors(recipe, _blobs(net.units[one]), model.units[other])[1]:
                known[one] = other
                evidence[one] = kind
    parts = match_parts(net, model, known, ordered=False)
    paired = {net.units[one].name: model.units[other].name for one, other in parts.pairs.items()}
    if not joined_otherwise(net, model, paired):
        seen, before = marks(net, model), parts.pairs
        parts = match_parts(net, model, before)
        for one, other in list(parts.pairs.items()):  # the order alone does not decide where something differs
            if one not in before and seen.differing(net.units[one], model.units[other]):
                del parts.pairs[one]
    conflicting = parts.conflicting
    pairs = {one: other for one, other in parts.pairs.items() if one not in conflicting}
    fixed = {one: pairs[one] for one in pairs.keys() & evidence.keys()}
    rest = match_rest(net, model, (pairs, set(pairs.values())), fixed, both, marks)
    certain, rivals = rest is not None, dict[int, tuple[Unit, ...]]()
    if rest is not None:
        pairs, rivals = rest.pairs, _note_ties(findings, net, model, rest)
    else:
        elsewhere = list(_in_another_order(net, model, pairs, evidence))
        kept = {one: pairs[one] for one in pairs.keys() - elsewhere}
        certain = match_rest(net, model, (kept, set(kept.values())), kept) is not None
        for one in elsewhere:
            layer, module = net.units[one].name, model.units[pairs[one]].name
            if one in evidence:
                findings.warnings.append(f"layer {layer!r} stands elsewhere than module {module}; bound by name")
            else:
                findings.elsewhere.add(layer)
                del pairs[one]
    findings.warnings += _misplaced(net, model, pairs, both[0], evidence)
    if not certain and any(one not in evidence for one in pairs):
        what = "; ".join(explain(net, model)) or "even without what has no counterpart"
        findings.warnings.append(
            f"net and model are not wired alike ({what}); layers were bound by what surrounds them"
        )
    for one, other in pairs.items():
        by = evidence.get(one, Evidence.STRUCTURE if certain else Evidence.NEARBY)
        findings.found.append(_counterpart(net.units[one], model.units[other], by, rivals.get(one, ())))
    findings.conflicting = {
        net.units[one].name: tuple(model.units[other].name for other in sorted(others))
        for one, others in conflicting.items()
    }
    return findings


def _in_another_order(net: Wiring, model: Wiring, pairs: Mapping[int, int], by_name: Collection[int]) -> Iterator[int]:
    """Units of the net, as few as possible, without which whatever comes before another does so in the model, too."""
    before = _before(net, {one: one for one in pairs})
    before_in_model = _before(model, {other: one for one, other in pairs.items()})
    followers = Counter(other for mask in before.values() for other in bits(mask))
    against = {one: before.get(one, 0) ^ before_in_model.get(one, 0) for one in pairs}
    for one, mask in list(against.items()):
        for other in bits(mask):
            against[other] |= 1 << one
    while any(against.values()):
        worst = max(
            (one for one in against if against[one]),
            key=lambda one: (one not in by_name, against[one].bit_count(), -followers[one]),
        )
        yield worst
        del against[worst]
        against = {one: mask & ~(1 << worst) for one, mask in against.items()}


def _before(wiring: Wiring, number: Mapping[int, int]) -> dict[int, int]:
    """For each unit, by its number, the numbers of those that its inputs come from, as bits."""
    behind = [0]  # by node, with its own unit
    found: dict[int, int] = {}
    for node in wiring.nodes[1:]:
        mask = 0
        for source in node.inputs:
            mask |= behind[source]
        one = None if node.unit is None else number.get(node.unit)
        if one is not None:
            found[one] = found.get(one, 0) | mask
            mask |= 1 << one
        behind.append(mask)
    return found


def _named_pairs(net: Wiring, model: Wiring, named: Mapping[str, str]) -> dict[int, int]:
    """What the user states, as units; units whose layers were sent to different modules are left to names alone."""
    place = {part: number for number, unit in enumerate(model.units) for part in unit.parts}
    pairs: dict[int, int] = {}
    for number, unit in enumerate(net.units):
        others = {place.get(named[part]) for part in unit.parts if part in named}
        if len(others) == 1 and (other := next(iter(others))) is not None:
            pairs[number] = other
    return pairs


def _counterpart(unit: Unit, module: Unit, evidence: Evidence, could_be: Sequence[Unit] = ()) -> Counterpart:
    rivals = tuple(other for other in could_be if other is not module)
    return Counterpart(unit.name, _blobs(unit), module, evidence, rivals, unit.groups)


def _blobs(unit: Unit) -> tuple[int, ...]:
    return tuple(int(tensor.key) for tensor in unit.tensors)


def _by_names(
    recipe: NetRecipe, units: Sequence[Unit], modules: Sequence[Unit], named: Mapping[str, str]
) -> list[Counterpart]:
    """Counterparts by names alone, layer by layer: a BatchNorm and its Scale may be two modules or one.

    For models whose wiring cannot be seen, and for modules that no forward pass reaches. Shapes are left to ``assign``,
    except where names agree only but for spelling.
    """
    wanted = {part for unit in units for part in unit.parts}
    layers = [(layer, blobs) for layer, _, blobs in layers_with_blobs(recipe) if layer in wanted]
    by_path = {part: module for module in modules for part in module.parts}
    singles = [Unit(layer, (layer,), modules[0].kind, None, ()) for layer, _ in layers]
    equal, alike = name_hints(singles, modules)
    of_layer: dict[str, tuple[Unit, Evidence]] = {}
    for number, (layer, blobs) in enumerate(layers):
        if named.get(layer) in by_path:
            of_layer[layer] = by_path[named[layer]], Evidence.NAMED
        elif number in equal:
            of_layer[layer] = modules[equal[number]], Evidence.EQUAL_NAMES
        elif number in alike and not match_tensors(recipe, blobs, modules[alike[number]])[1]:
            of_layer[layer] = modules[alike[number]], Evidence.SPELLING
    for unit in units:  # the other half of a batch norm goes where the first went
        known = [of_layer[part] for part in unit.parts if part in of_layer]
        for part in unit.parts:
            if known and part not in of_layer:
                of_layer[part] = known[0]
    groups = {part: unit.groups for unit in units for part in unit.parts}
    return [
        Counterpart(layer, blobs, *of_layer[layer], groups=groups[layer])
        for layer, blobs in layers
        if layer in of_layer
    ]
