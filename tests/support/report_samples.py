"""Reports to render: made from a recipe and from what a right optimizer would be seen to do, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caffe2torch.binding.plan import Binding, BoundBlob, Kind, plan_groups
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Note, Severity, SourceLocation, TrainingRecipe
from caffe2torch.solver.lr_policy import rate, weight_decay_at
from caffe2torch.verification.report import Cause, Effective, Fault, FaultKind, Report, ReportRow, UnclaimedRow, Verdict

HOSTILE = "<script>alert('1')</script>\"'&amp;\x1b[31m\u202eevil\u2066 $x_1$ \N{HEBREW LETTER ALEF}{{ 7 * 7 }}"
"""A name that is markup, quotes, a terminal's escape, right-to-left marks, mathematics and a template at once."""


def right_report(recipe: TrainingRecipe, finetune: dict[str, float] | None = None) -> Report:
    """The report on an optimizer that does everything as Caffe would."""
    solver = recipe.solver
    assert solver is not None
    bound = tuple(BoundBlob(b, Kind.PARAMETER, f"{b.layer}.{b.role}", "equal names") for b in recipe.blobs)
    binding = Binding("Model", bound)
    groups = plan_groups(recipe, binding, finetune)
    at = {member.parameter: (index, group) for index, group in enumerate(groups) for member in group.members}
    now, decay = rate(solver.policy, 0), weight_decay_at(solver, 0)
    rows = []
    for one in bound:
        assert one.name is not None
        index, group = at[one.name]
        acts = Effective(now * group.lr_mult, decay * group.decay_mult)
        sizes = tuple(size or 1 for size in one.blob.shape or ())
        rows.append(
            ReportRow(
                one.blob, one.kind, one.name, one.how, group.factor, (index,), True, sizes, acts, acts, Verdict.OK
            )
        )
    return Report(recipe.net_name, "Model", solver, 0, tuple(rows), notes=recipe.notes, sources=recipe.sources)


def wrong_report(report: Report, rows: Sequence[int] = (1, 3)) -> Report:
    """``report`` with some rows wrong in every way there is, a cause that explains two, and a parameter left over."""
    verdicts = [Verdict.MISMATCH, Verdict.MISSING, Verdict.DUPLICATE]
    changed = list(report.rows)
    for k, index in enumerate(rows):
        verdict = verdicts[k % 3]
        said = f"lr is 0.1, Caffe's is {changed[index].expected.lr:g}"
        changed[index] = replace(
            changed[index],
            observed=Effective(0.1, None),
            verdict=verdict,
            groups={Verdict.MISSING: (), Verdict.DUPLICATE: (0, 1)}.get(verdict, changed[index].groups),
            faults=(Fault(FaultKind.LR, said),),
        )
    names = tuple(str(changed[index].parameter) for index in rows)
    left = UnclaimedRow(
        "head.weight",
        (3, 4),
        None,
        None,
        (0,),
        True,
        Effective(None, None),
        Effective(0.1, 0.0),
        Verdict.MISMATCH,
        (Fault(FaultKind.UNCLAIMED, "no blob of the net stands for it, and the optimizer trains it"),),
    )
    return replace(
        report,
        rows=tuple(changed),
        unclaimed=(left,),
        causes=(Cause((FaultKind.LR,), f"{len(names)} of {len(changed)} parameters: lr x10", names),),
        notes=(*report.notes, Note(None, Severity.WARNING, "something that one should know")),
    )


def renamed_report(report: Report, name: str = HOSTILE) -> Report:
    """``report`` with everything that comes out of files called ``name``: net, model, layers, parameters, notes."""
    rows = tuple(
        replace(
            row,
            blob=replace(row.blob, layer=f"{name}{index // 2}", layer_type=name, role=name),
            parameter=f"{name}.{index}",
            faults=(Fault(FaultKind.LR, name),),
            verdict=Verdict.MISMATCH if index == 0 else Verdict.OK,
        )
        for index, row in enumerate(report.rows)
    )
    sources = tuple(replace(source, file=source.file, text=f"# {name}\n{source.text}") for source in report.sources)
    note = Note(SourceLocation(name, 1, 1), Severity.WARNING, name)
    cause = Cause((FaultKind.LR,), name, (name, name))
    return replace(report, net=name, model=name, rows=rows, notes=(note,), causes=(cause,), sources=sources)


def deep_prototxts(folder: Path, layers: int) -> tuple[Path, Path]:
    """A net of ``layers`` layers as residual nets have them, convolution, BatchNorm, Scale and ReLU, and a solver."""
    net, solver = folder / "deep.prototxt", folder / "deep_solver.prototxt"
    text = ['name: "deep"', 'input: "data"', "input_shape { dim: 1 dim: 8 dim: 16 dim: 16 }"]
    bottom = "data"
    for k in range(layers // 4):
        name = f"res{k // 9}_branch{k % 9}"
        text += [
            "layer {",
            f'  name: "{name}_conv"',
            '  type: "Convolution"',
            f'  bottom: "{bottom}"',
            f'  top: "{name}"',
            "  param { lr_mult: 1 decay_mult: 1 }",
            f"  param {{ lr_mult: {2 if k % 3 else 0} decay_mult: 0 }}",
            "  convolution_param { num_output: 8 kernel_size: 3 pad: 1 }",
            "}",
            f'layer {{ name: "{name}_bn" type: "BatchNorm" bottom: "{name}" top: "{name}" }}',
            f'layer {{ name: "{name}_scale" type: "Scale" bottom: "{name}" top: "{name}"',
            "  scale_param { bias_term: true }",
            "}",
            f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}',
        ]
        bottom = name
    net.write_text("\n".join(text) + "\n")
    solver.write_text(
        'net: "deep.prototxt"\nbase_lr: 0.1\nlr_policy: "multistep"\ngamma: 0.1\nstepvalue: 30000\nstepvalue: 60000\n'
        "max_iter: 90000\nmomentum: 0.9\nweight_decay: 0.0001\ndisplay: 20\n"
    )
    return net, solver


def deep_report(folder: Path, layers: int = 1400) -> Report:
    """The report on a net of so many layers, with every hundredth row wrong."""
    report = right_report(read_recipe(*deep_prototxts(folder, layers)))
    return wrong_report(report, range(0, len(report.rows), 100))
