"""The FastAGI server: sessions over TCP, each one run by a script.

Theory of operation.  A session reads the environment, then runs the script that the AGI address names.
From then on it is one command, one answer: Asterisk reads a second command only after it has answered the
first, and if both came in one segment not even then.  The exception are the *last* commands: when the SETs
that end a session are followed at once by a half-close, the end of file makes Asterisk run them all.
So every session ends by our half-close and then Asterisk's own end of file, not by a close that could race
with what Asterisk still has to say; and a script that only sets variables costs one round trip.

While Asterisk waits for us the caller hears nothing, and it would wait for ever.  So each session has an
instant, `ends_at`, at which it is cut off whatever it is doing; one delayed call serves the nearest of them.
"""

from __future__ import annotations

import socket
import sys
import typing
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import inf
from typing import Any

from asterisk.agi import AGIError, AGIHangup, AGIResultHangup
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure

from fastagi.agi import wire
from fastagi.agi.commands import Commands
from fastagi.agi.wire import MAX_BLOCK, MAX_LINE, Call, Environment, Replies, Reply, WireError

_log = Logger()

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1"))
BACKLOG = 1024  # with Twisted's 50, of 500 calls at once some wait longer to connect than Asterisk's 2 s

Script = Callable[["Session"], Coroutine[Any, Any, Mapping[str, str] | None]]
"""``async def script(session)``.  The variables that it returns are the last ones set; None: no more.

The decorator `fastagi.agi.deadline` gives a script a deadline of its own.
"""


