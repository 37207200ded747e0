"""Hostile callers: what a phone, an unauthenticated trunk and a local user at the AGI port must not achieve.

No extra AGI line, no directive in a call file, no dialplan expansion, no call in a context that is not the
caller's own, nothing of anybody else's. What is refused is told in one line with its sender.
"""

from __future__ import annotations

import re
import socket
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.asterisk import Phone as Endpoint
from tests.lab.phone import Phone, PhoneError, PhoneTimeout
from tests.real.bench import Bench

# A site as careless as can be, and a context that no phone may reach.
CARELESS = """
[phones](+)
exten => _9X!,1,Gosub(cc-dial,s,1(PJSIP/2000,2))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _8X!,1,Gosub(cc-dial,s,1(PJSIP/2000&PJSIP/${{EXTEN}},2,,2000))
 same => n,Hangup(${{HANGUPCAUSE}})
; its own handler, without cc-agi
exten => 7777,1,AGI(agi://127.0.0.1:{port}/record,2000,BUSY,17,PJSIP/2000,,,,,phones)
 same => n,Hangup()
[admin]
exten => _.,1,Verbose(1,admin-reached by ${{CHANNEL}} for ${{EXTEN}})
 same => n,Hangup()
"""


@dataclass(frozen=True)
class Nameless(Endpoint):
    """A phone that says itself who calls, as a gateway does: no callerid=, and its word is taken."""

    extra: str = "trust_id_inbound=yes\n"

    def section(self) -> str:
        return re.sub(r"callerid=.*\n", "", super().section())


@pytest.fixture(scope="module")
def careless(running_bench: Bench) -> Iterator[None]:
    asterisk = running_bench.asterisk
    file = asterisk.etc / "pjsip.conf"
    text = file.read_text()
    file.write_text(text + Nameless("5000", "").section())
    asterisk.cli("module reload res_pjsip.so")
    running_bench.until(lambda: "5000" in asterisk.cli("pjsip show endpoints"), "endpoint 5000 is there")
    yield
    file.write_text(text)
    asterisk.cli("module reload res_pjsip.so")


@pytest.fixture
def hostile(bench: Bench, careless: None) -> Bench:
    bench.asterisk.reload_dialplan(bench.dialplan(more=CARELESS.format(port=bench.port)))
    bench.asterisk.cli("dialplan set global PWNED no")
    bench.phones["2000"].answer = "busy"
    return bench


def pwned(bench: Bench) -> bool:
    """Whether a caller has set a global variable."""
    return "PWNED=no" not in bench.asterisk.cli("dialplan show globals")


def nameless(bench: Bench) -> Phone:
    phone = bench.another("5000")
    phone.register()
    return phone


def says(number: str, name: str = "") -> dict[str, str]:
    """The header by which such a phone says who calls."""
    return {"P-Asserted-Identity": f'"{name}" ' * bool(name) + f"<sip:{escaped(number)}@127.0.0.1>"}


def trunk(bench: Bench) -> Phone:
    return bench.another("evil", port=bench.trunk_port)


def escaped(text: str) -> str:
    """The user part of a SIP URI that the other side reads as this text."""
    return "".join(chr(c) if chr(c).isalnum() and c < 128 else f"%{c:02X}" for c in text.encode())


def slipping(head: str, front: int = 0) -> str:
    """``head`` so continued that a dialplan's comparison of lengths takes it for all digits.

    ``${LEN(${x})}`` reads ``):0:1`` in x as its own end and a substring of the result: with 10 to 19
    characters before it the length is "1", and so is that of one digit of the filtered text.
    ``front`` characters of other things stand before it.
    """
    for pad in range(60):
        body = head + "x" * pad
        length = str(len(body) + front)
        digits = re.sub(r"[^0-9*#+]", "", body)
        for place, digit in enumerate(length):
            if digit == "1" and len(digits) > place:
                return f"{body}):{place}:1"
    raise ValueError(head)


class Told:
    """The lines that the server, and the dialplan for it, have written since this was made."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.server, self.site = len(self._server()), len(self._site())

    def _server(self) -> list[str]:
        """Not the poll session's: at a start it looks at the lamps."""
        return [line for line in self.bench.server.log_lines() if not line.endswith("poll session open")]

    def _site(self) -> list[str]:
        return [line for line in self.bench.site_lines("fastagi: refused") if "NOTICE[" in line]

    def lines(self) -> list[str]:
        return self._server()[self.server :] + self._site()[self.site :]

    def fault(self, sender: str) -> str:
        """What is wrong with how a refusal was told; empty: nothing."""
        end = time.monotonic() + 1
        while not self.lines() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.05)
        lines = self.lines()
        if len(lines) != 1:
            return f"told in {len(lines)} lines: {lines}"
        if sender not in lines[0]:
            return f"the line does not name {sender}: {lines[0]}"
        if len(lines[0]) > 600 or not lines[0].isprintable():
            return f"the line is {len(lines[0])} long, or not printable: {lines[0][:200]!a}"
        return ""


