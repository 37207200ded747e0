"""The table of the machine: every pair is a row or a refusal, and each rule makes what design and README say."""

import random
from dataclasses import fields, replace
from itertools import product
from typing import get_args

import pytest

from fastagi.completion import machine
from fastagi.completion.machine import (
    BEGIN_WITHIN,
    RECALL_GRACE,
    Accepted,
    Asked,
    CallCompleted,
    CallerAnswered,
    CallerBusy,
    CallerFree,
    CallFailed,
    CallLost,
    Cancelled,
    Event,
    Fulfilled,
    MonitorEnded,
    Recall,
    RecallFailed,
    RecallLost,
    RecallTaken,
    Selected,
    SignOfLife,
    StopRecall,
    TimeOver,
    describe,
    service_of,
    step,
)
from fastagi.completion.model import (
    OPEN,
    TURN,
    Context,
    Device,
    Number,
    Policy,
    Request,
    Service,
    Settings,
    State,
)
from fastagi.errors import Refused

N, P, Q, R, C, D, E = State
CCBS, CCNR, CCNL = Service
NOW = 10_000.0
POLICY = Policy(caller=Settings(), callee=Settings())

SAMPLES: dict[type, Event] = {
    Asked: Asked(),
    Accepted: Accepted(),
    MonitorEnded: MonitorEnded("REFUSED", "the other PBX has ended it"),
    Selected: Selected("r2"),
    CallerBusy: CallerBusy(),
    CallerFree: CallerFree(),
    SignOfLife: SignOfLife(),
    RecallTaken: RecallTaken("Local/r1"),
    RecallFailed: RecallFailed("NOANSWER", 19),
    RecallLost: RecallLost("nobody reports on it"),
    CallerAnswered: CallerAnswered("Local/r1;2"),
    CallCompleted: CallCompleted(),
    CallFailed: CallFailed("BUSY", 17, callee_in_use=True),
    CallLost: CallLost(),
    Fulfilled: Fulfilled(9),
    Cancelled: Cancelled("1000"),
    TimeOver: TimeOver(),
}

# The rows there are to be, and where each of the samples leads.
ROWS: dict[tuple[State, type], State] = {
    (N, Asked): Q,
    (P, Accepted): Q,
    (P, MonitorEnded): E,
    (P, Cancelled): E,
    (Q, MonitorEnded): E,
    (R, CallerBusy): Q,
    (R, MonitorEnded): E,
    (Q, Selected): R,
    (Q, CallerBusy): Q,
    (Q, CallerFree): Q,
    (Q, SignOfLife): Q,
    (Q, TimeOver): E,
    (Q, Fulfilled): D,
    (Q, Cancelled): E,
    (R, RecallTaken): R,
    (R, RecallFailed): Q,
    (R, RecallLost): Q,
    (R, CallerAnswered): C,
    (R, Cancelled): E,
    (C, CallCompleted): D,
    (C, CallFailed): Q,
    (C, CallLost): E,
    (C, RecallLost): E,
    (C, Cancelled): E,
}
PAIRS = list(product(State, SAMPLES))


def request(state: State = State.QUEUED, **changes: object) -> Request:
    """1000 waits for 2000; in a turn, it is that of recall r1, which Asterisk has taken."""
    base = Request(
        id=7,
        caller=Number("1000"),
        caller_devices=(Device("PJSIP/1000"),),
        caller_context=Context("phones"),
        callee=Number("2000"),
        callee_devices=(Device("PJSIP/2000"),),
        service=CCBS,
        state=state,
        why="was busy",
        asked_at=NOW - 100,
        service_ends=NOW + 4700,
    )
    if state in TURN:
        base = replace(base, recall_id="r1", taken=True, channel="Local/r1", recall_ends=NOW + 20)
    return replace(base, **changes)  # type: ignore[arg-type]


def ready_not_taken(**changes: object) -> Request:
    return request(R, **{"taken": False, "channel": "", **changes})


