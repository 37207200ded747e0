"""Dialogs (RFC 3261, 12) as SUBSCRIBE and NOTIFY make them (RFC 6665, 4.4.1): plain values that can be saved.

A dialog begins at the notifier with the SUBSCRIBE, at the subscriber with the 2xx or with the NOTIFY,
whichever comes first. Its parts are texts as the peer wrote them: the host of a Contact or a Record-Route is
the peer's choice, and is neither read nor resolved here. Whoever sends the requests made here puts Via and
Contact in, because these say where we are *now*, and sends them to the peer he knows.

``Ask`` and ``Answer`` are what all machines above dialogs give back to be sent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from fastagi.errors import FastagiError
from fastagi.sip.machine import known_fields
from fastagi.sip.message import Header, Message, NameAddr, Request, Response
from fastagi.sip.uri import Malformed, Uri

MAX_FORWARDS = "70"
TARGET_REFRESH = frozenset({"SUBSCRIBE", "NOTIFY"})
"""The requests that move the remote target (RFC 6665, 4.4.1)."""


class Rejected(FastagiError):
    """A request of the peer is not taken; nothing has changed. ``status`` and ``headers`` are what to answer."""

    def __init__(self, status: int, sentence: str, *headers: Header) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to send in a transaction of its own; Via and Contact are still to be put in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request that was handed in; a 2xx still wants its Contact."""

    response: Response


def answer_to(request: Request, status: int, *headers: Header, tag: str = "") -> Answer:
    return Answer(request.response(status, headers=headers, tag=tag))


