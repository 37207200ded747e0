"""Two PBXs, or one and a peer by hand, joined by a trunk; what must hold after every conversation is looked at."""

from collections.abc import Iterator

import pytest

from tests.unit.trunks import Pair, Peer, alone, check


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    for site in pair.sites:
        check(site)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(alone())
    yield peer
    check(peer.site)
