"""The configuration: one YAML file, read and checked once, completely, at the door.

`load` tells every fault at once, each in a sentence with line, key, value and what is allowed.  What it
returns needs no further check.  Whether the folders exist and may be written is not looked at here.

The way of a file: source.py makes plain values of it; across.py and trunks.py look for what only two keys
together can get wrong, faults.py for what each can by itself, as sections.py has it; then it is a `Config`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from fastagi.completion.model import Extension, Limits, Number, Settings
from fastagi.config import sections, values
from fastagi.config.across import look_across
from fastagi.config.faults import checked
from fastagi.config.source import MAX_BYTES, Source
from fastagi.directory import Directory
from fastagi.errors import ConfigError
from fastagi.sip.trunk import Address, Trunk

DEFAULT_PATH = Path("/etc/fastagi/fastagi.yaml")
_MAX_SECRET = 1000


@dataclass(frozen=True, slots=True)
class Ami:
    """Where Asterisk's manager interface is, and who we are there."""

    host: str
    port: int
    username: str
    secret_file: Path
    tls: bool
    ca: Path | None
    """PEM certificates that may have signed Asterisk's; None: those that this machine trusts."""

    def secret(self) -> str:
        """What the file holds; raises `ConfigError`."""
        try:
            with self.secret_file.open("rb") as file:
                read = file.read(_MAX_SECRET + 1)
            text = read.decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise ConfigError([f"{self.secret_file}, the AMI secret, cannot be read: {why}"]) from None
        if not text or not text.isprintable() or len(read) > _MAX_SECRET:
            sentence = (
                f"holds no AMI secret: one line of printable text, at most {_MAX_SECRET} bytes, is needed"
            )
            raise ConfigError([f"{self.secret_file} {sentence}"])
        return text


@dataclass(frozen=True, slots=True)
class Config:
    """Everything an administrator can set."""

    listen_host: str
    listen_port: int
    allow: tuple[IPv4Network | IPv6Network, ...]
    spool: Path
    temp: Path
    store: Path
    control: Path
    """The UNIX socket on which the command line speaks to the daemon."""
    directory: Directory
    limits: Limits
    ami: Ami | None = None
    """None: Asterisk is polled."""
    originate: bool = False
    """Recalls go through AMI, and no call file is ever written."""
    trunks: tuple[Trunk, ...] = ()
    """In the order of the file; where one listens on all addresses, `resolved` makes it ready for use."""


def load(path: Path | None) -> Config:
    """The configuration in this file; raises `ConfigError` with all faults.

    None is `DEFAULT_PATH`, and where that is missing the documented defaults.
    """
    where = path or DEFAULT_PATH
    try:
        with open(where, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        if path is not None:
            raise ConfigError([f"{where} cannot be read: {error.strerror}"]) from None
        data = b""
    except OSError as error:
        raise ConfigError([f"{where} cannot be read: {error.strerror}"]) from None
    source = Source(where.name, data)
    look_across(source)
    return _config(checked(source))


def _config(file: sections.File) -> Config:
    defaults = Settings(**_said(file.defaults, Settings))
    entries = {
        key: Extension(
            Number(key),
            replace(defaults, **_said(entry, Settings)),
            entry.name,
            entry.device,
            entry.dialstring,
            entry.hint,
        )
        for key, entry in file.extensions.items()
    }
    return Config(
        listen_host=file.fastagi.listen.host,
        listen_port=file.fastagi.listen.port,
        allow=tuple(file.fastagi.allow),
        spool=file.asterisk.spool,
        temp=file.asterisk.temp,
        store=file.store,
        control=file.fastagi.control or file.store.parent / sections.SOCKET,
        directory=Directory(defaults, entries),
        limits=Limits(**_said(file.defaults, Limits)),
        ami=Ami(**dict(file.asterisk.ami)) if file.asterisk.ami else None,
        originate=file.asterisk.recall == "originate",
        trunks=tuple(_trunk(name, entry) for name, entry in file.trunks.items()),
    )


def _said(section: sections.Settings, of: type[Settings] | type[Limits]) -> dict[str, Any]:
    """What stands in the file; for the rest the model has defaults, or ``defaults`` has said it."""
    names = {field.name for field in fields(of)}
    return {name: getattr(section, name) for name in section.model_fields_set & names}


def _trunk(name: str, entry: sections.Trunk) -> Trunk:
    transport, listen = entry.listen
    return Trunk(
        name=name,
        transport=transport,
        listen=listen,
        peer=tuple(entry.peer),
        asterisk=entry.asterisk or sections.asterisk_beside(listen),
        endpoint=entry.endpoint or name,
        towards_peer=entry.public or listen,
        towards_asterisk=listen,
        allow=tuple(entry.allow),
        subscribe_from=entry.subscribe_from,
        retention=entry.retention,
        in_path=entry.in_path,
        call_info=entry.call_info,
        recall_timer=entry.cc_recall_timer,
    )


def resolved(trunk: Trunk, own_address: Callable[[Address], str]) -> Trunk:
    """The trunk with a real address towards either side, also where it listens on all of them.

    ``own_address``: the IP address from which this machine sends to that one.
    """

    def real(ours: Address, to: Address) -> Address:
        return ours._replace(host=own_address(to)) if ours.host in values.WILDCARDS else ours

    return replace(
        trunk,
        towards_peer=real(trunk.towards_peer, trunk.peer[0]),
        towards_asterisk=real(trunk.towards_asterisk, trunk.asterisk),
    )
