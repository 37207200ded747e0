"""What README and contrib/doc say is what the code does today: pictures, tables, examples, names."""

import ast
import configparser
import importlib
import importlib.util
import re
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from ipaddress import ip_address
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from asterisk.config import Config as AsteriskConfig
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

import fastagi.agi
from fastagi import cli, config
from fastagi.agi import routes
from fastagi.agi.server import Server
from fastagi.completion import book, machine, model, offers, ports, queue, service, turns
from fastagi.completion.model import Limits, Number, Settings
from fastagi.config import faults, load, sections
from fastagi.errors import ConfigError
from fastagi.sip import calls, limits, package, transport
from fastagi.sip.callcompletion import agents, monitors
from fastagi.sip.callcompletion.monitors import M_SERVICE, REFUSED
from fastagi.sip.callcompletion.values import OUR_USER, RECALL_USER
from fastagi.sip.message import Response
from fastagi.sip.timers import TIMERS
from fastagi.sip.trunk import Address, Trunk
from fastagi.sip.uri import Uri

TOP = Path(__file__).parents[2]
DOC = TOP / "contrib/doc"
README = (TOP / "README.rst").read_text()
JOURNEY = (DOC / "journey.rst").read_text()
TRUNK = (DOC / "trunk.rst").read_text()
CHECKLIST = (DOC / "rfc6910.rst").read_text()
PAGES = {path.name: path.read_text() for path in (TOP / "README.rst", *sorted(DOC.glob("*.rst")))}
DIALPLAN = "".join(path.read_text() for path in sorted((TOP / "dialplan").glob("*.conf")))


# ---------------------------------------------------------------------------------------- reading the pages


def blocks(text: str) -> list[str]:
    """The literal blocks, without their indentation."""
    found = re.findall(r"::\n\n((?:(?: {4}.*)?\n)+)", text)
    return ["\n".join(line[4:] for line in block.rstrip().splitlines()) + "\n" for block in found]


def block(beginning: str) -> str:
    """The README's first literal block that has a line which begins so."""
    return next(b for b in blocks(README) if re.search(f"^{re.escape(beginning)}", b, re.MULTILINE))


def tables(text: str) -> Iterator[list[list[str]]]:
    """Each simple table: its head, then its rows; a row whose first cell is empty goes on with the last."""
    for head, body in re.findall(r"^=+ [= ]+\n(.+)\n=+ [= ]+\n((?:.+\n)+?)=+ [= ]+$", text, re.MULTILINE):
        rule = re.search(rf"^(=+ [= ]+)\n{re.escape(head)}$", text, re.MULTILINE)
        assert rule
        columns = [m.span() for m in re.finditer("=+", rule[1])]
        columns[-1] = (columns[-1][0], 1000)
        rows = [[line[a:b].strip() for a, b in columns] for line in (head, *body.splitlines())]
        whole: list[list[str]] = []
        for row in rows:
            if row[0]:
                whole.append(row)
            else:
                whole[-1] = [f"{old} {new}".strip() for old, new in zip(whole[-1], row, strict=True)]
        yield whole


def table(after: str, which: int = 1) -> list[list[str]]:
    """The rows, without the head, of the README's first table after these words, or of a later one."""
    return next(islice(tables(README[README.index(after) :]), which - 1, None))[1:]


def words(after: str) -> set[str]:
    """The first column of a table of reasons."""
    found = [row[0] for row in table(after)]
    assert len(found) == len(set(found))
    return {word.strip("`") for word in found}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_well_formed(name: str) -> None:
    """By hand, what docutils would warn of: short underlines, cells out of their column, odd quotes."""
    text = PAGES[name]
    assert "\t" not in text and text.endswith("\n") and not text.endswith("\n\n")
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if re.fullmatch(r"([=~-])\1{3,}", line) and above and not above.startswith("="):
            assert len(line) == len(above), above
    for rule, body in re.findall(r"^(=+ [= ]+)\n.+\n=+ [= ]+\n((?:.+\n)+?)=+ [= ]+$", text, re.MULTILINE):
        gaps = [m.start() for m in re.finditer(" ", rule)]
        for row in body.splitlines():
            assert all(row[at : at + 1] in ("", " ") for at in gaps), row
    for paragraph in re.sub(r"(?m)^ {4}.*$", "", text).split("\n\n"):
        assert paragraph.count("``") % 2 == 0, paragraph


