"""The two non-INVITE transactions of RFC 3261, and the table that holds them.

Theory of operation
-------------------
A *client* transaction sends a request again and again until it is answered or 64*T1 are over. It is
TRYING until anything comes, PROCEEDING after a 1xx (and slower), COMPLETED once the final answer is there:
that is told once, and repetitions of it are absorbed until the network has forgotten them.

A *server* transaction makes the user see a request once, however often it comes. It is TRYING until the user
says something, PROCEEDING after a 100, COMPLETED after the final answer, which is sent again whenever the
request comes again.

Both have just two timers, kept as instants: ``retransmit_at`` (client, unreliable transport) and ``ends_at``.
A server nobody answers for ends too, when its client must have given up: the RFC leaves it waiting forever,
and an answer after that would only reach somebody who no longer listens (RFC 4320, 4.2).

Rules are in two tables of one shape, `CLIENT` and `SERVER`; see `machine`.

`Transactions` finds the transaction a message belongs to (17.1.3, 17.2.3). It knows RFC 3261's branches only:
a request whose branch lacks the magic cookie is answered 400, because the older matching by header fields
costs more code than there are such peers. INVITE and ACK are not its business: they pass the proxy without
state. Who may send at all is decided before, by address; ``peer`` is whatever the caller sends by, and is
only handed back.
"""

import hashlib
import heapq
from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import StrEnum

from fastagi.errors import Refused
from fastagi.sip.machine import Row, obey
from fastagi.sip.message import Message, Request, Response, Via
from fastagi.sip.timers import TIMERS, Timers

COOKIE = "z9hG4bK"
"""What every branch of RFC 3261 begins with (8.1.1.7)."""
CANCELLABLE = ("SUBSCRIBE", "NOTIFY", "PUBLISH", "OPTIONS", "MESSAGE", "INFO", "REFER", "UPDATE", "REGISTER")
"""The requests a CANCEL may mean; for any other it is answered 481."""
RETRY_AFTER = 10
"""Seconds a peer is asked to stay away when there are too many transactions."""


class State(StrEnum):
    """Of either machine; the words of figures 6 and 8."""

    TRYING = "TRYING"
    PROCEEDING = "PROCEEDING"
    COMPLETED = "COMPLETED"
    TERMINATED = "TERMINATED"


@dataclass(frozen=True, slots=True)
class Key:
    """What tells one transaction from another; ``sent_by`` is empty for a client's."""

    branch: str
    sent_by: str
    method: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """One exchange; never changed, each step makes a new one."""

    key: Key
    request: Request
    peer: Hashable
    reliable: bool
    state: State
    ends_at: float
    data: bytes
    """What is sent again: a client's request, a server's latest answer ("" before the first)."""
    answer: Response | None = None
    """The latest."""
    retransmit_at: float | None = None
    interval: float = 0.0

    def next_due(self) -> float | None:
        """The nearest instant at which `step` wants RetransmitDue or LifeOver."""
        if self.state is State.TERMINATED:
            return None
        return self.ends_at if self.retransmit_at is None else min(self.retransmit_at, self.ends_at)


# Events


@dataclass(frozen=True, slots=True)
class Provisional:
    """A 1xx: came (client), is to be sent (server)."""

    response: Response


@dataclass(frozen=True, slots=True)
class Final:
    """A 2xx to 6xx: came (client), is to be sent (server)."""

    response: Response


@dataclass(frozen=True, slots=True)
class Repeated:
    """The request came again."""


@dataclass(frozen=True, slots=True)
class RetransmitDue:
    """``retransmit_at`` has passed."""


@dataclass(frozen=True, slots=True)
class LifeOver:
    """``ends_at`` has passed."""


@dataclass(frozen=True, slots=True)
class TransportFailed:
    """The transport could not send, or lost the connection."""


Event = Provisional | Final | Repeated | RetransmitDue | LifeOver | TransportFailed


# Effects


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the transport."""

    data: bytes
    peer: Hashable


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request seen for the first time: to be answered with `Transactions.respond`."""

    key: Key
    request: Request
    peer: Hashable


@dataclass(frozen=True, slots=True)
class Answered:
    """What our request was answered: any number of 1xx, then at most one final."""

    key: Key
    request: Request
    response: Response


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Nobody answered our request within 64*T1; to be treated as a 408 (8.1.3.1)."""

    key: Key
    request: Request


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Our request, or our answer to it, could not be sent; for a request to be treated as a 503 (8.1.3.1)."""

    key: Key
    request: Request


