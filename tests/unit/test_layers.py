"""Imports go one way: reads those of every file and names any fault, so that the design page cannot go stale."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastagi

PACKAGE = Path(fastagi.__file__).parent

# Who (the first pattern that fits) may import what beside the standard library. Patterns are of module
# names without "fastagi."; what is ours comes first, then what others wrote.
RULES: list[tuple[str, str, str]] = [
    ("", "", ""),
    ("errors", "", ""),
    # The rules
    ("completion", "", ""),
    (r"completion\.model", "errors", ""),
    (r"completion\.(machine|queue|ports)", r"errors|completion\.model", ""),
    (r"completion\.book", r"errors|completion\.(model|machine|queue|ports)", ""),
    (r"completion\.(offers|lamps)", r"errors|completion\.(model|machine|queue|ports|book)", ""),
    (r"completion\.turns", r"errors|completion\.(model|machine|queue|ports|book)", ""),
    (r"completion\.service", r"errors|completion\.(model|machine|queue|ports|book|offers|lamps|turns)", ""),
    # What stands on them
    (r"store(\..+)?", r"errors|completion(\..+)?|store(\..+)?", "sqlite_utils"),
    (r"agi\.wire", "errors", r"asterisk\.agi"),
    (r"agi\.routes", r"errors|agi\.wire|completion(\..+)?", ""),
    (r"agi\.(server|commands)", r"errors|agi(\.(wire|commands))?", r"asterisk(\..+)?|twisted(\..+)?"),
    ("agi", r"errors|agi\..+", ""),
    (r"pbx(\..+)?", r"errors|completion(\..+)?|agi(\..+)?|pbx(\..+)?", r"asterisk(\..+)?|twisted(\..+)?"),
    (r"sip\.callcompletion(\..+)?", r"errors|completion(\..+)?|sip(\..+)?", ""),
    (r"sip\.transport", r"errors|sip(\..+)?", r"twisted(\..+)?"),
    (r"sip(\..+)?", r"errors|sip(\..+)?", ""),
    ("directory", r"completion\.model", ""),
    (r"config\.plain", "", ""),
    (r"config\.values", r"completion\.model|directory|sip\.(trunk|uri)|config\.plain", ""),
    (r"config\.kinds", r"completion\.model|sip\.trunk|config\.values", r"pydantic(\..+)?"),
    (r"config\.sections", r"sip\.trunk|config\.(values|kinds)", r"pydantic(\..+)?"),
    (r"config\.source", r"errors|config\.plain", r"yaml(\..+)?"),
    (r"config\.faults", r"config\.(plain|sections|source)", r"pydantic(\..+)?"),
    (r"config\.raw", r"completion\.model|config\.values", ""),
    (r"config\.trunks", r"sip\.trunk|config\.(plain|values|sections|source|raw)", ""),
    (
        r"config\.across",
        r"completion\.model|directory|config\.(plain|values|sections|source|raw|trunks)",
        "",
    ),
    (
        "config",
        r"errors|completion\.model|directory|sip\.trunk|config\.(values|sections|source|faults|across)",
        "",
    ),
    ("check", r"config|control|errors|pbx\.ami|store\.requests", ""),
    ("control", r"|errors|completion(\..+)?|sip\.probe", r"twisted(\..+)?"),
    # What composes
    ("daemon", ".*", ".*"),
    (
        "cli",
        r"daemon|config|check|control|errors|store\.requests|completion\.(model|machine|ports)"
        r"|sip\.callcompletion\.overview|",
        r"click|twisted\.logger@(serve|_log_event)",
    ),
    ("__main__", "cli", ""),
]
CLOCKS = {"time", "datetime", "sched", "asyncio", "threading", "random", "secrets", "os", "socket", "logging"}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    inside: str
    """The function in which it stands; empty: the module's own."""


