"""A callee of several phones, a ring group, a caller who belongs to it, and a hint that says it for them."""

import random
from collections.abc import Callable, Iterator

import pytest

from fastagi.completion.model import Device, Presence, Request, Service, State
from tests.unit.rules import GONE, IDLE, IN_USE, RINGING, World
from tests.unit.test_service import check

B1, B2 = "PJSIP/b1", "PJSIP/b2"
NO_REPLY = ("NOANSWER", 19)


@pytest.fixture
def world() -> Iterator[World]:
    """2000 has two phones, b1 and b2."""
    world = World()
    world.directory.set("2000", [B1, B2])
    yield world
    check(world)


def wants(world: World, *failed: str | int) -> None:
    """1000 has called 2000 on both his phones, in vain, and asks; nothing is in the transcript."""
    dialstatus, cause = failed or ("BUSY", 17)
    world.wants("1000", "2000", str(dialstatus), int(cause), devices=[B1, B2])
    world.told()


def recalled(world: World, recall_id: str, dialstatus: str = "BUSY", cause: int = 17) -> None:
    """He picks up this recall, and the CC call ends so."""
    world.taken(recall_id)
    world.answered(recall_id)
    world.call_over(recall_id, dialstatus, cause)


# ------------------------------------------------------------------------------------------------- who is watched


def test_those_of_his_phones_are_watched_that_the_call_has_rung(world: World) -> None:
    world.directory.set("2000", ["PJSIP/2000", "PJSIP/2001"])
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    assert set(world.monitor.devices) == {"PJSIP/2000"}
    world.set("2001", IDLE)
    assert world.rings() == [], "nobody has called that one"
    world.set("2001", IN_USE)
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_all_of_his_phones_are_watched_when_the_call_has_rung_none_that_can_be(world: World) -> None:
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    world.wants("1000", "2000", devices=[])
    assert set(world.monitor.devices) == {B1, B2}


def test_a_phone_that_is_not_in_his_entry_is_watched_when_the_call_was_to_ring_it(world: World) -> None:
    world.set("2002", IN_USE)
    world.wants("1000", "2000", devices=["PJSIP/2002"])
    assert set(world.monitor.devices) == {"PJSIP/2002"}


def test_a_ring_group_needs_no_entry(world: World) -> None:
    world.set("2100", IN_USE)
    world.set("2200", IN_USE)
    world.wants("1000", "6000", devices=["PJSIP/2100", "PJSIP/2200"])
    assert set(world.monitor.devices) == {"PJSIP/2100", "PJSIP/2200"}
    world.set("2200", IDLE)
    assert world.rings() == ["ring 1000 for 6000: r1"]


# -------------------------------------------------------------------------------------------------- when he is free


def test_who_was_busy_is_free_when_one_of_his_phones_is(world: World) -> None:
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    wants(world)
    assert world.rings() == []
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_who_was_busy_with_one_phone_idle_is_free_at_once(world: World) -> None:
    world.set("b1", IN_USE)
    world.wants("1000", "2000", devices=[B1, B2])
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_who_did_not_answer_is_free_when_he_puts_down_the_one_he_used_since(world: World) -> None:
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    world.wait(60)
    assert world.rings() == [], "b1 has been idle all along: it has rung, and nobody came"
    world.set("b1", RINGING)
    world.wait(5)
    world.set("b1", IDLE)
    assert world.rings() == [], "a stranger's call has rung it, and nobody came again"
    world.set("b1", IN_USE)
    world.wait(5)
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_call_begun_before_he_was_asked_for_is_a_sign_when_it_ends(world: World) -> None:
    """b1 and b2 talk; he did not answer for call waiting, and puts b1 down later."""
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    world.wait(60)
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_who_did_not_answer_is_not_free_by_ringing_alone(world: World) -> None:
    wants(world, *NO_REPLY)
    for phone in ("b1", "b2"):
        world.set(phone, RINGING)
        world.set(phone, IDLE)
    assert world.rings() == [] and world.request(2).sign_needed
    world.set("b1", IN_USE)
    assert world.rings() == []
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_who_did_not_answer_is_free_when_nobody_talks_any_more(world: World) -> None:
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    world.wait(60)
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_phone_that_was_not_registered_is_no_sign(world: World) -> None:
    world.set("b1", GONE)
    world.set("b2", GONE)
    wants(world, "CHANUNAVAIL", 3)
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"], "one of them is back"


