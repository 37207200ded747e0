"""Callees beyond the trunks: we subscribe at the other PBX, are told when they are free, and say when we are not.

Here stands what RFC 6910, 6, calls the caller's agent, as far as it speaks SIP; ringing the caller and all
time is the rules' business. As for the agents, what the other PBX is to know follows from what the request
is: `Monitors.follow` sees to it.

A ``ready`` is used once: after a turn that failed, only a new one counts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from fastagi.completion.machine import Accepted as RequestAccepted
from fastagi.completion.machine import MonitorEnded, RecallLost, TimeOver
from fastagi.completion.model import TURN, Offer, Presence, Service, State
from fastagi.completion.model import Request as CcRequest
from fastagi.sip.callcompletion.parts import Parts, same_uri, user_of
from fastagi.sip.callcompletion.values import SERVICE_M, Fork, Habits, Heard, Monitor
from fastagi.sip.dialog import Answer, Ask
from fastagi.sip.machine import Answered, Content, Due, Unanswered
from fastagi.sip.message import Request, Response
from fastagi.sip.package import EVENT, PIDF_TYPE, STATE_TYPE, parse_state, pidf
from fastagi.sip.publication import (
    Done,
    Failed,
    Publish,
    Publisher,
    PublisherEffect,
    PublisherEvent,
    PublisherState,
    Withdraw,
    step_publisher,
)
from fastagi.sip.subscriber import (
    Accepted,
    Leave,
    Notified,
    Notify,
    Subscriber,
    SubscriberEffect,
    SubscriberEvent,
    SubscriberState,
    step_subscriber,
    subscribe,
)
from fastagi.sip.subscription import Ended
from fastagi.sip.uri import Uri

M_SERVICE: Final = {m: service for service, m in SERVICE_M.items()}
REFUSED: Final = {
    480: ("CALLEE_QUEUE_FULL", "too many wait for {callee} there already"),
    403: ("REFUSED_THERE", "the PBX beyond {monitor} does not let {callee} be waited for"),
    0: ("NO_ANSWER", "the PBX beyond {monitor} has not answered"),
}
MAX_FORKS: Final = 4
"""Monitor URIs of one call that are subscribed to."""
NEARLY: Final = 5.0
"""Seconds: that long before the end of the service the other PBX's own end of it is the same thing."""
MAX_RENEWALS: Final = 5
SOON: Final = 0.1
PAUSE: Final = 30.0
"""Seconds that we wait longer each time before we subscribe anew: a PBX may end whatever it accepts."""
AGAIN: Final = frozenset({"deactivated", "probation", "giveup", "expired", "unanswered"})
"""Ends of a subscription after which it is worth another (RFC 6665, 4.1.3)."""
WORDS: Final = AGAIN | {"timeout", "noresource", "rejected", "invariant", "refused", "failed", "unnotified"}
"""Ends that may stand in a sentence: any other word is the peer's own."""


