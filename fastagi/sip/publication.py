"""Event state by PUBLISH (RFC 3903), both ends; what is published is the event package's business.

Theory of operation
-------------------
**The compositor** keeps at most one `Publication` for each resource, which is whatever the request-URI stands
for. A PUBLISH is known by its entity tag alone: peers take a new Call-ID and From tag for each. Its kind
follows from table 1 of the RFC (a body or none, SIP-If-Match or none, Expires 0 or not), and what it does from
kind and state: ABSENT or PRESENT. A tag that is not the present one is answered 412; each 2xx brings a new
tag, so an old one is worth nothing. An initial PUBLISH replaces what is there: composing several is the
compositor's own policy (section 6, step 6), and ours is that a resource has one publisher, who may have lost
his tag.

**The publisher** wants a state known elsewhere. It is IDLE (nothing is known there), SENDING (a PUBLISH is
under way, and there is never a second: section 4), or PUBLISHED. What is wanted while one is under way is sent
when that is answered, the latest only. 412: the other side has forgotten, so all is said anew without a tag.
423: once more, with the time it wants. Any other error is told, and whether to try again is not decided here.

What holds for both as for all machines is said in `machine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fastagi.sip.dialog import Answer, Ask, Rejected, answer_to
from fastagi.sip.machine import Answered, Content, Due, Row, Unanswered, known_fields, obey
from fastagi.sip.message import MAX_SECONDS, Header, Request, Response
from fastagi.sip.timers import TIMERS, refresh_at
from fastagi.sip.uri import Malformed

DEFAULT_EXPIRES: Final = 3600


# ----------------------------------------------------------------------------------------- the compositor


class Stored(StrEnum):
    """Whether there is a publication for the resource, with the tag of the request if that has one."""

    ABSENT = "ABSENT"
    PRESENT = "PRESENT"


class Kind(StrEnum):
    """Table 1, and the publication that is over at once, which it does not list."""

    INITIAL = "initial"
    REFRESH = "refresh"
    MODIFY = "modify"
    REMOVE = "remove"
    MOMENTARY = "momentary"


@dataclass(frozen=True, slots=True)
class Publication:
    """What a peer has published for one resource."""

    etag: str
    body: str
    type: str
    expires_at: float
    """The instant at which it is over: drop it then, and tell whoever it concerns."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Publication:
        return cls(**known_fields(cls, saved))


@dataclass(frozen=True, slots=True)
class Limits:
    """What is granted; seconds. ``ends_at``: nothing is, beyond that instant."""

    default_expires: int = DEFAULT_EXPIRES
    min_expires: int = 0
    ends_at: float = float("inf")


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Published:
    """What a PUBLISH came to. The resource's state has changed if ``kind`` is none, or not "refresh"."""

    publication: Publication | None
    answer: Answer
    kind: Kind | None
    """None: refused, and nothing has changed; what has expired is still there, for its owner to drop."""


def kind_of(request: Request, expires: int) -> Kind:
    """Table 1. Raises Rejected (400): a PUBLISH without tag and body says nothing (section 6, step 5)."""
    tagged = request.get("sip-if-match") is not None
    if expires == 0:
        # 4.5: a removal has no body; one that has is removed all the same.
        return Kind.REMOVE if tagged else Kind.MOMENTARY
    if tagged:
        return Kind.MODIFY if request.body else Kind.REFRESH
    if not request.body:
        raise Rejected(400, "a PUBLISH has neither a body nor a SIP-If-Match")
    return Kind.INITIAL


def expire(present: Publication | None, now: float) -> Publication | None:
    """What is left of it at ``now``."""
    return None if present is None or now >= present.expires_at else present


# Each rule gives the new publication: (present, request, new tag, end of its time) -> Publication | None.


def _store(present: Publication | None, request: Request, etag: str, expires_at: float) -> Publication | None:
    body = request.body.decode("utf-8", "surrogateescape")
    return Publication(etag, body, request.content_type, expires_at)


