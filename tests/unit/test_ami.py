"""The AMI client against a scripted Asterisk, and against whoever else may listen there."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import twisted.internet.error
from asterisk.manager import ManagerAuthException, ManagerException, ManagerSocketException
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from fastagi.errors import FastagiError
from fastagi.pbx.ami import REFUSED_PAUSE, Ami, AmiDenied, AmiError, AmiLost, AmiRefused, Login, try_login
from fastagi.pbx.amilink import ANSWER_WITHIN, DEAD_AFTER, MAX_LISTED, MAX_WAITING, PING_AFTER
from fastagi.pbx.amiwire import MAX_LINE, MAX_LINES, MAX_MESSAGE, Framer, Message, render

errors: Any = twisted.internet.error  # neither has types
failure: Any = Failure
memory_reactor: Any = MemoryReactorClock
SECRET = "the secret"
LOGIN = Login("192.0.2.1", 5038, "fastagi", SECRET)
GREETING = b"Asterisk Call Manager/11.0.0\r\n"
CONNECTED = "AMI connected to 192.0.2.1:5038 as fastagi"


def text(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def changed(device: str, state: str, *more: str) -> bytes:
    return text(
        "Event: DeviceStateChange", "Privilege: call,all", f"Device: {device}", f"State: {state}", *more
    )


class Wire:
    """One end of a connection; as Twisted's, it ends in the next turn of the reactor."""

    def __init__(self, reactor: Any, host: str = "192.0.2.2", port: int = 40000) -> None:
        self.reactor = reactor
        self.host = IPv4Address("TCP", host, port)
        self.written = b""
        self.protocol: Any = None
        self.disconnecting = self.lost = False

    def getHost(self) -> IPv4Address:
        return self.host

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 5038)

    def write(self, data: bytes) -> None:
        assert not self.lost
        self.written += data

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def abortConnection(self) -> None:
        self._end(errors.ConnectionAborted())

    def loseConnection(self) -> None:
        self._end(errors.ConnectionDone())

    def _end(self, reason: Exception) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self.reactor.callLater(0, self.lose, reason)

    def lose(self, reason: Exception) -> None:
        self.lost = True
        self.protocol.connectionLost(failure(reason))


