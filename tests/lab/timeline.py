"""What happened and when, in plain words, for a person who watches."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import TextIO

WIDTH = 100
COLOURS = {"Alice": "36", "Bob": "33", "Carol": "35", "fastagi": "2"}


class Timeline:
    """Lines of: seconds since the start, who, what."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.zero = time.monotonic()

    def say(self, who: str, what: str, at: float | None = None) -> None:
        """One event; ``at`` is time.monotonic() of when it happened, by default now."""
        seconds = (time.monotonic() if at is None else at) - self.zero
        lines = textwrap.wrap(what, WIDTH - 20)
        head = f"{seconds:7.2f} s  " + self._coloured(f"{who:8}", COLOURS.get(who, "0"))
        self.line(f"{head}  {lines[0]}")
        for line in lines[1:]:
            self.line(" " * 20 + line)

    def title(self, text: str) -> None:
        self.line("")
        self.line(self._coloured(text, "1"))

    def note(self, text: str, indent: int = 2) -> None:
        for line in textwrap.wrap(text, WIDTH - indent):
            self.line(self._coloured(" " * indent + line, "2"))

    def verdict(self, text: str, good: bool) -> None:
        self.line("")
        self.line(self._coloured(text, "1;32" if good else "1;31"))

    def _coloured(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours else text

    def line(self, text: str) -> None:
        try:
            print(text, file=self._out, flush=True)
        except BrokenPipeError:  # nobody reads on; what was begun still has to be ended in order
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
