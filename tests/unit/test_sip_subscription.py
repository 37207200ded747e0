"""Notifier and subscriber: every pair, transcripts with the habits of real peers, and both joined by a bad line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest

from fastagi.errors import Refused
from fastagi.sip.dialog import Answer, Ask, Rejected
from fastagi.sip.machine import Answered, Content, Due, Unanswered
from fastagi.sip.message import Message, Request, Response, parse
from fastagi.sip.notifier import (
    NOTIFIER,
    Notifier,
    NotifierEvent,
    NotifierState,
    Subscribe,
    Tell,
    Terminate,
    Terms,
    accept,
    at_most,
    step_notifier,
)
from fastagi.sip.subscriber import (
    SUBSCRIBER,
    Leave,
    Notified,
    Notify,
    Subscriber,
    SubscriberEvent,
    SubscriberState,
    step_subscriber,
    subscribe,
)
from fastagi.sip.subscription import Ended
from fastagi.sip.transaction import (
    Answered as TransactionAnswered,
)
from fastagi.sip.transaction import (
    Arrived,
    Effect,
    TimedOut,
)
from tests.unit.test_sip_transaction import End, Line, play

NOW = 10_000.0
ENDS = NOW + 3600
QUEUED = Content("cc-state: queued\r\n", "application/call-completion")
READY = Content("cc-state: ready\r\n", "application/call-completion")
EVENT = ("Event", "call-completion")
VIA = ("Via", "SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKx")


def a_subscribe(seq: int = 102, expires: int | None = 4800, tag: str = "", **changes: str) -> Request:
    """As chan_sip sends it."""
    request = Request(
        "SUBSCRIBE",
        "sip:tok17@192.0.2.1",
        (
            VIA,
            ("From", "<sip:asterisk@192.0.2.10>;tag=theirs"),
            ("To", f"<sip:tok17@192.0.2.1>;tag={tag}" if tag else "<sip:tok17@192.0.2.1>"),
            ("Contact", "<sip:asterisk@192.0.2.10:5060>"),
            ("Call-ID", "c1"),
            ("CSeq", f"{seq} SUBSCRIBE"),
            EVENT,
        ),
    )
    if expires is not None:
        request = request.appended(("Expires", str(expires)))
    return request.with_headers(*changes.items()) if changes else request


def again(seq: int = 103, expires: int | None = 4800, **changes: str) -> Request:
    return a_subscribe(seq, expires, "ours", **changes)


def words(effects: Sequence[object]) -> list[str]:
    """A transcript, one short line for each effect."""
    found = []
    for e in effects:
        if isinstance(e, Answer):
            r = e.response
            found.append(
                " ".join(x for x in (str(r.status), r.get("expires", ""), r.get("min-expires", "")) if x)
            )
        elif isinstance(e, Ask) and e.request.method == "NOTIFY":
            r2 = e.request
            found.append(
                f"NOTIFY {r2.cseq[0]} {r2.get('subscription-state')} {r2.body.decode().strip()[10:]}"
            )
        elif isinstance(e, Ask):
            found.append(f"SUBSCRIBE {e.request.cseq[0]} for {e.request.get('expires')}")
        elif isinstance(e, Ended):
            found.append(f"Ended {e.reason}" + (f" {e.status}" if e.status else ""))
        elif isinstance(e, Notified):
            found.append(f"Notified {e.state} {e.request.body.decode().strip()[10:]}".strip())
        else:
            found.append(type(e).__name__)
    return found


class Monitor:
    """One notifier, driven as a transcript; times count from NOW."""

    def __init__(
        self,
        expires: int | None = 4800,
        terms: Terms | None = None,
        service: float = 3600,
        answer: bool = True,
    ) -> None:
        self.terms = Terms() if terms is None else terms
        self.n, effects = accept(a_subscribe(expires=expires), "ours", QUEUED, NOW + service, NOW, self.terms)
        self.first = effects
        if answer:
            self.answer(200)

    def do(self, event: NotifierEvent, at: float = 0.0) -> list[str]:
        self.n, effects = step_notifier(self.n, event, NOW + at, self.terms)
        return words(effects)

    def answer(self, status: int, at: float = 0.0, *headers: tuple[str, str]) -> list[str]:
        return self.do(Answered(self.answer_to(self.n.in_flight, status, *headers)), at)

    def answer_to(self, seq: int, status: int, *headers: tuple[str, str]) -> Response:
        return Response(status, "x", (VIA, ("CSeq", f"{seq} NOTIFY"), ("Call-ID", "c1"), *headers))

    def due(self) -> float | None:
        at = self.n.next_due(self.terms)
        return None if at is None else at - NOW


# --------------------------------------------------------------------------------- the notifier: every pair

NA, NG, NX = NotifierState
NOTIFIER_SAMPLES: dict[type, NotifierEvent] = {
    Subscribe: Subscribe(again()),
    Tell: Tell(READY),
    Terminate: Terminate("noresource"),
    Answered: Answered(Response(200, "OK", (VIA, ("CSeq", "1 NOTIFY")))),
    Unanswered: Unanswered(1),
    Due: Due(),
}
NOTIFIER_ROWS: dict[tuple[NotifierState, type], tuple[NotifierState, list[str]]] = {
    (NA, Subscribe): (NA, ["200 3500"]),  # the NOTIFY of it waits: one is under way
    (NA, Tell): (NA, []),
    (NA, Terminate): (NG, ["NOTIFY 2 terminated;reason=noresource queued", "Ended noresource"]),
    (NA, Answered): (NA, []),
    (NA, Unanswered): (NX, ["Ended unanswered"]),
    (NA, Due): (NA, []),
    (NG, Subscribe): (NG, ["481"]),
    (NG, Answered): (NX, []),
    (NG, Unanswered): (NX, []),
    (NG, Due): (NG, []),
    (NX, Subscribe): (NX, ["481"]),
    (NX, Answered): (NX, []),
    (NX, Unanswered): (NX, []),
    (NX, Due): (NX, []),
}


def test_there_is_a_sample_of_every_event_of_a_notifier() -> None:
    assert set(NOTIFIER_SAMPLES) == set(get_args(NotifierEvent))
    assert set(NOTIFIER) == set(NOTIFIER_ROWS)


@pytest.mark.parametrize(("state", "event"), list(product(NotifierState, NOTIFIER_SAMPLES)))
def test_every_pair_of_a_notifier_is_a_row_or_a_refusal(state: NotifierState, event: type) -> None:
    m = Monitor(answer=False)
    n = replace(m.n, state=state)
    if (state, event) in NOTIFIER_ROWS:
        new, effects = step_notifier(n, NOTIFIER_SAMPLES[event], NOW + 100)
        assert (new.state, words(effects)) == NOTIFIER_ROWS[state, event]
    else:
        with pytest.raises(Refused) as no:
            step_notifier(n, NOTIFIER_SAMPLES[event], NOW + 100)
        assert all(word in str(no.value) for word in ("notifier", state.value, event.__name__))


# ------------------------------------------------------------------------------ the notifier: transcripts


def test_accepted_told_at_once_and_at_each_change() -> None:
    m = Monitor(answer=False)
    assert words(m.first) == ["200 3600", "NOTIFY 1 active;expires=3600 queued"]
    answer, ask = m.first
    assert isinstance(answer, Answer)
    assert answer.response.to.tag == "ours"
    assert isinstance(ask, Ask)
    assert ask.request.uri == "sip:asterisk@192.0.2.10:5060"
    assert ask.request.get("event") == "call-completion"
    assert ask.request.content_type == "application/call-completion"
    assert m.answer(200, 1) == []
    assert m.do(Tell(READY), 100.5) == ["NOTIFY 2 active;expires=3499 ready"]
    assert m.answer(200, 101) == []
    assert m.do(Tell(QUEUED), 102) == ["NOTIFY 3 active;expires=3498 queued"]


@pytest.mark.parametrize(
    ("asked", "granted"), [(4800, 3600), (3600, 3600), (60, 60), (None, 1800), (2**32 - 1, 3600)]
)
def test_what_is_granted_at_first(asked: int | None, granted: int) -> None:
    m = Monitor(asked, Terms(default_expires=1800))
    assert words(m.first)[0] == f"200 {granted}"
    assert m.due() == granted


def test_an_hour_is_granted_if_nothing_is_asked_nor_configured() -> None:
    assert words(Monitor(None, service=4800).first)[0] == "200 3600"


def test_a_refresh_never_reaches_beyond_the_service() -> None:
    m = Monitor()
    assert m.do(Subscribe(again(103)), 1000.7) == ["200 2599", "NOTIFY 2 active;expires=2599 queued"]
    m.answer(200, 1001)
    assert m.do(Subscribe(again(104, 100)), 2000) == ["200 100", "NOTIFY 3 active;expires=100 queued"]
    m.answer(200, 2001)
    assert m.do(Subscribe(again(105)), 2050) == ["200 1550", "NOTIFY 4 active;expires=1550 queued"]
    assert m.n.service_ends == ENDS
    assert m.due() == 3600


def test_a_refresh_in_the_last_second_ends_it() -> None:
    m = Monitor()
    assert m.do(Subscribe(again()), 3599.5) == [
        "200 0",
        "NOTIFY 2 terminated;reason=timeout queued",
        "Ended timeout",
    ]


def test_not_refreshed_in_time() -> None:
    m = Monitor(60)
    assert m.do(Due(), 59.9) == []
    assert m.do(Due(), 60) == ["NOTIFY 2 terminated;reason=timeout queued", "Ended timeout"]
    assert m.due() is None
    assert m.answer(200, 61) == []
    assert m.n.state is NX


@pytest.mark.parametrize("terms", [Terms(), Terms(min_expires=600)])
def test_unsubscribed(terms: Terms) -> None:
    m = Monitor(terms=terms)  # 0 seconds are never too few
    assert m.do(Subscribe(again(expires=0)), 5) == [
        "200 0",
        "NOTIFY 2 terminated;reason=timeout queued",
        "Ended unsubscribed",
    ]


def test_asked_once_without_staying() -> None:
    n, effects = accept(a_subscribe(expires=0), "ours", READY, ENDS, NOW)
    assert words(effects) == ["200 0", "NOTIFY 1 terminated;reason=timeout ready", "Ended unsubscribed"]
    assert n.state is NG


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (Terminate("noresource"), "terminated;reason=noresource"),
        (Terminate("giveup", 30), "terminated;reason=giveup;retry-after=30"),
        (Terminate("probation", 60), "terminated;reason=probation;retry-after=60"),
        (Terminate("rejected", 60), "terminated;reason=rejected"),
    ],
)
def test_ended_by_us_with_a_reason_and_a_body(end: Terminate, state: str) -> None:
    m = Monitor()
    # chan_sip answers 400 to a NOTIFY without a body.
    assert m.do(end, 1) == [f"NOTIFY 2 {state} queued", f"Ended {end.reason}"]
    assert m.answer(400, 2) == []
    assert m.n.state is NX


def test_the_end_waits_for_nothing() -> None:
    m = Monitor(terms=Terms(pace=lambda sent, _: at_most(1, 1000.0, sent)), answer=False)
    m.do(Tell(READY), 1)
    assert m.do(Terminate("noresource", content=READY), 2)[0] == "NOTIFY 2 terminated;reason=noresource ready"
    assert m.do(Answered(m.answer_to(1, 200)), 3) == []
    assert m.n.state is NG
    assert m.do(Unanswered(1), 3) == []
    assert m.n.state is NG
    assert m.do(Unanswered(2), 34) == []
    assert m.n.state is NX


def test_one_notify_is_under_way_at_a_time_and_the_latest_state_wins() -> None:
    m = Monitor(answer=False)
    assert m.do(Tell(READY), 0.1) == []
    assert m.do(Tell(QUEUED), 0.2) == []
    assert m.do(Tell(READY), 0.3) == []
    assert m.do(Answered(m.answer_to(1, 100)), 0.4) == []  # a 1xx is no answer
    assert m.do(Answered(m.answer_to(7, 200)), 0.4) == []  # nor is that to another
    assert m.answer(200, 0.5) == ["NOTIFY 2 active;expires=3599 ready"]


def test_crossing_terminations() -> None:
    m = Monitor()
    m.do(Terminate("noresource"), 1)
    assert m.do(Subscribe(again(expires=0)), 1.01) == ["200 0"]
    assert m.answer(481, 1.02) == []
    assert m.n.state is NX
    assert m.do(Subscribe(again(104, 0)), 2) == ["481"]


@pytest.mark.parametrize("status", [300, 301, 400, 401, 404, 408, 481, 489, 500, 603])
def test_a_notify_that_fails_ends_it(status: int) -> None:
    m = Monitor(answer=False)
    assert m.answer(status, 1) == [f"Ended failed {status}"]
    assert m.due() is None


def test_a_notify_nobody_answers_ends_it() -> None:
    m = Monitor(answer=False)
    assert m.do(Unanswered(9), 32) == []
    assert m.do(Unanswered(1), 32) == ["Ended unanswered"]


def test_a_notify_put_off_is_sent_again_but_not_after_481() -> None:
    m = Monitor(answer=False)
    assert m.answer(500, 1, ("Retry-After", "5 (busy)")) == []
    assert m.due() == 6
    assert m.do(Due(), 5.9) == []
    assert m.do(Due(), 6) == ["NOTIFY 2 active;expires=3594 queued"]
    assert m.answer(500, 7, ("Retry-After", "0")) == []
    assert m.due() == 8
    assert m.do(Due(), 8) == ["NOTIFY 3 active;expires=3592 queued"]
    assert m.answer(481, 9, ("Retry-After", "5")) == ["Ended failed 481"]


@pytest.mark.parametrize("value", ["soon", "-1", "", "1" * 30, "\u0663"])
def test_a_retry_after_that_makes_no_sense_is_none(value: str) -> None:
    m = Monitor(answer=False)
    assert m.answer(500, 1, ("Retry-After", value)) == ["Ended failed 500"]


def test_the_pace_holds_back_and_the_latest_goes_out_then() -> None:
    m = Monitor(terms=Terms(pace=lambda sent, _: at_most(3, 10.0, sent)))
    for at, content, made in [(1, READY, 2), (2, QUEUED, 3)]:
        assert len(m.do(Tell(content), at)) == 1
        assert m.n.in_flight == made
        m.answer(200, at)
    assert m.do(Tell(READY), 3) == []
    assert m.do(Tell(QUEUED), 4) == []
    assert m.do(Tell(READY), 5) == []
    assert m.due() == 10
    assert m.do(Due(), 10) == ["NOTIFY 4 active;expires=3590 ready"]


def test_a_pace_may_look_at_what_is_to_be_told() -> None:
    # RFC 6910, 9.11: "ready" never as the third in ten seconds, "queued" promptly.
    def pace(sent: tuple[float, ...], content: Content) -> float:
        return at_most(2 if content == READY else 3, 10.0, sent)

    m = Monitor(terms=Terms(pace=pace))
    m.do(Tell(READY), 1)
    m.answer(200, 1)
    assert m.do(Tell(READY), 2) == []
    assert m.due() == 10
    assert m.do(Tell(QUEUED), 3) == ["NOTIFY 3 active;expires=3597 queued"]


def test_what_the_peer_gets_wrong_is_answered_and_changes_nothing() -> None:
    m = Monitor(terms=Terms(min_expires=600))
    before = m.n
    assert m.do(Subscribe(again(101)), 1) == ["500"]
    assert m.do(Subscribe(again(Event="presence")), 1) == ["489"]
    assert m.do(Subscribe(again(Event="call-completion;id=7")), 1) == ["489"]
    assert m.do(Subscribe(again(Event="<>")), 1) == ["489"]
    assert m.do(Subscribe(again(expires=599)), 1) == ["423 600"]
    assert m.do(Subscribe(again(Expires="soon")), 1) == ["400"]
    assert m.do(Subscribe(again(Contact="nonsense")), 1) == ["400"]
    assert m.do(Subscribe(a_subscribe(103, tag="not-ours")), 1) == ["481"]
    assert m.n == before
    assert m.do(Subscribe(again(103).without("Event")), 1)[0] == "200 3599"


def test_a_wish_for_an_hour_or_more_is_never_too_brief() -> None:
    # RFC 6665, 4.2.1.1
    Monitor(3600, Terms(min_expires=7200))
    with pytest.raises(Rejected) as no:
        Monitor(3599, Terms(min_expires=7200))
    assert (no.value.status, no.value.headers) == (423, (("Min-Expires", "7200"),))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (a_subscribe().without("Contact"), 400),
        (a_subscribe(tag="old"), 481),
        (a_subscribe(Expires="x"), 400),
    ],
)
def test_what_is_not_accepted(request_: Request, status: int) -> None:
    with pytest.raises(Rejected) as no:
        accept(request_, "ours", QUEUED, ENDS, NOW)
    assert no.value.status == status


def test_nothing_is_accepted_after_the_end_of_the_service() -> None:
    with pytest.raises(Rejected) as no:
        accept(a_subscribe(), "ours", QUEUED, NOW, NOW)
    assert no.value.status == 480


def saved(value: Notifier | Subscriber) -> Any:
    """As after kill -9: through text, into a new value."""
    return type(value).from_dict(json.loads(json.dumps(value.to_dict())))


def test_a_notifier_survives_and_says_again_what_nobody_saw_answered() -> None:
    m = Monitor()
    assert saved(m.n) == m.n
    m.do(Tell(READY), 10)
    m.n = saved(m.n)
    assert m.n.next_due() == 0.0
    assert m.do(Due(), 20) == ["NOTIFY 3 active;expires=3580 ready"]
    m.do(Terminate("noresource"), 30)
    m.n = saved(m.n)
    assert m.do(Due(), 40) == ["NOTIFY 5 terminated;reason=noresource ready"]
    assert m.answer(200, 41) == []
    assert saved(m.n).state is NX
    assert Notifier.from_dict({**m.n.to_dict(), "of a newer version": 1}) == m.n


# ------------------------------------------------------------------------------------------ the subscriber


def a_notify(state: str = "active;expires=3600", seq: int = 102, body: str = "cc-state: queued") -> Request:
    request = Request(
        "NOTIFY",
        "sip:cc@192.0.2.1",
        (
            VIA,
            ("From", "<sip:8000@192.0.2.10>;tag=theirs"),
            ("To", "<sip:1000@192.0.2.1>;tag=mine"),
            ("Contact", "<sip:mon@192.0.2.10>"),
            ("Call-ID", "c2"),
            ("CSeq", f"{seq} NOTIFY"),
            EVENT,
            ("Subscription-State", state),
        ),
    )
    return request.with_body(body.encode(), "application/call-completion")


def an_answer(status: int, seq: int = 1, *headers: tuple[str, str], tag: str = "theirs") -> Response:
    return Response(
        status,
        "x",
        (
            VIA,
            ("From", "<sip:1000@192.0.2.1>;tag=mine"),
            ("To", f"<sip:8000@192.0.2.10>;tag={tag}"),
            ("Call-ID", "c2"),
            ("CSeq", f"{seq} SUBSCRIBE"),
            ("Contact", "<sip:mon@192.0.2.10>"),
            *headers,
        ),
    )


class Agent:
    """One subscriber, driven as a transcript; times count from NOW."""

    def __init__(self, ends: float = 4800, state: str = "") -> None:
        self.s, self.first = subscribe(
            "sip:mon@192.0.2.10;m=BS",
            "<sip:1000@192.0.2.1>;tag=mine",
            "<sip:8000@192.0.2.10>",
            "c2",
            (EVENT, ("Accept", "application/call-completion")),
            NOW + ends,
            NOW,
        )
        if state == "ACTIVE":
            self.answer(200, 0, 1, ("Expires", "3600"))
            self.notify()

    def do(self, event: SubscriberEvent, at: float = 0.0) -> list[str]:
        self.s, effects = step_subscriber(self.s, event, NOW + at)
        return words(effects)

    def answer(self, status: int, at: float = 0.0, seq: int = 0, *headers: tuple[str, str]) -> list[str]:
        return self.do(Answered(an_answer(status, seq or self.s.seq, *headers)), at)

    def notify(self, state: str = "active;expires=3600", at: float = 0.0, seq: int = 102) -> list[str]:
        return self.do(Notify(a_notify(state, seq)), at)

    def due(self) -> float | None:
        at = self.s.next_due()
        return None if at is None else at - NOW


SS, SA, SL, SE = SubscriberState
SUBSCRIBER_SAMPLES: dict[type, SubscriberEvent] = {
    Notify: Notify(a_notify()),
    Answered: Answered(an_answer(200)),
    Unanswered: Unanswered(1),
    Due: Due(),
    Leave: Leave(),
}
SUBSCRIBER_ROWS: dict[tuple[SubscriberState, type], tuple[SubscriberState, list[str]]] = {
    (SS, Notify): (SA, ["200", "Notified active queued"]),
    (SS, Answered): (SS, ["Accepted"]),
    (SS, Unanswered): (SE, ["Ended unanswered"]),
    (SS, Due): (SS, []),
    (SS, Leave): (SL, []),
    (SA, Notify): (SA, ["200", "Notified active queued"]),
    (SA, Answered): (SA, []),
    (SA, Unanswered): (SA, []),
    (SA, Due): (SA, []),
    (SA, Leave): (SL, ["SUBSCRIBE 2 for 0"]),
    (SL, Notify): (SL, ["200", "SUBSCRIBE 2 for 0"]),
    (SL, Answered): (SL, ["SUBSCRIBE 2 for 0"]),
    (SL, Unanswered): (SE, ["Ended unsubscribed"]),
    (SL, Due): (SL, []),
    (SE, Notify): (SE, ["481"]),
    (SE, Answered): (SE, []),
    (SE, Unanswered): (SE, []),
    (SE, Due): (SE, []),
}


def test_there_is_a_sample_of_every_event_of_a_subscriber() -> None:
    assert set(SUBSCRIBER_SAMPLES) == set(get_args(SubscriberEvent))
    assert set(SUBSCRIBER) == set(SUBSCRIBER_ROWS)


@pytest.mark.parametrize(("state", "event"), list(product(SubscriberState, SUBSCRIBER_SAMPLES)))
def test_every_pair_of_a_subscriber_is_a_row_or_a_refusal(state: SubscriberState, event: type) -> None:
    a = Agent()
    if state is SA:
        a.notify()
    if state is SL:
        a.do(Leave())
    if state is SE:
        a.s = replace(a.s, state=SE)
    assert a.s.state is state
    if (state, event) in SUBSCRIBER_ROWS:
        new, effects = step_subscriber(a.s, SUBSCRIBER_SAMPLES[event], NOW + 1)
        assert (new.state, words(effects)) == SUBSCRIBER_ROWS[state, event]
    else:
        with pytest.raises(Refused) as no:
            step_subscriber(a.s, SUBSCRIBER_SAMPLES[event], NOW + 1)
        assert all(word in str(no.value) for word in ("subscriber", state.value, event.__name__))


def test_the_first_subscribe() -> None:
    a = Agent()
    (ask,) = a.first
    assert isinstance(ask, Ask)
    assert ask.request.to_bytes().decode().split("\r\n")[:-3] == [
        "SUBSCRIBE sip:mon@192.0.2.10;m=BS SIP/2.0",
        "Max-Forwards: 70",
        "From: <sip:1000@192.0.2.1>;tag=mine",
        "To: <sip:8000@192.0.2.10>",
        "Call-ID: c2",
        "CSeq: 1 SUBSCRIBE",
        "Event: call-completion",
        "Accept: application/call-completion",
        "Expires: 4800",
    ]
    assert (a.s.call_id, a.s.local_tag) == ("c2", "mine")
    with pytest.raises(Refused, match="no tag"):
        subscribe("sip:x@y", "<sip:x@y>", "<sip:x@y>", "c", (EVENT,), ENDS, NOW)


def test_the_2xx_first_and_the_notify_first_come_to_the_same() -> None:
    a, b = Agent(), Agent()
    assert a.answer(200, 1, 1, ("Expires", "3600")) == ["Accepted"]
    assert a.notify(at=1) == ["200", "Notified active queued"]
    assert b.notify(at=1) == ["200", "Notified active queued"]
    assert b.answer(200, 1, 1, ("Expires", "3600")) == []
    assert a.s.state is b.s.state is SA
    assert replace(a.s, waits_until=0) == replace(b.s, waits_until=0)
    assert a.due() == 1 + 3600 - 64


def test_refused() -> None:
    for status, header, retry_at in [
        (480, "60", NOW + 61),
        (403, "", None),
        (482, "", None),
        (600, "", None),
    ]:
        a = Agent()
        a.s, effects = step_subscriber(a.s, Answered(an_answer(status, 1, ("Retry-After", header))), NOW + 1)
        assert effects == (Ended("refused", status, retry_at),)
        assert a.due() is None


def test_too_brief_is_asked_once_more_and_only_once() -> None:
    a = Agent(ends=60)
    assert a.answer(423, 1, 1, ("Min-Expires", "600")) == ["SUBSCRIBE 2 for 600"]
    assert a.answer(200, 1, 1) == []  # to the first: nobody waits for it
    assert a.answer(423, 2, 2, ("Min-Expires", "900")) == ["Ended refused 423"]
    for value in ("", "x", "60", "5"):
        b = Agent(ends=60)
        assert b.answer(423, 1, 1, ("Min-Expires", value)) == ["Ended refused 423"]


def test_provisional_answers_mean_nothing() -> None:
    for a in (Agent(), Agent(state="ACTIVE")):
        before = a.s
        assert a.answer(100, 1) == []
        assert a.s == before


def test_accepted_but_never_notified_has_failed_and_the_peer_is_told() -> None:
    a = Agent()
    a.answer(200, 5)
    assert a.due() == 37
    assert a.do(Due(), 36.9) == []
    assert a.do(Due(), 37) == ["SUBSCRIBE 2 for 0", "Ended unnotified"]
    assert a.notify(at=38) == ["481"]


def test_a_subscribe_whose_transaction_died_with_the_process_is_given_up() -> None:
    a = Agent()
    a.s = saved(a.s)
    assert a.due() == 32
    assert a.do(Due(), 32) == ["Ended unanswered"]


def test_a_2xx_lost_for_good_does_not_matter_once_the_notify_came() -> None:
    a = Agent()
    a.notify("active;expires=600", 1)
    assert a.do(Unanswered(1), 32) == []
    assert a.s.state is SA
    assert a.due() == 1 + 600 - 64


def test_another_fork_refuses_after_the_notify_of_this_one() -> None:
    a = Agent()
    a.notify("active;expires=600", 1)
    assert a.answer(482, 2) == []
    assert a.s.state is SA


def test_another_forks_2xx_does_not_move_this_one() -> None:
    a = Agent()
    a.notify("active;expires=600", 1)
    before = a.s.dialog
    assert a.do(Answered(an_answer(200, 1, ("Contact", "<sip:other@x>"), tag="another")), 2) == []
    assert a.s.dialog == before
    assert a.s.expires_at == NOW + 601


def test_another_forks_notify_is_none_of_its_own() -> None:
    a = Agent(state="ACTIVE")
    other = a_notify("active;expires=50").with_headers(("From", "<sip:8000@192.0.2.10>;tag=fork"))
    before = a.s
    assert a.do(Notify(other), 1) == ["481"]
    assert a.s == before


# -- going on


def test_refreshed_before_it_expires_and_not_beyond_our_own_end() -> None:
    a = Agent(ends=4800, state="ACTIVE")
    assert a.due() == 3536
    assert a.do(Due(), 3535) == []
    assert a.do(Due(), 3536) == ["SUBSCRIBE 2 for 1264"]
    assert a.do(Due(), 3537) == []
    assert a.answer(200, 3537, 2, ("Expires", "1263")) == []
    # Now it is granted up to where we want it: nothing is left to refresh.
    assert a.due() == 4800 + 32
    assert a.do(Due(), 4831) == []
    assert a.do(Due(), 4832) == ["Ended expired"]


def test_a_refresh_that_gained_nothing_is_the_last() -> None:
    a = Agent(ends=4800, state="ACTIVE")
    a.do(Due(), 3536)
    # The NOTIFY of the refresh comes first, as it may.
    assert a.notify("active;expires=64", 3536.5, 103) == ["200", "Notified active queued"]
    assert a.answer(200, 3537, 2, ("Expires", "63")) == []
    assert a.due() == 3600 + 32
    assert a.notify("active;expires=62", 3538, 104) == ["200", "Notified active queued"]
    assert a.due() == 3600 + 32


def test_a_refresh_that_gains_is_followed_by_the_next_also_if_its_notify_is_first() -> None:
    a = Agent(ends=10_000, state="ACTIVE")
    a.do(Due(), 3536)
    a.notify("active;expires=3600", 3536.5, 103)
    assert a.s.refresh_at is None
    a.answer(200, 3537, 2, ("Expires", "3600"))
    assert a.due() == 3537 + 3536


def test_a_peer_that_answers_no_refresh_goes_on_serving() -> None:
    a = Agent(ends=10_000, state="ACTIVE")
    assert a.do(Due(), 3536) == ["SUBSCRIBE 2 for 6464"]
    assert a.do(Unanswered(2), 3568) == []
    assert a.s.state is SA
    assert a.s.expires_at == ENDS + 6400
    assert a.notify("active", 5000, 103) == ["200", "Notified active queued"]  # long after the first time


@pytest.mark.parametrize("status", [404, 405, 410, 416, 480, 481, 482, 483, 484, 485, 489, 501, 604])
def test_a_refresh_answered_so_ends_it(status: int) -> None:
    a = Agent(ends=10_000, state="ACTIVE")
    a.do(Due(), 3536)
    assert a.answer(status, 3537) == [f"Ended failed {status}"]


@pytest.mark.parametrize(
    "status", [300, 400, 401, 403, 408, 411, 417, 423, 479, 486, 490, 500, 502, 503, 600, 603, 605]
)
def test_a_refresh_answered_otherwise_leaves_it_its_old_time_and_is_tried_once_more(status: int) -> None:
    a = Agent(ends=10_000, state="ACTIVE")
    a.do(Due(), 3536)
    assert a.answer(status, 3537) == []
    assert a.do(Due(), 3537 + 32) == ["SUBSCRIBE 3 for 6431"]
    assert a.answer(status, 3570) == []
    assert a.due() == 3632
    assert a.do(Due(), 3632) == ["Ended expired"]


def test_the_2xx_grants_never_more_than_was_asked_and_that_if_it_does_not_say() -> None:
    for headers, expires in [((("Expires", "99999"),), 600), ((), 600), ((("Expires", "x"),), 600)]:
        a = Agent(ends=600)
        a.answer(200, 0, 1, *headers)
        assert a.s.expires_at == NOW + expires


def test_a_notify_without_expires_leaves_what_is_known() -> None:
    a = Agent(ends=4800)
    a.answer(200, 0, 1, ("Expires", "600"))
    assert a.notify("Active", 5) == ["200", "Notified active queued"]
    assert a.s.expires_at == NOW + 600
    a.notify("active", 6, 103)
    assert a.due() == 536


def test_pending_is_passed_on() -> None:
    a = Agent()
    assert a.notify("pending;expires=60") == ["200", "Notified pending queued"]
    assert a.notify("active;expires=60", 1, 103) == ["200", "Notified active queued"]


@pytest.mark.parametrize(
    ("state", "reason", "retry_at"),
    [
        ("terminated;reason=deactivated;retry-after=9", "deactivated", NOW),
        ("terminated;reason=probation;retry-after=60", "probation", NOW + 60),
        ("terminated;reason=rejected;retry-after=9", "rejected", None),
        ("terminated;reason=timeout", "timeout", NOW),
        ("terminated;reason=giveup;retry-after=9", "giveup", NOW + 9),
        ("terminated;reason=giveup", "giveup", NOW),
        ("terminated;reason=noresource", "noresource", None),
        ("terminated;reason=invariant", "invariant", None),
        ("terminated;reason=whatever;retry-after=9", "whatever", NOW + 9),
        ("terminated", "unknown", NOW),
        ("TERMINATED;Reason=NoResource", "noresource", None),
    ],
)
def test_terminated_by_the_peer(state: str, reason: str, retry_at: float | None) -> None:
    for a in (Agent(), Agent(state="ACTIVE")):
        request = a_notify(state, 103)
        a.s, effects = step_subscriber(a.s, Notify(request), NOW)
        assert effects[1:] == (Notified("terminated", request), Ended(reason, 0, retry_at))
        assert words(effects)[0] == "200"
        assert a.notify(seq=104) == ["481"]
        assert a.due() is None


def test_what_a_peers_notify_gets_wrong_is_answered_and_changes_nothing() -> None:
    good = a_notify(seq=103)
    wrong = [
        (good.with_headers(("Event", "presence")), "489"),
        (good.with_headers(("Event", "call-completion;id=1")), "489"),
        (good.without("Subscription-State"), "400"),
        (good.with_headers(("Subscription-State", ";expires=1")), "400"),
        (good.with_headers(("CSeq", "101 NOTIFY")), "500"),
        (good.with_headers(("Call-ID", "c9")), "481"),
        (good.with_headers(("To", "<sip:x@y>;tag=z")), "481"),
        (good.with_headers(("Contact", "nonsense")), "400"),
    ]
    for leaving, (request, status) in product((False, True), wrong):
        a = Agent(state="ACTIVE")
        if leaving:
            a.do(Leave(), 1)
        before = a.s
        assert a.do(Notify(request), 2) == [status]
        assert a.s == before
    a = Agent(state="ACTIVE")
    assert a.do(Notify(good.without("Event")), 2)[0] == "200"
    assert a.do(Notify(good.without("Event")), 3)[0] == "200"  # the same again, after a restart


# -- leaving


def test_left_and_told_so_by_the_last_notify() -> None:
    a = Agent(state="ACTIVE")
    assert a.do(Leave(), 10) == ["SUBSCRIBE 2 for 0"]
    assert a.answer(200, 10.1, 2, ("Expires", "0")) == []
    assert a.notify("active;expires=1", 10.15, 103) == ["200"]
    assert a.notify("terminated;reason=timeout", 10.2, 104) == ["200", "Ended unsubscribed"]


def test_left_with_a_peer_that_grants_an_hour_for_it_and_sends_no_last_notify() -> None:
    # chan_sip: 200 with Expires: 3600 to an Expires: 0, and nothing more.
    a = Agent(state="ACTIVE")
    a.do(Leave(), 10)
    assert a.answer(200, 10.1, 2, ("Expires", "3600")) == []
    assert a.due() == 42
    assert a.do(Due(), 41) == []
    assert a.do(Due(), 42) == ["Ended unsubscribed"]


@pytest.mark.parametrize("status", [481, 500, 603])
def test_left_whatever_the_peer_says_to_it(status: int) -> None:
    a = Agent(state="ACTIVE")
    a.do(Leave(), 10)
    assert a.answer(status, 11) == [f"Ended unsubscribed {status}"]


def test_left_whether_the_peer_answers_or_not() -> None:
    a = Agent(state="ACTIVE")
    a.do(Leave(), 10)
    assert a.do(Unanswered(1), 42) == []
    assert a.do(Unanswered(2), 42) == ["Ended unsubscribed"]


def test_left_while_a_refresh_nobody_answers_is_under_way() -> None:
    a = Agent(state="ACTIVE")
    a.do(Due(), 3536)
    assert a.do(Leave(), 3540) == ["SUBSCRIBE 3 for 0"]
    assert a.do(Unanswered(2), 3568) == []
    assert a.s.state is SL


def test_left_before_there_is_a_dialog_is_said_as_soon_as_there_is_one() -> None:
    by_answer, by_notify = Agent(), Agent()
    for a in (by_answer, by_notify):
        assert a.do(Leave(), 1) == []
    assert by_answer.answer(200, 2) == ["SUBSCRIBE 2 for 0"]
    assert by_answer.notify(at=2.1) == ["200"]
    assert by_notify.notify(at=2) == ["200", "SUBSCRIBE 2 for 0"]
    assert by_notify.answer(200, 2.1, 1) == []
    for a in (by_answer, by_notify):
        assert a.due() == 34
        assert a.answer(200, 3, 2) == []
        assert a.notify("terminated;reason=timeout", 4, 103) == ["200", "Ended unsubscribed"]


def test_left_before_it_was_refused_or_given_up() -> None:
    cases: list[tuple[SubscriberEvent, str]] = [
        (Answered(an_answer(480)), "Ended unsubscribed 480"),
        (Unanswered(1), "Ended unsubscribed"),
    ]
    for event, ended in cases:
        a = Agent()
        a.do(Leave(), 1)
        assert a.do(event, 2) == [ended]
    a = Agent()
    a.do(Leave(), 1)
    assert a.do(Due(), 33) == ["Ended unsubscribed"]


def test_left_between_2xx_and_notify() -> None:
    a = Agent()
    a.answer(200, 1)
    assert a.do(Leave(), 2) == ["SUBSCRIBE 2 for 0"]


def test_crossing_terminations_at_the_subscriber() -> None:
    a = Agent(state="ACTIVE")
    a.do(Leave(), 1)
    assert a.notify("terminated;reason=noresource", 1.01, 103) == ["200", "Ended unsubscribed"]
    assert a.answer(481, 1.02) == []


def test_a_subscriber_survives_at_every_moment() -> None:
    a = Agent()
    assert saved(a.s) == a.s
    a.answer(200, 1, 1, ("Expires", "3600"))
    assert saved(a.s) == a.s
    a.notify(at=2)
    assert saved(a.s) == a.s
    assert Subscriber.from_dict({**a.s.to_dict(), "of a newer version": 1}) == a.s
    # A refresh nobody lived to see answered is sent again at once.
    a.do(Due(), 3538)
    a.s = saved(a.s)
    assert a.s.next_due() == 0.0
    assert a.do(Due(), 3550) == ["SUBSCRIBE 3 for 1250"]
    # So is the leaving.
    a.do(Leave(), 3560)
    a.s = saved(a.s)
    assert a.s.next_due() == 0.0
    assert a.do(Due(), 3570) == ["SUBSCRIBE 5 for 0"]
    assert a.answer(200, 3571) == []
    assert saved(a.s) == a.s
    assert a.do(Due(), 3602) == ["Ended unsubscribed"]
    assert saved(a.s) == a.s


def test_left_without_a_dialog_and_killed() -> None:
    a = Agent()
    a.do(Leave(), 1)
    a.s = saved(a.s)
    assert a.due() == 33
    assert a.notify(at=2) == ["200", "SUBSCRIBE 2 for 0"]


# ------------------------------------------------------------------------- both ends, joined by a bad line


class Node:
    """What an element does between the machines and their transactions, and no more."""

    def __init__(self, name: str, to: str, line: Line) -> None:
        self.name, self.to = name, to
        self.end = End(name, line, self.take)
        self.branches = 0
        self.log: list[str] = []
        self.now = NOW

    def ask(self, request: Request, now: float) -> None:
        self.branches += 1
        whole = request.prepended(
            ("Via", f"SIP/2.0/UDP {self.name}.example;branch=z9hG4bK{self.name}{self.branches}")
        )
        whole = whole.appended(("Contact", f"<sip:{self.name}@{self.name}.example>"))
        self.end.do(self.end.table.request(whole, self.to, now), now)

    def run(self, effects: Sequence[object], now: float, arrived: Arrived | None = None) -> None:
        for e in effects:
            if isinstance(e, Answer):
                assert arrived is not None
                answer = e.response.appended(("Contact", f"<sip:{self.name}@{self.name}.example>"))
                self.end.do(self.end.table.respond(arrived.key, answer, now), now)
            elif isinstance(e, Ask):
                self.ask(e.request, now)
            else:
                self.log += words([e])

    def take(self, e: Effect, now: float) -> None:
        if isinstance(e, Arrived):
            self.arrived(e, now)
        elif isinstance(e, TransactionAnswered):
            self.answered(Answered(e.response), now)
        elif isinstance(e, TimedOut):
            self.answered(Unanswered(e.request.cseq[0]), now)

    def arrived(self, e: Arrived, now: float) -> None:
        raise NotImplementedError

    def answered(self, event: Answered | Unanswered, now: float) -> None:
        raise NotImplementedError

    def kill(self, line: Line) -> None:
        """kill -9: all transactions are gone, and what was saved is read."""
        self.end.table = type(self.end.table)()


class MonitorNode(Node):
    n: Notifier | None = None

    def step(self, event: NotifierEvent, now: float, arrived: Arrived | None = None) -> None:
        assert self.n is not None
        self.n, effects = step_notifier(self.n, event, now)
        self.run(effects, now, arrived)

    def arrived(self, e: Arrived, now: float) -> None:
        if self.n is not None and e.request.to.tag:
            self.step(Subscribe(e.request), now, e)
        elif self.n is None:
            self.n, effects = accept(e.request, "ours", QUEUED, ENDS, now)
            self.run(effects, now, e)
        else:
            self.run([Answer(e.request.response(482, tag="other"))], now, e)

    def answered(self, event: Answered | Unanswered, now: float) -> None:
        self.step(event, now)

    def kill(self, line: Line) -> None:
        super().kill(line)
        if self.n is not None:
            self.n = saved(self.n)

    def due(self) -> float | None:
        return None if self.n is None else self.n.next_due()


class AgentNode(Node):
    s: Subscriber

    def step(self, event: SubscriberEvent, now: float, arrived: Arrived | None = None) -> None:
        self.s, effects = step_subscriber(self.s, event, now)
        self.run(effects, now, arrived)

    def start(self, ends: float) -> None:
        self.s, effects = subscribe(
            "sip:tok@b.example",
            "<sip:1000@a.example>;tag=mine",
            "<sip:2000@b.example>",
            "c1",
            (EVENT,),
            ends,
            NOW,
        )
        self.run(effects, NOW)

    def arrived(self, e: Arrived, now: float) -> None:
        self.step(Notify(e.request), now, e)

    def answered(self, event: Answered | Unanswered, now: float) -> None:
        self.step(event, now)

    def kill(self, line: Line) -> None:
        super().kill(line)
        self.s = saved(self.s)


class World:
    """An agent, a monitor, a line between them, and what happens when."""

    def __init__(
        self, seed: int, loss: float, double: float, slowest: float, ends: float = ENDS + 100, kills: int = 0
    ) -> None:
        self.line = Line(seed, loss, double, slowest)
        self.a = AgentNode("a", "b", self.line)
        self.b = MonitorNode("b", "a", self.line)
        self.script: list[tuple[float, str]] = []
        chance = self.line.random
        # Fifty changes of state, some within a moment, none in the first seconds.
        at = NOW + 40
        self.told: list[Content] = [QUEUED]
        for n in range(50):
            at += chance.choice([0.01, 0.1, 1.0, 20.0])
            self.script.append((at, f"tell {n}"))
        for _ in range(kills):
            who = chance.choice("ab")
            self.script.append((NOW + 40 + chance.uniform(0, at - NOW - 40), f"kill {who}"))
        self.script.sort()
        self.told_last = at
        self.a.start(ends)

    def next(self) -> float | None:
        dues = [self.a.s.next_due(), self.b.due(), self.script[0][0] if self.script else None]
        nexts = [at for at in dues if at is not None]
        return max(min(nexts), self.now) if nexts else None

    now = NOW

    def tick(self, now: float) -> None:
        self.now = now
        while self.script and self.script[0][0] <= now:
            what, _, which = self.script.pop(0)[1].partition(" ")
            if what == "tell":
                content = Content(f"cc-state: {which}", "text/plain")
                self.told.append(content)
                assert self.b.n is not None
                if self.b.n.state is NA:
                    self.b.step(Tell(content), now)
            elif what == "kill":
                (self.a if which == "a" else self.b).kill(self.line)
            elif what == "leave":
                self.a.step(Leave(), now)
            else:
                self.b.step(Terminate("noresource"), now)
        if (at := self.a.s.next_due()) is not None and at <= now:
            self.a.step(Due(), now)
        if self.b.n is not None and (at := self.b.n.next_due()) is not None and at <= now:
            self.b.step(Due(), now)

    def run(self, until: float) -> None:
        play(self.line, {"a": self.a.end, "b": self.b.end}, until, self.next, self.tick)

    def heard(self) -> list[int]:
        """The states the agent was told, by their numbers."""
        numbers = [
            w.removeprefix("Notified active").strip() for w in self.a.log if w.startswith("Notified active")
        ]
        return [-1 if n == "queued" else int(n) for n in numbers]


LINES = [(0.0, 0.0, 0.01), (0.0, 0.5, 3.0), (0.2, 0.0, 0.01), (0.2, 0.3, 3.0)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("loss", "double", "slowest"), LINES)
def test_over_a_bad_line_the_agent_hears_the_states_in_order_and_the_last_of_them(
    seed: int, loss: float, double: float, slowest: float
) -> None:
    w = World(seed, loss, double, slowest)
    w.run(w.told_last + 100)
    assert w.b.n is not None
    assert w.a.s.state is SA
    assert w.b.n.state is NA
    heard = w.heard()
    assert heard == sorted(set(heard))  # in order, none twice
    assert heard[0] == -1
    assert heard[-1] == 49
    assert len(heard) > 5
    # The service ends, and both come to it.
    w.run(ENDS + 200)
    assert (w.a.s.state, w.b.n.state) == (SE, NX)
    assert w.b.log == ["Ended timeout"]
    assert [x for x in w.a.log if x.startswith("Ended")] == ["Ended timeout"]
    assert len(w.a.end.table) == len(w.b.end.table) == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("loss", "double", "slowest"), LINES)
@pytest.mark.parametrize("first", ["leave", "terminate"])
def test_over_a_bad_line_both_come_to_an_end_also_if_both_end_it_at_once(
    seed: int, loss: float, double: float, slowest: float, first: str
) -> None:
    w = World(seed, loss, double, slowest)
    second = "terminate" if first == "leave" else "leave"
    at = w.told_last + 50
    w.script.append((at, first))
    if seed % 2:
        w.script.append((at, second))  # before either can hear of the other
    w.run(at + 200)
    assert w.b.n is not None
    assert (w.a.s.state, w.b.n.state) == (SE, NX)
    ended = [x for x in w.a.log if x.startswith("Ended")]
    assert len(ended) == len(w.b.log) == 1
    if not seed % 2:
        expected = ("Ended unsubscribed", "Ended unsubscribed")
        assert (ended[0], w.b.log[0]) == (
            expected if first == "leave" else ("Ended noresource", "Ended noresource")
        )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("loss", "double", "slowest"), LINES)
def test_kill_minus_nine_of_either_end_loses_no_subscription_and_no_state(
    seed: int, loss: float, double: float, slowest: float
) -> None:
    w = World(seed, loss, double, slowest, kills=8)
    w.run(w.told_last + 100)
    assert w.b.n is not None
    assert w.a.s.state is SA
    assert w.b.n.state is NA
    heard = w.heard()
    assert heard == sorted(heard)  # in order; one whose answer was lost in the kill may come twice
    assert heard[-1] == 49


def test_a_dead_line_ends_both_without_a_word() -> None:
    w = World(1, 0.0, 0.0, 0.01)
    w.run(NOW + 39)
    w.line.loss = 1.0
    w.run(ENDS + 300)
    assert w.b.n is not None
    assert (w.a.s.state, w.b.n.state) == (SE, NX)
    assert w.b.log == ["Ended unanswered"]
    assert [x for x in w.a.log if x.startswith("Ended")] == ["Ended expired"]


def test_the_messages_of_both_are_messages() -> None:
    """What the machines make is read by the parser, and says what they meant."""
    w = World(3, 0.0, 0.0, 0.01)
    w.run(w.told_last + 10)
    seen: set[str] = set()
    for _, data in (*w.a.end.sent, *w.b.end.sent):
        message: Message = parse(data)
        assert message.contact is not None
        seen.add(message.cseq[1] + (" answer" if isinstance(message, Response) else ""))
        if isinstance(message, Request):
            assert message.max_forwards == 70
    assert seen == {"SUBSCRIBE", "SUBSCRIBE answer", "NOTIFY", "NOTIFY answer"}
