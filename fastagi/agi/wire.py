"""AGI between bytes and values: an environment in, commands out, replies in.  Pure: no socket, no clock.

Every text is UTF-8 with ``surrogateescape``: Asterisk cuts caller names in the middle of a character and
old directories hold Latin-1, so what is not UTF-8 has to come through, and to go back as the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

# The names that AGI authors know.  Importing them is harmless; only pyst2's AGI() sets a signal handler.
from asterisk.agi import (
    AGIAppError,
    AGIHangup,
    AGIInvalidCommand,
    AGIResultHangup,
    AGIUnknownError,
    AGIUsageError,
)

from fastagi.errors import FastagiError

MAX_LINE: Final = 8192  # bytes of one environment line
MAX_LINES: Final = 128  # lines of an environment, and of a usage text
MAX_BLOCK: Final = 65536  # bytes of an environment, of a usage text, and of one reply
MAX_COMMAND: Final = 2000  # bytes with the "\n": until July 2025 Asterisk read commands into 2 KB
MAX_WORDS: Final = 127  # res_agi.c: MAX_ARGS is 128, and what is beyond it is cut off with a warning


class WireError(FastagiError):
    """What came, or what was to be sent, is not AGI.  The message is a sentence and never holds raw bytes."""


# -- the environment ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What Asterisk says about the call when it opens a session."""

    script: str  # the path of the AGI address, without its query and its outer slashes
    query: dict[str, str]  # the address's ?name=value; the first value of a name
    env: dict[str, str]  # agi_* without "agi_"; the first value of a key
    args: tuple[str, ...] = ()  # agi_arg_1, agi_arg_2, ... up to the first gap
    suspect: tuple[str, ...] = ()  # keys that came as Asterisk never sends them: see Environment

    @property
    def channel(self) -> str:
        return self.env.get("channel", "")

    @property
    def uniqueid(self) -> str:
        return self.env.get("uniqueid", "")

    @property
    def callerid(self) -> str:
        """The caller's number as the phone claims it: good to show, no proof of who is calling."""
        return self.env.get("callerid", "")

    @property
    def context(self) -> str:
        return self.env.get("context", "")

    @property
    def extension(self) -> str:
        return self.env.get("extension", "")

    def arg(self, n: int, default: str = "") -> str:
        """The n-th argument, counted from 1; `default` where it was not passed."""
        return self.args[n - 1] if 1 <= n <= len(self.args) else default


class Environment:
    """Collects one environment block, in whatever portions it comes, until its blank line.

    A newline in a caller's number (%0A in a SIP user part) becomes a line of its own here, so a caller can
    add keys.  No rule about which value wins helps against that: the forged ``agi_context`` stands *before*
    the true one, the forged ``agi_channel`` after it.  But Asterisk sends each key once and the arguments
    last.  So the first value is kept, and the keys that break this order are named in `Call.suspect`: one that
    comes twice, one that follows a caller's words where another should, arguments that are not last; and where
    two newlines cut the block short, what is missing.
    """

    __slots__ = ("_bytes", "_lines", "_suspect", "_values")

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._suspect: list[str] = []
        self._lines = 0
        self._bytes = 0

    @property
    def channel(self) -> str:
        """Whose call it is; Asterisk says so before anything that a caller can write."""
        return self._values.get("channel", "")

    def feed(self, lines: Iterator[bytes]) -> Call | None:
        """Take lines, without their "\n", up to the blank one, which gives the `Call`; None: none came yet.

        What follows the blank line stays in the iterator.
        """
        values = self._values
        for line in lines:
            if not line:
                return self._call()
            self._lines += 1
            self._bytes += len(line) + 1
            if len(line) > MAX_LINE:
                raise WireError(f"An environment line is longer than {MAX_LINE} bytes.")
            if self._lines > MAX_LINES or self._bytes > MAX_BLOCK:
                raise WireError(f"The environment is longer than {MAX_LINES} lines or {MAX_BLOCK} bytes.")
            key, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
            if not colon or key[:4] != "agi_":
                raise WireError(f"The environment has a line that is not 'agi_key: value': {line[:80]!r}.")
            name = key[4:]
            if name in values:
                self._suspect.append(name)
            else:
                values[name] = value.removeprefix(" ")
        return None

    def _call(self) -> Call:
        values = self._values
        names = [f"arg_{n}" for n in range(1, _count_args(values) + 1)]
        if names and list(values)[-len(names) :] != names:
            self._suspect += names
        if "version" in values:  # an Asterisk: it says so before anything that a caller can write
            self._suspect += _disorder(values)
        script, query = _address(values)
        return Call(script, query, values, tuple([values[name] for name in names]), tuple(self._suspect))


