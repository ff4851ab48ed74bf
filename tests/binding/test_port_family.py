"""Many nets and edited ports: nothing is bound wrongly, and every layer with one counterpart only is bound."""

from __future__ import annotations

import os
import time
import tomllib
from typing import Any

import pytest
from nets import names, recipe_of
from port_family import Case, Port, certain, make_case, prototxt

from caffe2torch.binding.bind import bind
from caffe2torch.binding.names import names_of
from caffe2torch.errors import BindingError

SEED = int(os.environ.get("PORTS_SEED", time.time_ns() % 10**6))
CASES = int(os.environ.get("PORTS_CASES", "40"))


def problems(case: Case) -> list[str]:
    """What is bound wrongly or with too much certainty, and what is certain and not bound."""
    recipe, port, sure = recipe_of(prototxt(case)), Port(case), certain(case)
    origin = {case.layer(one): port.module_of[other] for one, other in case.place.items()}
    known = {case.layer(one): port.module_of[other] for one, other in sure.items()}
    said: dict[str, tuple[str, bool]] = {}
    try:
        binding = bind(
            recipe,
            port,
            skip=[part for one in case.dropped for part in (f"{case.layer(one)}n?",)],
            unclaimed=(1.0, 1.0),
            reshaped=[case.layer(one) for one in case.reshaped],
        )
        for bound in binding.blobs:
            if bound.name is not None and bound.blob.layer in origin:
                said[bound.blob.layer] = bound.name.rpartition(".")[0], bool(bound.rivals)
    except BindingError as error:
        draft = getattr(error, "draft", None)
        if draft is None:  # layers that nothing distinguishes, and that learn otherwise
            open_pairs = {case.multipliers[one - 1] for one in case.place if one not in sure}
            return [] if len(open_pairs) > 1 else [f"refused: {error}"]
        said = {
            layer.partition("/")[0]: (module, False)
            for layer, module in tomllib.loads(draft).items()
            if layer in origin
        }
    told_apart = any(step.op == "relu" for step in case.net)  # where it stands, which the oracle does not look at
    found = []
    for layer, (module, interchangeable) in said.items():
        if interchangeable:
            continue
        if module != origin[layer]:
            found.append(f"{layer} is {origin[layer]}, bound to {module}")
        elif layer not in known and not case.names_kept and not told_apart:
            found.append(f"{layer} could be another module as well as {module}")
    missing = [layer for layer in known if layer not in said or said[layer][1]]
    return found + [f"{layer} is certainly {known[layer]}, and not bound" for layer in missing]


@pytest.mark.parametrize(
    ("seed", "law"),
    [
        (20789, "a candidate counts only if the rest can be paired, too"),
        (30022, "what no unit reads tells branches apart"),
        (30120, "what is joined counts once, whatever is left out before it"),
        (632195, "a layer that could be one of two modules is no end of the net that the model does without"),
    ],
)
def test_cases_that_were_not_bound_once(seed: int, law: str) -> None:
    assert not problems(make_case(seed)), law


def test_a_port_is_bound_as_far_as_it_is_certain_and_never_wrongly() -> None:
    print(f"PORTS_SEED={SEED}")
    failures = []
    for number in range(CASES):
        case = make_case(SEED + number)
        failures += [f"seed {case.seed}, {case.edit}: {one}" for one in problems(case)]
    assert not failures, f"PORTS_SEED={SEED}: {len(failures)}\n" + "\n".join(failures[:40])


def test_what_is_written_of_a_binding_is_read_back_as_the_same() -> None:
    print(f"PORTS_SEED={SEED}")
    for number in range(CASES // 2):
        case = make_case(SEED + number)
        recipe, port = recipe_of(prototxt(case)), Port(case)
        without = [f"{case.layer(one)}n?" for one in case.dropped]
        other_sizes = [case.layer(one) for one in case.reshaped]
        options: dict[str, Any] = {"skip": without, "unclaimed": (1.0, 1.0), "reshaped": other_sizes}
        try:
            binding = bind(recipe, port, **options)
        except BindingError:
            continue  # what must bind is the law above
        said = names_of(binding)
        assert names(bind(recipe, port, said, **options)) == names(binding), (case.seed, said)
