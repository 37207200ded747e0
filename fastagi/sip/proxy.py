"""The stateless proxy between Asterisk and a peer (RFC 3261, 16.11), without Record-Route.  Pure.

Theory of operation
-------------------
What becomes of a message is a function of the message and the configuration alone.  So a call does not notice
a restart of ours, an INVITE sent again leaves as the same bytes, and its CANCEL and the ACK of its failure
bear the same branch: the other side knows all three for one transaction.

A request goes to the other side, whatever its Route or its URI says; a response goes where the Via below ours
says, if that is an address of the other side.  Nobody can have anything relayed elsewhere.

Nothing else of a message is touched.
"""

import hashlib
from typing import Final, NamedTuple

from fastagi.sip.message import Header, Malformed, NameAddr, Request, Response, Via
from fastagi.sip.transaction import COOKIE, stateless_tag
from fastagi.sip.trunk import DEFAULT_PORT, Address, Side, Trunk
from fastagi.sip.uri import Uri

BRANCH: Final = COOKIE + "cc"
"""What the branches of the proxy begin with."""
MAX_FORWARDS: Final = 70  # 16.6, step 3
OUR_ROUTES: Final = 4
"""The most that are taken off one request: two where both our addresses are named, without end for mischief."""


class Outgoing(NamedTuple):
    """A request, ready to be sent."""

    message: Request
    to: Address


class Returning(NamedTuple):
    """A response, ready to be sent; ``port`` is that of the connection its request came by (TCP)."""

    message: Response
    to: Address
    port: int | None


class Proxy:
    """Of one trunk.  It remembers nothing: any number of them act alike."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self._reliable = trunk.transport == "tcp"
        self._start = {
            side: f"SIP/2.0/{trunk.transport.upper()} {trunk.towards(side)};branch={BRANCH}" for side in Side
        }
        self._usual_routes = {f"<sip:{trunk.towards(side)};lr>" for side in Side}

    def forward(
        self, request: Request, source: Address, side: Side, uri: str | None = None
    ) -> Outgoing | Response | None:
        """What goes to the other side, or what the sender is to be answered; None: nothing at all.

        ``request`` has its ``received`` and ``rport`` already, ``side`` is its sender's, and ``uri`` stands in
        for the one of its first line.
        """
        refusal = self._refusal(request)
        if request.method == "ACK" and (refusal or request.to.tag == stateless_tag(request)):
            # An ACK is never answered; one with a tag of ours is for an answer of ours (8.2.7).
            return None
        if refusal is not None:
            return refusal
        target = request.uri if uri is None else uri
        to = self.trunk.asterisk if side is Side.PEER else self.trunk.peer_for(target)
        headers = self._headers(request, ("Via", self._via(request, source, side.other)))
        return Outgoing(Request(request.method, target, headers, request.body), to)

    def back(self, response: Response, side: Side) -> Returning | None:
        """A response without our Via, and where it goes (16.11; 18.1.2); None: nowhere.

        ``side`` is its sender's.  The Via below ours must be there, and name an address of the other side.
        """
        ours = response.via
        if not self.trunk.is_us(ours.host, ours.port):
            return None
        popped = response.without_top("via")
        try:
            to = self._answer_to(popped.via)
        except Malformed:
            return None
        return Returning(popped, to, self._port(ours)) if self.trunk.permitted(to, side.other) else None

    # Inside

    def _refusal(self, request: Request) -> Response | None:
        """What a request that may not pass is answered (16.3)."""
        if request.max_forwards == 0:
            return self._answer(request, 483)
        place = _place(request)
        if any(self._has_passed(via, place) for via in request.all("via")):
            return self._answer(request, 482)
        unknown = request.all("proxy-require")
        if unknown and request.method not in ("ACK", "CANCEL"):  # 8.2.2.3: to be ignored there
            return self._answer(request, 420, ("Unsupported", ",".join(unknown)))
        return None

    def _answer(self, request: Request, status: int, *headers: Header) -> Response:
        return request.response(status, headers=headers, tag=stateless_tag(request))

    def _has_passed(self, via: str, place: str) -> bool:
        """Whether it came here before for the same URI: a loop, and no mere spiral (16.3)."""
        try:
            passed = Via.parse(via)
        except Malformed:  # Only the topmost must be good
            return False
        return self.trunk.is_us(passed.host, passed.port) and passed.branch.endswith(place)

    def _headers(self, request: Request, via: Header) -> tuple[Header, ...]:
        """Those of the next hop: our Via, one hop less, and no Routes that led here (16.4; 16.6, steps 3 and 8)."""
        hops = request.max_forwards
        left = str(MAX_FORWARDS if hops is None else hops - 1)
        lines = [via]
        for header in self._without_our_routes(request).headers:
            lines.append((header[0], left) if header[0].lower() == "max-forwards" else header)
        if hops is None:
            lines.append(("Max-Forwards", left))
        return tuple(lines)

    def _without_our_routes(self, request: Request) -> Request:
        for _ in range(OUR_ROUTES):
            routes = request.all("route")
            if not routes or not self._leads_here(routes[0]):
                break
            request = request.without_top("route")
        return request

    def _leads_here(self, route: str) -> bool:
        if route in self._usual_routes:
            return True
        try:
            uri = Uri.parse(NameAddr.parse(route).uri)
        except Malformed:  # Not ours to judge
            return False
        return self.trunk.is_us(uri.host, uri.port)

    def _via(self, request: Request, source: Address, towards: Side) -> str:
        # Without a table only the Via can tell by which connection the answer has to go back.
        branch = _hash(request) + _place(request)
        return f"{self._start[towards]}{branch}" + (f";cport={source.port}" if self._reliable else "")

    def _answer_to(self, via: Via) -> Address:
        host, port = via.answer_to()
        # Over TCP the rport is that of a connection, where nobody listens once it is closed (18.2.2).
        return Address(host, (via.port or DEFAULT_PORT) if self._reliable else port)

    def _port(self, ours: Via) -> int | None:
        text = ours.param("cport") if self._reliable else None
        if not text or len(text) > 5 or not (text.isascii() and text.isdecimal()):
            return None
        return int(text) if 0 < int(text) <= 65535 else None


def _place(request: Request) -> str:
    """The second part of our branch, by which a loop is told from a spiral (16.6, step 8)."""
    return _digest(request.uri)[:8]


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()


def _hash(request: Request) -> str:
    """What is the same in an INVITE, its CANCEL, the ACK of its failure and every copy of them (16.11).

    Never Python's own hash(), which is another in each process.
    """
    via, branch = request.via, request.via.branch
    words = [via.host.lower(), str(via.port or ""), branch]
    if not branch.lower().startswith(COOKIE.lower()) or len(branch) == len(COOKIE):
        # RFC 2543: such a branch need not be unique, nor be there.
        words += request.call_id, request.from_.tag, str(request.cseq[0]), request.uri
    return _digest(*words)[:24]