class Office:
    """An `Ami`, and the Asterisk that it talks to, by hand."""

    def __init__(
        self, login: Login = LOGIN, up: Callable[[Ami], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        self.reactor: Any = memory_reactor()
        self.events: list[Any] = []
        self.log: list[str] = []
        self.ami = Ami(
            self.reactor,
            login,
            up=up or self._up,
            device_state=lambda *told: self.events.append(told),
            extension_state=lambda *told: self.events.append(("hint", *told)),
            log=self.log.append,
        )
        self.wire = Wire(self.reactor)

    async def _up(self, ami: Ami) -> None:
        self.events.append("up")
        try:
            await Deferred()
        except CancelledError:
            self.events.append("down")
            raise

    # The network

    @property
    def tries(self) -> int:
        return len(self.reactor.tcpClients)

    def accept(self) -> Wire:
        factory = self.reactor.tcpClients[-1][2]
        self.wire = Wire(self.reactor)
        self.wire.protocol = factory.buildProtocol(self.wire.getPeer())
        self.wire.protocol.makeConnection(self.wire)
        return self.wire

    def fail(self, reason: Exception) -> None:
        """The connection that is being opened cannot be."""
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, failure(reason))

    def advance(self, seconds: float = 0.0) -> None:
        """Time passes; what a turn of the reactor does is done."""
        self.reactor.advance(seconds)
        self.reactor.advance(0)

    # Asterisk's part

    def says(self, *data: bytes) -> None:
        for some in data:
            self.wire.protocol.dataReceived(some)

    def heard(self) -> list[Message]:
        """The actions since last time."""
        said, self.wire.written = self.wire.written, b""
        assert not said or said.endswith(b"\r\n\r\n")
        return [
            dict(line.split(": ", 1) for line in action.decode().split("\r\n"))
            for action in said.split(b"\r\n\r\n")[:-1]
        ]

    def answers(self, action: Message, *lines: str, response: str = "Success") -> bytes:
        return text(f"Response: {response}", f"ActionID: {action['ActionID']}", *lines)

    def refuses(self, action: Message, why: str) -> bytes:
        return self.answers(action, f"Message: {why}", response="Error")

    def greets(self) -> Message:
        """Up to the action Login, which is given."""
        self.accept()
        self.says(GREETING)
        [challenge] = self.heard()
        assert challenge["Action"] == "Challenge"
        self.says(self.answers(challenge, "Challenge: 1234"))
        [login] = self.heard()
        assert login["Action"] == "Login"
        return login

    def welcomes(self) -> None:
        self.says(self.answers(self.greets(), "Message: Authentication accepted"))

    def connect(self) -> Office:
        self.ami.start()
        self.welcomes()
        assert self.ami.connected and self.log[-1] == CONNECTED
        return self


def outcome(coroutine: Coroutine[Any, Any, Any]) -> list[Any]:
    """What it ends with, once it has ended."""
    ended: list[Any] = []
    Deferred.fromCoroutine(coroutine).addErrback(lambda failure: failure.value).addCallback(ended.append)
    return ended


@contextmanager
def faults_logged() -> Iterator[list[LogEvent]]:
    """The tracebacks that are logged."""
    found: list[LogEvent] = []

    def note(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            found.append(event)

    publisher: Any = globalLogPublisher
    publisher.addObserver(note)
    try:
        yield found
    finally:
        publisher.removeObserver(note)


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    with faults_logged() as found:
        yield
    assert bool(found) == ("our_own_fault" in request.node.name), found


# Logging in


def test_login() -> None:
    office = Office()
    office.ami.start()
    [(host, port, *_)] = office.reactor.tcpClients
    assert (host, port) == ("192.0.2.1", 5038)
    login = office.greets()
    assert not office.ami.connected and office.events == []
    key = hashlib.md5(b"1234" + SECRET.encode()).hexdigest()
    del login["ActionID"]
    assert login == {
        "Action": "Login",
        "AuthType": "MD5",
        "Username": "fastagi",
        "Key": key,
        "Events": "call",
    }


def test_up_begins_when_logged_in_and_is_cancelled_when_the_connection_is_lost() -> None:
    office = Office().connect()
    assert office.events == ["up"] and office.log == [CONNECTED]
    office.wire.lose(errors.ConnectionDone())
    assert office.events == ["up", "down"] and not office.ami.connected
    assert office.log[1:] == ["AMI at 192.0.2.1:5038: the connection was closed"]
    office.advance(0.2)
    office.welcomes()
    assert office.events == ["up", "down", "up"] and office.log[2:] == [CONNECTED]


def test_a_wrong_password_is_said_once_and_again_after_it_had_worked() -> None:
    office = Office()
    office.ami.start()

    def refused() -> None:
        office.says(office.refuses(office.greets(), "Authentication failed"))
        office.advance()
        assert office.wire.lost and not office.ami.connected
        tries = office.tries
        office.advance(REFUSED_PAUSE - 1)
        assert office.tries == tries, "lest the address is banned"
        office.advance(2)

    for _ in range(5):
        refused()
    [line] = office.log
    assert line.startswith("AMI at 192.0.2.1:5038: does not let us in: Authentication failed")
    office.welcomes()
    office.wire.lose(errors.ConnectionDone())
    office.advance(10)
    refused()
    refused()
    assert office.log[1] == CONNECTED and office.log[3:] == [line]


def test_what_runs_over_it_is_run_again_soon_if_it_had_run_for_long() -> None:
    began: list[float] = []

    async def up(ami: Ami) -> None:
        began.append(office.reactor.seconds())
        await deferLater(office.reactor, 400.0)
        raise AmiError("Asterisk did not answer Getvar within 5 s")

    office = Office(up=up)
    office.ami.start()
    office.welcomes()
    for _ in range(3000):
        office.advance(1)
        office.says(b"Event: Other\r\n\r\n")  # it lives
    assert len(began) >= 6 and all(later - earlier < 402 for earlier, later in pairwise(began))
    assert len([line for line in office.log if "Getvar" in line]) == len(began) - 1


def test_the_same_reason_is_said_again_after_it_had_worked() -> None:
    office = Office().connect()
    for _ in range(3):
        office.wire.lose(errors.ConnectionDone())
        office.advance(10)
        office.welcomes()
    closed = "AMI at 192.0.2.1:5038: the connection was closed"
    assert office.log == [CONNECTED, closed, CONNECTED, closed, CONNECTED, closed, CONNECTED]


def test_what_closes_before_it_greets_is_said_to_be_another_port() -> None:
    office = Office()
    office.ami.start()
    office.accept().lose(errors.ConnectionDone())
    assert "closed at once: is this the port of a manager interface" in office.log[0]


def test_why_there_is_no_connection_is_said_when_it_changes() -> None:
    office = Office()
    office.ami.start()
    for reason in [
        errors.ConnectionRefusedError(),
        errors.ConnectionRefusedError(),
        errors.TimeoutError(),
        errors.ConnectError(113, "No route to host"),
        errors.DNSLookupError(),
        errors.ConnectionRefusedError(),
        OSError("what\never\x1b[1m"),
    ]:
        office.fail(reason)
        office.advance(10)
    assert [line.removeprefix("AMI at 192.0.2.1:5038: ") for line in office.log] == [
        "nobody listens there",
        "no answer",
        "there is no such host",
        "nobody listens there",
        "OSError: what?ever?[1m",
    ]


def test_back_off_grows_and_is_small_again_after_a_lasting_connection() -> None:
    office = Office()
    office.ami.start()
    pauses = []

    def pause() -> None:
        [retry] = office.reactor.getDelayedCalls()
        pauses.append(round(retry.getTime() - office.reactor.seconds(), 3))
        office.advance(pauses[-1] + 0.001)

    for _ in range(8):
        office.fail(errors.ConnectionRefusedError())
        pause()
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    office.welcomes()
    office.wire.lose(errors.ConnectionDone())  # it did not last
    pause()
    assert pauses[-1] == 10.0
    office.welcomes()
    office.advance(2)
    office.says(changed("PJSIP/1", "INUSE"))
    office.advance(2)
    for _ in range(4):
        office.says(changed("PJSIP/1", "INUSE"))
        office.advance(2)
    office.wire.lose(errors.ConnectionDone())
    pause()
    assert pauses[-1] == 0.2


def test_a_socket_that_is_connected_with_itself_is_no_asterisk() -> None:
    office = Office()
    office.ami.start()
    wire = Wire(office.reactor, "192.0.2.1", 5038)
    wire.protocol = office.reactor.tcpClients[-1][2].buildProtocol(None)
    wire.protocol.makeConnection(wire)
    office.advance()
    assert wire.lost and office.log == ["AMI at 192.0.2.1:5038: nobody listens there"]


def test_nothing_tells_the_secret() -> None:
    assert SECRET not in repr(LOGIN)
    office = Office().connect()
    with pytest.raises(AmiError) as caught:
        render("Login", "1", {"Username": "x\n", "Key": SECRET})
    assert SECRET not in str(caught.value) + repr(office.log) + repr(office.wire.written)


def test_a_username_that_could_be_an_action_is_not_sent() -> None:
    office = Office(Login("192.0.2.1", 5038, "x\r\nAction: Originate", SECRET))
    office.ami.start()
    office.accept()
    office.says(GREETING)
    office.says(office.answers(office.heard()[0], "Challenge: 1"))
    office.advance()
    assert office.heard() == [] and office.wire.lost
    assert office.log == ["AMI at 192.0.2.1:5038: Login is not sent: Username has a control character"]


# Whoever else listens there


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 400 Bad\r\n\r\n",
        b"\x15\x03\x01\x00\x02",
        b"\r\n\r\n",
        b"Asterisk\r\n",
    ],
)
def test_what_is_no_ami_is_left_at_once(data: bytes) -> None:
    office = Office()
    office.ami.start()
    office.accept()
    office.says(data)
    office.advance()
    assert office.wire.lost and len(office.log) == 1 and "is no Asterisk Manager Interface" in office.log[0]
    assert office.log[0].isprintable() and office.heard() == []


