"""Call completion over a trunk, as conversations between two PBXs: what is rung, saved, and said on the wire."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from fastagi.completion.machine import RecallLost
from fastagi.completion.model import Offer, Request, Service, State
from fastagi.completion.service import Target
from fastagi.sip.callcompletion.agents import channel_of
from fastagi.sip.message import Malformed, Response
from fastagi.sip.message import Request as SipRequest
from fastagi.sip.message import parse as sip_parse
from fastagi.sip.trunk import Side
from tests.unit.rules import GONE, IDLE, IN_USE, FakeStore, phone
from tests.unit.trunks import (
    Died,
    Pair,
    Peer,
    Site,
    TrunkCall,
    alone,
    call_infos,
    check,
    in_words,
    monitor_of,
    trunk,
)

CCBS, CCNR, CCNL = Service


_ASTERISK, _LOST = Side.ASTERISK, RecallLost


def nothing_is_left(pair: Pair) -> None:
    """Both have forgotten all of it, but for the failed calls on record."""
    pair.wait(70)
    for site in pair.sites:
        assert [kind for kind, _ in site.store.kept if kind in ("agent", "monitor")] == []
        assert site.open() == []
    assert pair.table.packets == []


def both_ends(pair: Pair) -> tuple[list[str], list[str]]:
    return pair.a.states(), pair.b.states()


# ----------------------------------------------------------------------------------------------- words of the tests


def pidf(basic: str) -> str:
    return (
        '<?xml version="1.0"?><presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:1000@192.0.2.1">'
        f'<tuple id="x"><status><basic>{basic}</basic></status></tuple></presence>'
    )


def closed() -> str:
    return pidf("closed")


def opened() -> str:
    return pidf("open")


def call_uri(peer: Peer) -> str:
    """The cc-URI of the NOTIFY that came last."""
    notifies = [m for m in peer.site.table.sent if isinstance(m, SipRequest) and m.method == "NOTIFY"]
    said = re.search(rb"cc-URI: (\S+)", notifies[-1].body)
    assert said
    return said[1].decode()


def subscribed(peer: Peer, callee: str = "2000", invite: str = "c1", **more: Any) -> tuple[str, str]:
    """Somebody of the peer's waits for one of ours, who is busy; his monitor URI, and the To tag of his dialog."""
    peer.site.set(callee, IN_USE)
    monitor = peer.meets(callee, invite)
    answer = peer.subscribe(monitor, **more)
    assert answer.status == 200
    return monitor, answer.to.tag


# ---------------------------------------------------------------------------------------------- from end to end


@pytest.mark.parametrize("out", ["a", "b"])
def test_busy_queued_ready_called_talked(pair: Pair, out: str) -> None:
    here, there = (pair.a, pair.b) if out == "a" else (pair.b, pair.a)
    pair.set(there, "2000", IN_USE)
    call = pair.call("1000", "2000", here)
    seen = call.fails()
    assert call_infos(seen)[0].m == "BS"
    assert here.told() == there.told() == ["saved: offer 1", "-> offer 1 CCBS"]
    answers = here.asked("1000")
    assert answers == [], "he is told when the other PBX has accepted"
    pair.flow()
    [answer] = answers
    assert isinstance(answer, Request) and answer.state is State.QUEUED
    assert pair.wire() == [f"{here.name}: SUBSCRIBE 4800", f"{there.name}: NOTIFY queued"]
    assert here.told() == ["saved: 2 OFFERED -> REQUESTED", "saved: 2 REQUESTED -> QUEUED"]
    assert there.told() == ["saved: 2 OFFERED -> QUEUED"]

    pair.wait(600)
    assert (pair.wire(), here.told(), there.told()) == ([], [], [])
    pair.set(there, "2000", IDLE)
    recall = here.recall()
    assert pair.wire() == [f"{there.name}: NOTIFY ready"]
    assert there.told() == ["saved: 2 QUEUED -> READY"]
    assert here.told() == ["saved: 2 QUEUED -> READY", f"ring 1000 for 2000: {recall}"]

    pair.wait(5)
    cc = pair.cc_call(here)
    assert cc.arrived is not None and cc.arrived.uri == "sip:2000@127.0.0.1:5060"
    assert pair.wire() == []
    assert there.told() == ["saved: 2 READY -> CALLING"]
    assert (monitor_of(cc.answers(180)), monitor_of(cc.answers(200))) == ("", ""), "no offer in a CC call"
    pair.flow()
    assert pair.wire() == [f"{there.name}: NOTIFY terminated;reason=noresource"]
    assert there.told() == ["saved: 2 CALLING -> COMPLETED"]
    pair.wait(60)
    here.told()
    pair.call_is_over(cc, "ANSWER")
    assert here.told() == ["saved: 2 CALLING -> COMPLETED", "-> 2 COMPLETED COMPLETED"]
    nothing_is_left(pair)
    assert pair.wire() == []


def test_who_is_told_what_on_the_wire(pair: Pair) -> None:
    """The SUBSCRIBE, the NOTIFYs and the CC call's request-URI, word for word."""
    pair.camps()
    subscribe = pair.table.last("SUBSCRIBE")
    monitor = re.fullmatch(r"(sip:ccm-[0-9a-f]{32}@192\.0\.2\.2:5070);m=BS", subscribe.uri)
    assert monitor
    assert subscribe.from_.uri == "sip:1000@127.0.0.1", "whom the INVITE named"
    assert subscribe.to.uri == "sip:2000@127.0.0.1:5070"
    assert (
        subscribe.get("event") == "call-completion"
        and subscribe.get("accept") == "application/call-completion"
    )
    assert subscribe.get("request-disposition") == "parallel"
    queued = pair.table.last("NOTIFY queued")
    call_uri = rb"cc-URI: (sip:ccc-[0-9a-f]{32}@192\.0\.2\.2:5070)\r\n"
    said = re.fullmatch(rb"cc-state: queued\r\ncc-service-retention: true\r\n" + call_uri, queued.body)
    assert said
    assert queued.get("subscription-state") == "active;expires=4800"
    assert queued.content_type == "application/call-completion"
    pair.set(pair.b, "2000", IDLE)
    ready = pair.table.last("NOTIFY ready")
    assert ready.body == queued.body.replace(b"queued", b"ready")
    call = pair.call("1000", "2000", uri=f"sip:cc-{pair.a.recall()}@127.0.0.1:5070")
    pair.a.plan(pair.a.recall())
    pair.a.target(pair.a.recall())
    between = pair.a.cc.request_passes("b", _ASTERISK, call.request())
    assert between == f"{said[1].decode()};m=BS"


def test_no_answer_is_asked_for_as_such(pair: Pair) -> None:
    pair.set(pair.b, "2000", IDLE)
    seen = pair.call("1000", "2000").fails(480, "NOANSWER", 19, rings=True)
    assert call_infos(seen)[0].m == "NR"
    pair.a.asked("1000")
    pair.flow()
    assert pair.table.last("SUBSCRIBE").uri.endswith(";m=NR")
    [there] = pair.b.open()
    assert (there.service, there.sign_needed) == (CCNR, True)
    [here] = pair.a.open()
    assert (here.service, here.sign_needed) == (CCNR, False), "that is judged there"
    pair.wait(1000)
    assert pair.a.agent.rung == []
    pair.set(pair.b, "2000", IN_USE)
    pair.set(pair.b, "2000", IDLE)
    assert [r.callee for r in pair.a.agent.rung] == ["2000"]


def test_the_caller_gave_up_while_it_rang(pair: Pair) -> None:
    """487, and the dialplan there tells of the call when all is over."""
    call = pair.call("1000", "2000")
    call.invite()
    ringing = call.answers(180)
    call.sends("CANCEL")
    ended = call.answers(487)
    assert {monitor_of(ringing)} == {monitor_of(ended)} != {""}
    assert (call_infos(ringing)[0].m, call_infos(ended)[0].m) == ("NR", "NR")
    call.record_here("CANCEL", 0)
    pair.a.asked("1000")
    assert pair.table.lie() == ["a: SUBSCRIBE 7200"]
    call.record_there("CANCEL", 0)
    pair.flow()
    assert both_ends(pair) == (["QUEUED"], ["QUEUED"])


def test_not_registered_is_asked_for_as_such(pair: Pair) -> None:
    pair.set(pair.b, "2000", GONE)
    seen = pair.call("1000", "2000").fails(480, "CHANUNAVAIL", 20)
    assert call_infos(seen)[0].m == "NL"
    pair.a.asked("1000")
    pair.flow()
    pair.wait(100)
    assert pair.a.agent.rung == []
    pair.set(pair.b, "2000", IDLE)
    assert len(pair.a.agent.rung) == 1


def test_idle_before_he_asks(pair: Pair) -> None:
    """The caller is told ready a moment after queued, and rung once he has hung up from asking."""
    pair.call("1000", "2000").fails()
    pair.set(pair.a, "1000", IN_USE)
    pair.a.asked("1000")
    pair.flow()
    assert pair.a.agent.rung == []
    pair.wait(30)
    pair.set(pair.a, "1000", IDLE)
    pair.wait(20)
    assert len(pair.a.agent.rung) == 1


def test_two_of_one_pbx_are_served_in_their_order(pair: Pair) -> None:
    pair.camps("1000")
    pair.wait(3)
    pair.camps("1001")
    pair.set(pair.b, "2000", IDLE)
    assert [r.caller for r in pair.a.agent.rung] == ["1000"]
    cc = pair.cc_call()
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    pair.flow()
    assert [r.caller for r in pair.a.agent.rung] == ["1000", "1001"]


def test_one_waits_here_and_one_beyond_for_the_same_callee(pair: Pair) -> None:
    pair.camps("1000")
    pair.wait(1)
    pair.b.wants("2005", "2000")
    pair.set(pair.b, "2000", IDLE)
    assert (len(pair.a.agent.rung), pair.b.agent.rung) == (1, [])
    cc = pair.cc_call()
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    pair.wait(0)
    assert [r.caller for r in pair.b.agent.rung] == ["2005"]


# ----------------------------------------------------------------------------------------------- taken back


@pytest.mark.parametrize("reached", ["asked", "accepted", "queued", "ready", "ringing", "suspended"])
def test_taken_back_at_every_state(pair: Pair, reached: str) -> None:
    pair.set(pair.b, "2000", IN_USE)
    pair.call("1000", "2000").fails()
    pair.held = reached in ("asked", "accepted")
    answers = pair.a.asked("1000")
    if reached == "accepted":
        pair.table.deliver()  # the SUBSCRIBE; its 200 and the NOTIFY lie on the table
    if reached not in ("asked", "accepted"):
        pair.flow()
    if reached == "suspended":
        pair.set(pair.a, "1000", IN_USE)
    if reached in ("ready", "ringing", "suspended"):
        pair.set(pair.b, "2000", IDLE)
    if reached == "ringing":
        pair.a.plan(pair.a.recall())
    pair.a.told()
    pair.a.cancels("1000")
    told = pair.a.told()
    assert told[-1] == "-> 2 ENDED CANCELLED"
    assert ([e for e in told if e.startswith("stop")] != []) == (reached in ("ready", "ringing"))
    if reached in ("asked", "accepted"):
        assert [str(a) for a in answers] == ["taken back by 1000"]
    pair.held = False
    pair.flow()
    wire = [line for line in pair.wire() if line != "a: PUBLISH remove"]
    assert wire[-2:] == ["a: SUBSCRIBE 0", "b: NOTIFY terminated;reason=timeout"]
    assert both_ends(pair) == (["ENDED CANCELLED"], ["ENDED CANCELLED"])
    pair.set(pair.a, "1000", IDLE)
    nothing_is_left(pair)
    assert len(pair.a.agent.rung) == (1 if reached in ("ready", "ringing") else 0)


def test_the_operator_there_takes_it_back(pair: Pair) -> None:
    pair.camps()
    pair.b.service.cancel_id(2, pair.b.said)
    pair.flow()
    assert pair.wire() == ["b: NOTIFY terminated;reason=noresource"]
    assert both_ends(pair) == (["ENDED ENDED_THERE"], ["ENDED CANCELLED"])
    nothing_is_left(pair)


def test_the_operator_there_takes_it_back_while_the_caller_rings(pair: Pair) -> None:
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    pair.a.plan(pair.a.recall())
    pair.a.told()
    pair.b.service.cancel_id(2, pair.b.said)
    pair.flow()
    assert pair.a.told() == ["saved: 2 READY -> ENDED", f"stop {pair.a.recall()}"]
    nothing_is_left(pair)


def test_both_end_it_at_once(pair: Pair) -> None:
    """Crossing terminations: each is answered, and both are done with it."""
    pair.camps()
    pair.held = True
    pair.a.cancels("1000")
    pair.b.service.cancel_id(2, pair.b.said)
    assert pair.table.lie() == ["a: SUBSCRIBE 0", "b: NOTIFY terminated;reason=noresource"]
    pair.held = False
    pair.flow()
    assert both_ends(pair) == (["ENDED CANCELLED"], ["ENDED CANCELLED"])
    assert {line.split(": ")[1] for line in pair.wire()} == {
        "SUBSCRIBE 0",
        "NOTIFY terminated;reason=noresource",
    }
    nothing_is_left(pair)


def test_its_time_is_over_on_both_sides(pair: Pair) -> None:
    pair.camps()
    pair.wait(4799)
    assert both_ends(pair) == (["QUEUED"], ["QUEUED"])
    pair.wait(2)
    assert both_ends(pair) == (["ENDED EXPIRED"], ["ENDED EXPIRED"])
    nothing_is_left(pair)
    assert pair.a.agent.rung == []


# --------------------------------------------------------------------------------------- turns that come to nothing


def test_nobody_answers_the_recall(pair: Pair) -> None:
    """It ends here before the other PBX's timer does; he is suspended for the pause, and rung again after it."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    pair.a.plan(pair.a.recall())
    pair.wait(15)
    pair.told()
    pair.a.recall_failed(pair.a.recall())
    pair.flow()
    assert pair.wire() == ["a: PUBLISH closed", "b: NOTIFY queued"]
    [here], [there] = pair.a.open(), pair.b.open()
    assert (here.state, here.recalls) == (State.QUEUED, 1)
    assert (there.state, there.recalls, there.suspended) == (State.QUEUED, 0, True)
    pair.wait(29.9)
    assert pair.wire() == []
    pair.wait(1)
    assert pair.wire() == ["a: PUBLISH open", "b: NOTIFY ready"]
    assert len(pair.a.agent.rung) == 2


def test_the_recall_timer_there_runs_out(pair: Pair) -> None:
    """The caller's phone rings on (his own PBX is slow): it is set back, counted, and tried again."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    recall = pair.a.recall()
    pair.a.plan(recall)
    pair.told()
    pair.wait(19.9)
    assert pair.wire() == []
    pair.wait(0.2)
    assert pair.wire() == ["b: NOTIFY queued", "a: PUBLISH closed"]
    assert (pair.b.open()[0].state, pair.b.open()[0].recalls) == (State.QUEUED, 1)
    assert pair.a.told() == ["saved: 2 READY -> QUEUED", f"stop {recall}"]
    assert pair.a.open()[0].recalls == 1
    pair.wait(31)
    assert pair.wire() == ["a: PUBLISH open", "b: NOTIFY ready"]
    pair.a.plan(pair.a.recall())
    pair.wait(20)
    pair.wait(31)
    assert [r.recall_id for r in pair.a.agent.rung][-1] != recall
    pair.a.plan(pair.a.recall())
    pair.wait(20)
    assert pair.b.states() == ["ENDED TOO_MANY_RECALLS"]
    assert pair.a.states() == ["ENDED ENDED_THERE"]
    nothing_is_left(pair)


