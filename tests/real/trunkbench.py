"""Two PBXs and the trunk between them, with the words of the bench and a wire that keeps what passes.

    Asterisk a - element a - wire - element b - Asterisk b       TwoPbx
    Asterisk a - element a - wire - Asterisk 16                  Foreign

The elements are the sites' own fastagi servers.  Everybody has an address of his own and all have one port,
which is new for each bench: the wire needs no Via, and several benches may run at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.lab.asterisk import Address, Asterisk, Trunk, free_port
from tests.lab.asterisk import Phone as Endpoint
from tests.lab.asterisk16 import Asterisk16, Peer
from tests.lab.install import Tree
from tests.lab.phone import Call
from tests.lab.server import DIALPLAN
from tests.lab.wire import Wire
from tests.real.bench import HEAD, QUICK, SEEN, Pbx, Site, Words

NAMES = {
    "a": {"1000": "Alice", "2000": "Bob", "3000": "Carol"},
    "b": {"4000": "Dave", "5000": "Eve", "6000": "Frank"},
    "foreign": {"7000": "Grace", "8000": "Heidi", "9000": "Ivan"},
}
ASTERISKS = {"a": "127.0.1.22", "b": "127.0.2.22", "foreign": "127.0.2.16"}
ELEMENTS = {"a": "127.0.1.3", "b": "127.0.2.3"}
WIRE = {"a": "127.0.1.9", "b": "127.0.2.9"}  # what a side takes for its peer
PEER_OF_FOREIGN = "fastagi"  # what Asterisk 16 calls its trunk: chan_sip knows a SUBSCRIBE by it
HOSTS = (*ASTERISKS.values(), *ELEMENTS.values(), *WIRE.values())
REACHABLE = 5.0  # seconds until a qualified trunk is seen to be up

# What a site with a trunk writes.
SITE = """
[site]
exten => _[{own}]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _[{others}]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}}@{trunk},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
; asking by a digit
exten => _*8[{own}]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:2}},{ring},,${{EXTEN:2}}))
 same => n,Gosub(cc-offer,s,1)
 same => n,Hangup()
exten => _*8[{others}]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN:2}}@{trunk},{ring},,${{EXTEN:2}}))
 same => n,Gosub(cc-offer,s,1)
 same => n,Hangup()
; plain Dial, and a hang-up handler
exten => _*9[{others}]000,1,Set(CHANNEL(hangup_handler_push)=cc-hangup,s,1(${{EXTEN:2}},PJSIP/${{EXTEN:2}}@{trunk}))
 same => n,Dial(PJSIP/${{EXTEN:2}}@{trunk},{ring})
 same => n,Hangup(${{HANGUPCAUSE}})
; what is known of one beyond the trunk
exten => _*7[{others}]000,1,Answer()
 same => n,Gosub(cc-ask,trunkstatus,1(${{EXTEN:2}}))
 same => n,Verbose(1,site-trunkstatus ${{CC_TRUNK_STATUS}})
 same => n,Hangup()
; without cc-dial: plain Dial
exten => _5[{own}]000,1,Dial(PJSIP/${{EXTEN:1}},{ring})
 same => n,Hangup()
exten => _5[{others}]000,1,Dial(PJSIP/${{EXTEN:1}}@{trunk},{ring})
 same => n,Hangup()

[from-trunk]
exten => _[{own}]000,1,Gosub(cc-dial,s,1(PJSIP/${{EXTEN}},{ring}))
 same => n,Hangup(${{HANGUPCAUSE}})
exten => h,1,Verbose(1,trunk-h ${{CHANNEL}} dial=${{DIALSTATUS}})
"""

# As Asterisk's own call completion has it; *30 and *31 so that asks() dials the same everywhere.
SITE16 = """\
[general]
[phones]
exten => 30,1,Answer()
 same => n,CallCompletionRequest()
 same => n,Hangup()
exten => 31,1,Answer()
 same => n,CallCompletionCancel()
 same => n,Hangup()
exten => *30,1,Goto(30,1)
exten => *31,1,Goto(31,1)
exten => _[{own}]000,1,Dial(SIP/${{EXTEN}},{ring})
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _[{others}]000,1,Dial(SIP/${{EXTEN}}@{peer},{ring})
 same => n,Hangup(${{HANGUPCAUSE}})
