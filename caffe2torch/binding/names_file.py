"""The names file: TOML that says which layer is which module, written by a person or by ``--write-names``."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import tomli_w

from caffe2torch.binding.graph import Held, Unit
from caffe2torch.binding.naming import unwrapped
from caffe2torch.binding.plan import Binding, Kind
from caffe2torch.binding.tensor_matching import blob_transposed, fit, spell
from caffe2torch.errors import BindingError, InputError
from caffe2torch.outputs import write_files
from caffe2torch.recipe import TrainingRecipe

__all__ = ["UserNames", "check_names", "names_of", "read_names", "read_skips", "resolve_names", "write_names"]


def read_names(path: str | PathLike[str]) -> dict[str, str]:
    """The ``names`` of a TOML file, as ``bind`` takes them.

    One line binds a layer to a module, a blob to a tensor, or a pattern to what its groups make::

        conv1 = "down.0.conv"
        "conv1/1" = "down.0.shift"
        'conv_decode(\\d)' = 'up.\\1.conv'

    Raises ``InputError`` for a file that cannot be read, ``BindingError`` for what is no such TOML.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    try:
        entries = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, a number of 5,000 digits, 100,000 brackets
        raise BindingError(
            f"bad TOML: {error}", where=str(path), hint='one line a layer: conv1 = "down.0.conv"; quote other names'
        ) from None
    for key, value in entries.items():
        if not isinstance(value, str):
            raise BindingError(
                f"{key!r} is bound to {value!r}, not to a name", where=str(path), hint=_advice(key, value)
            )
    return entries


def _advice(key: str, value: object) -> str:
    if isinstance(value, dict):
        dotted = f"{key}.{next(iter(value), '')}"
        return f'write one line a layer, without sections; a name with dots must be quoted: "{dotted}"'
    return f'write {key!r} = "MODULE"'


def names_of(binding: Binding) -> dict[str, str]:
    """The ``names`` that lead to this very binding: layers where a module decides, blobs where it does not."""
    modules: dict[str, set[str]] = {}
    for bound in binding.blobs:
        if bound.name is not None:
            modules.setdefault(bound.blob.layer, set()).add(bound.name.rpartition(".")[0])
    names: dict[str, str] = {}
    for bound in binding.blobs:
        if bound.name is None or bound.kind is Kind.NONE:
            continue
        paths = modules[bound.blob.layer]
        if len(paths) == 1 and next(iter(paths)):
            names[bound.blob.layer] = next(iter(paths))
        else:
            names[bound.blob.name] = bound.name
    return names


def write_names(binding: Binding, path: str | PathLike[str], *, force: bool = False) -> None:
    """Write the binding as a names file, to review and to keep. Raises ``OutputError`` as ``write_files`` does."""
    write_files({path: tomli_w.dumps(names_of(binding))}, force=force)


# What the user said about names: layers to modules, blobs to tensors, layers to do without.


@dataclass(frozen=True, slots=True)
class UserNames:
    """Layer to module path, and blob (index into ``TrainingRecipe.blobs``) to tensor, as the user wrote them."""

    modules: dict[str, str] = field(default_factory=dict)
    tensors: dict[int, str] = field(default_factory=dict)


def resolve_names(
    recipe: TrainingRecipe, names: Mapping[str, str], modules: Collection[str], tensors: Collection[str]
) -> UserNames:
    """Resolve ``names`` against the net's layers and the model's modules and tensors.

    A key is a layer's exact name, else ``LAYER/INDEX`` of a blob, else a regular expression that matches whole names
    of layers (or, if of none, of blobs), whose groups the value may use: ``"conv(\\d+)": r"down.\\1.conv"``. The value
    is the path of a module that holds tensors, or the name of one tensor.

    Raises ``BindingError`` for a key that matches nothing, a layer or blob that two patterns claim, and a value that
    the model does not have.
    """
    blobs = {f"{layer}/{index}": number for layer, index, number in _uses(recipe)}
    layers = dict.fromkeys(layer for layer, _, _ in _uses(recipe))
    claimed: dict[str, str] = {}
    result = UserNames()
    for key in sorted(names, key=lambda key: key not in layers and key not in blobs):  # exact ones win
        for name, value in _matches(key, names[key], layers, blobs):
            if name in claimed:
                if claimed[name] in layers or claimed[name] in blobs:
                    continue
                raise BindingError(f"names claims {name!r} twice: by {claimed[name]!r} and by {key!r}")
            claimed[name] = key
            target = _known(value, modules, tensors)
            if name in layers and target in modules:
                result.modules[name] = target
            elif target in tensors:
                result.tensors[blobs[name] if name in blobs else _only_blob(recipe, name)] = target
            else:
                raise BindingError(
                    f"names binds blob {name!r} to {value!r}, which is a module, not a parameter or buffer",
                    hint=f'write {name!r} = "{value}.weight", or bind the whole layer',
                )
    return result


