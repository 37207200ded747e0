"""A foreign PBX at the other end: Asterisk 16 with chan_sip's own call completion, and its habits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.install import ensure_asterisk, ensure_asterisk16
from tests.lab.phone import Call
from tests.real.bench import QUICK
from tests.real.trunkbench import Foreign


@pytest.fixture(scope="module")
def running_pbxs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    folder: Path = tmp_path_factory.mktemp("foreign")
    with Foreign(folder, ensure_asterisk(), ensure_asterisk16()).running() as pbxs:
        yield pbxs


@pytest.fixture
def pbxs(running_pbxs: Foreign, request: pytest.FixtureRequest) -> Iterator[Foreign]:
    running_pbxs.fresh()
    yield running_pbxs
    if hasattr(request.node, "failed"):
        print(running_pbxs.evidence())
    running_pbxs.clear()


def camped(pbxs: Foreign, caller: str, callee: str, other: str) -> Call:
    """The callee talks to another, the caller meets busy and asks; answers the callee's call."""
    talk = pbxs.talk(callee, other)
    pbxs.meets_busy(caller, callee)
    assert pbxs.asks(caller) == "SUCCESS/"
    pbxs.phones[callee].answer = "ring"
    pbxs.wire.wait("NOTIFY", body="cc-state: queued")
    return talk


def short(raw: bytes) -> list[tuple[float, bytes]]:
    """The same message, but granting 12 seconds."""
    return [(0, raw.replace(b"xpires: 3600", b"xpires: 12").replace(b"xpires=3600", b"xpires=12"))]


def nothing_open(pbxs: Foreign) -> None:
    pbxs.until(lambda: not pbxs.a.server.requests(), "no open request")


# ------------------------------------------------------------------------------- our phone waits for theirs


def test_we_subscribe(pbxs: Foreign) -> None:
    camped(pbxs, "1000", "7000", "8000").hangup()
    call = pbxs.connects(pbxs.recalled("1000"), "7000")
    assert call.from_number == "1000"
    call.hangup()
    nothing_open(pbxs)
    # It tells no end of its own accord: what we asked for is over with our own CC call.
    pbxs.wire.wait("SUBSCRIBE", where=lambda m: m.get("Expires") == "0")
    assert pbxs.a.ended("COMPLETED")


def test_no_reply_there(pbxs: Foreign) -> None:
    """It says m=NR of every call, and called back after the callee's next call."""
    pbxs.phones["7000"].answer = "ring"
    pbxs.phones["1000"].dial("7000").wait_ringing().hangup()
    pbxs.forget("7000")
    assert pbxs.asks("1000") == "SUCCESS/"
    pbxs.wire.wait("NOTIFY", body="cc-state: queued")
    pbxs.talk("7000", "8000").hangup()
    pbxs.phones["7000"].answer = "ring"
    pbxs.connects(pbxs.recalled("1000"), "7000").hangup()
    nothing_open(pbxs)


def test_we_suspend_and_resume(pbxs: Foreign) -> None:
    """A PUBLISH by its old name is the only one that it understands, and that is remembered."""
    talk = camped(pbxs, "1000", "7000", "8000")
    his = pbxs.talk("1000", "2000")
    talk.hangup()
    refused = pbxs.wire.wait("PUBLISH", event="presence", body="closed")
    assert pbxs.wire.answer(refused).status == 489
    closed = pbxs.wire.wait("PUBLISH", event="call-completion", body="closed")
    assert pbxs.wire.answer(closed).status == 200
    pbxs.phones["1000"].answer = "ring"
    his.hangup()
    opened = pbxs.wire.wait("PUBLISH", event="call-completion", body="open")
    assert opened.get("SIP-If-Match") == pbxs.wire.answer(closed).get("SIP-ETag")
    pbxs.connects(pbxs.recalled("1000"), "7000").hangup()
    nothing_open(pbxs)


def test_we_take_it_back(pbxs: Foreign) -> None:
    talk = camped(pbxs, "1000", "7000", "8000")
    assert pbxs.asks("1000", "*31") == "SUCCESS/"
    left = pbxs.wire.wait("SUBSCRIBE", where=lambda m: m.get("Expires") == "0")
    assert pbxs.wire.answer(left).status == 200
    talk.hangup()
    pbxs.quiet("1000", 2)