def _refresh(
    present: Publication | None, request: Request, etag: str, expires_at: float
) -> Publication | None:
    assert present is not None
    return replace(present, etag=etag, expires_at=expires_at)


def _remove(
    present: Publication | None, request: Request, etag: str, expires_at: float
) -> Publication | None:
    return None


def _unknown_tag(
    present: Publication | None, request: Request, etag: str, expires_at: float
) -> Publication | None:
    raise Rejected(412, "the entity tag is not known")


_AB, _PR = Stored
Rule = Callable[[Publication | None, Request, str, float], Publication | None]

COMPOSITOR: dict[tuple[Stored, Kind], Rule] = {
    (_AB, Kind.INITIAL): _store,
    (_AB, Kind.REFRESH): _unknown_tag,
    (_AB, Kind.MODIFY): _unknown_tag,
    (_AB, Kind.REMOVE): _unknown_tag,
    (_AB, Kind.MOMENTARY): _remove,
    (_PR, Kind.INITIAL): _store,
    (_PR, Kind.REFRESH): _refresh,
    (_PR, Kind.MODIFY): _store,
    (_PR, Kind.REMOVE): _remove,
    (_PR, Kind.MOMENTARY): _remove,
}
"""What a PUBLISH with the right tag, or with none, does."""


def publish(
    present: Publication | None,
    request: Request,
    new_etag: str,
    now: float,
    tag: str,
    limits: Limits = LIMITS,
) -> Published:
    """One PUBLISH for one resource (section 6, from step 3 on).

    That the resource exists (404), the package (489) and the type of the body (415) are looked at before.
    ``new_etag`` is one never given before, ``tag`` goes into the To of the answer.
    """
    try:
        new, kind, granted = _process(expire(present, now), request, new_etag, now, limits)
    except Rejected as no:
        return Published(present, answer_to(request, no.status, *no.headers, tag=tag), None)
    headers = (("SIP-ETag", new_etag), ("Expires", str(granted)))
    return Published(new, answer_to(request, 200, *headers, tag=tag), kind)


def _process(
    present: Publication | None, request: Request, new_etag: str, now: float, limits: Limits
) -> tuple[Publication | None, Kind, int]:
    tags = request.all("sip-if-match")
    if len(tags) > 1:
        raise Rejected(400, "a PUBLISH has more than one SIP-If-Match")
    try:
        asked = limits.default_expires if request.expires is None else request.expires
    except Malformed as error:
        raise Rejected(400, "the Expires header cannot be understood") from error
    kind = kind_of(request, asked)
    # Step 4: the time may be shortened, never lengthened.
    granted = max(0, int(min(asked, limits.ends_at - now)))
    known = present is not None and (not tags or tags[0] == present.etag)
    new = COMPOSITOR[Stored.PRESENT if known else Stored.ABSENT, kind](
        present, request, new_etag, now + granted
    )
    if 0 < asked < min(limits.min_expires, 3600):
        raise Rejected(423, "the time asked for is too short", ("Min-Expires", str(limits.min_expires)))
    if asked and not granted:
        raise Rejected(404, "the time of this resource is over")
    return new, kind, granted


# ------------------------------------------------------------------------------------------ the publisher


class PublisherState(StrEnum):
    IDLE = "IDLE"
    SENDING = "SENDING"
    PUBLISHED = "PUBLISHED"


@dataclass(frozen=True, slots=True)
class Publish:
    """This is to be known there now."""

    content: Content


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Nothing is to be known there any more."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was wanted last is so: ``content`` is known there; None: nothing is."""

    content: Content | None


@dataclass(frozen=True, slots=True)
class Failed:
    """What was wanted last did not succeed, or its refresh; ``status`` is the answer, 0 for none.

    489: the package is not known. A refresh is tried once more by itself, anything else is not.
    """

    status: int


PublisherEvent = Publish | Withdraw | Answered | Unanswered | Due
PublisherEffect = Ask | Done | Failed


