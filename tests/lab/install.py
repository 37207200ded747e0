"""Unpack a real Asterisk 22 and sipp beside the sources, without root and without touching the system.

Debian's packages are fetched by apt-get with a state of its own, their signatures checked, and unpacked
into one tree.  Its programs run through the tree's own loader and libraries, so the host's do not matter.

A tree beside it holds Asterisk 16, whose chan_sip speaks call completion over a trunk by itself: the foreign
PBX of the tests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LAB = Path(__file__).resolve().parents[2] / ".lab"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
STAMP = "packages"
PROGRESS_EVERY = 2.0  # seconds between two lines while something is under way

Say = Callable[[str], None]


class LabError(Exception):
    """The laboratory cannot be set up or used; the message says why and what helps."""


@dataclass(frozen=True)
class Wanted:
    """What a tree is made of: the first of these suites whose Asterisk is of that major version."""

    folder: str
    packages: tuple[str, ...]
    suites: tuple[str, ...]
    major: str

    @property
    def tree(self) -> Path:
        return LAB / self.folder

    @property
    def apt(self) -> Path:
        """apt's own world while this one is fetched; what an interrupted try has left in it is used again."""
        return LAB / self.folder.replace("tree", "apt")


SOUNDS = "asterisk-core-sounds-en-gsm"
ASTERISK = Wanted("tree", ("asterisk", SOUNDS, "sip-tester"), ("sid", "testing", "stable"), "22.")
ASTERISK16 = Wanted("tree16", ("asterisk", SOUNDS), ("bullseye",), "16.")


@dataclass(frozen=True)
class Tree:
    """An unpacked tree of packages; version is its Asterisk's, in Debian's writing without the epoch."""

    root: Path
    version: str

    @property
    def module_dir(self) -> Path:
        return self._one("usr/lib/*/asterisk/modules", "usr/lib/asterisk/modules")

    @property
    def data_dir(self) -> Path:
        return self.root / "usr/share/asterisk"

    def asterisk_command(self) -> list[str]:
        """The start of every command line of asterisk, the daemon's and `-rx` alike."""
        return self._run("usr/sbin/asterisk")

    def sipp_command(self) -> list[str]:
        return self._run("usr/bin/sipp")

    def _run(self, program: str) -> list[str]:
        # /lib64 is a link made by a maintainer script, and those do not run here.
        loader = self._one("usr/lib/*-linux-gnu*/ld-linux*.so.*", "lib/*-linux-gnu*/ld-linux*.so.*")
        # Before Debian 12 /lib is no link to /usr/lib, and Asterisk keeps a library of its own in the latter.
        triplet = loader.parent.name
        folders = f"usr/lib/{triplet}", f"lib/{triplet}", "usr/lib"
        libraries = ":".join(str(self.root / folder) for folder in folders)
        return [str(loader), "--library-path", libraries, str(self.root / program)]

    def _one(self, *patterns: str) -> Path:
        found = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        if not found:
            raise LabError(f"{self.root} holds no {Path(patterns[0]).name}: remove it and install again")
        return found[0]


def ensure_asterisk(say: Say = print) -> Tree:
    """Give the tree, and make it first where it is lacking (about 90 MB to fetch, 350 MB unpacked)."""
    return _ensure(ASTERISK, say)


def ensure_asterisk16(say: Say = print) -> Tree:
    """Likewise the tree of Asterisk 16, with chan_sip."""
    return _ensure(ASTERISK16, say)


def _ensure(wanted: Wanted, say: Say) -> Tree:
    tree = _installed(wanted)
    if tree:
        return tree
    LAB.mkdir(parents=True, exist_ok=True)
    (LAB / ".gitignore").write_text("*\n")
    with _only_one(LAB / "lock", say):
        return _installed(wanted) or _install(wanted, say)


def _installed(wanted: Wanted) -> Tree | None:
    try:
        head, *lines = (wanted.tree / STAMP).read_text().splitlines()
    except (OSError, ValueError):
        return None
    if head != " ".join(wanted.packages):
        return None  # made for another list of packages
    versions = dict(line.split(" ", 1) for line in lines)
    return Tree(wanted.tree, _plain(versions["asterisk"]))


