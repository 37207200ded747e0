"""Call completion as conversations: what people do, and the transcript of what is saved, rung and answered."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from fastagi.completion.model import Limits, Request, State
from fastagi.completion.offers import OFFERS_PER_CALLER
from tests.unit.rules import GONE, IDLE, IN_USE, RINGING, START, World, phone


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    check(world)


def check(world: World) -> None:
    """What holds after every conversation."""
    at: dict[int, State] = {}
    for entry in world.store.log:
        lost = entry.request in world.store.lost and entry.old is State.READY
        assert lost or entry.old is at.get(entry.request, State.OFFERED), "a change is missing in the log"
        assert len(entry.sentence) > 10
        at[entry.request] = entry.new
    assert at == {r.id: r.state for r in world.store.requests.values()}
    assert len(world.clock.armed()) <= 1, "one call is armed for the nearest instant"
    rung = [r.recall_id for r in world.agent.rung]
    assert len(rung) == len(set(rung)), "a recall id was used again"
    lines = [line for line in world.logged if line.startswith("request ")]
    assert lines == [f"request {e.request}: {e.old} -> {e.new}: {e.sentence}" for e in world.store.log]


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
    assert world.told() == ["ring 1000 for 2000: r1", "saved: 2 QUEUED -> READY"]
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
        "ring 1000 for 2000: r1",
        "saved: 2 QUEUED -> READY",
    ]


def test_3_taken_back_then_no_recall(world: World) -> None:
    queued(world)
    world.cancels("1000")
    world.set("2000", IDLE)
    world.wait(7200)
    assert world.told() == ["saved: 2 QUEUED -> ENDED", "-> 2 ENDED CANCELLED"]


@pytest.mark.parametrize(
    ("seconds", "answer"), [(19.9, "2 at place 1"), (20, "FAIL OFFER_EXPIRED"), (30, "FAIL OFFER_EXPIRED")]
)
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
    assert "-> 3 at place 1" in world.told()


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
    world.directory.set("1000", ["PJSIP/1000", "PJSIP/1001"])
    world.fails("1000", "1000")
    world.fails("1000", "1000", devices=["PJSIP/2000"])
    world.fails("1000", "2000", devices=["PJSIP/1000"])
    world.fails("1000", "2000", devices=["PJSIP/1000", "PJSIP/1001"])
    assert [e for e in world.told() if e.startswith("->")] == ["-> not offered: CALLER_IS_CALLEE"] * 4


def test_a_member_of_the_group_he_called_waits_for_the_others(world: World) -> None:
    """His own phone, which he uses, says nothing of them, and does not ring for himself."""
    world.directory.set("1000", ["PJSIP/1000", "PJSIP/1001"])
    world.set("2000", IN_USE)
    world.set("1000", IN_USE)
    world.fails("1000", "6000", devices=["PJSIP/1001", "PJSIP/2000", "PJSIP/1000"])
    world.asks("1000")
    assert world.told()[-1] == "-> 2 at place 1"
    assert set(world.monitor.devices) == {"PJSIP/2000"}
    world.set("2000", IDLE)
    assert world.rings() == [] and world.request(2).suspended, "his own call is not over"
    world.set("1000", IDLE)
    assert world.rings() == ["ring 1000 for 6000: r1"]


def test_what_cannot_be_watched_is_not_offered(world: World) -> None:
    world.fails("1000", "2000", devices=[])
    world.asks("1000")
    assert world.told() == [
        "saved: offer 1",
        "-> not offered: CALLEE_NOT_WATCHABLE",
        "-> FAIL CALLEE_NOT_WATCHABLE",
    ]


def test_the_devices_of_an_entry_are_watched_and_rung(world: World) -> None:
    world.directory.set("1000", ["PJSIP/desk", "PJSIP/soft"])
    world.directory.set("2000", ["PJSIP/b1", "PJSIP/b2"])
    world.set("b2", IN_USE)
    world.fails("soft", "2000", devices=["PJSIP/b1", "PJSIP/b2"])
    world.asks("desk")
    assert set(world.monitor.devices) == {"PJSIP/b1", "PJSIP/b2"}
    world.set("b2", IDLE)
    world.taken("r1")
    world.answered("r1")
    assert "-> ring PJSIP/soft&PJSIP/desk for 20 s" in world.events
    assert world.told()[-1] == "-> call 2000 in phones for PJSIP/soft"


def test_pending_shows_his_own_oldest_first(world: World) -> None:
    queued(world)
    world.wants("1100", "2000")
    world.wants("1000", "2001", "NOANSWER", 19)
    world.told()
    world.pending("1000")
    world.pending("1100")
    world.pending("1200")
    assert world.told() == [
        "-> 2 for 2000 QUEUED at place 1, 6 for 2001 QUEUED at place 1",
        "-> 4 for 2000 QUEUED at place 2",
        "-> none",
    ]


# ------------------------------------------------------------------------------------- one call, one offer


def test_one_call_is_one_offer_whichever_tells_first(world: World) -> None:
    world.fails("1000", "2000", "BUSY", 17, uniqueid="1.1")
    world.wait(10)
    world.fails("1000", "2000", "CANCEL", 0, uniqueid="1.1")
    world.fails("1000", "2000", "CANCEL", 0, uniqueid="1.2")
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCBS",
        "-> offer 1 CCBS",
        "saved: offer 2",
        "-> offer 2 CCNR",
    ]
    assert world.store.offers[1].offer_ends == START + 20, "told again, it lasts no longer"


def test_one_call_is_one_offer_also_after_a_restart(world: World) -> None:
    world.fails("1000", "2000", uniqueid="1.1")
    world.restart()
    world.fails("1000", "2000", uniqueid="1.1")
    assert world.told() == ["saved: offer 1", "-> offer 1 CCBS", "-> offer 1 CCBS"]


def test_a_call_not_offered_is_told_once_too(world: World) -> None:
    world.fails("1000", "2000", "CONGESTION", 34, uniqueid="1.1")
    world.fails("1000", "2000", "CONGESTION", 34, uniqueid="1.1")
    assert world.told() == ["saved: offer 1"] + ["-> not offered: CONGESTION"] * 2


def test_a_note_after_a_request_that_found_nothing_still_makes_the_offer(world: World) -> None:
    world.set("2000", IN_USE)
    world.asks("1000")
    world.fails("1000", "2000", uniqueid="1.1")
    world.wait(19)
    world.asks("1000")
    assert world.told() == [
        "-> FAIL NO_CORE_INSTANCE",
        "saved: offer 1",
        "-> offer 1 CCBS",
        "saved: 2 OFFERED -> QUEUED",
        "-> 2 at place 1",
    ]


# ------------------------------------------------------------------------------------------------- limits


def test_policies_never(world: World) -> None:
    world.directory.set("1001", cc_agent_policy="never")
    world.directory.set("2001", cc_monitor_policy="never")
    world.fails("1001", "2000")
    world.fails("1000", "2001")
    world.asks("1001")
    world.asks("1000")
    world.fails("2001", "2000")
    world.fails("1000", "1001")
    assert [e for e in world.told() if "->" in e] == [
        "-> not offered: CALLER_POLICY_NEVER",
        "-> not offered: CALLEE_POLICY_NEVER",
        "-> FAIL CALLER_POLICY_NEVER",
        "-> FAIL CALLEE_POLICY_NEVER",
        "-> offer 3 CCBS",
        "-> offer 4 CCBS",
    ]


def test_cc_max_agents_is_the_callers(world: World) -> None:
    world.directory.set("1000", cc_max_agents=2)
    for callee in ("2001", "2002", "2003"):
        world.set(callee, IN_USE)
        world.wants("1000", callee)
    assert world.told()[-1] == "-> FAIL TOO_MANY_REQUESTS"
    assert len(world.store.requests) == 2
    world.cancels("1000", "2001")
    world.asks("1000", "2003")
    assert world.told()[-1].endswith("at place 1")


def test_cc_max_monitors_is_the_callees(world: World) -> None:
    world.directory.set("2000", cc_max_monitors=2)
    world.set("2000", IN_USE)
    for caller in ("1001", "1002", "1003"):
        world.wants(caller, "2000")
    assert world.told()[-1] == "-> FAIL CALLEE_QUEUE_FULL"
    assert len(world.store.requests) == 2
    world.asks("1002")
    assert world.told() == ["-> already 4 at place 2"]
    world.cancels("1001")
    world.asks("1003")
    assert world.told()[-1].endswith("at place 2")


def test_cc_max_requests_is_everybodys() -> None:
    world = World(Limits(cc_max_requests=2))
    world.set("2000", IN_USE)
    world.set("2001", IN_USE)
    for caller, callee in (("1001", "2000"), ("1002", "2001"), ("1003", "2000")):
        world.wants(caller, callee)
    assert world.told()[-1] == "-> FAIL TOO_MANY_REQUESTS"
    check(world)


def test_cc_max_offers_is_everybodys() -> None:
    world = World(Limits(cc_max_offers=2))
    for caller in ("1001", "1002", "1003"):
        world.fails(caller, "2000")
    assert world.told()[-1] == "-> FAIL TOO_MANY_OFFERS"
    assert sorted(world.store.offers) == [1, 2]
    world.wait(20)
    world.fails("1003", "2000")
    assert world.told()[-1].startswith("-> offer")
    assert not {1, 2} & set(world.store.offers)
    check(world)


def test_one_caller_cannot_fill_the_memory(world: World) -> None:
    for n in range(OFFERS_PER_CALLER + 5):
        world.fails("1000", f"2{n:03}")
    assert sorted(world.store.offers) == list(range(6, OFFERS_PER_CALLER + 6))
    world.told()
    world.asks("1000", "2000")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE"]
    world.set("2005", IN_USE)
    world.asks("1000", "2005")
    assert world.told()[-1] == "-> 26 at place 1"


def test_an_offer_is_remembered_a_while_and_then_forgotten(world: World) -> None:
    world.fails("1000", "2000")
    world.wait(3600)
    world.asks("1000")
    assert world.told()[-1] == "-> FAIL OFFER_EXPIRED"
    world.wait(200)
    assert not world.store.offers
    world.asks("1000")
    assert world.told()[-1] == "-> FAIL NO_CORE_INSTANCE"
    assert world.store.last_id == 1
    world.fails("1000", "2000")
    assert world.told() == ["saved: offer 2", "-> offer 2 CCBS"]


def test_history_is_pruned_once_in_a_while(world: World) -> None:
    queued(world)
    world.wait(600)
    assert 10 <= len(world.store.pruned) <= 12
    assert world.store.pruned[-1] == pytest.approx(world.clock.now() - 90 * 86400, abs=61)


# ------------------------------------------------------------------------------------------------ the queue


def test_two_callers_one_callee(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.wait(5)
    world.wants("1100", "2000")
    world.told()
    world.set("2000", IDLE)
    assert world.told() == ["ring 1000 for 2000: r1", "saved: 2 QUEUED -> READY"]
    world.taken("r1")
    world.wait(20)
    world.told()
    world.recall_failed("r1", "NOANSWER", 19)
    assert world.told() == [
        "saved: 2 READY -> QUEUED, 4 QUEUED -> READY",
        "ring 1100 for 2000: r2",
        "-> 2 QUEUED",
    ]
    world.taken("r2")
    world.answered("r2")
    world.set("2000", IN_USE)
    world.wait(60)
    world.call_over("r2")
    world.told()
    world.set("2000", IDLE)
    assert world.told() == ["ring 1000 for 2000: r3", "saved: 2 QUEUED -> READY"]


def test_who_keeps_his_place_is_served_first_again(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.wait(5)
    world.wants("1100", "2000")
    world.set("1000", IN_USE)
    world.told()
    world.set("2000", IDLE)
    assert world.told() == ["saved: 2 QUEUED -> QUEUED, 4 QUEUED -> READY", "ring 1100 for 2000: r1"]
    assert world.request(2).suspended
    assert [r.caller for r in world.agent.rung] == ["1100"]
    world.taken("r1")
    world.recall_failed("r1", "BUSY", 17)
    world.set("1000", IDLE)
    assert world.rings()[-1] == "ring 1000 for 2000: r2"
    assert (world.request(2).asked_at, world.request(2).suspended) == (START, False)


def test_two_callees_of_one_caller_at_once(world: World) -> None:
    for callee in ("2000", "2001"):
        world.set(callee, IN_USE)
        world.wants("1000", callee)
    world.told()
    world.set("2001", IDLE)
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2001: r1"]
    world.taken("r1")
    world.set("1000", IN_USE)
    world.answered("r1")
    world.wait(60)
    world.call_over("r1")
    assert world.rings() == ["ring 1000 for 2001: r1"]
    world.set("1000", IDLE)
    assert world.rings() == ["ring 1000 for 2001: r1", "ring 1000 for 2000: r2"]


def test_camped_on_each_other_they_are_connected_once(world: World) -> None:
    for number in ("1000", "2000"):
        world.set(number, IN_USE)
    world.wants("1000", "2000")
    world.wants("2000", "1000")
    world.told()
    for number in ("1000", "2000"):
        world.set(number, IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]
    world.taken("r1")
    world.answered("r1")
    world.told()
    world.call_over("r1")
    world.wait(86400)
    assert world.told() == [
        "saved: 2 CALLING -> COMPLETED, 4 QUEUED -> COMPLETED",
        "-> 2 COMPLETED COMPLETED",
    ]
    assert world.request(4).reason == "FULFILLED"


def test_camped_on_each_other_a_failed_call_fulfils_nothing(world: World) -> None:
    for number in ("1000", "2000"):
        world.set(number, IN_USE)
    world.wants("1000", "2000")
    world.wants("2000", "1000")
    for number in ("1000", "2000"):
        world.set(number, IDLE)
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1", "NOANSWER", 19)
    assert world.request(4).state in (State.QUEUED, State.READY)
    assert world.rings()[-1] == "ring 2000 for 1000: r2"


def test_a_completed_call_fulfils_only_the_request_of_these_two(world: World) -> None:
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.wants("1100", "2000")
    world.wants("2000", "2001", "NOANSWER", 19)
    world.wants("2000", "1000", "NOANSWER", 19)
    world.set("2000", IDLE)
    world.taken("r1")
    world.answered("r1")
    world.told()
    world.call_over("r1")
    assert world.told()[0].startswith("saved: 2 CALLING -> COMPLETED, 8 QUEUED -> COMPLETED")
    assert world.request(6).state is State.QUEUED
    assert world.request(4).state is not State.COMPLETED


def test_a_callee_who_lifts_his_phone_does_not_take_the_recall_back(world: World) -> None:
    up_to_taken(world)
    world.set("2000", IN_USE)
    world.wait(5)
    assert world.told() == []


# -------------------------------------------------------------------------------------------- the recall


def test_a_caller_who_declines_three_times_is_left_alone(world: World) -> None:
    up_to_ready(world)
    for recall, then in (("r1", "r2"), ("r2", "r3")):
        world.taken(recall)
        world.recall_failed(recall, "CHANUNAVAIL", 21)
        world.wait(29)
        assert then not in [r.recall_id for r in world.agent.rung]
        world.wait(1)
        assert world.agent.rung[-1].recall_id == then
    world.taken("r3")
    world.told()
    world.recall_failed("r3", "CHANUNAVAIL", 21)
    world.wait(86400)
    assert world.told() == ["saved: 2 READY -> ENDED", "-> 2 ENDED TOO_MANY_RECALLS"]


def test_a_recall_nobody_takes_is_given_up_and_tried_again(world: World) -> None:
    up_to_ready(world)
    world.wait(9)
    assert world.told() == []
    world.wait(1)
    assert world.told() == ["saved: 2 READY -> QUEUED", "stop r1"]
    world.wait(29)
    assert world.told() == []
    world.wait(1)
    assert world.told() == ["ring 1000 for 2000: r2", "saved: 2 QUEUED -> READY"]
    assert world.request(2).recalls == 0


def test_a_recall_that_could_not_be_handed_over_waits(world: World) -> None:
    world.agent.on_recall = lambda r: world.service.recall_undelivered(r.recall_id, "the spool is full")
    world.wants("1000", "2000")
    assert world.told()[-2:] == ["saved: 2 READY -> QUEUED", "stop r1"]
    assert world.store.log[-1].sentence == "the spool is full"
    world.agent.on_recall = None
    world.wait(30)
    assert world.rings() == ["ring 1000 for 2000: r2"]


@pytest.mark.parametrize("prepare", [up_to_taken, up_to_calling])
def test_what_has_begun_was_handed_over_whatever_becomes_of_the_answer(
    world: World, prepare: Callable[[World], None]
) -> None:
    """Asterisk rings him already; then the connection is cut, and its answer to Originate is lost."""
    prepare(world)
    before = world.request(2)
    world.service.recall_undelivered("r1", "Originate was not answered: the AMI connection is lost")
    world.wait(5)
    assert world.told() == [] and world.request(2) == before
    if prepare is up_to_taken:
        world.answered("r1")
    world.call_over("r1")
    assert world.request(2).reason == "COMPLETED"


def test_a_recall_is_taken_once(world: World) -> None:
    up_to_ready(world)
    world.taken("r1")
    world.taken("r1")
    assert world.told() == ["saved: 2 READY -> READY", "-> ring PJSIP/1000 for 20 s", "-> FAIL RECALL_TAKEN"]


@pytest.mark.parametrize("recall", ["r1", "", "r99"])
def test_only_the_attempt_under_way_is_heard(world: World, recall: str) -> None:
    up_to_taken(world)
    world.recall_failed("r1", "NOANSWER", 19)
    world.told()
    world.taken(recall)
    world.answered(recall)
    world.recall_failed(recall)
    world.call_over(recall)
    world.service.call_gone(recall)
    world.service.recall_undelivered(recall, "?")
    assert world.told() == ["-> FAIL RECALL_UNKNOWN"] * 4
    assert world.request(2).state is State.QUEUED


def test_what_does_not_fit_is_refused_and_changes_nothing(world: World) -> None:
    up_to_ready(world)
    before = world.request(2)
    world.answered("r1")
    world.recall_failed("r1")
    world.call_over("r1")
    world.call_over("r1", "BUSY", 17)
    assert world.told() == ["-> FAIL RECALL_UNKNOWN"] * 2 + ["-> FAIL NOT_NOW"] * 2
    assert world.request(2) == before


def test_the_call_met_busy_while_he_read_idle(world: World) -> None:
    """Do-not-disturb: only a fresh use of his phone says that he is there."""
    up_to_calling(world)
    world.call_over("r1", "BUSY", 17)
    world.wait(600)
    assert world.told() == ["saved: 2 CALLING -> QUEUED", "-> 2 QUEUED"]
    world.set("2000", IN_USE)
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_the_call_met_busy_while_he_was(world: World) -> None:
    up_to_calling(world)
    world.set("2000", IN_USE)
    world.call_over("r1", "BUSY", 17)
    world.wait(600)
    assert world.told() == ["saved: 2 CALLING -> QUEUED", "-> 2 QUEUED"]
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_the_call_met_no_answer_and_waits_for_a_sign(world: World) -> None:
    up_to_calling(world)
    world.set("2000", RINGING)
    world.call_over("r1", "CANCEL", 0)
    world.set("2000", IDLE)
    world.wait(600)
    assert world.rings() == []
    assert world.request(2).service == "CCNR"
    world.set("2000", IN_USE)
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_a_call_that_is_gone_ends_it(world: World) -> None:
    up_to_calling(world)
    assert world.monitor.calls == {"r1"}
    world.service.call_gone("r1")
    assert world.told() == ["saved: 2 CALLING -> ENDED"]
    assert world.request(2).reason == "CALL_LOST"
    assert world.monitor.calls == set()


def test_a_recall_that_is_gone_unheard_is_tried_again(world: World) -> None:
    up_to_ready(world)
    assert world.monitor.calls == set()
    world.taken("r1")
    assert world.monitor.calls == {"r1"}
    world.told()
    world.service.call_gone("r1")
    assert world.told() == ["saved: 2 READY -> QUEUED", "stop r1"]
    world.wait(29)
    assert world.told() == []
    world.wait(1)
    assert world.rings() == ["ring 1000 for 2000: r2"]
    assert world.request(2).recalls == 0


def test_a_call_may_last(world: World) -> None:
    up_to_calling(world)
    world.wait(3 * 3600)
    assert world.told() == []
    world.call_over("r1")
    assert world.request(2).reason == "COMPLETED"


def test_a_call_nobody_tells_of_ends_some_day(world: World) -> None:
    up_to_calling(world)
    world.wait(86400)
    assert world.request(2).reason == "CALL_LOST"


def test_the_time_to_wait_is_not_applied_in_a_turn_but_when_it_fails(world: World) -> None:
    queued(world)
    world.wait(4790)
    world.set("2000", IDLE)
    world.taken("r1")
    world.wait(15)
    world.answered("r1")
    world.wait(60)
    world.told()
    world.call_over("r1", "BUSY", 17)
    assert world.told() == ["saved: 2 CALLING -> ENDED", "-> 2 ENDED EXPIRED"]


def test_a_call_that_is_answered_after_the_time_completes(world: World) -> None:
    queued(world)
    world.wait(4790)
    world.set("2000", IDLE)
    world.taken("r1")
    world.wait(15)
    world.answered("r1")
    world.wait(6000)
    world.call_over("r1")
    assert world.request(2).reason == "COMPLETED"


@pytest.mark.parametrize(
    ("caller", "callee", "lasts"), [(100, 4800, 100), (4800, 100, 100), (50, 100, 50), (100, 50, 50)]
)
def test_the_shorter_of_the_callers_and_the_callees_timer(
    world: World, caller: float, callee: float, lasts: float
) -> None:
    world.directory.set("1000", ccbs_available_timer=caller)
    world.directory.set("2000", ccbs_available_timer=callee)
    queued(world)
    world.wait(lasts - 0.5)
    assert world.told() == []
    world.wait(0.5)
    assert world.request(2).reason == "EXPIRED"


# ------------------------------------------------------------------------- asked while a CC call is under way


def handed_on(world: World) -> None:
    """1000 was called back by request 2, has given 2000 to another, and calls him again, who is busy with that."""
    up_to_calling(world)
    world.set("2000", IN_USE)
    world.wait(60)
    world.fails("1000", "2000")
    world.told()


@pytest.mark.parametrize("ask", ["*30", "*30 by number", "*33"])
def test_who_calls_him_again_asks_anew_while_the_call_before_goes_on(world: World, ask: str) -> None:
    handed_on(world)
    {
        "*30": lambda: world.asks("1000"),
        "*30 by number": lambda: world.asks("1000", "2000"),
        "*33": lambda: world.toggles("1000"),
    }[ask]()
    world.asks("1000")
    world.pending("1000")
    assert world.told() == [
        "saved: 4 OFFERED -> QUEUED",
        "-> 4 at place 2",
        "-> already 4 at place 2",
        "-> 4 for 2000 QUEUED at place 2",
    ]
    world.wait(60)
    world.call_over("r1")
    assert world.told() == ["saved: 2 CALLING -> COMPLETED", "-> 2 COMPLETED COMPLETED"]
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_the_new_request_waits_for_the_call_before_to_end(world: World) -> None:
    handed_on(world)
    world.asks("1000")
    world.set("2000", IDLE)
    world.wait(60)
    assert world.rings() == [], "nobody has told that they do not talk any more"
    world.call_over("r1")
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_the_new_request_is_taken_back_and_the_call_goes_on(world: World) -> None:
    handed_on(world)
    world.asks("1000")
    world.cancels("1000")
    assert world.told()[-1] == "-> 4 ENDED CANCELLED"
    world.cancels("1000")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE"]
    assert world.request(2).state is State.CALLING


def test_the_key_asks_anew_and_takes_back_no_other(world: World) -> None:
    world.set("2001", IN_USE)
    world.wants("1000", "2001")
    world.wants("1000", "2000")
    world.taken("r1")
    world.answered("r1")
    world.wait(60)
    world.fails("1000", "2000")
    world.toggles("1000")
    assert world.told()[-1] == "-> 6 at place 2"
    assert world.request(2).state is State.QUEUED
    world.toggles("1000")
    assert world.told()[-1] == "-> 6 ENDED CANCELLED"


def test_the_new_call_stays_on_offer_when_the_call_before_is_over(world: World) -> None:
    handed_on(world)
    world.call_over("r1")
    world.told()
    world.asks("1000")
    assert world.told()[-1] == "-> 4 at place 1"


def test_the_call_under_way_counts_for_the_limits(world: World) -> None:
    world.directory.set("1000", cc_max_agents=1)
    handed_on(world)
    world.asks("1000")
    assert world.told() == ["-> FAIL TOO_MANY_REQUESTS"]
    world.directory.set("1000", cc_max_agents=2)
    world.directory.set("2000", cc_max_monitors=1)
    world.asks("1000")
    assert world.told() == ["-> FAIL CALLEE_QUEUE_FULL"]


def test_of_a_call_under_way_he_has_already_what_he_asked_for(world: World) -> None:
    """He has called nobody since: it is still that call which he would mean."""
    up_to_calling(world)
    world.wait(10)
    world.asks("1000")
    world.pending("1000")
    assert world.told() == ["-> already 2 at place 1", "-> none"]


def test_when_the_call_before_fails_one_talk_completes_both(world: World) -> None:
    """On a second line he has called him again, while the CC call was still ringing there."""
    handed_on(world)
    world.asks("1000")
    world.call_over("r1", "BUSY", 17)
    world.set("2000", IDLE)
    world.taken("r2")
    world.answered("r2")
    world.told()
    world.call_over("r2")
    assert world.told()[0] == "saved: 2 CALLING -> COMPLETED, 4 QUEUED -> COMPLETED"
    assert world.request(4).reason == "FULFILLED"


def test_what_the_callee_asks_during_the_call_is_not_fulfilled_by_it(world: World) -> None:
    """1000 has handed him on and is busy elsewhere; 2000 has tried to reach him."""
    up_to_calling(world)
    world.wait(60)
    world.set("1000", IN_USE)
    world.wants("2000", "1000")
    world.told()
    world.call_over("r1")
    assert world.told()[0] == "saved: 2 CALLING -> COMPLETED"
    world.set("1000", IDLE)
    assert world.rings() == ["ring 2000 for 1000: r2"]


# ------------------------------------------------------------------------------------------ taking it back


def test_taken_back_before_it_was_asked_for(world: World) -> None:
    world.fails("1000", "2000")
    world.told()
    world.cancels("1000")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE"]


@pytest.mark.parametrize("prepare", [up_to_ready, up_to_taken])
def test_taken_back_while_it_rings(world: World, prepare: Callable[[World], None]) -> None:
    prepare(world)
    world.cancels("1000")
    assert world.told() == ["saved: 2 READY -> ENDED", "stop r1", "-> 2 ENDED CANCELLED"]
    world.taken("r1")
    world.answered("r1")
    assert world.told() == ["-> FAIL RECALL_UNKNOWN"] * 2


def test_taken_back_while_they_talk(world: World) -> None:
    up_to_calling(world)
    world.cancels("1000")
    assert world.told() == ["-> FAIL NO_CORE_INSTANCE"]
    assert world.request(2).state is State.CALLING


def test_his_latest_is_taken_back_or_the_one_he_names(world: World) -> None:
    for callee in ("2000", "2001", "2002"):
        world.set(callee, IN_USE)
        world.wants("1000", callee)
        world.wait(1)
    world.wants("1100", "2000")
    world.told()
    world.cancels("1000")
    world.cancels("1000", "2000")
    world.cancels("1000", "2000")
    world.cancels("1000", "2345")
    world.cancels("1100", "2001")
    assert [e for e in world.told() if e.startswith("->")] == [
        "-> 6 ENDED CANCELLED",
        "-> 2 ENDED CANCELLED",
        "-> FAIL NO_CORE_INSTANCE",
        "-> FAIL NO_CORE_INSTANCE",
        "-> FAIL NO_CORE_INSTANCE",
    ]


@pytest.mark.parametrize("prepare", [queued, up_to_ready, up_to_taken, up_to_calling])
def test_the_operator_takes_back_any(world: World, prepare: Callable[[World], None]) -> None:
    prepare(world)
    state = world.request(2).state
    world.service.cancel_id(2, world.said)
    world.service.cancel_id(2, world.said)
    told = world.told()
    assert told[0] == f"saved: 2 {state} -> ENDED"
    assert ("stop r1" in told) == (state is State.READY)
    assert told[-2:] == ["-> 2 ENDED CANCELLED", "-> FAIL NO_SUCH_REQUEST"]
    assert "operator" in world.store.log[-1].sentence


def test_asked_again_after_it_was_taken_back(world: World) -> None:
    queued(world)
    world.cancels("1000")
    world.told()
    world.asks("1000")
    assert world.told() == ["saved: 3 OFFERED -> QUEUED", "-> 3 at place 1"]


# ------------------------------------------------------------------------------------------------ restart


def test_restart_while_offered(world: World) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    world.told()
    world.wait(10)
    world.restart()
    world.asks("1000")
    assert world.told() == ["saved: 2 OFFERED -> QUEUED", "-> 2 at place 1"]


def test_restart_while_offered_does_not_prolong(world: World) -> None:
    world.fails("1000", "2000")
    world.wait(10)
    world.restart()
    world.wait(10)
    world.asks("1000")
    assert world.told()[-1] == "-> FAIL OFFER_EXPIRED"


def test_restart_while_queued(world: World) -> None:
    queued(world)
    world.wait(5)
    world.wants("1100", "2000")
    world.told()
    before = dict(world.store.requests)
    world.restart()
    assert world.store.requests == before
    world.set("2000", IDLE)
    assert world.told() == ["ring 1000 for 2000: r1", "saved: 2 QUEUED -> READY"]


def test_restart_while_queued_does_not_prolong(world: World) -> None:
    queued(world)
    world.wait(4000)
    world.restart()
    world.wait(799)
    assert world.told() == []
    world.wait(1)
    assert world.request(2).reason == "EXPIRED"


def test_restart_after_its_time(world: World) -> None:
    queued(world)
    world.clock.timers.clear()
    world.clock.move(5000)
    world.set("2000", IDLE)
    world.told()
    world.restart()
    assert world.request(2).reason == "EXPIRED"
    assert world.rings() == []


def test_restart_keeps_who_waits_for_a_sign_and_who_is_passed_over(world: World) -> None:
    world.set("2001", IN_USE)
    world.wants("1000", "2000", "NOANSWER", 19)
    world.wants("1100", "2001")
    world.set("1100", IN_USE)
    world.set("2001", IDLE)
    world.restart()
    assert world.rings() == []
    assert (world.request(2).sign_needed, world.request(4).suspended) == (True, True)
    world.set("1100", IDLE)
    assert world.rings() == ["ring 1100 for 2001: r1"]


@pytest.mark.parametrize(
    ("number", "setting", "why"),
    [
        ("2000", "cc_monitor_policy", "taken back by the operator: nobody may wait for 2000 any more"),
        ("1000", "cc_agent_policy", "taken back by the operator: 1000 may not ask any more"),
    ],
)
@pytest.mark.parametrize(
    ("prepare", "ends"), [(queued, True), (up_to_ready, True), (up_to_taken, True), (up_to_calling, False)]
)
def test_restart_after_one_of_them_wants_no_part_in_it_any_more(
    world: World, prepare: Callable[[World], None], ends: bool, number: str, setting: str, why: str
) -> None:
    prepare(world)
    stops = world.request(2).state is State.READY
    world.directory.set(number, (), "", **{setting: "never"})
    world.restart()
    told = world.told()
    assert (world.request(2).reason == "CANCELLED") == ends, "who talks is let talk"
    assert ("stop r1" in told) == stops and world.rings() == []
    assert world.store.log[-1].sentence.startswith(why) == ends
    world.set("2000", IDLE)
    world.wait(86400 if ends else 60)
    assert world.told() == []


def test_restart_after_another_wants_no_part_in_it(world: World) -> None:
    queued(world)
    world.directory.set("1000", cc_monitor_policy="never")
    world.directory.set("2000", cc_agent_policy="never")
    world.restart()
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_restart_before_the_recall_was_taken(world: World) -> None:
    up_to_ready(world)
    world.restart()
    assert world.told() == [
        "saved: 2 READY -> QUEUED",
        "stop r1",
        "ring 1000 for 2000: r2",
        "saved: 2 QUEUED -> READY",
    ]
    world.taken("r1")
    world.taken("r2")
    assert world.told() == [
        "-> FAIL RECALL_UNKNOWN",
        "saved: 2 READY -> READY",
        "-> ring PJSIP/1000 for 20 s",
    ]
    assert world.request(2).recalls == 0


def test_restart_before_either_of_two_recalls_was_taken(world: World) -> None:
    world.wants("1000", "2000")
    world.wants("1100", "2001")
    world.told()
    world.restart()
    assert sorted(world.rings()) == ["ring 1000 for 2000: r3", "ring 1100 for 2001: r4"]


def test_restart_while_the_recall_rings(world: World) -> None:
    up_to_taken(world)
    world.wait(10)
    world.restart()
    assert world.told() == []
    world.answered("r1")
    assert world.told() == ["saved: 2 READY -> CALLING", "-> call 2000 in phones for PJSIP/1000"]


def test_restart_while_the_recall_rings_and_nobody_reports(world: World) -> None:
    up_to_taken(world)
    world.wait(10)
    world.restart()
    world.wait(24)
    assert world.told() == []
    world.wait(1)
    assert world.told() == ["saved: 2 READY -> QUEUED", "stop r1"]
    world.wait(30)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_restart_while_they_are_connected(world: World) -> None:
    up_to_calling(world)
    world.restart()
    assert world.told() == []
    assert world.monitor.calls == {"r1"}
    world.call_over("r1")
    assert world.told() == ["saved: 2 CALLING -> COMPLETED", "-> 2 COMPLETED COMPLETED"]


def test_restart_while_they_were_connected(world: World) -> None:
    up_to_calling(world)
    world.restart()
    world.service.call_gone("r1")
    assert world.request(2).reason == "CALL_LOST"


def test_restart_after_the_end(world: World) -> None:
    up_to_calling(world)
    world.call_over("r1")
    world.told()
    world.restart()
    world.wait(86400)
    assert world.told() == []
    assert world.monitor.devices == {}


def test_no_id_is_given_again_after_a_restart(world: World) -> None:
    queued(world)
    world.cancels("1000")
    world.wait(4000)
    assert not world.store.offers
    world.restart()
    world.fails("1100", "2000")
    assert world.told()[-1] == "-> offer 3 CCBS"


def test_an_instant_of_a_wrong_clock_is_cut_to_its_timer(world: World) -> None:
    world.fails("1200", "2002")
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.wants("1100", "2001")
    world.taken("r1")
    world.wants("1300", "2003")
    world.taken("r2")
    world.recall_failed("r2", "NOANSWER", 19)
    world.set("2000", IN_USE)
    world.clock.move(-30 * 86400)
    world.told()
    world.restart()
    assert world.told() == []
    world.wait(30)
    assert world.told() == ["ring 1300 for 2003: r3", "saved: 7 QUEUED -> READY"]
    world.wait(5)
    assert world.told() == ["saved: 5 READY -> QUEUED", "stop r1"]
    world.asks("1200")
    assert world.told() == ["-> FAIL OFFER_EXPIRED"]
    world.wait(7165)  # the longest timer it may have been asked under
    assert world.request(3).reason == "EXPIRED"


def test_instants_of_a_right_clock_are_not_cut(world: World) -> None:
    queued(world)
    world.restart()
    world.wait(100)
    world.restart()
    world.wait(4699)
    assert world.told() == []


# -------------------------------------------------------------------------------------- save, then speak


def test_nothing_is_rung_or_answered_before_it_is_saved(world: World) -> None:
    world.store.held = True
    world.fails("1000", "2000")
    assert world.told() == []
    world.store.release()
    assert world.told() == ["saved: offer 1", "-> offer 1 CCBS"]
    world.asks("1000")
    assert world.told() == []
    world.store.release()
    world.look()
    # That it is his turn goes to Asterisk at once. What is to be rung Asterisk asks, and that is saved first.
    assert world.told() == ["saved: 2 OFFERED -> QUEUED", "-> 2 at place 1", "ring 1000 for 2000: r1"]
    assert world.store.waiting
    world.store.release()
    assert world.told() == ["saved: 2 QUEUED -> READY"]
    world.taken("r1")
    assert world.told() == []
    world.store.release()
    assert world.told() == ["saved: 2 READY -> READY", "-> ring PJSIP/1000 for 20 s"]
    world.cancels("1000")
    assert world.told() == []
    world.store.release()
    told = world.told()
    assert told[0] == "saved: 2 READY -> ENDED" and "stop r1 PJSIP" not in told
    assert told[-1] == "-> 2 ENDED CANCELLED"


def test_what_comes_during_a_commit_waits_and_then_goes_in_one(world: World) -> None:
    world.set("2000", IN_USE)
    world.store.held = True
    world.fails("1000", "2000")
    tries = world.store.tries
    world.fails("1100", "2000")
    world.fails("1200", "2000")
    world.asks("1100")
    world.asks("1000")
    world.pending("1000")
    assert world.store.tries == tries
    world.store.release()
    assert world.told() == ["saved: offer 1", "-> offer 1 CCBS"]
    assert world.store.tries == tries + 1
    world.store.release()
    assert world.told() == [
        "saved: offer 2, offer 3, 4 OFFERED -> QUEUED, 5 OFFERED -> QUEUED",
        "-> offer 2 CCBS",
        "-> offer 3 CCBS",
        "-> 4 at place 1",
        "-> 5 at place 2",
        "-> 5 for 2000 QUEUED at place 2",
    ]
    assert world.store.tries == tries + 1


def test_a_refusal_waits_for_what_it_was_judged_by(world: World) -> None:
    """He reads what the commit under way may yet take back, so he is answered after it."""
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    world.told()
    world.store.held = True
    world.asks("1000")
    world.asks("1000")
    world.store.error = OSError("disk full")
    world.store.release()
    assert world.told() == ["not saved", "-> FAIL STORE_FAILED"]
    world.store.error = None
    world.store.release()
    assert [e.split(" at ")[0][:4] for e in world.told()] == ["save", "-> 3"]


def test_a_crash_during_a_commit_promised_nothing(world: World) -> None:
    world.fails("1000", "2000")
    world.told()
    world.store.held = True
    world.asks("1000")
    world.store.held = False
    world.restart()
    world.pending("1000")
    assert world.told() == ["-> none"]


def test_the_commit_fails_and_nothing_has_changed(world: World) -> None:
    world.set("2000", IN_USE)
    world.fails("1000", "2000")
    world.wants("1100", "2000")
    world.told()
    before = dict(world.store.requests)
    logged = len(world.logged)
    world.store.error = OSError("disk full")
    world.fails("1200", "2000")
    world.asks("1000")
    world.cancels("1100")
    world.service.cancel_id(3, world.said)
    world.pending("1000")
    world.pending("1100")
    assert world.told() == ["not saved", "-> FAIL STORE_FAILED"] * 4 + [
        "-> none",
        "-> 3 for 2000 QUEUED at place 1",
    ]
    assert world.store.requests == before
    assert len(world.logged) == logged + 4
    assert all("disk full" in line for line in world.logged[logged:])
    world.store.error = None
    world.asks("1200")
    world.asks("1000")
    assert world.told()[0] == "-> FAIL NO_CORE_INSTANCE"
    assert world.events == [] and world.request(max(world.store.requests)).caller == "1000"


def test_no_effect_runs_of_what_was_not_saved(world: World) -> None:
    queued(world)
    world.store.error = OSError("disk full")
    world.set("2000", IDLE)
    # Asterisk is told that it is his turn; but no phone rings, for that could not be saved.
    assert world.told() == ["ring 1000 for 2000: r1", "not saved"]
    world.taken("r1")
    assert world.told() == ["not saved", "-> FAIL STORE_FAILED"]
    world.store.error = None
    world.wait(41)
    assert len(world.rings()) == 1, "it is given up, and tried again after the pause"
    world.taken(world.agent.rung[-1].recall_id)
    assert world.told()[-1] == "-> ring PJSIP/1000 for 20 s"


def test_an_offer_is_not_forgotten_by_what_was_not_saved() -> None:
    world = World(Limits(cc_max_offers=2))
    world.fails("1000", "2000")
    world.fails("1100", "2000")
    world.wait(20)
    world.store.error = OSError("disk full")
    world.fails("1200", "2000")
    assert world.told()[-1] == "-> FAIL STORE_FAILED"
    world.store.error = None
    world.asks("1000")
    assert world.told() == ["-> FAIL OFFER_EXPIRED"]
    world.fails("1200", "2000")
    assert world.told()[-1].endswith("CCBS")
    check(world)


def test_his_latest_call_stays_the_latest_when_one_could_not_be_saved(world: World) -> None:
    for n in range(OFFERS_PER_CALLER):
        world.set(f"2{n:03}", IN_USE)
        world.fails("1000", f"2{n:03}")
    world.store.error = OSError("disk full")
    world.fails("1000", "2500")
    world.store.error = None
    world.asks("1000")
    assert world.request(max(world.store.requests)).callee == f"2{OFFERS_PER_CALLER - 1:03}"


def test_a_call_told_again_after_its_offer_was_crowded_out_is_a_new_one(world: World) -> None:
    world.fails("1000", "2500", uniqueid="1.1")
    for n in range(OFFERS_PER_CALLER):
        world.fails("1000", f"2{n:03}")
    world.told()
    world.fails("1000", "2500", uniqueid="1.1")
    assert world.told()[0].startswith("saved: offer")


def test_no_recall_is_stopped_by_a_cancel_that_was_not_saved(world: World) -> None:
    up_to_taken(world)
    world.store.error = OSError("disk full")
    world.cancels("1000")
    assert world.told() == ["not saved", "-> FAIL STORE_FAILED"]
    world.store.error = None
    world.answered("r1")
    assert world.told()[-1] == "-> call 2000 in phones for PJSIP/1000"


@pytest.mark.parametrize(
    ("prepare", "tell", "after"),
    [
        (up_to_calling, lambda w: w.call_over("r1"), "saved: 2 CALLING -> COMPLETED"),
        (up_to_calling, lambda w: w.call_over("r1", "NOANSWER", 19), "saved: 2 CALLING -> QUEUED"),
        (up_to_taken, lambda w: w.recall_failed("r1"), "saved: 2 READY -> QUEUED"),
        (up_to_calling, lambda w: w.service.call_gone("r1"), "saved: 2 CALLING -> ENDED"),
        (
            up_to_ready,
            lambda w: w.service.recall_undelivered("r1", "there is no spool"),
            "saved: 2 READY -> QUEUED",
        ),
    ],
)
def test_what_a_turn_tells_once_is_kept_and_tried_again(
    world: World, prepare: Callable[[World], None], tell: Callable[[World], None], after: str
) -> None:
    prepare(world)
    world.clock.timers.clear()
    world.store.error = OSError("disk full")
    world.store.tries = 0
    tell(world)
    assert world.told() in (["not saved", "-> FAIL STORE_FAILED"], ["not saved"])
    tried = []
    for second in range(1, 250):
        before = world.store.tries
        world.wait(1)
        tried += [second] * (world.store.tries - before)
    assert tried == [1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert set(world.told()) == {"not saved"}
    world.store.error = None
    world.wait(60)
    told = world.told()
    assert told[0] == after
    assert not [e for e in told if e.startswith("->")], "answered twice"


def test_what_is_kept_is_tried_again_by_the_next_event_too(world: World) -> None:
    up_to_calling(world)
    world.store.error = OSError("disk full")
    world.call_over("r1")
    world.told()
    world.store.error = None
    world.fails("1100", "2001")
    assert world.told() == ["saved: offer 3, 2 CALLING -> COMPLETED", "-> offer 3 CCBS"]


def whose_turn_fails(world: World, then: Callable[[], None]) -> None:
    """Request 2's turn has come; before that turns out not to be saved, something else follows, which is."""
    queued(world)
    world.store.held = True
    world.set("2000", IDLE)
    assert world.told() == ["ring 1000 for 2000: r1"]
    then()
    world.store.error = OSError("database is locked")
    world.store.release()
    world.store.error = None
    world.store.held = False
    if world.store.waiting:
        world.store.release()
    world.look()


