"""The rules with parties beyond trunks, as conversations: what lies beyond is a hand-written fake."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from fastagi.agi import routes
from fastagi.completion import machine
from fastagi.completion.machine import (
    ACCEPT_WITHIN,
    BEGIN_WITHIN,
    Accepted,
    Asked,
    CallerBusy,
    CallFailed,
    Cancelled,
    MonitorEnded,
    Recall,
    RecallFailed,
    RecallLost,
    Selected,
    StopRecall,
    step,
)
from fastagi.completion.model import (
    OPEN,
    Context,
    Device,
    Extension,
    Invalid,
    Number,
    Offer,
    Policy,
    Presence,
    Request,
    Service,
    Settings,
    State,
    number,
)
from fastagi.completion.offers import NOT_WATCHABLE, OFFER_MEMORY, OFFERS_PER_CALLER, FailedCall
from fastagi.completion.ports import Beyond, Kept, far_device
from fastagi.completion.service import RING_AT_MOST, Target
from tests.unit.rules import GONE, IDLE, IN_USE, START, World, phone
from tests.unit.scripts import Script, ran

CCBS, CCNR, CCNL = Service
NOW = 10_000.0


# ------------------------------------------------------------------------------------------- the new rows

POLICY = Policy(caller=Settings(), callee=Settings())


def request(state: State = State.QUEUED, **changes: object) -> Request:
    """1000 waits for 2000, who is beyond the trunk mxone."""
    base = Request(
        id=7,
        caller=Number("1000"),
        caller_devices=(phone("1000"),),
        caller_context=Context("phones"),
        callee=Number("2000"),
        callee_devices=(far_device(7, "callee"),),
        service=CCBS,
        state=state,
        why="was busy",
        asked_at=NOW - 100,
        service_ends=NOW + 4700,
        monitor="mxone",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("service", Service)
def test_a_callee_beyond_is_asked_for_first_and_judged_there(service: Service) -> None:
    made = step(request(State.OFFERED, service=service, asked_at=0, service_ends=0), Asked(), NOW, POLICY)
    r = made.request
    assert (r.state, r.sign_needed, r.recall_ends) == (State.REQUESTED, False, NOW + ACCEPT_WITHIN)
    assert (r.asked_at, r.service_ends) == (NOW, NOW + POLICY.service_timer(service))
    assert made.effects == ()


def test_a_caller_beyond_waits_at_once_for_a_callee_of_ours() -> None:
    r = step(request(State.OFFERED, agent="mxone", monitor="", service=CCNR), Asked(), NOW, POLICY).request
    assert (r.state, r.sign_needed, r.recall_ends) == (State.QUEUED, True, 0.0)


def test_an_earlier_place_is_kept_but_not_its_time() -> None:
    r = step(request(State.OFFERED, agent="mxone", monitor=""), Asked(since=NOW - 500), NOW, POLICY).request
    assert (r.asked_at, r.service_ends) == (NOW - 500, NOW + 4800)


def test_accepted_waits_in_the_queue() -> None:
    r = request(State.REQUESTED, recall_ends=NOW + 1)
    made = step(r, Accepted(), NOW, POLICY)
    assert made.request == replace(r, state=State.QUEUED, recall_ends=0.0)
    assert made.effects == () and "mxone" in made.sentence


@pytest.mark.parametrize("state", [State.REQUESTED, State.QUEUED, State.READY])
def test_ended_there_ends_it_here_and_stops_what_rings(state: State) -> None:
    r = request(state, recall_id="r1" if state is State.READY else "")
    made = step(r, MonitorEnded("WORD", "so it is said"), NOW, POLICY)
    assert made.request == replace(r, state=State.ENDED, ended_at=NOW, reason="WORD")
    assert made.sentence == "so it is said"
    assert made.effects == ((StopRecall(r),) if state is State.READY else ())


def test_a_caller_beyond_who_is_busy_in_his_turn_is_passed_over_uncounted() -> None:
    r = request(
        State.READY, agent="mxone", monitor="", recall_id="r1", taken=True, recalls=2, recall_ends=NOW
    )
    made = step(r, CallerBusy(), NOW, POLICY)
    waits = {"state": State.QUEUED, "suspended": True, "recall_id": "", "taken": False, "recall_ends": 0.0}
    assert made.request == replace(r, **waits)  # type: ignore[arg-type]
    assert made.effects == ()
    late = step(r, CallerBusy(), r.service_ends, POLICY).request
    assert (late.state, late.reason) == (State.ENDED, "EXPIRED")


def test_the_turn_of_a_caller_beyond_is_taken_by_his_pbx_and_has_no_grace() -> None:
    r = step(request(agent="mxone", monitor=""), Selected("r1"), NOW, POLICY).request
    assert (r.taken, r.recall_ends) == (True, NOW + 20)
    ours = step(request(), Selected("r1"), NOW, POLICY)
    assert (ours.request.taken, ours.request.recall_ends) == (False, NOW + BEGIN_WITHIN)
    assert ours.effects == (Recall(ours.request),)


@pytest.mark.parametrize(
    ("dialstatus", "cause", "service"),
    [("BUSY", 17, CCBS), ("NOANSWER", 19, CCNR), ("CHANUNAVAIL", 20, CCNL)],
)
def test_after_a_failed_call_over_a_trunk_the_other_pbx_judges(
    dialstatus: str, cause: int, service: Service
) -> None:
    r = request(State.CALLING, recall_id="r1", taken=True)
    made = step(r, CallFailed(dialstatus, cause, callee_in_use=False), NOW, POLICY).request
    assert (made.state, made.service, made.sign_needed, made.recalls) == (State.QUEUED, service, False, 1)


def test_every_reason_has_a_sentence_that_names_both() -> None:
    for event in (
        Accepted(),
        MonitorEnded("X", "the PBX beyond mxone ends 1000's for 2000"),
        Cancelled("1000"),
    ):
        assert step(request(State.REQUESTED), event, NOW, POLICY).sentence.strip()


# ----------------------------------------------------------------------------------------- what lies beyond


@dataclass(frozen=True)
class Note:
    """A value of the fake's, to be saved."""

    text: str

    def to_json(self) -> str:
        return json.dumps(self.text)


