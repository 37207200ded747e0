"""The control socket: how ``cancel``, ``trunk probe`` and ``check`` reach the running server.

A UNIX socket that only its owner may open (0600). One line of JSON asks, ``{"cancel": 17}``,
``{"probe": "mxone"}`` or ``{"ping": true}``; one line of JSON answers, ``{"ok": ..., "reason": ...,
"sentence": ...}``, and, of what was probed, ``"report"``.
"""

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin

from fastagi import __version__
from fastagi.completion.model import Request
from fastagi.completion.service import CompletionService
from fastagi.errors import FastagiError, Refused
from fastagi.sip.probe import Report

LONGEST = 107  # unix(7): sun_path has 108 bytes, the last one is NUL
TIMEOUT = 10.0
"""Seconds: to us for a question, to the server for its answer."""

Probe = Callable[[str, Callable[[object], None]], None]
"""Asks the PBX beyond the trunk of that name, and answers a `Report`, or the `Refused` that says why not."""


class ControlError(FastagiError):
    """The control socket cannot be made, or the server behind it does not answer."""


class NotRunning(ControlError):
    """There is no server behind the control socket."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says: ``reason`` for programs, ``sentence`` for people; ``report``: all of it, of a probe."""

    ok: bool
    reason: str
    sentence: str
    report: dict[str, Any] | None = None


class _Control(LineReceiver, TimeoutMixin):
    transport: Any
    setTimeout: Any
    delimiter = b"\n"
    MAX_LENGTH = 1000

    def __init__(self, service: CompletionService, probe: Probe) -> None:
        self._service = service
        self._probe = probe

    def connectionMade(self) -> None:
        self.setTimeout(TIMEOUT)

    def connectionLost(self, reason: object = None) -> None:
        self.setTimeout(None)

    def lineReceived(self, line: bytes) -> None:
        self.setTimeout(None)
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            asked = None
        match asked:
            case {"cancel": int(id)} if not isinstance(id, bool):
                self._service.cancel_id(id, self._cancelled)
            case {"probe": str(trunk)}:
                self._probe(trunk, self._probed)
            case {"ping": True}:
                self._answer(Answer(True, "RUNNING", f"fastagi {__version__} is running"))
            case _:
                self._answer(Answer(False, "INVALID", "not understood"))

    def _cancelled(self, answer: object) -> None:
        if isinstance(answer, Refused):
            self._answer(Answer(False, answer.reason, str(answer)))
        else:
            assert isinstance(answer, Request)
            sentence = f"request {answer.id} of {answer.caller} for {answer.callee} is taken back"
            self._answer(Answer(True, answer.reason, sentence))

    def _probed(self, answer: object) -> None:
        if isinstance(answer, Refused):
            self._answer(Answer(False, answer.reason, str(answer)))
        else:
            assert isinstance(answer, Report)
            sentences, verdict = "\n".join(answer.sentences()), answer.call_completion
            self._answer(Answer(answer.ok, verdict, sentences, answer.to_dict()))

    def _answer(self, answer: Answer) -> None:
        said = {name: value for name, value in asdict(answer).items() if value is not None}
        self.transport.write(json.dumps(said).encode() + b"\n")
        self.transport.loseConnection()


def listen(reactor: Any, path: Path, service: CompletionService, probe: Probe) -> Callable[[], object]:
    """Serve the control socket at ``path``; answers what stops it again. Raises `ControlError`."""
    factory = Factory.forProtocol(lambda: _Control(service, probe))
    factory.noisy = False
    old = os.umask(0o177)  # so that there is no moment at which others may open it
    try:
        if is_socket(path):
            try:
                answer = ping(path)
            except NotRunning:
                path.unlink()  # of a server that is gone
            else:
                raise ControlError(f"the control socket {path} is another server's: {answer.sentence}")
        stack = ExitStack()
        port = reactor.listenUNIX(stack.enter_context(_address(path)), factory, mode=0o600)
    except CannotListenError as error:
        raise ControlError(
            f"the control socket {path} cannot be made: {error.socketError.strerror}"
        ) from error
    except OSError as error:
        raise ControlError(f"the control socket {path} cannot be made: {error.strerror}") from error
    finally:
        os.umask(old)

    def stop() -> object:
        # The address must live as long as the port, which removes the socket at its end.
        return maybeDeferred(port.stopListening).addCallback(lambda _: stack.close())

    return stop


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """``path`` in the 107 bytes that unix(7) allows: a longer one is reached through its folder's descriptor."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_socket(path: Path) -> bool:
    """Whether there is a socket at ``path``; raises `ControlError` where something else is in its place."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"the control socket {path} cannot be made: there is something else in its place")
    return True


def cancel(path: Path, id: int) -> Answer:
    """Ask the running server to take back request ``id``; raises `ControlError`."""
    return _ask(path, {"cancel": id})


def probe(path: Path, trunk: str) -> Answer:
    """Have the running server ask the PBX beyond this trunk; its sentences are lines. Raises `ControlError`."""
    return _ask(path, {"probe": trunk})


def ping(path: Path) -> Answer:
    """Ask whether a server is running; raises `NotRunning` if none is, and `ControlError` if it is silent."""
    return _ask(path, {"ping": True})


def _ask(path: Path, question: dict[str, object]) -> Answer:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            with _address(path) as address:
                connection.connect(address)
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as answer:
                values = json.loads(answer.readline(10_000))
        words, report = (str(values["reason"]), str(values["sentence"])), values.get("report")
        return Answer(bool(values["ok"]), *words, report if isinstance(report, dict) else None)
    except FileNotFoundError:
        raise NotRunning(f"no server is running: there is no control socket {path}") from None
    except ConnectionRefusedError:
        raise NotRunning(f"no server is running: nobody answers at {path}") from None
    except PermissionError:
        raise ControlError(
            f"the control socket {path} is another user's: run this as Asterisk's user"
        ) from None
    except TimeoutError:
        raise ControlError(f"the server does not answer at {path} within {TIMEOUT:g} s") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ControlError(f"the server does not answer at {path} as it should: {error!r}") from error
