"""The lamps: what each shows by the rules, and that Asterisk is told of it over whichever line there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastagi.completion import lamps as rules
from fastagi.completion.machine import Cancelled
from fastagi.completion.model import Extension, Number, Service, Settings, State
from fastagi.directory import Directory
from fastagi.pbx.lamp import Lamps
from fastagi.pbx.watch import Watcher
from tests.unit.rules import IDLE, IN_USE, World, phone
from tests.unit.test_far_rules import FarWorld
from tests.unit.test_machine import request
from tests.unit.test_watch import NOBODY, Desk, FakeLine, of

DARK, OFFERED, ASKED, WAITS, FREE = "NOT_INUSE", "UNKNOWN", "UNAVAILABLE", "INUSE", "RINGINUSE"
BUSY_HIMSELF, RUNG, DONE, FAILED = "ONHOLD", "RINGING", "BUSY", "INVALID"
WORDS = {
    "cc_available_devstate": DARK,
    "cc_offered_devstate": OFFERED,
    "cc_caller_requested_devstate": ASKED,
    "cc_active_devstate": WAITS,
    "cc_callee_ready_devstate": FREE,
    "cc_caller_busy_devstate": BUSY_HIMSELF,
    "cc_recalling_devstate": RUNG,
    "cc_complete_devstate": DONE,
    "cc_failed_devstate": FAILED,
}
ALICE = Number("1000")


def colourful(world: World) -> World:
    """1000 and 1100 have a word of their own for each state."""
    for number in ("1000", "1100"):
        world.directory.set(number, **WORDS)
    return world


@pytest.fixture
def world() -> World:
    return colourful(World())


@pytest.fixture
def far() -> FarWorld:
    far = FarWorld()
    colourful(far)
    return far


# What it shows: one request


@pytest.mark.parametrize(
    ("state", "changes", "word"),
    [
        (State.REQUESTED, {}, ASKED),
        (State.QUEUED, {}, WAITS),
        (State.QUEUED, {"suspended": True}, BUSY_HIMSELF),
        (State.READY, {"taken": False}, FREE),
        (State.READY, {"taken": True}, RUNG),
        (State.CALLING, {"taken": True}, DONE),
    ],
)
def test_each_state_has_its_word(state: State, changes: dict[str, object], word: str) -> None:
    settings = Settings(**WORDS)  # type: ignore[arg-type]
    assert rules.of_request(request(state, **changes), settings)[1] == word


def test_the_nearer_to_a_call_the_stronger() -> None:
    """Whoever is rung must see it, whatever else he waits for."""
    rising = [
        request(State.CALLING, taken=True),
        request(State.REQUESTED),
        request(State.QUEUED),
        request(State.QUEUED, suspended=True),
        request(State.READY, taken=False),
        request(State.READY, taken=True),
    ]
    ranks = [rules.of_request(r, Settings())[0] for r in rising]
    assert ranks == sorted(set(ranks))


def test_a_life(world: World) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    assert world.lamp.told() == [f"1000 {OFFERED}"]
    world.asks("1000")
    assert world.lamp.told() == [f"1000 {WAITS}"]
    world.set("1000", IN_USE)
    world.set("2000", IDLE)
    assert world.lamp.told() == [f"1000 {BUSY_HIMSELF}"]
    world.set("1000", IDLE)
    assert world.lamp.told() == [f"1000 {FREE}"], "resumed and selected in one turn"
    world.taken("r1")
    assert world.lamp.told() == [f"1000 {RUNG}"]
    world.answered("r1")
    assert world.lamp.told() == [f"1000 {DONE}"]
    world.call_over("r1")
    assert world.lamp.told() == [f"1000 {DARK}"], "it showed already that it is done"


def test_with_asterisks_own_words_it_is_dark_but_while_he_waits() -> None:
    world = World()
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.set("2000", IDLE)
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1")
    assert world.lamp.told() == ["1000 INUSE", "1000 RINGING", "1000 NOT_INUSE"]


def test_what_has_failed_is_shown_for_a_moment_and_then_what_holds(world: World) -> None:
    world.wants("1000", "2000")
    world.lamp.told()
    world.cancels("1000")
    assert world.lamp.told() == [f"1000 {FAILED}", f"1000 {OFFERED}"], "he may still ask again"
    world.wait(20)
    assert world.lamp.told() == [f"1000 {DARK}"]


def test_what_has_failed_is_shown_though_another_is_waited_for(world: World) -> None:
    for callee in ("2000", "2001"):
        world.set(callee, IN_USE)
        world.wants("1000", callee)
    world.lamp.told()
    world.cancels("1000", "2001")
    assert world.lamp.told() == [f"1000 {FAILED}", f"1000 {WAITS}"]


def test_of_two_that_end_at_once_each_caller_sees_his_own(world: World) -> None:
    """Both waited for each other: one call is the end of both."""
    for caller, callee in (("1000", "1100"), ("1100", "1000")):
        world.set(callee, IN_USE)
        world.wants(caller, callee)
    world.wait(20)
    world.set("1100", IDLE)
    world.set("1000", IDLE)
    recall = world.agent.rung[-1]
    world.taken(recall.recall_id)
    world.answered(recall.recall_id)
    world.lamp.told()
    world.call_over(recall.recall_id)
    other = "1100" if recall.caller == "1000" else "1000"
    told = world.lamp.told()
    assert f"{other} {DONE}" in told and f"{other} {FAILED}" not in told
    assert world.lamp.lit[recall.caller] == world.lamp.lit[other] == DARK


# What it shows: several requests, and nobody's


def test_of_several_requests_the_nearest_to_a_call(world: World) -> None:
    world.set("2000", IN_USE)
    world.set("2001", IN_USE)
    world.wants("1000", "2000")
    world.wants("1000", "2001")
    assert world.lamp.lit == {ALICE: WAITS}
    world.set("2000", IDLE)
    world.taken("r1")
    assert world.lamp.lit == {ALICE: RUNG}
    world.recall_failed("r1")
    assert world.lamp.lit == {ALICE: WAITS}


def test_he_waits_for_another_while_he_talks(world: World) -> None:
    world.set("2001", IN_USE)
    world.wants("1000", "2001")
    world.wants("1000", "2000")
    world.taken("r1")
    world.answered("r1")
    assert world.lamp.lit == {ALICE: WAITS}


def test_nobody_sees_anothers(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.fails("1100", "2000")
    assert world.lamp.lit == {ALICE: WAITS, Number("1100"): OFFERED}
    world.wait(20)
    assert world.lamp.lit == {ALICE: WAITS, Number("1100"): DARK}


# An offer


def test_an_offer_is_shown_until_its_time_is_over(world: World) -> None:
    world.fails("1000", "2000")
    assert world.clock.armed()[0] == 20
    world.wait(19.9)
    assert world.lamp.told() == [f"1000 {OFFERED}"]
    world.wait(0.1)
    assert world.lamp.told() == [f"1000 {DARK}"]


def test_the_latest_call_counts(world: World) -> None:
    world.fails("1000", "2000")
    world.wait(10)
    world.fails("1000", "2001")
    world.wait(10)
    assert world.lamp.told() == [f"1000 {OFFERED}"], "the second is still on offer"
    world.wait(10)
    assert world.lamp.told() == [f"1000 {DARK}"]
    world.fails("1000", "2000")
    world.fails("1000", "2001", "CONGESTION", 34)
    assert world.lamp.told() == [f"1000 {OFFERED}", f"1000 {DARK}"], "*30 would not be for the first"


def test_an_offer_that_no_lamp_shows_takes_no_look_and_no_timer(world: World) -> None:
    world.directory.set("1000")
    world.fails("1000", "2000")
    assert world.lamp.told() == [] and min(world.clock.armed()) > 20


def test_an_offer_that_runs_out_while_he_waits_for_another_changes_nothing(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.fails("1000", "2001")
    world.lamp.told()
    world.wait(60)
    assert world.lamp.told() == []


def test_an_offer_that_comes_late_is_shown(far: FarWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        far.far, "offered", lambda offer, dialled: None
    )  # or what is kept of it is shown as well
    far.fails_out("1000", "2000", offered=None, call_out="c1")
    assert far.lamp.told() == []
    far.far.offers["c1"] = Service.CCBS
    far.service.event(lambda now: far.service.offered_late(1, now), keep=True)
    assert far.lamp.told() == [f"1000 {OFFERED}"]


def test_who_has_talked_is_not_offered_the_same_call(world: World) -> None:
    world.directory.set("1000", cc_offer_timer=3600, **WORDS)
    world.wants("1000", "2000")
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1")
    assert world.lamp.lit == {ALICE: DARK}


# Trunks


def test_one_beyond_is_asked_first(far: FarWorld) -> None:
    far.fails_out("1000", "2000")
    far.asks("1000")
    assert far.lamp.told() == [f"1000 {OFFERED}", f"1000 {ASKED}"]


def test_callers_beyond_a_trunk_have_no_lamp(far: FarWorld) -> None:
    far.fails_in("in-1", "2000")
    assert far.subscribes("in-1") == 2
    assert far.service.book.requests() and far.lamp.told() == []


# What was not saved, and what was before


def test_what_could_not_be_saved_is_not_shown(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.lamp.told()
    world.store.error = OSError("the disk is full")
    world.cancels("1000")
    world.fails("1100", "2000")
    world.asks("1100")
    assert world.lamp.told() == []
    world.store.error = None
    world.set("2000", IDLE)
    assert world.lamp.told() == [f"1000 {FREE}"], "and not that it has failed"


def test_what_is_being_saved_is_not_shown_yet(world: World) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    world.lamp.told()
    world.store.held = True
    world.asks("1000")
    assert world.lamp.told() == []
    world.store.release()
    assert world.lamp.told() == [f"1000 {WAITS}"]


def test_an_event_that_stumbles_shows_nothing_of_itself(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.lamp.told()

    def stumbles(now: float) -> object:
        world.service._apply_id(2, Cancelled("the operator"), now)
        raise ZeroDivisionError

    world.service.event(stumbles, world.said)
    assert world.lamp.told() == [] and world.request(2).state is State.QUEUED


def test_after_a_restart_what_is_not_dark_is_told(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.fails("1100", "2000")
    world.fails("1200", "2000")
    world.restart()
    assert world.lamp.told() == [f"1000 {WAITS}", f"1100 {OFFERED}"]
    world.wait(20)
    assert world.lamp.told() == [f"1100 {DARK}"]
    assert world.service.lamps.dark(Number("1300")) == "NOT_INUSE"


def test_an_extension_that_is_known_shows_at_once_that_there_is_nothing(world: World) -> None:
    """Asterisk was never told of its lamp, and takes it for NOT_INUSE."""
    world.directory.set("1000", cc_available_devstate="UNKNOWN")
    world.directory.set("1100", cc_available_devstate="UNKNOWN", cc_active_devstate="INUSE")
    world.set("2000", IN_USE)
    world.wants("1100", "2000")
    world.restart()
    assert sorted(world.lamp.told()) == ["1000 UNKNOWN", "1100 INUSE"]
    world.wait(60)
    assert world.lamp.told() == []


def test_one_who_has_no_entry_of_his_own_shows_it_when_he_has_called(world: World) -> None:
    nothing = Extension(Number("1200"), replace(Settings(), cc_available_devstate="UNKNOWN"))
    world.directory.extension = lambda number: nothing  # type: ignore[method-assign]
    world.restart()
    assert world.lamp.told() == [f"{number} UNKNOWN" for number in world.directory.entries]
    world.fails("1200", "2000")
    assert world.lamp.told() == ["1200 UNKNOWN"]


def test_those_who_have_an_entry_of_their_own() -> None:
    keys = ("1000", "_2XXX", "*70")
    directory = Directory(Settings(), {key: Extension(Number(key), Settings()) for key in keys})
    assert directory.numbers() == ["1000", "*70"]


# That Asterisk is told


def lamp_of(extension: str) -> str:
    return f"DEVICE_STATE(Custom:CC{extension})"


def lit(line: FakeLine, *extensions: str) -> FakeLine:
    """An Asterisk in which these lamps are lit."""
    line.lit = [f"Custom:CC{extension}" for extension in extensions]
    line.state = {lamp_of(extension): "INUSE" for extension in extensions}
    return line


def test_a_line_is_wanted_once_after_our_start() -> None:
    """Lamps may have been left lit."""
    desk = Desk(compared=False)
    assert desk.watcher.wanted()
    line = lit(desk.line(), "1000")
    over = desk.serve(line)
    assert line.told() == ["lamps", lamp_of("1000"), f"{lamp_of('1000')}=NOT_INUSE"]
    assert over.called and not desk.watcher.wanted()


def test_a_lamp_that_is_lit_does_not_go_out_for_a_moment_at_our_start() -> None:
    """AMI may be up before the rules have told which are lit."""
    desk = Desk(compared=False)
    desk.lamps = Lamps(dark=lambda extension: "NOT_INUSE")
    desk.watcher = Watcher(desk.clock, desk.states, desk.lamps, gone=desk.events.append)
    assert not desk.watcher.wanted()
    ami = lit(desk.ami(), "1000", "1100")
    desk.serve(ami, always=True)
    assert ami.told() == []
    desk.watcher.show(ALICE, "INUSE")
    desk.watcher.watch({}, NOBODY)
    assert ami.state == {lamp_of("1000"): "INUSE", lamp_of("1100"): "NOT_INUSE"}
    assert f"{lamp_of('1000')}=NOT_INUSE" not in ami.told()


def test_only_what_differs_is_set() -> None:
    desk = Desk(compared=False)
    desk.watcher.show(ALICE, "INUSE")
    line = lit(desk.line(), "1000", "1100")
    line.state[lamp_of("1100")] = "NOT_INUSE"
    desk.serve(line)
    assert line.told() == [lamp_of("1000"), "lamps", lamp_of("1000"), lamp_of("1100")]


def test_each_new_line_is_compared_with_what_was_shown_and_not_with_all_there_is() -> None:
    desk = Desk()
    desk.watcher.show(ALICE, "INUSE")
    desk.serve(desk.line())
    other = lit(desk.line(), "1100")
    desk.serve(other, always=True)
    assert other.told() == [lamp_of("1000"), f"{lamp_of('1000')}=INUSE"]


def test_a_lamp_is_told_over_the_line_there_is_and_a_line_is_wanted_for_it() -> None:
    desk = Desk()
    desk.watcher.show(ALICE, "INUSE")
    assert desk.wanted == 1
    line = desk.line()
    over = desk.serve(line)
    assert line.state == {lamp_of("1000"): "INUSE"} and over.called


def test_a_lamp_that_a_line_was_lost_over_is_told_over_the_next() -> None:
    desk = Desk()
    first, second = desk.line(), desk.line()
    desk.serve(first, always=True)
    first.error = "gone"
    desk.watcher.show(ALICE, "INUSE")
    assert desk.told() == ["lost", "poll: gone"] and desk.watcher.wanted()
    desk.serve(second)
    assert second.state == {lamp_of("1000"): "INUSE"} and not desk.watcher.wanted()


def test_changes_are_told_one_after_the_other() -> None:
    """Also those for a moment only."""
    desk = Desk()
    line = desk.line()
    desk.serve(line, always=True)
    for state in ("INVALID", "NOT_INUSE"):
        desk.watcher.show(ALICE, state)
    assert line.told() == [f"{lamp_of('1000')}=INVALID", f"{lamp_of('1000')}=NOT_INUSE"]


def test_a_change_while_it_is_compared_holds() -> None:
    desk = Desk(compared=False)
    line = lit(desk.line(), "1000")
    line.held.add(f"{lamp_of('1000')}=NOT_INUSE")
    desk.serve(line)
    desk.watcher.show(ALICE, "RINGING")
    line.release()
    assert line.state[lamp_of("1000")] == "RINGING" and not desk.watcher.wanted()


@pytest.mark.parametrize("held", [f"{lamp_of('1000')}=INUSE", lamp_of("1000"), "lamps"])
def test_no_lamp_is_forgotten_when_another_line_takes_the_lead_meanwhile(held: str) -> None:
    desk = Desk(compared=False)
    poll, ami = desk.line(), desk.ami()
    poll.held.add(held)
    if held == lamp_of("1000"):  # it is compared
        desk.watcher.show(ALICE, "INUSE")
    polling = desk.serve(poll, always=True)
    if held != lamp_of("1000"):
        desk.watcher.show(ALICE, "INUSE")
    ami.held.add(f"{lamp_of('1100')}=RINGING")
    desk.serve(ami, always=True)
    desk.watcher.show(Number("1100"), "RINGING")
    poll.release()
    assert polling.called and desk.told() == []
    ami.release()
    assert ami.state[lamp_of("1100")] == "RINGING" and ami.state[lamp_of("1000")] == "INUSE"
    assert not desk.lamps.pending()


def test_a_line_that_does_not_lead_any_more_sets_nothing_that_it_has_compared() -> None:
    """What it compared with may be old by now, and the newer line has looked already."""
    desk = Desk()
    desk.watcher.show(ALICE, "INUSE")
    poll, ami = desk.line(), desk.ami()
    poll.held.add(lamp_of("1000"))
    desk.serve(poll)
    desk.serve(ami, always=True)
    desk.watcher.show(ALICE, "RINGING")
    poll.release()
    assert poll.told() == [lamp_of("1000")] and ami.state[lamp_of("1000")] == "RINGING"


def test_what_is_asked_for_in_time_does_not_wait_for_a_thousand_lamps() -> None:
    desk = Desk(compared=False)
    line = lit(desk.line(), *map(str, range(1000, 2000)))
    desk.watcher.watch({phone("2000"): 60.0}, NOBODY)
    desk.serve(line)
    assert line.told()[0] == of(phone("2000"))


@pytest.mark.parametrize(
    "name",
    ["x", "1000)", "10 00", "1000\n", "1000,2000", "${SHELL(id)}", "１０００", "1" * 41, "", "A1000"],
)
def test_a_name_in_asterisks_list_that_is_no_extensions_is_left_alone(name: str) -> None:
    desk = Desk(compared=False)
    line = lit(desk.line(), name, "1000")
    over = desk.serve(line)
    assert line.told() == ["lamps", lamp_of("1000"), f"{lamp_of('1000')}=NOT_INUSE"] and over.called


def test_going_down_nothing_is_pending() -> None:
    lamps = Lamps(dark=lambda extension: "NOT_INUSE")
    lamps.show(ALICE, "INUSE", there=True)
    assert lamps.pending() and lamps.urgent()
    lamps.stop()
    assert not lamps.pending() and not lamps.urgent()


def test_while_no_line_is_there_nothing_piles_up() -> None:
    lamps = Lamps(dark=lambda extension: "NOT_INUSE")
    for state in ("INUSE", "RINGING", "INUSE"):
        lamps.show(ALICE, state, there=False)
    assert lamps.pending() and not lamps.urgent()
    lamps.new_line()
    assert lamps.pending() and not lamps.urgent()
    lamps.stop()
    assert not lamps.pending()
