"""One trunk's element: of what comes, it takes what is for call completion, and passes on all the rest.  No socket.

Theory of operation
-------------------
Whatever arrives has one of four ends:

===============================================  ==========================================================
a SUBSCRIBE, NOTIFY or PUBLISH of the peer that  a server transaction: told to it once, answered as often
`Completion` takes, and the CANCEL of one        as it comes
an answer of the peer to a request of ours       the client transaction of that request: told once
anything else of the peer, anything of Asterisk  the proxy, which passes it to the other side
anything of anybody else                         dropped
===============================================  ==========================================================

Calls never suffer: where `Completion` fails on a message that passes, it passes as it came, and the fault is
logged.  What is for `Completion` alone and fails there is answered 500: Asterisk could only refuse it, and
would not be asked again when its refusal got lost.

Nothing is sent to an address that is not configured, whatever a peer wrote: see `Element._send`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from fastagi.sip.limits import Admission, Clock, Notices, Timer
from fastagi.sip.message import BadRequest, Header, Malformed, Request, Response
from fastagi.sip.proxy import Proxy
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import DEFAULT_PORT, Address, Side, Trunk
from fastagi.sip.useragent import BRANCH, RETRY, User, UserAgent, Way, tagged

__all__ = ["BRANCH", "Clock", "Completion", "Element", "Timer"]

EVENTS: Final = ("SUBSCRIBE", "NOTIFY", "PUBLISH")
"""The requests that may be for us."""
LIMITED: Final = ("SUBSCRIBE", "PUBLISH")
"""Those that anybody can send; of NOTIFYs there are no more than we subscribed to."""
CALLS: Final = ("INVITE", "ACK", "CANCEL")
"""What a proxy without Record-Route sees of a call."""
_REQUEST_URI: Final = re.compile(r"[^\s<>]+")


class Completion(User, Protocol):
    """Call completion, as an element sees it; what is of our own requests and answers is in `User`."""

    def takes(self, trunk: str, request: Request) -> bool:
        """Whether this SUBSCRIBE, NOTIFY or PUBLISH of the peer is ours."""

    def request_passes(self, trunk: str, side: Side, request: Request) -> str | Response | None:
        """An INVITE, ACK or CANCEL on its way from ``side``: another request-URI, an answer of our own, or None."""

    def response_passes(self, trunk: str, side: Side, response: Response) -> tuple[Header, ...]:
        """A response to an INVITE on its way from ``side``: headers to add to it."""


class Element:
    """``send`` takes bytes and the two parts of a `Way`; what ``new_branch`` makes begins with `BRANCH`."""

    def __init__(
        self,
        trunk: Trunk,
        completion: Completion,
        clock: Clock,
        send: Callable[[bytes, Address, int | None], None],
        log: Callable[[str], None],
        new_branch: Callable[[], str],
    ) -> None:
        self._trunk = trunk
        self._completion = completion
        self._clock = clock
        self._transmit = send
        self._notices = Notices(clock, lambda line: log(f"trunk {trunk.name}: {line}"))
        self._proxy = Proxy(trunk)
        self._agent = UserAgent(trunk, completion, clock, self._send_to_peer, self._notices, new_branch)
        self._admission = Admission()
        self._closed = False

    def accepts(self, source: Address) -> bool:
        """Whether anything is read from there."""
        return self._side(source) is not None

    def receive(self, data: Request | Response | Malformed, source: Address) -> None:
        """What has come, parsed.  Never raises."""
        side = self._side(source)
        if side is not None:
            self._notices.guarded(self._receive, data, source, side)

    def ask(self, request: Request) -> None:
        """Send a request of ours to the peer; it has neither Via nor Contact yet."""
        self._agent.ask(request)

    def lost(self, address: Address) -> None:
        """That connection is gone, or cannot be: our requests by it get no answer.  Over UDP only time tells."""
        self._agent.lost(address)

    def close(self) -> None:
        """From now on nothing is taken, sent or told."""
        self._closed = True
        self._agent.close()
        self._notices.close()

    # What arrives

    def _side(self, source: Address) -> Side | None:
        side = None if self._closed else self._trunk.side(source)
        if side is None:
            self._notices.say("messages of strangers", f"{source} is neither Asterisk nor the peer: dropped")
        return side

    def _receive(self, data: Request | Response | Malformed, source: Address, side: Side) -> None:
        if isinstance(data, Malformed):
            self._malformed(data, source, side)
        elif isinstance(data, Response):
            self._response(data, side)
        else:
            self._request(data.received_from(*source), source, side)

    def _malformed(self, error: Malformed, source: Address, side: Side) -> None:
        self._notices.say("malformed messages", f"from {source}: {error}")
        if isinstance(error, BadRequest):
            request = error.request.received_from(*source)
            answer = request.response(error.status, tag=_tag(request))
            self._send(answer.to_bytes(), self._way_back(request, source), side)

    def _request(self, request: Request, source: Address, side: Side) -> None:
        if side is Side.PEER and request.method in (*EVENTS, "CANCEL"):
            if self._agent.knows(request):
                self._agent.receive(request, self._way_back(request, source))
                return
            if request.method in EVENTS and self._takes(request):
                self._take(request, source)
                return
        self._pass(request, source, side)

    def _takes(self, request: Request) -> bool:
        return bool(self._notices.guarded(self._completion.takes, self._trunk.name, request))

    def _take(self, request: Request, source: Address) -> None:
        way = self._way_back(request, source)
        if not self._permitted(way, Side.PEER):
            return  # Nothing is begun that could not be answered
        if request.method in LIMITED and not self._admits(request):
            self._notices.say("requests above the limit", f"a {request.method} is one too many: answered 503")
            self._reply(request, request.response(503, headers=(RETRY,)), source, Side.PEER)
            return
        self._agent.receive(request, way)

    def _admits(self, request: Request) -> bool:
        # By both, for there are PBXs whose callers all have one From.
        return self._admission.admits(f"{request.from_.uri} {request.uri}", self._clock.now())

    def _pass(self, request: Request, source: Address, side: Side) -> None:
        is_call = request.method in CALLS
        verdict = self._notices.guarded(self._verdict, request, side) if is_call else None
        if isinstance(verdict, Response):
            self._reply(request, verdict, source, side)
            return
        onward = self._proxy.forward(request, source, side, verdict)
        if isinstance(onward, Response):
            self._reply(request, onward, source, side)
        elif onward is not None:
            self._send(onward.message.to_bytes(), Way(onward.to), side.other)

    def _verdict(self, request: Request, side: Side) -> str | Response | None:
        """What `Completion` says, if it can be sent."""
        verdict = self._completion.request_passes(self._trunk.name, side, request)
        if isinstance(verdict, Response):
            tagged(request, verdict).to_bytes()
        elif verdict is not None and not _REQUEST_URI.fullmatch(verdict):
            raise ValueError("what is to stand in a request line is no URI")
        return verdict

    def _response(self, response: Response, side: Side) -> None:
        if side is Side.PEER and response.via.branch.startswith(BRANCH):
            self._agent.receive(response)
            return
        returning = self._proxy.back(response, side)
        if returning is None:
            self._notices.say("answers to nobody", f"an answer of the {side} is for nobody here: dropped")
            return
        passing, to, port = returning
        data = self._notices.guarded(self._marked, passing, side) if passing.cseq[1] == "INVITE" else None
        self._send(data or passing.to_bytes(), Way(to, port), side.other)

    def _marked(self, response: Response, side: Side) -> bytes:
        headers = self._completion.response_passes(self._trunk.name, side, response)
        return response.appended(*headers).to_bytes()

    # What is sent

    def _reply(self, request: Request, response: Response, source: Address, side: Side) -> None:
        """An answer without state (8.2.7)."""
        if request.method != "ACK":
            self._send(tagged(request, response).to_bytes(), self._way_back(request, source), side)

    def _way_back(self, request: Request, source: Address) -> Way:
        """18.2.2.  Over TCP ``rport`` is the port of a connection, not one to connect to."""
        via = request.via
        if self._trunk.transport == "tcp":
            return Way(Address(source.host, via.port or DEFAULT_PORT), source.port)
        return Way(Address(*via.answer_to()))

    def _send_to_peer(self, data: bytes, way: Way) -> None:
        self._send(data, way, Side.PEER)

    def _send(self, data: bytes, way: Way, side: Side) -> None:
        """The only way out."""
        if not self._closed and self._permitted(way, side):
            self._notices.guarded(self._transmit, data, *way)

    def _permitted(self, way: Way, side: Side) -> bool:
        permitted = self._trunk.permitted(way.to, side)
        if not permitted:
            self._notices.say(
                "messages to strangers", f"a Via of the {side} names an address that is not its own"
            )
        return permitted


def _tag(request: Request) -> str:
    """Of the answer to a BadRequest, of which only the Via is good."""
    try:
        return stateless_tag(request)
    except Malformed:
        return "malformed"
