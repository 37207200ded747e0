"""The control socket: a real one, with the rules behind it replaced by a list of what they were asked."""

from __future__ import annotations

import gc
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread

from fastagi import __version__, control
from fastagi.completion.model import Context, Device, Number, Request, Service, State
from fastagi.control import Answer, ControlError, NotRunning
from fastagi.errors import Refused
from fastagi.sip.probe import Report, Verdict

REQUEST = Request(
    id=17,
    caller=Number("1001"),
    caller_devices=(Device("PJSIP/1001"),),
    caller_context=Context("phones"),
    callee=Number("1002"),
    callee_devices=(Device("PJSIP/1002"),),
    service=Service.CCBS,
    state=State.QUEUED,
    why="was busy (BUSY, cause 17)",
)


REPORT = Report("mxone", "192.0.2.10:5060", 200, True, 481, Verdict.YES, 2, 1, "presence")


def probe(trunk: str, done: Callable[[object], None]) -> None:
    """Stands for the trunks: there are two, and the PBX beyond one of them is silent."""
    if trunk == "mxone":
        done(REPORT)
    elif trunk == "silent":
        done(replace(REPORT, trunk=trunk, options=None, subscribe=None, call_completion=Verdict.SILENT))
    else:
        done(Refused("NO_SUCH_TRUNK", f"the running server has no trunk {trunk}"))


