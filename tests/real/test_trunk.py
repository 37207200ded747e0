"""Two real Asterisks, each with fastagi, joined by one trunk: call completion across it, seen on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fastagi.completion.model import State
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call
from tests.real.bench import QUICK
from tests.real.trunkbench import TrunkSite, TwoPbx

BOTH_WAYS = pytest.mark.parametrize(
    ("caller", "callee", "other"), [("1000", "4000", "5000"), ("4000", "1000", "2000")], ids=["a-b", "b-a"]
)


@pytest.fixture(scope="module")
def running_pbxs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPbx]:
    folder: Path = tmp_path_factory.mktemp("two")
    with TwoPbx(folder, ensure_asterisk()).running() as pbxs:
        yield pbxs


@pytest.fixture
def two(running_pbxs: TwoPbx, request: pytest.FixtureRequest) -> Iterator[TwoPbx]:
    running_pbxs.fresh()
    yield running_pbxs
    if hasattr(request.node, "failed"):
        print(running_pbxs.evidence())
    running_pbxs.clear()


# Words of this file


def camped(two: TwoPbx, caller: str, callee: str, other: str) -> Call:
    """The callee talks to another, the caller meets busy and asks; answers the callee's call."""
    talk = two.talk(callee, other)
    two.meets_busy(caller, callee)
    assert two.asks(caller) == "SUCCESS/"
    two.phones[callee].answer = "ring"
    told(two, "queued")
    return talk


def told(two: TwoPbx, state: str, nth: int = 1, timeout: float = 5.0) -> None:
    """The nth NOTIFY that says so has passed."""
    two.wire.wait("NOTIFY", body=f"cc-state: {state}", nth=nth, timeout=timeout)


def site_of(two: TwoPbx, number: str) -> TrunkSite:
    site = two.pbx_of(number)
    assert isinstance(site, TrunkSite)
    return site


def over(two: TwoPbx) -> None:
    """Nothing is open on either side, and the last NOTIFY has passed."""
    two.wire.wait("NOTIFY", where=lambda m: m.get("Subscription-State").startswith("terminated"), timeout=15)
    for site in two.sites:
        two.until(partial(nothing_open, site), f"no open request at {site.name}")


def nothing_open(site: TrunkSite) -> bool:
    return not site.server.requests()


def no_calls(site: TrunkSite) -> bool:
    return not [name for name in site.asterisk.channels() if "PJSIP" in name]


def reasons(two: TwoPbx, number: str) -> list[str]:
    """How the requests on record at this phone's side ended, the latest first."""
    return [r.reason for r in site_of(two, number).server.history()]


# ------------------------------------------------------------------------------------------ the services