def test_a_recall_that_asterisk_does_not_begin_suspends_him_there(pair: Pair) -> None:
    """The other PBX has the callee free for others meanwhile, and counts nothing."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    recall = pair.a.recall()
    pair.told()
    pair.wait(9.9)
    assert pair.wire() == []
    pair.wait(0.2)
    assert pair.wire() == ["a: PUBLISH closed", "b: NOTIFY queued"]
    assert (pair.b.open()[0].suspended, pair.b.open()[0].recalls) == (True, 0)
    assert pair.a.told() == ["saved: 2 READY -> QUEUED", f"stop {recall}"]
    pair.wait(29)
    assert pair.wire() == []
    pair.wait(2)
    assert pair.wire() == ["a: PUBLISH open", "b: NOTIFY ready"]
    assert pair.a.recall() != recall


def test_busy_again_at_the_cc_call(pair: Pair) -> None:
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    cc = pair.cc_call()
    pair.set(pair.b, "2000", IN_USE)
    pair.told()
    answer = cc.record_there("BUSY", 17)
    assert isinstance(answer, Request) and (answer.state, answer.recalls) == (State.QUEUED, 1)
    assert monitor_of(cc.answers(486)) == ""
    pair.flow()
    assert pair.wire() == ["b: NOTIFY queued"]
    pair.call_is_over(cc, "BUSY", 17)
    assert pair.wire() == [], "it keeps its place there, and nobody needs to say anything"
    assert (pair.a.open()[0].state, pair.a.open()[0].recalls) == (State.QUEUED, 1)
    pair.wait(60)
    pair.set(pair.b, "2000", IDLE)
    assert pair.wire() == ["b: NOTIFY ready"]
    cc = pair.cc_call()
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    assert both_ends(pair) == (["COMPLETED COMPLETED"], ["COMPLETED COMPLETED"])
    nothing_is_left(pair)


@pytest.mark.parametrize("dialplan", ["first", "last", "never"])
@pytest.mark.parametrize(
    ("status", "reason", "dialstatus", "cause", "service"),
    [
        (486, "", "BUSY", 17, CCBS),
        (600, "", "BUSY", 17, CCBS),
        (480, "Q.850;cause=19", "NOANSWER", 19, CCNR),
        (480, "Q.850;cause=20", "CHANUNAVAIL", 20, CCNL),
        (480, 'SIP;cause=480;text="x", Q.850 ; text="gone" ; cause=3', "CHANUNAVAIL", 3, CCNL),
        (408, "", "NOANSWER", 0, CCNR),
        (487, "", "CANCEL", 0, CCNR),
        (603, "", "CHANUNAVAIL", 21, CCNR),
    ],
)
def test_a_cc_call_that_fails_whoever_tells_it(
    pair: Pair, status: int, reason: str, dialstatus: str, cause: int, service: Service, dialplan: str
) -> None:
    """The dialplan there, the final response, or both, in either order: once counted, once requeued."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    cc = pair.cc_call()
    if dialplan == "first":
        cc.record_there(dialstatus, cause)
    assert monitor_of(cc.answers(status, *([("Reason", reason)] if reason else []))) == ""
    if dialplan == "last":
        cc.record_there(dialstatus, cause)
    cc.answers(status)  # once more, as Asterisk sends it until the ACK
    [there] = pair.b.open()
    assert (there.state, there.service, there.recalls) == (State.QUEUED, service, 1)
    pair.call_is_over(cc, dialstatus, cause)
    [here] = pair.a.open()
    assert (here.state, here.service, here.recalls) == (State.QUEUED, service, 1)


@pytest.mark.parametrize("status", [404, 503, 500, 488])
def test_a_cc_call_that_waiting_does_not_help(pair: Pair, status: int) -> None:
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    cc = pair.cc_call()
    cc.answers(status)
    pair.call_is_over(cc, "CONGESTION", 34)
    assert both_ends(pair) == (["ENDED CALL_FAILED"], ["ENDED CALL_FAILED"])
    nothing_is_left(pair)


def test_challenged_on_the_way_it_is_the_same_cc_call(pair: Pair) -> None:
    """401 or 407 is no end of it: the INVITE comes again, and goes where the first went."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    cc = pair.cc_call()
    cc.answers(401)
    cc.sends("ACK")
    assert pair.b.open()[0].state is State.CALLING
    again = cc.invite()
    assert again.uri == "sip:2000@127.0.0.1:5060"
    assert monitor_of(cc.answers(180)) == ""
    cc.answers(200)
    pair.flow()
    assert pair.b.states() == ["COMPLETED COMPLETED"]


def test_free_no_more_while_the_caller_rings(pair: Pair) -> None:
    """Ready turned queued stops the ringing at once, at every step of it; the next ready rings again."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    first = pair.a.recall()
    pair.told()
    # He is called by somebody else and the operator there wants the turn back: set back by the rules there.
    [ready] = pair.b.open()
    lost = _LOST("set back", pause=False)
    pair.b.set("2000", IN_USE)
    pair.b.service.event(lambda now: pair.b.service.apply(ready, lost, now))
    pair.flow()
    assert pair.wire() == ["b: NOTIFY queued", "a: PUBLISH closed"]
    assert pair.a.told() == ["saved: 2 READY -> QUEUED", f"stop {first}"]
    pair.wait(60)
    pair.set(pair.b, "2000", IDLE)
    assert pair.wire() == ["a: PUBLISH open", "b: NOTIFY ready"]
    assert [r.recall_id for r in pair.a.agent.rung] == [first, pair.a.recall()]


def test_ready_turned_queued_when_he_has_just_answered(pair: Pair) -> None:
    """The queued crosses his answer: the CC call is under way, and goes on as a call."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    recall = pair.a.recall()
    pair.a.plan(recall)
    pair.held = True
    pair.wait(20)
    assert pair.table.lie() == ["b: NOTIFY queued"]
    cc = pair.cc_invite(pair.a, recall)
    assert cc.arrived is not None and cc.arrived.uri == "sip:2000@127.0.0.1:5060"
    pair.held = False
    pair.flow()
    assert pair.a.open()[0].state is State.CALLING
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    assert pair.a.states() == ["COMPLETED COMPLETED"]


# --------------------------------------------------------------------------------------------- suspend and resume


def test_a_caller_who_is_busy_suspends_and_resumes(pair: Pair) -> None:
    pair.camps()
    pair.set(pair.a, "1000", IN_USE)
    pair.set(pair.b, "2000", IDLE)
    assert pair.wire() == ["b: NOTIFY ready", "a: PUBLISH closed", "b: NOTIFY queued"]
    closed = pair.table.last("PUBLISH closed")
    said = re.search(rb"cc-URI: (\S+)", pair.table.last("NOTIFY ready").body)
    assert said and closed.uri == said[1].decode(), "the cc-URI first (RFC 6910, 8)"
    assert (closed.get("event"), closed.get("expires")) == ("presence", "4800")
    assert (pair.a.open()[0].suspended, pair.b.open()[0].suspended) == (True, True)
    pair.wait(300)
    assert (pair.wire(), pair.a.agent.rung) == ([], [])
    pair.set(pair.a, "1000", IDLE)
    assert pair.wire() == ["a: PUBLISH open"]
    pair.wait(1)
    assert pair.wire() == ["b: NOTIFY ready"]
    opened = pair.table.last("PUBLISH open")
    assert opened.get("sip-if-match") and opened.get("expires") == "4500"
    assert len(pair.a.agent.rung) == 1


def test_the_next_is_served_while_he_is_suspended(pair: Pair) -> None:
    pair.camps("1000")
    pair.wait(1)
    pair.camps("1001")
    pair.set(pair.a, "1000", IN_USE)
    pair.set(pair.b, "2000", IDLE)
    assert [r.caller for r in pair.a.agent.rung] == ["1001"]
    first, second = pair.b.open()
    assert (first.state, first.suspended, second.state) == (State.QUEUED, True, State.READY)
    cc = pair.cc_call()
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    pair.set(pair.a, "1000", IDLE)
    pair.wait(20)
    assert [r.caller for r in pair.a.agent.rung] == ["1001", "1000"], "his place was kept"


def test_his_other_requests_are_suspended_while_he_is_recalled(pair: Pair) -> None:
    pair.camps("1000", "2000")
    pair.camps("1000", "2001")
    pair.set(pair.b, "2000", IDLE)
    assert pair.wire() == ["b: NOTIFY ready", "a: PUBLISH closed"]
    pair.set(pair.b, "2001", IDLE)
    assert pair.wire() == []
    assert len(pair.a.agent.rung) == 1
    cc = pair.cc_call()
    cc.answers(200)
    pair.wait(60)
    pair.call_is_over(cc, "ANSWER")
    pair.wait(1)
    assert pair.wire()[-2:] == ["a: PUBLISH open", "b: NOTIFY ready"]
    assert [r.callee for r in pair.a.agent.rung] == ["2000", "2001"]


def test_his_others_are_suspended_for_a_recall_here_too(pair: Pair) -> None:
    pair.camps("1000", "2000")
    pair.set(pair.a, "1005", IN_USE)
    pair.a.wants("1000", "1005")
    pair.set(pair.a, "1005", IDLE)
    pair.flow()
    assert pair.wire() == ["a: PUBLISH closed"]
    recall = pair.a.recall()
    pair.a.plan(recall)
    pair.a.target(recall)
    pair.a.call_over(recall)
    pair.flow()
    assert pair.wire() == ["a: PUBLISH open"]


def test_two_free_at_once_for_one_caller(pair: Pair) -> None:
    """Both are ready in the same moment: he is rung once, the other keeps its place there."""
    pair.camps("1000", "2000")
    pair.camps("1000", "2001")
    pair.held = True
    pair.set(pair.b, "2000", IDLE)
    pair.set(pair.b, "2001", IDLE)
    assert pair.table.lie() == ["b: NOTIFY ready", "b: NOTIFY ready"]
    pair.held = False
    pair.flow()
    assert len(pair.a.agent.rung) == 1
    assert pair.wire()[2:] == ["a: PUBLISH closed", "b: NOTIFY queued"]
    cc = pair.cc_call()
    cc.answers(200)
    pair.call_is_over(cc, "ANSWER")
    pair.wait(20)
    assert [r.callee for r in pair.a.agent.rung] == ["2000", "2001"]


def test_closed_crosses_the_ready_of_another_turn(pair: Pair) -> None:
    """Suspended, and free again before the other PBX has answered: what rings too early is stopped."""
    pair.camps()
    pair.set(pair.a, "1000", IN_USE)
    pair.held = True
    pair.set(pair.b, "2000", IDLE)
    pair.table.deliver()  # ready
    pair.a.look()
    pair.set(pair.a, "1000", IDLE)
    pair.held = False
    pair.flow()
    assert pair.a.events[-1].startswith("stop ") or pair.a.rings() == []
    pair.wait(15)
    assert pair.a.rings() and pair.a.events[-1] == pair.a.rings()[-1]
    assert (pair.a.open()[0].state, pair.b.open()[0].state) == (State.READY, State.READY)


def test_the_phone_goes_on_and_off_the_hook(pair: Pair) -> None:
    """Many times: never more than three NOTIFYs in ten seconds (the fixture counts), and the last word is right."""
    pair.camps()
    for _ in range(12):
        pair.set(pair.b, "2000", IDLE)
        pair.set(pair.a, "1000", IN_USE)
        pair.wait(0.7)
        pair.set(pair.a, "1000", IDLE)
        pair.wait(0.6)
        pair.set(pair.b, "2000", IN_USE)
        pair.wait(0.2)
    pair.a.cancels("1000")
    pair.flow()
    nothing_is_left(pair)


def test_what_is_ready_is_not_the_third_in_ten_seconds(peer: Peer) -> None:
    monitor, contact = subscribed(peer)
    assert peer.said() == ["NOTIFY queued"]
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"]
    etag = peer.publish(monitor, closed()).get("sip-etag", "")
    assert peer.said() == ["NOTIFY queued"]
    peer.publish(monitor, opened(), ("SIP-If-Match", etag))
    peer.site.wait(9.9)
    assert peer.said() == [], "ready would be the fourth"
    peer.site.wait(0.2)
    assert peer.said() == ["NOTIFY ready"]


# ------------------------------------------------------------------------------------- what a PUBLISH does here


def test_closed_in_his_turn_frees_it_and_open_takes_it_up_again(peer: Peer) -> None:
    monitor, _ = subscribed(peer)
    other = peer.meets("2000", "c2", from_="sip:1001@192.0.2.1")
    peer.subscribe(other, from_="sip:1001@192.0.2.1")
    peer.said()
    peer.site.wait(60)
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"]
    answer = peer.publish(call_uri(peer), closed(), ("Expires", "3600"))
    assert (answer.status, answer.get("expires")) == (200, "3600") and answer.get("sip-etag")
    assert sorted(peer.said()) == ["NOTIFY queued", "NOTIFY ready"], "the next is served"
    first, second = peer.site.open()
    assert (first.state, first.suspended, first.recalls) == (State.QUEUED, True, 0)
    assert second.state is State.READY
    peer.site.wait(20)
    assert peer.said() == ["NOTIFY queued"]
    peer.publish(monitor, opened(), ("SIP-If-Match", answer.get("sip-etag", "")))
    assert peer.said() == [], "chan_sip would answer it with closed again"
    peer.site.wait(0.5)
    assert peer.said() == ["NOTIFY ready"]


def test_closed_while_he_waits_passes_him_over(peer: Peer) -> None:
    monitor, _ = subscribed(peer)
    peer.publish(monitor, closed())
    peer.said()
    peer.site.set("2000", IDLE)
    peer.site.wait(60)
    assert peer.said() == []
    assert peer.site.open()[0].suspended


def test_a_closed_whose_time_is_over_counts_as_open(peer: Peer) -> None:
    monitor, _ = subscribed(peer)
    answer = peer.publish(monitor, closed(), ("Expires", "100"))
    assert answer.get("expires") == "100"
    peer.said()
    peer.site.set("2000", IDLE)
    peer.site.wait(99)
    assert peer.said() == []
    peer.site.wait(2)
    assert peer.said() == ["NOTIFY ready"]


def test_no_closed_outlives_the_service(peer: Peer) -> None:
    monitor, _ = subscribed(peer, expires=4800)
    peer.said()
    peer.site.wait(3000)
    answer = peer.publish(monitor, closed(), ("Expires", "86400"))
    assert answer.get("expires") == "1800"


@pytest.mark.parametrize("event", ["presence", "Presence", "call-completion"])
@pytest.mark.parametrize("where", ["monitor URI", "cc-URI", "in the dialog", "our Contact"])
def test_a_publish_finds_its_caller_wherever_it_goes(peer: Peer, event: str, where: str) -> None:
    """RFC 6910, 7.5: the monitor URI, the cc-URI, the notifier's Contact; by the request-URI, else by From."""
    monitor, tag = subscribed(peer, tag="ft")
    dialog = peer.site.table.last("NOTIFY queued")
    uri = {
        "monitor URI": monitor,
        "cc-URI": call_uri(peer),
        "in the dialog": "sip:cc@192.0.2.2:5070",
        "our Contact": "sip:cc@192.0.2.2:5070",
    }[where]
    more = {"call_id": dialog.call_id, "to_tag": tag, "seq": "2"} if where == "in the dialog" else {}
    answer = peer.publish(uri, closed(), ("Event", event), **more)
    assert (answer.status, answer.reason) == (200, "OK")
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == []


@pytest.mark.parametrize(
    ("uri", "from_", "match", "status"),
    [
        ("sip:ccm-" + "0" * 32 + "@192.0.2.2:5070", "sip:1000@192.0.2.1", "", 404),
        ("sip:ccm-" + "0" * 32 + "@192.0.2.2:5070", "sip:1000@192.0.2.1", "some", 412),
        ("sip:cc@192.0.2.2:5070", "sip:1009@192.0.2.1", "", 404),
        ("sip:cc@192.0.2.2:5070", "sip:1009@192.0.2.1", "some", 412),
    ],
)
def test_a_publish_of_nobody(peer: Peer, uri: str, from_: str, match: str, status: int) -> None:
    subscribed(peer)
    headers = [("SIP-If-Match", match)] if match else []
    assert peer.publish(uri, closed(), *headers, from_=from_).status == status


@pytest.mark.parametrize(
    ("body", "type", "status"),
    [
        ("nonsense", "application/pidf+xml", 400),
        (pidf("perhaps"), "application/pidf+xml", 400),
        ('<!DOCTYPE x [<!ENTITY e "closed">]>' + pidf("&e;"), "application/pidf+xml", 400),
        (b"\xff\xfe\x00", "application/pidf+xml", 400),
        (pidf("closed"), "text/plain", 415),
        (pidf("closed"), "application/call-completion", 415),
        ("", "application/pidf+xml", 400),
    ],
)
def test_a_publish_that_says_nothing(peer: Peer, body: str | bytes, type: str, status: int) -> None:
    monitor, _ = subscribed(peer)
    answer = peer.publish(monitor, body, type=type)
    assert answer.status == status
    assert status != 415 or answer.get("accept") == "application/pidf+xml"
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"], "nothing has changed"


@pytest.mark.parametrize("event", ["dialog", "message-summary"])
def test_a_publish_of_another_event_to_us(peer: Peer, event: str) -> None:
    monitor, _ = subscribed(peer)
    answer = peer.publish(monitor, closed(), ("Event", event))
    assert (answer.status, answer.get("allow-events")) == (489, "call-completion")


def test_a_wrong_tag_is_refused_and_changes_nothing(peer: Peer) -> None:
    monitor, _ = subscribed(peer)
    first = peer.publish(monitor, closed()).get("sip-etag", "")
    second = peer.publish(monitor, "", ("SIP-If-Match", first))
    assert second.status == 200 and second.get("sip-etag") != first
    assert peer.publish(monitor, opened(), ("SIP-If-Match", first)).status == 412
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == []
    removed = peer.publish(monitor, "", ("SIP-If-Match", second.get("sip-etag", "")), ("Expires", "0"))
    assert removed.status == 200
    peer.site.wait(1)
    assert peer.said() == ["NOTIFY ready"]


def test_presence_of_others_is_not_for_us(peer: Peer) -> None:
    """A PUBLISH of presence to a phone here is Asterisk's; so is a SUBSCRIBE to another event."""
    subscribed(peer)
    for method, uri, event in (
        ("PUBLISH", "sip:2000@192.0.2.2", "presence"),
        ("SUBSCRIBE", "sip:2000@192.0.2.2", "dialog"),
        ("NOTIFY", "sip:2000@192.0.2.2", "presence"),
        ("SUBSCRIBE", "sip:2000@192.0.2.2", "a b"),
    ):
        assert not peer.site.cc.takes("a", peer.request(method, uri, ("Event", event)))
    assert peer.site.cc.takes(
        "a", peer.request("SUBSCRIBE", "sip:2000@192.0.2.2", ("Event", "Call-Completion"))
    )


# ------------------------------------------------------------------------------------- what a SUBSCRIBE does here


def test_a_subscribe_is_answered_before_the_notify_goes_out(peer: Peer) -> None:
    peer.site.set("2000", IDLE)
    monitor = peer.meets("2000", "c1")
    peer.site.table.log.clear()
    answer = peer.subscribe(monitor, expires=4000)
    assert (answer.status, answer.get("expires")) == (200, "4000")
    assert answer.contact is not None and answer.contact.uri == "sip:cc@192.0.2.2:5070"
    kinds = [in_words(m) for m in peer.site.table.sent]
    assert kinds[:2] == ["200 to SUBSCRIBE", "NOTIFY queued"]
    assert peer.said() == ["NOTIFY queued", "NOTIFY ready"], "who was idle before is ready at once"


@pytest.mark.parametrize(
    ("asked", "granted"), [(None, 3600), (3600, 3600), (4800, 4800), (90000, 4800), (60, 60)]
)
def test_the_time_that_is_granted(peer: Peer, asked: int | None, granted: int) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    assert peer.subscribe(monitor, expires=asked).get("expires") == str(granted)
    [request] = peer.got()
    assert request.get("subscription-state") == f"active;expires={granted}"
    peer.reply(request)
    peer.site.wait(granted - 1)
    assert peer.said() == []
    peer.site.wait(2)
    assert [w.split(";")[0] for w in peer.said()] == ["NOTIFY terminated"]
    assert peer.site.open() == []


def test_a_refresh_never_prolongs_the_service(peer: Peer) -> None:
    monitor, tag = subscribed(peer, call_id="s1")
    peer.said()
    for n, (wait, left) in enumerate([(1000, 3600), (1000, 2800), (1000, 1800), (1700, 100)], 2):
        peer.site.wait(wait)
        answer = peer.subscribe("sip:cc@192.0.2.2:5070", expires=3600, call_id="s1", to_tag=tag, seq=str(n))
        assert (answer.status, answer.get("expires")) == (200, str(left))
        assert peer.said() == ["NOTIFY queued"]
    assert peer.site.open()[0].service_ends == peer.site.open()[0].asked_at + 4800
    peer.site.wait(101)
    assert peer.site.states() == ["ENDED EXPIRED"]


def test_unsubscribed_in_the_dialog(peer: Peer) -> None:
    monitor, tag = subscribed(peer, call_id="s1")
    peer.said()
    answer = peer.subscribe("sip:cc@192.0.2.2:5070", expires=0, call_id="s1", to_tag=tag, seq="2")
    assert (answer.status, answer.get("expires")) == (200, "0")
    assert peer.said() == ["NOTIFY terminated;reason=timeout"]
    assert peer.site.states() == ["ENDED CANCELLED"]
    assert [k for k, _ in peer.site.store.kept if k == "agent"] == []
    again = peer.subscribe("sip:cc@192.0.2.2:5070", expires=0, call_id="s1", to_tag=tag, seq="3")
    assert again.status == 481


REFUSALS: dict[str, tuple[str, dict[str, str], tuple[tuple[str, str], ...], int]] = {
    "of an unknown URI": ("sip:ccm-" + "0" * 32 + "@192.0.2.2:5070", {}, (), 404),
    "of a cc-URI": ("sip:ccc-" + "0" * 32 + "@192.0.2.2:5070", {}, (), 404),
    "of another caller": ("sip:2000@192.0.2.2", {"from_": "sip:1009@192.0.2.1"}, (), 403),
    "of the same number elsewhere": ("sip:2000@192.0.2.2", {"from_": "sip:1000@192.0.2.77"}, (), 403),
    "of whom he did not call": ("sip:2001@192.0.2.2", {}, (), 403),
    "of nobody": ("sip:nobody@192.0.2.2", {}, (), 404),
    "to unsubscribe from nothing": ("", {}, (("Expires", "0"),), 481),
    "of a dialog that is none": ("", {"to_tag": "x"}, (), 481),
    "that accepts other bodies": ("", {}, (("Accept", "application/pidf+xml"),), 406),
    "that accepts nothing": ("", {}, (("Accept", ""),), 406),
    "of another event": ("", {}, (("Event", "presence"),), 489),
    "of no event": ("", {}, (("Event", "-"),), 489),
    "without a Contact": ("", {}, (("Contact", "-"),), 400),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_subscribe_that_is_refused(peer: Peer, why: str) -> None:
    uri, parts, headers, status = REFUSALS[why]
    monitor = peer.meets("2000", "c1")
    usual = {"Expires": "3600", "Event": "call-completion", **dict(headers)}
    request = peer.request("SUBSCRIBE", uri or monitor, **parts).with_headers(*usual.items())
    answer = peer.send(request.without(*(name for name, value in usual.items() if value == "-")))
    assert answer is not None and answer.status == status
    assert answer.to.tag, "a final answer has a tag"
    assert (peer.got(), peer.site.open()) == ([], [])
    if status == 489:
        assert answer.get("allow-events") == "call-completion"


@pytest.mark.parametrize(
    "accept", ["application/call-completion", "APPLICATION/CALL-COMPLETION;q=1", "*/*, text/plain"]
)
def test_an_accept_that_has_it(peer: Peer, accept: str) -> None:
    assert peer.subscribe(peer.meets("2000", "c1"), ("Accept", accept)).status == 200


def test_by_the_callees_own_uri_and_from(peer: Peer) -> None:
    """RFC 6910, 7.2: also on the URIs of the served user agents."""
    peer.site.set("2000", IN_USE)
    peer.meets("2000", "c1", from_="sip:1000@192.0.2.1")
    for_him = peer.subscribe("sip:2000@192.0.2.2:5070;m=BS", from_="sip:1000@192.0.2.1")
    assert for_him.status == 200
    assert peer.said() == ["NOTIFY queued"]


def test_a_subscribe_that_comes_too_late(peer: Peer) -> None:
    """20 s to ask, and 15 for his PBX to pass it on."""
    monitor = peer.meets("2000", "c1")
    other = peer.meets("2001", "c2")
    peer.site.wait(35)
    assert peer.subscribe(monitor).status == 200
    peer.site.wait(0.1)
    answer = peer.subscribe(other)
    assert answer.status == 403
    assert any("too late" in line for line in peer.site.logged)


@pytest.mark.parametrize("dialstatus", ["CONGESTION", "BUSY"])
def test_a_call_that_was_not_offered(peer: Peer, dialstatus: str) -> None:
    peer.site.directory.set("2000", cc_monitor_policy="never")
    invite = peer.calls("2000", "c1")
    monitor = peer.gets(invite, 180)
    assert monitor_of(monitor) == "", "nobody may wait for him"
    assert peer.meets("2000", "c1", dialstatus) == ""
    assert peer.subscribe("sip:2000@192.0.2.2").status == 403


def test_a_call_that_has_not_failed_yet(peer: Peer) -> None:
    """By the URI of its 180: soon, perhaps. Answered: no."""
    invite = peer.calls("2000", "c1")
    monitor = monitor_of(peer.gets(invite, 180))
    answer = peer.subscribe(monitor)
    assert (answer.status, answer.get("retry-after")) == (480, "2")
    peer.gets(invite, 200)
    assert peer.subscribe(monitor).status == 403


def test_a_call_of_another_trunk() -> None:
    site = alone()
    site.trunks["c"] = trunk("c", "192.0.2.2", "198.51.100.1")
    site.restart()
    ours, theirs = Peer(site, "a"), Peer(site, "c", "198.51.100.1")
    monitor = ours.meets("2000", "c1")
    assert theirs.subscribe(monitor).status == 404
    assert ours.subscribe(monitor, call_id="s1").status == 200
    [notify] = [r for r in ours.got() if r.method == "NOTIFY"]
    assert theirs.publish(monitor, closed()).status == 404
    assert theirs.publish(call_uri(ours), closed()).status == 404
    tag = notify.from_.tag
    assert theirs.subscribe("sip:cc@192.0.2.2", expires=0, call_id="s1", to_tag=tag, seq="2").status == 481
    invite = theirs.calls("2000", "x1", uri=call_uri(ours))
    assert isinstance(invite, Response) and invite.status == 404
    assert [r.state for r in site.open()] == [State.READY]
    check(site)


def test_too_many_wait(peer: Peer) -> None:
    peer.site.directory.set("2000", cc_max_monitors=1)
    subscribed(peer, "2000", "c1")
    second = peer.meets("2000", "c2", from_="sip:1001@192.0.2.1")
    answer = peer.subscribe(second, from_="sip:1001@192.0.2.1")
    assert (answer.status, answer.get("retry-after")) == (480, "60")
    assert len(peer.site.open()) == 1


def test_a_new_subscribe_of_the_same_caller_takes_the_place_of_the_old(peer: Peer) -> None:
    """RFC 6910, 7.2: another Call-ID, the same From and callee. His place in the queue is kept."""
    subscribed(peer, "2000", "c1")
    peer.site.wait(1)
    other = peer.meets("2000", "c2", from_="sip:1001@192.0.2.1")
    peer.subscribe(other, from_="sip:1001@192.0.2.1")
    peer.site.wait(1)
    monitor = peer.meets("2000", "c3")
    peer.said()
    assert peer.subscribe(monitor).status == 200
    assert sorted(peer.said()) == ["NOTIFY queued", "NOTIFY terminated;reason=noresource"]
    assert peer.site.states() == ["ENDED CANCELLED", "QUEUED", "QUEUED"]
    peer.site.set("2000", IDLE)
    first = next(r for r in peer.site.open() if r.state is State.READY)
    assert first.id == max(r.id for r in peer.site.open()), "the new one, in the old one's place"
    assert first.service_ends == first.asked_at + 4800 + 2


def test_a_new_subscribe_in_his_turn_rings_him_no_second_time(peer: Peer) -> None:
    """His PBX has lost what it knew, and asks anew: one wish, one call."""
    monitor, _ = subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    assert peer.subscribe(monitor).status == 200
    peer.said()
    call = peer.calls("2000", "cc1", uri=monitor)
    peer.gets(call, 200)
    assert "NOTIFY ready" not in peer.said()
    assert peer.site.open() == []


def test_another_fork_of_the_same_subscribe(peer: Peer) -> None:
    """RFC 6910, 9.7: the same Call-ID, another request-URI, the same callee: 482 to all but one."""
    monitor, tag = subscribed(peer, call_id="s1", tag="x")
    for uri in ("sip:2000@192.0.2.2:5070", "sip:2001@192.0.2.2:5070"):
        answer = peer.subscribe(uri, call_id="s1", tag="x")
        assert answer.status == 482
    assert len(peer.site.open()) == 1


def test_the_same_subscribe_after_a_crash(peer: Peer) -> None:
    """Its 200 was eaten by the crash, so it comes again, and is answered as it was: with the same dialog."""
    monitor, tag = subscribed(peer, call_id="s1", tag="x")
    peer.site.restart()
    again = peer.subscribe(monitor, call_id="s1", tag="x")
    assert (again.status, again.to.tag, again.get("expires")) == (200, tag, "3600")
    assert len(peer.site.open()) == 1


def test_chan_sip_unsubscribes_from_what_was_refused(peer: Peer) -> None:
    """The same Call-ID, CSeq 103, Expires 0, no To tag: whatever it is answered, nothing comes of it."""
    monitor = peer.meets("2000", "c1")
    peer.site.wait(40)
    assert peer.subscribe(monitor, call_id="s1", seq="102").status == 403
    assert peer.subscribe(monitor, expires=0, call_id="s1", seq="103").status == 481
    assert (peer.said(), peer.site.open()) == ([], [])


def test_the_peer_answers_a_notify_481(peer: Peer) -> None:
    subscribed(peer)
    [notify] = peer.got()
    peer.reply(notify, 481)
    assert peer.site.states() == ["ENDED CANCELLED"]
    assert [k for k, _ in peer.site.store.kept if k == "agent"] == []


def test_the_peer_answers_no_notify(peer: Peer) -> None:
    subscribed(peer)
    peer.got()
    peer.site.wait(31)
    assert peer.site.states() == ["QUEUED"]
    peer.site.wait(2)
    assert peer.site.states() == ["ENDED CANCELLED"]


def test_the_peer_wants_the_notify_later(peer: Peer) -> None:
    subscribed(peer)
    [notify] = peer.got()
    peer.reply(notify, 503, ("Retry-After", "7"))
    peer.site.wait(6.9)
    assert peer.got() == []
    peer.site.wait(0.2)
    assert peer.said() == ["NOTIFY queued"]


@pytest.mark.parametrize("retention", [True, False])
def test_what_a_notify_says_of_retention(retention: bool) -> None:
    peer = Peer(alone(retention=retention))
    subscribed(peer)
    [notify] = peer.got()
    assert (b"cc-service-retention: true\r\n" in notify.body) == retention
    check(peer.site)


# --------------------------------------------------------------------------------- what we ask of another PBX


MONITOR = "sip:m1@192.0.2.1:5060"
CC_URI = "sip:CC_856;76 @;transport=UDP"


def offered(uri: str = MONITOR, m: str = "BS") -> tuple[str, str]:
    return "Call-Info", f"<{uri}>;purpose=call-completion" + (f";m={m}" if m else "")


def state(word: str, uri: str = "", retention: bool = True) -> str:
    lines = (
        [f"cc-state: {word}"] + ["cc-service-retention: true"] * retention + [f"cc-URI: {uri}"] * bool(uri)
    )
    return "".join(f"{line}\r\n" for line in lines)


def asked(peer: Peer, *headers: tuple[str, str], **more: Any) -> SipRequest:
    """One of ours has met busy there and dials *30; the SUBSCRIBE, not answered yet."""
    peer.called(*(headers or (offered(),)), **more)
    peer.site.asked(more.get("caller", "1000"))
    [subscribe] = peer.got()
    return subscribe


def accepted(peer: Peer, *headers: tuple[str, str], **more: Any) -> SipRequest:
    """The same, accepted and queued."""
    subscribe = asked(peer, *headers, **more)
    peer.reply(subscribe)
    assert peer.notify(subscribe, state("queued", CC_URI)).status == 200
    peer.site.told()
    return subscribe


def ready(peer: Peer, subscribe: SipRequest, seq: int = 2) -> str:
    """The peer says ready; the recall that rings."""
    assert peer.notify(subscribe, state("ready", CC_URI), seq=seq).status == 200
    peer.site.look()
    return peer.site.recall()


def only(peer: Peer) -> Request:
    [request] = peer.site.store.requests.values()
    return request


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (480, (), "CALLEE_QUEUE_FULL"),
        (480, (("Retry-After", "60"),), "CALLEE_QUEUE_FULL"),
        (403, (), "REFUSED_THERE"),
        (404, (), "REFUSED_THERE"),
        (482, (), "REFUSED_THERE"),
        (481, (), "REFUSED_THERE"),
        (489, (), "REFUSED_THERE"),
        (401, (("WWW-Authenticate", 'Digest realm="x", nonce="y"'),), "REFUSED_THERE"),
        (500, (), "REFUSED_THERE"),
        (302, (("Contact", "<sip:elsewhere@198.51.100.66>"),), "REFUSED_THERE"),
        (603, (), "REFUSED_THERE"),
    ],
)
def test_refused_there(peer: Peer, status: int, headers: tuple[tuple[str, str], ...], reason: str) -> None:
    peer.called(offered())
    answers = peer.site.asked("1000")
    [subscribe] = peer.got()
    peer.reply(subscribe, status, *headers)
    [answer] = answers
    assert getattr(answer, "reason", "") == reason and str(answer).endswith(("already", "for", str(status)))
    assert peer.got() == [], "no second try, and nowhere else"
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


