"""One file of YAML as plain values, with the line of each, in bounds that no file can break.

Of YAML only the notation is taken: mappings, lists and scalars, anchors, aliases and merges; no tags.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from fastagi.config.plain import Location, Quoted, where
from fastagi.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 250_000
"""Values of a file with its aliases written out: a small file can stand for a huge one."""

_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"
_SURROGATE = re.compile("[\ud800-\udfff]")
"""An escape can write half a character, which no UTF-8 can: pydantic gives up a whole mapping for such a key."""


class Source:
    """One file: its content as plain values, the line of each, and the faults found in it so far.

    A scalar is its own text, as written: 0100 stays "0100", and what wants a number makes one of it.
    Raises `ConfigError` where it cannot be read at all.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name
        self._lines: dict[Location, int] = {}
        self._faults: list[tuple[int, str]] = []
        self._values = 0
        node = self._compose(data)
        self.content = self._plain(node, (), 0) if node else {}

    def line(self, at: Location) -> int:
        """The line of this key; of a missing one, that of the section it would be in."""
        while at not in self._lines and at:
            at = at[:-1]
        return self._lines.get(at, 1)

    def fault(self, at: Location, sentence: str) -> None:
        self._faults.append((self.line(at), sentence))

    def raise_faults(self) -> None:
        """All of them by line; those of a mapping that is merged in twice are told once."""
        if self._faults:
            ordered = dict.fromkeys(sorted(self._faults, key=lambda fault: fault[0]))
            raise ConfigError([f"{self._name}, line {line}: {sentence}" for line, sentence in ordered])

    def _compose(self, data: bytes) -> yaml.Node | None:
        if len(data) > MAX_BYTES:
            raise ConfigError([f"{self._name} is too large: at most {MAX_BYTES} bytes are allowed"])
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise self._broken(data.count(b"\n", 0, error.start), "it is not UTF-8") from None
        try:
            loader = _Loader(text)
            try:
                node: yaml.Node | None = loader.get_single_node()
                return node
            finally:
                loader.dispose()
        except yaml.reader.ReaderError as error:
            character = f"the character U+{ord(text[error.position]):04X} is not allowed"
            raise self._broken(text.count("\n", 0, error.position), character) from None
        except yaml.MarkedYAMLError as error:
            problem = ", ".join(filter(None, (error.context, error.problem)))
            if "undefined alias" in problem:
                problem += "; numbers that begin with * are to be in quotes"
            mark = error.problem_mark or error.context_mark
            raise self._broken(mark.line if mark else 0, problem) from None

    def _broken(self, line: int, problem: str) -> ConfigError:
        return ConfigError([f"{self._name}, line {line + 1}: the file cannot be read: {problem}"])

    def _plain(self, node: yaml.Node, at: Location, depth: int) -> object:
        self._lines.setdefault(at, node.start_mark.line + 1)
        self._count(node, depth)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, depth)
        if not isinstance(node, yaml.ScalarNode):
            return [self._plain(item, (*at, place), depth + 1) for place, item in enumerate(node.value)]
        if node.tag == _NULL:
            return None
        return str(node.value) if node.style is None else Quoted(node.value)

    def _mapping(self, node: yaml.MappingNode, at: Location, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        first: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._faults.append(
                    (line, f"a key in {where(at)} is a list or a mapping: one word is allowed")
                )
            elif key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif _SURROGATE.search(key.value):
                self._faults.append((line, f"{where((*at, key.value))} is no text: one word is allowed"))
            elif key.value in found:
                sentence = f"is there twice, first in line {first[key.value]}: once is allowed"
                self._faults.append((line, f"{where((*at, key.value))} {sentence}"))
            else:
                first[key.value] = line
                self._lines.setdefault((*at, key.value), line)
                found[key.value] = self._plain(value, (*at, key.value), depth + 1)
        for other in merged:
            self._count(other, depth + 1)
            if isinstance(other, yaml.MappingNode):
                found = self._mapping(other, at, depth + 1) | found
            else:
                sentence = f"<< in {where(at)} is no mapping: an alias of a mapping is allowed"
                self._faults.append((other.start_mark.line + 1, sentence))
        return found

    def _count(self, node: yaml.Node, depth: int) -> None:
        # Here the aliases are followed, so an alias within its own anchor ends here too.
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            raise self._broken(
                node.start_mark.line,
                f"it is too large when its aliases are written out: {MAX_VALUES} values in {MAX_DEPTH} levels"
                " are allowed",
            )


class _Loader(yaml.SafeLoader):
    """Only composes nodes, in bounded depth; nothing is constructed from them, so tags have no meaning."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        peek: Callable[[], Any] = self.peek_event
        event = peek()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="a tag (!...) is not allowed", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            problem = f"at most {MAX_DEPTH} levels are allowed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node
