"""The FastAGI server as a transcript: what Asterisk says, what we answer, what becomes of the script."""

import gc
import socket
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from io import BytesIO
from typing import Any

import pytest
import pytest_twisted
from asterisk.agi import (
    AGIAppError,
    AGIDBError,
    AGIError,
    AGIHangup,
    AGIInvalidCommand,
    AGIResultHangup,
    AGIUsageError,
)
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from fastagi.agi import Commands, Reply, Server, Session, WireError, deadline, listen

LOCAL = IPv4Address("TCP", "127.0.0.1", 40000)
DONE = Failure(ConnectionDone())  # type: ignore[no-untyped-call]
BYE = "SET VARIABLE DONE 1\n"


class Wire(StringTransport):
    """A StringTransport that can half-close."""

    io: Any
    half_closed = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> None:
        assert not self.half_closed
        self.io.write(data)

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def take(self) -> bytes:
        """What was written since the last time."""
        written: bytes = self.io.getvalue()
        self.io = BytesIO()
        return written


def connect(session: Session, wire: Wire) -> None:
    session.makeConnection(wire)  # type: ignore[no-untyped-call]


class Asterisk:
    """Plays Asterisk against one session of a server."""

    def __init__(self, server: Server, address: IPv4Address | IPv6Address = LOCAL) -> None:
        session = server.buildProtocol(address)
        assert session is not None
        self.session = session
        self.wire = Wire()
        connect(session, self.wire)

    def says(self, *lines: str | bytes) -> str:
        """These lines in one segment; what the server wrote in answer."""
        for_wire = [line if isinstance(line, bytes) else line.encode() for line in lines]
        return self.sends(b"\n".join(for_wire) + b"\n")

    def sends(self, data: bytes) -> str:
        self.wire.take()
        self.session.dataReceived(data)
        return self.wire.take().decode("utf-8", "surrogateescape")

    def calls(self, script: str = "test", *args: str) -> str:
        arguments = [f"agi_arg_{n}: {value}" for n, value in enumerate(args, 1)]
        return self.says("agi_network: yes", f"agi_network_script: {script}", *arguments, "")

    def goes(self) -> None:
        self.session.connectionLost(DONE)

    def half_closed(self) -> bool:
        """The server has said all that it has to say, and still listens."""
        return self.wire.half_closed and not self.wire.disconnecting

    def closed(self) -> bool:
        """The server has closed the connection."""
        return bool(self.wire.disconnecting)

    def cut_off(self) -> bool:
        """The server has aborted it: nothing that was still to be sent can hold it."""
        return bool(self.wire.disconnected)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith(("fastagi", "twisted.internet.defer")):
            lines.append(formatEvent(event))

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


def counted(server: Server) -> dict[str, int]:
    return {name: n for name, n in asdict(server.counters).items() if n}


Body = Callable[[Session], Any]


def start(clock: Clock, body: Body, **limits: Any) -> tuple[Server, Asterisk]:
    async def test(session: Session) -> Mapping[str, str] | None:
        result: Mapping[str, str] | None = await body(session)
        return result

    server = Server({"test": test}, clock=clock, **limits)
    return server, Asterisk(server)


# -- a whole session


def test_a_session_from_its_environment_to_its_end(clock: Clock, log: list[str]) -> None:
    async def record(session: Session) -> Mapping[str, str]:
        status = await session.get_variable("DIALSTATUS")
        return {"CC_OFFERED": "1" if status == "BUSY" else "0", "CC_REASON": "he is busy"}

    server, asterisk = start(clock, record)
    assert asterisk.calls() == "GET VARIABLE DIALSTATUS\n"
    assert not asterisk.half_closed()
    assert asterisk.says("200 result=1 (BUSY)") == (
        'SET VARIABLE CC_OFFERED 1\nSET VARIABLE CC_REASON "he is busy"\n'
    )
    assert asterisk.half_closed()
    assert not asterisk.closed()  # Asterisk closes: a close of ours could race with what it still says
    assert asterisk.says("200 result=1", "200 result=1", "HANGUP") == ""
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "answered": 1}
    assert (server.sessions, clock.getDelayedCalls(), log) == (set(), [], [])