class FakeBeyond:
    """The trunk mxone. Says of callers, callees and calls what the test has written, and what it was told."""

    def __init__(self, world: "FarWorld") -> None:
        self._world = world
        self.callers = {"in-1": "7000", "in-2": "7001", "in-3": "7002"}
        self.offers: dict[str, Service] = {}
        self.presences: dict[Device, Presence | None] = {}
        self.calls: dict[str, str] = {}
        self.due: float | None = None
        self.follows: list[Callable[[float], object]] = []
        self.of_callers = Settings()
        self.index: set[int] = set()
        self.loaded: dict[tuple[str, str], str] = {}

    def _told(self, what: str) -> None:
        self._world.service.after(lambda: self._world.events.append(what))

    def load(
        self, kept: Mapping[tuple[str, str], str], offers: Sequence[Offer]
    ) -> Mapping[tuple[str, str], Kept]:
        self.loaded = dict(kept)
        return {key: Note(json.loads(text)) for key, text in kept.items()}

    def trunk(self, device: Device) -> str:
        return "mxone" if device == "PJSIP/mxone" else ""

    def endpoint(self, trunk: str) -> str:
        assert trunk == "mxone"
        return "mxone"

    def call_id(self, trunk: str, outgoing: bool, callee: str, caller: str) -> str:
        return ""

    def settings(self, trunk: str, settings: Settings) -> Settings:
        return settings

    def caller(self, trunk: str, call_id: str) -> Extension:
        return Extension(Number(f"{self.callers[call_id]}@{trunk}"), self.of_callers)

    def service(self, trunk: str, call_id: str, failed: Service | None) -> Service | None:
        assert trunk == "mxone"
        return self.offers.get(call_id)

    def offered(self, offer: Offer, dialled: str) -> None:
        if offer.agent or offer.monitor:
            self.index.add(offer.id)
            self._world.service.keep(
                "heard", str(offer.id), Note(f"of call {offer.call_out or offer.call_in}")
            )

    def forgotten(self, offer: Offer) -> None:
        self.index.discard(offer.id)
        if offer.agent or offer.monitor:
            self._world.service.keep("heard", str(offer.id), None)

    def requested(self, request: Request, offer: Offer, now: float) -> None:
        assert (request.agent, request.monitor) == (offer.agent, offer.monitor)
        if request.monitor:
            self._told(f"ask beyond {request.monitor} for {request.callee}")

    def call_over(self, trunk: str, call_id: str) -> str:
        return self.calls.get(call_id, "")

    def answered_there(self, request: int) -> bool:
        return False

    def presence(self, device: Device, now: float) -> Presence | None:
        return self.presences.get(device, IN_USE)

    def follow(self, now: float) -> bool:
        before = self._world.service.book.requests()
        work, self.follows = self.follows, []
        for one in work:
            one(now)
        if self.due is not None and self.due <= now:
            self.due = None
        return self._world.service.book.requests() != before

    def next_due(self, after: float) -> float | None:
        return self.due


@dataclass
class FarWorld(World):
    """1000 to 2999 have phones here; whom one dials through PJSIP/mxone is beyond it."""

    def __post_init__(self) -> None:
        self.far = FakeBeyond(self)
        super().__post_init__()

    def beyond(self) -> Beyond | None:
        return self.far

    def fails_out(
        self,
        caller: str,
        callee: str,
        dialstatus: str = "BUSY",
        cause: int = 17,
        offered: Service | None = CCBS,
        call_out: str = "",
        through: str = "PJSIP/mxone",
    ) -> None:
        """``caller`` calls ``callee`` beyond the trunk in vain; the other PBX offers what is ``offered``."""
        self._calls += 1
        call_out = call_out or f"out-{self._calls}"
        if offered:
            self.far.offers[call_out] = offered
        self.offer(caller, callee, dialstatus, cause, through=through, call_out=call_out)

    def fails_in(self, call_in: str, callee: str, dialstatus: str = "BUSY", cause: int = 17) -> None:
        """Somebody beyond the trunk calls a phone of ours in vain."""
        self.offer("mxone", callee, dialstatus, cause, devices=(phone(callee),), call_in=call_in)

    def offer(
        self,
        caller: str,
        callee: str,
        dialstatus: str,
        cause: int,
        devices: tuple[Device, ...] = (),
        **more: str,
    ) -> None:
        self._calls += 1
        call = FailedCall(
            caller=phone(caller),
            context=Context("phones"),
            callee=Number(callee),
            devices=devices,
            dialstatus=dialstatus,
            cause=cause,
            uniqueid=f"call-{self._calls}",
            **more,
        )
        self.service.offer(call, self.said)
        self.look()

    def subscribes(self, call_in: str, since: float | None = None) -> int:
        """The other PBX asks for what is on offer of that call; the request's id."""

        def work(now: float) -> object:
            offer = next(o for o in self.service.book.offers.values() if o.call_in == call_in)
            caller = self.far.caller("mxone", call_in)
            return self.service.request(offer, caller, now, since)

        answers: list[object] = []
        self.service.event(work, answers.append)
        self.look()
        [answer] = answers
        assert isinstance(answer, Request), answer
        return answer.id

    def accept(self, id: int) -> None:
        self.apply(id, Accepted())

    def apply(self, id: int, event: machine.Event) -> None:
        """What the far side makes of a request."""

        def work(now: float) -> object:
            request = self.service.book.request(id)
            assert request is not None
            return self.service.apply(request, event, now)

        self.service.event(work, lambda answer: None)
        self.look()

    def says(self, id: int, presence: Presence | None, party: str = "callee") -> None:
        """The other PBX says what that party of a request is now."""
        self.far.presences[far_device(id, party)] = presence
        self.service.event(lambda now: setattr(self.service._turns, "stale", True))
        self.look()

    def camps(self, caller: str, callee: str) -> int:
        """A failed call over the trunk, asked for and accepted; the request's id; nothing in the transcript."""
        self.fails_out(caller, callee)
        self.asks(caller, callee)
        id = self.service.book.last_id
        self.accept(id)
        self.told()
        return id

    def camped_on(self, call_in: str, callee: str, dialstatus: str = "BUSY", cause: int = 17) -> int:
        """The same the other way: somebody beyond waits for one of ours, who talks."""
        self.set(callee, IN_USE)
        self.fails_in(call_in, callee, dialstatus, cause)
        id = self.subscribes(call_in)
        self.far.presences[far_device(id, "caller")] = IDLE
        self.told()
        return id


@pytest.fixture
def world() -> Iterator[FarWorld]:
    world = FarWorld()
    yield world
    check(world)