def after(r: Request, event: Event, now: float = NOW, policy: Policy = POLICY) -> Request:
    return step(r, event, now, policy).request


# --------------------------------------------------------------------------------------------- every pair


def test_there_is_a_sample_of_every_event() -> None:
    assert set(SAMPLES) == set(get_args(Event))


def test_the_table_has_just_these_rows() -> None:
    assert set(machine.TABLE) == set(ROWS)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=[f"{s}-{e.__name__}" for s, e in PAIRS])
def test_every_pair_is_a_row_or_a_refusal_that_names_both(state: State, event: type) -> None:
    r = request(state, taken=False) if event is RecallTaken and state is R else request(state)
    before = replace(r)
    sample = SAMPLES[event]
    if (state, event) in ROWS:
        made = step(r, sample, NOW, POLICY)
        assert made.request.state is ROWS[state, event]
        assert made.sentence.strip()
        assert made.request.state in machine.TABLE[state, event].to
    else:
        with pytest.raises(Refused) as no:
            step(r, sample, NOW, POLICY)
        assert state.value in str(no.value)
        assert event.__name__ in str(no.value)
        assert "7" in str(no.value)
        assert no.value.reason == "NOT_NOW"
    assert r == before


def test_what_is_over_stays_over() -> None:
    assert not [(s, e) for s, e in machine.TABLE if s in (D, E)]


def test_an_effect_follows_only_where_the_callers_phone_is_concerned() -> None:
    rings: set[tuple[State, type]] = set()
    stops: set[tuple[State, type]] = set()
    for (state, event), sample in ((pair, SAMPLES[pair[1]]) for pair in ROWS):
        r = ready_not_taken() if event is RecallTaken else request(state)
        for effect in step(r, sample, NOW, POLICY).effects:
            (rings if isinstance(effect, Recall) else stops).add((state, event))
    assert rings == {(Q, Selected)}
    assert stops == {(R, RecallLost), (R, Cancelled), (R, MonitorEnded)}


# ----------------------------------------------------------------------------------------- what was called


@pytest.mark.parametrize(
    ("dialstatus", "cause", "service"),
    [
        ("BUSY", 17, CCBS),
        ("BUSY", 0, CCBS),
        ("BUSY", 21, CCBS),
        ("NOANSWER", 19, CCNR),
        ("NOANSWER", 0, CCNR),
        ("CANCEL", 0, CCNR),
        ("CANCEL", 16, CCNR),
        ("CHANUNAVAIL", 21, CCNR),
        ("CHANUNAVAIL", 3, CCNL),
        ("CHANUNAVAIL", 20, CCNL),
        ("CHANUNAVAIL", 1, None),
        ("CHANUNAVAIL", 0, None),
        ("CHANUNAVAIL", 34, None),
        ("CONGESTION", 34, None),
        ("CONGESTION", 3, None),
        ("CONGESTION", 21, None),
        ("ANSWER", 16, None),
        ("", 0, None),
        ("INVALIDARGS", 0, None),
        ("busy", 17, None),
    ],
)
def test_the_service_of_a_failed_call(dialstatus: str, cause: int, service: Service | None) -> None:
    assert service_of(dialstatus, cause) is service


@pytest.mark.parametrize(
    ("dialstatus", "cause", "words"),
    [
        ("BUSY", 17, "was busy"),
        ("NOANSWER", 19, "did not answer"),
        ("CANCEL", 0, "did not answer before the caller hung up"),
        ("CONGESTION", 34, "could not be reached (congestion)"),
        ("ANSWER", 16, "answered"),
        ("CHANUNAVAIL", 1, "does not exist"),
        ("CHANUNAVAIL", 21, "declined"),
        ("CHANUNAVAIL", 3, "was not registered"),
        ("CHANUNAVAIL", 20, "was not registered"),
        ("CHANUNAVAIL", 0, "was not available"),
        ("", 0, "was not reached"),
        ("TORTURE", 0, "was not reached"),
    ],
)
def test_a_failed_call_in_words(dialstatus: str, cause: int, words: str) -> None:
    assert describe(dialstatus, cause) == f"{words} ({dialstatus or 'no DIALSTATUS'}, cause {cause})"


