"""Random solvers, for tests that state laws."""

from __future__ import annotations

from hypothesis import strategies as st

from caffe2torch.recipe import LrPolicy, PolicyType, Regularization, SolverSettings, SolverType

PAIRS = ((1.0, 1.0), (2.0, 0.0), (1.0, 0.0), (0.5, 2.0), (10.0, 1.0), (0.0, 0.0), (0.0, 1.0))
MOMENTUM = {SolverType.SGD, SolverType.NESTEROV, SolverType.ADAM, SolverType.ADADELTA}


@st.composite
def policies(draw: st.DrawFn) -> LrPolicy:
    base = draw(st.sampled_from([1.0, 0.1, 0.01, 1e-4, 1e-7]))
    kind = draw(st.sampled_from([p for p in PolicyType if p not in (PolicyType.PLATEAU, PolicyType.MULTIFIXED)]))
    gamma = {PolicyType.SIGMOID: -0.1, PolicyType.INV: 1e-3}.get(kind, draw(st.sampled_from([0.1, 0.5, 0.99])))
    return LrPolicy(kind, base, gamma=gamma, power=0.75, stepsize=20, stepvalues=(10, 15), max_iter=60)


@st.composite
def solvers(draw: st.DrawFn, policy: st.SearchStrategy[LrPolicy] | None = None) -> SolverSettings:
    kind = draw(st.sampled_from(list(SolverType)))
    return SolverSettings(
        kind,
        draw(policies() if policy is None else policy),
        momentum=draw(st.sampled_from([0.9, 0.5])) if kind in MOMENTUM else 0.0,
        weight_decay=draw(st.sampled_from([0.0, 0.0005, 0.01])),
        regularization=draw(st.sampled_from(list(Regularization))),
        delta=draw(st.sampled_from([1e-8, 1e-3, 0.1])),
        clip_gradients=draw(st.sampled_from([None, 0.5, 35.0])),
        iter_size=draw(st.sampled_from([1, 3])),
        max_iter=60,
    )
