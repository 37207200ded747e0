"""The lamp: what a key of the caller's phone shows, and what it does when it is pressed."""

from collections.abc import Callable

import pytest

from tests.real.bench import QUICK, Bench

MODES = "poll", "ami"
OFFERED, WAITING, BUSY, RECALLING, DARK = "RINGINUSE", "INUSE", "ONHOLD", "RINGING", "NOT_INUSE"
# By default an offer is not shown: it is what Asterisk's own cc_offered_devstate is.
SHOWN = QUICK.replace("}", f", cc_offered_devstate: {OFFERED}}}")


def shows(bench: Bench, state: str, extension: str = "1000", timeout: float = 5) -> None:
    ask = f"dialplan eval function DEVICE_STATE(Custom:CC{extension})"
    bench.until(
        lambda: state in bench.asterisk.cli(ask).split(), f"the lamp of {extension} is {state}", timeout
    )


def nothing(bench: Bench) -> None:
    pass


def killed_and_started(bench: Bench) -> None:
    bench.server.kill()
    bench.server.start()


@pytest.mark.parametrize("meanwhile", [nothing, killed_and_started])
def test_offered_waiting_recalling_done(bench: Bench, meanwhile: Callable[[Bench], None]) -> None:
    """Killed in each state, it goes on where it was: nothing is shown twice, nothing is left out."""
    bench.reconfigure(SHOWN)
    lamp = bench.phones["1000"].watch_lamp("*331000")
    talk = bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    lamp.expect("confirmed")
    shows(bench, OFFERED)
    meanwhile(bench)
    assert bench.asks("1000") == "SUCCESS/"
    lamp.expect("confirmed")
    shows(bench, WAITING)
    meanwhile(bench)
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    recall = bench.recalled()
    lamp.expect("early")
    meanwhile(bench)
    bench.connects(recall, "2000")
    lamp.expect("terminated")
    recall.hangup()
    bench.ended("COMPLETED")
    shows(bench, DARK)
    assert lamp.states == ["terminated", "confirmed", "confirmed", "early", "terminated"]


def test_what_ended_while_the_server_was_down_is_dark_after_its_start(bench: Bench) -> None:
    bench.reconfigure(QUICK.replace("}", ", ccbs_available_timer: 2}"))
    talk = bench.busy_and_asked()
    shows(bench, WAITING)
    bench.server.kill()
    bench.quiet("1000", 2.0)
    bench.server.start()
    shows(bench, DARK)
    bench.ended("EXPIRED")
    talk.hangup()


def test_a_lamp_that_was_left_lit_is_dark_after_the_start(bench: Bench) -> None:
    """Nobody remembers why: the server was killed between saving and showing."""
    bench.server.kill()
    bench.asterisk.cli("devstate change Custom:CC4000 INUSE")
    bench.asterisk.cli("devstate change Custom:CCTV INUSE")
    bench.server.start()
    shows(bench, DARK, "4000")
    shows(bench, "INUSE", "TV")  # not ours, whatever it is


def test_right_again_after_a_restart_of_asterisk(bench: Bench) -> None:
    """What it has kept of the lamps is looked at anew, though nothing else has changed."""
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    assert bench.asks("1000") == "SUCCESS/"
    shows(bench, WAITING)
    bench.asterisk.cli("devstate change Custom:CC1000 NOT_INUSE")  # nobody tells us of that
    shows(bench, DARK)
    bench.asterisk.stop()  # in order, so that it has saved that
    bench.asterisk.start()
    shows(bench, WAITING, timeout=12)
    assert len(bench.server.log_lines(" -> ")) == 1


def test_pressed_and_pressed_again(bench: Bench) -> None:
    talk = bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    for state, open_requests in ((WAITING, 1), (DARK, 0), (WAITING, 1)):
        bench.phones["1000"].dial("*331000").wait_answered().wait_ended(10)
        shows(bench, state)
        assert len(bench.server.requests()) == open_requests
    bench.completes(talk)


def test_passed_over_while_he_talks_himself(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    own = bench.phones["1000"].dial("5555").wait_answered()
    talk.hangup()
    shows(bench, BUSY)
    own.hangup()
    recall = bench.recalled()
    shows(bench, RECALLING)
    bench.connects(recall, "2000").hangup()
    bench.ended("COMPLETED")
    shows(bench, DARK)


def test_somebody_elses_key(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    bench.phones["4000"].dial("*331000").wait_answered().wait_ended(10)
    assert len(bench.server.requests()) == 1
    shows(bench, WAITING)
    talk.hangup()
