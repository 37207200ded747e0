"""With AMI: how fast a recall is, what events see that polling does not, and what happens while AMI is away."""

import re
import statistics
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.asterisk import AMI_SECRET
from tests.lab.relay import Relay
from tests.real.bench import QUICK, Bench

MODES = "ami", "originate"
RUNS = 50


@pytest.fixture
def relay(bench: Bench) -> Iterator[Relay]:
    """AMI goes through it."""
    relay = Relay(bench.asterisk.ami_address, bench.asterisk.spool)
    bench.server.ami_address = relay.address
    yield relay
    bench.server.ami_address = None
    relay.close()


def connections(bench: Bench) -> int:
    return len(bench.server.log_lines("AMI connected"))


def connected(bench: Bench, before: int = 1) -> None:
    """One more time than so many (1: that of the bench's own start)."""
    bench.until(lambda: connections(bench) == before + 1, "AMI is connected", 15)


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[round((len(values) - 1) * percent / 100)]


def own_share(relay: Relay) -> float:
    """Seconds from the event that 2000 is free, handed to the server, to the recall that it hands to Asterisk."""
    free = r"Event: DeviceStateChange\r\n(?:[^\r]+\r\n)*Device: PJSIP/2000\r\nState: NOT_INUSE\r\n".encode()
    began = [at for at, way, data in relay.seen if way == "<" and re.search(free, data)][-1]
    handed = (
        at
        for at, way, data in relay.seen
        if at > began and ((way == "+" and b"recall" in data) or (way == ">" and b"Originate" in data))
    )
    return next(handed) - began


def test_recall_delay(bench: Bench, relay: Relay) -> None:
    """From the callee's BYE to the INVITE at the caller's phone, and how much of that is the server's own."""
    # The phones have threads in this process, and the relay is to note the time when it is.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    bench.reconfigure("defaults: {cc_max_recalls: 100}\n")
    connected(bench)
    delays, own = [], []
    for _ in range(RUNS):
        talk = bench.busy_and_asked()
        relay.seen.clear()
        bye = time.monotonic()
        talk.hangup()
        recall = bench.recalled()
        delays.append(recall.started_at - bye)
        own.append(own_share(relay))
        bench.connects(recall, "2000").hangup()
        recall.wait_ended()
        bench.until(lambda: not bench.server.requests(), "it is completed")
    sys.setswitchinterval(interval)
    for what, values in (("BYE -> INVITE", delays), ("own share", own)):
        told = ", ".join(
            f"{name} {value * 1000:.2f} ms"
            for name, value in (
                ("min", min(values)),
                ("median", statistics.median(values)),
                ("p99", percentile(values, 99)),
            )
        )
        print(f"\n{bench.server.mode}: {what}, {RUNS} runs: {told}", end="")
    assert statistics.median(delays) < 0.020
    assert statistics.median(own) < 0.001


def test_a_short_call_is_a_sign_of_life(bench: Bench) -> None:
    bench.reconfigure(QUICK.replace("poll_interval: 0.1", "poll_interval: 60"))
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    bench.forget("2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.5)
    talk = bench.phones["2000"].dial("5555").wait_answered()
    bench.quiet("1000", 0.1)
    talk.hangup()
    bench.connects(bench.recalled(timeout=1), "2000").hangup()
    bench.ended("COMPLETED")


def test_what_happened_while_ami_was_cut(bench: Bench, relay: Relay) -> None:
    """He hangs up meanwhile: his caller is called at the latest a second after AMI is back."""
    bench.reconfigure(QUICK)
    connected(bench)
    talk = bench.busy_and_asked()
    relay.cut()
    bench.server.wait_log("the connection was closed")
    bench.quiet("1000", 5.0)
    talk.hangup()
    if bench.server.mode == "ami":
        recall = bench.recalled(timeout=2)  # polling has seen it
        assert connections(bench) == 2
    else:
        bench.quiet("1000", 5.0)
        relay.mend()
        connected(bench, 2)
        recall = bench.recalled(timeout=1)
    bench.connects(recall, "2000").hangup()
    bench.ended("COMPLETED")


def test_back_to_ami_after_the_cut(bench: Bench, relay: Relay) -> None:
    bench.reconfigure(QUICK)
    connected(bench)
    talk = bench.busy_and_asked()
    relay.cut()
    bench.server.wait_log("the connection was closed")
    relay.mend()
    connected(bench, 2)
    bench.until(lambda: not [c for c in bench.asterisk.channels() if "cc-poll" in c], "no poll session")
    talk.hangup()
    bench.connects(bench.recalled(timeout=1), "2000").hangup()
    bench.ended("COMPLETED")


def test_wrong_password(bench: Bench) -> None:
    """One clear line; who has a spool goes on by polling."""
    bench.server.ami_secret = "not this one"
    try:
        bench.reconfigure(QUICK)
        talk = bench.busy_and_asked()
        talk.hangup()
        if bench.server.mode == "ami":
            bench.connects(bench.recalled(), "2000").hangup()
            bench.ended("COMPLETED")
        else:
            bench.quiet("1000", 2.0)
        [_, *lines] = bench.server.log_lines("AMI")  # that of the start before
        assert len(lines) == 1 and "does not let us in" in lines[0], lines
        assert not bench.server.log_lines("Traceback")
    finally:
        bench.server.ami_secret = AMI_SECRET