def _install(wanted: Wanted, say: Say) -> Tree:
    started = time.monotonic()
    _check_host()
    suite, debs = _download(wanted, say)
    say(f"Unpacking {len(debs)} packages")
    # Everything is made beside the tree and renamed at the end: a tree that is there is whole.
    new = LAB / f"{wanted.folder}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    versions = _unpack(debs, new, say)
    _name_the_sounds(new)
    new.chmod(0o755)  # the daemon may run as another user, whatever our umask is
    (new / STAMP).write_text("\n".join([" ".join(wanted.packages), *sorted(versions)]) + "\n")
    shutil.rmtree(wanted.tree, ignore_errors=True)
    new.rename(wanted.tree)
    shutil.rmtree(wanted.apt, ignore_errors=True)
    tree = _installed(wanted)
    if tree is None:
        raise LabError(f"{wanted.tree} was unpacked but cannot be read back")
    say(f"Asterisk {tree.version} from Debian {suite} is ready after {time.monotonic() - started:.0f} s")
    return tree


def _check_host() -> None:
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if not shutil.which(program):
            raise LabError(f"the lab needs {program} (package {package}): it runs on Debian and its kin only")
    if not KEYRING.exists():
        raise LabError(f"{KEYRING} is missing: sudo apt-get install debian-archive-keyring")


# Where from

def _mirrors() -> list[str]:
    """The addresses this host already uses for Debian, the likeliest first.

    An address says who is behind it (its origin) only once its index was fetched, which a bare machine has
    not done.  One that does not say is tried too, last: what Debian's keys did not sign is refused.
    """
    known = {uri: origin for origin, uri in _sources()}
    silent = [uri for _, uri in _sources("--no-release-info") if uri not in known]
    silent.sort(key=lambda uri: not uri.rstrip("/").endswith("/debian"))
    found = [uri for uri, origin in known.items() if origin == "Debian Debian"] + list(dict.fromkeys(silent))
    if not found:
        raise LabError("apt knows no mirror of Debian main: add one to /etc/apt/sources.list.d")
    return found


def _sources(*options: str) -> list[tuple[str, str]]:
    """Origin with label, and address, of apt's sources of a component main; those for security left out."""
    form = "$(ORIGIN) $(LABEL)|$(CODENAME)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"
    found = []
    lines = _capture(["apt-get", "indextargets", *options, "--format", form, "Identifier: Packages"])
    for line in lines.splitlines():
        origin, codename, release, component, uri = line.split("|", 4)
        security = "security" in codename + release + origin.lower()
        if component == "main" and not security and not uri.startswith("cdrom:"):
            found.append((origin, uri))
    return found


def _download(wanted: Wanted, say: Say) -> tuple[str, list[Path]]:
    """Fetch the packages from the first suite that has the Asterisk we want; gives its name and the files."""
    refused = []
    for suite in wanted.suites:
        for uri in _mirrors():
            command = _prepare_apt(wanted.apt, uri, suite)
            say(f"Reading Debian's list of packages ({suite})")
            try:
                _fetch([*command, "update"], say)
                version = _candidate(command, wanted.packages)
            except LabError as error:
                refused.append(f"{suite}: {error}")
                continue
            if not version.startswith(wanted.major):
                refused.append(f"{suite} has Asterisk {version or '(none)'}, not {wanted.major}x")
                continue
            say(f"Fetching Asterisk {version} ({suite}) and what it needs")
            _capture([*command, "autoclean"])  # an interrupted try may have left older versions
            _fetch([*command, "-y", "--download-only", "install", *wanted.packages], say)
            return suite, sorted((wanted.apt / "cache/archives").glob("*.deb"))
    raise LabError(f"no Asterisk {wanted.major}x to be had; " + "; ".join(refused))