# ------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize(
    ("service", "caller", "callee", "lasts"),
    [
        (CCBS, Settings(), Settings(), 4800),
        (CCNR, Settings(), Settings(), 7200),
        (CCNL, Settings(), Settings(), 7200),
        (CCBS, Settings(ccbs_available_timer=60), Settings(), 60),
        (CCBS, Settings(), Settings(ccbs_available_timer=60), 60),
        (CCBS, Settings(ccnr_available_timer=60), Settings(ccnr_available_timer=50), 4800),
        (CCNR, Settings(ccnr_available_timer=60), Settings(ccnr_available_timer=50), 50),
        (CCNR, Settings(ccnr_available_timer=50), Settings(ccnr_available_timer=60), 50),
        (CCNL, Settings(), Settings(ccnr_available_timer=50, ccbs_available_timer=1), 50),
    ],
)
def test_asked_waits_the_shorter_of_the_two_timers(
    service: Service, caller: Settings, callee: Settings, lasts: float
) -> None:
    r = after(request(N, service=service, asked_at=0, service_ends=0), Asked(), policy=Policy(caller, callee))
    assert (r.asked_at, r.service_ends) == (NOW, NOW + lasts)
    assert (r.recalls, r.recall_id, r.suspended, r.retry_at) == (0, "", False, 0)


def test_only_no_reply_needs_a_sign_of_life() -> None:
    needs = {s: after(request(N, service=s), Asked()).sign_needed for s in Service}
    assert needs == {CCBS: False, CCNR: True, CCNL: False}


# ------------------------------------------------------------------------------------------------ the turn


def test_selected_rings_the_caller_once_with_a_backstop() -> None:
    policy = Policy(Settings(cc_recall_timer=33), Settings(cc_recall_timer=99))
    made = step(request(retry_at=NOW), Selected("r2"), NOW, policy)
    r = made.request
    assert (r.recall_id, r.taken, r.channel, r.retry_at) == ("r2", False, "", 0)
    assert r.recall_ends == NOW + BEGIN_WITHIN
    assert made.effects == (Recall(r),)


def test_a_recall_that_has_begun_has_its_time_from_then_on() -> None:
    policy = Policy(Settings(cc_recall_timer=33), Settings(cc_recall_timer=99))
    r = step(request(), Selected("r2"), NOW, policy).request
    taken = step(r, RecallTaken("Local/r2"), NOW + 9, policy).request
    assert taken.recall_ends == NOW + 9 + 33 + RECALL_GRACE


def test_busy_and_free_change_only_the_mark() -> None:
    r = request(sign_needed=True, recalls=1)
    busy = after(r, CallerBusy())
    assert busy == replace(r, suspended=True)
    assert after(busy, CallerFree()) == r


def test_a_sign_of_life_changes_only_the_mark() -> None:
    r = request(service=CCNR, sign_needed=True, suspended=True, recalls=1)
    assert after(r, SignOfLife()) == replace(r, sign_needed=False)


def test_a_recall_is_taken_once() -> None:
    r = after(ready_not_taken(), RecallTaken("Local/r1"))
    assert (r.taken, r.channel, r.state) == (True, "Local/r1", R)
    with pytest.raises(Refused, match="r1") as no:
        step(r, RecallTaken("Local/again"), NOW, POLICY)
    assert no.value.reason == "RECALL_TAKEN"


@pytest.mark.parametrize("event", [RecallFailed("NOANSWER", 19), CallerAnswered("Local/r1")])
def test_a_recall_that_was_not_begun_tells_nothing(event: Event) -> None:
    with pytest.raises(Refused, match="r1") as no:
        step(ready_not_taken(), event, NOW, POLICY)
    assert no.value.reason == "RECALL_UNKNOWN"