def test_nothing_is_answered_to_the_subscribe(peer: Peer) -> None:
    """The caller hears so after 4 s; a 200 that comes later is unsubscribed."""
    peer.called(offered())
    answers = peer.site.asked("1000")
    [subscribe] = peer.got()
    peer.site.wait(4)
    assert [getattr(a, "reason", "") for a in answers] == ["NO_ANSWER"]
    peer.site.wait(10)
    assert peer.got() == []
    peer.reply(subscribe)
    assert [in_words(r) for r in peer.got()] == ["SUBSCRIBE 0"]
    peer.site.wait(100)
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


def test_nothing_is_ever_answered(peer: Peer) -> None:
    asked(peer)
    peer.site.wait(33)
    assert only(peer).reason == "NO_ANSWER"
    peer.site.wait(60)
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


def test_accepted_and_no_notify_comes(peer: Peer) -> None:
    subscribe = asked(peer)
    peer.reply(subscribe)
    assert only(peer).state is State.QUEUED
    peer.site.wait(33)
    assert only(peer).reason == "ENDED_THERE"
    assert [in_words(r) for r in peer.got()] == ["SUBSCRIBE 0"], "the peer is told that we give up"


@pytest.mark.parametrize("first", ["notify", "answer"])
def test_the_notify_may_overtake_the_200(peer: Peer, first: str) -> None:
    subscribe = asked(peer)
    if first == "answer":
        peer.reply(subscribe)
    assert peer.notify(subscribe, state("queued", CC_URI)).status == 200
    if first == "notify":
        assert only(peer).state is State.QUEUED
        peer.reply(subscribe)
    assert only(peer).state is State.QUEUED
    ready(peer, subscribe)


def test_ready_at_once(peer: Peer) -> None:
    subscribe = asked(peer)
    assert peer.notify(subscribe, state("ready", CC_URI)).status == 200
    assert only(peer).state is State.READY


@pytest.mark.parametrize(
    ("call_info", "uri"),
    [
        ("<sip:m1@192.0.2.1:5060>;purpose=call-completion;m=BS", "sip:m1@192.0.2.1:5060;m=BS"),
        ("sip:m1@192.0.2.1:5060;purpose=call-completion;m=NR", "sip:m1@192.0.2.1:5060;m=NR"),
        ("<sip:m1@192.0.2.1>;m=NL;purpose=call-completion", "sip:m1@192.0.2.1;m=NL"),
        ('<sip:m1@192.0.2.1>; purpose = "call-completion" ; M=bs', "sip:m1@192.0.2.1;m=BS"),
        ("<sip:m1@192.0.2.1>;purpose=Call-Completion", "sip:m1@192.0.2.1"),
        ("<sip:m1@192.0.2.1>;purpose=call-completion;m=XY", "sip:m1@192.0.2.1;m=XY"),
        ('<sip:m1@192.0.2.1>;purpose=call-completion;m="a b"', "sip:m1@192.0.2.1"),
        (
            "sip:4003@;user=phone;tgrp=2;trunk-context=a.com;purpose=call-completion;m=BS",
            "sip:4003@192.0.2.1:5070;user=phone;tgrp=2;trunk-context=a.com;m=BS",
        ),
        ("<sip:4003;x=1@;tgrp=2>;purpose=call-completion;m=BS", "sip:4003;x=1@192.0.2.1:5070;tgrp=2;m=BS"),
        ("<sip:m 1@192.0.2.1>;purpose=call-completion;m=BS", "sip:m1@192.0.2.1;m=BS"),
        (
            "<http://x/photo.jpg>;purpose=icon, <sip:m1@192.0.2.1>;purpose=call-completion;m=BS",
            "sip:m1@192.0.2.1;m=BS",
        ),
        ("<sip:m1@198.51.100.66>;purpose=call-completion;m=BS", "sip:m1@198.51.100.66;m=BS"),
    ],
)
def test_the_call_info_of_other_pbxs(peer: Peer, call_info: str, uri: str) -> None:
    subscribe = asked(peer, ("Call-Info", call_info))
    assert subscribe.uri == uri


@pytest.mark.parametrize(
    "call_info",
    [
        "<sip:m1@192.0.2.1>;purpose=icon",
        "<sip:m1@192.0.2.1>",
        "",
        "purpose=call-completion",
        "<>;purpose=call-completion",
        "<sip:>;purpose=call-completion",
        "<sip:m1@[::1>;purpose=call-completion;m=BS",
        "<sip:m\x01@192.0.2.1>;purpose=call-completion",
        "<" + "sip:m@" + "x" * 2000 + ">;purpose=call-completion",
    ],
)
def test_a_call_info_that_offers_nothing(peer: Peer, call_info: str) -> None:
    assert getattr(peer.called(("Call-Info", call_info)), "reason", "") == "CALLEE_NOT_WATCHABLE"


@pytest.mark.parametrize(
    ("m", "status", "service"),
    [
        ("BS", 486, CCBS),
        ("NR", 486, CCNR),
        ("NL", 480, CCNL),
        ("", 486, CCBS),
        ("", 480, CCNR),
        ("ZZ", 486, CCBS),
    ],
)
def test_an_m_nobody_knows_is_accepted(peer: Peer, m: str, status: int, service: Service) -> None:
    assert getattr(peer.called(offered(m=m), status=status), "service", None) is service


def test_the_180_offers_what_the_final_response_does_not(peer: Peer) -> None:
    answer = peer.called(status=480, dialstatus="NOANSWER", early=(offered(m="NR"),))
    assert getattr(answer, "service", None) is CCNR


def test_an_offer_that_is_heard_when_the_dialplan_has_told_already(peer: Peer) -> None:
    """CANCEL: the caller is gone, and the 487 comes later."""
    invite = peer.out("INVITE", "sip:2000@127.0.0.1:5070", "o1")
    answer = peer.site.records("1000", "2000", "CANCEL", 0, through="PJSIP/to-a", call_out="o1")
    assert getattr(answer, "reason", "") == "CALLEE_NOT_WATCHABLE"
    peer.site.passes(Side.PEER, invite.response(487, headers=(offered(m="NR"),), tag="et"))
    assert [o.service for o in peer.site.store.offers.values()] == [CCNR]
    peer.site.asked("1000")
    assert [r.uri for r in peer.got()] == [f"{MONITOR};m=NR"]


def test_a_200_that_passes_offers_nothing_late(peer: Peer) -> None:
    """chan_sip offers in every response, also of an answered call; nobody has recorded that as failed."""
    invite = peer.out("INVITE", "sip:2000@127.0.0.1:5070", "o1")
    peer.site.passes(Side.PEER, invite.response(200, headers=(offered(),), tag="et"))
    assert peer.site.store.offers == {}
    assert [getattr(a, "reason", "") for a in peer.site.asked("1000")] == ["NO_CORE_INSTANCE"]


def test_the_subscribe_goes_in_the_name_of_the_trunk_where_that_is_wanted() -> None:
    """chan_sip knows its peer by the user of From."""
    peer = Peer(alone(subscribe_from="sip:trunk@192.0.2.2"))
    subscribe = asked(peer)
    assert subscribe.from_.uri == "sip:trunk@192.0.2.2" and subscribe.from_.tag
    peer.reply(subscribe)
    peer.notify(subscribe, state("queued", CC_URI))
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", CC_URI), seq=2)
    [publish] = peer.got()
    assert publish.from_.uri == "sip:trunk@192.0.2.2"
    assert b'entity="sip:1000@127.0.0.1"' in publish.body, "the presentity is the caller"
    check(peer.site)


# The CC call


@pytest.mark.parametrize(
    ("told", "target"),
    [
        ("sip:CC_856;76 @;transport=UDP", "sip:CC_856;76@192.0.2.1:5070;transport=UDP;m=BS"),
        ("sip:q7@192.0.2.1:5060", "sip:q7@192.0.2.1:5060;m=BS"),
        ("sip:q7@192.0.2.1;m=NR", "sip:q7@192.0.2.1;m=BS"),
        ("", "sip:m1@192.0.2.1:5060;m=BS"),
        ("no uri at all", "sip:m1@192.0.2.1:5060;m=BS"),
    ],
)
def test_where_the_cc_call_goes(peer: Peer, told: str, target: str) -> None:
    """The cc-URI, else the monitor URI; INVITE, CANCEL and ACK alike."""
    subscribe = asked(peer)
    peer.reply(subscribe)
    peer.notify(subscribe, state("ready", told))
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    uri = f"sip:cc-{recall}@127.0.0.1:5070"
    assert peer.out("INVITE", uri, "cc1").uri == target
    assert peer.out("CANCEL", uri, "cc1").uri == target
    assert peer.out("ACK", uri, "cc1", to_tag="x").uri == target
    again = peer.out("INVITE", uri, "cc1", seq=2)
    assert again.uri == target, "after a challenge"
    reinvite = peer.out("INVITE", "sip:contact@192.0.2.1", "cc1", seq=3, to_tag="x")
    assert reinvite.uri == "sip:contact@192.0.2.1", "a re-INVITE goes to the Contact"


