"""One running Asterisk with a folder, a SIP port and a control socket of its own.

    asterisk = Asterisk(folder, ensure_asterisk())
    asterisk.configure(EXTENSIONS, phones=[Phone("1000", "Alice"), Phone("2000", "Bob")])
    with asterisk:
        print(asterisk.cli("core show channels"))

Several may run at once, each in its folder, and each on a loopback address of its own where that matters.
What is in the folder outlives a restart, as on a real machine: registrations, the call files in the spool,
the log.
"""

from __future__ import annotations

import atexit
import getpass
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tests.lab.install import LabError, Say, Tree

Address = tuple[str, int]

HOST = "127.0.0.1"
SERVANT = "nobody", "nogroup"  # who runs Asterisk when we are root
LONGEST_SOCKET_PATH = 107  # sun_path in unix(7), less its final zero
BOOT_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
AMI_USER, AMI_SECRET = "fastagi", "not for the log"

# What a module needs is not always what it names: res_agi needs res_speech, res_pjsip_exten_state needs
# res_pjsip_outbound_publish.  func_shell and app_system are left out on purpose: nothing may run a command.
MODULES = """
res_pjproject res_sorcery_config res_sorcery_memory res_sorcery_astdb res_timing_timerfd res_crypto
res_speech res_musiconhold res_clioriginate res_rtp_asterisk
res_pjsip res_pjsip_session res_pjsip_sdp_rtp res_pjsip_pubsub res_pjsip_outbound_publish
res_pjsip_authenticator_digest res_pjsip_outbound_authenticator_digest res_pjsip_outbound_registration
res_pjsip_endpoint_identifier_user res_pjsip_endpoint_identifier_ip res_pjsip_registrar
res_pjsip_caller_id res_pjsip_nat res_pjsip_dtmf_info res_pjsip_empty_info res_pjsip_header_funcs
res_pjsip_rfc3326 res_pjsip_diversion res_pjsip_refer res_pjsip_dlg_options res_pjsip_logger
res_pjsip_exten_state res_pjsip_pidf_body_generator res_pjsip_dialog_info_body_generator
chan_pjsip
bridge_simple bridge_native_rtp bridge_softmix bridge_holding
bridge_builtin_features bridge_builtin_interval_features
codec_ulaw codec_alaw codec_a_mu codec_gsm codec_resample format_pcm format_gsm format_sln format_wav
func_callerid func_cdr func_channel func_cut func_db func_devstate func_dialplan func_env func_evalexten
func_export func_extstate func_global func_groupcount func_hangupcause func_lock func_logic func_math
func_module func_pjsip_aor func_pjsip_contact func_pjsip_endpoint func_presencestate func_rand func_sprintf
func_strings func_timeout func_uri func_uuid func_version
app_stack app_dial app_bridgewait app_cdr app_chanisavail app_channelredirect app_controlplayback app_db
app_directed_pickup app_dumpchan app_echo app_exec app_if app_originate app_playback app_playtones app_read
app_readexten app_sayunixtime app_senddtmf app_softhangup app_transfer app_userevent app_verbose
app_waitforcond app_while
res_agi res_manager_devicestate pbx_config pbx_spool cdr_csv
"""

# Files that only have to be there, or to say no, so that nothing complains at the start.
SETTINGS = {
    "acl.conf": "",
    "ccss.conf": "[general]\n",
    "cdr.conf": "[general]\nenable=yes\nunanswered=yes\n[csv]\nusegmtime=no\nloguniqueid=yes\n",
    "cel.conf": "[general]\nenable=no\n",
    "cli.conf": "",
    "cli_permissions.conf": "[general]\ndefault_perm=permit\n",
    "codecs.conf": "",
    "dnsmgr.conf": "[general]\nenable=no\n",
    "dsp.conf": "[default]\n",
    "enum.conf": "[general]\n",
    "features.conf": "[general]\n[featuremap]\n",
    "http.conf": "[general]\nenabled=no\n",
    "indications.conf": """\
[general]
country=us
[us]
description=United States
ringcadence=2000,4000
dial=350+440
busy=480+620/500,0/500
ring=440+480/2000,0/4000
congestion=480+620/250,0/250
callwaiting=440/300,0/10000
dialrecall=!350+440/100,!0/100,!350+440/100,!0/100,!350+440/100,!0/100,350+440
record=1400/500,0/15000
info=!950/330,!1400/330,!1800/330,0
stutter=!350+440/100,!0/100,!350+440/100,!0/100,350+440
""",
    "logger.conf": """\
[general]
dateformat=%F %T.%3q
queue_log=no
[logfiles]
full=notice,warning,error,dtmf,verbose(5)
""",
    "manager.conf": "[general]\nenabled=no\n",
    "pjproject.conf": "",
    "rtp.conf": "[general]\nrtpstart=10000\nrtpend=20000\nicesupport=no\n",
    "stasis.conf": "",
    "udptl.conf": "[general]\n",
}


