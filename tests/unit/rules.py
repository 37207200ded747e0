"""A small world to try the rules in: a clock that is moved, and hand-written fakes that write one transcript."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from fastagi.completion.model import (
    OPEN,
    Context,
    Device,
    Extension,
    Limits,
    Number,
    Offer,
    Presence,
    Request,
    Settings,
    hint,
)
from fastagi.completion.offers import NOT_WATCHABLE, FailedCall
from fastagi.completion.ports import Beyond, Changes, LogEntry
from fastagi.completion.service import CompletionService, Place, RecallPlan, Target
from fastagi.errors import Refused

IDLE, RINGING, IN_USE, GONE = Presence.IDLE, Presence.RINGING, Presence.IN_USE, Presence.GONE
START = 1_700_000_000.0


def phone(number: str) -> Device:
    return Device(f"PJSIP/{number}")


class FakeTimer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = START) -> None:
        self._now = now
        self.timers: list[FakeTimer] = []

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(when, call)
        self.timers.append(timer)
        return timer

    def armed(self) -> list[float]:
        """Seconds from now to each call that is armed."""
        return sorted(t.when - self._now for t in self.timers if not t.cancelled)

    def clear(self) -> None:
        """The process that armed them is gone."""
        self.timers.clear()

    def move(self, seconds: float) -> None:
        """Later, with no timer run on the way: what is due is run by the next ``advance``."""
        self._now += seconds

    def advance(
        self, seconds: float, between: Callable[[], None] = lambda: None, most: int = 100_000
    ) -> None:
        """Later, running what falls due on the way, at most so many calls; ``between`` after each."""
        end = self._now + seconds
        runs = 0
        while due := [t for t in self.timers if not t.cancelled and t.when <= end]:
            timer = min(due, key=lambda t: t.when)
            self.timers.remove(timer)
            self._now = max(self._now, timer.when)
            timer.call()
            between()
            runs += 1
            assert runs < most, f"a timer is armed again and again at {self._now}"
        self.timers = [t for t in self.timers if not t.cancelled]
        self._now = end
        between()


class FakeDirectory:
    """Extensions 1000 to 2999 have a phone of their own; ``entries`` says otherwise."""

    def __init__(self) -> None:
        self.entries: dict[str, Extension] = {}
        self.asked = 0

    def set(self, number: str, devices: Iterable[str] = (), hint: str = "", **settings: object) -> None:
        self.entries[number] = Extension(
            number=Number(number),
            settings=replace(Settings(), **settings),  # type: ignore[arg-type]
            name=f"Name of {number}",
            devices=tuple(Device(d) for d in devices),
            hint=hint,
        )

    def extension(self, number: Number) -> Extension:
        return self.entries.get(number) or Extension(number, Settings())

    def numbers(self) -> list[Number]:
        return list(map(Number, self.entries))

    def of_device(self, device: Device) -> Extension | None:
        for entry in self.entries.values():
            if device in entry.devices:
                return entry
        name = device.removeprefix("PJSIP/")
        return self.extension(Number(name)) if name.isdigit() and "1000" <= name <= "2999" else None


class FakeStore:
    """Remembers what was committed; ``held`` commits wait for `release`, in order; ``error`` fails the next ones."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.offers: dict[int, Offer] = {}
        self.requests: dict[int, Request] = {}
        self.log: list[LogEntry] = []
        self.kept: dict[tuple[str, str], str] = {}
        self.last_id = 0
        self.held = False
        self.error: Exception | None = None
        self.tries = 0
        self.pruned: list[float] = []
        self.lost: set[int] = set()
        """Requests in whose log it is missing that it was their turn."""
        self._waiting: list[tuple[Changes, Callable[[Exception | None], None]]] = []

    def commit(self, changes: Changes, done: Callable[[Exception | None], None]) -> None:
        assert all(c.only_turns() for c, _ in self._waiting), "a second commit before the first was done"
        assert changes, "a commit of nothing"
        self.tries += 1
        self._waiting.append((changes, done))
        while self._waiting and not self.held:
            self.release()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def release(self) -> None:
        """The commit under way is done, or has failed with ``error``."""
        changes, done = self._waiting.pop(0)
        error = self.error or _unwritable(changes)
        if error is not None:
            self._events.append("not saved")
            if changes.only_turns():
                self.lost.update(changes.requests)
            done(error)
            return
        self.write(changes)
        done(None)

    def crash(self) -> None:
        """What was not committed is gone."""
        self._waiting.clear()

    def write(self, changes: Changes) -> None:
        said = [f"offer {o.id}" for o in changes.offers if o.id not in self.offers]
        said += [f"{e.request} {e.old} -> {e.new}" for e in changes.log]
        if said:
            self._events.append("saved: " + ", ".join(said))
        assert {e.request for e in changes.log} == set(changes.requests), (
            "a change without its row in the log"
        )
        for offer in changes.offers:
            old = self.offers.get(offer.id)
            assert old is None or offer.reason == "COMPLETED" or old.reason == NOT_WATCHABLE
            self.offers[offer.id] = offer
        for id in changes.forgotten_offers:
            del self.offers[id]
        self.requests.update(changes.requests)
        self.log += changes.log
        for key, value in changes.kept.items():
            self.kept.pop(key, None)
            if value is not None:
                self.kept[key] = value.to_json()
        self.last_id = max([self.last_id, *self.offers, *self.requests])
        if changes.prune_before is not None:
            self.pruned.append(changes.prune_before)