# What Asterisk (res_agi.c) sends right after each thing that a caller may have written.
_FOLLOWED_BY = {
    "callerid": "calleridname",
    "calleridname": "callingpres",
    "dnid": "rdnis",
    "rdnis": "context",
    "extension": "priority",
    "accountcode": "threadid",
}
# All of this always comes after the first of these; it is more than a number that is cut short has room for.
_LATE = frozenset(
    (
        *_FOLLOWED_BY.values(),
        "callingani2",
        "callington",
        "callingtns",
        "dnid",
        "extension",
        "enhanced",
        "accountcode",
    )
)


def _disorder(values: dict[str, str]) -> list[str]:
    keys = list(values)
    wrong = sorted(_LATE - values.keys())
    for key, follower in zip(keys, [*keys[1:], ""], strict=True):
        expected = _FOLLOWED_BY.get(key)
        if expected and follower != expected:
            wrong.append(follower or key)
    return wrong


def _count_args(values: dict[str, str]) -> int:
    n = 0
    while f"arg_{n + 1}" in values:
        n += 1
    return n


def _address(values: dict[str, str]) -> tuple[str, dict[str, str]]:
    path = values.get("network_script")
    if path is None:  # not sent for agi://host and agi://host/
        path = values.get("request", "").partition("://")[2].partition("/")[2]
    path, asked, text = path.partition("?")
    query: dict[str, str] = {}
    if asked:
        for name, value in parse_qsl(text, keep_blank_values=True):
            query.setdefault(name, value)
    return path.strip("/"), query


# -- commands ----------------------------------------------------------------------------------------------

_BARE = re.compile(r"[A-Za-z0-9_]+").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]").search


def command(*words: str) -> bytes:
    """One command line: each word quoted where it needs it.

    Raises `WireError` for what would not reach Asterisk as it is: a control character (a newline would
    begin another command), too many words, too long a line.  Nothing is repaired: a cut or filtered value
    would be a wrong value.
    """
    if not words or len(words) > MAX_WORDS:
        raise WireError(f"A command has 1 to {MAX_WORDS} words, this one has {len(words)}.")
    try:
        line = " ".join([word if _BARE(word) else _quote(word) for word in words])
        data = line.encode("utf-8", "surrogateescape") + b"\n"
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        raise WireError(f"{_name(words)}: a value cannot be written as bytes.") from None
    except WireError as fault:
        raise WireError(f"{_name(words)}: {fault}") from None
    if len(data) > MAX_COMMAND:
        raise WireError(f"{_name(words)}: {len(data)} bytes, but a command may have {MAX_COMMAND}.")
    return data


def _quote(word: str) -> str:
    if _CONTROL(word):
        raise WireError(f"the value {word[:80]!a} has a control character.")
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _name(words: tuple[str, ...]) -> str:
    """What a command is called in an error: its first words, in characters that any log can take."""
    return ascii(" ".join(words[:3])[:80])[1:-1]


# -- replies -----------------------------------------------------------------------------------------------


class Event(Enum):
    """What Asterisk says without being asked."""

    HANGUP = "HANGUP"


HANGUP: Final = Event.HANGUP


