"""The sockets of a trunk, UDP or TCP (RFC 3261, 18): bytes in, messages to the element; bytes out.

Theory of operation
-------------------
Nothing that comes may stall, fill or end the server, whoever sends it:

- A socket is read a little at a time, then the others have their turn.
- A message must be complete HALF seconds after its first byte: more bytes prolong nothing.
- A connection that cannot be understood any more is told so, half-closed, and cut off LINGER seconds later at
  the latest. To close at once would take the answer with it: bytes that nobody has read reset a connection.
- Where there is no room for one more connection, one of the same or of the most crowded host goes: first one
  that is over already, then one that never brought a message, then the one that has been silent longest.
- What a connection does not take is kept up to MAX_UNSENT, then the connection is cut off.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from math import inf
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from fastagi.errors import FastagiError
from fastagi.sip.element import Element
from fastagi.sip.limits import Notices, Timer
from fastagi.sip.message import Malformed, Request, Response, is_keep_alive, parse
from fastagi.sip.stream import Framer, Ping
from fastagi.sip.trunk import Address, Trunk

HALF: Final = 32.0  # seconds; 64 * T1, after which its sender has given up too
LINGER: Final = 2.0  # seconds
CONNECT: Final = 10.0  # seconds
MAX_UNSENT: Final = 2**20  # bytes
MAX_CONNECTIONS: Final = 256  # that others have opened
MAX_OF_ONE_HOST: Final = 128  # of these, so that no host keeps the others out
BACKLOG: Final = 1024
DATAGRAMS: Final = 64  # that are read in one go
AT_ONCE: Final = 2**14  # bytes of a connection that are read in one go
BUFFER: Final = 2**22  # bytes of a UDP socket; Linux cuts them to net.core.rmem_max and wmem_max
# A dead peer is noticed after 2 minutes of silence, and after HALF seconds if something is to be sent.
OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(HALF * 1000)),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)

_log = Logger()


class Link:
    """One trunk's hold on the network. ``element`` is set before `start`."""

    element: Element
    address: Address
    """Where it listens, once it is started; its port is the true one, also if 0 was asked for."""

    def __init__(self, reactor: Any, trunk: Trunk, log: Callable[[str], None]) -> None:
        self.reactor = reactor
        self.trunk = trunk
        self._stopped = False
        self._notices = Notices(_Clock(reactor), lambda line: log(f"trunk {trunk.name}: {line}"))
        self._wire: _Datagrams | _Streams = _Datagrams(self) if trunk.transport == "udp" else _Streams(self)

    def start(self) -> None:
        """Raises FastagiError (a sentence) if its address cannot be had."""
        trunk = self.trunk
        try:
            self.address = _address(self._wire.open())
        except OSError as error:
            where = f"{trunk.transport}:{trunk.listen}"
            raise FastagiError(f"trunk {trunk.name} cannot listen on {where}: {error.strerror}") from error

    def stop(self) -> Deferred[None]:
        """Fires when all its sockets are closed: at once, or when what was unsent is sent, or after LINGER seconds."""
        self._stopped = True
        self._notices.close()
        return self._wire.close()

    def send(self, data: bytes, to: Address, port: int | None = None) -> None:
        """Send one message.  This never fails: a message may get lost on its way anyhow.

        UDP: a datagram from the listening port.  TCP: by the open connection whose other end is (``to.host``,
        ``port``), else by one with ``to``, or, if that is not configured, with the configured address of that
        host (18.2.2); it is opened if need be.
        """
        if not self._stopped:
            self._wire.send(data, to, port)

    # For what is below

    def deliver(self, data: Request | Response | Malformed, source: Address) -> None:
        try:
            self.element.receive(data, source)
        except Exception:  # A fault of ours; the messages behind this one shall come through
            _log.failure("A message on the trunk {trunk} could not be handled.", trunk=self.trunk.name)

    def note(self, kind: str, line: str) -> None:
        self._notices.say(kind, line)


