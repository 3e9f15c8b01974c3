"""Hypothesis strategies for events, and for the values that scripts put into them."""

from __future__ import annotations

from hypothesis import strategies as st

from shared.events import (
    KINDS,
    SEVERITIES,
    AlertChanged,
    ConfigUpdated,
    Event,
    Gap,
    HistogramLogged,
    MessageLogged,
    MetricsLogged,
    RunFinished,
    RunStarted,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(0, 2**63 - 1)
TEXTS = st.text(max_size=12)
SCALARS = st.one_of(st.floats(), INT64, st.booleans(), TEXTS)
STEPS = st.none() | INT64
CONFIGS = st.dictionaries(
    TEXTS,
    st.recursive(
        st.none() | SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@st.composite
def histograms(draw: st.DrawFn) -> HistogramLogged:
    counts = draw(st.lists(st.floats(), max_size=5))
    edge = st.floats(allow_nan=False)
    edges = draw(st.lists(edge, min_size=len(counts) + 1, max_size=len(counts) + 1))
    return HistogramLogged(
        kind=draw(st.sampled_from(KINDS)),
        step=draw(STEPS),
        name=draw(TEXTS),
        edges=sorted(edges),
        counts=counts,
    )


def events() -> st.SearchStrategy[Event]:
    """Any event of any type, within the bounds."""
    return st.one_of(
        st.builds(
            RunStarted,
            project=TEXTS,
            name=TEXTS,
            tags=st.lists(TEXTS, max_size=3),
            notes=TEXTS,
            config=CONFIGS,
            rank=st.integers(0, 100),
            process_start_ns=TIMES,
            gpu_uuids=st.lists(TEXTS, max_size=2),
            resumed_from_step=st.none() | st.integers(0, 2**62),
        ),
        st.builds(ConfigUpdated, config=CONFIGS),
        st.builds(
            MetricsLogged,
            kind=st.sampled_from(KINDS),
            step=STEPS,
            values=st.dictionaries(TEXTS, SCALARS, max_size=5),
        ),
        histograms(),
        st.builds(MessageLogged, level=TEXTS, text=TEXTS),
        st.builds(
            AlertChanged,
            name=TEXTS,
            subject=TEXTS,
            is_active=st.booleans(),
            severity=st.sampled_from(SEVERITIES),
            text=TEXTS,
            value=st.none() | SCALARS,
            lasted_s=st.none() | st.floats(),
        ),
        st.builds(
            Gap,
            count=st.integers(0, 2**40),
            by_kind=st.dictionaries(TEXTS, st.integers(0, 2**40), max_size=3),
            reason=TEXTS,
            unknown_ms=st.none() | st.floats(),
        ),
        st.builds(
            RunFinished,
            status=TEXTS,
            exit_code=st.none() | st.integers(-255, 255),
            summary=CONFIGS,
        ),
    )


def same(left: object, right: object) -> bool:
    """Equal, where NaN equals NaN and 1 is neither 1.0 nor True."""
    return repr(left) == repr(right)
