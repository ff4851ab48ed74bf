"""Bind Caffe's blobs to a model's parameters and buffers, whatever their names and order.

In order of trust: what the user states; the place in the net, where the wirings of net and model are equal as wholes;
equal names, and names that are equal but for their spelling, which also decide where the wiring leaves a choice; what
surrounds a unit, where net and model differ elsewhere. Shapes are always checked and are never the only evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

from torch import nn

from caffe2torch.binding.attempt import Attempt
from caffe2torch.binding.ends import without_ends
from caffe2torch.binding.forward_pass import InputShapes, check_input_shapes
from caffe2torch.binding.matching import find_counterparts
from caffe2torch.binding.messages import binding_error, binding_notes, tie_error
from caffe2torch.binding.model_graph import ModelGraph, model_graph
from caffe2torch.binding.names import StatedNames, check_names, read_blobs, resolve_names
from caffe2torch.binding.net_graph import net_graph
from caffe2torch.binding.plan import Binding, BoundBlob, Kind, Unclaimed
from caffe2torch.binding.tensor_matching import Assignment, assign
from caffe2torch.binding.wrappers import bare
from caffe2torch.errors import BindingError
from caffe2torch.recipe import NetRecipe
from caffe2torch.torch_startup import compiler_not_imported
from caffe2torch.wording import listed, matches

__all__ = ["UnclaimedMultipliers", "bind"]

UnclaimedMultipliers = tuple[float, float] | Mapping[str, tuple[float, float]]
"""``(lr_mult, decay_mult)`` of all parameters that no blob stands for, or of those that a name or pattern means."""


@compiler_not_imported()
def bind(
    recipe: NetRecipe,
    model: nn.Module,
    names: Mapping[str, str] | None = None,
    *,
    skip: Iterable[str] = (),
    unclaimed: UnclaimedMultipliers | None = None,
    reshaped: Iterable[str] = (),
    input_shapes: InputShapes | None = None,
) -> Binding:
    """Bind every blob of ``recipe`` to a parameter or buffer of ``model``, or raise.

    The model is not changed, and not run: a copy without numbers is.

    Args:
        recipe: What the prototxts state.
        model: A model, in wrappers or not.
        names: A layer to a module, a blob (``LAYER/INDEX``) to a tensor, or a pattern to what its groups make.
        skip: Layers and blobs that the model does without; names or patterns.
        unclaimed: ``(lr_mult, decay_mult)`` of parameters that no blob stands for, or a mapping of their names or
            patterns to such pairs; ones that do not require a gradient need none.
        reshaped: Layers and blobs that have another shape in the model, a head with another number of classes say:
            they keep their own multipliers; names or patterns.
        input_shapes: What the model's forward pass takes, where neither the net nor common sizes fit.

    Returns:
        Every blob with its tensor and the evidence, parameters that are left, and notes.

    Raises:
        BindingError: If a blob or a parameter is left over, if shapes do not fit, and if two bindings are possible
            that give the optimizer different multipliers.
        ModelError: For a model that has nothing to bind.

    >>> import pathlib, tempfile
    >>> from caffe2torch.reading import read_recipe
    >>> net = pathlib.Path(tempfile.mkdtemp()) / "net.prototxt"
    >>> _ = net.write_text('''input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
    ...     layer { name: "a" type: "Convolution" bottom: "data" top: "a"
    ...             convolution_param { num_output: 4 kernel_size: 3 } }
    ...     layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 5 } }''')
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    >>> [(bound.blob.name, bound.name, bound.how) for bound in bind(read_recipe(net), model).blobs[:2]]
    [('a/0', '0.weight', 'structure'), ('a/1', '0.bias', 'structure')]
    """
    if input_shapes is not None:
        check_input_shapes(input_shapes)
    built = getattr(bare(model), "binding", None)  # a model that was built from this net knows
    stated_by_user = names or skip or reshaped or unclaimed
    if isinstance(built, Binding) and not stated_by_user and tuple(b.blob for b in built.blobs) == recipe.blobs:
        return built
    net, graph = net_graph(recipe), model_graph(model, recipe, input_shapes)
    tensors = graph.tensors
    stated = resolve_names(recipe, names or {}, graph.modules, tensors)
    skipped, other_shape = read_blobs(recipe, skip, "skip"), read_blobs(recipe, reshaped, "reshaped")
    check_names(recipe, stated, net.units, tensors, other_shape)
    modules = stated.modules | _implied(recipe, graph, stated)
    named = {number: tensors[name] for number, name in stated.tensors.items()}

    def attempted(ends: frozenset[int] = frozenset()) -> Attempt:
        findings = find_counterparts(net, graph, modules, skipped | ends, other_shape)
        assignment = assign(net, findings, named, skipped | ends, other_shape)
        bound = assignment.bound
        left = {name: one for name, one in graph.parameters.items() if name not in bound}
        given = _multipliers(unclaimed, {name: trains for name, (_, trains) in left.items()}, sorted(bound))
        return Attempt(
            net,
            graph,
            findings,
            assignment,
            [number for number in range(len(recipe.blobs)) if number not in assignment.blobs],
            left,
            given,
            tuple(dict.fromkeys(recipe.blobs[number].layer for number in sorted(ends))),
        )

    attempt = attempted()
    undecided = None if attempt.assignment.clashes else tie_error(attempt)
    if undecided is not None:
        raise undecided
    if not attempt.complete:
        raise binding_error(without_ends(attempt, attempted))
    return Binding(
        graph.name,
        tuple(_bound_blob(recipe, number, attempt.assignment) for number in range(len(recipe.blobs))),
        tuple(
            Unclaimed(name, shape, *attempt.given.get(name, (None, None))) for name, (shape, _) in attempt.left.items()
        ),
        tuple(binding_notes(attempt)),
        None if graph.wiring is None else graph.wiring.computation,
    )


def _multipliers(unclaimed: object, left: Mapping[str, bool], bound: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The pair of each trained parameter among those that no blob stands for, as far as ``unclaimed`` gives one."""
    if unclaimed is None:
        return {}
    pairs = unclaimed if isinstance(unclaimed, Mapping) else dict.fromkeys(left, _pair(unclaimed))
    trained = [name for name, trains in left.items() if trains]
    given: dict[str, tuple[float, float]] = {}
    for key in sorted(pairs, key=lambda key: key not in left):  # exact names win
        pair = _pair(pairs[key])
        found = [
            name for name, _ in matches(key, trained, left, bound, what="unclaimed", of="parameter", error=BindingError)
        ]
        if found[0] not in left:
            raise BindingError(
                f"unclaimed: a blob stands for {found[0]}, which {key!r} means",
                hint=f"parameters without a blob: {', '.join(listed(trained, 8)) or 'none'}",
            )
        given = {**dict.fromkeys(set(found).intersection(trained), pair), **given}
    return given


