"""The table of transitions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poiesis.domain.errors import IllegalTransition
from poiesis.domain.states import ROLE_OF, TERMINAL, TRANSITIONS, Stage, State, path


@pytest.mark.parametrize(("seen", "to"), list(itertools.product(State, State)))
def test_a_path_between_two_states_follows_the_table_or_is_refused(seen, to):
    try:
        steps = path(seen, to)
    except IllegalTransition:
        return
    for before, after in itertools.pairwise((seen, *steps)):
        assert after in TRANSITIONS[before]
    assert (seen, *steps)[-1] is to


def test_a_finished_task_never_seen_running_passes_through_every_state():
    assert path(State.QUEUED, State.COMPLETE) == (State.INITIALIZING, State.RUNNING, State.COMPLETE)
    assert path(State.QUEUED, State.SYSTEM_ERROR) == (State.SYSTEM_ERROR,)
    assert path(State.QUEUED, State.CANCELED) == (State.CANCELED,)
    assert path(State.RUNNING, State.RUNNING) == ()


@pytest.mark.parametrize("ended", sorted(TERMINAL))
@pytest.mark.parametrize("to", State)
def test_a_terminal_state_is_final(ended, to):
    if to is ended:
        assert path(ended, to) == ()
    else:
        with pytest.raises(IllegalTransition):
            path(ended, to)


@given(st.sampled_from(sorted(TRANSITIONS)))
def test_every_state_that_is_entered_can_end_as_system_error(state):
    assert path(state, State.SYSTEM_ERROR)[-1] is State.SYSTEM_ERROR


@pytest.mark.parametrize("state", [State.QUEUED, State.INITIALIZING, State.RUNNING])
def test_every_live_state_can_be_canceled_through_canceling(state):
    assert path(state, State.CANCELING) and path(State.CANCELING, State.CANCELED) == (State.CANCELED,)


def test_a_state_never_goes_back():
    with pytest.raises(IllegalTransition):
        path(State.RUNNING, State.QUEUED)
    with pytest.raises(IllegalTransition):
        path(State.CANCELING, State.COMPLETE)


def test_every_stage_has_a_role_and_terminal_states_have_no_transitions():
    assert set(ROLE_OF) == set(Stage)
    assert not TERMINAL & TRANSITIONS.keys()
    assert {state for state in State if state.is_terminal} == TERMINAL
