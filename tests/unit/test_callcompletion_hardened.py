"""What call completion over a trunk bears: overtaking, faults of its own, peers that flap, cheat or shout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fastagi.completion.model import Offer, Request, Service, State
from fastagi.completion.ports import Changes
from fastagi.completion.service import Target
from fastagi.sip.callcompletion.agents import ASKED_AT_MOST, MAX_ROUTES, Agents
from fastagi.sip.callcompletion.monitors import Monitors
from fastagi.sip.message import Request as SipRequest
from fastagi.sip.message import Response
from fastagi.sip.trunk import Side
from tests.unit.rules import IDLE, IN_USE
from tests.unit.test_callcompletion import (
    CC_URI,
    accepted,
    both_queued,
    call_uri,
    closed,
    nothing_is_left,
    offered,
    only,
    ready,
    state,
    subscribed,
)
from tests.unit.test_sip_element import World, answer_of, our_request
from tests.unit.test_store import DICE as STORE_DICE
from tests.unit.test_store import Shop, entry, some_offer, some_request
from tests.unit.trunks import Pair, Peer, Site, alone, check, in_words, monitor_of, trunk

NO_UTF_8 = "a\udcff\udcfe"
FOR_EVER = ("Retry-After", "4294967295")


# ----------------------------------------------------------------------------------------------- words of the tests


def kept_kinds(site: Site) -> list[str]:
    return [kind for kind, _ in site.store.kept if kind in ("agent", "monitor")]


def faults(site: Site) -> list[str]:
    """The faults in the log, which are not looked for again at the end."""
    found = [line for line in site.logged if "a fault of fastagi itself" in line]
    site.logged[:] = [line for line in site.logged if "fault of fastagi" not in line]
    return found


def answers_to(peer: Peer, request: SipRequest) -> list[int]:
    """The statuses that went out to it, copies included."""
    sent = [p.message for p in peer.site.table.packets]
    return [m.status for m in sent if isinstance(m, Response) and m.via.branch == request.via.branch]


def gave_up(peer: Peer) -> SipRequest:
    """He has hung up while it rang: the 487 has passed, and his SUBSCRIBE is about to come."""
    peer.site.set("2000", IN_USE)
    invite = peer.calls("2000", "c1")
    monitor = monitor_of(peer.gets(invite, 180))
    peer.gets(invite, 487)
    more = (("Event", "call-completion"), ("Expires", "3600"))
    return peer.request("SUBSCRIBE", monitor, *more, call_id="s1", tag="x")


def dialplan_notes(peer: Peer, callee: str = "2000", call_id: str = "c1") -> None:
    """The note of a call whose caller gave up, told when all is over."""
    device = f"PJSIP/{callee}"
    peer.site.records("to-a", callee, "CANCEL", 0, call_in=call_id, devices=(device,))  # type: ignore[arg-type]


def calling(peer: Peer) -> tuple[str, SipRequest]:
    """The CC call of one of ours is out: its recall, and its INVITE as the peer gets it."""
    recall = ready(peer, accepted(peer))
    peer.site.plan(recall)
    assert isinstance(peer.site.target(recall), Target)
    return recall, peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "cc1")


def in_cc_call(peer: Peer) -> SipRequest:
    """A caller beyond has had his turn: his CC call, as our Asterisk gets it."""
    subscribed(peer)
    peer.said()
    peer.site.set("2000", IDLE)
    peer.said()
    invite = peer.calls("2000", "cc1", uri=call_uri(peer))
    assert isinstance(invite, SipRequest) and only(peer).state is State.CALLING
    return invite


# ----------------------------------------------------------------------- a SUBSCRIBE that overtakes the dialplan


@pytest.mark.parametrize("after", [0.1, 1.0, 2.7])
def test_a_subscribe_that_overtakes_the_note_is_held_and_accepted(peer: Peer, after: float) -> None:
    request = gave_up(peer)
    assert peer.send(request) is None, "neither accepted nor refused yet"
    peer.site.wait(after)
    assert (answers_to(peer, request), peer.site.open()) == ([], [])
    dialplan_notes(peer)
    peer.site.wait(0.25)
    assert answers_to(peer, request) == [200]
    assert peer.said() == ["NOTIFY queued"]
    peer.site.wait(30)
    assert answers_to(peer, request) == [200], "answered once"
    assert [r.service for r in peer.site.open()] == [Service.CCNR]


def test_one_that_is_held_may_come_again(peer: Peer) -> None:
    """Its retransmissions are one SUBSCRIBE: one request, one dialog, and the same answer to each copy."""
    request = gave_up(peer)
    for _ in range(3):
        assert peer.send(request) is None
        peer.site.wait(0.5)
    dialplan_notes(peer)
    peer.site.wait(0.3)
    peer.send(request)
    assert answers_to(peer, request) == [200, 200]
    assert len(peer.site.open()) == 1 and peer.said() == ["NOTIFY queued"]


def test_one_that_is_held_in_vain_is_refused_in_time(peer: Peer) -> None:
    request = gave_up(peer)
    assert peer.send(request) is None
    peer.site.wait(2.7)
    assert answers_to(peer, request) == []
    peer.site.wait(0.6)
    assert answers_to(peer, request) == [403]
    assert [line for line in peer.site.logged if "refused with 403" in line] != []
    dialplan_notes(peer)
    peer.site.wait(60)
    assert (answers_to(peer, request), peer.site.open(), peer.got()) == ([403], [], [])


def test_long_after_the_487_it_is_refused_at_once(peer: Peer) -> None:
    request = gave_up(peer)
    peer.site.wait(3.1)
    refused = peer.send(request)
    assert refused is not None and refused.status == 403


def test_while_it_rings_it_is_told_at_once_to_come_later(peer: Peer) -> None:
    monitor = monitor_of(peer.gets(peer.calls("2000", "c1"), 180))
    request = peer.request("SUBSCRIBE", monitor, ("Event", "call-completion"))
    answer = peer.send(request)
    assert answer is not None and (answer.status, answer.get("retry-after")) == (480, "2")
    dialplan_notes(peer)
    peer.site.wait(10)
    assert answers_to(peer, request) == [480], "answered once"


def test_one_that_is_held_over_a_restart_is_answered_when_it_comes_again(peer: Peer) -> None:
    request = gave_up(peer)
    assert peer.send(request) is None
    peer.site.restart()
    dialplan_notes(peer)
    answer = peer.send(request)
    assert answer is not None and answer.status == 200
    peer.site.wait(5)
    assert answers_to(peer, request) == [200] and len(peer.site.open()) == 1


def test_one_that_is_held_is_answered_once_whatever_breaks_beside_it() -> None:
    """The turn in which it came is carried out again without the event that broke."""
    peer = Peer(alone())
    request = gave_up(peer)

    def breaks(now: float) -> object:
        raise ZeroDivisionError

    peer.site.store.held = True
    peer.site.fails("1001", "2001")
    assert peer.send(request) is None
    peer.site.service.event(breaks)
    peer.site.store.held = False
    peer.site.store.release()
    assert len(faults(peer.site)) == 1
    dialplan_notes(peer)
    peer.site.wait(1)
    assert answers_to(peer, request) == [200]
    assert len(peer.site.open()) == 1
    check(peer.site)


def test_one_that_is_held_while_nothing_can_be_saved_is_answered_once(peer: Peer) -> None:
    request = gave_up(peer)
    peer.site.store.held = True
    peer.site.fails("1001", "2001")
    assert peer.send(request) is None
    peer.site.fails("1001", "2002")  # in the same turn, which has something to save
    peer.site.store.held = False
    peer.site.store.release()
    dialplan_notes(peer)
    peer.site.wait(1)
    assert len(answers_to(peer, request)) == 1


def test_one_that_is_held_in_a_turn_that_cannot_be_saved_is_not_accepted_after_its_500() -> None:
    """Who was told 500 holds no dialog: there is nobody to tell anything."""
    peer = Peer(alone())
    request = gave_up(peer)
    peer.site.store.held = True
    peer.site.fails("1001", "2001")
    assert peer.send(request) is None
    peer.site.fails("1001", "2002")
    peer.site.store.release()
    peer.site.store.error = OSError("disk full")
    peer.site.store.held = False
    peer.site.store.release()
    peer.site.store.error = None
    dialplan_notes(peer)
    peer.site.wait(1)
    first, *more = answers_to(peer, request)
    assert more == []
    assert len(peer.site.open()) == (first == 200)
    check(peer.site)


# ------------------------------------------------------------------------------------------------ faults of our own


def breaks_for(patch: pytest.MonkeyPatch, kind: type[Agents] | type[Monitors], request: int) -> None:
    """Whoever follows what is kept of that request stumbles over it."""
    follow: Callable[..., Any] = kind._follow

    def stumbles(self: object, value: Any, now: float) -> Any:
        if value.request == request:
            raise IndexError("nobody has thought of that")
        return follow(self, value, now)

    patch.setattr(kind, "_follow", stumbles)


def two_wait_here(peer: Peer) -> tuple[int, int]:
    """Two beyond wait for two of ours; their requests."""
    subscribed(peer, "2000", "c1")
    from_ = "sip:1001@192.0.2.1"
    peer.site.set("2001", IN_USE)
    assert peer.subscribe(peer.meets("2001", "c2", from_=from_), from_=from_).status == 200
    peer.said()
    one, two = (r.id for r in peer.site.open())
    return one, two


@pytest.mark.parametrize("restarted", [False, True])
def test_a_caller_beyond_over_whom_we_stumble_is_the_only_one_to_suffer(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    bad, good = two_wait_here(peer)
    breaks_for(monkeypatch, Agents, bad)
    if restarted:
        peer.site.restart()
    peer.site.set("2000", IDLE)
    peer.site.wait(60)
    [fault] = faults(peer.site)
    assert f"request {bad}" in fault and "nobody has thought of that" in fault
    assert [r.id for r in peer.site.open()] == [good]
    assert ("agent", str(bad)) not in peer.site.store.kept
    peer.said()
    peer.site.set("2001", IDLE)
    assert peer.said() == ["NOTIFY ready"]
    peer.site.wants("1005", "2005")
    assert faults(peer.site) == [], "the service works on"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_callee_beyond_over_whom_we_stumble_is_the_only_one_to_suffer(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    accepted(peer, call_id="o1")
    bad = only(peer).id
    other = accepted(peer, offered("sip:m2@192.0.2.1:5060"), caller="1001", callee="2001", call_id="o2")
    breaks_for(monkeypatch, Monitors, bad)
    if restarted:
        peer.site.restart()
    peer.site.set("1000", IDLE)
    peer.site.wants("1005", "2005")
    peer.site.wait(60)
    [fault] = faults(peer.site)
    assert f"request {bad}" in fault and "nobody has thought of that" in fault
    assert [r.caller for r in peer.site.open() if r.monitor] == ["1001"]
    assert ("monitor", str(bad)) not in peer.site.store.kept
    assert peer.site.store.requests[bad].reason == "ENDED_THERE"
    ready(peer, other)
    assert [r.caller for r in peer.site.agent.rung if r.monitor] == ["1001"]
    assert faults(peer.site) == []


def test_stumbled_over_while_a_caller_beyond_has_his_turn_the_next_is_served(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribed(peer)
    peer.site.wants("1001", "2000")
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"]
    breaks_for(monkeypatch, Agents, peer.site.open()[0].id)
    peer.site.wait(29)
    assert len(faults(peer.site)) == 1
    assert [r.caller for r in peer.site.agent.rung] == ["1001"]


def test_stumbled_over_during_the_cc_call_he_does_not_wait_for_nobody(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody watches the callee any more: when the call fails, his request is over."""
    recall, _ = calling(peer)
    bad = only(peer).id
    breaks_for(monkeypatch, Monitors, bad)
    peer.site.wants("1005", "2005")
    assert len(faults(peer.site)) == 1
    peer.site.call_over(recall, "BUSY", 17)
    peer.site.wait(60)
    assert peer.site.store.requests[bad].state is State.ENDED