@pytest.mark.parametrize(("dialstatus", "cause"), [("BUSY", 17), NO_REPLY, ("CHANUNAVAIL", 21)])
def test_a_call_that_failed_with_one_idle_and_one_in_use_does_not_come_round_at_once(
    world: World, dialstatus: str, cause: int
) -> None:
    """Do-not-disturb on b1 while b2 talks: both levels stay, for hours."""
    world.set("b2", IN_USE)
    wants(world)
    recalled(world, "r1", dialstatus, cause)
    assert world.request(2).state is State.QUEUED
    world.told()
    world.wait(4000)
    assert world.rings() == []
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"], "nobody talks any more"


def test_a_call_that_failed_with_one_idle_waits_for_that_one_to_be_used_too(world: World) -> None:
    world.set("b2", IN_USE)
    wants(world)
    recalled(world, "r1")
    world.told()
    world.set("b1", IN_USE)
    world.wait(1)
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"], "he is at b1, and b2 still talks"


def test_a_call_that_failed_with_all_in_use_waits_for_the_first_put_down(world: World) -> None:
    wants(world)
    world.taken("r1")
    world.answered("r1")
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    world.call_over("r1", "BUSY", 17)
    assert not world.request(2).sign_needed
    world.told()
    world.wait(60)
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_a_call_that_failed_with_all_idle_waits_for_a_sign(world: World) -> None:
    wants(world)
    recalled(world, "r1")
    world.told()
    world.wait(4000)
    assert world.rings() == []
    world.set("b1", IN_USE)
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


@pytest.mark.parametrize(("dialstatus", "cause"), [NO_REPLY, ("CANCEL", 0), ("CHANUNAVAIL", 21)])
@pytest.mark.parametrize("seen", ["before", "after"])
def test_a_phone_that_the_call_has_rung_in_vain_does_not_ring_it_again(
    world: World, dialstatus: str, cause: int, seen: str
) -> None:
    """Whether the end of its ringing is read before the dialplan tells of the call, or after."""
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    wants(world)
    world.set("b1", IDLE)
    world.taken("r1")
    world.answered("r1")
    world.set("b1", RINGING)
    world.wait(20)
    if seen == "before":
        world.set("b1", IDLE)
    world.call_over("r1", dialstatus, cause)
    world.wait(0.3)
    world.set("b1", IDLE)
    world.told()
    world.wait(4000)
    assert world.rings() == [] and world.request(2).recalls == 1
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def both_used(world: World) -> None:
    """1000 waits for him while both are in use; whoever has put his down is left alone for 5 s."""
    world.directory.set("2000", [B1, B2], cc_guard_timer=5)
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    wants(world)


def test_a_phone_taken_up_again_within_the_pause_makes_nobody_free(world: World) -> None:
    both_used(world)
    world.set("b1", IDLE)
    world.wait(3)
    world.set("b1", IN_USE)
    world.wait(60)
    assert world.rings() == []
    world.set("b2", IDLE)
    world.wait(4)
    world.set("b1", IDLE)
    world.wait(4.9)
    assert world.rings() == [], "none is in use: from the last"
    world.wait(0.1)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_the_pause_of_one_does_not_wait_for_that_of_another_which_is_used_again(world: World) -> None:
    both_used(world)
    world.set("b1", IDLE)
    world.wait(2)
    world.set("b2", IDLE)
    world.wait(1)
    world.set("b2", IN_USE)
    world.wait(1.9)
    assert world.rings() == []
    world.wait(0.1)
    assert world.rings() == ["ring 1000 for 2000: r1"]