@pytest.mark.parametrize("data", [GREETING[:-2] + b"x" * 1000, GREETING[:22] + b"1" * 79])
def test_a_greeting_has_an_end(data: bytes) -> None:
    with pytest.raises(AmiError):
        list(Framer().feed(data))


@pytest.mark.parametrize("said", [b"", b"Asterisk Call"])
def test_who_says_nothing_is_left(said: bytes) -> None:
    office = Office()
    office.ami.start()
    office.accept()
    office.says(said)
    office.advance(ANSWER_WITHIN)
    assert office.wire.lost and "says nothing" in office.log[0] and office.heard() == []


def test_a_login_that_is_not_answered_ends() -> None:
    office = Office()
    office.ami.start()
    office.greets()
    office.advance(ANSWER_WITHIN)
    assert office.wire.lost and "did not answer Login" in office.log[0]


# Messages


def conversation() -> bytes:
    """From the greeting on, with all that is passed over."""
    return b"".join(
        [
            GREETING,
            text("Response: Success", "ActionID: 1", "Value: a: b"),
            text("Event: Newchannel", "Channel: x", "Event: DeviceStateChange"),
            changed("PJSIP/1", "INUSE", "Device: PJSIP/2", "no colon", ":"),
            text("Event: DeviceStateChanged", "Device: x"),
            text("Privilege: x", "Event: DeviceStateChange"),
            b"Response: Success\r\nValue: \xff\xfe\n\x00\r\n\r\n",
            text("Event: ExtensionStatus", "Exten:", "Context: c"),
        ]
    )


READ: list[Message] = [
    {"Response": "Success", "ActionID": "1", "Value": "a: b"},
    {"Event": "DeviceStateChange", "Privilege": "call,all", "Device": "PJSIP/1", "State": "INUSE", "": ""},
    {"Response": "Success", "Value": "\ufffd\ufffd\n\x00"},
    {"Event": "ExtensionStatus", "Exten": "", "Context": "c"},
]


def test_messages_come_out_however_they_are_cut() -> None:
    whole = conversation()
    assert list(Framer().feed(whole)) == READ
    for size in (1, 2, 3, 5, 7, 100):
        framer = Framer()
        pieces = [whole[n : n + size] for n in range(0, len(whole), size)]
        assert [message for piece in pieces for message in framer.feed(piece)] == READ, size
    for cut in range(len(whole)):
        framer = Framer()
        assert [*framer.feed(whole[:cut]), *framer.feed(whole[cut:])] == READ, cut


