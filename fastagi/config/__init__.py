"""The configuration: one YAML file, read and checked once, completely, at the door.

`load` tells every fault at once, each in a sentence with line, key, value and what is allowed.  What it
returns needs no further check.  Whether the folders exist and may be written is not looked at here.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Any, TypeVar

from fastagi.completion.model import Device, Extension, Limits, Number, Settings
from fastagi.config import sections, values
from fastagi.config.faults import checked
from fastagi.config.plain import Location, shown, where
from fastagi.config.source import MAX_BYTES, Source
from fastagi.directory import Directory, Pattern
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
    _look_across(source)
    return _config(checked(source))


def _config(file: sections.File) -> Config:
    names = {field.name for field in fields(Settings)}

    def chosen(section: sections.Settings) -> dict[str, Any]:
        return {name: getattr(section, name) for name in section.model_fields_set & names}

    defaults = replace(Settings(), **chosen(file.defaults))
    entries = {
        key: Extension(
            Number(key),
            replace(defaults, **chosen(entry)),
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
        limits=Limits(**{field.name: getattr(file.defaults, field.name) for field in fields(Limits)}),
        ami=Ami(**dict(file.asterisk.ami)) if file.asterisk.ami else None,
        originate=file.asterisk.recall == "originate",
        trunks=tuple(_trunk(name, entry) for name, entry in file.trunks.items()),
    )


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


# --------------------------------------------------------------------------- what one key alone cannot tell

_T = TypeVar("_T")


def _look_across(source: Source) -> None:
    """Faults between keys; read from the raw content, so that they are told beside all the others."""
    _look_across_paths(source)
    asterisk = _mapping_at(source.content, "asterisk")
    if asterisk.get("recall") == "originate" and "ami" not in asterisk:
        sentence = "is 'originate', which goes through AMI: asterisk / ami is needed"
        source.fault(("asterisk", "recall"), f"asterisk / recall {sentence}")
    _look_across_trunks(source)
    owners: dict[Hashable, Location] = {}
    for key, entry in _mapping_at(source.content, "extensions").items():
        at: Location = ("extensions", key)
        if key.startswith("_"):
            if (pattern := _valid(Pattern, key)) and (other := owners.setdefault(pattern.rank, at)) != at:
                same = f'the same pattern as "{other[1]}" in line {source.line(other)}'
                source.fault(at, f"{where(at)} is {same}: one entry for each is allowed")
            continue
        at = (*at, "device")
        for named in _named_devices(entry):
            if (other := owners.setdefault(named, at)) != at:
                same = f'{named}, as "{other[1]}" does in line {source.line(other)}'
                source.fault(at, f"{where(at)} names {same}: one exact number for each device is allowed")


def _named_devices(entry: object) -> tuple[Device, ...]:
    return _given(entry, "device", values.devices, ()) or ()


def _look_across_paths(source: Source) -> None:
    section, defaults = _mapping_at(source.content, "asterisk"), sections.Asterisk()
    spool = _given(section, "spool", values.path, defaults.spool)
    temp = _given(section, "temp", values.path, defaults.temp)
    if temp and temp == spool:
        sentence = f"is {shown(str(temp))}, the spool itself: another folder of its file system is allowed"
        source.fault(("asterisk", "temp"), f"asterisk / temp {sentence}")
    store = _given(source.content, "store", values.path, sections.STORE)
    if not store:
        return
    beside = store.parent / sections.SOCKET
    control = _given(_mapping_at(source.content, "fastagi"), "control", values.path, beside)
    if control == store:
        source.fault(("store",), f"store is {shown(str(store))}, the control socket: another file is allowed")


def _look_across_trunks(source: Source) -> None:
    taken: _Taken = {}
    if agi := _given(
        _mapping_at(source.content, "fastagi"), "listen", values.listen, sections.Fastagi().listen
    ):
        taken["tcp", agi.port] = {agi.host: ("fastagi", "listen")}
    phones = _phones(source)
    endpoints: dict[str, Location] = {}
    for name, entry in _mapping_at(source.content, "trunks").items():
        seen = _Seen.read(("trunks", name), entry)
        _look_at_listen(source, seen, taken)
        _look_at_families(source, seen)
        _look_at_our_own(source, seen)
        _look_at_asterisk(source, seen)
        if endpoint := _given(entry, "endpoint", values.endpoint, name):
            _look_at_endpoint(source, (*seen.at, "endpoint"), endpoint, phones, endpoints)


_Taken = dict[tuple[str, int], dict[str, Location]]
"""Who listens: by transport and port, then by host."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The addresses of one trunk, as far as they are valid; whatever else is wrong with it."""

    at: Location
    transport: str
    listen: Address | None
    public: Address | None
    asterisk: Address | None
    peers: dict[Location, Address]
    allow: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def read(cls, at: Location, entry: object) -> "_Seen":
        transport, listen = _given(entry, "listen", values.trunk_listen, None) or ("", None)
        return cls(
            at,
            transport,
            listen,
            _given(entry, "public", values.address, None),
            _given(entry, "asterisk", values.address, sections.asterisk_beside(listen)),
            {(*at, "peer", place): peer for place, peer in _items(entry, "peer", values.address).items()},
            tuple(_items(entry, "allow", values.network).values()),
        )

    def theirs(self) -> dict[Location, Address]:
        asterisk = {(*self.at, "asterisk"): self.asterisk} if self.asterisk else {}
        return asterisk | self.peers

    def key_of(self, address: Address) -> str:
        """Under which key this address is our own; empty: it is not, as far as can be told here."""
        if address == self.public:
            return "public"
        if not self.listen or address.port != self.listen.port:
            return ""
        everywhere = self.listen.host in values.WILDCARDS and ip_address(address.host).is_loopback
        return "listen" if everywhere or address == self.listen else ""


