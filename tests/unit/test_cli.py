"""The command line, against real databases; ``serve`` as the process it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastagi import __version__, cli
from fastagi.check import user_name
from fastagi.completion.model import Context, Device, Number, Request, Service, State
from fastagi.completion.ports import Changes, LogEntry
from fastagi.store.requests import Store

NOW = datetime(2026, 7, 29, 14, 15, tzinfo=timezone(timedelta(hours=2))).timestamp()
NOBODY = 65534
EXTENSIONS = """
extensions:
  "1001": {name: Alice}
  "1002": {name: Bob}
"""


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Summer time there is two hours ahead."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "time", SimpleNamespace(time=lambda: NOW))


def finished(command: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return ended.returncode, ended.stdout, ended.stderr


class Site:
    """A machine with fastagi: a spool, a database, a configuration; and what its command line says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool, self.temp, self.state = folder / "outgoing", folder / "tmp", folder / "state"
        for each in (self.spool, self.temp, self.state):
            each.mkdir()
        self.store = self.state / "fastagi.db"
        self.control = self.state / "fastagi.sock"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = folder / "fastagi.yaml"
        self.configure(EXTENSIONS)

    def configure(self, more: str = "", **changed: object) -> None:
        place = {"listen": f"127.0.0.1:{self.port}", "control": self.control, "store": self.store}
        place |= {"spool": self.spool, "temp": self.temp} | changed
        self.config.write_text(
            "fastagi: {{listen: '{listen}', control: {control}}}\n"
            "asterisk: {{spool: {spool}, temp: {temp}}}\n"
            "store: {store}\n".format(**place)
            + more
        )

    def save(self, *requests: Request, log: list[LogEntry] | None = None) -> None:
        store = Store(self.store, lambda call, *args: call(*args))
        errors: list[Exception | None] = []
        store.commit(Changes(requests={r.id: r for r in requests}, log=log or []), errors.append)
        store.close()
        assert errors == [None]

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(cli.main, [*words, "--config", str(self.config)])

    def lines(self, *words: str) -> list[str]:
        """What it prints, when all is well."""
        result = self.run(*words)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout.splitlines()

    def json(self, *words: str) -> Any:
        result = self.run(*words, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        return json.loads(result.stdout)

    def fault(self, *words: str) -> list[str]:
        """What it prints to stderr, when it fails."""
        result = self.run(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        return result.stderr.splitlines()

    def serve(self) -> tuple[int, str, str]:
        """What comes of ``fastagi serve`` when it does not start: exit code, stdout, stderr."""
        return finished(self.command("serve"))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "fastagi", *words, "--config", str(self.config)]

    def findings(self) -> dict[str, tuple[str, str]]:
        found = json.loads(self.run("check", "--json").stdout)
        assert len({f["check"] for f in found}) == len(found)
        return {f["check"]: (f["result"], f["sentence"]) for f in found}


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:  # shorter than tmp_path: a socket's path must be
        yield Site(Path(folder))


def request(id: int, **values: Any) -> Request:
    """1001's request for 1002, who was busy five minutes ago."""
    start = Request(
        id=id,
        caller=Number("1001"),
        caller_devices=(Device("PJSIP/1001"),),
        caller_context=Context("phones"),
        callee=Number("1002"),
        callee_devices=(Device("PJSIP/1002"),),
        service=Service.CCBS,
        state=State.QUEUED,
        why="was busy (BUSY, cause 17)",
        asked_at=NOW - 300,
        service_ends=NOW + 4500,
    )
    return replace(start, **values)


def ended(id: int, ago: float, **values: Any) -> Request:
    end = {"state": State.ENDED, "reason": "CANCELLED", "ended_at": NOW - ago, "asked_at": NOW - ago - 600}
    return request(id, **end | values)


# list


def test_list_tells_nothing_in_a_sentence(site: Site) -> None:
    site.save(ended(1, ago=60))
    assert site.lines("list") == ["Nobody waits to be called back."]
    assert site.json("list") == []


@pytest.mark.usefixtures("at_now")
def test_list_shows_what_each_request_waits_for(site: Site) -> None:
    site.save(
        request(7),
        request(8, caller=Number("1003"), asked_at=NOW - 240, suspended=True),
        request(9, service=Service.CCNR, sign_needed=True, asked_at=NOW - 59, service_ends=NOW + 7141),
        request(10, callee=Number("1004"), asked_at=NOW - 45, retry_at=NOW + 12, recalls=1),
        request(11, callee=Number("1005"), state=State.READY, recall_id="1" * 15, asked_at=NOW - 2),
        request(112, asked_at=NOW, state=State.CALLING, recalls=12, retry_at=NOW - 1),
        ended(3, ago=60),
    )
    assert site.lines("list") == [
        " ID  CALLER      CALLEE    SERVICE  ASKED          UNTIL  RECALLS  STATE",
        "  7  1001 Alice  1002 Bob  CCBS     14:10 (5 min)  15:30        0  QUEUED",
        "  8  1003        1002 Bob  CCBS     14:11 (4 min)  15:30        0  QUEUED, passed over",
        "  9  1001 Alice  1002 Bob  CCNR     14:14 (59 s)   16:14        0  QUEUED, waits for a sign of life",
        " 10  1001 Alice  1004      CCBS     14:14 (45 s)   15:30        1  QUEUED, again in 12 s",
        " 11  1001 Alice  1005      CCBS     14:14 (2 s)    15:30        0  READY",
        "112  1001 Alice  1002 Bob  CCBS     14:15 (0 s)    15:30       12  CALLING",
    ]


@pytest.mark.usefixtures("at_now")
def test_a_request_can_wait_for_two_things(site: Site) -> None:
    site.save(request(7, suspended=True, sign_needed=True, retry_at=NOW + 90))
    line = site.lines("list")[1]
    assert line.endswith("  QUEUED, passed over, waits for a sign of life, again in 1 min")


@pytest.mark.usefixtures("at_now")
def test_another_day_has_its_date(site: Site) -> None:
    site.save(request(7, asked_at=NOW - 90_000, service_ends=NOW + 100_000))
    assert "2026-07-28 13:15 (1 d 1 h)  2026-07-30 18:01" in site.lines("list")[1]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (-5, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599, "59 min"),
        (3600, "1 h 0 min"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_span_in_words(seconds: float, text: str) -> None:
    assert cli._span(seconds) == text


@pytest.mark.usefixtures("at_now")
def test_in_a_wide_table_the_names_give_way_and_the_numbers_do_not(site: Site) -> None:
    site.configure(
        'extensions:\n  "1001": {name: The reception of the second floor at the back}\n  "1002": {name: Bob}\n'
    )
    site.save(request(7, callee=Number("0049891234567890")))
    head, line = site.lines("list")
    assert line.startswith(" 7  1001 The reception of the se…  0049891234567890  CCBS  ")
    assert len(line) <= 100
    assert head.index("CALLEE") == line.index("0049891234567890")


@pytest.mark.usefixtures("at_now")
def test_columns_stay_aligned_after_a_name_of_wide_letters(site: Site) -> None:
    site.configure('extensions:\n  "1001": {name: 受付}\n  "1002": {name: "Bo\\u0301b"}\n')
    site.save(request(7))
    head, line = site.lines("list")
    assert head == "ID  CALLER     CALLEE    SERVICE  ASKED          UNTIL  RECALLS  STATE"
    assert line == " 7  1001 受付  1002 Bo\u0301b  CCBS     14:10 (5 min)  15:30        0  QUEUED"


def test_list_as_json_has_the_names_of_the_model(site: Site) -> None:
    site.save(request(7, asked_at=NOW - 0.25, recalls=1))
    (listed,) = site.json("list")
    assert listed == {
        "id": 7,
        "caller": "1001",
        "caller_devices": ["PJSIP/1001"],
        "caller_context": "phones",
        "callee": "1002",
        "callee_devices": ["PJSIP/1002"],
        "service": "CCBS",
        "state": "QUEUED",
        "why": "was busy (BUSY, cause 17)",
        "asked_at": "2026-07-29T14:14:59.750+02:00",
        "service_ends": "2026-07-29T15:30:00.000+02:00",
        "suspended": False,
        "sign_needed": False,
        "idle_after": None,
        "retry_at": None,
        "recalls": 1,
        "recall_id": "",
        "taken": False,
        "channel": "",
        "recall_ends": None,
        "ended_at": None,
        "reason": "",
        "agent": "",
        "monitor": "",
    }
    assert list(listed) == [field.name for field in fields(Request)]


# show


LOG = [
    LogEntry(7, NOW - 300, State.OFFERED, State.QUEUED, "1001 asked to be called back by 1002"),
    LogEntry(7, NOW - 20, State.QUEUED, State.QUEUED, "1002 is free, but 1001 himself is not"),
    LogEntry(8, NOW - 10, State.OFFERED, State.QUEUED, "another request"),
]


@pytest.mark.usefixtures("at_now")
def test_show_tells_all_about_one_request(site: Site) -> None:
    devices = (Device("PJSIP/1002"), Device("PJSIP/1002-dect"))
    site.save(request(7, suspended=True, callee_devices=devices), request(8), log=LOG)
    assert site.lines("show", "7") == [
        "id              7",
        "caller          1001 Alice",
        "caller_devices  PJSIP/1001",
        "caller_context  phones",
        "callee          1002 Bob",
        "callee_devices  PJSIP/1002&PJSIP/1002-dect",
        "service         CCBS",
        "state           QUEUED",
        "why             was busy (BUSY, cause 17)",
        "asked_at        2026-07-29 14:10:00 (5 min ago)",
        "service_ends    2026-07-29 15:30:00 (in 1 h 15 min)",
        "suspended       yes",
        "sign_needed     no",
        "idle_after      -",
        "retry_at        -",
        "recalls         0",
        "recall_id       -",
        "taken           no",
        "channel         -",
        "recall_ends     -",
        "ended_at        -",
        "reason          -",
        "agent           -",
        "monitor         -",
        "",
        "TIME                 CHANGE             WHY",
        "2026-07-29 14:10:00  OFFERED -> QUEUED  1001 asked to be called back by 1002",
        "2026-07-29 14:14:40  QUEUED             1002 is free, but 1001 himself is not",
    ]


def test_show_as_json_is_one_object_with_its_log(site: Site) -> None:
    site.save(request(7), ended(8, ago=60), log=LOG)
    shown = site.json("show", "8")
    assert (shown["id"], shown["ended_at"], shown["reason"]) == (
        8,
        "2026-07-29T14:14:00.000+02:00",
        "CANCELLED",
    )
    assert shown["log"] == [
        {
            "request": 8,
            "at": "2026-07-29T14:14:50.000+02:00",
            "old": "OFFERED",
            "new": "QUEUED",
            "sentence": "another request",
        }
    ]


def test_show_of_one_that_is_over_leaves_out_what_says_nothing_any_more(site: Site) -> None:
    site.save(ended(8, ago=60, sign_needed=True, idle_after=NOW - 90, retry_at=NOW - 70, recall_id="1"))
    names = [line.partition(" ")[0] for line in site.lines("show", "8")]
    left = {"service_ends", "suspended", "sign_needed", "idle_after", "retry_at", "recall_ends"}
    assert left | {"recall_id", "taken", "channel"} == {f.name for f in fields(Request)} - set(names)


@pytest.mark.parametrize("id", ["8", str(2**63 - 1)])
def test_show_an_unknown_request(site: Site, id: str) -> None:
    site.save(request(7))
    assert site.fault("show", id) == [f"there is no request {id}: it never was, or it has left the history"]


@pytest.mark.parametrize("command", ["show", "cancel"])
@pytest.mark.parametrize("id", ["0", "x", str(2**63)])
def test_what_is_no_id_is_refused(site: Site, command: str, id: str) -> None:
    assert site.run(command, id).exit_code == 2


# history


@pytest.mark.usefixtures("at_now")
def test_history_shows_the_latest_first(site: Site) -> None:
    site.save(
        request(4),
        ended(1, ago=100_000, reason="TOO_MANY_RECALLS", recalls=3),
        ended(22, ago=60, state=State.COMPLETED, reason="COMPLETED", callee=Number("1005")),
        ended(3, ago=3600, reason="EXPIRED"),
    )
    assert site.lines("history") == [
        "ID  CALLER      CALLEE    SERVICE  ASKED             ENDED             RECALLS  OUTCOME",
        "22  1001 Alice  1005      CCBS     2026-07-29 14:04  2026-07-29 14:14        0  COMPLETED",
        " 3  1001 Alice  1002 Bob  CCBS     2026-07-29 13:05  2026-07-29 13:15        0  EXPIRED",
        " 1  1001 Alice  1002 Bob  CCBS     2026-07-28 10:18  2026-07-28 10:28        3  TOO_MANY_RECALLS",
    ]
    assert [r["id"] for r in site.json("history")] == [22, 3, 1]
    assert [r["id"] for r in site.json("history", "--limit", "2")] == [22, 3]
    assert len(site.lines("history", "--limit", "1")) == 2
    assert site.run("history", "--limit", "0").exit_code == 2


def test_history_of_nothing(site: Site) -> None:
    site.save(request(4))
    assert site.lines("history") == ["No request has ended yet."]
    assert site.json("history") == []


# what is common to them

EVERY = [
    ["list"],
    ["show", "7"],
    ["history"],
    ["cancel", "7"],
    ["trunk", "show"],
    ["trunk", "probe", "mxone"],
]

EVIL = "\x1b]0;owned\x07\x9b2J\u202e\r\n\x00"


@pytest.mark.usefixtures("at_now")
def test_no_control_character_reaches_the_terminal(site: Site) -> None:
    evil = {"caller": Number(EVIL), "callee": Number(EVIL), "why": EVIL, "channel": EVIL, "reason": EVIL}
    site.save(
        request(1, **evil, caller_context=Context(EVIL), recall_id=EVIL),
        ended(2, ago=1, **evil),
        log=[LogEntry(1, NOW, State.QUEUED, State.QUEUED, EVIL)],
    )
    for words in (["list"], ["history"], ["show", "1"]):
        for more in ([], ["--json"]):
            printed = site.run(*words, *more).stdout
            assert "owned" in printed
            assert [c for c in printed if not c.isprintable() and c != "\n"] == []
    assert len(site.lines("list")) == 2
    assert r"\x1b]0;owned\x07\x9b2J\u202e\r\n\x00" in site.lines("show", "1")[-1]


@pytest.mark.parametrize("words", [["list"], ["show", "7"], ["history"], ["trunk", "show"]])
def test_without_a_database(site: Site, words: list[str]) -> None:
    sentence = f"there is no database {site.store} yet: fastagi serve makes it at its first start"
    assert site.fault(*words) == [sentence]


@pytest.mark.parametrize("words", [*EVERY, ["serve"]])
def test_a_broken_configuration_is_told_with_all_its_faults(site: Site, words: list[str]) -> None:
    site.configure("listen: here\nallow: there\n")
    told = site.fault(*words)
    assert [line.split(" is not a key")[0] for line in told] == [
        "fastagi.yaml, line 4: listen",
        "fastagi.yaml, line 5: allow",
    ]


def test_cancel_without_a_server(site: Site) -> None:
    site.save(request(7))
    assert site.fault("cancel", "7") == [f"no server is running: there is no control socket {site.control}"]


def test_the_version() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"fastagi {__version__}\n")


def test_help_names_every_command() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "fastagi", "--help"], check=True, capture_output=True, text=True
    )
    commands = printed.stdout.partition("Commands:\n")[2]
    assert re.findall(r"^  (\w+)", commands, re.MULTILINE) == [
        "cancel",
        "check",
        "history",
        "list",
        "serve",
        "show",
        "trunk",
    ]