class Monitors:
    """All callees beyond the trunks who are waited for."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._offers: dict[str, int] = {}  # by the Call-ID of the call that went out
        self._in_turn: list[CcRequest] = []
        # The requests whose CC call may be under way: every INVITE asks for them.
        self._calling: list[int] = []

    # Inside a turn: what the rules tell and ask

    def offered(self, offer: Offer) -> None:
        self._parts.later(partial(self._offers.__setitem__, offer.call_out, offer.id))

    def hear(self, offer: Offer, dialled: str, now: float) -> None:
        trunk = self._parts.trunks[offer.monitor]
        if trunk.in_path:
            self._parts.hear("heard", offer.id, offer.monitor, offer.call_out, now)
            return
        # Nothing was seen: it is asked for where it was called (RFC 6910, 6.2).
        who = str(Uri.of(dialled, *trunk.peer[0]))
        m = SERVICE_M[offer.service] if offer.service is not None else ""
        own = str(Uri.of(offer.caller, trunk.towards_peer.host))
        self._parts.keep("heard", offer.id, Heard(own, who, who, ((who, m),)))

    def forgotten(self, offer: Offer) -> None:
        self._parts.service.after(partial(self._forget, offer.call_out, offer.id))

    def _forget(self, call_id: str, id: int) -> None:
        if self._offers.get(call_id) == id:
            del self._offers[call_id]

    def offer_of(self, call_id: str) -> Offer | None:
        """What is on record of a call that went out by this Call-ID."""
        return self._parts.service.book.offers.get(self._offers.get(call_id, 0))

    def service(self, trunk: str, call_id: str, failed: Service | None, now: float) -> Service | None:
        """What the other PBX has offered of this call; where nothing of ours is in the path, as it ``failed``."""
        if not self._parts.trunks[trunk].in_path:
            return failed
        call = self._parts.calls[trunk].get(call_id, now)
        if call is None or not call.monitors:
            return None
        # An m nobody knows "MUST be accepted" (RFC 6910, 7.1).
        return M_SERVICE.get(call.monitors[0][1], Service.CCBS if call.status == 486 else Service.CCNR)

    def requested(self, request: CcRequest, offer: Offer, now: float) -> None:
        """What is on offer is asked for: what was seen of its call goes with the request."""
        heard = self._parts.kept("heard", offer.id, Heard)
        if heard is not None:
            self._keep(Monitor(request.id, request.monitor, heard))

    def presence(self, request: int, now: float) -> Presence | None:
        """Whether the other PBX has said that this callee is ready, and nobody has used it yet."""
        monitor = self._parts.kept("monitor", request, Monitor)
        if monitor is None:
            return None
        return Presence.IDLE if monitor.ready else Presence.IN_USE

    def follow(self, now: float) -> bool:
        """Subscribe, suspend, resume and leave, as every request now wants; True: one has changed by it."""
        before = [r for r in self._parts.service.book.requests() if r.monitor]
        self._in_turn = [r for r in self._parts.service.book.requests() if r.state in TURN]
        for monitor in self._all():
            try:
                self._follow(monitor, now)
            except Exception:  # the others, and the service, must go on
                self._parts.fault(f"the subscription of request {monitor.request}")
                self._gone(monitor, self._request(monitor), "a fault of fastagi has ended it", now)
        for cc in before:
            current = self._parts.service.book.request(cc.id)
            lost = self._parts.kept("monitor", cc.id, Monitor) is None
            if current is not None and lost and current.state in (State.REQUESTED, State.QUEUED):
                why = f"nobody watches {cc.callee} any more"
                self._parts.service.apply(current, MonitorEnded("ENDED_THERE", why), now)
        after = [r for r in self._parts.service.book.requests() if r.monitor]
        self._calling = [r.id for r in after if r.state is State.CALLING]
        return before != after

    def dues(self) -> list[float]:
        """The instants at which there is something to do."""
        return [at for monitor in self._all() for at in _dues(monitor)]

    def target(self, recall_id: str, request: Request) -> str | None:
        """Where the CC call of this recall goes: cc-URI, monitor URI, or what was called first (RFC 6910, 6.4)."""
        cc = self._parts.service.book.of_recall(recall_id)
        monitor = None if cc is None else self._parts.kept("monitor", cc.id, Monitor)
        if monitor is None:
            return None
        self._parts.remember(self._parts.cc_calls, monitor.request, request.call_id)
        return self._target(monitor)

    def answered_there(self, request: int, now: float) -> bool:
        """Whether a 2xx to the CC call of this request has passed."""
        monitor = self._parts.kept("monitor", request, Monitor)
        if monitor is None:
            return False
        call = self._parts.calls[monitor.trunk].get(self._parts.cc_calls.get(request, ""), now)
        return call is not None and call.answered

    def target_of_call(self, trunk: str, request: Request) -> str | None:
        """The same for an ordinary INVITE that is the CC call of somebody whose turn it is; None: it is none."""
        for cc in map(self._parts.service.book.request, self._calling):
            if cc is not None and cc.state is State.CALLING and cc.monitor == trunk:
                monitor = self._parts.kept("monitor", cc.id, Monitor)
                if monitor is not None and _is_call_of(monitor.heard, request):
                    self._parts.remember(self._parts.cc_calls, cc.id, request.call_id)
                    return _with_m(request.uri, monitor.forks[monitor.chosen].m)
        return None

    # Inside a turn: what the peer sends

    def notify(self, trunk: str, request: Request, now: float) -> Response | None:
        """A NOTIFY; None: it belongs to no subscription of ours."""
        for monitor in self._all():
            for place, fork in enumerate(monitor.forks):
                if monitor.trunk == trunk and _is_of(fork.subscriber, request):
                    return self._step(monitor, place, Notify(request), now)
        return None

    def answered(self, trunk: str, asked: Request, response: Response | None, now: float) -> bool:
        """What a SUBSCRIBE or PUBLISH of ours got; False: it was none of ours."""
        event = Unanswered(asked.cseq[0]) if response is None else Answered(response)
        for monitor in self._all():
            if monitor.trunk != trunk:
                continue
            p = monitor.publisher
            if p is not None and asked.method == "PUBLISH" and p.call_id == asked.call_id:
                self._step_publisher(monitor, event, now)
                return True
            for place, fork in enumerate(monitor.forks):
                if asked.method == "SUBSCRIBE" and _asked_by(fork.subscriber, asked):
                    self._step(monitor, place, event, now)
                    return True
        return False

    # Inside: beginning and going on

    def _all(self) -> list[Monitor]:
        return self._parts.all_kept("monitor", Monitor)

    def _request(self, monitor: Monitor) -> CcRequest | None:
        return self._parts.service.book.request(monitor.request)

    def _subscribe(self, monitor: Monitor, cc: CcRequest, now: float) -> None:
        """To every monitor URI that is known, or else to what was called (RFC 6910, 6.2).

        They are forks of one SUBSCRIBE: the same Call-ID, From tag and CSeq, another request-URI each.
        """
        heard, trunk = monitor.heard, self._parts.trunks[monitor.trunk]
        peer = trunk.peer[0]
        from_ = self._from(monitor)
        headers = (
            ("Event", EVENT),
            ("Accept", STATE_TYPE),
            ("Request-Disposition", "parallel"),
            ("Allow-Events", EVENT),
        )
        call_id = f"{self._parts.new_token()}@{trunk.towards_peer.host}"
        new, asks = [], []
        for uri, m in heard.monitors[:MAX_FORKS] or ((heard.uri, ""),):
            target = _with_m(str(Uri.parse(uri).usable(peer.host, peer.port)), m)
            s, effects = subscribe(target, from_, f"<{heard.to_uri}>", call_id, headers, cc.service_ends, now)
            new.append(Fork(uri, m, s))
            asks += [e.request for e in effects if isinstance(e, Ask)]
        old = (f for f in monitor.forks if f.subscriber.state is not SubscriberState.ENDED)
        # What was published was published where we waited before.
        self._keep(replace(monitor, forks=(*new, *old), publisher=None, chosen=0, called=False))
        for request in asks:
            self._parts.ask(monitor.trunk, request)

    def _follow(self, monitor: Monitor, now: float) -> None:
        cc = self._request(monitor)
        if monitor.trunk not in self._parts.trunks:
            self._gone(monitor, cc, f"the trunk {monitor.trunk} is no longer configured", now)
            return
        if cc is None:
            self._leave(monitor, now)
        else:
            self._go_on(monitor, cc, now)
        current = self._parts.kept("monitor", monitor.request, Monitor)
        for place in range(len(current.forks) if current is not None else 0):
            current = self._current(monitor)
            at = current.forks[place].subscriber.next_due() if place < len(current.forks) else None
            if at is not None and at <= now:
                self._step(current, place, Due(), now)
        current = self._parts.kept("monitor", monitor.request, Monitor)
        if current is not None and current.publisher is not None:
            at = current.publisher.next_due()
            if at is not None and at <= now:
                self._step_publisher(current, Due(), now)

    def _gone(self, monitor: Monitor, cc: CcRequest | None, why: str, now: float) -> None:
        """There is nobody to say anything to."""
        self._parts.keep("monitor", monitor.request, None)
        if cc is not None and cc.state is not State.CALLING:
            self._parts.service.apply(cc, MonitorEnded("ENDED_THERE", why), now)

    def _go_on(self, monitor: Monitor, cc: CcRequest, now: float) -> None:
        if cc.state is State.REQUESTED and not monitor.forks:
            self._subscribe(monitor, cc, now)
            return
        if cc.state in TURN and monitor.ready:
            monitor = monitor.used()
            self._keep(monitor)
        if cc.state is State.CALLING and not monitor.called:
            monitor = replace(monitor, called=True)
            self._keep(monitor)
        if cc.state is State.QUEUED and monitor.called:
            if not monitor.retention:
                self._ask_anew(monitor, cc, now)
                return
            monitor = replace(monitor, called=False)
            self._keep(monitor)
        if cc.state in (State.QUEUED, State.READY):
            if monitor.serves:
                self._publish(monitor, cc, now)
            elif not monitor.renew_at:
                self._ended(monitor, "lost", 0, None, now)
            elif monitor.renew_at <= now and cc.state is State.QUEUED:
                self._subscribe(replace(monitor, renew_at=0.0), cc, now)

    def _ask_anew(self, monitor: Monitor, cc: CcRequest, now: float) -> None:
        """The CC call has failed, and where the other PBX does not retain the place there is lost (RFC 6910, 4.2)."""
        self._unsubscribe(monitor, now)
        current = self._current(monitor)
        call = self._parts.calls[monitor.trunk].get(self._parts.cc_calls.get(cc.id, ""), now)
        if call is not None and call.monitors:  # it has offered that call anew
            current = replace(current, heard=replace(current.heard, monitors=call.monitors))
        self._subscribe(current, cc, now)

    def _unsubscribe(self, monitor: Monitor, now: float) -> None:
        for place, fork in enumerate(monitor.forks):
            if fork.serves:
                self._step(self._current(monitor), place, Leave(), now)

    def _current(self, monitor: Monitor) -> Monitor:
        return self._parts.kept("monitor", monitor.request, Monitor) or monitor

    def _leave(self, monitor: Monitor, now: float) -> None:
        """The request is over: unsubscribe, withdraw what was published, and forget it once that is done."""
        self._unsubscribe(monitor, now)
        current = self._current(monitor)
        p = current.publisher
        if p is not None and p.content is not None:
            self._step_publisher(current, Withdraw(), now)
            current = self._current(monitor)
            p = current.publisher
        if current.over and (p is None or p.state is not PublisherState.SENDING):
            self._parts.keep("monitor", monitor.request, None)

    def _from(self, monitor: Monitor) -> str:
        """Who waits, as the other PBX is to know him, with a tag of its own."""
        known_as = self._parts.trunks[monitor.trunk].subscribe_from
        uri = monitor.heard.from_uri if known_as == "caller" else known_as
        return f"<{uri}>;tag={self._parts.new_token()}"

    # Inside: suspend and resume

    def _publish(self, monitor: Monitor, cc: CcRequest, now: float) -> None:
        """Closed while the caller cannot be called, open again when he can; nothing as long as he always could."""
        p, closed = monitor.publisher, self._is_busy(cc, now)
        if p is None and not closed:
            return
        wanted = Content(pidf(monitor.heard.from_uri, not closed), PIDF_TYPE)
        if p is None:
            p = self._new_publisher(monitor, cc)
            self._keep(replace(monitor, publisher=p))
        if p.content != wanted:
            current = self._current(monitor)
            if closed:
                forks = (replace(f, ready=False, was_ready=f.ready or f.was_ready) for f in current.forks)
                current = replace(current, forks=tuple(forks))
            self._step_publisher(current, Publish(wanted), now)

    def _is_busy(self, cc: CcRequest, now: float) -> bool:
        """His other requests are suspended during a recall (RFC 6910, 6.3), and this one in the pause after one."""
        if cc.suspended or (cc.state is State.QUEUED and now < cc.retry_at):
            return True
        return any(r.caller == cc.caller and r.id != cc.id for r in self._in_turn)

    def _new_publisher(self, monitor: Monitor, cc: CcRequest) -> Publisher:
        trunk = self._parts.trunks[monitor.trunk]
        habits = self._parts.kept("habits", trunk.name, Habits) or Habits()
        peer = trunk.peer[0]
        fork = next(f for f in monitor.forks if f.serves)
        return Publisher(
            uri=str(Uri.parse(fork.cc_uri or fork.uri).usable(peer.host, peer.port)),
            from_=self._from(monitor),
            to=f"<{monitor.heard.to_uri}>",
            call_id=f"{self._parts.new_token()}@{trunk.towards_peer.host}",
            headers=(("Event", habits.publish_event),),
            ends_at=cc.service_ends,
        )

    def _step_publisher(self, monitor: Monitor, event: PublisherEvent, now: float) -> None:
        assert monitor.publisher is not None
        p, effects = step_publisher(monitor.publisher, event, now)
        self._keep(replace(monitor, publisher=p))
        for effect in effects:
            self._publisher_effect(monitor, effect, now)

    def _publisher_effect(self, monitor: Monitor, effect: PublisherEffect, now: float) -> None:
        match effect:
            case Ask(request):
                self._parts.ask(monitor.trunk, request)
            case Failed(status):
                current = self._current(monitor)
                assert current.publisher is not None
                if status == 489 and ("Event", EVENT) not in current.publisher.headers:
                    self._publish_by_its_old_name(current, current.publisher, now)
                    return
                # It does not understand: what it said before is all there is.
                forks = (replace(f, ready=f.ready or f.was_ready, was_ready=False) for f in current.forks)
                self._keep(replace(current, forks=tuple(forks)))
            case Done():
                pass

    def _publish_by_its_old_name(self, monitor: Monitor, p: Publisher, now: float) -> None:
        """There are PBXs that know a PUBLISH of ``Event: call-completion`` only; that is remembered."""
        self._parts.keep("habits", monitor.trunk, Habits(publish_event=EVENT))
        if p.content is not None:
            new = replace(monitor, publisher=replace(p, headers=(("Event", EVENT),), content=None))
            self._step_publisher(new, Publish(p.content), now)

    # Inside: what happens to a subscription

    def _keep(self, monitor: Monitor) -> None:
        self._parts.keep("monitor", monitor.request, monitor)

    def _step(self, monitor: Monitor, place: int, event: SubscriberEvent, now: float) -> Response | None:
        fork = monitor.forks[place]
        s, effects = step_subscriber(fork.subscriber, event, now)
        self._keep(monitor.with_fork(place, replace(fork, subscriber=s)))
        answer = None
        for effect in effects:
            answer = self._effect(self._current(monitor), place, effect, now) or answer
        return answer

    def _effect(self, monitor: Monitor, place: int, effect: SubscriberEffect, now: float) -> Response | None:
        match effect:
            case Answer(response):
                return response
            case Ask(request):
                self._parts.ask(monitor.trunk, request)
            case Accepted():
                self._accepted(monitor, now)
            case Notified(state, request):
                if state != "terminated":
                    self._accepted(monitor, now)
                    self._told(self._current(monitor), place, request, now)
            case Ended(reason, status, retry_at):
                self._ended(monitor, reason, status, retry_at, now)
        return None

    def _accepted(self, monitor: Monitor, now: float) -> None:
        cc = self._request(monitor)
        if cc is not None and cc.state is State.REQUESTED:
            self._parts.service.apply(cc, RequestAccepted(), now)

    def _told(self, monitor: Monitor, place: int, request: Request, now: float) -> None:
        """A NOTIFY's body: queued or ready."""
        cc, said = self._request(monitor), parse_state(request.body)
        if said is None or cc is None:
            return
        fork = replace(
            monitor.forks[place],
            ready=said.ready and cc.state not in TURN,
            was_ready=False,
            cc_uri=said.uri or monitor.forks[place].cc_uri,
            retention=said.retention,
        )
        self._keep(monitor.with_fork(place, fork))
        if fork.ready:
            self._go_first(cc, now)
        if cc.state is State.READY and place == monitor.chosen and not said.ready:
            why = f"{cc.callee} is not free any more, says the PBX beyond {cc.monitor}"
            # A turn in which he was rung in vain; and a PBX may change its mind as often as it likes.
            self._parts.service.apply(cc, RecallLost(why, counted=cc.taken), now)

    def _go_first(self, cc: CcRequest, now: float) -> None:
        """Two who wait for each other: each turn holds the phone that the other needs.

        Both PBXs must let the same one go first: the smaller number's.
        """
        for his in self._parts.service.book.requests():
            theirs = (his.caller, his.other) == (cc.other, cc.caller)
            if theirs and his.state is State.READY and cc.caller < cc.callee:
                why = f"{cc.caller} waits for {cc.callee} too, and goes first"
                self._parts.service.apply(his, RecallLost(why), now)

    def _ended(self, monitor: Monitor, reason: str, status: int, retry_at: float | None, now: float) -> None:
        cc = self._request(monitor)
        if cc is None or monitor.serves or monitor.renew_at or cc.state is State.CALLING:
            return
        if cc.state is State.REQUESTED:
            word, why = REFUSED.get(
                status, ("REFUSED_THERE", f"the PBX beyond {{monitor}} answered {status}")
            )
            event = MonitorEnded(word, why.format(callee=cc.callee, monitor=cc.monitor))
            self._parts.service.apply(cc, event, now)
        elif reason == "timeout" and cc.state is State.QUEUED and cc.service_ends < now + NEARLY:
            self._parts.service.apply(cc, TimeOver(), now)
        elif reason in AGAIN and cc.state is State.QUEUED and monitor.renewals < MAX_RENEWALS:
            renew_at = max(retry_at or now, now + SOON + PAUSE * monitor.renewals)
            self._keep(replace(monitor, renewals=monitor.renewals + 1, renew_at=renew_at))
        else:
            word = reason if reason in WORDS else "no reason known"
            why = f"the PBX beyond {cc.monitor} watches {cc.callee} no longer ({word})"
            self._parts.service.apply(cc, MonitorEnded("ENDED_THERE", why), now)

    def _target(self, monitor: Monitor) -> str:
        peer = self._parts.trunks[monitor.trunk].peer[0]
        fork = monitor.forks[monitor.chosen]
        return _with_m(str(Uri.parse(fork.cc_uri or fork.uri).usable(peer.host, peer.port)), fork.m)


