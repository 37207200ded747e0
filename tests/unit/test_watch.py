"""The watcher and its lines to Asterisk: which one leads, what is asked over it, and what is lost with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from fastagi.completion.model import Device, Number, Presence, hint
from fastagi.pbx.devicestate import DeviceStates
from fastagi.pbx.lamp import Lamps
from fastagi.pbx.watch import CALL_INTERVAL, LineLost, Watcher

ID = "123456789012345"
BOB, CAROL, HINT = Device("PJSIP/2000"), Device("PJSIP/3000"), hint("2000@phones")
CALLS = f"CHANNELS(Local/{ID}@cc-recall)"
NOBODY: frozenset[str] = frozenset()


def of(device: Device) -> str:
    """How one asks for a device."""
    return f"DEVICE_STATE({device})"


class FakeLine:
    """A line to an Asterisk whose ``state`` one writes; ``held``: what is said waits for `release`."""

    def __init__(self, clock: Clock, name: str, at_least: float = 0.0, beat: float = 2.0) -> None:
        self.beat, self.name = beat, name
        self.events = at_least > 0
        self._at_least = at_least
        self.state: dict[str, str] = {}
        self.lit: list[str] = []
        self.said: list[tuple[float, str]] = []
        self.idles: list[bool] = []
        self.error = ""
        self.held: set[str] = set()
        self._waiting: list[Deferred[None]] = []
        self._clock = clock

    def at_least(self, device: Device) -> float:
        return self._at_least

    async def ask(self, expression: str) -> str:
        await self._say(expression)
        return self.state.get(expression, "")

    async def set(self, name: str, value: str) -> None:
        await self._say(f"{name}={value}")
        self.state[name] = value

    async def hang_up(self, channel: str) -> None:
        await self._say(f"hang up {channel}")

    async def lamps(self) -> list[str]:
        await self._say("lamps")
        return self.lit

    async def check(self) -> None:
        await self._say("check")

    def idle(self, idle: bool) -> None:
        self.idles.append(idle)

    async def _say(self, what: str) -> None:
        self.said.append((self._clock.seconds(), what))
        if what in self.held:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting
        if self.error:
            raise LineLost(self.error)

    def release(self) -> None:
        """What waits is answered, and nothing waits any more."""
        self.held.clear()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def told(self) -> list[str]:
        """What was said since the last time, but for the beat."""
        said = [what for _, what in self.said if what != "check"]
        self.said.clear()
        return said


class Desk:
    """A watcher, and what came of it in the order in which it came."""

    def __init__(self, compared: bool = True) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        self.log: list[str] = []
        self.changes: list[Callable[[], None]] = []
        self.states = DeviceStates(self._changed, lambda: self.events.append("lost"), self.log.append)
        self.lamps = Lamps(dark=lambda extension: "NOT_INUSE")
        self.lamps.all_told()
        if compared:
            self.lamps.stop()
        self.watcher = Watcher(
            self.clock, self.states, self.lamps, gone=lambda recall: self.events.append(recall)
        )
        self.wanted = 0
        self.watcher.changed = self._wants

    def _changed(self, seen: Any) -> None:
        self.events.append({device: str(presence) for device, presence in seen.items()})
        for change in self.changes:
            change()

    def _wants(self) -> None:
        self.wanted += self.watcher.wanted()

    def line(self, name: str = "poll", **kind: float) -> FakeLine:
        return FakeLine(self.clock, name, **kind)

    def ami(self) -> FakeLine:
        return self.line("ami", at_least=10.0, beat=3600.0)

    def serve(self, line: FakeLine, always: bool = False) -> Deferred[None]:
        """Over this line from now on; what became of it."""
        over = Deferred.fromCoroutine(self.watcher.serve(line, always=always))
        over.addErrback(lambda failure: self.events.append(f"{line.name}: {failure.getErrorMessage()}"))
        return over

    def told(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)


# Which line leads


def test_the_newest_line_leads_and_nothing_is_lost_by_it() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll, ami = desk.line(), desk.ami()
    poll.state[of(BOB)] = ami.state[of(BOB)] = "INUSE"
    polling = desk.serve(poll)
    asking = desk.serve(ami, always=True)
    assert polling.called and not asking.called
    assert desk.told() == [{BOB: "in use"}], "no word of a loss, and not told again"
    poll.told()
    desk.wait(20)
    assert not poll.said and ami.told() == [of(BOB)] * 3
    ami.state[of(BOB)] = "NOT_INUSE"
    desk.wait(10)
    assert desk.told() == [{BOB: "idle"}]


def test_a_line_that_is_lost_is_told_of_once_and_another_is_wanted_if_somebody_waits() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    ami = desk.ami()
    ami.state[of(BOB)] = "INUSE"
    desk.serve(ami, always=True)
    desk.told()
    desk.wanted = 0
    ami.error = "gone"
    desk.wait(10)
    assert desk.told() == ["lost", "ami: gone"] and desk.wanted == 1
    assert desk.watcher.line is None
    poll = desk.line()
    poll.state[of(BOB)] = "INUSE"
    desk.serve(poll)
    assert desk.told() == [{BOB: "in use"}], "what was known is told again: the rules have forgotten it"


def test_nobody_waits_and_a_lost_line_is_not_missed() -> None:
    desk = Desk()
    ami = desk.ami()
    over = desk.serve(ami, always=True)
    desk.wait(5)
    over.cancel()
    assert desk.wanted == 0 and desk.told()[0] == "lost"


def test_a_line_that_is_not_for_always_ends_when_nobody_waits_any_more() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    over = desk.serve(desk.line())
    desk.watcher.watch({}, NOBODY)
    assert over.called and desk.told() == ["lost"]


def test_what_an_older_line_answers_late_is_not_known() -> None:
    """The rules were told that nothing is known: what comes then would never be looked at again."""
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    poll, ami = desk.line(), desk.ami()
    poll.held.add(of(BOB))
    poll.state[of(BOB)] = "NOT_INUSE"
    polling = desk.serve(poll)
    ami.error = "gone"
    desk.serve(ami, always=True)
    assert desk.told() == ["lost", "ami: gone"]
    poll.release()
    assert polling.called and desk.told() == []


def test_a_device_is_not_asked_for_more_often_after_another_line_has_taken_the_lead() -> None:
    """One question was under way over the older line then."""
    desk = Desk()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    for _ in range(5):
        poll = desk.line()
        poll.held.add(of(BOB))
        desk.serve(poll)
        newest = desk.line()
        desk.serve(newest)
        poll.release()
    newest.told()
    desk.wait(10)
    assert len(newest.told()) in (20, 21)


def test_a_recall_is_not_gone_by_one_look_over_each_of_two_lines() -> None:
    desk = Desk()
    desk.watcher.watch({}, frozenset({ID}))
    poll, ami = desk.line(), desk.ami()
    poll.held.add(CALLS)
    desk.serve(poll)
    desk.serve(ami, always=True)
    poll.release()
    assert desk.told() == []
    desk.clock.advance(CALL_INTERVAL)
    assert desk.told() == [ID]


# Hanging up


def test_a_hang_up_that_a_line_was_lost_over_is_said_again_over_the_next() -> None:
    desk = Desk()
    desk.watcher.hang_up("Local/1;2")
    assert desk.wanted == 1
    first = desk.line()
    first.error = "gone"
    desk.serve(first)
    assert desk.told() == ["lost", "poll: gone"] and desk.wanted == 2
    second = desk.line()
    over = desk.serve(second)
    assert second.told() == ["hang up Local/1;2"] and over.called and not desk.watcher.wanted()


def test_no_hang_up_is_forgotten_when_another_line_takes_the_lead_meanwhile() -> None:
    desk = Desk()
    poll, ami = desk.line(), desk.ami()
    poll.held.add("hang up Local/1;2")
    desk.watcher.hang_up("Local/1;2")
    polling = desk.serve(poll)
    ami.held.add("hang up Local/2;2")
    desk.serve(ami, always=True)
    desk.watcher.hang_up("Local/2;2")
    poll.release()
    assert polling.called and not desk.told(), "its own was done already"
    assert desk.watcher.wanted(), "the other is not"
    ami.release()
    assert ami.told() == ["hang up Local/1;2", "hang up Local/2;2"] and not desk.watcher.wanted()


def test_hanging_up_goes_before_all_else() -> None:
    desk = Desk(compared=False)
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    desk.watcher.show(Number("1000"), "INUSE")
    desk.watcher.hang_up("Local/1;2")
    line = desk.line()
    desk.serve(line)
    assert line.told()[0] == "hang up Local/1;2"


# How often


def test_over_a_line_that_tells_by_itself_asking_is_only_the_net() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 0.5, CAROL: 60.0}, frozenset({ID}))
    ami = desk.ami()
    desk.serve(ami, always=True)
    ami.said.clear()
    for _ in range(600):
        desk.clock.advance(0.1)
    at = [round(when) for when, what in ami.said if what == of(BOB)]
    assert at == [10, 20, 30, 40, 50, 60]
    assert [round(when) for when, what in ami.said if what == of(CAROL)] == [60]
    assert [round(when) for when, what in ami.said if what == CALLS][:3] == [2, 4, 6], "but of a recall"


def test_a_line_is_checked_in_time_whether_it_is_idle_or_not() -> None:
    desk = Desk()
    for devices in ({}, {BOB: 0.05}, {BOB: 3600.0}):
        line = desk.line(beat=2.0)
        desk.watcher.watch({Device(d): s for d, s in devices.items()}, NOBODY)
        began = desk.clock.seconds()
        over = desk.serve(line, always=True)
        desk.wait(7)
        assert [round(when - began) for when, what in line.said if what == "check"] == [2, 4, 6]
        over.cancel()


def test_a_check_that_fails_ends_the_line() -> None:
    desk = Desk()
    line = desk.line()
    desk.serve(line, always=True)
    line.error = "it is being stopped"
    desk.wait(2)
    assert desk.told() == ["lost", "poll: it is being stopped"]


def test_a_line_knows_when_there_is_nothing_to_ask() -> None:
    desk = Desk()
    desk.watcher.watch({BOB: 1.0}, NOBODY)
    line = desk.line(beat=60.0)
    desk.serve(line, always=True)
    assert line.idles == [True]
    desk.clock.advance(1)
    assert line.idles == [True, False, True]


def test_who_is_watched_more_eagerly_from_now_on_is_asked_for_at_once_and_once() -> None:
    desk = Desk()
    line = desk.line(beat=60.0)
    desk.watcher.watch({BOB: 60.0}, NOBODY)
    desk.serve(line, always=True)
    desk.wait(1)
    line.said.clear()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    desk.wait(1.2)
    assert [round(when, 1) for when, _ in line.said] == [1.0, 1.5, 2.0]


def test_who_is_no_longer_watched_and_then_again_is_not_asked_for_twice() -> None:
    desk = Desk()
    line = desk.line(beat=60.0)
    desk.serve(line, always=True)
    for _ in range(5):
        desk.watcher.watch({BOB: 1.0}, NOBODY)
        desk.watcher.watch({}, NOBODY)
    desk.watcher.watch({BOB: 1.0}, NOBODY)
    line.said.clear()
    desk.wait(3.2)
    assert len(line.said) == 3


# Hints


def test_a_hint_that_has_changed_is_asked_for_at_once() -> None:
    desk = Desk()
    ami = desk.ami()
    ami.state["EXTENSION_STATE(2000@phones)"] = "INUSE"
    desk.watcher.watch({HINT: 0.5}, NOBODY)
    desk.serve(ami, always=True)
    assert desk.told() == [{HINT: "in use"}]
    ami.state["EXTENSION_STATE(2000@phones)"] = "NOT_INUSE"
    desk.wait(1)
    desk.watcher.look_at_hints("2000")
    assert desk.told() == [{HINT: "idle"}]
    ami.told()
    for other in ("200", "20000", "3000", "", "Hint:2000@phones"):
        desk.watcher.look_at_hints(other)
    assert ami.told() == []


def test_a_hint_that_changes_often_is_not_asked_for_more_often_afterwards() -> None:
    desk = Desk()
    ami = desk.ami()
    desk.watcher.watch({HINT: 0.5}, NOBODY)
    desk.serve(ami, always=True)
    for _ in range(100):
        desk.watcher.look_at_hints("2000")
    ami.told()
    desk.wait(60)
    assert len(ami.told()) in (5, 6)


def test_a_hint_that_changes_while_it_is_asked_for_is_asked_for_again() -> None:
    desk = Desk()
    ami = desk.ami()
    desk.watcher.watch({HINT: 0.5}, NOBODY)
    ami.held.add("EXTENSION_STATE(2000@phones)")
    desk.serve(ami, always=True)
    desk.watcher.look_at_hints("2000")
    ami.release()
    assert ami.told() == ["EXTENSION_STATE(2000@phones)"] * 2


# Events


def test_an_event_is_a_reason_to_ask_and_what_it_says_is_no_fact() -> None:
    """Whoever calls can have events written."""
    desk = Desk()
    ami = desk.ami()
    ami.state[of(BOB)] = "INUSE"
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    desk.serve(ami, always=True)
    desk.told()
    ami.told()
    desk.watcher.look_at(BOB)
    assert desk.told() == [] and ami.told() == [of(BOB)], "a lie"
    ami.state[of(BOB)] = "NOT_INUSE"
    desk.watcher.look_at(BOB)
    assert desk.told() == [{BOB: "idle"}]
    ami.told()
    for other in (CAROL, "", "PJSIP/2000\n", "Custom:CC1000"):
        desk.watcher.look_at(other)
    assert ami.told() == [], "nobody waits for those"


def test_a_device_that_changes_often_is_not_asked_for_more_often_afterwards() -> None:
    desk = Desk()
    ami = desk.ami()
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    desk.serve(ami, always=True)
    for _ in range(100):
        desk.watcher.look_at(BOB)
    ami.told()
    desk.wait(60)
    assert len(ami.told()) in (5, 6)


def test_a_device_that_changes_while_it_is_asked_for_is_asked_for_again() -> None:
    desk = Desk()
    ami = desk.ami()
    ami.state[of(BOB)] = "INUSE"
    desk.watcher.watch({BOB: 0.5}, NOBODY)
    ami.held.add(of(BOB))
    desk.serve(ami, always=True)
    desk.watcher.look_at(BOB)
    ami.release()
    assert ami.told() == [of(BOB)] * 2


def test_a_device_newly_watched_is_asked_for_at_once() -> None:
    desk = Desk()
    ami = desk.ami()
    desk.serve(ami, always=True)
    ami.state[of(CAROL)] = "INUSE"
    desk.watcher.watch({CAROL: 0.5}, NOBODY)
    assert desk.told() == [{CAROL: "in use"}] and ami.told() == [of(CAROL)]


def test_to_watch_more_costs_nothing_while_a_line_leads_that_tells_by_itself() -> None:
    desk = Desk()
    eager = [desk.watcher.eager]
    desk.serve(desk.line(), always=True)
    eager.append(desk.watcher.eager)
    ami = desk.ami()
    desk.serve(ami, always=True)
    eager.append(desk.watcher.eager)
    ami.error = "gone"
    desk.watcher.hang_up("Local/1;2")
    assert [*eager, desk.watcher.eager] == [False, False, True, False]


# Faults


def test_what_cannot_be_handled_is_logged_and_the_others_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    line = desk.line(beat=60.0)
    line.state = {of(BOB): "INUSE", of(CAROL): "INUSE"}
    seen = desk.states.seen

    def broken(device: Device, name: str) -> None:
        if device == BOB:
            raise ZeroDivisionError
        seen(device, name)

    monkeypatch.setattr(desk.states, "seen", broken)
    with capturedLogs() as logged:
        desk.watcher.watch({BOB: 1.0, CAROL: 1.0}, NOBODY)
        over = desk.serve(line)
        desk.wait(1.1)
    assert desk.told() == [{CAROL: "in use"}] and not over.called
    assert line.told() == [of(BOB), of(CAROL)] * 2
    faults = [event["log_failure"].type for event in logged if "log_failure" in event]
    assert faults == [ZeroDivisionError] * 2


def test_who_watches_less_while_an_answer_is_told_is_understood() -> None:
    """The rules may change what they watch in the very moment in which they are told."""
    desk = Desk()
    desk.watcher.watch({BOB: 0.5, CAROL: 0.5}, NOBODY)
    desk.changes.append(lambda: desk.watcher.watch({}, NOBODY))
    line = desk.line()
    line.state[of(BOB)] = line.state[of(CAROL)] = "INUSE"
    over = desk.serve(line)
    assert over.called and line.told() == [of(BOB)] and desk.told() == [{BOB: "in use"}, "lost"]


def test_going_down_nothing_is_wanted_any_more() -> None:
    desk = Desk(compared=False)
    desk.watcher.watch({BOB: 0.5}, frozenset({ID}))
    desk.watcher.hang_up("Local/1;2")
    desk.watcher.show(Number("1000"), "INUSE")
    line = desk.line()
    line.held.add("hang up Local/1;2")
    over = desk.serve(line)
    desk.watcher.stop()
    assert not desk.watcher.wanted()
    line.release()
    assert over.called and line.told() == ["hang up Local/1;2"]


# Device states


class Told:
    """Device states, and what they tell."""

    def __init__(self, *watched: Device) -> None:
        self.told: list[Any] = []
        self.log: list[str] = []
        self.states = DeviceStates(self.told.append, lambda: self.told.append("lost"), self.log.append)
        self.states.watch(watched)


def test_a_hint_that_is_not_there_is_gone_and_that_is_said_and_told_once() -> None:
    told = Told(HINT)
    for _ in range(3):
        told.states.seen(HINT, "UNKNOWN")
    assert told.told == [{HINT: Presence.GONE}]
    assert told.log == ["there is no hint 2000@phones: who waits for it waits in vain"]


def test_a_hint_that_is_made_later_is_told() -> None:
    told = Told(HINT)
    for name in ("UNKNOWN", "NOT_INUSE", "UNKNOWN", "UNAVAILABLE"):
        told.states.seen(HINT, name)
    assert [presence for [presence] in map(dict.values, told.told)] == [
        Presence.GONE,
        Presence.IDLE,
        Presence.GONE,
    ]


def test_a_device_that_is_unknown_is_idle_as_asterisk_counts_it() -> None:
    told = Told(BOB)
    told.states.seen(BOB, "UNKNOWN")
    assert told.told == [{BOB: Presence.IDLE}] and not told.log


def test_a_state_that_is_none_changes_nothing() -> None:
    told = Told(BOB)
    told.states.seen(BOB, "INUSE")
    told.states.seen(BOB, "FREE\nfor all")
    assert told.told == [{BOB: Presence.IN_USE}] and len(told.log) == 1 and told.log[0].isprintable()


# Random lives


class Pbx:
    """One Asterisk, whose answers may come late, over lines that come and go."""

    def __init__(self, dice: random.Random) -> None:
        self.state: dict[str, str] = {}
        self.hung_up: set[str] = set()
        self.waiting: list[Deferred[None]] = []
        self.dice = dice
        self.good = False
        self.asked: list[str] = []

    def line(self, ami: bool) -> PbxLine:
        return PbxLine(self, 10.0 if ami else 0.0)


class PbxLine:
    """One that is lost now and then, before Asterisk has done what it was told, or behind it."""

    beat = 2.0

    def __init__(self, world: Pbx, at_least: float) -> None:
        self._at_least = at_least
        self.events = at_least > 0
        self._world = world

    def at_least(self, device: Device) -> float:
        return self._at_least

    async def ask(self, expression: str) -> str:
        self._world.asked.append(expression)
        value = self._world.state.get(expression, "NOT_INUSE")
        await self._answer()
        return value

    async def set(self, name: str, value: str) -> None:
        self._may_fail()
        self._world.state[name] = value
        await self._answer()

    async def hang_up(self, channel: str) -> None:
        self._may_fail()
        self._world.hung_up.add(channel)
        await self._answer()

    async def lamps(self) -> list[str]:
        names = [name.removeprefix("DEVICE_STATE(")[:-1] for name in self._world.state if "Custom" in name]
        await self._answer()
        return names

    async def check(self) -> None:
        await self._answer()

    def idle(self, idle: bool) -> None: ...

    async def _answer(self) -> None:
        if not self._world.good and self._world.dice.random() < 0.3:
            waiting: Deferred[None] = Deferred()
            self._world.waiting.append(waiting)
            await waiting
        self._may_fail()

    def _may_fail(self) -> None:
        if not self._world.good and self._world.dice.random() < 0.1:
            raise LineLost("gone")


@pytest.mark.parametrize("seed", range(200))
def test_random_lives(seed: int) -> None:
    """However lines come, go and hang: in the end every channel was hung up, every lamp and every level is true."""
    dice = random.Random(seed)
    desk, world = Desk(compared=False), Pbx(dice)
    known: dict[Device, str] = {}

    def lost() -> None:
        known.clear()

    desk.states = DeviceStates(known.update, lost, desk.log.append)
    desk.watcher = Watcher(desk.clock, desk.states, desk.lamps, gone=lambda recall: None)
    lamps: dict[str, str] = {}
    channels: set[str] = set()
    phones = [Device(f"PJSIP/{n}") for n in range(2000, 2004)]
    over: list[Deferred[None]] = []

    def ended(failure: Any) -> None:
        failure.trap(LineLost, CancelledError)

    def serve() -> None:
        line = world.line(ami=dice.random() < 0.5)
        begun = Deferred.fromCoroutine(desk.watcher.serve(line, always=dice.random() < 0.5))
        begun.addErrback(ended)
        over.append(begun)

    for _ in range(dice.randint(10, 60)):
        match dice.randrange(8):
            case 0:
                serve()
            case 1 if over:
                dice.choice(over).cancel()
            case 2:
                extension = str(dice.randint(1000, 1003))
                lamps[extension] = dice.choice(["INUSE", "NOT_INUSE", "RINGING"])
                desk.watcher.show(Number(extension), lamps[extension])
            case 3:
                channel = f"Local/{len(channels)};2"
                channels.add(channel)
                desk.watcher.hang_up(channel)
            case 4:
                desk.watcher.watch({d: 0.5 for d in phones if dice.random() < 0.5}, NOBODY)
            case 5:
                phone = dice.choice(phones)
                world.state[of(phone)] = dice.choice(["INUSE", "NOT_INUSE", "RINGING"])
                desk.watcher.look_at(phone)
            case 6 if world.waiting:
                world.waiting.pop(dice.randrange(len(world.waiting))).callback(None)
            case _:
                desk.clock.advance(dice.choice([0.1, 1.0, 11.0]))
        assert desk.watcher.line or not known, "known, and over no line"
    world.good = True
    desk.watcher.watch(dict.fromkeys(phones, 0.5), NOBODY)
    serve()
    for waiting in world.waiting:
        waiting.callback(None)
    desk.clock.advance(11)
    desk.clock.advance(11)
    assert world.hung_up == channels
    assert {e: world.state.get(f"DEVICE_STATE(Custom:CC{e})", "NOT_INUSE") for e in lamps} == lamps
    names = {"INUSE": Presence.IN_USE, "NOT_INUSE": Presence.IDLE, "RINGING": Presence.RINGING}
    assert known == {phone: names[world.state.get(of(phone), "NOT_INUSE")] for phone in phones}
    world.asked.clear()
    for _ in range(100):
        desk.clock.advance(0.1)
    assert world.asked.count(of(phones[0])) <= 21, "asked for more than once in its time"
    desk.watcher.stop()
