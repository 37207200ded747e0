"""``fastagi check``: the configuration, and the folders, database, socket and ports that go with it."""

import errno
import os
import pwd
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fastagi.config import DEFAULT_PATH, Config, load
from fastagi.errors import ConfigError, StoreError
from fastagi.store.requests import Reader


class Result(StrEnum):
    OK = "ok"
    NOTE = "note"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    result: Result
    sentence: str


def _found(check: str, fault: str, fine: str) -> Finding:
    return Finding(check, Result.FAULT, fault) if fault else Finding(check, Result.OK, fine)


def findings(path: Path | None) -> Iterator[Finding]:
    try:
        config = load(path)
    except ConfigError as error:
        yield from (Finding("configuration", Result.FAULT, fault) for fault in error.faults)
        return
    if path is None and not DEFAULT_PATH.exists():
        yield Finding(
            "configuration", Result.NOTE, f"there is no {DEFAULT_PATH}: the documented defaults hold"
        )
    else:
        yield Finding("configuration", Result.OK, f"{path or DEFAULT_PATH} is in order")
    yield from door(config)
    yield from _ami(config)
    if not config.originate:
        yield from _user(config)
    yield from _database(config)
    yield from _server(config)


def _ami(config: Config) -> Iterator[Finding]:
    if not config.ami:
        return
    from fastagi.pbx.ami import Login, try_login  # and with it Twisted, only where it is needed

    ami = config.ami
    try:
        fault = try_login(Login(ami.host, ami.port, ami.username, ami.secret(), ami.tls, ami.ca))
    except ConfigError as error:
        fault = error.faults[0]
    who = f"{ami.username} at {ami.host}:{ami.port}"
    yield _found("ami", fault, f"AMI lets us in as {who}")
    try:
        mode = ami.secret_file.stat().st_mode
    except OSError:
        return  # told above
    if mode & stat.S_IRWXO:
        yield Finding("ami secret", Result.NOTE, f"{ami.secret_file} is open to everybody: chmod o= closes it")


def door(config: Config) -> Iterator[Finding]:
    """The folders and files without which the server does not start."""
    if not config.originate:
        yield _found("spool", _spool_fault(config.spool), f"call files can be put into {config.spool}")
        yield _found("temp", _temp_fault(config), f"call files can move from {config.temp} into the spool")
    folder = config.store.parent
    yield _found("store", _store_fault(config.store), f"the database can be written in {folder}")


def _folder_fault(folder: Path) -> str:
    """Why files cannot be put into this folder; empty: they can."""
    try:
        os.listdir(folder)
    except OSError as error:
        return f"the folder {folder} cannot be used: {error.strerror}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} may not be written to by {user_name(os.geteuid())}"
    return ""


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _spool_fault(spool: Path) -> str:
    fault = _folder_fault(spool)
    return f"{fault}; asterisk / spool must be Asterisk's folder of outgoing calls" if fault else ""


def _temp_fault(config: Config) -> str:
    if fault := _folder_fault(config.temp):
        return f"{fault}; asterisk / temp must be a folder on the spool's file system"
    try:
        with tempfile.TemporaryFile(dir=config.temp) as file:
            file.write(b"fastagi check")
            file.flush()
        apart = _mount(config.temp) != _mount(config.spool)
    except FileNotFoundError:
        return ""  # the spool: told by its own check
    except OSError as error:
        return f"no file can be written in {config.temp}: {error.strerror}"
    if apart:
        sentence = f"{config.temp} and {config.spool} are on different file systems or mounts"
        return f"{sentence}: no call file can be moved from the one into the other"
    return ""


def _mount(folder: Path) -> tuple[int, str]:
    """What a rename cannot cross: the file system, and the mount (a bind mount of the same one is another)."""
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        return os.fstat(fd).st_dev, "".join(re.findall("mnt_id:.*", info))
    finally:
        os.close(fd)


def _store_fault(store: Path) -> str:
    if fault := _folder_fault(store.parent):
        return f"{fault}; it is to hold the database {store.name}"
    if store.is_dir():
        return f"{store} is a folder: store must be the database's file"
    files = [store, *(Path(f"{store}{end}") for end in (".lock", "-wal", "-shm"))]
    if closed := [str(f) for f in files if f.exists() and not os.access(f, os.R_OK | os.W_OK)]:
        return f"{' and '.join(closed)} may not be written to by {user_name(os.geteuid())}; change the owner"
    return ""


