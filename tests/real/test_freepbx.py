"""The files for FreePBX, in contexts as FreePBX makes them, on a real Asterisk. FreePBX itself does not run here.

The dialplan below was written for this test. It has the shape of what FreePBX 17 generates, as far as a call to an
extension goes through it: the includes of from-internal, the Gosub from one sub to the next with an h in each,
do-not-disturb and missing contacts that keep Dial() from being run, voicemail or a busy tone at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import ensure_asterisk
from tests.lab.server import DIALPLAN
from tests.real.bench import NAMES, QUICK, SEEN, Bench
from tests.real.test_attack import escaped, slipping

TOP = Path(__file__).resolve().parents[2]
OURS = TOP / "contrib/freepbx"

LIKE_FREEPBX = """\
[general]
[globals]
TRANSFER_CONTEXT=from-internal-xfer
CC_AGI=agi://127.0.0.1:{port}
{globals}

[from-internal]
include => from-internal-noxfer
include => from-internal-xfer
include => bad-number
[from-internal-noxfer]
include => from-internal-noxfer-custom
include => from-internal-noxfer-additional
[from-internal-noxfer-custom]
[from-internal-noxfer-additional]
exten => *97,1,Verbose(1,my-voicemail)
 same => n,Hangup()
[from-internal-xfer]
include => from-internal-custom
include => from-internal-additional
exten => s,1,Gosub(sub-hangupcall,s,1())
exten => h,1,Gosub(sub-hangupcall,s,1())
[from-internal-additional]
include => app-blacklist
include => ext-local
include => ext-group
include => outbound-allroutes
exten => h,1,Hangup
[app-blacklist]
exten => *30,1,Verbose(1,app-blacklist)
 same => n,Answer()
 same => n,Hangup()
[ext-group]
exten => 600,1,Gosub(sub-user-callerid,s,1())
 same => n,Dial(Local/2000@from-internal/n&Local/3000@from-internal/n,{ring})
 same => n,Gosub(sub-hangupcall,s,1())
[outbound-allroutes]
[bad-number]
exten => _X.,1,Verbose(1,bad-number ${{EXTEN}})
 same => n,Playback(im-sorry)
 same => n,Hangup(1)

[ext-local]
{extensions}

[sub-exten-vm]
exten => s,1,Gosub(sub-user-callerid,s,1())
 same => n,Set(__EXTTOCALL=${{ARG2}})
 same => n,Set(RT={ring})
 same => n,Gosub(sub-dial-one,s,1(${{RT}},,${{EXTTOCALL}}))
 same => n,Set(SV_DIALSTATUS=${{DIALSTATUS}})
 same => n,Set(DIALSTATUS=${{SV_DIALSTATUS}})
 same => n,GotoIf($["${{ARG1}}" = "novm"]?s-${{DIALSTATUS}},1)
 same => n,Gosub(sub-vm,s,1(${{ARG1}},${{DIALSTATUS}}))
exten => s-BUSY,1,NoOp(Extension is reporting BUSY and not passing to Voicemail)
 same => n,Playtones(busy)
 same => n,Busy(20)
 same => n,Return()
exten => _s-.,1,Playtones(congestion)
 same => n,Congestion(10)
exten => h,1,Gosub(sub-hangupcall,s,1())
[sub-user-callerid]
exten => s,1,Set(AMPUSER=${{IF($["${{AMPUSER}}" = ""]?${{CALLERID(number)}}:${{AMPUSER}})}})
 same => n,Set(CALLERID(number)=${{CALLERID(number):0:40}})
 same => n,Set(CHANNEL(language)=${{MASTER_CHANNEL(CHANNEL(language))}})
 same => n,Return()
exten => h,1,Gosub(sub-hangupcall,s,1())
[sub-dial-one]
exten => s,1,Set(DEXTEN=${{ARG3}})
 same => n,GotoIf($["${{DB(DND/${{DEXTEN}})}}" = ""]?skip1)
 same => n,Set(DIALSTATUS=BUSY)
 same => n,Goto(nodial)
 same => n(skip1),Set(DSTRING=${{PJSIP_DIAL_CONTACTS(${{DEXTEN}})}})
 same => n,ExecIf($["${{DSTRING}}" = ""]?Set(DIALSTATUS=CHANUNAVAIL))
 same => n,GotoIf($[${{LEN(${{DSTRING}})}} = 0]?nodial)
 same => n,Dial(${{DSTRING}},${{ARG1}},${{ARG2}}b(func-apply-sipheaders^s^1))
 same => n,Return()
 same => n(nodial),ExecIf($["${{DIALSTATUS}}" = ""]?Set(DIALSTATUS=NOANSWER))
 same => n,Return()