# ---------------------------------------------------------------------------------------------------- renewals


def failed_with_two_forks(peer: Peer, retention: bool) -> tuple[str, list[SipRequest]]:
    """A CC call has failed to a peer of whose monitors we hold two; what we have sent then."""
    one, two = both_queued(peer)
    for fork, tag in ((one, "t1"), (two, "t2")):
        said = "ready" if fork is two else "queued"
        assert (
            peer.notify(fork, state(said, f"sip:q{tag}@192.0.2.1", retention), tag=tag, seq=2).status == 200
        )
    recall = peer.site.recall()
    peer.site.plan(recall)
    peer.site.target(recall)
    invite = peer.out("INVITE", f"sip:cc-{recall}@127.0.0.1:5070", "cc1")
    peer.site.passes(Side.PEER, invite.response(486, headers=(offered("sip:m3@192.0.2.1:5060"),), tag="et"))
    peer.got()
    peer.site.call_over(recall, "BUSY", 17)
    return recall, peer.got()


def left_and_new(sent: list[SipRequest]) -> tuple[list[SipRequest], SipRequest]:
    """The two subscriptions that are being left, and the one that is made anew."""
    [new] = [r for r in sent if r.expires]
    return [r for r in sent if not r.expires], new


def deactivated(peer: Peer, subscribe: SipRequest, wait: float) -> SipRequest:
    """It is accepted and ended at once; the one that follows."""
    peer.reply(subscribe)
    assert peer.notify(subscribe, "", "terminated;reason=deactivated").status == 200
    peer.site.wait(wait)
    again = [r for r in peer.got() if r.method == "SUBSCRIBE" and r.expires]
    assert len({r.call_id for r in again}) == 1 and again[0].call_id != subscribe.call_id
    return again[-1]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("answer", [None, 200, 481])