@pytest.mark.parametrize(
    "message",
    [
        changed("x" * MAX_LINE, "INUSE"),
        changed("PJSIP/1", "INUSE", *["A: b"] * MAX_LINES),
        text("Event: Newchannel", "A: " + "x" * (MAX_MESSAGE - 100)),
    ],
)
def test_an_oversized_message_is_passed_over(message: bytes) -> None:
    office = Office().connect()
    office.says(message, changed("PJSIP/2", "INUSE"))
    assert office.events == ["up", ("PJSIP/2", "INUSE")]


def test_a_message_without_an_end_ends_the_connection() -> None:
    office = Office().connect()
    office.says(b"Event: Newchannel\r\n")
    for _ in range(MAX_MESSAGE // 1000 + 1):
        office.says(b"A: " + b"x" * 995 + b"\r\n")
    office.advance()
    assert office.wire.lost and office.log[1:] == ["AMI at 192.0.2.1:5038: sent a message without an end"]


def test_events() -> None:
    office = Office().connect()
    office.says(
        changed("PJSIP/1", "RINGING")
        + text("Event: ExtensionStatus", "Exten: 2000", "Context: phones", "Hint: PJSIP/2000", "Status: 1")
        + text("Event: DeviceStateChange", "Device: PJSIP/1")
        + text("Event: DeviceStateChange", "State: INUSE")
        + text("Event: ExtensionStatus", "Exten: 2000")
        + text("Event: Newchannel", "Device: PJSIP/1", "State: INUSE")
        + changed("PJSIP/1", "INUSE")
    )
    assert office.events == ["up", ("PJSIP/1", "RINGING"), ("hint", "2000", "phones"), ("PJSIP/1", "INUSE")]


def test_an_event_that_comes_with_the_login_is_told() -> None:
    office = Office()
    office.ami.start()
    accepted = office.answers(office.greets())
    office.says(accepted + changed("PJSIP/1", "INUSE"))
    assert office.events == ["up", ("PJSIP/1", "INUSE")]


def test_before_the_login_nothing_is_an_event() -> None:
    office = Office()
    office.ami.start()
    login = office.greets()
    office.says(changed("PJSIP/1", "INUSE"))
    office.says(office.refuses(login, "Authentication failed") + changed("PJSIP/1", "INUSE"))
    assert office.events == []


def test_our_own_fault_in_a_listener_stops_no_event() -> None:
    office = Office()
    told = []

    def broken(device: str, state: str) -> None:
        told.append(device)
        raise KeyError(device)

    office.ami = Ami(
        office.reactor,
        LOGIN,
        up=office._up,
        device_state=broken,
        extension_state=lambda *_: None,
        log=office.log.append,
    )
    office.connect()
    office.says(changed("PJSIP/1", "INUSE") + changed("PJSIP/2", "INUSE"))
    assert told == ["PJSIP/1", "PJSIP/2"] and office.ami.connected


# Actions


def test_what_is_sent() -> None:
    office = Office().connect()
    ami = office.ami
    asked = outcome(ami.ask("DEVICE_STATE(PJSIP/2000)"))
    done = [
        outcome(ami.set("DEVICE_STATE(Custom:CC1000)", "INUSE")),
        outcome(ami.hang_up("Local/17@cc-recall-00000001;2")),
        outcome(ami.originate("Local/17@cc-recall/n", "cc-call", "17", 30.25)),
    ]
    said = office.heard()
    ids = [action.pop("ActionID") for action in said]
    assert said == [
        {"Action": "Getvar", "Variable": "DEVICE_STATE(PJSIP/2000)"},
        {"Action": "Setvar", "Variable": "DEVICE_STATE(Custom:CC1000)", "Value": "INUSE"},
        {"Action": "Hangup", "Channel": "Local/17@cc-recall-00000001;2"},
        {
            "Action": "Originate",
            "Channel": "Local/17@cc-recall/n",
            "Context": "cc-call",
            "Exten": "17",
            "Priority": "1",
            "Timeout": "30250",
            "Async": "true",
        },
    ]
    assert len(set(ids)) == 4
    for action_id in reversed(ids[1:]):  # in any order
        office.says(text("Response: Success", f"ActionID: {action_id}"))
    assert done == [[None]] * 3 and asked == []
    office.says(text("Response: Success", f"ActionID: {ids[0]}", "Variable: x", "Value: NOT_INUSE"))
    assert asked == ["NOT_INUSE"]


def test_each_connection_has_ids_of_its_own() -> None:
    office = Office().connect()
    outcome(office.ami.ask("A"))
    [first] = office.heard()
    office.wire.lose(errors.ConnectionDone())
    office.advance(0.2)
    office.welcomes()
    asked = outcome(office.ami.ask("A"))
    office.says(office.answers(first, "Value: old"))
    assert asked == [] and office.heard()[0]["ActionID"] != first["ActionID"]


def test_a_refusal_is_a_sentence() -> None:
    office = Office().connect()
    ended = outcome(office.ami.hang_up("PJSIP/1-00000001"))
    office.says(office.refuses(office.heard()[0], "No such channel\x1b[1m"))
    [error] = ended
    assert type(error) is AmiDenied and str(error) == "Asterisk refuses Hangup: No such channel?[1m"


def test_only_the_answer_is_the_answer() -> None:
    """Not an event with the action's id, whatever else it says; not what carries another id, or none."""
    office = Office().connect()
    asked = outcome(office.ami.ask("A"))
    [action] = office.heard()
    its_id = f"ActionID: {action['ActionID']}"
    office.says(
        text("Event: DeviceStateChange", "Response: Success", its_id, "Value: 1"),
        text("Event: DeviceStateListComplete", its_id),
        text("Event: OriginateResponse", its_id, "Response: Failure"),
        text("Response: Success", "Value: 2"),
        text("Response: Success", "ActionID: 1", its_id, "Value: 3"),
    )
    assert asked == [] and office.events == ["up"]
    office.says(office.answers(action, "Value: 4"), office.answers(action, "Value: 5"))
    assert asked == ["4"]


@pytest.mark.parametrize(
    "bad",
    [
        "x\r\nAction: Originate",
        "x\nVariable: y",
        "x\ry",
        "\r\n\r\n",
        "x\x00y",
        "x\ty",
        "x\x1b",
        "x\x7f",
        "\udcff",
        " x",
        "x ",
        "x" * 1000,
        "ü" * 500,
    ],
)
@pytest.mark.parametrize(
    "attack",
    [
        lambda ami, bad: ami.ask(bad),
        lambda ami, bad: ami.set(bad, "1"),
        lambda ami, bad: ami.set("A", bad),
        lambda ami, bad: ami.hang_up(bad),
        lambda ami, bad: ami.originate(bad, "c", "1", 1.0),
        lambda ami, bad: ami.originate("Local/1@c", bad, "1", 1.0),
        lambda ami, bad: ami.originate("Local/1@c", "c", bad, 1.0),
    ],
)
def test_nothing_but_one_action_is_ever_written(
    attack: Callable[[Ami, str], Coroutine[Any, Any, Any]], bad: str
) -> None:
    office = Office().connect()
    [error] = outcome(attack(office.ami, bad))
    assert isinstance(error, AmiError) and str(error).isprintable()
    assert office.wire.written == b"" and office.ami.connected


@pytest.mark.parametrize("pattern", ["/^PJSIP/.*$/", "  /^PJSIP/.*$/", "/"])
def test_a_pattern_hangs_up_nobody(pattern: str) -> None:
    """Asterisk would hang up every channel that fits; it skips blanks before it looks."""
    office = Office().connect()
    [error] = outcome(office.ami.hang_up(pattern))
    assert isinstance(error, AmiError) and office.wire.written == b""


def test_an_empty_value_is_one() -> None:
    office = Office().connect()
    outcome(office.ami.set("A", ""))
    assert office.wire.written.endswith(b"\r\nValue: \r\n\r\n")


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1.0, 0.0, 0.0001, 1e9])
def test_a_timeout_is_a_time(timeout: float) -> None:
    office = Office().connect()
    [error] = outcome(office.ami.originate("Local/1@c", "c", "1", timeout))
    assert isinstance(error, AmiError) and office.wire.written == b""


