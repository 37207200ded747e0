"""The files for FreePBX, in contexts as FreePBX makes them, on a real Asterisk. FreePBX itself does not run here.

The dialplan below was written for this test. It has the shape of what FreePBX 17 generates, as far as a call to an
extension goes through it: the includes of from-internal, the Gosub from one sub to the next with an h in each,
do-not-disturb and missing contacts that keep Dial() from being run, voicemail or a busy tone at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call
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

CODES = {"*30": "*82", "*31": "*83", "*32": "*84"}


class FreePbx(Bench):
    """Phones 1000 to 4000 of a PBX like FreePBX; 4000 has voicemail."""

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

    def asks(self, caller: str, code: str = "*30") -> str:
        """By FreePBX's codes."""
        self.phones[caller].dial(CODES[code]).wait_answered().wait_ended(10)
        key = {"*30": "request", "*31": "cancel", "*32": "pending"}[code]
        seen: list[str] = []

        def told() -> bool:
            lines = self.site_lines(f"1,site-h PJSIP/{caller}")
            seen.extend(re.findall(rf"{key}=(\S+/\S*)", lines[-1]) if lines else [])
            return bool(seen) and seen[-1] != "/"

        self.until(told, f"the site's h after {code}")
        return seen[-1]

    def fails(self, number: str) -> Call:
        before = len(self.offers())
        call = self.phones["1000"].dial(number).wait_ended(8)
        self.until(lambda: len(self.offers()) == before + 1, "it is on record")
        for phone in self.phones:
            self.forget(phone)
        return call

    def dnd(self, number: str, on: bool) -> None:
        """What FreePBX's own code for do-not-disturb sets: the database, and a state that the hint shows."""
        self.asterisk.cli(f"database {'put' if on else 'del'} DND {number}{' YES' * on}")
        self.asterisk.cli(f"devstate change Custom:DND{number} {'BUSY' if on else 'NOT_INUSE'}")


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("freepbx")
    with FreePbx(folder, ensure_asterisk()).running() as bench:
        yield bench


@pytest.fixture
def pbx(running_bench: FreePbx, request: pytest.FixtureRequest) -> Iterator[FreePbx]:
    running_bench.fresh()
    yield running_bench
    if hasattr(request.node, "failed"):
        print(running_bench.evidence())
    running_bench.dnd("2000", on=False)
    running_bench.clear()


def test_busy_asked_called_back(pbx: FreePbx) -> None:
    talk = pbx.talk("2000", "3000")
    pbx.fails("2000")
    assert pbx.site_lines("1,site-h PJSIP/1000"), "FreePBX's own end of a call runs"
    assert pbx.asks("1000") == "SUCCESS/"
    pbx.phones["2000"].answer = "ring"
    talk.hangup()
    call = pbx.connects(pbx.recalled(), "2000")
    assert (call.from_number, call.from_name) == ("1000", "Alice")
    call.hangup()
    pbx.ended("COMPLETED")


def test_taken_back(pbx: FreePbx) -> None:
    talk = pbx.talk("2000", "3000")
    pbx.fails("2000")
    assert pbx.asks("1000") == "SUCCESS/"
    assert pbx.asks("1000", "*31") == "SUCCESS/"
    talk.hangup()
    pbx.quiet("1000", 0.7)


def test_given_up_while_it_rings(pbx: FreePbx) -> None:
    pbx.phones["1000"].dial("2000").wait_ringing().hangup().wait_ended()
    pbx.until(pbx.offers, "the note has arrived")
    [offer] = pbx.offers()
    assert (offer.callee, offer.callee_devices, offer.service) == ("2000", ("PJSIP/2000",), "CCNR")
    assert pbx.site_lines("1,site-h PJSIP/1000")


def test_not_registered_then_registers(pbx: FreePbx) -> None:
    """Dial() is not even run."""
    pbx.phones["2000"].unregister()
    pbx.fails("2000")
    assert [o.service for o in pbx.offers()] == ["CCNL"]
    assert pbx.asks("1000") == "SUCCESS/"
    pbx.quiet("1000", 0.5)
    pbx.phones["2000"].register()
    pbx.connects(pbx.recalled(), "2000").hangup()
    pbx.ended("COMPLETED")