def _pair(pair: object) -> tuple[float, float]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(_is_multiplier(one) for one in pair):
        raise BindingError(f"unclaimed gives {pair!r}", expected="a pair of numbers, (lr_mult, decay_mult)")
    return float(pair[0]), float(pair[1])


def _is_multiplier(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _implied(recipe: NetRecipe, model: ModelGraph, stated: StatedNames) -> dict[str, str]:
    """Layers whose blobs the user bound one by one, to tensors of one unit: that is where the layer is."""
    used = model.wiring.units if model.wiring is not None else ()
    owner = {str(tensor.key): unit.parts[0] for unit in (*model.units, *used) for tensor in unit.tensors}
    paths: dict[str, set[str]] = {}
    for number, tensor in stated.tensors.items():
        paths.setdefault(recipe.blobs[number].layer, set()).add(owner[tensor])
    return {layer: next(iter(owners)) for layer, owners in paths.items() if len(owners) == 1}


def _bound_blob(recipe: NetRecipe, number: int, assignment: Assignment) -> BoundBlob:
    blob, one = recipe.blobs[number], assignment.blobs[number]
    if one.tensor is None:
        return BoundBlob(blob, Kind.NONE, None, one.evidence, remark=one.remark)
    kind = Kind.PARAMETER if one.tensor.trained else Kind.BUFFER
    remark = "; ".join(filter(None, ("interchangeable" if one.rivals else "", one.remark)))
    return BoundBlob(blob, kind, str(one.tensor.key), one.evidence, one.rivals, remark, one.storage)