def test_answered_keeps_the_recall_and_has_a_far_limit() -> None:
    r = after(request(R), CallerAnswered("Local/r1;2"))
    assert (r.state, r.recall_id, r.taken, r.channel) == (C, "r1", True, "Local/r1;2")
    assert r.recall_ends >= NOW + 3600


# ---------------------------------------------------------------------------------- after a failed recall


@pytest.mark.parametrize(
    ("dialstatus", "cause", "suspended", "counted"),
    [
        ("BUSY", 17, True, 0),
        ("BUSY", 0, True, 0),
        ("CHANUNAVAIL", 3, True, 0),
        ("CHANUNAVAIL", 20, True, 0),
        ("NOANSWER", 19, False, 1),
        ("NOANSWER", 0, False, 1),
        ("CHANUNAVAIL", 21, False, 1),
        ("CANCEL", 16, False, 1),
        ("CONGESTION", 34, False, 1),
        ("", 0, False, 1),
    ],
)
def test_after_a_failed_recall(dialstatus: str, cause: int, suspended: bool, counted: int) -> None:
    before = request(R)
    made = step(before, RecallFailed(dialstatus, cause), NOW, POLICY)
    r = made.request
    assert (r.state, r.suspended, r.recalls) == (Q, suspended, counted)
    assert (r.recall_id, r.taken, r.channel, r.recall_ends) == ("", False, "", 0)
    assert (r.asked_at, r.service_ends) == (before.asked_at, before.service_ends)
    assert "1000" in made.sentence and f"cause {cause}" in made.sentence
    assert not made.effects


@pytest.mark.parametrize("event", [RecallFailed("NOANSWER", 19), RecallFailed("CHANUNAVAIL", 21)])
def test_a_caller_who_did_not_answer_is_left_alone_for_his_retry_timer(event: Event) -> None:
    r = after(request(R), event, policy=Policy(Settings(cc_retry_timer=44), Settings(cc_retry_timer=1)))
    assert r.retry_at == NOW + 44


def test_a_busy_caller_is_not_rung_again_at_once() -> None:
    """Do-not-disturb: his device may read idle all the time."""
    r = after(request(R), RecallFailed("BUSY", 17))
    assert r.suspended and r.retry_at == NOW + 30


@pytest.mark.parametrize("taken", [False, True])
def test_a_lost_recall_waits_and_is_not_counted(taken: bool) -> None:
    before = request(R, taken=taken, recalls=2)
    made = step(before, RecallLost("nothing was heard"), NOW, POLICY)
    r = made.request
    assert (r.state, r.recalls, r.retry_at, r.suspended) == (Q, 2, NOW + 30, False)
    assert (r.recall_id, r.taken, r.channel, r.recall_ends) == ("", False, "", 0)
    assert made.effects == (StopRecall(before),)
    assert made.sentence == "nothing was heard"


def test_a_recall_lost_by_our_own_restart_does_not_wait() -> None:
    assert after(ready_not_taken(), RecallLost("restarted", pause=False)).retry_at == 0


# --------------------------------------------------------------------------------- after a failed CC call


@pytest.mark.parametrize(
    ("dialstatus", "cause", "in_use", "service", "sign", "pause"),
    [
        ("BUSY", 17, True, CCBS, False, 0),
        ("BUSY", 17, False, CCBS, True, 0),
        ("NOANSWER", 19, False, CCNR, True, 0),
        ("NOANSWER", 19, True, CCNR, True, 0),
        ("CANCEL", 0, False, CCNR, True, 0),
        ("CHANUNAVAIL", 21, False, CCNR, True, 0),
        ("CHANUNAVAIL", 3, False, CCNL, False, 30),
        ("CHANUNAVAIL", 20, False, CCNL, False, 30),
    ],
)
@pytest.mark.parametrize("was", list(Service))
def test_after_a_failed_call_it_keeps_its_old_place(
    was: Service, dialstatus: str, cause: int, in_use: bool, service: Service, sign: bool, pause: float
) -> None:
    before = request(C, service=was)
    made = step(before, CallFailed(dialstatus, cause, in_use), NOW, POLICY)
    r = made.request
    assert (r.state, r.service, r.sign_needed, r.recalls) == (Q, service, sign, 1)
    assert (r.asked_at, r.service_ends, r.suspended) == (before.asked_at, before.service_ends, False)
    assert (r.recall_id, r.taken, r.channel, r.recall_ends) == ("", False, "", 0)
    assert r.retry_at == (NOW + pause if pause else 0)
    assert "2000" in made.sentence and f"cause {cause}" in made.sentence


