"""Reading: files in, a recipe or one clear error out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import REPOSITORY

from caffe2torch.errors import Caffe2TorchError, InputError, NetError, PrototxtError, SolverError
from caffe2torch.reading import read_recipe
from caffe2torch.recipe import Severity, SolverType

NET = """name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 } inner_product_param { num_output: 4 } }
"""
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 10\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def blobs(net: Path | None, solver: Path | None = None, **options: object) -> list[str]:
    return [blob.name for blob in read_recipe(net, solver, **options).blobs]  # type: ignore[arg-type]  # keywords as they come


def test_net_and_solver_make_a_recipe(folder: Path) -> None:
    net, solver = write(folder / "net.prototxt", NET), write(folder / "solver.prototxt", SOLVER)
    recipe = read_recipe(net, solver)
    assert recipe.net_name == "tiny"
    assert [(b.name, b.role, b.shape, b.lr_mult, b.decay_mult) for b in recipe.blobs] == [
        ("ip/0", "weight", (4, 3), 1.0, 1.0),
        ("ip/1", "bias", (4,), 2.0, 0.0),
    ]
    assert [(layer.name, layer.top_shapes, layer.blobs) for layer in recipe.layers] == [
        ("data", ((2, 3),), ()),
        ("ip", ((2, 4),), (0, 1)),
    ]
    assert recipe.solver is not None
    assert (recipe.solver.type, recipe.solver.policy.base_lr) == (SolverType.SGD, 0.1)
    assert [(source.file, source.text) for source in recipe.sources] == [(str(net), NET), (str(solver), SOLVER)]
    assert str(recipe.blobs[0].where) == f"{net}:4:9"


def test_a_net_alone_has_no_solver(folder: Path) -> None:
    recipe = read_recipe(write(folder / "net.prototxt", NET))
    assert recipe.solver is None
    assert [source.text for source in recipe.sources] == [NET]


def test_a_single_file_may_be_the_solver(folder: Path) -> None:
    write(folder / "net.prototxt", NET)
    solver = write(folder / "solver.prototxt", SOLVER + 'net: "net.prototxt"')
    assert read_recipe(solver) == read_recipe(None, solver)


def test_force_backward_of_the_net_reaches_the_solver(folder: Path) -> None:
    solver = write(folder / "solver.prototxt", SOLVER)
    for text, expected in ((NET, False), ("force_backward: true\n" + NET, True)):
        recipe = read_recipe(write(folder / "net.prototxt", text), solver)
        assert recipe.solver is not None
        assert recipe.solver.force_backward is expected


# ---- Where the net comes from


@pytest.mark.parametrize("field", ["net_param", "train_net_param"])
def test_a_solver_may_hold_its_net(folder: Path, field: str) -> None:
    solver = write(folder / "solver.prototxt", SOLVER + f"{field} {{\n{NET}}}\n")
    recipe = read_recipe(None, solver)
    assert (recipe.net_name, [blob.name for blob in recipe.blobs]) == ("tiny", ["ip/0", "ip/1"])
    assert str(recipe.blobs[0].where) == f"{solver}:6:9"
    assert len(recipe.sources) == 1
    assert blobs(solver, solver) == ["ip/0", "ip/1"]


def test_what_is_unknown_in_a_net_inside_a_solver_is_noted_once(folder: Path) -> None:
    net = NET.replace('name: "ip"', 'name: "ip" flavour: 1')
    recipe = read_recipe(None, write(folder / "solver.prototxt", SOLVER + f"net_param {{\n{net}}}\n"))
    assert ["flavour" in note.message for note in recipe.notes] == [True]


@pytest.mark.parametrize("field", ["net", "train_net"])
@pytest.mark.parametrize(
    ("named", "lies", "noted"),
    [
        ("net.prototxt", "net.prototxt", False),
        ("models/net.prototxt", "models/net.prototxt", False),
        ("net.prototxt", "solvers/net.prototxt", True),
        ("gone/net.prototxt", "solvers/gone/net.prototxt", True),
        ("gone/net.prototxt", "solvers/net.prototxt", True),
    ],
)
def test_a_net_that_the_solver_names_is_looked_up(folder: Path, field: str, named: str, lies: str, noted: bool) -> None:
    write(folder / lies, NET)
    solver = write(folder / "solvers" / "solver.prototxt", SOLVER + f'{field}: "{named}"')
    recipe = read_recipe(None, solver.relative_to(folder))
    assert [blob.name for blob in recipe.blobs] == ["ip/0", "ip/1"]
    assert [note.message.startswith(f"the net is not at {named!r}") for note in recipe.notes] == [True] * noted


def test_a_net_in_the_working_directory_comes_before_one_beside_the_solver(folder: Path) -> None:
    write(folder / "net.prototxt", NET)
    write(folder / "solvers" / "net.prototxt", NET.replace("ip", "other"))
    solver = write(folder / "solvers" / "solver.prototxt", SOLVER + 'net: "net.prototxt"')
    assert blobs(None, solver) == ["ip/0", "ip/1"]


def test_the_net_that_is_given_wins_over_the_one_that_the_solver_names(folder: Path) -> None:
    net = write(folder / "net.prototxt", NET)
    assert blobs(net, write(folder / "solver.prototxt", SOLVER + 'net: "stale/path.prototxt"')) == ["ip/0", "ip/1"]
    assert blobs(net, write(folder / "solver.prototxt", SOLVER + "net_param { }")) == ["ip/0", "ip/1"]


# ---- The state

STAGED = """
layer { name: "plain" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 1 bias_term: false } }
layer { name: "staged" type: "InnerProduct" bottom: "x" top: "b" inner_product_param { num_output: 1 bias_term: false }
        include { stage: "s" } }