def test_it_answers_no_refresh(pbxs: Foreign) -> None:
    """And goes on serving: the request lives, and is called back."""
    pbxs.wire.change(short, "SUBSCRIBE", status=200, times=0)
    pbxs.wire.change(short, "NOTIFY", times=0)
    talk = camped(pbxs, "1000", "7000", "8000")
    refresh = pbxs.wire.wait("SUBSCRIBE", nth=2, timeout=20)
    pbxs.wire.wait("SUBSCRIBE", nth=3, timeout=20)
    assert not [m for m in pbxs.wire.messages() if m.status and m.cseq == refresh.cseq]
    talk.hangup()
    pbxs.connects(pbxs.recalled("1000"), "7000").hangup()
    nothing_open(pbxs)


def test_callee_busy_again(pbxs: Foreign) -> None:
    """It keeps no place when a CC call fails: we ask anew, and the caller is called back all the same."""
    camped(pbxs, "1000", "7000", "8000").hangup()
    recall = pbxs.recalled("1000")
    talk = pbxs.talk("7000", "8000")
    recall.answer()
    recall.wait_ended(10)
    pbxs.forget("7000")
    pbxs.phones["7000"].answer = "ring"
    talk.hangup()
    pbxs.connects(pbxs.recalled("1000", 15), "7000").hangup()
    nothing_open(pbxs)


# ------------------------------------------------------------------------------- their phone waits for ours


def test_it_subscribes(pbxs: Foreign) -> None:
    talk = camped(pbxs, "7000", "1000", "2000")
    assert pbxs.wire.wait("INVITE", status=486).get("Call-Info").endswith(";m=BS")
    talk.hangup()
    pbxs.connects(pbxs.recalled("7000"), "1000").hangup()
    nothing_open(pbxs)
    assert pbxs.a.ended("COMPLETED")


def test_no_reply_here(pbxs: Foreign) -> None:
    pbxs.phones["1000"].answer = "ring"
    pbxs.phones["7000"].dial("1000").wait_ringing().hangup()
    pbxs.forget("1000")
    pbxs.until(lambda: pbxs.a.offers(), "the call is on record")
    assert pbxs.asks("7000") == "SUCCESS/"
    pbxs.wire.wait("NOTIFY", body="cc-state: queued")
    talk = pbxs.talk("1000", "2000")
    pbxs.a.server.wait_log("uses his phone")
    talk.hangup()
    pbxs.phones["1000"].answer = "ring"
    pbxs.connects(pbxs.recalled("7000"), "1000").hangup()
    nothing_open(pbxs)


def test_it_suspends_and_resumes(pbxs: Foreign) -> None:
    talk = camped(pbxs, "7000", "1000", "2000")
    his = pbxs.talk("7000", "8000")
    talk.hangup()
    pbxs.wire.wait("PUBLISH", body="closed")
    pbxs.wire.wait("NOTIFY", body="cc-state: queued", nth=2)
    pbxs.phones["7000"].answer = "ring"
    his.hangup()
    pbxs.wire.wait("PUBLISH", body="open")
    pbxs.connects(pbxs.recalled("7000", 15), "1000").hangup()
    nothing_open(pbxs)


def test_it_takes_it_back(pbxs: Foreign) -> None:
    talk = camped(pbxs, "7000", "1000", "2000")
    pbxs.asks("7000", "*31")
    nothing_open(pbxs)
    talk.hangup()
    pbxs.quiet("7000", 2)


def test_it_unsubscribes_after_a_refusal(pbxs: Foreign) -> None:
    """Nothing comes of it, and the next request is taken."""
    pbxs.a.reconfigure(QUICK.replace("}", ", cc_max_monitors: 1}"))
    talk = camped(pbxs, "7000", "1000", "2000")
    pbxs.meets_busy("8000", "1000")
    pbxs.asks("8000")
    refused = pbxs.wire.wait("SUBSCRIBE", status=480)
    again = pbxs.wire.wait("SUBSCRIBE", after=refused)
    assert again.get("Expires") == "0"
    assert pbxs.wire.answer(again).status == 481
    assert len(pbxs.a.server.requests()) == 1
    pbxs.phones["1000"].answer = "ring"
    talk.hangup()
    pbxs.connects(pbxs.recalled("7000"), "1000").hangup()
    nothing_open(pbxs)
