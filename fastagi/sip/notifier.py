"""The notifier's end of a subscription (RFC 6665, 4.2); what it tells is the event package's business.

Theory of operation
-------------------
It is ACTIVE from its 200 to the SUBSCRIBE until one of the two ends it, or its time does; then it is ENDING
until its last NOTIFY is answered, and ENDED. What holds for it as for all machines is said in `machine`. Its
rules:

- The time granted never reaches beyond ``service_ends``, and a refresh cannot move that.
- It tells its whole state, always the latest, and has one NOTIFY under way at a time: on a line that swaps
  packets, an overtaken NOTIFY would be answered 500, and a 500 would end the subscription.
- Only the last NOTIFY is not held back, neither by the one under way nor by the `Pace`.
- A NOTIFY that fails ends it (4.2.2), unless the answer says Retry-After; 481 ends it in any case.
- It does without the state "pending": whoever is answered 200 is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fastagi.sip.dialog import Answer, Ask, Dialog, Rejected, answer_to
from fastagi.sip.machine import Answered, Content, Due, Row, Unanswered, known_fields, obey
from fastagi.sip.message import Header, Request
from fastagi.sip.subscription import Ended, retry_after_of, same_event
from fastagi.sip.uri import Malformed

DEFAULT_EXPIRES: Final = 3600


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


def at_most(count: int, seconds: float, sent: tuple[float, ...]) -> float:
    """When one more may go out, of at most so many in any so many seconds; ``count`` is at most `REMEMBERED`."""
    return sent[-count] + seconds if len(sent) >= count else 0.0


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
        if not same_event(n.event, e.request):
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
    wait = retry_after_of(e.response)
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