class _Clock:
    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def now(self) -> float:
        return float(self._reactor.seconds())

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer: Timer = self._reactor.callLater(max(0.0, when - self.now()), call)
        return timer


# -- addresses ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _socket_address(family: int, host: str, port: int) -> Any:
    """As a socket of that family wants it; OSError for what is no IP address: no name is ever looked up."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV | socket.AI_V4MAPPED
    return socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, 0, flags)[0][4]


def _address(name: Any) -> Address:
    """What a socket says, with an IPv4 address as one: a socket on ``::`` calls it ``::ffff:192.0.2.1``."""
    host = name[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return Address(host, name[1])


def _bound(kind: socket.SocketKind, listen: Address, *options: tuple[int, int, int]) -> socket.socket:
    """A socket on that address; ``::`` is IPv4 too.  Raises OSError."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    if family == socket.AF_INET6:
        options = (*options, (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    bound = socket.socket(family, kind)
    try:
        bound.setblocking(False)
        for option in options:
            bound.setsockopt(*option)
        bound.bind(_socket_address(family, *listen))
    except OSError:
        bound.close()
        raise
    return bound


# -- UDP ---------------------------------------------------------------------------------------------------


class _Datagrams(FileDescriptor):
    """The one socket.  Twisted's own UDP port would read hundreds of datagrams while all others wait."""

    _socket: socket.socket

    def __init__(self, link: Link) -> None:
        super().__init__(link.reactor)
        self._link = link

    def open(self) -> Any:
        buffers = [(socket.SOL_SOCKET, which, BUFFER) for which in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
        self._socket = _bound(socket.SOCK_DGRAM, self._link.trunk.listen, *buffers)
        self._family = self._socket.family
        self.connected = 1
        self.startReading()  # type: ignore[no-untyped-call]
        return self._socket.getsockname()

    def fileno(self) -> int:
        return self._socket.fileno()

    def doRead(self) -> None:
        for _ in range(DATAGRAMS):
            try:
                data, name = self._socket.recvfrom(65535)
            except OSError:  # There is no more; and nothing else that it could be shall end the reading
                return
            source = _address(name)
            if self._link.element.accepts(source) and not is_keep_alive(data):
                self._link.deliver(_read(data), source)

    def send(self, data: bytes, to: Address, port: int | None) -> None:
        try:
            self._socket.sendto(data, _socket_address(self._family, *to))
        except (OSError, ValueError) as error:
            # The element is not told: who sent it to us sends it again, and by then it may go through.
            why = error.strerror if isinstance(error, OSError) else "that is no address"
            self._link.note("datagrams not sent", f"{len(data)} bytes cannot be sent to {to}: {why}")

    def close(self) -> Deferred[None]:
        if self.connected:
            self.connectionLost(connectionDone)
        return succeed(None)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._socket.close()


def _read(data: bytes) -> Request | Response | Malformed:
    try:
        return parse(data)
    except Malformed as error:
        return error


# -- TCP ---------------------------------------------------------------------------------------------------


class _Streams(Factory):
    """All connections of a trunk, with one delayed call for the nearest `ends_at` among them."""

    noisy = False

    def __init__(self, link: Link) -> None:
        self.link = link
        self._configured = (link.trunk.asterisk, *link.trunk.peer)
        self._all: set[_Connection] = set()
        self._usable: dict[Address, _Connection] = {}  # by the other end, the latest of each
        self._port: Any = None
        self._alarm: Any = None
        self._alarm_at = inf
        self._closed: Deferred[None] | None = None

    def open(self) -> Any:
        options = ((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1), *OPTIONS)  # connections inherit them
        with _bound(socket.SOCK_STREAM, self.link.trunk.listen, *options) as listener:
            listener.listen(BACKLOG)
            self._port = self.link.reactor.adoptStreamPort(listener.fileno(), listener.family, self)
            return listener.getsockname()

    # Connections that others open

    def buildProtocol(self, addr: Any) -> _Connection | None:
        """None makes Twisted close the connection at once."""
        other_end = _address((addr.host, addr.port))
        if not self.link.element.accepts(other_end):
            return None
        self._make_room(other_end.host)
        return _Connection(self, other_end)

    def _make_room(self, host: str) -> None:
        others = [c for c in self._all if c.connector is None and not c.aborted]
        if len(others) < MAX_OF_ONE_HOST:
            return
        crowds = Counter(c.other_end.host for c in others)
        if crowds[host] < MAX_OF_ONE_HOST:
            if len(others) < MAX_CONNECTIONS:
                return
            host = crowds.most_common(1)[0][0]
        victim = min((c for c in others if c.other_end.host == host), key=lambda c: c.worth)
        victim.abort("is cut off: there are too many")

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)
        self._usable[connection.other_end] = connection

    def retire(self, connection: _Connection) -> None:
        """Nothing more is to be sent there."""
        if self._usable.get(connection.other_end) is connection:
            del self._usable[connection.other_end]

    def gone(self, connection: _Connection) -> None:
        self.retire(connection)
        self._all.discard(connection)
        if self._closed is not None:
            self._check_closed()
        elif connection.other_end not in self._usable:
            self.link.element.lost(connection.other_end)

    # Sending, and connections that we open

    def send(self, data: bytes, to: Address, port: int | None) -> None:
        to = Address(to.host.lower(), to.port)  # of a Via, whose writer may like capitals
        connection = self._usable.get(to if port is None else Address(to.host, port))
        if connection is None:
            target = self._target(to)
            connection = target and (self._usable.get(target) or self._connect(target))
        if connection is None:
            self.link.note("messages not sent", f"there is no connection with {to}: a message was dropped")
        else:
            connection.write(data)

    def _target(self, to: Address) -> Address | None:
        if to in self._configured:
            return to
        return next((known for known in self._configured if known.host == to.host), None)

    def _connect(self, to: Address) -> _Connection:
        host = self.link.trunk.listen.host
        source = None if ip_address(host).is_unspecified else (host, 0)
        connection = _Connection(self, to)
        connection.connector = self.link.reactor.connectTCP(*to, _Opening(connection), CONNECT, source)
        self.opened(connection)
        return connection

    # Time

    def watch(self, connection: _Connection) -> None:
        """A connection has a new `ends_at`: be awake by then."""
        if connection.ends_at < self._alarm_at:
            self._arm(connection.ends_at)

    def _arm(self, instant: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = instant
        if instant < inf:
            reactor = self.link.reactor
            self._alarm = reactor.callLater(max(0.0, instant - reactor.seconds()), self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, inf
        now = self.link.reactor.seconds()
        for connection in tuple(self._all):
            if connection.ends_at <= now:
                connection.expire()
        self._arm(min((c.ends_at for c in self._all), default=inf))

    # The end

    def close(self) -> Deferred[None]:
        if self._closed is None:
            self._closed = Deferred()
            for connection in tuple(self._all):
                connection.leave()
            if self._port is not None:
                maybeDeferred(self._port.stopListening).addBoth(self._not_listening)
            self._check_closed()
        return self._closed

    def _not_listening(self, _: object) -> None:
        self._port = None
        self._check_closed()

    def _check_closed(self) -> None:
        closed = self._closed
        if closed is not None and not (self._port or self._all or closed.called):
            self._arm(inf)
            closed.callback(None)


class _Opening(ClientFactory):
    noisy = False

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: Any) -> _Connection:
        return self._connection

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._connection.connectionFailed(reason)


class _Connection(Protocol):
    """One connection, whoever opens it; what is written to one that is not open yet waits."""

    transport: Any
    connector: Any = None
    """Twisted's, if it is we who open it."""
    aborted = False
    ends_at = inf
    """When it is cut off: a message has begun, or the last answer is on its way."""

    def __init__(self, streams: _Streams, other_end: Address) -> None:
        self.other_end = other_end
        self._streams = streams
        self._framer = Framer()
        self._spoken = False  # it has brought a message
        self._heard = streams.link.reactor.seconds()
        # What waits until Twisted's own buffer is empty, which holds no more than AT_ONCE and one message
        self._unsent: deque[bytes] = deque()
        self._room = MAX_UNSENT
        self._full = True
        self._leaving = False

    @property
    def worth(self) -> tuple[bool, bool, float]:
        """Who has least of it goes first."""
        return not self._leaving, self._spoken, self._heard

    def connectionMade(self) -> None:
        self.transport.bufferSize = AT_ONCE
        self.transport.registerProducer(self, True)
        if self.connector is None:
            self._streams.opened(self)
        else:
            for option in OPTIONS:
                self.transport.getHandle().setsockopt(*option)
        self.resumeProducing()

    def connectionFailed(self, reason: Failure) -> None:
        if not self.aborted:
            self._note(f"cannot be opened: {reason.getErrorMessage()}")
        self.connectionLost(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leaving = self.aborted = True
        self.ends_at = inf
        self._unsent.clear()
        self._streams.gone(self)

    def _note(self, what: str) -> None:
        self._streams.link.note("connections", f"the connection with {self.other_end} {what}")

    # Reading

    def dataReceived(self, data: bytes) -> None:
        self._heard = self._streams.link.reactor.seconds()
        found = self._framer.feed(data)
        for one in found:
            if isinstance(one, Ping):
                self.write(b"\r\n")
            else:
                self._spoken = self._spoken or not isinstance(one, Malformed)
                self._streams.link.deliver(one, self.other_end)
        if self._framer.broken:
            self._refuse()
        elif not self._framer.waiting:
            self._bound(inf)
        elif found or self.ends_at == inf:
            self._bound(HALF)

    def _bound(self, seconds: float) -> None:
        if self._leaving:
            return
        self.ends_at = self._streams.link.reactor.seconds() + seconds
        self._streams.watch(self)

    # Writing

    def write(self, data: bytes) -> None:
        if self._leaving:
            return
        if not self._full:
            self.transport.write(data)
        elif len(data) > self._room:
            self.abort("is cut off: it takes nothing any more")
        else:
            self._room -= len(data)
            self._unsent.append(data)

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        while self._unsent and not self._full:
            data = self._unsent.popleft()
            self._room += len(data)
            self.transport.write(data)

    def stopProducing(self) -> None:
        """Twisted asks for it when the connection is lost."""

    # The end

    def expire(self) -> None:
        self.abort("" if self._leaving else "is cut off: a message has begun and does not end")

    def abort(self, why: str) -> None:
        """Cut it off now, unsent things and all."""
        if self.aborted:
            return
        if why:
            self._note(why)
        self._leaving = self.aborted = True
        self.ends_at = inf
        self._unsent.clear()
        self._streams.retire(self)
        if self.transport is None:
            self.connector.stopConnecting()
        else:
            self.transport.abortConnection()

    def leave(self) -> None:
        """Close as soon as what is unsent is sent."""
        if self.transport is None:
            self.abort("")
        elif not self.aborted:
            self._finish()
            self.transport.loseConnection()

    def _refuse(self) -> None:
        """Let what is unsent arrive, and read on past what comes until the other side closes too."""
        if not self._leaving:
            self._finish()
            self.transport.loseWriteConnection()

    def _finish(self) -> None:
        """Hand what is unsent to Twisted, and allow it LINGER seconds."""
        if self._leaving:
            return
        self._bound(LINGER)
        self._leaving = True
        self._streams.retire(self)
        self.transport.unregisterProducer()
        self.transport.writeSequence(self._unsent)
        self._unsent.clear()