def test_deactivated_after_a_failed_call_of_which_the_peer_keeps_nothing(
    peer: Peer, answer: int | None, restarted: bool
) -> None:
    """Two subscriptions are being left, and the new one is ended and made anew: other forks, and fewer."""
    _, sent = failed_with_two_forks(peer, retention=False)
    left, new = left_and_new(sent)
    for request, tag in zip(left, ("t1", "t2"), strict=True):
        if answer is not None:
            peer.reply(request, answer, tag=tag)
    for wait in (1, 31, 61):
        new = deactivated(peer, new, wait)
        if restarted:
            peer.site.restart()
        peer.reply(new)
        peer.notify(new, state("queued", CC_URI, retention=False))
        peer.site.wait(40)
        peer.got()
        assert (only(peer).state, only(peer).recalls) == (State.QUEUED, 1)
    ready(peer, new)
    assert len(peer.site.agent.rung) == 2


@pytest.mark.parametrize("how", ["silence", "its last NOTIFY"])
def test_what_is_being_left_does_not_end_what_is_to_be_made_anew(peer: Peer, how: str) -> None:
    """The pause before a renewal is on, when the peer's word to what was left comes, or does not come in time."""
    _, sent = failed_with_two_forks(peer, retention=False)
    left, new = left_and_new(sent)
    new = deactivated(peer, new, 1)
    peer.site.wait(10)
    peer.reply(new)
    peer.notify(new, "", "terminated;reason=deactivated")
    for fork, tag in zip(left, ("t1", "t2"), strict=True):
        if how == "its last NOTIFY":
            peer.notify(fork, "", "terminated;reason=timeout", tag=tag, seq=3)
    peer.site.wait(31.5)
    assert only(peer).state is State.QUEUED
    [again] = {r.call_id: r for r in peer.got() if r.method == "SUBSCRIBE" and r.expires}.values()
    peer.reply(again)
    ready(peer, again)


