"""An emitted file as a module, imported where caffe2torch cannot be."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any


def load(source: str, name: str = "emitted") -> ModuleType:
    """The module that ``source`` makes, which may import anything but caffe2torch; it can be pickled from."""

    def without_us(
        wanted: str,
        namespace: Mapping[str, Any] | None = None,
        local: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if wanted.startswith("caffe2torch"):
            raise ModuleNotFoundError(f"an emitted file imports {wanted}")
        return __import__(wanted, namespace, local, fromlist or (), level)

    module = ModuleType(name)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": without_us}
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module
