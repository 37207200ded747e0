"""Whose turn it is: oldest first, the suspended passed over, devices taken on both sides, nobody lost."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from fastagi.completion import machine
from fastagi.completion.machine import step
from fastagi.completion.model import (
    OPEN,
    TURN,
    Context,
    Device,
    Number,
    Policy,
    Presence,
    Request,
    Service,
    Settings,
    State,
    together,
)
from fastagi.completion.queue import Verdict, View, ready, select, watched
from tests.unit.rules import GONE, IDLE, IN_USE, RINGING

NOW = 1000.0
Levels = Mapping[Device, Presence]


def dev(name: str) -> Device:
    return Device(f"PJSIP/{name}")


def req(id: int, caller: str = "", callee: str = "b", **changes: object) -> Request:
    """Request ``id``, asked at second ``id``, by phone a<id> for phone b."""
    caller = caller or f"a{id}"
    base = Request(
        id=id,
        caller=Number(caller),
        caller_devices=tuple(map(dev, caller.split("&"))),
        caller_context=Context("phones"),
        callee=Number(callee),
        callee_devices=tuple(map(dev, callee.split("&"))),
        service=Service.CCBS,
        state=State.QUEUED,
        why="was busy",
        asked_at=float(id),
        service_ends=NOW + 4800,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def levels(**seen: Presence) -> Levels:
    return {dev(name): presence for name, presence in seen.items()}


def view(seen: Levels, now: float = NOW, guard: float = 0, **since: float) -> View:
    """What is known: the levels, and when a device was put down; one not named was idle when first looked at."""

    def put_down(device: Device) -> float:
        return since.get(device.removeprefix("PJSIP/"), 0.0)

    return View(
        seen.get,
        since=put_down,
        used=put_down,
        guard=lambda r: guard,
        now=now,
    )


def first(
    requests: Iterable[Request], seen: Levels, now: float = NOW, guard: float = 0, **since: float
) -> tuple[int, Verdict] | None:
    found = select(list(requests), view(seen, now, guard, **since))
    return found and (found[0].id, found[1])


A1, A2 = req(1), req(2)
ALL_IDLE = levels(a1=IDLE, a2=IDLE, a3=IDLE, b=IDLE, c=IDLE)


# ------------------------------------------------------------------------------------------ whose turn it is


def test_nobody_waits() -> None:
    assert first([], ALL_IDLE) is None


def test_the_oldest_first() -> None:
    assert first([A1, A2], ALL_IDLE) == (1, Verdict.SELECT)


def test_the_order_is_that_of_the_list_not_of_the_ids() -> None:
    assert first([A2, A1], ALL_IDLE) == (2, Verdict.SELECT)


@pytest.mark.parametrize(
    ("presence", "turn"), [(IDLE, True), (RINGING, False), (IN_USE, False), (GONE, False), (None, False)]
)
@pytest.mark.parametrize("service", list(Service))
def test_the_callee_is_free_when_idle(service: Service, presence: Presence | None, turn: bool) -> None:
    seen = {**levels(a1=IDLE), **({dev("b"): presence} if presence else {})}
    assert first([req(1, service=service)], seen) == ((1, Verdict.SELECT) if turn else None)


@pytest.mark.parametrize("presence", [RINGING, IN_USE, GONE])
def test_a_caller_who_is_not_free_is_passed_over(presence: Presence) -> None:
    seen = {**ALL_IDLE, dev("a1"): presence}
    assert first([A1, A2], seen) == (1, Verdict.PASS_OVER)
    assert first([replace(A1, suspended=True), A2], seen) == (2, Verdict.SELECT)


def test_one_passed_over_keeps_his_place() -> None:
    back = replace(A1, suspended=True)
    assert first([back, A2], ALL_IDLE) == (1, Verdict.RESUME)
    assert first([replace(back, suspended=False), A2], ALL_IDLE) == (1, Verdict.SELECT)


@pytest.mark.parametrize("presence", [RINGING, IN_USE, GONE, None])
def test_he_is_back_when_idle_only(presence: Presence | None) -> None:
    seen = {dev("a1"): presence} if presence else {}
    assert first([replace(A1, suspended=True)], seen) is None


def test_he_is_back_whatever_the_callee_does() -> None:
    assert first([replace(A1, suspended=True)], levels(a1=IDLE, b=IN_USE)) == (1, Verdict.RESUME)


def test_a_caller_not_looked_at_yet_holds_his_place() -> None:
    assert first([A1, A2], levels(a2=IDLE, b=IDLE)) is None


def test_but_he_holds_up_nobody_elsewhere() -> None:
    elsewhere = req(3, "a3", "c")
    assert first([A1, A2, elsewhere], levels(a2=IDLE, a3=IDLE, b=IDLE, c=IDLE)) == (3, Verdict.SELECT)


def test_a_caller_not_looked_at_holds_nothing_while_the_callee_is_not_ready() -> None:
    waits = replace(A1, sign_needed=True)
    assert first([waits, A2], levels(a2=IDLE, b=IDLE)) == (2, Verdict.SELECT)


def test_until_retry_at_the_younger_one_goes_first() -> None:
    later = replace(A1, retry_at=NOW + 0.1)
    assert first([later, A2], ALL_IDLE) == (2, Verdict.SELECT)
    assert first([later, A2], ALL_IDLE, now=NOW + 0.1) == (1, Verdict.SELECT)


def test_a_callee_who_has_not_rested_is_left_alone() -> None:
    assert first([A1], ALL_IDLE, guard=5, b=NOW - 4.9) is None
    assert first([A1], ALL_IDLE, guard=5, b=NOW - 5) == (1, Verdict.SELECT)
    assert not ready(A1, view(ALL_IDLE, guard=5, b=NOW - 4.9))
    assert ready(A1, view(ALL_IDLE, guard=5, b=NOW - 5))
    assert ready(A1, view(ALL_IDLE, guard=5)), "he was free before, and has nothing to rest from"


@pytest.mark.parametrize("state", sorted(set(State) - {State.QUEUED}))
def test_only_the_queued_are_looked_at(state: State) -> None:
    assert first([req(1, state=state), req(2, "a2", "c")], ALL_IDLE) == (2, Verdict.SELECT)


# ------------------------------------------------------------------------------------------- signs of life


@pytest.mark.parametrize(
    ("presence", "verdict"),
    [(IN_USE, Verdict.SIGN_OF_LIFE), (RINGING, None), (IDLE, None), (GONE, None), (None, None)],
)
def test_a_sign_of_life_is_using_the_phone(presence: Presence | None, verdict: Verdict | None) -> None:
    waits = req(1, service=Service.CCNR, sign_needed=True)
    seen = {**levels(a1=IDLE), **({dev("b"): presence} if presence else {})}
    assert first([waits], seen) == ((1, verdict) if verdict else None)


def test_a_sign_on_one_of_his_phones_is_enough_also_with_one_unread() -> None:
    waits = req(1, callee="b&c", service=Service.CCNR, sign_needed=True)
    assert first([waits], levels(c=IN_USE)) == (1, Verdict.SIGN_OF_LIFE)


def test_a_sign_of_life_is_seen_while_the_caller_is_passed_over_or_a_turn_has_the_devices() -> None:
    waits = req(2, sign_needed=True, suspended=True, retry_at=NOW + 9)
    other = req(1, state=State.CALLING)
    assert first([other, waits], levels(a2=IN_USE, b=IN_USE)) == (2, Verdict.SIGN_OF_LIFE)


def test_using_the_phone_means_nothing_to_who_does_not_wait_for_it() -> None:
    assert first([A1], levels(a1=IDLE, b=IN_USE)) is None


def test_one_without_a_sign_holds_up_nobody() -> None:
    assert first([replace(A1, sign_needed=True), A2], ALL_IDLE) == (2, Verdict.SELECT)


# ------------------------------------------------------------------------------------------ taken devices


@pytest.mark.parametrize("state", sorted(TURN))
@pytest.mark.parametrize(
    ("turn", "other"),
    [
        (("a1", "b"), ("a2", "b")),  # two for one callee
        (("a1", "b"), ("a1", "c")),  # one caller, two callees
        (("a1", "b"), ("b", "a1")),  # two camped on each other
        (("a1", "b"), ("a2", "a1")),  # the caller is somebody's callee
        (("a1", "b"), ("b", "c")),  # the callee is somebody's caller
        (("a1", "b&c"), ("a2", "c")),  # a device of two extensions, called
        (("a1&c", "b"), ("c", "d")),  # a device of two extensions, calling
        (("a1", "b"), ("a2&a1", "d")),
        (("a1", "b"), ("a2", "d&b")),
    ],
)
@pytest.mark.parametrize("younger", [True, False])
def test_the_devices_of_a_turn_are_taken_on_both_sides(
    state: State, turn: tuple[str, str], other: tuple[str, str], younger: bool
) -> None:
    all_idle = {dev(name): IDLE for name in ("a1", "a2", "b", "c", "d")}
    under_way, waits = req(1, *turn, state=state), req(2, *other)
    both = [under_way, waits] if younger else [waits, under_way]
    assert first(both, all_idle) is None
    assert first([waits], all_idle) == (2, Verdict.SELECT)


def test_one_whose_device_is_taken_is_not_passed_over() -> None:
    """His phone is in use for his other recall: he keeps waiting, as if the callee were not free."""
    under_way = req(1, "a1", "b", state=State.CALLING)
    assert first([under_way, req(2, "a1", "c")], {**ALL_IDLE, dev("a1"): IN_USE}) is None


def test_a_turn_elsewhere_takes_nothing_here() -> None:
    assert first([req(1, "a1", "b", state=State.READY), req(2, "a2", "c")], ALL_IDLE) == (2, Verdict.SELECT)


@pytest.mark.parametrize("state", sorted(TURN))
def test_the_numbers_of_a_turn_are_taken_where_the_devices_tell_nothing(state: State) -> None:
    """Two who wait for each other by hint."""
    one = replace(req(1, state=state), callee_devices=(Device("Hint:b@x"),))
    other = replace(req(2, "b", "a1"), callee_devices=(Device("Hint:a1@x"),))
    seen = {**levels(a1=IDLE, b=IDLE), Device("Hint:a1@x"): IDLE, Device("Hint:b@x"): IDLE}
    assert first([one, other], seen) is None
    assert first([other], seen) == (2, Verdict.SELECT)


def test_a_number_beyond_a_trunk_is_nobodys_name() -> None:
    """Those beyond may share a From, and one there may be called as one of ours."""
    turn = req(1, "7000", "b", state=State.READY, agent="mxone")
    same_from = replace(req(2, "7000", "c", agent="mxone"), caller_devices=(dev("a2"),))
    assert first([turn, same_from], ALL_IDLE) == (2, Verdict.SELECT)
    turn = replace(req(1, "a1", "c", state=State.READY, monitor="mxone"), callee_devices=(dev("far"),))
    ours = req(2, "a2", "c")
    assert first([turn, ours], ALL_IDLE) == (2, Verdict.SELECT)


# -------------------------------------------------------------------------------------- several devices


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([], None),
        ([None], None),
        ([IDLE, None], None),
        ([IN_USE, None], None),
        ([IDLE, IDLE], IDLE),
        ([IDLE, GONE], IDLE),
        ([GONE, GONE], GONE),
        ([RINGING, IDLE], RINGING),
        ([RINGING, GONE], RINGING),
        ([RINGING, IN_USE], IN_USE),
        ([IDLE, IN_USE], IN_USE),
        ([GONE, IN_USE], IN_USE),
    ],
)
def test_the_devices_of_one_person_as_one(parts: list[Presence | None], whole: Presence | None) -> None:
    assert together(parts) is whole
    assert together(reversed(parts)) is whole


TWO = req(1, callee="b&c")


@pytest.mark.parametrize("other", [IDLE, GONE, RINGING, IN_USE])
def test_a_callee_with_two_phones_is_free_when_one_is_idle(other: Presence) -> None:
    assert first([TWO], levels(a1=IDLE, b=IDLE, c=other)) == (1, Verdict.SELECT)
    assert first([TWO], levels(a1=IDLE, b=other, c=IDLE)) == (1, Verdict.SELECT)


@pytest.mark.parametrize("one", [GONE, RINGING, IN_USE])
@pytest.mark.parametrize("other", [GONE, RINGING, IN_USE])
def test_he_is_not_free_when_none_is(one: Presence, other: Presence) -> None:
    assert first([TWO], levels(a1=IDLE, b=one, c=other)) is None


def test_nothing_is_said_of_him_before_all_his_phones_were_read() -> None:
    assert first([TWO], levels(a1=IDLE, b=IDLE)) is None
    assert first([TWO], levels(a1=IDLE, c=IDLE)) is None


AWAITED = replace(TWO, service=Service.CCNR, idle_after=NOW - 100)
"""He did not answer at NOW - 100, and has used a phone since."""


@pytest.mark.parametrize("busy", [IN_USE, RINGING])
def test_who_did_not_answer_is_free_when_the_phone_he_used_since_is_put_down(busy: Presence) -> None:
    seen = levels(a1=IDLE, b=IDLE, c=busy)
    assert first([AWAITED], seen) is None, "idle when first looked at"
    assert first([AWAITED], seen, b=NOW - 101) is None, "idle since before he was asked for"
    assert first([AWAITED], seen, b=NOW - 100) is None, "put down with that very call"
    assert first([AWAITED], seen, b=NOW - 99) == (1, Verdict.SELECT)
    assert first([AWAITED], seen, c=NOW - 99) is None, "that one is used again"
    rung = replace(view(seen, b=NOW - 99), used=lambda d: 0.0)
    assert select([AWAITED], rung) is None, "idle since it rang in vain"


@pytest.mark.parametrize("other", [IDLE, GONE])
def test_when_nobody_talks_any_more_it_does_not_matter_which_he_used(other: Presence) -> None:
    assert first([AWAITED], levels(a1=IDLE, b=IDLE, c=other)) == (1, Verdict.SELECT)


def test_of_one_phone_it_does_not_matter_since_when_it_is_idle() -> None:
    one = req(1, service=Service.CCNR, idle_after=NOW)
    assert first([one], ALL_IDLE, b=NOW - 50) == (1, Verdict.SELECT)


def test_he_rests_from_the_phone_that_makes_him_free() -> None:
    """While another one is used: from the first put down; while none is: from the last."""
    three = req(1, callee="b&c&d")
    used = levels(a1=IDLE, b=IDLE, c=IDLE, d=IN_USE)
    assert first([three], used, guard=5, b=NOW - 5, c=NOW - 1) == (1, Verdict.SELECT)
    assert first([three], used, guard=5, b=NOW - 4, c=NOW - 1) is None
    awaited = replace(three, idle_after=NOW - 4.5)
    assert first([awaited], used, guard=5, b=NOW - 5, c=NOW - 4) is None, "the fresh one has not rested"
    assert first([awaited], used, guard=4, b=NOW - 5, c=NOW - 4) == (1, Verdict.SELECT)
    unused = levels(a1=IDLE, b=IDLE, c=IDLE, d=GONE)
    assert first([three], unused, guard=5, b=NOW - 5, c=NOW - 1) is None
    assert first([three], unused, guard=5, b=NOW - 50, c=NOW - 5, d=NOW) == (1, Verdict.SELECT)


def test_a_caller_with_two_phones_is_passed_over_while_he_uses_one() -> None:
    two = req(1, "a1&a2")
    assert first([two], levels(a1=IDLE, a2=IN_USE, b=IDLE)) == (1, Verdict.PASS_OVER)
    assert first([two], levels(a1=IDLE, a2=IDLE, b=IDLE)) == (1, Verdict.SELECT)


# ----------------------------------------------------------------------------------------- who is watched


def look_at(*requests: Request, seen: Levels = ALL_IDLE, guard: float = 0) -> set[tuple[str, bool]]:
    found = watched(requests, view(seen, guard=guard, b=NOW - 1))
    return {(device.removeprefix("PJSIP/"), of_callee) for device, of_callee in found}


def test_a_callee_is_watched_while_anybody_waits_or_is_in_his_turn() -> None:
    for state in OPEN:
        assert ("b", True) in look_at(req(1, state=state), seen={})
    assert look_at(req(1, callee="b&c"), seen={}) == {("b", True), ("c", True)}


def test_a_caller_is_watched_when_it_matters() -> None:
    assert look_at(A1, seen=levels(b=IDLE)) == {("b", True), ("a1", False)}
    assert look_at(A1, seen=levels(b=IN_USE)) == {("b", True)}
    assert look_at(A1, seen=levels(b=IDLE), guard=2) == {("b", True)}
    assert look_at(replace(A1, suspended=True), seen={}) == {("b", True), ("a1", False)}
    assert look_at(replace(A1, state=State.CALLING)) == {("b", True)}
    assert look_at(replace(A1, state=State.READY, suspended=True)) == {("b", True)}


# -------------------------------------------------------------------------------------------- random runs


def free(r: Request, v: View) -> bool:
    """By the letter: all his phones were read, and one that may say so is idle."""
    phones = {d: v.look(d) for d in r.callee_devices}
    if None in phones.values():
        return False
    whole = IN_USE not in phones.values() and RINGING not in phones.values()
    return any(
        p is IDLE and (whole or v.used(d) > r.idle_after or not r.idle_after) for d, p in phones.items()
    )


def possible(r: Request, requests: list[Request], v: View) -> bool:
    """By the letter: he is available, both are free, and no turn has one of their devices."""
    taken = {d for t in requests if t.state in TURN for d in t.caller_devices + t.callee_devices}
    return (
        r.state is State.QUEUED
        and not r.suspended
        and not r.sign_needed
        and r.retry_at <= v.now
        and not taken & {*r.caller_devices, *r.callee_devices}
        and free(r, v)
    )


def served(r: Request, v: View) -> bool:
    return together(map(v.look, r.caller_devices)) is IDLE


def eligible(some: list[Request], requests: list[Request], v: View) -> tuple[list[int], set[Device]]:
    """Who of ``some`` could be served now, and the devices held by those whose caller was not read yet."""
    could: list[int] = []
    held: set[Device] = set()
    for r in some:
        devices = {*r.caller_devices, *r.callee_devices}
        if possible(r, requests, v) and not held & devices:
            if served(r, v):
                could.append(r.id)
            else:
                held |= devices
    return could, held


EVENT: dict[Verdict, machine.Event] = {
    Verdict.PASS_OVER: machine.CallerBusy(),
    Verdict.RESUME: machine.CallerFree(),
    Verdict.SIGN_OF_LIFE: machine.SignOfLife(),
}


@pytest.mark.parametrize("seed", range(150))
def test_random_lives(seed: int) -> None:
    dice = random.Random(seed)
    phones = ["a", "b", "c", "d", "a&b", "d&e"] if seed % 2 else ["a", "b", "c", "d", "e", "f"]
    policy = Policy(Settings(cc_max_recalls=50, cc_retry_timer=3), Settings())
    requests: list[Request] = []
    seen: dict[Device, Presence] = {}
    since: dict[Device, float] = {}
    used: dict[Device, float] = {}
    over: list[int] = []
    born = recalls = 0
    now = NOW

    def put(new: Request) -> None:
        requests[[r.id for r in requests].index(new.id)] = new

    for _ in range(120):
        now += dice.choice((0, 1, 2))
        match dice.randrange(4):
            case 0 if len(requests) < 12:
                caller, callee = dice.sample(phones, 2)
                if not set(caller.split("&")) & set(callee.split("&")):
                    born += 1
                    asked = replace(
                        req(born, caller, callee), state=State.OFFERED, service=dice.choice(list(Service))
                    )
                    requests.append(step(asked, machine.Asked(), now, policy).request)
            case 1 | 2:
                device = dev(dice.choice("abcdef"))
                old, seen[device] = seen.get(device), dice.choice((IDLE, IDLE, IN_USE, RINGING, GONE))
                if seen[device] is IDLE and old not in (IDLE, None):
                    since[device] = now
                if IN_USE in (old, seen[device]):
                    used[device] = now
                if dice.random() < 0.1:
                    del seen[device]
            case 3 if turns := [r for r in requests if r.state in TURN]:
                r = dice.choice(turns)
                if r.state is State.READY and not r.taken:
                    put(step(r, machine.RecallTaken("x"), now, policy).request)
                elif r.state is State.READY:
                    told: list[machine.Event] = [
                        machine.RecallFailed("NOANSWER", 0),
                        machine.RecallFailed("BUSY", 17),
                        machine.CallerAnswered("x"),
                        machine.CallerAnswered("x"),
                    ]
                    put(step(r, dice.choice(told), now, policy).request)
                elif dice.random() < 0.5:
                    put(step(r, machine.CallFailed("BUSY", 17, dice.random() < 0.5), now, policy).request)
                else:
                    over.append(step(r, machine.CallCompleted(), now, policy).request.id)
                    requests.remove(r)
        verdicts = 0
        v = View(seen.get, lambda d: since.get(d, 0.0), lambda d: used.get(d, 0.0), lambda r: 0.0, now)
        while found := select(requests, v):
            r, verdict = found
            verdicts += 1
            assert verdicts < 200, "it never settles"
            older = requests[: requests.index(r)]
            if verdict is Verdict.SELECT:
                assert possible(r, requests, v) and served(r, v)
                could, held = eligible(older, requests, v)
                assert not could, f"{r.id} was served before {could}"
                assert not held & {*r.caller_devices, *r.callee_devices}, (
                    "served before an older one was looked at"
                )
                recalls += 1
                put(step(r, machine.Selected(f"r{recalls}"), now, policy).request)
            else:
                assert verdict is not Verdict.PASS_OVER or possible(r, requests, v)
                put(step(r, EVENT[verdict], now, policy).request)
        in_turn = [d for r in requests if r.state in TURN for d in r.caller_devices + r.callee_devices]
        assert len(in_turn) == len(set(in_turn)), "two turns share a device"
        assert not eligible(requests, requests, v)[0], "one was forgotten"
        assert sorted([r.id for r in requests] + over) == list(range(1, born + 1)), "a request was lost"
    assert born > 3


def test_the_random_lives_see_recalls() -> None:
    """A run in which nothing happens proves nothing: idle phones give every request its turn."""
    requests = [req(i, f"a{i}", f"b{i}") for i in range(1, 6)]
    seen = {d: IDLE for r in requests for d in r.caller_devices + r.callee_devices}
    turns = []
    while found := select(requests, view(seen)):
        turns.append(found[0].id)
        requests = [replace(r, state=State.READY) if r.id == found[0].id else r for r in requests]
    assert turns == [1, 2, 3, 4, 5]
