"""What only two keys together can get wrong with trunks: who is who by address, and by PJSIP endpoint."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from fastagi.config import sections, values
from fastagi.config.plain import Location, shown, where, whose
from fastagi.config.raw import devices, given, items, mapping_at, valid
from fastagi.config.source import Source
from fastagi.sip.trunk import Address


def look_at_trunks(source: Source) -> None:
    """Adds these faults to the source's."""
    taken: _Taken = {}
    server = mapping_at(source.content, "fastagi")
    if agi := given(server, "listen", values.listen, sections.Fastagi().listen):
        taken["tcp", agi.port] = {agi.host: ("fastagi", "listen")}
    phones = _phones(source)
    endpoints: dict[str, Location] = {}
    for name, entry in mapping_at(source.content, "trunks").items():
        seen = _Seen.read(("trunks", name), entry)
        _look_at_listen(source, seen, taken)
        _look_at_families(source, seen)
        _look_at_our_own(source, seen)
        _look_at_asterisk(source, seen)
        if endpoint := given(entry, "endpoint", values.endpoint, name):
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
        transport, listen = given(entry, "listen", values.trunk_listen, None) or ("", None)
        beside = sections.asterisk_beside(listen) if listen else None
        return cls(
            at,
            transport,
            listen,
            given(entry, "public", values.address, None),
            given(entry, "asterisk", values.address, beside),
            {(*at, "peer", place): peer for place, peer in items(entry, "peer", values.address).items()},
            tuple(items(entry, "allow", values.network).values()),
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
        taker = f"{whose(other)} in line {source.line(other)}" if other[0] == "trunks" else where(other)
        taken_by = f"is {shown(f'{seen.transport}:{seen.listen}')}, which {taker} takes"
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
    for key, entry in mapping_at(source.content, "extensions").items():
        for named in devices(entry):
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
        same = f"{is_this}, as that of {whose(other)} in line {source.line(other)}"
        source.fault(at, f"{same}: an endpoint of its own for each trunk is allowed")
    if phone := phones.get(endpoint):
        of = f"the device of {where(phone[:2])} in line {source.line(phone)}"
        source.fault(at, f"{is_this}, {of}: an endpoint that is no phone's is allowed")
    elif not endpoint.startswith("_") and valid(values.key, endpoint) is not None:
        source.fault(at, f"{is_this}, which means the phone of that number: a name with letters is allowed")
