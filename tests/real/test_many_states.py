"""A site that keeps a great many custom device states, as FreePBX does: several for each extension."""

from tests.real.bench import QUICK, Bench

FILL = """
[fill]
exten => s,1,Set(CDR_PROP(disable)=1)
 same => n,Set(i=0)
 same => n,While($[${i} < 7000])
 same => n,Set(DB(CustomDevstate/AAAAAA${i})=NOT_INUSE)
 same => n,Set(i=$[${i} + 1])
 same => n,EndWhile()
 same => n,Set(DB(CustomDevstate/CC7777)=INUSE)
"""


def test_their_names_are_more_than_fits_into_one_answer(bench: Bench) -> None:
    """They are read all the same: a lamp that was left lit is dark, and who waits is called back."""
    asterisk, ask = bench.asterisk, "dialplan eval function DEVICE_STATE(Custom:CC7777)"
    bench.server.stop()
    asterisk.reload_dialplan(bench.dialplan() + FILL)
    try:
        asterisk.cli("channel originate Local/s@fill/n application NoOp")
        bench.until(lambda: "INUSE" in asterisk.cli(ask).split(), "all are there", 30)
        bench.server.configure(QUICK)
        bench.server.start()
        talk = bench.busy_and_asked()
        bench.until(lambda: "NOT_INUSE" in asterisk.cli(ask).split(), "the lamp is dark")
        talk.hangup()
        bench.connects(bench.recalled(), "2000").hangup()
        bench.ended("COMPLETED")
        assert not bench.server.log_lines("lost")
    finally:
        asterisk.cli("database deltree CustomDevstate")
