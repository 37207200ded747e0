"""What is left after kill -9, a restart of Asterisk, a full disk: nothing lost, nobody rung twice."""

import os
import sqlite3
import time

import pytest

from tests.real.bench import Bench

MODES = "poll", "ami", "originate"


def test_killed_between_the_call_and_the_asking(bench: Bench) -> None:
    talk = bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    bench.server.kill()
    bench.server.start()
    assert bench.asks("1000") == "SUCCESS/"
    bench.completes(talk)


def test_killed_while_waiting(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    before = bench.server.requests()
    bench.server.kill()
    bench.server.start()
    assert bench.server.requests() == before
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def recall_begins(bench: Bench) -> bool:
    """Its call file is there; or, where there is none, the server says so, who asks Asterisk for it then."""
    if bench.server.mode == "originate":
        return bool(bench.server.log_lines("ringing 1000"))
    return any("recall" in name for name in os.listdir(bench.asterisk.spool))


@pytest.mark.parametrize("milliseconds", [0, 0.5, 1, 2, 4, 8])
def test_killed_in_the_moment_of_recall(bench: Bench, milliseconds: float) -> None:
    """From the instant that it begins: his phone rings once at a time, and he gets through."""
    talk = bench.busy_and_asked()
    talk.hangup()
    end = time.monotonic() + 5
    while not recall_begins(bench):
        assert time.monotonic() < end
    time.sleep(milliseconds / 1000)
    bench.server.kill()
    print(
        "\n", *[line.split("request 2: ")[-1] for line in bench.server.log_lines("request 2")][-2:], sep="  "
    )
    bench.server.start()
    phone = bench.phones["1000"]
    recall = bench.recalled(timeout=15)
    bench.quiet("1000", 0.5)
    if recall.state == "ended":
        # It rang before the kill, and the dialplan gave it up: the next comes after cc_retry_timer.
        recall = bench.recalled(timeout=40)
    assert [c.state for c in phone.calls if not c.outgoing and c.state != "ended"] == ["ringing"]
    bench.connects(recall, "2000").hangup()
    bench.ended("COMPLETED")


def test_killed_while_the_caller_is_rung(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.server.kill()
    bench.server.start()
    bench.quiet("1000", 0.5)
    bench.connects(recall, "2000").hangup()
    bench.ended("COMPLETED")


def test_killed_when_the_caller_answers_and_back_two_seconds_later(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    bench.server.kill()
    recall.answer().wait_answered()
    bench.quiet("2000", 1.5)
    bench.server.start()
    call = bench.phones["2000"].expect_call()
    call.ring()
    call.answer().wait_answered()
    call.hangup()
    bench.ended("COMPLETED")


def test_killed_during_the_cc_call(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    call = bench.connects(bench.recalled(), "2000")
    bench.server.kill()
    bench.server.start()
    bench.quiet("1000", 0.5)
    call.hangup()
    bench.ended("COMPLETED")


def test_down_when_the_cc_call_ends(bench: Bench) -> None:
    """Nobody told how it ended: it is let go rather than rung again."""
    bench.busy_and_asked().hangup()
    call = bench.connects(bench.recalled(), "2000")
    bench.server.kill()
    call.hangup()
    bench.until(lambda: "cc-recall" not in str(bench.asterisk.channels()), "the call is gone")
    bench.server.start()
    bench.ended("CALL_LOST", timeout=15)
    bench.quiet("1000", 0.5)


def test_asterisk_restarted_while_somebody_waits(bench: Bench) -> None:
    bench.busy_and_asked()
    bench.asterisk.kill()
    bench.asterisk.start()
    for phone in bench.phones.values():
        phone.answer = "ring"
        phone.register()
    bench.connects(bench.recalled(timeout=15), "2000").hangup()
    bench.ended("COMPLETED")


def test_asterisk_killed_while_the_caller_is_rung(bench: Bench) -> None:
    """His recall is lost with it: he keeps his place, and is rung anew after a while, not at once."""
    bench.reconfigure("defaults: {poll_interval: 0.1, cc_recall_timer: 1, cc_retry_timer: 5}\n")
    bench.busy_and_asked().hangup()
    bench.recalled()
    bench.asterisk.kill()
    bench.asterisk.start()
    for phone in bench.phones.values():
        phone.register()
    bench.quiet("1000", 3)
    again = bench.recalled(timeout=25)
    bench.connects(again, "2000").hangup()
    bench.ended("COMPLETED")


@pytest.mark.modes("poll")
def test_a_database_that_cannot_be_written(bench: Bench) -> None:
    """Calls go on as if we were not there; it is tried again, and then all is well."""
    talk = bench.talk("2000", "3000")
    with sqlite3.connect(bench.server.store) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else can write now
        began = time.monotonic()
        bench.meets_busy("1000", "2000")
        assert time.monotonic() - began < 2.5
        other.rollback()
    other.close()
    bench.until(lambda: "STORE_FAILED" in str(bench.server.log_lines()) or bench.offers(), "it is known", 10)
    bench.meets_busy("1000", "2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()


@pytest.mark.modes("poll")
def test_a_full_disk(bench: Bench) -> None:
    bench.server.stop()
    bench.server.limit_file_size = 200_000  # what a full disk says, without filling one
    try:
        bench.server.start()
        talk = bench.talk("2000", "3000")
        for _ in range(60):
            bench.meets_busy("1000", "2000")
            if bench.server.log_lines("could not be saved"):
                break
        bench.server.wait_log("could not be saved")
        assert bench.asks("1000") == "FAIL/STORE_FAILED"
    finally:
        bench.server.limit_file_size = 0
    bench.server.stop()
    bench.server.start()
    bench.meets_busy("1000", "2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