def test_whose_turn_it_is_was_not_saved_and_he_is_called_back_all_the_same(world: World) -> None:
    whose_turn_fails(world, lambda: None)
    assert world.request(2).state is State.QUEUED
    [line] = [line for line in world.logged if "database is locked" in line]
    assert line.startswith("missing in the log of request 2: 2000 is free")
    world.taken("r1")
    assert world.told() == ["not saved", "saved: 2 READY -> READY", "-> ring PJSIP/1000 for 20 s"]
    assert (world.request(2).state, world.request(2).recall_id) == (State.READY, "r1")


@pytest.mark.parametrize(
    ("then", "saved", "state"),
    [
        (lambda w: w.cancels("1000"), "saved: 2 READY -> ENDED", State.ENDED),
        (lambda w: w.taken("r1"), "saved: 2 READY -> READY", State.READY),
        (
            lambda w: w.service.recall_undelivered("r1", "the spool is full"),
            "saved: 2 READY -> QUEUED",
            State.QUEUED,
        ),
    ],
)
def test_what_was_not_saved_is_not_written_over_what_was(
    world: World, then: Callable[[World], None], saved: str, state: State
) -> None:
    whose_turn_fails(world, lambda: then(world))
    assert world.told()[:2] == ["not saved", saved]
    world.fails("1100", "2001")
    assert world.told() == ["saved: offer 3", "-> offer 3 CCBS"]
    assert world.request(2).state is state


