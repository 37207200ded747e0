"""Subscriptions (RFC 6665), both ends; what they tell is the event package's business, not theirs.

Theory of operation
-------------------
What holds for both as for all machines is said in `machine`.

**The notifier** (4.2) is ACTIVE from its 200 to the SUBSCRIBE until one of the two ends it, or its time does;
then it is ENDING until its last NOTIFY is answered, and ENDED. Its rules:

- The time granted never reaches beyond ``service_ends``, and a refresh cannot move that.
- It tells its whole state, always the latest, and has one NOTIFY under way at a time: on a line that swaps
  packets, an overtaken NOTIFY would be answered 500, and a 500 would end the subscription.
- Only the last NOTIFY is not held back, neither by the one under way nor by the `Pace`.
- A NOTIFY that fails ends it (4.2.2), unless the answer says Retry-After; 481 ends it in any case.
- It does without the state "pending": whoever is answered 200 is accepted.

**The subscriber** (4.1) is SUBSCRIBING until the first NOTIFY, which may overtake the 2xx; then ACTIVE; LEAVING
once it has had enough, until the peer's last NOTIFY; and ENDED. It is lenient:

- A refresh nobody answers has succeeded: there are peers that answer none and go on serving. Any error not in
  the list of 4.1.2.2 leaves the subscription its old time, as the RFC says.
- A peer that owes us its last NOTIFY is waited for 64*T1, and its 2xx to our leaving may grant what it likes.
- A refresh that gained nothing is the last one: then the service itself is about to end.
- An ``expires`` that is missing means what was known before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fastagi.errors import Refused
from fastagi.sip.dialog import Answer, Ask, Dialog, Rejected, answer_to
from fastagi.sip.machine import Answered, Content, Due, Row, Unanswered, known_fields, obey
from fastagi.sip.message import MAX_SECONDS, Header, Request, Response, SubscriptionState
from fastagi.sip.timers import TIMERS, refresh_at
from fastagi.sip.uri import Malformed

DEFAULT_EXPIRES: Final = 3600
GRACE: Final = TIMERS.life
"""Seconds a subscriber waits beyond the end of the time granted: clocks differ, and a last NOTIFY is on its way."""


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over; comes once, and for a notifier already when its last NOTIFY goes out.

    ``reason`` is a word of RFC 6665, 4.1.3, or ``unsubscribed``, ``refused``, ``failed``, ``unanswered``,
    ``unnotified``, ``expired``. ``status`` is the answer that ended it, 0 for none. ``retry_at``: when the
    subscriber may ask again; None: not by himself.
    """

    reason: str
    status: int = 0
    retry_at: float | None = None


# ------------------------------------------------------------------------------------------- the notifier


class NotifierState(StrEnum):
    ACTIVE = "ACTIVE"
    ENDING = "ENDING"
    ENDED = "ENDED"


Pace = Callable[[tuple[float, ...], Content], float]
"""When this content may go out, given the instants of the NOTIFYs before it (at most `REMEMBERED`)."""
REMEMBERED: Final = 8


def at_once(sent: tuple[float, ...], content: Content) -> float:
    """The Pace that holds nothing back."""
    return 0.0


def at_most(count: int, seconds: float) -> Pace:
    """The Pace of so many NOTIFYs in any interval of so many seconds; ``count`` is at most `REMEMBERED`."""

    def pace(sent: tuple[float, ...], content: Content) -> float:
        return sent[-count] + seconds if len(sent) >= count else 0.0

    return pace


@dataclass(frozen=True, slots=True)
class Terms:
    """What a notifier grants; seconds."""

    default_expires: int = DEFAULT_EXPIRES
    min_expires: int = 0
    pace: Pace = at_once


TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A SUBSCRIBE of the peer in the dialog."""

    request: Request


@dataclass(frozen=True, slots=True)
class Tell:
    """The state is this now."""

    content: Content


@dataclass(frozen=True, slots=True)
class Terminate:
    """We end it. ``reason`` is a word of 4.1.3; ``retry_after``, in seconds, counts with probation and giveup only."""

    reason: str
    retry_after: int | None = None
    content: Content | None = None


NotifierEvent = Subscribe | Tell | Terminate | Answered | Unanswered | Due
NotifierEffect = Answer | Ask | Ended


@dataclass(frozen=True, slots=True)
class Notifier:
    """One subscription of a peer with us."""

    dialog: Dialog
    event: str
    """The Event value, with its ``id``, verbatim."""
    state: NotifierState
    content: Content
    expires_at: float
    service_ends: float
    told: bool = False
    """The latest content, or the end, has been sent."""
    in_flight: int = 0
    """The CSeq of the NOTIFY that is not answered yet; 0: none."""
    not_before: float = 0.0
    """The peer's Retry-After."""
    sent_at: tuple[float, ...] = ()
    reason: str = ""
    retry_after: int | None = None

    def next_due(self, terms: Terms = TERMS) -> float | None:
        """The nearest instant at which `step` wants Due."""
        if self.state is NotifierState.ENDED:
            return None
        waits = not self.told and not self.in_flight
        if self.state is NotifierState.ENDING:
            return 0.0 if waits else None
        return min(self.expires_at, _may_send(self, terms)) if waits else self.expires_at

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "dialog": self.dialog.to_dict(), "sent_at": list(self.sent_at)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Notifier:
        """As it was saved; a NOTIFY whose answer the old process did not live to see is sent anew."""
        n = cls(
            **{
                **known_fields(cls, saved),
                "dialog": Dialog.from_dict(saved["dialog"]),
                "state": NotifierState(saved["state"]),
                "content": Content(**saved["content"]),
                "sent_at": tuple(saved["sent_at"]),
            }
        )
        return replace(n, told=False, in_flight=0) if n.in_flight else n


NotifierStep = tuple[Notifier, tuple[NotifierEffect, ...]]


def accept(
    request: Request,
    local_tag: str,
    content: Content,
    service_ends: float,
    now: float,
    terms: Terms = TERMS,
) -> NotifierStep:
    """A new subscription: the 200 and the first NOTIFY at once (4.2.1.2). Raises Rejected: 400, 423, 480, 481.

    Whether the package is ours and the subscriber may have it was decided before. One that asks for 0 seconds
    is told the state once (4.4.3).
    """
    dialog = Dialog.from_subscribe(request, local_tag)
    if now >= service_ends:
        raise Rejected(480, "the time of this service is over")
    n = Notifier(
        dialog, request.get("event", ""), NotifierState.ACTIVE, content, now, service_ends, told=True
    )
    return _grant(n, request, now, terms)


def _grant(n: Notifier, request: Request, now: float, terms: Terms) -> NotifierStep:
    """200 and a NOTIFY (4.2.1.2, 4.2.1.3), the last one if no time is granted (4.2.1.4)."""
    asked = _expires(request, terms.default_expires)
    if 0 < asked < min(terms.min_expires, 3600):
        # 4.2.1.1: refused only if "smaller than one hour" and less than our own minimum.
        raise Rejected(423, "the time asked for is too short", ("Min-Expires", str(terms.min_expires)))
    # 4.2.1.1: it "MAY be shortened but MUST NOT be lengthened"; and RFC 6910, 9.7, never beyond what is left.
    granted = max(0, min(asked, int(n.service_ends - now)))
    answer = answer_to(request, 200, ("Expires", str(granted)), tag=n.dialog.local_tag)
    new = replace(n, told=False, expires_at=now + granted)
    if granted:
        new, effects = _flush(new, now, terms)
    else:
        new, effects = _end(new, "timeout" if asked else "unsubscribed", now)
    return new, (answer, *effects)


def _expires(request: Request, default: int) -> int:
    try:
        asked = request.expires
    except Malformed as error:
        raise Rejected(400, "the Expires header cannot be understood") from error
    return default if asked is None else asked


def _may_send(n: Notifier, terms: Terms) -> float:
    return max(n.not_before, terms.pace(n.sent_at, n.content))