@dataclass(frozen=True)
class Phone:
    """A registered phone; its user name is its number, and its password too unless one is given.

    qualify_frequency is in seconds, 0 for never; extra holds further lines of its endpoint section.
    """

    number: str
    name: str
    password: str = ""
    context: str = "phones"
    dtmf_mode: str = "info"
    max_contacts: int = 2
    qualify_frequency: float = 0
    extra: str = ""

    def section(self) -> str:
        return f"""
[{self.number}]
type=endpoint
context={self.context}
transport=lan
aors={self.number}
auth={self.number}
{f"callerid={self.name} <{self.number}>" if self.name else ""}
dtmf_mode={self.dtmf_mode}
{COMMON}{self.extra}

[{self.number}]
type=auth
auth_type=userpass
username={self.number}
password={self.password or self.number}

[{self.number}]
type=aor
max_contacts={self.max_contacts}
remove_existing=no
qualify_frequency={self.qualify_frequency:g}
qualify_timeout=1.0
"""


@dataclass(frozen=True)
class Trunk:
    """Another exchange, known by its address alone: whatever it sends is let in, unauthenticated.

    With an element in between, that one is let in instead, and everything for the exchange goes through it.
    transport is udp or tcp, qualify_frequency in seconds, 0 for never.
    """

    name: str
    host: str
    port: int
    context: str = "trunk"
    extra: str = ""
    element: Address | None = None
    transport: str = "udp"
    qualify_frequency: float = 0

    def section(self) -> str:
        over = "" if self.transport == "udp" else f"\\;transport={self.transport}"
        way = ""
        if self.element:
            way = "outbound_proxy=sip:{}:{}{}\\;lr\n".format(*self.element, over)
            way += "identify_by=ip\nrewrite_contact=no\n"
        return f"""
[{self.name}]
type=endpoint
context={self.context}
transport={"lan" if self.transport == "udp" else f"lan-{self.transport}"}
aors={self.name}
{way}{COMMON}{self.extra}

[{self.name}]
type=aor
contact=sip:{self.host}:{self.port}{over}
qualify_frequency={self.qualify_frequency:g}
qualify_timeout=1.0

[{self.name}]
type=identify
endpoint={self.name}
match={self._match()}
"""

    def _match(self) -> str:
        host, port = self.element or (self.host, self.port)
        # A connection comes from any port.
        return f"{host}:{port}" if self.transport == "udp" else host


COMMON = """\
disallow=all
allow=ulaw,alaw
direct_media=no
bind_rtp_to_media_address=yes
media_address=127.0.0.1
"""


