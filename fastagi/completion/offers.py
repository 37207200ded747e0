"""The calls on offer: what failed, whether it may be asked for, and until when."""

from dataclasses import dataclass, replace

from fastagi.completion import machine
from fastagi.completion.book import Book
from fastagi.completion.model import (
    Context,
    Device,
    Extension,
    Limits,
    Number,
    Offer,
    Service,
    hint,
    own_device,
)
from fastagi.completion.ports import Beyond, Directory
from fastagi.errors import Refused

OFFER_MEMORY = 3600.0
"""Seconds that an offer is remembered after its time, so that ``*30`` can say that it came too late."""
OFFERS_PER_CALLER = 20
NOT_WATCHABLE = "CALLEE_NOT_WATCHABLE"
"""Why a call is not offered whose callee nobody can watch: an outside line, a PBX that offers nothing."""
FORGET_EVERY = 60.0
"""Seconds between two looks through all offers for those to be forgotten."""


@dataclass(frozen=True, slots=True)
class FailedCall:
    """What the dialplan tells of a call that was not answered.

    ``devices``: those it dialled, if watchable, None where it does not tell; ``through``: the endpoint it was
    dialled through, and ``dialled`` whom it called there; ``call_in`` and ``call_out``: its Call-IDs towards the
    caller and towards the callee. Empty where there is none. ``caller_id`` is a mere word, of use only where no
    Call-ID is known.
    """

    caller: Device
    context: Context
    callee: Number
    devices: tuple[Device, ...] | None
    dialstatus: str
    cause: int
    uniqueid: str
    through: str = ""
    dialled: str = ""
    call_in: str = ""
    call_out: str = ""
    caller_id: str = ""