def test_the_cancel_of_a_cc_call_after_a_crash(peer: Peer) -> None:
    subscribe = accepted(peer)
    recall = ready(peer, subscribe)
    peer.site.plan(recall)
    peer.site.target(recall)
    uri = f"sip:cc-{recall}@127.0.0.1:5070"
    target = peer.out("INVITE", uri, "cc1").uri
    peer.site.restart()
    assert peer.out("CANCEL", uri, "cc1").uri == target
    assert peer.out("ACK", uri, "cc1").uri == target


def test_an_ordinary_call_in_the_turn_is_marked_as_the_cc_call(peer: Peer) -> None:
    """A site that keeps its own Dial(): the same URI as before, with m."""
    subscribe = accepted(peer)
    recall = ready(peer, subscribe)
    assert peer.out("INVITE", "sip:2000@127.0.0.1:5070", "x0").uri == "sip:2000@127.0.0.1:5070", "not yet"
    peer.site.plan(recall)
    peer.site.target(recall)
    assert peer.out("INVITE", "sip:2001@127.0.0.1:5070", "x1").uri == "sip:2001@127.0.0.1:5070"
    assert peer.out("INVITE", "sip:2000@127.0.0.1:5070", "x2", caller="1001").uri == "sip:2000@127.0.0.1:5070"
    assert peer.out("INVITE", "sip:2000@127.0.0.1:5070", "x3").uri == "sip:2000@127.0.0.1:5070;m=BS"
    assert peer.out("CANCEL", "sip:2000@127.0.0.1:5070", "x3").uri == "sip:2000@127.0.0.1:5070;m=BS"


def test_a_recall_id_nobody_knows_leads_nowhere(peer: Peer) -> None:
    with pytest.raises(AssertionError, match="an element has answered it"):
        peer.out("INVITE", "sip:cc-123456789012345@127.0.0.1:5070", "x1")


# What it tells


@pytest.mark.parametrize(
    "body",
    [
        "",
        "nonsense",
        "cc-state: perhaps\r\n",
        "cc-state: ready\r\ncc-state: queued\r\n",
        "cc-service-retention: true\r\n",
        "x" * 20000,
        "\udcff\udcfe",
    ],
)
def test_a_notify_that_tells_nothing_is_answered_and_changes_nothing(peer: Peer, body: str) -> None:
    subscribe = accepted(peer)
    assert peer.notify(subscribe, body, seq=2).status == 200
    assert (only(peer).state, peer.site.rings()) == (State.QUEUED, [])
    ready(peer, subscribe, seq=3)


@pytest.mark.parametrize(
    "body",
    [
        "cc-state: ready",
        "CC-State:READY\r\n",
        "cc-state :\tready \r\nx-more: y\r\n",
        "cc-state: ready\ncc-URI: sip:q@192.0.2.1\n",
        "cc-service-retention: no\r\ncc-state: ready\r\n",
        "cc-state:\r\n ready\r\n",
    ],
)
def test_ready_in_other_spellings(peer: Peer, body: str) -> None:
    subscribe = accepted(peer)
    assert peer.notify(subscribe, body, seq=2).status == 200
    assert only(peer).state is State.READY


@pytest.mark.parametrize(
    "state_header",
    [
        "active",
        "active;expires=3600",
        "Active ; expires = 10",
        "active;expires=-1",
        "active;expires=99999999999",
        "pending",
    ],
)
def test_subscription_state_in_other_spellings(peer: Peer, state_header: str) -> None:
    subscribe = asked(peer)
    peer.reply(subscribe)
    assert peer.notify(subscribe, state("ready", CC_URI), state_header).status == 200
    assert only(peer).state is State.READY


def test_a_notify_of_a_dialog_nobody_knows(peer: Peer) -> None:
    subscribe = accepted(peer)
    other = peer.request("NOTIFY", "sip:cc@192.0.2.2", ("Event", "call-completion"), to_tag="x")
    answer = peer.send(other.with_headers(("Subscription-State", "active")))
    assert answer is not None and answer.status == 481
    assert peer.notify(subscribe, state("ready", CC_URI), tag="somebody-else", seq=2).status == 481
    assert only(peer).state is State.QUEUED


@pytest.mark.parametrize("header", ["", "-"])
def test_a_notify_without_subscription_state(peer: Peer, header: str) -> None:
    subscribe = accepted(peer)
    request = peer.request(
        "NOTIFY",
        "sip:cc@192.0.2.2",
        ("Event", "call-completion"),
        ("Subscription-State", header),
        call_id=subscribe.call_id,
        tag="pt",
        to_tag=subscribe.from_.tag,
        seq="2",
    )
    answer = peer.send(request if header == "" else request.without("subscription-state"))
    assert answer is not None and answer.status == 400
    assert only(peer).state is State.QUEUED


def test_an_overtaken_notify_does_not_win(peer: Peer) -> None:
    subscribe = accepted(peer)
    assert peer.notify(subscribe, state("ready", CC_URI), seq=5).status == 200
    late = peer.notify(subscribe, state("queued", CC_URI), seq=4)
    assert (late.status, bool(late.get("retry-after"))) == (500, True)
    assert only(peer).state is State.READY


def test_ready_is_used_once(peer: Peer) -> None:
    """After a turn that failed, only a new one counts."""
    subscribe = accepted(peer)
    first = ready(peer, subscribe)
    peer.site.plan(first)
    peer.site.recall_failed(first)
    [publish] = peer.got()
    assert in_words(publish) == "PUBLISH closed"
    peer.reply(publish, 200, ("SIP-ETag", "e1"))
    peer.site.wait(30)
    assert [in_words(r) for r in peer.got()] == ["PUBLISH open"]
    peer.site.wait(100)
    assert len(peer.site.agent.rung) == 1
    assert ready(peer, subscribe, seq=3) != first


def test_rung_in_vain_because_the_other_pbx_changes_its_mind(peer: Peer) -> None:
    """Ready, his phone rings, queued: that counts, and it ends."""
    subscribe = accepted(peer)
    for turn in range(3):
        recall = ready(peer, subscribe, 2 * turn + 2)
        peer.site.plan(recall)
        peer.notify(subscribe, state("queued", CC_URI), seq=2 * turn + 3)
        peer.said()
        peer.site.wait(31)
        peer.said()
    assert (only(peer).reason, len(peer.site.agent.rung)) == ("TOO_MANY_RECALLS", 3)


def test_ready_said_again_in_the_turn_rings_nobody_twice(peer: Peer) -> None:
    subscribe = accepted(peer)
    first = ready(peer, subscribe)
    for seq in (3, 4):
        assert ready(peer, subscribe, seq) == first
    peer.site.plan(first)
    peer.site.target(first)
    ready(peer, subscribe, 5)
    peer.site.call_over(first, "BUSY", 17)
    assert len(peer.site.agent.rung) == 1
    assert only(peer).state is State.QUEUED


@pytest.mark.parametrize("reason", ["noresource", "rejected", "timeout", "invariant", "unheard-of", ""])
def test_ended_there(peer: Peer, reason: str) -> None:
    subscribe = accepted(peer)
    peer.notify(subscribe, "", f"terminated;reason={reason}" if reason else "terminated", seq=2)
    peer.site.wait(0)
    assert only(peer).reason == "ENDED_THERE"
    assert peer.got() == []
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


def test_a_subscription_that_is_to_be_made_anew(peer: Peer) -> None:
    """RFC 6665, 4.1.3: deactivated: at once. His place there is lost, his request here is not."""
    subscribe = accepted(peer)
    peer.notify(subscribe, "", "terminated;reason=deactivated", seq=2)
    peer.site.wait(0.2)
    [again] = peer.got()
    assert in_words(again) == "SUBSCRIBE 4799" and again.call_id != subscribe.call_id
    assert only(peer).state is State.QUEUED
    peer.reply(again)
    peer.notify(again, state("queued", CC_URI))
    ready(peer, again)


@pytest.mark.parametrize("reason", ["probation;retry-after=60", "giveup;retry-after=60"])
def test_a_subscription_that_is_to_be_made_anew_later(peer: Peer, reason: str) -> None:
    """RFC 6665, 4.1.3: not before retry-after."""
    subscribe = accepted(peer)
    peer.notify(subscribe, "", f"terminated;reason={reason}", seq=2)
    peer.site.wait(59)
    assert peer.got() == []
    peer.site.wait(2)
    assert [in_words(r).split()[0] for r in peer.got()] == ["SUBSCRIBE"]


def test_a_peer_that_ends_every_subscription_is_not_asked_without_end(peer: Peer) -> None:
    subscribe = accepted(peer)
    asked_again = 0
    for _ in range(20):
        peer.notify(subscribe, "", "terminated;reason=deactivated", seq=2)
        peer.site.wait(1)
        new = [r for r in peer.got() if r.method == "SUBSCRIBE"]
        if not new:
            break
        [subscribe] = new
        asked_again += 1
        peer.reply(subscribe)
    assert asked_again <= 3, "a loop as fast as the line"


# Refresh


def test_a_refresh_nobody_answers_is_no_end(peer: Peer) -> None:
    """chan_sip answers none, and goes on serving."""
    subscribe = asked(peer)
    peer.reply(subscribe, 200, ("Expires", "600"))
    peer.notify(subscribe, state("queued", CC_URI), "active;expires=600")
    peer.site.wait(580)
    assert "SUBSCRIBE" in {r.method for r in peer.got()}
    peer.site.wait(100)
    assert only(peer).state is State.QUEUED
    ready(peer, subscribe)


def test_a_refresh_that_is_granted(peer: Peer) -> None:
    subscribe = asked(peer)
    peer.reply(subscribe, 200, ("Expires", "600"))
    peer.notify(subscribe, state("queued", CC_URI), "active;expires=600")
    seq, refreshed = 1, 0
    for _ in range(4750):
        peer.site.wait(1)
        for request in peer.got():
            assert in_words(request).startswith("SUBSCRIBE") and request.to.tag == "pt"
            left = int(request.get("expires", "0"))
            peer.reply(request, 200, ("Expires", str(min(left, 600))))
            seq, refreshed = seq + 1, refreshed + 1
            peer.notify(subscribe, state("queued", CC_URI), f"active;expires={min(left, 600)}", seq=seq)
    assert only(peer).state is State.QUEUED and 5 < refreshed < 20
    ready(peer, subscribe, seq + 1)


# Retention


@pytest.mark.parametrize("retention", [True, False])
def test_after_a_failed_cc_call(peer: Peer, retention: bool) -> None:
    """RFC 6910, 4.2: what the other PBX retains stays; else he loses his place there, and asks anew."""
    subscribe = asked(peer)
    peer.reply(subscribe)
    peer.notify(subscribe, state("ready", CC_URI, retention))
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    peer.got()
    peer.site.call_over(recall, "BUSY", 17)
    sent = peer.got()
    if retention:
        assert sent == []
        ready(peer, subscribe, seq=2)
    else:
        assert [in_words(r).split()[0] + str(r.expires) for r in sent] == ["SUBSCRIBE0", "SUBSCRIBE4800"]
        leave, again = sent
        assert (leave.call_id, again.call_id == leave.call_id) == (subscribe.call_id, False)
        peer.reply(leave)
        peer.reply(again)
        peer.notify(again, state("queued", "sip:q2@192.0.2.1"))
        ready(peer, again)
    assert only(peer).state is State.READY and only(peer).recalls == 1
    assert len(peer.site.agent.rung) == 2


def test_without_retention_the_new_offer_of_the_cc_call_is_asked_for(peer: Peer) -> None:
    """chan_sip offers each call anew, by a new URI; the old one is gone."""
    subscribe = asked(peer)
    peer.reply(subscribe)
    peer.notify(subscribe, state("ready", CC_URI, False))
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    invite = peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "cc1")
    new = offered("sip:m2@192.0.2.1:5060", "NR")
    peer.site.passes(Side.PEER, invite.response(486, headers=(new,), tag="et"))
    peer.got()
    peer.site.call_over(recall, "BUSY", 17)
    again = [r for r in peer.got() if r.expires]
    assert [r.uri for r in again] == ["sip:m2@192.0.2.1:5060;m=NR"]


def test_what_ends_there_during_the_cc_call_is_noticed_when_that_fails(peer: Peer) -> None:
    """With retention or without: nobody watches him any more, so he must not wait for nobody."""
    subscribe = accepted(peer)
    recall = ready(peer, subscribe)
    peer.site.plan(recall)
    peer.site.target(recall)
    peer.notify(subscribe, state("queued"), "terminated;reason=noresource", seq=3)
    peer.got()
    peer.site.call_over(recall, "BUSY", 17)
    anew = [r for r in peer.got() if r.method == "SUBSCRIBE" and r.expires]
    assert anew or only(peer).state is State.ENDED, "he waits for a NOTIFY that never comes"


# Forks: several monitor URIs

M2 = "sip:m2@192.0.2.1:5062"


def forked(peer: Peer) -> tuple[SipRequest, SipRequest]:
    """A call that met two monitors; he asks, and the two SUBSCRIBEs lie there."""
    peer.called(offered(), offered(M2))
    peer.site.asked("1000")
    one, two = peer.got()
    return one, two


def test_every_monitor_is_subscribed_to_as_forks_of_one(peer: Peer) -> None:
    """RFC 6910, 6.2: the same Call-ID, From tag and CSeq, another request-URI each."""
    one, two = forked(peer)
    assert (one.uri, two.uri) == (f"{MONITOR};m=BS", f"{M2};m=BS")
    assert (one.call_id, one.from_.tag, one.cseq) == (two.call_id, two.from_.tag, two.cseq)
    assert one.via.branch != two.via.branch


def test_no_more_than_four(peer: Peer) -> None:
    peer.called(*(offered(f"sip:m{n}@192.0.2.1") for n in range(9)))
    peer.site.asked("1000")
    assert len(peer.got()) == 4


@pytest.mark.parametrize("status", [482, 404, 480])
@pytest.mark.parametrize(
    ("order", "refused"),
    [
        ("refusal first", 0),
        ("refusal first", 1),
        ("refusal last", 0),
        ("refusal last", 1),
        ("notify before its 200", 0),
        ("notify before its 200", 1),
    ],
)
def test_one_fork_is_refused_and_the_other_lives(peer: Peer, status: int, order: str, refused: int) -> None:
    forks = forked(peer)
    bad, good = forks[refused], forks[1 - refused]
    if order == "refusal first":
        peer.reply(bad, status, tag="bad")
    if order != "notify before its 200":
        peer.reply(good, tag="good")
    answer = peer.notify(good, state("queued", CC_URI), tag="good")
    if order == "notify before its 200":
        peer.reply(bad, status, tag="bad")
        peer.reply(good, tag="good")
    if order == "refusal last":
        peer.reply(bad, status, tag="bad")
    assert answer.status == 200, "a fork that was refused takes no NOTIFY of the other"
    assert only(peer).state is State.QUEUED
    assert peer.notify(good, state("ready", CC_URI), tag="good", seq=2).status == 200
    assert only(peer).state is State.READY