class Asterisk:
    """An instance; sip_port 0 picks a free one.  Start it, talk to it, stop or kill it, start it again.

    host is a loopback address, any of 127.0.0.0/8; tcp: SIP over TCP too, on the same port; ami: the manager
    interface too, at ami_address, for AMI_USER with no more than the rights that fastagi needs.
    """

    modules = MODULES

    def __init__(
        self, folder: Path, tree: Tree, sip_port: int = 0, say: Say = print, host: str = HOST,
        tcp: bool = False, ami: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.tree = tree
        self.tcp = tcp
        self.ami = ami
        self.sip_address = (host, sip_port or free_port(host))
        self.ami_address = (host, lasting_port(host) if ami else 0)
        self.etc = self.folder / "etc"
        self.spool = self.folder / "spool/outgoing"
        self.spool_temp = self.folder / "spool/tmp"
        self.log = self.folder / "log/full"
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping: subprocess.Popen[bytes] | None = None
        self._make_folders()
        self.configure("")

    # Configuration

    def configure(self, extensions: str, phones: Iterable[Phone] = (), trunks: Iterable[Trunk] = ()) -> None:
        """Write every configuration file; it counts from the next start."""
        self._write_common(extensions)
        sections = [phone.section() for phone in phones] + [trunk.section() for trunk in trunks]
        self._write("pjsip.conf", "".join([self._transports(), *sections]))

    def _write_common(self, extensions: str) -> None:
        for name, text in SETTINGS.items():
            self._write(name, text)
        if self.ami:
            self.configure_ami()
        self._write("asterisk.conf", self._asterisk_conf())
        loads = "".join(f"load={module}.so\n" for module in self.modules.split())
        self._write("modules.conf", f"[modules]\nautoload=no\n{loads}")
        music = self.tree.data_dir / "sounds/en/demo-congrats"
        self._write("musiconhold.conf", f"[default]\nmode=playlist\nentry={music}\n")
        self._write("extensions.conf", extensions)

    def configure_ami(self, secret: str = AMI_SECRET, general: str = "", user: str = "") -> None:
        """Who may use the manager interface; with further lines for [general] and for the user.

        It counts from the next start, or from reload_ami().
        """
        host, port = self.ami_address
        self._write("manager.conf", f"""\
[general]
enabled=yes
bindaddr={host}
port={port}
{general}
[{AMI_USER}]
secret={secret}
read=call
write=call,originate
{user}
""")

    def reload_ami(self) -> None:
        """Put a manager.conf that was written in force."""
        self.cli("manager reload")

    def _transports(self) -> str:
        host, port = self.sip_address
        text = f"[global]\ntype=global\n\n[lan]\ntype=transport\nprotocol=udp\nbind={host}:{port}\n"
        if self.tcp:
            text += f"\n[lan-tcp]\ntype=transport\nprotocol=tcp\nbind={host}:{port}\n"
        return text

    def reload_dialplan(self, extensions: str) -> None:
        """Put another dialplan in force while calls go on."""
        self._write("extensions.conf", extensions)
        self.cli("dialplan reload")

    def _asterisk_conf(self) -> str:
        data = self.tree.data_dir
        return f"""\
[directories]
astetcdir={self.etc}
astmoddir={self.tree.module_dir}
astdatadir={data}
astagidir={data}/agi-bin
astvarlibdir={self.folder}/var
astdbdir={self.folder}/var
astkeydir={self.folder}/var
astcachedir={self.folder}/var
astspooldir={self.folder}/spool
astrundir={self._run}
astlogdir={self.folder}/log
[options]
systemname=lab
nocolor=yes
hideconnect=yes
"""

    def _write(self, name: str, text: str) -> None:
        (self.etc / name).write_text(text)

    def _make_folders(self) -> None:
        # The spool takes files from another user, and Asterisk rewrites them: group and set-group-id let it.
        writable = [self.folder / name for name in ("var", "var/keys", "log", "log/cdr-csv", "run")]
        shared = [self.folder / "spool", self.spool, self.spool_temp, self.folder / "spool/outgoing_done"]
        for path in (self.folder, self.etc, *writable, *shared):
            path.mkdir(parents=True, exist_ok=True)
        self._run = self.folder / "run"
        if len(bytes(self._run / "asterisk.ctl")) > LONGEST_SOCKET_PATH:
            self._run = Path(tempfile.mkdtemp(prefix="lab-"))
            atexit.register(shutil.rmtree, self._run, ignore_errors=True)
            writable.append(self._run)
        self.user = SERVANT[0] if os.geteuid() == 0 and self._servant_may_enter() else None
        if self.user:
            for path in (*writable, *shared):
                shutil.chown(path, *SERVANT)
        for path in shared:
            path.chmod(0o2775)

    def _servant_may_enter(self) -> bool:
        places = [self.etc, self.tree.root]
        return all(p.stat().st_mode & 0o001 for place in places for p in (place, *place.parents))

    # Life

    def start(self) -> None:
        """Start, and return once Asterisk is fully booted and has its SIP port.

        It dies with the thread that started it (PR_SET_PDEATHSIG): call this from the main one.
        """
        if self.running():
            raise LabError(f"Asterisk in {self.folder} is running already")
        self._socket.unlink(missing_ok=True)  # left over from a killed one
        as_servant = [f"--reuid={SERVANT[0]}", f"--regid={SERVANT[1]}", "--clear-groups"] if self.user else []
        command = ["setpriv", "--pdeathsig", "KILL", *as_servant, *self._command("-f")]
        who = self.user or f"your own user, {_own_name()}"
        sip = "{}:{}".format(*self.sip_address)
        self._say(f"Asterisk {self.tree.version} starts as {who}, SIP on {sip}")
        with (self.folder / "log/console").open("ab") as console:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                start_new_session=True,
            )
        atexit.register(self.kill)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not (self._socket.exists() and "fully booted" in self._ask("core waitfullybooted")):
            if not self.running() or time.monotonic() > deadline:
                self._fail("did not start")
            time.sleep(0.02)
        if not self._has_its_port():
            self._fail(f"could not use {sip}")

    def _has_its_port(self) -> bool:
        names = ["lan", "lan-tcp"] if self.tcp else ["lan"]
        return not any("Unable to find" in self.cli(f"pjsip show transport {name}") for name in names)

    def stop(self) -> None:
        """End every call and stop, as `core stop now` does."""
        if self.running() and self._process:
            self._process.terminate()
        self.wait_stopped()

    def stop_gracefully(self) -> None:
        """Have it stop once no call is left, as `core stop gracefully`; does not wait for that."""
        command = self._command("-rx", "core stop gracefully")
        self._stopping = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it without warning, as a crash would."""
        if self.running() and self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait_stopped()

    def wait_stopped(self, timeout: float = STOP_TIMEOUT) -> None:
        """Wait until it has gone, after `core stop gracefully` for instance; kill it when it does not go."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise LabError(f"Asterisk did not stop within {timeout:g} s and was killed") from None
        finally:
            atexit.unregister(self.kill)
            if self._stopping:
                self._stopping.wait(STOP_TIMEOUT)
                self._stopping = None

    def restart(self) -> None:
        """Stop and start again, in the same folder and on the same port."""
        self.stop()
        self.start()

    def stay(self) -> None:
        """Start it unless it runs: a test that failed may have left it stopped, or about to."""
        if self._stopping:
            self.kill()
        if not self.running():
            self.start()

    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LabError("Asterisk was not started")
        return self._process.pid

    def __enter__(self) -> Asterisk:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.kill()

    # Talk

    def cli(self, command: str) -> str:
        """Run one command of the CLI and give what it prints."""
        if not self.running():
            raise LabError(f"Asterisk is not running: no {command!r}")
        return self._ask(command)

    def channels(self) -> list[str]:
        """The names of the channels there are."""
        lines = self.cli("core show channels concise").splitlines()
        return [line.split("!", 1)[0] for line in lines if "!" in line]

    def log_size(self) -> int:
        """How long the full log is so far, in bytes."""
        return self.log.stat().st_size if self.log.exists() else 0

    def log_lines(self, containing: str = "", after: int = 0) -> list[str]:
        """The lines of the full log so far that contain a text; `after` skips that many bytes of it."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(after)
            text = log.read().decode(errors="replace")
        return [line for line in text.splitlines() if containing in line]

    def wait_log(self, text: str, timeout: float = 5.0, after: int = 0) -> str:
        """Wait for a line that contains the text and give it; `after` skips that many bytes of the log."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in self.log_lines(text, after):
                return line
            time.sleep(0.02)
        raise LabError(f"no {text!r} in the log within {timeout:g} s; its end:\n{self._last_words()}")

    def _ask(self, command: str) -> str:
        done = subprocess.run(self._command("-rx", command), capture_output=True, text=True, errors="replace",
                              stdin=subprocess.DEVNULL, timeout=BOOT_TIMEOUT)
        return done.stdout

    def _command(self, *arguments: str) -> list[str]:
        return [*self.tree.asterisk_command(), "-C", str(self.etc / "asterisk.conf"), *arguments]

    @property
    def _socket(self) -> Path:
        return self._run / "asterisk.ctl"

    def _fail(self, what: str) -> NoReturn:
        words = self._last_words()
        self.kill()
        raise LabError(f"Asterisk {what}; the end of its log:\n{words}")

    def _last_words(self) -> str:
        lines = self.log_lines()
        if not lines and (console := self.folder / "log/console").exists():
            lines = console.read_text(errors="replace").splitlines()
        # A start writes a thousand lines of no interest, some of them after the one that matters.
        grave = [line for line in lines[:-5] if re.search("ERROR|WARNING", line)]
        return "\n".join(grave[-10:] + lines[-5:])


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user who has no name
        return str(os.getuid())