@pytest.mark.parametrize("restarted", [False, True])
def test_deactivated_after_a_failed_call_of_which_the_peer_keeps_the_place(
    peer: Peer, restarted: bool
) -> None:
    """The second fork was chosen; both are ended, and both are subscribed to anew."""
    failed_with_two_forks(peer, retention=True)
    forks = [m for m in peer.site.table.sent if isinstance(m, SipRequest) and m.method == "SUBSCRIBE"]
    for fork, tag in zip(forks, ("t1", "t2"), strict=True):
        peer.notify(fork, "", "terminated;reason=deactivated", tag=tag, seq=3)
    if restarted:
        peer.site.restart()
    peer.site.wait(1)
    one, two = (r for r in peer.got() if r.method == "SUBSCRIBE")
    peer.reply(one, 404)
    peer.reply(two)
    peer.notify(two, state("queued", CC_URI))
    assert only(peer).state is State.QUEUED
    ready(peer, two)
    assert len(peer.site.agent.rung) == 2
    assert faults(peer.site) == []


# --------------------------------------------------------------------------------------------------- flapping


def goes_by(peer: Peer, seconds: float) -> None:
    """Asterisk takes up each recall within a tenth of a second."""
    for _ in range(round(seconds * 10)):
        for request in peer.site.open():
            if request.state is State.READY and not request.taken:
                peer.site.plan(request.recall_id)
        peer.site.wait(0.1)


@pytest.mark.parametrize("period", [0.2, 1.0, 7.0])
def test_a_peer_that_flaps_rings_nobody_more_often_than_is_allowed(peer: Peer, period: float) -> None:
    """Each ready rings him and each queued stops it: cc_max_recalls of those are enough."""
    subscribe, seq = accepted(peer), count(2)
    for _ in range(int(150 / period)):
        for word in ("ready", "queued"):
            peer.notify(subscribe, state(word, CC_URI), seq=next(seq))
            goes_by(peer, period / 2)
    assert len(peer.site.agent.rung) == 3
    assert (only(peer).state, only(peer).reason) == (State.ENDED, "TOO_MANY_RECALLS")


@pytest.mark.parametrize("period", [0.2, 1.0, 7.0])
def test_a_peer_that_flaps_before_anybody_rings_makes_no_storm(peer: Peer, period: float) -> None:
    """A recall is a call file: at most one in half a minute, though none of them is taken up in time."""
    subscribe, seq = accepted(peer), count(2)
    for _ in range(int(60 / period)):
        for word in ("ready", "queued"):
            peer.notify(subscribe, state(word, CC_URI), seq=next(seq))
            peer.site.wait(period / 2)
    assert 1 <= len(peer.site.agent.rung) <= 3
    assert only(peer).state is State.QUEUED, "that is not his fault"


