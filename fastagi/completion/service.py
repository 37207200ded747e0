"""Call completion as a service: what callers ask, what the dialplan and the devices tell, what follows.

Each method is one event, carried out in a turn (see ``turns``) and answered once what it changed is saved.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fastagi.completion import machine, queue
from fastagi.completion.book import Book
from fastagi.completion.lamps import LampRules
from fastagi.completion.model import (
    HINT,
    TURN,
    Context,
    Device,
    Extension,
    Limits,
    Number,
    Offer,
    Policy,
    Presence,
    Request,
    Service,
    Settings,
    State,
    own_device,
)
from fastagi.completion.offers import OFFER_MEMORY, FailedCall, Offers
from fastagi.completion.ports import (
    FAR,
    Agent,
    Alone,
    Beyond,
    Clock,
    Directory,
    Kept,
    Lamp,
    LogEntry,
    Monitor,
    Store,
    far_device,
)
from fastagi.completion.turns import Done, Turns, ignore
from fastagi.errors import Refused

RING_AT_MOST = 15.0
"""Seconds a caller rings when the callee is beyond a trunk: the other PBX waits 10 to 20 (RFC 6910, 7.3)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Answer to a caller who asked: his request, and its place in the callee's queue (1: first)."""

    request: Request
    position: int
    already: bool


@dataclass(frozen=True, slots=True)
class RecallPlan:
    """How to ring the caller, and what his phone shows."""

    caller: Extension
    devices: tuple[Device, ...]
    ring: float
    callee: Extension


@dataclass(frozen=True, slots=True)
class Target:
    """Where the CC call goes, and on whose behalf."""

    callee: Number
    context: Context
    caller: Extension
    device: Device
    callee_devices: tuple[Device, ...]
    endpoint: str
    """The trunk's endpoint, if the callee is beyond one: through it goes the CC call."""