class Rules:
    """Stands for the CompletionService: request 17 can be taken back, no other."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def cancel_id(self, id: int, done: Callable[[object], None]) -> None:
        self.asked.append(id)
        if id == 17:
            done(replace(REQUEST, state=State.ENDED, reason="CANCELLED"))
        else:
            done(Refused("NO_SUCH_REQUEST", f"there is no open request {id}"))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # shorter than tmp_path: a socket's path must be
        yield Path(folder) / "s"


@asynccontextmanager
async def listening(path: Path, rules: Rules | None = None) -> AsyncIterator[Rules]:
    rules = rules or Rules()
    stop = control.listen(reactor, path, cast(Any, rules), probe)
    try:
        yield rules
    finally:
        await maybeDeferred(stop)


def raw(path: Path, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(question)
        with connection.makefile("rb") as answer:
            return answer.read()


def in_thread(work: Callable[..., Any], *args: object) -> Deferred[Any]:
    """The command line blocks, and here shares a process with the server."""
    return deferToThread(work, *args)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_request_is_taken_back(path: Path) -> None:
    async with listening(path) as rules:
        answer = await in_thread(control.cancel, path, 17)
    assert answer == Answer(True, "CANCELLED", "request 17 of 1001 for 1002 is taken back")
    assert rules.asked == [17]


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_in_a_folder_too_deep_for_a_unix_address(path: Path) -> None:
    deep = path.parent / ("x" * 100) / "fastagi.sock"
    deep.parent.mkdir()
    async with listening(deep):
        assert stat.S_IMODE(deep.stat().st_mode) == 0o600
        answer = await in_thread(control.cancel, deep, 17)
    assert answer.ok
    assert not deep.exists()
    with pytest.raises(NotRunning, match=str(deep)):
        await in_thread(control.ping, deep)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_refusal_of_the_rules_is_handed_on(path: Path) -> None:
    async with listening(path):
        answer = await in_thread(control.cancel, path, 18)
    assert answer == Answer(False, "NO_SUCH_REQUEST", "there is no open request 18")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_ping_tells_the_version_and_asks_nothing_of_the_rules(path: Path) -> None:
    async with listening(path) as rules:
        answer = await in_thread(control.ping, path)
    assert answer == Answer(True, "RUNNING", f"fastagi {__version__} is running")
    assert rules.asked == []


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_what_a_probe_has_found_comes_in_sentences_and_in_full(path: Path) -> None:
    async with listening(path) as rules:
        found = await in_thread(control.probe, path, "mxone")
        silent = await in_thread(control.probe, path, "silent")
        unknown = await in_thread(control.probe, path, "other")
    assert found == Answer(True, "yes", "\n".join(REPORT.sentences()), REPORT.to_dict())
    assert (silent.ok, silent.reason, silent.report["options"]) == (False, "no answer", None)
    assert unknown == Answer(False, "NO_SUCH_TRUNK", "the running server has no trunk other")
    assert rules.asked == []


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_who_does_not_wait_for_a_probe_does_no_harm(path: Path) -> None:
    found: list[Callable[[object], None]] = []
    asked: Deferred[None] = Deferred()

    def slow(trunk: str, done: Callable[[object], None]) -> None:
        found.append(done)
        asked.callback(None)

    stop = control.listen(reactor, path, cast(Any, Rules()), slow)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"probe": "mxone"}\n')
            await asked
        assert (await in_thread(control.ping, path)).ok  # by now the server knows that he is gone
        found[0](REPORT)
        assert (await in_thread(control.ping, path)).ok
    finally:
        await maybeDeferred(stop)


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"cancel 17",
        b"17",
        b"[17]",
        b"{}",
        b'{"cancel": "17"}',
        b'{"cancel": true}',
        b'{"cancel": 17.0}',
        b'{"cancel": null}',
        b'{"ping": false}',
        b'{"probe": 17}',
        b'{"probe": null}',
        b"\xff\xfe",
        b"[" * 990,
        b'{"cancel": ' + b"9" * 900,
    ],
)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_what_is_no_question_is_answered_so(path: Path, question: bytes) -> None:
    async with listening(path) as rules:
        answer = await in_thread(raw, path, question + b"\n")
    assert json.loads(answer) == {"ok": False, "reason": "INVALID", "sentence": "not understood"}
    assert rules.asked == []


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_line_without_an_end_is_cut_off(path: Path) -> None:
    async with listening(path) as rules:
        assert await in_thread(raw, path, b"x" * 2000) == b""
        assert (await in_thread(control.ping, path)).ok
    assert rules.asked == []


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_who_says_nothing_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.01)
    async with listening(path):
        assert await in_thread(raw, path, b"") == b""


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_only_its_owner_may_open_the_socket_and_it_is_gone_afterwards(path: Path) -> None:
    async with listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_process_keeps_its_umask(path: Path) -> None:
    old = os.umask(0o027)
    try:
        async with listening(path):
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_socket_of_a_server_that_died_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunning, match=f"^no server is running: nobody answers at {path}$"):
        control.ping(path)
    async with listening(path):
        assert (await in_thread(control.ping, path)).ok


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_something_else_in_its_place_is_left_as_it_is(path: Path, kind: str) -> None:
    other = path.with_name("other")
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)
        with socket.socket(socket.AF_UNIX) as mine:
            mine.bind(str(other))
    before = path.lstat()
    with pytest.raises(ControlError) as caught:
        control.listen(reactor, path, cast(Any, Rules()), probe)
    assert str(caught.value) == (
        f"the control socket {path} cannot be made: there is something else in its place"
    )
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "parent, why", [("nowhere", "No such file or directory"), ("file", "Not a directory")]
)
def test_without_its_folder_it_cannot_be_made(path: Path, parent: str, why: str) -> None:
    path.with_name("file").touch()
    place = path.with_name(parent) / "s"
    with pytest.raises(ControlError) as caught:
        control.listen(reactor, place, cast(Any, Rules()), probe)
    assert str(caught.value) == f"the control socket {place} cannot be made: {why}"
    del caught
    gc.collect()  # Twisted leaves the socket that it could not bind to the garbage collector


def test_without_a_socket_no_server_is_running(path: Path) -> None:
    with pytest.raises(NotRunning, match=f"^no server is running: there is no control socket {path}$"):
        control.cancel(path, 17)


def test_a_server_that_stays_silent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(ControlError, match=f"^the server does not answer at {path} within 0.01 s$"):
            control.cancel(path, 17)


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"[1]\n", b'{"ok": true}\n', b"null\n", b"\xff\n"])
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_another_server_behind_the_socket(path: Path, answer: bytes) -> None:
    def speak(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        other.settimeout(5)
        spoken = in_thread(speak, other)
        with pytest.raises(ControlError, match=f"^the server does not answer at {path} as it should: "):
            await in_thread(control.ping, path)
        await spoken


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_a_living_servers_socket_is_not_taken_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ping", lambda path: Answer(True, "RUNNING", "fastagi is running"))
    async with listening(path) as rules:
        with pytest.raises(ControlError, match="another server's: fastagi is running"):
            control.listen(reactor, path, cast(Any, rules), probe)
        assert path.exists()