def test_a_reader_who_leaves_early_is_no_fault(site: Site) -> None:
    site.save(*(ended(n, ago=n) for n in range(1, 2001)))  # more than a pipe holds
    process = subprocess.Popen(site.command("history"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().split()[:2] == [b"ID", b"CALLER"]
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    process.wait(10)


@pytest.mark.usefixtures("at_now")
def test_a_terminal_without_the_letters(site: Site) -> None:
    site.configure('extensions:\n  "1001": {name: 受付}\n')
    site.save(request(7))
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    printed = subprocess.run(site.command("list"), check=True, capture_output=True, env=environment)
    assert b"1001 \\u53d7\\u4ed8" in printed.stdout


# check


def unprivileged(site: Site, *words: str) -> tuple[int, str, str]:
    """The command as a user whom file modes bind: where the tests run as root, as nobody.

    Its modules are loaded before, as nobody may not be allowed to read them.
    """
    program = (
        "import os, sys, encodings.utf_8_sig, encodings.idna\n"
        "import sqlite_utils.db, twisted.internet.reactor, fastagi.daemon\n"
        "from fastagi.cli import main\n"
        "if os.geteuid() == 0:\n"
        f"    os.setgroups([]), os.setresgid(*[{NOBODY}] * 3), os.setresuid(*[{NOBODY}] * 3)\n"
        "main(sys.argv[1:])\n"
    )
    return finished([sys.executable, "-c", program, *words, "--config", str(site.config)])


def give_to_nobody(site: Site) -> None:
    if os.geteuid() == 0:
        for path in (site.folder, *site.folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def hashes(folder: Path) -> dict[str, str]:
    """What is in its files. (Reading may add SQLite's ``-shm`` and ``-wal``, but must change nothing.)"""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_check_finds_all_well_and_changes_nothing(site: Site) -> None:
    site.save(request(7), ended(8, ago=60), ended(9, ago=60))
    before = hashes(site.folder)
    lines = site.lines("check")
    assert before.items() <= hashes(site.folder).items()
    assert [line.split()[0] for line in lines] == ["ok"] * 8
    me = user_name(os.geteuid())
    assert site.findings() == {
        "configuration": ("ok", f"{site.config} is in order"),
        "spool": ("ok", f"call files can be put into {site.spool}"),
        "temp": ("ok", f"call files can move from {site.temp} into the spool"),
        "store": ("ok", f"the database can be written in {site.state}"),
        "user": ("ok", f"the spool's owner is {me}, and this ran as {me}"),
        "database": ("ok", f"{site.store} can be read; requests: 1 open, 2 ended"),
        "control": ("ok", f"no server is running: there is no control socket {site.control}"),
        "port": ("ok", f"127.0.0.1:{site.port} is free"),
    }


def test_check_before_the_first_start(site: Site) -> None:
    assert site.findings()["database"] == (
        "ok",
        f"there is no {site.store} yet: the first fastagi serve makes it",
    )
    assert site.run("check").exit_code == 0
    assert not site.store.exists()


def test_check_tells_every_fault_of_the_configuration(site: Site) -> None:
    site.configure("listen: here\nallow: there\n")
    result = site.run("check")
    assert result.exit_code == 1
    assert [line[:43] for line in result.stdout.splitlines()] == [
        "fault  configuration  fastagi.yaml, line 4:",
        "fault  configuration  fastagi.yaml, line 5:",
    ]
    assert {f["result"] for f in json.loads(site.run("check", "--json").stdout)} == {"fault"}


def spool_missing(site: Site) -> str:
    site.spool.rmdir()
    no = "cannot be used: No such file or directory"
    return f"the folder {site.spool} {no}; asterisk / spool must be Asterisk's folder of outgoing calls"


def temp_missing(site: Site) -> str:
    site.temp.rmdir()
    no = "cannot be used: No such file or directory"
    return f"the folder {site.temp} {no}; asterisk / temp must be a folder on the spool's file system"


def spool_is_a_file(site: Site) -> str:
    site.spool.rmdir()
    site.spool.touch()
    no = "cannot be used: Not a directory"
    return f"the folder {site.spool} {no}; asterisk / spool must be Asterisk's folder of outgoing calls"


def store_without_a_folder(site: Site) -> str:
    site.configure(store=site.folder / "nowhere" / "fastagi.db")
    no = "cannot be used: No such file or directory"
    return f"the folder {site.folder / 'nowhere'} {no}; it is to hold the database fastagi.db"


def store_is_a_folder(site: Site) -> str:
    site.store.mkdir()
    return f"{site.store} is a folder: store must be the database's file"


def no_database(site: Site) -> str:
    site.store.write_text("some other file, which is not to be touched\n")
    return f"the database {site.store} cannot be used: file is not a database"


def newer_database(site: Site) -> str:
    site.save(request(7))
    connection = sqlite3.connect(site.store)
    values = "('fastagi', 'wings', '2030-01-01')"
    connection.execute(f"INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES {values}")
    connection.commit()
    connection.close()
    return (
        f"the database {site.store} was written by a newer version of fastagi (it has wings); "
        "it is left as it is: run that version, or name another file under store:"
    )


def control_is_a_file(site: Site) -> str:
    site.control.write_text("mine")
    return f"the control socket {site.control} cannot be made: there is something else in its place"


def foreign_address(site: Site) -> str:
    site.configure(listen=f"192.0.2.1:{site.port}")  # RFC 5737: nobody's
    return f"nobody can listen on 192.0.2.1:{site.port}: Cannot assign requested address"


FAULTS: list[tuple[str, Callable[[Site], str]]] = [
    ("spool", spool_missing),
    ("spool", spool_is_a_file),
    ("temp", temp_missing),
    ("store", store_without_a_folder),
    ("store", store_is_a_folder),
    ("database", no_database),
    ("database", newer_database),
    ("control", control_is_a_file),
    ("port", foreign_address),
]


@pytest.mark.parametrize("check, spoil", FAULTS)
def test_check_and_serve_tell_a_fault_in_the_same_sentence(
    site: Site, check: str, spoil: Callable[[Site], str]
) -> None:
    sentence = spoil(site)
    before = hashes(site.folder)
    assert site.findings()[check] == ("fault", sentence)
    assert site.run("check").exit_code == 1
    served = site.serve()
    assert served == (1, "", sentence + "\n")
    assert before.items() <= hashes(site.folder).items()


def test_check_and_serve_without_a_folder_for_the_control_socket(site: Site) -> None:
    nowhere = site.folder / "nowhere"
    site.configure(control=nowhere / "s")
    no = "cannot be used: No such file or directory"
    sentence = f"the folder {nowhere} {no}; it is to hold the control socket s"
    assert site.findings()["control"] == ("fault", sentence)
    served = site.serve()
    sentence = f"the control socket {nowhere / 's'} cannot be made: No such file or directory\n"
    assert served == (1, "", sentence)


def test_a_port_that_another_program_has(site: Site) -> None:
    with socket.create_server(("127.0.0.1", site.port)):
        sentence = f"nobody can listen on 127.0.0.1:{site.port}: Address already in use"
        assert site.findings()["port"] == ("fault", sentence)
        served = site.serve()
    assert served == (1, "", sentence + "\n")


def test_a_port_of_ipv6_that_another_program_has(site: Site) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        site.configure(listen=f"[::1]:{port}")
        assert site.findings()["port"] == (
            "fault",
            f"nobody can listen on ::1:{port}: Address already in use",
        )
    assert site.findings()["port"][0] == "ok"


def test_temp_on_another_file_system(site: Site) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == site.spool.stat().st_dev:
        pytest.skip("there is no second file system")
    site.configure(temp=other)
    with pytest.raises(OSError):
        (site.spool / "x").touch()
        (site.spool / "x").rename(other / site.folder.name)
    result, sentence = site.findings()["temp"]
    assert result == "fault"
    assert sentence.startswith(f"{other} and {site.spool} are on different file systems or mounts: ")


def test_temp_on_another_mount_of_the_same_file_system(site: Site) -> None:
    def mounted(*words: str) -> tuple[int, str, str]:
        script = 'mount --bind "$0" "$0" && exec "$@"'
        return finished(["unshare", "-m", "sh", "-c", script, str(site.temp), *words])

    if mounted("true")[0]:
        pytest.skip("nothing can be mounted here")
    (site.temp / "x").touch()
    move = f"import os; os.rename('{site.temp}/x', '{site.spool}/x')"
    assert "Invalid cross-device link" in mounted(sys.executable, "-c", move)[2]
    code, printed, _ = mounted(*site.command("check"))
    assert code == 1
    assert f"fault  temp           {site.temp} and {site.spool} are on different" in printed


def test_check_as_root_beside_another_users_spool(site: Site) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(site.spool, 4711, 4711)
    sentence = "this ran as root, who may do everything; the spool's owner is user 4711"
    sentence += ": run it, and fastagi serve, as user 4711"
    assert site.findings()["user"] == ("note", sentence)
    assert site.run("check").exit_code == 0


def test_check_as_a_user_who_is_not_asterisks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = user_name(os.geteuid())
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    sentence = f"this ran as user 4711, whose call files {owner} can use by their group alone"
    assert site.findings()["user"] == ("note", f"{sentence}: better run fastagi as {owner}")
    monkeypatch.setattr(os, "getegid", lambda: 4711)
    sentence = "this ran as user 4711, whose call files Asterisk cannot use"
    sentence += f"; the spool's owner is {owner}: run fastagi as {owner}"
    assert site.findings()["user"] == ("fault", sentence)
    assert site.run("check").exit_code == 1
    site.temp.chmod(0o2770)  # of our group, and so are the files in it
    assert site.findings()["user"][0] == "note"


@pytest.mark.parametrize(
    "check, place, rest",
    [
        ("spool", "outgoing", "; asterisk / spool must be Asterisk's folder of outgoing calls"),
        ("temp", "tmp", "; asterisk / temp must be a folder on the spool's file system"),
        ("store", "state", "; it is to hold the database fastagi.db"),
        ("store", "state/fastagi.db", "; change the owner"),
    ],
)
def test_check_and_serve_where_nothing_may_be_written(site: Site, check: str, place: str, rest: str) -> None:
    site.save(request(7))
    give_to_nobody(site)
    path = site.folder / place
    path.chmod(0o555 if path.is_dir() else 0o444)
    me = user_name(NOBODY if os.geteuid() == 0 else os.geteuid())
    what = f"the folder {path}" if path.is_dir() else str(path)
    sentence = f"{what} may not be written to by {me}{rest}"
    assert unprivileged(site, "serve") == (1, "", sentence + "\n")
    code, printed, errors = unprivileged(site, "check", "--json")
    assert (code, errors) == (1, "")
    assert {"check": check, "result": "fault", "sentence": sentence} in json.loads(printed)


@pytest.mark.parametrize("words", EVERY)
def test_another_user_is_told_to_be_asterisks(site: Site, words: list[str]) -> None:
    site.save(request(7))
    give_to_nobody(site)
    site.state.chmod(0)
    code, printed, errors = unprivileged(site, *words)
    assert (code, printed) == (1, "")
    assert errors.endswith(": run this as Asterisk's user\n")
    assert errors.count("\n") == 1


# serve


class Serving:
    """``fastagi serve`` of a site, from its first line until it has ended."""

    def __init__(self, site: Site) -> None:
        self._process = subprocess.Popen(
            site.command("serve"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """Its next line; ends the test's wait by the process' own end at the latest."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[str], str]:
        """Exit code, further lines, and what is on stderr."""
        self._process.send_signal(number)
        out, errors = self._process.communicate(timeout=15)
        return self._process.returncode, out.splitlines(), errors

    def close(self) -> None:
        """Nothing of it is left, whatever has become of it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def serving(site: Site) -> Iterator[Serving]:
    now = time.time()
    site.save(request(7, asked_at=now - 60, service_ends=now + 3600))
    process = Serving(site)
    yield process
    process.close()


STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+0[12]:00 "


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_logs_lines_with_their_time_until_it_is_stopped(
    site: Site, serving: Serving, number: signal.Signals
) -> None:
    first = serving.line()
    assert re.fullmatch(STAMP + f"fastagi answers on 127.0.0.1:{site.port}; open requests: 1\n", first)
    code, lines, errors = serving.end(number)
    assert (code, errors) == (0, "")
    assert re.fullmatch(STAMP + "fastagi has stopped", lines[-1])
    assert [line for line in lines if not re.match(STAMP, line)] == []
    assert not site.control.exists()


def test_cancel_takes_a_request_back_through_the_running_server(site: Site, serving: Serving) -> None:
    serving.line()
    assert site.lines("cancel", "7") == ["request 7 of 1001 for 1002 is taken back"]
    assert site.json("list") == []
    assert [(r["id"], r["reason"]) for r in site.json("history")] == [(7, "CANCELLED")]
    assert site.json("show", "7")["log"][-1]["sentence"] == "taken back by the operator"
    assert site.fault("cancel", "7") == ["there is no open request 7"]
    _, lines, _ = serving.end()
    assert any(line.endswith("request 7: QUEUED -> ENDED: taken back by the operator") for line in lines)


def test_check_beside_a_running_server(site: Site, serving: Serving) -> None:
    serving.line()
    running = f"fastagi {__version__} is running"
    findings = site.findings()
    assert findings["control"] == ("ok", f"{running}, and answers at {site.control}")
    assert findings["port"] == ("ok", f"127.0.0.1:{site.port} is in use by the running fastagi")
    assert site.run("check").exit_code == 0
    site.configure(listen=f"127.0.0.2:{site.port}")
    assert site.findings()["port"] == (
        "note",
        f"127.0.0.2:{site.port} is free, though {running}: start it again with this configuration",
    )


def test_a_second_server_on_the_same_database(site: Site, serving: Serving) -> None:
    serving.line()
    served = site.serve()
    sentence = f"the database {site.store} is in use by another fastagi serve\n"
    assert served == (1, "", sentence)
    assert site.lines("cancel", "7") == ["request 7 of 1001 for 1002 is taken back"]


# the log


def logged(capsys: pytest.CaptureFixture[str], log: Callable[[Any], None]) -> str:
    from twisted.logger import Logger

    for namespace in ("fastagi.daemon", "twisted.internet"):
        log(Logger(namespace=namespace, observer=cli._log_event))  # type: ignore[arg-type]
    return re.sub(STAMP, "", capsys.readouterr().out)


def test_of_twisteds_own_events_only_those_that_tell_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert logged(capsys, lambda log: log.info("news of {n}", n=log.namespace)) == "news of fastagi.daemon\n"
    assert logged(capsys, lambda it: it.warn("fault")) == "warn: fault\n" * 2


def test_a_line_stays_a_line_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    printed = logged(capsys, lambda log: log.info("{evil}", evil=EVIL))
    assert printed == "\\x1b]0;owned\\x07\\x9b2J\\u202e\\r\\n\\x00\n"


def test_a_fault_of_ours_has_its_traceback_indented(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(log: Any) -> None:
        try:
            raise ValueError("a\x1bb")
        except ValueError:
            log.failure("The script failed.")

    lines = logged(capsys, fail).splitlines()
    assert lines[0] == "critical: The script failed."
    assert "    builtins.ValueError: a\\x1bb" in lines
    assert all(line.startswith("    ") for line in lines if not line.startswith("critical: "))
