"""Call completion as conversations: what people do, and the transcript of what is saved, rung and answered."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from fastagi.completion.model import OPEN, TURN, Device, Limits, Number, Request, Service, State
from fastagi.completion.service import OFFERS_PER_CALLER, CompletionService
from tests.unit.rules import GONE, IDLE, IN_USE, RINGING, START, World, phone


@pytest.fixture
def world() -> World:
    return World()


def up_to_ready(world: World) -> None:
    """Request 2 of 1000 for 2000 is READY, its recall r1 not taken yet; nothing in the transcript."""
    world.wants("1000", "2000")
    world.told()


def up_to_taken(world: World) -> None:
    up_to_ready(world)
    world.taken("r1")
    world.told()


def up_to_calling(world: World) -> None:
    up_to_taken(world)
    world.answered("r1")
    world.told()


def queued(world: World) -> None:
    """Request 2 of 1000 for 2000, who is busy."""
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.told()


# -------------------------------------------------------------------------------- the wiki's six scenarios


def test_1_busy_then_asked_for_then_called_back(world: World) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000", "BUSY", 17)
    world.wait(5)
    world.asks("1000")
    world.wait(600)
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCBS",
        "saved: 2 OFFERED -> QUEUED",
        "-> 2 at place 1",
    ]
    world.set("2000", IDLE)
    assert world.told() == ["saved: 2 QUEUED -> READY", "ring 1000 for 2000: r1"]
    world.taken("r1")
    world.wait(3)
    world.answered("r1")
    world.wait(120)
    world.call_over("r1", "ANSWER", 16)
    assert world.told() == [
        "saved: 2 READY -> READY",
        "-> ring PJSIP/1000 for 20 s",
        "saved: 2 READY -> CALLING",
        "-> call 2000 in phones for PJSIP/1000",
        "saved: 2 CALLING -> COMPLETED",
        "-> 2 COMPLETED COMPLETED",
    ]
    world.wait(86400)
    assert world.told() == []


def test_2_no_answer_then_called_back_after_his_next_call(world: World) -> None:
    world.fails("1000", "2000", "NOANSWER", 19)
    world.asks("1000")
    world.wait(1000)
    world.set("2000", RINGING)
    world.set("2000", IDLE)
    world.set("2000", GONE)
    world.set("2000", IDLE)
    world.wait(1000)
    assert world.rings() == []
    world.set("2000", IN_USE)
    world.wait(60)
    assert world.rings() == []
    world.set("2000", IDLE)
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCNR",
        "saved: 2 OFFERED -> QUEUED",
        "-> 2 at place 1",
        "saved: 2 QUEUED -> QUEUED",
        "saved: 2 QUEUED -> READY",
        "ring 1000 for 2000: r1",
    ]


def test_3_taken_back_then_no_recall(world: World) -> None:
    queued(world)
    world.cancels("1000")
    world.set("2000", IDLE)
    world.wait(7200)
    assert world.told() == ["saved: 2 QUEUED -> ENDED", "-> 2 ENDED CANCELLED"]


@pytest.mark.parametrize(("seconds", "answer"), [(19.9, "2 at place 1"), (20, "FAIL OFFER_EXPIRED"), (30, "FAIL OFFER_EXPIRED")])
def test_4_asked_too_late(world: World, seconds: float, answer: str) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    world.wait(seconds)
    world.asks("1000")
    assert world.told()[-1] == f"-> {answer}"
    world.set("2000", IDLE)
    assert bool(world.rings()) == answer.startswith("2")


def test_5_busy_for_longer_than_ccbs_available_timer(world: World) -> None:
    queued(world)
    world.wait(4799)
    assert world.told() == []
    world.wait(1)
    assert world.told() == ["saved: 2 QUEUED -> ENDED"]
    assert world.request(2).reason == "EXPIRED"
    world.wait(2400)
    world.set("2000", IDLE)
    assert world.told() == []


def test_6_idle_for_longer_than_ccnr_available_timer(world: World) -> None:
    world.wants("1000", "2000", "NOANSWER", 19)
    world.told()
    world.wait(7199)
    assert world.told() == []
    world.wait(7200)
    assert world.told() == ["saved: 2 QUEUED -> ENDED"]
    world.set("2000", IN_USE)
    world.set("2000", IDLE)
    assert world.told() == []


def test_not_logged_in_then_called_back_when_he_is(world: World) -> None:
    world.set("2000", GONE)
    world.wants("1000", "2000", "CHANUNAVAIL", 20)
    world.wait(7000)
    assert world.rings() == []
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


# ------------------------------------------------------------------------------------------------- asking


def test_asked_when_the_callee_is_free_already(world: World) -> None:
    world.fails("1000", "2000")
    world.asks("1000")
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_at_once_means_when_the_callers_own_call_ends(world: World) -> None:
    """While he dials the code to ask, his own phone is in use."""
    world.set("1000", IN_USE)
    world.wants("1000", "2000")
    assert world.rings() == []
    assert world.request(2).suspended
    world.set("1000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_asked_twice_keeps_place_and_time(world: World) -> None:
    queued(world)
    world.wants("1100", "2000")
    before = world.request(2)
    world.wait(10)
    world.told()
    world.asks("1000")
    world.asks("1000", "2000")
    world.fails("1000", "2000")
    world.asks("1000")
    assert world.told() == [
        "-> already 2 at place 1",
        "-> already 2 at place 1",
        "saved: offer 5",
        "-> offer 5 CCBS",
        "-> already 2 at place 1",
    ]
    assert world.request(2) == before
    world.asks("1100")
    assert world.told() == ["-> already 4 at place 2"]


def test_asked_for_an_extension_among_his_own_open_offers_only(world: World) -> None:
    world.set("2000", IN_USE)
    world.set("2001", IN_USE)
    world.fails("1000", "2000")
    world.fails("1000", "2001")
    world.fails("1100", "2002")
    world.told()
    world.asks("1000", "2000")
    world.asks("1000", "2002")
    world.asks("1000", "2345")
    world.asks("1200")
    assert world.told() == [
        "saved: 4 OFFERED -> QUEUED",
        "-> 4 at place 1",
        "-> FAIL NO_CORE_INSTANCE",
        "-> FAIL NO_CORE_INSTANCE",
        "-> FAIL NO_CORE_INSTANCE",
    ]
    assert world.request(4).callee == "2000"


@pytest.mark.parametrize(
    ("dialstatus", "cause", "reason"),
    [
        ("ANSWER", 16, "ANSWER"),
        ("CONGESTION", 34, "CONGESTION"),
        ("CHANUNAVAIL", 1, "NO_SUCH_NUMBER"),
        ("CHANUNAVAIL", 0, "CHANUNAVAIL"),
        ("", 0, "NOT_REACHED"),
    ],
)
def test_the_latest_call_not_offered_says_why_and_no_older_one_is_taken(
    world: World, dialstatus: str, cause: int, reason: str
) -> None:
    world.fails("1000", "2000")
    world.fails("1000", "2001", dialstatus, cause)
    world.asks("1000")
    world.asks("1000", "2001")
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCBS",
        "saved: offer 2",
        f"-> not offered: {reason}",
        f"-> FAIL {reason}",
        f"-> FAIL {reason}",
    ]
    world.asks("1000", "2000")
    assert world.told()[-1] == "-> 3 at place 1" or "-> 3 at place 1" in world.events or world.rings()


def test_the_latest_call_expired_is_not_replaced_by_an_older_one(world: World) -> None:
    world.directory.set("1000", cc_offer_timer=60)
    world.fails("1000", "2000")
    world.wait(30)
    world.directory.set("1000", cc_offer_timer=5)
    world.fails("1000", "2001")
    world.wait(10)
    world.asks("1000")
    assert world.told()[-1] == "-> FAIL OFFER_EXPIRED"


@pytest.mark.parametrize("ask", ["fails", "asks", "cancels", "pending"])
@pytest.mark.parametrize("who", ["anonymous", "mxone", "3000"])
def test_who_is_no_extension_may_not_ask(world: World, ask: str, who: str) -> None:
    {
        "fails": lambda: world.fails(who, "2000"),
        "asks": lambda: world.asks(who),
        "cancels": lambda: world.cancels(who),
        "pending": lambda: world.pending(who),
    }[ask]()
    assert world.told() == ["-> FAIL CALLER_UNKNOWN"]


def test_a_call_to_his_own_phone_is_not_offered(world: World) -> None:
    world.fails("1000", "1000")
    world.fails("1000", "2000", devices=["PJSIP/2000", "PJSIP/1000"])
    assert [e for e in world.told() if e.startswith("->")] == ["-> not offered: CALLER_IS_CALLEE"] * 2


def test_what_cannot_be_watched_is_not_offered(world: World) -> None:
    world.fails("1000", "2000", devices=[])
    world.asks("1000")
    assert world.told() == ["saved: offer 1", "-> not offered: CALLEE_NOT_WATCHABLE", "-> FAIL CALLEE_NOT_WATCHABLE"]


def test_the_devices_of_an_entry_are_watched_and_rung(world: World) -> None:
    world.directory.set("1000", ["PJSIP/desk", "PJSIP/soft"])
    world.directory.set("2000", ["PJSIP/b1", "PJSIP/b2"])
    world.phones[Device("PJSIP/b2")] = IN_USE
    for name in ("desk", "soft"):
        world.service.offer(
            replace_call(world, Device(f"PJSIP/{name}"), "2000"), world.said
        )
    world.service.ask(Device("PJSIP/desk"), None, world.said)
    world.look()
    assert set(world.monitor.devices) == {"PJSIP/b1", "PJSIP/b2"}
    world.phones[Device("PJSIP/b2")] = IDLE
    world.look()
    world.taken("r1")
    assert world.told()[-1] == "-> ring PJSIP/desk&PJSIP/soft for 20 s"


def replace_call(world: World, caller: Device, callee: str) -> "FailedCall":
    from fastagi.completion.model import Context

    return FailedCall(caller, Context("phones"), Number(callee), (phone(callee),), "BUSY", 17, f"u-{caller}")