@dataclass(frozen=True, slots=True)
class Publisher:
    """What we have published of one resource with a peer."""

    uri: str
    from_: str
    """With a tag of ours."""
    to: str
    call_id: str
    headers: tuple[tuple[str, str], ...]
    """Event and what else every PUBLISH carries."""
    ends_at: float
    """No time beyond that instant is asked for (RFC 6910, 8: the time that is left of the subscription)."""
    state: PublisherState = PublisherState.IDLE
    content: Content | None = None
    """What is wanted; None: nothing."""
    sent: Content | None = None
    """What the PUBLISH under way, or the last one answered, says."""
    etag: str = ""
    seq: int = 0
    asked: int = 0
    least: int = 0
    """The Min-Expires of a 423."""
    refresh_at: float | None = None
    expires_at: float = 0.0
    """When the time granted is over."""
    refreshing: bool = False
    """The one under way is a refresh."""
    again: bool = False
    """The one under way repeats one answered 412 or 423."""

    def next_due(self) -> float | None:
        """The nearest instant at which `step_publisher` wants Due."""
        return self.refresh_at

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "headers": [list(h) for h in self.headers]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Publisher:
        """As it was saved; a PUBLISH the old process did not live to see answered is sent anew."""
        p = cls(
            **{
                **known_fields(cls, saved),
                "state": PublisherState(saved["state"]),
                "headers": tuple((name, value) for name, value in saved["headers"]),
                "content": None if saved["content"] is None else Content(**saved["content"]),
                "sent": None if saved["sent"] is None else Content(**saved["sent"]),
            }
        )
        return replace(p, refresh_at=0.0) if p.state is PublisherState.SENDING else p


PublisherStep = tuple[Publisher, tuple[PublisherEffect, ...]]


def _send(p: Publisher, now: float, again: bool = False) -> PublisherStep:
    """Bring what is known there to what is wanted, by the kind of PUBLISH that does it (4.2 to 4.5)."""
    if p.content is None and not p.etag:
        return replace(p, state=PublisherState.IDLE, sent=None, refresh_at=None), (Done(None),)
    left = max(1, min(int(p.ends_at - now), MAX_SECONDS))
    expires = 0 if p.content is None else max(left, p.least)
    seq = p.seq + 1
    headers: tuple[Header, ...] = (
        ("Max-Forwards", "70"),
        ("From", p.from_),
        ("To", p.to),
        ("Call-ID", p.call_id),
        ("CSeq", f"{seq} PUBLISH"),
        *p.headers,
        ("Expires", str(expires)),
    )
    if p.etag:
        headers += (("SIP-If-Match", p.etag),)
    request = Request("PUBLISH", p.uri, headers)
    unchanged = bool(p.etag) and p.content == p.sent  # a refresh, which MUST NOT have a body (4.3)
    if p.content is not None and not unchanged:
        request = request.with_body(p.content.body.encode("utf-8", "surrogateescape"), p.content.type)
    new = replace(
        p,
        state=PublisherState.SENDING,
        sent=p.content,
        seq=seq,
        asked=expires,
        refresh_at=None,
        refreshing=unchanged and p.content is not None,
        again=again,
    )
    return new, (Ask(request),)


def _settled(p: Publisher) -> Publisher:
    return replace(p, state=PublisherState.PUBLISHED if p.etag else PublisherState.IDLE, again=False)


# Its rules, one function each: (publisher, event, now) -> PublisherStep.


def _publish(p: Publisher, e: Publish, now: float) -> PublisherStep:
    return _send(replace(p, content=e.content), now)


def _publish_sending(p: Publisher, e: Publish, now: float) -> PublisherStep:
    # 4: "MUST NOT send a new PUBLISH request ... until it has received a final response".
    return replace(p, content=e.content), ()


def _withdraw(p: Publisher, e: Withdraw, now: float) -> PublisherStep:
    return _send(replace(p, content=None), now)


def _withdraw_sending(p: Publisher, e: Withdraw, now: float) -> PublisherStep:
    return replace(p, content=None), ()


