"""The AGI scripts of call completion: one short coroutine each, and the dict that lists them.

Each takes what Asterisk sent (hostile until checked), asks the service, and returns the variables to set.
Everything a script needs comes as an AGI argument, so that a call costs no round trips (a recall asks for
the caller's contacts). ``CC_ACK=1`` is
added to all: a server that died mid-way set nothing, though AGISTATUS says SUCCESS.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from fastagi.agi.wire import Call
from fastagi.completion.model import (
    Device,
    Invalid,
    Number,
    Offer,
    Request,
    State,
    context,
    device,
    number,
    own_device,
)
from fastagi.completion.offers import FailedCall
from fastagi.completion.service import CompletionService, Place, RecallPlan, Target
from fastagi.errors import Refused

Variables = Mapping[str, str]
Ask = Callable[..., Awaitable[Any]]
"""``await ask(service.method, *args)``: its answer, or its `Refused` raised."""

# Asterisk appends a dash and eight hexadecimal digits to make a channel's name of an endpoint's.
_PHONE = re.compile(r"(PJSIP/[^/]+)-[0-9a-f]{8}", re.ASCII)
_NOTE = re.compile(r"Local/s@cc-note-[0-9a-f]{8};[12]", re.ASCII)
_RECALL = re.compile(r"Local/([0-9]{15})@cc-recall-[0-9a-f]{8};[12]", re.ASCII)
_RECALL_NOTE = re.compile(r"Local/([0-9]{15})@cc-note-[0-9a-f]{8};[12]", re.ASCII)
_UNIQUEID = re.compile(r"[A-Za-z0-9._-]{1,150}", re.ASCII)
_WORD = re.compile(r"[A-Z_]{0,20}", re.ASCII)
# One contact as PJSIP_DIAL_CONTACTS() gives it: its URI is the phone's choice, and Dial() splits at & and ,
_CONTACT = re.compile(r"PJSIP/[A-Za-z0-9_.+-]{1,80}/sips?:[A-Za-z0-9_.!~*%@:;=+\[\]-]{1,400}", re.ASCII)


_THROUGH = re.compile(
    r"PJSIP/(?:([A-Za-z0-9_.+*#-]{1,80})@([A-Za-z0-9_.+-]{1,80})"
    r"|([A-Za-z0-9_.+-]{1,80})(?:/sips?:(?:([A-Za-z0-9_.+*#-]{1,80})@)?.*)?)",
    re.ASCII | re.DOTALL,
)
_CALL_ID = re.compile(r"[A-Za-z0-9_.!%*+~/@=:-]{0,255}", re.ASCII)

LONGEST_DIAL = 1800
"""What one AGI line has room for; beyond it one contact of each device is rung, rather than none."""


class Session(Protocol):
    """What a script here needs of an AGI session."""

    @property
    def call(self) -> Call: ...

    @property
    def peer(self) -> str: ...

    @property
    def hung_up(self) -> bool: ...

    async def get_full_variable(self, expression: str, channel: str | None = None) -> str | None: ...


Script = Callable[[Session, CompletionService, Ask], Awaitable[Variables]]


def _caller(channel: str) -> Device:
    """The endpoint of a phone's channel: that, and never the caller ID, is who he is."""
    found = _PHONE.fullmatch(channel)
    if not found:
        raise Refused("CALLER_UNKNOWN", f"the channel {channel[:80]!r} is no phone of this PBX")
    return device(found[1])


def _word(text: str, what: str) -> str:
    if not _WORD.fullmatch(text):
        raise Invalid(f"{text[:60]!r} is no {what}: at most 20 capital letters are allowed")
    return text


def _cause(text: str) -> int:
    """A Q.850 cause; Asterisk gives an empty one when it has none."""
    if not re.fullmatch(r"[0-9]{0,3}", text, re.ASCII):
        raise Invalid(f"{text[:60]!r} is no HANGUPCAUSE: a number from 0 to 999 is allowed")
    return int(text or 0)