def test_an_action_that_is_not_answered_ends_and_its_late_answer_is_nobodys() -> None:
    office = Office().connect()
    ended = outcome(office.ami.ask("A"))
    [action] = office.heard()
    office.advance(ANSWER_WITHIN - 0.1)
    assert ended == []
    office.says(changed("PJSIP/1", "INUSE"))
    office.advance(0.1)
    [error] = ended
    assert type(error) is AmiError and str(error) == "Asterisk did not answer Getvar within 5 s"
    office.says(office.answers(action, "Value: 1"))
    assert office.ami.connected and len(ended) == 1


def test_what_waits_when_the_connection_is_lost_ends() -> None:
    office = Office().connect()
    waiting = [
        outcome(action)
        for action in (office.ami.ask("A"), office.ami.set("A", "1"), office.ami.device_states())
    ]
    again: list[Any] = []

    async def persistent() -> None:
        try:
            await office.ami.ask("B")
        except AmiError:
            again.append(await office.ami.ask("B"))

    waiting.append(outcome(persistent()))
    office.wire.lose(errors.ConnectionDone())
    assert [type(error) for [error] in waiting] == [AmiLost] * 4 and again == []
    assert "not connected" in str(waiting[-1][0])


def test_one_that_ends_may_give_up_another() -> None:
    office = Office().connect()
    first: Any = Deferred.fromCoroutine(office.ami.ask("A"))
    second: Any = Deferred.fromCoroutine(office.ami.ask("B"))
    ended: list[Any] = []
    first.addErrback(lambda _: second.cancel())
    second.addErrback(lambda failure: ended.append(failure.type))
    office.wire.lose(errors.ConnectionDone())
    assert ended == [CancelledError]