def test_all_forks_are_refused(peer: Peer) -> None:
    one, two = forked(peer)
    peer.reply(one, 404)
    assert only(peer).state is State.REQUESTED
    peer.reply(two, 480)
    assert only(peer).reason == "CALLEE_QUEUE_FULL"


def both_queued(peer: Peer) -> tuple[SipRequest, SipRequest]:
    one, two = forked(peer)
    for fork, tag in ((one, "t1"), (two, "t2")):
        peer.reply(fork, tag=tag)
        assert peer.notify(fork, state("queued", f"sip:q{tag}@192.0.2.1"), tag=tag).status == 200
    return one, two


def test_each_fork_has_a_word_of_its_own(peer: Peer) -> None:
    """What one monitor says of itself is not the word of the other: queued there ends no ready here."""
    one, two = both_queued(peer)
    peer.site.set("1000", IN_USE)
    peer.notify(one, state("ready", "sip:qt1@192.0.2.1"), tag="t1", seq=2)
    peer.got()
    peer.site.set("1000", IDLE)
    peer.site.wait(1)
    peer.notify(one, state("ready", "sip:qt1@192.0.2.1"), tag="t1", seq=3)
    assert only(peer).state is State.READY
    first = peer.site.recall()
    peer.notify(two, state("queued", "sip:qt2@192.0.2.1"), tag="t2", seq=2)
    assert (only(peer).state, peer.site.recall()) == (State.READY, first), "the other one is ready still"


def test_the_cc_call_goes_to_the_fork_that_is_ready(peer: Peer) -> None:
    one, two = both_queued(peer)
    peer.notify(one, state("ready", "sip:qt1@192.0.2.1"), tag="t1", seq=2)
    peer.notify(two, state("queued", "sip:qt2@192.0.2.1"), tag="t2", seq=2)
    assert [r.recall_id for r in peer.site.agent.rung]
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    invite = peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "cc1")
    assert invite.uri == "sip:qt1@192.0.2.1;m=BS"


def test_one_fork_ends_and_the_other_goes_on(peer: Peer) -> None:
    one, two = both_queued(peer)
    peer.notify(one, "", "terminated;reason=noresource", tag="t1", seq=2)
    assert only(peer).state is State.QUEUED
    peer.notify(two, state("ready", "sip:qt2@192.0.2.1"), tag="t2", seq=2)
    assert only(peer).state is State.READY


def test_all_forks_are_left(peer: Peer) -> None:
    both_queued(peer)
    peer.site.cancels("1000")
    left = peer.got()
    assert [in_words(r) for r in left] == ["SUBSCRIBE 0", "SUBSCRIBE 0"]
    assert {r.to.tag for r in left} == {"t1", "t2"}
    for request, tag in zip(left, ("t1", "t2"), strict=True):
        peer.reply(request, tag=tag)
    peer.site.wait(100)
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


# Publishing


def test_a_peer_that_knows_only_the_old_name(peer: Peer) -> None:
    """489: chan_sip has PUBLISH by Event: call-completion. That is remembered of the trunk, over a restart too."""
    subscribe = accepted(peer)
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", CC_URI), seq=2)
    [first] = peer.got()
    assert first.get("event") == "presence" and in_words(first) == "PUBLISH closed"
    peer.reply(first, 489)
    [second] = peer.got()
    assert second.get("event") == "call-completion" and second.body == first.body and second.uri == first.uri
    peer.reply(second, 200, ("SIP-ETag", "e1"), ("Expires", "3600"))
    peer.site.restart()
    peer.site.set("1000", IDLE)
    [third] = peer.got()
    assert (third.get("event"), third.get("sip-if-match")) == ("call-completion", "e1")
    peer.reply(third, 200, ("SIP-ETag", "e2"))
    other = accepted(peer, caller="1001", call_id="o2")
    peer.site.set("1001", IN_USE)
    peer.notify(other, state("ready", CC_URI), seq=2)
    assert [r.get("event") for r in peer.got()] == ["call-completion"]


def test_a_peer_that_knows_neither_name(peer: Peer) -> None:
    subscribe = accepted(peer)
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", CC_URI), seq=2)
    for _ in range(2):
        [publish] = peer.got()
        peer.reply(publish, 489)
    assert peer.got() == []
    peer.site.wait(60)
    assert only(peer).suspended and peer.got() == []
    peer.site.set("1000", IDLE)
    peer.site.wait(1)
    assert only(peer).state is State.READY, "what it said before is all there is"


@pytest.mark.parametrize("status", [404, 412, 481, 489, 500, None])
def test_what_was_published_is_forgotten_whatever_the_withdrawal_gets(peer: Peer, status: int | None) -> None:
    subscribe = accepted(peer)
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", CC_URI), seq=2)
    [publish] = peer.got()
    peer.reply(publish, 200, ("SIP-ETag", "e1"), ("Expires", "3600"))
    peer.site.cancels("1000")
    leave, withdraw = peer.got()
    assert (in_words(leave), in_words(withdraw)) == ("SUBSCRIBE 0", "PUBLISH remove")
    assert (withdraw.get("sip-if-match"), withdraw.body) == ("e1", b"")
    peer.reply(leave)
    peer.notify(subscribe, "", "terminated;reason=timeout", seq=3)
    if status is not None:
        peer.reply(withdraw, status)
    peer.site.wait(40)
    assert peer.got() == []
    assert [k for k, _ in peer.site.store.kept if k == "monitor"] == []


def test_a_publication_is_refreshed_and_not_beyond_the_service(peer: Peer) -> None:
    subscribe = accepted(peer)
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", CC_URI), seq=2)
    [publish] = peer.got()
    peer.reply(publish, 200, ("SIP-ETag", "e1"), ("Expires", "600"))
    peer.site.wait(599)
    refresh = next(r for r in peer.got() if r.method == "PUBLISH")
    assert in_words(refresh) == "PUBLISH refresh" and refresh.get("sip-if-match") == "e1"
    assert int(refresh.get("expires", "0")) <= 4800 - 300


def test_after_asking_anew_it_is_published_there_where_he_waits_now(peer: Peer) -> None:
    """Without retention the old entry is gone, and with it what was published for it."""
    subscribe = asked(peer)
    peer.reply(subscribe)
    peer.site.set("1000", IN_USE)
    peer.notify(subscribe, state("ready", "sip:q1@192.0.2.1", False))
    [publish] = peer.got()
    assert publish.uri == "sip:q1@192.0.2.1"
    peer.reply(publish, 200, ("SIP-ETag", "e1"))
    peer.site.set("1000", IDLE)
    [publish] = peer.got()
    peer.reply(publish, 200, ("SIP-ETag", "e2"))
    peer.notify(subscribe, state("ready", "sip:q1@192.0.2.1", False), seq=2)
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    peer.site.call_over(recall, "BUSY", 17)
    again = next(r for r in peer.got() if r.method == "SUBSCRIBE" and r.expires)
    peer.reply(again)
    peer.notify(again, state("queued", "sip:q2@192.0.2.1", False))
    peer.got()
    peer.site.set("1000", IN_USE)
    peer.notify(again, state("ready", "sip:q2@192.0.2.1", False), seq=2)
    [publish] = [r for r in peer.got() if r.method == "PUBLISH"]
    assert (publish.uri, publish.get("sip-if-match")) == ("sip:q2@192.0.2.1", None)


# ------------------------------------------------------------------------------------ the calls that pass


@pytest.mark.parametrize("status", [100, 180, 181, 183, 200, 302, 401, 407, 404, 480, 486, 487, 500, 603])
def test_which_responses_offer(peer: Peer, status: int) -> None:
    """Before the dialplan has told of the call: while it rings, and when the caller gives up."""
    invite = peer.calls("2000", "c1")
    seen = peer.gets(invite, status)
    offers = [info for info in call_infos(seen) if info.purpose == "call-completion"]
    assert [info.m for info in offers] == (["NR"] if status in (180, 181, 183, 487) else [])


@pytest.mark.parametrize(
    ("dialstatus", "cause", "m"),
    [
        ("BUSY", 17, "BS"),
        ("NOANSWER", 19, "NR"),
        ("CHANUNAVAIL", 21, "NR"),
        ("CHANUNAVAIL", 20, "NL"),
        ("CONGESTION", 34, ""),
    ],
)
def test_the_offer_says_how_the_call_failed(peer: Peer, dialstatus: str, cause: int, m: str) -> None:
    invite = peer.calls("2000", "c1")
    early = peer.gets(invite, 180)
    peer.site.records("to-a", "2000", dialstatus, cause, call_in="c1", devices=(phone("2000"),))
    for status in (486, 480, 404, 500):
        seen = peer.gets(invite, status)
        assert [info.m for info in call_infos(seen)] == ([m] if m else [])
        assert not m or monitor_of(seen) == monitor_of(early), "one URI for one call"


def test_nothing_is_offered_where_that_is_not_wanted() -> None:
    peer = Peer(alone(call_info=False))
    invite = peer.calls("2000", "c1")
    assert monitor_of(peer.gets(invite, 180)) == ""
    assert peer.meets("2000", "c1") == ""
    assert peer.subscribe("sip:2000@192.0.2.2").status == 200, "who asks all the same is served"
    check(peer.site)


def test_other_call_infos_pass_as_they_are(peer: Peer) -> None:
    invite = peer.calls("2000", "c1")
    icon = ("Call-Info", "<http://192.0.2.9/x.png>;purpose=icon")
    seen = peer.gets(invite, 180, icon)
    assert [info.purpose for info in call_infos(seen)] == ["icon", "call-completion"]


@pytest.mark.parametrize("to", ["monitor URI", "cc-URI", "callee with m", "callee with unknown m"])
def test_a_cc_call_is_known_by_its_uri_or_by_m_and_from(peer: Peer, to: str) -> None:
    monitor, _ = subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    uri = {
        "monitor URI": monitor,
        "cc-URI": f"{call_uri(peer)};m=BS",
        "callee with m": "sip:2000@192.0.2.2:5070;m=BS",
        "callee with unknown m": "sip:2000@192.0.2.2:5070;m=xy",
    }[to]
    invite = peer.calls("2000", "cc1", uri=uri)
    assert isinstance(invite, SipRequest)
    assert invite.uri.startswith("sip:2000@")
    assert only(peer).state is State.CALLING
    assert monitor_of(peer.gets(invite, 180)) == ""
    peer.gets(invite, 200)
    assert only(peer).state is State.COMPLETED


@pytest.mark.parametrize(
    ("uri", "from_"),
    [
        ("sip:2000@192.0.2.2:5070", "sip:1000@192.0.2.1"),
        ("sip:2000@192.0.2.2:5070;m=BS", "sip:1001@192.0.2.1"),
        ("sip:2000@192.0.2.2:5070;m=BS", "sip:1000@192.0.2.77"),
        ("sip:2001@192.0.2.2:5070;m=BS", "sip:1000@192.0.2.1"),
    ],
)
def test_an_ordinary_call_in_the_turn_is_none(peer: Peer, uri: str, from_: str) -> None:
    """Without m; of another caller; to another callee: it goes its way, and may be offered."""
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    invite = peer.calls("2000", "x1", from_, uri)
    assert isinstance(invite, SipRequest) and invite.uri == uri
    assert only(peer).state is State.READY
    assert monitor_of(peer.gets(invite, 180))


def test_a_cc_call_that_comes_too_late_is_put_through_as_a_call(peer: Peer) -> None:
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"]
    uri = call_uri(peer)
    peer.site.wait(21)
    invite = peer.calls("2000", "cc1", uri=uri)
    assert isinstance(invite, SipRequest) and invite.uri == "sip:2000@127.0.0.1:5060"
    assert only(peer).state is State.QUEUED
    peer.site.records("to-a", "2000", "BUSY", 17, call_in="cc1", devices=(phone("2000"),))
    assert monitor_of(peer.gets(invite, 486)), "it is a call like any other"


def test_a_uri_of_ours_whose_request_is_over(peer: Peer) -> None:
    monitor, _ = subscribed(peer)
    uri = call_uri(peer)
    peer.said()
    peer.site.service.cancel_id(2, peer.site.said)
    peer.said()
    late = peer.calls("2000", "cc1", uri=monitor)
    assert isinstance(late, SipRequest) and late.uri == "sip:2000@127.0.0.1:5060", "he gets whom he wanted"
    gone = peer.calls("2000", "cc2", uri=uri)
    assert isinstance(gone, SipRequest) and gone.uri == "sip:2000@127.0.0.1:5060", "and here"
    nobody = peer.calls("2000", "cc3", uri="sip:ccm-" + "0" * 32 + "@192.0.2.2:5070")
    assert isinstance(nobody, Response) and nobody.status == 404 and nobody.to.tag


def test_the_cc_call_comes_while_the_commit_is_under_way(peer: Peer) -> None:
    """No call waits for the database: it passes at once, and what follows is saved later."""
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    uri = call_uri(peer)
    peer.site.store.held = True
    invite = peer.calls("2000", "cc1", uri=uri)
    assert isinstance(invite, SipRequest) and invite.uri == "sip:2000@127.0.0.1:5060"
    peer.gets(invite, 180)
    peer.gets(invite, 486)
    assert only(peer).state is State.READY
    peer.site.store.held = False
    peer.site.store.release()
    assert (only(peer).state, only(peer).recalls) == (State.QUEUED, 1)


def test_two_cc_calls_for_one_turn(peer: Peer) -> None:
    """Both are put through; the first is that of the turn."""
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    uri = call_uri(peer)
    one, two = peer.calls("2000", "cc1", uri=uri), peer.calls("2000", "cc2", uri=uri)
    assert isinstance(one, SipRequest) and isinstance(two, SipRequest)
    assert (only(peer).state, only(peer).channel) == (State.CALLING, channel_of("a", "cc1"))
    peer.gets(two, 486)
    assert only(peer).state is State.CALLING
    peer.gets(one, 200)
    assert only(peer).state is State.COMPLETED


def test_a_call_of_the_other_side_with_the_same_call_id_is_led_nowhere(peer: Peer) -> None:
    """Where a call is led counts for the side whence it came: a peer's may have the Call-ID of one of ours."""
    subscribe = accepted(peer)
    recall = ready(peer, subscribe)
    peer.site.plan(recall)
    peer.site.target(recall)
    peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "same")
    invite = peer.calls("1005", "same")
    assert isinstance(invite, SipRequest) and invite.uri == "sip:1005@192.0.2.2:5070"