@BOTH_WAYS
def test_busy(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    talk = camped(two, caller, callee, other)
    offer = two.wire.wait("INVITE", status=486)
    assert "purpose=call-completion;m=BS" in offer.get("Call-Info")
    subscribe = two.wire.wait("SUBSCRIBE")
    assert subscribe.uri.endswith(";m=BS")
    assert subscribe.get("Request-Disposition") == "parallel"
    assert f"sip:{caller}@" in subscribe.get("From")
    assert f"sip:{callee}@" in subscribe.get("To")
    talk.hangup()
    call = two.connects(two.recalled(caller), callee)
    assert call.from_number == caller
    call.hangup()
    over(two)
    assert reasons(two, caller) == reasons(two, callee) == ["COMPLETED"]
    cc_call = two.wire.messages("INVITE")[-1]
    assert cc_call.uri.startswith("sip:ccc-") and cc_call.uri.endswith(";m=BS")
    for response in two.wire.messages(where=lambda m: m.cseq == cc_call.cseq and m.status > 100):
        assert not response.get("Call-Info")


@BOTH_WAYS
def test_no_answer(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    """Called back after the callee's next call; the 180 and the 487 carry the offer before any call has failed."""
    two.phones[callee].answer = "ring"
    call = two.phones[caller].dial(callee).wait_ringing()
    two.wire.wait("INVITE", status=180, where=lambda m: m.get("Call-Info").endswith(";m=NR"))
    call.hangup()
    gone = two.wire.wait("INVITE", status=487)
    assert gone.get("Call-Info").endswith(";m=NR")
    two.forget(callee)
    two.until(lambda: site_of(two, callee).offers(), "the callee's side has it on record")
    assert two.asks(caller) == "SUCCESS/"
    told(two, "queued")
    two.quiet(caller, 1)
    talk = two.talk(callee, other)
    site_of(two, callee).server.wait_log("uses his phone")
    talk.hangup()
    two.phones[callee].answer = "ring"
    two.connects(two.recalled(caller), callee).hangup()
    over(two)


@BOTH_WAYS
def test_not_registered(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    two.phones[callee].unregister()
    call = two.phones[caller].dial(callee)
    call.wait_ended()
    assert two.wire.wait(where=lambda m: m.status > 399).get("Call-Info").endswith(";m=NL")
    assert two.asks(caller) == "SUCCESS/"
    told(two, "queued")
    two.phones[callee].answer = "ring"
    two.phones[callee].register()
    two.connects(two.recalled(caller), callee).hangup()
    over(two)


def test_asked_by_a_digit(two: TwoPbx) -> None:
    talk = two.talk("4000", "5000")
    call = two.phones["1000"].dial("*84000").wait_answered(10)
    two.until(lambda: "to-call-this-number" in two.a.played(), "the offer is heard", 10)
    call.dtmf("5")
    told(two, "queued", timeout=10)
    call.wait_ended(10)
    two.forget("4000")
    two.phones["4000"].answer = "ring"
    talk.hangup()
    two.connects(two.recalled("1000"), "4000").hangup()
    over(two)


def test_plain_dial_and_a_hang_up_handler(two: TwoPbx) -> None:
    """Nothing tells the Call-ID of the call: it is found by who called whom."""
    talk = two.talk("4000", "5000")
    two.phones["1000"].dial("*94000").wait_status(486)
    two.until(two.a.offers, "the call is on record")
    assert two.asks("1000") == "SUCCESS/"
    two.forget("4000")
    two.phones["4000"].answer = "ring"
    told(two, "queued")
    talk.hangup()
    two.connects(two.recalled("1000"), "4000").hangup()
    over(two)


def test_what_is_known_of_the_one_beyond(two: TwoPbx) -> None:
    def status() -> str:
        count = len(two.a.site_lines("site-trunkstatus"))
        two.phones["1000"].dial("*74000").wait_answered().wait_ended()
        two.until(lambda: len(two.a.site_lines("site-trunkstatus")) > count, "the status is known")
        return two.a.site_lines("site-trunkstatus")[-1].split()[-1]

    assert status() == "UNKNOWN"
    talk = camped(two, "1000", "4000", "5000")
    assert status() == "QUEUED"
    subscribe = two.wire.wait("SUBSCRIBE")
    for site, direction in (two.a, "watched there"), (two.b, "watched here"):
        shown = site.server.cli("trunk", "show")
        assert subscribe.get("Call-ID") in shown and direction in shown and "queued" in shown
    his = two.talk("1000", "2000")
    talk.hangup()
    told(two, "ready")
    two.wire.wait("PUBLISH", body="closed")
    assert "suspended" in two.b.server.cli("trunk", "show")
    two.phones["1000"].answer = "ring"
    his.hangup()
    two.connects(two.recalled("1000", 15), "4000").hangup()
    over(two)
    assert "nobody waits" in two.a.server.cli("trunk", "show")


def test_what_a_probe_tells(two: TwoPbx) -> None:
    said = two.a.server.cli("trunk", "probe", "b")
    assert "knows call completion" in said and "OPTIONS" in said
    assert not two.wire.messages("INVITE")


# --------------------------------------------------------------------------------------------- taken back


@BOTH_WAYS
def test_taken_back_while_waiting(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    talk = camped(two, caller, callee, other)
    assert two.asks(caller, "*31") == "SUCCESS/"
    two.wire.wait("SUBSCRIBE", where=lambda m: m.get("Expires") == "0")
    over(two)
    talk.hangup()
    two.quiet(caller, 2)


@BOTH_WAYS
def test_taken_back_while_ringing(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    camped(two, caller, callee, other).hangup()
    recall = two.recalled(caller)
    recall.ring()
    another = two.asks(caller, "*31")
    assert another == "SUCCESS/"
    recall.wait_ended()
    over(two)
    assert not two.wire.messages("INVITE")[1:]


# ------------------------------------------------------------------------------------- busy again, suspended


@BOTH_WAYS
def test_caller_busy_at_ready(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    """He is suspended by a PUBLISH, the next one in the queue is served, then he."""
    second = "2000" if caller == "1000" else "5000"
    third = "3000" if caller == "1000" else "6000"
    talk = camped(two, caller, callee, other)
    two.meets_busy(second, callee)
    two.phones[callee].answer = "ring"
    assert two.asks(second) == "SUCCESS/"
    told(two, "queued", nth=2)
    his = two.talk(caller, third)
    talk.hangup()
    closed = two.wire.wait("PUBLISH", body="closed")
    assert closed.get("Event") == "presence"
    served = two.connects(two.recalled(second), callee)
    two.phones[callee].answer = two.phones[caller].answer = "ring"
    his.hangup()
    two.wire.wait("PUBLISH", body="open")
    two.quiet(caller, 1)
    served.hangup()
    two.connects(two.recalled(caller, 15), callee).hangup()
    over(two)


@BOTH_WAYS
def test_callee_busy_again(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    """The place is retained: he is called back when the callee is free once more."""
    camped(two, caller, callee, other).hangup()
    recall = two.recalled(caller)
    talk = two.talk(callee, other)
    recall.answer()
    site_of(two, callee).server.wait_log("keeps his place")
    recall.wait_ended(10)
    two.forget(callee)
    two.phones[callee].answer = "ring"
    talk.hangup()
    two.connects(two.recalled(caller, 15), callee).hangup()
    over(two)


@BOTH_WAYS
def test_refreshed_past_the_first_expiry(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    """A refresh does not prolong the service; the subscription lives as long as that."""
    quick = QUICK.replace("}", ", ccbs_available_timer: 12}")
    site_of(two, callee).reconfigure(quick)
    talk = camped(two, caller, callee, other)
    two.wire.wait("SUBSCRIBE", nth=2, timeout=20)
    over(two)
    assert reasons(two, callee) == ["EXPIRED"]
    assert reasons(two, caller) == ["ENDED_THERE"]
    talk.hangup()
    two.quiet(caller, 1)


# -------------------------------------------------------------------------------------------------- crashes


@BOTH_WAYS
@pytest.mark.parametrize("side", ["the caller's", "the callee's"])
@pytest.mark.parametrize("state", [State.QUEUED, State.READY])
def test_killed(two: TwoPbx, caller: str, callee: str, other: str, side: str, state: State) -> None:
    site = site_of(two, caller if side == "the caller's" else callee)
    talk = camped(two, caller, callee, other)
    if state is State.QUEUED:
        site.server.kill()
        site.server.start()
        talk.hangup()
        recall = two.recalled(caller, 10)
    else:
        talk.hangup()
        recall = two.recalled(caller)
        recall.ring()
        site.server.kill()
        site.server.start()
    two.connects(recall, callee).hangup()
    over(two)
    two.quiet(caller, 1)


@BOTH_WAYS
def test_the_element_is_killed_during_a_call(two: TwoPbx, caller: str, callee: str, other: str) -> None:
    """The call goes on, and its BYE passes."""
    two.phones[callee].answer = "answer"
    call = two.phones[caller].dial(callee).wait_answered()
    theirs = two.phones[callee].expect_call()
    for site in two.sites:
        site.server.kill()
    call.hangup()
    theirs.wait_ended()
    for site in two.sites:
        site.server.start()
        two.until(partial(no_calls, site), "no channel is left")


# ------------------------------------------------------------------------- over TCP, with OPTIONS through it


@pytest.fixture
def tcp(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[TwoPbx]:
    folder: Path = tmp_path_factory.mktemp("tcp")
    with TwoPbx(folder, ensure_asterisk(), transport="tcp", qualify=1).running() as pbxs:
        pbxs.fresh()
        yield pbxs
        if hasattr(request.node, "failed"):
            print(pbxs.evidence())
        pbxs.clear()


def test_over_tcp(tcp: TwoPbx) -> None:
    """Both ways at once; and while an element is down, Asterisk knows it and no caller waits in silence."""
    one = camped(tcp, "1000", "4000", "5000")
    other = tcp.talk("2000", "3000")
    tcp.meets_busy("6000", "2000")
    assert tcp.asks("6000") == "SUCCESS/"
    tcp.phones["2000"].answer = "ring"
    one.hangup()
    tcp.connects(tcp.recalled("1000"), "4000").hangup()
    other.hangup()
    tcp.connects(tcp.recalled("6000"), "2000").hangup()
    for site in tcp.sites:
        tcp.until(partial(nothing_open, site), f"no open request at {site.name}")
    tcp.a.server.kill()
    tcp.until(lambda: not tcp.a.reachable(), "Asterisk sees that the trunk is down", 10)
    tcp.phones["1000"].dial("4000").wait_ended(2)
    tcp.a.server.start()
    tcp.until(tcp.a.reachable, "Asterisk sees that it is up again", 10)
    tcp.meets_busy("1000", "4000")