@dataclass(frozen=True, slots=True)
class Dropped:
    """No transaction took this message; the sentence says why. If it was answered, a Send stands beside."""

    message: Message
    sentence: str


Effect = Send | Arrived | Answered | TimedOut | Unreachable | Dropped
Step = tuple[Transaction, tuple[Effect, ...]]


# The rules, one function each: (transaction, event, now, timers) -> Step. First the client's (17.1.2.2).


def _client_again(t: Transaction, e: RetransmitDue, now: float, timers: Timers) -> Step:
    interval = timers.after(t.interval)
    return replace(t, retransmit_at=now + interval, interval=interval), (Send(t.data, t.peer),)


def _client_again_slowly(t: Transaction, e: RetransmitDue, now: float, timers: Timers) -> Step:
    # "Timer E MUST be reset with a value of T2 seconds."
    return replace(t, retransmit_at=now + timers.t2, interval=timers.t2), (Send(t.data, t.peer),)


def _client_provisional(t: Transaction, e: Provisional, now: float, timers: Timers) -> Step:
    # Timer E goes on as it is; only when it fires next it is T2.
    return replace(t, state=State.PROCEEDING, answer=e.response), (Answered(t.key, t.request, e.response),)


def _client_final(t: Transaction, e: Final, now: float, timers: Timers) -> Step:
    linger = timers.linger(t.reliable)
    new = replace(
        t,
        state=State.COMPLETED if linger else State.TERMINATED,
        answer=e.response,
        retransmit_at=None,
        ends_at=now + linger,
    )
    return new, (Answered(t.key, t.request, e.response),)


def _client_timeout(t: Transaction, e: LifeOver, now: float, timers: Timers) -> Step:
    return _ended(t), (TimedOut(t.key, t.request),)


def _unreachable(t: Transaction, e: TransportFailed, now: float, timers: Timers) -> Step:
    return _ended(t), (Unreachable(t.key, t.request),)


def _ended(t: Transaction) -> Transaction:
    return replace(t, state=State.TERMINATED, retransmit_at=None)


def _over(t: Transaction, e: Event, now: float, timers: Timers) -> Step:
    return _ended(t), ()


def _absorbed(t: Transaction, e: Event, now: float, timers: Timers) -> Step:
    return t, ()


# The server's (17.2.2).


def _server_provisional(t: Transaction, e: Provisional, now: float, timers: Timers) -> Step:
    if e.response.status != 100:
        # RFC 4320, 4.1: "MUST NOT send any provisional response with a Status-Code other than 100".
        raise Refused(
            "NOT_100", f"a {t.key.method} has no provisional answer but 100, not {e.response.status}"
        )
    return _server_says(t, e.response, State.PROCEEDING)


def _server_final(t: Transaction, e: Final, now: float, timers: Timers) -> Step:
    replay = timers.replay(t.reliable)
    new, effects = _server_says(t, e.response, State.COMPLETED if replay else State.TERMINATED)
    return replace(new, ends_at=now + replay), effects


def _server_says(t: Transaction, response: Response, state: State) -> Step:
    data = response.to_bytes()
    return replace(t, state=state, data=data, answer=response), (Send(data, t.peer),)


def _server_again(t: Transaction, e: Repeated, now: float, timers: Timers) -> Step:
    return t, (Send(t.data, t.peer),)


_T, _P, _C, _X = State

CLIENT: dict[tuple[State, type], Row[Transaction, Effect]] = {
    (_T, Provisional): Row(_client_provisional, (_P,)),
    (_T, Final): Row(_client_final, (_C, _X)),
    (_T, RetransmitDue): Row(_client_again, (_T,)),
    (_T, LifeOver): Row(_client_timeout, (_X,)),
    (_T, TransportFailed): Row(_unreachable, (_X,)),
    (_P, Provisional): Row(_client_provisional, (_P,)),
    (_P, Final): Row(_client_final, (_C, _X)),
    (_P, RetransmitDue): Row(_client_again_slowly, (_P,)),
    (_P, LifeOver): Row(_client_timeout, (_X,)),
    (_P, TransportFailed): Row(_unreachable, (_X,)),
    (_C, Provisional): Row(_absorbed, (_C,)),
    (_C, Final): Row(_absorbed, (_C,)),
    (_C, LifeOver): Row(_over, (_X,)),
    (_C, TransportFailed): Row(_over, (_X,)),
}