@pytest.mark.parametrize(
    ("dialstatus", "cause"), [("CONGESTION", 34), ("CHANUNAVAIL", 1), ("CHANUNAVAIL", 0), ("", 0)]
)
def test_any_other_failed_call_ends_it(dialstatus: str, cause: int) -> None:
    r = after(request(C), CallFailed(dialstatus, cause, False))
    assert (r.state, r.reason, r.ended_at) == (E, "CALL_FAILED", NOW)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (R, RecallFailed("NOANSWER", 19)),
        (R, RecallFailed("CHANUNAVAIL", 21)),
        (C, CallFailed("BUSY", 17, True)),
        (C, CallFailed("BUSY", 17, False)),
        (C, CallFailed("NOANSWER", 19, False)),
        (C, CallFailed("CHANUNAVAIL", 20, False)),
    ],
)
def test_after_cc_max_recalls_it_ends(state: State, event: Event) -> None:
    policy = Policy(Settings(cc_max_recalls=2), Settings(cc_max_recalls=99))
    first = after(request(state), event, policy=policy)
    assert (first.state, first.recalls) == (Q, 1)
    last = after(request(state, recalls=1), event, policy=policy)
    assert (last.state, last.reason, last.recalls, last.ended_at) == (E, "TOO_MANY_RECALLS", 2, NOW)


@pytest.mark.parametrize("event", [RecallFailed("BUSY", 17), RecallLost("lost")])
def test_what_is_not_counted_never_ends_it_by_count(event: Event) -> None:
    r = after(request(R, recalls=2), event)
    assert (r.state, r.recalls) == (Q, 2)


# -------------------------------------------------------------------------------------------- service_ends

FAILURES: list[tuple[State, Event]] = [
    (R, RecallFailed("BUSY", 17)),
    (R, RecallFailed("NOANSWER", 19)),
    (R, RecallLost("lost")),
    (R, RecallLost("lost", pause=False)),
    (C, CallFailed("BUSY", 17, True)),
    (C, CallFailed("NOANSWER", 19, False)),
    (C, CallFailed("CHANUNAVAIL", 20, False)),
]


@pytest.mark.parametrize(("state", "event"), FAILURES)
def test_time_that_ran_out_during_a_turn_ends_it_when_the_turn_fails(state: State, event: Event) -> None:
    for late in (NOW, NOW - 1):
        r = after(request(state, service_ends=late), event)
        assert (r.state, r.reason, r.ended_at) == (E, "EXPIRED", NOW)
    assert after(request(state, service_ends=NOW + 0.001), event).state is Q


def test_a_lost_recall_is_stopped_also_when_the_time_is_over() -> None:
    before = request(R, service_ends=NOW)
    assert step(before, RecallLost("lost"), NOW, POLICY).effects == (StopRecall(before),)


@pytest.mark.parametrize(
    ("state", "event", "to"),
    [(R, RecallTaken("x"), R), (R, CallerAnswered("x"), C), (C, CallCompleted(), D)],
)
def test_time_that_ran_out_does_not_touch_a_turn_that_goes_well(
    state: State, event: Event, to: State
) -> None:
    r = request(state, service_ends=NOW - 1000, taken=not isinstance(event, RecallTaken))
    assert after(r, event).state is to


