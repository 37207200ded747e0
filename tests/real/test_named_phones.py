"""Phones whose endpoints are not called as their numbers, and calls that take more than one Dial()."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.asterisk import Trunk
from tests.lab.install import ensure_asterisk
from tests.lab.phone import Call
from tests.lab.server import DIALPLAN
from tests.real.bench import QUICK, SEEN, Bench

PHONES = {
    "1000": "Alice",
    "bob-desk": "Bob",
    "bob-cordless": "Bob",
    "carol-desk": "Carol",
    "3000": "Dave",
}
BOB = 'extensions: {"2000": {name: Bob, device: PJSIP/bob-desk&PJSIP/bob-cordless}}\n'

SITE = """\
[general]
[globals]
CC_AGI=agi://127.0.0.1:{port}
#include "{dialplan}/*.conf"

[phones]
include => cc-features
include => site
exten => h,1,{seen}

[site]
exten => 2000,1,Gosub(cc-dial,s,1(PJSIP/bob-desk,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2222,1,Gosub(cc-dial,s,1(PJSIP/bob-desk&PJSIP/bob-cordless,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => 2500,1,Gosub(cc-dial,s,1(PJSIP/carol-desk,{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _[13]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
; straight, and a call of one's own that stays up
exten => _5.,1,Dial(PJSIP/${{EXTEN:1}},{ring})
exten => 5555,1,Answer()
 same => n,Wait(600)
[trunk]
{more}
"""


class Named(Bench):
    """Alice 1000 and Dave 3000; Bob 2000 has two phones of other names, Carol 2500 one."""

    def __init__(self, folder: Path, *args: object) -> None:
        super().__init__(folder, ensure_asterisk())
        self.names = PHONES

    def dialplan(self, ring: int = 20, more: str = "") -> str:
        return SITE.format(port=self.port, dialplan=DIALPLAN, ring=ring, seen=SEEN, more=more)

    def configure(self) -> None:
        phones = [Endpoint(name, person) for name, person in PHONES.items()]
        trunk = Trunk("trunk", "127.0.0.1", self.trunk_port)
        self.asterisk.configure(self.dialplan(), phones, [trunk])

    def fails(self, number: str, caller: str = "1000") -> Call:
        """A call that fails by itself; answers it once it is on record."""
        before = len(self.offers())
        call = self.phones[caller].dial(number).wait_ended(8)
        self.until(lambda: len(self.offers()) == before + 1, "it is on record")
        for phone in self.phones:
            self.forget(phone)
        return call

    def uses_his_phone(self, name: str) -> Call:
        """A call of his own, during which others meet busy."""
        self.phones[name].answer = "busy"
        return self.phones[name].dial("5555").wait_answered()

    def recorded(self) -> list[tuple[str, tuple[str, ...], str]]:
        """What is on record: for whom, by which devices, and for what or why not."""
        return [(o.callee, o.callee_devices, o.service or o.reason) for o in self.offers()]


@pytest.fixture(scope="module")
def running_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("named")
    with Named(folder).running() as bench:
        yield bench


@pytest.fixture
def pbx(running_bench: Named, request: pytest.FixtureRequest) -> Iterator[Named]:
    running_bench.fresh()
    yield running_bench
    if hasattr(request.node, "failed"):
        print(running_bench.evidence())
    running_bench.clear()


# -- cc-dial


@pytest.mark.parametrize("config", [QUICK, QUICK + BOB], ids=["no entry", "entry"])
def test_busy(pbx: Named, config: str) -> None:
    """Only the phone that was rung is waited for, whatever the entry names."""
    pbx.reconfigure(config)
    talk = pbx.uses_his_phone("bob-desk")
    pbx.fails("2000")
    assert pbx.recorded() == [("2000", ("PJSIP/bob-desk",), "CCBS")]
    assert pbx.asks("1000") == "SUCCESS/"
    pbx.quiet("1000", 0.5)
    pbx.phones["bob-desk"].answer = "ring"
    talk.hangup()
    pbx.connects(pbx.recalled(), "bob-desk").hangup()
    pbx.ended("COMPLETED")


@pytest.mark.parametrize(
    ("answer", "ring", "service"),
    [("decline", 20, "CCNR"), ("ring", 1, "CCNR"), ("404", 20, "NO_SUCH_NUMBER")],
)
def test_it_fails_otherwise(pbx: Named, answer: str, ring: int, service: str) -> None:
    pbx.asterisk.reload_dialplan(pbx.dialplan(ring))
    pbx.phones["bob-desk"].answer = answer
    pbx.fails("2000")
    assert pbx.recorded() == [("2000", ("PJSIP/bob-desk",), service)]


def test_not_registered(pbx: Named) -> None:
    pbx.phones["bob-desk"].unregister()
    pbx.fails("2000")
    assert pbx.recorded() == [("2000", ("PJSIP/bob-desk",), "CCNL")]


def test_both_of_two(pbx: Named) -> None:
    pbx.phones["bob-desk"].answer = pbx.phones["bob-cordless"].answer = "busy"
    pbx.fails("2222")
    assert pbx.recorded() == [("2222", ("PJSIP/bob-desk", "PJSIP/bob-cordless"), "CCBS")]
