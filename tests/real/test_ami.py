"""The AMI client on a real Asterisk, as a user who has no more rights than it needs."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory

from fastagi.pbx.ami import Ami, AmiError, Login, try_login
from fastagi.pbx.amiwire import MAX_SENT, Framer
from tests.lab.asterisk import AMI_SECRET, AMI_USER, HOST, Asterisk, lasting_port
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.install import ensure_asterisk
from tests.real.bench import NAMES, Pbx

CLOSED, NOBODY = "the connection was closed", "nobody listens there"
README = (Path(__file__).parents[2] / "README.rst").read_text()

DIALPLAN = """\
[phones]
exten => 2000,hint,PJSIP/2000
exten => _[1-4]000,1,Dial(PJSIP/${EXTEN},20)
 same => n,Hangup()
exten => _5[1-4]000,1,Goto(${EXTEN:1},1)
exten => 5555,1,Answer()
 same => n,Wait(60)
; as careless as a site can be
exten => _9!,1,Ringing()
 same => n,Wait(1)
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


def the_reactor() -> Any:
    from twisted.internet import reactor

    return reactor


class Client:
    """An `Ami` and what it told."""

    def __init__(self, asterisk: Asterisk, **changes: Any) -> None:
        self.reactor = the_reactor()
        host, port = asterisk.ami_address
        given: dict[str, Any] = {"host": host, "port": port, "username": AMI_USER, "secret": AMI_SECRET}
        self.login = Login(**{**given, **changes})
        self.log: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.hints: list[tuple[str, str]] = []
        self.ups = 0
        self.view: dict[str, str] = {}
        self.ami = Ami(
            self.reactor,
            self.login,
            up=self._up,
            device_state=self._device_state,
            extension_state=lambda exten, context: self.hints.append((exten, context)),
            log=self.log.append,
        )

    async def _up(self, ami: Ami) -> None:
        self.view = await ami.device_states()
        self.ups += 1
        await Deferred()

    def _device_state(self, device: str, state: str) -> None:
        self.told.append((device, state))
        self.view[device] = state

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
        assert client.view.items() >= {f"PJSIP/{number}": "NOT_INUSE" for number in NAMES}.items()
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


