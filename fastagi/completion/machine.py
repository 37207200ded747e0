"""The life of one request, as one table.

Theory of operation
-------------------
A failed call is OFFERED. When its caller asks, it becomes a request and is QUEUED: it waits, in the
order of asking, until the callee is free. (Where the callee is beyond a trunk it is REQUESTED first, until
the other PBX has accepted it, and that PBX judges when he is free.) ``queue.select`` says whose turn it is;
then it is READY and the caller's phone is rung (the *recall*). When he answers it is CALLING: the *CC call*
to the callee is under way. That call completes it, or brings it back into the queue in its old place.

Two things may happen at any time and change no state: the caller is busy himself (``suspended``: the
request keeps its place and is passed over), and the callee shows a sign of life (``sign_needed``: he did
not answer, so being idle says nothing until he has used his phone).

What protects everybody's nerves:

- A turn that failed because the caller did not answer, or in which the CC call failed, counts against
  ``cc_max_recalls``. A caller who is busy himself, or a recall of which nothing was heard again, does not.
- After a recall that failed, and after a CC call to a callee who was not registered, the next turn waits
  ``cc_retry_timer``. After any other CC call that failed it waits for the callee: until he is no longer
  busy, or is seen to use his phone (beyond a trunk his PBX judges). So it never loops at once.
- ``service_ends`` is set once, when asked, and nothing prolongs it. It ends a request that waits; a turn
  under way is let finish and looks at it when it fails.

`step` takes plain values and gives plain values: the new request, the effects to run once it is saved,
and a sentence for the log. An event that has no row for the state is refused, and nothing changes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastagi.completion.model import Policy, Request, Service, State
from fastagi.errors import Refused

ACCEPT_WITHIN = 4.0
"""Seconds that another PBX has to accept a request: its caller holds the line meanwhile."""
BEGIN_WITHIN = 10.0
"""Seconds that Asterisk has to begin a recall; what it lets lie (or drops, while it stops) is taken back."""
RECALL_GRACE = 15.0
"""Seconds beyond ``cc_recall_timer`` until a recall nobody reports on is given up."""
CALL_LIMIT = 12 * 3600.0
"""Seconds after which a CC call nobody reports on is given up."""
FAR_CALL_LIMIT = 240.0
"""The same of a caller beyond a trunk: his call is over for us when it is answered, and rings no longer."""


# Events: what can happen to a request.


@dataclass(frozen=True, slots=True)
class Asked:
    """The caller wants to be called back; ``since``: he keeps the place of an earlier request of his."""

    since: float | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The other PBX has taken the request into its queue."""


@dataclass(frozen=True, slots=True)
class MonitorEnded:
    """The other PBX does not, or no longer, watch the callee; ``why`` is a sentence."""

    reason: str
    why: str


@dataclass(frozen=True, slots=True)
class Selected:
    """It is this request's turn; ``recall_id`` names the attempt."""

    recall_id: str


@dataclass(frozen=True, slots=True)
class CallerBusy:
    """It would be his turn, but the caller's own phone is in use or gone; or his PBX says so in his turn."""


@dataclass(frozen=True, slots=True)
class CallerFree:
    """The caller's phone is idle again."""


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """The callee's phone was seen in use."""


@dataclass(frozen=True, slots=True)
class RecallTaken:
    """Asterisk has begun the recall, on this Local channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class RecallFailed:
    """The caller did not answer; the DIALSTATUS and HANGUPCAUSE of his leg."""

    dialstatus: str
    cause: int


@dataclass(frozen=True, slots=True)
class RecallLost:
    """The recall came to nothing: nobody reports on it, or it could not even begin."""

    why: str
    pause: bool = True
    """Wait ``cc_retry_timer`` before the next."""
    counted: bool = False
    """It counts against ``cc_max_recalls``."""


@dataclass(frozen=True, slots=True)
class CallerAnswered:
    """The caller picked up his recall; ``channel`` is his side of it."""

    channel: str


@dataclass(frozen=True, slots=True)
class CallCompleted:
    """The CC call was answered by the callee, and is over."""


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The CC call was not answered; ``callee_in_use``: his devices were then seen in use, none idle."""

    dialstatus: str
    cause: int
    callee_in_use: bool


@dataclass(frozen=True, slots=True)
class CallLost:
    """The CC call's channels are gone and nobody told how it ended."""


