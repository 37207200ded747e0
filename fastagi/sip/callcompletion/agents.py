"""Callers beyond the trunks: the other PBX subscribes, is told whose turn it is, and makes the CC call.

Here stands what RFC 6910, 7, calls the callee's monitor, as far as it speaks SIP; whose turn it is, and all
time, is the rules' business. A subscription is one request of the rules, and its state is told, not kept:
whatever a request has become, `Agents.follow` sees to it that its subscriber knows.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from dataclasses import replace
from functools import partial
from typing import Final

from fastagi.completion.machine import CallerAnswered, CallerBusy, Cancelled, TimeOver
from fastagi.completion.model import TURN, Number, Offer, Presence, State
from fastagi.completion.model import Request as CcRequest
from fastagi.errors import Refused
from fastagi.sip.callcompletion.parts import Parts, same_uri, user_of
from fastagi.sip.callcompletion.values import OUR_USER, Agent, Heard
from fastagi.sip.calls import plain_user
from fastagi.sip.dialog import Answer, Ask
from fastagi.sip.machine import Answered, Content, Due, Unanswered
from fastagi.sip.message import Request, Response
from fastagi.sip.notifier import (
    NotifierEffect,
    NotifierEvent,
    NotifierState,
    Subscribe,
    Tell,
    Terminate,
    Terms,
    accept,
    at_most,
    step_notifier,
)
from fastagi.sip.package import PIDF_TYPE, STATE_TYPE, parse_pidf, state_body
from fastagi.sip.publication import Limits, publish
from fastagi.sip.subscription import Ended
from fastagi.sip.trunk import Trunk

OFFER_GRACE: Final = 15.0
"""Seconds beyond ``cc_offer_timer`` in which a SUBSCRIBE is taken: its caller asked in time, his PBX took its own."""
OVERDUE: Final = 1.0
"""Seconds after which a NOTIFY that is not answered yet makes us wonder."""
OPEN_GRACE: Final = 0.5
"""Seconds between an ``open`` and ``ready``: told at once, chan_sip answers it with ``closed``."""
TELL_WITHIN: Final = 3.0
"""Seconds that the dialplan has to tell of a call that has failed, before it counts as one not offered."""
ASKED_AT_MOST: Final = 10
"""How often one call may be asked for: who asks and leaves without end would fill the history."""
MAX_ROUTES: Final = 4096
"""Characters of a peer's own that are kept with its subscription."""
NOBODY: Final = ("", "anonymous", "unknown", "restricted", "unavailable")
"""User parts of a From that many may have: they are not one caller."""
RETRY_AFTER: Final = ("Retry-After", "60")


def pace(sent: tuple[float, ...], content: Content) -> float:
    """At most 3 NOTIFYs in 10 s, and ``ready`` never the third: it could not be taken back (RFC 6910, 9.11)."""
    return _ready_pace(sent) if content.body.startswith("cc-state: ready") else at_most(3, 10, sent)


def _ready_pace(sent: tuple[float, ...]) -> float:
    return at_most(2, 10, sent)


TERMS: Final = Terms(pace=pace)


class No(Exception):
    """A request of the peer is refused; ``why`` is for the log."""

    def __init__(self, status: int, why: str, *headers: tuple[str, str]) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


class NotYet(No):
    """What it is about may come to be known within a moment: the dialplan tells of a 487 after it has passed."""


