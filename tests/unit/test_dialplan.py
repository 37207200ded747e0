"""The dialplan that is shipped: it parses, and it and the server name the same scripts and variables."""

import ast
import re
from pathlib import Path

import pytest
from asterisk.config import Config

from fastagi import daemon
from fastagi.agi.routes import _NO, ROUTES

TOP = Path(__file__).parents[2]
FILES = sorted((TOP / "dialplan").glob("*.conf"))
TEXT = "".join(path.read_text() for path in FILES)
CONTEXTS = {
    "cc-agi",
    "cc-ask",
    "cc-call",
    "cc-callid",
    "cc-dial",
    "cc-features",
    "cc-hangup",
    "cc-note",
    "cc-offer",
    "cc-onward",
    "cc-poll",
    "cc-recall",
    "cc-say",
    "cc-sounds",
    "cc-tried",
    "cc-up",
}


def code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(";"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyst2 leaves it open
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pyst2_reads_it(path: Path) -> None:
    config = Config(str(path))
    assert config.categories
    for category in config.categories:
        assert category.name in CONTEXTS
        assert category.items


def test_each_context_is_there_once() -> None:
    names = re.findall(r"^\[(.+)\]", TEXT, re.MULTILINE)
    assert sorted(names) == sorted(CONTEXTS)


def test_no_globals_inside() -> None:
    assert "[globals]" not in code(TEXT) and "[general]" not in code(TEXT)


def test_each_script_has_a_route_and_each_route_a_caller() -> None:
    called = set(re.findall(r"cc-agi,s,1\((\w+)", code(TEXT))) | set(re.findall(r"AGI}/(\w+)", code(TEXT)))
    assert called == {*ROUTES, "poll"}
    assert 'scripts["poll"]' in Path(daemon.__file__).read_text()
    assert ROUTES.keys() == _NO.keys()


def test_nothing_asks_the_server_but_under_the_bound() -> None:
    """One AGI() under TIMEOUT(absolute), and that of the poll session, whose channel is nobody's call."""
    lines = [line for line in code(TEXT).splitlines() if re.search(r"[,)]AGI\(", line)]
    assert len(lines) == 2
    assert "cc_server" in lines[0] and "/poll" in lines[1]


def test_the_names_shared_with_the_server() -> None:
    source = (TOP / "fastagi/agi/routes.py").read_text()
    strings = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    ours = {s for s in strings if isinstance(s, str) and re.fullmatch(r"CC_[A-Z_]+", s)}
    told = {
        "CC_OFFER_ID",
        "CC_POSITION",
        "CC_OUTCOME",
        "CC_GO_REASON",
        "CC_TRUNK_STATUS",
        "CC_CANCELLED",
    }
    read = set(re.findall(r"\$\{(CC_[A-Z_]+)", code(TEXT)))
    unread = {"CC_REASON", "CC_CANCEL_REASON"}  # for the site
    assert ours - read == told | unread
    own = {n for n in read if n.startswith(("CC_NOTE_", "CC_CODE_"))}
    theirs = {"CC_AGI", "CC_RECALL_ID", "CC_TRIES", "CC_TOLD", "CC_POLL_AGI", "CC_DIGIT", "CC_OUT_CALLID"}
    theirs |= {
        "CC_ALERT",
        "CC_ASKED",
        "CC_OFFER_EXTEN",
        "CC_PHONE",
        "CC_SITE",
        "CC_NOTED",
        "CC_NO_SUCH",
        "CC_UP",
    }
    assert read - ours - own == theirs


def test_a_reason_that_is_told_in_words_is_one_of_the_servers() -> None:
    told = set(re.findall(r'"\$\{CC_REQUEST_REASON\}" = "([A-Z_]+)"', code(TEXT)))
    source = "".join(path.read_text() for path in (TOP / "fastagi").rglob("*.py"))
    assert told and all(f'"{reason}"' in source for reason in told)


def test_no_pattern_ends_open_but_that_of_a_feature_code() -> None:
    """Whatever matches ``.`` or ``!`` matches a newline too; that one checks its tail before all else.

    And but for that of [cc-dial], whither nothing goes that was not checked.
    """
    patterns = re.findall(r"^exten => (_.+?),(?:1|hint),", code(TEXT), re.MULTILINE)
    open_ended = [p for p in patterns if p.endswith((".", "!")) and p != "_[0-9*#+]!"]
    assert len(open_ended) == len([p for p in patterns if p.endswith((".", "!"))]) - 1
    assert "GotoIf($[${cc_good}]?number)\n" in TEXT and TEXT.count("Goto(${cc_exten},1)") == 1
    assert [re.findall(r"CC_CODE_\w+", p)[0] for p in open_ended] == ["CC_CODE_CANCEL", "CC_CODE_LAMP"]


def test_all_that_is_said_stands_in_one_table() -> None:
    """Nothing plays a file but [cc-say]; each sentence that is said is in its table, and each is said."""
    contexts = re.split(r"^\[(.+)\]\n", code(TEXT), flags=re.MULTILINE)[1:]
    said = dict(zip(contexts[::2], contexts[1::2], strict=True))
    table = set(re.findall(r"^exten => (\w+),1,Return\(", said.pop("cc-sounds"), re.MULTILINE))
    assert said.pop("cc-say").count("Playback") == 1
    elsewhere = "".join(said.values())
    assert not re.findall(r"Playback|Background|ReadExten|Read\(|Say[A-Z]\w*\(", elsewhere)
    assert {name for name in table if not re.search(rf"\b{name}\b", elsewhere)} == set()
    calls = " ".join(re.findall(r"cc-say,(?:s|ask),1\((.*)\)", elsewhere))
    literal = re.sub(r'\$\{\w+(?:\(\w+\))?\}|"[^"]*"', "", calls)
    assert set(re.findall(r"[a-z]+", literal)) <= table


def test_the_files_for_freepbx_name_what_is_there() -> None:
    folder = TOP / "contrib/freepbx"
    codes = dict(re.findall(r"^(\w+)=(\*\d\d)$", (folder / "globals_custom.conf").read_text(), re.MULTILINE))
    assert set(codes) == set(re.findall(r"CC_CODE_[A-Z]+", code(TEXT)))
    blacklist = {"*30", "*31", "*32"}
    assert len(set(codes.values()) - blacklist) == len(codes)
    page = (folder / "README.rst").read_text()
    assert all(f"``{value}``" in page and f"``{name}``" in page for name, value in codes.items())
    custom = code((folder / "extensions_custom.conf").read_text())
    named = set(re.findall(r"\bcc-[a-z-]+", custom))
    assert named - CONTEXTS == {"cc-freepbx", "cc-from-internal"}
    [place] = re.findall(r'#include "(\S+)"', custom)
    assert place in (TOP / "README.rst").read_text()