@pytest.mark.parametrize("name", PAGES)
def test_each_link_has_its_target_and_each_target_its_link(name: str) -> None:
    links = set(re.findall(r"(?<!`)`([^`<]+)`_(?!_)", PAGES[name]))
    targets = dict(re.findall(r"^\.\. _([^:]+): (\S+)$", PAGES[name], re.MULTILINE))
    assert links == set(targets)
    folder = TOP if name == "README.rst" else DOC
    assert [path for path in targets.values() if not (folder / path).exists()] == []


# ---------------------------------------------------------------------------------------- the picture


def drawing() -> Any:
    spec = importlib.util.spec_from_file_location("states", DOC / "states.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_todays_table() -> None:
    """If not: .venv/bin/python contrib/doc/states.py"""
    states = drawing()
    assert (DOC / "states.dot").read_text() == states.dot()
    assert PAGES["states.rst"] == states.page(PAGES["states.rst"])


def test_the_svg_is_drawn_from_the_dot() -> None:
    drawn = xml.parse(DOC / "states.svg").getroot()
    said = Counter(
        (text.text or "").strip(" \xa0") for text in drawn.iter("{http://www.w3.org/2000/svg}text")
    )
    expected = Counter(event for events in drawing().edges().values() for event in events)
    expected.update(list(model.State))
    missing = expected - said
    assert not missing
    remarks = " ".join(drawing().WORDS.values()).replace("<br/>", " ")
    assert all(text in remarks for text in said - expected)


# ---------------------------------------------------------------------------------------- settings


def test_the_settings_table() -> None:
    rows = {row[0].strip("`"): (row[1], row[2]) for row in table("\nSettings\n--------")}
    lamp = {row[0].strip("`"): row[1] for row in table("\nSettings\n--------\n", 2)}
    built_in: dict[str, object] = {}
    for defaults in (Settings(), Limits()):
        built_in |= {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    said = {name: default for name, (_, default) in rows.items()} | lamp
    assert said == {name: str(value) or "none" for name, value in built_in.items()}
    assert lamp.keys() == {name for name in built_in if name.endswith("_devstate")}
    for name, (whose, _) in rows.items():
        assert (whose == "whole system") == (name in {field.name for field in fields(Limits)})


def minimal(folder: Path) -> Trunk:
    """The trunk that says no more than it must."""
    path = folder / "fastagi.yaml"
    path.write_text("trunks: {mxone: {listen: udp:192.0.2.1:5070, peer: ['192.0.2.10:5060']}}\n")
    [trunk] = load(path).trunks
    return trunk


def test_the_trunks_table(tmp_path: Path) -> None:
    rows = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in table("\nTrunks\n~~~~~~")}
    assert list(rows) == list(sections.Trunk.model_fields)
    trunk = minimal(tmp_path)
    said = {
        "listen": "to be given",
        "peer": "to be given",
        "asterisk": "listen``, port 5060" if trunk.asterisk == Address(trunk.listen.host, 5060) else "",
        "endpoint": "the trunk's name" if trunk.endpoint == trunk.name else "",
        "public": "listen" if trunk.towards_peer == trunk.listen else "",
        "allow": "none" if not trunk.allow else "",
        "subscribe_from": trunk.subscribe_from,
        "in_path": "yes" if trunk.in_path else "no",
        "call_info": "yes" if trunk.call_info else "no",
        "retention": "yes" if trunk.retention else "no",
        "cc_recall_timer": str(trunk.recall_timer),
    }
    assert {name: default for name, (default, _) in rows.items()} == said
    bounds = faults.allowed(("trunks", "mxone", "cc_recall_timer")).partition(" from ")[2]
    assert bounds and bounds in rows["cc_recall_timer"][1]


def test_whose_setting_it_is() -> None:
    """As the rules read it: ``p.caller.x``, ``caller.settings.x``, ``extension(offer.callee).settings.x``."""
    source = "".join(Path(str(m.__file__)).read_text() for m in (machine, offers, service, routes))
    read = set(re.findall(r"(caller|callee)\)?\.(?:settings\.)?(cc_\w+)", source))
    for name, whose, *_ in table("\nSettings\n--------"):
        if whose in ("caller", "callee") and name.startswith("``cc_"):
            assert {w for w, n in read if n == name.strip("`")} == {whose}, name


# ---------------------------------------------------------------------------------------- reasons

SERVICE = ast.parse("".join(Path(str(part.__file__)).read_text() for part in (offers, service)))
MACHINE = ast.parse(Path(str(machine.__file__)).read_text())
TURNS = ast.parse(Path(str(turns.__file__)).read_text())
MONITORS = ast.parse(Path(str(monitors.__file__)).read_text())
ROUTES = ast.parse((TOP / "fastagi/agi/routes.py").read_text())
REASON = re.compile(r"[A-Z]{2,}(_[A-Z]+)*")
DIALSTATUS = {"CONGESTION"}
"""Stands in the tables for every DIALSTATUS that is handed on as it is."""


def functions(tree: ast.AST) -> dict[str, ast.AST]:
    return {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def reached(tree: ast.AST, *names: str) -> list[ast.AST]:
    """These functions, and all of the same file that they call."""
    all_of_them, found, todo = functions(tree), {}, list(names)
    while todo:
        name = todo.pop()
        if name not in found and name in all_of_them:
            found[name] = all_of_them[name]
            for node in ast.walk(found[name]):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Attribute | ast.Name):
                    todo.append(called.attr if isinstance(called, ast.Attribute) else called.id)
    return list(found.values())


def refusals(nodes: list[ast.AST]) -> set[str]:
    """The words of every ``Refused("WORD", ...)``."""
    calls = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)]
    return {
        c.args[0].value
        for c in calls
        if isinstance(c.func, ast.Name) and c.func.id == "Refused"
        if isinstance(c.args[0], ast.Constant) and isinstance(c.args[0].value, str)
    }


