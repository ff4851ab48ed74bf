"""Bind Caffe's blobs to a model's parameters and buffers, whatever their names and order.

In order of trust: what the user said; the place in the net, where the wirings of net and model are equal as wholes;
equal names, and names that are equal but for their spelling, which also decide where the wiring leaves a choice; what
surrounds a unit, where net and model differ elsewhere. Shapes are always checked and are never the only evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from caffe2torch.binding.by_names import by_names
from caffe2torch.binding.by_structure import by_wiring
from caffe2torch.binding.graph import Unit, Wiring
from caffe2torch.binding.messages import Leftovers, binding_notes, complaint, explain, tie_complaint
from caffe2torch.binding.model_graph import ModelWiring, model_wiring
from caffe2torch.binding.modules import module_units
from caffe2torch.binding.names_file import UserNames, check_names, read_skips, resolve_names
from caffe2torch.binding.net_graph import biases_before_norms, caffe_wiring
from caffe2torch.binding.plan import Binding, BoundBlob, Kind, Unclaimed
from caffe2torch.binding.sample_inputs import InputShapes
from caffe2torch.binding.tensor_matching import Assigned, Findings, assign
from caffe2torch.binding.wrappers import bare, named_tensors
from caffe2torch.recipe import TrainingRecipe

__all__ = ["bind"]


def bind(
    recipe: TrainingRecipe,
    model: nn.Module,
    names: Mapping[str, str] | None = None,
    *,
    skip: Iterable[str] = (),
    unclaimed: tuple[float, float] | None = None,
    input_shapes: InputShapes | None = None,
) -> Binding:
    """Bind every blob of ``recipe`` to a parameter or buffer of ``model``, or raise.

    ``names`` maps a layer to a module, a blob (``LAYER/INDEX``) to a parameter, or a pattern to what its groups make.
    ``skip`` names layers and blobs to do without. ``unclaimed`` is ``(lr_mult, decay_mult)`` for parameters that no
    blob stands for; ones that do not require a gradient need none. ``input_shapes`` is what the model's forward pass
    takes, where neither the net nor common sizes tell. The model is not changed, and not run: a copy without numbers
    is.

    Raises ``BindingError`` if a blob or a parameter is left over, if shapes do not fit, and if two bindings are
    possible that give the optimizer different multipliers; ``ModelError`` for a model that has nothing to bind.

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
    model = bare(model)
    built = getattr(model, "binding", None)  # a model that was built from this net knows
    if isinstance(built, Binding) and not names and not skip and tuple(one.blob for one in built.blobs) == recipe.blobs:
        return built
    modules = module_units(model)
    tensors = dict(named_tensors(model))
    held = {str(one.key): one for module in modules for one in module.held}
    said = resolve_names(recipe, names or {}, [part for module in modules for part in module.parts], held)
    skipped = read_skips(recipe, skip)
    net = caffe_wiring(recipe)
    check_names(recipe, said, net.units, held)
    seen = model_wiring(model, recipe, input_shapes)
    findings = _find(recipe, net, seen, modules, said, skipped)
    assignment = assign(
        recipe,
        findings.found,
        {number: held[name] for number, name in said.tensors.items()},
        skipped,
        biases_before_norms(recipe),
    )
    bound = {str(one.tensor.key) for one in assignment.blobs.values() if one.tensor is not None}
    left = [
        (name, tensor) for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and name not in bound
    ]
    unmeant = {name: tuple(tensor.shape) for name, tensor in left if tensor.requires_grad and unclaimed is None}
    frozen = [name for name, tensor in left if not tensor.requires_grad]
    unbound = [number for number in range(len(recipe.blobs)) if number not in assignment.blobs]
    for units, others in findings.ties:
        error = tie_complaint(recipe, units, others)
        if error is not None:
            raise error
    if assignment.clashes or assignment.misfits or unbound or unmeant:
        left_over = Leftovers(unbound, unmeant, tuple(_explanation(net, seen, findings)))
        raise complaint(recipe, type(model).__name__, net.units, modules, findings, assignment, left_over)
    return Binding(
        type(model).__name__,
        tuple(_bound_blob(recipe, number, assignment.blobs[number]) for number in range(len(recipe.blobs))),
        tuple(
            Unclaimed(name, tuple(tensor.shape), *(unclaimed if unclaimed and tensor.requires_grad else (None, None)))
            for name, tensor in left
        ),
        tuple(binding_notes(recipe, findings, assignment, seen, modules, frozen)),
    )


def _find(
    recipe: TrainingRecipe,
    net: Wiring,
    seen: ModelWiring,
    modules: Sequence[Unit],
    said: UserNames,
    skipped: frozenset[int],
) -> Findings:
    """Counterparts by structure where the model's wiring can be seen; by names for the rest."""
    places = said.modules | _implied(recipe, modules, said)
    findings, rest = Findings(), list(modules)
    if seen.wiring is not None:
        left_out = {blob.layer for number, blob in enumerate(recipe.blobs) if number in skipped} - {
            blob.layer for number, blob in enumerate(recipe.blobs) if number not in skipped
        }
        nets = [net, *([caffe_wiring(recipe, frozenset(left_out))] if left_out else [])]
        findings = by_wiring(recipe, nets, seen.wiring, places)
        used = {held.key for unit in seen.wiring.units for held in unit.held}
        rest = [module for module in modules if not any(held.key in used for held in module.held)]
    covered = {blob for one in findings.found for blob in one.blobs}
    open_units = [unit for unit in net.units if not any(held.key in covered for held in unit.held)]
    if rest and open_units:
        findings.found += by_names(recipe, open_units, rest, places)
    return findings


def _implied(recipe: TrainingRecipe, modules: Sequence[Unit], said: UserNames) -> dict[str, str]:
    """Layers whose blobs the user bound one by one, to tensors of one module: that is where the layer is."""
    paths: dict[str, set[str]] = {}
    for number, tensor in said.tensors.items():
        owner = next(module.parts[0] for module in modules if any(held.key == tensor for held in module.held))
        paths.setdefault(recipe.blobs[number].layer, set()).add(owner)
    return {layer: next(iter(owners)) for layer, owners in paths.items() if len(owners) == 1}


def _explanation(net: Wiring, seen: ModelWiring, findings: Findings) -> Iterable[str]:
    if seen.wiring is None:
        return [f"names alone decide, since the model's wiring could not be seen: {seen.how}"]
    return [] if findings.agree else explain(net, seen.wiring)


def _bound_blob(recipe: TrainingRecipe, number: int, one: Assigned) -> BoundBlob:
    how = f"{one.how}; {one.remark}" if one.remark else one.how
    if one.tensor is None:
        excused = recipe.blobs[number].role == "bias" and one.remark  # Caffe trains it, and that comes to nothing
        return BoundBlob(recipe.blobs[number], Kind.NONE, None, f"skipped: {one.remark}" if excused else how)
    kind = Kind.PARAMETER if one.tensor.trained else Kind.BUFFER
    return BoundBlob(recipe.blobs[number], kind, str(one.tensor.key), how, one.rivals)
