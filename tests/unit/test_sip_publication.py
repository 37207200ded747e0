"""PUBLISH at both ends: table 1 of RFC 3903, every pair, transcripts, and both joined by a bad line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from fastagi.errors import Refused
from fastagi.sip.dialog import Answer, Ask
from fastagi.sip.machine import Answered, Content, Due, Unanswered
from fastagi.sip.message import Request, Response
from fastagi.sip.publication import (
    COMPOSITOR,
    PUBLISHER,
    Done,
    Failed,
    Kind,
    Limits,
    Publication,
    Publish,
    Published,
    Publisher,
    PublisherEvent,
    PublisherState,
    Stored,
    Withdraw,
    expire,
    publish,
    step_publisher,
)
from fastagi.sip.transaction import Answered as TransactionAnswered
from fastagi.sip.transaction import Arrived, Effect, TimedOut
from tests.unit.test_sip_transaction import End, Line, play

NOW = 10_000.0
CLOSED = Content("<basic>closed</basic>", "application/pidf+xml")
OPEN = Content("<basic>open</basic>", "application/pidf+xml")
VIA = ("Via", "SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKx")


# ----------------------------------------------------------------------------------------- the compositor


def a_publish(
    body: str = "", etag: str | None = None, expires: int | str | None = 3600, call_id: str = "c1"
) -> Request:
    headers = [
        VIA,
        ("From", "<sip:asterisk@192.0.2.10>;tag=x"),
        ("To", "<sip:tok17@192.0.2.1>"),
        ("Call-ID", call_id),
        ("CSeq", "102 PUBLISH"),
        ("Event", "call-completion"),
    ]
    if expires is not None:
        headers.append(("Expires", str(expires)))
    if etag is not None:
        headers.append(("SIP-If-Match", etag))
    request = Request("PUBLISH", "sip:tok17@192.0.2.1", tuple(headers))
    return request.with_body(body.encode(), "Application/PIDF+xml; charset=UTF-8") if body else request


HELD = Publication("e1", "closed", "application/pidf+xml", NOW + 100)

# kind: (what it sends with the right tag), then by state: what is there afterwards, and the answer.
KINDS: dict[Kind, Request] = {
    Kind.INITIAL: a_publish("open"),
    Kind.REFRESH: a_publish(etag="e1"),
    Kind.MODIFY: a_publish("open", "e1"),
    Kind.REMOVE: a_publish(etag="e1", expires=0),
    Kind.MOMENTARY: a_publish("open", expires=0),
}
OUTCOMES: dict[tuple[Stored, Kind], tuple[str | None, int]] = {
    (Stored.ABSENT, Kind.INITIAL): ("open", 200),
    (Stored.ABSENT, Kind.REFRESH): (None, 412),
    (Stored.ABSENT, Kind.MODIFY): (None, 412),
    (Stored.ABSENT, Kind.REMOVE): (None, 412),
    (Stored.ABSENT, Kind.MOMENTARY): (None, 200),
    (Stored.PRESENT, Kind.INITIAL): ("open", 200),
    (Stored.PRESENT, Kind.REFRESH): ("closed", 200),
    (Stored.PRESENT, Kind.MODIFY): ("open", 200),
    (Stored.PRESENT, Kind.REMOVE): (None, 200),
    (Stored.PRESENT, Kind.MOMENTARY): (None, 200),
}


def test_the_table_of_the_compositor_is_complete() -> None:
    assert set(COMPOSITOR) == set(OUTCOMES) == set(product(Stored, Kind))


@pytest.mark.parametrize(("stored", "kind"), list(OUTCOMES))
def test_every_kind_in_every_state(stored: Stored, kind: Kind) -> None:
    present = HELD if stored is Stored.PRESENT else None
    result = publish(present, KINDS[kind], "e2", NOW, "ours")
    body, status = OUTCOMES[stored, kind]
    answer = result.answer.response
    assert answer.status == status
    assert answer.to.tag == "ours"
    assert (result.publication and result.publication.body) == body
    if status == 200:
        assert result.kind is kind
        granted = 0 if kind in (Kind.REMOVE, Kind.MOMENTARY) else 3600
        assert (answer.get("sip-etag"), answer.expires) == ("e2", granted)
        if body:
            assert result.publication == Publication("e2", body, "application/pidf+xml", NOW + 3600)
    else:
        assert result == Published(present, result.answer, None)


@pytest.mark.parametrize("kind", [Kind.REFRESH, Kind.MODIFY, Kind.REMOVE])
def test_a_tag_that_is_not_the_present_one_is_answered_412(kind: Kind) -> None:
    result = publish(replace(HELD, etag="e9"), KINDS[kind], "e10", NOW, "ours")
    assert (result.answer.response.status, result.kind) == (412, None)
    assert result.publication == replace(HELD, etag="e9")


def test_each_2xx_brings_a_new_tag_whatever_the_call_id() -> None:
    # chan_sip: a new Call-ID and From tag each time, CSeq 102.
    present: Publication | None = None
    transcript = []
    for n, request in enumerate(
        [
            a_publish("closed", call_id="a"),
            a_publish("open", "e0", call_id="b"),
            a_publish("closed", "e0", call_id="c"),
            a_publish("closed", "e1", call_id="d"),
            a_publish(etag="e3", expires=0, call_id="e"),
        ]
    ):
        result = publish(present, request, f"e{n}", NOW, "ours")
        present = result.publication
        transcript.append((result.answer.response.status, present and (present.etag, present.body)))
    assert transcript == [
        (200, ("e0", "closed")),
        (200, ("e1", "open")),
        (412, ("e1", "open")),
        (200, ("e3", "closed")),
        (200, None),
    ]


@pytest.mark.parametrize(
    ("expires", "limits", "granted"),
    [
        (None, Limits(default_expires=600), 600),
        (4800, Limits(ends_at=NOW + 100.9), 100),
        (50, Limits(ends_at=NOW + 100.9), 50),
        (2**40, Limits(), 2**32 - 1),
        (3600, Limits(min_expires=7200), 3600),  # section 6, step 4: an hour is never too brief
    ],
)
def test_what_is_granted(expires: int | None, limits: Limits, granted: int) -> None:
    result = publish(None, a_publish("open", expires=expires), "e1", NOW, "ours", limits)
    assert result.answer.response.expires == granted
    assert result.publication is not None
    assert result.publication.expires_at == NOW + granted


@pytest.mark.parametrize(
    ("request_", "limits", "status"),
    [
        (a_publish(), Limits(), 400),
        (a_publish("open", expires="soon"), Limits(), 400),
        (a_publish("open", "e1").appended(("SIP-If-Match", "e2")), Limits(), 400),
        (a_publish("open", expires=59), Limits(min_expires=60), 423),
        (a_publish(etag="e1", expires=59), Limits(min_expires=60), 423),
        (a_publish("open", "stale", expires=59), Limits(min_expires=60), 412),
        (a_publish("open"), Limits(ends_at=NOW), 404),
    ],
)
def test_what_is_refused_changes_nothing(request_: Request, limits: Limits, status: int) -> None:
    result = publish(HELD, request_, "e2", NOW, "ours", limits)
    answer = result.answer.response
    assert (answer.status, result.publication, result.kind) == (status, HELD, None)
    assert answer.get("min-expires") == ("60" if status == 423 else None)
    assert answer.get("sip-etag") is None


def test_a_removal_is_never_too_brief() -> None:
    result = publish(HELD, KINDS[Kind.REMOVE], "e2", NOW, "ours", Limits(min_expires=60))
    assert (result.answer.response.status, result.publication) == (200, None)


def test_what_has_expired_is_not_there() -> None:
    assert expire(HELD, NOW + 99.9) is HELD
    assert expire(HELD, NOW + 100) is None
    assert expire(None, NOW) is None
    assert publish(HELD, a_publish(etag="e1"), "e2", NOW + 99.9, "ours").answer.response.status == 200
    assert publish(HELD, a_publish(etag="e1"), "e2", NOW + 100, "ours").answer.response.status == 412


def test_a_publication_survives() -> None:
    odd = replace(HELD, body=b"\xff\r\n".decode("utf-8", "surrogateescape"))
    saved = json.loads(json.dumps(odd.to_dict()))
    assert Publication.from_dict({**saved, "of a newer version": 1}) == odd


# ------------------------------------------------------------------------------------------ the publisher


def words(effects: Sequence[object]) -> list[str]:
    found = []
    for e in effects:
        if isinstance(e, Ask):
            r = e.request
            body = "closed" if b"closed" in r.body else "open" if b"open" in r.body else "-"
            found.append(
                f"PUBLISH {r.cseq[0]} {body} for {r.get('expires')} {r.get('sip-if-match', '')}".strip()
            )
        elif isinstance(e, Done):
            found.append("Done nothing" if e.content is None else f"Done {e.content.body[7:-8]}")
        else:
            assert isinstance(e, Failed)
            found.append(f"Failed {e.status}")
    return found


class Agent:
    """One publisher as a transcript; times count from NOW."""

    def __init__(self, ends: float = 3600, state: str = "") -> None:
        self.p = Publisher(
            "sip:tok17@192.0.2.10",
            "<sip:1000@192.0.2.1>;tag=mine",
            "<sip:tok17@192.0.2.10>",
            "c1",
            (("Event", "presence"),),
            NOW + ends,
        )
        if state in ("SENDING", "PUBLISHED"):
            self.do(Publish(CLOSED))
        if state == "PUBLISHED":
            self.answer(200, "e1")

    def do(self, event: PublisherEvent, at: float = 0.0) -> list[str]:
        self.p, effects = step_publisher(self.p, event, NOW + at)
        return words(effects)

    def answer(
        self, status: int, etag: str = "", at: float = 0.0, seq: int = 0, expires: str = "", least: str = ""
    ) -> list[str]:
        lines = [VIA, ("CSeq", f"{seq or self.p.seq} PUBLISH")]
        lines += [(name, value) for name, value in (("Expires", expires), ("Min-Expires", least)) if value]
        if etag:
            lines.append(("SIP-ETag", etag))
        return self.do(Answered(Response(status, "x", tuple(lines))), at)

    def due(self) -> float | None:
        at = self.p.next_due()
        return None if at is None else at - NOW


PI, PS, PP = PublisherState
SAMPLES: dict[type, PublisherEvent] = {
    Publish: Publish(OPEN),
    Withdraw: Withdraw(),
    Answered: Answered(Response(200, "OK", (VIA, ("CSeq", "1 PUBLISH"), ("SIP-ETag", "e1")))),
    Unanswered: Unanswered(1),
    Due: Due(),
}
ROWS: dict[tuple[PublisherState, type], tuple[PublisherState, list[str]]] = {
    (PI, Publish): (PS, ["PUBLISH 1 open for 3600"]),
    (PI, Withdraw): (PI, ["Done nothing"]),
    (PI, Answered): (PI, []),
    (PI, Unanswered): (PI, []),
    (PI, Due): (PI, []),
    (PS, Publish): (PS, []),
    (PS, Withdraw): (PS, []),
    (PS, Answered): (PP, ["Done closed"]),
    (PS, Unanswered): (PI, ["Failed 0"]),
    (PS, Due): (PS, []),
    (PP, Publish): (PS, ["PUBLISH 2 open for 3600 e1"]),
    (PP, Withdraw): (PS, ["PUBLISH 2 - for 0 e1"]),
    (PP, Answered): (PP, []),
    (PP, Unanswered): (PP, []),
    (PP, Due): (PP, []),
}


@pytest.mark.parametrize(("state", "event"), list(product(PublisherState, SAMPLES)))
def test_every_pair_of_a_publisher(state: PublisherState, event: type) -> None:
    a = Agent(state=state.value)
    assert a.p.state is state
    made = a.do(SAMPLES[event])
    assert (a.p.state, made) == ROWS[state, event]


def test_the_table_of_the_publisher_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(PUBLISHER) == set(ROWS) == set(product(PublisherState, get_args(PublisherEvent)))
    monkeypatch.delitem(PUBLISHER, (PI, Withdraw))
    with pytest.raises(Refused, match="the publisher is IDLE: Withdraw does not fit"):
        Agent().do(Withdraw())


def test_suspended_resumed_and_withdrawn() -> None:
    a = Agent()
    _, effects = step_publisher(a.p, Publish(CLOSED), NOW)
    (ask,) = effects
    assert isinstance(ask, Ask)
    assert ask.request.to_bytes().decode().split("\r\n") == [
        "PUBLISH sip:tok17@192.0.2.10 SIP/2.0",
        "Max-Forwards: 70",
        "From: <sip:1000@192.0.2.1>;tag=mine",
        "To: <sip:tok17@192.0.2.10>",
        "Call-ID: c1",
        "CSeq: 1 PUBLISH",
        "Event: presence",
        "Expires: 3600",
        "Content-Type: application/pidf+xml",
        "Content-Length: 21",
        "",
        CLOSED.body,
    ]
    assert a.do(Publish(CLOSED)) == ["PUBLISH 1 closed for 3600"]
    assert a.answer(200, "e1", 1) == ["Done closed"]
    assert a.do(Publish(OPEN), 100) == ["PUBLISH 2 open for 3500 e1"]
    assert a.answer(200, "e2", 101) == ["Done open"]
    assert a.do(Withdraw(), 200) == ["PUBLISH 3 - for 0 e2"]
    assert a.answer(200, "e3", 201) == ["Done nothing"]
    assert a.p.state is PI
    assert a.do(Publish(OPEN), 202) == ["PUBLISH 4 open for 3398"]


def test_only_one_is_under_way_and_the_latest_wish_follows() -> None:
    a = Agent(state="SENDING")
    assert a.do(Publish(OPEN)) == []
    assert a.do(Publish(CLOSED)) == []
    assert a.do(Publish(OPEN)) == []
    assert a.answer(100) == []
    assert a.answer(200, "e9", seq=7) == []
    assert a.answer(200, "e1") == ["PUBLISH 2 open for 3600 e1"]
    assert a.do(Withdraw()) == []
    assert a.answer(200, "e2") == ["PUBLISH 3 - for 0 e2"]
    assert a.do(Publish(CLOSED)) == []
    assert a.answer(200, "e3") == ["PUBLISH 4 closed for 3600"]


def test_a_wish_that_came_back_to_what_was_sent_needs_nothing_more() -> None:
    a = Agent(state="SENDING")
    a.do(Publish(OPEN))
    a.do(Publish(CLOSED))
    assert a.answer(200, "e1") == ["Done closed"]


def test_forgotten_by_the_other_side_all_is_said_anew() -> None:
    a = Agent(state="PUBLISHED")
    a.do(Publish(OPEN))
    assert a.answer(412) == ["PUBLISH 3 open for 3600"]
    assert a.answer(412) == ["Failed 412"]
    b = Agent(state="PUBLISHED")
    b.do(Withdraw())
    assert b.answer(412) == ["Done nothing"]
    assert b.p.state is PI


def test_too_brief_is_asked_once_more() -> None:
    a = Agent(ends=30)
    assert a.do(Publish(CLOSED)) == ["PUBLISH 1 closed for 30"]
    assert a.answer(423, least="60") == ["PUBLISH 2 closed for 60"]
    assert a.answer(423, least="90") == ["Failed 423"]
    for value in ("", "x", "9" * 20):
        b = Agent(ends=30)
        b.do(Publish(CLOSED))
        assert b.answer(423, least=value) == ["Failed 423"]


@pytest.mark.parametrize("status", [400, 403, 404, 489, 500, 603])
def test_any_other_error_is_told_and_the_next_says_all(status: int) -> None:
    a = Agent(state="PUBLISHED")
    a.do(Publish(OPEN))
    assert a.answer(status) == [f"Failed {status}"]
    assert (a.p.state, a.due()) == (PP, None)
    assert a.do(Publish(OPEN)) == ["PUBLISH 3 open for 3600 e1"]


def test_a_failure_of_what_is_no_longer_wanted_is_not_told() -> None:
    a = Agent(state="SENDING")
    a.do(Publish(OPEN))
    assert a.answer(500) == ["PUBLISH 2 open for 3600"]
    a.do(Withdraw())
    assert a.do(Unanswered(1)) == []
    assert a.do(Unanswered(2)) == ["Done nothing"]


def test_refreshed_without_a_body_while_that_gains_anything() -> None:
    a = Agent(ends=4800)
    a.do(Publish(CLOSED))
    a.answer(200, "e1", expires="3600")
    assert a.due() == 3536
    assert a.do(Due(), 3535) == []
    assert a.do(Due(), 3536) == ["PUBLISH 2 - for 1264 e1"]
    assert a.answer(200, "e2", 3537, expires="63") == ["Done closed"]
    assert a.due() is None


def test_a_refresh_that_gains_is_followed_by_the_next() -> None:
    a = Agent(ends=10_000)
    a.do(Publish(CLOSED))
    a.answer(200, "e1", expires="3600")
    a.do(Due(), 3536)
    assert a.answer(200, "e2", 3537, expires="3600") == ["Done closed"]
    assert a.due() == 3537 + 3536


def test_a_refresh_that_fails_is_tried_once_more_and_says_all() -> None:
    a = Agent(ends=10_000)
    a.do(Publish(CLOSED))
    a.answer(200, "e1", expires="3600")
    a.do(Due(), 3536)
    assert a.do(Unanswered(2), 3568) == ["Failed 0"]
    assert a.due() == 3568
    assert a.do(Due(), 3568) == ["PUBLISH 3 closed for 6432 e1"]
    assert a.do(Unanswered(3), 3600) == ["Failed 0"]
    assert a.due() is None
    b = Agent(ends=10_000)
    b.do(Publish(CLOSED))
    b.answer(200, "e1", expires="3600")
    b.do(Due(), 3536)
    assert b.answer(503, at=3537) == ["Failed 503"]
    assert b.due() == 3569  # not at once


@pytest.mark.parametrize("expires", ["soon", "99999", ""])
def test_an_answer_grants_never_more_than_was_asked(expires: str) -> None:
    a = Agent(ends=600)
    a.do(Publish(CLOSED))
    a.answer(200, "e1", expires=expires)
    assert a.p.expires_at == NOW + 600
    assert a.due() is None


def test_a_peer_that_gives_no_tag_is_told_all_anew_each_time() -> None:
    a = Agent(ends=10_000, state="SENDING")
    assert a.answer(200, "") == ["Done closed"]
    assert (a.p.state, a.due()) == (PI, None)
    assert a.do(Publish(OPEN)) == ["PUBLISH 2 open for 10000"]


def test_a_publisher_survives_and_says_again_what_nobody_saw_answered() -> None:
    def saved(p: Publisher) -> Publisher:
        return Publisher.from_dict(json.loads(json.dumps({**p.to_dict(), "of a newer version": 1})))

    for state in ("IDLE", "PUBLISHED"):
        a = Agent(state=state)
        assert saved(a.p) == a.p
    a = Agent(state="PUBLISHED")
    a.do(Publish(OPEN), 10)
    a.p = saved(a.p)
    assert a.p.next_due() == 0.0
    assert a.do(Due(), 20) == ["PUBLISH 3 open for 3580 e1"]
    assert a.answer(412, at=21) == ["PUBLISH 4 open for 3579"]
    assert a.answer(200, "e2", 22) == ["Done open"]
    a.do(Withdraw(), 30)
    a.p = saved(a.p)
    assert a.do(Due(), 40) == ["PUBLISH 6 - for 0 e2"]


# ------------------------------------------------------------------------- both ends, joined by a bad line


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("loss", "double", "slowest"), [(0.0, 0.5, 3.0), (0.2, 0.0, 0.01), (0.2, 0.3, 3.0)])
def test_over_a_bad_line_the_other_side_ends_with_what_was_wanted_last(
    seed: int, loss: float, double: float, slowest: float
) -> None:
    line = Line(seed, loss, double, slowest)
    agent = Agent(ends=100_000)
    agent.p = replace(agent.p, uri="sip:tok@b", to="<sip:tok@b>")
    held: list[Publication | None] = [None]
    history: list[str] = []
    tags = 0
    branches = 0

    def run(event: PublisherEvent, now: float) -> None:
        nonlocal branches
        agent.p, effects = step_publisher(agent.p, event, now)
        for e in effects:
            if isinstance(e, Ask):
                branches += 1
                via = ("Via", f"SIP/2.0/UDP a;branch=z9hG4bK{branches}")
                a.do(a.table.request(e.request.prepended(via), "b", now), now)

    def at_a(e: Effect, now: float) -> None:
        if isinstance(e, TransactionAnswered):
            run(Answered(e.response), now)
        elif isinstance(e, TimedOut):
            run(Unanswered(e.request.cseq[0]), now)

    def at_b(e: Effect, now: float) -> None:
        nonlocal tags
        if isinstance(e, Arrived):
            tags += 1
            result = publish(held[0], e.request, f"e{tags}", now, "ours")
            held[0] = result.publication
            assert isinstance(result.answer, Answer)
            history.append(f"{result.answer.response.status}")
            b.do(b.table.respond(e.key, result.answer.response, now), now)

    a, b = End("a", line, at_a), End("b", line, at_b)
    at = NOW
    script: list[tuple[float, PublisherEvent]] = []
    for n in range(30):
        at += line.random.choice([0.01, 0.3, 5.0])
        wishes: list[PublisherEvent] = [Publish(OPEN), Publish(CLOSED), Withdraw()]
        script.append((at, line.random.choice(wishes)))
        if n == 15:
            script.append((at, Due()))
    forget = script[20][0]

    def tick(now: float) -> None:
        nonlocal forget
        while script and script[0][0] <= now:
            run(script.pop(0)[1], now)
        if now >= forget:
            held[0], forget = None, float("inf")  # the other side loses its memory once

    play(line, {"a": a, "b": b}, at + 200, lambda: script[0][0] if script else None, tick)
    assert not script
    wanted = agent.p.content
    known = None if held[0] is None else Content(held[0].body, held[0].type)
    assert known == wanted
    assert agent.p.etag == ("" if held[0] is None else held[0].etag)
    assert set(history) <= {"200", "412"}
    assert history.count("412") <= 1
    assert len(history) > 5
