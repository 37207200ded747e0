"""Law 1: the primary call never suffers. Server down, hung, killed: the caller hears busy as without us."""

import signal
import socket
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.real.bench import Bench


@pytest.fixture
def busy_callee(bench: Bench) -> Bench:
    bench.phones["2000"].answer = "busy"
    return bench


@pytest.fixture
def mute(busy_callee: Bench) -> Iterator[Bench]:
    """A server that accepts and never answers, in the place of ours."""
    busy_callee.server.stop()
    with socket.create_server(("127.0.0.1", busy_callee.port), backlog=128):
        yield busy_callee


def seconds_to_busy(bench: Bench, number: str = "2000") -> float:
    began = time.monotonic()
    bench.phones["1000"].dial(number).wait_status(486)
    return time.monotonic() - began


def site_h_ran(bench: Bench) -> None:
    bench.site_line("1,site-h PJSIP/1000")


def no_channel_left(bench: Bench) -> None:
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left", 8)


def test_server_down(busy_callee: Bench) -> None:
    busy_callee.server.stop()
    assert seconds_to_busy(busy_callee) < 0.2
    site_h_ran(busy_callee)
    no_channel_left(busy_callee)
    assert busy_callee.asks("1000") == "FAIL/UNSPECIFIED"


def test_server_hung(mute: Bench) -> None:
    assert 1.9 < seconds_to_busy(mute) < 2.1 + 0.1
    site_h_ran(mute)
    no_channel_left(mute)


def test_server_stopped_in_its_tracks(busy_callee: Bench) -> None:
    busy_callee.server.send(signal.SIGSTOP)
    assert seconds_to_busy(busy_callee) < 2.2
    site_h_ran(busy_callee)
    no_channel_left(busy_callee)


def test_server_killed_in_the_middle(busy_callee: Bench) -> None:
    busy_callee.server.send(signal.SIGSTOP)
    call = busy_callee.phones["1000"].dial("2000")
    busy_callee.until(lambda: busy_callee.site_lines("/record"), "the script has begun")
    busy_callee.server.kill()
    began = time.monotonic()
    call.wait_status(486)
    assert time.monotonic() - began < 0.2
    site_h_ran(busy_callee)
    no_channel_left(busy_callee)


def test_hung_server_and_the_caller_hangs_up(mute: Bench) -> None:
    mute.phones["2000"].answer = "ring"
    call = mute.phones["1000"].dial("2000").wait_ringing()
    began = time.monotonic()
    call.hangup().wait_ended()
    assert time.monotonic() - began < 0.3, "nothing waits in h"
    site_h_ran(mute)
    no_channel_left(mute)


def test_hung_server_and_a_call_that_was_answered(mute: Bench) -> None:
    """The other party hangs up: the caller gets his BYE at once."""
    mute.phones["2000"].answer = "answer"
    call = mute.phones["1000"].dial("2000").wait_answered()
    began = time.monotonic()
    mute.phones["2000"].expect_call().hangup()
    call.wait_ended()
    assert time.monotonic() - began < 0.3
    site_h_ran(mute)
    no_channel_left(mute)


def test_who_heard_that_it_failed_is_not_called_back(busy_callee: Bench) -> None:
    seconds_to_busy(busy_callee)
    busy_callee.server.send(signal.SIGSTOP)
    assert busy_callee.asks("1000") == "FAIL/UNSPECIFIED"
    busy_callee.server.send(signal.SIGCONT)
    busy_callee.server.wait_log("UNSPECIFIED")
    busy_callee.phones["2000"].answer = "ring"
    busy_callee.quiet("1000", 1.0)
    assert not busy_callee.server.requests()


def test_hung_server_and_a_feature_code(mute: Bench) -> None:
    began = time.monotonic()
    assert mute.asks("1000", listens=True) == "FAIL/UNSPECIFIED"
    assert time.monotonic() - began < 10, "6 s for the server, and what he is told"
    assert mute.played() == ["beeperr", "im-sorry"]


def test_the_sites_own_timeout_and_variable_are_put_back(busy_callee: Bench) -> None:
    seconds_to_busy(busy_callee, "72000")
    line = busy_callee.site_line("1,site-back")
    assert "exit=mine" in line
    left = float(line.split("absolute=")[1].split()[0])
    assert 55 < left <= 60.5


def test_the_sites_own_timeout_survives_a_hung_server(mute: Bench) -> None:
    assert seconds_to_busy(mute, "72000") < 2.2
    line = mute.site_line("1,site-back")
    assert "exit=mine" in line
    assert 55 < float(line.split("absolute=")[1].split()[0]) < 59


def test_the_sites_u_and_b_options_are_kept(bench: Bench) -> None:
    bench.phones["2000"].answer = "answer"
    call = bench.phones["1000"].dial("62000")
    call.wait_answered()
    bench.site_line("1,site-up")
    bench.site_line("1,site-pre PJSIP/2000")
    call.hangup()
    site_h_ran(bench)


def test_the_sites_absolute_timeout_ends_the_call_in_its_own_t(bench: Bench) -> None:
    bench.asterisk.reload_dialplan(
        bench.dialplan().replace("TIMEOUT(absolute)=60", "TIMEOUT(absolute)=1")
        + "[phones](+)\nexten => T,1,Verbose(1,site-T)\n same => n,Hangup()\n"
    )
    bench.phones["2000"].answer = "answer"
    call = bench.phones["1000"].dial("72000").wait_answered()
    call.wait_ended(3)
    bench.site_line("1,site-T")
    no_channel_left(bench)


def test_delay_that_we_add_to_a_busy_call(busy_callee: Bench) -> None:
    """With and without us, alternately; the figures are printed."""
    with_us, without = [], []
    for _ in range(20):
        with_us.append(seconds_to_busy(busy_callee))
        without.append(seconds_to_busy(busy_callee, "52000"))
    added = statistics.median(with_us) - statistics.median(without)
    print(
        f"\nbusy after (median of 20): with us {statistics.median(with_us) * 1000:.1f} ms, "
        f"without {statistics.median(without) * 1000:.1f} ms, added {added * 1000:.1f} ms"
    )
    assert added < 0.02
