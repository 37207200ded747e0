"""With AMI: how fast a recall is, what events see that polling does not, and what happens while AMI is away."""

import statistics
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.asterisk import AMI_SECRET
from tests.lab.relay import Observer, Relay
from tests.real.bench import QUICK, Bench

MODES = "ami", "originate"
RUNS = 50
SELDOM = QUICK.replace("poll_interval: 0.1", "poll_interval: 60")


@pytest.fixture
def relay(bench: Bench) -> Iterator[Relay]:
    """AMI goes through it."""
    relay = Relay(bench.asterisk.ami_address)
    bench.server.ami_address = relay.address
    yield relay
    bench.server.ami_address = None
    relay.close()


@pytest.fixture
def observer(bench: Bench) -> Iterator[Observer]:
    observer = Observer(bench.asterisk.ami_address, bench.asterisk.spool)
    yield observer
    observer.close()


def connections(bench: Bench) -> int:
    return len(bench.server.log_lines("AMI connected"))


def polled(bench: Bench) -> list[str]:
    """The channels of a poll session; without a spool there is never one."""
    return [name for name in bench.asterisk.channels() if "cc-poll" in name]


def connected(bench: Bench, times: int) -> None:
    bench.until(lambda: connections(bench) == times, f"AMI is connected, {times} times", 15)


def reconfigured(bench: Bench, config: str = QUICK) -> None:
    """Connected anew with this configuration; the server of the bench's own start was connected too."""
    connected(bench, 1)
    bench.reconfigure(config)
    connected(bench, 2)


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[round((len(values) - 1) * percent / 100)]


# Asterisk tells, in this order, that he is free, and that a recall begins.
FREE = rb"Event: DeviceStateChange\r\n(?:[^\r]+\r\n)*Device: PJSIP/2000\r\nState: NOT_INUSE\r\n"
HANDED = {"ami": rb"fastagi-recall", "originate": rb"Channel: Local/\d+@cc-recall"}


def seen(bench: Bench, observer: Observer, what: bytes) -> float:
    """When the observer saw it, who may be a little behind."""
    bench.until(lambda: observer.when(what) is not None, f"{what!r} is seen")
    at = observer.when(what)
    assert at is not None
    return at


@pytest.fixture
def prompt_threads() -> Iterator[None]:
    """The phones have threads in this process, and the observer is to note the time when it is."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    yield
    sys.setswitchinterval(interval)


def test_recall_delay(bench: Bench, observer: Observer, prompt_threads: None) -> None:
    """From the callee's BYE to the INVITE at the caller's phone, and how much of that is the server's own."""
    reconfigured(bench, "defaults: {cc_max_recalls: 100}\n")
    delays, own = [], []
    for _ in range(RUNS):
        talk = bench.busy_and_asked()
        observer.forget()
        bye = time.monotonic()
        talk.hangup()
        recall = bench.recalled()
        delays.append(recall.started_at - bye)
        free, handed = seen(bench, observer, FREE), seen(bench, observer, HANDED[bench.server.mode])
        own.append(handed - free)
        bench.connects(recall, "2000").hangup()
        recall.wait_ended()
        bench.until(lambda: not bench.server.requests(), "it is completed")
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
    assert statistics.median(delays) < 0.030
    assert statistics.median(own) < 0.003


def test_a_short_call_is_a_sign_of_life(bench: Bench) -> None:
    bench.reconfigure(SELDOM)
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
    """He hangs up meanwhile, unseen: his caller is called at the latest a second after AMI is back."""
    # The poll session of a server with a spool looks once when it opens, and then after a minute.
    reconfigured(bench, SELDOM)
    talk = bench.busy_and_asked()
    relay.cut()
    bench.server.wait_log("the connection was closed")
    bench.quiet("1000", 5.0)
    talk.hangup()
    bench.quiet("1000", 5.0)
    relay.mend()
    connected(bench, 3)
    bench.connects(bench.recalled(timeout=1), "2000").hangup()
    bench.ended("COMPLETED")


@pytest.mark.modes("ami")
def test_what_is_seen_by_polling_while_ami_is_cut(bench: Bench, relay: Relay) -> None:
    reconfigured(bench)
    talk = bench.busy_and_asked()
    relay.cut()
    bench.server.wait_log("the connection was closed")
    bench.quiet("1000", 5.0)
    talk.hangup()
    bench.connects(bench.recalled(timeout=2), "2000").hangup()
    bench.ended("COMPLETED")
    assert connections(bench) == 2


def test_back_to_ami_after_the_cut(bench: Bench, relay: Relay) -> None:
    reconfigured(bench)
    talk = bench.busy_and_asked()
    relay.cut()
    bench.server.wait_log("the connection was closed")
    has_spool = bench.server.mode == "ami"
    if has_spool:
        bench.until(lambda: polled(bench), "the poll session is open")
    relay.mend()
    connected(bench, 3)
    if has_spool:
        bench.until(lambda: not polled(bench), "the poll session is closed")
    talk.hangup()
    bench.connects(bench.recalled(timeout=1), "2000").hangup()
    bench.ended("COMPLETED")


def test_wrong_password(bench: Bench) -> None:
    """One clear line; who has a spool goes on by polling."""
    connected(bench, 1)
    bench.server.ami_secret = "not this one"
    try:
        bench.reconfigure(QUICK)
        bench.server.wait_log("does not let us in")
        talk = bench.busy_and_asked()
        talk.hangup()
        if bench.server.mode == "ami":
            bench.connects(bench.recalled(), "2000").hangup()
            bench.ended("COMPLETED")
        else:
            bench.quiet("1000", 2.0)
        # That of the start before, and the one.
        [_, *lines] = bench.server.log_lines("AMI")
        assert len(lines) == 1 and "does not let us in" in lines[0], lines
        assert not bench.server.log_lines("Traceback")
    finally:
        bench.server.ami_secret = AMI_SECRET