def _user(config: Config) -> Iterator[Finding]:
    """Asterisk must own the call files, or at least be of their group: it reads them and writes to them."""
    try:
        owner, temp = config.spool.stat().st_uid, config.temp.stat()
    except OSError:
        return  # told by the folder's own check
    we, asterisk = user_name(os.geteuid()), user_name(owner)
    group = temp.st_gid if temp.st_mode & stat.S_ISGID else os.getegid()
    if os.geteuid() == owner:
        yield Finding("user", Result.OK, f"the spool's owner is {asterisk}, and this ran as {asterisk}")
    elif os.geteuid() == 0:
        sentence = f"this ran as root, who may do everything; the spool's owner is {asterisk}"
        yield Finding("user", Result.NOTE, f"{sentence}: run it, and fastagi serve, as {asterisk}")
    elif group in _groups(owner):
        sentence = f"this ran as {we}, whose call files {asterisk} can use by their group alone"
        yield Finding("user", Result.NOTE, f"{sentence}: better run fastagi as {asterisk}")
    else:
        sentence = f"this ran as {we}, whose call files Asterisk cannot use; the spool's owner is {asterisk}"
        yield Finding("user", Result.FAULT, f"{sentence}: run fastagi as {asterisk}")


def _groups(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return []
    return os.getgrouplist(user.pw_name, user.pw_gid)


def _database(config: Config) -> Iterator[Finding]:
    if _folder_fault(config.store.parent):
        return  # told by the store's own check
    if not config.store.exists():
        yield Finding(
            "database", Result.OK, f"there is no {config.store} yet: the first fastagi serve makes it"
        )
        return
    try:
        requests = Reader(config.store).requests()
    except StoreError as error:
        yield Finding("database", Result.FAULT, str(error))
    else:
        ended = sum(bool(r.ended_at) for r in requests)
        sentence = f"{config.store} can be read; requests: {len(requests) - ended} open, {ended} ended"
        yield Finding("database", Result.OK, sentence)


def _server(config: Config) -> Iterator[Finding]:
    """The control socket and the port: both can be had, or a running fastagi has them."""
    from fastagi import control

    running = ""
    try:
        running = control.ping(config.control).sentence
    except control.NotRunning as no:
        yield _found("control", _control_fault(config.control), str(no))
    except control.ControlError as error:
        yield Finding("control", Result.FAULT, str(error))
    else:
        yield Finding("control", Result.OK, f"{running}, and answers at {config.control}")
    where = f"{config.listen_host}:{config.listen_port}"
    fault = _port_fault(config.listen_host, config.listen_port)
    if running and fault is None:
        sentence = f"{where} is free, though {running}: start it again with this configuration"
        yield Finding("port", Result.NOTE, sentence)
    elif running and fault is not None and fault.errno == errno.EADDRINUSE:
        yield Finding("port", Result.OK, f"{where} is in use by the running fastagi")
    elif fault is not None:
        yield Finding("port", Result.FAULT, f"nobody can listen on {where}: {fault.strerror}")
    else:
        yield Finding("port", Result.OK, f"{where} is free")
    yield from _trunks(config, running)


def _trunks(config: Config, running: str) -> Iterator[Finding]:
    for trunk in config.trunks:
        check, where = f"trunk {trunk.name}", f"{trunk.transport}:{trunk.listen}"
        if running:  # which trunks it has is not known here
            yield Finding(check, Result.NOTE, f"{where} was not tried: {running}")
            continue
        kind = socket.SOCK_DGRAM if trunk.transport == "udp" else socket.SOCK_STREAM
        fault = _port_fault(*trunk.listen, kind)
        sentence = f"nobody can listen on {where}: {fault.strerror}" if fault else ""
        yield _found(check, sentence, f"{where} is free")


def _control_fault(path: Path) -> str:
    from fastagi import control

    if fault := _folder_fault(path.parent):
        return f"{fault}; it is to hold the control socket {path.name}"
    try:
        control.is_socket(path)
    except control.ControlError as error:
        return str(error)
    return ""


def _port_fault(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> OSError | None:
    """Why nobody can listen there, found out by trying."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:  # with UDP it would let two listen on one port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None