def _dialled(text: str, callee: Number, is_phone: Callable[[Device], bool]) -> tuple[Device, ...] | None:
    """The devices a dial string rings, if all of them can be watched; None where there is no dial string.

    ``PJSIP/ep/sip:...`` and ``PJSIP/x@ep`` go through ``ep`` to somewhere else, and its state says nothing;
    but ``PJSIP/2000/sip:...`` for extension 2000 is how PJSIP_DIAL_CONTACTS() names that phone itself, and
    ``PJSIP/x@ep`` is ``ep`` if that is a phone: by its name alone the dialplan takes it for a trunk.
    """
    if not text:
        return None
    found: dict[Device, None] = {}
    own = own_device(callee) if callee else ()
    for part in text.split("&"):
        if own and part.startswith(f"{own[0]}/"):
            found[own[0]] = None
            continue
        through = _THROUGH.fullmatch(part)
        if through and through[2] and is_phone(Device(f"PJSIP/{through[2]}")):
            found[Device(f"PJSIP/{through[2]}")] = None
            continue
        try:
            found[device(part)] = None
        except Invalid:
            return ()
    return tuple(found) if len(found) <= 8 else ()


def _through(text: str) -> tuple[str, str]:
    """The endpoint that a dial string goes to or through, as PJSIP/<endpoint>, and whom it calls there.

    Empty: several endpoints, or of another kind; nobody who is named.
    """
    found = _THROUGH.fullmatch(text) if "&" not in text else None
    if not found:
        return "", ""
    return f"PJSIP/{found[2] or found[3]}", found[1] or found[4] or ""


def _call_id(text: str) -> str:
    if not _CALL_ID.fullmatch(text):
        raise Invalid(
            f"{text[:60]!r} is no Call-ID: at most 255 letters, digits and _ . ! % * + ~ / @ = : - are allowed"
        )
    return text


def _recall_id(call: Call, argument: int = 1, by_note: bool = False) -> str:
    """The recall this channel belongs to; its argument must say the same."""
    id = call.arg(argument)
    found = _RECALL.fullmatch(call.channel) or (_RECALL_NOTE.fullmatch(call.channel) if by_note else None)
    if not found or found[1] != id:
        raise Refused(
            "RECALL_UNKNOWN", f"the channel {call.channel[:80]!r} is not that of recall {id[:40]!r}"
        )
    return id


def _wanted(call: Call) -> Number | None:
    return number(call.arg(1)) if call.arg(1) else None


