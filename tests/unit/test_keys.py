"""The lamp key, and taking back all at once: what people press, and what comes of it."""

from collections.abc import Iterator

import pytest

from fastagi.completion.model import State
from tests.unit.rules import IDLE, IN_USE, World
from tests.unit.test_service import check, queued, up_to_calling, up_to_ready


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    for callee in ("2000", "2001", "2002"):
        world.set(callee, IN_USE)
    yield world
    check(world)


# -------------------------------------------------------------------------------------------------- the lamp key


def test_it_asks_then_takes_back_then_asks_again(world: World) -> None:
    world.fails("1000", "2000")
    world.told()
    world.toggles("1000", "1000")
    world.wait(5)
    world.toggles("1000", "1000")
    world.wait(5)
    world.toggles("1000", "1000")
    assert world.told() == [
        "saved: 2 OFFERED -> QUEUED",
        "-> 2 at place 1",
        "saved: 2 QUEUED -> ENDED",
        "-> 2 ENDED CANCELLED",
        "saved: 3 OFFERED -> QUEUED",
        "-> 3 at place 1",
    ]


def test_without_a_number_it_is_his_own(world: World) -> None:
    world.fails("1000", "2000")
    world.toggles("1000")
    assert world.told()[-1] == "-> 2 at place 1"


def test_what_was_taken_back_too_late_is_not_asked_for_again(world: World) -> None:
    queued(world)
    world.toggles("1000")
    world.wait(20)
    world.told()
    world.toggles("1000")
    assert world.told() == ["-> FAIL OFFER_EXPIRED"]


def test_it_takes_back_while_it_rings(world: World) -> None:
    world.set("2000", IDLE)
    up_to_ready(world)
    world.toggles("1000")
    assert world.told() == ["saved: 2 READY -> ENDED", "stop r1", "-> 2 ENDED CANCELLED"]


def test_it_takes_back_long_after_the_call(world: World) -> None:
    queued(world)
    world.wait(600)
    world.toggles("1000")
    assert world.told() == ["saved: 2 QUEUED -> ENDED", "-> 2 ENDED CANCELLED"]


def test_while_he_waits_for_one_it_asks_for_another_whom_he_has_called_since(world: World) -> None:
    queued(world)
    world.wait(60)
    world.fails("1000", "2001")
    world.told()
    for _ in range(2):
        world.toggles("1000")
    world.wait(20)
    world.toggles("1000")
    assert [e for e in world.told() if e.startswith("->")] == [
        "-> 4 at place 1",
        "-> 4 ENDED CANCELLED",
        "-> 2 ENDED CANCELLED",  # what is left to take back, and nothing to ask for any more
    ]


def test_a_call_that_may_not_be_asked_for_does_not_keep_him_from_taking_back(world: World) -> None:
    queued(world)
    world.fails("1000", "2001", "CONGESTION", 34)
    world.told()
    world.toggles("1000")
    world.toggles("1000")
    assert [e for e in world.told() if e.startswith("->")] == ["-> 2 ENDED CANCELLED", "-> FAIL CONGESTION"]


@pytest.mark.parametrize("key", ["1100", "2000", "10000", "*331000"])
def test_the_key_of_another_is_refused(world: World, key: str) -> None:
    """Also where there is something to ask for, or to take back: of his own, or of the other's."""
    world.wants("1100", "2000")
    world.fails("1000", "2000")
    world.told()
    world.toggles("1000", key)
    world.asks("1000")
    world.toggles("1000", key)
    assert [e for e in world.told() if e.startswith("->")] == [
        "-> FAIL NOT_HIS_KEY",
        "-> 4 at place 2",
        "-> FAIL NOT_HIS_KEY",
    ]


def test_the_key_is_that_of_the_number_not_of_the_phone(world: World) -> None:
    world.directory.set("1000", ["PJSIP/desk", "PJSIP/soft"])
    world.fails("desk", "2000")
    world.toggles("soft", "1000")
    assert world.told()[-1] == "-> 2 at place 1"


def test_who_is_no_extension_has_no_key(world: World) -> None:
    world.toggles("mxone", "1000")
    assert world.told() == ["-> FAIL CALLER_UNKNOWN"]


def test_with_nothing_to_do_it_says_why_as_asking_does(world: World) -> None:
    world.toggles("1000")
    world.fails("1000", "2000")
    world.wait(20)
    world.toggles("1000")
    world.fails("1000", "2001", "CHANUNAVAIL", 1)
    world.toggles("1000")
    world.directory.set("1200", cc_agent_policy="never")
    world.fails("1200", "2000")
    world.toggles("1200")
    said = [e for e in world.told() if e.startswith("-> FAIL")]
    assert said == [
        "-> FAIL NO_CORE_INSTANCE",
        "-> FAIL OFFER_EXPIRED",
        "-> FAIL NO_SUCH_NUMBER",
        "-> FAIL CALLER_POLICY_NEVER",
    ]


