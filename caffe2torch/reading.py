"""A net and a solver prototxt to a recipe: the entry point of reading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path, PureWindowsPath
from typing import Any

from caffe2torch.errors import InputError, NetError, PrototxtError, SolverError, SourceLocation
from caffe2torch.files import read_text
from caffe2torch.net.build import NetState, read_layers
from caffe2torch.net.phases import PHASES, merged
from caffe2torch.net.porting_notes import Notes, of_an_update, segnet_peculiarities, without_gradient
from caffe2torch.prototxt.schema import Parsed, inline_net, is_solver, parse_net, parse_solver
from caffe2torch.prototxt.templates import TemplateError, check_defines, fill_in, placeholders
from caffe2torch.recipe import NetRecipe, SolverSettings, Source, TrainingRecipe
from caffe2torch.solver.settings import read_solver

__all__ = ["read_phase", "read_recipe"]

_PHASE_RULES = re.compile(r"\b(?:in|ex)clude\b")

_SOLVERS_WORDS = re.compile(r"\b(?:base_lr|lr_policy|max_iter|solver_mode|(?:train_)?net(?:_param)?)\s*[:{]")


def read_recipe(
    net: str | PathLike[str] | None,
    solver: str | PathLike[str] | None = None,
    *,
    phase: str = "TRAIN",
    stages: Sequence[str] = (),
    level: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    defines: Mapping[str, object] | None = None,
) -> NetRecipe:
    """Read a Caffe training set-up: which blobs learn, in Caffe's order, with which multipliers, and by which solver.

    Args:
        net: The net's prototxt. ``None`` where the solver names or holds it: a stale path is looked up from the
            working directory, then beside the solver.
        solver: The solver's prototxt, or ``None``. A single file may be either of the two.
        phase: ``"TRAIN"`` or ``"TEST"``.
        stages: Stages, added to those that the solver and the net state (``solver.cpp``, ``InitTrainNet``).
        level: The level, in place of the one that they state.
        inputs: Sizes that the file does not state, by blob: ``{"data": (1, 3, 224, 224)}``.
        defines: Values for a template's placeholders: ``{"NUM_LABELS": 21}`` for ``${NUM_LABELS}``.

    Returns:
        The recipe, with notes on what a person should know: a ``TrainingRecipe``, or the ``NetRecipe`` of a net alone.

    Raises:
        InputError: a file that is missing or is no text; a value for a placeholder that no file has.
        PrototxtError: text that protobuf's text format does not allow, or net and solver swapped.
        NetError: a net that Caffe refuses.
        SolverError: a solver that Caffe refuses, or that names no net where none is given.
        UnsupportedError: a rate policy or solver type of a fork that is not translated.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "net.prototxt").write_text('''
    ...     layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
    ...             param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } inner_product_param { num_output: 10 } }''')
    >>> recipe = read_recipe(folder / "net.prototxt")
    >>> [(blob.name, blob.lr_mult, blob.decay_mult) for blob in recipe.blobs]
    [('ip/0', 1.0, 1.0), ('ip/1', 2.0, 0.0)]
    """
    if phase not in PHASES:
        raise NetError(f"no phase {phase!r}", expected="TRAIN or TEST")
    if net is None and solver is None:
        raise NetError("neither a net nor a solver is given", hint="give the net's prototxt, the solver's, or both")
    files = _Files(defines or {})
    net_source = None if net is None else files.read(net, "a net as text")
    solver_source = None if solver is None else files.read(solver, "a solver as text")
    notes = Notes()
    try:
        if net_source is not None and solver_source is None and _looks_like_a_solver(net_source):
            net_source, solver_source = None, net_source
        parsed_solver = None if solver_source is None else parse_solver(solver_source)
        settings, solver_notes = (None, ()) if parsed_solver is None else read_solver(parsed_solver)
        if net_source is not None:
            parsed = parse_net(net_source, to_build=True)
        else:
            assert parsed_solver is not None
            assert settings is not None
            parsed = _named_net(parsed_solver, settings, files, notes)
    except TemplateError as error:
        raise files.not_filled_in(error) from None
    check_defines(files.defines, files.templates)
    state = _state(parsed, parsed_solver, phase, tuple(stages), level, notes)
    shapes = {name: tuple(shape) for name, shape in (inputs or {}).items()}
    tested = _state(parsed, parsed_solver, "TEST", tuple(stages), level, Notes()) if phase == "TRAIN" else None
    name, layers, blobs, net_notes = read_layers(parsed, state, shapes, tested)
    for note in (*net_notes, *solver_notes):
        notes.add(note)
    if settings is not None:
        settings = replace(settings, force_backward=parsed.message.force_backward)  # type: ignore[attr-defined]  # protobuf's own class
        for note in (*of_an_update(layers, settings), *without_gradient(layers, blobs, settings)):
            notes.add(note)
    for note in segnet_peculiarities(layers, blobs, settings):
        notes.add(note)
    sources = (parsed.source, *(() if parsed_solver is None else (parsed_solver.source,)))
    rest = notes.finish(), layers, tuple(dict.fromkeys(sources)), phase, tuple(stages), level, shapes
    return NetRecipe(name, blobs, *rest) if settings is None else TrainingRecipe(name, blobs, settings, *rest)


def read_phase(recipe: NetRecipe, phase: str) -> NetRecipe | None:
    """The net of another phase from the texts that a recipe was read from; ``None`` where all layers are in both.

    Raises:
        NetError: a net that Caffe refuses in that phase.
    """
    if not recipe.sources or not _PHASE_RULES.search(recipe.sources[0].text):
        return None
    solver = parse_solver(recipe.sources[-1]) if recipe.solver is not None else None
    parsed = (None if solver is None else inline_net(solver)) or parse_net(recipe.sources[0])
    state = _state(parsed, solver, phase, recipe.stages, recipe.level, Notes())
    name, layers, blobs, notes = read_layers(parsed, state)
    made = {blob for layer in layers for blob in (*layer.bottoms, *layer.tops)}
    if inputs := {blob: shape for blob, shape in recipe.inputs.items() if blob in made}:
        name, layers, blobs, notes = read_layers(parsed, state, inputs)
    return replace(recipe, net_name=name, layers=layers, blobs=blobs, notes=notes, phase=phase)


class _Files:
    """The files of one recipe, with their placeholders filled in."""

    def __init__(self, defines: Mapping[str, object]) -> None:
        self.defines = defines
        self.templates: list[Source] = []

    def read(self, path: str | PathLike[str], expected: str) -> Source:
        source = read_text(path, expected=expected)
        self.templates.append(source)
        return fill_in(source, self.defines)

    def not_filled_in(self, error: TemplateError) -> PrototxtError:
        """The error for a template, which lists what is to be filled in."""
        names = [name for name in placeholders(self.templates) if name not in self.defines]
        listed = ", ".join(names)
        option = f"state a value for each of {listed}: --define {names[0]}=VALUE, or defines={{...}}" if names else ""
        return PrototxtError(
            error.message, where=error.where, found=error.found, expected=error.expected, hint=option or error.hint
        )


def _looks_like_a_solver(source: Source) -> bool:
    """Whether a file is a solver; a net without a word of one, which is most of them, need not be parsed for that."""
    return _SOLVERS_WORDS.search(source.text) is not None and is_solver(source)


def _state(
    parsed: Parsed, solver: Parsed | None, phase: str, stages: tuple[str, ...], level: int | None, notes: Notes
) -> NetState:
    net: Any = parsed.message
    if solver is None:  # as Caffe's Net(file, phase, level, stages)
        state = replace(merged(NetState(), net.state), phase=phase)
    else:
        message: Any = solver.message
        own = [message.train_state] if phase == "TRAIN" else message.test_state[:1]
        state = merged(NetState(phase), net.state, *own)
        if phase == "TRAIN" and level is None and message.train_state.HasField("level"):
            notes.info(
                solver.block.all("train_state")[0].where,
                f"train_state's level {message.train_state.level} is used; 'caffe train' puts its own --level in its "
                "place, 0 where none is given",
            )
    return NetState(state.phase, state.level if level is None else level, (*state.stages, *stages))


def _named_net(solver: Parsed, settings: SolverSettings, files: _Files, notes: Notes) -> Parsed:
    """The net that a solver holds, or that it names."""
    if (inline := inline_net(solver)) is not None:
        return replace(inline, notes=())  # the solver's own notes have them
    if settings.net is None:
        raise SolverError(
            "the solver names no net, and none is given",
            where=SourceLocation(solver.source.file, 1, 1),
            expected="one of the fields net, net_param, train_net, train_net_param",
            hint="give the net's prototxt beside the solver",
        )
    where = settings.places["net" if "net" in settings.places else "train_net"]
    folder, name = Path(solver.source.file).parent, Path(settings.net)
    beside = {folder / name.name, folder / PureWindowsPath(settings.net).name}  # D:\\x\\train.prototxt on any system
    candidates = list(dict.fromkeys((name, folder / name, *sorted(beside))))
    for candidate in candidates:
        if candidate.is_file():
            if candidate != name:
                text = f"the net is not at {settings.net!r}; taken from {fspath(candidate)!r}"
                notes.info(where, text)
            return parse_net(files.read(candidate, "a net as text"), to_build=True)
    raise InputError(
        f"the solver's net {settings.net!r} is not there",
        where=where,
        found="no file at " + ", ".join(repr(fspath(candidate)) for candidate in candidates),
        hint="give the net's prototxt beside the solver",
    )