def test_the_cheapest_session_is_one_round_trip(clock: Clock) -> None:
    async def record(session: Session) -> Mapping[str, str]:
        return {"CC_OFFERED": session.call.arg(2)}

    _, asterisk = start(clock, record)
    assert asterisk.calls("test?x=1", "2000", "BUSY") == "SET VARIABLE CC_OFFERED BUSY\n"
    assert asterisk.half_closed()
    assert asterisk.session.call.query == {"x": "1"}


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_segments_may_end_anywhere_even_in_a_character(clock: Clock, size: int) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        name = await session.get_variable("CALLERID(name)")
        assert name is not None
        return {"A": session.call.env["calleridname"], "B": name}

    _, asterisk = start(clock, script)
    block = "agi_network_script: test\nagi_calleridname: Пётр\n\n".encode()
    written = "".join([asterisk.sends(block[n : n + size]) for n in range(0, len(block), size)])
    assert written == 'GET VARIABLE "CALLERID(name)"\n'
    block = "200 result=1 (Zoë)\n".encode()
    written = "".join([asterisk.sends(block[n : n + size]) for n in range(0, len(block), size)])
    assert written == 'SET VARIABLE A "Пётр"\nSET VARIABLE B "Zoë"\n'


def test_a_script_that_returns_nothing_just_closes(clock: Clock) -> None:
    async def script(session: Session) -> None:
        await session.verbose("hello")

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "VERBOSE hello 1\n"
    assert asterisk.says("200 result=1") == ""
    assert asterisk.half_closed()


def test_finish_may_be_called_by_the_script_itself(clock: Clock) -> None:
    seen: list[object] = []

    async def script(session: Session) -> None:
        session.finish(A="1")
        try:
            await session.noop()
        except AGIError as error:
            seen.append(str(error))
        await session.when_closed
        seen.append(session.closed)

    server, asterisk = start(clock, script)
    assert asterisk.calls() == "SET VARIABLE A 1\n"
    assert asterisk.half_closed()
    asterisk.goes()
    assert seen == ["The session is finished: no command can follow.", True]
    assert counted(server) == {"accepted": 1, "answered": 1}


