"""Many nets of branches and ports that join them in another order: no branch is bound wrongly."""

from __future__ import annotations

import os
import time

from branch_family import Case, certain, convolutions, make_case, port_of, prototxt
from nets import recipe_of

from caffe2torch.binding.bind import bind
from caffe2torch.errors import BindingError

SEED = int(os.environ.get("PORTS_SEED", time.time_ns() % 10**6))
CASES = int(os.environ.get("PORTS_CASES", "40"))


def problems(case: Case) -> list[str]:
    """What is bound wrongly or with too much certainty, and what is certain and not bound."""
    sure, allowed = certain(case)
    last = f"m{len(case.stages) - 1}"
    try:
        binding = bind(
            recipe_of(prototxt(case)),
            port_of(case),
            unclaimed=(1.0, 1.0) if "norms" in case.edit else None,
            reshaped=[last] if "classes" in case.edit else (),
        )
    except BindingError as error:
        open_pairs = {
            case.multipliers[name]
            for number, stage in enumerate(case.stages)
            for name, *_ in convolutions(number, stage)
            if name not in sure
        }
        return [] if len(open_pairs) > 1 and "in any order" in str(error) else [f"refused: {error}"]
    said = {bound.blob.layer: (str(bound.name).rpartition(".")[0], bool(bound.rivals)) for bound in binding.blobs}
    found = [
        f"{layer} is {allowed.get(layer, 'not certain')}, bound to {module}"
        for layer, (module, interchangeable) in said.items()
        if not interchangeable and allowed.get(layer) != module
    ]
    return found + [f"{layer} is certainly {module}, and not bound" for layer, module in sure.items() if said[layer][1]]


def test_branches_are_bound_by_what_they_are_and_by_their_order_only_where_nothing_differs() -> None:
    print(f"PORTS_SEED={SEED}")
    failures = []
    for number in range(CASES):
        case = make_case(SEED + number)
        failures += [f"seed {case.seed}, {case.edit}: {one}" for one in problems(case)]
    assert not failures, f"PORTS_SEED={SEED}: {len(failures)}\n" + "\n".join(failures[:40])