def _flush(n: Notifier, now: float, terms: Terms) -> NotifierStep:
    """Send what is to be told, if it may go out now."""
    if n.told or n.in_flight or now < _may_send(n, terms):
        return n, ()
    left = max(0, int(n.expires_at - now))
    return _notify(n, f"active;expires={left}", now)


def _end(n: Notifier, reason: str, now: float) -> NotifierStep:
    """The last NOTIFY, whatever is under way."""
    new = replace(n, state=NotifierState.ENDING, reason=reason)
    new, effects = _last(new, now)
    return new, (*effects, Ended(reason))


def _last(n: Notifier, now: float) -> NotifierStep:
    # 4.1.3 knows no word for "you wanted it yourself"; 4.2.1.4 has the notifier say timeout.
    said = "timeout" if n.reason == "unsubscribed" else n.reason
    later = f";retry-after={n.retry_after}" if n.retry_after is not None else ""
    return _notify(n, f"terminated;reason={said}{later}", now)


def _notify(n: Notifier, state: str, now: float) -> NotifierStep:
    headers: tuple[Header, ...] = (("Event", n.event), ("Subscription-State", state))
    body = n.content.body.encode("utf-8", "surrogateescape")
    dialog, request = n.dialog.request("NOTIFY", headers, body, n.content.type)
    sent_at = (*n.sent_at, now)[-REMEMBERED:]
    new = replace(n, dialog=dialog, told=True, in_flight=dialog.local_seq, sent_at=sent_at)
    return new, (Ask(request),)


def _over(n: Notifier, reason: str, status: int = 0) -> NotifierStep:
    return replace(n, state=NotifierState.ENDED, in_flight=0, reason=reason), (Ended(reason, status),)


# Its rules, one function each: (notifier, event, now, terms) -> NotifierStep.


def _subscribed(n: Notifier, e: Subscribe, now: float, terms: Terms) -> NotifierStep:
    try:
        dialog = n.dialog.receive(e.request)
        if not _same_event(n.event, e.request):
            raise Rejected(489, "this dialog carries a subscription to another event")
        return _grant(replace(n, dialog=dialog), e.request, now, terms)
    except Rejected as no:
        return n, (answer_to(e.request, no.status, *no.headers),)


def _subscribed_ending(n: Notifier, e: Subscribe, now: float, terms: Terms) -> NotifierStep:
    """Both end it at once: his is granted without another NOTIFY. A refresh comes too late."""
    try:
        dialog = n.dialog.receive(e.request)
        if _expires(e.request, terms.default_expires):
            raise Rejected(481, "this subscription has ended")
    except Rejected as no:
        return n, (answer_to(e.request, no.status, *no.headers),)
    return replace(n, dialog=dialog), (answer_to(e.request, 200, ("Expires", "0")),)


def _subscribed_ended(n: Notifier, e: Subscribe, now: float, terms: Terms) -> NotifierStep:
    return n, (answer_to(e.request, 481),)


def _tell(n: Notifier, e: Tell, now: float, terms: Terms) -> NotifierStep:
    return _flush(replace(n, content=e.content, told=False), now, terms)


def _terminate(n: Notifier, e: Terminate, now: float, terms: Terms) -> NotifierStep:
    counts = e.reason in ("probation", "giveup")  # 4.1.3: with others "retry-after has no semantics"
    new = replace(n, content=e.content or n.content, retry_after=e.retry_after if counts else None)
    return _end(new, e.reason, now)


def _answered(n: Notifier, e: Answered, now: float, terms: Terms) -> NotifierStep:
    status = e.response.status
    if status < 200 or e.response.cseq[0] != n.in_flight:
        return n, ()
    if status < 300:
        return _flush(replace(n, in_flight=0), now, terms)
    wait = _retry_after(e.response)
    # 4.2.2: 481 ends it in any case; another error does unless it says Retry-After. (401 and 407 "imply
    # further action", for which credentials are needed.)
    if status == 481 or wait is None:
        return _over(n, "failed", status)
    return replace(n, in_flight=0, told=False, not_before=now + max(wait, 1)), ()