exten => _5[{own}]000,1,Dial(SIP/${{EXTEN:1}},{ring})
exten => _5[{others}]000,1,Dial(SIP/${{EXTEN:1}}@{peer},{ring})
exten => h,1,{seen}

[from-trunk]
exten => _[{own}]000,1,Dial(SIP/${{EXTEN}},{ring})
 same => n,Hangup(${{HANGUPCAUSE}})
"""


class TrunkSite(Site):
    """An Asterisk 22 with phones and fastagi; its fastagi's element is the way to the other side.

    qualify: seconds between two OPTIONS of Asterisk to the other side, 0 for none; settings: further keys of
    the trunk in fastagi's configuration, which count from the next start.
    """

    settings = ""

    def __init__(
        self, folder: Path, tree: Tree, name: str, other: str, port: int, *, transport: str, qualify: float
    ) -> None:
        self.name, self.other, self.transport, self.qualify = name, other, transport, qualify
        self.element = ELEMENTS[name], port
        self.peer = WIRE[name], port
        tcp = transport == "tcp"
        asterisk = Asterisk(folder / "asterisk", tree, port, lambda line: None, ASTERISKS[name], tcp)
        super().__init__(folder, asterisk, NAMES[name])
        trunk = Trunk(other, *self.peer, "from-trunk", "", self.element, transport, qualify)
        asterisk.configure(self.dialplan(), _endpoints(self.names), [trunk])

    def dialplan(self, ring: int = 20) -> str:
        own, others = _first_digits(self.names), _first_digits(NAMES[self.other])
        return (HEAD + SITE).format(
            dialplan=DIALPLAN, port=self.port, ring=ring, seen=SEEN, own=own, others=others, trunk=self.other
        )

    def launch(self, config: str = QUICK) -> None:
        super().launch(config + self.trunk())

    def reconfigure(self, config: str = QUICK) -> None:
        super().reconfigure(config + self.trunk())

    def trunk(self) -> str:
        """The trunk in fastagi's configuration."""
        listen, peer, asterisk = (f"{host}:{port}" for host, port in self._addresses())
        more = f", {self.settings}" if self.settings else ""
        return (
            f'trunks:\n  {self.other}: {{listen: "{self.transport}:{listen}", peer: ["{peer}"],'
            f' asterisk: "{asterisk}", endpoint: {self.other}{more}}}\n'
        )

    def _addresses(self) -> tuple[Address, ...]:
        return self.element, self.peer, self.asterisk.sip_address

    def reachable(self) -> bool:
        """Whether Asterisk finds the other side through the element just now."""
        self.asterisk.cli(f"pjsip qualify {self.other}")
        time.sleep(0.05)
        return " Avail " in self.asterisk.cli(f"pjsip show aor {self.other}")


class Joined(Words):
    """Two PBXs, the phones of both under one roof, and the wire between them."""

    def __init__(self, pbxs: Sequence[Pbx], wire: Wire) -> None:
        self.pbxs, self.wire = pbxs, wire
        self.sites = [pbx for pbx in pbxs if isinstance(pbx, TrunkSite)]
        self.phones = {}

    def pbx_of(self, number: str) -> Pbx:
        return next(pbx for pbx in self.pbxs if number in pbx.names)

    # Before and after each test

    def fresh(self, config: str = QUICK, **settings: str) -> None:
        """Nothing recorded, nothing pending, nothing on the wire, all phones registered and idle.

        settings: those of a site's trunk, by the site's name: fresh(b="retention: no").
        """
        self.close_phones()
        for pbx in self.pbxs:
            pbx.recover()
        for site in self.sites:
            site.settings = settings.get(site.name, "")
            site.launch(config)
        for site in self.sites:
            site.server.wait_ready()
        for pbx in self.pbxs:
            pbx.ready()
            self.phones |= pbx.phones
        for site in self.sites:
            if site.qualify:
                self.until(site.reachable, f"{site.name} reaches {site.other}", REACHABLE)
        self.wire.clear()

    def clear(self) -> None:
        self.close_phones()
        for pbx in self.pbxs:
            pbx.clear()
        assert not self.wire.faults, self.wire.faults

    def close_phones(self) -> None:
        self.wire.mend()
        for pbx in self.pbxs:
            pbx.asterisk.stay()
            pbx.close_phones()
        self.phones.clear()
        # A CANCEL has to pass the elements; of what is stuck here the next step tells.
        end = time.monotonic() + 1
        while time.monotonic() < end and any(map(_calls, self.pbxs)):
            time.sleep(0.02)

    def evidence(self) -> str:
        told = [line for pbx in self.pbxs for line in (f"-- {pbx.asterisk.folder}", pbx.evidence())]
        return "\n".join([*told, "-- the wire", self.wire.transcript()])

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.wire)
            for pbx in self.pbxs:
                stack.enter_context(pbx.running())
            yield self


