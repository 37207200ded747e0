"""Call completion over trunks (RFC 6910): the rules on one side, the elements of the trunks on the other.

``agents``: callers beyond the trunks, who subscribe here; ``monitors``: callees beyond them, to whom we
subscribe; ``passing``: the calls themselves. This is the only part of ``sip`` that knows the rules. Whatever
a message changes is changed in a turn of the service, and answered when that is saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fastagi.completion.model import Device, Extension, Offer, Presence, Service, Settings
from fastagi.completion.model import Request as CcRequest
from fastagi.completion.ports import FAR, Clock, Kept
from fastagi.completion.service import CompletionService
from fastagi.errors import Refused
from fastagi.sip.callcompletion.agents import TELL_WITHIN, Agents, No, NotYet, far_caller
from fastagi.sip.callcompletion.monitors import Monitors
from fastagi.sip.callcompletion.parts import Asker, Directory, Parts, user_of
from fastagi.sip.callcompletion.passing import Passing
from fastagi.sip.callcompletion.values import OUR_USER, Agent, Habits, Heard, Monitor, Names
from fastagi.sip.calls import Calls
from fastagi.sip.dialog import Rejected
from fastagi.sip.limits import Notices
from fastagi.sip.message import Header, Malformed, Request, Response
from fastagi.sip.package import EVENT
from fastagi.sip.probe import Probe, report
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import Side, Trunk

__all__ = ["CallCompletion"]

TRY_AGAIN = 0.2
"""Every how many seconds it is looked for what a SUBSCRIBE is about, if that is not known yet."""
TRIES = round(TELL_WITHIN / TRY_AGAIN)
"""How often: until the dialplan must have told of it."""


class CallCompletion:
    """What the rules need of those beyond the trunks (`ports.Beyond`), and what the elements need of the rules."""

    def __init__(
        self,
        trunks: Mapping[str, Trunk],
        directory: Directory,
        clock: Clock,
        new_token: Callable[[], str],
        log: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._endpoints = {Device(f"PJSIP/{trunk.endpoint}"): name for name, trunk in trunks.items()}
        self._parts = Parts(trunks, directory, new_token, log, Names(new_token() + new_token()))
        self._parts.calls = {name: Calls() for name in trunks}
        self._agents = Agents(self._parts)
        self._monitors = Monitors(self._parts)
        self._passing = Passing(self._parts, self._agents, self._monitors)
        self._notices = Notices(clock, log)
        self._probes: dict[str, Probe] = {}  # by the Call-IDs of what they asked

    def join(self, service: CompletionService, elements: dict[str, Asker]) -> None:
        """Both sides, once they are made."""
        self._parts.service = service
        self._parts.elements = elements

    # What the rules ask, inside a turn

    def load(
        self, kept: Mapping[tuple[str, str], str], offers: Sequence[Offer]
    ) -> Mapping[tuple[str, str], Kept]:
        secret = kept.get(("secret", "trunks"))
        if secret is not None:
            self._parts.names = Names(json.loads(secret))
        makers: dict[str, Callable[[str], Kept]] = {
            "agent": lambda text: Agent.from_json(text).cut(self._clock.now()),
            "monitor": lambda text: Monitor.from_json(text).cut(self._clock.now()),
            "came": Heard.from_json,
            "heard": Heard.from_json,
            "habits": lambda text: Habits(**json.loads(text)),
        }
        for offer in offers:
            self._index(offer)
        self._parts.started = True
        found: dict[tuple[str, str], Kept] = {}
        for key, text in kept.items():
            try:
                if key[0] in makers:
                    found[key] = makers[key[0]](text)
            except (ValueError, KeyError, TypeError) as error:  # the others, and the service, must go on
                self._parts.log(
                    f"what was kept of {key[0]} {key[1]} cannot be read, and is left out: {error!r}"
                )
        return {**found, ("secret", "trunks"): self._parts.names} if secret is not None else found

    def trunk(self, device: Device) -> str:
        return self._endpoints.get(device, "")

    def endpoint(self, trunk: str) -> str:
        known = self._parts.trunks.get(trunk)
        return known.endpoint if known is not None and known.in_path else ""

    def call_id(self, trunk: str, outgoing: bool, callee: str, caller: str) -> str:
        call = self._parts.calls[trunk].latest(outgoing, callee, caller, self._clock.now())
        # What is no text for sure is not kept.
        return call.call_id if call is not None and call.call_id.isascii() else ""

    def settings(self, trunk: str, settings: Settings) -> Settings:
        known = self._parts.trunks.get(trunk)
        if known is None:
            return settings
        # Without retention the first turn that fails is the last (RFC 6910, 4.2).
        recalls = settings.cc_max_recalls if known.retention else 1
        return replace(settings, cc_recall_timer=known.recall_timer, cc_max_recalls=recalls)

    def caller(self, trunk: str, call_id: str) -> Extension:
        call = self._parts.calls[trunk].get(call_id, self._clock.now())
        return self._parts.directory.extension(far_caller(call.from_uri if call else "", trunk))

    def service(self, trunk: str, call_id: str, failed: Service | None) -> Service | None:
        return self._monitors.service(trunk, call_id, failed, self._clock.now())

    def offered(self, offer: Offer, dialled: str) -> None:
        self._index(offer)
        now = self._clock.now()
        if offer.agent:
            self._agents.hear(offer, now)
        if offer.monitor:
            self._monitors.hear(offer, dialled, now)

    def _index(self, offer: Offer) -> None:
        if offer.agent:
            self._agents.offered(offer)
        if offer.monitor:
            self._monitors.offered(offer)

    def forgotten(self, offer: Offer) -> None:
        if offer.agent:
            self._agents.forgotten(offer)
        if offer.monitor:
            self._monitors.forgotten(offer)
        for kind in ("came", "heard"):
            if self._parts.kept(kind, offer.id, Heard) is not None:
                self._parts.keep(kind, offer.id, None)

    def requested(self, request: CcRequest, offer: Offer, now: float) -> None:
        if offer.monitor:
            self._monitors.requested(request, offer, now)

    def answered_there(self, request: int) -> bool:
        return self._monitors.answered_there(request, self._clock.now())

    def call_over(self, trunk: str, call_id: str) -> str:
        return self._agents.call_over(trunk, call_id)

    def presence(self, device: Device, now: float) -> Presence | None:
        request, _, party = device.removeprefix(FAR).partition("/")
        side = self._agents if party == "caller" else self._monitors
        return side.presence(int(request), now)

    def follow(self, now: float) -> bool:
        self._parts.keep("secret", "trunks", self._parts.names)
        changed = self._agents.follow(now)
        return self._monitors.follow(now) or changed

    def next_due(self, after: float) -> float | None:
        due = [at for at in (*self._agents.dues(), *self._monitors.dues()) if at > after]
        return min(due, default=None)

    # What the elements ask

    def takes(self, trunk: str, request: Request) -> bool:
        """Whether a SUBSCRIBE, NOTIFY or PUBLISH of the peer is for call completion."""
        try:
            event = request.event
        except Malformed:
            return False
        if event is not None and event.package.lower() == EVENT:
            return True
        user = user_of(request.uri)
        return user == "cc" or OUR_USER.fullmatch(user) is not None

    def arrived(
        self, trunk: str, request: Request, answer: Callable[[Response], None], tries: int = TRIES
    ) -> None:
        def work(now: float) -> object:
            found: list[Response] = []

            def give() -> None:
                for response in found:
                    answer(response)

            # Before what the same turn sends besides: a NOTIFY may not overtake the 200 of its SUBSCRIBE.
            self._parts.service.after(give)
            try:
                found.append(self._response(trunk, request, now, last=not tries))
            except NotYet:
                again = partial(self.arrived, trunk, request, answer, tries - 1)
                self._parts.service.after(lambda: _ignore(self._clock.call_at(now + TRY_AGAIN, again)))
            return found

        def done(result: object) -> None:
            if isinstance(result, Refused):  # nothing was changed
                self._parts.log(f"trunk {trunk}: a {request.method} is answered 500: {result}")
                retry = (("Retry-After", "5"),)
                answer(request.response(500, headers=retry, tag=stateless_tag(request)))

        self._parts.service.event(work, done)

    def answered(self, trunk: str, asked: Request, response: Response | None) -> None:
        probe = self._probes.pop(asked.call_id, None)
        if probe is not None:
            probe.answered(asked, response)
            return

        def work(now: float) -> object:
            side = self._agents if asked.method == "NOTIFY" else self._monitors
            return side.answered(trunk, asked, response, now)

        self._parts.service.event(work, keep=True)

    def request_passes(self, trunk: str, side: Side, request: Request) -> str | Response | None:
        return self._passing.request(trunk, side, request, self._clock.now())

    def response_passes(self, trunk: str, side: Side, response: Response) -> tuple[Header, ...]:
        return self._passing.response(trunk, side, response, self._clock.now())

    # What the operator asks

    def probe(self, name: str, done: Callable[[object], None]) -> None:
        """Answers the `Report` of what is beyond this trunk, within `PATIENCE`."""
        trunk = self._parts.trunks.get(name)
        if trunk is None:
            done(Refused("NO_SUCH_TRUNK", f"the running server has no trunk {name}"))
            return

        def ask(request: Request) -> None:
            self._probes[request.call_id] = probe
            self._parts.elements[name].ask(request)

        def over(options: Response | None, subscribe: Response | None) -> None:
            failed, offered = self._passing.failed[name], self._passing.offered[name]
            habits = self._parts.kept("habits", name, Habits) or Habits()
            done(report(trunk, options, subscribe, failed, offered, habits.publish_event))

        probe = Probe(trunk, self._clock, self._parts.new_token, ask, over)
        probe.begin()

    # Inside

    def _response(self, trunk: str, request: Request, now: float, last: bool) -> Response:
        """What a SUBSCRIBE, NOTIFY or PUBLISH comes to; raises `NotYet`, unless this is the last try."""
        try:
            event = request.event
            if event is None or (event.package.lower(), request.method) not in _KNOWN:
                raise No(489, "its Event is not known here", ("Allow-Events", EVENT))
            match request.method:
                case "SUBSCRIBE":
                    return self._agents.subscribe(trunk, request, now)
                case "PUBLISH":
                    return self._agents.publish(trunk, request, now)
            response = self._monitors.notify(trunk, request, now)
            if response is None:
                raise No(481, "no such subscription")
            return response
        except (No, Rejected) as no:
            if isinstance(no, NotYet) and not last:
                raise
            status, headers = no.status, no.headers
            why = str(no)
        except Malformed as error:
            status, headers, why = error.status, (), str(error)
        source = request.via.received or request.via.host
        line = f"trunk {trunk}: a {request.method} from {source} is refused with {status}: {why}"
        self._notices.say(f"trunk {trunk}: requests refused", line)
        return request.response(status, headers=headers, tag=stateless_tag(request))


def _ignore(timer: object) -> None:
    """A timer that nobody cancels."""


_KNOWN = {(EVENT, "SUBSCRIBE"), (EVENT, "NOTIFY"), (EVENT, "PUBLISH"), ("presence", "PUBLISH")}