# Things that go wrong


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_asterisk_dies_and_comes_back(pbx: Pbx) -> None:
    async with Client(pbx.asterisk) as client:
        await client.is_up()
        pbx.asterisk.kill()
        await client.until(lambda: not client.ami.connected)
        with pytest.raises(AmiError, match="not connected"):
            await client.ami.ask("DEVICE_STATE(PJSIP/2000)")
        await client.until(lambda: len(client.log) == 3)
        assert client.log[1:] == [f"AMI at {client.login.where}: {why}" for why in (CLOSED, NOBODY)]
        pbx.asterisk.start()
        began = time.monotonic()
        await client.until(lambda: client.ups == 2 and client.ami.connected, 12)
        print(f"\nconnected {time.monotonic() - began:.1f} s after Asterisk was up")
        assert client.log[3:] == [f"AMI connected to {client.login.where} as {AMI_USER}"]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_connection_from_the_first_moment_sees_the_truth(
    pbx: Pbx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asterisk lets a client in while it loads its modules, long before the phones are known to it again."""
    asterisk = pbx.asterisk
    asterisk.stop()  # in order, so that it has saved who is registered
    monkeypatch.setattr("fastagi.pbx.ami.LONGEST_PAUSE", 0.01)
    async with Client(asterisk) as client:
        # In a thread, so that the client tries meanwhile. That thread lives as long as the reactor.
        await deferToThread(asterisk.start)
        await client.until(lambda: client.ups and client.ami.connected)
        connected = f"AMI connected to {client.login.where} as {AMI_USER}"
        assert client.log == [f"AMI at {client.login.where}: {NOBODY}", connected]
        for number in NAMES:
            assert await client.ami.ask(f"DEVICE_STATE(PJSIP/{number})") == "NOT_INUSE"
        idle = {f"PJSIP/{number}": "NOT_INUSE" for number in NAMES}.items()
        await client.until(lambda: client.view.items() >= idle)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_wrong_password_is_one_line(pbx: Pbx) -> None:
    asterisk = pbx.asterisk
    asterisk.configure_ami(secret="another")
    asterisk.reload_ami()
    try:
        async with Client(asterisk) as client:
            seen = len(asterisk.log_lines("failed to authenticate"))
            await client.until(lambda: len(asterisk.log_lines("failed to authenticate")) >= seen + 3, 15)
            [line] = client.log
            assert line.startswith(f"AMI at {client.login.where}: does not let us in: Authentication failed")
            asterisk.configure_ami()
            asterisk.reload_ami()
            await client.until(lambda: client.ami.connected, 15)
            assert client.log == [line, f"AMI connected to {client.login.where} as {AMI_USER}"]
    finally:
        asterisk.configure_ami()
        asterisk.reload_ami()


class Freezer(ProxyFactory):
    """Hands everything on, until it is frozen: then the connections stay, and nothing moves."""

    noisy = False

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.all: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        self.all.append(super().buildProtocol(addr))
        return self.all[-1]

    def freeze(self) -> None:
        for one in self.all:
            one.transport.pauseProducing()
            one.peer.transport.pauseProducing()

    def close(self) -> None:
        for one in self.all:
            one.transport.abortConnection()


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_connection_that_freezes_is_dropped_and_made_anew(pbx: Pbx) -> None:
    freezer = Freezer(*pbx.asterisk.ami_address)
    between = the_reactor().listenTCP(0, freezer, interface="127.0.0.1")
    try:
        async with Client(pbx.asterisk, port=between.getHost().port) as client:
            await client.is_up()
            freezer.freeze()
            began = time.monotonic()
            with pytest.raises(AmiError, match="did not answer Getvar"):
                await client.ami.ask("DEVICE_STATE(PJSIP/2000)")
            await client.until(lambda: not client.ami.connected, 10)
            took = time.monotonic() - began
            await client.until(lambda: client.ups == 2 and client.ami.connected)
            assert took < 10 and await client.ami.ask("DEVICE_STATE(PJSIP/2000)") == "NOT_INUSE"
            assert client.log[1] == f"AMI at {client.login.where}: no sign of life for 8 s"
    finally:
        await between.stopListening()
        freezer.close()


FORGED = "".join(
    f"%{byte:02X}" for byte in b"\r\n\r\nEvent: DeviceStateChange\r\nDevice: Custom:x\r\nState: INUSE\r\n\r\n"
)
FILTER = "\n".join(re.findall(r"^ {4}(eventfilter.+)$", README, re.MULTILINE))


@pytest.mark.parametrize("filtered", [False, True])
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_caller_can_write_events_unless_they_are_filtered(pbx: Pbx, filtered: bool) -> None:
    """So the state that an event names decides nothing; with the filter it is Asterisk's own."""
    asterisk = pbx.asterisk
    asterisk.configure_ami(user=FILTER if filtered else "")
    asterisk.reload_ami()
    try:
        async with Client(asterisk) as client:
            await client.is_up()
            await deferToThread(lambda: pbx.phones["1000"].dial("9" + FORGED).wait_ended(5))
            await client.until(lambda: client.of("PJSIP/1000")[-2:] == ["INUSE", "NOT_INUSE"])
            assert (("Custom:x", "INUSE") in client.told) is not filtered
            assert await client.ami.ask("DEVICE_STATE(Custom:x)") == "UNKNOWN"
    finally:
        asterisk.configure_ami()
        asterisk.reload_ami()


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_longest_line_that_asterisk_takes_is_longer_than_ours(pbx: Pbx) -> None:
    async with Client(pbx.asterisk) as client:
        ami = (await client.is_up()).ami
        value = "x" * (MAX_SENT - len("Value: \r\n"))
        await ami.set("LONG", value)
        assert await ami.ask("LONG") == value
        with pytest.raises(AmiError, match="too long"):
            await ami.set("LONG", value + "x")


# TLS


@dataclass
class Certificates:
    """An authority, a certificate of its for 127.0.0.1 and one for another host, and another authority."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("ca", "other"):
            self._run(
                "req",
                "-x509",
                "-subj",
                f"/CN={name}",
                "-days",
                "2",
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.pem",
            )
        for name, names in (("here", "IP:127.0.0.1"), ("elsewhere", "IP:192.0.2.1,DNS:pbx.example")):
            self._run("req", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
            (self.folder / "names").write_text(f"subjectAltName={names}\n")
            self._run(
                "x509",
                "-req",
                "-in",
                f"{name}.csr",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                "names",
                "-out",
                f"{name}.pem",
            )
            # For Asterisk, whoever it runs as.
            (self.folder / f"{name}.key").chmod(0o644)

    def _run(self, command: str, *arguments: str) -> None:
        new = ("-newkey", "rsa:2048", "-nodes") if command == "req" else ()
        subprocess.run(
            ["openssl", command, *new, *arguments], cwd=self.folder, check=True, capture_output=True
        )


@pytest.fixture(scope="module")
def certificates(running: Pbx) -> Certificates:
    folder = running.asterisk.folder / "tls"
    folder.mkdir()
    return Certificates(folder)


@contextmanager
def tls(asterisk: Asterisk, certificates: Certificates, name: str) -> Iterator[int]:
    """Its TLS port, with that certificate."""
    port = lasting_port(HOST)
    folder = certificates.folder
    asterisk.configure_ami(
        general=f"tlsenable=yes\ntlsbindaddr={HOST}:{port}\n"
        f"tlscertfile={folder}/{name}.pem\ntlsprivatekey={folder}/{name}.key\n"
    )
    asterisk.reload_ami()
    try:
        yield port
    finally:
        asterisk.configure_ami()
        asterisk.reload_ami()


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_tls(pbx: Pbx, certificates: Certificates) -> None:
    pytest.importorskip("OpenSSL")
    ca = certificates.folder / "ca.pem"
    with tls(pbx.asterisk, certificates, "here") as port:
        async with Client(pbx.asterisk, port=port, tls=True, ca=ca) as client:
            ami = (await client.is_up()).ami
            assert await ami.ask("DEVICE_STATE(PJSIP/2000)") == "NOT_INUSE"
            await ami.set("DEVICE_STATE(Custom:tls)", "INUSE")
            await client.until(lambda: ("Custom:tls", "INUSE") in client.told)
            assert client.log == [f"AMI connected to {client.login.where} as {AMI_USER}"]
        assert await deferToThread(try_login, client.login) == ""


@pytest.mark.parametrize(
    ("certificate", "ca", "why", "tried"),
    [
        ("here", "other", "certificate verify failed", "unable to get local issuer certificate"),
        ("here", None, "certificate verify failed", "unable to get local issuer certificate"),
        ("elsewhere", "ca", "the certificate is for another host", "IP address mismatch"),
    ],
)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_tls_with_a_stranger(
    pbx: Pbx, certificates: Certificates, certificate: str, ca: str | None, why: str, tried: str
) -> None:
    """Who does not prove to be the one is told nothing; without a file, this machine's trust counts."""
    pytest.importorskip("OpenSSL")
    path = certificates.folder / f"{ca}.pem" if ca else None
    with tls(pbx.asterisk, certificates, certificate) as port:
        async with Client(pbx.asterisk, port=port, tls=True, ca=path) as client:
            await client.until(lambda: client.log)
            await deferLater(client.reactor, 1.5)
            assert client.log == [f"AMI at {client.login.where}: TLS failed: {why}"]
            assert tried in await deferToThread(try_login, client.login)
            assert not pbx.site_lines("logged on")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_tls_on_one_side_only(pbx: Pbx, certificates: Certificates) -> None:
    pytest.importorskip("OpenSSL")
    with tls(pbx.asterisk, certificates, "here") as port:
        async with Client(pbx.asterisk, port=port) as client:
            await client.until(lambda: client.log, 8)
            assert "is this the port of a manager interface, and tls set as it is there?" in client.log[0]
        async with Client(pbx.asterisk, tls=True) as client:
            await client.until(lambda: client.log, 8)
            assert client.log == [f"AMI at {client.login.where}: TLS failed: wrong version number"]
            assert "TLS failed" in await deferToThread(try_login, client.login)


# Figures


def test_what_an_event_that_nobody_wants_costs() -> None:
    lines = ["Event: Newchannel", "Privilege: call,all", *(f"Header{n}: some value" for n in range(18))]
    event = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    framer = Framer()
    list(framer.feed(b"Asterisk Call Manager/11.0.0\r\n"))
    chunk, chunks = event * 100, 500
    began = time.process_time()
    for _ in range(chunks):
        assert not list(framer.feed(chunk))
    cost = (time.process_time() - began) / (100 * chunks)
    print(f"\nan event of {len(event)} bytes that nobody wants: {cost * 1e6:.2f} us")
    assert cost < 20e-6


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_question_and_its_answer(pbx: Pbx) -> None:
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


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_right_that_lacks_is_named(pbx: Pbx) -> None:
    asterisk = pbx.asterisk
    asterisk.configure_ami(user="write=call")
    asterisk.reload_ami()
    try:
        async with Client(asterisk) as client:
            ami = (await client.is_up()).ami
            with pytest.raises(AmiError, match="Asterisk refuses Originate: Permission denied"):
                await ami.originate("Local/1000@ring/n", "phones", "5555", 10.0)
            said = await deferToThread(try_login, client.login)
            assert said.endswith("may not Originate: manager.conf must say write=originate for him")
    finally:
        asterisk.configure_ami()
        asterisk.reload_ami()