class Reply(NamedTuple):
    """The answer to one command."""

    code: int  # 200, 510, 511, 520
    result: str = ""  # of "result=": a number, or digits, or nothing
    value: str | None = None  # what stands in parentheses
    endpos: int | None = None  # where a sound file ended, in samples
    text: str = ""  # all that follows the code; of a 520 the usage


_STATUS = re.compile(r"([0-9]{3})(?:([ -])(.*))?").fullmatch
_ENDPOS = re.compile(r"(?:^| )endpos=(-?[0-9]+)(?: |$)").search


class Replies:
    """Turns the lines that follow the environment into replies."""

    __slots__ = ("_bytes", "_usage")

    def __init__(self) -> None:
        self._usage: list[str] = []  # the lines so far of a reply that began with "520-"
        self._bytes = 0

    def feed(self, line: bytes) -> Reply | Event | None:
        """Take one line without its "\\n".

        None means that the answer is still to come.  HANGUP may stand anywhere: after no command, before
        the answer to one, between the lines of one answer.  It never is the answer.
        """
        if line == b"HANGUP":
            return HANGUP
        if len(line) > MAX_BLOCK:
            raise WireError(f"A reply is longer than {MAX_BLOCK} bytes.")
        text = line.decode("utf-8", "surrogateescape")
        if self._usage:
            return self._more_usage(text, len(line))
        if text.startswith("200 "):
            return _answer(text[4:])
        status = _STATUS(text)
        if status is None:
            raise WireError(f"A reply does not begin with a code: {line[:80]!r}.")
        code, mark, rest = status.groups("")
        if mark == "-":
            self._usage = [code, rest]
            self._bytes = len(line)
            return None
        if code == "100":  # "100 result=0 Trying...": the answer follows
            return None
        return Reply(int(code), text=rest)

    def _more_usage(self, text: str, size: int) -> Reply | None:
        self._bytes += size + 1
        code = self._usage[0]
        if text.startswith(code + " "):  # "520 End of proper usage."
            usage = "\n".join(self._usage[1:])
            self._usage = []
            return Reply(int(code), text=usage)
        if len(self._usage) > MAX_LINES or self._bytes > MAX_BLOCK:
            raise WireError(f"A usage text is longer than {MAX_LINES} lines or {MAX_BLOCK} bytes.")
        self._usage.append(text)
        return None


def _answer(text: str) -> Reply:
    """The answer ``result=R``, ``result=R (value)``, ``result=R (word) endpos=N``, ``result=R Some words``.

    A variable's value ends the line, so it may hold anything, ")" and "=" too.  The words that something
    follows (hangup, timeout, dtmf, speech) hold no ")".
    """
    head, _, rest = text.partition(" ")
    result = head[7:] if head.startswith("result=") else ""
    value = None
    if rest.startswith("("):
        if rest.endswith(")"):
            return Reply(200, result, rest[1:-1], None, text)
        value, closed, rest = rest[1:].partition(") ")
        if not closed:
            # The value has a newline, and what follows it would be taken for the answer to the next command.
            raise WireError("A reply's parenthesis does not close on its line.")
    endpos = _ENDPOS(rest) if rest else None
    return Reply(200, result, value, int(endpos[1]) if endpos else None, text)


def error_of(reply: Reply) -> Exception | None:
    """The exception of pyst2's family that a reply means, or None where the command was carried out."""
    error: Exception
    if reply.code == 200:
        if reply.result != "-1":
            return None
        if reply.value == "hangup":
            error = AGIResultHangup("The caller hung up while the command ran.")
        else:
            error = AGIAppError(f"The command failed: {ascii(reply.text)[1:-1]}.")
    elif reply.code == 510:
        error = AGIInvalidCommand("Asterisk does not know the command (510).")
    elif reply.code == 511:
        error = AGIHangup("The channel has hung up, and the command needs a live one (511).")
    elif reply.code == 520:
        error = AGIUsageError(reply.text)
    else:
        error = AGIUnknownError(f"Asterisk answered {reply.code}: {ascii(reply.text)[1:-1]}.")
    return error