def check(world: FarWorld) -> None:
    """What holds after every conversation."""
    at: dict[int, State] = {}
    for entry in world.store.log:
        assert entry.old is at.get(entry.request, State.OFFERED), "a change is missing in the log"
        at[entry.request] = entry.new
    assert at == {r.id: r.state for r in world.store.requests.values()}
    assert len(world.clock.armed()) <= 1, "one call is armed for the nearest instant"
    rung = [r.recall_id for r in world.agent.rung]
    assert len(rung) == len(set(rung)), "a recall id was used again"
    for request in world.agent.rung:
        assert not request.agent, "whoever is beyond a trunk is rung there"
        assert number(request.caller), "a number of ours"
    for device in world.monitor.devices:
        assert not device.startswith("SIP/"), "Asterisk knows no such device"
    assert not [line for line in world.logged if "fault of fastagi" in line]


# ------------------------------------------------------------------------------------ calls over the trunk


@pytest.mark.parametrize("service", Service)
@pytest.mark.parametrize(
    ("dialstatus", "cause"), [("BUSY", 17), ("NOANSWER", 19), ("CANCEL", 0), ("CONGESTION", 34), ("", 0)]
)
def test_what_the_other_pbx_offers_is_on_offer(
    world: FarWorld, service: Service, dialstatus: str, cause: int
) -> None:
    world.fails_out("1000", "2000", dialstatus, cause, offered=service, call_out="c1")
    assert world.told() == ["saved: offer 1", f"-> offer 1 {service}"]
    offer = world.store.offers[1]
    assert (offer.monitor, offer.agent, offer.call_out, offer.call_in) == ("mxone", "", "c1", "")
    assert (offer.caller, offer.caller_devices, offer.callee_devices) == ("1000", (phone("1000"),), ())


@pytest.mark.parametrize(
    ("dialstatus", "cause", "reason"),
    [
        ("BUSY", 17, NOT_WATCHABLE),
        ("NOANSWER", 19, NOT_WATCHABLE),
        ("CHANUNAVAIL", 20, NOT_WATCHABLE),
        ("CHANUNAVAIL", 1, "NO_SUCH_NUMBER"),
        ("CONGESTION", 34, "CONGESTION"),
        ("", 0, "NOT_REACHED"),
    ],
)
def test_what_it_does_not_offer_is_not(world: FarWorld, dialstatus: str, cause: int, reason: str) -> None:
    world.fails_out("1000", "2000", dialstatus, cause, offered=None)
    assert world.told() == ["saved: offer 1", f"-> not offered: {reason}"]
    world.asks("1000")
    assert world.told() == [f"-> FAIL {reason}"]


@pytest.mark.parametrize("through", ["PJSIP/gateway", ""])
def test_a_call_through_what_is_no_trunk_of_ours_is_not_offered(world: FarWorld, through: str) -> None:
    """An outside line: nobody can watch who is beyond it, and nobody will say when he is free."""
    world.fails_out("1000", "0123456", offered=CCBS, through=through)
    assert world.told() == ["saved: offer 1", f"-> not offered: {NOT_WATCHABLE}"]


def test_a_phone_that_is_dialled_is_watched_though_it_is_called_through(world: FarWorld) -> None:
    world.offer("1000", "2000", "BUSY", 17, devices=(phone("2000"),), through="PJSIP/2000")
    assert world.told() == ["saved: offer 1", "-> offer 1 CCBS"]
    assert world.store.offers[1].callee_devices == (phone("2000"),)


def test_devices_of_an_entry_are_not_watched_for_a_call_over_the_trunk(world: FarWorld) -> None:
    """The same number may be a phone here and one beyond."""
    world.directory.set("2000", devices=["PJSIP/desk"])
    world.fails_out("1000", "2000")
    assert (world.store.offers[1].callee_devices, world.store.offers[1].service) == ((), CCBS)


def test_the_policies_hold_across_the_trunk(world: FarWorld) -> None:
    world.directory.set("1001", cc_agent_policy="never")
    world.directory.set("2001", cc_monitor_policy="never")
    world.fails_out("1001", "2000")
    world.fails_out("1000", "2001")
    world.fails_in("in-1", "2001")
    world.far.of_callers = Settings(cc_agent_policy="never")
    world.fails_in("in-1", "2000")
    assert [e for e in world.told() if e.startswith("->")] == [
        "-> not offered: CALLER_POLICY_NEVER",
        "-> not offered: CALLEE_POLICY_NEVER",
        "-> not offered: CALLEE_POLICY_NEVER",
        "-> not offered: CALLER_POLICY_NEVER",
    ]


def test_what_was_no_number_is_not_offered_whatever_the_other_pbx_says(world: FarWorld) -> None:
    world.fails_out("1000", "", offered=CCBS)
    assert world.told() == ["saved: offer 1", "-> not offered: INVALID"]


def test_a_caller_beyond_is_known_by_his_call_and_never_asked_of_the_directory(world: FarWorld) -> None:
    world.fails_in("in-1", "2000")
    offer = world.store.offers[1]
    assert (offer.caller, offer.caller_devices) == ("7000@mxone", ())
    assert (offer.agent, offer.monitor, offer.call_in, offer.call_out) == ("mxone", "", "in-1", "")
    assert (offer.service, offer.callee_devices) == (CCBS, (phone("2000"),))


def test_a_caller_beyond_does_not_ask_by_a_code(world: FarWorld) -> None:
    world.fails_in("in-1", "2000")
    world.told()
    world.asks("mxone")
    world.cancels("mxone")
    world.pending("mxone")
    assert world.told() == ["-> FAIL CALLER_UNKNOWN"] * 3


def test_what_is_kept_of_a_call_goes_with_its_offer(world: FarWorld) -> None:
    for n in range(OFFERS_PER_CALLER + 1):
        world.fails_out("1000", "2000", call_out=f"c{n}")
    assert world.far.index == set(range(2, OFFERS_PER_CALLER + 2))
    assert len(world.store.kept) == OFFERS_PER_CALLER
    assert world.store.kept["heard", "2"] == '"of call c1"'
    world.wait(OFFER_MEMORY + 100)
    assert (world.store.offers, world.store.kept, world.far.index) == ({}, {}, set())


