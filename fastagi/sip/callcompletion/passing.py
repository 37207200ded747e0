"""The calls that pass the trunks: Call-Info is put in and read, and the CC call is led to its place.

This is asked for every INVITE, ACK and CANCEL, and for every response to an INVITE. It answers at once from
memory; what follows for the rules is an event, carried out later. So no call ever waits for the database.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from typing import Final

from fastagi.completion.model import Invalid, number
from fastagi.errors import Refused
from fastagi.sip.callcompletion.agents import Agents, our_uri
from fastagi.sip.callcompletion.monitors import Monitors
from fastagi.sip.callcompletion.parts import Parts
from fastagi.sip.callcompletion.values import OUR_USER, RECALL_USER, SERVICE_M
from fastagi.sip.calls import Call
from fastagi.sip.message import Header, Request, Response
from fastagi.sip.package import call_info
from fastagi.sip.transaction import stateless_tag
from fastagi.sip.trunk import Side, Trunk
from fastagi.sip.uri import Malformed, Uri

_CAUSE: Final = re.compile(r"Q\.850[ \t]*;.*?cause[ \t]*=[ \t]*([0-9]{1,3})", re.IGNORECASE)
_STATUS: Final = {
    486: "BUSY",
    600: "BUSY",
    408: "NOANSWER",
    480: "NOANSWER",
    487: "CANCEL",
    603: "CHANUNAVAIL",
}


class Passing:
    """The calls of all trunks."""

    def __init__(self, parts: Parts, agents: Agents, monitors: Monitors) -> None:
        self._parts = parts
        self._agents = agents
        self._monitors = monitors
        self.failed: Counter[str] = Counter()
        """Calls to each trunk's peer that have failed, since we began."""
        self.offered: Counter[str] = Counter()
        """Those of them that it has offered to complete."""
        # The request-URIs to which CC calls were led, by trunk, side, Call-ID and the URI
        # that came: an ACK must go where its INVITE went.
        self._led: OrderedDict[tuple[str, Side, str, str], str] = OrderedDict()
        # The requests of CC calls, by trunk and Call-ID.
        self._cc_calls: OrderedDict[tuple[str, str], int] = OrderedDict()

    # Requests

    def request(self, trunk: str, side: Side, request: Request, now: float) -> str | Response | None:
        """Another request-URI for it, our own answer, or None."""
        led = self._led.get((trunk, side, request.call_id, request.uri))
        if led is not None and (request.method != "INVITE" or not request.to.tag):
            return led
        uri = _parsed(request.uri)
        if uri is None:
            return None
        if side is Side.PEER:
            return self._from_peer(self._parts.trunks[trunk], request, uri, now)
        return self._from_asterisk(trunk, request, uri, now)

    def _from_peer(self, trunk: Trunk, request: Request, uri: Uri, now: float) -> str | Response | None:
        begins = request.method == "INVITE" and not request.to.tag
        agent = None
        if OUR_USER.fullmatch(uri.user):
            agent = self._agents.agent_of_user(uri.user)
            if agent is None or agent.trunk != trunk.name:
                return self._to_nobody(trunk, request, uri)
        elif begins and uri.param("m") is not None:
            agent = self._agents.agent_of_caller(trunk.name, request.from_.uri, uri.user)
        if begins and agent is not None:
            came = self._agents.in_turn(agent)
            # Or it has come before, perhaps before a restart of ours.
            if came or self._agents.call_over(trunk.name, request.call_id):
                self._parts.remember(self._cc_calls, (trunk.name, request.call_id), agent.request)
            if came:
                self._agents.call_came(agent.request, request.call_id)
        if begins:
            self._parts.calls[trunk.name].noted(request, False, now)
        if agent is None or not OUR_USER.fullmatch(uri.user):
            return None
        return self._lead(trunk.name, Side.PEER, request, str(Uri.of(agent.callee, *trunk.asterisk)))

    def _to_nobody(self, trunk: Trunk, request: Request, uri: Uri) -> str | Response:
        """A URI of ours whose request is over: its caller may be late, so he gets whom he wanted."""
        callee = self._agents.late(trunk.name, uri.user)
        if callee:
            return self._lead(trunk.name, Side.PEER, request, str(Uri.of(callee, *trunk.asterisk)))
        return request.response(404, tag=stateless_tag(request))

    def _from_asterisk(self, trunk: str, request: Request, uri: Uri, now: float) -> str | Response | None:
        recall = RECALL_USER.fullmatch(uri.user)
        target = self._monitors.target(recall[1], request) if recall else None
        if request.method == "INVITE" and not request.to.tag:
            self._parts.calls[trunk].noted(request, True, now)
            if recall and target is None:  # nobody's: the peer would know as little of it
                return request.response(404, tag=stateless_tag(request))
            target = target or self._monitors.target_of_call(trunk, request)
        return self._lead(trunk, Side.ASTERISK, request, target) if target else None

    def _lead(self, trunk: str, side: Side, request: Request, uri: str) -> str:
        self._parts.remember(self._led, (trunk, side, request.call_id, request.uri), uri)
        return uri

    # Responses

    def response(self, trunk: str, side: Side, response: Response, now: float) -> tuple[Header, ...]:
        """Headers to add to it."""
        if side is Side.ASTERISK:
            return self._to_peer(self._parts.trunks[trunk], response, now)
        call = self._parts.calls[trunk].get(response.call_id, now)
        known, final = (call.monitors, call.final) if call is not None else ((), 0)
        call = self._parts.calls[trunk].answered(response, now)
        if call is not None and call.outgoing and not final and _failed(call.final):
            self.failed[trunk] += 1
            self.offered[trunk] += bool(call.monitors)
        if call is not None and call.outgoing and call.monitors != known:
            self._heard(call)
        return ()

    def _heard(self, call: Call) -> None:
        """The other PBX has offered a call, perhaps after the dialplan told of it."""
        offer = self._monitors.offer_of(call.call_id)
        if offer is not None and offer.service is None:
            self._parts.service.event(lambda now: self._parts.service.offered_late(offer.id, now), keep=True)

    def _to_peer(self, trunk: Trunk, response: Response, now: float) -> tuple[Header, ...]:
        call_id = response.call_id
        call = self._parts.calls[trunk.name].answered(response, now)
        known = (trunk.name, call_id) in self._cc_calls
        if known or (call is None and self._agents.call_over(trunk.name, call_id)):
            self._cc_call_answered(trunk.name, response)
            if self._agents.offer_of(trunk.name, call_id) is None:
                return ()  # an offer in it would open another request: chan_sip does that
        m = self._offered_as(trunk.name, call, response) if trunk.call_info else ""
        if not m:
            return ()
        user = self._parts.names.monitor(trunk.name, call_id)
        self._parts.remember(self._parts.minted, user, (trunk.name, call_id))
        return (("Call-Info", call_info(our_uri(trunk, user), m)),)

    def _offered_as(self, trunk: str, call: Call | None, response: Response) -> str:
        """The ``m`` of what is, or may come to be, on offer of this call; empty: nothing."""
        status = response.status
        if status == 100 or 200 <= status < 400 or status in (401, 407):
            return ""
        offer = self._agents.offer_of(trunk, response.call_id)
        if offer is not None:
            return SERVICE_M[offer.service] if offer.service is not None else ""
        if call is None or call.outgoing or (status > 199 and status != 487):
            return ""
        # It rings, or the caller gave up: no call has failed yet that the dialplan could have told of.
        return "NR" if self._may_be_camped_on(call.user) else ""

    def _may_be_camped_on(self, callee: str) -> bool:
        try:
            extension = self._parts.directory.extension(number(callee))
        except Invalid:
            return False
        return extension.settings.cc_monitor_policy != "never"

    def _cc_call_answered(self, trunk: str, response: Response) -> None:
        """How the CC call of a caller beyond the trunk went; a failed one the dialplan may have told already."""
        status = response.status
        # It goes on elsewhere, or with a password; 482: another fork of it lives.
        if status < 200 or 300 <= status < 400 or status in (401, 407, 482):
            return
        call_id = response.call_id
        self._cc_calls.pop((trunk, call_id), None)
        dialstatus, cause = _outcome(response)

        def work(now: float) -> object:
            recall_id = self._agents.call_over(trunk, call_id)
            if not recall_id:
                raise Refused("RECALL_UNKNOWN", "this CC call is over already")
            return self._parts.service.call_ended(recall_id, dialstatus, cause, now)

        self._parts.service.event(work, keep=True)


def _failed(status: int) -> bool:
    """Whether that is the end of a call that has failed: a redirection or a challenge is none."""
    return status > 399 and status not in (401, 407)


def _outcome(response: Response) -> tuple[str, int]:
    """A final response as DIALSTATUS and HANGUPCAUSE."""
    if response.status < 300:
        return "ANSWER", 16
    found = _CAUSE.search(response.get("reason", ""))
    cause = int(found[1]) if found else 21 if response.status == 603 else 0
    if cause in (3, 20):
        return "CHANUNAVAIL", cause
    return _STATUS.get(response.status, "CONGESTION"), cause


def _parsed(uri: str) -> Uri | None:
    try:
        return Uri.parse(uri)
    except Malformed:
        return None