class Agents:
    """All callers beyond the trunks who wait here."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._offers: dict[str, int] = {}  # by the user part of the monitor URI
        self._asked: Counter[int] = Counter()  # how often each offer was asked for
        # Whom they wanted whose request is over, by the user part of the cc-URI: their call may come late.
        self._late: OrderedDict[str, tuple[str, str]] = OrderedDict()

    # Inside a turn: what the rules tell and ask

    def offered(self, offer: Offer) -> None:
        if offer.call_in:
            user = self._parts.names.monitor(offer.agent, offer.call_in)
            self._parts.later(partial(self._offers.__setitem__, user, offer.id))

    def hear(self, offer: Offer, now: float) -> None:
        self._parts.hear("came", offer.id, offer.agent, offer.call_in, now)

    def forgotten(self, offer: Offer) -> None:
        self._parts.service.after(
            partial(self._forget, self._parts.names.monitor(offer.agent, offer.call_in), offer.id)
        )

    def _count(self, offer: int) -> None:
        self._asked[offer] += 1

    def _forget(self, user: str, id: int) -> None:
        self._asked.pop(id, None)
        if self._offers.get(user) == id:
            del self._offers[user]

    def offer_of(self, trunk: str, call_id: str) -> Offer | None:
        """What is on record of a call that came over this trunk by this Call-ID."""
        return self.offer_of_user(self._parts.names.monitor(trunk, call_id))

    def offer_of_user(self, user: str) -> Offer | None:
        """What is on offer by the monitor URI with this user part."""
        return self._parts.service.book.offers.get(self._offers.get(user, 0))

    def presence(self, request: int, now: float) -> Presence | None:
        """Whether he can be told ``ready`` now; RINGING: not yet, so he is passed over and holds up nobody."""
        agent = self._agent(request)
        if agent is None or agent.trunk not in self._parts.trunks:
            return None
        if agent.closed(now):
            return Presence.IN_USE
        n = agent.notifier
        if n.in_flight and n.sent_at and n.sent_at[-1] + OVERDUE < now:
            return Presence.RINGING  # whether he hears anything is not known
        return Presence.IDLE if self._ready_at(agent) <= now else Presence.RINGING

    def follow(self, now: float) -> bool:
        """Bring what every subscriber was told to what is; True: a request has changed by it."""
        changed = False
        for agent in self._all():
            try:
                changed |= self._follow(agent, now)
            except Exception:  # the others, and the service, must go on
                self._parts.fault(f"the subscription of request {agent.request}")
                self._gone(agent, self._request(agent), "a fault of fastagi", now)
                changed = True
        return changed

    def dues(self) -> list[float]:
        """The instants at which there is something to do."""
        due: list[float] = []
        for agent in self._all():
            at = agent.notifier.next_due(TERMS)
            due += [at] if at is not None else []
            if agent.publication is not None:
                due.append(agent.publication.expires_at)
            request = self._request(agent)
            if request is not None and request.state is State.QUEUED and agent.trunk in self._parts.trunks:
                due.append(self._ready_at(agent))
        return due

    def call_over(self, trunk: str, call_id: str) -> str:
        """The recall id of the CC call that came over this trunk by this Call-ID; empty: it was none."""
        channel = channel_of(trunk, call_id)
        for request in self._parts.service.book.requests():
            if request.state is State.CALLING and request.channel == channel:
                return request.recall_id
        return ""

    # Inside a turn: what the peer sends

    def subscribe(self, trunk: str, request: Request, now: float) -> Response:
        """A SUBSCRIBE (RFC 6910, 7.2, 9.7); raises `No`."""
        agent = self._of_dialog(trunk, request)
        if agent is not None:
            if request.expires == 0:
                # The last word is queued, whatever it was: there are PBXs that heed no other.
                last = self._content(agent.trunk, agent.call_user, ready=False)
                agent = replace(agent, notifier=replace(agent.notifier, content=last))
            return self._step(agent, Subscribe(request), now)
        if request.to.tag:
            raise No(481, "no such subscription")
        if request.get("accept") is not None and not _accepts(request):
            raise No(406, f"its Accept has no {STATE_TYPE}")
        again = self._same_call_id(trunk, request)
        if again is not None:
            return self._once_more(again, request, now)
        if request.expires == 0:
            raise No(481, "nothing to unsubscribe from")
        return self._accept(trunk, request, self._on_offer(trunk, request, now), now)

    def publish(self, trunk: str, request: Request, now: float) -> Response:
        """A PUBLISH of the caller's presence (RFC 6910, 7.5); raises `No`."""
        agent = self._of_publish(trunk, request)
        if agent is None:
            unknown = 412 if request.get("sip-if-match") else 404
            raise No(unknown, "nobody waits here whose presence that is")
        if request.body and request.content_type != PIDF_TYPE:
            raise No(415, f"its body is no {PIDF_TYPE}", ("Accept", PIDF_TYPE))
        says = parse_pidf(request.body) if request.body else None
        if request.body and says is None:
            raise No(400, "its body says neither open nor closed")
        cc = self._request(agent)
        limits = Limits(ends_at=cc.service_ends if cc is not None else now)
        was_closed, tag = agent.closed(now), self._parts.new_token()
        done = publish(agent.publication, request, self._parts.new_token(), now, tag, limits)
        if done.kind is None:
            return done.answer.response
        # A refresh has no body, and says what it said.
        new = replace(
            agent, publication=done.publication, says_closed=agent.says_closed if says is None else not says
        )
        if was_closed and not new.closed(now):
            new = replace(new, open_since=now)
        self._keep(new)
        if cc is not None and new.closed(now) and cc.state is State.READY:
            # P7: "stop recall timer ..., go to queued ..., try the next entry".
            self._parts.service.apply(cc, CallerBusy(), now)
        return done.answer.response

    def answered(self, trunk: str, asked: Request, response: Response | None, now: float) -> bool:
        """What a NOTIFY of ours got; False: it was none of ours."""
        for agent in self._all():
            dialog = agent.notifier.dialog
            if agent.trunk == trunk and (dialog.call_id, dialog.local_tag) == (
                asked.call_id,
                asked.from_.tag,
            ):
                event = Unanswered(asked.cseq[0]) if response is None else Answered(response)
                self._step(agent, event, now)
                return True
        return False

    # Inside a turn: the CC call

    def agent_of_user(self, user: str) -> Agent | None:
        """Whose monitor URI or cc-URI has this user part; rather one who still waits."""
        found = [a for a in self._all() if user in (a.call_user, a.monitor_user)]
        return next((a for a in found if self._request(a) is not None), found[0] if found else None)

    def agent_of_caller(self, trunk: str, from_uri: str, callee: str) -> Agent | None:
        """Whose CC call that is, by its From and its callee (RFC 6910, 7.4); rather one whose turn it is."""
        found = [
            a
            for a in self._all()
            if (a.trunk, a.callee) == (trunk, callee) and same_uri(a.from_uri, from_uri)
        ]
        return next((a for a in found if self.in_turn(a)), found[0] if found else None)

    def in_turn(self, agent: Agent) -> bool:
        request = self._request(agent)
        return request is not None and request.state is State.READY

    def call_came(self, request: int, call_id: str) -> None:
        """The CC call for this request passes."""

        def work(now: float) -> object:
            cc = self._parts.service.book.request(request)
            if cc is None or cc.state is not State.READY:
                raise Refused("NOT_NOW", f"the call of request {request} came when it was not its turn")
            return self._parts.service.apply(cc, CallerAnswered(channel_of(cc.agent, call_id)), now)

        self._parts.service.event(work, keep=True)

    # Inside

    def _agent(self, request: int) -> Agent | None:
        return self._parts.kept("agent", request, Agent)

    def _all(self) -> list[Agent]:
        return self._parts.all_kept("agent", Agent)

    def _request(self, agent: Agent) -> CcRequest | None:
        return self._parts.service.book.request(agent.request)

    def _keep(self, agent: Agent) -> None:
        over = agent.notifier.state is NotifierState.ENDED and self._request(agent) is None
        if over:
            self._drop(agent)
        else:
            self._parts.keep("agent", agent.request, agent)

    def _drop(self, agent: Agent) -> None:
        self._parts.keep("agent", agent.request, None)
        self._parts.remember(self._late, agent.call_user, (agent.trunk, agent.callee))

    def late(self, trunk: str, user: str) -> str:
        """Whom a caller wanted whose request is over, by the user part of the URI he calls; empty: not known."""
        offer = self.offer_of_user(user)
        if offer is not None and offer.agent == trunk:
            return offer.callee
        known, callee = self._late.get(user, ("", ""))
        return callee if known == trunk else ""

    def _ready_at(self, agent: Agent) -> float:
        """When ``ready`` may be told, if it is his turn."""
        n = agent.notifier
        return max(n.not_before, _ready_pace(n.sent_at), agent.open_since + OPEN_GRACE)

    def _content(self, trunk: str, call_user: str, ready: bool) -> Content:
        known = self._parts.trunks[trunk]
        return Content(state_body(ready, our_uri(known, call_user), known.retention), STATE_TYPE)

    def _of_dialog(self, trunk: str, request: Request) -> Agent | None:
        if not request.to.tag:
            return None
        agents = self._all()
        return next((a for a in agents if a.trunk == trunk and a.notifier.dialog.has(request)), None)

    def _same_call_id(self, trunk: str, request: Request) -> Agent | None:
        for agent in self._all():
            dialog = agent.notifier.dialog
            if (agent.trunk, dialog.call_id, dialog.remote_tag) == (
                trunk,
                request.call_id,
                request.from_.tag,
            ):
                return agent
        return None

    def _once_more(self, agent: Agent, request: Request, now: float) -> Response:
        """Its first SUBSCRIBE again, whose answer a crash of ours has eaten; or another fork of it."""
        dialog = agent.notifier.dialog
        if request.uri != agent.uri or dialog.remote_seq != request.cseq[0]:
            raise No(482, "merged with another fork of the same SUBSCRIBE")  # RFC 6910, 9.7
        left = max(0, int(agent.notifier.expires_at - now))
        return request.response(200, headers=(("Expires", str(left)),), tag=dialog.local_tag)

    def _on_offer(self, trunk: str, request: Request, now: float) -> Offer:
        """The failed call this SUBSCRIBE is about: by our own URI first, by its From second. Raises `No`."""
        user = user_of(request.uri)
        if OUR_USER.fullmatch(user):
            offer = self.offer_of_user(user)
            if offer is None:
                raise self._not_on_offer(trunk, user, now)
        else:
            offer = self._by_caller(trunk, request.from_.uri, user)
            if offer is None:
                raise No(403 if user.isdigit() else 404, "no call of that caller has failed here lately")
        if offer.agent != trunk:
            raise No(404, "that call came over another trunk")
        if now > offer.offer_ends + OFFER_GRACE:
            raise No(403, f"the call failed {now - offer.offered_at:.0f} s ago: too late to ask")
        if offer.service is None:
            raise No(403, f"the call was not offered: {offer.reason}")
        if self._asked[offer.id] >= ASKED_AT_MOST:
            raise No(403, f"it was asked for {ASKED_AT_MOST} times already")
        return offer

    def _not_on_offer(self, trunk: str, user: str, now: float) -> No:
        minted_for, call_id = self._parts.minted.get(user, ("", ""))
        call = self._parts.calls[trunk].get(call_id, now) if minted_for == trunk else None
        if call is None:
            return No(404, "no call was offered by that URI")
        if call.final and now < call.seen + TELL_WITHIN and not call.answered:
            return NotYet(403, "that call was not offered")
        if call.final:
            return No(403, "that call was not offered")
        return No(480, "that call has not failed yet", ("Retry-After", "2"))

    def _by_caller(self, trunk: str, from_uri: str, callee: str) -> Offer | None:
        found = None
        for offer in self._parts.service.book.offers_of(far_caller(from_uri, trunk)):
            if offer.callee == callee:
                heard = self._parts.kept("came", offer.id, Heard)
                if heard is not None and same_uri(heard.from_uri, from_uri):
                    found = offer
        return found

    def _accept(self, trunk: str, request: Request, offer: Offer, now: float) -> Response:
        heard = self._parts.kept("came", offer.id, Heard)
        from_uri = heard.from_uri if heard is not None else request.from_.uri
        if sum(map(len, (*request.all("record-route"), *request.all("contact")))) > MAX_ROUTES:
            raise No(513, "its Record-Route and Contact are too long to be kept")
        tag, names = self._parts.new_token(), self._parts.names
        accept(request, tag, Content("-", STATE_TYPE), now + 3600, now, TERMS)  # raises if it cannot be
        since = self._make_way(self.agent_of_caller(trunk, from_uri, offer.callee), now)
        caller = self._parts.directory.extension(offer.caller)
        try:
            cc = self._parts.service.request(offer, caller, now, since)
        except Refused as no:
            raise No(480, str(no), RETRY_AFTER) from no
        self._parts.service.after(partial(self._count, offer.id))
        monitor_user, call_user = names.monitor(offer.agent, offer.call_in), names.call(cc.id)
        content = self._content(trunk, call_user, ready=False)
        notifier, effects = accept(request, tag, content, cc.service_ends, now, TERMS)
        agent = Agent(cc.id, trunk, offer.callee, from_uri, request.uri, monitor_user, call_user, notifier)
        return self._done(agent, effects, now)

    def _make_way(self, old: Agent | None, now: float) -> float | None:
        """A new SUBSCRIBE of the same caller for the same callee takes the old one's place (RFC 6910, 7.2)."""
        if old is None or user_of(old.from_uri).lower() in NOBODY:
            return None
        cc = self._request(old)
        if cc is None or cc.state is State.CALLING:
            return None
        self._parts.service.apply(cc, Cancelled("a new request of the same caller"), now)
        return cc.asked_at

    def _of_publish(self, trunk: str, request: Request) -> Agent | None:
        """By its dialog or its request-URI, else by its From (RFC 6910, 7.5)."""
        user, caller = user_of(request.uri), request.from_.uri
        found = self._of_dialog(trunk, request) or self.agent_of_user(user)
        if found is None and user == "cc":  # our Contact, which is everybody's
            found = next((a for a in self._all() if a.trunk == trunk and same_uri(a.from_uri, caller)), None)
        found = found or self.agent_of_caller(trunk, caller, user)
        return found if found is not None and found.trunk == trunk else None

    def _step(self, agent: Agent, event: NotifierEvent, now: float) -> Response:
        notifier, effects = step_notifier(agent.notifier, event, now, TERMS)
        return self._done(replace(agent, notifier=notifier), effects, now)

    def _done(self, agent: Agent, effects: tuple[NotifierEffect, ...], now: float) -> Response:
        """Keep it, and have its effects run; the answer among them, if there is one, is given back."""
        self._keep(agent)
        answer = Response(500, "Server Internal Error")  # of a step that answers nothing; never sent
        for effect in effects:
            match effect:
                case Answer(response):
                    answer = response
                case Ask(request):
                    self._parts.ask(agent.trunk, request)
                case Ended(reason):
                    self._ended(agent, reason, now)
        return answer

    def _ended(self, agent: Agent, reason: str, now: float) -> None:
        """The subscription is over; a CC call that is under way tells itself how it ends."""
        cc = self._request(agent)
        if cc is not None and cc.state is State.QUEUED and reason == "timeout" and cc.service_ends < now + 1:
            self._parts.service.apply(cc, TimeOver(), now)  # whole seconds were granted of what is left
        elif cc is not None and cc.state is not State.CALLING:
            by = f"the PBX beyond {agent.trunk} (subscription {reason})"
            self._parts.service.apply(cc, Cancelled(by), now)

    def _gone(self, agent: Agent, cc: CcRequest | None, by: str, now: float) -> None:
        """There is nobody to tell anything."""
        self._drop(agent)
        if cc is not None:
            self._parts.service.apply(cc, Cancelled(by), now)

    def _follow(self, agent: Agent, now: float) -> bool:
        cc, n = self._request(agent), agent.notifier
        if agent.trunk not in self._parts.trunks:
            self._gone(agent, cc, "the configuration, which has that trunk no longer", now)
            return cc is not None
        if n.state is NotifierState.ACTIVE:
            if cc is None:
                last = self._content(agent.trunk, agent.call_user, ready=False)
                ended = self._parts.service.book.changes.requests.get(agent.request)
                reason = "timeout" if ended is not None and ended.reason == "EXPIRED" else "noresource"
                self._step(agent, Terminate(reason, content=last), now)
                return False
            content = self._content(agent.trunk, agent.call_user, cc.state in TURN)
            if content != n.content:
                self._step(agent, Tell(content), now)
                return False
        elif cc is not None and cc.state is not State.CALLING:
            self._ended(agent, n.reason, now)  # it ended while a CC call was under way, which has failed
            return True
        at = n.next_due(TERMS)
        if at is not None and at <= now:
            before = self._parts.service.book.request(agent.request)
            self._step(agent, Due(), now)
            return self._parts.service.book.request(agent.request) is not before
        if cc is None and n.state is NotifierState.ENDED:
            self._drop(agent)
        elif agent.publication is not None and agent.publication.expires_at <= now:
            self._keep(replace(agent, publication=None, open_since=now))
        return False


def channel_of(trunk: str, call_id: str) -> str:
    """What stands for a CC call in its request; of the Call-ID, which may be anything, only the hash."""
    words = f"{trunk}\0{call_id}".encode("utf-8", "surrogateescape")
    return f"SIP/{hashlib.sha256(words).hexdigest()}"


def far_caller(from_uri: str, trunk: str) -> Number:
    """What a caller beyond a trunk is called here: ``7000@mxone``. No number of ours has an @."""
    shown = "".join(c for c in plain_user(user_of(from_uri)) if c.isprintable() and c not in " @")[:40]
    return Number(f"{shown or 'unknown'}@{trunk}")


def our_uri(trunk: Trunk, user: str) -> str:
    """A URI of ours that the peer can reach."""
    return f"sip:{user}@{trunk.towards_peer}" + (";transport=tcp" if trunk.transport == "tcp" else "")


def _accepts(request: Request) -> bool:
    kinds = {value.partition(";")[0].strip().lower() for value in request.all("accept")}
    return bool(kinds & {STATE_TYPE, "application/*", "*/*"})