@dataclass(frozen=True, slots=True)
class Dialog:
    """One, from our side. All its fields are plain values; `to_dict` and `from_dict` keep them."""

    call_id: str
    local_tag: str
    remote_tag: str
    local: str
    """The From of our requests, its tag included."""
    remote: str
    """Their To, its tag included."""
    target: str
    """The remote target: the URI of the peer's latest Contact, verbatim."""
    route: tuple[str, ...] = ()
    """The route set, in our order, verbatim."""
    local_seq: int = 0
    """The CSeq of our latest request; 0: there was none."""
    remote_seq: int | None = None
    """The CSeq of the peer's latest request."""

    # Beginning

    @classmethod
    def from_subscribe(cls, request: Request, local_tag: str) -> Dialog:
        """The notifier's side (12.1.1); ``local_tag`` goes into the To of the answer too. Raises Rejected."""
        if request.to.tag:
            raise Rejected(481, "this subscription does not exist")
        contact = _target(request)
        if contact is None:
            raise Rejected(400, f"a {request.method} without a Contact cannot begin a dialog")
        return cls(
            call_id=request.call_id,
            local_tag=local_tag,
            remote_tag=request.from_.tag,
            local=str(request.to.with_tag(local_tag)),
            remote=str(request.from_),
            target=contact,
            route=tuple(request.all("record-route")),
            remote_seq=request.cseq[0],
        )

    @classmethod
    def from_answer(cls, request: Request, response: Response) -> Dialog:
        """The subscriber's side by the 2xx to its SUBSCRIBE (12.1.2).

        A peer that leaves out its Contact is reached where the request went.
        """
        return cls(
            call_id=request.call_id,
            local_tag=request.from_.tag,
            remote_tag=response.to.tag,
            local=str(request.from_),
            remote=str(response.to),
            target=_target_of_answer(response) or request.uri,
            route=tuple(reversed(response.all("record-route"))),
            local_seq=request.cseq[0],
        )

    @classmethod
    def from_notify(cls, request: Request, notify: Request) -> Dialog:
        """The subscriber's side by a NOTIFY to its SUBSCRIBE (RFC 6665, 4.4.1). Raises Rejected."""
        if (notify.call_id, notify.to.tag) != (request.call_id, request.from_.tag):
            raise Rejected(481, "this subscription does not exist")
        return cls(
            call_id=request.call_id,
            local_tag=request.from_.tag,
            remote_tag=notify.from_.tag,
            local=str(request.from_),
            remote=str(notify.from_),
            target=_target(notify) or request.uri,
            route=tuple(notify.all("record-route")),
            local_seq=request.cseq[0],
            remote_seq=notify.cseq[0],
        )

    # Going on

    def has(self, message: Message) -> bool:
        """Whether a request of the peer, or an answer to one of ours, belongs here (12.2)."""
        ours, theirs = message.to.tag, message.from_.tag
        if isinstance(message, Response):
            ours, theirs = theirs, ours
        return (message.call_id, ours, theirs) == (self.call_id, self.local_tag, self.remote_tag)

    def receive(self, request: Request) -> Dialog:
        """The dialog after a request of the peer (12.2.2). Raises Rejected: 481, 500, 400.

        The same CSeq once more is taken: it is the same request, and the transaction that would have absorbed
        it died with the process before.
        """
        if not self.has(request):
            raise Rejected(481, "this dialog does not exist")
        seq = request.cseq[0]
        if self.remote_seq is not None and seq < self.remote_seq:
            # 12.2.2: "MUST be rejected with a 500". Without a Retry-After the notifier would have to take an
            # overtaken NOTIFY for a failed one, and end the subscription (RFC 6665, 4.2.2).
            sentence = f"a {request.method} came too late: {seq} after {self.remote_seq}"
            raise Rejected(500, sentence, ("Retry-After", "1"))
        target = _target(request) if request.method in TARGET_REFRESH else None
        return replace(self, remote_seq=seq, target=target or self.target)

    def answered(self, response: Response) -> Dialog:
        """The dialog after a 2xx to a request of ours (12.2.1.2)."""
        return replace(self, target=_target_of_answer(response) or self.target)

    def request(
        self, method: str, headers: tuple[Header, ...] = (), body: bytes = b"", content_type: str = ""
    ) -> tuple[Dialog, Request]:
        """The next request in it (12.2.1.1), without Via and Contact. Save the dialog before it is sent."""
        new = replace(self, local_seq=self.local_seq + 1)
        uri, route = self.target, self.route
        if route and not _is_loose(route[0]):
            # A strict router wants to find itself in the request line, and the target at the end of the Route.
            first = Uri.parse(NameAddr.parse(route[0]).uri).without_param("method")
            uri, route = str(first).partition("?")[0], (*route[1:], f"<{self.target}>")
        request = Request(
            method,
            uri,
            (
                *(("Route", hop) for hop in route),
                ("Max-Forwards", MAX_FORWARDS),
                ("From", self.local),
                ("To", self.remote),
                ("Call-ID", self.call_id),
                ("CSeq", f"{new.local_seq} {method}"),
                *headers,
            ),
        )
        return new, request.with_body(body, content_type) if body else request

    # Saving

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "route": list(self.route)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Dialog:
        return cls(**{**known_fields(cls, saved), "route": tuple(saved["route"])})


def _target(message: Message) -> str | None:
    """The URI of its Contact, verbatim; None: it has none. Raises Rejected (400) if nothing can be sent to it."""
    try:
        contact = message.contact
        if contact is None:
            return None
        if Uri.parse(contact.uri).scheme not in ("sip", "sips"):
            raise Rejected(400, "a Contact is no SIP address")
    except Malformed as error:
        raise Rejected(400, "a Contact cannot be understood") from error
    return contact.uri


def _target_of_answer(response: Response) -> str | None:
    """The same of an answer; there is nobody to whom a bad one could be refused."""
    try:
        return _target(response)
    except Rejected:
        return None


def _is_loose(hop: str) -> bool:
    """Whether a route has ``lr``; one that cannot be read is left where it stands."""
    try:
        return Uri.parse(NameAddr.parse(hop).uri).param("lr") is not None
    except Malformed:
        return True
