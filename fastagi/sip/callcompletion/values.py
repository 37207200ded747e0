"""What is kept of callers and callees beyond the trunks: plain values, saved with the requests they belong to."""

from __future__ import annotations

import hmac
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from fastagi.completion.model import Service
from fastagi.sip.notifier import Notifier
from fastagi.sip.publication import Publication, Publisher
from fastagi.sip.subscriber import Subscriber, SubscriberState

OUR_USER: Final = re.compile(r"cc[mc]-[0-9a-f]{32}")
"""The user part of a monitor URI (ccm-) or a cc-URI (ccc-) of ours."""
RECALL_USER: Final = re.compile(r"cc-([0-9]{15})")
"""What the dialplan dials for the CC call of that recall: no URI of a peer is ever dialled."""


SERVICE_M: Final = {Service.CCBS: "BS", Service.CCNR: "NR", Service.CCNL: "NL"}
"""The ``m`` of each service (RFC 6910, 12.3)."""


LONGEST_WAIT: Final = 300.0
"""Seconds beyond which nothing that the other PBX asked us to wait with is waited for after a restart."""


@dataclass(frozen=True, slots=True)
class Names:
    """The user parts of our URIs: nobody can guess them, and they are the same after a restart."""

    secret: str

    def monitor(self, trunk: str, call_id: str) -> str:
        """Of the monitor URI of one call, by its trunk and Call-ID alone: the same in every response to it."""
        return f"ccm-{self._hash('monitor', trunk, call_id)}"

    def call(self, request: int) -> str:
        """Of the cc-URI of one request."""
        return f"ccc-{self._hash('call', str(request))}"

    def _hash(self, *what: str) -> str:
        words = "\0".join(what).encode("utf-8", "surrogateescape")
        return hmac.digest(self.secret.encode(), words, "sha256").hex()[:32]

    def to_json(self) -> str:
        return json.dumps(self.secret)


@dataclass(frozen=True, slots=True)
class Habits:
    """What was learned of the PBX beyond a trunk."""

    publish_event: str = "presence"
    """The Event of a PUBLISH that it understands: RFC 6910, 8, says presence; chan_sip knows its old name only."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Heard:
    """What was seen on the wire of a call on record: URIs verbatim."""

    from_uri: str
    to_uri: str
    uri: str
    """The request-URI."""
    monitors: tuple[tuple[str, str], ...] = ()
    """Each monitor URI with its ``m``."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Heard:
        saved = json.loads(text)
        return cls(**{**saved, "monitors": tuple((uri, m) for uri, m in saved["monitors"])})


@dataclass(frozen=True, slots=True)
class Agent:
    """A caller beyond a trunk who waits here: his PBX's subscription with us, and what it has published."""

    request: int
    trunk: str
    callee: str
    from_uri: str
    uri: str
    """The request-URI of the SUBSCRIBE."""
    monitor_user: str
    call_user: str
    notifier: Notifier
    publication: Publication | None = None
    says_closed: bool = False
    """What is published of him."""
    open_since: float = 0.0

    def cut(self, now: float) -> Agent:
        """As it is taken up again: no instant of the past is in the future, whatever the clock was once."""
        n = self.notifier
        sent_at = tuple(min(at, now) for at in n.sent_at)
        notifier = replace(n, sent_at=sent_at, not_before=min(n.not_before, now + LONGEST_WAIT))
        return replace(self, notifier=notifier, open_since=min(self.open_since, now))

    def closed(self, now: float) -> bool:
        """Whether he is suspended; a ``closed`` whose time is over counts as ``open``."""
        p = self.publication
        return p is not None and now < p.expires_at and self.says_closed

    def to_json(self) -> str:
        publication = None if self.publication is None else self.publication.to_dict()
        values = {name: getattr(self, name) for name in _AGENT}
        return json.dumps({**values, "notifier": self.notifier.to_dict(), "publication": publication})

    @classmethod
    def from_json(cls, text: str) -> Agent:
        saved = json.loads(text)
        notifier = Notifier.from_dict(saved["notifier"])
        publication = saved["publication"] and Publication.from_dict(saved["publication"])
        return cls(**{**_only(_AGENT, saved), "notifier": notifier, "publication": publication})


