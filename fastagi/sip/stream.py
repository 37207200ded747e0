"""SIP over TCP (RFC 3261, 18.3): bytes in as they come, messages out.  Pure: no socket, no clock.

Framing rests on Content-Length alone.  Where it is missing or cannot be, or where a message does not begin
as one, nobody knows where the next begins: the connection has to be closed.  A peer that stops in the middle
of a message is the transport's business, which has a clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fastagi.sip.message import (
    MAX_LINE,
    MAX_MESSAGE,
    Malformed,
    Request,
    Response,
    answerable,
    check_first_line,
    complete,
    parse_head,
)


@dataclass(frozen=True, slots=True)
class Ping:
    """A keep-alive of two CRLF: to be answered with one (RFC 5626, 4.4.1)."""


_BLANKS: Final = re.compile(rb"[\r\n]*")
_BEGINS: Final = re.compile(rb"[A-Za-z0-9.!%*_+`'~-]")

Received = Request | Response | Malformed | Ping


class Framer:
    """One connection.  ``broken`` says that it has to be closed, once what is to be answered is answered."""

    def __init__(self) -> None:
        self.broken = False
        self._bytes = bytearray()
        self._searched = 0  # up to here there is no end: of the first line, then of the headers
        self._first_line_good = False
        self._blanks = 0  # CR and LF since the last message or Ping
        self._head: Request | Response | None = None  # waits for its body
        self._length = 0  # of that body

    @property
    def waiting(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._head is not None or bool(self._bytes)

    def feed(self, data: bytes) -> list[Received]:
        """What is complete, in its order.

        A Malformed is a message that is no good; if it is a BadRequest it can be answered.  The connection
        goes on, unless ``broken``: then it is the last, and all that comes later is ignored.
        """
        found: list[Received] = []
        if self.broken:
            return found
        self._bytes += data
        try:
            while (one := self._next()) is not None:
                found.append(one)
        except Malformed as error:
            found.append(error)
            self.broken = True
            self._bytes.clear()
            self._head = None
        return found

    def _next(self) -> Received | None:
        """Raises Malformed where the connection is broken."""
        if self._head is None:
            if self._skip_blanks():
                return Ping()
            if not self._bytes or not self._begin():
                return None
        if self._head is None or len(self._bytes) < self._length:
            return None
        head, body = self._head, bytes(self._bytes[: self._length])
        del self._bytes[: self._length]
        self._head = None
        try:
            return complete(head, body)
        except Malformed as error:
            return error

    def _skip_blanks(self) -> bool:
        """Whether they are a keep-alive; any number at once is one."""
        found = _BLANKS.match(self._bytes)
        count = found.end() if found else 0
        if count:
            del self._bytes[:count]
            self._blanks += count
        if self._blanks < 4:
            return False
        self._blanks = 0
        return True

    def _begin(self) -> bool:
        """Take the headers if they are complete."""
        data = self._bytes
        if not self._first_line_good and not self._check_first_line():
            return False
        end = data.find(b"\r\n\r\n", max(0, self._searched - 3))
        if len(data) > MAX_MESSAGE if end < 0 else end > MAX_MESSAGE - 4:
            raise Malformed(f"The headers of a message are longer than {MAX_MESSAGE} bytes.", 513)
        if end < 0:
            self._searched = len(data)
            return False
        message = parse_head(bytes(data[:end]))
        del data[: end + 4]
        try:
            length = message.content_length
            if length is None:
                raise Malformed("A message in a stream has no Content-Length header.")
            if length > MAX_MESSAGE - 4 - end:
                raise Malformed(f"A message is longer than {MAX_MESSAGE} bytes.", 413)
        except Malformed as error:
            raise answerable(error, message) from None
        self._head, self._length = message, length
        self._searched = self._blanks = 0
        self._first_line_good = False
        return True

    def _check_first_line(self) -> bool:
        """Whether it has come and is good: who does not speak SIP at all is not waited for."""
        data = self._bytes
        if not _BEGINS.match(data):
            raise Malformed("What comes is not SIP.")
        end = data.find(b"\r\n", max(0, self._searched - 1))
        if end < 0:
            if len(data) > MAX_LINE:
                raise Malformed(f"The first line is longer than {MAX_LINE} characters.", 513)
            self._searched = len(data)
            return False
        check_first_line(data[:end].decode("utf-8", "surrogateescape"))
        self._first_line_good = True
        self._searched = end
        return True
