"""The command line: serve, check, list, show, cancel, history, trunk show, trunk probe.

``list``, ``show``, ``history`` and ``trunk show`` read the database and need no running server; ``cancel`` and
``trunk probe`` ask the server through its control socket. What comes from outside is printed without its
control characters.
"""

import io
import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from fastagi import __version__
from fastagi.check import Result, door, findings, user_name
from fastagi.completion.model import Number, Request
from fastagi.completion.ports import LogEntry
from fastagi.config import DEFAULT_PATH, Config, load
from fastagi.errors import ConfigError, FastagiError, StoreError
from fastagi.store.requests import Reader

if TYPE_CHECKING:  # who does not ask of trunks does not wait for what speaks SIP to be read in
    from fastagi.sip.callcompletion.overview import TrunkOverview

COLUMNS = 100
"""What a table keeps to, where its data allow."""
NAME_WIDTHS = (40, 24, 16, 12, 8)
"""How much of a name a table shows: the first of these with which it fits."""
MAX_ID = 2**63 - 1  # of SQLite


class _Sentences(click.Group):
    """Our own errors are sentences on stderr and exit code 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except FastagiError as error:
            for line in str(error).splitlines():
                click.echo(clean(line), err=True)
        except PermissionError as error:
            sentence = f"{error.filename} is closed to {user_name(os.geteuid())}: run this as Asterisk's user"
            click.echo(clean(sentence), err=True)
        ctx.exit(1)


_config = click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path, readable=False),  # `load` tells what is wrong with it
    help=f"The configuration; without it {DEFAULT_PATH}.",
)
_json = click.option("--json", "as_json", is_flag=True, help="For programs: JSON, instants as ISO 8601.")
_id = click.argument("id", type=click.IntRange(1, MAX_ID))


# What says nothing any more of a request that has ended.
_OF_THE_OPEN = (
    "service_ends",
    "suspended",
    "sign_needed",
    "idle_after",
    "retry_at",
    "recall_id",
    "taken",
    "channel",
    "recall_ends",
)


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="fastagi %(version)s")
def main() -> None:
    """Call completion for Asterisk: whoever met a busy colleague is called back when he is free."""


@main.command()
@_config
def serve(path: Path | None) -> None:
    """Answer Asterisk, until SIGTERM or Ctrl-C.

    Each event is one line on the standard output.
    """
    config = load(path)
    if faults := [finding.sentence for finding in door(config) if finding.result is Result.FAULT]:
        raise ConfigError(faults)
    from twisted.logger import Logger, globalLogBeginner

    from fastagi import daemon

    globalLogBeginner.beginLoggingTo([cast(Any, _log_event)], redirectStandardIO=False)
    daemon.run(config)
    Logger(namespace="fastagi").info("fastagi has stopped")


@main.command()
@_config
@_json
def check(path: Path | None, as_json: bool) -> None:
    """Check the configuration, and Asterisk's folders beside it.

    Nothing is changed. Run it as the user who runs the server. The exit code is 0 when all is well.
    """
    found = list(findings(path))
    if as_json:
        _print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            click.echo(f"{finding.result:<5}  {finding.check:<13}  {clean(finding.sentence)}")
    if any(finding.result is Result.FAULT for finding in found):
        sys.exit(1)


@main.command("list")
@_config
@_json
def list_(path: Path | None, as_json: bool) -> None:
    """The open requests, in the order they were asked."""
    config = load(path)
    requests = Reader(config.store).requests(open_only=True)
    if as_json:
        _print_json([_plain(request) for request in requests])
    elif not requests:
        click.echo("Nobody waits to be called back.")
    else:
        now = time.time()
        _print_table(
            ["ID", "CALLER", "CALLEE", "SERVICE", "ASKED", "UNTIL", "RECALLS", "STATE"],
            [
                [
                    r.id,
                    _party(config, r.caller),
                    _party(config, r.callee),
                    r.service,
                    f"{_clock(r.asked_at, now)} ({_span(now - r.asked_at)})",
                    _clock(r.service_ends, now),
                    r.recalls,
                    _state(r, now),
                ]
                for r in requests
            ],
        )


@main.command()
@_id
@_config
@_json
def show(id: int, path: Path | None, as_json: bool) -> None:
    """All about one request, and what has happened to it."""
    config = load(path)
    reader = Reader(config.store)
    request = reader.request(id)
    if request is None:
        raise StoreError(f"there is no request {id}: it never was, or it has left the history")
    log = reader.log(id)
    if as_json:
        _print_json({**_plain(request), "log": [_plain(entry) for entry in log]})
        return
    now = time.time()
    for field in fields(Request):
        if request.ended_at and field.name in _OF_THE_OPEN:
            continue
        click.echo(f"{field.name:<14}  {clean(_value(config, request, field, now))}")
    click.echo()
    _print_table(["TIME", "CHANGE", "WHY"], [[_date(e.at), _change(e), e.sentence] for e in log])


@main.command()
@_id
@_config
def cancel(id: int, path: Path | None) -> None:
    """Take back a request, whoever asked for it.

    The server must be running.
    """
    from fastagi import control

    answer = control.cancel(load(path).control, id)
    click.echo(clean(answer.sentence), err=not answer.ok)
    sys.exit(0 if answer.ok else 1)


@main.command()
@_config
@_json
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The latest N only.")
def history(path: Path | None, as_json: bool, limit: int | None) -> None:
    """The requests that have ended, the latest first."""
    config = load(path)
    requests = [r for r in Reader(config.store).requests() if r.ended_at][:limit]
    if as_json:
        _print_json([_plain(request) for request in requests])
    elif not requests:
        click.echo("No request has ended yet.")
    else:
        _print_table(
            ["ID", "CALLER", "CALLEE", "SERVICE", "ASKED", "ENDED", "RECALLS", "OUTCOME"],
            [
                [
                    r.id,
                    _party(config, r.caller),
                    _party(config, r.callee),
                    r.service,
                    _date(r.asked_at, "minutes"),
                    _date(r.ended_at, "minutes"),
                    r.recalls,
                    r.reason,
                ]
                for r in requests
            ],
        )


@main.group()
def trunk() -> None:
    """Call completion across the trunks to other PBXs."""


@trunk.command("show")
@click.argument("name", required=False)
@_config
@_json
def trunk_show(name: str | None, path: Path | None, as_json: bool) -> None:
    """Who waits across a trunk, or across all of them.

    Every subscription, of ours there and of the other PBX here, as it is saved; and what was learned of that PBX.
    """
    from fastagi.sip.callcompletion.overview import overview

    config = load(path)
    reader = Reader(config.store)
    trunks = overview([t.name for t in config.trunks], reader.kept(), reader.request, time.time())
    if name is not None:
        trunks = [t for t in trunks if t.trunk == name]
        if not trunks:
            raise ConfigError([f"there is no trunk {name}: it is not configured, and nothing is left of it"])
    if as_json:
        _print_json([asdict(each) for each in trunks])
    elif not trunks:
        click.echo("No trunk is configured.")
    else:
        click.echo("\n\n".join("\n".join(_of_trunk(config, each)) for each in trunks))


@trunk.command("probe")
@click.argument("name")
@_config
@_json
def trunk_probe(name: str, path: Path | None, as_json: bool) -> None:
    """Ask the PBX beyond a trunk whether it knows call completion; nobody is called.

    The server must be running. It takes 8 seconds at most. The exit code is 1 if the other PBX does not know
    call completion, or does not answer.
    """
    from fastagi import control

    answer = control.probe(load(path).control, name)
    if as_json and answer.report is not None:
        _print_json(answer.report)
    else:
        for line in answer.sentence.splitlines():
            click.echo(clean(line), err=answer.report is None)
    sys.exit(0 if answer.ok else 1)


# ------------------------------------------------------------------------------------------ what is printed


def clean(text: str) -> str:
    """``text`` with what a terminal would obey, and not show, written out: ``\\x1b``."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _log_event(event: dict[str, Any]) -> None:
    """A line for each event of ours; of Twisted's only those that tell a fault."""
    from twisted.logger import LogLevel, formatEvent

    level = event.get("log_level", LogLevel.info)
    grave = level >= LogLevel.warn
    if not grave and not str(event.get("log_namespace")).startswith("fastagi"):
        return
    when = datetime.fromtimestamp(event["log_time"]).astimezone().isoformat(" ", "milliseconds")
    lines = [f"{when} {f'{level.name}: ' if grave else ''}{clean(formatEvent(event))}"]
    if (failure := event.get("log_failure")) is not None:
        lines += ["    " + clean(line) for line in failure.getTraceback().splitlines()]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))  # ASCII only: no control character gets through