def lasting_port(host: str) -> int:
    """A free port, of UDP and of TCP, that Linux gives to nobody by itself.

    For one that is to be there later, or again: a phone, which takes any port, might have it by then. And whoever
    tries again and again to reach a server that is down may be given its very port, is then connected with himself,
    and keeps the server from it.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(lowest // 2, lowest), 100):
        with ExitStack() as probes, suppress(OSError):
            for kind in socket.SOCK_DGRAM, socket.SOCK_STREAM:
                probes.enter_context(socket.socket(socket.AF_INET, kind)).bind((host, port))
            return port
    raise LabError(f"no lasting port is free on {host}")


def free_udp_port() -> int:
    """A UDP port of the loopback address that nobody holds just now."""
    return free_port(HOST)


def free_port(*hosts: str) -> int:
    """A port, of UDP and of TCP, that nobody holds just now on any of these loopback addresses."""
    for _ in range(100):
        with ExitStack() as probes:
            port = 0
            try:
                for host in hosts:
                    for kind in socket.SOCK_DGRAM, socket.SOCK_STREAM:
                        probe = probes.enter_context(socket.socket(socket.AF_INET, kind))
                        probe.bind((host, port))
                        port = int(probe.getsockname()[1])
                return port
            except OSError:  # free on the first, taken on another
                continue
    raise LabError(f"no port is free on all of {', '.join(hosts)}")