def strings(node: ast.AST) -> set[str]:
    values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {v for v in values if REASON.fullmatch(v)}


def not_offered() -> set[str]:
    """What `_not_offered` answers, what is added to that when it answers nothing, and the DIALSTATUS itself."""
    returned = {
        word
        for node in ast.walk(functions(SERVICE)["_not_offered"])
        if isinstance(node, ast.Return) and node.value is not None
        for word in strings(node.value)
    }
    assert {"NO_SUCH_NUMBER", "NOT_REACHED"} <= returned
    added = {
        word
        for node in ast.walk(functions(SERVICE)["record"])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason"
        for word in strings(node.value)
    }
    assert added
    return returned | added | DIALSTATUS | {offers.NOT_WATCHABLE}


# Of the machine's refusals, only these can be met by a script; _apply() calls the machine for all of them.
BROKEN = refusals([TURNS]) | {"INVALID"}
WHO = refusals(reached(ROUTES, "_caller"))


def said_by_dialplan(variable: str) -> set[str]:
    return set(re.findall(rf"Set\({variable}=([A-Z_]+)\)", DIALPLAN))


def ends(nodes: list[ast.AST]) -> set[str]:
    """The words of every ``_end(request, now, "WORD", ...)``."""
    calls = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "_end"]
    return {word for call in named for word in strings(call.args[2])}


def ended_there() -> set[str]:
    """The words of every ``MonitorEnded("WORD", ...)``: the other PBX does not, or no longer, watch him."""
    calls = [n for tree in (SERVICE, MONITORS) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "MonitorEnded"]
    named += [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "MonitorEnded"]
    return {word for call in named for word in strings(call.args[0])} | {w for w, _ in REFUSED.values()}


def test_reasons_of_a_request() -> None:
    said = refusals(reached(SERVICE, "_ask", "_toggle")) | not_offered() | BROKEN | WHO
    words_set = {w for node in reached(ROUTES, "request") for w in strings(node)}
    said |= {w for w in words_set if w != "SUCCESS" and not w.startswith("CC_")}
    said |= said_by_dialplan("CC_REQUEST_REASON")
    said |= {
        w for w in strings(functions(SERVICE)["call_ended"]) if w.isupper() and w not in ("ANSWER", "CANCEL")
    }
    # What `service.accepted` says: how a request ended before the other PBX had accepted it.
    rules = {row.rule.__name__ for (state, _), row in machine.TABLE.items() if state is model.State.REQUESTED}
    said |= ended_there() | ends(reached(MACHINE, *rules))
    assert words("``CC_REQUEST_REASON``, after") == said


def test_reasons_of_a_cancel() -> None:
    said = (
        refusals(reached(SERVICE, "_cancel", "_cancel_all"))
        | BROKEN
        | WHO
        | said_by_dialplan("CC_CANCEL_REASON")
    )
    assert words("``CC_CANCEL_REASON``, after") == said


def test_reasons_of_a_call() -> None:
    said = refusals(reached(SERVICE, "record")) | not_offered() | BROKEN | WHO | said_by_dialplan("CC_REASON")
    said |= refusals(reached(SERVICE, "call_ended")) | refusals(reached(ROUTES, "_recall_id")) | {"RETAINED"}
    said |= refusals(reached(MACHINE, "step"))  # a call that ends before the server knows that it began
    said |= ends(reached(MACHINE, "_call_failed"))
    assert words("``CC_REASON``, after") == said