def _plain(thing: Request | LogEntry) -> dict[str, Any]:
    """By the model's names; an instant as ISO 8601, null where there is none."""
    return {field.name: _json_value(field, getattr(thing, field.name)) for field in fields(thing)}


def _json_value(field: "Field[Any]", value: Any) -> Any:
    if field.type is not float:
        return value
    return datetime.fromtimestamp(value).astimezone().isoformat(timespec="milliseconds") if value else None


@dataclass(frozen=True, slots=True)
class _Party:
    """A number and its name; where a table gets too wide, the name gives way."""

    number: str
    name: str

    def text(self, room: int = 1000) -> str:
        name = self.name if len(self.name) <= room else self.name[: room - 1] + "…"
        return f"{self.number} {name}".rstrip()


def _party(config: Config, number: Number) -> _Party:
    return _Party(number, config.directory.extension(number).name)


def _print_table(head: list[str], rows: Sequence[Sequence[int | str | _Party]]) -> None:
    for room in NAME_WIDTHS:
        lines = _table(head, [[c.text(room) if isinstance(c, _Party) else c for c in row] for row in rows])
        if max(map(_width, lines)) <= COLUMNS:
            break
    for line in lines:
        click.echo(line)


def _table(head: list[str], rows: Sequence[Sequence[int | str]]) -> list[str]:
    """Aligned columns, numbers to the right."""
    cells = [head, *([clean(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    right = [bool(rows) and isinstance(cell, int) for cell in (rows or [head])[0]]
    return ["  ".join(map(_padded, line, widths, right)).rstrip() for line in cells]


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if right else text + blanks


def _width(text: str) -> int:
    """The columns of a terminal it takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _of_trunk(config: Config, trunk: "TrunkOverview") -> Iterator[str]:
    """A line on the trunk, and a paragraph on each subscription."""
    count = len(trunk.subscriptions)
    waits = f"{count} subscription{'s' * (count > 1)}" if count else "nobody waits across it"
    habit = f"; PUBLISH by its old name (Event: {trunk.publish_event})" if trunk.has_old_name else ""
    yield clean(f"Trunk {trunk.trunk}: {waits}{habit}.")
    for subscription in trunk.subscriptions:
        yield ""
        for name, value in asdict(subscription).items():
            if name in ("caller", "callee") and value:
                value = _party(config, value).text()
            yield f"{name:<20}  {clean(_words(value))}"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value == "" else str(value)


def _date(at: float, timespec: str = "seconds") -> str:
    return datetime.fromtimestamp(at).isoformat(" ", timespec)


def _clock(at: float, now: float) -> str:
    """The time of day; with its date where that is not today."""
    date, clock = _date(at, "minutes").split()
    return clock if date == _date(now).split()[0] else f"{date} {clock}"


def _span(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _state(request: Request, now: float) -> str:
    notes: list[str] = [request.state]
    if request.suspended:
        notes.append("passed over")
    if request.sign_needed:
        notes.append("waits for a sign of life")
    if request.retry_at > now:
        notes.append(f"again in {_span(request.retry_at - now)}")
    return ", ".join(notes)


def _change(entry: LogEntry) -> str:
    return entry.new if entry.old is entry.new else f"{entry.old} -> {entry.new}"


def _value(config: Config, request: Request, field: "Field[Any]", now: float) -> str:
    value = getattr(request, field.name)
    if field.name in ("caller", "callee"):
        return _party(config, value).text()
    if field.type is float:
        ago = f"{_span(now - value)} ago" if value <= now else f"in {_span(value - now)}"
        return f"{_date(value)} ({ago})" if value else "-"
    return _words("&".join(value) if isinstance(value, tuple) else value)