def _answered(p: Publisher, e: Answered, now: float) -> PublisherStep:
    response = e.response
    if response.status < 200 or response.cseq[0] != p.seq:
        return p, ()
    if response.status < 300:
        return _accepted(p, response, now)
    if response.status == 412 and p.etag:
        # 5: it has forgotten; what is wanted now is said anew, and a removal is done.
        return _send(replace(p, etag="", sent=None), now, again=True)
    least = response.get("min-expires", "")
    if response.status == 423 and not p.again and least.isascii() and least.isdigit() and len(least) < 10:
        # What was sent did not arrive, so it is not a refresh that is sent again.
        return _send(replace(p, least=int(least), sent=None), now, again=True)
    return _given_up(p, response.status, now)


def _accepted(p: Publisher, response: Response, now: float) -> PublisherStep:
    try:
        granted = p.asked if response.expires is None else min(response.expires, p.asked)
    except Malformed:
        granted = p.asked
    etag = "" if p.sent is None else response.get("sip-etag", "")
    until = now + granted
    # Nothing is refreshed without a tag, beyond the end of the service, or if the last refresh gained nothing.
    gained = not p.refreshing or until > p.expires_at + 1
    more = etag and gained and p.ends_at - until > 1
    new = replace(p, etag=etag, expires_at=until, refresh_at=refresh_at(now, granted) if more else None)
    if new.content != new.sent:
        return _send(new, now)
    return _settled(new), (Done(new.content),)


def _given_up(p: Publisher, status: int, now: float) -> PublisherStep:
    if p.content != p.sent:
        return _send(replace(p, sent=None), now)  # something else is wanted by now
    # Whether the other side took it is not known, so the next one says all. Of a refresh, time for another?
    retry = now + TIMERS.life if status else now
    at = retry if p.refreshing and retry < p.expires_at else None
    return _settled(replace(p, sent=None, refresh_at=at)), (Failed(status),)


def _unanswered(p: Publisher, e: Unanswered, now: float) -> PublisherStep:
    return _given_up(p, 0, now) if e.seq == p.seq else (p, ())


def _due(p: Publisher, e: Due, now: float) -> PublisherStep:
    return _send(p, now) if p.refresh_at is not None and now >= p.refresh_at else (p, ())


def _due_sending(p: Publisher, e: Due, now: float) -> PublisherStep:
    """Only after a restart: nobody knows whether it arrived, so it is said whole, with the tag there is."""
    return (p, ()) if p.refresh_at is None else _send(replace(p, sent=None), now)


def _nothing(p: Publisher, e: PublisherEvent, now: float) -> PublisherStep:
    return p, ()


_I, _S, _P = PublisherState

PUBLISHER: dict[tuple[PublisherState, type], Row[Publisher, PublisherEffect]] = {
    (_I, Publish): Row(_publish, (_S,)),
    (_I, Withdraw): Row(_withdraw, (_I,)),
    (_I, Answered): Row(_nothing, (_I,)),
    (_I, Unanswered): Row(_nothing, (_I,)),
    (_I, Due): Row(_nothing, (_I,)),
    (_S, Publish): Row(_publish_sending, (_S,)),
    (_S, Withdraw): Row(_withdraw_sending, (_S,)),
    (_S, Answered): Row(_answered, (_I, _S, _P)),
    (_S, Unanswered): Row(_unanswered, (_I, _S, _P)),
    (_S, Due): Row(_due_sending, (_I, _S)),
    (_P, Publish): Row(_publish, (_S,)),
    (_P, Withdraw): Row(_withdraw, (_S,)),
    (_P, Answered): Row(_nothing, (_P,)),
    (_P, Unanswered): Row(_nothing, (_P,)),
    (_P, Due): Row(_due, (_S, _P)),
}


def step_publisher(p: Publisher, event: PublisherEvent, now: float) -> PublisherStep:
    """The publisher after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    return obey(PUBLISHER, "publisher", p, event, now)