def test_who_has_taken_it_back_is_not_rung_after_a_restart(world: World) -> None:
    whose_turn_fails(world, lambda: world.cancels("1000"))
    world.fails("1100", "2001")
    world.told()
    world.restart()
    world.wait(4000)
    assert world.rings() == [] and world.monitor.devices == {}


def test_whose_turn_it_is_follows_again_after_a_restart(world: World) -> None:
    whose_turn_fails(world, lambda: None)
    world.told()
    world.restart()
    assert world.rings() == ["ring 1000 for 2000: r2"]
    world.taken("r1")
    world.taken("r2")
    assert [e for e in world.told() if "->" in e and not e.startswith("saved")] == [
        "-> FAIL RECALL_UNKNOWN",
        "-> ring PJSIP/1000 for 20 s",
    ]


def test_a_store_that_fails_from_the_start_is_tried_again(world: World) -> None:
    queued(world)
    world.store.error = OSError("disk full")
    world.restart()
    assert world.clock.armed() == [1]
    world.set("2000", IDLE)
    assert world.rings() == []
    world.store.error = None
    world.wait(10)
    assert len(world.rings()) == 1


def test_after_a_success_the_pauses_begin_anew(world: World) -> None:
    up_to_calling(world)
    world.store.error = OSError("disk full")
    world.fails("1100", "2001")
    world.fails("1100", "2001")
    world.fails("1100", "2001")
    world.store.error = None
    world.fails("1100", "2001")
    world.store.error = OSError("disk full")
    world.call_over("r1")
    world.told()
    world.wait(1)
    assert world.told() == ["not saved"]