def test_variables_returned_after_finish_are_an_error_not_a_loss(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        session.finish(A="1")
        return {"B": "1"}

    server, asterisk = start(clock, script)
    assert asterisk.calls() == "SET VARIABLE A 1\n"
    assert counted(server) == {"accepted": 1, "failed": 1}
    assert log == ["The script 'test' failed."]


def test_a_plain_function_will_do(clock: Clock) -> None:
    server = Server({"test": lambda session: {"A": "1"}}, clock=clock)  # type: ignore[dict-item, return-value]
    assert Asterisk(server).calls() == "SET VARIABLE A 1\n"


# -- HANGUP, at any moment


def test_hangup_is_not_the_answer_that_is_waited_for(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        before = session.hung_up
        value = await session.get_variable("X")
        return {"BEFORE": str(before), "X": str(value), "AFTER": str(session.hung_up)}

    _, asterisk = start(clock, script)
    asterisk.calls()
    assert asterisk.says("HANGUP") == ""
    assert asterisk.says("200 result=1 (true)") == (
        "SET VARIABLE BEFORE False\nSET VARIABLE X true\nSET VARIABLE AFTER True\n"
    )


def test_hangup_in_one_segment_with_the_environment(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        return {"HUNG": str(session.hung_up)}

    _, asterisk = start(clock, script)
    assert asterisk.says("agi_network_script: test", "", "HANGUP") == "SET VARIABLE HUNG True\n"


@pytest.mark.parametrize("place", range(4))
def test_hangup_within_a_usage_text(clock: Clock, place: int) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        try:
            await session.command("DATABASE", "GET")
        except AGIUsageError as error:
            assert await session.get_variable("X") == "1"
            return {"USAGE": str(error).splitlines()[-1], "HUNG": str(session.hung_up)}
        return {}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "DATABASE GET\n"
    lines = ["520-Invalid command syntax.  Proper usage follows:", "Usage", "520 End of proper usage."]
    lines.insert(place, "HANGUP")
    assert "".join(map(asterisk.says, lines)) == "GET VARIABLE X\n"
    assert asterisk.says("200 result=1 (1)") == "SET VARIABLE USAGE Usage\nSET VARIABLE HUNG True\n"


def test_between_commands_hangup_tells_nobody_and_breaks_nothing(clock: Clock) -> None:
    work: Deferred[None] = Deferred()

    async def script(session: Session) -> Mapping[str, str]:
        await work
        return {"HUNG": str(session.hung_up)}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == ""
    assert asterisk.says("HANGUP") == ""
    work.callback(None)
    assert asterisk.wire.take() == b"SET VARIABLE HUNG True\n"


def test_a_hangup_inside_a_normal_reply(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> None:
        await session.stream_file("tt-monkeys", "123")

    server, asterisk = start(clock, script)
    assert asterisk.calls() == 'STREAM FILE "tt-monkeys" 123\n'
    asterisk.says("200 result=-1 (hangup) endpos=8000")
    assert asterisk.half_closed()
    assert counted(server) == {"accepted": 1, "hung_up": 1}
    assert log == []  # a caller who hangs up is no error


def test_a_failure_that_comes_with_the_hangup_is_a_hangup(clock: Clock) -> None:
    seen: list[type] = []

    async def script(session: Session) -> None:
        try:
            await session.stream_file("tt-monkeys")
        except AGIAppError as error:
            seen.append(type(error))

    _, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.says("200 result=-1 endpos=8000", "HANGUP")
    assert seen == [AGIResultHangup]


# -- refusals by Asterisk


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["510 Invalid or unknown command"], AGIInvalidCommand),
        (["511 Command Not Permitted on a dead channel or intercept routine"], AGIHangup),
        (["520 Invalid command syntax.  Proper usage not available."], AGIUsageError),
        (["520-Invalid command syntax.", "Usage: X", "520 End of proper usage."], AGIUsageError),
        (["200 result=-1"], AGIAppError),
    ],
)
def test_after_a_refusal_the_session_is_still_in_step(clock: Clock, lines: list[str], error: type) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        try:
            await session.answer()
        except AGIError as raised:
            return {"RAISED": str(type(raised) is error), "X": str(await session.get_variable("X"))}
        return {}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "ANSWER\n"
    assert asterisk.says(*lines) == "GET VARIABLE X\n"
    assert asterisk.says("200 result=1 (5)") == "SET VARIABLE RAISED True\nSET VARIABLE X 5\n"


def test_trying_is_waited_through(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        reply = await session.command("GOSUB", "sub", "s", "1")
        return {"TEXT": reply.text}

    _, asterisk = start(clock, script)
    asterisk.calls()
    assert asterisk.says("100 result=0 Trying...") == ""
    assert asterisk.says("200 result=0 Gosub complete") == 'SET VARIABLE TEXT "result=0 Gosub complete"\n'


# -- every command


class Answering(Commands):
    """Answers each command from a list, and keeps what was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.asked: list[tuple[str, ...]] = []

    async def command(self, *words: str) -> Reply:
        self.asked.append(words)
        return self.replies.pop(0)


ZERO, ONE = Reply(200, "0"), Reply(200, "1")


@pytest.mark.parametrize(
    ("call", "words", "reply", "value"),
    [
        (lambda s: s.answer(), "ANSWER", ZERO, None),
        (lambda s: s.hangup(), "HANGUP", ONE, None),
        (lambda s: s.hangup("Local/1@x-1;2"), "HANGUP|Local/1@x-1;2", ONE, None),
        (lambda s: s.channel_status(), "CHANNEL|STATUS", Reply(200, "6"), 6),
        (lambda s: s.channel_status("SIP/1"), "CHANNEL|STATUS|SIP/1", Reply(200, "4"), 4),
        (lambda s: s.noop(), "NOOP", ZERO, None),
        (lambda s: s.noop("a b"), "NOOP|a b", ZERO, None),
        (lambda s: s.verbose("hi", 3), "VERBOSE|hi|3", ONE, None),
        (lambda s: s.execute("Playback", "a", "b"), "EXEC|Playback|a,b", ZERO, "0"),
        (lambda s: s.get_variable("X"), "GET|VARIABLE|X", Reply(200, "1", "a (b)"), "a (b)"),
        (lambda s: s.get_variable("X"), "GET|VARIABLE|X", Reply(200, "1", ""), ""),
        (lambda s: s.get_variable("X"), "GET|VARIABLE|X", ZERO, None),
        (lambda s: s.get_full_variable("${X}"), "GET|FULL|VARIABLE|${X}", Reply(200, "1", "v"), "v"),
        (lambda s: s.get_full_variable("${X}", "C"), "GET|FULL|VARIABLE|${X}|C", ZERO, None),
        (lambda s: s.set_variable("X", "a b"), "SET|VARIABLE|X|a b", ONE, None),
        (lambda s: s.stream_file("f"), "STREAM|FILE|f|", Reply(200, "0", endpos=9), ""),
        (lambda s: s.stream_file("f", "#1"), "STREAM|FILE|f|#1", Reply(200, "35"), "#"),
        (lambda s: s.say_digits("12", "0"), "SAY|DIGITS|12|0", Reply(200, "48"), "0"),
        (lambda s: s.say_number(12), "SAY|NUMBER|12|", ZERO, ""),
        (lambda s: s.wait_for_digit(500), "WAIT|FOR|DIGIT|500", Reply(200, "42"), "*"),
        (lambda s: s.wait_for_digit(), "WAIT|FOR|DIGIT|-1", ZERO, ""),
        (lambda s: s.get_data("f", 3000, 4), "GET|DATA|f|3000|4", Reply(200, "1234"), "1234"),
        (lambda s: s.get_data("f"), "GET|DATA|f|5000|1024", Reply(200, "", "timeout"), ""),
        (lambda s: s.database_get("f", "k"), "DATABASE|GET|f|k", Reply(200, "1", "v"), "v"),
        (lambda s: s.database_get("f", "k"), "DATABASE|GET|f|k", ZERO, None),
        (lambda s: s.database_put("f", "k", "v"), "DATABASE|PUT|f|k|v", ONE, None),
        (lambda s: s.database_del("f", "k"), "DATABASE|DEL|f|k", ONE, None),
    ],
)
def test_each_command(call: Callable[[Commands], Any], words: str, reply: Reply, value: object) -> None:
    commands = Answering(reply)
    result: list[object] = []
    Deferred.fromCoroutine(call(commands)).addCallback(result.append)
    assert commands.asked == [tuple(words.split("|"))]
    assert result == [value]


@pytest.mark.parametrize(
    ("call", "reply", "error"),
    [
        (lambda s: s.execute("NoSuch"), Reply(200, "-2"), AGIAppError),
        (lambda s: s.database_put("f", "k", "v"), ZERO, AGIDBError),
        (lambda s: s.database_del("f", "k"), ZERO, AGIDBError),
    ],
)
def test_results_that_are_errors(call: Callable[[Commands], Any], reply: Reply, error: type) -> None:
    failures: list[Failure] = []
    Deferred.fromCoroutine(call(Answering(reply))).addErrback(failures.append)
    assert [type(failure.value) for failure in failures] == [error]


# -- one command, one answer


def test_two_tasks_cannot_get_out_of_step(clock: Clock) -> None:
    got: list[tuple[str, object]] = []

    async def script(session: Session) -> Mapping[str, str]:
        for name in ("B", "C"):
            asked = Deferred.fromCoroutine(session.get_variable(name))
            asked.addCallback(lambda value, name: got.append((name, value)), name)
        got.append(("A", await session.get_variable("A")))
        return {"DONE": "1"}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "GET VARIABLE B\n"
    assert asterisk.says("200 result=1 (b)") == "GET VARIABLE C\n"
    assert asterisk.says("200 result=1 (c)") == "GET VARIABLE A\n"
    assert asterisk.says("200 result=1 (a)") == BYE
    assert got == [("B", "b"), ("C", "c"), ("A", "a")]


def test_finish_waits_for_the_commands_asked_before(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        for name in ("A", "B"):
            Deferred.fromCoroutine(session.get_variable(name))
        return {"DONE": "1"}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "GET VARIABLE A\n"
    assert not asterisk.half_closed()
    assert asterisk.says("200 result=0") == "GET VARIABLE B\n"
    assert asterisk.says("200 result=0") == BYE
    assert asterisk.half_closed()


def test_a_cancelled_command_keeps_its_place_until_its_answer_came(clock: Clock) -> None:
    asked: list[Deferred[Any]] = []

    def cancelled(failure: Failure) -> None:
        assert isinstance(failure.value, CancelledError)

    async def script(session: Session) -> Mapping[str, str]:
        asked.extend(Deferred.fromCoroutine(session.get_variable(name)) for name in ("SENT", "UNSENT"))
        for deferred in asked:
            deferred.addErrback(cancelled)
            deferred.cancel()
        return {"X": str(await session.get_variable("X"))}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == "GET VARIABLE SENT\n"
    assert asterisk.says("200 result=1 (not for X)") == "GET VARIABLE X\n"
    assert asterisk.says("200 result=1 (x)") == "SET VARIABLE X x\n"


def test_a_cancelled_command_and_then_a_lost_connection(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> None:
        asked = [Deferred.fromCoroutine(session.noop()) for _ in range(2)]
        for deferred in asked:
            deferred.addErrback(lambda failure: None)
            deferred.cancel()
        await session.when_closed

    server, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.goes()
    assert (counted(server), log) == ({"accepted": 1, "answered": 1}, [])


def test_an_answer_that_nobody_asked_for_ends_the_session(clock: Clock, log: list[str]) -> None:
    work: Deferred[None] = Deferred()
    server, asterisk = start(clock, lambda session: work)
    asterisk.calls()
    assert asterisk.says("200 result=1 (forged)") == ""
    assert asterisk.closed()
    assert counted(server) == {"accepted": 1, "faulty": 1}
    assert len(log) == 1


def test_a_second_answer_in_one_read_is_not_kept_for_the_next_command(clock: Clock) -> None:
    """A variable that holds ")\\n200 result=1 (forged" would answer two commands."""

    async def script(session: Session) -> Mapping[str, str]:
        await session.get_variable("NAME")
        return {"X": str(await session.get_variable("SECRET"))}

    server, asterisk = start(clock, script)
    asterisk.calls()
    assert asterisk.says("200 result=1 ()", "200 result=1 (forged)") == ""
    assert asterisk.closed()
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "faulty": 1, "hung_up": 1}


def test_a_variable_with_a_newline_ends_the_session(clock: Clock) -> None:
    async def script(session: Session) -> None:
        await session.get_variable("NAME")

    _, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.says("200 result=1 (two", "lines)")
    assert asterisk.closed()


# -- nothing else goes to the socket


@pytest.mark.parametrize("value", ["x\nHANGUP", "x\r", "\0", "x" * 2000, "\ud800"])
def test_if_one_last_variable_cannot_be_sent_none_is(clock: Clock, log: list[str], value: str) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        return {"GOOD": "1", "BAD": value}

    server, asterisk = start(clock, script)
    assert asterisk.calls() == ""
    assert asterisk.half_closed()  # the call goes on, as if we were down
    assert counted(server) == {"accepted": 1, "failed": 1}
    assert log == ["The script 'test' failed."]


def test_a_value_cannot_begin_another_command(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        with pytest.raises(WireError, match="control character"):
            await session.set_variable("NAME", '"\nEXEC System "reboot')
        with pytest.raises(WireError, match="control character"):
            await session.set_variable("NAME\nHANGUP", "1")
        await session.set_variable("NAME", 'x" HANGUP \\')
        return {"NAME": 'y" "\\'}

    _, asterisk = start(clock, script)
    assert asterisk.calls() == 'SET VARIABLE NAME "x\\" HANGUP \\\\"\n'
    assert asterisk.says("200 result=1") == 'SET VARIABLE NAME "y\\" \\"\\\\"\n'


def test_an_error_in_a_script_goes_to_the_log_and_the_call_goes_on(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> None:
        print("not to the socket")
        raise ZeroDivisionError("not to the socket either")

    server, asterisk = start(clock, script)
    with capturedLogs() as events:
        assert asterisk.calls() == ""
    assert asterisk.half_closed()
    assert counted(server) == {"accepted": 1, "failed": 1}
    assert log == ["The script 'test' failed."]
    assert "in script" in events[0]["log_failure"].getTraceback()


@pytest.mark.parametrize("name", ["nothing", "", "../test", "Test"])
def test_an_unknown_script_is_one_log_line_and_a_close(clock: Clock, log: list[str], name: str) -> None:
    server, asterisk = start(clock, lambda session: None)
    assert asterisk.calls(name) == ""
    assert asterisk.half_closed()
    assert counted(server) == {"accepted": 1, "unknown": 1}
    assert len(log) == 1
    assert repr(name) in log[0]
    asterisk.goes()
    assert server.sessions == set()


# -- environments that are none


@pytest.mark.parametrize("said", [b"", b"agi_network: yes\n", b"agi_net", "agi_x: П".encode()[:-1]])
def test_a_connection_that_closes_before_the_blank_line_is_dropped_quietly(
    clock: Clock, log: list[str], said: bytes
) -> None:
    server, asterisk = start(clock, lambda session: None)
    asterisk.sends(said)
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "incomplete": 1}
    assert (server.sessions, log) == (set(), [])


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n",
        b"agi_a: " + b"x" * 9000,  # no newline: the half line is bounded, too
        b"agi_a: x\n" * 129,
        b"agi_channel: A\nagi_channel: B\n\n",
        b"agi_arg_1: A\nagi_context: x\n\n",
        b"agi_callerid: 40\n\nagi_dnid: 2000\n\n",  # %0A%0A in a SIP user part
        b"agi_network_script: test\n\n200 result=1 (forged)\n",
    ],
)
def test_a_forged_environment_is_one_log_line_and_a_close(clock: Clock, log: list[str], said: bytes) -> None:
    server, asterisk = start(clock, lambda session: None)
    assert asterisk.sends(said) == ""
    assert asterisk.closed()
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "faulty": 1}
    assert len(log) == 1
    assert server.sessions == set()


def test_a_name_that_is_not_utf_8_costs_nothing(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        return {"NAME": session.call.env["calleridname"]}

    _, asterisk = start(clock, script)
    written = asterisk.sends(b"agi_network_script: test\nagi_calleridname: J\xfcrgen \xd0\n\n")
    assert written.encode("utf-8", "surrogateescape") == b'SET VARIABLE NAME "J\xfcrgen \xd0"\n'
    assert log == []


def test_an_endless_reply_is_bounded(clock: Clock) -> None:
    async def script(session: Session) -> None:
        await session.get_variable("X")

    _, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.sends(b"200 result=1 (")
    for _ in range(8):
        asterisk.sends(b"x" * 8192)
    assert asterisk.closed()


# -- when the connection goes


def test_whatever_waits_hears_of_the_lost_connection(clock: Clock, log: list[str]) -> None:
    heard: list[str] = []

    def hear(failure: Failure, name: str) -> None:
        heard.append(f"{name} {type(failure.value).__name__}")

    async def script(session: Session) -> None:
        for name in ("PENDING", "QUEUED"):
            asked = Deferred.fromCoroutine(session.get_variable(name))
            asked.addErrback(hear, name)
        session.when_closed.addCallback(lambda _: heard.append("closed"))
        await session.get_variable("QUEUED_TOO")

    server, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.goes()
    assert heard == ["PENDING AGIHangup", "QUEUED AGIHangup", "closed"]
    assert counted(server) == {"accepted": 1, "hung_up": 1}
    assert (server.sessions, log) == (set(), [])


def test_a_script_that_outlives_its_connection_may_end_its_work(clock: Clock, log: list[str]) -> None:
    work: Deferred[None] = Deferred()
    seen: list[object] = []

    async def script(session: Session) -> Mapping[str, str]:
        await work
        seen.extend([session.hung_up, session.closed])
        await session.when_closed
        return {"DONE": "1"}

    server, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.goes()
    assert len(server.sessions) == 1  # counts until its script has ended
    work.callback(None)
    assert seen == [True, True]
    assert (server.sessions, log) == (set(), [])
    assert counted(server) == {"accepted": 1, "hung_up": 1}


def test_close_ends_a_session_at_once(clock: Clock) -> None:
    async def script(session: Session) -> None:
        await session.get_variable("X")

    server, asterisk = start(clock, script)
    asterisk.calls()
    server.close()
    assert asterisk.closed()
    assert asterisk.says("200 result=1 (late)") == ""
    asterisk.goes()
    asterisk.session.close()
    assert counted(server) == {"accepted": 1, "hung_up": 1}


def test_an_ended_session_leaves_nothing_for_the_garbage_collector(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        await session.get_variable("X")
        return {"DONE": "1"}

    _, asterisk = start(clock, script)
    asterisk.calls()
    asterisk.says("200 result=0")
    asterisk.goes()
    session = weakref.ref(asterisk.session)
    gc.collect()
    gc.disable()
    try:
        del asterisk
        assert session() is None
    finally:
        gc.enable()


# -- how long


def test_an_environment_has_five_seconds(clock: Clock, log: list[str]) -> None:
    server, asterisk = start(clock, lambda session: None)
    asterisk.says("agi_network: yes")
    clock.advance(4.75)
    assert not asterisk.cut_off()
    clock.advance(0.25)
    assert asterisk.cut_off()
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "incomplete": 1}
    assert log == []


def test_a_session_has_its_deadline_from_the_connection_on(clock: Clock, log: list[str]) -> None:
    async def script(session: Session) -> None:
        await session.get_variable("NEVER ANSWERED")

    server, asterisk = start(clock, script)
    clock.advance(3)
    asterisk.calls()
    clock.advance(6.75)
    assert not asterisk.cut_off()
    clock.advance(0.25)
    assert asterisk.cut_off()
    asterisk.goes()
    assert counted(server) == {"accepted": 1, "hung_up": 1, "overdue": 1}
    assert len(log) == 1
    assert clock.getDelayedCalls() == []


def test_the_deadline_holds_for_a_peer_that_does_not_close(clock: Clock) -> None:
    async def script(session: Session) -> Mapping[str, str]:
        return {"DONE": "1"}

    server, asterisk = start(clock, script)
    asterisk.calls()
    clock.advance(10)
    assert asterisk.cut_off()
    assert counted(server) == {"accepted": 1, "answered": 1, "overdue": 1}


@pytest.mark.parametrize(("seconds", "alive", "gone"), [(60, 59.75, 0.25), (1.5, 1.25, 0.25)])
def test_a_script_may_have_a_deadline_of_its_own(
    clock: Clock, seconds: float, alive: float, gone: float
) -> None:
    @deadline(seconds)
    async def script(session: Session) -> None:
        await session.noop()

    asterisk = Asterisk(Server({"test": script}, clock=clock))
    asterisk.calls()
    clock.advance(alive)
    assert not asterisk.cut_off()
    clock.advance(gone)
    assert asterisk.cut_off()


def test_a_standing_session_stays_until_it_ends_itself(clock: Clock) -> None:
    @deadline(None)
    async def script(session: Session) -> Mapping[str, str]:
        for name in "AB":
            await session.get_variable(name)
        return {"DONE": "1"}

    server = Server({"test": script}, clock=clock)
    asterisk = Asterisk(server)
    asterisk.calls()
    clock.advance(86400)
    assert not asterisk.cut_off()
    assert clock.getDelayedCalls() == []
    assert asterisk.says("200 result=0") == "GET VARIABLE B\n"
    assert asterisk.says("200 result=0") == BYE
    clock.advance(9.75)
    assert not asterisk.cut_off()
    clock.advance(0.25)  # its end is bounded like every other's
    assert asterisk.cut_off()


def test_a_standing_session_bounds_its_commands(clock: Clock) -> None:
    @deadline(None)
    async def script(session: Session) -> None:
        for _ in range(2):
            session.bound(2)
            await session.noop()
            session.bound(None)
        session.bound(2)
        await session.noop("hangs")

    server = Server({"test": script}, clock=clock)
    asterisk = Asterisk(server)
    asterisk.calls()
    clock.advance(1.75)
    asterisk.says("200 result=0")
    clock.advance(1.75)
    assert asterisk.says("200 result=0") == "NOOP hangs\n"
    clock.advance(1.75)
    assert not asterisk.cut_off()
    clock.advance(0.25)
    assert asterisk.cut_off()


def test_one_delayed_call_serves_all_sessions_each_at_its_time(clock: Clock) -> None:
    @deadline(30)
    async def long(session: Session) -> None:
        await session.noop()

    @deadline(7)
    async def short(session: Session) -> None:
        await session.noop()

    server = Server({"long": long, "short": short}, clock=clock)
    sessions = {}
    for name in ("long", "short", "probe"):
        sessions[name] = Asterisk(server)
        if name != "probe":
            sessions[name].calls(name)
        clock.advance(1)
        assert len(clock.getDelayedCalls()) == 1
    ends: dict[str, int] = {}
    for second in range(3, 40):
        ends |= {n: second for n, a in sessions.items() if a.cut_off() and n not in ends}
        clock.advance(1)
    assert ends == {"long": 30, "short": 8, "probe": 7}


# -- whom, and how many


@pytest.mark.parametrize(
    ("allow", "host", "allowed"),
    [
        (None, "127.0.0.1", True),
        (None, "127.8.9.10", True),
        (None, "::1", True),
        (None, "::ffff:127.0.0.1", True),
        (None, "192.0.2.1", False),
        (None, "::ffff:192.0.2.1", False),
        (None, "fe80::1%eth0", False),
        (None, "pbx", False),
        (["192.0.2.0/24", "2001:db8::/32"], "192.0.2.1", True),
        (["192.0.2.0/24", "2001:db8::/32"], "2001:db8::1", True),
        (["192.0.2.0/24", "2001:db8::/32"], "127.0.0.1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        ([], "127.0.0.1", False),
    ],
)
def test_who_may_connect(
    clock: Clock, log: list[str], allow: list[str] | None, host: str, allowed: bool
) -> None:
    server = Server({}, clock=clock) if allow is None else Server({}, clock=clock, allow=allow)
    kind = IPv6Address if ":" in host else IPv4Address
    session = server.buildProtocol(kind("TCP", host, 40000))
    assert (session is not None) is allowed
    assert counted(server) == ({"accepted": 1} if allowed else {"refused": 1})
    assert log == ([] if allowed else [f"{host!r} is not allowed to connect."])


def test_a_peer_without_an_address_is_nobody(clock: Clock) -> None:
    assert Server({}, clock=clock, allow=["0.0.0.0/0", "::/0"]).buildProtocol(None) is None


def test_too_many_sessions_are_refused_and_logged_once(clock: Clock, log: list[str]) -> None:
    server = Server({}, clock=clock, max_sessions=4)
    sessions = [Asterisk(server) for _ in range(4)]
    assert [server.buildProtocol(LOCAL) for _ in range(3)] == [None] * 3
    sessions.pop().goes()
    sessions.append(Asterisk(server))
    assert server.buildProtocol(LOCAL) is None
    assert log == ["All 4 sessions are in use; new ones are closed."]
    assert server.counters.crowded == 4
    for asterisk in sessions:
        asterisk.goes()
    sessions = [Asterisk(server) for _ in range(4)]
    assert server.buildProtocol(LOCAL) is None
    assert len(log) == 2


# -- sockets


class Socketed(Wire):
    """A transport with a true socket behind it, as Twisted's TCP transports have."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)

    def getHandle(self) -> socket.socket:
        return self.ours

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def socketed() -> Iterator[Socketed]:
    wire = Socketed()
    yield wire
    wire.close()


def with_socket(clock: Clock, wire: Socketed, body: Body) -> Session:
    session = Server({"test": body}, clock=clock).buildProtocol(LOCAL)
    assert session is not None
    connect(session, wire)
    session.dataReceived(b"agi_network_script: test\n\n")
    return session


async def ask_and_set(session: Session) -> Mapping[str, str]:
    await session.get_variable("X")
    return {"A": "1", "B": "2"}


def test_what_is_written_goes_out_at_once(clock: Clock, socketed: Socketed) -> None:
    session = with_socket(clock, socketed, ask_and_set)
    assert socketed.theirs.recv(100) == b"GET VARIABLE X\n"
    session.dataReceived(b"200 result=0\n")
    assert socketed.theirs.recv(100) == b"SET VARIABLE A 1\nSET VARIABLE B 2\n"
    assert socketed.theirs.recv(100) == b""  # the half-close
    assert socketed.take() == b""


def test_what_finds_no_room_goes_through_the_buffer_and_so_does_all_that_follows(
    clock: Clock, socketed: Socketed
) -> None:
    filler = 0
    try:
        while True:
            filler += socketed.ours.send(b"x" * 65536)
    except BlockingIOError:
        pass
    session = with_socket(clock, socketed, ask_and_set)
    while filler:
        filler -= len(socketed.theirs.recv(min(filler, 65536)))
    session.dataReceived(b"200 result=0\n")
    with pytest.raises(BlockingIOError):
        socketed.theirs.recv(100)
    assert socketed.take() == b"GET VARIABLE X\nSET VARIABLE A 1\nSET VARIABLE B 2\n"
    assert socketed.half_closed


class Narrow(socket.socket):
    """Takes four bytes at a time."""

    def send(self, data: Any, flags: int = 0) -> int:
        return super().send(data[:4], flags)


def test_what_goes_out_in_part_goes_on_in_the_buffer(clock: Clock, socketed: Socketed) -> None:
    socketed.ours = Narrow(fileno=socketed.ours.detach())
    with_socket(clock, socketed, ask_and_set)
    assert (socketed.theirs.recv(100), socketed.take()) == (b"GET ", b"VARIABLE X\n")


def test_a_broken_pipe_is_left_to_twisted_to_report(clock: Clock, socketed: Socketed, log: list[str]) -> None:
    socketed.theirs.close()
    session = with_socket(clock, socketed, ask_and_set)
    assert socketed.take() == b"GET VARIABLE X\n"
    session.connectionLost(DONE)
    assert log == []


class Client(Protocol):
    """Asterisk's side over true TCP."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"agi_network_script: test\n\n")

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        if data == b"GET VARIABLE X\n":
            self.transport.write(b"200 result=1 (x)\n")

    def connectionLost(self, reason: Failure = DONE) -> None:
        self.gone.callback(None)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), pytest.param("::", marks=needs_ipv6)]
)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_over_tcp(host: str) -> None:
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint

    options = {}

    async def script(session: Session) -> Mapping[str, str]:
        sock = session.transport.getHandle()
        for name in ("TCP_NODELAY", "TCP_KEEPIDLE"):
            options[name] = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        options["SO_KEEPALIVE"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        return {"X": str(await session.get_variable("X"))}

    server = Server({"test": script})
    port: Any = listen(reactor, host, 0, server)
    try:
        there = "127.0.0.1" if host == "::" else host
        endpoint = TCP4ClientEndpoint(reactor, there, port.getHost().port)
        factory: Any = Factory.forProtocol(Client)
        client = await endpoint.connect(factory)
        await client.gone
        assert client.heard == b"GET VARIABLE X\nSET VARIABLE X x\n"
        assert options == {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "SO_KEEPALIVE": 1}
        assert counted(server) == {"accepted": 1, "answered": 1}
        with pytest.raises(CannotListenError):
            listen(reactor, host, port.getHost().port, server)
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_burst_of_calls_is_held_until_we_get_to_it() -> None:
    """Asterisk gives up after 2 s to connect, so what the queue does not hold is a call without us."""
    from twisted.internet import reactor

    port: Any = listen(reactor, "127.0.0.1", 0, Server({}))
    clients = []
    try:
        for _ in range(200):  # the reactor accepts none of them meanwhile
            clients.append(socket.create_connection(("127.0.0.1", port.getHost().port), timeout=0.5))
    finally:
        for client in clients:
            client.close()
        await port.stopListening()
    assert len(clients) == 200
