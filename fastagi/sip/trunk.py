"""One trunk: which addresses are Asterisk's, which the peer's, which ours.  Pure.

Asterisk takes all that comes from here for the trunk.  So nothing is taken from, and nothing sent to, an
address that is not named here.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from fastagi.sip.uri import Malformed, Uri

DEFAULT_PORT: Final = 5060  # RFC 3261, 19.1.2


class Address(NamedTuple):
    """Its text is what stands in a Via or a URI: ``192.0.2.1:5060``, ``[2001:db8::1]:5060``."""

    host: str  # an IP address without brackets
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Side(StrEnum):
    """Whence a message comes, or where it goes."""

    PEER = "peer"
    ASTERISK = "asterisk"

    @property
    def other(self) -> "Side":
        return Side.ASTERISK if self is Side.PEER else Side.PEER


@dataclass(frozen=True, slots=True)
class Trunk:
    """All that is configured about one."""

    name: str
    transport: str  # "udp" or "tcp", the same on both sides
    listen: Address
    peer: tuple[Address, ...]  # at least one
    asterisk: Address
    endpoint: str  # Asterisk's PJSIP endpoint of this trunk
    towards_peer: Address  # what our Via, Contact and URIs say to the peer
    towards_asterisk: Address
    allow: tuple[IPv4Network | IPv6Network, ...] = ()  # further sources that count as the peer
    subscribe_from: str = "caller"  # or a sip URI
    retention: bool = True
    in_path: bool = True  # whether the calls pass our element; else we only subscribe beyond it
    call_info: bool = True  # whether failures of Asterisk get a Call-Info of ours
    recall_timer: float = 20  # seconds
    _exact: dict[tuple[str, int], Side] = field(init=False, repr=False, compare=False)
    _hosts: dict[str, Side] = field(init=False, repr=False, compare=False)  # tcp: there ports are ephemeral
    _ours: frozenset[tuple[str, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = {_plain(*peer): Side.PEER for peer in self.peer} | {_plain(*self.asterisk): Side.ASTERISK}
        hosts = {host: exact[host, port] for host, port in exact} if self.transport == "tcp" else {}
        ours = {_plain(*a) for a in (self.listen, self.towards_peer, self.towards_asterisk)}
        for table, content in (("_exact", exact), ("_hosts", hosts), ("_ours", frozenset(ours))):
            object.__setattr__(self, table, content)

    def side(self, source: Address) -> Side | None:
        """Whose address that is; None: a stranger's.

        Over UDP host and port count, over TCP the host alone; of what is in ``allow`` the host alone.
        """
        return self._exact.get(source) or self._hosts.get(source.host) or self._unusual_side(source)

    def _unusual_side(self, source: Address) -> Side | None:
        ip = _ip(source.host)
        place = str(ip), source.port
        known = self._exact.get(place) or self._hosts.get(place[0])
        if known or ip is None or place in self._ours:
            return known
        return Side.PEER if any(ip in network for network in self.allow) else None

    def permitted(self, target: Address, side: Side) -> bool:
        """Whether what is for ``side`` may be sent to that address."""
        return self.side(target) is side

    def is_us(self, host: str, port: int | None) -> bool:
        """Whether a Via or a URI with that host (an IPv6 one in brackets) and port is of ours."""
        place = host, port or DEFAULT_PORT
        return place in self._ours or (":" in host and _plain(*place) in self._ours)

    def towards(self, side: Side) -> Address:
        """What that side knows us by."""
        return self.towards_peer if side is Side.PEER else self.towards_asterisk

    def peer_for(self, uri: str) -> Address:
        """The peer whose host and port the URI names, else whose host it names, else the first."""
        if len(self.peer) == 1:
            return self.peer[0]
        try:
            named = Uri.parse(uri)
        except Malformed:
            return self.peer[0]
        host, port = _plain(named.host, named.port or DEFAULT_PORT)
        alike = [peer for peer in self.peer if _plain(*peer)[0] == host]
        return next((peer for peer in alike if peer.port == port), (alike or self.peer)[0])


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """An IPv4 address is one in any dress: a socket of both families reports ``::ffff:192.0.2.1``."""
    try:
        ip = ip_address(host)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _plain(host: str, port: int) -> tuple[str, int]:
    """As two spellings of one address are the same; a name, which is none of ours, stays what it is."""
    host = host.strip("[]").lower()
    return str(_ip(host) or host), port
