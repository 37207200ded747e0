"""The AGI commands by name: what each is called on the wire, and what its answer means.  No network here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from asterisk.agi import AGIAppError, AGIDBError

from fastagi.agi.wire import Reply

F = TypeVar("F", bound=Callable[..., object])


def deadline(seconds: float | None) -> Callable[[F], F]:
    """Give a script a deadline of its own, in seconds from the connection; None: it may stay for ever."""

    def mark(script: F) -> F:
        script.deadline = seconds  # type: ignore[attr-defined]
        return script

    return mark


class Commands:
    """What a script can ask of the channel.  Times are in milliseconds, as in AGI.

    Every command raises an exception of pyst2's family (`asterisk.agi`) where Asterisk says no:
    AGIHangup once there is no caller or no connection any more, AGIAppError for result=-1,
    AGIInvalidCommand, AGIUsageError; and `fastagi.agi.WireError`, before a byte is sent, for words that
    cannot be sent.
    """

    async def command(self, *words: str) -> Reply:
        """Send one command and wait for its answer: ``await session.command("SET", "MUSIC", "on")``."""
        raise NotImplementedError

    async def answer(self) -> None:
        await self.command("ANSWER")

    async def hangup(self, channel: str | None = None) -> None:
        """Hang up this channel, or the one of this name."""
        await self.command("HANGUP", *_given(channel))

    async def channel_status(self, channel: str | None = None) -> int:
        """0 down, 1 off hook and free, ... 4 ringing, 6 up; no such channel: AGIAppError."""
        return int((await self.command("CHANNEL", "STATUS", *_given(channel))).result)

    async def noop(self, text: str = "") -> None:
        await self.command("NOOP", *_given(text or None))

    async def verbose(self, text: str, level: int = 1) -> None:
        """Write a line to Asterisk's console."""
        await self.command("VERBOSE", text, str(level))

    async def execute(self, application: str, *args: str) -> str:
        """Run a dialplan application, which may take minutes; its arguments are joined with commas."""
        result = (await self.command("EXEC", application, ",".join(args))).result
        if result == "-2":
            raise AGIAppError(f"Asterisk has no application {application!a}.")
        return result

    # Variables.  A name may be a function: get_variable("DEVICE_STATE(PJSIP/1000)").  So no name and no
    # expression may be put together from what a caller or another PBX sent.

    async def get_variable(self, name: str) -> str | None:
        """The value, or None where it is not set.

        Asterisk cuts it after 1,023 bytes and does not say so; what get_full_variable gives is whole.
        """
        return _found(await self.command("GET", "VARIABLE", name))

    async def get_full_variable(self, expression: str, channel: str | None = None) -> str | None:
        """Evaluate ``"${EXTEN}@${CONTEXT}"``, on the channel of this name if given."""
        return _found(await self.command("GET", "FULL", "VARIABLE", expression, *_given(channel)))

    async def set_variable(self, name: str, value: str) -> None:
        await self.command("SET", "VARIABLE", name, value)

    # Sound and digits.  A digit is "" where none was pressed.

    async def stream_file(self, name: str, escape_digits: str = "") -> str:
        """Play a sound file (its name without the extension); the digit that stopped it."""
        return _digit(await self.command("STREAM", "FILE", name, escape_digits))

    async def say_digits(self, digits: str, escape_digits: str = "") -> str:
        return _digit(await self.command("SAY", "DIGITS", digits, escape_digits))

    async def say_number(self, number: int | str, escape_digits: str = "") -> str:
        return _digit(await self.command("SAY", "NUMBER", str(number), escape_digits))

    async def wait_for_digit(self, timeout: int = -1) -> str:
        """The next digit; -1 waits for ever, that is until the session's deadline."""
        return _digit(await self.command("WAIT", "FOR", "DIGIT", str(timeout)))

    async def get_data(self, name: str, timeout: int = 5000, max_digits: int = 1024) -> str:
        """Play a sound file and collect digits, until "#" or so long a silence; all that came."""
        return (await self.command("GET", "DATA", name, str(timeout), str(max_digits))).result

    # The Asterisk database.

    async def database_get(self, family: str, key: str) -> str | None:
        return _found(await self.command("DATABASE", "GET", family, key))

    async def database_put(self, family: str, key: str, value: str) -> None:
        if (await self.command("DATABASE", "PUT", family, key, value)).result != "1":
            raise AGIDBError(f"Asterisk could not store {key!a} in the family {family!a}.")

    async def database_del(self, family: str, key: str) -> None:
        """Asterisk does not say whether there was such a key."""
        if (await self.command("DATABASE", "DEL", family, key)).result != "1":
            raise AGIDBError(f"Asterisk could not delete {key!a} from the family {family!a}.")


def _given(word: str | None) -> tuple[str, ...]:
    return () if word is None else (word,)


def _found(reply: Reply) -> str | None:
    return reply.value if reply.result == "1" else None


def _digit(reply: Reply) -> str:
    return "" if reply.result in ("", "0") else chr(int(reply.result))
