"""caffe2torch: carry how a Caffe network learned over to PyTorch, checked.

Importing this package loads neither torch nor protobuf: a name is imported when it is first asked for, so that
reading a recipe stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from caffe2torch.errors import Caffe2TorchError

if TYPE_CHECKING:
    from caffe2torch import testing as testing
    from caffe2torch.auditing import audit as audit
    from caffe2torch.binding.skeleton import skeleton as skeleton
    from caffe2torch.lock import read_lock as read_lock
    from caffe2torch.models import SegNetBasic as SegNetBasic
    from caffe2torch.models.build_net import build_model as build_model
    from caffe2torch.models.net_loss import build_loss as build_loss
    from caffe2torch.reading import read_recipe as read_recipe
    from caffe2torch.recipe import NetRecipe as NetRecipe
    from caffe2torch.recipe import TrainingRecipe as TrainingRecipe
    from caffe2torch.translation import Translation as Translation
    from caffe2torch.translation import translate as translate
    from caffe2torch.verification.report import Report as Report

_HOME = {
    "NetRecipe": "caffe2torch.recipe",
    "Report": "caffe2torch.verification.report",
    "SegNetBasic": "caffe2torch.models",
    "TrainingRecipe": "caffe2torch.recipe",
    "Translation": "caffe2torch.translation",
    "audit": "caffe2torch.auditing",
    "build_loss": "caffe2torch.models.net_loss",
    "build_model": "caffe2torch.models.build_net",
    "read_lock": "caffe2torch.lock",
    "read_recipe": "caffe2torch.reading",
    "skeleton": "caffe2torch.binding.skeleton",
    "translate": "caffe2torch.translation",
}

__version__ = "0.2.0"
__all__ = [
    "Caffe2TorchError",
    "NetRecipe",
    "Report",
    "SegNetBasic",
    "TrainingRecipe",
    "Translation",
    "__version__",
    "audit",
    "build_loss",
    "build_model",
    "read_lock",
    "read_recipe",
    "skeleton",
    "testing",
    "translate",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "testing":  # a module of its own, and not to be imported before it is asked for
        return import_module("caffe2torch.testing")
    raise AttributeError(f"module 'caffe2torch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