_AGENT = (
    "request",
    "trunk",
    "callee",
    "from_uri",
    "uri",
    "monitor_user",
    "call_user",
    "says_closed",
    "open_since",
)


@dataclass(frozen=True, slots=True)
class Fork:
    """Our subscription at one monitor URI, and what was said there."""

    uri: str
    """The monitor URI, verbatim."""
    m: str
    subscriber: Subscriber
    ready: bool = False
    """The other PBX has said so, and no turn has used it yet."""
    was_ready: bool = False
    """It had, when we suspended; that counts again only if it does not understand to be told so."""
    cc_uri: str = ""
    """Of the latest NOTIFY that had one, verbatim."""
    retention: bool = False
    """The other PBX keeps the place in its queue when a CC call fails."""

    @property
    def serves(self) -> bool:
        """Whether the other PBX may still tell us that the callee is ready."""
        return self.subscriber.state in (SubscriberState.SUBSCRIBING, SubscriberState.ACTIVE)

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _FORK}
        return {**values, "subscriber": self.subscriber.to_dict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Fork:
        return cls(**_only(_FORK, saved), subscriber=Subscriber.from_dict(saved["subscriber"]))


_FORK = ("uri", "m", "ready", "was_ready", "cc_uri", "retention")


@dataclass(frozen=True, slots=True)
class Monitor:
    """A callee beyond a trunk who is waited for: our subscriptions there, and what we have published."""

    request: int
    trunk: str
    heard: Heard
    forks: tuple[Fork, ...] = ()
    publisher: Publisher | None = None
    chosen: int = 0
    """The fork whose ready the latest turn has used: there the CC call goes."""
    called: bool = False
    """A CC call is under way, or has just failed."""
    renewals: int = 0
    """How often we have subscribed anew because the other PBX asked for it."""
    renew_at: float = 0.0
    """When we do so next; 0: there is no need."""

    def cut(self, now: float) -> Monitor:
        """As `Agent.cut`."""
        return replace(self, renew_at=min(self.renew_at, now + LONGEST_WAIT))

    @property
    def serves(self) -> bool:
        return any(fork.serves for fork in self.forks)

    @property
    def over(self) -> bool:
        """Whether no subscription has anything to say or to hear any more."""
        return all(fork.subscriber.state is SubscriberState.ENDED for fork in self.forks)

    @property
    def ready(self) -> bool:
        return any(fork.ready and fork.serves for fork in self.forks)

    @property
    def retention(self) -> bool:
        return any(fork.retention and fork.serves for fork in self.forks)

    def with_fork(self, place: int, fork: Fork) -> Monitor:
        return replace(self, forks=(*self.forks[:place], fork, *self.forks[place + 1 :]))

    def used(self) -> Monitor:
        """A turn has begun: its ready is used up."""
        chosen = next(place for place, fork in enumerate(self.forks) if fork.ready and fork.serves)
        return replace(self, chosen=chosen, forks=tuple(replace(f, ready=False) for f in self.forks))

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in _MONITOR}
        publisher = None if self.publisher is None else self.publisher.to_dict()
        forks = [fork.to_dict() for fork in self.forks]
        return json.dumps({**values, "heard": self.heard.to_json(), "forks": forks, "publisher": publisher})

    @classmethod
    def from_json(cls, text: str) -> Monitor:
        saved = json.loads(text)
        return cls(
            **_only(_MONITOR, saved),
            heard=Heard.from_json(saved["heard"]),
            forks=tuple(Fork.from_dict(fork) for fork in saved["forks"]),
            publisher=saved["publisher"] and Publisher.from_dict(saved["publisher"]),
        )


_MONITOR = ("request", "trunk", "chosen", "called", "renewals", "renew_at")


def _only(names: tuple[str, ...], saved: dict[str, Any]) -> dict[str, Any]:
    return {name: saved[name] for name in names}