def test_an_offer_that_comes_late_can_be_asked_for(world: FarWorld) -> None:
    world.fails_out("1000", "2000", "CANCEL", 0, offered=None, call_out="c1")
    world.asks("1000")
    assert world.told()[-1] == f"-> FAIL {NOT_WATCHABLE}"
    world.far.offers["c1"] = CCNR
    world.service.event(lambda now: world.service.offered_late(1, now), keep=True)
    assert (world.store.offers[1].service, world.store.offers[1].reason) == (CCNR, "")
    world.asks("1000")
    assert "ask beyond mxone for 2000" in world.told()


@pytest.mark.parametrize("dialstatus", ["BUSY", "CONGESTION"])
def test_an_offer_that_comes_late_changes_nothing_that_was_refused_otherwise(
    world: FarWorld, dialstatus: str
) -> None:
    world.directory.set("1000", cc_agent_policy="never")
    world.fails_out("1000", "2000", dialstatus, 17, offered=None, call_out="c1")
    world.fails_out("1001", "2000", offered=None, call_out="c2")
    before = dict(world.store.offers)
    world.far.offers["c1"] = CCNR
    for id in (1, 2, 99):  # refused for another reason; still not offered there; unknown
        world.service.event(lambda now, id=id: world.service.offered_late(id, now))  # type: ignore[misc]
    assert world.store.offers == before


# ------------------------------------------------------------------------------- a callee beyond the trunk


def test_asked_accepted_ready_and_talked(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCBS",
        "saved: 2 OFFERED -> REQUESTED",
        "ask beyond mxone for 2000",
        "-> 2 at place 1",
    ]
    world.service.accepted(2, world.said)
    assert world.told() == []
    world.wait(1)
    world.accept(2)
    assert world.told() == ["saved: 2 REQUESTED -> QUEUED", "-> 2 QUEUED"]
    world.wait(600)
    world.says(2, IDLE)
    assert world.told() == ["ring 1000 for 2000: r1", "saved: 2 QUEUED -> READY"]
    world.taken("r1")
    world.answered("r1")
    world.wait(60)
    world.call_over("r1")
    assert world.told() == [
        "saved: 2 READY -> READY",
        "-> ring PJSIP/1000 for 15 s",
        "saved: 2 READY -> CALLING",
        "-> call 2000 in phones for PJSIP/1000",
        "saved: 2 CALLING -> COMPLETED",
        "-> 2 COMPLETED COMPLETED",
    ]
    world.asks("1000")
    assert world.told() == ["-> FAIL COMPLETED"]


