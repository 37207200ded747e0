"""A trunk's sockets, real ones: what comes is handed on, what is sent arrives, and nobody can stall the others."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from ipaddress import ip_network
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from fastagi.errors import FastagiError
from fastagi.sip import element as elements
from fastagi.sip import transport
from fastagi.sip.message import Malformed, Request, Response, parse
from fastagi.sip.stream import Framer
from fastagi.sip.transport import Link
from fastagi.sip.trunk import Address, Trunk

OURS, PEER, ASTERISK, STRANGER = "127.0.1.3", "127.0.1.2", "127.0.1.22", "127.0.1.9"
PATIENCE = 20  # seconds that a test waits for what must come
run = pytest_twisted.ensureDeferred


def message(word: str, body: bytes = b"", length: int | None = None) -> bytes:
    head = (
        f"OPTIONS sip:{word}@h SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.1.2:5090;branch=z9hG4bK{word};rport\r\n"
        f"From: <sip:b@h>;tag=1\r\nTo: <sip:a@h>\r\nCall-ID: {word}\r\nCSeq: 1 OPTIONS\r\n"
    )
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


HALF = message("half", length=10) + b"only"


class Turned:
    """The reactor, with the time of a Clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seconds, self.callLater = clock, clock.seconds, clock.callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(installed, name)