# ----------------------------------------------------------------- when the other side ends it at a bad moment


def test_unsubscribed_during_a_cc_call_that_then_fails(peer: Peer) -> None:
    """chan_sip: the caller hangs up while it rings, CANCEL and SUBSCRIBE 0 at once. Nobody is waited for then."""
    monitor, tag = subscribed(peer, call_id="s1")
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    invite = peer.calls("2000", "cc1", uri=call_uri(peer))
    peer.gets(invite, 180)
    peer.subscribe("sip:cc@192.0.2.2:5070", expires=0, call_id="s1", to_tag=tag, seq="2")
    peer.said()
    assert only(peer).state is State.CALLING
    peer.gets(invite, 487)
    assert only(peer).state is State.ENDED, "it would take turns of which nobody is told"
    assert [k for k, _ in peer.site.store.kept if k == "agent"] == []


def test_unsubscribed_during_a_cc_call_that_is_answered(peer: Peer) -> None:
    monitor, tag = subscribed(peer, call_id="s1")
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    invite = peer.calls("2000", "cc1", uri=call_uri(peer))
    peer.subscribe("sip:cc@192.0.2.2:5070", expires=0, call_id="s1", to_tag=tag, seq="2")
    peer.said()
    peer.gets(invite, 200)
    assert peer.site.states() == ["COMPLETED COMPLETED"]
    assert [k for k, _ in peer.site.store.kept if k == "agent"] == []


def test_a_cc_call_whose_end_nobody_hears_does_not_hold_the_callee_for_hours(peer: Peer) -> None:
    """The INVITE passed, and then nothing: Asterisk has died, or the peer. The next who waits is served."""
    subscribed(peer)
    peer.site.wants("1001", "2000")
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    peer.calls("2000", "cc1", uri=call_uri(peer))
    peer.site.wait(600)
    assert {r.caller for r in peer.site.agent.rung} == {"1001"}


def test_two_who_wait_for_each_other(pair: Pair) -> None:
    """1000 here for 2000 there, and he for her; both are free in the same moment: one is called back all the same."""
    pair.camps("1000", "2000")
    pair.camps("2000", "1000", out=pair.b)
    pair.held = True
    pair.set(pair.a, "1000", IDLE)
    pair.set(pair.b, "2000", IDLE)
    pair.held = False
    pair.flow()
    for _ in range(300):
        pair.wait(1)
        if any(r.state is State.READY and not r.agent for site in pair.sites for r in site.open()):
            return
    raise AssertionError(f"each holds the other's phone, and nobody is rung: {both_ends(pair)}")


# ---------------------------------------------------------------------------------------------- other surroundings


def test_two_pbxs_without_retention() -> None:
    """A CC call fails: he loses his place there, asks anew, and is let in as one whose call has just failed."""
    pair = Pair(b={"retention": False})
    pair.camps()
    pair.wait(300)
    pair.set(pair.b, "2000", IDLE)
    cc = pair.cc_call()
    pair.set(pair.b, "2000", IN_USE)
    cc.record_there("BUSY", 17)
    cc.answers(486)
    pair.call_is_over(cc, "BUSY", 17)
    pair.wait(1)
    assert (len(pair.a.open()), len(pair.b.open())) == (1, 1)
    pair.set(pair.b, "2000", IDLE)
    pair.wait(11)
    assert len(pair.a.agent.rung) == 2
    for site in pair.sites:
        check(site)


@pytest.mark.parametrize(
    ("dialstatus", "cause", "m"), [("BUSY", 17, "BS"), ("NOANSWER", 19, "NR"), ("CHANUNAVAIL", 20, "NL")]
)
def test_nothing_of_ours_in_the_path(dialstatus: str, cause: int, m: str) -> None:
    """No call passes us: it is asked for where it was called, by what the dialplan saw of it (RFC 6910, 6.2)."""
    peer = Peer(alone(in_path=False))
    answer = peer.site.records("1000", "2000", dialstatus, cause, through="PJSIP/to-a", call_out="o1")
    assert getattr(answer, "service", None) is {"BS": CCBS, "NR": CCNR, "NL": CCNL}[m]
    peer.site.asked("1000")
    [subscribe] = peer.got()
    assert subscribe.uri == f"sip:2000@192.0.2.1:5070;m={m}"
    assert (subscribe.from_.uri, subscribe.to.uri) == ("sip:1000@192.0.2.2", "sip:2000@192.0.2.1:5070")
    peer.reply(subscribe)
    peer.notify(subscribe, state("ready", CC_URI))
    peer.site.plan(peer.site.recall())
    target = peer.site.target(peer.site.recall())
    assert isinstance(target, Target) and target.endpoint == "", "the site's own dialplan dials"
    check(peer.site)


def test_a_call_whose_call_ids_the_dialplan_does_not_know(peer: Peer) -> None:
    """A hang-up handler, or a b() of the site's own: the latest call between the two is meant."""
    invite = peer.out("INVITE", "sip:2000@127.0.0.1:5070", "o1")
    peer.site.passes(Side.PEER, invite.response(486, headers=(offered(),), tag="et"))
    answer = peer.site.records("1000", "2000", "BUSY", 17, through="PJSIP/to-a")
    assert getattr(answer, "service", None) is CCBS
    assert [r.uri for r in (peer.site.asked("1000"), peer.got())[1]] == [f"{MONITOR};m=BS"]


def test_from_one_trunk_to_another() -> None:
    """Caller and callee are both beyond: what one PBX says is told to the other, and nobody is rung here."""
    site = alone()
    site.trunks["c"] = trunk("c", "192.0.2.2", "192.0.2.3")
    site.restart()
    caller, callee = Peer(site, "a"), Peer(site, "c", "192.0.2.3")
    arrived = caller.calls("2000", "in1", "sip:7000@192.0.2.1")
    callee.out("INVITE", "sip:2000@127.0.0.1:5070", "out1", caller="7000")
    busy = callee.out("INVITE", "sip:2000@127.0.0.1:5070", "out1", caller="7000").response(
        486, headers=(offered("sip:m1@192.0.2.3"),), tag="et"
    )
    site.passes(Side.PEER, busy, "c")
    site.records("to-a", "2000", "BUSY", 17, through="PJSIP/to-c", call_in="in1", call_out="out1")
    monitor = monitor_of(caller.gets(arrived, 486))
    assert caller.subscribe(monitor, from_="sip:7000@192.0.2.1").status == 200
    sent = {r.method: r for r in callee.got()}
    assert set(sent) == {"NOTIFY", "SUBSCRIBE"}
    assert sent["SUBSCRIBE"].uri == "sip:m1@192.0.2.3;m=BS"
    caller.reply(sent["NOTIFY"])
    callee.reply(sent["SUBSCRIBE"])
    callee.notify(sent["SUBSCRIBE"], state("ready", "sip:q1@192.0.2.3"))
    ready = callee.got()
    assert [in_words(r) for r in ready] == ["NOTIFY ready"]
    caller.reply(ready[0])
    call = caller.calls("2000", "cc1", "sip:7000@192.0.2.1", f"{call_uri(caller)};m=BS")
    assert isinstance(call, SipRequest) and call.uri == "sip:2000@127.0.0.1:5060"
    onward = callee.out("INVITE", "sip:2000@127.0.0.1:5070", "cc2", caller="7000")
    assert onward.uri == "sip:2000@127.0.0.1:5070;m=BS"
    assert monitor_of(caller.gets(call, 180)) == ""
    caller.gets(call, 200)
    assert site.states() == ["COMPLETED COMPLETED"]
    assert sorted(in_words(r) for r in callee.got()) == ["NOTIFY terminated;reason=noresource", "SUBSCRIBE 0"]
    assert site.agent.rung == []
    check(site)


def test_between_trunks_the_refusal_there_ends_it_here() -> None:
    site = alone()
    site.trunks["c"] = trunk("c", "192.0.2.2", "192.0.2.3")
    site.restart()
    caller, callee = Peer(site, "a"), Peer(site, "c", "192.0.2.3")
    arrived = caller.calls("2000", "in1", "sip:7000@192.0.2.1")
    invite = callee.out("INVITE", "sip:2000@127.0.0.1:5070", "out1", caller="7000")
    site.passes(Side.PEER, invite.response(486, headers=(offered("sip:m1@192.0.2.3"),), tag="et"), "c")
    site.records("to-a", "2000", "BUSY", 17, through="PJSIP/to-c", call_in="in1", call_out="out1")
    caller.subscribe(monitor_of(caller.gets(arrived, 486)), from_="sip:7000@192.0.2.1")
    sent = {r.method: r for r in callee.got()}
    caller.reply(sent["NOTIFY"])
    callee.reply(sent["SUBSCRIBE"], 480)
    assert site.states() == ["ENDED CALLEE_QUEUE_FULL"]
    assert in_words(caller.got()[-1]) == "NOTIFY terminated;reason=noresource"
    check(site)


# ------------------------------------------------------------------------------------------------------- kill -9


