"""The element in a trunk's path changes nothing but Via, Route and Max-Forwards, and loses nothing.

First sipp at both ends, 20,000 calls over each transport; then calls in which messages cross, get lost or come
late, played by hand with an eye on each byte.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterator
from itertools import count
from typing import Self

import pytest

from tests.lab.asterisk import Address
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Message
from tests.real.rate import Line, Load

CALLS = 20_000
RATE = 800  # calls a second
OTHER = {"asterisk": "peer", "peer": "asterisk"}


@pytest.fixture(scope="module", params=["udp", "tcp"])
def running_line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with Line(tmp_path_factory.mktemp("line"), ensure_asterisk(), request.param) as line:
        yield line


@pytest.fixture
def line(running_line: Line) -> Iterator[Line]:
    """At the end of each test nothing is in its log."""
    running_line.server.log.write_bytes(b"")
    yield running_line
    assert running_line.complaints() == []


# -- many calls --------------------------------------------------------------------------------------------


def test_twenty_thousand_calls(line: Line) -> None:
    loads = [line.carries(CALLS // 2, RATE, caller=caller) for caller in OTHER]
    beside = line.carries(CALLS // 8, RATE, beside=True)
    print(f"\n{line.transport}", *loads, f"beside the element: {beside}", sep="\n  ")
    for load in loads:
        unharmed(load)


def test_a_connection_for_each_call(line: Line) -> None:
    if line.transport == "udp":
        return
    load = line.carries(1000, 200, each=True)
    print(f"\n{load}")
    unharmed(load)


def unharmed(load: Load) -> None:
    assert not load.failed, f"{load}\n{load.said}"
    assert load.calls * 0.05 < load.busy < load.calls * 0.15
    assert load.said == ""


# -- one call, message by message --------------------------------------------------------------------------


class End:
    """Asterisk or the peer, as bytes: what it sends to the element, and all that it gets."""

    def __init__(self, line: Line, name: str) -> None:
        self.name = name
        self.address = line.end(name)
        self.got: list[Message] = []
        self._heard = 0  # of them
        self._element = line.element
        self._tcp = line.transport == "tcp"
        self._sockets: dict[socket.socket, bytes] = {}  # and what has come by each, but is not whole yet
        if self._tcp:
            self._listener = socket.create_server(self.address)
            self._ours = self._theirs = self._listener  # until there is a connection
        else:
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            one.bind(self.address)
            self._sockets[one] = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._sockets:
            one.close()
        if self._tcp:
            self._listener.close()

    def send(self, raw: bytes) -> None:
        """A request by a connection of ours, an answer by the one that its request came by."""
        if not self._tcp:
            next(iter(self._sockets)).sendto(raw, self._element)
        elif raw.startswith(b"SIP/2.0 "):
            self._theirs.sendall(raw)
        else:
            if self._ours is self._listener:
                source = (self.address[0], 0)
                self._ours = socket.create_connection(self._element, timeout=5, source_address=source)
                self._sockets[self._ours] = b""
            self._ours.sendall(raw)

    def hears(self, what: str, timeout: float = 5.0) -> Message:
        """The next message: ``INVITE``, or ``200 INVITE`` for an answer."""
        end = time.monotonic() + timeout
        while len(self.got) == self._heard and time.monotonic() < end:
            self._read(end - time.monotonic())
        found = self.got[self._heard :][:1]
        assert list(map(describe, found)) == [what], f"{self.name} has got {self.transcript}"
        self._heard += 1
        return found[0]

    def heard_all(self) -> bool:
        """Whether the test has waited for all that has come by now."""
        self._read(0)
        return len(self.got) == self._heard

    @property
    def transcript(self) -> list[str]:
        return [describe(message) for message in self.got]

    def _read(self, seconds: float) -> None:
        watched = [*self._sockets, self._listener] if self._tcp else [*self._sockets]
        for one in select.select(watched, [], [], max(0, seconds))[0]:
            if self._tcp and one is self._listener:
                self._theirs = one.accept()[0]
                self._sockets[self._theirs] = b""
            elif self._tcp:
                self._keep(one, self._sockets[one] + one.recv(65536))
            else:
                self.got.append(Message.of("in", self._element, one.recv(65536)))

    def _keep(self, one: socket.socket, data: bytes) -> None:
        while (start := data.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"\r\nContent-Length: *([0-9]+)", data[:start])
            assert length, data
            end = start + 4 + int(length[1])
            if len(data) < end:
                break
            self.got.append(Message.of("in", self._element, data[:end]))
            data = data[end:]
        self._sockets[one] = data


def describe(message: Message) -> str:
    return f"{message.status} {message.method}" if message.status else message.method


SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=\xe4 \xff\r\n"
OFFER = re.compile(rb"Call-Info: <sip:[^>]+>;purpose=call-completion;m=NR\r\n")
TOP_VIA = re.compile(rb"Via: [^\r]*\r\n")
_numbers = count(1)


class Call:
    """One of them from end to end. Whatever passes the element is compared byte by byte."""

    def __init__(self, caller: End, callee: End, line: Line) -> None:
        self.caller, self.callee = caller, callee
        self.line = line
        self._id = f"{next(_numbers)}-{time.time_ns()}"
        self.invite = self.request("INVITE", 1, body=SDP)

    # What is written

    def request(
        self,
        method: str,
        cseq: int,
        *more: str,
        body: bytes = b"",
        branch: str = "1",
        to: str = "",
        sender: End | None = None,
    ) -> bytes:
        """``to``: that of an answer, in a dialog; ``branch``: which transaction it belongs to."""
        sender = sender or self.caller
        host, port = sender.address
        lines = [
            f"{method} sip:2000@{text(self.line.element)} SIP/2.0",
            f"Via: SIP/2.0/{self.line.transport.upper()} {host}:{port};rport;branch=z9hG4bK{branch}{self._id}",
            "max-forwards: 70",
            f'f: "A\xe4" <sip:7000@{host}>;tag=a{self._id}',
            f"To: {to or f'<sip:2000@{host};x=1>'}",
            f"i:{self._id}",
            f"CSeq:  {cseq}   {method}",
            f"Contact: <sip:7000@{text(sender.address)};transport={self.line.transport}>",
            "X-Odd :  a;b,c ",
            *more,
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def answer(self, request: Message, status: str, *more: str, body: bytes = b"", tag: str = "b") -> bytes:
        copied = [line for line in head(request.raw) if re.match(rb"(?i)(via|f|to|i|cseq)[ :]", line)]
        if ";tag=" not in request.get("To"):
            copied = [line + f";tag={tag}".encode() * line.startswith(b"To:") for line in copied]
        lines = [line.encode("latin-1") for line in (*more, "Server: \xfc", f"Content-Length: {len(body)}")]
        return b"\r\n".join([f"SIP/2.0 {status}".encode(), *copied, *lines, b"", b""]) + body

    # What passes

    def sends(self, raw: bytes, sender: End | None = None) -> Message:
        """It arrives at the other end; gives it as it is there."""
        sender = sender or (self.callee if raw.startswith(b"SIP/2.0 ") else self.caller)
        sender.send(raw)
        return self.arrives(raw, sender)

    def arrives(self, raw: bytes, sender: End) -> Message:
        sent = Message.of("out", sender.address, raw)
        got = (self.callee if sender is self.caller else self.caller).hears(describe(sent))
        if not sent.status:
            assert self._before_it_passed(got.raw, sender) == raw
        else:
            offers = sender.name == "asterisk" and sent.method == "INVITE" and sent.status in (180, 487)
            assert (OFFER.sub(b"", got.raw, 1) if offers else got.raw) == TOP_VIA.sub(b"", raw, 1)
        return got

    def _before_it_passed(self, raw: bytes, sender: End) -> bytes:
        ours = f"Via: SIP/2.0/{self.line.transport.upper()} {text(self.line.element)};branch=z9hG4bKcc"
        start, top, *rest = raw.split(b"\r\n", 2)
        assert re.fullmatch(rf"{ours}[0-9a-f]{{32}}(;cport=[0-9]+)?", top.decode())
        filled = rb";rport=[0-9]+(;branch=[^;\r]+);received=" + sender.address[0].encode()
        restored = re.sub(filled, rb";rport\1", b"\r\n".join([start, *rest]), count=1)
        return restored.replace(b"max-forwards: 69\r\n", b"max-forwards: 70\r\n", 1)


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def head(raw: bytes) -> list[bytes]:
    return raw.partition(b"\r\n\r\n")[0].split(b"\r\n")


def branch(message: Message) -> str:
    """Of the topmost Via."""
    found = re.search(r";branch=([^;,]+)", message.get("Via"))
    assert found
    return found[1]


@pytest.fixture(params=OTHER)
def call(line: Line, request: pytest.FixtureRequest) -> Iterator[Call]:
    """At the end of each test nothing has come that the test did not wait for."""
    with End(line, request.param) as caller, End(line, OTHER[request.param]) as callee:
        call = Call(caller, callee, line)
        yield call
        for end in caller, callee:  # what was on its way comes before these
            call.sends(call.request("OPTIONS", 99, branch="99", sender=end), end)
        assert caller.heard_all() and callee.heard_all(), (caller.transcript, callee.transcript)


def test_cancelled_while_it_rings(call: Call) -> None:
    invite = call.sends(call.invite)
    call.sends(call.answer(invite, "100 Trying"))
    call.sends(call.answer(invite, "180 Ringing"))
    cancel = call.sends(call.request("CANCEL", 1))
    call.sends(call.answer(cancel, "200 OK"))
    end = call.sends(call.answer(invite, "487 Request Terminated"))
    ack = call.sends(call.request("ACK", 1, to=end.get("To")))
    assert branch(invite) == branch(cancel) == branch(ack)


def test_cancel_and_200_cross(call: Call) -> None:
    invite = call.sends(call.invite)
    call.sends(call.answer(invite, "180 Ringing"))
    cancel, answer = call.request("CANCEL", 1), call.answer(invite, "200 OK", body=SDP)
    call.caller.send(cancel)
    call.callee.send(answer)
    late = call.arrives(cancel, call.caller)
    call.arrives(answer, call.callee)
    assert branch(late) == branch(invite)
    call.sends(call.answer(late, "200 OK"))


def test_cancel_right_behind_the_invite(call: Call) -> None:
    """Before anything was answered, which a caller should not do: the other side knows what to make of it."""
    cancel = call.request("CANCEL", 1)
    call.caller.send(call.invite + cancel if call.line.transport == "tcp" else call.invite)
    if call.line.transport == "udp":
        call.caller.send(cancel)
    invite = call.arrives(call.invite, call.caller)
    early = call.arrives(cancel, call.caller)
    assert branch(early) == branch(invite)
    call.sends(call.answer(early, "481 Call/Transaction Does Not Exist"))
    call.sends(call.answer(invite, "486 Busy Here"))


def test_the_200_comes_again_while_its_ack_is_lost(call: Call) -> None:
    invite = call.sends(call.invite)
    answer = call.answer(invite, "200 OK", "Contact: <sip:2000@192.0.2.7>", body=SDP)
    copies = {call.sends(answer).raw for _ in range(3)}
    assert len(copies) == 1


def test_two_forks_answer(call: Call) -> None:
    invite = call.sends(call.invite)
    for tag in "b", "c":
        call.sends(call.answer(invite, "180 Ringing", tag=tag))
    for tag in "b", "c":
        call.sends(call.answer(invite, "200 OK", body=SDP, tag=tag))


def test_ringing_that_is_acknowledged(call: Call) -> None:
    """RFC 3262.  PRACK and UPDATE go straight to the Contact, or through the element if a PBX sends all by it."""
    invite = call.sends(call.request("INVITE", 1, "Supported: 100rel", body=SDP))
    reliable = ("Require: 100rel", "RSeq: 4711", "Contact: <sip:2000@192.0.2.7>")
    ringing = call.answer(invite, "180 Ringing", *reliable)
    copies = [call.sends(ringing) for _ in range(3)]
    assert len({message.raw for message in copies}) == 1
    assert copies[0].get("RSeq") == "4711"
    prack = call.request("PRACK", 2, "RAck: 4711 1 INVITE", branch="2", to=copies[0].get("To"))
    call.sends(call.answer(call.sends(prack), "200 OK"))
    update = call.request("UPDATE", 3, branch="3", to=copies[0].get("To"), body=SDP)
    call.sends(call.answer(call.sends(update), "200 OK", body=SDP))
    call.sends(call.answer(invite, "200 OK"))


def test_a_late_ack(call: Call) -> None:
    invite = call.sends(call.invite)
    busy = call.answer(invite, "486 Busy Here")
    copies = [call.sends(busy) for _ in range(3)]
    assert len({message.raw for message in copies}) == 1
    time.sleep(1)
    ack = call.sends(call.request("ACK", 1, to=copies[0].get("To")))
    assert branch(ack) == branch(invite)


def test_the_ack_of_a_2xx_and_a_bye_by_this_way(call: Call) -> None:
    invite = call.sends(call.invite)
    answer = call.sends(call.answer(invite, "200 OK", body=SDP))
    ack = call.sends(call.request("ACK", 1, branch="ack", to=answer.get("To")))
    assert branch(ack) != branch(invite)
    bye = call.sends(call.request("BYE", 2, branch="2", to=answer.get("To")))
    call.sends(call.answer(bye, "200 OK"))


def test_the_callee_hangs_up_and_asks_anew(call: Call) -> None:
    """Requests of the callee, by this way, at the same time as some of the caller's."""
    invite = call.sends(call.invite)
    answer = call.sends(call.answer(invite, "200 OK", body=SDP))
    again = call.request("INVITE", 7, branch="7", to=answer.get("To"), body=SDP, sender=call.callee)
    hold = call.request("INVITE", 2, branch="2", to=answer.get("To"), body=SDP)
    call.callee.send(again)
    call.caller.send(hold)
    glare, other = call.arrives(again, call.callee), call.arrives(hold, call.caller)
    call.sends(call.answer(glare, "491 Request Pending"), call.caller)
    call.sends(call.answer(other, "491 Request Pending"))
    bye = call.sends(call.request("BYE", 8, branch="8", to=answer.get("To"), sender=call.callee), call.callee)
    call.sends(call.answer(bye, "200 OK"), call.caller)


def test_an_invite_that_comes_again(call: Call) -> None:
    assert len({call.sends(call.invite).raw for _ in range(3)}) == 1


def test_a_restart_in_the_middle_of_a_call(call: Call) -> None:
    if call.line.transport == "tcp":
        return  # its connections are gone; who sent something opens new ones and sends it again
    invite = call.sends(call.invite)
    call.sends(call.answer(invite, "180 Ringing"))
    call.line.server.kill()
    call.callee.send(call.answer(invite, "183 Session Progress"))  # nobody is there
    call.line.server.start()
    cancel = call.sends(call.request("CANCEL", 1))
    call.sends(call.answer(cancel, "200 OK"))
    call.sends(call.answer(invite, "487 Request Terminated"))
    assert branch(cancel) == branch(invite)