class Time(typing.Protocol):
    """What is needed of a reactor: in tests a `twisted.internet.task.Clock`."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], /, *args: object) -> Any: ...


@dataclass(slots=True)
class Counters:
    """What has become of the connections since the server began."""

    accepted: int = 0
    refused: int = 0  # by their address
    crowded: int = 0  # for want of room
    incomplete: int = 0  # ended before the environment's blank line: port probes, callers who hung up
    faulty: int = 0  # said what Asterisk does not say
    unknown: int = 0  # asked for a script that there is not
    answered: int = 0  # the script came to its end
    hung_up: int = 0  # the script was stopped by the caller's or the connection's end
    failed: int = 0  # the script was stopped by an error of its own
    overdue: int = 0  # cut off at the deadline


class Session(Commands, Protocol):
    """One connection from Asterisk: what a script has of it, and the traffic behind that."""

    transport: Any
    call = Call("", {}, {})  # the true one from the script's begin on
    hung_up = False  # Asterisk has said HANGUP, or the connection is gone

    def __init__(self, server: Server) -> None:
        self.ends_at = self._began = inf
        self._server = server
        self._environment: Environment | None = Environment()
        self._replies = Replies()
        self._rest = b""  # the half line at the end of what came
        self._pending: Deferred[Reply] | None = None  # waits for the answer to the command that was sent
        self._queue: deque[tuple[bytes, Deferred[Reply]]] = deque()  # commands not sent yet
        self._last = b""  # what is to be sent right before the half-close
        self._finished = False  # finish() was called
        self._over = ""  # why the connection is of no more use, in a sentence
        self._deaf = False  # nobody cares for what still comes
        self._lost = False
        self._running = False  # the script is
        self._socket: socket.socket | None = None  # while we write past Twisted's buffer
        self._waiters: list[Deferred[None]] = []

    # -- what scripts use, beside the Commands

    async def command(self, *words: str) -> Reply:
        """Send one command and wait for its answer.

        Several tasks may ask at once: one command after the other is sent, in the order of asking.
        """
        reply = await self._ask(wire.command(*words))
        error = wire.error_of(reply)
        if error is None:
            return reply
        if reply.result == "-1" and self.hung_up:
            raise AGIResultHangup(str(error))
        raise error

    def finish(self, /, **variables: str) -> None:
        """Set these variables and end the session; nothing can be asked after it.

        All go out in one write followed at once by a half-close, after the commands that were asked before.
        Where one of them cannot be sent, `WireError` is raised and none is.
        """
        last = b"".join([wire.command("SET", "VARIABLE", name, value) for name, value in variables.items()])
        self._check()
        self._finished = True
        self._last = last
        if self.ends_at == inf:  # a standing session gets an end now
            self.bound(self._server.deadline)
        if self._pending is None:
            self._leave()

    def close(self) -> None:
        """Close the connection without another word; what waits for an answer raises AGIHangup."""
        if not self._lost:
            self._close("The session was closed.")

    def bound(self, seconds: float | None) -> None:
        """Let the session end so many seconds from now, whatever its deadline was; None: not at all.

        A standing session bounds each command so: a command that fails inside Asterisk may get no answer.
        """
        self.ends_at = inf if seconds is None else self._server.clock.seconds() + seconds
        self._server.watch(self)

    @property
    def peer(self) -> str:
        """The address of who has connected."""
        return str(getattr(self.transport.getPeer(), "host", "?"))

    @property
    def closed(self) -> bool:
        """The connection is gone."""
        return self._lost

    @property
    def when_closed(self) -> Deferred[None]:
        """Fires when the connection is gone.  Every look gives a Deferred of its own."""
        waiter: Deferred[None] = Deferred()
        if self._lost:
            waiter.callback(None)
        else:
            self._waiters.append(waiter)
        return waiter

    # -- commands going out

    def _check(self) -> None:
        if self._over:
            raise AGIHangup(self._over)
        if self._finished:
            raise AGIError("The session is finished: no command can follow.")

    def _ask(self, line: bytes) -> Deferred[Reply]:
        self._check()
        asked: Deferred[Reply] = Deferred()
        if self._pending is None:
            self._pending = asked
            self._send(line)
        else:
            self._queue.append((line, asked))
        return asked

    def _send(self, data: bytes) -> None:
        """Write now: through Twisted's buffer it would take one more pass of the reactor.

        That is sound while the buffer is empty.  So once anything had to go there, all the rest does.
        """
        if self._socket is not None:
            try:
                sent = self._socket.send(data)
            except OSError:  # no room, or broken: then Twisted meets the same error, and reports it
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self._socket = None
        self.transport.write(data)

    def _leave(self) -> None:
        """Say the last words and close our direction.  Asterisk answers them, says HANGUP, and closes."""
        self._deaf = True
        if self._last:
            self._send(self._last)
        if self._socket is not None:
            with suppress(OSError):  # Asterisk was quicker; Twisted is about to read it
                self._socket.shutdown(socket.SHUT_WR)
        else:
            # Not every transport can half-close; those of tests cannot.
            getattr(self.transport, "loseWriteConnection", self.transport.loseConnection)()

    def _close(self, why: str) -> None:
        self._over = why
        self._deaf = True
        self.transport.loseConnection()

    # -- lines coming in

    def connectionMade(self) -> None:
        server = self._server
        handle = getattr(self.transport, "getHandle", None)
        if handle is not None and isinstance(sock := handle(), socket.socket):  # of TLS it is no socket
            self._socket = sock
        self._began = server.clock.seconds()
        self.ends_at = self._began + server.environment_deadline
        server.watch(self)

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        lines = (self._rest + data).split(b"\n")  # only whole lines are decoded, never a half character
        self._rest = lines.pop()
        try:
            if self._environment is None:
                self._hear(lines)
            else:
                self._read_environment(self._environment, iter(lines))
        except WireError as fault:
            self._server.counters.faulty += 1
            channel = self.call.channel or (self._environment.channel if self._environment else "")
            who = repr(channel[:80]) if channel else self.peer
            _log.warn("The session of {who} was closed. {fault}", who=who, fault=str(fault))
            self._environment = None
            self._close(str(fault))

    def _read_environment(self, environment: Environment, lines: Iterator[bytes]) -> None:
        call = environment.feed(lines)
        if call is None:
            if len(self._rest) > MAX_LINE:
                raise WireError(f"An environment line is longer than {MAX_LINE} bytes.")
            return
        self.call = call
        if call.suspect:
            keys = ", ".join(map(ascii, call.suspect[:5]))
            raise WireError(f"Somebody has put lines into the environment: {keys} came out of order.")
        self._environment = None
        self._hear(lines)  # a HANGUP may have come along; an answer may not, nothing has been asked
        self._begin(call)

    def _hear(self, lines: Iterable[bytes]) -> None:
        """Take what came in one read, and only then let the script go on.

        So of two answers that came together the second is never taken for the answer to a command that was
        not yet sent: a variable with a newline in it could forge one.
        """
        answer: Reply | None = None
        for line in lines:
            said = self._replies.feed(line)
            if said is wire.HANGUP:
                self.hung_up = True
            elif isinstance(said, Reply):
                if answer is not None or self._pending is None:
                    raise WireError(f"An answer came to no command: {line[:80]!r}.")
                answer = said
        if len(self._rest) > MAX_BLOCK:
            raise WireError(f"A reply is longer than {MAX_BLOCK} bytes.")
        if answer is not None:
            self._deliver(answer)

    def _deliver(self, answer: Reply) -> None:
        asked, self._pending = self._pending, None
        while self._queue and self._pending is None:
            line, following = self._queue.popleft()
            if not following.called:  # else it was cancelled while it waited
                self._pending = following
                self._send(line)
        if self._finished and self._pending is None:
            self._leave()
        if asked is not None:
            asked.callback(answer)  # if it was cancelled meanwhile, Twisted drops the answer

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        server = self._server
        if self._environment is not None:
            server.counters.incomplete += 1
        if not self._over:
            self._over = "The connection with Asterisk has ended."
        self._deaf = self._lost = self.hung_up = True
        self._socket = None
        self.ends_at = inf
        asked = [] if self._pending is None else [self._pending]
        asked += [following for _, following in self._queue]
        self._pending = None
        self._queue.clear()
        for deferred in asked:
            deferred.errback(AGIHangup(self._over))
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        if not self._running:
            server.forget(self)

    # -- the script

    def _begin(self, call: Call) -> None:
        server = self._server
        self.call = call
        script = server.scripts.get(call.script)
        if script is None:
            server.counters.unknown += 1
            text = "There is no script {script!r}, which {channel!r} asks for."
            _log.warn(text, script=call.script[:80], channel=call.channel[:80])
            self.finish()
            return
        seconds = getattr(script, "deadline", server.deadline)
        self.ends_at = inf if seconds is None else self._began + seconds
        server.watch(self)
        self._running = True
        # maybeDeferred and not Deferred.fromCoroutine: a script that is no coroutine function may fail at once.
        maybeDeferred(script, self).addCallback(self._done).addErrback(self._failed)

    def _done(self, variables: Mapping[str, str] | None) -> None:
        if variables is not None or not (self._finished or self._over):
            self.finish(**(variables or {}))
        self._server.counters.answered += 1
        self._stopped()

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, AGIHangup):
            self._server.counters.hung_up += 1
        else:
            self._server.counters.failed += 1
            _log.failure("The script {script!r} failed.", failure, script=self.call.script)
        if not (self._finished or self._over):
            self.finish()
        self._stopped()

    def _stopped(self) -> None:
        self._running = False
        if self._lost:
            self._server.forget(self)

    def expire(self) -> None:
        """The session's time is up: nothing that Asterisk or the script does can keep it."""
        self.ends_at = inf
        if self._environment is None:
            self._server.counters.overdue += 1
            text = "The session of {channel!r} was cut off at its deadline, in the script {script!r}."
            _log.warn(text, script=self.call.script, channel=self.call.channel)
        self._over = "The session was cut off at its deadline."
        self._deaf = True
        self.transport.abortConnection()