def test_a_fault_of_our_own_stops_nobody_else(world: World) -> None:
    world.store.held = True
    world.fails("1000", "2000")
    world.service.offer(None, world.said)  # type: ignore[arg-type]
    world.fails("1100", "2000")
    world.store.held = False
    world.store.release()
    assert world.told() == [
        "saved: offer 1",
        "-> offer 1 CCBS",
        "saved: offer 2",
        "-> FAIL INTERNAL_ERROR",
        "-> offer 2 CCBS",
    ]
    assert any("AttributeError" in line for line in world.logged)


def test_what_is_due_is_not_forgotten_by_a_commit_that_fails(world: World) -> None:
    queued(world)
    world.store.error = OSError("disk full")
    world.wait(4800)
    assert world.request(2).state is State.QUEUED
    world.store.error = None
    world.wait(60)
    assert world.request(2).reason == "EXPIRED"


# ----------------------------------------------------------------------------------------- levels and time


def test_nobody_is_watched_when_nobody_waits(world: World) -> None:
    assert world.monitor.devices == {}
    world.fails("1000", "2000")
    assert world.monitor.devices == {}
    world.set("2000", IN_USE)
    world.asks("1000")
    assert world.monitor.devices == {phone("2000"): 0.5}
    world.cancels("1000")
    assert world.monitor.devices == {}