SERVER: dict[tuple[State, type], Row[Transaction, Effect]] = {
    (_T, Repeated): Row(_absorbed, (_T,)),
    (_T, Provisional): Row(_server_provisional, (_P,)),
    (_T, Final): Row(_server_final, (_C, _X)),
    (_T, LifeOver): Row(_over, (_X,)),
    (_T, TransportFailed): Row(_unreachable, (_X,)),
    (_P, Repeated): Row(_server_again, (_P,)),
    (_P, Provisional): Row(_server_provisional, (_P,)),
    (_P, Final): Row(_server_final, (_C, _X)),
    (_P, LifeOver): Row(_over, (_X,)),
    (_P, TransportFailed): Row(_unreachable, (_X,)),
    (_C, Repeated): Row(_server_again, (_C,)),
    (_C, Provisional): Row(_absorbed, (_C,)),
    (_C, Final): Row(_absorbed, (_C,)),  # "Any other final responses passed by the TU ... MUST be discarded"
    (_C, LifeOver): Row(_over, (_X,)),
    (_C, TransportFailed): Row(_unreachable, (_X,)),
}


def start_client(
    request: Request, peer: Hashable, now: float, reliable: bool = False, timers: Timers = TIMERS
) -> Step:
    """A client transaction, and its first Send; the request has our Via on top."""
    via = request.via
    if not _has_cookie(via):
        raise Refused("BRANCH", f"the branch of our {request.method} does not begin with {COOKIE}")
    key = Key(via.branch, "", request.method)
    data = request.to_bytes()
    retransmit_at = None if reliable else now + timers.t1
    t = Transaction(key, request, peer, reliable, _T, now + timers.life, data, None, retransmit_at, timers.t1)
    return t, (Send(data, peer),)


def start_server(
    request: Request, peer: Hashable, now: float, reliable: bool = False, timers: Timers = TIMERS
) -> Step:
    """A server transaction, and the news of its request."""
    key = server_key(request)
    t = Transaction(key, request, peer, reliable, _T, now + timers.life, b"")
    return t, (Arrived(key, request, peer),)


def step(t: Transaction, event: Event, now: float, timers: Timers = TIMERS) -> Step:
    """The transaction after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    role, table = ("server", SERVER) if t.key.sent_by else ("client", CLIENT)
    return obey(table, f"{role} transaction of a {t.key.method}", t, event, now, timers)


def _event(response: Response) -> Event:
    return Provisional(response) if response.status < 200 else Final(response)


def _has_cookie(via: Via) -> bool:
    return via.branch.lower().startswith(COOKIE.lower()) and len(via.branch) > len(COOKIE)


def server_key(request: Request, method: str = "") -> Key:
    """Branch, sent-by and method (17.2.3); ``method`` stands in for the request's own."""
    via = request.via
    port = via.port or (5061 if via.transport == "TLS" else 5060)
    return Key(via.branch, f"{via.host.lower()}:{port}", method or request.method)


