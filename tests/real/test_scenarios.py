"""The six scenarios of the wiki page "Generic Call Completion Example", on real phones.

The long timers are shortened in the configuration, never in the code.
"""

from tests.real.bench import QUICK, Bench

MODES = "poll", "ami", "originate"


def test_1_busy_asked_called_back(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    bench.quiet("1000", 0.5)
    talk.hangup()
    recall = bench.recalled()
    assert (recall.from_number, recall.from_name) == ("2000", "2000 (callback)")
    call = bench.connects(recall, "2000")
    assert (call.from_number, call.from_name) == ("1000", "Alice")
    call.hangup()
    bench.ended("COMPLETED")
    recall.wait_ended()
    bench.until(lambda: not bench.asterisk.channels(), "no channel is left, not even the poll session's")


def test_2_no_answer_called_back_after_his_next_call(bench: Bench) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    bench.forget("2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    talk = bench.talk("2000", "3000")
    bench.quiet("1000", 0.5)
    bench.completes(talk)


def test_3_taken_back(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    assert bench.asks("1000", "*31") == "SUCCESS/"
    talk.hangup()
    bench.quiet("1000", 1.5)
    bench.ended("CANCELLED")


def test_4_asked_too_late(bench: Bench) -> None:
    bench.reconfigure("defaults: {poll_interval: 0.1, cc_offer_timer: 1}\n")
    talk = bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    bench.quiet("1000", 1.1)
    assert bench.asks("1000") == "FAIL/OFFER_EXPIRED"
    talk.hangup()
    bench.quiet("1000", 1.0)


def test_5_callee_busy_for_too_long(bench: Bench) -> None:
    bench.reconfigure("defaults: {poll_interval: 0.1, ccbs_available_timer: 3}\n")
    talk = bench.busy_and_asked()
    bench.ended("EXPIRED")
    talk.hangup()
    bench.quiet("1000", 1.0)


def test_6_callee_untouched_for_too_long(bench: Bench) -> None:
    bench.reconfigure("defaults: {poll_interval: 0.1, ccnr_available_timer: 3}\n")
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    assert bench.asks("1000") == "SUCCESS/"
    bench.ended("EXPIRED")
    bench.talk("2000", "3000").hangup()
    bench.quiet("1000", 1.0)


def test_quick_is_only_quick(bench: Bench) -> None:
    """What the other tests shorten are waits, not rules: the default configuration recalls as well."""
    assert "cc_offer_timer" not in QUICK
    bench.reconfigure("")
    talk = bench.busy_and_asked()
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")