def check_names(recipe: TrainingRecipe, said: UserNames, net: Sequence[Unit], held: Mapping[str, Held]) -> None:
    """Refuse names that cannot be: two layers on one module, two blobs on one tensor, shapes that do not fit.

    Layers that share their blobs, and a BatchNorm with its Scale, may be one module. Raises ``BindingError``.
    """
    claimed: dict[tuple[str, str], tuple[str, int]] = {}  # module and role -> layer and unit
    for number, unit in enumerate(net):
        for part in unit.parts:
            for one in unit.held if part in said.modules else ():
                layer, other = claimed.setdefault((said.modules[part], one.role), (part, number))
                if other != number:
                    module = said.modules[part]
                    raise BindingError(f"names binds layers {layer!r} and {part!r} to one module, {module}")
    taken: dict[str, str] = {}
    for number, tensor in said.tensors.items():
        blob, shape = recipe.blobs[number], tuple(size or 0 for size in held[tensor].shape or ())
        if taken.setdefault(tensor, blob.name) != blob.name:
            raise BindingError(f"names binds blobs {taken[tensor]!r} and {blob.name!r} to one tensor, {tensor}")
        if fit(blob.shape, shape, transpose=blob_transposed(recipe, blob)) is None:
            sizes = f"it is {spell(blob.shape)} in Caffe, {spell(shape)} in the model"
            raise BindingError(f"names binds blob {blob.name!r} to {tensor}: {sizes}", where=blob.where)


def read_skips(recipe: TrainingRecipe, skip: Iterable[str]) -> frozenset[int]:
    """The blobs (indices) of the layers and blobs that ``skip`` names, exactly or by a regular expression.

    Raises ``BindingError`` for an entry that matches nothing.
    """
    uses = _uses(recipe)
    layers = dict.fromkeys(layer for layer, _, _ in uses)
    blobs = {f"{layer}/{index}": number for layer, index, number in uses}
    skipped: set[int] = set()
    for key in skip:
        for name, _ in _matches(key, "", layers, blobs, what="skip"):
            skipped.update([blobs[name]] if name not in layers else [n for layer, _, n in uses if layer == name])
    return frozenset(skipped)


def _uses(recipe: TrainingRecipe) -> list[tuple[str, int, int]]:
    """Layer, index and blob for every use of every blob."""
    return [
        (layer, index, number)
        for number, blob in enumerate(recipe.blobs)
        for layer, index in ((blob.layer, blob.index), *((use.layer, use.index) for use in blob.shared_with))
    ]


def _matches(
    key: str, value: str, layers: Mapping[str, object], blobs: Mapping[str, object], what: str = "names"
) -> list[tuple[str, str]]:
    if key in layers or key in blobs:
        return [(key, value)]
    try:
        pattern = re.compile(key)
        for names in (layers, blobs):
            found = [(name, match.expand(value)) for name in names if (match := pattern.fullmatch(name))]
            if found:
                return found
    except (re.error, IndexError) as error:
        raise BindingError(f"{what}: {key!r} with {value!r} is no layer and no valid pattern: {error}") from None
    close = difflib.get_close_matches(key, [*layers, *blobs], 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"layers that learn: {_some(layers)}"
    raise BindingError(f"{what}: no layer that learns is called {key!r}, and it matches none as a pattern", hint=hint)


def _known(value: str, modules: Collection[str], tensors: Collection[str]) -> str:
    for spelling in (value, unwrapped(value)):
        if spelling in modules or spelling in tensors:
            return spelling
    inside = [path for path in modules if path.startswith(f"{value}.")]
    if inside:
        raise BindingError(
            f"names: module {value!r} holds no parameters itself", hint=f"name one of those inside: {_some(inside)}"
        )
    close = difflib.get_close_matches(value, [*modules, *tensors], 3, 0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"modules with parameters: {_some(modules)}"
    raise BindingError(f"names: the model has no module and no parameter {value!r}", hint=hint)


def _only_blob(recipe: TrainingRecipe, layer: str) -> int:
    numbers = [number for name, _, number in _uses(recipe) if name == layer]
    if len(numbers) > 1:
        raise BindingError(
            f"names binds layer {layer!r} to one tensor, but it has {len(numbers)} blobs",
            hint=f"name the module, or each blob: {layer!r}/0, {layer!r}/1, ...".replace("'/", "/").replace("/'", "/"),
        )
    return numbers[0]


def _some(names: Iterable[str]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