def _unwritable(changes: Changes) -> Exception | None:
    """SQLite takes no text that is not UTF-8, and what was not UTF-8 on the wire is a surrogate here."""
    rows: list[Offer | Request | LogEntry] = [*changes.offers, *changes.requests.values(), *changes.log]
    texts = [str(getattr(row, f.name)) for row in rows for f in fields(row)]
    texts += [
        text for key, value in changes.kept.items() for text in (*key, value.to_json() if value else "")
    ]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        return error
    return None


class FakeAgent:
    def __init__(self, events: list[str]) -> None:
        self._events = events
        self.rung: list[Request] = []
        self.on_recall: Callable[[Request], None] | None = None

    def recall(self, request: Request) -> None:
        self._events.append(f"ring {request.caller} for {request.callee}: {request.recall_id}")
        self.rung.append(request)
        if self.on_recall is not None:
            self.on_recall(request)

    def stop(self, request: Request) -> None:
        self._events.append(f"stop {request.recall_id}")


class FakeMonitor:
    eager = False

    """Is told what to watch; the world tells the levels."""

    def __init__(self) -> None:
        self.devices: dict[Device, float] = {}
        self.calls: frozenset[str] = frozenset()
        self.told: dict[Device, Presence] = {}

    def watch(self, devices: Mapping[Device, float], calls: frozenset[str]) -> None:
        self.devices, self.calls = dict(devices), calls
        self.told = {d: p for d, p in self.told.items() if d in devices}


class FakeLamp:
    """The lamps on the phones: what they show, and what they were told to since the last time."""

    def __init__(self) -> None:
        self.lit: dict[str, str] = {}
        self._told: list[str] = []

    def show(self, extension: Number, state: str) -> None:
        assert self.lit.get(extension) != state, "told again"
        self.lit[extension] = state
        self._told.append(f"{extension} {state}")

    def told(self) -> list[str]:
        told, self._told = self._told, []
        return told


def words(answer: object) -> str:
    """An answer in the words of the transcript."""
    match answer:
        case Refused():
            assert str(answer).strip(), "refused without a sentence"
            return f"FAIL {answer.reason}"
        case Offer(service=None):
            return f"not offered: {answer.reason}"
        case Offer():
            return f"offer {answer.id} {answer.service}"
        case Place():
            return f"{'already ' if answer.already else ''}{answer.request.id} at place {answer.position}"
        case Request():
            return f"{answer.id} {answer.state} {answer.reason}".rstrip()
        case RecallPlan():
            return f"ring {'&'.join(answer.devices)} for {answer.ring:g} s"
        case Target():
            return f"call {answer.callee} in {answer.context} for {answer.device}"
        case list():
            return ", ".join(map(_each, answer)) or "none"
    return repr(answer)


def _each(one: Place | Request) -> str:
    """One of several: of what he waits for, with his place; of what has ended, how."""
    if isinstance(one, Request):
        return f"{one.id} for {one.callee} {one.state} {one.reason}".rstrip()
    return f"{one.request.id} for {one.request.callee} {one.request.state} at place {one.position}"


