"""The scripted phone against another phone, and against a bare socket that plays the other side."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.lab.phone import Message, Phone, PhoneError, PhoneTimeout

NOWHERE = ("127.0.0.1", 9)


class Wire:
    """The other side of a phone, by hand: takes its requests, and sends what the test writes."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.socket.getsockname()
        self.peer = NOWHERE

    def take(self, start: str, timeout: float = 2.0) -> Message:
        """The next message that starts so; others before it are passed over."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with suppress(TimeoutError):
                raw, self.peer = self.socket.recvfrom(65535)
                message = Message.of("in", self.peer, raw)
                if message.start.startswith(start):
                    return message
        raise AssertionError(f"no {start!r}")

    def send(self, *lines: str, body: str = "") -> None:
        self.socket.sendto("\r\n".join([*lines, "", body]).encode(), self.peer)

    def reply(self, request: Message, status: str, *headers: str, tag: str = "wire") -> None:
        same = [f"{name}: {request.get(name)}" for name in ("Via", "From", "Call-ID", "CSeq")]
        to = request.get("To") if ";tag=" in request.get("To") else f"{request.get('To')};tag={tag}"
        self.send(f"SIP/2.0 {status}", *same, f"To: {to}", *headers)

    def request(self, method: str, *headers: str, branch: str = "1", to: str = "<sip:2000@x>") -> None:
        """A request of one call from Eve; the number of its CSeq is 7."""
        host, port = self.address
        self.send(
            f"{method} sip:2000@{host} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{branch};rport",
            'From: "Eve" <sip:3000@x>;tag=eve',
            f"To: {to}",
            "Call-ID: one",
            f"CSeq: 7 {method}",
            f"Contact: <sip:3000@{host}:{port}>",
            *headers,
        )


@pytest.fixture
def wire() -> Iterator[Wire]:
    side = Wire()
    yield side
    side.socket.close()


@pytest.fixture
def phone() -> Iterator[Callable[..., Phone]]:
    phones: list[Phone] = []

    def make(number: str, server: tuple[str, int] = NOWHERE, **more: str | float) -> Phone:
        phones.append(Phone(number, server, **more).start())  # type: ignore[arg-type]
        return phones[-1]

    yield make
    for one in phones:
        one.close(abruptly=True)
    assert [fault for one in phones for fault in one.faults] == []


Make = Callable[..., Phone]


# Phone against phone


def test_a_call_is_answered_held_and_hung_up(phone: Make) -> None:
    alice, bob = phone("1000", name="Alice"), phone("2000")
    call = alice.dial(bob.uri, headers={"X-CC-Call": "17"})
    there = bob.expect_call()
    call.wait_ringing()
    assert (call.state, there.state) == ("ringing", "ringing")
    assert (there.from_number, there.from_name) == ("1000", "Alice")
    assert there.headers["X-CC-Call"] == "17"
    there.answer()
    call.wait_answered()
    assert (call.status, call.state, there.state) == (200, "up", "up")
    call.hold()
    assert (there.held, call.held) == (True, False)
    call.unhold()
    there.hold()
    assert (there.held, call.held) == (False, True)
    call.dtmf("5")
    there.hangup()
    call.wait_ended()
    assert (call.ended_by, there.ended_by, call.reason) == ("them", "us", "BYE")
    assert call.started_at <= there.started_at
    assert call.ringing_at and call.answered_at and call.ended_at
    assert call.ringing_at <= call.answered_at <= call.ended_at


@pytest.mark.parametrize(("answer", "status"), [("busy", 486), ("decline", 603), ("480", 480)])
def test_a_call_is_refused(phone: Make, answer: str, status: int) -> None:
    alice, bob = phone("1000"), phone("2000", answer=answer)
    call = alice.dial(bob.uri).wait_ended()
    assert (call.status, call.ended_by) == (status, "them")
    assert bob.expect_call().ended_by == "us"


def test_what_a_phone_does_may_change(phone: Make) -> None:
    alice, bob = phone("1000"), phone("2000", answer="busy")
    alice.dial(bob.uri).wait_status(486)
    bob.answer, bob.after = "answer", 0.2
    call = alice.dial(bob.uri).wait_answered()
    assert call.ringing_at and call.answered_at
    assert 0.15 < call.answered_at - call.ringing_at < 1
    with pytest.raises(ValueError):
        bob.answer = "sing"


def test_a_ringing_call_is_cancelled(phone: Make) -> None:
    alice, bob = phone("1000"), phone("2000")
    call = alice.dial(bob.uri).wait_ringing().hangup().wait_ended()
    there = bob.expect_call().wait_ended()
    assert (call.status, call.ended_by) == (487, "us")
    assert (there.status, there.ended_by, there.reason) == (487, "them", "CANCEL")


def test_the_called_side_hangs_up_before_and_right_after_its_answer(phone: Make) -> None:
    alice, bob = phone("1000"), phone("2000")
    call = alice.dial(bob.uri)
    bob.expect_call().hangup()
    assert call.wait_ended().status == 486
    call = alice.dial(bob.uri)
    there = bob.expect_call().answer().hangup()
    call.wait_ended()
    assert (call.status, call.ended_by, there.wait_ended().ended_by) == (200, "them", "us")


def test_a_phone_calls_itself(phone: Make) -> None:
    alice = phone("1000")
    call = alice.dial(alice.uri)
    alice.expect_call().answer()
    call.wait_answered().hangup()
    assert [c.wait_ended().ended_by for c in alice.calls] == ["us", "them"]


def test_waits_tell_what_was_awaited(phone: Make) -> None:
    alice, bob = phone("1000"), phone("2000", answer="busy")
    with pytest.raises(PhoneTimeout, match=r"phone 2000 waited in vain .* for an incoming call.*\n  none"):
        bob.expect_call(0.05)
    call = alice.dial(bob.uri)
    began = time.monotonic()
    with pytest.raises(PhoneTimeout, match=r"(?s)for an answer of .*ended, 486.*486 Busy Here"):
        call.wait_answered()
    assert time.monotonic() - began < 1  # it is over: no sense in waiting on
    with pytest.raises(PhoneError, match="cannot answer now"):
        call.answer()


def test_no_call_means_none(phone: Make) -> None:
    alice, bob = phone("1000"), phone("2000")
    bob.no_call(0.05)
    alice.dial(bob.uri)
    with pytest.raises(AssertionError, match="unexpected call from '1000'"):
        bob.no_call(1)
    bob.expect_call()
    bob.no_call(0.05)


def test_close_hangs_up(phone: Make) -> None:
    alice, bob, carol = phone("1000"), phone("2000", answer="answer"), phone("3000")
    up, ringing = alice.dial(bob.uri).wait_answered(), alice.dial(carol.uri).wait_ringing()
    alice.close()
    assert (up.reason, ringing.status) == ("BYE", 487)
    assert [p.expect_call().wait_ended().reason for p in (bob, carol)] == ["BYE", "CANCEL"]


# Phone against wire: what it sends


def test_register_with_digest(phone: Make, wire: Wire) -> None:
    alice = phone("1000", wire.address, password="secret")
    for qop in ("", ', qop="auth,auth-int"'):
        with pytest.raises(PhoneTimeout):
            alice._ask("REGISTER", alice._registration, [], "", 0.01)
        challenge = f'WWW-Authenticate: Digest realm="lab", nonce="n,1", opaque="o"{qop}'
        wire.reply(wire.take("REGISTER"), "401 Unauthorized", challenge)
        request = wire.take("REGISTER")
        fields = re.findall(r'(\w+)=(?:"([^"]*)"|([^",]+))', request.get("Authorization"))
        given = {name: quoted or bare for name, quoted, bare in fields}
        secret = hashlib.md5(b"1000:lab:secret").hexdigest()
        asked = hashlib.md5(f"REGISTER:{request.uri}".encode()).hexdigest()
        middle = f"00000001:{given['cnonce']}:auth:" if qop else ""
        expected = hashlib.md5(f"{secret}:n,1:{middle}{asked}".encode()).hexdigest()
        assert given["response"] == expected
        assert (given["username"], given["opaque"], "qop" in given) == ("1000", "o", bool(qop))
        wire.reply(request, "200 OK")


def test_a_wrong_password_is_tried_once(phone: Make, wire: Wire) -> None:
    alice = phone("1000", wire.address)
    call = alice.dial("2000", headers={"X-A": "b"})
    for _ in range(2):
        invite = wire.take("INVITE")
        assert invite.get("X-A") == "b"
        wire.reply(invite, "407 No", 'Proxy-Authenticate: Digest realm="lab", nonce="1"')
        ack = wire.take("ACK")
        assert (ack.get("Via"), ack.cseq[0]) == (invite.get("Via"), invite.cseq[0])
    assert call.wait_ended().status == 407


def test_requests_are_repeated_until_answered(phone: Make, wire: Wire) -> None:
    alice = phone("1000", wire.address)
    began = time.monotonic()
    alice.dial("2000")
    raws = [wire.take("INVITE").raw for _ in range(3)]
    assert len(set(raws)) == 1
    assert 1.4 < time.monotonic() - began < 2  # 0.5 s and 1 s between them
    wire.reply(Message.of("in", wire.peer, raws[0]), "180 Ringing")
    with pytest.raises(AssertionError):
        wire.take("INVITE", 2.2)


def test_cancel_waits_for_a_provisional_response(phone: Make, wire: Wire) -> None:
    call = phone("1000", wire.address).dial("2000").hangup()
    invite = wire.take("INVITE")
    with pytest.raises(AssertionError):
        wire.take("CANCEL", 0.1)
    wire.reply(invite, "100 Trying")
    cancel = wire.take("CANCEL")
    assert [cancel.get(n) for n in ("Via", "To", "From")] == [invite.get(n) for n in ("Via", "To", "From")]
    assert cancel.uri == invite.uri
    wire.reply(cancel, "200 OK")
    wire.reply(invite, "200 OK", f"Contact: <sip:w@127.0.0.1:{wire.address[1]}>")  # crossed the CANCEL
    wire.take("ACK")
    wire.reply(wire.take("BYE"), "200 OK")
    assert call.wait_ended().ended_by == "us"


def test_a_2xx_gives_the_route_and_is_acknowledged_each_time(phone: Make, wire: Wire) -> None:
    call = phone("1000", wire.address).dial("2000")
    invite = wire.take("INVITE")
    me = f"127.0.0.1:{wire.address[1]}"
    headers = [f"Record-Route: <sip:127.0.0.9;lr>, <sip:{me};lr>", "Contact: <sip:bob@127.0.0.8:7>"]
    for _ in range(2):
        wire.reply(invite, "200 OK", *headers)
        ack = wire.take("ACK")
        assert ack.uri == "sip:bob@127.0.0.8:7"
        assert ack.all("Route") == [f"<sip:{me};lr>", "<sip:127.0.0.9;lr>"]
        assert ack.get("Via") != invite.get("Via")
    wire.reply(invite, "200 OK", *headers, tag="second")  # a fork that answered too late
    assert wire.take("ACK").get("To").endswith("second")
    assert wire.take("BYE").get("To").endswith("second")
    assert call.state == "up"


def test_hostile_strings_go_out_unescaped(phone: Make, wire: Wire) -> None:
    alice = phone("1000", wire.address)
    alice.dial("2000", from_user="40%0Aagi_evil: 1", from_name="E", user_raw="20%0A00")
    raw = wire.take("INVITE").raw
    assert raw.startswith(b"INVITE sip:20%0A00@")
    assert b'From: "E" <sip:40%0Aagi_evil: 1@' in raw
    alice.send_raw(b"OPTIONS \0 SIP/2.0\r\n")
    wire.take("OPTIONS \0")


def test_a_request_outside_any_call(phone: Make, wire: Wire) -> None:
    alice = phone("1000", wire.address)
    with pytest.raises(PhoneTimeout, match="the answer to PUBLISH"):
        alice.request("PUBLISH", "2000", {"Event": "call-completion"}, "x", 0.05)
    request = wire.take("PUBLISH")
    assert (request.get("event"), request.body) == ("call-completion", "x")


# Phone against wire: what it answers


def test_an_invite_again_gets_the_same_response_and_a_200_comes_until_ack(phone: Make, wire: Wire) -> None:
    bob = phone("2000")
    wire.peer = ("127.0.0.1", bob.port)
    wire.request("INVITE", "Record-Route: <sip:p;lr>")
    first = wire.take("SIP/2.0 180")
    wire.request("INVITE", "Record-Route: <sip:p;lr>")
    assert wire.take("SIP/2.0 180").raw == first.raw
    call = bob.expect_call().answer()
    bob.no_call(0)
    answers = [wire.take("SIP/2.0 200") for _ in range(2)]
    assert answers[0].raw == answers[1].raw
    assert answers[0].get("Record-Route") == "<sip:p;lr>"
    assert "m=audio" in answers[0].body
    wire.request("ACK", branch="2", to=answers[0].get("To"))
    with pytest.raises(AssertionError):
        wire.take("SIP/2.0 200", 1.3)
    wire.request("BYE", branch="3", to=answers[0].get("To"))
    wire.take("SIP/2.0 200")
    assert call.wait_ended().ended_by == "them"


def test_a_silent_phone_is_silent(phone: Make, wire: Wire) -> None:
    bob = phone("2000", answer="silent")
    wire.peer = ("127.0.0.1", bob.port)
    for method in ("INVITE", "INVITE", "CANCEL"):
        wire.request(method)
    assert bob.expect_call().wait_ended().reason == "CANCEL"
    bob.no_call(0)
    with pytest.raises(AssertionError):
        wire.take("SIP/2.0", 0.2)


@pytest.mark.parametrize(
    ("method", "to", "status"),
    [
        ("OPTIONS", "<sip:2000@x>", 200),
        ("NOTIFY", "<sip:2000@x>;tag=any", 200),
        ("REFER", "<sip:2000@x>", 405),
        ("BYE", "<sip:2000@x>;tag=any", 481),
        ("INVITE", "<sip:2000@x>;tag=any", 481),
        ("CANCEL", "<sip:2000@x>", 481),
    ],
)
def test_other_requests(phone: Make, wire: Wire, method: str, to: str, status: int) -> None:
    wire.peer = ("127.0.0.1", phone("2000").port)
    wire.request(method, to=to)
    assert wire.take("SIP/2.0").status == status


def test_what_is_no_sip_harms_nobody(phone: Make, wire: Wire) -> None:
    bob = phone("2000")
    wire.peer = ("127.0.0.1", bob.port)
    for raw in (b"", b"\0\xff", b"\r\n\r\n", b"SIP/2.0 200 OK\r\nVia: ,\r\n\r\n", b"BYE x SIP/2.0\r\n:\r\n"):
        wire.socket.sendto(raw, wire.peer)
    same = ["From: <", 'To: "', "Call-ID: x"]
    wire.send("INVITE sip:x SIP/2.0", "Via: ,", *same, "CSeq: 1 INVITE")
    wire.send("INVITE sip:x SIP/2.0", "v: SIP/2.0/UDP h:99999;branch=b", *same, "CSeq: ² INVITE")
    wire.send("BYE sip:x SIP/2.0", "v: x", *same, "CSeq: 1 BYE")
    wire.request("OPTIONS")
    assert wire.take("SIP/2.0 200").get("CSeq") == "7 OPTIONS"
    assert len(bob.messages) >= 8