def test_two_monitors_that_flap_in_turn_make_no_storm(peer: Peer) -> None:
    forks, seq = both_queued(peer), count(2)
    for n in range(240):
        for word in ("ready", "queued"):
            peer.notify(forks[n % 2], state(word, CC_URI), tag=f"t{n % 2 + 1}", seq=next(seq))
            peer.site.wait(0.125)
    assert 1 <= len(peer.site.agent.rung) <= 3


def test_a_callee_who_flaps_makes_no_storm_on_either_side(pair: Pair) -> None:
    """On and off the hook, for a minute: the caller's phone rings a few times, the line is quiet."""
    pair.camps()
    for _ in range(60):
        for presence in (IDLE, IN_USE):
            pair.set(pair.b, "2000", presence)
            pair.wait(0.5)
    assert 1 <= len(pair.a.agent.rung) <= 6
    assert len(pair.wire()) <= 40
    pair.a.cancels("1000")
    pair.flow()
    nothing_is_left(pair)


# --------------------------------------------------------------------------------- who cannot be told holds up nobody


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("refreshes", [False, True])
def test_a_caller_beyond_who_wants_to_be_told_in_a_hundred_years(
    peer: Peer, refreshes: bool, restarted: bool
) -> None:
    """The caller of ours behind him is served in time."""
    _, tag = subscribed(peer, call_id="s1")
    [notify] = peer.got()
    peer.reply(notify, 503, FOR_EVER)
    peer.site.wants("1001", "2000")
    if restarted:
        peer.site.restart()
    seq = count(2)
    for presence in (IN_USE, IDLE):
        peer.site.set("2000", presence)
        for _ in range(20):
            peer.site.wait(0.6)
            if refreshes:
                refresh(peer, tag, next(seq))
    assert [r.caller for r in peer.site.agent.rung] == ["1001"]
    assert [in_words(r) for r in peer.got()] == [], "he has asked for silence"


def refresh(peer: Peer, tag: str, seq: int) -> Response:
    return peer.subscribe("sip:cc@192.0.2.2:5070", call_id="s1", to_tag=tag, seq=str(seq))


def test_a_caller_beyond_who_refreshes_without_end(peer: Peer) -> None:
    """Each refresh is answered with a NOTIFY, of which there may be three in ten seconds: none is left for ready."""
    _, tag = subscribed(peer, call_id="s1")
    peer.said()
    peer.site.wants("1001", "2000")
    for seq in range(2, 42):
        peer.site.wait(0.6)
        assert refresh(peer, tag, seq).status == 200
        peer.said()
        if seq == 20:
            peer.site.set("2000", IDLE)
    assert [r.caller for r in peer.site.agent.rung] == ["1001"]


# ------------------------------------------------------------------------------------------------ who asks too much


def test_one_call_is_asked_for_so_often_and_no_more(peer: Peer) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    for n in range(ASKED_AT_MOST):
        answer = peer.subscribe(monitor, call_id=f"s{n}", tag=f"x{n}")
        assert answer.status == 200
        left = peer.subscribe(
            "sip:cc@192.0.2.2:5070", expires=0, call_id=f"s{n}", tag=f"x{n}", to_tag=answer.to.tag, seq="2"
        )
        assert left.status == 200
        peer.said()
        peer.site.wait(0.1)
    assert peer.subscribe(monitor, call_id="one more").status == 403
    assert (peer.site.open(), peer.said()) == ([], [])
    assert len(peer.site.store.requests) == ASKED_AT_MOST
    other = peer.meets("2000", "c2")
    assert peer.subscribe(other, call_id="another call").status == 200
    peer.said()
    peer.site.service.cancel_id(max(peer.site.store.requests), peer.site.said)
    peer.said()
    assert kept_kinds(peer.site) == []
    peer.site.wait(2 * 3600)
    assert peer.site.store.offers == {}
    assert {kind for kind, _ in peer.site.store.kept} <= {"secret", "habits"}


