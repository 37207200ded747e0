"""The laboratory's wire: what passes, what is lost, and what it says of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.lab.asterisk import Address, Trunk, free_port
from tests.lab.wire import Wire

A, B, TOWARDS_A, TOWARDS_B = "127.0.1.3", "127.0.2.3", "127.0.1.9", "127.0.2.9"


def sip(start: str, call: str = "1", body: str = "", event: str = "call-completion") -> bytes:
    method = "NOTIFY" if start.startswith("SIP/2.0") else start.partition(" ")[0]
    lines = [
        start,
        f"Call-ID: {call}",
        f"CSeq: 1 {method}",
        f"Event: {event}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", body]).encode()


NOTIFY, OK = "NOTIFY sip:cc@a SIP/2.0", "SIP/2.0 200 OK"


@pytest.fixture
def port() -> int:
    return free_port(A, B, TOWARDS_A, TOWARDS_B)


class Ends:
    """Two elements, a and b, as plain UDP sockets, and the wire between them."""

    def __init__(self, port: int) -> None:
        self.a, self.b = (self._bound((host, port)) for host in (A, B))
        self.peer_of_a, self.peer_of_b = (TOWARDS_A, port), (TOWARDS_B, port)
        self.wire = Wire(((A, port), self.peer_of_a), ((B, port), self.peer_of_b))

    @staticmethod
    def _bound(address: Address) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.settimeout(2)
        one.bind(address)
        return one

    def a_says(self, raw: bytes) -> None:
        self.a.sendto(raw, self.peer_of_a)

    def b_says(self, raw: bytes) -> None:
        self.b.sendto(raw, self.peer_of_b)


@pytest.fixture
def ends(port: int) -> Iterator[Ends]:
    ends = Ends(port)
    with ends.a, ends.b, ends.wire:
        yield ends
    assert not ends.wire.faults


def test_each_side_takes_the_wire_for_its_peer(ends: Ends) -> None:
    ends.a_says(sip(NOTIFY))
    assert ends.b.recvfrom(9999) == (sip(NOTIFY), ends.peer_of_b)
    ends.b_says(sip(OK))
    assert ends.a.recvfrom(9999) == (sip(OK), ends.peer_of_a)
    assert [m.direction for m in ends.wire.messages()] == ["a>b", "b>a"]


def test_a_stranger_is_not_heard(ends: Ends) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(sip(NOTIFY, "0"), ends.peer_of_a)
    ends.a_says(sip(NOTIFY))
    assert ends.b.recv(9999) == sip(NOTIFY)
    assert len(ends.wire.messages()) == 1


def test_a_method_means_requests_and_a_status_responses(ends: Ends) -> None:
    ends.a_says(sip(NOTIFY, body="cc-state: ready"))
    ends.b_says(sip(OK))
    ready = ends.wire.wait("NOTIFY", event="call-completion", body="ready")
    assert ends.wire.answer(ready).status == 200
    assert [m.start for m in ends.wire.messages("NOTIFY")] == [NOTIFY]
    assert [m.start for m in ends.wire.messages("NOTIFY", status=200)] == [OK]
    assert ends.wire.messages(way="b>a", after=ready) == ends.wire.messages(status=200)
    assert not ends.wire.messages(event="presence")


def test_what_does_not_come_is_told_with_what_did(ends: Ends) -> None:
    ends.a_says(sip(NOTIFY, body="cc-state: queued"))
    ends.b.recv(9999)
    with pytest.raises(
        AssertionError, match="a>b NOTIFY sip:cc@a SIP/2.0 call-completion | cc-state: queued"
    ):
        ends.wire.wait("NOTIFY", body="ready", timeout=0)


def test_the_next_is_lost_and_kept_the_one_after_it_passes(ends: Ends) -> None:
    lost = ends.wire.lose("NOTIFY")
    for call in "1", "2":
        ends.a_says(sip(NOTIFY, call))
    assert ends.b.recv(9999) == sip(NOTIFY, "2")
    assert [m.get("Call-ID") for m in lost.met] == ["1"]
    assert len(ends.wire.messages("NOTIFY")) == 2


def test_one_is_delayed_and_overtaken(ends: Ends) -> None:
    ends.wire.delay(0.1, "NOTIFY", body="queued")
    ends.a_says(sip(NOTIFY, body="cc-state: queued"))
    ends.a_says(sip(NOTIFY, body="cc-state: ready"))
    assert b"ready" in ends.b.recv(9999)
    assert b"queued" in ends.b.recv(9999)


def test_one_comes_twice(ends: Ends) -> None:
    ends.wire.double(status=200)
    ends.b_says(sip(OK))
    assert ends.a.recv(9999) == ends.a.recv(9999) == sip(OK)


def test_cut_until_mended(ends: Ends) -> None:
    cut = ends.wire.cut()
    ends.a_says(sip(NOTIFY))
    ends.wire.wait("NOTIFY")
    assert len(cut.met) == 1
    ends.wire.mend()
    ends.a_says(sip(NOTIFY, "2"))
    assert ends.b.recv(9999) == sip(NOTIFY, "2")


def test_a_message_of_the_tests_own(ends: Ends) -> None:
    ends.wire.send("a", sip(NOTIFY))
    assert ends.a.recvfrom(9999) == (sip(NOTIFY), ends.peer_of_a)
    assert ends.wire.wait("NOTIFY").direction == "b>a"


def test_messages_on_a_connection(port: int) -> None:
    with (
        socket.create_server((B, port)) as listener,
        Wire(((A, port), (TOWARDS_A, port)), ((B, port), (TOWARDS_B, port)), "tcp") as wire,
        socket.create_connection((TOWARDS_A, port), 2, (A, 0)) as a,
    ):
        b, source = listener.accept()
        with b:
            assert source[0] == TOWARDS_B
            both = sip(NOTIFY, "1", "cc-state: queued") + b"\r\n\r\n" + sip(NOTIFY, "2", "cc-state: ready")
            lost = wire.lose("NOTIFY", body="queued")
            a.sendall(both[:50])
            a.sendall(both[50:])
            kept = sip(NOTIFY, "2", "cc-state: ready")
            assert _read(b, len(kept) + 4) == b"\r\n\r\n" + kept
            assert [m.get("Call-ID") for m in lost.met] == ["1"]
            b.sendall(sip(OK))
            assert _read(a, len(sip(OK))) == sip(OK)
            wire.send("a", sip(NOTIFY, "3"))
            assert _read(a, len(sip(NOTIFY, "3"))) == sip(NOTIFY, "3")
            b.close()
            assert a.recv(9999) == b""  # what ends one end ends the other
    assert not wire.faults


def _read(connection: socket.socket, count: int) -> bytes:
    connection.settimeout(2)
    read = b""
    while len(read) < count:
        read += connection.recv(count - len(read))
    return read


# -- what Asterisk is told of a trunk with an element ----------------------------------------------------------


def test_a_trunk_without_an_element() -> None:
    text = Trunk("trunk", "127.0.0.1", 5090).section()
    assert "match=127.0.0.1:5090\n" in text
    assert "outbound_proxy" not in text


def test_a_trunk_behind_an_element() -> None:
    text = Trunk("b", "127.0.1.9", 5070, element=("127.0.1.3", 5071), qualify_frequency=2).section()
    for line in (
        "transport=lan",
        "outbound_proxy=sip:127.0.1.3:5071\\;lr",
        "contact=sip:127.0.1.9:5070",
        "match=127.0.1.3:5071",
        "identify_by=ip",
        "rewrite_contact=no",
        "qualify_frequency=2",
    ):
        assert line in text.splitlines()


def test_a_trunk_behind_an_element_over_tcp() -> None:
    text = Trunk("b", "127.0.1.9", 5070, element=("127.0.1.3", 5071), transport="tcp").section()
    for line in (
        "transport=lan-tcp",
        "outbound_proxy=sip:127.0.1.3:5071\\;transport=tcp\\;lr",
        "contact=sip:127.0.1.9:5070\\;transport=tcp",
        "match=127.0.1.3",
    ):
        assert line in text.splitlines()