def stored(bench: Bench) -> list[tuple[str, ...]]:
    """Every offer and request there is: caller, callee, context, the callee's devices."""
    rows = []
    with closing(sqlite3.connect(bench.server.store)) as base:
        for table in ("offers", "requests"):
            # What was no number is on record as that, and nothing of it: it was his latest call.
            query = f"SELECT caller, callee, caller_context, callee_devices FROM {table} WHERE callee != ''"
            rows += [tuple(map(str, row)) for row in base.execute(query)]
    return rows


def same(rows: list[str]) -> str:
    return "\n".join(rows)


def environment(
    script: str,
    *args: str,
    channel: str = "PJSIP/1000-0000dead",
    uniqueid: str = "x-1.1",
) -> list[str]:
    """What Asterisk sends, as somebody writes it who is not Asterisk."""
    return [
        "agi_network: yes",
        f"agi_network_script: {script}",
        f"agi_request: agi://127.0.0.1/{script}",
        f"agi_channel: {channel}",
        "agi_language: en",
        f"agi_type: {channel.partition('/')[0]}",
        f"agi_uniqueid: {uniqueid}",
        "agi_version: 22.10.1",
        "agi_callerid: 1000",
        "agi_calleridname: Alice",
        "agi_callingpres: 0",
        "agi_callingani2: 0",
        "agi_callington: 0",
        "agi_callingtns: 0",
        "agi_dnid: 2000",
        "agi_rdnis: unknown",
        "agi_context: cc-agi",
        "agi_extension: s",
        "agi_priority: 14",
        "agi_enhanced: 0.0",
        "agi_accountcode: ",
        "agi_threadid: 140474983909056",
        *(f"agi_arg_{n}: {arg}" for n, arg in enumerate(args, 1)),
        "",
    ]


