"""A call so short that it is over before anybody looks is a sign of life all the same."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fastagi.completion.model import Device, Presence, Request, State
from fastagi.completion.queue import Verdict, View, select
from tests.unit.rules import GONE, IDLE, IN_USE, RINGING, World, phone
from tests.unit.test_queue import NOW, dev, levels, req

BLINK = 0.1


def waits_for_a_sign(world: World) -> Request:
    """1000 waits for 2000, who did not answer; nothing is in the transcript."""
    world.wants("1000", "2000", "NOANSWER", 19)
    world.wait(60)
    world.told()
    request = world.request(2)
    assert request.sign_needed and request.state is State.QUEUED
    return request


def blinks(world: World, presence: Presence = IN_USE, number: str = "2000") -> None:
    world.set(number, presence)
    world.clock.move(BLINK)
    world.set(number, IDLE)


def test_a_call_that_came_and_went_while_a_commit_was_under_way() -> None:
    world = World()
    waits_for_a_sign(world)
    world.store.held = True
    world.fails("1100", "2001")
    blinks(world)
    assert world.rings() == []
    world.store.held = False
    world.store.release()
    world.look()
    assert world.rings() == ["ring 1000 for 2000: r1"]


def test_a_call_that_came_and_went_while_nothing_could_be_saved() -> None:
    world = World()
    waits_for_a_sign(world)
    world.store.error = OSError("the disk is full")
    blinks(world)
    world.store.error = None
    world.wait(2)
    assert world.rings() == ["ring 1000 for 2000: r1"]


@pytest.mark.parametrize("presence", [RINGING, GONE])
def test_what_is_no_use_is_no_sign(presence: Presence) -> None:
    world = World()
    waits_for_a_sign(world)
    world.store.held = True
    world.fails("1100", "2001")
    blinks(world, presence)
    world.store.held = False
    world.store.release()
    world.wait(60)
    assert world.rings() == []


def test_a_call_before_he_asked_is_no_sign() -> None:
    """2000 talked and has hung up; another waits for him, so he was watched all the time."""
    world = World()
    world.set("2000", IN_USE)
    world.set("1100", IN_USE)
    world.wants("1100", "2000")
    world.set("2000", IDLE)
    world.wait(5)
    world.wants("1000", "2000", "NOANSWER", 19)
    world.wait(60)
    assert world.rings() == []


def test_a_failed_turn_needs_a_new_sign() -> None:
    world = World()
    waits_for_a_sign(world)
    blinks(world)
    assert world.rings() == ["ring 1000 for 2000: r1"]
    world.taken("r1")
    world.answered("r1")
    world.call_over("r1", "NOANSWER", 19)
    world.told()
    world.wait(300)
    assert world.rings() == [], "the old one counts no more"
    blinks(world)
    assert world.rings() == ["ring 1000 for 2000: r2"]


def test_a_sign_that_was_seen_outlives_the_line_it_came_over() -> None:
    world = World()
    waits_for_a_sign(world)
    world.set("2000", IN_USE)
    world.service.levels_lost()
    world.monitor.told.clear()
    world.set("2000", IDLE)
    assert world.rings() == ["ring 1000 for 2000: r1"]


@pytest.mark.parametrize(
    ("used", "verdict"), [(0.0, None), (NOW - 10, None), (NOW - 9.9, Verdict.SIGN_OF_LIFE)]
)
def test_used_counts_from_the_instant_that_matters(used: float, verdict: Verdict | None) -> None:
    seen: Mapping[Device, Presence] = levels(a1=IDLE, b=IDLE)
    times = {dev("b"): used}
    view = View(seen.get, lambda d: 0.0, lambda d: times.get(d, 0.0), lambda r: 0.0, NOW)
    found = select([req(1, sign_needed=True, idle_after=NOW - 10)], view)
    assert (found and found[1]) == verdict


def test_who_is_watched_no_more_has_left_no_use() -> None:
    world = World()
    world.set("2000", IN_USE)
    world.wants("1000", "2000")
    world.cancels("1000")
    assert phone("2000") not in world.service._used_at
