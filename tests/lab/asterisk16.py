"""An Asterisk 16 with chan_sip, whose trunk speaks call completion natively: a foreign PBX on the bench.

    foreign = Asterisk16(folder, ensure_asterisk16(), host="127.0.1.16")
    foreign.connect(EXTENSIONS, [Phone("7000", "Grace")], Peer("trunk", "127.0.1.3", 5070))
    with foreign:
        ...

Things to keep in mind: chan_sip takes who calls from the user of From first, so the numbers of its own phones
must be none of the other side's; a SUBSCRIBE is let in only if that user is the peer's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.lab.asterisk import Asterisk, Phone

MODULES = """
res_pjproject res_sorcery_config res_sorcery_memory res_sorcery_astdb res_timing_timerfd res_crypto
res_musiconhold res_clioriginate res_rtp_asterisk res_http_websocket
chan_sip
bridge_simple bridge_native_rtp bridge_softmix bridge_holding
bridge_builtin_features bridge_builtin_interval_features
codec_ulaw codec_alaw codec_a_mu codec_gsm codec_resample format_pcm format_gsm format_sln format_wav
func_callcompletion func_callerid func_cdr func_channel func_devstate func_dialplan func_global
func_hangupcause func_logic func_strings func_timeout
app_stack app_dial app_playback app_verbose
pbx_config cdr_csv
"""

TIMERS = """\
cc_offer_timer=60
ccbs_available_timer=4800
ccnr_available_timer=7200
cc_recall_timer=20
cc_max_agents=5
cc_max_monitors=5
"""


@dataclass(frozen=True)
class Peer:
    """The trunk, known by its address; native call completion both ways."""

    name: str
    host: str
    port: int
    context: str = "trunk"
    extra: str = ""

    def section(self) -> str:
        return f"""
[{self.name}]
type=peer
host={self.host}
port={self.port}
insecure=port,invite
context={self.context}
cc_agent_policy=native
cc_monitor_policy=native
{TIMERS}{self.extra}"""


class Asterisk16(Asterisk):
    """Started, stopped and asked as any Asterisk; only its SIP is configured otherwise."""

    modules = MODULES

    def connect(self, extensions: str, phones: Iterable[Phone], peer: Peer) -> None:
        """Write every configuration file; it counts from the next start."""
        self._write_common(extensions)
        self._write("ccss.conf", "[general]\ncc_max_requests=100\n")
        self._write("sip.conf", "".join([self._general(), *map(_phone, phones), peer.section()]))

    def _general(self) -> str:
        host, port = self.sip_address
        return f"""\
[general]
udpbindaddr={host}:{port}
tcpenable=no
transport=udp
srvlookup=no
allowguest=no
context=nobody
directmedia=no
disallow=all
allow=ulaw,alaw
"""

    def start(self) -> None:
        self._log_before = self.log_size()
        super().start()

    def _has_its_port(self) -> bool:
        # chan_sip starts without it, and its settings name it all the same.
        return not self.log_lines("Failed to bind to", after=self._log_before)


def _phone(phone: Phone) -> str:
    return f"""
[{phone.number}]
type=friend
host=dynamic
secret={phone.password or phone.number}
callerid={phone.name} <{phone.number}>
context={phone.context}
dtmfmode=info
callcounter=yes
cc_agent_policy=generic
cc_monitor_policy=generic
{TIMERS}{phone.extra}"""
