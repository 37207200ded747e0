"""The Asterisk Manager Interface as bytes: what is said to it, and what it says. No network, no clock.

Things to keep in mind: a caller can write events. Asterisk puts the number that he dials, and his own, into
its events as they come by SIP, line ends and all. An answer he cannot write: it is known by an ActionID that
nobody can guess.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from asterisk.manager import ManagerAuthException, ManagerException, ManagerSocketException

from fastagi.errors import FastagiError

MAX_SENT: Final = 1000
"""Bytes of a line to Asterisk, which refuses an action with a line of 1023."""
MAX_LINE: Final = 2**14
"""Bytes of a line; a message with a longer one is passed over."""
MAX_LINES: Final = 1000
"""Lines of a message; a longer one is passed over."""
MAX_MESSAGE: Final = 2**18
"""Bytes of a message; a longer one ends the connection."""
GREETING: Final = b"Asterisk Call Manager/"
MAX_GREETING: Final = 100

WANTED: Final = frozenset({b"DeviceStateChange", b"DeviceStateListComplete", b"ExtensionStatus"})
"""The events that are read; all others are passed over by their first line."""

Message = dict[str, str]
"""Its lines, in their order; of a key that comes twice the first counts. The first key says what it is."""


class AmiError(FastagiError, ManagerException):  # type: ignore[misc]  # pyst2 has no types
    """An action that failed, was refused or timed out."""


class AmiRefused(AmiError, ManagerAuthException):  # type: ignore[misc]
    """Asterisk does not let us in."""


class AmiDenied(AmiError):
    """Asterisk has answered that it does not do this."""


class AmiLost(AmiError, ManagerSocketException):  # type: ignore[misc]
    """There is no connection, or there is none any more."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where an Asterisk is, and who we are there (manager.conf)."""

    host: str
    port: int
    username: str
    secret: str = field(repr=False)
    tls: bool = False
    ca: Path | None = None
    """PEM certificates, one of which must have signed the server's; None: those that this machine trusts."""

    @property
    def local(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")

    @property
    def where(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Framer:
    """Bytes in, messages out: answers, and the events that are wanted."""

    def __init__(self) -> None:
        self.greeted = False
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises `AmiError` when this is no AMI, or has no end; nothing can be read after that."""
        # A message's end may be cut in two, anywhere.
        known = max(0, len(self._buffer) - 3)
        buffer = self._buffer + data
        if not self.greeted:
            known = 0
            buffer = self._without_greeting(buffer)
        start = 0
        while (end := buffer.find(b"\r\n\r\n", max(start, known))) >= 0:
            if _is_wanted(buffer, start):
                lines = buffer[start:end].split(b"\r\n")
                if len(lines) <= MAX_LINES and max(map(len, lines)) <= MAX_LINE:
                    yield _parse(lines)
            start = end + 4
        self._buffer = buffer[start:]
        if len(self._buffer) > MAX_MESSAGE:
            raise AmiError("sent a message without an end")

    def _without_greeting(self, buffer: bytes) -> bytes:
        line, end, rest = buffer.partition(b"\r\n")
        begins = line.startswith(GREETING) or (not end and GREETING.startswith(line))
        if not begins or len(line) > MAX_GREETING:
            raise AmiError(
                f"is no Asterisk Manager Interface: it says {shown(line.decode('ascii', 'replace'))!r}"
            )
        if not end:
            return buffer
        self.greeted = True
        return rest


def _is_wanted(buffer: bytes, start: int) -> bool:
    if buffer.startswith(b"Event: ", start):
        return buffer[start + 7 : buffer.find(b"\r\n", start)] in WANTED
    return buffer.startswith(b"Response: ", start)


def _parse(lines: list[bytes]) -> Message:
    found: Message = {}
    for line in lines:
        key, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            found.setdefault(key, value.removeprefix(" "))
    return found


def render(action: str, action_id: str, fields: Mapping[str, str]) -> bytes:
    """An action, ready to be sent. Raises `AmiError` for a value that could be read as anything else."""
    lines = {"Action": action, "ActionID": action_id, **fields}
    return b"".join(_line(action, key, value) for key, value in lines.items()) + b"\r\n"


def _line(action: str, key: str, value: str) -> bytes:
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise AmiError(f"{action} is not sent: {key} has a control character")
    # Asterisk would cut it off, and so read something else than what was looked at here.
    if value != value.strip(" "):
        raise AmiError(f"{action} is not sent: {key} begins or ends with a blank")
    try:
        line = f"{key}: {value}\r\n".encode()
    except UnicodeEncodeError:
        raise AmiError(f"{action} is not sent: {key} is no proper text") from None
    if len(line) > MAX_SENT:
        raise AmiError(f"{action} is not sent: {key} is too long")
    return line


def login_fields(login: Login, challenge: Message) -> dict[str, str]:
    """Of the action Login, after ``Challenge``. Only events of the class of device states are asked for."""
    words = challenge.get("Challenge", "") + login.secret
    key = hashlib.md5(words.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()
    return {"AuthType": "MD5", "Username": login.username, "Key": key, "Events": "call"}


def fault(action: str, answer: Message) -> AmiError | None:
    """What an answer says against the action, if it does."""
    if answer["Response"] == "Success":
        return None
    why = shown(answer.get("Message", answer["Response"]))
    if action == "Login":
        return AmiRefused(f"does not let us in: {why}; see username and secret, and manager.conf")
    return AmiDenied(f"Asterisk refuses {action}: {why}")


# What each action that we use needs after write= in manager.conf.
RIGHTS: Final = {"Getvar": "call", "Setvar": "call", "Hangup": "call", "Originate": "originate"}


def missing_rights(commands: Message) -> str:
    """A sentence on what this user may not do, by the answer to ``ListCommands``; empty: nothing lacks."""
    missing = [action for action in RIGHTS if action not in commands]
    if missing:
        classes = ",".join(dict.fromkeys(RIGHTS[action] for action in missing))
        return f"this user may not {', '.join(missing)}: manager.conf must say write={classes} for him"
    if "DeviceStateList" not in commands:
        return "Asterisk knows no DeviceStateList: res_manager_devicestate is not loaded"
    return ""


def shown(text: str) -> str:
    """What somebody else wrote, fit for one line of a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])