def stateless_tag(request: Request) -> str:
    """A To tag for an answer without state: the same for every copy of the request (8.2.7)."""
    words = (request.via.branch, request.call_id, request.from_.tag)
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Transactions:
    """All of one trunk. Limits are of each side's own, so that a flood of requests cannot silence ours.

    Whoever owns this calls `due` at `next_due()` and does the effects, in order, of every call.
    """

    def __init__(self, max_clients: int = 1000, max_servers: int = 1000, timers: Timers = TIMERS) -> None:
        self.timers = timers
        self.max_clients = max_clients
        self.max_servers = max_servers
        self._clients: dict[Key, Transaction] = {}
        self._servers: dict[Key, Transaction] = {}
        self._instants: list[tuple[float, int, Transaction]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._clients) + len(self._servers)

    def get(self, key: Key) -> Transaction | None:
        return self._of(key).get(key)

    def request(
        self, request: Request, peer: Hashable, now: float, reliable: bool = False
    ) -> tuple[Effect, ...]:
        """Send a request of ours; its branch is new. Raises `Refused` if there are too many already."""
        t, effects = start_client(request, peer, now, reliable, self.timers)
        if t.key in self._clients:
            raise Refused("BRANCH", f"the branch of our {request.method} is in use already")
        if len(self._clients) >= self.max_clients:
            raise Refused(
                "TRANSACTIONS_FULL",
                f"{len(self._clients)} requests of ours are under way, the most there may be",
            )
        self._keep(t)
        return effects

    def respond(self, key: Key, response: Response, now: float) -> tuple[Effect, ...]:
        """Answer an `Arrived`. Raises `Refused` if its client has given up by now."""
        t = self._servers.get(key)
        if t is None:
            raise Refused("TRANSACTION_GONE", f"nobody waits for the answer to this {key.method} any more")
        return self._step(t, _event(response), now)

    def receive(
        self, message: Message, peer: Hashable, now: float, reliable: bool = False
    ) -> tuple[Effect, ...]:
        """What a message that has come leads to; nothing it can hold raises."""
        if isinstance(message, Response):
            return self._response(message, now)
        assert isinstance(message, Request)
        if message.method in ("INVITE", "ACK"):
            return (Dropped(message, f"an {message.method} has no place among non-INVITE transactions"),)
        if not _has_cookie(message.via):
            sentence = (
                f"the branch of a {message.method} does not begin with {COOKIE}: RFC 2543 is not spoken here"
            )
            return self._turned_away(message, peer, 400, sentence)
        known = self._servers.get(server_key(message))
        if known is not None:
            return self._step(known, Repeated(), now)
        if len(self._servers) >= self.max_servers:
            sentence = f"{len(self._servers)} requests are being answered, the most there may be"
            return self._turned_away(message, peer, 503, sentence)
        t, effects = start_server(message, peer, now, reliable, self.timers)
        self._keep(t)
        return self._cancel(message, t, now) if message.method == "CANCEL" else effects

    def failed(self, peer: Hashable, now: float) -> tuple[Effect, ...]:
        """Nothing can be sent to that peer, or its connection is lost: ends all that was under way with it."""
        theirs = [t for t in (*self._clients.values(), *self._servers.values()) if t.peer == peer]
        return tuple(effect for t in theirs for effect in self._step(t, TransportFailed(), now))

    def next_due(self) -> float | None:
        """The nearest instant at which `due` has something to do."""
        while self._instants and not self._current(self._instants[0]):
            heapq.heappop(self._instants)
        return self._instants[0][0] if self._instants else None

    def due(self, now: float) -> tuple[Effect, ...]:
        """All whose instant has come; one that slept through several retransmissions makes up for none."""
        effects: list[Effect] = []
        while (at := self.next_due()) is not None and at <= now:
            t = heapq.heappop(self._instants)[2]
            effects += self._step(t, LifeOver() if t.ends_at <= now else RetransmitDue(), now)
        return tuple(effects)

    # Inside

    def _of(self, key: Key) -> dict[Key, Transaction]:
        return self._servers if key.sent_by else self._clients

    def _current(self, instant: tuple[float, int, Transaction]) -> bool:
        at, _, t = instant
        return self._of(t.key).get(t.key) is t and t.next_due() == at

    def _keep(self, t: Transaction) -> None:
        at = t.next_due()
        if at is None:
            self._of(t.key).pop(t.key, None)
            return
        self._of(t.key)[t.key] = t
        self._count += 1
        heapq.heappush(self._instants, (at, self._count, t))
        if len(self._instants) > 2 * len(self) + 64:
            self._instants = [i for i in self._instants if self._current(i)]
            heapq.heapify(self._instants)

    def _step(self, t: Transaction, event: Event, now: float) -> tuple[Effect, ...]:
        new, effects = step(t, event, now, self.timers)
        if new is not t:
            self._keep(new)
        return effects

    def _response(self, response: Response, now: float) -> tuple[Effect, ...]:
        if len(response.all("via")) != 1:
            # 8.1.3.3: "If more than one Via header field value is present ... MUST discard the message."
            return (Dropped(response, "an answer has not just our Via"),)
        t = self._clients.get(Key(response.via.branch, "", response.cseq[1]))
        if t is None:
            return (Dropped(response, f"an answer {response.status} fits no request of ours"),)
        return self._step(t, _event(response), now)

    def _cancel(self, cancel: Request, t: Transaction, now: float) -> tuple[Effect, ...]:
        """9.2: a CANCEL is answered at once, and does nothing to a request other than INVITE."""
        keys = (server_key(cancel, method) for method in CANCELLABLE)
        meant = next((s for key in keys if (s := self._servers.get(key)) is not None), None)
        tag = meant.answer.to.tag if meant is not None and meant.answer is not None else stateless_tag(cancel)
        return self._step(t, Final(cancel.response(481 if meant is None else 200, tag=tag)), now)

    def _turned_away(
        self, request: Request, peer: Hashable, status: int, sentence: str
    ) -> tuple[Effect, ...]:
        dropped = Dropped(request, sentence)
        headers = (("Retry-After", str(RETRY_AFTER)),) if status == 503 else ()
        answer = request.response(status, headers=headers, tag=stateless_tag(request))
        return Send(answer.to_bytes(), peer), dropped