def imports(source: str, name: str, is_package: bool, ours: frozenset[str]) -> Iterator[Import]:
    """All imports of module ``name``, wherever they stand, by the full name of the module they reach."""

    def walk(node: ast.AST, inside: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, inside)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = name.split(".")
                    parts = parts[: len(parts) - child.level + is_package]
                    base = ".".join([*parts, *([base] if base else [])])
                for alias in child.names:
                    deeper = f"{base}.{alias.name}"
                    yield Import(deeper if deeper in ours else base, child.lineno, inside)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, inside or child.name)
            else:
                yield from walk(child, inside)

    yield from walk(ast.parse(source), "")


def short(name: str) -> str:
    return name.removeprefix("fastagi").removeprefix(".")


def faults_of(name: str, source: str, is_package: bool, ours: frozenset[str]) -> list[str]:
    rule = next((r for r in RULES if re.fullmatch(r[0], short(name))), None)
    if rule is None:
        return [f"{name} has no place in the layers"]
    _, own, others = rule
    found = []
    for i in imports(source, name, is_package, ours):
        top = i.module.split(".")[0]
        if top == "fastagi":
            good = bool(re.fullmatch(own, short(i.module)))
        elif top in sys.stdlib_module_names:
            good = not (short(name).startswith("completion") and top in CLOCKS)
        else:
            at = f"{i.module}@{i.inside}" if i.inside else i.module
            good = bool(re.fullmatch(others, i.module) or re.fullmatch(others, at))
        if not good:
            found.append(f"{name}, line {i.line}: imports {i.module}")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("fastagi", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
OURS = frozenset(MODULES)


def test_the_files_are_found() -> None:
    assert {"fastagi", "fastagi.completion.machine", "fastagi.store.requests", "fastagi.daemon"} <= OURS


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    path = MODULES[name]
    assert faults_of(name, path.read_text(), path.name == "__init__.py", OURS) == []


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("fastagi.completion")])
def test_time_is_handed_in(name: str) -> None:
    """Neither the modules that tell the time nor a call that looks like it, however it was imported."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.fullmatch(
                r"(.*\.)?(time|time_ns|monotonic|monotonic_ns|perf_counter|utcnow|today|localtime|gmtime)",
                called,
            ), f"{name}, line {node.lineno}: {called}()"
            assert called in ("self._clock.now", "clock.now") or not re.fullmatch(r"(.*\.)?now", called), (
                called
            )
            assert called not in ("__import__", "importlib.import_module", "exec", "eval")


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {
        name: {
            i.module
            for i in imports(path.read_text(), name, path.name == "__init__.py", OURS)
            if i.module in OURS and not i.inside
        }
        for name, path in MODULES.items()
    }
    # A package and its own modules are one thing here.
    done: set[str] = set()
    while ready := {
        n
        for n, needs in graph.items()
        if n not in done
        and not {m for m in needs - done if not m.startswith(f"{n}.") and not n.startswith(f"{m}.")}
    }:
        done |= ready
    assert not set(graph) - done


FAULTY = [
    ("completion.model", "from fastagi.completion.machine import step", "fastagi.completion.machine"),
    ("completion.model", "from . import machine", "fastagi.completion.machine"),
    ("completion.machine", "from fastagi.completion import ports", "fastagi.completion.ports"),
    ("completion.queue", "import fastagi.completion.service", "fastagi.completion.service"),
    ("completion.service", "from fastagi.store.requests import Store", "fastagi.store.requests"),
    ("completion.service", "def f():\n    from twisted.internet import reactor", "twisted.internet"),
    ("completion.service", "import yaml", "yaml"),
    ("completion.service", "import time", "time"),
    ("completion.machine", "from datetime import datetime", "datetime"),
    ("store.requests", "from fastagi.agi import wire", "fastagi.agi.wire"),
    ("store.requests", "import twisted", "twisted"),
    ("store.requests", "from ..pbx import poll", "fastagi.pbx.poll"),
    ("agi.wire", "from fastagi.completion.model import Number", "fastagi.completion.model"),
    ("agi.wire", "import twisted.internet", "twisted.internet"),
    ("agi.wire", "import asterisk.manager", "asterisk.manager"),
    ("agi.routes", "from twisted.internet.defer import Deferred", "twisted.internet.defer"),
    ("agi.routes", "from fastagi.agi.server import Session", "fastagi.agi.server"),
    ("agi.server", "from fastagi.pbx.poll import Poller", "fastagi.pbx.poll"),
    ("agi.server", "from fastagi.completion.model import Number", "fastagi.completion.model"),
    ("agi.server", "from fastagi.agi.routes import ROUTES", "fastagi.agi.routes"),
    ("pbx.poll", "from fastagi import config", "fastagi.config"),
    ("pbx.callfile", "from fastagi.store import requests", "fastagi.store.requests"),
    ("config", "from fastagi.completion.service import ignore", "fastagi.completion.service"),
    ("config", "import click", "click"),
    ("config", "import pydantic", "pydantic"),
    ("config", "import yaml", "yaml"),
    ("config.plain", "from fastagi.config import Config", "fastagi.config"),
    ("config.plain", "from fastagi.config.source import Source", "fastagi.config.source"),
    ("config.values", "import pydantic", "pydantic"),
    ("config.values", "from fastagi.config import source", "fastagi.config.source"),
    ("config.kinds", "import yaml", "yaml"),
    ("config.kinds", "from fastagi.config import sections", "fastagi.config.sections"),
    ("config.sections", "import yaml", "yaml"),
    ("config.sections", "from fastagi.config import Config", "fastagi.config"),
    ("config.source", "import pydantic", "pydantic"),
    ("config.source", "from fastagi.completion.model import Number", "fastagi.completion.model"),
    ("config.faults", "import yaml", "yaml"),
    ("config.faults", "from fastagi.config.across import look_across", "fastagi.config.across"),
    ("config.raw", "from fastagi.config.source import Source", "fastagi.config.source"),
    ("config.trunks", "from fastagi.config import across", "fastagi.config.across"),
    ("config.across", "from fastagi.config.faults import checked", "fastagi.config.faults"),
    ("config.across", "import pydantic", "pydantic"),
    ("control", "from fastagi.agi import wire", "fastagi.agi.wire"),
    ("control", "from fastagi.sip.element import Element", "fastagi.sip.element"),
    ("cli", "from twisted.logger import Logger", "twisted.logger"),
    ("cli", "def check():\n    import twisted.logger", "twisted.logger"),
    ("cli", "def serve():\n    from twisted.internet import reactor", "twisted.internet"),
    ("cli", "from fastagi.completion.service import ignore", "fastagi.completion.service"),
    ("cli", "from fastagi.agi import wire", "fastagi.agi.wire"),
    ("errors", "import fastagi.config", "fastagi.config"),
    ("sip.message", "from fastagi.completion.model import Service", "fastagi.completion.model"),
    ("sip.dialog", "import twisted", "twisted"),
    ("__main__", "import fastagi.daemon", "fastagi.daemon"),
]


@pytest.mark.parametrize(("name", "source", "module"), FAULTY)
def test_a_fault_is_named(name: str, source: str, module: str) -> None:
    line = 1 + source.count("\n")
    assert faults_of(f"fastagi.{name}", source, False, OURS) == [
        f"fastagi.{name}, line {line}: imports {module}"
    ]


def test_a_file_without_a_place_is_named() -> None:
    assert faults_of("fastagi.helpers", "", False, OURS) == ["fastagi.helpers has no place in the layers"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("completion.service", "from fastagi.completion import machine, queue\nfrom . import book"),
        (
            "cli",
            "import click\ndef serve():\n    from twisted.logger import Logger\n    from fastagi import daemon",
        ),
        ("pbx.ami", "from twisted.internet import defer\nfrom fastagi.agi import wire"),
        ("sip.callcompletion", "from fastagi.completion.model import Service"),
        ("sip.transport", "from twisted.internet import reactor"),
    ],
)
def test_what_is_allowed(name: str, source: str) -> None:
    assert faults_of(f"fastagi.{name}", source, False, OURS) == []