def test_it_is_bound_by_the_limits_of_asking(world: World) -> None:
    world.directory.set("2000", cc_max_monitors=1)
    world.wants("1100", "2000")
    world.fails("1000", "2000")
    world.told()
    world.toggles("1000")
    assert world.told() == ["-> FAIL CALLEE_QUEUE_FULL"]


def test_while_he_calls_it_changes_nothing(world: World) -> None:
    world.set("2000", IDLE)
    up_to_calling(world)
    world.toggles("1000")
    world.wait(60)
    world.toggles("1000")
    assert world.told() == ["-> already 2 at place 1"] * 2
    world.call_over("r1")
    world.told()
    world.toggles("1000")
    assert world.told() == ["-> FAIL COMPLETED"]


def test_while_he_calls_one_it_takes_back_another(world: World) -> None:
    world.wants("1000", "2001")
    world.set("2000", IDLE)
    world.wants("1000", "2000")
    world.taken("r1")
    world.answered("r1")
    world.told()
    world.toggles("1000")
    assert world.told() == ["saved: 2 QUEUED -> ENDED", "-> 2 ENDED CANCELLED"]
    assert world.request(4).state is State.CALLING


def test_it_says_nothing_that_is_not_saved(world: World) -> None:
    world.fails("1000", "2000")
    world.told()
    world.store.error = OSError("disk full")
    world.toggles("1000")
    world.store.error = None
    world.toggles("1000")
    world.store.error = OSError("disk full")
    world.toggles("1000")
    said = [e for e in world.told() if e.startswith("->")]
    assert said == ["-> FAIL STORE_FAILED", "-> 3 at place 1", "-> FAIL STORE_FAILED"]
    world.store.error = None
    world.pending("1000")
    assert world.told()[-1] == "-> 3 for 2000 QUEUED at place 1"


# --------------------------------------------------------------------------------------------------- taking back all


def test_all_of_his_are_taken_back_and_of_nobody_else(world: World) -> None:
    world.wants("1100", "2000")
    for callee in ("2000", "2001", "2002"):
        world.wants("1000", callee)
    world.told()
    world.pending("1000")
    world.cancels_all("1000")
    world.pending("1000")
    world.pending("1100")
    assert world.told() == [
        "-> 4 for 2000 QUEUED at place 2, 6 for 2001 QUEUED at place 1, 8 for 2002 QUEUED at place 1",
        "saved: 4 QUEUED -> ENDED, 6 QUEUED -> ENDED, 8 QUEUED -> ENDED",
        "-> 4 for 2000 ENDED CANCELLED, 6 for 2001 ENDED CANCELLED, 8 for 2002 ENDED CANCELLED",
        "-> none",
        "-> 2 for 2000 QUEUED at place 1",
    ]


def test_what_rings_is_stopped_and_what_is_talked_through_goes_on(world: World) -> None:
    world.wants("1000", "2001")
    world.set("2000", IDLE)
    world.wants("1000", "2000")
    world.taken("r1")
    world.told()
    world.cancels_all("1000")
    assert world.told()[1:] == ["stop r1", "-> 2 for 2001 ENDED CANCELLED, 4 for 2000 ENDED CANCELLED"]
    world.set("2002", IDLE)
    world.wants("1000", "2002")
    world.wants("1000", "2001")
    world.taken("r2")
    world.answered("r2")
    world.told()
    world.cancels_all("1000")
    assert world.told()[-1] == "-> 8 for 2001 ENDED CANCELLED"
    world.cancels_all("1000")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE"], "what he talks through is no longer to be taken back"
    world.call_over("r2")
    assert world.told()[-1] == "-> 6 COMPLETED COMPLETED"


def test_with_none_it_says_so(world: World) -> None:
    world.cancels_all("1000")
    queued(world)
    world.cancels_all("1000")
    world.told()
    world.cancels_all("1000")
    world.cancels_all("mxone")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE", "-> FAIL CALLER_UNKNOWN"]


def test_those_who_wait_behind_him_move_up(world: World) -> None:
    queued(world)
    world.wants("1100", "2000")
    world.cancels_all("1000")
    world.told()
    world.pending("1100")
    assert world.told() == ["-> 4 for 2000 QUEUED at place 1"]


def test_all_are_taken_back_or_none(world: World) -> None:
    for callee in ("2000", "2001"):
        world.wants("1000", callee)
    world.told()
    world.store.error = OSError("disk full")
    world.cancels_all("1000")
    world.pending("1000")
    assert world.told() == [
        "not saved",
        "-> FAIL STORE_FAILED",
        "-> 2 for 2000 QUEUED at place 1, 4 for 2001 QUEUED at place 1",
    ]
    world.store.error = None