def test_time_over_says_how_long_it_waited() -> None:
    made = step(request(asked_at=NOW - 4800, service_ends=NOW), TimeOver(), NOW, POLICY)
    assert (made.request.state, made.request.reason, made.request.ended_at) == (E, "EXPIRED", NOW)
    assert "4800 s" in made.sentence and "2000" in made.sentence


# ------------------------------------------------------------------------------------------------ the ends


@pytest.mark.parametrize(
    ("state", "event", "to", "reason"),
    [
        (C, CallCompleted(), D, "COMPLETED"),
        (Q, Fulfilled(9), D, "FULFILLED"),
        (Q, Cancelled("1000"), E, "CANCELLED"),
        (R, Cancelled("1000"), E, "CANCELLED"),
        (C, Cancelled("1000"), E, "CANCELLED"),
        (C, CallLost(), E, "CALL_LOST"),
        (C, RecallLost("?"), E, "CALL_LOST"),
    ],
)
def test_how_it_ends(state: State, event: Event, to: State, reason: str) -> None:
    r = after(request(state), event)
    assert (r.state, r.reason, r.ended_at) == (to, reason, NOW)


@pytest.mark.parametrize("taken", [False, True])
def test_taking_it_back_stops_the_phone_that_rings(taken: bool) -> None:
    before = request(R, taken=taken)
    made = step(before, Cancelled("the operator"), NOW, POLICY)
    assert made.effects == (StopRecall(before),)
    assert "the operator" in made.sentence


@pytest.mark.parametrize("state", [Q, C])
def test_taking_it_back_elsewhere_stops_nothing(state: State) -> None:
    assert not step(request(state), Cancelled("1000"), NOW, POLICY).effects


def test_fulfilled_names_the_other_request() -> None:
    assert "9" in step(request(), Fulfilled(9), NOW, POLICY).sentence


# --------------------------------------------------------------------------------------------- random lives

FIXED = [
    f.name
    for f in fields(Request)
    if f.name.startswith(("caller", "callee")) or f.name in ("id", "why", "asked_at", "service_ends")
]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_the_place_and_the_time_stay_and_the_recalls_are_few(seed: int) -> None:
    dice = random.Random(seed)
    policy = Policy(Settings(cc_max_recalls=dice.randint(1, 4)), Settings())
    now = NOW
    r = after(request(N, service=dice.choice(list(Service))), Asked(), now, policy)
    born, counted, used = r, 0, set()
    for turn in range(300):
        if r.state not in OPEN:
            break
        now += dice.choice((0, 0, 1, 20))
        events: list[Event] = [
            CallerBusy(),
            CallerFree(),
            SignOfLife(),
            RecallTaken("x"),
            CallerAnswered("x"),
            RecallFailed(*dice.choice([("BUSY", 17), ("NOANSWER", 19), ("CHANUNAVAIL", 21)])),
            CallFailed(
                *dice.choice([("BUSY", 17), ("CHANUNAVAIL", 20), ("NOANSWER", 0)]), dice.random() < 0.5
            ),
            Selected(f"r{turn}"),
            RecallLost("lost", dice.random() < 0.5),
        ]
        event = dice.choice(events)
        try:
            made = step(r, event, now, policy)
        except Refused:
            continue
        assert made.sentence
        assert all(getattr(made.request, name) == getattr(born, name) for name in FIXED)
        assert (made.request.state in TURN) == bool(made.request.recall_id) or made.request.state is E
        if isinstance(event, Selected):
            assert event.recall_id not in used
            used.add(event.recall_id)
        if isinstance(event, CallFailed) or (isinstance(event, RecallFailed) and event.dialstatus != "BUSY"):
            counted += 1
        assert made.request.recalls in (counted, r.recalls)
        r = made.request
    assert r.recalls <= policy.caller.cc_max_recalls
    assert r.recalls == counted or r.reason == "EXPIRED"