@pytest.mark.parametrize("name", ["Record-Route", "Contact"])
def test_what_is_too_long_to_be_kept_is_refused(peer: Peer, name: str) -> None:
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "c1")
    wordy = "x" * (MAX_ROUTES // 2)
    routes = [(name, f"<sip:{wordy}{n}@192.0.2.1;lr>") for n in range(1 if name == "Contact" else 2)]
    if name == "Contact":
        routes = [(name, f"<sip:{wordy}{wordy}@192.0.2.1>")]
    request = peer.request("SUBSCRIBE", monitor, ("Event", "call-completion"))
    answer = peer.send(request.with_headers(*routes))
    assert answer is not None and answer.status == 513
    assert (peer.site.open(), peer.got(), kept_kinds(peer.site)) == ([], [], [])
    assert peer.subscribe(monitor).status == 200, "in fewer words he may"
    peer.said()


# ----------------------------------------------------------------------- somebody else's Call-ID in a dialplan's note


@pytest.mark.parametrize("who", ["a phone", "another trunk"])
@pytest.mark.parametrize("dialstatus", ["BUSY", "CONGESTION", "CANCEL"])
def test_a_note_with_the_call_id_of_a_cc_call_ends_it_only_if_it_comes_that_way(
    who: str, dialstatus: str
) -> None:
    peer = behind_two_trunks()
    invite = in_cc_call(peer)
    foreign_note(peer, who, dialstatus)
    assert [r.state for r in peer.site.store.requests.values()] == [State.CALLING]
    peer.gets(invite, 200)
    assert peer.site.states() == ["COMPLETED COMPLETED"]
    check(peer.site)


@pytest.mark.parametrize("who", ["a phone", "another trunk"])
def test_a_note_with_the_call_id_of_a_cc_call_puts_no_offer_into_it(who: str) -> None:
    peer = behind_two_trunks()
    invite = in_cc_call(peer)
    foreign_note(peer, who, "BUSY")
    assert monitor_of(peer.gets(invite, 486)) == ""
    assert peer.site.open()[0].state is State.QUEUED


@pytest.mark.parametrize("who", ["a phone", "another trunk"])
def test_a_note_with_the_call_id_of_a_call_on_offer_does_not_take_its_offer_away(who: str) -> None:
    peer = behind_two_trunks()
    peer.site.set("2000", IN_USE)
    monitor = peer.meets("2000", "cc1")
    foreign_note(peer, who, "BUSY")
    assert peer.subscribe(monitor).status == 200


@pytest.mark.parametrize("dialstatus", ["BUSY", "CONGESTION", "CANCEL"])
def test_a_note_with_the_call_id_of_our_own_cc_call_does_not_end_that(peer: Peer, dialstatus: str) -> None:
    recall, _ = calling(peer)
    peer.site.records("1005", "2000", dialstatus, 17, through="PJSIP/to-a", call_out="cc1")
    assert only(peer).state is State.CALLING
    peer.site.call_over(recall, "ANSWER", 16)
    assert only(peer).state is State.COMPLETED


def behind_two_trunks() -> Peer:
    """The peer beyond trunk a, of a site that has a trunk c too."""
    site = alone()
    site.trunks["c"] = trunk("c", "192.0.2.2", "198.51.100.1")
    site.restart()
    return Peer(site, "a")


def foreign_note(peer: Peer, who: str, dialstatus: str) -> None:
    """The dialplan tells of a call of a phone, or over trunk c, with the Call-ID of one over trunk a."""
    caller = "1005" if who == "a phone" else "to-c"
    if caller == "to-c":
        Peer(peer.site, "c", "198.51.100.1").calls("2001", "cc1")
    device: Any = "PJSIP/2001"
    peer.site.records(caller, "2001", dialstatus, 17, call_in="cc1", devices=(device,))


# ------------------------------------------------------------------------------------------------ forks of a CC call


def test_a_branch_of_the_cc_call_that_is_merged_ends_nothing(peer: Peer) -> None:
    """The INVITE came twice, over two ways: 482 to the second, and the first goes on (RFC 3261, 8.2.2.2)."""
    first = in_cc_call(peer)
    second = peer.calls("2000", "cc1", uri=call_uri(peer))
    peer.gets(first, 180)
    peer.gets(second, 482)
    assert only(peer).state is State.CALLING
    peer.site.wait(5)
    peer.gets(first, 200)
    assert peer.site.states() == ["COMPLETED COMPLETED"]


def test_after_a_merged_branch_the_other_may_still_fail(peer: Peer) -> None:
    first = in_cc_call(peer)
    peer.gets(peer.calls("2000", "cc1", uri=call_uri(peer)), 482)
    peer.site.set("2000", IN_USE)
    peer.gets(first, 486, ("Reason", "Q.850;cause=17"))
    assert (only(peer).state, only(peer).recalls) == (State.QUEUED, 1)


# ------------------------------------------------------------------------------------- answered in the last moment


@pytest.mark.parametrize(
    ("passed", "reached"),
    [((180, 200), "COMPLETED COMPLETED"), ((180, 487), "QUEUED"), ((180,), "QUEUED"), ((), "QUEUED")],
)
def test_a_cc_call_given_up_in_the_moment_of_its_answer_is_a_call(
    peer: Peer, passed: tuple[int, ...], reached: str
) -> None:
    """Asterisk tells CANCEL of whom it has cancelled; a 2xx that passed says that they have talked."""
    recall, invite = calling(peer)
    for status in passed:
        peer.site.passes(Side.PEER, invite.response(status, tag="et"))
    peer.site.call_over(recall, "CANCEL", 0)
    assert peer.site.states() == [reached]


def test_the_answer_of_another_call_does_not_count(peer: Peer) -> None:
    recall, _ = calling(peer)
    other = peer.out("INVITE", "sip:2000@127.0.0.1:5070", "x1", caller="1001")
    peer.site.passes(Side.PEER, other.response(200, tag="et"))
    peer.site.call_over(recall, "CANCEL", 0)
    assert peer.site.states() == ["QUEUED"]


@pytest.mark.parametrize("dialstatus", ["BUSY", "CONGESTION", "NOANSWER"])
def test_what_else_asterisk_tells_counts_as_it_says(peer: Peer, dialstatus: str) -> None:
    """Only a CANCEL may cross the answer."""
    recall, invite = calling(peer)
    peer.site.passes(Side.PEER, invite.response(200, tag="et"))
    peer.site.call_over(recall, dialstatus, 0)
    assert only(peer).state is not State.COMPLETED


# ------------------------------------------------------------------------------------- Contacts of a careless peer


@pytest.mark.parametrize(
    ("target", "leaves_as"),
    [
        ("sip:CC_856;76 @;transport=UDP", "sip:CC_856;76@192.0.2.10:5060;transport=UDP"),
        ("sip:CC_856;76 @:5062", "sip:CC_856;76@192.0.2.10:5062"),
        ("sip: 4003 @192.0.2.10", "sip:4003@192.0.2.10"),
        ("sip:4003@192.0.2.10", "sip:4003@192.0.2.10"),
    ],
)
@pytest.mark.parametrize("method", ["NOTIFY", "SUBSCRIBE", "PUBLISH"])
def test_a_dialog_target_nobody_could_send_to_leaves_as_a_request_uri(
    target: str, leaves_as: str, method: str
) -> None:
    """And its answer is the answer to what was asked."""
    world = World()
    request = our_request(method, uri=target)
    world.element.ask(request)
    [sent] = world.take()
    assert (sent.message.uri, sent.to) == (leaves_as, world.trunk.peer[0])
    assert re.fullmatch(rb"[A-Z]+ [^ \t]+ SIP/2\.0", sent.data.partition(b"\r\n")[0])
    world.came(answer_of(sent.data))
    [(found, response)] = world.completion.of("answered")
    assert found is request and response.status == 200
    world.clock.run(100)
    assert (world.sent, len(world.completion.events)) == ([], 1), "nothing is sent again"


# ------------------------------------------------------------------------------------------- the last word is queued


@pytest.mark.parametrize("taken_up", [False, True])
def test_unsubscribed_in_his_turn_the_last_notify_says_queued(peer: Peer, taken_up: bool) -> None:
    """There are PBXs that heed the body and nothing else: ready would have them call."""
    _, tag = subscribed(peer, call_id="s1")
    peer.said()
    peer.site.set("2000", IDLE)
    assert peer.said() == ["NOTIFY ready"] and only(peer).state is State.READY
    if taken_up:
        peer.calls("2000", "cc1", uri=call_uri(peer))
    answer = peer.subscribe("sip:cc@192.0.2.2:5070", expires=0, call_id="s1", to_tag=tag, seq="2")
    assert answer.status == 200
    [last] = peer.got()
    assert last.get("subscription-state") == "terminated;reason=timeout"
    assert last.body.startswith(b"cc-state: queued\r\n")
    peer.reply(last)


# --------------------------------------------------------------------------------------------- text that is no UTF-8


def texts_of(kind: type[Offer] | type[Request]) -> list[str]:
    words = some_offer(STORE_DICE, 1) if kind is Offer else some_request(STORE_DICE, 1)
    own = (Service, State)
    return [
        f.name
        for f in fields(kind)
        if isinstance(getattr(words, f.name), str) and not isinstance(getattr(words, f.name), own)
    ]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "fastagi.db")
    yield shop
    shop.store.close()


