"""The names file: TOML that says which layer is which module, written by a person or by ``--write-names``."""

from __future__ import annotations

import tomllib
from os import PathLike
from pathlib import Path

import tomli_w

from caffe2torch.binding.plan import Binding, Kind
from caffe2torch.errors import BindingError, InputError
from caffe2torch.files import write_files

__all__ = ["names_of", "read_names", "write_names"]


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
    except tomllib.TOMLDecodeError as error:
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