def test_do_not_disturb(pbx: FreePbx) -> None:
    """Dial() is not even run; with the hints of FreePBX he is called back when that is switched off."""
    pbx.reconfigure(QUICK + 'extensions: {"_2XXX": {monitor: hint}}\n')
    pbx.dnd("2000", on=True)
    pbx.fails("2000")
    assert [o.service for o in pbx.offers()] == ["CCBS"]
    assert pbx.asks("1000") == "SUCCESS/"
    pbx.quiet("1000", 0.7)
    pbx.dnd("2000", on=False)
    pbx.connects(pbx.recalled(), "2000").hangup()
    pbx.ended("COMPLETED")


def test_declined(pbx: FreePbx) -> None:
    pbx.phones["2000"].answer = "decline"
    pbx.fails("2000")
    assert [o.service for o in pbx.offers()] == ["CCNR"]


def test_busy_again(pbx: FreePbx) -> None:
    """Playtones and Busy(20) follow there; he is told and hung up, and keeps his place."""
    talk = pbx.talk("2000", "3000")
    pbx.fails("2000")
    assert pbx.asks("1000") == "SUCCESS/"
    pbx.phones["2000"].answer = "ring"
    talk.hangup()
    recall = pbx.recalled()
    talk = pbx.talk("2000", "3000")
    recall.answer().wait_ended(8)
    assert pbx.played()[-1] == "vm-isonphone"
    [request] = pbx.server.requests()
    assert (request.state, request.service, request.recalls) == ("QUEUED", "CCBS", 1)
    pbx.forget("2000")
    pbx.phones["2000"].answer = "ring"
    talk.hangup()
    pbx.connects(pbx.recalled(), "2000").hangup()
    pbx.ended("COMPLETED")


def test_voicemail_after_busy(pbx: FreePbx) -> None:
    pbx.phones["4000"].answer = "busy"
    call = pbx.phones["1000"].dial("4000").wait_answered()
    pbx.until(lambda: "beep" in pbx.played(), "the voicemail is there")
    call.hangup()
    pbx.until(pbx.offers, "it is on record")
    assert [(o.callee, o.service) for o in pbx.offers()] == [("4000", "CCBS")]


def test_an_answered_call(pbx: FreePbx) -> None:
    pbx.phones["2000"].answer = "answer"
    pbx.phones["1000"].dial("2000").wait_answered().hangup().wait_ended()
    pbx.phones["2000"].answer = "busy"
    pbx.fails("2000")
    assert len(pbx.offers()) == 1


def test_a_ring_group(pbx: FreePbx) -> None:
    """It rings Local channels, which go through from-internal again: one call is on record, with all its phones."""
    pbx.phones["2000"].answer = pbx.phones["3000"].answer = "busy"
    pbx.fails("600")
    [offer] = pbx.offers()
    assert (offer.caller, offer.callee, offer.service) == ("1000", "600", "CCBS")
    assert set(offer.callee_devices) == {"PJSIP/2000", "PJSIP/3000"}


def test_what_is_freepbxs_stays_so(pbx: FreePbx) -> None:
    pbx.phones["1000"].dial("*30").wait_ended()
    assert pbx.site_lines("1,app-blacklist")
    pbx.phones["1000"].dial("*97").wait_ended()
    assert pbx.site_lines("1,my-voicemail")
    pbx.phones["1000"].dial("2555").wait_ended()
    assert pbx.site_lines("1,bad-number 2555") and pbx.played() == ["im-sorry"]
    assert not pbx.offers()


def test_the_hints_are_found(pbx: FreePbx) -> None:
    """The pattern of ours stands before the extensions, in the context of the phones and of their lamps."""
    for number in "2000", "1000":
        state = pbx.asterisk.cli(f"dialplan eval function EXTENSION_STATE({number}@from-internal)")
        assert "NOT_INUSE" in state
    pbx.dnd("2000", on=True)
    assert "BUSY" in pbx.asterisk.cli("dialplan eval function EXTENSION_STATE(2000@from-internal)")


HOSTILE = ["2000,2", "2000\nagi_evil: 1", "2(x)", '2"', slipping("2"), slipping("2\nx")]


@pytest.mark.parametrize("user", HOSTILE, ids=lambda user: ascii(user[:30]))
def test_a_hostile_extension(pbx: FreePbx, user: str) -> None:
    """It goes nowhere."""
    pbx.phones["1000"].dial("x", user_raw=escaped(user)).wait_status(404)
    assert [line for line in pbx.site_lines("refused: what PJSIP/1000-") if line.endswith("is no number")]
    assert not pbx.site_lines("@cc-from-internal") and not pbx.offers()
