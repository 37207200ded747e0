"""The control socket: how ``fastagi cancel`` reaches the running server.

A UNIX socket that only its owner may open (0600). One line of JSON asks, one line of JSON answers.
"""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver

from fastagi.completion.model import Request
from fastagi.completion.service import CompletionService
from fastagi.errors import FastagiError, Refused

TIMEOUT = 10.0


class ControlError(FastagiError):
    """The running server cannot be reached."""


class _Control(LineReceiver):
    transport: Any
    delimiter = b"\n"
    MAX_LENGTH = 1000

    def __init__(self, service: CompletionService) -> None:
        self._service = service

    def lineReceived(self, line: bytes) -> None:
        try:
            asked = json.loads(line)
            id = asked["cancel"]
            if type(id) is not int:
                raise ValueError("the id is no whole number")
        except (ValueError, KeyError, TypeError) as error:
            self._answer({"ok": False, "reason": "INVALID", "sentence": f"not understood: {error}"})
        else:
            self._service.cancel_id(id, self._cancelled)

    def _cancelled(self, answer: object) -> None:
        if isinstance(answer, Refused):
            self._answer({"ok": False, "reason": answer.reason, "sentence": str(answer)})
        else:
            assert isinstance(answer, Request)
            sentence = f"request {answer.id} of {answer.caller} for {answer.callee} is taken back"
            self._answer({"ok": True, "reason": answer.reason, "sentence": sentence})

    def _answer(self, values: dict[str, Any]) -> None:
        if self.transport is not None:
            self.transport.write(json.dumps(values).encode() + b"\n")
            self.transport.loseConnection()


def listen(reactor: Any, path: Path, service: CompletionService) -> Callable[[], object]:
    """Serve the control socket at ``path``; answers what stops it again. Raises `ControlError`."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            path.unlink()  # of a server that is gone: a living one holds the database's lock
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ControlError(f"the control socket {path} cannot be made: {error}") from error
    factory = Factory.forProtocol(lambda: _Control(service))
    old = os.umask(0o177)  # so that there is no moment at which others may open it
    try:
        port = reactor.listenUNIX(str(path), factory, mode=0o600)
    except Exception as error:
        raise ControlError(f"the control socket {path} cannot be made: {error}") from error
    finally:
        os.umask(old)
    stop: Callable[[], object] = port.stopListening
    return stop


def cancel(path: Path, id: int) -> dict[str, Any]:
    """Ask the running server to take back request ``id``: its answer, ``{ok, reason, sentence}``."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(path))
            connection.sendall(json.dumps({"cancel": id}).encode() + b"\n")
            with connection.makefile("rb") as answer:
                values = json.loads(answer.readline(10_000))
    except FileNotFoundError:
        raise ControlError(f"no server is running: there is no control socket {path}") from None
    except ConnectionRefusedError:
        raise ControlError(f"no server is running: nobody answers at {path}") from None
    except PermissionError:
        raise ControlError(f"the control socket {path} is another user's: run this as Asterisk's user") from None
    except (OSError, ValueError) as error:
        raise ControlError(f"the server does not answer at {path}: {error}") from error
    return dict(values)