def test_each_device_is_watched_as_often_as_the_most_eager_says(world: World) -> None:
    world.directory.set("2000", poll_interval=2)
    world.directory.set("2001", ["PJSIP/2000"], poll_interval=0.2)
    world.directory.set("1000", poll_interval=0.1)
    queued(world)
    assert world.monitor.devices == {phone("2000"): 2}
    world.wants("1100", "2001", devices=["PJSIP/2000"])
    assert world.monitor.devices == {phone("2000"): 0.2}
    world.set("1000", IN_USE)
    world.set("2000", IDLE)
    assert world.monitor.devices[phone("1000")] == 0.1


def test_a_level_told_again_changes_nothing(world: World) -> None:
    queued(world)
    tries = world.store.tries
    for _ in range(5):
        world.service.levels({phone("2000"): IN_USE})
    assert (world.store.tries, world.told()) == (tries, [])


def test_a_level_nobody_asked_for_is_not_kept(world: World) -> None:
    world.blind = True
    world.service.levels({phone("2000"): IDLE, phone("1000"): IDLE})
    world.wants("1000", "2000")
    assert world.rings() == []
    world.blind = False
    world.look()
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_what_is_not_watched_any_more_is_looked_at_afresh(world: World) -> None:
    queued(world)
    world.set("2000", IDLE)
    world.taken("r1")
    world.recall_failed("r1", "NOANSWER", 19)
    assert phone("1000") not in world.monitor.devices
    world.set("1000", IN_USE)
    world.told()
    world.wait(30)
    assert world.rings() == []
    assert world.request(2).suspended