def _unanswered(n: Notifier, e: Unanswered, now: float, terms: Terms) -> NotifierStep:
    return _over(n, "unanswered") if e.seq == n.in_flight else (n, ())


def _answered_ending(n: Notifier, e: Answered, now: float, terms: Terms) -> NotifierStep:
    if e.response.status < 200 or e.response.cseq[0] != n.in_flight:
        return n, ()
    return replace(n, state=NotifierState.ENDED, in_flight=0), ()


def _unanswered_ending(n: Notifier, e: Unanswered, now: float, terms: Terms) -> NotifierStep:
    return (replace(n, state=NotifierState.ENDED, in_flight=0) if e.seq == n.in_flight else n), ()


def _due(n: Notifier, e: Due, now: float, terms: Terms) -> NotifierStep:
    if now >= n.expires_at:
        return _end(n, "timeout", now)  # 4.2.2: not refreshed in time
    return _flush(n, now, terms)


def _due_ending(n: Notifier, e: Due, now: float, terms: Terms) -> NotifierStep:
    return (n, ()) if n.told or n.in_flight else _last(n, now)


def _nothing(n: Notifier, e: NotifierEvent, now: float, terms: Terms) -> NotifierStep:
    return n, ()


_A, _G, _X = NotifierState

NOTIFIER: dict[tuple[NotifierState, type], Row[Notifier, NotifierEffect]] = {
    (_A, Subscribe): Row(_subscribed, (_A, _G)),
    (_A, Tell): Row(_tell, (_A,)),
    (_A, Terminate): Row(_terminate, (_G,)),
    (_A, Answered): Row(_answered, (_A, _X)),
    (_A, Unanswered): Row(_unanswered, (_A, _X)),
    (_A, Due): Row(_due, (_A, _G)),
    (_G, Subscribe): Row(_subscribed_ending, (_G,)),
    (_G, Answered): Row(_answered_ending, (_G, _X)),
    (_G, Unanswered): Row(_unanswered_ending, (_G, _X)),
    (_G, Due): Row(_due_ending, (_G,)),
    (_X, Subscribe): Row(_subscribed_ended, (_X,)),
    (_X, Answered): Row(_nothing, (_X,)),
    (_X, Unanswered): Row(_nothing, (_X,)),
    (_X, Due): Row(_nothing, (_X,)),
}


