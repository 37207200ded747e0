"""Asterisk is stopped in order, and started again, while people wait."""

import time

from tests.real.bench import Bench

CALLERS = ("1000", "3000", "4000")

MODES = "poll", "ami", "originate"


def no_reply_and_asked(bench: Bench) -> None:
    """Three people wait for 2000, who has not answered; nobody talks."""
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    for caller in CALLERS:
        bench.phones[caller].dial("2000").wait_ended()
        bench.forget("2000")
        assert bench.asks(caller) == "SUCCESS/"


def stopped_gracefully(bench: Bench) -> float:
    """Seconds from the command until Asterisk has gone."""
    bench.until(lambda: all("cc-poll" in c for c in bench.asterisk.channels()), "no call is left")
    began = time.monotonic()
    bench.asterisk.stop_gracefully()
    bench.asterisk.wait_stopped(10)
    return time.monotonic() - began


def refused(bench: Bench) -> bool:
    """Whether a call meets 503: Asterisk is being stopped, and says so in no other way."""
    call = bench.phones["3000"].dial("5555")
    bench.until(lambda: call.status, "the call is answered or refused")
    if call.status == 200:
        call.hangup()
    return call.status == 503


def test_stopped_gracefully_while_three_wait(bench: Bench) -> None:
    no_reply_and_asked(bench)
    before = bench.server.requests()
    opened = "poll session open" if bench.server.mode == "poll" else "AMI connected"
    sessions = len(bench.server.log_lines(opened))
    took = stopped_gracefully(bench)
    print(f"\ncore stop gracefully: {took:.1f} s")
    assert took < 5, bench.evidence()
    bench.asterisk.start()
    assert bench.server.requests() == before
    bench.until(lambda: len(bench.server.log_lines(opened)) > sessions, "he is watched again", 10)
    talk = bench.talk("2000", "3000")
    bench.quiet("1000", 0.5)
    for number in ("2000", *CALLERS):
        bench.phones[number].answer = "ring"
    talk.hangup()
    for caller in CALLERS:
        bench.connects(bench.recalled(caller), "2000").hangup()
    bench.until(lambda: not bench.server.requests(), "all three have talked to him")


def test_a_recall_that_asterisk_drops_while_it_stops_is_made_again(bench: Bench) -> None:
    """While it stops, Asterisk deletes a call file unread; over AMI it says so, and none is written."""
    no_reply_and_asked(bench)
    held = bench.phones["4000"].dial("5555").wait_answered()
    talk = bench.phones["2000"].dial("5555").wait_answered()
    bench.server.wait_log("2000 uses his phone")
    if bench.server.mode == "poll":
        # Its session is closed at the first try after Asterisk has begun to stop: the next is 2 s away.
        bench.asterisk.wait_log("[probe@cc-poll:1]", after=bench.asterisk.log_size())
    bench.asterisk.stop_gracefully()
    bench.until(lambda: refused(bench), "no new call gets through")
    talk.hangup()  # he is free, and Asterisk takes no new call
    bench.server.wait_log("ringing 1000" if bench.server.mode == "poll" else "Asterisk is shutting down")
    bench.quiet("1000", 1.0)
    held.hangup()
    bench.asterisk.wait_stopped(10)
    bench.asterisk.start()
    assert len(bench.server.requests()) == 3
    bench.connects(bench.recalled(timeout=25), "2000").hangup()
