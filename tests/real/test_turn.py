"""A turn: the recall, the call that follows it, and how each may fail."""

import pytest

from tests.real.bench import QUICK, Bench

MODES = "poll", "ami", "originate"


def test_caller_does_not_answer_until_it_is_given_up(bench: Bench) -> None:
    bench.reconfigure(
        "defaults: {poll_interval: 0.1, cc_recall_timer: 1, cc_retry_timer: 1, cc_max_recalls: 2}\n"
    )
    bench.busy_and_asked().hangup()
    first = bench.recalled()
    first.wait_ended()
    assert first.ended_at and 0.9 < first.ended_at - first.started_at < 1.6
    second = bench.recalled(timeout=3)
    assert 0.9 < second.started_at - first.ended_at < 2.0
    request = bench.ended("TOO_MANY_RECALLS")
    assert request.recalls == 2
    bench.quiet("1000", 1.5)


def test_caller_declines_his_recall(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    bench.recalled().reject(603)
    bench.until(lambda: bench.server.requests()[0].recalls == 1, "it counts")
    again = bench.recalled(timeout=3)
    bench.connects(again, "2000").hangup()
    bench.ended("COMPLETED")


def test_caller_with_do_not_disturb_is_passed_over_and_not_counted(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    first = bench.recalled().reject(486)
    bench.until(lambda: bench.server.requests()[0].state == "QUEUED", "back in the queue")
    assert bench.server.requests()[0].recalls == 0
    second = bench.recalled(timeout=3)
    assert first.ended_at and second.started_at - first.ended_at > 0.9, "it must not come round at once"


def test_callee_busy_again_when_the_caller_picks_up(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    talk = bench.talk("2000", "3000")
    recall.answer()
    recall.wait_ended(10)
    assert "vm-isonphone" in bench.played()
    [request] = bench.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCBS", 1)
    bench.forget("2000")
    bench.phones["2000"].answer = "ring"
    bench.quiet("1000", 0.5)
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_callee_with_do_not_disturb_must_first_use_his_phone(bench: Bench) -> None:
    """He rejects the CC call while his device reads idle: only a fresh call of his counts from then on."""
    bench.busy_and_asked().hangup()
    bench.phones["2000"].answer = "busy"
    bench.recalled().answer().wait_ended(10)
    bench.forget("2000")
    bench.quiet("1000", 1.5)
    talk = bench.talk("2000", "3000")
    bench.quiet("1000", 0.5)
    bench.completes(talk)


def test_callee_does_not_answer_the_cc_call(bench: Bench) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.busy_and_asked().hangup()
    bench.recalled().answer().wait_ended(10)
    assert "vm-isunavail" in bench.played()
    [request] = bench.server.requests()
    assert (request.service, request.sign_needed, request.recalls) == ("CCNR", True, 1)


def test_caller_hangs_up_before_the_callee_answers(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled().answer().wait_answered()
    bench.phones["2000"].expect_call().ring()
    recall.hangup()
    bench.until(lambda: bench.server.requests()[0].state == "QUEUED", "back in the queue")
    [request] = bench.server.requests()
    assert (request.service, request.sign_needed) == ("CCNR", True)


def test_taken_back_while_his_phone_rings(bench: Bench) -> None:
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    second = bench.another("1000")  # the phone that rings is not the one he dials on
    second.register()
    second.dial("*31").wait_answered()
    recall.wait_ended(2)
    assert recall.ended_by == "them"
    bench.ended("CANCELLED")
    bench.quiet("1000", 1.5)
    bench.until(lambda: not list(bench.asterisk.spool.iterdir()), "the spool is empty")


@pytest.mark.modes("poll")
def test_taken_back_by_extension(bench: Bench) -> None:
    talk = bench.busy_and_asked("1000", "2000", "3000")
    bench.meets_busy("1000", "3000")
    assert bench.asks("1000") == "SUCCESS/"
    assert bench.asks("1000", "*32") == "2/2000,3000"
    assert bench.asks("1000", "*312000") == "SUCCESS/"
    assert [r.callee for r in bench.server.requests()] == ["3000"]
    assert bench.asks("1000", "*312000") == "FAIL/NO_CORE_INSTANCE"
    bench.phones["3000"].answer = "ring"
    talk.hangup()
    assert bench.recalled().from_number == "3000"


@pytest.mark.modes("poll")
def test_taken_back_with_nothing_pending(bench: Bench) -> None:
    assert bench.asks("1000", "*31", listens=True) == "FAIL/NO_CORE_INSTANCE"
    assert bench.played() == ["beeperr", "im-sorry"]


@pytest.mark.modes("poll")
def test_what_the_caller_hears(bench: Bench) -> None:
    bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    assert bench.asks("1000", listens=True) == "SUCCESS/"
    assert bench.played() == ["activated"]
    assert bench.asks("1000", "*31", listens=True) == "SUCCESS/"
    assert bench.played() == ["activated", "cancelled"]


@pytest.mark.modes("poll")
def test_the_operator_takes_it_back(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    [request] = bench.server.requests()
    assert "taken back" in bench.server.cli("cancel", str(request.id))
    talk.hangup()
    bench.quiet("1000", 1.0)


def test_the_cc_call_starts_where_his_own_phone_would(bench: Bench) -> None:
    """In the context of the caller's own endpoint, at the extension he dialled."""
    bench.busy_and_asked().hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")
    assert [line for line in bench.site_lines("[2000@phones:1] Gosub") if "cc-recall" in line]


def test_dialstring_of_its_own_rings_instead_of_the_contacts(bench: Bench) -> None:
    bench.reconfigure(QUICK + 'extensions: {"1000": {dialstring: PJSIP/4000}}\n')
    bench.busy_and_asked().hangup()
    bench.connects(bench.recalled("4000"), "2000").hangup()
    bench.quiet("1000", 0.1)
    bench.ended("COMPLETED")


@pytest.mark.modes("poll", "ami")
def test_a_call_file_that_asterisk_runs_again_rings_nobody(bench: Bench) -> None:
    bench.reconfigure("defaults: {poll_interval: 0.1, cc_recall_timer: 5}\n")
    bench.busy_and_asked().hangup()
    recall = bench.recalled()
    [name] = [p.name for p in bench.asterisk.spool.iterdir() if "recall" in p.name]
    id = name.removeprefix("fastagi-recall-").removesuffix(".call")
    recall.reject(603)
    recall.wait_ended()
    text = f"Channel: Local/{id}@cc-recall/n\nContext: cc-call\nExtension: {id}\nPriority: 1\nMaxRetries: 0\n"
    copy = bench.asterisk.spool_temp / "again.call"
    copy.write_text(text)
    copy.chmod(0o666)
    copy.rename(bench.asterisk.spool / "again.call")
    bench.server.wait_log(": RECALL_")  # TAKEN while the first one is not told yet, then UNKNOWN
    bench.quiet("1000", 0.5)


def poll_session(bench: Bench) -> list[str]:
    return [channel for channel in bench.asterisk.channels() if "cc-poll" in channel]


@pytest.mark.modes("poll")
def test_the_poll_session_is_there_only_while_somebody_waits(bench: Bench) -> None:
    """Or for a moment, when the server has started and looks at the lamps."""
    bench.until(lambda: not poll_session(bench), "the poll session of the start is closed")
    bench.busy_and_asked()
    bench.until(lambda: poll_session(bench), "the poll session is open")
    bench.asks("1000", "*31")
    bench.until(lambda: not poll_session(bench), "the poll session is closed")
    bench.until(lambda: not list(bench.asterisk.spool.iterdir()), "the spool is empty")


@pytest.mark.modes("poll")
def test_a_dropped_poll_session_comes_back(bench: Bench) -> None:
    def opened(times: int) -> None:
        bench.until(lambda: len(bench.server.log_lines("poll session open")) == times, f"{times} opened", 10)

    opened(1)
    bench.until(lambda: not poll_session(bench), "that of the start, for the lamps, is closed")
    talk = bench.busy_and_asked()
    opened(2)
    for channel in poll_session(bench):
        bench.asterisk.cli(f"channel request hangup {channel}")
    opened(3)
    talk.hangup()
    bench.recalled()
