"""What of torch a translation imports, and that nothing of the postponement remains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FIXTURE = Path(__file__).parents[1] / "fixtures" / "segnet_basic"


def run(code: str) -> dict[str, object]:
    """What a fresh Python prints as JSON after running ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_translating_segnet_basic_imports_neither_the_compiler_nor_sympy_and_leaves_torch_as_it_was() -> None:
    code = f"""
import json, sys, torch, caffe2torch
t = caffe2torch.translate(r"{FIXTURE / "train.prototxt"}", r"{FIXTURE / "solver.prototxt"}")
during = [name for name in ("torch._dynamo", "sympy") if name in sys.modules]
added = torch.optim.Optimizer.add_param_group.__wrapped__
cached = hasattr(added, "__dynamo_disable")
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist()
torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
print(json.dumps(dict(
    ok=t.report.ok, during=during, cached=cached, compiled=compiled,
    real=sys.modules["torch._dynamo"].__file__ is not None, excluded=hasattr(added, "__dynamo_disable"),
)))
"""
    assert run(code) == {
        "ok": True,
        "during": [],
        "cached": False,
        "compiled": [2.0, 2.0],
        "real": True,
        "excluded": True,
    }


def test_whoever_compiles_in_between_gets_the_compiler_itself() -> None:
    code = """
import json, sys, torch
from caffe2torch.torch_startup import compiler_not_imported
with compiler_not_imported():
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    before = "sympy" in sys.modules
    compiled = torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2)).tolist()
    from torch.fx.experimental.symbolic_shapes import ShapeEnv, expect_true
    size = ShapeEnv().create_unbacked_symint()
    known = expect_true(size >= 0)
print(json.dumps(dict(before=before, compiled=compiled, known=bool(known))))
"""
    assert run(code) == {"before": False, "compiled": [2.0, 2.0], "known": True}