def _look_at_listen(source: Source, seen: _Seen, taken: _Taken) -> None:
    if not seen.listen:
        return
    at = (*seen.at, "listen")
    hosts = taken.setdefault((seen.transport, seen.listen.port), {})
    if other := _overlapping(seen.listen.host, hosts):
        whose = f'"{other[1]}" in line {source.line(other)}' if other[0] == "trunks" else where(other)
        taken_by = f"is {shown(f'{seen.transport}:{seen.listen}')}, which {whose} takes"
        source.fault(at, f"{where(at)} {taken_by}: another address or port is allowed")
    hosts.setdefault(seen.listen.host, at)


def _overlapping(host: str, taken: dict[str, Location]) -> Location | None:
    """Who has this host's port already: 0.0.0.0 has that of every IPv4 address, [::] that of every address."""
    if host == "::":
        return next(iter(taken.values()), None)
    if host == "0.0.0.0":
        return next((at for other, at in taken.items() if ":" not in other or other == "::"), None)
    wide = None if ":" in host else taken.get("0.0.0.0")
    return taken.get(host) or wide or taken.get("::")


def _look_at_families(source: Source, seen: _Seen) -> None:
    public = {(*seen.at, "public"): seen.public} if seen.public else {}
    for at, address in (seen.theirs() | public).items():
        if seen.listen and values.version(address) != values.version(seen.listen):
            version = f"IPv{values.version(seen.listen)}"
            _not_this(source, at, address, f"but listen is of {version}: an {version} address")


def _look_at_our_own(source: Source, seen: _Seen) -> None:
    for at, address in seen.theirs().items():
        if key := seen.key_of(address):
            _not_this(source, at, address, f"which is our own ({key}): another address or port")


def _look_at_asterisk(source: Source, seen: _Seen) -> None:
    """It and the peers must be told apart by what a packet comes from: with tcp that is the IP address alone."""
    if not (asterisk := seen.asterisk):
        return
    at = (*seen.at, "asterisk")
    if asterisk in seen.peers.values():
        _not_this(source, at, asterisk, "a peer's address too: another address or port")
    elif seen.transport == "tcp" and asterisk.host in {peer.host for peer in seen.peers.values()}:
        _not_this(source, at, asterisk, "and a peer has that IP address too: with tcp another one")
    elif seen.transport == "tcp" and any(ip_address(asterisk.host) in network for network in seen.allow):
        _not_this(source, at, asterisk, "and allow has that IP address too: with tcp another one")


def _not_this(source: Source, at: Location, address: Address, sentence: str) -> None:
    source.fault(at, f"{where(at)} is {shown(str(address))}, {sentence} is allowed")


def _phones(source: Source) -> dict[str, Location]:
    """The endpoints that entries of extensions name, each with the first that does."""
    found: dict[str, Location] = {}
    for key, entry in _mapping_at(source.content, "extensions").items():
        for named in _named_devices(entry):
            found.setdefault(named.removeprefix("PJSIP/"), ("extensions", key, "device"))
    return found


def _look_at_endpoint(
    source: Source,
    at: Location,
    endpoint: str,
    phones: dict[str, Location],
    taken: dict[str, Location],
) -> None:
    is_this = f"{where(at)} is {shown(endpoint)}"
    if (other := taken.setdefault(endpoint, at)) != at:
        same = f'{is_this}, as that of "{other[1]}" in line {source.line(other)}'
        source.fault(at, f"{same}: an endpoint of its own for each trunk is allowed")
    if phone := phones.get(endpoint):
        of = f'the device of extensions / "{phone[1]}" in line {source.line(phone)}'
        source.fault(at, f"{is_this}, {of}: an endpoint that is no phone's is allowed")
    elif not endpoint.startswith("_") and _valid(values.key, endpoint) is not None:
        source.fault(at, f"{is_this}, which means the phone of that number: a name with letters is allowed")


def _mapping_at(content: object, key: str) -> dict[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _given(section: object, key: str, check: Callable[[Any], _T], default: _T) -> _T | None:
    """The value of this key; the default where it is not there, None where it is not valid."""
    return _valid(check, section[key]) if isinstance(section, dict) and key in section else default


def _items(section: object, key: str, check: Callable[[Any], _T]) -> dict[int, _T]:
    """What is valid in the list that this key has, by place."""
    found = section.get(key) if isinstance(section, dict) else None
    items = enumerate(found if isinstance(found, list) else [])
    return {place: value for place, item in items if (value := _valid(check, item)) is not None}


def _valid(check: Callable[[Any], _T], value: object) -> _T | None:
    """None where it is not valid: that fault is told elsewhere."""
    try:
        return check(value)
    except ValueError:
        return None