def test_the_call_goes_through_the_trunks_endpoint(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    answers: list[object] = []
    world.service.caller_answered("r1", "Local/r1;2", answers.append)
    [target] = answers
    assert isinstance(target, Target)
    assert (target.endpoint, target.callee, target.device) == ("mxone", "2000", "PJSIP/1000")


@pytest.mark.parametrize(("timer", "rings"), [(5, 5), (15, 15), (20, 15), (60, 15)])
def test_he_rings_no_longer_than_the_other_pbx_waits(world: FarWorld, timer: float, rings: float) -> None:
    assert RING_AT_MOST == 15
    world.directory.set("1000", cc_recall_timer=timer)
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.told()
    world.taken("r1")
    assert world.told()[-1] == f"-> ring PJSIP/1000 for {rings} s"


def test_nobody_is_rung_before_the_other_pbx_has_accepted(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.far.presences[far_device(2, "callee")] = IDLE
    world.asks("1000")
    world.wait(3)
    assert world.rings() == []
    world.accept(2)
    assert len(world.rings()) == 1


def test_an_other_pbx_that_does_not_answer_ends_it_in_time_to_say_so(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.service.accepted(2, world.said)
    world.told()
    world.wait(ACCEPT_WITHIN - 0.01)
    assert world.told() == []
    world.wait(0.01)
    assert world.told() == ["saved: 2 REQUESTED -> ENDED", "-> FAIL NO_ANSWER"]
    assert "mxone" in world.store.log[-1].sentence
    world.asks("1000")
    assert "ask beyond mxone for 2000" in world.told(), "and may be tried again"


def test_an_other_pbx_that_refuses(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.service.accepted(2, world.said)
    world.told()
    world.apply(2, MonitorEnded("REFUSED_THERE", "it is not allowed there"))
    assert world.told() == ["saved: 2 REQUESTED -> ENDED", "-> FAIL REFUSED_THERE"]
    assert world.store.log[-1].sentence == "it is not allowed there"


def test_an_answer_in_the_very_turn_in_which_it_was_asked(world: FarWorld) -> None:
    """Beyond may know at once, before the script that asked can wait for it."""
    world.fails_out("1000", "2000")
    world.far.follows.append(lambda now: now and None)
    work = world.far.requested

    def refused_at_once(request: Request, offer: Offer, now: float) -> None:
        work(request, offer, now)
        end = MonitorEnded("ENDED_THERE", "the trunk is gone")
        world.far.follows.append(lambda now: world.service.apply(request, end, now))

    world.far.requested = refused_at_once  # type: ignore[method-assign]
    world.told()
    world.asks("1000")
    world.service.accepted(2, world.said)
    told = world.told()
    assert told[0] == "saved: 2 OFFERED -> REQUESTED, 2 REQUESTED -> ENDED"
    assert told[-1] == "-> FAIL ENDED_THERE"


def test_accepted_of_what_is_known_already(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.service.accepted(id, world.said)
    world.service.accepted(99, world.said)
    assert world.told() == [f"-> {id} QUEUED", "-> FAIL NO_SUCH_REQUEST"]


def test_two_who_wait_for_the_answer_are_both_told(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.service.accepted(2, world.said)
    world.asks("1000")
    world.service.accepted(2, world.said)
    assert world.told()[-1] == "-> already 2 at place 1"
    world.accept(2)
    assert world.told() == ["saved: 2 REQUESTED -> QUEUED", "-> 2 QUEUED", "-> 2 QUEUED"]
    world.wait(10)
    assert world.told() == []


@pytest.mark.parametrize(
    ("reach", "state"),
    [
        (lambda w: None, "REQUESTED"),
        (lambda w: w.accept(2), "QUEUED"),
        (lambda w: (w.accept(2), w.says(2, IDLE)), "READY"),
        (lambda w: (w.accept(2), w.says(2, IDLE), w.taken("r1")), "READY"),
    ],
)
def test_taken_back_at_every_step(world: FarWorld, reach: Callable[[FarWorld], object], state: str) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.service.accepted(2, world.said)
    reach(world)
    world.told()
    world.cancels("1000")
    told = world.told()
    assert told[0] == f"saved: 2 {state} -> ENDED"
    assert told[-1] == "-> 2 ENDED CANCELLED"
    assert ("stop r1" in told) == (state == "READY")
    assert ("-> FAIL CANCELLED" in told) == (state == "REQUESTED"), "whoever waits for the answer is told"


def test_a_cc_call_is_not_taken_back_but_by_the_operator(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    world.answered("r1")
    world.told()
    world.cancels("1000")
    world.service.cancel_id(id, world.said)
    assert world.told() == [
        "-> FAIL NO_CORE_INSTANCE",
        f"saved: {id} CALLING -> ENDED",
        f"-> {id} ENDED CANCELLED",
    ]


def test_the_other_pbx_ends_it_while_he_rings(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    world.told()
    world.apply(id, MonitorEnded("ENDED_THERE", "it watches him no longer"))
    assert world.told() == [f"saved: {id} READY -> ENDED", "stop r1"]
    world.answered("r1")
    assert world.told() == ["-> FAIL RECALL_UNKNOWN"]


def test_not_free_any_more_stops_the_ringing_and_keeps_the_place(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    world.told()
    world.far.presences[far_device(id, "callee")] = IN_USE
    world.apply(id, RecallLost("he is not free any more", pause=False))
    assert world.told() == [f"saved: {id} READY -> QUEUED", "stop r1"]
    assert (world.request(id).recalls, world.request(id).retry_at) == (0, 0.0)
    world.says(id, IDLE)
    assert world.told() == ["ring 1000 for 2000: r2", f"saved: {id} QUEUED -> READY"]


def test_a_caller_who_is_busy_when_the_other_is_free(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.set("1000", IN_USE)
    world.says(id, IDLE)
    assert world.told() == [f"saved: {id} QUEUED -> QUEUED"]
    assert world.request(id).suspended
    world.wait(60)
    world.set("1000", IDLE)
    assert world.told() == [
        f"saved: {id} QUEUED -> QUEUED, {id} QUEUED -> READY",
        "ring 1000 for 2000: r1",
    ]


def test_a_recall_nobody_answers_is_counted_and_tried_again(world: FarWorld) -> None:
    world.directory.set("1000", cc_max_recalls=2)
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    world.recall_failed("r1")
    world.told()
    world.wait(29)
    assert world.rings() == []
    world.wait(1)
    assert world.rings() == ["ring 1000 for 2000: r2"]
    world.taken("r2")
    world.recall_failed("r2")
    assert world.told()[-1] == f"-> {id} ENDED TOO_MANY_RECALLS"


def test_what_is_busy_again_keeps_the_place_and_needs_no_sign_of_life(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.says(id, IDLE)
    world.taken("r1")
    world.answered("r1")
    world.far.presences[far_device(id, "callee")] = IN_USE
    world.call_over("r1", "BUSY", 17)
    assert world.told()[-1] == f"-> {id} QUEUED"
    assert (world.request(id).recalls, world.request(id).sign_needed) == (1, False)
    world.says(id, IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_it_waits_no_longer_than_its_time(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    world.wait(4800)
    assert world.told() == [f"saved: {id} QUEUED -> ENDED"]
    assert world.request(id).reason == "EXPIRED"


def test_what_the_other_pbx_said_last(world: FarWorld) -> None:
    def said() -> object:
        answers: list[object] = []
        world.service.far_state(phone("1000"), Number("2000"), answers.append)
        return answers[0]

    assert said() == "UNKNOWN"
    world.fails_out("1000", "2000")
    world.asks("1000")
    assert said() == "UNKNOWN", "it has said nothing yet"
    world.accept(2)
    assert said() == "QUEUED"
    world.set("1000", IN_USE)
    world.says(2, IDLE)
    assert said() == "READY"
    world.set("1000", IDLE)
    assert (world.request(2).state, said()) == (State.READY, "READY")
    world.taken("r1")
    world.answered("r1")
    assert said() == "READY"
    world.call_over("r1")
    assert said() == "UNKNOWN"
    world.wants("1000", "2001")
    world.service.far_state(phone("1000"), Number("2001"), world.said)
    world.service.far_state(phone("9999"), Number("2001"), world.said)
    assert world.told()[-2:] == ["-> 'UNKNOWN'", "-> FAIL CALLER_UNKNOWN"], "that one is not beyond a trunk"


def test_no_phone_of_ours_is_watched_for_one_beyond(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    assert world.monitor.devices == {}
    world.says(id, IDLE)
    assert (world.monitor.devices, world.monitor.calls) == ({}, frozenset())
    world.taken("r1")
    assert world.monitor.calls == {"r1"}


def test_callers_here_and_callees_beyond_share_the_phone(world: FarWorld) -> None:
    """1000 waits for one here and one beyond; both are free at once: he is rung once."""
    id = world.camps("1000", "2000")
    world.set("2001", IN_USE)
    world.wants("1000", "2001")
    world.set("2001", IDLE)
    world.says(id, IDLE)
    assert world.rings() == ["ring 1000 for 2001: r1"]
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1")
    assert world.rings() == ["ring 1000 for 2001: r1", "ring 1000 for 2000: r2"]


# -------------------------------------------------------------------------------- a caller beyond the trunk


def test_a_caller_beyond_is_told_not_rung(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.wait(100)
    world.set("2000", IDLE)
    assert world.told() == [f"saved: {id} QUEUED -> READY"]
    ready = world.request(id)
    assert (ready.taken, ready.recall_ends - world.clock.now()) == (True, 20)
    assert world.monitor.calls == frozenset()
    world.apply(id, machine.CallerAnswered("SIP/cc-1"))
    world.far.calls["cc-1"] = ready.recall_id
    world.call_over(ready.recall_id)
    assert world.told() == [
        f"saved: {id} READY -> CALLING",
        f"saved: {id} CALLING -> COMPLETED",
        f"-> {id} COMPLETED COMPLETED",
    ]


def test_a_turn_beyond_that_nobody_uses_is_counted_and_comes_again_after_a_pause(world: FarWorld) -> None:
    world.far.of_callers = Settings(cc_recall_timer=20, cc_retry_timer=30, cc_max_recalls=2)
    world.directory.set("7000@mxone", cc_recall_timer=20, cc_retry_timer=30, cc_max_recalls=2)
    id = world.camped_on("in-1", "2000")
    world.set("2000", IDLE)
    world.wait(19.99)
    assert world.request(id).state is State.READY
    world.wait(0.01)
    assert (world.request(id).state, world.request(id).recalls) == (State.QUEUED, 1)
    world.wait(29.99)
    assert world.request(id).state is State.QUEUED
    world.wait(0.01)
    assert world.request(id).state is State.READY
    world.wait(20)
    assert (world.request(id).state, world.request(id).reason) == (State.ENDED, "TOO_MANY_RECALLS")
    assert world.rings() == []


def test_the_next_is_served_while_a_turn_beyond_pauses(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    assert world.rings() == [], "the older first"
    world.wait(20)
    assert world.rings() == ["ring 1000 for 2000: r2"]
    assert world.request(id).state is State.QUEUED


def test_suspended_in_his_turn_the_next_is_served_and_his_place_kept(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    world.far.presences[far_device(id, "caller")] = IN_USE
    world.told()
    world.apply(id, CallerBusy())
    told = world.told()
    assert told[0].startswith(f"saved: {id} READY -> QUEUED, ")
    assert told[1] == "ring 1000 for 2000: r2"
    assert (world.request(id).suspended, world.request(id).recalls) == (True, 0)
    world.taken("r2")
    world.recall_failed("r2")
    world.told()
    world.says(id, IDLE, "caller")
    assert world.told() == [f"saved: {id} QUEUED -> QUEUED, {id} QUEUED -> READY"]


def test_who_cannot_be_told_yet_holds_his_place(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.wants("1000", "2000")
    world.far.presences[far_device(id, "caller")] = None
    world.set("2000", IDLE)
    assert world.rings() == []
    world.says(id, IDLE, "caller")
    assert (world.request(id).state, world.rings()) == (State.READY, [])


def test_the_oldest_of_all_is_first_wherever_he_is(world: FarWorld) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.wait(1)
    far = world.camped_on("in-1", "2000")
    world.wait(1)
    world.wants("1001", "2000")
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1")
    assert (world.request(far).state, len(world.rings())) == (State.READY, 1)
    world.apply(far, machine.CallerAnswered("SIP/cc-1"))
    world.call_over("r2")
    assert [r.split(":")[0] for r in world.rings()] == ["ring 1000 for 2000", "ring 1001 for 2000"]


def test_an_earlier_place_is_an_earlier_turn(world: FarWorld) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    far = world.camped_on("in-1", "2000")
    world.apply(far, Cancelled("a new request of the same caller"))
    world.wait(1)
    again = world.subscribes("in-1", since=START - 5)
    world.far.presences[far_device(again, "caller")] = IDLE
    world.set("2000", IDLE)
    assert (world.request(again).state, world.rings()) == (State.READY, [])


def test_a_callers_place_beyond_counts_for_the_limits(world: FarWorld) -> None:
    world.directory.set("2000", cc_max_monitors=1)
    world.camped_on("in-1", "2000")
    world.wants("1000", "2000")
    assert world.told()[-1] == "-> FAIL CALLEE_QUEUE_FULL"
    world.fails_in("in-2", "2000")
    with pytest.raises(AssertionError, match="CALLEE_QUEUE_FULL|Refused"):
        world.subscribes("in-2")


def test_no_reply_needs_a_sign_of_life_for_a_caller_beyond_too(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000", "NOANSWER", 19)
    world.set("2000", IDLE)
    assert world.request(id).state is State.READY, "he was in use"
    other = world.camped_on("in-2", "2001", "NOANSWER", 19)
    world.cancels("1000")
    world.service.cancel_id(other, world.said)
    world.set("2002", IDLE)
    world.fails_in("in-3", "2002", "NOANSWER", 19)
    third = world.subscribes("in-3")
    world.far.presences[far_device(third, "caller")] = IDLE
    world.wait(10)
    assert world.request(third).state is State.QUEUED
    world.set("2002", IN_USE)
    world.set("2002", IDLE)
    assert world.request(third).state is State.READY


def test_a_cc_call_that_fails_is_told_by_the_dialplan_once(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.set("2000", IDLE)
    world.apply(id, machine.CallerAnswered("SIP/cc-1"))
    world.far.calls["cc-1"] = world.request(id).recall_id
    world.far.callers["cc-1"] = "7000"
    offers = dict(world.store.offers)
    world.told()
    world.set("2000", IN_USE)
    world.fails_in("cc-1", "2000")
    assert world.told() == [f"saved: {id} CALLING -> QUEUED", f"-> {id} QUEUED"]
    assert (world.request(id).recalls, world.request(id).sign_needed) == (1, False)
    assert world.store.offers == offers, "no other offer is made of it"
    world.far.calls.clear()
    world.fails_in("cc-1", "2000")
    assert world.told()[-1].startswith("-> offer"), "a call that comes when it is over is a call like any"


def test_do_not_disturb_at_the_cc_call_from_beyond(world: FarWorld) -> None:
    """Busy while his phone reads idle: only his next call says that he is free again."""
    id = world.camped_on("in-1", "2000")
    world.set("2000", IDLE)
    world.apply(id, machine.CallerAnswered("SIP/cc-1"))
    world.call_over(world.request(id).recall_id, "BUSY", 17)
    world.wait(60)
    assert (world.request(id).state, world.request(id).sign_needed) == (State.QUEUED, True)


# ----------------------------------------------------------------------------------------- through us, beyond


def test_between_two_trunks(world: FarWorld) -> None:
    """Both are beyond: one PBX is told what the other says, and no phone of ours is watched or rung."""
    world.far.offers["out-1"] = CCNR
    world.offer("mxone", "2000", "NOANSWER", 19, through="PJSIP/mxone", call_in="in-1", call_out="out-1")
    offer = world.store.offers[1]
    assert (offer.agent, offer.monitor, offer.call_in, offer.call_out) == ("mxone", "mxone", "in-1", "out-1")
    id = world.subscribes("in-1")
    assert (world.request(id).state, world.request(id).sign_needed) == (State.REQUESTED, False)
    assert world.request(id).caller_devices == (far_device(id, "caller"),)
    world.accept(id)
    world.far.presences[far_device(id, "caller")] = IDLE
    world.says(id, IDLE)
    assert (world.request(id).state, world.request(id).taken) == (State.READY, True)
    assert (world.monitor.devices, world.rings()) == ({}, [])
    world.far.presences[far_device(id, "callee")] = IN_USE
    world.apply(id, RecallLost("not free any more", pause=False))
    assert (world.request(id).state, [e for e in world.told() if e.startswith("stop")]) == (State.QUEUED, [])


# ------------------------------------------------------------------------------------ turns, time and saving


def test_what_changes_by_following_is_followed_in_the_same_turn(world: FarWorld) -> None:
    """He is passed over by the far side's word, and the next is selected at once, in one transaction."""
    id = world.camped_on("in-1", "2000")
    other = world.camped_on("in-2", "2000")

    def busy(now: float) -> None:
        ready = world.service.book.request(id)
        assert ready is not None and ready.state is State.READY
        world.far.presences[far_device(id, "caller")] = IN_USE
        world.service.apply(ready, CallerBusy(), now)

    world.far.follows.append(busy)
    world.set("2000", IDLE)
    assert world.told() == [f"saved: {id} QUEUED -> READY, {id} READY -> QUEUED, {other} QUEUED -> READY"]


def test_the_far_sides_next_instant_is_armed(world: FarWorld) -> None:
    world.camps("1000", "2000")
    followed: list[float] = []
    world.far.follows.append(followed.append)
    world.far.due = world.clock.now() + 7
    world.service.event(lambda now: setattr(world.service._turns, "stale", True))
    followed.clear()
    world.far.follows.append(followed.append)
    world.wait(7)
    assert followed == [START + 7]


def test_what_is_kept_is_saved_with_the_turn_or_taken_back_with_it(world: FarWorld) -> None:
    world.store.error = OSError("disk full")
    world.fails_out("1000", "2000", call_out="c1")
    assert world.told() == ["not saved", "-> FAIL STORE_FAILED"]
    assert (world.service.book.kept["heard"], world.store.kept) == ({}, {})
    world.store.error = None
    world.fails_out("1000", "2000", call_out="c2")
    assert world.store.kept == {("heard", "2"): '"of call c2"'}
    world.store.error = OSError("disk full")
    world.service.event(lambda now: world.service.keep("heard", "2", None))
    assert world.service.book.kept["heard"] == {"2": Note("of call c2")}
    world.service.event(lambda now: world.service.keep("heard", "2", Note("other")))
    assert world.service.book.kept["heard"] == {"2": Note("of call c2")}


def test_nothing_is_asked_beyond_that_is_not_saved(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.told()
    world.store.error = OSError("disk full")
    world.asks("1000")
    assert set(world.told()) == {"not saved", "-> FAIL STORE_FAILED"}
    world.store.error = None
    world.store.held = True
    world.asks("1000")
    assert world.told() == []
    world.store.held = False
    world.store.release()
    assert world.told()[-2:] == ["ask beyond mxone for 2000", "-> 3 at place 1"]


def test_whoever_waits_for_the_answer_is_told_when_it_is_saved(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.service.accepted(2, world.said)
    world.told()
    world.store.error = OSError("disk full")
    world.apply(2, Accepted())
    assert world.told() == ["not saved"]
    world.store.error = None
    world.wait(ACCEPT_WITHIN)
    assert world.told() == ["saved: 2 REQUESTED -> ENDED", "-> FAIL NO_ANSWER"]


def test_what_is_kept_is_loaded_at_a_restart(world: FarWorld) -> None:
    world.fails_out("1000", "2000", call_out="c1")
    world.restart()
    assert world.far.loaded == {("heard", "1"): '"of call c1"'}
    assert world.service.book.kept["heard"] == {"1": Note("of call c1")}


def test_a_restart_at_every_state(world: FarWorld) -> None:
    """A recall of ours that had not begun is begun anew; one beyond goes on; REQUESTED waits its 4 s out."""
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.wait(1)
    world.restart()
    assert world.request(2).state is State.REQUESTED
    world.accept(2)
    world.says(2, IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]
    world.restart()
    assert world.rings() == ["ring 1000 for 2000: r1", "ring 1000 for 2000: r2"]
    far = world.camped_on("in-1", "2001")
    world.set("2001", IDLE)
    ends = world.request(far).recall_ends
    world.restart()
    assert (world.request(far).state, world.request(far).recall_ends) == (State.READY, ends)
    world.apply(far, machine.CallerAnswered("SIP/cc-1"))
    world.restart()
    assert world.request(far).state is State.CALLING
    world.fails_out("1001", "2002")
    world.asks("1001")
    asked = world.service.book.last_id
    world.wait(1)
    world.restart()
    world.wait(ACCEPT_WITHIN - 1)
    assert world.request(asked).reason == "NO_ANSWER"


def test_an_instant_far_off_is_cut_at_a_restart(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    world.asks("1000")
    world.store.requests[2] = replace(
        world.store.requests[2], recall_ends=START + 1e9, service_ends=START + 1e9
    )
    world.restart()
    world.wait(12 * 3600)
    assert world.request(2).state is State.ENDED


def test_open_is_what_is_loaded() -> None:
    assert State.REQUESTED in OPEN


# -------------------------------------------------------------------------------------------- the scripts


PHONE, TRUNK = "PJSIP/1000-00000001", "PJSIP/mxone-0000000a"


def test_record_tells_what_went_over_the_trunk(world: FarWorld) -> None:
    world.far.offers["abc@192.0.2.1"] = CCNR
    made = ran(world, "record", PHONE, "2000", "NOANSWER", "19", "PJSIP/2000@mxone", "abc@192.0.2.1", "in@x")
    assert made == {
        "CC_OFFERED": "1",
        "CC_SERVICE": "CCNR",
        "CC_OFFER_ID": "1",
        "CC_OFFER_DIGIT": "",
        "CC_OFFER_REPEAT": "2",
        "CC_OFFER_WAIT": "4",
        "CC_ACK": "1",
    }
    offer = world.store.offers[1]
    assert (offer.monitor, offer.call_out, offer.call_in, offer.callee_devices) == (
        "mxone",
        "abc@192.0.2.1",
        "",
        (),
    )


def test_a_hint_here_does_not_watch_whom_the_other_pbx_watches(world: FarWorld) -> None:
    world.directory.set("2000", monitor="hint", hint="2000@phones")
    world.fails_out("1000", "2000")
    world.asks("1000")
    assert world.service.book.offers[1].callee_devices == ()
    assert (world.request(2).state, world.request(2).callee_devices) == (
        State.REQUESTED,
        (far_device(2, "callee"),),
    )
    assert not world.monitor.devices


def test_record_of_a_caller_beyond(world: FarWorld) -> None:
    made = ran(world, "record", TRUNK, "2000", "BUSY", "17", "PJSIP/2000", "", "in-1")
    assert made["CC_OFFERED"] == "1"
    assert (world.store.offers[1].caller, world.store.offers[1].call_in) == ("7000@mxone", "in-1")


def test_record_of_the_cc_call_of_a_caller_beyond(world: FarWorld) -> None:
    id = world.camped_on("in-1", "2000")
    world.set("2000", IDLE)
    world.apply(id, machine.CallerAnswered("SIP/cc-1"))
    world.far.calls["cc-1"] = world.request(id).recall_id
    made = ran(world, "record", TRUNK, "2000", "BUSY", "17", "PJSIP/2000", "", "cc-1")
    assert made == {"CC_OFFERED": "0", "CC_REASON": "RETAINED", "CC_ACK": "1"}


@pytest.mark.parametrize(
    ("dialled", "through", "who"),
    [
        ("PJSIP/2000@mxone", "PJSIP/mxone", "2000"),
        ("PJSIP/*82#@mxone", "PJSIP/mxone", "*82#"),
        ("PJSIP/mxone/sip:2000@192.0.2.10", "PJSIP/mxone", "2000"),
        ("PJSIP/mxone/sips:+49@[2001:db8::1]:5061;x=y", "PJSIP/mxone", "+49"),
        ("PJSIP/mxone/sip:192.0.2.10", "PJSIP/mxone", ""),
        ("PJSIP/2000", "PJSIP/2000", ""),
        ("PJSIP/mxone", "PJSIP/mxone", ""),
        ("PJSIP/2000@mxone&PJSIP/2001@mxone", "", ""),
        ("PJSIP/2000@mx one", "", ""),
        ("PJSIP/2000@mxone/sip:x", "", ""),
        ("SIP/2000@mxone", "", ""),
        ("Local/2000@phones", "", ""),
        ("-", "", ""),
        ("", "", ""),
        ("PJSIP/\n@mxone", "", ""),
        ("PJSIP/2000@mxone\n", "", ""),
    ],
)
def test_what_a_dial_string_goes_through(dialled: str, through: str, who: str) -> None:
    assert routes._through(dialled) == (through, who)


@pytest.mark.parametrize("call_id", ["a b", "a\nb", "x" * 256, "a(b)", "a'b", 'a"b', "ä", "a\udcff", "a,b"])
def test_a_call_id_with_what_is_in_none_is_refused(world: FarWorld, call_id: str) -> None:
    with pytest.raises(Invalid):
        routes._call_id(call_id)
    for place in (5, 6):
        args = ["2000", "BUSY", "17", "PJSIP/2000@mxone", "", ""]
        args[place - 1] = call_id
        assert ran(world, "record", PHONE, *args)["CC_REASON"] == "INVALID"
    assert world.store.offers == {}


def test_request_waits_until_the_other_pbx_has_accepted(world: FarWorld) -> None:
    world.fails_out("1000", "2000")
    script = Script(world, "request", PHONE)
    assert script.sets() is None
    world.wait(1)
    assert script.sets() is None
    world.accept(2)
    assert script.sets() == {
        "CC_REQUEST_RESULT": "SUCCESS",
        "CC_REQUEST_REASON": "",
        "CC_POSITION": "1",
        "CC_ACK": "1",
    }
    assert ran(world, "request", PHONE)["CC_REQUEST_REASON"] == "ALREADY_REQUESTED"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda w: w.wait(4), "NO_ANSWER"),
        (lambda w: w.apply(2, MonitorEnded("CALLEE_QUEUE_FULL", "too many")), "CALLEE_QUEUE_FULL"),
        (lambda w: w.cancels("1000"), "CANCELLED"),
        (lambda w: w.service.cancel_id(2, w.said), "CANCELLED"),
    ],
)
def test_request_says_why_it_was_not_accepted(
    world: FarWorld, end: Callable[[FarWorld], object], reason: str
) -> None:
    world.fails_out("1000", "2000")
    script = Script(world, "request", PHONE)
    end(world)
    assert script.sets() == {"CC_REQUEST_RESULT": "FAIL", "CC_REQUEST_REASON": reason, "CC_ACK": "1"}


def test_answered_names_the_trunks_endpoint(world: FarWorld) -> None:
    id = world.camps("1000", "2000")
    ids = iter(("123456789012345", "543210987654321"))
    world.service._new_recall_id = lambda: next(ids)
    world.says(id, IDLE)
    world.wants("1001", "2001")
    for recall, ring, via, exten in (
        ("123456789012345", "15", "mxone", "2000"),
        ("543210987654321", "20", "", "2001"),
    ):
        channel = f"Local/{recall}@cc-recall-00000001;2"
        assert ran(world, "recall", channel, recall)["CC_RING"] == ring
        made = ran(world, "answered", channel, recall)
        assert (made["CC_GO"], made["CC_VIA"], made["CC_TARGET_EXTEN"]) == ("1", via, exten)


def test_trunkstatus(world: FarWorld) -> None:
    assert ran(world, "trunkstatus", PHONE, "2000")["CC_TRUNK_STATUS"] == "UNKNOWN"
    id = world.camps("1000", "2000")
    assert ran(world, "trunkstatus", PHONE, "2000")["CC_TRUNK_STATUS"] == "QUEUED"
    world.set("1000", GONE)
    world.says(id, IDLE)
    assert ran(world, "trunkstatus", PHONE, "2000")["CC_TRUNK_STATUS"] == "READY"
    assert ran(world, "trunkstatus", "PJSIP/1001-00000001", "2000")["CC_TRUNK_STATUS"] == "UNKNOWN"
    for channel, *args in ((PHONE,), (PHONE, "2000'"), (TRUNK, "2000"), ("Local/x@y-00000001;1", "2000")):
        assert ran(world, "trunkstatus", channel, *args) == {"CC_TRUNK_STATUS": "UNKNOWN", "CC_ACK": "1"}


def test_a_recall_failed_of_a_turn_beyond_is_nobodys_to_tell(world: FarWorld) -> None:
    """Its recall id is told to nobody, so no channel of ours can have it; the table takes it all the same."""
    id = world.camped_on("in-1", "2000")
    world.set("2000", IDLE)
    made = step(world.request(id), RecallFailed("NOANSWER", 0), world.clock.now(), POLICY)
    assert made.request.state is State.QUEUED