layer { name: "levelled" type: "InnerProduct" bottom: "x" top: "c"
        inner_product_param { num_output: 1 bias_term: false } include { min_level: 2 } }
layer { name: "test" type: "InnerProduct" bottom: "x" top: "d" inner_product_param { num_output: 1 bias_term: false }
        include { phase: TEST } }
"""


@pytest.mark.parametrize(
    ("net_state", "solver_state", "options", "expected"),
    [
        ("", "", {}, "plain"),
        ("", 'train_state { stage: "s" }', {}, "plain staged"),
        ('state { stage: "s" }', "train_state { level: 2 }", {}, "plain staged levelled"),
        ("state { level: 3 }", "train_state { level: 1 }", {}, "plain"),
        ("", "train_state { level: 2 }", {"level": 0}, "plain"),
        ("", "", {"stages": ["s"], "level": 5}, "plain staged levelled"),
        ("state { phase: TEST }", "", {}, "plain test"),
        ("state { phase: TEST }", "train_state { phase: TRAIN }", {}, "plain"),
        ("", 'test_iter: 1 test_interval: 1 test_state { stage: "s" }', {"phase": "TEST"}, "plain staged test"),
        ("", 'test_iter: 1 test_interval: 1 test_state { stage: "s" }', {}, "plain"),
    ],
)
def test_states_merge_as_the_solver_merges_them(
    folder: Path, net_state: str, solver_state: str, options: dict[str, object], expected: str
) -> None:
    net = write(folder / "net.prototxt", net_state + STAGED)
    solver = write(folder / "solver.prototxt", SOLVER + 'net: "net.prototxt" ' + solver_state)
    assert blobs(net, solver, **options) == [f"{name}/0" for name in expected.split()]


def test_without_a_solver_the_phase_is_what_the_caller_says(folder: Path) -> None:
    net = write(folder / "net.prototxt", 'state { phase: TEST stage: "s" }' + STAGED)
    assert blobs(net) == ["plain/0", "staged/0"]
    assert blobs(net, phase="TEST") == ["plain/0", "staged/0", "test/0"]
    with pytest.raises(NetError, match="no phase 'DEPLOY'"):
        read_recipe(net, phase="DEPLOY")


def test_inputs_are_handed_to_the_net(folder: Path) -> None:
    net = write(folder / "net.prototxt", STAGED)
    assert [blob.shape for blob in read_recipe(net, inputs={"x": [1, 7]}).blobs] == [(1, 7)]


# ---- One clear error


@pytest.mark.parametrize(
    ("net", "solver", "error", "message"),
    [
        (None, None, NetError, "neither a net nor a solver is given"),
        (None, SOLVER, SolverError, "solver.prototxt:1:1: the solver names no net, and none is given"),
        (None, SOLVER + 'net: "gone.prototxt"', InputError, "solver.prototxt:2:1: the solver's net 'gone.prototxt'"),
        (SOLVER, NET, PrototxtError, "solver.prototxt:1:1: this is a net, not a solver"),
        (SOLVER, SOLVER, PrototxtError, "net.prototxt:1:1: this is a solver, not a net"),
        (SOLVER, None, SolverError, "net.prototxt:1:1: the solver names no net"),
        (NET, 'lr_policy: "linear"', SolverError, "solver.prototxt:1:1: unknown lr_policy"),
        (NET + "layer { type: 7 }", SOLVER, PrototxtError, "net.prototxt:5:9:"),
        ("layer {", SOLVER, PrototxtError, "net.prototxt:1:8"),
        ("", SOLVER, InputError, "net.prototxt: the file is empty"),
    ],
)
def test_bad_input_is_one_clear_error_with_its_place(
    folder: Path, net: str | None, solver: str | None, error: type[Caffe2TorchError], message: str
) -> None:
    files = [
        None if text is None else write(folder / f"{name}.prototxt", text).relative_to(folder)
        for name, text in (("net", net), ("solver", solver))
    ]
    with pytest.raises(Caffe2TorchError) as caught:
        read_recipe(*files)
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InputError) as error:
        read_recipe(folder / "missing.prototxt")
    assert error.value.where == str(folder / "missing.prototxt")
    with pytest.raises(InputError):
        read_recipe(folder)


@given(st.text(max_size=60), st.booleans())
def test_any_text_gives_a_recipe_or_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, inside: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.prototxt"
    path.write_text(f"layer {{ {text} }}" if inside else text, encoding="utf-8")
    assert_read_or_refused(path, None)


def assert_read_or_refused(net: Path | None, solver: Path | None) -> None:
    refusal: Caffe2TorchError | None = None
    try:
        read_recipe(net, solver)
    except Caffe2TorchError as error:
        refusal = error
    assert refusal is None or refusal.where is not None


# ---- Templates

TEMPLATE = NET.replace("num_output: 4", "num_output: ${NUM_LABELS}").replace("dim: 3", "dim: @WIDTH@")


def test_a_template_is_filled_in_by_what_is_defined(folder: Path) -> None:
    net = write(folder / "net.prototxt", TEMPLATE)
    solver = write(folder / "solver.prototxt", SOLVER.replace("0.1", "${LR}"))
    recipe = read_recipe(net, solver, defines={"NUM_LABELS": 21, "WIDTH": "7", "LR": 0.5})
    assert [blob.shape for blob in recipe.blobs] == [(21, 7), (21,)]
    assert recipe.solver is not None
    assert recipe.solver.policy.base_lr == 0.5


def test_a_template_that_is_not_filled_in_names_every_placeholder_of_both_files(folder: Path) -> None:
    net = write(folder / "net.prototxt", TEMPLATE + '# "${EXP}"')
    solver = write(folder / "solver.prototxt", SOLVER.replace("0.1", "${LR}"))
    with pytest.raises(PrototxtError) as error:
        read_recipe(net, solver, defines={"LR": 1})
    assert str(error.value.where) == f"{net}:2:82"
    assert error.value.found == "the placeholder @WIDTH@"
    assert error.value.hint == (
        "state a value for each of WIDTH, NUM_LABELS, EXP: --define WIDTH=VALUE, or defines={...}"
    )


def test_a_value_for_a_placeholder_that_no_file_has_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no file has the placeholder \$\{NUM_LABLES\}") as error:
        read_recipe(write(folder / "net.prototxt", TEMPLATE), defines={"NUM_LABELS": 2, "WIDTH": 3, "NUM_LABLES": 2})
    assert error.value.found == "placeholders WIDTH, NUM_LABELS"


# ---- What the solver's environment changes


def messages(net: Path, solver: Path) -> list[str]:
    return [note.message for note in read_recipe(net, solver).notes]


def test_the_level_of_a_train_state_is_used_and_noted_as_what_caffe_train_overrides(folder: Path) -> None:
    net = write(folder / "net.prototxt", NET.replace('"ip" bottom', '"ip" include { min_level: 1 } bottom'))
    solver = write(folder / "solver.prototxt", SOLVER + "train_state { level: 1 }")
    recipe = read_recipe(net, solver)
    assert len(recipe.blobs) == 2
    (note,) = [note for note in recipe.notes if "level" in note.message]
    assert (note.severity, str(note.where)) == (Severity.INFO, f"{solver}:2:1")
    assert note.message.startswith("train_state's level 1 is used; 'caffe train' puts its own --level in its place")
    assert not [note for note in read_recipe(net, solver, level=1).notes if "level" in note.message]


def test_the_net_of_a_windows_path_is_found_beside_the_solver(folder: Path) -> None:
    write(folder / "a" / "train.prototxt", NET)
    solver = write(folder / "a" / "solver.prototxt", SOLVER + 'net: "D:\\\\x\\\\train.prototxt"')
    assert len(read_recipe(None, solver).blobs) == 2


DATA = """layer { name: "data" type: "Data" top: "data" top: "label" data_param { batch_size: 8 } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 3 } }
"""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", "one update sees 8 samples (batch_size 8); 'caffe train' on several GPUs, as many times more"),
        ("iter_size: 4", "one update sees 32 samples (batch_size 8 x iter_size 4); 'caffe train' on several GPUs, as"),
    ],
)
def test_a_note_says_how_many_samples_one_update_sees(folder: Path, more: str, words: str) -> None:
    net, solver = write(folder / "net.prototxt", DATA), write(folder / "solver.prototxt", SOLVER + more)
    (note,) = [text for text in messages(net, solver) if "one update sees" in text]
    assert note.startswith(words)


def test_several_devices_multiply_what_an_update_sees(folder: Path) -> None:
    solver = write(folder / "solver.prototxt", SOLVER + "device_id: [0, 1, 2, 3]")
    said = messages(write(folder / "net.prototxt", DATA), solver)
    assert "device_id is yjxiong's field, an update sees as many times the samples as it lists devices" in said


TWO_HEADS = (
    DATA
    + """
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 3 } %s }
layer { name: "c" type: "InnerProduct" bottom: "%s" top: "c" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" %s top: "loss" }
"""
)


@pytest.mark.parametrize(
    ("net", "left"),
    [
        (TWO_HEADS % ("", "a", ""), ["'c/0', 'c/1' (2 blobs)"]),  # c reaches no loss
        (TWO_HEADS % ("propagate_down: false", "a", ""), ["'a/0', 'a/1', 'c/0', ... and 1 more (4 blobs)"]),
        (TWO_HEADS % ("", "b", "loss_weight: 0"), []),  # no loss at all: nothing is known
        (TWO_HEADS.replace('bottom: "b" bottom: "label"', 'bottom: "c"') % ("", "b", ""), []),
        (TWO_HEADS.replace("InnerProduct", "Unheard") % ("", "a", ""), []),
        (TWO_HEADS.replace("SoftmaxWithLoss", "Yolov3") % ("", "a", ""), ["'c/0', 'c/1' (2 blobs)"]),
        (TWO_HEADS.replace("SoftmaxWithLoss", "LabelsequenceAccuracy") % ("", "a", ""), []),  # no loss
    ],
)
def test_blobs_that_no_gradient_reaches_and_that_decay_are_noted(folder: Path, net: str, left: list[str]) -> None:
    file, solver = write(folder / "net.prototxt", net), write(folder / "solver.prototxt", SOLVER + "weight_decay: 0.1")
    found = [text for text in messages(file, solver) if "no gradient reaches" in text]
    assert [text.removeprefix("no gradient reaches ").partition(":")[0] for text in found] == left
    without_decay = write(folder / "plain.prototxt", SOLVER)
    assert not [text for text in messages(file, without_decay) if "no gradient reaches" in text]


# ---- SegNet's own ways

SEGNET = """layer { name: "data" type: "DenseImageData" top: "data" top: "label" }
layer { name: "a" type: "Convolution" bottom: "data" top: "a" param { name: "w" }
        convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b" param { name: "w" }
        convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "bn" type: "BN" bottom: "b" top: "b" }
"""


def test_where_segnets_caffe_differs_is_noted(folder: Path) -> None:
    net = write(folder / "net.prototxt", SEGNET)
    solver = write(folder / "solver.prototxt", SOLVER + "iter_size: 3")
    warnings = [note for note in read_recipe(net, solver).notes if note.severity is Severity.WARNING]
    assert [(str(note.where).rpartition("/")[2], note.message[:48]) for note in warnings] == [
        ("solver.prototxt:2:1", "with iter_size 3, BN in SegNet's Caffe keeps the"),
        ("net.prototxt:2:63", "SegNet's Caffe, for which 'bn' was written, give"),
    ]
    quiet = read_recipe(write(folder / "one.prototxt", SEGNET.replace(' param { name: "w" }', "")))
    assert not [note for note in quiet.notes if note.severity is Severity.WARNING]


# ---- The whole corpus


def corpus(pattern: str) -> list[Path]:
    folder = REPOSITORY.parent / "shared" / "corpus"
    return sorted(folder.glob(pattern))


@pytest.mark.shared
@pytest.mark.parametrize("pair", corpus("pairs/*"), ids=lambda pair: pair.name)
def test_every_real_pair_gives_a_recipe_but_one(pair: Path) -> None:
    if pair.name == "resnet18-badsolver":  # 'device_id: 0,1' is no prototxt, for any parser
        with pytest.raises(PrototxtError) as error:
            read_recipe(pair / "net.prototxt", pair / "solver.prototxt")
        assert str(error.value.where).endswith("solver.prototxt:15:14")
        return
    recipe = read_recipe(pair / "net.prototxt", pair / "solver.prototxt")
    assert recipe.blobs
    assert recipe.solver is not None
    assert all(note.where is not None for note in recipe.notes)


@pytest.mark.shared
@pytest.mark.parametrize("file", corpus("large/*.prototxt") + corpus("odd/*.prototxt"), ids=lambda file: file.name)
def test_large_and_odd_files_give_a_recipe_or_our_own_error(file: Path) -> None:
    assert_read_or_refused(None, file) if ".solver." in file.name else assert_read_or_refused(file, None)


# ---- What reading must not cost


def test_reading_loads_nothing_heavy(folder: Path) -> None:
    net = write(folder / "net.prototxt", NET)
    code = (
        "import sys; from caffe2torch.reading import read_recipe; "
        f"read_recipe({str(net)!r}); print(*sorted({{'torch', 'numpy', 'rich', 'h5py'}} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