async def record(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 callee's extension, 2 DIALSTATUS, 3 HANGUPCAUSE, 4 dial string, 5 outbound Call-ID, 6 inbound
    Call-ID, 7 caller's channel, 8 caller's UNIQUEID, 9 caller's context, 10 recall id of a CC call."""
    call = session.call
    dialstatus, cause = _word(call.arg(2), "DIALSTATUS"), _cause(call.arg(3))
    if call.arg(10):
        return _retained(await ask(service.call_over, _recall_id(call, 10), dialstatus, cause))
    channel, uniqueid = call.channel, call.uniqueid
    if _NOTE.fullmatch(channel):
        # Only our own hang-up note speaks for another channel: that which is gone by now.
        channel, uniqueid = call.arg(7), call.arg(8)
    if not _UNIQUEID.fullmatch(uniqueid):
        raise Invalid(f"{uniqueid[:60]!r} is no UNIQUEID")
    fault: Invalid | None = None
    try:
        callee = number(call.arg(1))
    except Invalid as error:  # it is his latest call all the same: *30 must not take an older one
        callee, fault = Number(""), error
    through, dialled = _through(call.arg(4))
    failed = FailedCall(
        caller=_caller(channel),
        context=context(call.arg(9) or call.context),
        callee=callee,
        devices=_dialled(call.arg(4), callee, service.is_phone),
        dialstatus=dialstatus,
        cause=cause,
        uniqueid=uniqueid,
        through=through,
        dialled=dialled,
        call_in=_call_id(call.arg(6)),
        call_out=_call_id(call.arg(5)),
        caller_id=call.callerid,
    )
    offer: Offer | Request = await ask(service.offer, failed)
    if fault:
        raise fault
    if isinstance(offer, Request):  # the CC call of somebody beyond a trunk
        return _retained(offer)
    if offer.service is None:
        return {"CC_OFFERED": "0", "CC_REASON": offer.reason}
    recorded = {"CC_OFFERED": "1", "CC_SERVICE": offer.service, "CC_OFFER_ID": str(offer.id)}
    if offer.agent:
        return recorded  # he asks at his own PBX
    caller = service.settings(offer.caller)
    return {
        **recorded,
        "CC_OFFER_DIGIT": "" if caller.cc_offer_digit == "off" else caller.cc_offer_digit,
        "CC_OFFER_REPEAT": str(caller.cc_offer_repeat),
        "CC_OFFER_WAIT": f"{caller.cc_offer_wait:g}",
    }


def _retained(over: Request) -> Variables:
    return {"CC_OFFERED": "0", "CC_REASON": "RETAINED" if over.state is State.QUEUED else over.reason}


async def request(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 extension, if not the last one called."""
    if session.hung_up:  # he was told that it failed, and has gone
        raise Refused("UNSPECIFIED", "the caller was gone before he could be told")
    place: Place = await ask(service.ask, _caller(session.call.channel), _wanted(session.call))
    return await _placed(place, service, ask)


async def _placed(place: Place, service: CompletionService, ask: Ask) -> Variables:
    if place.request.state is State.REQUESTED:
        await ask(service.accepted, place.request.id)
    return {
        "CC_REQUEST_RESULT": "SUCCESS",
        "CC_REQUEST_REASON": "ALREADY_REQUESTED" if place.already else "",
        "CC_POSITION": str(place.position),
    }


async def cancel(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 extension, if not that of the latest request."""
    await ask(service.cancel, _caller(session.call.channel), _wanted(session.call))
    return _cancelled()


def _cancelled() -> Variables:
    return {"CC_CANCEL_RESULT": "SUCCESS", "CC_CANCEL_REASON": ""}


async def cancelall(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """Takes back all that this caller waits for."""
    ended: list[Request] = await ask(service.cancel_all, _caller(session.call.channel))
    return {**_cancelled(), "CC_CANCELLED": str(len(ended))}


async def toggle(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """The lamp key: 1 the extension whose key it is."""
    if session.hung_up:
        raise Refused("UNSPECIFIED", "the caller was gone before he could be told")
    done: Place | Request = await ask(service.toggle, _caller(session.call.channel), _wanted(session.call))
    if isinstance(done, Place):
        return {"CC_TOGGLE": "request", **await _placed(done, service, ask)}
    return {"CC_TOGGLE": "cancel", **_cancelled()}


async def status(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """What this caller waits for, oldest first: how many, for whom, and his place in the queue of each."""
    pending: list[Place] = await ask(service.pending, _caller(session.call.channel))
    return {
        "CC_PENDING": str(len(pending)),
        "CC_PENDING_LIST": ",".join(place.request.callee for place in pending[:20]),
        "CC_PENDING_PLACES": ",".join(str(place.position) for place in pending[:20]),
    }


async def recall(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 recall id: what rings the caller."""
    id = _recall_id(session.call)
    plan: RecallPlan = await ask(service.recall_taken, id, session.call.channel)
    dial = plan.caller.dialstring or "&".join([await _contacts(session, d) for d in plan.devices])
    if len(dial) > LONGEST_DIAL:
        dial = "&".join(plan.devices)
    who, prefix = plan.callee.name or plan.callee.number, plan.caller.settings.cc_recall_prefix
    return {
        "CC_DIAL": dial,
        "CC_RING": f"{plan.ring:g}",
        "CC_CID_NUM": plan.callee.number,
        "CC_CID_NAME": f"{prefix}{who}" if prefix else f"{who} (callback)",
        "CC_ALERT_INFO": plan.caller.settings.cc_recall_alert_info,
    }


async def _contacts(session: Session, phone: Device) -> str:
    """Every contact of an endpoint; one whose URI could reach beyond its place in Dial() is left out."""
    endpoint = phone.removeprefix("PJSIP/")
    value = await session.get_full_variable(f"${{PJSIP_DIAL_CONTACTS({endpoint})}}")
    contacts = (value or "").split("&")
    if all(_CONTACT.fullmatch(c) and c.startswith(f"{phone}/") for c in contacts):
        return "&".join(contacts)
    return phone


async def recallfailed(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 recall id, 2 DIALSTATUS and 3 HANGUPCAUSE of the caller's leg."""
    call = session.call
    dialstatus, cause = _word(call.arg(2), "DIALSTATUS"), _cause(call.arg(3))
    await ask(service.recall_failed, _recall_id(call), dialstatus, cause)
    return {}


async def answered(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 recall id: where the CC call goes."""
    id = _recall_id(session.call)
    target: Target = await ask(service.caller_answered, id, session.call.channel)
    return {
        "CC_GO": "1",
        "CC_GO_REASON": "",
        "CC_TARGET_EXTEN": target.callee,
        "CC_TARGET_DEVICES": "&".join(d for d in target.callee_devices if d.startswith("PJSIP/")),
        "CC_CALLER_NUM": target.caller.number,
        "CC_CALLER_NAME": target.caller.name,
        "CC_CALLER_ENDPOINT": target.device.removeprefix("PJSIP/"),
        "CC_VIA": target.endpoint,
        "CC_ANNOUNCE": target.caller.settings.cc_recall_announce,
    }


async def trunkstatus(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 number: what the PBX beyond the trunk said last of the one this caller waits for."""
    wanted = number(session.call.arg(1))
    known = await ask(service.far_state, _caller(session.call.channel), wanted)
    return {"CC_TRUNK_STATUS": known}


async def completed(session: Session, service: CompletionService, ask: Ask) -> Variables:
    """1 recall id, 2 DIALSTATUS and 3 HANGUPCAUSE of the CC call."""
    call = session.call
    dialstatus, cause = _word(call.arg(2), "DIALSTATUS"), _cause(call.arg(3))
    # He hung up before anybody was dialled: like one who hangs up while it rings.
    id, dialstatus = _recall_id(call, by_note=True), dialstatus or "CANCEL"
    over: Request = await ask(service.call_over, id, dialstatus, cause)
    return {"CC_OUTCOME": "RETAINED" if over.state is State.QUEUED else over.reason}


ROUTES: dict[str, Script] = {
    "record": record,
    "request": request,
    "cancel": cancel,
    "cancelall": cancelall,
    "toggle": toggle,
    "status": status,
    "recall": recall,
    "recallfailed": recallfailed,
    "answered": answered,
    "completed": completed,
    "trunkstatus": trunkstatus,
}

_NO: dict[str, Callable[[str], Variables]] = {
    "record": lambda reason: {"CC_OFFERED": "0", "CC_REASON": reason},
    "request": lambda reason: {"CC_REQUEST_RESULT": "FAIL", "CC_REQUEST_REASON": reason},
    "cancel": lambda reason: {"CC_CANCEL_RESULT": "FAIL", "CC_CANCEL_REASON": reason},
    "cancelall": lambda reason: {"CC_CANCEL_RESULT": "FAIL", "CC_CANCEL_REASON": reason, "CC_CANCELLED": "0"},
    "toggle": lambda reason: {"CC_TOGGLE": "", "CC_REQUEST_RESULT": "FAIL", "CC_REQUEST_REASON": reason},
    # Not known is not none.
    "status": lambda reason: {"CC_PENDING": "", "CC_PENDING_LIST": "", "CC_PENDING_PLACES": ""},
    "recall": lambda reason: {"CC_DIAL": ""},
    "recallfailed": lambda reason: {},
    "answered": lambda reason: {"CC_GO": "0", "CC_GO_REASON": reason},
    "completed": lambda reason: {"CC_OUTCOME": reason},
    "trunkstatus": lambda reason: {"CC_TRUNK_STATUS": "UNKNOWN"},
}


async def answer(
    name: str, session: Session, service: CompletionService, ask: Ask, log: Callable[[str], None]
) -> Variables:
    """What script ``name`` sets; what is refused is set as FAIL with its reason, and what is malformed logged."""
    who = repr(session.call.channel[:80]) if session.call.channel else session.peer
    try:
        variables = await ROUTES[name](session, service, ask)
    except Invalid as error:
        log(f"refused: {name} from {who}: {error}")
        variables = _NO[name]("INVALID")
    except Refused as no:
        log(f"{name} from {who}: {no.reason}: {no}")
        variables = _NO[name](no.reason)
    return {**variables, "CC_ACK": "1"}
