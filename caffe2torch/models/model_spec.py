"""Models by what a command line can say: ``MODULE:FACTORY``, a script's path, a name of torchvision's, arguments.

==============================  =====================================================================
``port.nets:Net``               class or function ``Net`` of the module ``port.nets``, called
``port.nets:Net(3, width=64)``  the same with arguments, which are Python literals and nothing else
``path/to/train.py:build``      ``build`` of a script, which is imported as if its folder were on the path
``torchvision:resnet50``        ``torchvision.models.get_model("resnet50")``, without pretrained weights
==============================  =====================================================================
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from caffe2torch.errors import ModelError

__all__ = ["Spec", "parse_spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """``module`` (or a script's path), the dotted name of the factory in it, and its literal arguments.

    ``called`` tells whether the text has parentheses.
    """

    text: str
    module: str
    factory: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    called: bool = False


def parse_spec(text: str) -> Spec:
    """Take ``MODULE:FACTORY`` or ``MODULE:FACTORY(ARGUMENTS)`` apart; nothing is imported or evaluated.

    Raises ``ModelError`` for any other form, and for arguments that are no literals.

    >>> spec = parse_spec("nets/segnet.py:Net(4, classes=['crop', 'weed'])")
    >>> spec.module, spec.factory, spec.args, spec.kwargs
    ('nets/segnet.py', 'Net', (4,), {'classes': ['crop', 'weed']})
    """
    head, parenthesis, _ = text.partition("(")
    module, colon, name = head.rpartition(":")
    if not colon or not module or not all(part.isidentifier() for part in name.strip().split(".")):
        raise ModelError(
            f"{text!r} does not say where a model is",
            expected="MODULE:FACTORY, path/to/script.py:FACTORY or torchvision:NAME, with or without (arguments)",
            hint=f"name the factory: {text}:Net" if text.endswith(".py") else None,
        )
    if not parenthesis:
        return Spec(text, module, name.strip())
    try:
        call = ast.parse(text[len(module) + 1 :].strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != name.strip():
            raise ValueError
        if len({keyword.arg for keyword in call.keywords} - {None}) < len(call.keywords):
            raise ValueError  # ** or a name given twice
        args = tuple(ast.literal_eval(one) for one in call.args)
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ModelError(
            f"{text!r} is not one call with literal arguments",
            expected="numbers, strings, True, False, None, and lists, tuples and dicts of them",
        ) from None
    return Spec(text, module, name.strip(), args, kwargs, called=True)