class TwoPbx(Joined):
    """Site a with phones 1000 to 3000, site b with 4000 to 6000, and both elements between them."""

    def __init__(self, folder: Path, tree: Tree, *, transport: str = "udp", qualify: float = 0) -> None:
        port = free_port(*HOSTS)
        self.a, self.b = (
            TrunkSite(folder / name, tree, name, other, port, transport=transport, qualify=qualify)
            for name, other in (("a", "b"), ("b", "a"))
        )
        a, b = ((site.element, site.peer) for site in (self.a, self.b))
        super().__init__((self.a, self.b), Wire(a, b, transport))


class Foreign(Joined):
    """Site a with phones 1000 to 3000, and an Asterisk 16 with 7000 to 9000, which is ``b`` on the wire."""

    def __init__(self, folder: Path, tree: Tree, tree16: Tree, *, qualify: float = 0) -> None:
        port = free_port(*HOSTS)
        self.a = TrunkSite(folder / "a", tree, "a", "foreign", port, transport="udp", qualify=qualify)
        self.foreign = ForeignPbx(folder / "foreign", tree16, port)
        b = self.foreign.asterisk.sip_address, self.foreign.peer
        super().__init__((self.a, self.foreign), Wire((self.a.element, self.a.peer), b))

    def fresh(self, config: str = QUICK, **settings: str) -> None:
        known = f'subscribe_from: "sip:{PEER_OF_FOREIGN}@{ELEMENTS["a"]}"'
        super().fresh(config, a=", ".join(filter(None, (known, settings.get("a")))))

    def recalled(self, caller: str = "1000", timeout: float = 5.0) -> Call:
        if caller in self.a.names:
            return super().recalled(caller, timeout)
        return self.phones[caller].expect_call(timeout)  # Asterisk 16 shows its caller his own name


class ForeignPbx(Pbx):
    """The Asterisk 16 and its phones; ``*30`` and ``*31``, or 30 and 31, are its own call completion."""

    technology = "SIP"

    def __init__(self, folder: Path, tree: Tree, port: int) -> None:
        self.peer = WIRE["b"], port
        asterisk = Asterisk16(folder / "asterisk", tree, port, lambda line: None, ASTERISKS["foreign"])
        super().__init__(asterisk, NAMES["foreign"])
        own, others = _first_digits(self.names), _first_digits(NAMES["a"])
        dialplan = SITE16.format(ring=20, seen=SEEN, peer=PEER_OF_FOREIGN, own=own, others=others)
        trunk = Peer(PEER_OF_FOREIGN, *self.peer, "from-trunk")
        asterisk.connect(dialplan, _endpoints(self.names), trunk)

    def close_phones(self, *, abruptly: bool = False) -> None:
        if not abruptly:  # while the other side can still be told of it
            self.asterisk.cli("cc cancel all")
        super().close_phones(abruptly=abruptly)


def _calls(pbx: Pbx) -> list[str]:
    return [name for name in pbx.asterisk.channels() if name.startswith(pbx.technology)]


def _first_digits(names: Mapping[str, str]) -> str:
    return "".join(sorted(number[0] for number in names))


def _endpoints(names: Mapping[str, str]) -> list[Endpoint]:
    return [Endpoint(number, name) for number, name in names.items()]