def test_outcomes() -> None:
    keywords = [n for n in ast.walk(MACHINE) if isinstance(n, ast.keyword) and n.arg == "reason"]
    said = ends([MACHINE]) | {w for k in keywords for w in strings(k.value)} | ended_there()
    assert words("How a request ended") == said


def test_no_reason_is_left_out() -> None:
    """Whatever word a refusal has anywhere in the rules is in one of the tables, or is for nobody's eyes."""
    told = {word for text in tables(README) for row in text for word in re.findall(r"``([A-Z_]+)``", row[0])}
    inner = {"RECALL_TAKEN", "NO_SUCH_REQUEST"}  # for [cc-recall], which only hangs up; for `fastagi cancel`
    assert refusals([SERVICE, MACHINE, TURNS, ROUTES]) - told == inner


# ---------------------------------------------------------------------------------------- examples

DIALPLANS = [b for b in blocks(README + TRUNK) if re.search("^(exten => |CC_)", b, re.MULTILINE)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyst2 leaves it open
@pytest.mark.parametrize("number", range(len(DIALPLANS)))
def test_the_dialplan_examples(number: int, tmp_path: Path) -> None:
    text = DIALPLANS[number]
    path = tmp_path / "extensions.conf"
    path.write_text(re.sub("(?m)^#include .*$", "", text))  # pyst2 knows no #include
    read = AsteriskConfig(str(path))
    assert [c.name for c in read.categories] in (
        *(["phones"], ["globals"], ["cc-my-sounds"], ["phones", "from-mxone"]),
    )
    ours = set(re.findall(r"^\[(.+)\]", DIALPLAN, re.MULTILINE))
    named = re.findall(r"include => ([\w-]+)|(?:Gosub\(|_push\)=)(cc-[\w-]+),", text)
    assert {a or b for a, b in named} <= ours
    globals_ = re.findall(r"^(\w+)=", text, re.MULTILINE)
    assert [name for name in globals_ if f"${{{name}}}" not in DIALPLAN] == []


def test_how_many_dialplan_examples_there_are_and_that_one_is_complete() -> None:
    assert len(DIALPLANS) == 7 + 2  # of the README, of the trunks' page
    assert all(word in DIALPLANS[0] for word in ("include => cc-features", "cc-dial", "#include"))
    installed = re.search(r'#include "/opt/fastagi/(.+)/\*\.conf"', DIALPLANS[0])
    data_files = configparser.ConfigParser()
    data_files.read(TOP / "setup.cfg")
    assert installed and data_files["options.data_files"][installed[1]] == "dialplan/*.conf"


def test_the_signatures_and_contexts_named_are_there() -> None:
    ours = set(re.findall(r"^\[(.+)\]", DIALPLAN, re.MULTILINE))
    for name, text in PAGES.items():
        named = set(re.findall(r"(?<![\w./-])(cc-[a-z]+)(?![\w.-])", text))
        assert named - {"cc-state"} <= ours, name  # that one is of RFC 6910
    assert "Gosub(cc-dial,s,1(dial string[,timeout[,Dial options[,extension]]]))" in DIALPLAN
    assert "Gosub(cc-ask,request,1[(extension)])" in DIALPLAN


def test_the_codes() -> None:
    for code, _, name in table("The codes\n~~~~"):
        if name:
            value = "${" + name.strip("`") + "}"
            assert f"${{IF($[${{LEN({value})}} > 0]?{value}:{code.strip('`')})}}" in DIALPLAN


def sentences() -> dict[str, list[str]]:
    """The table of what is said: the files of each sentence, those of numbers left out."""
    table = (TOP / "dialplan/cc-sounds.conf").read_text()
    lines = re.findall(r"^exten => (\w+),1,Return\((.*)\)$", table, re.MULTILINE)
    return {name: [f for f in files.split("&") if not re.search(r"[/$]", f)] for name, files in lines}


def test_the_prompts() -> None:
    said = re.search(r"The files: (.*), and the digits\.", README, re.DOTALL)
    assert said and set(re.split(r",\s+", said[1])) == {f for files in sentences().values() for f in files}


def test_the_example_configuration(tmp_path: Path) -> None:
    path = tmp_path / "fastagi.yaml"
    path.write_text(block("defaults:"))
    read = load(path)
    assert read.directory.extension(Number("1000")).name == "Alice"
    assert read.directory.extension(Number("2000")).devices == ("PJSIP/bob-desk", "PJSIP/bob-cordless")
    assert read.directory.extension(Number("2950")).settings.cc_monitor_policy == "never"


def test_the_whole_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every key with its default: it is as if there were no file."""
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.yaml")
    read, none = load(DOC / "fastagi.yaml"), load(None)
    for field in fields(none):
        if field.name != "directory":
            assert getattr(read, field.name) == getattr(none, field.name), field.name
    someone = Number("1000")
    assert read.directory.extension(someone) == none.directory.extension(someone)
    text = (DOC / "fastagi.yaml").read_text().replace("\n  #ami:", "\n  ami:")
    for key in re.findall(r"^ *(\w+):", "\n".join(keys()), re.MULTILINE):
        assert re.search(rf"^ *{key}:", text, re.MULTILINE), key


def keys() -> Iterator[str]:
    """All keys there are, but those of an entry."""
    for section in (sections.File, sections.Fastagi, sections.Asterisk, sections.Defaults):
        yield from (f"{key}:" for key in section.model_fields)


def test_the_whole_of_ami(tmp_path: Path) -> None:
    """Every key with its default, but for those that have none; ca needs tls."""
    text = re.sub(r"(?m)^  #(ami:|  \w+:)", r"  \1", (DOC / "fastagi.yaml").read_text())
    assert "    tls: no\n" in text
    text = text.replace("    tls: no\n", "    tls: yes\n")
    path = tmp_path / "fastagi.yaml"
    path.write_text(text)
    read = load(path).ami
    assert read is not None and read.ca
    need = {"username": read.username, "secret_file": str(read.secret_file), "ca": str(read.ca), "tls": "yes"}
    assert config.Ami(**dict(sections.Ami.model_validate(need))) == read
    for key in sections.Ami.model_fields:
        assert re.search(rf"^    {key}:", text, re.MULTILINE), key


def test_the_example_of_ami(tmp_path: Path) -> None:
    """The user whom the README makes in manager.conf is the one whom it gives fastagi; default host and port."""
    path = tmp_path / "fastagi.yaml"
    path.write_text(block("  ami:"))
    read = load(path).ami
    assert read is not None and (read.host, read.port) == ("127.0.0.1", 5038)
    assert re.search(rf"^\[{read.username}\]\nsecret=.+\nread=call\nwrite=call,originate$", block("[fastagi]"), re.M)


def test_the_example_extensions(tmp_path: Path) -> None:
    text = (DOC / "fastagi.yaml").read_text()
    path = tmp_path / "fastagi.yaml"
    path.write_text(re.sub(r'(?m)^#(  "_?\d)', r"\1", text))
    read = load(path)
    assert read.directory.extension(Number("1000")).name == "Reception"
    assert read.directory.extension(Number("2000")).dialstring == "PJSIP/bob-desk"
    assert read.directory.extension(Number("2999")).settings.cc_monitor_policy == "never"
    entry = set(sections.Entry.model_fields) - set(sections.Settings.model_fields)
    assert {key for key in entry if re.search(rf"^#   {key} ", text, re.MULTILINE)} == entry


def test_the_example_trunks(tmp_path: Path) -> None:
    """That of the README is the smallest; that of the yaml has every key, each with its default but public."""
    path = tmp_path / "fastagi.yaml"
    path.write_text(block("trunks:"))
    assert load(path).trunks == (minimal(tmp_path),)
    text = (DOC / "fastagi.yaml").read_text()
    example = re.sub("(?m)^#", "", text[text.index("\ntrunks:\n") :])
    path.write_text(example)
    assert load(path).trunks == (minimal(tmp_path),)
    assert re.findall(r"^    (?:# )?(\w+):", example, re.MULTILINE) == list(sections.Trunk.model_fields)
    path.write_text(example.replace("# public", "public"))
    assert [str(trunk.towards_peer) for trunk in load(path).trunks] == ["198.51.100.1:5070"]


def test_an_unknown_key_is_still_refused(tmp_path: Path) -> None:
    """Lest the tests above prove nothing."""
    path = tmp_path / "fastagi.yaml"
    path.write_text(block("defaults:").replace("cc_offer_timer", "cc_offers_timer"))
    with pytest.raises(ConfigError):
        load(path)


def test_the_library_example(monkeypatch: pytest.MonkeyPatch) -> None:
    example = block("from fastagi.agi import serve")
    assert len(example.strip().splitlines()) <= 10
    served: list[Any] = []
    monkeypatch.setattr(fastagi.agi, "serve", served.append)
    exec(compile(example, "README.rst", "exec"), {})
    [scripts] = served
    session = Server(scripts, clock=Clock()).buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    assert session
    wire: Any = StringTransport()  # type: ignore[no-untyped-call]
    session.makeConnection(wire)  # type: ignore[no-untyped-call]
    heard = []
    for line in (
        "agi_network: yes\nagi_network_script: hello\n\n",
        "200 result=0\n",
        "200 result=1 (Alice)\n",
        "200 result=1\n",
    ):
        wire.clear()
        session.dataReceived(line.encode())
        heard.append(wire.value().decode())
    assert heard == [
        "ANSWER\n",
        'GET VARIABLE "CALLERID(name)"\n',
        'VERBOSE "Hello Alice" 1\n',
        "SET VARIABLE GREETED 1\n",
    ]


# ---------------------------------------------------------------------------------------- trunks

Sections = dict[tuple[str, str], dict[str, str]]


def pjsip(*texts: str) -> Sections:
    """Samples of a pjsip.conf: what stands in each section, by its name and type; a later one says it anew."""
    found: Sections = {}
    for name, body in re.findall(r"^\[(\S+)\]\n((?:[^\[\n].*\n)+)", "\n".join(texts), re.MULTILINE):
        lines = [line for line in body.splitlines() if not line.startswith(";")]
        values = {key: value for key, _, value in (line.partition("=") for line in lines)}
        found[name, values["type"]] = found.get((name, values["type"]), {}) | values
    return found


UDP, TCP = (next(b for b in blocks(TRUNK) if f"listen: {over}:" in b) for over in ("udp", "tcp"))
SAMPLES = [b for b in blocks(README + TRUNK) if "type=identify" in b]


@pytest.mark.parametrize(
    ("settings", "samples"),
    [(block("trunks:"), SAMPLES[:1]), (UDP, SAMPLES[1:2]), (TCP, SAMPLES[1:3])],
    ids=["README", "udp", "tcp"],
)
def test_the_sample_of_pjsip_is_that_of_the_configuration(
    settings: str, samples: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "fastagi.yaml"
    path.write_text(settings)
    [trunk] = load(path).trunks
    sections = pjsip(*samples)
    endpoint, aor, identify = (sections[trunk.endpoint, kind] for kind in ("endpoint", "aor", "identify"))
    over = "" if trunk.transport == "udp" else "\\;transport=tcp"
    assert endpoint["outbound_proxy"] == f"sip:{trunk.towards_asterisk}{over}\\;lr"
    assert (endpoint["aors"], identify["endpoint"]) == (trunk.endpoint, trunk.endpoint)
    assert (endpoint["identify_by"], endpoint["rewrite_contact"]) == ("ip", "no")
    assert aor["contact"] == f"sip:{trunk.peer[0]}{over}"
    # A connection comes from any port.
    assert identify["match"] == (str(trunk.listen) if trunk.transport == "udp" else trunk.listen.host)
    assert int(aor["qualify_frequency"]) > 0
    # Asterisk writes the address by which it reaches us into its calls: it must be one that the peer can reach.
    assert not ip_address(trunk.towards_asterisk.host).is_loopback and trunk.listen.host != "0.0.0.0"
    if "transport" in endpoint:
        bound = sections[endpoint["transport"], "transport"]
        assert (bound["protocol"], bound["bind"]) == (trunk.transport, f"0.0.0.0:{trunk.asterisk.port}")


def test_the_dialplan_of_a_trunk_is_that_of_its_endpoint() -> None:
    for text, sample in (README, SAMPLES[0]), (TRUNK, SAMPLES[1]):
        context = pjsip(sample)["mxone", "endpoint"]["context"]
        [example] = [b for b in blocks(text) if f"[{context}]" in b]
        assert "Gosub(cc-dial,s,1(PJSIP/${EXTEN}@mxone," in example


def test_the_seconds_of_a_trunk() -> None:
    rows = [row for found in tables(TRUNK) if found[0][0] == "seconds" for row in found[1:]]
    said = {(row[0], row[1].strip("`")): row[2] for row in rows}
    fixed = (machine.ACCEPT_WITHIN, machine.FAR_CALL_LIMIT, agents.OPEN_GRACE, TIMERS.life, calls.KEPT)
    assert {f"{value:g}" for value in fixed} <= {seconds for seconds, name in said if not name}
    for seconds, name in said:
        if name and "trunk" not in name:
            assert float(seconds) == getattr(Settings(), name)
    assert [s for s, name in said if "of trunk" in name] == [
        f"{sections.Trunk.model_fields['cc_recall_timer'].default}"
    ]
    assert f"no longer than {service.RING_AT_MOST:g}" in said["20", "cc_recall_timer"]
    assert f"{agents.OFFER_GRACE:g} more" in said["20", "cc_offer_timer"]


def test_the_limits_of_a_trunk() -> None:
    text = " ".join(TRUNK.split())
    for said in (
        f"limited to {limits.TRUNK_RATE} a second for one trunk ({limits.TRUNK_BURST} at once)"
        f" and {limits.CALLER_RATE} for one From ({limits.CALLER_BURST} at once)",
        f"up to {package.MAX_MONITORS} offers are noted and {monitors.MAX_FORKS} subscribed to",
        f"asks for {transport.BUFFER // 2**20} MB of buffer",
        f"net.core.rmem_max={transport.BUFFER}",
    ):
        assert said in text, said


def test_what_the_caller_hears() -> None:
    rows = [row for found in tables(TRUNK) if found[0][0] == "``*30`` comes to" for row in found[1:]]
    words = dict(re.findall(r'CC_REQUEST_REASON}" = "(\w+)"\]\?Set\(LOCAL\(cc_what\)=([a-z-]+)\)', DIALPLAN))
    said = {row[0].strip("`"): row[1] for row in rows}
    assert words.keys() == said.keys() - {"SUCCESS", "any other reason"}
    assert all(f" {sentences()[words[reason]][-1]}" in said[reason] for reason in words)
    assert sentences()["activated"][0] in said["SUCCESS"]
    assert sentences()["failed"][-1] in said["any other reason"]


def drawn() -> Iterator[list[str]]:
    """The messages of the sequence diagrams, each the line of its arrow and the lines below that."""
    for text in blocks(TRUNK):
        if not text.startswith("Alice   Asterisk"):
            continue
        found: list[list[str]] = []
        for line in text.splitlines():
            if re.match("  [|]", line):
                said = line[36:]
                if said.startswith("   ") and found:  # a header that goes on
                    found[-1][-1] += said.strip()
                elif re.search("[<>]", line[:36]):
                    found.append([said])
                else:
                    found[-1].append(said.strip())
        yield from found


def test_what_is_drawn_is_what_is_said() -> None:
    """Every URI, Call-Info and state in the sequence diagrams is understood by the code, and is one of its own."""
    users, states, offered = set[str](), Counter[str](), 0
    for first, *lines in drawn():
        method, _, uri = first.partition(" ")
        if uri.startswith("sip:"):
            users.add(Uri.parse(uri).user)
        found = package.monitors(
            Response(486, "", tuple(_header(line) for line in lines if "Call-Info" in line))
        )
        offered += len(found)
        users |= {Uri.parse(uri).user for uri, m in found if m in M_SERVICE}
        body = "\r\n".join(line for line in lines if line.startswith("cc-"))
        if body:
            assert method == "NOTIFY"
            state = package.parse_state(body.encode())
            assert state is not None and state.retention == ("cc-service-retention" in body)
            states["ready" if state.ready else "queued"] += 1
    ours = {user for user in users if OUR_USER.fullmatch(user)}
    assert len(ours) == 4 and offered == 2 and min(states.values()) > 3
    assert any(RECALL_USER.fullmatch(user) for user in users)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name, value


def test_the_scripts() -> None:
    """Each has a row, with all the variables that it sets."""
    rows = {row[0].strip("`"): row for row in table("The AGI scripts\n~~~~")}
    assert list(rows) != sorted(rows) and rows.keys() == {*routes.ROUTES, "poll"}
    for name in routes.ROUTES:
        nodes = [n for node in reached(ROUTES, name) for n in ast.walk(node) if isinstance(n, ast.Constant)]
        sets = {n.value for n in nodes if isinstance(n.value, str) and re.fullmatch("CC_[A-Z_]+", n.value)}
        assert set(re.findall("CC_[A-Z_]+", rows[name][2])) == sets, name


ITEMS = [
    f"{kind}{n}"
    for kind, last in zip("FAMPSX", (11, 19, 25, 8, 7, 10), strict=True)
    for n in range(1, last + 1)
]


def test_each_item_of_the_rfc_has_its_row() -> None:
    rows = [row for found in tables(CHECKLIST) for row in found[1:]]
    assert [row[0] for row in rows] == ITEMS
    for item, _, here in rows:
        word, _, rest = here.partition(".")
        assert word in ("holds", "in part", "no"), item
        plain = re.sub("``test_[^`]+``", "", rest).strip()
        assert plain or word == "holds", f"{item}: why?"
        assert "``test_" in rest or word == "no", f"{item}: shown by what?"


def test_the_tests_named_are_there() -> None:
    named = re.findall(r"``(test_\w+\.py)::(test_\w+)``", CHECKLIST)
    assert len(named) > 100
    texts = {path.name: path.read_text() for path in (TOP / "tests").glob("*/test_*.py")}
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in texts.get(file, "")] == []


# ---------------------------------------------------------------------------------------- names


def test_the_commands_are_there() -> None:
    commands = {name: command for name, command in cli.main.commands.items() if name != "trunk"}
    commands |= {f"trunk {name}": command for name, command in cli.trunk.commands.items()}
    rows = [row[0].strip("`") for row in table("Operating it\n---")]
    assert {re.sub("fastagi | [A-Z]+$", "", row) for row in rows} == set(commands)
    named = re.findall(r"(?:``|/bin/|\$ )fastagi ((?:trunk )?[a-z]+)", "".join(PAGES.values()))
    assert named and set(named) <= set(commands)
    for option, takers in {
        "--config": set(commands),
        "--json": {"list", "show", "history", "check", "trunk show", "trunk probe"},
        "--limit": {"history"},
    }.items():
        have = {name for name, command in commands.items() for p in command.params if option in p.opts}
        assert have == takers, option


def test_the_files_named_are_there() -> None:
    for name, text in PAGES.items():
        for path in re.findall(r"(?<![\w/.-])((?:contrib|fastagi|dialplan|tests)/[\w/.-]*\w)", text):
            if not path.startswith("fastagi/dialplan"):
                assert (TOP / path).exists(), f"{name}: {path}"
        for path in re.findall(r"``(/opt/fastagi/share/fastagi/)?(dialplan|cc-[a-z]+\.conf)``", text):
            assert (TOP / "dialplan" / path[1]).exists() or path[1] == "dialplan"
    five = {1: "one", 5: "five", 6: "six", 7: "seven", 8: "eight"}[
        len(list((TOP / "dialplan").glob("*.conf")))
    ]
    assert f"{five} small files" in README


def test_the_functions_of_the_journey_are_there() -> None:
    """``service.offer`` is a method of the service; ``Watcher.watch`` one of the watcher; and so on."""
    from fastagi import daemon
    from fastagi.pbx import callfile, devicestate, poll, watch
    from fastagi.store import requests

    at_hand: dict[str, object] = {
        "service": service.CompletionService,
        "machine": machine,
        "queue": queue,
        "daemon": daemon,
        "Poller": poll.Poller,
        "Watcher": watch.Watcher,
        "LocalAgent": callfile.LocalAgent,
        "DeviceStates": devicestate.DeviceStates,
        "Store": requests.Store,
        "Book": book.Book,
        "Offers": offers.Offers,
        "Turns": turns.Turns,
        "CompletionService": service.CompletionService,
    }
    named = set(re.findall(r"(?<![\w./])([A-Za-z]\w*(?:\.[A-Za-z_]\w*)+)", JOURNEY))
    named = {n for n in named if not n.endswith((".conf", ".rst"))}
    assert len(named) > 25
    for name in named:
        first, *rest = name.split(".")
        if first in at_hand:
            thing = at_hand[first]
        else:
            packages = ("", "completion.", "agi.", "sip.", "sip.callcompletion.")
            package = next(p for p in packages if f"fastagi.{p}{first}" in sys.modules)
            thing = importlib.import_module(f"fastagi.{package}{first}")
        for part in rest:
            if not hasattr(thing, part):
                importlib.import_module(f"{getattr(thing, '__name__', '')}.{part}")
            thing = getattr(thing, part)
    assert isinstance(ports.Store, type)


def test_nothing_of_ours_alone_is_told() -> None:
    """No path of a builder's machine, no address of a host."""
    for path in (TOP / "README.rst", *DOC.iterdir()):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"/(root|home|tmp|work)/", text), path
            hosts = set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text))
            examples = {host for host in hosts if re.match(r"(192\.0\.2|198\.51\.100)\.", host)}  # RFC 5737
            assert hosts - examples <= {"127.0.0.1", "127.0.0.0", "0.0.0.0"}, path


def test_the_service_unit() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DOC / "fastagi.service")
    of = unit["Service"]
    assert (of["Type"], of["User"], of["Restart"]) == ("simple", "asterisk", "on-failure")
    assert of["ExecStart"] == "/opt/fastagi/bin/fastagi serve" and "/opt/fastagi/bin/pip install ." in README
    assert "asterisk.service" in unit["Unit"]["After"] and "Requires" not in unit["Unit"]
    # One mount for both folders: a rename crosses none.
    defaults = sections.Asterisk()
    # And where Asterisk is on another machine, neither need be there: systemd.exec(5), the "-".
    assert of["ReadWritePaths"][0] == "-"
    assert Path(of["ReadWritePaths"][1:]) == defaults.spool.parent == defaults.temp.parent
    assert (of["ProtectSystem"], of["NoNewPrivileges"], of["PrivateTmp"]) == ("strict", "yes", "yes")
    assert Path("/var/lib") / of["StateDirectory"] == sections.STORE.parent