class Story:
    """What the two Asterisks and their people do, however often a fastagi dies on them, from busy to the end."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.a, self.b = pair, pair.a, pair.b
        self.deaths = 0
        self.talked = 0
        self.reached: list[str] = []
        self.rung_after = 0
        self.counts: dict[str, tuple[int, int]] = {}

    def does(self, work: Callable[[], object]) -> bool:
        """Whether nobody died of it; who did is started again at once."""
        try:
            work()
            self.pair.flow()
        except Died as death:
            self.deaths += 1
            death.site.restart()
            self.does(lambda: None)
            return False
        return True

    def waits(self, seconds: float) -> None:
        end = self.pair.clock.now() + seconds
        while self.pair.clock.now() < end:
            self.does(lambda: self.pair.wait(min(0.5, end - self.pair.clock.now())))

    def told(self) -> None:
        """The caller meets busy and asks, until he is told that it is done."""
        for _ in range(4):
            self.tries()
            if [r for r in self.a.open() if r.state is State.QUEUED]:
                return
        raise AssertionError("he is never told")

    def tries(self) -> None:
        call = self.pair.call("1000", "2000")
        self.does(call.invite)
        self.does(lambda: call.record_there("BUSY", 17))
        self.does(lambda: call.answers(486))
        self.does(lambda: call.record_here("BUSY", 17))
        self.does(lambda: self.a.asked("1000"))
        self.waits(5)

    def rings(self) -> str:
        """Until the phone of the caller rings for a recall that is not over; that recall."""
        for _ in range(300):
            for request in self.a.open():
                if request.state is State.READY and not request.taken and request.recall_id:
                    return request.recall_id
            self.waits(1)
        raise AssertionError("he is never called back")

    def answers(self, recall: str) -> bool:
        """Asterisk takes the recall, he picks up, and the CC call goes out; False: nothing came of it."""
        if not self.does(lambda: self.a.plan(recall)):
            # Its AGI session died: the channel hangs up, and the poll session finds it gone.
            self.does(lambda: self.a.service.call_gone(recall))
            return False
        self.waits(2)
        targets: list[object] = []
        for _ in range(11):
            if self.does(lambda: targets.append(self.a.target(recall))):
                break
            self.waits(1)
        if not targets or not isinstance(targets[-1], Target):
            return False
        call = self.pair.call("1000", "2000", uri=f"sip:cc-{recall}@127.0.0.1:5070")
        self.again(lambda: self.carries(call))
        self.again(lambda: call.answers(180))
        self.again(lambda: call.answers(200))
        self.talked += 1
        self.rung_after = len(self.a.agent.rung)
        self.waits(5)
        if not self.does(lambda: self.a.call_over(recall, "ANSWER", 16)):
            self.does(lambda: self.a.service.call_gone(recall))
        return True

    def carries(self, call: TrunkCall) -> None:
        call.seq = 0
        arrived = call.invite()
        self.reached.append(arrived.uri)

    def again(self, work: Callable[[], object]) -> None:
        """As often as a retransmission brings it."""
        for _ in range(3):
            if self.does(work):
                return

    def runs(self) -> None:
        self.pair.set(self.b, "2000", IN_USE)
        self.told()
        self.waits(60)
        self.does(lambda: self.b.set("2000", IDLE))
        for _ in range(5):
            if self.answers(self.rings()):
                break
        self.waits(60)
        self.counts = {site.name: (site.commits, site.sendings) for site in self.pair.sites}
        for _ in range(9):
            self.does(lambda: self.pair.wait(800))

    def must_have_ended_well(self) -> None:
        assert self.talked == 1, "he talked once"
        assert len(self.a.agent.rung) == self.rung_after, "he was rung again after they had talked"
        assert set(self.reached) == {"sip:2000@127.0.0.1:5060"}
        ends = [r.reason for r in self.a.store.requests.values()]
        assert ends[-1] in ("COMPLETED", "CALL_LOST") and not self.a.open()
        assert [r.reason for r in self.b.store.requests.values()][-1] == "COMPLETED" and not self.b.open()
        for site in self.pair.sites:
            assert [kind for kind, _ in site.store.kept if kind in ("agent", "monitor")] == []
            check(site)


def counted() -> dict[str, tuple[int, int]]:
    """Commits and messages of each site in a story in which nobody dies."""
    story = Story(Pair())
    for site in story.pair.sites:
        site.dies_at(10_000, False)
    story.runs()
    story.must_have_ended_well()
    assert story.deaths == 0
    return story.counts


def test_nobody_dies() -> None:
    counts = counted()
    assert all(commits > 5 and messages > 3 for commits, messages in counts.values())


def deaths(name: str, die: Callable[[Site, int], object], times: range) -> dict[int, str]:
    """What is wrong at the end of each story in which that site dies once."""
    faults: dict[int, str] = {}
    for time in times:
        story = Story(Pair())
        site = story.a if name == "a" else story.b
        die(site, time)
        try:
            story.runs()
            story.must_have_ended_well()
        except AssertionError as error:
            faults[time] = f"{error}; {site.logged[-1]}"
    return faults


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a", False),
        ("a", True),
        ("b", False),
        ("b", True),
    ],
)
def test_kill_9_at_every_commit(name: str, written: bool) -> None:
    """Just before it is written or just after: nothing is lost, and nobody is rung for nothing."""
    commits, _ = counted()[name]
    assert deaths(name, lambda site, time: site.dies_at(time, written), range(1, commits + 1)) == {}


@pytest.mark.parametrize("name", ["a", "b"])
def test_kill_9_before_every_message(name: str) -> None:
    _, messages = counted()[name]
    assert deaths(name, lambda site, time: site.dies_sending(time), range(1, messages + 1)) == {}


def test_restarted_between_the_call_and_the_subscribe(pair: Pair) -> None:
    """The offer is saved; the URI that was given out with it is known again."""
    pair.set(pair.b, "2000", IN_USE)
    pair.call("1000", "2000").fails()
    pair.restart(pair.b)
    pair.restart(pair.a)
    pair.a.asked("1000")
    pair.flow()
    assert both_ends(pair) == (["QUEUED"], ["QUEUED"])


def test_an_offer_that_comes_late_is_known_after_a_restart(peer: Peer) -> None:
    peer.site.records("1000", "2000", "CANCEL", 0, through="PJSIP/to-a", call_out="o1")
    invite = peer.out("INVITE", "sip:2000@127.0.0.1:5070", "o2")
    peer.site.records("1000", "2000", "CANCEL", 0, through="PJSIP/to-a", call_out="o2")
    peer.site.passes(Side.PEER, invite.response(180, tag="et"))
    peer.site.restart()
    peer.site.passes(Side.PEER, invite.response(487, headers=(offered(m="NR"),), tag="et"))
    assert {o.service for o in peer.site.store.offers.values()} == {None}, (
        "its INVITE was not seen by this process"
    )


@pytest.mark.parametrize("which", ["a", "b"])
def test_restarted_in_every_state(pair: Pair, which: str) -> None:
    site = pair.a if which == "a" else pair.b
    pair.camps()
    pair.wait(5)
    pair.restart(site)
    pair.wait(5)
    pair.set(pair.a, "1000", IN_USE)
    pair.set(pair.b, "2000", IDLE)
    pair.restart(site)
    pair.wait(5)
    assert pair.a.open()[0].suspended and pair.b.open()[0].suspended
    pair.set(pair.a, "1000", IDLE)
    pair.wait(9)
    assert pair.a.rings() != [] and pair.b.open()[0].state is State.READY
    pair.restart(site)
    pair.wait(1)
    waited = 1
    while (pair.a.open()[0].state, pair.b.open()[0].state) != (State.READY, State.READY):
        pair.wait(1)
        waited += 1
        assert waited <= 51, "more than one turn was lost"
    recall = pair.a.recall()
    pair.a.plan(recall)
    pair.restart(site)
    cc = pair.cc_invite(pair.a, recall)
    pair.restart(site)
    cc.answers(486, ("Reason", "Q.850;cause=17"))
    pair.call_is_over(cc, "BUSY", 17)
    assert both_ends(pair) == (["QUEUED"], ["QUEUED"])
    pair.restart(site)
    pair.set(pair.b, "2000", IN_USE)
    pair.set(pair.b, "2000", IDLE)
    pair.wait(11)
    cc = pair.cc_call()
    cc.answers(200)
    pair.restart(site)
    pair.call_is_over(cc, "ANSWER")
    assert both_ends(pair) == (["COMPLETED COMPLETED"], ["COMPLETED COMPLETED"])
    nothing_is_left(pair)


def test_a_trunk_that_is_no_longer_configured(pair: Pair) -> None:
    """Whoever waits over it waits for nobody: both sides forget it."""
    pair.camps("1000", "2000")
    pair.camps("2000", "1000", out=pair.b)
    for site in pair.sites:
        site.trunks.clear()
        site.restart()
    pair.wait(1)
    assert pair.table.packets == []
    for site in pair.sites:
        assert site.open() == []
        assert [k for k, _ in site.store.kept if k in ("agent", "monitor")] == []


def test_what_was_offered_over_a_trunk_that_is_gone(pair: Pair) -> None:
    pair.call("1000", "2000").fails()
    pair.a.trunks.clear()
    pair.a.restart()
    answers = pair.a.asked("1000")
    assert answers and getattr(answers[0], "reason", "") in ("ENDED_THERE", "CALLEE_NOT_WATCHABLE")
    assert pair.a.open() == []


# -------------------------------------------------------------------------------------------------- a bad line


@pytest.mark.parametrize("seed", range(25))
def test_a_line_that_loses_doubles_and_swaps(seed: int) -> None:
    story = Story(Pair())
    story.pair.dice = Random(seed)
    story.runs()
    story.pair.dice = None
    story.waits(60)
    story.must_have_ended_well()


def test_a_line_that_is_dead_for_a_while(pair: Pair) -> None:
    """Nothing arrives for half a minute, in the middle of everything; each side comes to an end by itself."""
    pair.camps()
    pair.held = True
    pair.set(pair.b, "2000", IDLE)
    pair.wait(33)
    pair.table.lose()
    pair.held = False
    pair.wait(5000)
    assert pair.a.open() == pair.b.open() == []
    nothing_is_left(pair)


# --------------------------------------------------------------------------------------------- a store that fails


def test_a_subscribe_that_cannot_be_saved(peer: Peer) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    peer.site.store.error = OSError("disk full")
    answer = peer.subscribe(monitor, call_id="s1")
    assert (answer.status, answer.get("retry-after")) == (500, "5")
    assert (peer.got(), peer.site.open()) == ([], [])
    peer.site.store.error = None
    assert peer.subscribe(monitor, call_id="s1", seq="2").status == 200
    assert peer.said() == ["NOTIFY queued"]


def test_nothing_is_said_while_it_is_being_saved(peer: Peer) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    peer.site.store.held = True
    request = peer.request("SUBSCRIBE", monitor, ("Event", "call-completion"))
    assert peer.send(request) is None
    assert peer.got() == []
    peer.site.store.held = False
    peer.site.store.release()
    assert [in_words(m) for m in peer.site.table.sent] == ["200 to SUBSCRIBE", "NOTIFY queued"]


def test_a_ready_that_cannot_be_saved_is_heard_when_it_can(pair: Pair) -> None:
    """The NOTIFY is answered 500 with Retry-After, so it is sent again."""
    pair.camps()
    pair.a.store.error = OSError("disk full")
    pair.set(pair.b, "2000", IDLE)
    pair.wait(3)
    assert pair.a.agent.rung == []
    pair.a.store.error = None
    pair.wait(8)
    assert len(pair.a.agent.rung) == 1


def test_a_cc_call_passes_while_nothing_can_be_saved(pair: Pair) -> None:
    """No call fails for that; how it went is saved when it can be."""
    pair.camps()
    pair.set(pair.b, "2000", IDLE)
    recall = pair.a.recall()
    pair.a.plan(recall)
    pair.b.store.error = OSError("disk full")
    cc = pair.cc_invite(pair.a, recall)
    assert cc.arrived is not None and cc.arrived.uri == "sip:2000@127.0.0.1:5060"
    cc.answers(180)
    assert cc.answers(200).status == 200
    assert pair.b.open()[0].state is State.READY
    pair.b.store.error = None
    pair.wait(5)
    assert pair.b.states() == ["COMPLETED COMPLETED"]


def test_a_store_that_fails_now_and_then() -> None:
    for seed in range(12):
        story = Story(Pair())
        dice, stores = Random(seed), [site.store for site in story.pair.sites]

        def look(dice: Random = dice, stores: list[FakeStore] = stores) -> None:
            for store in stores:
                store.error = OSError("disk full") if dice.random() < 0.3 else None

        wait = story.pair.wait

        def waits(
            seconds: float, wait: Callable[[float], None] = wait, look: Callable[[], None] = look
        ) -> None:
            look()
            wait(seconds)

        story.pair.wait = waits  # type: ignore[method-assign]
        with suppress(AssertionError):  # he gives up
            story.told()
        for store in stores:
            store.error = None
        story.pair.wait = wait  # type: ignore[method-assign]
        story.waits(8000)
        for site in story.pair.sites:
            assert [kind for kind, _ in site.store.kept if kind in ("agent", "monitor")] == []
            assert site.open() == []
            check(site)


# -------------------------------------------------------------------------------------------------- hostile input

NUMBER = re.compile(r"[0-9*#+]{1,40}|[^@\s]{1,40}@[A-Za-z0-9_.-]{1,40}")
DEVICE = re.compile(r"PJSIP/[A-Za-z0-9_.+-]{1,80}|SIP/[0-9]+/(caller|callee)")


def harmless(site: Site) -> None:
    """What the rules have seen of a peer has the one form that is harmless, and all of it could be saved."""
    things: list[Offer | Request] = [*site.store.offers.values(), *site.store.requests.values()]
    for thing in things:
        for number in (thing.caller, thing.callee):
            assert NUMBER.fullmatch(number) and number.isprintable(), repr(number)
        assert thing.agent or "@" not in thing.caller
        assert "@" not in thing.callee, "whom we dial is a number"
        for device in (*thing.caller_devices, *thing.callee_devices):
            assert DEVICE.fullmatch(device), device
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,79}", thing.caller_context)
    for request in site.agent.rung:
        assert re.fullmatch(r"[0-9*#+]{1,40}", request.caller)
        assert re.fullmatch(r"[0-9]{15}", request.recall_id)
    assert not [line for line in site.logged if "could not be saved" in line or "fault of fastagi" in line]
    assert "not saved" not in site.events
    for entry in site.store.log:
        assert entry.sentence.isprintable(), entry.sentence


NO_UTF_8 = "\udcff\udcfe"
EVIL = [
    NO_UTF_8,
    "x" * 2000,
    "a\u2028b",
    "\u202e",
    "%0d%0aX:y",
    "%00",
    "1000'",
    "a;b=c",
    "..",
    "sip:",
    "$(x)",
    "ä",
    "a b",
]


@pytest.mark.parametrize("evil", EVIL)
def test_a_caller_with_an_evil_name(peer: Peer, evil: str) -> None:
    from_ = f"sip:{evil}@192.0.2.1"
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1", from_=from_)
    peer.subscribe(monitor or "sip:2000@192.0.2.2", from_=from_)
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    harmless(peer.site)


@pytest.mark.parametrize(
    "evil",
    [
        *EVIL,
    ],
)
def test_a_cc_call_with_an_evil_call_id(peer: Peer, evil: str) -> None:
    """A Call-ID is kept with its request: what cannot be saved must not hold up everybody else for ever."""
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    invite = peer.calls("2000", evil, uri=call_uri(peer))
    peer.site.wants("1001", "2001")
    assert [e for e in peer.site.told() if e.endswith("at place 1")], "others are served"
    peer.gets(invite, 200)
    peer.site.wait(1)
    assert only_of(peer, "1000@a").state is State.COMPLETED
    harmless(peer.site)


def only_of(peer: Peer, caller: str) -> Request:
    return [r for r in peer.site.store.requests.values() if r.caller == caller][-1]


@pytest.mark.parametrize(
    "evil",
    [
        *EVIL,
    ],
)
def test_a_subscription_ended_for_an_evil_reason(peer: Peer, evil: str) -> None:
    subscribe = accepted(peer)
    peer.notify(subscribe, "", f'terminated;reason="{evil}"', seq=2)
    peer.site.wait(1)
    assert only(peer).state is State.ENDED
    harmless(peer.site)


@pytest.mark.parametrize("evil", EVIL)
def test_evil_uris_of_another_pbx(peer: Peer, evil: str) -> None:
    """Its monitor URI and its cc-URI are sent back to it, and to nobody else; they are never dialled."""
    peer.called(offered(f"sip:{evil}@192.0.2.1"))
    answers = peer.site.asked("1000")
    if answers:  # that one offers nothing
        harmless(peer.site)
        return
    [subscribe] = peer.got()
    peer.reply(subscribe)
    peer.notify(subscribe, state("ready", f"sip:{evil}@192.0.2.1"))
    recall = peer.site.recall()
    peer.site.plan(recall)
    target = peer.site.target(recall)
    assert isinstance(target, Target)
    assert (target.callee, target.endpoint, target.device) == ("2000", "to-a", "PJSIP/1000")
    invite = peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "cc1")
    assert sip_parse(invite.to_bytes()).to_bytes() == invite.to_bytes()
    harmless(peer.site)


@pytest.mark.parametrize("evil", EVIL[:-1])
def test_evil_contacts_and_tags(peer: Peer, evil: str) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    request = peer.request("SUBSCRIBE", monitor, ("Event", "call-completion"), call_id="s1")
    answer = peer.send(request.with_headers(("Contact", f"<sip:{evil}@192.0.2.1>")))
    assert answer is not None
    for notify in peer.got():
        assert sip_parse(notify.to_bytes())
        peer.reply(notify)
    harmless(peer.site)


def test_bytes_at_random(peer: Peer) -> None:
    """Each message of a conversation with a few bytes changed, many times: nothing breaks, nothing harmful is kept."""
    dice = Random(6910)
    subscribe = accepted(peer)
    monitor, tag = subscribed(peer, "2001", "c2")
    notify = peer.site.table.last("NOTIFY queued")
    samples = [
        peer.request("SUBSCRIBE", monitor, ("Event", "call-completion"), ("Expires", "60")),
        peer.request("SUBSCRIBE", "sip:2001@192.0.2.2", ("Event", "call-completion")),
        peer.request("PUBLISH", monitor, ("Event", "presence")).with_body(
            closed().encode(), "application/pidf+xml"
        ),
        peer.request("INVITE", f"{monitor};m=BS", call_id="i1"),
        peer.request("INVITE", "sip:2001@192.0.2.2;m=BS", call_id="i2"),
        peer.request("CANCEL", monitor, call_id="i1"),
        peer.request(
            "NOTIFY",
            "sip:cc@192.0.2.2",
            ("Event", "call-completion"),
            ("Subscription-State", "active;expires=9"),
            call_id=subscribe.call_id,
            to_tag=subscribe.from_.tag,
            tag="pt",
            seq="2",
        ).with_body(state("ready", CC_URI).encode(), "application/call-completion"),
        peer.request("INVITE", "sip:2001@192.0.2.2", call_id="i3").response(
            486, headers=(offered(),), tag="x"
        ),
        notify.response(200),
        subscribe.response(200, tag="pt"),
    ]
    for _ in range(1500):
        data = bytearray(dice.choice(samples).to_bytes())
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.choice([dice.randrange(256), *b' ;<>@=,"%\xff'])
        try:
            message = sip_parse(bytes(data))
            method = message.cseq[1]
        except Malformed:
            continue
        side = dice.choice(list(Side))
        try:
            if isinstance(message, Response):
                if method == "INVITE":
                    message.appended(*peer.site.cc.response_passes("a", side, message)).to_bytes()
                else:
                    peer.site.elements["a"].receive(bytes(data))
            elif method in ("SUBSCRIBE", "NOTIFY", "PUBLISH") and message.method == method:
                if peer.site.cc.takes("a", message):
                    peer.site.elements["a"].receive(bytes(data))
            else:
                verdict = peer.site.cc.request_passes("a", side, message)
                assert verdict is None or isinstance(verdict, Response) or re.fullmatch(r"[^\s<>]+", verdict)
        except Malformed:
            pass  # the element passes it on as it came
        for request in peer.got():
            if dice.random() < 0.9:
                peer.reply(request)
        if dice.random() < 0.05:
            peer.site.set("2001", dice.choice([IDLE, IN_USE]))
        if dice.random() < 0.02:
            peer.site.wait(dice.choice([1, 10, 40]))
        harmless(peer.site)
        peer.site.told()