def _prepare_apt(apt: Path, uri: str, suite: str) -> list[str]:
    """Write apt's own world: its lists and cache here, no package installed, one source; gives the command.

    The host's configuration (a proxy, say) still holds: ours is read after it.
    """
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("")
    architecture = _capture(["dpkg", "--print-architecture"]).strip()
    # sid is signed for a week at a time: a frozen or slow mirror is past that, its signature no less good.
    (apt / "sources.list").write_text(
        f"deb [arch={architecture} target=Packages signed-by={KEYRING}] {uri} {suite} main\n"
    )
    (apt / "apt.conf").write_text(f"""\
Dir::State "{apt}/state";
Dir::State::lists "{apt}/state/lists";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
Dir::Cache::archives "{apt}/cache/archives";
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
""")
    return ["apt-get", "-c", str(apt / "apt.conf")]


def _candidate(command: list[str], packages: tuple[str, ...]) -> str:
    """The version of Asterisk that would be installed, '' for none."""
    try:
        planned = _capture([*command, "--simulate", "-y", "install", *packages])
    except LabError:
        return ""
    for line in planned.splitlines():
        if line.startswith("Inst asterisk ("):  # Inst asterisk (1:22.1.0 Debian:unstable [amd64])
            return _plain(line.split("(", 1)[1].split()[0])
    return ""


# Fetching and unpacking

def _fetch(command: list[str], say: Say) -> None:
    """Run apt-get and tell how far it is, from the status lines it writes for front ends."""
    with subprocess.Popen(
        [*command, "-q", "-o", "APT::Status-Fd=1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=_environment(), close_fds=False,  # it holds the lock with us: nobody starts beside an orphan
    ) as process:
        assert process.stdout is not None
        rest, last = [], time.monotonic()
        for line in process.stdout:
            if not line.startswith("dlstatus:"):  # dlstatus:<number>:<percent>:<text>
                rest.append(line.strip())
            elif time.monotonic() - last >= PROGRESS_EVERY:
                last = time.monotonic()
                _, _, percent, text = line.strip().split(":", 3)
                say(f"  {float(percent):3.0f} %  {text}")
    if process.returncode:
        raise LabError(_complaint(command, rest))


def _unpack(debs: list[Path], target: Path, say: Say) -> list[str]:
    """Unpack into the target folder; gives 'name version' of each package."""
    def one(deb: Path) -> str:
        _capture(["dpkg-deb", "--extract", str(deb), str(target)])
        return _capture(["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", str(deb)])

    versions, last = [], time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(one, deb) for deb in debs]):
            versions.append(done.result())
            if time.monotonic() - last >= PROGRESS_EVERY:
                last = time.monotonic()
                say(f"  {len(versions)} of {len(debs)}")
    return versions


def _name_the_sounds(tree: Path) -> None:
    """Make sounds/en, which a maintainer script would: Asterisk looks for prompts by language."""
    english = tree / "usr/share/asterisk/sounds/en"
    voices = sorted(english.parent.glob("en_*/beep.gsm"))
    if not voices:
        raise LabError("the packages hold no English prompts")
    if not english.exists():
        english.symlink_to(voices[0].parent.name)


# Small helpers

def _plain(version: str) -> str:
    return version.split(":", 1)[-1]


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _capture(command: list[str]) -> str:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment()
    )
    if result.returncode:
        raise LabError(_complaint(command, (result.stdout + result.stderr).splitlines()))
    return result.stdout


def _complaint(command: list[str], output: list[str]) -> str:
    errors = [line for line in output if line.startswith(("E:", "W:", "dpkg"))] or output[-3:]
    return f"{command[0]} failed: " + " ".join(errors)


@contextmanager
def _only_one(path: Path, say: Say) -> Iterator[IO[str]]:
    """Hold the lock file: two test runs may start at once.  Free when the last who holds it is gone."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is installing: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        os.set_inheritable(file.fileno(), True)
        yield file


if __name__ == "__main__":
    try:
        for ensure in ensure_asterisk, ensure_asterisk16:
            print(" ".join(ensure().asterisk_command()))
    except LabError as problem:
        sys.exit(f"lab: {problem}")