READABLE = r"a\udcff\udcfe"


@pytest.mark.parametrize("column", texts_of(Offer))
def test_an_offer_with_text_that_is_no_utf_8_is_saved(shop: Shop, column: str) -> None:
    bad: dict[str, Any] = {column: NO_UTF_8}
    offer, good = some_offer(STORE_DICE, 1), some_offer(STORE_DICE, 2)
    shop.good(offers=[replace(offer, **bad), good])
    readable: dict[str, Any] = {column: READABLE}
    assert shop.store.load()[0] == [replace(offer, **readable), good]


@pytest.mark.parametrize("column", texts_of(Request))
def test_a_request_with_text_that_is_no_utf_8_is_saved(shop: Shop, column: str) -> None:
    bad: dict[str, Any] = {column: NO_UTF_8}
    request, good = some_request(STORE_DICE, 1, State.QUEUED), some_request(STORE_DICE, 2, State.QUEUED)
    shop.good(requests={1: replace(request, **bad), 2: good}, log=[entry(1), entry(2)])
    readable: dict[str, Any] = {column: READABLE}
    assert shop.store.load()[1] == [replace(request, **readable), good]


@pytest.mark.parametrize("column", ["caller_devices", "callee_devices"])
def test_devices_with_text_that_is_no_utf_8_are_saved(shop: Shop, column: str) -> None:
    bad: dict[str, Any] = {column: (NO_UTF_8, "PJSIP/1000")}
    request = some_request(STORE_DICE, 1, State.QUEUED)
    assert shop.commit(Changes(requests={1: replace(request, **bad)}, log=[entry(1)])) is None
    readable: dict[str, Any] = {column: (READABLE, "PJSIP/1000")}
    assert shop.store.load()[1] == [replace(request, **readable)]


