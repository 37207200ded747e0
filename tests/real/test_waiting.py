"""Which calls are offered, and when a waiting caller's turn comes."""

import pytest

from tests.real.bench import QUICK, Bench

MODES = "poll", "ami", "originate"


def test_callee_free_before_the_caller_asks(bench: Bench) -> None:
    talk = bench.talk("2000", "3000")
    bench.meets_busy("1000", "2000")
    talk.hangup()
    bench.phones["2000"].answer = "ring"
    bench.until(lambda: not bench.asterisk.channels(), "the callee's call is over")
    assert bench.asks("1000") == "SUCCESS/"
    bench.connects(bench.recalled(timeout=2), "2000").hangup()
    bench.ended("COMPLETED")


def test_callee_on_hold_then_idle(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    talk.hold()
    bench.quiet("1000", 0.7)
    # The one who is held is Carol; and Bob, held by her, reads ONHOLD.
    talk.unhold()
    held = next(c for c in bench.phones["3000"].calls if c.state == "up")
    held.hold()
    bench.until(lambda: "ONHOLD" in bench.device("2000"), "Bob is on hold")
    bench.quiet("1000", 0.7)
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_ringing_alone_is_no_sign_of_life(bench: Bench) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["3000"].dial("2000").wait_ended()  # rings, nobody answers
    bench.quiet("1000", 1.0)
    [request] = bench.server.requests()
    assert request.sign_needed


def test_his_own_unanswered_call_is_a_sign_of_life(bench: Bench) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring=1))
    bench.phones["1000"].dial("2000").wait_ended()
    bench.forget("2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].dial("3000").wait_ended()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_caller_gives_up_while_it_rings(bench: Bench) -> None:
    bench.phones["1000"].dial("2000").wait_ringing().hangup().wait_ended()
    bench.forget("2000")
    bench.until(bench.offers, "the note has arrived")
    assert bench.asks("1000") == "SUCCESS/"
    [request] = bench.server.requests()
    assert request.service == "CCNR"
    talk = bench.talk("2000", "3000")
    bench.quiet("1000", 0.5)
    bench.completes(talk)


@pytest.mark.modes("poll")
def test_callee_declined(bench: Bench) -> None:
    bench.phones["2000"].answer = "decline"
    bench.phones["1000"].dial("2000").wait_ended()
    bench.forget("2000")
    assert bench.asks("1000") == "SUCCESS/"
    [request] = bench.server.requests()
    assert (request.service, request.sign_needed) == ("CCNR", True)


def test_callee_not_registered_then_registers(bench: Bench) -> None:
    bench.phones["2000"].unregister()
    bench.phones["1000"].dial("2000").wait_ended()
    assert bench.asks("1000") == "SUCCESS/"
    [request] = bench.server.requests()
    assert request.service == "CCNL"
    bench.quiet("1000", 0.7)
    bench.phones["2000"].register()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


@pytest.mark.modes("poll")
def test_number_that_does_not_exist(bench: Bench) -> None:
    trunk = bench.another("trunk", port=bench.trunk_port, answer="404")
    bench.phones["1000"].dial("8888").wait_status(404)
    assert trunk.calls
    assert bench.asks("1000") == "FAIL/NO_SUCH_NUMBER"


@pytest.mark.modes("poll")
def test_extension_without_a_phone(bench: Bench) -> None:
    """Asterisk says of it what it says of a phone that is not registered: CHANUNAVAIL, cause 3."""
    bench.asterisk.reload_dialplan(
        bench.dialplan() + "[phones](+)\nexten => _29XX,1,Gosub(cc-dial,s,1(PJSIP/${EXTEN},5))\n"
    )
    bench.phones["1000"].dial("2999").wait_ended()
    assert bench.asks("1000") == "FAIL/NO_SUCH_NUMBER"


@pytest.mark.modes("poll")
def test_through_a_trunk_there_is_nobody_to_watch(bench: Bench) -> None:
    bench.another("trunk", port=bench.trunk_port, answer="busy")
    bench.phones["1000"].dial("8888").wait_status(486)
    assert bench.asks("1000") == "FAIL/CALLEE_NOT_WATCHABLE"


@pytest.mark.modes("poll")
def test_the_latest_call_counts_even_if_it_was_not_offered(bench: Bench) -> None:
    bench.meets_busy("1000", "2000")
    bench.another("trunk", port=bench.trunk_port, answer="404")
    bench.phones["1000"].dial("8888").wait_status(404)
    assert bench.asks("1000") == "FAIL/NO_SUCH_NUMBER"


@pytest.mark.modes("poll")
def test_the_latest_call_counts_even_if_it_was_no_number(bench: Bench) -> None:
    bench.meets_busy("1000", "2000")
    bench.phones["2000"].answer = "busy"
    bench.asterisk.reload_dialplan(
        bench.dialplan()
        + "[phones](+)\nexten => _6XXX!,1,Gosub(cc-dial,s,1(PJSIP/2000,5))\n same => n,Hangup()\n"
    )
    bench.phones["1000"].dial("6" * 47).wait_status(486)
    assert bench.asks("1000") == "FAIL/INVALID"


def test_a_phone_without_callerid_shows_its_number(bench: Bench) -> None:
    bench.phones["4500"] = bench.another("4500")
    bench.phones["4500"].register()
    talk = bench.busy_and_asked("4500")
    talk.hangup()
    call = bench.connects(bench.recalled("4500"), "2000")
    assert call.from_number == "4500"
    call.hangup()
    bench.ended("COMPLETED")


@pytest.mark.modes("poll")
def test_nothing_to_ask_for(bench: Bench) -> None:
    assert bench.asks("1000", listens=True) == "FAIL/NO_CORE_INSTANCE"
    assert bench.played() == ["beeperr", "im-sorry"]


@pytest.mark.modes("poll")
def test_asked_twice(bench: Bench) -> None:
    bench.busy_and_asked()
    assert bench.asks("1000") == "SUCCESS/ALREADY_REQUESTED"
    assert len(bench.server.requests()) == 1


def test_the_hang_up_handler_is_the_other_way_in(bench: Bench) -> None:
    talk = bench.talk("2000", "3000")
    bench.phones["1000"].dial("92000").wait_status(486)
    bench.until(bench.offers, "the note has arrived")
    [offer] = bench.offers()
    assert (offer.service, offer.callee, offer.caller_context) == ("CCBS", "2000", "phones")
    assert bench.asks("1000") == "SUCCESS/"
    bench.forget("2000")
    bench.completes(talk)


def test_asked_by_a_digit_while_he_hears_it(bench: Bench) -> None:
    talk = bench.talk("2000", "3000")
    call = bench.phones["1000"].dial("82000").wait_answered()
    bench.until(bench.played, "he is told")
    call.dtmf("5")
    bench.until(bench.server.requests, "it is requested")
    bench.until(lambda: "activated" in bench.played(), "he is told so")
    call.wait_ended()
    bench.forget("2000")
    bench.completes(talk)


@pytest.mark.modes("poll")
def test_no_digit_no_request_and_the_sites_h_runs(bench: Bench) -> None:
    bench.phones["2000"].answer = "busy"
    call = bench.phones["1000"].dial("82000").wait_answered()
    bench.until(bench.played, "he is told")
    call.hangup()
    bench.site_line("1,site-h PJSIP/1000")
    assert not bench.server.requests()


@pytest.mark.modes("poll")
def test_a_trunk_may_not_ask(bench: Bench) -> None:
    stranger = bench.another("4711", port=bench.trunk_port)
    bench.phones["2000"].answer = "busy"
    call = stranger.dial("2000").wait_ended()
    assert call.status == 486
    bench.server.wait_log("CALLER_UNKNOWN")
    assert not bench.offers()


@pytest.mark.modes("poll")
def test_policy_never(bench: Bench) -> None:
    bench.reconfigure(QUICK + 'extensions: {"_2XXX": {cc_monitor_policy: never}}\n')
    bench.meets_busy("1000", "2000")
    assert bench.asks("1000") == "FAIL/CALLEE_POLICY_NEVER"


def test_guard_time(bench: Bench) -> None:
    bench.reconfigure(QUICK + 'extensions: {"2000": {cc_guard_timer: 1, name: Bob}}\n')
    talk = bench.busy_and_asked()
    talk.hangup()
    bench.quiet("1000", 0.8)
    recall = bench.recalled(timeout=1.5)
    assert recall.from_name == "Bob (callback)"


@pytest.mark.modes("poll")
def test_poll_interval_of_its_own(bench: Bench) -> None:
    bench.reconfigure('defaults: {poll_interval: 0.1}\nextensions: {"2000": {poll_interval: 3}}\n')
    talk = bench.busy_and_asked()
    bench.quiet("1000", 1.0)
    talk.hangup()
    waited = bench.recalled(timeout=4)
    assert waited.started_at - talk.ended_at > 0.2  # type: ignore[operator]


def test_two_callers_one_callee(bench: Bench) -> None:
    talk = bench.busy_and_asked("1000")
    bench.phones["2000"].answer = "busy"
    bench.meets_busy("4000", "2000")
    assert bench.asks("4000") == "SUCCESS/"
    assert [r.caller for r in bench.server.requests()] == ["1000", "4000"]
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    call = bench.connects(bench.recalled("1000"), "2000")
    bench.quiet("4000", 1.5)
    call.hangup()
    bench.connects(bench.recalled("4000"), "2000").hangup()
    bench.until(lambda: not bench.server.requests(), "both are done")
    assert [r.reason for r in bench.server.history()] == ["COMPLETED"] * 2


def test_first_caller_busy_at_his_turn(bench: Bench) -> None:
    talk = bench.busy_and_asked("1000")
    bench.phones["2000"].answer = "busy"
    bench.meets_busy("4000", "2000")
    assert bench.asks("4000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    own = bench.phones["1000"].dial("5555").wait_answered()
    talk.hangup()
    call = bench.connects(bench.recalled("4000"), "2000")
    own.hangup()
    bench.quiet("1000", 0.5)
    call.hangup()
    bench.connects(bench.recalled("1000"), "2000").hangup()
    bench.until(lambda: not bench.server.requests(), "both are done")


def test_two_callees_free_at_once_ring_one_caller_once(bench: Bench) -> None:
    talk = bench.busy_and_asked("1000", "2000", "3000")
    bench.meets_busy("1000", "3000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = bench.phones["3000"].answer = "ring"
    talk.hangup()
    recall = bench.recalled()
    first = recall.from_number
    call = bench.connects(recall, first)
    bench.quiet("1000", 1.0)
    call.hangup()
    recall = bench.recalled()
    assert {first, recall.from_number} == {"2000", "3000"}
    bench.connects(recall, recall.from_number).hangup()
    bench.until(lambda: not bench.server.requests(), "both are done")


def test_two_people_camped_on_each_other_are_connected_once(bench: Bench) -> None:
    one, other = bench.talk("1000", "3000"), bench.talk("2000", "4000")
    bench.phones["1000"].answer = bench.phones["2000"].answer = "busy"
    bench.meets_busy("1000", "2000")
    bench.asks("1000")
    bench.meets_busy("2000", "1000")
    bench.asks("2000")
    assert len(bench.server.requests()) == 2
    bench.phones["1000"].answer = bench.phones["2000"].answer = "ring"
    one.hangup()
    other.hangup()
    recall = bench.recalled("1000")
    call = bench.connects(recall, "2000")
    bench.quiet("1000", 1.0)
    call.hangup()
    bench.until(lambda: not bench.server.requests(), "both are done")
    assert {r.reason for r in bench.server.history()} == {"COMPLETED", "FULFILLED"}
    bench.quiet("1000", 1.0)
    bench.quiet("2000", 0.1)


def test_caller_with_two_phones_both_ring(bench: Bench) -> None:
    second = bench.another("1000")
    second.register()
    talk = bench.busy_and_asked()
    talk.hangup()
    recall = bench.recalled()
    also = second.expect_call()
    assert also.from_name == recall.from_name
    bench.phones["2000"].answer = "answer"
    also.answer().wait_answered()
    recall.wait_ended()
    bench.phones["2000"].expect_call().wait_answered().hangup()
    bench.ended("COMPLETED")


@pytest.mark.modes("poll", "ami")
def test_nothing_rings_while_the_cc_call_is_up(bench: Bench) -> None:
    talk = bench.busy_and_asked()
    talk.hangup()
    call = bench.connects(bench.recalled(), "2000")
    bench.quiet("1000", 30)
    bench.quiet("2000", 0.1)
    [request] = bench.server.requests()
    assert request.state == "CALLING"
    call.hangup()
    bench.ended("COMPLETED")


def test_a_site_without_cc_dial_completes_too(bench: Bench) -> None:
    """The CC call goes through the site's own dialplan, whatever stands there."""
    talk = bench.busy_and_asked()
    plain = bench.dialplan().replace(
        "_[1-4]000,1,Gosub(cc-dial,s,1(PJSIP/${EXTEN},20))", "_[1-4]000,1,Dial(PJSIP/${EXTEN},20)"
    )
    bench.asterisk.reload_dialplan(plain)
    talk.hangup()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")