def test_without_its_source_nothing_is_known(world: World) -> None:
    world.set("1000", IN_USE)
    queued(world)
    world.set("2000", IDLE)
    world.blind = True
    world.service.levels_lost()
    world.service.levels({phone("1000"): IDLE})
    world.wait(600)
    assert world.rings() == []
    world.service.levels({phone("2000"): IDLE})
    world.service.levels({phone("1000"): IDLE})
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_turn_under_way_survives_the_loss_of_the_source(world: World) -> None:
    up_to_taken(world)
    world.blind = True
    world.service.levels_lost()
    world.wait(5)
    world.answered("r1")
    assert world.told()[-1] == "-> call 2000 in phones for PJSIP/1000"


def test_a_pause_between_free_and_the_recall(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=5)
    queued(world)
    world.set("2000", IDLE)
    world.wait(4)
    world.set("2000", IN_USE)
    world.wait(2)
    world.set("2000", IDLE)
    world.wait(4.9)
    assert world.told() == []
    world.wait(0.1)
    assert world.told() == ["ring 1000 for 2000: r1", "saved: 2 QUEUED -> READY"]


def cut_off(world: World, seconds: float, then: Callable[[], None]) -> None:
    """The source of device states is gone so long; ``then`` happens before it is back."""
    world.blind = True
    world.service.levels_lost()
    world.monitor.told.clear()
    world.wait(seconds)
    then()
    world.blind = False
    world.look()