def test_an_action_that_its_caller_gives_up_is_forgotten() -> None:
    office = Office().connect()
    asking: Any = Deferred.fromCoroutine(office.ami.ask("A"))
    asking.cancel()
    asking.addErrback(lambda failure: failure.trap(CancelledError))
    office.says(office.answers(office.heard()[0], "Value: 1"))
    office.wire.lose(errors.ConnectionDone())
    assert office.log[1:] == ["AMI at 192.0.2.1:5038: the connection was closed"]


def test_without_a_connection_every_action_says_so() -> None:
    office = Office()
    ami = office.ami

    def each() -> list[Any]:
        actions = (ami.ask("A"), ami.set("A", "1"), ami.hang_up("x"), ami.originate("a", "b", "c", 1.0))
        return [outcome(action)[0] for action in (*actions, ami.device_states())]

    assert [type(error) for error in each()] == [AmiLost] * 5, "before the start"
    ami.start()
    assert [type(error) for error in each()] == [AmiLost] * 5, "while it connects"
    office.greets()
    assert [type(error) for error in each()] == [AmiLost] * 5, "while it logs in"
    assert office.heard() == []


def test_only_so_many_actions_wait() -> None:
    office = Office().connect()
    waiting = [outcome(office.ami.ask("A")) for _ in range(MAX_WAITING)]
    [error] = outcome(office.ami.ask("A"))
    assert type(error) is AmiError and str(MAX_WAITING) in str(error)
    for action in office.heard():
        office.says(office.answers(action, "Value: 1"))
    assert waiting == [["1"]] * MAX_WAITING
    assert outcome(office.ami.ask("A")) == []


# The list of devices


def listing(office: Office) -> tuple[list[Any], str]:
    ended = outcome(office.ami.device_states())
    [action] = office.heard()
    assert action["Action"] == "DeviceStateList"
    office.says(office.answers(action, "EventList: start", "Message: Device State Changes will follow"))
    assert ended == []
    return ended, f"ActionID: {action['ActionID']}"


def test_the_list_of_devices() -> None:
    office = Office().connect()
    ended, its_id = listing(office)
    office.says(
        changed("PJSIP/1", "INUSE", its_id)
        + changed("PJSIP/9", "RINGING")
        + changed("PJSIP/8", "RINGING", "ActionID: 7")
        + text("Event: DeviceStateChange", its_id, "Device: PJSIP/7")
        + changed("Custom:CC1", "NOT_INUSE", its_id)
        + text("Event: DeviceStateListComplete", "ActionID: 7", "EventList: Complete")
    )
    assert ended == []
    office.says(text("Event: DeviceStateListComplete", its_id, "EventList: Complete", "ListItems: 2"))
    assert ended == [{"PJSIP/1": "INUSE", "Custom:CC1": "NOT_INUSE"}]
    assert office.events == ["up", ("PJSIP/9", "RINGING")]


def test_a_list_and_what_comes_behind_it_are_told_in_order() -> None:
    order: list[Any] = []

    async def up(ami: Ami) -> None:
        order.append(await ami.device_states())

    office = Office(up=up)
    office.events = order
    office.connect()
    [action] = office.heard()
    its_id = f"ActionID: {action['ActionID']}"
    office.says(
        changed("PJSIP/1", "RINGING")
        + office.answers(action)
        + changed("PJSIP/1", "INUSE", its_id)
        + text("Event: DeviceStateListComplete", its_id)
        + changed("PJSIP/1", "NOT_INUSE")
    )
    assert order == [("PJSIP/1", "RINGING"), {"PJSIP/1": "INUSE"}, ("PJSIP/1", "NOT_INUSE")]


def test_a_list_that_is_refused_or_never_ends() -> None:
    office = Office().connect()
    ended = outcome(office.ami.device_states())
    office.says(office.refuses(office.heard()[0], "Invalid/unknown command: DeviceStateList"))
    assert "Invalid/unknown command" in str(ended[0])
    ended, its_id = listing(office)
    for _ in range(5):
        office.says(changed("PJSIP/1", "INUSE", its_id))
        office.advance(1)
    assert type(ended[0]) is AmiError


def test_a_list_has_a_limit() -> None:
    office = Office().connect()
    ended, its_id = listing(office)
    office.says(b"".join(changed(f"PJSIP/{n}", "INUSE", its_id) for n in range(MAX_LISTED + 2)))
    assert str(MAX_LISTED) in str(ended[0])
    office.says(text("Event: DeviceStateListComplete", its_id))
    assert len(ended) == 1


# Whether Asterisk lives


def test_silence_is_answered_by_a_ping() -> None:
    office = Office().connect()
    for _ in range(20):
        office.advance(PING_AFTER - 0.125)
        assert office.heard() == []
        office.advance(0.125)
        [ping] = office.heard()
        assert ping["Action"] == "Ping"
        office.says(office.answers(ping, "Ping: Pong"))
    assert office.ami.connected and office.log == [CONNECTED]


def test_whoever_talks_is_not_pinged() -> None:
    office = Office().connect()
    for _ in range(20):
        office.advance(PING_AFTER - 0.1)
        office.says(text("Event: Newchannel"))
    assert office.heard() == [] and office.ami.connected


