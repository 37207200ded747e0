"""Who is who: the extensions of this PBX by number, by Asterisk pattern and by device."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from fastagi.completion.model import Device, Extension, Invalid, Number, Settings, number

CACHED_NUMBERS = 10_000

# Asterisk would take any other character as a literal, but no number has one.
_POSITION = re.compile(r"[0-9*#+XZNxzn]|\[((?:[0-9]-[0-9]|[0-9*#+])+)\]|[.!]\Z")
_CLASSES = {"X": "0123456789", "Z": "123456789", "N": "23456789"}
# pbx.c, ext_cmp_pattern_pos(): a set ranks by the count of its members, "." is 0x180, "!" 0x280, the end
# 0x300.  As the end ranks last, _2X! is before _2X and wins for 25.
_OPEN = {".": (".+", 0x180), "!": (".*", 0x280)}
_END = (0x300, "")


class Pattern:
    """An extension pattern of Asterisk, ``_2XXX``; a lower ``rank`` is more specific; raises ValueError."""

    def __init__(self, text: str) -> None:
        if not 2 <= len(text) <= 41 or text[0] != "_":
            raise ValueError(f"{text[:60]!r} is not a pattern")
        ranks, expression, at = [], "", 1
        while at < len(text):
            position = _POSITION.match(text, at)
            if not position:
                raise ValueError(f"{text!r} is not a pattern from its character {at + 1} on")
            at = position.end()
            if position[0] in _OPEN:
                part, size = _OPEN[position[0]]
                ranks.append((size, ""))
            else:
                members = self._members(position[1] or _CLASSES.get(position[0].upper(), position[0]))
                part = "[" + "".join(map(re.escape, members)) + "]"
                ranks.append((len(members), members))
            expression += part
        self.text = text
        self.rank = (*ranks, _END)
        self.matches = re.compile(expression).fullmatch

    @staticmethod
    def _members(inside: str) -> str:
        """The characters of a set, each once and in order: ``5-731`` is ``13567``."""
        members = set()
        for first, last in re.findall(r"(.)(?:-(.))?", inside):
            if last and last < first:
                raise ValueError(f"{first}-{last} is not a range")
            members |= {chr(code) for code in range(ord(first), ord(last or first) + 1)}
        return "".join(sorted(members))


class Directory:
    """The extensions of this PBX: who has which settings, and who speaks from which device.

    ``entries`` are by number or pattern, with their settings complete; who has no entry has ``defaults``.
    Entries are not merged with each other: the most specific one wins alone. Whoever is beyond a trunk
    (``user@trunk``) has ``defaults``, whatever the patterns.
    """

    def __init__(self, defaults: Settings, entries: Mapping[str, Extension]) -> None:
        self._defaults = defaults
        self._exact = {key: entry for key, entry in entries.items() if not key.startswith("_")}
        patterns = [(Pattern(key), entry) for key, entry in entries.items() if key.startswith("_")]
        self._patterns = sorted(patterns, key=lambda pair: pair[0].rank)
        self._by_device = {device: entry for entry in self._exact.values() for device in entry.devices}
        self._best = lru_cache(maxsize=CACHED_NUMBERS)(self._find)

    def extension(self, number: Number) -> Extension:
        """The extension of this number; every number has one."""
        return self._exact.get(number) or self._best(number)

    def numbers(self) -> list[Number]:
        """Those that have an entry of their own; whom only a pattern knows is known when he calls."""
        return list(map(Number, self._exact))

    def of_device(self, device: Device) -> Extension | None:
        """Who calls from this device; None is nobody who may ask: a trunk, anonymous.

        The exact entry that names it; else ``PJSIP/1000`` is 1000, unless 1000 has other devices.
        """
        if named := self._by_device.get(device):
            return named
        try:
            extension = self.extension(number(device.removeprefix("PJSIP/")))
        except Invalid:
            return None
        return extension if not extension.devices or device in extension.devices else None

    def _find(self, number: Number) -> Extension:
        for pattern, entry in self._patterns:
            if "@" not in number and pattern.matches(number):
                return replace(entry, number=number)
        return Extension(number, self._defaults)