class Element:
    """Writes down what it is told, and answers nothing."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.received: list[tuple[Request | Response | Malformed, Address]] = []
        self.asked: list[Address] = []  # by accepts()
        self.gone: list[Address] = []
        self.log: list[str] = []
        self.on_receive: Callable[[str], None] = lambda word: None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def accepts(self, source: Address) -> bool:
        self.asked.append(source)
        self.look()
        return self.trunk.side(source) is not None

    def receive(self, data: Request | Response | Malformed, source: Address) -> None:
        self.received.append((data, source))
        self.look()
        self.on_receive(word_of(data))

    def lost(self, address: Address) -> None:
        self.gone.append(address)
        self.look()

    def note(self, line: str) -> None:
        self.log.append(line)
        self.look()

    @property
    def words(self) -> list[str]:
        return [word_of(data) for data, _ in self.received]

    # Waiting

    def look(self) -> None:
        for entry in [e for e in self._waiting if e[0]()]:
            self._waiting.remove(entry)
            # Not now: we are in the middle of the link's work.
            cast(Any, installed).callLater(0, entry[1].callback, None)

    async def until(self, condition: Callable[[], bool]) -> None:
        if not condition():
            waiter: Deferred[None] = Deferred()
            self._waiting.append((condition, waiter))
            await waiter.addTimeout(PATIENCE, cast(Any, installed))

    async def hears(self, *words: str) -> None:
        """Until these have come."""
        await self.until(lambda: set(words) <= set(self.words))


def word_of(data: Request | Response | Malformed) -> str:
    return data.uri[4:].partition("@")[0] if isinstance(data, Request) else type(data).__name__


def trunk(
    protocol: str, peer: Address, asterisk: Address | None = None, ours: str = OURS, **more: Any
) -> Trunk:
    listen = Address(ours, 0)
    asterisk = asterisk or Address(ASTERISK, 5060)
    return Trunk("mxone", protocol, listen, (peer,), asterisk, "mxone", listen, listen, **more)


@asynccontextmanager
async def linked(of: Trunk, reactor: Any = installed) -> AsyncIterator[tuple[Link, Element]]:
    element = Element(of)
    link = Link(reactor, of, element.note)
    link.element = cast(Any, element)
    link.start()
    try:
        yield link, element
    finally:
        await link.stop()
        if isinstance(reactor, Turned):
            assert reactor.clock.getDelayedCalls() == []


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def datagrams(clients: ExitStack, host: str = PEER) -> socket.socket:
    client = clients.enter_context(socket.socket(family(host), socket.SOCK_DGRAM))
    client.settimeout(PATIENCE)
    client.bind((host, 0))
    return client


def stream(clients: ExitStack, link: Link, host: str = PEER) -> socket.socket:
    """A connection from that host; the kernel takes it also while the reactor rests."""
    client = clients.enter_context(socket.socket(family(host), socket.SOCK_STREAM))
    client.settimeout(PATIENCE)
    client.bind((host, 0))
    client.connect(link.address)
    return client


def listener(clients: ExitStack, host: str = PEER, port: int = 0, backlog: int = 5) -> socket.socket:
    server = clients.enter_context(socket.socket(family(host), socket.SOCK_STREAM))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.settimeout(PATIENCE)
    server.bind((host, port))
    server.listen(backlog)
    return server


def where(of: socket.socket) -> Address:
    return Address(*of.getsockname()[:2])


async def accepted(clients: ExitStack, server: socket.socket) -> socket.socket:
    connection, _ = await deferToThread(server.accept)
    connection.settimeout(PATIENCE)
    return clients.enter_context(connection)


async def read(client: socket.socket, count: int) -> bytes:
    """So many bytes; fewer if the connection ends before."""

    def work() -> bytes:
        data = b""
        with suppress(ConnectionResetError):
            while len(data) < count and (more := client.recv(count - len(data))):
                data += more
        return data

    return cast(bytes, await deferToThread(work))


async def ended(client: socket.socket) -> bytes:
    """What still comes until the other side closes."""
    return await read(client, 2**30)


async def turn() -> None:
    await deferLater(cast(Any, installed), 0, lambda: None)


# -- UDP


@pytest.mark.parametrize(("ours", "peer"), [(OURS, PEER), ("::1", "::1"), ("0.0.0.0", PEER), ("::", PEER)])
@run  # type: ignore[untyped-decorator]
async def test_a_datagram_comes_and_one_goes_back(clients: ExitStack, ours: str, peer: str) -> None:
    client = datagrams(clients, peer)
    async with linked(trunk("udp", where(client), ours=ours)) as (link, element):
        # Of a socket on all addresses it is the kernel that chooses where an answer comes from.
        to = Address("127.0.0.1" if ours in ("0.0.0.0", "::") else ours, link.address.port)
        client.sendto(message("one", b"body"), to)
        await element.hears("one")
        assert element.received == [(parse(message("one", b"body")), where(client))]
        link.send(b"answer", where(client), 4711)
        data, source = await deferToThread(client.recvfrom, 100)
        assert (data, source[:2]) == (b"answer", to)
    assert element.log == []


@run  # type: ignore[untyped-decorator]
async def test_the_largest_datagrams(clients: ExitStack) -> None:
    client = datagrams(clients)
    large = message("large", b"x" * 65000)
    async with linked(trunk("udp", where(client))) as (link, element):
        client.sendto(large, link.address)
        await element.hears("large")
        link.send(large, where(client))
        assert await deferToThread(client.recv, 65535) == large


@run  # type: ignore[untyped-decorator]
async def test_what_is_no_message_disturbs_no_other_datagram(clients: ExitStack) -> None:
    client, stranger = datagrams(clients), datagrams(clients, STRANGER)
    async with linked(trunk("udp", where(client))) as (link, element):
        client.sendto(b"", link.address)
        client.sendto(b"\r\n\r\n", link.address)  # a keep-alive
        client.sendto(b"\xff" * 500, link.address)
        client.sendto(message("shorter", length=5), link.address)
        stranger.sendto(message("stranger"), link.address)
        client.sendto(message("good"), link.address)
        await element.hears("good")
        assert element.words == ["Malformed", "BadRequest", "good"]
        assert where(stranger) in element.asked


@run  # type: ignore[untyped-decorator]
async def test_many_datagrams_are_read_at_once_but_others_have_their_turn(clients: ExitStack) -> None:
    client = datagrams(clients)
    words = [str(n) for n in range(3 * transport.DATAGRAMS)]
    async with linked(trunk("udp", where(client))) as (link, element):
        seen: list[int] = []
        element.on_receive = lambda word: cast(Any, installed).callLater(
            0, lambda: seen.append(len(element.words))
        )
        for word in words:
            client.sendto(message(word), link.address)
        await element.hears(words[-1])
        await turn()
        assert element.words == words
        assert seen[0] == transport.DATAGRAMS


@run  # type: ignore[untyped-decorator]
async def test_where_nobody_listens_any_more(clients: ExitStack) -> None:
    """The kernel reports it by ICMP."""
    client, asterisk = datagrams(clients), datagrams(clients, ASTERISK)
    async with linked(trunk("udp", where(client), where(asterisk))) as (link, element):
        at = where(asterisk)
        asterisk.close()
        for n in range(3):
            link.send(b"to nobody", at)
            client.sendto(message(str(n)), link.address)
            await element.hears(str(n))
            link.send(b"answer", where(client))
            assert await deferToThread(client.recv, 100) == b"answer"
    assert (element.log, element.gone) == ([], [])


@run  # type: ignore[untyped-decorator]
async def test_what_cannot_be_sent_is_dropped_and_noted(clients: ExitStack) -> None:
    client = datagrams(clients)
    async with linked(trunk("udp", where(client))) as (link, element):
        link.send(b"x" * 65508, where(client))
        link.send(b"x", Address("localhost", 5060))  # is not looked up
        link.send(b"x", Address("a" * 80, 5060))
        link.send(b"x", Address("2001:db8::1", 5060))
        link.send(b"x", where(client), None)
        assert await deferToThread(client.recv, 100) == b"x"
    assert element.log[0] == (f"trunk mxone: 65508 bytes cannot be sent to {where(client)}: Message too long")
    assert len(element.log) == 4
    assert element.gone == []


# -- both


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("host", [OURS, "::1"])
@run  # type: ignore[untyped-decorator]
async def test_an_address_in_use(protocol: str, host: str) -> None:
    peer = Address("::1" if ":" in host else PEER, 5060)
    async with linked(trunk(protocol, peer, ours=host)) as (link, _):
        second = Trunk("second", protocol, link.address, (peer,), Address(ASTERISK, 5060), "e", peer, peer)
        with pytest.raises(FastagiError) as caught:
            Link(installed, second, print).start()
        shown = f"[{host}]" if ":" in host else host
        sentence = (
            f"trunk second cannot listen on {protocol}:{shown}:{link.address.port}: Address already in use"
        )
        assert str(caught.value) == sentence
    again = Link(installed, second, print)  # at once
    again.start()
    await again.stop()


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@run  # type: ignore[untyped-decorator]
async def test_an_address_of_another_machine(protocol: str) -> None:
    link = Link(installed, trunk(protocol, Address(PEER, 5060), ours="192.0.2.1"), print)
    with pytest.raises(
        FastagiError, match=rf"^trunk mxone cannot listen on {protocol}:192\.0\.2\.1:0: Cannot "
    ):
        link.start()
    await link.stop()  # is harmless


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@run  # type: ignore[untyped-decorator]
async def test_a_fault_of_the_element_costs_one_message(clients: ExitStack, protocol: str) -> None:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"] == "fastagi.sip.transport":
            lines.append(formatEvent(event))

    def fail(word: str) -> None:
        if word == "bad":
            raise RuntimeError("on purpose")

    client = datagrams(clients) if protocol == "udp" else None
    async with linked(trunk(protocol, where(client) if client else Address(PEER, 5060))) as (link, element):
        element.on_receive = fail
        client = client or stream(clients, link)
        client.connect(link.address) if protocol == "udp" else None
        globalLogPublisher.addObserver(cast(Any, observe))
        try:
            client.send(message("bad"))
            client.send(message("good"))
            await element.hears("good")
        finally:
            globalLogPublisher.removeObserver(cast(Any, observe))
    assert element.words == ["bad", "good"]
    assert lines == ["A message on the trunk mxone could not be handled."]


# -- TCP: by which connection


@pytest.mark.parametrize(("ours", "peer"), [(OURS, PEER), ("::1", "::1"), ("0.0.0.0", PEER), ("::", PEER)])
@run  # type: ignore[untyped-decorator]
async def test_an_answer_goes_back_by_the_connection_its_request_came_by(
    clients: ExitStack, ours: str, peer: str
) -> None:
    async with linked(trunk("tcp", Address(peer, 5060), ours=ours)) as (link, element):
        if link.address.host in ("0.0.0.0", "::"):
            link.address = Address(OURS, link.address.port)
        first, second = stream(clients, link, peer), stream(clients, link, peer)
        second.sendall(message("second", b"body"))
        first.sendall(message("first")[:50])
        await element.hears("second")
        first.sendall(message("first")[50:])
        await element.hears("first")
        assert element.received == [
            (parse(message("second", b"body")), where(second)),
            (parse(message("first")), where(first)),
        ]
        for client, answer in ((first, b"to the first"), (second, b"to the second")):
            link.send(answer, Address(peer.upper(), 5060), where(client).port)
            assert await read(client, len(answer)) == answer


@pytest.mark.parametrize("port", [5090, None])  # that of the Via; and the true one
@run  # type: ignore[untyped-decorator]
async def test_a_connection_that_is_gone_is_replaced_by_a_new_one(
    clients: ExitStack, port: int | None
) -> None:
    server = listener(clients)
    async with linked(trunk("tcp", where(server))) as (link, element):
        client = stream(clients, link)
        gone = where(client)
        client.sendall(message("one"))
        await element.hears("one")
        client.close()
        await element.until(lambda: gone in element.gone)
        link.send(b"answer", Address(PEER, port or where(server).port), gone.port)
        connection = await accepted(clients, server)
        assert connection.getpeername()[0] == OURS
        assert await read(connection, 6) == b"answer"
        link.send(b"another", where(server), gone.port)
        assert await read(connection, 7) == b"another"


@run  # type: ignore[untyped-decorator]
async def test_one_connection_for_all_requests(clients: ExitStack) -> None:
    server = listener(clients)
    async with linked(trunk("tcp", where(server))) as (link, element):
        for n in range(10):  # before it is open
            link.send(message(str(n)), where(server))
        connection = await accepted(clients, server)
        wanted = b"".join(message(str(n)) for n in range(10))
        assert await read(connection, len(wanted)) == wanted
        connection.sendall(message("back"))
        await element.hears("back")
        assert element.received[0][1] == where(server)
        link.send(b"answer", where(server), where(server).port)
        assert await read(connection, 6) == b"answer"
        connection.close()
        await element.until(lambda: element.gone == [where(server)])
        link.send(b"once more", where(server))
        assert await read(await accepted(clients, server), 9) == b"once more"


@pytest.mark.parametrize("ours", ["0.0.0.0", "::"])
@run  # type: ignore[untyped-decorator]
async def test_who_listens_everywhere_connects_from_anywhere(clients: ExitStack, ours: str) -> None:
    server = listener(clients)
    async with linked(trunk("tcp", where(server), ours=ours)) as (link, _):
        link.send(b"request", where(server))
        assert await read(await accepted(clients, server), 7) == b"request"


@run  # type: ignore[untyped-decorator]
async def test_two_connections_with_the_same_other_end(clients: ExitStack) -> None:
    """The peer connects from the port on which it listens."""
    server = listener(clients)
    async with linked(trunk("tcp", where(server))) as (link, element):
        link.send(b"request", where(server))
        connection = await accepted(clients, server)
        assert await read(connection, 7) == b"request"
        client = clients.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        client.settimeout(PATIENCE)
        client.bind(where(server))
        client.connect(link.address)
        client.sendall(message("one"))
        await element.hears("one")
        connection.sendall(message("two"))
        await element.hears("two")
        connection.close()
        await served(clients, link, element)
        link.send(b"answer", where(server))
        assert await read(client, 6) == b"answer"
        assert element.gone == []


@run  # type: ignore[untyped-decorator]
async def test_nothing_is_opened_to_others(clients: ExitStack) -> None:
    """Neither to a stranger nor to one of ``allow``, who may connect to us."""
    server = listener(clients, STRANGER)
    server.setblocking(False)
    allowed = (ip_network(f"{STRANGER}/32"),)
    async with linked(trunk("tcp", Address(PEER, 5060), allow=allowed)) as (link, element):
        link.send(b"request", where(server))
        link.send(b"request", Address("phone.example.com", 5060), 5060)
        client = stream(clients, link, STRANGER)
        client.sendall(message("allowed"))
        await element.hears("allowed")
        link.send(b"answer", where(server), where(client).port)
        assert await read(client, 6) == b"answer"
        with pytest.raises(BlockingIOError):
            server.accept()
    dropped = "trunk mxone: there is no connection with {}: a message was dropped"
    assert element.log == [dropped.format(where(server)), dropped.format("phone.example.com:5060")]


@run  # type: ignore[untyped-decorator]
async def test_a_refused_connection(clients: ExitStack) -> None:
    server = listener(clients)
    at = where(server)
    server.close()
    async with linked(trunk("tcp", at)) as (link, element):
        link.send(b"in vain", at)
        assert element.gone == []  # never while it is being sent
        await element.until(lambda: element.gone == [at])
        assert element.log[0].startswith(f"trunk mxone: the connection with {at} cannot be opened: ")
        server = listener(clients, port=at.port)
        link.send(b"request", at)
        assert await read(await accepted(clients, server), 7) == b"request"


@asynccontextmanager
async def black_hole(clients: ExitStack) -> AsyncIterator[Address]:
    """An address where connections are neither accepted nor refused: its queue is full."""
    server = listener(clients, backlog=0)
    for _ in range(4):
        client = clients.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(where(server))
    yield where(server)


@run  # type: ignore[untyped-decorator]
async def test_a_connection_that_does_not_come_about(
    clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECT", 0.05)
    async with black_hole(clients) as at, linked(trunk("tcp", at)) as (link, element):
        link.send(b"request", at)
        await element.until(lambda: element.gone == [at])


@run  # type: ignore[untyped-decorator]
async def test_what_waits_for_a_connection_is_bounded(clients: ExitStack) -> None:
    async with black_hole(clients) as at, linked(trunk("tcp", at)) as (link, element):
        for _ in range(transport.MAX_UNSENT // 60000):
            link.send(b"x" * 60000, at)
        assert element.log == []
        link.send(b"x" * 60000, at)
        assert element.log == [f"trunk mxone: the connection with {at} is cut off: it takes nothing any more"]
        await element.until(lambda: element.gone == [at])
        link.send(b"request", at)  # and another attempt, which is stopped


# -- TCP: hostile connections


@run  # type: ignore[untyped-decorator]
async def test_a_stranger_is_not_read(clients: ExitStack) -> None:
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        client = stream(clients, link, STRANGER)
        client.sendall(message("stranger"))
        assert await ended(client) == b""
        await served(clients, link, element)
        assert element.words == ["good0"]


async def served(clients: ExitStack, link: Link, element: Element) -> None:
    """A good message comes through, and its answer."""
    word = f"good{len(element.words)}"
    client = stream(clients, link)
    client.sendall(message(word))
    await element.hears(word)
    link.send(b"answer", Address(PEER, 5060), where(client).port)
    assert await read(client, 6) == b"answer"


@run  # type: ignore[untyped-decorator]
async def test_a_keep_alive_is_answered(clients: ExitStack) -> None:
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        client = stream(clients, link)
        client.sendall(b"\r\n\r\n" + message("one") + b"\r\n\r\n")
        assert await read(client, 4) == b"\r\n\r\n"
        assert element.words == ["one"]


@run  # type: ignore[untyped-decorator]
async def test_a_dead_peer_is_noticed(clients: ExitStack) -> None:
    """By the kernel, on connections of both kinds."""
    server = listener(clients)
    async with linked(trunk("tcp", where(server))) as (link, element):
        link.send(b"request", where(server))
        connection = await accepted(clients, server)
        stream(clients, link)
        await element.until(lambda: len(element.asked) == 1)
        assert await read(connection, 7) == b"request"
        both = [cast(socket.socket, c.transport.getHandle()) for c in cast(Any, link)._wire._all]
        assert len(both) == 2
        for sock in both:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 32000


@pytest.mark.parametrize(
    "half", [HALF, HALF[:-4], HALF[:70], b"O"], ids=["in the body", "before it", "in the headers", "one byte"]
)
@run  # type: ignore[untyped-decorator]
async def test_half_a_message_and_then_silence(clients: ExitStack, half: bytes) -> None:
    clock = Clock()
    async with linked(trunk("tcp", Address(PEER, 5060)), Turned(clock)) as (link, element):
        client, quiet = stream(clients, link), stream(clients, link)
        quiet.sendall(message("quiet"))
        client.sendall(message("whole") + half)
        await element.hears("quiet", "whole")
        clock.advance(transport.HALF - 1)
        await served(clients, link, element)
        assert element.gone == []
        clock.advance(1)
        assert await ended(client) == b""
        clock.advance(1000)
        quiet.sendall(message("still-there"))
        await element.hears("still-there")
    cut_off = f"the connection with {where(client)} is cut off: a message has begun and does not end"
    assert element.log == [f"trunk mxone: {cut_off}"]


@run  # type: ignore[untyped-decorator]
async def test_drops_of_a_message_prolong_nothing(
    clients: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    fed = 0

    class Counting(Framer):
        def feed(self, data: bytes) -> Any:
            nonlocal fed
            fed += len(data)
            cast(Any, installed).callLater(0, element.look)
            return super().feed(data)

    monkeypatch.setattr(transport, "Framer", Counting)
    async with linked(trunk("tcp", Address(PEER, 5060)), Turned(clock)) as (link, element):
        client = stream(clients, link)
        for n in range(32):
            client.sendall(HALF[n : n + 1])
            await element.until(lambda n=n: fed == n + 1)  # type: ignore[misc]
            assert element.gone == []
            clock.advance(1)
        assert await ended(client) == b""


@run  # type: ignore[untyped-decorator]
async def test_every_message_has_a_time_of_its_own(clients: ExitStack) -> None:
    clock = Clock()
    async with linked(trunk("tcp", Address(PEER, 5060)), Turned(clock)) as (link, element):
        client = stream(clients, link)
        client.sendall(message("0") + message("1")[:90])
        await element.hears("0")
        for n in range(1, 5):
            clock.advance(transport.HALF - 1)
            client.sendall(message(str(n))[90:] + message(str(n + 1))[:90])
            await element.hears(str(n))
        clock.advance(transport.HALF - 5)
        later = stream(clients, link)
        later.sendall(message("later") + HALF)
        await element.hears("later")
        clock.advance(5)
        assert await ended(client) == b""
        clock.advance(transport.HALF - 5)
        assert await ended(later) == b""


BROKEN = {
    "an endless header": b"OPTIONS sip:x@h SIP/2.0\r\nSubject: " + b"x" * 100_000,
    "endless headers": b"OPTIONS sip:x@h SIP/2.0\r\n" + b"Subject: x\r\n" * 10_000,
    "an endless first line": b"OPTIONS sip:" + b"x" * 100_000,
    "a Content-Length that is too short": message("x", b"what is left of it", length=4),
    "a Content-Length beyond all bounds": message("x", length=10**12),
    "a Content-Length below zero": message("x", length=-1),
    "no Content-Length": message("x").replace(b"Content-Length: 0\r\n", b""),
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "zeros": bytes(200_000),
    "noise": bytes(range(255, 0, -1)) * 100,
}


@pytest.mark.parametrize("what", BROKEN)
@run  # type: ignore[untyped-decorator]
async def test_what_cannot_be_understood_ends_the_connection(clients: ExitStack, what: str) -> None:
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        client = stream(clients, link)
        sending = deferToThread(client.sendall, BROKEN[what])
        assert await ended(client) == b""
        await sending
        client.close()
        await element.until(lambda: len(element.gone) == 1)
        assert isinstance(element.received[-1][0], Malformed)
        assert len(element.received) < 3
        await served(clients, link, element)


@run  # type: ignore[untyped-decorator]
async def test_the_last_answer_arrives_whatever_comes_behind_the_request(clients: ExitStack) -> None:
    """Bytes that nobody reads would reset the connection, and the answer with it."""
    of = trunk("tcp", Address(PEER, 5060))
    async with linked(of) as (link, fake):
        clock: Any = transport._Clock(installed)
        real = elements.Element(of, cast(Any, None), clock, link.send, fake.note, lambda: "z9hG4bKca1")
        link.element = real
        client = stream(clients, link)
        sending = deferToThread(client.sendall, BROKEN["no Content-Length"] + b"x" * 2**20)
        answer = await ended(client)
        assert answer.startswith(b"SIP/2.0 400 Bad Request\r\n")
        await sending
        real.close()


@run  # type: ignore[untyped-decorator]
async def test_who_does_not_close_then_is_cut_off(clients: ExitStack) -> None:
    clock = Clock()
    server = listener(clients)
    async with linked(trunk("tcp", where(server)), Turned(clock)) as (link, element):
        client = stream(clients, link)
        client.sendall(BROKEN["HTTP"])
        assert await ended(client) == b""
        client.sendall(message("too-late"))
        link.send(b"answer", where(server), where(client).port)
        assert await read(await accepted(clients, server), 6) == b"answer"
        await served(clients, link, element)
        assert element.gone == []
        clock.advance(transport.LINGER)
        await element.until(lambda: element.gone == [where(client)])
        assert element.words == ["Malformed", "good1"]


@run  # type: ignore[untyped-decorator]
async def test_thousands_of_connections(clients: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_OF_ONE_HOST", 20)
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        good, asterisk = stream(clients, link), stream(clients, link, ASTERISK)
        good.sendall(message("one"))
        await element.hears("one")
        latest: deque[socket.socket] = deque()

        def storm() -> None:
            for n in range(2000):
                latest.append(stream(clients, link))
                if n % 3 == 0:
                    latest[-1].sendall(HALF if n % 2 else BROKEN["HTTP"])
                if len(latest) > 100:
                    latest.popleft().close()

        await deferToThread(storm)
        await element.until(lambda: len(element.asked) == 2002)
        good.sendall(message("two"))
        asterisk.sendall(message("three"))
        await element.hears("two", "three")
        await served(clients, link, element)
        still_there = [client for client in latest if is_open(client)]
        assert 10 < len(still_there) <= 19
        assert len(element.log) <= 5


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@run  # type: ignore[untyped-decorator]
async def test_the_most_crowded_host_makes_room(clients: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_OF_ONE_HOST", 4)
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 6)
    clock = Clock()
    of = trunk("tcp", Address(PEER, 5060), allow=(ip_network("127.0.2.0/24"),))
    async with linked(of, Turned(clock)) as (link, element):
        crowd = []
        for n in range(4):
            crowd.append(stream(clients, link, "127.0.2.1"))
            if n != 2:
                crowd[-1].sendall(message(f"crowd{n}"))
                await element.hears(f"crowd{n}")
            clock.advance(1)
        crowd[0].sendall(message("crowd0-again"))
        crowd[3].sendall(BROKEN["HTTP"])
        await element.hears("crowd0-again", "Malformed")
        for n, host in enumerate(["127.0.2.2", PEER, ASTERISK, "127.0.2.3", "127.0.2.4"]):
            stream(clients, link, host).sendall(message(f"other{n}"))
            await element.hears(f"other{n}")
        await element.until(lambda: len(element.gone) == 3)
        # The one that is over, then the one that never spoke, then the one that was silent longest
        assert element.gone == [where(crowd[3]), where(crowd[2]), where(crowd[1])]


@run  # type: ignore[untyped-decorator]
async def test_a_flood_leaves_the_others_their_turn(clients: ExitStack) -> None:
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        flood, good = stream(clients, link), stream(clients, link, ASTERISK)
        await element.until(lambda: len(element.asked) == 2)
        flood.setblocking(False)
        sent = flood.send(message("flood") * 1000)
        flood.setblocking(True)
        assert sent > 4 * transport.AT_ONCE
        good.sendall(message("good"))
        await element.hears("good")
        assert len(element.words) <= 3 * transport.AT_ONCE / len(message("flood"))


@run  # type: ignore[untyped-decorator]
async def test_a_slow_reader_gets_all_that_fits(clients: ExitStack) -> None:
    async with linked(trunk("tcp", Address(PEER, 5060))) as (link, element):
        client = stream(clients, link)
        client.sendall(message("one"))
        await element.hears("one")
        wanted = [bytes([n]) * 60000 for n in range(transport.MAX_UNSENT // 60000)]
        for _ in range(4):
            for data in wanted:
                link.send(data, Address(PEER, 5060), where(client).port)
            assert await read(client, 60000 * len(wanted)) == b"".join(wanted)
        assert element.log == []


@run  # type: ignore[untyped-decorator]
async def test_who_does_not_read_is_cut_off(clients: ExitStack) -> None:
    server = listener(clients)
    async with linked(trunk("tcp", where(server))) as (link, element):
        client = stream(clients, link)
        client.sendall(message("one"))
        await element.hears("one")
        sent = 0
        while not element.log:
            link.send(b"x" * 10000, Address(PEER, 5060), where(client).port)
            sent += 10000
            assert sent < 2**26  # what the kernel takes, too, has an end
            await turn()
        link.send(b"next", where(server), where(client).port)
        assert await read(await accepted(clients, server), 4) == b"next"
        cut_off = f"the connection with {where(client)} is cut off: it takes nothing any more"
        assert element.log == [f"trunk mxone: {cut_off}"]
        await element.until(lambda: element.gone == [where(client)])
        await served(clients, link, element)


# -- the end


@run  # type: ignore[untyped-decorator]
async def test_what_was_sent_last_arrives(clients: ExitStack) -> None:
    server = listener(clients)
    clock = Clock()  # stands still: nothing is cut off
    async with linked(trunk("tcp", where(server)), Turned(clock)) as (link, element):
        client = stream(clients, link)
        client.sendall(message("one"))
        link.send(b"request", where(server))
        connection = await accepted(clients, server)
        assert await read(connection, 7) == b"request"
        await element.hears("one")
        data = b"x" * 900_000
        for at in range(0, len(data), 50_000):
            link.send(data[at : at + 50_000], Address(PEER, 5060), where(client).port)
        reading = deferToThread(lambda: [client.recv(65536) for _ in range(3)])
        stopped = link.stop()
        first = b"".join(await reading)
        assert first + await ended(client) == data
        assert await ended(connection) == b""
        await stopped
        with closing(socket.socket()) as late, pytest.raises(ConnectionRefusedError):
            late.connect(link.address)
        link.send(b"too late", where(server))
        await turn()
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert (element.log, element.gone) == ([], [])


@run  # type: ignore[untyped-decorator]
async def test_nobody_can_hold_up_the_end(clients: ExitStack) -> None:
    clock = Clock()
    async with black_hole(clients) as at, linked(trunk("tcp", at), Turned(clock)) as (link, element):
        client, broken = stream(clients, link), stream(clients, link)
        client.sendall(message("one") + HALF)
        broken.sendall(BROKEN["HTTP"])
        link.send(b"request", at)
        await element.hears("one", "Malformed")
        while len(element.log) == 0:  # until the kernel takes no more
            link.send(b"x" * 10000, Address(PEER, 5060), where(client).port)
            if await full(link, client):
                break
        stopped = link.stop()
        await turn()
        assert not stopped.called
        clock.advance(transport.LINGER)
        await stopped
    assert clock.getDelayedCalls() == []


async def full(link: Link, client: socket.socket) -> bool:
    """Whether the connection takes nothing for now."""
    await turn()
    return bool(cast(Any, link)._wire._usable[where(client)]._unsent)


@run  # type: ignore[untyped-decorator]
async def test_a_datagram_link_ends_at_once(clients: ExitStack) -> None:
    client = datagrams(clients)
    async with linked(trunk("udp", where(client))) as (link, element):
        link.send(b"x", Address("nobody", 1))
        assert link.stop().called
        link.send(b"x", where(client))
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
            other.bind(link.address)
    assert len(element.log) == 1
