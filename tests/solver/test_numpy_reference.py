"""The NumPy reference is Caffe: it follows every recorded run, so that others may be held against it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_caffe import Caffe
from traces import CASES, Trace, tolerance


@pytest.mark.parametrize("trace", CASES)
def test_the_reference_follows_caffe(trace: Trace) -> None:
    solver = trace.recipe().solver
    assert solver is not None
    arrays = trace.arrays
    lr_mult, decay_mult = (dict(zip(trace.names, arrays[key], strict=True)) for key in ("lr_mult", "decay_mult"))
    caffe = Caffe(solver, lr_mult, decay_mult, {name: arrays[f"init/{name}"] for name in trace.names})
    for t in range(trace.iterations):
        rate = caffe.step({name: arrays[f"grad/{name}"][t] for name in trace.names})
        np.testing.assert_allclose(rate, arrays["lr"][t], rtol=2.5e-7)
        for name, theirs in trace.weights(t):
            allowed = tolerance(solver) * trace.movement
            np.testing.assert_allclose(caffe.weights[name], theirs, rtol=0, atol=allowed)