@dataclass
class World:
    """One PBX: phones are idle until said otherwise, and are seen at once by whoever watches them."""

    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.events: list[str] = []
        self.logged: list[str] = []
        self.directory = FakeDirectory()
        self.store = FakeStore(self.events)
        self.agent = FakeAgent(self.events)
        self.phones: dict[Device, Presence | None] = {}
        self.blind = False
        self._calls = 0
        self._recalls = 0
        self.restart()

    def restart(self) -> None:
        """The process died, and another goes on with what was saved."""
        self.store.crash()
        self.clock.clear()
        self.monitor = FakeMonitor()
        self.lamp = FakeLamp()
        self.service = CompletionService(
            store=self.store,
            clock=self.clock,
            directory=self.directory,
            agent=self.agent,
            monitor=self.monitor,
            lamp=self.lamp,
            limits=self.limits,
            new_recall_id=self._new_recall_id,
            log=self.logged.append,
            beyond=self.beyond(),
        )
        offers = list(self.store.offers.values())
        self.joined(offers)
        open_requests = [r for r in self.store.requests.values() if r.state in OPEN]
        self.service.start(offers, open_requests, self.store.last_id, dict(self.store.kept))
        self.look()

    def beyond(self) -> Beyond | None:
        """What the rules know of the trunks; None: there are none."""
        return None

    def joined(self, offers: list[Offer]) -> None:
        """The service is made, and not started yet."""

    def _new_recall_id(self) -> str:
        self._recalls += 1
        return f"r{self._recalls}"

    # Time and phones

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds, self.look)

    def set(self, number: str, presence: Presence | None) -> None:
        self.phones[phone(number)] = presence
        self.look()

    def set_hint(self, text: str, presence: Presence | None) -> None:
        self.phones[hint(text)] = presence
        self.look()

    def look(self) -> None:
        """Tell what is watched and was not told yet."""
        for _ in range(1000):
            seen: dict[Device, Presence] = {}
            for device in self.monitor.devices:
                presence = self.phones.get(device, IDLE)
                if presence is not None and self.monitor.told.get(device) is not presence:
                    seen[device] = presence
            if self.blind or not seen:
                return
            self.monitor.told.update(seen)
            self.service.levels(seen)
        raise AssertionError("the levels never settle")

    # What people and the dialplan do; each answer goes into the transcript

    def said(self, answer: object) -> None:
        self.events.append(f"-> {words(answer)}")

    def fails(
        self,
        caller: str,
        callee: str,
        dialstatus: str = "BUSY",
        cause: int = 17,
        uniqueid: str | None = None,
        devices: Iterable[str] | None = None,
    ) -> None:
        """``caller`` calls ``callee`` in vain."""
        self._calls += 1
        dialled = (phone(callee),) if devices is None else tuple(Device(d) for d in devices)
        call = FailedCall(
            caller=phone(caller),
            context=Context("phones"),
            callee=Number(callee),
            devices=dialled,
            dialstatus=dialstatus,
            cause=cause,
            uniqueid=uniqueid or f"call-{self._calls}",
        )
        self.service.offer(call, self.said)
        self.look()

    def asks(self, caller: str, callee: str | None = None) -> None:
        self.service.ask(phone(caller), None if callee is None else Number(callee), self.said)
        self.look()

    def cancels(self, caller: str, callee: str | None = None) -> None:
        self.service.cancel(phone(caller), None if callee is None else Number(callee), self.said)
        self.look()

    def cancels_all(self, caller: str) -> None:
        self.service.cancel_all(phone(caller), self.said)
        self.look()

    def toggles(self, caller: str, key: str | None = None) -> None:
        self.service.toggle(phone(caller), None if key is None else Number(key), self.said)
        self.look()

    def pending(self, caller: str) -> None:
        self.service.pending(phone(caller), self.said)

    def taken(self, recall_id: str) -> None:
        self.service.recall_taken(recall_id, f"Local/{recall_id}", self.said)
        self.look()

    def recall_failed(self, recall_id: str, dialstatus: str = "NOANSWER", cause: int = 19) -> None:
        self.service.recall_failed(recall_id, dialstatus, cause, self.said)
        self.look()

    def answered(self, recall_id: str) -> None:
        self.service.caller_answered(recall_id, f"Local/{recall_id};2", self.said)
        self.look()

    def call_over(self, recall_id: str, dialstatus: str = "ANSWER", cause: int = 16) -> None:
        self.service.call_over(recall_id, dialstatus, cause, self.said)
        self.look()

    def wants(
        self,
        caller: str,
        callee: str,
        dialstatus: str = "BUSY",
        cause: int = 17,
        devices: Iterable[str] | None = None,
    ) -> None:
        """A failed call, and its caller asks at once."""
        self.fails(caller, callee, dialstatus, cause, devices=devices)
        self.asks(caller, callee)

    # Looking back

    def told(self) -> list[str]:
        """The transcript since the last time."""
        events = self.events[:]
        self.events.clear()
        return events

    def rings(self) -> list[str]:
        """The recalls of the transcript so far."""
        return [e for e in self.events if e.startswith("ring ")]

    def request(self, id: int) -> Request:
        """As it was last saved."""
        return self.store.requests[id]