class CompletionService:
    """The open offers and requests of this PBX, and what happens to them.

    Methods with ``done`` answer through it, once what they changed is saved.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        directory: Directory,
        agent: Agent,
        monitor: Monitor,
        lamp: Lamp,
        limits: Limits,
        new_recall_id: Callable[[], str],
        log: Callable[[str], None],
        beyond: Beyond | None = None,
    ) -> None:
        self._beyond = beyond or Alone()
        self._lamp = lamp
        self._clock = clock
        self._directory = directory
        self._agent = agent
        self._monitor = monitor
        self._limits = limits
        self._new_recall_id = new_recall_id
        self.book = Book()
        self._offers = Offers(self.book, self._beyond, directory, limits)
        self.lamps = LampRules(self.book, directory)
        self._levels: dict[Device, Presence] = {}
        self._before: dict[Device, Presence] = {}
        """What those were that are to be looked at again, before their source was lost."""
        self._idle_since: dict[Device, float] = {}
        self._used_at: dict[Device, float] = {}
        self._wanted: dict[Device, float] = {}
        self._settled_at = 0.0
        self._waiting: dict[int, list[Done]] = {}
        self._refused: dict[int, Refused] = {}
        self._turns = Turns(
            book=self.book,
            store=store,
            clock=clock,
            log=log,
            history=limits.history_days * 86400,
            settle=self._settle,
            watch=self._watch,
            next_due=self._next_due,
        )
        self.event = self._turns.event

    def start(
        self,
        offers: Iterable[Offer],
        requests: Iterable[Request],
        last_id: int,
        kept: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """Go on where the store's memory ends.

        An instant further off than its own timer (the clock was wrong once, or the timer was shortened)
        is cut to it.
        """
        now = self._clock.now()
        cut_offers = [self._offers.cut(o, now) for o in offers]
        cut_requests = [self._cut(r, now) for r in requests]
        self.book.load(cut_offers, cut_requests, last_id, self._beyond.load(kept or {}, cut_offers))
        self.lamps.start()
        self.event(self._restarted)

    # What callers and operators ask

    def offer(self, call: FailedCall, done: Done) -> None:
        """Record a failed call; answers its `Offer` (without a service: not offered).

        If it was a CC call of a caller beyond a trunk, answers his `Request`.
        """
        self.event(lambda now: self._offer_or_over(call, now), done)

    def ask(self, caller: Device, callee: Number | None, done: Done) -> None:
        """``*30``: call him back who was called last, or ``callee``; answers a `Place`."""
        self.event(lambda now: self._ask(caller, callee, now), done)

    def accepted(self, id: int, done: Done) -> None:
        """Answers request ``id`` once the other PBX has accepted it; `Refused` if it has not."""
        request = self.book.request(id)
        if request is not None and request.state is State.REQUESTED:
            self._waiting.setdefault(id, []).append(done)
        else:
            over = Refused("NO_SUCH_REQUEST", f"request {id} is over already")
            done(request or self._refused.pop(id, over))

    def cancel(self, caller: Device, callee: Number | None, done: Done) -> None:
        """``*31``: take back the latest request, or that for ``callee``; answers the `Request`."""
        self.event(lambda now: self._cancel(caller, callee, now), done)

    def cancel_id(self, id: int, done: Done) -> None:
        """The operator takes back any request; answers the `Request`."""
        self.event(lambda now: self._apply_id(id, machine.Cancelled("the operator"), now), done)

    def cancel_all(self, caller: Device, done: Done) -> None:
        """Take back all requests of his that are not being talked through; answers the `Request` of each."""
        self.event(lambda now: self._cancel_all(caller, now), done)

    def toggle(self, caller: Device, key: Number | None, done: Done) -> None:
        """His lamp key: ask if his latest call is on offer, else take back; answers a `Place` or a `Request`.

        ``key``: whose lamp it is, if the key says so; that of another is refused.
        """
        self.event(lambda now: self._toggle(caller, key, now), done)

    def pending(self, caller: Device, done: Done) -> None:
        """Answers what the caller waits for, oldest first, each with its `Place`."""

        def work(now: float) -> object:
            own = self._of_caller(self._offers.who(caller).number)
            waiting = [r for r in own if r.state is not State.CALLING]
            return [Place(request, self._position(request), already=True) for request in waiting]

        self.event(work, done)

    def far_state(self, caller: Device, callee: Number, done: Done) -> None:
        """Answers what the PBX beyond a trunk said last of the callee he waits for: QUEUED, READY or UNKNOWN."""

        def work(now: float) -> object:
            for request in self._of_caller(self._offers.who(caller).number):
                if request.callee == callee and request.monitor and request.state is not State.REQUESTED:
                    free = self._beyond.presence(request.callee_devices[0], now) is Presence.IDLE
                    return "READY" if free or request.state in TURN else "QUEUED"
            return "UNKNOWN"

        self.event(work, done)

    # What the dialplan tells of a turn

    def recall_taken(self, recall_id: str, channel: str, done: Done) -> None:
        """Asterisk has begun this recall; answers a `RecallPlan`."""
        self.event(lambda now: self._recall_taken(recall_id, channel, now), done)

    def recall_failed(self, recall_id: str, dialstatus: str, cause: int, done: Done = ignore) -> None:
        """The caller did not answer his recall."""
        self._turn_event(recall_id, machine.RecallFailed(dialstatus, cause), done)

    def recall_undelivered(self, recall_id: str, why: str) -> None:
        """The recall could not be handed to Asterisk, or so it seems: its answer may be late or lost."""

        def work(now: float) -> object:
            request = self._of_recall(recall_id)
            # One that Asterisk has begun was handed over.
            return request if request.taken else self.apply(request, machine.RecallLost(why), now)

        self.event(work, keep=True)

    def caller_answered(self, recall_id: str, channel: str, done: Done) -> None:
        """The caller picked up; answers the `Target` of the CC call."""
        self.event(lambda now: self._answered(recall_id, channel, now), done)

    def call_over(self, recall_id: str, dialstatus: str, cause: int, done: Done = ignore) -> None:
        """The CC call is over; answers the `Request`."""
        self.event(lambda now: self.call_ended(recall_id, dialstatus, cause, now), done, keep=True)

    def call_gone(self, recall_id: str) -> None:
        """The recall's channels do not exist any more, and nobody has told what became of it."""

        def work(now: float) -> object:
            request = self._of_recall(recall_id)
            ringing = request.state is State.READY
            lost = machine.RecallLost("the recall is gone, unheard") if ringing else machine.CallLost()
            return self.apply(request, lost, now)

        self.event(work, keep=True)

    # What the devices tell

    def levels(self, seen: Mapping[Device, Presence]) -> None:
        """What these devices are now. Levels, not edges: told again, they change nothing."""
        now = self._clock.now()
        for device, presence in seen.items():
            if device not in self._wanted:
                continue
            old = self._levels.get(device) or self._before.pop(device, None)
            if Presence.IN_USE in (old, presence):
                self._used_at[device] = now  # also a call that is over before the next turn looks
            if presence is Presence.IDLE and old is not Presence.IDLE:
                if old is not None:
                    self._idle_since[device] = now
                else:
                    # Idle when first looked at: he was free before, and there is nothing to rest from.
                    self._idle_since.setdefault(device, 0.0)
            self._levels[device] = presence
        self._turns.look_again()

    def levels_lost(self) -> None:
        """The source of device states is gone: nothing is known until it is back, but what they were."""
        self._before |= self._levels
        self._levels.clear()

    def settings(self, number: Number) -> Settings:
        """Those of an extension."""
        return self._directory.extension(number).settings

    def is_phone(self, device: Device) -> bool:
        """Whether an entry names this device, so that it is a phone, whatever it is called."""
        owner = self._directory.of_device(device)
        return owner is not None and device in owner.devices

    def ring(self, request: Request) -> float:
        """Seconds that the caller rings at his recall."""
        seconds = self._directory.extension(request.caller).settings.cc_recall_timer
        return min(seconds, RING_AT_MOST) if request.monitor else seconds

    def _restarted(self, now: float) -> None:
        for request in self.book.requests():
            policy = self._policy(request)
            if request.state is State.CALLING:
                pass  # they are let talk
            elif policy.callee.cc_monitor_policy == "never":
                who = f"the operator: nobody may wait for {request.callee} any more"
                self.apply(request, machine.Cancelled(who), now)
            elif policy.caller.cc_agent_policy == "never":
                who = f"the operator: {request.caller} may not ask any more"
                self.apply(request, machine.Cancelled(who), now)
            elif request.state is State.READY and not request.taken:
                lost = machine.RecallLost("fastagi was restarted before the recall began", pause=False)
                self.apply(request, lost, now)

    def _turn_event(self, recall_id: str, event: machine.Event, done: Done) -> None:
        self.event(lambda now: self.apply(self._of_recall(recall_id), event, now), done, keep=True)

    # What follows from everything together

    def _settle(self, now: float) -> None:
        """Run until nothing changes: what is due, whose turn it is, what those beyond the trunks say to it."""
        self._settled_at = now
        self._offers.look_through(now)
        while True:
            for request in self.book.requests():
                self._look_at_the_time(request, now)
            self._select(now)
            if not self._beyond.follow(now):
                break

    def _look_at_the_time(self, request: Request, now: float) -> None:
        if request.state is State.QUEUED:
            if request.service_ends <= now:
                self.apply(request, machine.TimeOver(), now)
        elif request.recall_ends > now:
            pass
        elif request.state is State.REQUESTED:
            why = f"the PBX beyond {request.monitor} has not answered"
            self.apply(request, machine.MonitorEnded("NO_ANSWER", why), now)
        elif request.state is State.READY and request.agent:
            self.apply(request, machine.RecallFailed("NOANSWER", 0), now)
        else:
            why = f"nothing was heard of recall {request.recall_id} in time"
            self.apply(request, machine.RecallLost(why), now)

    def _select(self, now: float) -> None:
        view = self._view(now)
        while found := queue.select(self.book.requests(), view):
            request, verdict = found
            match verdict:
                case queue.Verdict.SELECT:
                    self.apply(request, machine.Selected(self._new_recall_id()), now)
                case queue.Verdict.PASS_OVER:
                    self.apply(request, machine.CallerBusy(), now)
                case queue.Verdict.RESUME:
                    self.apply(request, machine.CallerFree(), now)
                case queue.Verdict.SIGN_OF_LIFE:
                    self.apply(request, machine.SignOfLife(), now)

    def _view(self, now: float) -> queue.View:
        def look(device: Device) -> Presence | None:
            if device.startswith(FAR):
                return self._beyond.presence(device, now)
            return self._levels.get(device)

        return queue.View(
            look,
            since=lambda device: self._idle_since.get(device, 0.0),
            used=lambda device: self._used_at.get(device, 0.0),
            guard=self._guard,
            now=now,
        )

    def _perform(self, effect: machine.Effect) -> None:
        if effect.request.agent:
            return  # his own PBX rings him: `Beyond.follow` tells it
        match effect:
            case machine.Recall(request):
                self._agent.recall(request)
            case machine.StopRecall(request):
                self._agent.stop(request)

    def _watch(self) -> None:
        for extension, state in self.lamps.look(self._settled_at):
            self._lamp.show(extension, state)
        view = self._view(self._clock.now())
        wanted: dict[Device, float] = {}
        for request in self.book.requests():
            for device, of_callee in queue.watched([request], view, self._monitor.eager):
                if device.startswith(FAR):
                    continue
                who = request.callee if of_callee else request.caller
                interval = self._directory.extension(who).settings.poll_interval
                wanted[device] = min(interval, wanted.get(device, interval))
        for known in (self._levels, self._before, self._idle_since, self._used_at):
            for device in known.keys() - wanted.keys():
                # What is not watched goes stale, and stale is worse than unknown.
                del known[device]
        self._wanted = wanted
        calls = frozenset(r.recall_id for r in self.book.requests() if r.taken and not r.agent)
        self._monitor.watch(wanted, calls)

    def _next_due(self) -> float | None:
        """The nearest instant at which something follows from time alone."""
        due: list[float] = []
        for request in self.book.requests():
            if request.state is State.QUEUED:
                due.append(request.service_ends)
                # What fell due while we were saving has not been looked at yet.
                guard = self._guard(request)
                rested = [self._idle_since.get(device, 0.0) + guard for device in request.callee_devices]
                due += [at for at in (request.retry_at, *rested) if at > self._settled_at]
            else:
                due.append(request.recall_ends)
        if self.book.offers:
            due.append(self._settled_at + OFFER_MEMORY)
        due += [
            at for at in (self._beyond.next_due(self._settled_at), self.lamps.next_due()) if at is not None
        ]
        return min(due, default=None)

    def _guard(self, request: Request) -> float:
        return self._directory.extension(request.callee).settings.cc_guard_timer

    # Inside a turn

    def offered_late(self, id: int, now: float) -> None:
        """The other PBX has offered this call after it was recorded as one it does not offer."""
        self._offers.offered_late(id, now)
        self._turns.stale = True

    def apply(self, request: Request, event: machine.Event, now: float) -> Request:
        """One event for one request; raises `Refused`, and nothing has changed."""
        policy = self._policy(request)
        step = machine.step(request, event, now, policy)
        entry = LogEntry(request.id, now, request.state, step.request.state, step.sentence)
        self.book.put(step.request, entry)
        self._turns.effects += [partial(self._perform, effect) for effect in step.effects]
        self._turns.stale = True
        if request.state is State.REQUESTED:
            self.after(partial(self._tell_whether_accepted, step))
        return step.request

    def after(self, effect: Callable[[], None]) -> None:
        """Have this done once the turn is saved."""
        self._turns.effects.append(effect)

    def keep(self, kind: str, key: str, value: Kept | None) -> None:
        """Save this with the turn, and look what follows from it."""
        self.book.put_kept(kind, key, value)
        self._turns.stale = True

    def _tell_whether_accepted(self, step: machine.Step) -> None:
        request = step.request
        answer = Refused(request.reason, step.sentence) if request.state is State.ENDED else request
        waiting = self._waiting.pop(request.id, [])
        if not waiting and isinstance(answer, Refused):  # in the very turn in which it was asked for
            self._refused[request.id] = answer
        for done in waiting:
            done(answer)

    def _apply_id(self, id: int, event: machine.Event, now: float) -> Request:
        request = self.book.request(id)
        if request is None:
            raise Refused("NO_SUCH_REQUEST", f"there is no open request {id}")
        return self.apply(request, event, now)

    def _policy(self, request: Request) -> Policy:
        caller = self._directory.extension(request.caller).settings
        callee = self._directory.extension(request.callee).settings
        if request.agent:
            return Policy(self._beyond.settings(request.agent, caller), callee)
        return Policy(caller, callee)

    def _of_caller(self, caller: Number) -> list[Request]:
        return [r for r in self.book.requests() if r.caller == caller]

    def _offer_or_over(self, call: FailedCall, now: float) -> Offer | Request:
        agent = self._beyond.trunk(call.caller)
        recall_id = self._beyond.call_over(agent, call.call_in) if agent and call.call_in else ""
        if not recall_id:
            offer = self._offers.record(call, now)
            self._turns.stale |= self.lamps.shows_offers(offer.caller)
            return offer
        over = self.call_ended(recall_id, call.dialstatus, call.cause, now)
        if over.state is State.ENDED:  # he has lost his place, and may ask anew like anybody else
            self._offers.record(call, now)
        return over

    def _ask(self, device: Device, callee: Number | None, now: float) -> Place:
        caller = self._offers.who(device)
        offers = self.book.offers_of(caller.number)
        if callee is None:
            offer = offers[-1] if offers else None
        else:
            offer = next((o for o in reversed(offers) if o.callee == callee), None)
        wanted = offer.callee if offer is not None else callee
        for request in self._of_caller(caller.number):
            if request.callee == wanted and not (offer and _later(offer, request)):
                return Place(request, self._position(request), already=True)
        if offer is None:
            to_whom = f"to {callee} " if callee else ""
            raise Refused("NO_CORE_INSTANCE", f"no call of {caller.number} {to_whom}has failed lately")
        if offer.service is None:
            whom = offer.callee or "what was no number"
            raise Refused(offer.reason, f"the call to {whom} was not offered: {offer.reason}")
        if now >= offer.offer_ends:
            raise Refused(
                "OFFER_EXPIRED",
                f"the call to {offer.callee} failed {now - offer.offered_at:.0f} s ago: too late to ask",
            )
        request = self.request(offer, caller, now)
        return Place(request, self._position(request), already=False)

    def request(self, offer: Offer, caller: Extension, now: float, since: float | None = None) -> Request:
        """Ask for what is on offer; raises `Refused` when there are too many requests already.

        ``since``: his place in the queue is that of an earlier request.
        """
        assert offer.service is not None
        self._check_limits(caller, self._of_caller(caller.number), offer)
        id = self.book.new_id()
        request = Request(
            id=id,
            caller=offer.caller,
            caller_devices=(far_device(id, "caller"),) if offer.agent else offer.caller_devices,
            caller_context=offer.caller_context,
            callee=offer.callee,
            callee_devices=(far_device(id, "callee"),) if offer.monitor else offer.callee_devices,
            service=offer.service,
            state=State.OFFERED,
            why=offer.why,
            agent=offer.agent,
            monitor=offer.monitor,
        )
        request = self.apply(request, machine.Asked(since), now)
        self._beyond.requested(request, offer, now)
        return request

    def _check_limits(self, caller: Extension, own: list[Request], offer: Offer) -> None:
        requests = self.book.requests()
        if len(requests) >= self._limits.cc_max_requests:
            raise Refused("TOO_MANY_REQUESTS", f"{len(requests)} requests wait already, on the whole system")
        if len(own) >= caller.settings.cc_max_agents:
            raise Refused("TOO_MANY_REQUESTS", f"{caller.number} has {len(own)} requests already")
        waiting = sum(r.callee == offer.callee for r in requests)
        if waiting >= self._directory.extension(offer.callee).settings.cc_max_monitors:
            raise Refused("CALLEE_QUEUE_FULL", f"{waiting} requests wait for {offer.callee} already")

    def _position(self, request: Request) -> int:
        queue = [r.id for r in self.book.requests() if r.callee == request.callee]
        return queue.index(request.id) + 1

    def _cancel(self, device: Device, callee: Number | None, now: float) -> Request:
        caller = self._offers.who(device)
        own = [
            r
            for r in self._of_caller(caller.number)
            if r.state is not State.CALLING and callee in (None, r.callee)
        ]
        if not own:
            for_whom = f" for {callee}" if callee else ""
            raise Refused("NO_CORE_INSTANCE", f"{caller.number} has no request{for_whom}")
        return self.apply(own[-1], machine.Cancelled(str(caller.number)), now)

    def _cancel_all(self, device: Device, now: float) -> list[Request]:
        caller = self._offers.who(device).number
        own = [r for r in self._of_caller(caller) if r.state is not State.CALLING]
        if not own:
            raise Refused("NO_CORE_INSTANCE", f"{caller} has no request")
        return [self.apply(request, machine.Cancelled(str(caller)), now) for request in own]

    def _toggle(self, device: Device, key: Number | None, now: float) -> Place | Request:
        caller = self._offers.who(device).number
        if key not in (None, caller):
            raise Refused("NOT_HIS_KEY", f"{caller} has pressed the key of {key}")
        own = self._of_caller(caller)
        latest = next(reversed(self.book.offers_of(caller)), None)
        waiting = [r.callee for r in own if r.state is not State.CALLING]
        if latest is not None and latest.callee in waiting:
            return self._cancel(device, latest.callee, now)
        asked = latest is not None and any(r.callee == latest.callee and not _later(latest, r) for r in own)
        on_offer = latest is not None and latest.service is not None and now < latest.offer_ends
        if not waiting or (on_offer and not asked):
            return self._ask(device, None, now)
        return self._cancel(device, None, now)

    def _of_recall(self, recall_id: str) -> Request:
        request = self.book.of_recall(recall_id)
        if request is None:
            raise Refused("RECALL_UNKNOWN", f"there is no recall {recall_id[:40]!r} under way")
        return request

    def _recall_taken(self, recall_id: str, channel: str, now: float) -> RecallPlan:
        request = self.apply(self._of_recall(recall_id), machine.RecallTaken(channel), now)
        caller = self._directory.extension(request.caller)
        callee = self._directory.extension(request.callee)
        return RecallPlan(caller, request.caller_devices, self.ring(request), callee)

    def _answered(self, recall_id: str, channel: str, now: float) -> Target:
        request = self._of_recall(recall_id)
        # The same channel asks again when our answer did not reach it: it is told again.
        if request.state is not State.CALLING or request.channel != channel:
            request = self.apply(request, machine.CallerAnswered(channel), now)
        caller = self._directory.extension(request.caller)
        endpoint = self._beyond.endpoint(request.monitor) if request.monitor else ""
        return Target(
            callee=request.callee,
            context=request.caller_context,
            caller=caller,
            device=request.caller_devices[0],
            callee_devices=request.callee_devices,
            endpoint=endpoint,
        )

    def call_ended(self, recall_id: str, dialstatus: str, cause: int, now: float) -> Request:
        """The CC call of this recall is over."""
        request = self._of_recall(recall_id)
        # Who hangs up in the moment of the answer: to Asterisk he has given up, and they have talked.
        answered = dialstatus == "ANSWER" or (
            dialstatus == "CANCEL" and self._beyond.answered_there(request.id)
        )
        if not answered:
            levels = set(map(self._levels.get, request.callee_devices))
            in_use = Presence.IN_USE in levels and Presence.IDLE not in levels
            if machine.service_of(dialstatus, cause) is Service.CCNL:
                request = self._by_his_phones(request)
            return self.apply(request, machine.CallFailed(dialstatus, cause, in_use), now)
        done = self.apply(request, machine.CallCompleted(), now)
        began = machine.call_began(request)
        both: list[tuple[str, str]] = [(request.other, request.caller)]
        if not request.agent:  # who is beyond a trunk and has no name shares his with others
            both.append((request.caller, request.other))
            own = self.book.offers_of(request.caller)
            for offer in [o for o in own if o.callee == request.callee and not _later(o, request)]:
                # He has what he asked for: *30 right after it must not ring both once more.
                self.book.replace_offer(offer, replace(offer, service=None, reason="COMPLETED"))
        for other in [r for r in self.book.requests() if r.state is State.QUEUED and r.asked_at <= began]:
            if (other.caller, other.other) in both:
                self.apply(other, machine.Fulfilled(request.id), now)
        return done

    def _by_his_phones(self, request: Request) -> Request:
        """Whether he is logged in no hint says (see `Offers`): his phones do, where they are known."""
        if not any(device.startswith(HINT) for device in request.callee_devices):
            return request
        phones = self._directory.extension(request.callee).devices or own_device(request.callee)
        others = tuple(device for device in phones if device not in request.caller_devices)
        return replace(request, callee_devices=others or request.callee_devices)

    def _cut(self, request: Request, now: float) -> Request:
        policy = self._policy(request)
        turn = machine.call_limit(request)
        if request.state is State.READY:
            turn = policy.caller.cc_recall_timer + machine.RECALL_GRACE
        elif request.state is State.REQUESTED:
            turn = machine.ACCEPT_WITHIN
        longest = max(policy.service_timer(service) for service in Service)
        return replace(
            request,
            asked_at=min(request.asked_at, now),
            service_ends=min(request.service_ends, now + longest),
            idle_after=min(request.idle_after, now),
            retry_at=min(request.retry_at, now + policy.caller.cc_retry_timer),
            recall_ends=min(request.recall_ends, now + turn),
        )


def _later(offer: Offer, request: Request) -> bool:
    """Whether this call failed while the CC call of that request was under way already: it is another one."""
    return request.state is State.CALLING and offer.offered_at > machine.call_began(request)
