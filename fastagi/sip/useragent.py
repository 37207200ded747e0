"""Our own end of a trunk: what we ask the peer, and what we answer it, in transactions.  No socket.

Whoever uses it sees each request once, and gets one final answer, or None, to each of his own.  Via, Contact
and a missing To tag are put in here.  An answer without state (RFC 3261, 8.2.7) is made by `tagged`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from fastagi.errors import Refused
from fastagi.sip import transaction
from fastagi.sip.limits import Clock, Notices, Timer
from fastagi.sip.message import Header, Malformed, NameAddr, Request, Response
from fastagi.sip.transaction import CANCELLABLE, Effect, Key, Transactions, server_key
from fastagi.sip.trunk import Address, Trunk
from fastagi.sip.uri import Uri

BRANCH: Final = transaction.COOKIE + "ca"
"""What the branches of our own requests begin with."""
MAX_CLIENTS: Final = 2000
MAX_SERVERS: Final = 3000
"""Transactions: what `limits.Admission` lets in within the 32 s that one lives, and nearly as many NOTIFYs."""
RETRY: Final[Header] = ("Retry-After", str(transaction.RETRY_AFTER))


class Way(NamedTuple):
    """Where something goes; over TCP by the connection with ``to.host`` and ``port``, if that is still there."""

    to: Address
    port: int | None = None


class User(Protocol):
    def arrived(self, trunk: str, request: Request, answer: Callable[[Response], None]) -> None:
        """A request of the peer, seen once.  ``answer``, now or later, takes what ``request.response()`` makes."""

    def answered(self, trunk: str, asked: Request, response: Response | None) -> None:
        """The final answer to what was given to `ask`, or None; once for each, and never during `ask`."""


class UserAgent:
    """Of one trunk.  What `new_branch` makes begins with `BRANCH`; ``send`` decides whether something may go there."""

    def __init__(
        self,
        trunk: Trunk,
        user: User,
        clock: Clock,
        send: Callable[[bytes, Way], None],
        notices: Notices,
        new_branch: Callable[[], str],
    ) -> None:
        self._trunk = trunk
        self._user = user
        self._clock = clock
        self._send = send
        self._notices = notices
        self._new_branch = new_branch
        self._reliable = trunk.transport == "tcp"
        self._contact = f"<sip:cc@{trunk.towards_peer}{';transport=tcp' if self._reliable else ''}>"
        self._transactions = Transactions(MAX_CLIENTS, MAX_SERVERS)
        self._asked: dict[Key, Request] = {}
        self._armed: tuple[float, Timer] | None = None
        self._closed = False

    def knows(self, request: Request) -> bool:
        """Whether it has come before, or is the CANCEL of one that has."""
        methods = ("CANCEL", *CANCELLABLE) if request.method == "CANCEL" else ("",)
        return any(self._transactions.get(server_key(request, method)) for method in methods)

    def receive(self, message: Request | Response, way: Way | None = None) -> None:
        """An answer to a request of ours, or a request of the peer, which is answered by ``way``."""
        self._do(self._transactions.receive(message, way, self._clock.now(), self._reliable))

    def ask(self, request: Request) -> None:
        """Send it to the peer; it has neither Via nor Contact yet."""
        key = Key(self._new_branch(), "", request.method)
        via = f"SIP/2.0/{self._trunk.transport.upper()} {self._trunk.towards_peer};branch={key.branch};rport"
        complete = request.with_headers(("Contact", self._contact)).prepended(("Via", via))
        way = Way(self._trunk.peer_for(_next_hop(request)))
        complete = complete.with_uri(_usable(complete.uri, way.to))
        try:
            effects = self._transactions.request(complete, way, self._clock.now(), self._reliable)
        except Refused as no:
            self._notices.say("requests not sent", f"a request is not sent: {no}")
            self._later(partial(self._tell, request, None))
            return
        self._asked[key] = request
        self._do(effects)

    def lost(self, address: Address) -> None:
        """That connection is gone, or cannot be: our requests by it get no answer.  Over UDP only time tells."""
        effects = self._transactions.failed(Way(address), self._clock.now()) if self._reliable else ()
        if effects:
            self._later(partial(self._do, effects))

    def close(self) -> None:
        self._closed = True
        if self._armed is not None:
            self._armed[1].cancel()

    # Inside

    def _do(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case transaction.Send(data, Way() as way):
                    self._send(data, way)
                case transaction.Arrived(key, request):
                    self._arrived(key, request)
                case transaction.Answered(key, _, response) if response.status >= 200:
                    self._tell(self._asked.pop(key, None), response)
                case transaction.TimedOut(key) | transaction.Unreachable(key):
                    self._tell(self._asked.pop(key, None), None)
                case transaction.Dropped(_, sentence):
                    self._notices.say("messages that fit nothing", sentence)
        self._arm()

    def _arrived(self, key: Key, request: Request) -> None:
        answer = partial(self._answer, key, request)
        try:
            self._user.arrived(self._trunk.name, request, answer)
        except Exception:
            self._notices.fault()
            answer(request.response(500, headers=(RETRY,)))  # which counts if there is no answer yet

    def _answer(self, key: Key, request: Request, response: Response) -> None:
        if request.method != "PUBLISH" and 200 <= response.status < 300:
            response = response.with_headers(("Contact", self._contact))
        try:
            self._do(self._transactions.respond(key, tagged(request, response), self._clock.now()))
        except Refused as no:
            self._notices.say("answers in vain", str(no))

    def _tell(self, asked: Request | None, response: Response | None) -> None:
        if asked is not None and not self._closed:
            self._notices.guarded(self._user.answered, self._trunk.name, asked, response)

    def _arm(self) -> None:
        """One call, at the nearest instant; one that comes too early does nothing, and is not worth cancelling."""
        due = self._transactions.next_due()
        if due is None or self._closed or (self._armed is not None and self._armed[0] <= due):
            return
        if self._armed is not None:
            self._armed[1].cancel()
        self._armed = due, self._clock.call_at(due, self._due)

    def _due(self) -> None:
        self._armed = None
        self._do(self._transactions.due(self._clock.now()))

    def _later(self, call: Callable[[], None]) -> None:
        """Who asks for something is never told of its end before his call has returned."""
        self._clock.call_at(self._clock.now(), call)


def _next_hop(request: Request) -> str:
    """The first Route, else where the request line says (8.1.2)."""
    try:
        return NameAddr.parse(request.all("route")[0]).uri
    except (IndexError, Malformed):
        return request.uri


def tagged(request: Request, response: Response) -> Response:
    """With a tag in its To, if it must have one (8.2.6.2): the same for every copy of the request."""
    if response.status == 100 or response.to.tag:
        return response
    return response.with_headers(("To", response.to.with_tag(transaction.stateless_tag(request)).text))


def _usable(uri: str, peer: Address) -> str:
    """As a request line can carry it: a peer's Contact may have blanks, or no host."""
    try:
        return str(Uri.parse(uri).usable(*peer))
    except Malformed:
        return uri
