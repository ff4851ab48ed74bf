"""A solver prototxt to settings: every value, what Caffe refuses, what it lets pass."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_texts import PLAIN, read, warnings

from caffe2torch.errors import SolverError, UnsupportedError
from caffe2torch.recipe import (
    LrPolicy,
    PolicyType,
    Regularization,
    Severity,
    SolverSettings,
    SolverType,
)
from caffe2torch.solver.lr_policy import rate

# --- values ---


def test_defaults_are_caffes() -> None:
    settings, notes = read('lr_policy: "fixed" base_lr: 0.01 max_iter: 1')
    assert settings == SolverSettings(SolverType.SGD, LrPolicy(PolicyType.FIXED, base_lr=0.01, max_iter=1), max_iter=1)
    assert notes == ()


def test_every_value_is_read_and_stands_as_it_was_written() -> None:
    settings, notes = read(
        """
        train_net: "models/train.prototxt"
        type: "Adam"
        base_lr: 0.1 lr_policy: "multistep" gamma: .3 stepvalue: 10 stepvalue: [20, 20]
        momentum: 9e-1 momentum2: 0.99 delta: 1e-3 weight_decay: 0.0005 regularization_type: "L1"
        clip_gradients: 35 iter_size: 0x4 max_iter: 100 random_seed: 1701
        """
    )
    assert settings == SolverSettings(
        type=SolverType.ADAM,
        policy=LrPolicy(PolicyType.MULTISTEP, base_lr=0.1, gamma=0.3, stepvalues=(10, 20, 20), max_iter=100),
        momentum=0.9,
        momentum2=0.99,
        delta=0.001,
        weight_decay=0.0005,
        regularization=Regularization.L1,
        clip_gradients=35.0,
        iter_size=4,
        max_iter=100,
        random_seed=1701,
        net="models/train.prototxt",
    )
    assert [note.message for note in notes] == [
        "a stepvalue stands twice: Caffe lowers the rate in as many iterations, one after the other"
    ]


def test_places_are_those_of_the_first_field_of_each_name() -> None:
    settings, _ = read('base_lr: 0.1\nlr_policy: "multistep" gamma: 0.1\nstepvalue: [5,\n 7]\nmin_lr: 0.01')
    assert {name: str(where) for name, where in settings.places.items()} == {
        "base_lr": "solver.prototxt:1:1",
        "lr_policy": "solver.prototxt:2:1",
        "gamma": "solver.prototxt:2:24",
        "stepvalue": "solver.prototxt:3:13",
        "min_lr": "solver.prototxt:5:1",
    }


@given(
    st.sampled_from(list(SolverType)),
    st.integers(0, 999).map(lambda n: n / 1000),
    st.integers(1, 10**6).map(lambda n: n / 10**5),
    st.integers(1, 64),
)
def test_six_digits_come_back_as_written(kind: SolverType, momentum: float, base: float, iter_size: int) -> None:
    if kind in (SolverType.ADAGRAD, SolverType.RMSPROP):
        momentum = 0.0
    settings, _ = read(
        f'type: "{kind}" lr_policy: "fixed" base_lr: {base!r} momentum: {momentum!r} iter_size: {iter_size}'
    )
    assert (settings.type, settings.momentum, settings.policy.base_lr) == (kind, momentum, base)
    assert settings.iter_size == iter_size


@pytest.mark.parametrize("kind", list(SolverType))
def test_the_old_enum_is_the_type(kind: SolverType) -> None:
    assert read(PLAIN + f"solver_type: {kind.upper()}")[0].type is kind


def test_an_enum_may_be_a_number() -> None:
    assert read(PLAIN + "solver_type: 5")[0].type is SolverType.ADAM


@pytest.mark.parametrize(("written", "clip"), [("-1", None), ("-0.5", None), ("0", 0.0), ("0.5", 0.5)])
def test_clipping_is_off_when_negative_and_only_then(written: str, clip: float | None) -> None:
    assert read(PLAIN + f"clip_gradients: {written}")[0].clip_gradients == clip


@pytest.mark.parametrize(("written", "seed"), [("-1", None), ("0", 0), ("519134322723416835", 519134322723416835)])
def test_a_negative_seed_is_no_seed(written: str, seed: int | None) -> None:
    assert read(PLAIN + f"random_seed: {written}")[0].random_seed == seed


# --- refusals ---

REFUSED = {
    'type: "Adamm"': ("1:1", "unknown solver type", 'did you mean "Adam"?'),
    'type: "ADAM"': ("1:1", "unknown solver type", 'did you mean "Adam"?'),
    'type: "Momentum"': ("1:1", "unknown solver type", None),
    'type: "SGD" solver_type: SGD': ("1:13", "solver_type and type say the same thing", None),
    "solver_type: MOMENTUM": ("1:1", "unknown solver_type", None),
    "solver_type: NESTROV": ("1:1", "unknown solver_type", 'did you mean "NESTEROV"?'),
    'type: "AdaGrad" momentum: 0.9': ("1:17", "momentum cannot be used with AdaGrad", "remove it, or set it to 0"),
    'type: "RMSProp" momentum: 0.9': ("1:17", "momentum cannot be used with RMSProp", "remove it, or set it to 0"),
    'type: "RMSProp" rms_decay: 1': ("1:17", "rms_decay must lie between 0 and 1", None),
    'type: "RMSProp" rms_decay: -0.1': ("1:17", "rms_decay must lie between 0 and 1", None),
    "average_loss: 0": ("1:1", "average_loss must be at least 1", None),
    'weight_decay: 1 regularization_type: "l2"': ("1:17", "unknown regularization_type", 'did you mean "L2"?'),
    'train_net: "m"': ("1:1", "net and train_net both name the net to train", "keep one of them"),
    "net_param { }": ("1:1", "net and net_param both name the net to train", "keep one of them"),
    'test_net: "t"': ("1:1", "each test net needs its test_iter", None),
    "test_iter: 5": ("1:1", "testing needs a test_interval", None),
    "test_iter: 5 test_interval: 0": ("1:14", "testing needs a test_interval", None),
    "test_iter: 5 test_interval: 9 test_state { } test_state { }": ("1:31", "test_state must be stated once", None),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_caffe_refuses_is_refused_with_its_place(text: str) -> None:
    place, message, hint = REFUSED[text]
    with pytest.raises(SolverError) as caught:
        read(f'{text} net: "n" lr_policy: "fixed" base_lr: 0.1')
    assert str(caught.value.where) == f"solver.prototxt:{place}"
    assert caught.value.message.startswith(message)
    if hint is not None:
        assert caught.value.hint == hint


POLICIES_REFUSED = {
    "base_lr: 1": ("1:1", "Caffe needs an lr_policy"),
    'lr_policy: "linear"': ("1:1", "unknown lr_policy"),
    'lr_policy: "Step" stepsize: 1 gamma: 1': ("1:1", "unknown lr_policy"),
    'lr_policy: "step" gamma: 0.1': ("1:1", "lr_policy 'step' needs a stepsize above 0"),
    'lr_policy: "step" gamma: 0.1 stepsize: -1': ("1:30", "lr_policy 'step' needs a stepsize above 0"),
    'lr_policy: "sigmoid" gamma: 0.1': ("1:1", "lr_policy 'sigmoid' needs a stepsize above 0"),
    'lr_policy: "step" gamma: -0.1 stepsize: 1': ("1:19", "lr_policy 'step' takes no negative gamma"),
    'lr_policy: "exp" gamma: -0.1': ("1:18", "lr_policy 'exp' takes no negative gamma"),
    'lr_policy: "inv" gamma: -0.1': ("1:18", "lr_policy 'inv' takes no negative gamma"),
    'lr_policy: "multistep" gamma: nan': ("1:24", "lr_policy 'multistep' takes no negative gamma"),
    'lr_policy: "sigmoid" gamma: nan stepsize: 1': ("1:22", "lr_policy 'sigmoid' takes no negative gamma"),
}


@pytest.mark.parametrize("text", POLICIES_REFUSED)
def test_a_policy_that_caffe_refuses_is_refused_with_its_place(text: str) -> None:
    place, message = POLICIES_REFUSED[text]
    with pytest.raises(SolverError) as caught:
        read(text)
    assert (str(caught.value.where), caught.value.message) == (f"solver.prototxt:{place}", message)


def test_an_error_says_what_was_found_what_was_expected_and_what_to_change() -> None:
    with pytest.raises(SolverError) as caught:
        read('base_lr: 0.1\nlr_policy: "Step"\n')
    assert str(caught.value) == (
        "solver.prototxt:2:1: unknown lr_policy\n"
        '  found: lr_policy: "Step"\n'
        "  expected: one of fixed, step, exp, inv, multistep, poly, sigmoid, multifixed, plateau\n"
        '  hint: did you mean "step"?'
    )


def test_a_misspelt_field_is_pointed_at_where_the_right_one_is_missed() -> None:
    with pytest.raises(SolverError) as caught:
        read('lr_policy: "step" gamma: 0.1\nstep_size: 10')
    assert caught.value.found == "no stepsize, but step_size at solver.prototxt:2:1"


@pytest.mark.parametrize(
    "text",
    [
        'lr_policy: "fixed" gamma: -1 stepsize: -1 base_lr: 1 max_iter: 1',  # not read by this policy
        'lr_policy: "poly" gamma: -1 power: 1 base_lr: 1 max_iter: 1',
        'lr_policy: "fixed" rms_decay: 7 base_lr: 1 max_iter: 1',  # not read by this solver
        'lr_policy: "fixed" weight_decay: 0 regularization_type: "l2" base_lr: 1 max_iter: 1',  # nothing decays
        'lr_policy: "fixed" base_lr: 1 max_iter: 1',  # no net: it may come from elsewhere
        'lr_policy: "fixed" base_lr: 1 max_iter: 1 momentum: 0 type: "AdaGrad"',
    ],
)
def test_what_caffe_does_not_look_at_is_not_refused(text: str) -> None:
    assert read(text)[0].policy.base_lr == 1


def test_an_unknown_regularization_that_never_acts_is_warned_of() -> None:
    (warning,) = warnings(PLAIN + 'regularization_type: "l2"')
    assert warning == "regularization_type 'l2' is unknown; Caffe lets it pass while weight_decay is 0"


def test_a_sigmoid_with_a_negative_gamma_falls() -> None:
    settings, notes = read('lr_policy: "sigmoid" gamma: -0.5 stepsize: 4 base_lr: 0.1 max_iter: 9')
    for i in (0, 4, 8):
        assert rate(settings.policy, i) == pytest.approx(0.1 / (1 + math.exp(0.5 * (i - 4))), rel=1e-7)
    (note,) = notes
    assert (note.severity, note.message[:40]) == (Severity.INFO, "gamma is negative, so the rate falls; Ca")


FORKS_OWN = {
    'lr_policy: "sgdr"': "lr_policy 'sgdr' is a rule of Caffe's forks and not translated: the rate follows a",
    'lr_policy: "cosine"': "lr_policy 'cosine' is a rule of Caffe's forks and not translated: the rate follows a",
    'lr_policy: "stepearly"': "lr_policy 'stepearly' is a rule of Caffe's forks and not translated: by its name",
    'type: "AMSGRAD" lr_policy: "fixed"': "type 'AMSGRAD' is a rule of Caffe's forks and not translated: Adam that",
    'solver_type: AMSGRAD lr_policy: "fixed"': "solver_type 'AMSGRAD' is a rule of Caffe's forks and not translated",
    'type: "AdamW" lr_policy: "fixed"': "type 'AdamW' is a rule of Caffe's forks and not translated: Adam whose weight",
}


@pytest.mark.parametrize("text", FORKS_OWN)
def test_a_forks_policy_or_solver_is_refused_by_its_name_and_no_other_is_guessed(text: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read(text + " base_lr: 0.1")
    assert caught.value.message.startswith(FORKS_OWN[text])
    assert str(caught.value.where) == "solver.prototxt:1:1"
    assert "did you mean" not in str(caught.value)


def test_test_iter_without_a_test_net_is_read_since_testing_is_not_translated() -> None:
    settings, notes = read('train_net: "t" test_iter: 100 lr_policy: "fixed" base_lr: 0.1 max_iter: 9 test_interval: 5')
    assert settings.net == "t"
    assert [note.message for note in notes] == [
        "test_iter without a test net, which Caffe refuses; testing is not translated"
    ]


def test_the_weights_that_a_solver_starts_from_are_named() -> None:
    (note,) = read(PLAIN + 'weights: "a.caffemodel,b.caffemodel" weights: "c.caffemodel"')[1]
    assert note.message == "training starts from the weights in a.caffemodel, b.caffemodel, c.caffemodel"


# --- what Caffe accepts ---

ODD = {
    'lr_policy: "fixed" max_iter: 9': "base_lr is not stated, so Caffe takes 0: nothing learns",
    'lr_policy: "fixed" base_lr: -1 max_iter: 9': "base_lr is -1: every step increases the loss",
    'lr_policy: "step" stepsize: 5 base_lr: 1 max_iter: 9': "gamma is not stated, so Caffe takes 0: the rate is 0 from",
    'lr_policy: "exp" base_lr: 1 max_iter: 9': "gamma is not stated, so Caffe takes 0: the rate is 0 from the second",
    'lr_policy: "inv" power: 1 base_lr: 1 max_iter: 9': "gamma is not stated, so Caffe takes 0: the rate stays base_lr",
    'lr_policy: "sigmoid" stepsize: 2 base_lr: 1 max_iter: 9': "gamma is not stated, so Caffe takes 0: the rate sta",
    'lr_policy: "inv" gamma: 1 base_lr: 1 max_iter: 9': "power is not stated, so Caffe takes 0: the rate stays base_lr",
    'lr_policy: "poly" base_lr: 1 max_iter: 9': "power is not stated, so Caffe takes 0: the rate stays base_lr",
    'lr_policy: "poly" power: 0.9 base_lr: 1': "lr_policy 'poly' without max_iter: the rate is not a number",
    'lr_policy: "multistep" gamma: 1 base_lr: 1 max_iter: 9': "lr_policy 'multistep' without a stepvalue",
    'lr_policy: "multistep" gamma: 1 stepvalue: [9, 5] base_lr: 1 max_iter: 9': "the stepvalues do not rise",
    PLAIN + "iter_size: 0": "iter_size is 0: Caffe reads no batch and divides by 0",
    PLAIN + "iter_size: -2": "iter_size is -2: Caffe reads no batch, only decay and momentum act",
    PLAIN + 'type: "Adam" momentum: 1': "momentum is 1, which is outside 0 to 1: Adam divides by 0",
    PLAIN + "momentum: 1.5": "momentum is 1.5, which is outside 0 to 1",
    PLAIN + 'type: "Adam"': "momentum is not stated, so Adam's beta 1 is 0",
    PLAIN + 'type: "AdaDelta"': "momentum is not stated, so AdaDelta's rho is 0",
    PLAIN + 'type: "Adam" momentum: 0.9 momentum2: 1': "momentum2 is 1, which is outside 0 to 1",
    PLAIN + 'type: "AdaGrad" delta: 0': "delta is 0: where a gradient is exactly 0",
    PLAIN + "clip_gradients: 0": "clip_gradients is 0: Caffe scales every gradient to 0",
    PLAIN + "weight_decay: -1": "weight_decay is -1: weights grow",
    PLAIN + 'momentum_policy: "poly" momentum_power: 1': "max_momentum is not stated, so Caffe takes 0",
    PLAIN + 'momentum_policy: "poly" max_momentum: 1': "momentum_power is not stated, so Caffe takes 0",
    'lr_policy: "multistep" gamma: 1 stepvalue: [1, 2] base_lr: 1 max_iter: 9 warmup_iter: 5': "several stepvalues ar",
}


@pytest.mark.parametrize("text", ODD)
def test_what_can_hardly_be_meant_is_accepted_with_a_warning(text: str) -> None:
    assert [message[: len(ODD[text])] for message in warnings(text)] == [ODD[text]]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN + 'type: "Adam" momentum: 0.9',
        PLAIN + 'type: "AdaGrad" delta: 0.1 weight_decay: 0.1 clip_gradients: 1 iter_size: 2',
        'lr_policy: "multistep" gamma: 0.1 stepvalue: [5, 9] base_lr: 1 max_iter: 9',
        'lr_policy: "poly" power: 0.9 base_lr: 1 max_iter: 9 momentum: 0.9',
        'lr_policy: "multifixed" stagelr: [1, 0.1] stageiter: [5, 9] max_iter: 9',
    ],
)
def test_an_ordinary_solver_is_not_warned_of(text: str) -> None:
    assert warnings(text) == []


def test_a_max_iter_that_ends_at_once_is_named_as_it_was_written() -> None:
    ending = "Caffe's own train command would stop at once"
    for written, said in (("", "is not stated"), ("max_iter: 0", "is not above 0")):
        _, notes = read('net: "n" base_lr: 0.1 lr_policy: "fixed" ' + written)
        assert f"max_iter {said}: {ending}" in [note.message for note in notes]


def test_what_is_not_read_is_noted() -> None:
    _, notes = read(PLAIN + "gamma: 0.1 power: 1 stepsize: 5 stepvalue: 5 momentum2: 0.9 delta: 1")
    assert [(note.where.column if note.where else 0, note.message) for note in notes] == [
        (54, "lr_policy 'fixed' does not read gamma"),
        (65, "lr_policy 'fixed' does not read power"),
        (74, "lr_policy 'fixed' does not read stepsize"),
        (86, "lr_policy 'fixed' does not read stepvalue"),
        (99, "SGD does not read momentum2"),
        (114, "SGD does not read delta"),
    ]