@pytest.mark.parametrize("again", [False, True], ids=["once", "lost twice"])
def test_the_pause_of_one_who_became_free_unseen_begins_when_he_is_seen(world: World, again: bool) -> None:
    world.directory.set("2000", cc_guard_timer=10)
    queued(world)

    def then() -> None:
        if again:
            world.service.levels_lost()
        world.set("2000", IDLE)

    cut_off(world, 5, then)
    world.wait(9.9)
    assert world.rings() == []
    world.wait(0.1)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_the_pause_of_one_who_stays_free_goes_on_without_a_source(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=10)
    queued(world)
    world.set("2000", IDLE)
    cut_off(world, 10, lambda: None)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_what_was_known_is_forgotten_when_nobody_waits_for_him_any_more(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=10)
    queued(world)
    cut_off(world, 1, lambda: world.cancels("1000"))
    world.set("2000", IDLE)
    world.wants("1000", "2000")
    assert world.rings() == ["ring 1000 for 2000: r1"], "idle when first looked at"


def test_idle_told_again_does_not_start_the_pause_anew(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=5)
    queued(world)
    world.set("2000", IDLE)
    world.wait(4)
    world.service.levels({phone("2000"): IDLE})
    world.wait(1)
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_ringing_for_somebody_else_starts_the_pause_anew(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=5)
    queued(world)
    world.set("2000", IDLE)
    world.wait(4)
    world.set("2000", RINGING)
    world.wait(20)
    world.set("2000", IDLE)
    world.wait(4.9)
    assert world.rings() == []
    world.wait(0.1)
    assert len(world.rings()) == 1


