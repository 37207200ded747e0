"""The command line: serve, check, list, show, cancel, history."""

import sys
from pathlib import Path

import click

from fastagi.config import load
from fastagi.errors import FastagiError


@click.group()
def main() -> None:
    """Call completion for Asterisk."""


@main.command()
@click.option("--config", type=click.Path(path_type=Path))
def serve(config: Path | None) -> None:
    """Answer Asterisk until stopped."""
    from twisted.logger import globalLogBeginner, textFileLogObserver

    from fastagi import daemon

    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    try:
        daemon.run(load(config))
    except FastagiError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