exten => h,1,Gosub(sub-hangupcall,s,1())
[func-apply-sipheaders]
exten => s,1,Return()
[sub-vm]
exten => s,1,Answer()
 same => n,Playback(beep)
 same => n,Wait(60)
 same => n,Return()
exten => h,1,Gosub(sub-hangupcall,s,1())
[sub-hangupcall]
exten => s,1,{seen}
 same => n,Hangup()

"""

EXTENSION = """\
exten => {number},1,Set(__RINGTIMER=15)
 same => n,Gosub(sub-exten-vm,s,1({vm},{number},0,0,0))
 same => n,Goto(vmret,1)
exten => {number},hint,PJSIP/{number}&Custom:DND{number}
"""

# 5000 <number> calls straight, as no FreePBX does: the tests make one phone talk to another by it.
TALK = """
[from-internal-noxfer-custom](+)
exten => _5[1-4]000,1,Dial(PJSIP/${EXTEN:1},20)
 same => n,Hangup()
"""


class FreePbx(Bench):
    """Phones 1000 to 4000 of a PBX like FreePBX; 4000 has voicemail, and nobody do-not-disturb."""

    codes: Mapping[str, str] = {"*30": "*82", "*31": "*83", "*32": "*84"}

    def dialplan(self, ring: int = 20, more: str = "") -> str:
        theirs = LIKE_FREEPBX.format(
            port=self.port,
            globals=(OURS / "globals_custom.conf").read_text(),
            extensions="".join(
                EXTENSION.format(number=number, vm="4000" if number == "4000" else "novm") for number in NAMES
            ),
            ring=ring,
            seen=SEEN,
        )
        ours = (OURS / "extensions_custom.conf").read_text()
        placed = ours.replace("/opt/fastagi/share/fastagi/dialplan", str(DIALPLAN))
        assert placed != ours
        return theirs + TALK + placed + more

    def configure(self) -> None:
        phones = [Endpoint(number, name, context="from-internal") for number, name in NAMES.items()]
        self.asterisk.configure(self.dialplan(), phones)

    def ready(self) -> None:
        super().ready()
        self.dnd("2000", on=False)

    def dnd(self, number: str, on: bool) -> None:
        """What FreePBX's own code for do-not-disturb sets: the database, and a state that the hint shows."""
        self.asterisk.cli(f"database {'put' if on else 'del'} DND {number}{' YES' * on}")
        self.asterisk.cli(f"devstate change Custom:DND{number} {'BUSY' if on else 'NOT_INUSE'}")


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("freepbx")
    with FreePbx(folder, ensure_asterisk()).running() as bench:
        yield bench


def test_busy_asked_called_back(bench: FreePbx) -> None:
    """And FreePBX's own end of a call runs."""
    talk = bench.talk("2000", "3000")
    bench.fails("2000")
    bench.site_line("1,site-h PJSIP/1000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    call = bench.connects(bench.recalled(), "2000")
    assert (call.from_number, call.from_name) == ("1000", "Alice")
    call.hangup()
    bench.ended("COMPLETED")


def test_taken_back(bench: FreePbx) -> None:
    talk = bench.talk("2000", "3000")
    bench.fails("2000")
    assert bench.asks("1000") == "SUCCESS/"
    assert bench.asks("1000", "*31") == "SUCCESS/"
    talk.hangup()
    bench.quiet("1000", 0.7)


def test_given_up_while_it_rings(bench: FreePbx) -> None:
    bench.phones["1000"].dial("2000").wait_ringing().hangup().wait_ended()
    bench.until(bench.offers, "the note has arrived")
    [offer] = bench.offers()
    assert (offer.callee, offer.callee_devices, offer.service) == ("2000", ("PJSIP/2000",), "CCNR")
    bench.site_line("1,site-h PJSIP/1000")


def test_not_registered_then_registers(bench: FreePbx) -> None:
    """Dial() is not even run."""
    bench.phones["2000"].unregister()
    bench.fails("2000")
    assert [o.service for o in bench.offers()] == ["CCNL"]
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.5)
    bench.phones["2000"].register()
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_do_not_disturb(bench: FreePbx) -> None:
    """Dial() is not even run; with the hints of FreePBX he is called back when that is switched off."""
    bench.reconfigure(QUICK + 'extensions: {"_2XXX": {monitor: hint}}\n')
    bench.dnd("2000", on=True)
    bench.fails("2000")
    assert [o.service for o in bench.offers()] == ["CCBS"]
    assert bench.asks("1000") == "SUCCESS/"
    bench.quiet("1000", 0.7)
    bench.dnd("2000", on=False)
    bench.connects(bench.recalled(), "2000").hangup()
    bench.ended("COMPLETED")