@dataclass(frozen=True, slots=True)
class Fulfilled:
    """The two have talked: the callee's own request for the caller has completed."""

    by: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Taken back; ``by`` completes the sentence "taken back by ..."."""

    by: str


@dataclass(frozen=True, slots=True)
class TimeOver:
    """``service_ends`` has passed."""


Event = (
    Asked | Accepted | MonitorEnded | Selected | CallerBusy | CallerFree | SignOfLife
    | RecallTaken | RecallFailed | RecallLost | CallerAnswered
    | CallCompleted | CallFailed | CallLost | Fulfilled | Cancelled | TimeOver
)  # fmt: skip


# Effects: what is to be done in the world once the new state is saved.


@dataclass(frozen=True, slots=True)
class Recall:
    """Ring the caller."""

    request: Request


@dataclass(frozen=True, slots=True)
class StopRecall:
    """Stop ringing the caller: unlink the file nobody took, hang up the channel that rings."""

    request: Request


Effect = Recall | StopRecall


@dataclass(frozen=True, slots=True)
class Step:
    """What one event made of a request."""

    request: Request
    sentence: str
    effects: tuple[Effect, ...] = ()


# The rules, one function each: (request, event, now, policy) -> Step.


def service_of(dialstatus: str, cause: int) -> Service | None:
    """Which service a failed call may be completed by (Q.850 causes); None: none."""
    if dialstatus == "BUSY":
        return Service.CCBS
    if dialstatus in ("NOANSWER", "CANCEL"):
        return Service.CCNR
    if dialstatus == "CHANUNAVAIL" and cause == 21:
        return Service.CCNR
    if dialstatus == "CHANUNAVAIL" and cause in (3, 20):
        return Service.CCNL
    return None


def describe(dialstatus: str, cause: int) -> str:
    """A failed call in words, about the one who was called."""
    words = {
        "BUSY": "was busy",
        "NOANSWER": "did not answer",
        "CANCEL": "did not answer before the caller hung up",
        "CONGESTION": "could not be reached (congestion)",
        "ANSWER": "answered",
    }.get(dialstatus)
    if dialstatus == "CHANUNAVAIL":
        words = {1: "does not exist", 21: "declined", 3: "was not registered", 20: "was not registered"}.get(
            cause, "was not available"
        )
    return f"{words or 'was not reached'} ({dialstatus or 'no DIALSTATUS'}, cause {cause})"


def _asked(r: Request, e: Asked, now: float, p: Policy) -> Step:
    new = replace(
        r,
        state=State.REQUESTED if r.monitor else State.QUEUED,
        asked_at=now if e.since is None else e.since,
        service_ends=now + p.service_timer(r.service),
        recall_ends=now + ACCEPT_WITHIN if r.monitor else 0.0,
        sign_needed=r.service is Service.CCNR and not r.monitor,
        idle_after=now if r.service is Service.CCNR else 0.0,
    )
    return Step(new, f"{r.caller} asked to be called back by {r.callee}, who {r.why}")


def _accepted(r: Request, e: Accepted, now: float, p: Policy) -> Step:
    new = replace(r, state=State.QUEUED, recall_ends=0.0)
    return Step(new, f"the PBX beyond {r.monitor} watches {r.callee} for {r.caller}")


def _monitor_ended(r: Request, e: MonitorEnded, now: float, p: Policy) -> Step:
    return _end(r, now, e.reason, e.why)


def _monitor_ended_ready(r: Request, e: MonitorEnded, now: float, p: Policy) -> Step:
    return _end(r, now, e.reason, e.why, StopRecall(r))


def _selected(r: Request, e: Selected, now: float, p: Policy) -> Step:
    new = replace(
        r,
        state=State.READY,
        recall_id=e.recall_id,
        taken=bool(r.agent),  # the other PBX rings its caller itself
        channel="",
        retry_at=0.0,
        recall_ends=now + (p.caller.cc_recall_timer if r.agent else BEGIN_WITHIN),
    )
    return Step(new, f"{r.callee} is free: ringing {r.caller}", (Recall(new),))


def _caller_busy(r: Request, e: CallerBusy, now: float, p: Policy) -> Step:
    sentence = f"{r.callee} is free, but {r.caller} himself is not: he keeps his place and is passed over"
    return Step(replace(r, suspended=True), sentence)


def _caller_busy_ready(r: Request, e: CallerBusy, now: float, p: Policy) -> Step:
    why = f"{r.caller} is not free himself: he keeps his place and is passed over"
    return _requeue(r, now, why, suspended=True)


def _caller_free(r: Request, e: CallerFree, now: float, p: Policy) -> Step:
    return Step(replace(r, suspended=False), f"{r.caller} is free again: no longer passed over")


def _sign_of_life(r: Request, e: SignOfLife, now: float, p: Policy) -> Step:
    sentence = f"{r.callee} uses his phone: {r.caller} is called back when that ends"
    return Step(replace(r, sign_needed=False), sentence)


def _recall_taken(r: Request, e: RecallTaken, now: float, p: Policy) -> Step:
    if r.taken:
        raise Refused("RECALL_TAKEN", f"recall {r.recall_id} of request {r.id} was taken already")
    ends = now + p.caller.cc_recall_timer + RECALL_GRACE
    new = replace(r, taken=True, channel=e.channel, recall_ends=ends)
    return Step(new, f"Asterisk rings {r.caller} on {e.channel}")


def _requeue(r: Request, now: float, why: str, **changes: object) -> Step:
    """Back into the queue in the old place, unless its time is over."""
    if now >= r.service_ends:
        return _end(r, now, "EXPIRED", f"{why}; the time to wait for {r.callee} is over")
    back = replace(r, state=State.QUEUED, recall_id="", taken=False, channel="", recall_ends=0.0)
    return Step(replace(back, **changes), why)  # type: ignore[arg-type]


def _counted(r: Request, now: float, p: Policy, why: str, **changes: object) -> Step:
    recalls = r.recalls + 1
    if recalls >= p.caller.cc_max_recalls:
        return _end(
            replace(r, recalls=recalls),
            now,
            "TOO_MANY_RECALLS",
            f"{why}; that was recall {recalls}, the last",
        )
    return _requeue(r, now, why, recalls=recalls, **changes)


def _end(r: Request, now: float, reason: str, why: str, *effects: Effect) -> Step:
    return Step(replace(r, state=State.ENDED, ended_at=now, reason=reason), why, effects)


def _recall_failed(r: Request, e: RecallFailed, now: float, p: Policy) -> Step:
    if not r.taken:
        raise Refused("RECALL_UNKNOWN", f"recall {r.recall_id} of request {r.id} was not begun yet")
    retry_at = now + p.caller.cc_retry_timer
    # By DIALSTATUS first: a second phone that is not registered leaves its cause 3 to a Dial() that rang.
    if service_of(e.dialstatus, e.cause) in (Service.CCBS, Service.CCNL):
        why = f"{r.caller} {describe(e.dialstatus, e.cause)}: he keeps his place and is passed over"
        return _requeue(r, now, why, suspended=True, retry_at=retry_at)
    why = f"{r.caller} was rung and {describe(e.dialstatus, e.cause)}"
    return _counted(r, now, p, why, retry_at=retry_at)


def _recall_lost(r: Request, e: RecallLost, now: float, p: Policy) -> Step:
    retry_at = now + p.caller.cc_retry_timer if e.pause else 0.0
    if e.counted:
        return replace(_counted(r, now, p, e.why, retry_at=retry_at), effects=(StopRecall(r),))
    return replace(_requeue(r, now, e.why, retry_at=retry_at), effects=(StopRecall(r),))


def call_limit(request: Request) -> float:
    """Seconds after which its CC call is given up."""
    return FAR_CALL_LIMIT if request.agent else CALL_LIMIT


def call_began(request: Request) -> float:
    """When the caller picked up, of a request that is CALLING."""
    return request.recall_ends - call_limit(request)


def _caller_answered(r: Request, e: CallerAnswered, now: float, p: Policy) -> Step:
    if not r.taken:
        raise Refused("RECALL_UNKNOWN", f"recall {r.recall_id} of request {r.id} was not begun yet")
    new = replace(r, state=State.CALLING, channel=e.channel, recall_ends=now + call_limit(r))
    return Step(new, f"{r.caller} answered: calling {r.callee}")


def _call_completed(r: Request, e: CallCompleted, now: float, p: Policy) -> Step:
    new = replace(r, state=State.COMPLETED, ended_at=now, reason="COMPLETED")
    return Step(new, f"{r.caller} has talked to {r.callee}")


def _call_failed(r: Request, e: CallFailed, now: float, p: Policy) -> Step:
    why = f"{r.callee} {describe(e.dialstatus, e.cause)}"
    service = service_of(e.dialstatus, e.cause)
    if service is None:
        return _end(r, now, "CALL_FAILED", why)
    # Busy while his device read idle is do-not-disturb: being idle then says nothing any more.
    # (Beyond a trunk the other PBX judges that.)
    unseen = service is Service.CCNR or (service is Service.CCBS and not e.callee_in_use)
    sign_needed = unseen and not r.monitor
    # "Not registered" while his device may read idle: a pause, lest it come round at once.
    retry_at = now + p.caller.cc_retry_timer if service is Service.CCNL else 0.0
    why += f": {r.caller} keeps his place"
    return _counted(
        r, now, p, why, service=service, sign_needed=sign_needed, idle_after=now, retry_at=retry_at
    )


def _call_lost(r: Request, e: CallLost, now: float, p: Policy) -> Step:
    return _end(r, now, "CALL_LOST", f"the call to {r.callee} is gone and nobody told how it ended")


def _fulfilled(r: Request, e: Fulfilled, now: float, p: Policy) -> Step:
    new = replace(r, state=State.COMPLETED, ended_at=now, reason="FULFILLED")
    return Step(new, f"{r.caller} and {r.callee} have talked, through request {e.by}")


def _cancelled(r: Request, e: Cancelled, now: float, p: Policy) -> Step:
    return _end(r, now, "CANCELLED", f"taken back by {e.by}")


def _cancelled_ready(r: Request, e: Cancelled, now: float, p: Policy) -> Step:
    return _end(r, now, "CANCELLED", f"taken back by {e.by}, while {r.caller} was rung", StopRecall(r))


def _time_over(r: Request, e: TimeOver, now: float, p: Policy) -> Step:
    waited = r.service_ends - r.asked_at
    return _end(r, now, "EXPIRED", f"{r.callee} was not free within {waited:g} s")


def _calling_too_long(r: Request, e: RecallLost, now: float, p: Policy) -> Step:
    return _end(r, now, "CALL_LOST", f"nobody told how the call to {r.callee} ended")


@dataclass(frozen=True, slots=True)
class Row:
    """A rule, and the states it may lead to (drawn in contrib/doc, checked at every step)."""

    rule: Callable[..., Step]
    to: tuple[State, ...]


_O, _P, _Q, _R, _C = State.OFFERED, State.REQUESTED, State.QUEUED, State.READY, State.CALLING
_DONE, _END = State.COMPLETED, State.ENDED

TABLE: dict[tuple[State, type], Row] = {
    (_O, Asked): Row(_asked, (_P, _Q)),
    (_P, Accepted): Row(_accepted, (_Q,)),
    (_P, MonitorEnded): Row(_monitor_ended, (_END,)),
    (_P, Cancelled): Row(_cancelled, (_END,)),
    (_Q, MonitorEnded): Row(_monitor_ended, (_END,)),
    (_Q, Selected): Row(_selected, (_R,)),
    (_Q, CallerBusy): Row(_caller_busy, (_Q,)),
    (_Q, CallerFree): Row(_caller_free, (_Q,)),
    (_Q, SignOfLife): Row(_sign_of_life, (_Q,)),
    (_Q, TimeOver): Row(_time_over, (_END,)),
    (_Q, Fulfilled): Row(_fulfilled, (_DONE,)),
    (_Q, Cancelled): Row(_cancelled, (_END,)),
    (_R, RecallTaken): Row(_recall_taken, (_R,)),
    (_R, RecallFailed): Row(_recall_failed, (_Q, _END)),
    (_R, RecallLost): Row(_recall_lost, (_Q, _END)),
    (_R, CallerBusy): Row(_caller_busy_ready, (_Q, _END)),
    (_R, MonitorEnded): Row(_monitor_ended_ready, (_END,)),
    (_R, CallerAnswered): Row(_caller_answered, (_C,)),
    (_R, Cancelled): Row(_cancelled_ready, (_END,)),
    (_C, CallCompleted): Row(_call_completed, (_DONE,)),
    (_C, CallFailed): Row(_call_failed, (_Q, _END)),
    (_C, CallLost): Row(_call_lost, (_END,)),
    (_C, RecallLost): Row(_calling_too_long, (_END,)),
    (_C, Cancelled): Row(_cancelled, (_END,)),
}


def step(request: Request, event: Event, now: float, policy: Policy) -> Step:
    """The request after ``event`` at ``now``; raises `Refused`, and nothing has changed."""
    row = TABLE.get((request.state, type(event)))
    if row is None:
        raise Refused(
            "NOT_NOW",
            f"request {request.id} is {request.state}: {type(event).__name__} does not fit that state",
        )
    result: Step = row.rule(request, event, now, policy)
    assert result.request.state in row.to, (request.state, event, result.request.state)
    return result