@pytest.mark.parametrize("after", [0.0, 1.0, 2.875])
def test_a_peer_that_is_silent_is_dropped_within_10_seconds(after: float) -> None:
    office = Office().connect()
    office.advance(after)
    office.says(changed("PJSIP/1", "INUSE"))
    waiting = outcome(office.ami.ask("A"))
    silent = 0.0
    while not office.wire.lost:
        office.advance(0.125)
        silent += 0.125
    assert silent == DEAD_AFTER and DEAD_AFTER < 10
    assert [action["Action"] for action in office.heard()] == ["Getvar", "Ping", "Ping"]
    assert len(waiting) == 1 and not office.ami.connected
    assert office.log[1:] == ["AMI at 192.0.2.1:5038: no sign of life for 8 s"]
    office.advance(0.2)
    office.welcomes()
    assert office.ami.connected


# What runs over it


def test_an_up_that_fails_is_run_again_and_why_is_said_once_if_it_lasts() -> None:
    """Asterisk lets us in while it boots, and refuses what it has not loaded yet."""

    async def up(ami: Ami) -> None:
        await ami.device_states()

    office = Office(up=up).connect()
    began, tries = office.reactor.seconds(), []
    while office.reactor.seconds() - began < 60:
        for action in office.heard():
            if action["Action"] == "Ping":
                office.says(office.answers(action))
                continue
            tries.append(office.reactor.seconds() - began)
            office.says(office.refuses(action, "Invalid/unknown command"))
            assert (len(office.log) > 1) is (tries[-1] >= 5)
        office.reactor.advance(1 / 128)
    due = [0.0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 22.6, 32.6, 42.6, 52.6]
    assert tries == pytest.approx(due, abs=0.1)
    assert office.ami.connected and office.log[1:] == [
        "AMI at 192.0.2.1:5038: Asterisk refuses DeviceStateList: Invalid/unknown command"
    ]


def test_an_up_that_fails_is_not_run_again_when_the_connection_is_lost() -> None:
    ups = []

    async def stubborn(ami: Ami) -> None:
        ups.append(ami)
        try:
            await Deferred()
        except CancelledError:
            await ami.ask("A")

    office = Office(up=stubborn).connect()
    office.wire.lose(errors.ConnectionDone())
    office.advance(0.2)
    assert len(ups) == 1
    office.welcomes()
    office.advance(2)
    assert len(ups) == 2


def test_a_pause_of_up_ends_with_the_connection() -> None:
    ups = []

    async def up(ami: Ami) -> None:
        ups.append(ami)
        raise AmiError("no")

    office = Office(up=up).connect()
    office.ami.stop()
    office.advance(10)
    assert len(ups) == 1 and office.reactor.getDelayedCalls() == []


def test_our_own_fault_in_up_is_logged_and_tried_again() -> None:
    ups = []

    async def up(ami: Ami) -> None:
        ups.append(ami)
        raise KeyError("ours")

    office = Office(up=up).connect()
    office.advance(0.2)
    assert office.ami.connected and len(ups) == 2


def test_an_up_that_returns_changes_nothing() -> None:
    async def up(ami: Ami) -> None:
        pass

    office = Office(up=up).connect()
    office.says(changed("PJSIP/1", "INUSE"))
    assert office.ami.connected and office.events == [("PJSIP/1", "INUSE")]


# The end


def to_start(office: Office) -> None:
    office.ami.start()


def to_wait(office: Office) -> None:
    office.ami.start()
    office.fail(errors.ConnectionRefusedError())


def to_greet(office: Office) -> None:
    office.ami.start()
    office.accept()


def to_log_in(office: Office) -> None:
    office.ami.start()
    office.greets()


def to_be_up(office: Office) -> None:
    office.connect()
    office.advance(1)


def to_have_been_up(office: Office) -> None:
    office.connect()
    office.wire.lose(errors.ConnectionDone())


@pytest.mark.parametrize("come", [to_start, to_wait, to_greet, to_log_in, to_be_up, to_have_been_up])
def test_stop_ends_everything_and_says_nothing(come: Callable[[Office], None]) -> None:
    office = Office()
    come(office)
    said = len(office.log)
    ended: list[Any] = []
    office.ami.stop().addBoth(ended.append)
    office.advance()
    assert ended == [None] and office.log[said:] == []
    assert office.reactor.getDelayedCalls() == [] and not office.ami.connected
    assert office.events.count("up") == office.events.count("down")
    office.ami.stop().addBoth(ended.append)
    assert ended == [None, None]


def test_stop_does_not_wait_for_a_peer_that_takes_nothing() -> None:
    office = Office().connect()
    office.wire.loseConnection = lambda: None  # type: ignore[method-assign]  # what is unsent keeps it open
    ended: list[Any] = []
    office.ami.stop().addBoth(ended.append)
    office.advance(0.9)
    assert ended == []
    office.advance(0.1)
    assert ended == [None] and office.log == [CONNECTED] and office.reactor.getDelayedCalls() == []