class Server(Factory):
    """Accepts sessions and bounds them: whom, how many, how long.

    A session counts until its connection *and* its script have ended.  A script that waits for something
    else than its session is not interrupted when the connection goes, since it may be half way through
    a piece of work; what it asks of the session then raises AGIHangup.
    """

    noisy = False

    def __init__(
        self,
        scripts: Mapping[str, Script],
        *,
        allow: Sequence[str | IPv4Network | IPv6Network] = LOOPBACK,
        deadline: float = 10.0,
        environment_deadline: float = 5.0,
        max_sessions: int = 2000,
        clock: Time | None = None,
    ) -> None:
        """`deadline` and `environment_deadline` are seconds, both counted from the connection.

        `clock` is the reactor; without one it is the reactor given to `listen`, else Twisted's global one.
        """
        self.scripts = scripts
        self.allow = tuple([ip_network(str(network)) for network in allow])
        self.deadline = deadline
        self.environment_deadline = environment_deadline
        self.max_sessions = max_sessions
        self.counters = Counters()
        self.sessions: set[Session] = set()
        self._clock = clock
        self._allows = lru_cache(maxsize=1024)(self._look_up)
        self._crowded = False  # and the log says so
        self._alarm: Any = None  # the one delayed call
        self._alarm_at = inf

    @property
    def clock(self) -> Time:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = typing.cast(Time, reactor)
        return self._clock

    @clock.setter
    def clock(self, clock: Time) -> None:
        self._clock = clock

    # -- whom, and how many

    def buildProtocol(self, addr: Any) -> Session | None:
        """None makes Twisted close the connection at once."""
        host = getattr(addr, "host", None)
        if host is None or not self._allows(host):
            self.counters.refused += 1
            _log.warn("{host!r} is not allowed to connect.", host=host)
            return None
        if len(self.sessions) >= self.max_sessions:
            self.counters.crowded += 1
            if not self._crowded:  # one line for each time it gets full, not one for each call
                self._crowded = True
                _log.warn("All {n} sessions are in use; new ones are closed.", n=self.max_sessions)
            return None
        if len(self.sessions) < self.max_sessions // 2:
            self._crowded = False
        self.counters.accepted += 1
        session = Session(self)
        self.sessions.add(session)
        return session

    def _look_up(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if address.version == 6 else None  # IPv4 on a listener of both
        return any((mapped or address) in network for network in self.allow)

    def forget(self, session: Session) -> None:
        """The session's connection and its script have ended."""
        self.sessions.discard(session)
        if not self.sessions and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
            self._alarm_at = inf

    def close(self) -> None:
        """Close every session, to stop in an orderly way; the listening port is closed by its owner."""
        for session in tuple(self.sessions):
            session.close()

    # -- how long

    def watch(self, session: Session) -> None:
        """A session has a new `ends_at`: be awake by then."""
        if session.ends_at < self._alarm_at:
            self._arm(session.ends_at)

    def _arm(self, instant: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = instant
        self._alarm = self.clock.callLater(max(0.0, instant - self.clock.seconds()), self._ring)

    def _ring(self) -> None:
        """Cut off what is due.  Under load the sessions for which this was armed are long gone, and what
        remains is walked once in a deadline: far cheaper than a delayed call for each session."""
        self._alarm = None
        self._alarm_at = inf
        now = self.clock.seconds()
        for session in tuple(self.sessions):
            if session.ends_at <= now:
                session.expire()
        nearest = min([session.ends_at for session in self.sessions], default=inf)
        if nearest < inf:
            self._arm(nearest)


def listen(reactor: Any, host: str, port: int, server: Server) -> IListeningPort:
    """Listen on an IPv4 or IPv6 address; "::" is both.  Raises CannotListenError.

    The socket is made here, because what is set on it (and a backlog) Linux hands on to every connection:
    that saves each session two system calls, and a dead peer of a standing session is noticed in minutes.
    """
    server.clock = reactor
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise CannotListenError(host, port, error) from error  # type: ignore[no-untyped-call]
        listening: IListeningPort = reactor.adoptStreamPort(listener.fileno(), family, server)
        return listening


def serve(scripts: Mapping[str, Script], host: str = "127.0.0.1", port: int = 4573, **limits: Any) -> None:
    """Serve these scripts until interrupted, with a log on the standard error; `limits` as for `Server`."""
    from twisted.internet import reactor

    globalLogBeginner.beginLoggingTo(
        [typing.cast(Any, textFileLogObserver)(sys.stderr)], redirectStandardIO=False
    )
    listen(reactor, host, port, Server(scripts, **limits))
    typing.cast(Any, reactor).run()