def test_declined(bench: FreePbx) -> None:
    bench.phones["2000"].answer = "decline"
    bench.fails("2000")
    assert [o.service for o in bench.offers()] == ["CCNR"]


def test_busy_again(bench: FreePbx) -> None:
    """Playtones and Busy(20) follow there; he is told and hung up, and keeps his place."""
    talk = bench.talk("2000", "3000")
    bench.fails("2000")
    assert bench.asks("1000") == "SUCCESS/"
    bench.phones["2000"].answer = "ring"
    talk.hangup()
    recall = bench.recalled()
    talk = bench.talk("2000", "3000")
    recall.answer().wait_ended(8)
    assert bench.played()[-1] == "vm-isonphone"
    [request] = bench.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCBS", 1)
    bench.forget("2000")
    bench.completes(talk)


def test_voicemail_after_busy(bench: FreePbx) -> None:
    bench.phones["4000"].answer = "busy"
    call = bench.phones["1000"].dial("4000").wait_answered()
    bench.until(lambda: "beep" in bench.played(), "the voicemail is there")
    call.hangup()
    bench.until(bench.offers, "it is on record")
    assert [(o.callee, o.service) for o in bench.offers()] == [("4000", "CCBS")]


def test_an_answered_call(bench: FreePbx) -> None:
    bench.phones["2000"].answer = "answer"
    bench.phones["1000"].dial("2000").wait_answered().hangup().wait_ended()
    bench.phones["2000"].answer = "busy"
    bench.fails("2000")
    assert len(bench.offers()) == 1


def test_a_ring_group(bench: FreePbx) -> None:
    """It rings Local channels, which go through from-internal again: one call is on record, with all its phones."""
    bench.phones["2000"].answer = bench.phones["3000"].answer = "busy"
    bench.fails("600")
    [offer] = bench.offers()
    assert (offer.caller, offer.callee, offer.service) == ("1000", "600", "CCBS")
    assert set(offer.callee_devices) == {"PJSIP/2000", "PJSIP/3000"}


def test_what_is_freepbxs_stays_so(bench: FreePbx) -> None:
    bench.phones["1000"].dial("*30").wait_ended()
    bench.site_line("1,app-blacklist")
    bench.phones["1000"].dial("*97").wait_ended()
    bench.site_line("1,my-voicemail")
    bench.phones["1000"].dial("2555").wait_ended()
    bench.site_line("1,bad-number 2555")
    assert bench.played() == ["im-sorry"]
    assert not bench.offers()


def test_the_hints_are_found(bench: FreePbx) -> None:
    """The pattern of ours stands before the extensions, in the context of the phones and of their lamps."""
    for number in "2000", "1000":
        state = bench.asterisk.cli(f"dialplan eval function EXTENSION_STATE({number}@from-internal)")
        assert "NOT_INUSE" in state
    bench.dnd("2000", on=True)
    assert "BUSY" in bench.asterisk.cli("dialplan eval function EXTENSION_STATE(2000@from-internal)")


HOSTILE = ["2000,2", "2000\nagi_evil: 1", "2(x)", '2"', slipping("2"), slipping("2\nx")]


@pytest.mark.parametrize("user", HOSTILE, ids=lambda user: ascii(user[:30]))
def test_a_hostile_extension(bench: FreePbx, user: str) -> None:
    """It goes nowhere."""
    bench.phones["1000"].dial("x", user_raw=escaped(user)).wait_status(404)
    # The line that writes it, and what it writes.
    assert bench.site_line("refused: what PJSIP/1000-", 2).endswith("is no number")
    assert not bench.site_lines("@cc-from-internal") and not bench.offers()
