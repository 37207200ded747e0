"""The AMI client on a real Asterisk, as a user who has no more rights than it needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from fastagi.pbx.ami import Ami, AmiError, Login, try_login
from tests.lab.asterisk import AMI_SECRET, AMI_USER, Asterisk
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import ensure_asterisk
from tests.real.bench import NAMES, Pbx

DIALPLAN = """\
[phones]
exten => 2000,hint,PJSIP/2000
exten => _[1-4]000,1,Dial(PJSIP/${EXTEN},20)
 same => n,Hangup()
exten => _5[1-4]000,1,Goto(${EXTEN:1},1)
exten => 5555,1,Answer()
 same => n,Wait(60)
[ring]
exten => 1000,1,Dial(PJSIP/1000,20)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pbx]:
    folder: Path = tmp_path_factory.mktemp("ami")
    asterisk = Asterisk(folder, ensure_asterisk(), say=lambda line: None, ami=True)
    asterisk.configure(DIALPLAN, [Endpoint(number, name) for number, name in NAMES.items()])
    with Pbx(asterisk, NAMES).running() as pbx:
        yield pbx


@pytest.fixture
def pbx(running: Pbx) -> Iterator[Pbx]:
    running.ready()
    yield running
    running.clear()


class Client:
    """An `Ami` and what it told."""

    def __init__(self, asterisk: Asterisk, **changes: Any) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        host, port = asterisk.ami_address
        given: dict[str, Any] = {"host": host, "port": port, "username": AMI_USER, "secret": AMI_SECRET}
        self.login = Login(**{**given, **changes})
        self.log: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.hints: list[tuple[str, str]] = []
        self.ups: list[dict[str, str]] = []
        self.ami = Ami(
            reactor,
            self.login,
            up=self._up,
            device_state=lambda device, state: self.told.append((device, state)),
            extension_state=lambda exten, context: self.hints.append((exten, context)),
            log=self.log.append,
        )

    async def _up(self, ami: Ami) -> None:
        self.ups.append(await ami.device_states())
        await Deferred()

    async def __aenter__(self) -> Client:
        self.ami.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ami.stop()
        assert not [line for line in self.log if "Traceback" in line or AMI_SECRET in line]

    async def until(self, true: Callable[[], object], timeout: float = 5.0) -> None:
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end, (self.log, self.told, self.hints)
            await deferLater(self.reactor, 0.01)

    async def is_up(self) -> Client:
        await self.until(lambda: self.ami.connected and self.ups)
        return self

    def of(self, device: str) -> list[str]:
        """The states of one device, in the order in which they were told, each change once."""
        told = [state for name, state in self.told if name == device]
        return [state for n, state in enumerate(told) if n == 0 or told[n - 1] != state]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_what_it_asks_and_sets(pbx: Pbx) -> None:
    async with Client(pbx.asterisk) as client:
        ami = (await client.is_up()).ami
        host, port = pbx.asterisk.ami_address
        assert client.log == [f"AMI connected to {host}:{port} as {AMI_USER}"]
        assert client.ups[0].items() >= {f"PJSIP/{number}": "NOT_INUSE" for number in NAMES}.items()
        assert await ami.ask("DEVICE_STATE(PJSIP/2000)") == "NOT_INUSE"
        assert await ami.ask("DEVICE_STATE(PJSIP/nobody)") == "INVALID"
        assert await ami.ask("NO_SUCH_FUNCTION(x)") == ""
        await ami.set("DEVICE_STATE(Custom:CC1000)", "INUSE")
        await client.until(lambda: ("Custom:CC1000", "INUSE") in client.told)
        assert (await ami.device_states())["Custom:CC1000"] == "INUSE"
        with pytest.raises(AmiError, match="No such channel"):
            await ami.hang_up("PJSIP/2000-00000000")
    assert not client.ami.connected


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_call_is_told_from_ringing_to_its_end(pbx: Pbx) -> None:
    alice, bob = pbx.phones["1000"], pbx.phones["2000"]
    async with Client(pbx.asterisk) as client:
        await client.is_up()
        bob.answer = "ring"
        call = await deferToThread(lambda: alice.dial("2000"))
        await client.until(lambda: client.of("PJSIP/2000")[-1:] == ["RINGING"])
        theirs = await deferToThread(bob.expect_call)
        await deferToThread(theirs.answer)
        await deferToThread(call.wait_answered)
        await client.until(lambda: client.of("PJSIP/2000")[-1:] == ["INUSE"])
        await deferToThread(call.hold)
        await client.until(lambda: client.of("PJSIP/2000")[-1:] == ["ONHOLD"])
        await deferToThread(call.unhold)
        await client.until(lambda: client.of("PJSIP/2000")[-1:] == ["INUSE"])
        await deferToThread(call.hangup)
        await client.until(lambda: client.of("PJSIP/2000")[-1:] == ["NOT_INUSE"])
        assert client.of("PJSIP/2000") == ["RINGING", "INUSE", "ONHOLD", "INUSE", "NOT_INUSE"]
        assert client.hints and set(client.hints) == {("2000", "phones")}


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_originate_and_hang_up(pbx: Pbx) -> None:
    alice = pbx.phones["1000"]
    alice.answer = "ring"
    async with Client(pbx.asterisk) as client:
        ami = (await client.is_up()).ami
        await ami.originate("Local/1000@ring/n", "phones", "5555", 10.0)
        call = await deferToThread(alice.expect_call)
        channels = await deferToThread(pbx.asterisk.channels)
        await ami.hang_up(next(name for name in channels if name.endswith(";2")))
        await deferToThread(call.wait_ended)
        await client.until(lambda: client.of("PJSIP/1000")[-1:] == ["NOT_INUSE"])
        with pytest.raises(AmiError, match="Originate"):
            await ami.originate("1000", "phones", "5555", 10.0)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_figures(pbx: Pbx) -> None:
    """A question takes less than a millisecond, also with another client's actions in between."""
    async with Client(pbx.asterisk) as client:
        ami = (await client.is_up()).ami
        trips = []
        for _ in range(2000):
            began = time.perf_counter()
            await ami.ask("DEVICE_STATE(PJSIP/2000)")
            trips.append(time.perf_counter() - began)
        print(f"\nGetvar over AMI: median {statistics.median(trips) * 1e6:.0f} us")
        assert statistics.median(trips) < 0.002


def test_try_login(pbx: Pbx) -> None:
    host, port = pbx.asterisk.ami_address
    assert try_login(Login(host, port, AMI_USER, AMI_SECRET)) == ""
    assert "Authentication failed" in try_login(Login(host, port, AMI_USER, "wrong"))
    assert "Authentication failed" in try_login(Login(host, port, "nobody", AMI_SECRET))