def test_it_can_be_started_again() -> None:
    office = Office().connect()
    office.ami.stop()
    office.advance()
    office.connect()
    assert office.log == [CONNECTED, CONNECTED]


def test_the_errors_are_those_that_ami_authors_know() -> None:
    assert issubclass(AmiError, FastagiError) and issubclass(AmiError, ManagerException)
    assert issubclass(AmiRefused, ManagerAuthException) and issubclass(AmiLost, ManagerSocketException)


# The way there


BROKEN = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("content", [None, b"", b"no certificate", BROKEN])
def test_certificates_that_cannot_be_used_are_told_at_the_start(
    tmp_path: Path, content: bytes | None
) -> None:
    pytest.importorskip("OpenSSL")
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_bytes(content)
    office = Office(Login("192.0.2.1", 5039, "fastagi", SECRET, tls=True, ca=ca))
    with pytest.raises(AmiError, match="ca.pem"):
        office.ami.start()


def test_a_host_that_is_none_is_told() -> None:
    pytest.importorskip("OpenSSL")
    office = Office(Login("x" * 64, 5039, "fastagi", SECRET, tls=True))
    with pytest.raises(AmiError, match="is no name of a host"):
        office.ami.start()
    assert try_login(Login("a..b", 5038, "fastagi", SECRET)) == "AMI at a..b:5038: there is no such host"


def test_ipv6() -> None:
    office = Office(Login("::1", 5038, "fastagi", SECRET))
    office.ami.start()
    assert office.reactor.tcpClients[0][0] == "::1"
    office.fail(errors.ConnectionRefusedError())
    assert office.log == ["AMI at [::1]:5038: nobody listens there"]


# Trying it, for a person who waits


@contextmanager
def listener(*script: Callable[[Message], bytes] | bytes) -> Iterator[int]:
    """Says each text in turn, the ones that are functions when an action has come; then stays, silent."""
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            for step in script:
                if callable(step):
                    action = {}
                    while line := lines.readline().strip():
                        key, _, value = line.decode().partition(": ")
                        action[key] = value
                    step = step(action)
                connection.sendall(step)
            if script and script[-1] != b"":
                over.wait(5)

    thread = threading.Thread(target=serve)
    thread.start()
    with closing(server):
        try:
            yield int(server.getsockname()[1])
        finally:
            over.set()
            thread.join(5)


def answer(*lines: str, response: str = "Success") -> Callable[[Message], bytes]:
    return lambda action: (
        text("Event: FullyBooted") + text(f"Response: {response}", f"ActionID: {action['ActionID']}", *lines)
    )


def anothers(action: Message) -> bytes:
    """The answer to somebody else, and then the one to us."""
    return text("Response: Error", "ActionID: 99") + answer("Challenge: 1")(action)


ALL = ("Getvar: ", "Setvar: ", "Hangup: ", "Originate: ", "DeviceStateList: ")
WELCOME = (GREETING, answer("Challenge: 1"), answer())


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ((*WELCOME, answer(*ALL)), ""),
        (
            (GREETING, answer("Challenge: 1"), answer("Message: Authentication failed", response="Error")),
            "Auth",
        ),
        ((b"SSH-2.0-x\r\n",), "is no Asterisk Manager Interface: it says 'SSH-2.0-x'"),
        ((GREETING,), "no answer"),
        ((GREETING, b""), "was closed"),
        ((b"A",), "no answer"),
        ((GREETING, anothers, answer(), answer(*ALL)), ""),
        ((*WELCOME, answer(*ALL[:3])), "may not Originate: manager.conf must say write=originate"),
        ((*WELCOME, answer(*ALL[:1], *ALL[3:])), "may not Setvar, Hangup: manager.conf must say write=call"),
        ((*WELCOME, answer("Ping: ")), "write=call,originate"),
        ((*WELCOME, answer(*ALL[:4])), "res_manager_devicestate"),
    ],
)
def test_try_login(script: tuple[Any, ...], sentence: str) -> None:
    with listener(*script) as port:
        said = try_login(Login("127.0.0.1", port, "fastagi", SECRET), 0.5)
    if sentence:
        assert said.startswith(f"AMI at 127.0.0.1:{port}: ") and sentence in said and SECRET not in said
    else:
        assert said == ""


def test_try_login_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert (
        try_login(Login("127.0.0.1", port, "fastagi", SECRET))
        == f"AMI at 127.0.0.1:{port}: nobody listens there"
    )


def test_try_login_is_not_held_by_one_who_talks_for_ever() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def chatter() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(GREETING)
            while True:
                connection.sendall(text("Event: Newchannel"))

    thread = threading.Thread(target=chatter)
    thread.start()
    began = time.monotonic()
    with server:
        said = try_login(Login("127.0.0.1", server.getsockname()[1], "fastagi", SECRET), 0.3)
    thread.join(5)
    assert said.endswith(": no answer") and 0.2 < time.monotonic() - began < 3