def _with_m(uri: str, m: str) -> str:
    return str(Uri.parse(uri).with_param("m", m)) if m else uri


def _dues(monitor: Monitor) -> list[float]:
    due = [fork.subscriber.next_due() for fork in monitor.forks]
    if monitor.publisher is not None:
        due.append(monitor.publisher.next_due())
    if monitor.renew_at:
        due.append(monitor.renew_at)
    return [at for at in due if at is not None]


def _is_of(s: Subscriber, notify: Request) -> bool:
    """Whether a NOTIFY belongs to this subscription: to its dialog, or to its SUBSCRIBE while it has none."""
    if s.state is SubscriberState.ENDED or (s.call_id, s.local_tag) != (notify.call_id, notify.to.tag):
        return False
    return s.dialog is None or s.dialog.remote_tag == notify.from_.tag


def _asked_by(s: Subscriber, asked: Request) -> bool:
    """Forks have all but the request-URI in common, until each has its dialog."""
    if s.call_id != asked.call_id:
        return False
    if asked.to.tag:
        return s.dialog is not None and s.dialog.remote_tag == asked.to.tag
    return s.uri == asked.uri


def _is_call_of(heard: Heard, request: Request) -> bool:
    return user_of(request.uri) == user_of(heard.uri) and same_uri(request.from_.uri, heard.from_uri)
