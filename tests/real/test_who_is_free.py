"""Who is free: several phones, groups, hints with do-not-disturb, phones that forward (contrib/doc/free.rst)."""

from tests.lab.phone import Call
from tests.real.bench import QUICK, Bench

MODES = "poll", "ami"

SITE = """
[site](+)
; one person with two phones, or a group: both ring
exten => 2200,1,Gosub(cc-dial,s,1(PJSIP/2000&PJSIP/4000,2))
 same => n,Hangup(${HANGUPCAUSE})
exten => 2000,hint,PJSIP/2000&Custom:DND2000
"""
TWO_PHONES = QUICK + 'extensions: {"2000": {device: PJSIP/2000&PJSIP/4000}}\n'
BY_HINT = QUICK + 'extensions: {"2000": {monitor: hint}, "3000": {monitor: hint}}\n'


def on_the_site(bench: Bench, config: str = QUICK, ring: int = 20) -> None:
    bench.asterisk.reload_dialplan(bench.dialplan(ring=ring, more=SITE))
    bench.reconfigure(config)


def uses_his_phone(bench: Bench, number: str) -> Call:
    """A call of his own, during which others meet busy."""
    bench.phones[number].answer = "busy"
    return bench.phones[number].dial("5555").wait_answered()


def fails(bench: Bench, number: str, status: int = 486) -> None:
    bench.phones["1000"].dial(number).wait_status(status)
    for phone in ("2000", "3000", "4000"):
        bench.forget(phone)


def test_free_when_one_of_those_that_rang_is(bench: Bench) -> None:
    on_the_site(bench)
    first, second = uses_his_phone(bench, "2000"), uses_his_phone(bench, "4000")
    fails(bench, "2200")
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.5)
    bench.completes(second, "4000")
    first.hangup()


def test_busy_while_the_one_that_must_ring_is(bench: Bench) -> None:
    """He has another phone, idle all the time; but only this one was called."""
    on_the_site(bench, TWO_PHONES)
    talk = uses_his_phone(bench, "2000")
    fails(bench, "2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    bench.completes(talk)


def test_a_group_of_which_nobody_answered(bench: Bench) -> None:
    """Any of its members who has used his phone, and put it down, can answer now."""
    on_the_site(bench)
    bench.phones["1000"].dial("2200").wait_ended()
    bench.forget("2000")
    bench.forget("4000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    talk = uses_his_phone(bench, "4000")
    other = uses_his_phone(bench, "2000")
    bench.server.wait_log("2200 uses his phone")
    bench.quiet("1000", 0.5)
    bench.completes(talk, "4000")
    other.hangup()


def test_a_member_of_the_group_may_ask(bench: Bench) -> None:
    on_the_site(bench)
    talk = uses_his_phone(bench, "2000")
    bench.phones["4000"].answer = "busy"
    bench.phones["4000"].dial("2200").wait_ended()
    assert bench.asks("4000") == "SUCCESS/"
    bench.forget("4000")
    bench.forget("2000")
    bench.phones["2000"].answer = bench.phones["4000"].answer = "ring"
    talk.hangup()
    bench.connects(bench.recalled("4000"), "2000").hangup()
    bench.ended("COMPLETED")


def test_do_not_disturb_by_a_hint(bench: Bench) -> None:
    on_the_site(bench, BY_HINT)
    talk = uses_his_phone(bench, "2000")
    fails(bench, "2000")
    assert bench.asks("1000") == "SUCCESS/"
    [request] = bench.server.requests()
    assert request.callee_devices == ("Hint:2000@phones",)
    bench.asterisk.cli("devstate change Custom:DND2000 BUSY")
    try:
        talk.hangup()
        bench.quiet("1000", 1.0)
        bench.phones["2000"].answer = "ring"
    finally:
        bench.asterisk.cli("devstate change Custom:DND2000 NOT_INUSE")
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_not_registered_is_no_matter_of_the_hint(bench: Bench) -> None:
    """It says NOT_INUSE of a phone that is away."""
    on_the_site(bench, BY_HINT)
    bench.phones["2000"].unregister()
    fails(bench, "2000", 404)
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 1.0)
    bench.phones["2000"].register()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_a_hint_that_is_not_there(bench: Bench) -> None:
    """Nobody is called back on a guess, and the log says why."""
    on_the_site(bench, BY_HINT)
    talk = uses_his_phone(bench, "3000")
    fails(bench, "3000")
    assert bench.asks("1000") == "SUCCESS/"
    talk.hangup()
    bench.server.wait_log("there is no hint 3000@phones")
    bench.quiet("1000", 1.0)


def forwards(call: Call, number: str) -> None:
    call.reject(302, {"Contact": f"<sip:{number}@127.0.0.1>"})


def test_forwarded_it_is_the_one_who_rang_that_counts(bench: Bench) -> None:
    on_the_site(bench)
    talk = uses_his_phone(bench, "3000")
    call = bench.phones["1000"].dial("2000")
    forwards(bench.phones["2000"].expect_call(), "3000")
    call.wait_status(486)
    bench.forget("3000")
    assert [(o.callee, o.callee_devices) for o in bench.offers()] == [("2000", ("PJSIP/3000",))]
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    bench.phones["3000"].answer = "ring"
    talk.hangup()
    bench.recalled().answer()
    forwards(bench.phones["2000"].expect_call(), "3000")
    bench.phones["3000"].expect_call().ring().answer().wait_answered().hangup()
    bench.ended("COMPLETED")


def test_forwarded_to_nowhere(bench: Bench) -> None:
    on_the_site(bench)
    call = bench.phones["1000"].dial("2000")
    forwards(bench.phones["2000"].expect_call(), "1111")
    call.wait_ended()
    assert bench.asks("1000") == "FAIL/CHANUNAVAIL"


def test_declined(bench: Bench) -> None:
    """He is there: he is called again when he has used his phone."""
    on_the_site(bench)
    call = bench.phones["1000"].dial("2000")
    bench.phones["2000"].expect_call().reject(603)
    call.wait_ended()
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    talk = uses_his_phone(bench, "2000")
    bench.server.wait_log("2000 uses his phone")
    bench.completes(talk)