def agi(bench: Bench, lines: Iterable[str], timeout: float = 8.0) -> str:
    """Say these lines at the AGI port, as any local user can; all that is answered until it closes."""
    with socket.create_connection(("127.0.0.1", bench.port), timeout) as connection:
        heard = b""
        with suppress(ConnectionError):
            connection.sendall("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
            while data := connection.recv(65536):
                heard += data
    return heard.decode("utf-8", "surrogateescape")


def failed_call(callee: str = "2000", context: str = "phones", dial: str = "") -> tuple[str, ...]:
    return (
        "record",
        callee,
        "BUSY",
        "17",
        dial or f"PJSIP/{callee}",
        "",
        "",
        "",
        "",
        context,
    )


def serves(bench: Bench) -> None:
    """The server is well: a call that fails is offered, and can be asked for and taken back."""
    bench.meets_busy("3000", "2000")
    assert bench.asks("3000") == "SUCCESS/"
    assert bench.asks("3000", "*31") == "SUCCESS/"


# -- SIP into the dialplan


def test_what_is_dialled(hostile: Bench) -> None:
    """A request-URI is no argument, no option, no variable and no line of anything; also from a trunk."""
    bench = hostile
    dialled = [
        "90\n",
        "90\nagi_evil: 1",
        "90\r\nagi_evil: 1",
        "90\n\n200 result=1 (x)",
        '90"',
        "90;Application: System",
        "90\nApplication: System\nData: touch x",
        "90${GLOBAL(CC_AGI)}",
        "90${SHELL(id)}",
        "90$[1+1]",
        "90,BUSY,17,PJSIP/4000,,,,,admin",
        "90^GLOBAL(PWNED)=1",
        "90)v(GLOBAL(PWNED)=1",
        slipping("91^GLOBAL(PWNED)=1"),
        slipping("91\nagi_evil: 1"),
        slipping("91,BUSY,17,,,,,,admin"),
        "9" + "1" * 70 + "x" * 9,
    ]
    faults = []
    for phone, sender in (
        (bench.phones["1000"], "PJSIP/1000-"),
        (trunk(bench), "PJSIP/trunk-"),
    ):
        for user in dialled:
            told = Told(bench)
            phone.dial("x", user_raw=escaped(user)).wait_status(486)
            if fault := told.fault(sender):
                faults.append(f"{sender}{user!r}: {fault}")
    assert not pwned(bench)
    assert stored(bench) == []
    assert not faults, same(faults)


def test_who_gives_up_while_it_rings(hostile: Bench) -> None:
    """The note of a hang-up carries what was dialled as a variable of a new channel: there as well."""
    bench = hostile
    bench.phones["2000"].answer = "ring"
    target = Path(tempfile.gettempdir()) / f"attack-{bench.port}"  # a dialled extension holds 79 characters
    dialled = [
        "90^GLOBAL(PWNED)=1",
        "90)v(GLOBAL(PWNED)=1",
        "90\nagi_evil: 1",
        slipping("91^GLOBAL(PWNED)=1"),
        slipping("91)v(GLOBAL(PWNED)=1"),
        slipping(f"91^FILE({target})=1"),
        slipping("91^CC_NOTE_CHANNEL=PJSIP/3000-0000dead"),
        "90,PJSIP/2000,admin",
        "90,PJSIP/2000,a^GLOBAL(PWNED)=1",
        f"90,PJSIP/2000,a^FILE({target})=1",
    ]
    faults = []
    try:
        for phone, sender in (
            (bench.phones["1000"], "PJSIP/1000-"),
            (trunk(bench), "PJSIP/trunk-"),
        ):
            for user in dialled:
                told = Told(bench)
                phone.dial("x", user_raw=escaped(user)).wait_ringing().hangup().wait_ended()
                if fault := told.fault(sender):
                    faults.append(f"{sender}{user!r}: {fault}")
        assert not pwned(bench), "a caller has set a global variable"
        assert not target.exists(), "a caller has written a file as Asterisk's user"
    finally:
        target.unlink(missing_ok=True)
    assert stored(bench) == []
    assert not faults, same(faults)


def test_a_dial_string_with_a_newline(hostile: Bench) -> None:
    """A site that puts what was dialled into its dial string, and names the callee itself."""
    told = Told(hostile)
    user = "80\nagi_context: admin\nagi_arg_5: x"
    hostile.phones["1000"].dial("x", user_raw=escaped(user)).wait_ended()
    assert told.fault("PJSIP/1000-") == ""
    assert stored(hostile) == []


def test_who_says_he_is(hostile: Bench) -> None:
    """From, where no callerid= stands over it: no line, no key and no argument of what Asterisk tells us."""
    bench = hostile
    phone = nameless(bench)
    start = "4\nagi_context: admin\nagi_arg_1: 3000\nagi_arg_2: BUSY\n"
    said = [
        ("40\nagi_evil: 1", ""),
        ("40\nagi_context: admin", ""),
        ("40\nagi_arg_9: admin", ""),
        ("40\n\n200 result=1", ""),
        ("40\r\nagi_evil: 1", ""),
        (start, ""),
        # ... and past a comparison of lengths: the name follows the number there
        (start, slipping("1", front=len(start)) + "x"),
        ("40\nagi_evil: 1", slipping("1", front=len("40\nagi_evil: 1")) + "x"),
    ]
    faults = []
    offered = 0
    for number, name in said:
        for dialled in ("2000", "7777"):  # through cc-agi, and past it
            told = Told(bench)
            phone.dial(dialled, headers=says(number, name)).wait_ended()
            if fault := told.fault("PJSIP/5000-"):
                faults.append(f"{dialled} by {number!r} {name!r}: {fault}")
            if rows := stored(bench)[offered:]:
                faults.append(f"{dialled} by {number!r} {name!r} was offered: {rows}")
                offered += len(rows)
    # The forged end may be a read of its own, before the rest is there: a race, so more than once.
    for name in ("", slipping("1", front=len(start)) + "x"):
        for _ in range(25):
            phone.dial("2000" if name else "7777", headers=says(start, name)).wait_ended()
    faults += [f"was offered: {row}" for row in stored(bench) if row[1:3] == ("3000", "admin")]
    for number in ("40\nagi_evil: 1", "40\nagi_arg_1: 2000\n"):
        told = Told(bench)
        call = phone.dial("*30", headers=says(number))
        if fault := told.fault("PJSIP/5000-"):
            faults.append(f"*30 by {number!r}: {fault}")
        call.hangup().wait_ended()
    assert not faults, same(faults)


def test_a_strange_name_is_no_attack(hostile: Bench) -> None:
    """Quotes, parentheses, colons, long names, UTF-8 that Asterisk cuts in the middle: served like any."""
    bench = hostile
    phone = nameless(bench)
    names = [
        "Anna (sales): 2:1",
        "O'Brien",
        r"Anna \"the Voice\" B.",
        "é" * 60,
        "名" * 40,
        "x" * 4000,
    ]
    for name in names:
        told = Told(bench)
        phone.dial("2000", headers=says("5000", name)).wait_status(486)
        assert told.lines() == [], name
    assert {row[:3] for row in stored(bench)} == {("5000", "2000", "phones")}
    assert len(stored(bench)) == len(names)
    phone.dial("*30", headers=says("5000", "é" * 60)).wait_answered().wait_ended(10)
    assert [r.caller for r in bench.server.requests()] == ["5000"]


def test_the_tail_of_a_code(hostile: Bench) -> None:
    """*31 and something hostile: refused and told, and nobody's request is taken back."""
    bench = hostile
    talk = bench.busy_and_asked()
    tails = [
        "2000\nagi_arg_2: x",
        "2000\n",
        "2000'",
        '2000"',
        "2000)",
        "20${EXTEN}",
        "20$[1]",
        slipping("2000"),
        slipping("2000\nx"),
        "2" * 60,
        "2" + "x" * 4000,
    ]
    faults = []
    for tail in tails:
        for who in ("1000", "4000"):
            told = Told(bench)
            call = bench.phones[who].dial("x", user_raw="*31" + escaped(tail))
            fault = told.fault(f"PJSIP/{who}-")
            if fault and call.status not in (
                404,
                414,
            ):  # those Asterisk itself would not have
                faults.append(f"{who}: *31{tail[:60]!r}: {fault}")
            call.hangup()
    assert [(r.caller, r.callee) for r in bench.server.requests()] == [("1000", "2000")]
    talk.hangup()
    bench.recalled()
    assert not faults, same(faults)


def test_four_kilobytes(hostile: Bench) -> None:
    """In From, in the request-URI: no crash, and nobody becomes somebody else."""
    bench = hostile
    phone = nameless(bench)
    for user in ("4" * 4000, "4" + "\n" * 4000, "4\n" + "agi_arg_1: 3000\n" * 200):
        with suppress(PhoneError):
            phone.dial("2000", headers=says(user)).wait_ended(1)
        with suppress(PhoneError):
            phone.dial("x", user_raw=escaped("9" + user)).wait_ended(1)
    assert {row[:3] for row in stored(bench)} <= {("5000", "2000", "phones")}
    assert not pwned(bench)
    phone.close(abruptly=True)
    serves(bench)


CONTACTS = [
    "x,5,b(admin%5Es%5E1)",
    "x,5,G(admin%5Es%5E1)",
    "x%2C5%2Cb(admin%5Es%5E1)",
    "x&PJSIP/4000/sip:4000",
    "x%26Local%2Fs%40admin%26PJSIP%2F4000",
    "x;y",
    "1000(",
    "1000'",
]


def test_what_a_phone_registers(hostile: Bench) -> None:
    """A contact reaches the recall's Dial(): it can ring nobody else and set no option, and is rung itself."""
    bench = hostile
    bench.phones.pop("1000").close()
    faults = []
    for user in CONTACTS:
        phone = bench.another("1000")
        phone.uri = f"sip:{user}@{phone.host}:{phone.port}"
        with suppress(PhoneError):
            phone.register()
        if not phone.registered:
            phone.close()
            continue
        assert agi(bench, environment(*failed_call()))
        agi(bench, environment("request"))
        try:
            call = phone.expect_call(2)
            if not call.from_name.endswith("(callback)"):
                faults.append(f"{user}: {call.invite.start}")
            call.reject()
        except PhoneTimeout:
            faults.append(f"{user}: its own recall did not come")
        agi(bench, environment("cancel"))
        bench.until(lambda: not bench.server.requests(), "the request is gone")
        phone.close()
    assert bench.site_lines("admin-reached") == []
    bench.quiet("4000", 0)
    assert not faults, same(faults)


def test_what_is_in_a_call_file(hostile: Bench) -> None:
    """Names of ours and nothing else, whoever asked, for whomever."""
    bench = hostile
    phone = nameless(bench)
    who = says("40'&;Application=x", "; ${X}")
    talk = bench.talk("2000", "3000")
    phone.dial("2000", headers=who).wait_status(486)
    phone.dial("*30", headers=who).wait_answered().wait_ended(10)
    talk.hangup()
    phone.expect_call()
    files = {path.name: path.read_text() for path in bench.asterisk.spool.glob("*.call")}
    kinds = []
    for name, text in files.items():
        found = re.fullmatch(r"fastagi-(recall|poll)-([0-9]{15})\.call", name)
        assert found, name
        kind, id = found.groups()
        kinds.append(kind)
        local = f"{id}@cc-recall" if kind == "recall" else "idle@cc-poll"
        context = "cc-call" if kind == "recall" else "cc-poll"
        wait = r"WaitTime: [0-9]+\n" if kind == "recall" else ""
        pattern = rf"Channel: Local/{local}/n\nContext: {context}\nExtension: {id}\nPriority: 1\nMaxRetries: 0\n{wait}"
        assert re.match(pattern, text), text
        assert not re.search("Application|Setvar|Data|CallerID", text)
    assert "recall" in kinds


# -- the AGI port, which every local user can open


def test_forged_environments(bench: Bench) -> None:
    """What Asterisk never sends is refused, and told in one line that names the channel or the peer."""
    record = environment(*failed_call())
    serial = iter(range(1000))
    channel = "PJSIP/1000-0000dead"
    at = record.index("agi_calleridname: Alice")
    forged: dict[str, list[str]] = {
        "a key twice": [*record[:-1], "agi_channel: PJSIP/3000-00000001", ""],
        "an argument twice": [*record[:at], "agi_arg_9: admin", *record[at:]],
        "an argument before the rest": [*record[:at], "agi_arg_10: x", *record[at:]],
        "a context before the true one": [
            *record[:at],
            "agi_context: admin",
            *record[at:],
        ],
        "a key that there is not": [*record[:at], "agi_evil: 1", *record[at:]],
        "an early end": [
            *record[:at],
            "agi_context: x",
            "agi_arg_1: 2000",
            "agi_arg_2: BUSY",
            "",
        ],
        "bytes after the end": [*record, "200 result=1"],
        "no key": [*record[:at], "evil", *record[at:]],
        "a long line": [*record[:-1], "agi_evil: " + "x" * 9000, ""],
        "many lines": [*record[:-1], *(f"agi_evil{n}: x" for n in range(200)), ""],
        "NUL": environment("record", "20\0", *failed_call()[2:]),
        "CR": environment("record", "2000\r", *failed_call()[2:]),
        "a quote": environment("record", "2000' OR 1=1", *failed_call()[2:]),
        "4 KB": environment("record", "2" * 4000, *failed_call()[2:]),
        "not UTF-8": environment("record", "2000\udcff", *failed_call()[2:]),
        "a status": environment("record", "2000", "BUSY\x1b[2J", *failed_call()[3:]),
        "a cause": environment("record", "2000", "BUSY", "17; rm", *failed_call()[4:]),
        "a context": environment(*failed_call(context="admin,s,1)")),
        "a uniqueid": environment(*failed_call(), uniqueid="x y"),
        "no script of ours": environment("../" + "x" * 3000),
        "a device in an extension": environment("request", "2000&PJSIP/3000"),
        "a remote": [
            *environment("request", "'")[:-1],
            "agi_remote: 2026-01-01 request 1: x" + "x" * 4000,
            "",
        ],
        "a channel": environment(*failed_call(), channel=channel + "\x1b[2J" + "x" * 3000),
        "no phone": environment(*failed_call(), channel="SIP/0000dead"),
        "a trunk": environment(*failed_call(), channel="PJSIP/trunk-0000dead"),
        "no channel": environment(*failed_call(), channel=""),
    }
    faults = []
    for what, lines in forged.items():
        told = Told(bench)
        lines = [line.replace("x-1.1", f"x-1.{next(serial)}") for line in lines]
        heard = agi(bench, lines)
        if 'CC_OFFERED "1"' in heard or "CC_OFFERED 1" in heard:
            faults.append(f"{what}: was offered: {stored(bench)[-1]}")
        fault = told.fault("0000dead")
        if fault and "127.0.0.1" not in fault:  # the peer will do where there is no channel
            faults.append(f"{what}: {fault}")
    assert not faults, same(faults)
    assert stored(bench) == []
    serves(bench)


def test_no_call_in_another_context(hostile: Bench) -> None:
    """Whatever context is told to the server, the call after the recall starts where the phone's calls do."""
    bench = hostile
    assert "CC_OFFERED 1" in agi(bench, environment(*failed_call(context="admin"))).replace('"', "")
    agi(bench, environment("request"))
    bench.phones["2000"].answer = "ring"
    recall = bench.recalled()
    recall.answer().wait_answered()
    with suppress(PhoneError):
        bench.phones["2000"].expect_call(1)
    assert bench.site_lines("admin-reached") == []


def test_guessed_ids(bench: Bench) -> None:
    """A recall and the poll session belong to who knows their ids; a wrong one changes nothing."""
    talk = bench.busy_and_asked()
    [before] = bench.server.requests()
    bench.server.wait_log("poll session open")
    guess = "123456789012345"
    faults = []
    for script in ("recall", "recallfailed", "answered", "completed"):
        for channel in (
            f"Local/{guess}@cc-recall-00000001;1",
            f"Local/{guess}@cc-note-00000001;2",
        ):
            told = Told(bench)
            heard = agi(bench, environment(script, guess, "ANSWER", "16", channel=channel)).replace('"', "")
            assert "CC_GO 1" not in heard and "PJSIP" not in heard
            if fault := told.fault(guess):
                faults.append(f"{script} on {channel}: {fault}")
    for argument in (guess, "", "\0", "x" * 4000):
        told = Told(bench)
        heard = agi(
            bench,
            environment("poll", argument, channel="Local/idle@cc-poll-00000001;1"),
        )
        assert "DEVICE_STATE" not in heard
        if fault := told.fault("Local/idle@cc-poll"):
            faults.append(f"poll {argument[:20]!r}: {fault}")
    assert bench.server.requests() == [before]
    talk.hangup()
    bench.recalled()
    assert not faults, same(faults)


def test_what_is_somebody_elses(hostile: Bench) -> None:
    """Nobody counts, learns, takes back or displaces what others have asked for."""
    bench = hostile
    talk = bench.busy_and_asked()
    assert bench.asks("4000", "*32") == "0/"
    assert bench.asks("4000", "*31") == "FAIL/NO_CORE_INSTANCE"
    assert bench.asks("4000", "*312000") == "FAIL/NO_CORE_INSTANCE"
    # The id of a call can be guessed. Who was quicker with it must not have the caller's offer.
    guessed = f"lab-{int(time.time())}.999"
    first = agi(
        bench,
        environment(*failed_call(), channel="PJSIP/4000-0000dead", uniqueid=guessed),
    )
    assert "CC_OFFERED" in first
    agi(
        bench,
        environment(*failed_call(), channel="PJSIP/3000-0000dead", uniqueid=guessed),
    )
    assert (
        agi(bench, environment("request", channel="PJSIP/3000-0000dead")).replace('"', "").count("SUCCESS")
        == 1
    )
    assert sorted(r.caller for r in bench.server.requests()) == ["1000", "3000"]
    talk.hangup()


def test_thousands_of_offers(hostile: Bench) -> None:
    """One caller's calls push out his own offers, nobody else's."""
    bench = hostile
    bench.meets_busy("3000", "2000")
    for n in range(1500):
        heard = agi(bench, environment(*failed_call(str(6000 + n)), uniqueid=f"x-{n}.1"))
        assert "CC_OFFERED" in heard
    callers = [row[0] for row in stored(bench)]
    assert callers.count("1000") <= 20 and callers.count("3000") == 1
    assert bench.asks("3000") == "SUCCESS/"


def test_connections_that_say_nothing(bench: Bench) -> None:
    """Thousands at once, and one that says a byte now and then: calls go on, and it is over in seconds."""
    lines = len(bench.server.log_lines())
    with ExitStack() as opened:
        slow = opened.enter_context(socket.create_connection(("127.0.0.1", bench.port), 5))
        for _ in range(2500):
            with suppress(OSError):
                opened.enter_context(socket.create_connection(("127.0.0.1", bench.port), 2))
        began = time.monotonic()
        bench.phones["2000"].answer = "busy"
        bench.phones["1000"].dial("2000").wait_status(486)
        assert time.monotonic() - began < 2.5
        with pytest.raises(OSError):
            while time.monotonic() - began < 15:
                slow.sendall(b"a")
                time.sleep(0.3)
        assert time.monotonic() - began < 7
        serves(bench)
    assert len(bench.server.log_lines()) - lines < 20


def test_who_may_open_what(bench: Bench) -> None:
    """The control socket is its owner's alone, and the database is nobody's whom it does not concern."""
    assert stat.S_IMODE(bench.server.control.stat().st_mode) == 0o600
    for path in bench.server.folder.glob("fastagi.db*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path.name