def step_notifier(n: Notifier, event: NotifierEvent, now: float, terms: Terms = TERMS) -> NotifierStep:
    """The notifier after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    return obey(NOTIFIER, "notifier", n, event, now, terms)


def _same_event(ours: str, request: Request) -> bool:
    """Whether package and ``id`` are ours (8.2.1)."""
    try:
        theirs = request.event
    except Malformed:
        return False
    mine = Request("NOTIFY", "", (("Event", ours),)).event
    assert mine is not None
    return theirs is None or (theirs.package.lower(), theirs.id) == (mine.package.lower(), mine.id)


def _retry_after(response: Response) -> int | None:
    """Seconds of a Retry-After, whatever comment follows (RFC 3261, 20.33); None: it has none."""
    return _delta(response.get("retry-after", "").partition("(")[0].partition(";")[0])


def _delta(text: str) -> int | None:
    """delta-seconds; None: nonsense."""
    text = text.strip(" \t")
    return min(int(text), MAX_SECONDS) if text.isascii() and text.isdigit() and len(text) < 20 else None


# ----------------------------------------------------------------------------------------- the subscriber


class SubscriberState(StrEnum):
    SUBSCRIBING = "SUBSCRIBING"
    ACTIVE = "ACTIVE"
    LEAVING = "LEAVING"
    ENDED = "ENDED"


ENDS_IT: Final = frozenset({404, 405, 410, 416, *range(480, 486), 489, 501, 604})
"""The answers to a refresh that end the subscription (4.1.2.2)."""
# 4.1.3: reason -> (may ask again, retry-after counts). A reason not listed here, or none, may, and it counts.
_AGAIN: Final = {
    "deactivated": (True, False),
    "probation": (True, True),
    "rejected": (False, False),
    "timeout": (True, False),
    "giveup": (True, True),
    "noresource": (False, False),
    "invariant": (False, False),
}


@dataclass(frozen=True, slots=True)
class Notify:
    """A NOTIFY of the peer."""

    request: Request


@dataclass(frozen=True, slots=True)
class Leave:
    """We have had enough."""


SubscriberEvent = Notify | Leave | Answered | Unanswered | Due


@dataclass(frozen=True, slots=True)
class Accepted:
    """The peer said 2xx to the first SUBSCRIBE; not told if its NOTIFY was first."""

    expires_at: float


@dataclass(frozen=True, slots=True)
class Notified:
    """The peer told its state. ``state`` is active, pending or terminated; then `Ended` stands beside."""

    state: str
    request: Request


SubscriberEffect = Answer | Ask | Ended | Accepted | Notified


@dataclass(frozen=True, slots=True)
class Subscriber:
    """One subscription of ours with a peer; of a SUBSCRIBE that forked, one per dialog (see `fork`)."""

    uri: str
    from_: str
    """With our tag."""
    to: str
    call_id: str
    headers: tuple[tuple[str, str], ...]
    """Event, Accept and what else every SUBSCRIBE carries."""
    state: SubscriberState
    ends_at: float
    """When what we want it for is over: no time beyond that is asked for."""
    expires_at: float
    """When the time granted is over."""
    waits_until: float
    """SUBSCRIBING: for the first NOTIFY; LEAVING: for the last."""
    asked: int
    """Seconds asked for by the latest SUBSCRIBE."""
    seq: int = 1
    """The CSeq of the latest SUBSCRIBE."""
    pending: bool = True
    """It is not answered yet."""
    dialog: Dialog | None = None
    refresh_at: float | None = None
    asked_at: float = 0.0
    had_until: float | None = None
    """What ``expires_at`` was when a refresh was sent; None: there was none yet."""
    capped: bool = False
    """A refresh gained nothing: there is no other."""
    tried_again: bool = False
    """A 423 was obeyed."""

    @property
    def local_tag(self) -> str:
        """With `call_id`, what a NOTIFY for us is known by."""
        return self._request().from_.tag

    def fork(self) -> Subscriber:
        """Another with the same SUBSCRIBE, for a NOTIFY of a tag nobody knows (4.1.2.4, 4.1.4)."""
        state = SubscriberState.SUBSCRIBING
        return replace(self, state=state, dialog=None, pending=False, refresh_at=None, had_until=None)

    def next_due(self) -> float | None:
        """The nearest instant at which `step` wants Due."""
        if self.state is SubscriberState.ENDED:
            return None
        if self.state is not SubscriberState.ACTIVE:
            return 0.0 if self._owes_leave() else self.waits_until
        gone = self.expires_at + GRACE
        return gone if self.refresh_at is None else min(self.refresh_at, gone)

    def to_dict(self) -> dict[str, Any]:
        dialog = None if self.dialog is None else self.dialog.to_dict()
        return {**asdict(self), "dialog": dialog, "headers": [list(h) for h in self.headers]}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Subscriber:
        """As it was saved; a refresh or a leaving the old process did not live to see answered is sent anew."""
        dialog = None if saved["dialog"] is None else Dialog.from_dict(saved["dialog"])
        s = cls(
            **{
                **known_fields(cls, saved),
                "dialog": dialog,
                "state": SubscriberState(saved["state"]),
                "headers": tuple((name, value) for name, value in saved["headers"]),
            }
        )
        if not s.pending or s.state in (SubscriberState.SUBSCRIBING, SubscriberState.ENDED):
            return s
        if s.state is SubscriberState.ACTIVE:
            return replace(s, pending=False, refresh_at=0.0)
        return replace(s, pending=False, asked=s.asked or 1)

    # Inside

    def _event(self) -> str:
        return next((value for name, value in self.headers if name.lower() in ("event", "o")), "")

    def _owes_leave(self) -> bool:
        """Whether the peer is still to be told that we leave."""
        return self.state is SubscriberState.LEAVING and self.dialog is not None and self.asked > 0

    def _request(self) -> Request:
        """The first SUBSCRIBE, or its repetition after a 423."""
        return Request(
            "SUBSCRIBE",
            self.uri,
            (
                ("Max-Forwards", "70"),
                ("From", self.from_),
                ("To", self.to),
                ("Call-ID", self.call_id),
                ("CSeq", f"{self.seq} SUBSCRIBE"),
                *self.headers,
                ("Expires", str(self.asked)),
            ),
        )


SubscriberStep = tuple[Subscriber, tuple[SubscriberEffect, ...]]


def subscribe(
    uri: str,
    from_: str,
    to: str,
    call_id: str,
    headers: tuple[Header, ...],
    ends_at: float,
    now: float,
) -> SubscriberStep:
    """A new subscription of ours, and its SUBSCRIBE (4.1.2.1), which asks for the time up to ``ends_at``.

    ``from_`` has a tag, new like the Call-ID unless this is one fork of several; ``headers`` names the Event.
    """
    s = Subscriber(
        uri,
        from_,
        to,
        call_id,
        tuple((name, value) for name, value in headers),
        SubscriberState.SUBSCRIBING,
        ends_at,
        expires_at=ends_at,
        waits_until=now + TIMERS.life,
        asked=max(1, min(int(ends_at - now), MAX_SECONDS)),
        asked_at=now,
    )
    if not s.local_tag:
        raise Refused("TAG", "the From of our SUBSCRIBE has no tag")
    return s, (Ask(s._request()),)


def _ask(s: Subscriber, expires: int, now: float) -> SubscriberStep:
    """A SUBSCRIBE in the dialog."""
    assert s.dialog is not None
    dialog, request = s.dialog.request("SUBSCRIBE", (*s.headers, ("Expires", str(expires))))
    new = replace(
        s,
        dialog=dialog,
        seq=dialog.local_seq,
        pending=True,
        asked=expires,
        asked_at=now,
        had_until=s.expires_at,
        refresh_at=None,
    )
    return new, (Ask(request),)


def _granted(s: Subscriber, until: float, now: float) -> Subscriber:
    """With that end of its time, and the next refresh, if there is to be one."""
    until = min(until, s.ends_at)
    more = s.ends_at - until > 1 and not s.pending and not s.capped
    return replace(s, expires_at=until, refresh_at=refresh_at(now, until - now) if more else None)


def _done(s: Subscriber, reason: str, status: int = 0, retry_at: float | None = None) -> SubscriberStep:
    new = replace(s, state=SubscriberState.ENDED, pending=False, refresh_at=None)
    return new, (Ended(reason, status, retry_at),)


def _leave_now(s: Subscriber, now: float) -> SubscriberStep:
    """SUBSCRIBE with Expires 0, and the wait for the last NOTIFY (4.1.2.3)."""
    new, asks = _ask(s, 0, now)
    return replace(new, waits_until=now + TIMERS.life), asks


def _again_at(reason: str, retry_after: int | None, now: float) -> float | None:
    may, counts = _AGAIN.get(reason, (True, True))
    return (now + (retry_after or 0) if counts else now) if may else None


def _seconds_granted(s: Subscriber, response: Response) -> int:
    """Of a 2xx; never more than was asked for (4.1.2.1), and that if it does not say."""
    try:
        granted = response.expires
    except Malformed:
        granted = None
    return s.asked if granted is None else min(granted, s.asked)


# Its rules, one function each: (subscriber, event, now) -> SubscriberStep.


def _take(s: Subscriber, request: Request) -> tuple[Subscriber, SubscriptionState]:
    """The subscriber with its dialog after a NOTIFY, and what that says. Raises Rejected."""
    if not _same_event(s._event(), request):
        raise Rejected(489, "this subscription is to another event")
    try:
        said = request.subscription_state
    except Malformed as error:
        raise Rejected(400, "the Subscription-State cannot be understood") from error
    if said is None:
        raise Rejected(400, "a NOTIFY has no Subscription-State")
    if s.dialog is None:
        return replace(s, dialog=Dialog.from_notify(s._request(), request)), said
    return replace(s, dialog=s.dialog.receive(request)), said


def _notified(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    try:
        new, said = _take(s, e.request)
    except Rejected as no:
        return s, (answer_to(e.request, no.status, *no.headers),)
    told: tuple[SubscriberEffect, ...] = (answer_to(e.request, 200), Notified(said.state, e.request))
    if said.state == "terminated":
        new, ended = _done(new, said.reason or "unknown", 0, _again_at(said.reason, said.retry_after, now))
        return new, (*told, *ended)
    if said.expires is not None:
        new = _granted(new, now + said.expires, now)
    elif s.state is SubscriberState.SUBSCRIBING:
        new = _granted(new, s.expires_at, now)
    return replace(new, state=SubscriberState.ACTIVE), told


def _notified_leaving(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    """What it tells does not matter any more, but that it is the last; or the first, which makes the dialog."""
    try:
        new, said = _take(s, e.request)
    except Rejected as no:
        return s, (answer_to(e.request, no.status, *no.headers),)
    effects: tuple[SubscriberEffect, ...] = ()
    if said.state == "terminated":
        new, effects = _done(new, "unsubscribed")
    elif new._owes_leave():
        new, effects = _leave_now(new, now)
    return new, (answer_to(e.request, 200), *effects)


def _notified_ended(s: Subscriber, e: Notify, now: float) -> SubscriberStep:
    return s, (answer_to(e.request, 481),)


def _ours(s: Subscriber, response: Response) -> bool:
    """Whether it is the final answer to the latest SUBSCRIBE."""
    return s.pending and response.status >= 200 and response.cseq[0] == s.seq


def _answered_subscribing(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    response = e.response
    if not _ours(s, response):
        return s, ()
    if response.status < 300:
        dialog = Dialog.from_answer(s._request(), response)
        # Timer N runs from the SUBSCRIBE (4.1.2.4); a 2xx that took long still deserves its NOTIFY.
        new = replace(s, pending=False, dialog=dialog, waits_until=now + TIMERS.life)
        new = replace(_granted(new, now + _seconds_granted(s, response), now), refresh_at=None)
        return new, (Accepted(new.expires_at),)
    least = _delta(response.get("min-expires", ""))
    if response.status == 423 and least is not None and least > s.asked and not s.tried_again:
        new = replace(s, seq=s.seq + 1, asked=least, asked_at=now, tried_again=True)
        return replace(new, waits_until=now + TIMERS.life), (Ask(new._request()),)
    wait = _retry_after(response)
    return _done(s, "refused", response.status, None if wait is None else now + wait)


def _unanswered_subscribing(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    return _done(s, "unanswered") if s.pending and e.seq == s.seq else (s, ())


def _due_subscribing(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if now < s.waits_until:
        return s, ()
    if s.dialog is None:
        return _done(s, "unanswered")
    # 4.1.2.4: without a NOTIFY it has failed; the peer, which said 2xx, is told so.
    new, asks = _ask(s, 0, now)
    new, ended = _done(new, "unnotified")
    return new, (*asks, *ended)


def _leave_subscribing(s: Subscriber, e: Leave, now: float) -> SubscriberStep:
    """Without a dialog there is nothing to say it in: it is said as soon as the peer has made one."""
    new = replace(s, state=SubscriberState.LEAVING, waits_until=now + TIMERS.life)
    return (new, ()) if new.dialog is None else _leave_now(new, now)


def _answered_active(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    response = e.response
    if not _ours(s, response):
        return s, ()
    assert s.dialog is not None
    new = replace(s, pending=False)
    if response.status < 300:
        if not s.dialog.has(response):
            return _granted(new, s.expires_at, now), ()  # of another fork: ours is the one that told us
        until = now + _seconds_granted(s, response)
        capped = s.had_until is not None and until <= s.had_until + 1
        new = replace(new, dialog=s.dialog.answered(response), capped=s.capped or capped)
        return _granted(new, until, now), ()
    if s.had_until is None:
        # The first SUBSCRIBE was refused after its NOTIFY came: another fork refused, this one lives.
        return _granted(new, s.expires_at, now), ()
    if response.status in ENDS_IT:
        return _done(new, "failed", response.status)
    # 4.1.2.2: "still valid for the duration of the most recently known expires". Time for another try?
    retry = now + TIMERS.life
    return replace(new, refresh_at=retry if retry < s.expires_at and not s.capped else None), ()


def _unanswered_active(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    if not s.pending or e.seq != s.seq:
        return s, ()
    new = replace(s, pending=False)
    until = s.expires_at if s.had_until is None else max(s.expires_at, s.asked_at + s.asked)
    return _granted(new, until, now), ()


def _due_active(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if now >= s.expires_at + GRACE:
        return _done(s, "expired")
    if s.refresh_at is None or now < s.refresh_at:
        return s, ()
    return _ask(s, max(1, min(int(s.ends_at - now), MAX_SECONDS)), now)


def _leave_active(s: Subscriber, e: Leave, now: float) -> SubscriberStep:
    return _leave_now(replace(s, state=SubscriberState.LEAVING), now)


def _answered_leaving(s: Subscriber, e: Answered, now: float) -> SubscriberStep:
    if not _ours(s, e.response):
        return s, ()
    if e.response.status >= 300:
        return _done(s, "unsubscribed", e.response.status)
    new = replace(s, pending=False)
    if new.dialog is None:
        return _leave_now(replace(new, dialog=Dialog.from_answer(s._request(), e.response)), now)
    return new, ()  # whatever time it grants; now its last NOTIFY, if it sends one


def _unanswered_leaving(s: Subscriber, e: Unanswered, now: float) -> SubscriberStep:
    return _done(s, "unsubscribed") if s.pending and e.seq == s.seq else (s, ())


def _due_leaving(s: Subscriber, e: Due, now: float) -> SubscriberStep:
    if s._owes_leave():
        return _leave_now(s, now)
    return _done(s, "unsubscribed") if now >= s.waits_until else (s, ())


def _idle(s: Subscriber, e: SubscriberEvent, now: float) -> SubscriberStep:
    return s, ()


_S, _AC, _L, _E = SubscriberState

SUBSCRIBER: dict[tuple[SubscriberState, type], Row[Subscriber, SubscriberEffect]] = {
    (_S, Notify): Row(_notified, (_S, _AC, _E)),
    (_S, Answered): Row(_answered_subscribing, (_S, _E)),
    (_S, Unanswered): Row(_unanswered_subscribing, (_S, _E)),
    (_S, Due): Row(_due_subscribing, (_S, _E)),
    (_S, Leave): Row(_leave_subscribing, (_L,)),
    (_AC, Notify): Row(_notified, (_AC, _E)),
    (_AC, Answered): Row(_answered_active, (_AC, _E)),
    (_AC, Unanswered): Row(_unanswered_active, (_AC,)),
    (_AC, Due): Row(_due_active, (_AC, _E)),
    (_AC, Leave): Row(_leave_active, (_L,)),
    (_L, Notify): Row(_notified_leaving, (_L, _E)),
    (_L, Answered): Row(_answered_leaving, (_L, _E)),
    (_L, Unanswered): Row(_unanswered_leaving, (_L, _E)),
    (_L, Due): Row(_due_leaving, (_L, _E)),
    (_E, Notify): Row(_notified_ended, (_E,)),
    (_E, Answered): Row(_idle, (_E,)),
    (_E, Unanswered): Row(_idle, (_E,)),
    (_E, Due): Row(_idle, (_E,)),
}


def step_subscriber(s: Subscriber, event: SubscriberEvent, now: float) -> SubscriberStep:
    """The subscriber after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    return obey(SUBSCRIBER, "subscriber", s, event, now)