class Offers:
    """Writes failed calls into the book, and forgets them in time."""

    def __init__(self, book: Book, beyond: Beyond, directory: Directory, limits: Limits) -> None:
        self._book = book
        self._beyond = beyond
        self._directory = directory
        self._limits = limits
        self._forgot_at = 0.0
        self._full_until = 0.0

    def who(self, device: Device) -> Extension:
        """Whose device this is; raises `Refused`."""
        who = self._directory.of_device(device)
        if who is None:
            raise Refused("CALLER_UNKNOWN", f"{device} is no extension of this PBX and may not ask")
        return who

    def look_through(self, now: float) -> None:
        """Forget those whose time was over long ago; now and then, for it takes a look at all."""
        if now >= self._forgot_at + FORGET_EVERY:
            self._forget_offers(now, OFFER_MEMORY)

    def cut(self, offer: Offer, now: float) -> Offer:
        """With an end no further off than its caller's timer."""
        timer = self._directory.extension(offer.caller).settings.cc_offer_timer
        return replace(offer, offer_ends=min(offer.offer_ends, now + timer))

    def record(self, call: FailedCall, now: float) -> Offer:
        """A call that was not answered; raises `Refused` if nobody of ours made it, or there are too many."""
        agent, call_in, call_out = self._beyond.trunk(call.caller), "", ""
        if agent:
            call_in = call.call_in or self._beyond.call_id(agent, False, call.callee, call.caller_id)
        caller = self._beyond.caller(agent, call_in) if agent else self.who(call.caller)
        old = self._book.offer_of_call(call.uniqueid, call.callee)
        if old is not None and (old.caller != caller.number or old.offer_ends <= now):
            old = None
        if old is not None and (old.service or old.reason == "COMPLETED"):
            return old
        callee = self._directory.extension(call.callee)
        if call.devices is None and call.cause == 1 and callee.devices:
            # Nothing was tried, and Asterisk has no phone of that name. His have other names, and are away.
            call = replace(call, cause=3)
        monitor = self._beyond.trunk(Device(call.through)) if call.through else ""
        service = machine.service_of(call.dialstatus, call.cause)
        watched = () if monitor or not call.callee else self._watched(call, callee, service)
        devices = tuple(d for d in watched if d not in (call.caller, *caller.devices))
        if monitor and call.callee:
            dialled = call.dialled or call.callee
            call_out = call.call_out or self._beyond.call_id(monitor, True, dialled, caller.number)
            service = self._beyond.service(monitor, call_out, service)
        reason = self._not_offered(call, caller, callee, bool(watched or monitor), service)
        if not reason and (callee.number == caller.number or (watched and not devices)):
            reason = "CALLER_IS_CALLEE"
        if old is not None:
            if (old.reason, old.call_out) == (reason, call_out):
                return old
            self._forget(old)  # the call has gone on to another line or phone, and now that has failed
        self._make_room(caller.number, now)
        offer = Offer(
            id=self._book.new_id(),
            caller=caller.number,
            # The one that called is the first: on its behalf the CC call is made.
            caller_devices=() if agent else tuple(dict.fromkeys((call.caller, *caller.devices))),
            caller_context=call.context,
            callee=call.callee,
            callee_devices=devices,
            service=None if reason else service,
            reason=reason,
            why=machine.describe(call.dialstatus, call.cause),
            offered_at=now,
            offer_ends=now + caller.settings.cc_offer_timer,
            uniqueid=call.uniqueid,
            agent=agent,
            monitor=monitor,
            call_in=call_in,
            call_out=call_out,
        )
        self._book.add_offer(offer)
        self._beyond.offered(offer, call.dialled or call.callee)
        return offer

    def _not_offered(
        self,
        call: FailedCall,
        caller: Extension,
        callee: Extension,
        watchable: bool,
        service: Service | None,
    ) -> str:
        """Why this call is not offered; empty: it is. ``service`` beyond a trunk is what is offered there."""
        if not call.callee:
            return "INVALID"
        if service is None:
            if call.dialstatus == "CHANUNAVAIL" and call.cause == 1:
                return "NO_SUCH_NUMBER"
            if machine.service_of(call.dialstatus, call.cause) is None:
                return call.dialstatus or "NOT_REACHED"
        if caller.settings.cc_agent_policy == "never":
            return "CALLER_POLICY_NEVER"
        if callee.settings.cc_monitor_policy == "never":
            return "CALLEE_POLICY_NEVER"
        return "" if service and watchable else NOT_WATCHABLE

    @staticmethod
    def _watched(call: FailedCall, callee: Extension, service: Service | None) -> tuple[Device, ...]:
        """What says if the callee is free: his hint, or the devices that the call was to ring.

        Whether he is logged in no hint says: that of PJSIP/2000&Custom:DND2000 is NOT_INUSE also if he is not.
        """
        if callee.settings.monitor == "hint" and service is not Service.CCNL:
            return (hint(callee.hint or f"{callee.number}@{call.context}"),)
        if call.devices is not None:
            return call.devices or callee.devices
        return callee.devices or own_device(call.callee)

    def offered_late(self, id: int, now: float) -> None:
        """The other PBX has offered this call after it was recorded as one it does not offer."""
        offer = self._book.offers.get(id)
        if offer is None or offer.reason != NOT_WATCHABLE:
            return
        service = self._beyond.service(offer.monitor, offer.call_out, None)
        if service is not None:
            new = replace(offer, service=service, reason="")
            self._book.replace_offer(offer, new)
            self._beyond.offered(new, offer.callee)

    def _make_room(self, caller: Number, now: float) -> None:
        own = self._book.offers_of(caller)
        if len(own) >= OFFERS_PER_CALLER:
            self._forget(own[0])
        elif len(self._book.offers) >= self._limits.cc_max_offers:
            if now >= self._full_until:
                self._forget_offers(now, 0.0)
            if len(self._book.offers) >= self._limits.cc_max_offers:
                self._full_until = now + 1.0  # to look through them all for each call would be our own end
                raise Refused("TOO_MANY_OFFERS", f"{len(self._book.offers)} calls are on offer already")

    def _forget_offers(self, now: float, memory: float) -> None:
        """Those whose time was over ``memory`` seconds ago."""
        self._forgot_at = now
        for offer in [o for o in self._book.offers.values() if o.offer_ends + memory <= now]:
            self._forget(offer)

    def _forget(self, offer: Offer) -> None:
        self._book.forget_offer(offer)
        self._beyond.forgotten(offer)