def test_the_pause_is_that_of_the_phone_put_down_while_he_uses_the_other(world: World) -> None:
    world.directory.set("2000", ["PJSIP/b1", "PJSIP/b2"], cc_guard_timer=5)
    world.set("b1", IN_USE)
    world.set("b2", IN_USE)
    world.wants("1000", "2000", devices=["PJSIP/b1", "PJSIP/b2"])
    world.wait(60)
    world.set("b1", IDLE)
    world.wait(4.9)
    assert world.rings() == []
    world.wait(0.1)
    assert len(world.rings()) == 1


def test_who_was_free_before_has_rested(world: World) -> None:
    world.directory.set("2000", cc_guard_timer=5)
    world.wants("1000", "2000")
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_one_call_is_armed_for_the_nearest_instant(world: World) -> None:
    assert world.clock.armed() == []
    queued(world)
    assert len(world.clock.armed()) == 1
    world.set("2000", IDLE)
    [due] = world.clock.armed()
    assert due <= 10
    world.wait(9)
    assert world.told()[0].startswith("ring")
    world.wait(1)
    assert world.told() == ["saved: 2 READY -> QUEUED", "stop r1"]


def test_a_call_that_comes_a_moment_early_is_armed_again(world: World) -> None:
    up_to_ready(world)
    [timer] = [t for t in world.clock.timers if not t.cancelled]
    world.clock.move(timer.when - world.clock.now() - 0.001)
    world.clock.timers.remove(timer)
    timer.call()
    assert world.clock.armed() == [pytest.approx(0.001, abs=1e-5)]
    world.wait(0.002)
    assert world.told() == ["saved: 2 READY -> QUEUED", "stop r1"]


# ------------------------------------------------------------------------------------------- endless loops


def a_day(world: World, reply: Callable[[Request], None], *, callee_calls: bool = False) -> list[float]:
    """When the caller's phone rang in a day in which each recall meets ``reply``, a second later."""
    at: list[float] = []

    def rung(request: Request) -> None:
        at.append(world.clock.now() - START)
        world.clock.call_at(world.clock.now() + 1, lambda: reply(request))

    world.agent.on_recall = rung
    world.wants("1000", "2000")
    for _ in range(144):
        world.wait(300)
        if callee_calls:
            world.set("2000", IN_USE)
        world.wait(300)
        world.set("2000", IDLE)
    assert world.request(2).state is State.ENDED
    assert all(b - a >= 30 for a, b in pairwise(at)), "rung again at once"
    return at


def recall_reply(world: World, dialstatus: str, cause: int) -> Callable[[Request], None]:
    def reply(request: Request) -> None:
        world.taken(request.recall_id)
        world.recall_failed(request.recall_id, dialstatus, cause)

    return reply


def call_reply(world: World, dialstatus: str, cause: int) -> Callable[[Request], None]:
    def reply(request: Request) -> None:
        world.taken(request.recall_id)
        world.answered(request.recall_id)
        world.call_over(request.recall_id, dialstatus, cause)

    return reply


@pytest.mark.parametrize(
    ("dialstatus", "cause", "least", "most"),
    [("BUSY", 17, 2, 160), ("CHANUNAVAIL", 20, 2, 160), ("NOANSWER", 19, 3, 3), ("NOANSWER", 3, 3, 3)]
    + [("CHANUNAVAIL", 21, 3, 3)],
)
def test_a_day_with_a_caller_who_never_answers(
    world: World, dialstatus: str, cause: int, least: int, most: int
) -> None:
    assert least <= len(a_day(world, recall_reply(world, dialstatus, cause))) <= most


@pytest.mark.parametrize(
    ("dialstatus", "cause", "calls", "rings"),
    [
        ("BUSY", 17, False, 1),
        ("BUSY", 17, True, 3),
        ("NOANSWER", 19, False, 1),
        ("NOANSWER", 19, True, 3),
        ("CHANUNAVAIL", 21, False, 1),
        ("CHANUNAVAIL", 20, False, 3),
        ("CONGESTION", 34, True, 1),
    ],
)
def test_a_day_with_a_callee_who_reads_idle_but_never_answers(
    world: World, dialstatus: str, cause: int, calls: bool, rings: int
) -> None:
    assert len(a_day(world, call_reply(world, dialstatus, cause), callee_calls=calls)) == rings


def test_a_day_with_an_asterisk_that_takes_no_call_file(world: World) -> None:
    assert 2 <= len(a_day(world, lambda request: None)) <= 4800 / 40 + 1


def test_a_day_with_a_spool_that_is_full(world: World) -> None:
    def undelivered(request: Request) -> None:
        world.service.recall_undelivered(request.recall_id, "the spool is full")

    assert 2 <= len(a_day(world, undelivered)) <= 160


def test_a_day_with_a_caller_who_flutters(world: World) -> None:
    """Busy and free again each minute, and his phone refuses every recall."""
    reply = recall_reply(world, "BUSY", 17)

    def rung(request: Request) -> None:
        world.clock.call_at(world.clock.now() + 1, lambda: reply(request))

    world.agent.on_recall = rung
    world.wants("1000", "2000")
    for _ in range(1440):
        world.set("1000", IN_USE)
        world.wait(30)
        world.set("1000", IDLE)
        world.wait(30)
    assert 2 <= len(world.rings()) <= 160
    assert world.request(2).reason == "EXPIRED"
    assert len(world.store.log) < 1500


def test_gone_for_a_day(world: World) -> None:
    world.set("1000", GONE)
    world.wants("1000", "2000")
    world.wait(86400)
    assert world.rings() == []
    assert len(world.store.log) == 3