# -------------------------------------------------------------------------------------------- restart, and no source


def lost_and_found(world: World) -> None:
    """The source of device states is gone for a while."""
    world.service.levels_lost()
    world.monitor.told.clear()
    world.wait(1)


def restarted(world: World) -> None:
    world.restart()


@pytest.fixture(params=[restarted, lost_and_found], ids=["restart", "no source"])
def breaks(request: pytest.FixtureRequest) -> Callable[[World], None]:
    what: Callable[[World], None] = request.param
    return what


def test_a_break_before_any_sign(world: World, breaks: Callable[[World], None]) -> None:
    wants(world, *NO_REPLY)
    breaks(world)
    assert world.rings() == []
    world.set("b1", IN_USE)
    breaks(world)
    assert world.rings() == []
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


@pytest.mark.parametrize("then", ["b1", "b2"])
def test_a_break_while_the_other_phone_talks(
    world: World, breaks: Callable[[World], None], then: str
) -> None:
    """b1 idle all along, b2 in use: after it, either is enough, b1 used afresh or b2 put down."""
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    assert not world.request(2).sign_needed and world.request(2).idle_after > 0
    breaks(world)
    world.wait(60)
    assert world.rings() == []
    world.set(then, IN_USE)
    world.set(then, IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def put_down_while_the_caller_talked(world: World) -> None:
    """b1 was put down since, b2 is in use: b1's turn has passed, and 1000 is still called for."""
    world.set("1000", IN_USE)
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    world.set("b1", IN_USE)
    world.wait(1)
    world.set("b1", IDLE)
    assert world.request(2).suspended


def test_a_restart_forgets_which_phone_was_put_down_and_waits_for_the_other(world: World) -> None:
    """Only b1's instant knew, and nothing is guessed."""
    put_down_while_the_caller_talked(world)
    world.restart()
    world.set("1000", IDLE)
    world.wait(60)
    assert world.rings() == []
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_without_a_restart_it_is_known(world: World) -> None:
    put_down_while_the_caller_talked(world)
    lost_and_found(world)
    world.set("1000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_phone_put_down_while_there_was_no_source_was_put_down_since(world: World) -> None:
    wants(world, *NO_REPLY)
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    world.blind = True
    world.service.levels_lost()
    world.monitor.told.clear()
    world.wait(10)
    world.set("b1", IDLE)
    world.blind = False
    world.look()
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_break_of_one_who_was_busy(world: World, breaks: Callable[[World], None]) -> None:
    world.set("1000", IN_USE)
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    wants(world)
    world.set("b1", IDLE)
    breaks(world)
    assert world.rings() == []
    world.set("1000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"], "one idle is enough, since whenever"


def test_a_break_after_a_call_that_failed(world: World, breaks: Callable[[World], None]) -> None:
    world.set("b2", IN_USE)
    wants(world)
    recalled(world, "r1")
    world.told()
    breaks(world)
    world.wait(4000)
    assert world.rings() == []
    world.set("b2", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_a_clock_that_was_wrong_keeps_nobody_waiting(world: World) -> None:
    """An instant of tomorrow, by which no phone would ever count as put down since, is cut to now."""
    world.set("b2", IN_USE)
    wants(world, *NO_REPLY)
    world.clock.move(-86400)
    world.restart()
    world.wait(1)
    world.set("b1", IN_USE)
    world.set("b1", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_before_all_his_phones_are_read_nothing_is_said(world: World) -> None:
    world.set("b1", IN_USE)
    wants(world, *NO_REPLY)
    world.phones[Device(B2)] = None
    world.restart()
    world.set("b1", IDLE)
    assert world.rings() == []
    world.set("b2", GONE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


# ------------------------------------------------------------------------------------------- the caller belongs to it


def group(world: World, *members: str) -> None:
    world.wants("1000", "6000", devices=[f"PJSIP/{member}" for member in members])


def test_the_callers_own_phone_is_no_phone_of_the_group(world: World) -> None:
    world.set("2100", IN_USE)
    world.set("2200", IN_USE)
    group(world, "1000", "2100", "2200")
    assert world.request(2).callee_devices == ("PJSIP/2100", "PJSIP/2200")
    world.told()
    world.set("2100", IDLE)
    recalled(world, world.request(2).recall_id, "ANSWER", 16)
    assert world.told()[-1] == "-> 2 COMPLETED COMPLETED"


def test_the_phone_from_which_he_called_is_left_out_even_if_it_is_not_of_his_entry(world: World) -> None:
    world.directory.set("1000", ["PJSIP/1000", "PJSIP/soft"])
    world.set("2100", IN_USE)
    group(world, "1000", "soft", "2100")
    assert world.request(2).callee_devices == ("PJSIP/2100",)


def test_when_nobody_else_is_in_the_group_he_has_called_himself(world: World) -> None:
    group(world, "1000")
    assert [e for e in world.told() if e.startswith("->")] == [
        "-> not offered: CALLER_IS_CALLEE",
        "-> FAIL CALLER_IS_CALLEE",
    ]


def test_his_own_number_is_his_own_whoever_rings(world: World) -> None:
    """Follow-me: his number rings a colleague. Called back for that, he would call himself."""
    world.wants("1000", "1000", devices=["PJSIP/2100"])
    assert world.told()[-1] == "-> FAIL CALLER_IS_CALLEE"


def test_another_reason_comes_first(world: World) -> None:
    world.directory.set("6000", cc_monitor_policy="never")
    group(world, "1000")
    world.fails("1000", "6001", "CONGESTION", 34, devices=["PJSIP/1000"])
    said = [e for e in world.told() if "not offered" in e]
    assert said == ["-> not offered: CALLEE_POLICY_NEVER", "-> not offered: CONGESTION"]


def test_two_members_who_wait_for_the_group_are_called_one_after_the_other(world: World) -> None:
    """Each is a phone of the other's group: one turn takes both."""
    for phone in ("2100", "2200"):
        world.set(phone, IN_USE)
    world.wants("2100", "6000", devices=["PJSIP/2100", "PJSIP/2200"])
    world.wants("2200", "6000", devices=["PJSIP/2100", "PJSIP/2200"])
    world.told()
    for phone in ("2100", "2200"):
        world.set(phone, IDLE)
    assert world.rings() == ["ring 2100 for 6000: r1"]
    recalled(world, "r1", "ANSWER", 16)
    assert world.rings() == ["ring 2100 for 6000: r1", "ring 2200 for 6000: r2"]


# --------------------------------------------------------------------------------------------------------- hints


def test_a_hint_is_watched_instead_of_his_phones(world: World) -> None:
    world.directory.set("2000", [B1, B2], monitor="hint")
    world.set_hint("2000@phones", IN_USE)
    wants(world)
    assert set(world.monitor.devices) == {"Hint:2000@phones"}
    world.set("b1", IDLE)
    assert world.rings() == []
    world.set_hint("2000@phones", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_the_entry_may_name_another_hint(world: World) -> None:
    world.directory.set("2000", monitor="hint", hint="7*2000@ext-local")
    world.set_hint("7*2000@ext-local", IN_USE)
    wants(world)
    assert set(world.monitor.devices) == {"Hint:7*2000@ext-local"}


def test_a_hint_says_nothing_where_it_is_not_asked_for(world: World) -> None:
    world.directory.set("2000", [B1], hint="2000@ext-local")
    world.set("b1", IN_USE)
    wants(world)
    assert set(world.monitor.devices) == {B1, B2}, "those that were dialled"


def test_whatever_was_dialled_a_hint_can_watch_it(world: World) -> None:
    """A queue, a Local channel: no phone, so without the hint nobody could."""
    for monitor in ("device", "hint"):
        world.directory.set("2500", monitor=monitor)
        world.fails("1000", "2500", devices=[])
    said = [e for e in world.told() if e.startswith("->")]
    assert said == ["-> not offered: CALLEE_NOT_WATCHABLE", "-> offer 2 CCBS"]


@pytest.mark.parametrize("devices", [[], [B1, B2]], ids=["no entry", "two phones"])
def test_a_hint_does_not_say_that_he_is_logged_in_again(world: World, devices: list[str]) -> None:
    """He was busy, and has unplugged his phone: a hint with Custom:DND2000 in it reads idle."""
    world.directory.set("2000", devices, monitor="hint")
    phones = devices or ["PJSIP/2000"]
    world.set_hint("2000@phones", IN_USE)
    wants(world)
    for name in phones:
        world.set(name.removeprefix("PJSIP/"), GONE)
    world.set_hint("2000@phones", IDLE)
    recalled(world, "r1", "CHANUNAVAIL", 20)
    world.told()
    assert world.request(2).callee_devices == tuple(phones)
    world.wait(4000)
    assert world.rings() == []
    world.restart()
    world.set(phones[-1].removeprefix("PJSIP/"), IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


@pytest.mark.parametrize(("dialstatus", "cause"), [("BUSY", 17), NO_REPLY, ("CHANUNAVAIL", 21)])
def test_a_hint_stays_watched_when_the_call_fails_otherwise(
    world: World, dialstatus: str, cause: int
) -> None:
    world.directory.set("2000", [B1, B2], monitor="hint")
    wants(world)
    recalled(world, "r1", dialstatus, cause)
    assert world.request(2).callee_devices == ("Hint:2000@phones",)


@pytest.mark.parametrize(("number", "devices"), [("*7000", []), ("7000", ["PJSIP/1000"])])
def test_a_hint_stays_watched_where_no_phone_of_another_is_known(
    world: World, number: str, devices: list[str]
) -> None:
    world.directory.set("1000", ["PJSIP/1000"])
    world.directory.set(number, devices, monitor="hint")
    world.wants("1000", number, devices=[])
    recalled(world, "r1", "CHANUNAVAIL", 20)
    assert world.request(2).callee_devices == (f"Hint:{number}@phones",)


def test_a_hint_of_one_who_did_not_answer_must_first_be_in_use(world: World) -> None:
    world.directory.set("2000", monitor="hint")
    wants(world, *NO_REPLY)
    world.wait(60)
    for presence in (RINGING, IDLE, GONE, IDLE):
        world.set_hint("2000@phones", presence)
    assert world.rings() == []
    world.set_hint("2000@phones", IN_USE)
    world.set_hint("2000@phones", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_hint_outlives_a_restart(world: World) -> None:
    world.directory.set("2000", monitor="hint")
    world.set_hint("2000@phones", IN_USE)
    wants(world)
    world.restart()
    assert set(world.monitor.devices) == {"Hint:2000@phones"}
    world.set_hint("2000@phones", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_hint_that_is_not_read_says_nothing(world: World) -> None:
    world.directory.set("2000", monitor="hint")
    world.set_hint("2000@phones", None)
    wants(world)
    world.wait(60)
    assert world.rings() == []


def test_his_own_hint_is_his_own(world: World) -> None:
    world.directory.set("1000", monitor="hint")
    world.wants("1000", "1000", devices=[])
    assert world.told()[-1] == "-> FAIL CALLER_IS_CALLEE"


@pytest.mark.parametrize("both", [False, True], ids=["one by hint", "both by hint"])
def test_two_who_wait_for_each_other_by_hint_are_connected_once(world: World, both: bool) -> None:
    """Their devices may have nothing in common: the numbers tell that the turns would overlap."""
    world.directory.set("2001", monitor="hint")
    if both:
        world.directory.set("1000", monitor="hint")
    for phone in ("1000", "2001"):
        world.set(phone, IN_USE)
        world.set_hint(f"{phone}@phones", IN_USE)
    world.wants("1000", "2001")
    world.wants("2001", "1000")
    world.told()
    for phone in ("1000", "2001"):
        world.set_hint(f"{phone}@phones", IDLE)
        world.set(phone, IDLE)
    assert world.rings() == ["ring 1000 for 2001: r1"]
    world.wait(9)
    assert len(world.rings()) == 1
    recalled(world, "r1", "ANSWER", 16)
    assert {r.reason for r in world.store.requests.values()} == {"COMPLETED", "FULFILLED"}
    world.wait(60)
    assert len(world.rings()) == 1


def test_one_who_is_rung_is_nobodys_callee_by_hint_meanwhile(world: World) -> None:
    """1000 is being called back; 2002 waits for 1000, whose hint does not show it yet."""
    world.directory.set("1000", monitor="hint")
    world.set("2001", IN_USE)
    world.set_hint("1000@phones", IN_USE)
    world.wants("1000", "2001")
    world.wants("2002", "1000")
    world.set("2001", IDLE)
    world.set_hint("1000@phones", IDLE)
    assert world.rings() == ["ring 1000 for 2001: r1"]
    recalled(world, "r1", "ANSWER", 16)
    assert world.rings()[1:] == ["ring 2002 for 1000: r2"]


# -------------------------------------------------------------------------------------------------- random lives


@pytest.mark.parametrize("seed", range(60))
def test_random_lives_of_a_group(seed: int) -> None:
    """Whatever the phones and the server do: no recall that the levels do not allow, and nobody waits for ever."""
    dice = random.Random(seed)
    world = World()
    phones = [Device(f"PJSIP/21{n:02}") for n in range(3)]
    used: dict[Device, float] = {}
    """When each was last in use, as somebody sees who never blinks."""
    failed: dict[int, float] = {}

    def rung(request: Request) -> None:
        levels = {phone: world.phones.get(phone, IDLE) for phone in request.callee_devices}
        idle = [phone for phone, presence in levels.items() if presence is IDLE]
        assert idle, "nobody can answer"
        since = failed.get(request.id, request.asked_at if request.service is Service.CCNR else 0)
        if {IN_USE, RINGING} & set(levels.values()) and since:
            assert any(used.get(phone, 0) > since for phone in idle), "idle all along"

    world.agent.on_recall = rung

    def turn(presence: Presence, phone: Device) -> None:
        if IN_USE in (presence, world.phones.get(phone)):
            used[phone] = world.clock.now()
        world.phones[phone] = presence
        world.look()

    def finish(dialstatus: str) -> None:
        for request in [r for r in world.store.requests.values() if r.state is State.READY]:
            failed[request.id] = world.clock.now()
            recalled(world, request.recall_id, dialstatus)

    for caller in ("1000", "1100", "2100"):
        for phone in phones:
            turn(dice.choice((IDLE, IN_USE)), phone)
        some = dice.sample(phones, dice.randint(2, 3))
        dialstatus, cause = dice.choice([("BUSY", 17), NO_REPLY])
        world.wants(caller, "6000", dialstatus, cause, devices=some)
        for _ in range(dice.randint(0, 12)):
            world.wait(dice.choice((0.5, 1, 40)))
            turn(dice.choice((IDLE, IN_USE, IN_USE, RINGING, GONE)), dice.choice(phones))
            if dice.random() < 0.2:
                world.restart()
            if dice.random() < 0.2:
                finish(dice.choice(("ANSWER", "BUSY", "NOANSWER")))
    for presence in (IN_USE, IDLE):
        world.wait(1)
        for phone in phones:
            turn(presence, phone)
    for _ in range(80):
        finish("ANSWER")
        world.wait(5)
    assert world.store.requests and not [r for r in world.store.requests.values() if r.ended_at == 0]
    check(world)