def test_a_sentence_with_text_that_is_no_utf_8_is_saved_with_the_rest(shop: Shop, tmp_path: Path) -> None:
    offer, request = some_offer(STORE_DICE, 1), some_request(STORE_DICE, 2, State.QUEUED)
    shop.good(offers=[offer], requests={2: request}, log=[entry(2, NO_UTF_8)])
    assert shop.store.load() == ([offer], [request], 2)
    assert shop.connection.execute("SELECT sentence FROM log").fetchall() == [(READABLE,)]


# ----------------------------------------------------------------------------------------- those who have no name


def camps_as(peer: Peer, from_: str, n: int, callee: str = "2000") -> str:
    """He calls, meets busy, and waits; his monitor URI."""
    monitor = peer.meets(callee, f"c{n}", from_=from_)
    assert peer.subscribe(monitor, from_=from_, call_id=f"s{n}", tag=f"x{n}").status == 200
    return monitor


NAMELESS = [
    "sip:anonymous@anonymous.invalid",
    "sip:Anonymous@192.0.2.1",
    "sip:192.0.2.1",
    "sip:unknown@192.0.2.1",
    "sip:restricted@192.0.2.1",
    "sip:unavailable@192.0.2.1",
]


@pytest.mark.parametrize("from_", NAMELESS)
def test_two_without_a_name_are_two(peer: Peer, from_: str) -> None:
    """Each waits, each is served in his turn, and each CC call is his own."""
    peer.site.set("2000", IN_USE)
    camps_as(peer, from_, 1)
    peer.said()
    camps_as(peer, from_, 2)
    assert peer.said() == ["NOTIFY queued"], "and no end for the first"
    assert peer.site.states() == ["QUEUED", "QUEUED"]
    for done in (1, 2):
        peer.site.set("2000", IDLE)
        assert "NOTIFY ready" in peer.said()
        invite = peer.calls("2000", f"cc{done}", from_=from_, uri=call_uri(peer))
        peer.site.set("2000", IN_USE)
        peer.gets(invite, 200)
        peer.said()
        peer.site.wait(15)
        assert peer.site.states().count("COMPLETED COMPLETED") == done


def test_one_with_a_name_is_one(peer: Peer) -> None:
    peer.site.set("2000", IN_USE)
    camps_as(peer, "sip:1000@192.0.2.1", 1)
    camps_as(peer, "sip:1000@192.0.2.1", 2)
    peer.said()
    assert peer.site.states() == ["ENDED CANCELLED", "QUEUED"]


def test_what_one_without_a_name_publishes_does_not_suspend_the_other(peer: Peer) -> None:
    peer.site.set("2000", IN_USE)
    first = camps_as(peer, NAMELESS[0], 1)
    camps_as(peer, NAMELESS[0], 2)
    peer.said()
    assert peer.publish(first, closed(), from_=NAMELESS[0]).status == 200
    peer.site.set("2000", IDLE)
    peer.site.wait(1)
    assert sorted(r.state for r in peer.site.open()) == [State.QUEUED, State.READY]
    assert [r.suspended for r in peer.site.open()] == [True, False]


def test_one_without_a_name_who_has_talked_takes_nobody_elses_offer(peer: Peer) -> None:
    """The call of the second is on offer still, when the first has what he wanted."""
    peer.site.set("2000", IN_USE)
    camps_as(peer, NAMELESS[0], 1)
    peer.said()
    second = peer.meets("2000", "c2", from_=NAMELESS[0])
    peer.site.set("2000", IDLE)
    peer.said()
    peer.gets(peer.calls("2000", "cc1", from_=NAMELESS[0], uri=call_uri(peer)), 200)
    peer.said()
    assert peer.site.states() == ["COMPLETED COMPLETED"]
    assert peer.subscribe(second, from_=NAMELESS[0]).status == 200
    peer.said()
