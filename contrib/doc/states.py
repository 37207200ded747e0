"""Draws the life of a request from the table that rules it, ``fastagi.completion.machine.TABLE``.

Run it after a change of the table: ``.venv/bin/python contrib/doc/states.py`` writes ``states.dot``, the
table in ``states.rst``, and ``states.svg`` where Graphviz is installed. A test tells when that was forgotten.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from fastagi.completion.machine import TABLE
from fastagi.completion.model import State

HERE = Path(__file__).parent
DOT, SVG, PAGE = HERE / "states.dot", HERE / "states.svg", HERE / "states.rst"
BEGIN, END = ".. The table is written by states.py: begin", ".. The table is written by states.py: end"

LIGHT = "#eef3f8"
TURN = "#fdf1d6"
FILL = {
    State.OFFERED: "#ffffff",
    State.REQUESTED: LIGHT,
    State.QUEUED: LIGHT,
    State.READY: TURN,
    State.CALLING: TURN,
    State.COMPLETED: "#e3f2e1",
    State.ENDED: "#eeeeee",
}
WORDS = {
    State.OFFERED: "a failed call,<br/>may be asked for",
    State.REQUESTED: "the PBX beyond the<br/>trunk is asked",
    State.QUEUED: "waits for the callee",
    State.READY: "the caller is rung",
    State.CALLING: "the callee is called",
    State.COMPLETED: "they have talked",
    State.ENDED: "over, for a reason",
}

HOW = {
    **dict.fromkeys(pairwise([*State][:6]), ", weight=100"),  # the straight way, drawn straight
    (State.QUEUED, State.ENDED): ", tailport=se, headport=n",
    (State.READY, State.ENDED): ", tailport=se",
}
"""What keeps the picture tidy; a transition that is not here is drawn all the same."""

HEAD = """\
// Written by states.py from fastagi.completion.machine.TABLE.
digraph request {
    graph [rankdir=TB, bgcolor=white, margin=0.15, nodesep=0.9, ranksep=0.8, fontname="Helvetica"]
    node [shape=box, style="rounded,filled", color="#5b6770", fontname="Helvetica", margin="0.2,0.1"]
    node [fontsize=12]
    edge [color="#5b6770", fontcolor="#20303c", fontname="Helvetica", fontsize=10.5, arrowsize=0.7]

"""


def words(event: type) -> str:
    """``CallerBusy`` as ``caller busy``."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", event.__name__).lower()


def edges() -> dict[tuple[State, State], list[str]]:
    """The events that lead from one state to another, in the order of the table."""
    found: defaultdict[tuple[State, State], list[str]] = defaultdict(list)
    for (state, event), row in TABLE.items():
        for to in row.to:
            found[state, to].append(words(event))
    return dict(found)


def dot() -> str:
    lines = [HEAD]
    for state in State:  # OFFERED first
        final = ", peripheries=2" if state in (State.COMPLETED, State.ENDED) else ""
        label = f"<<b>{state}</b><br/><font point-size='10'>{WORDS[state]}</font>>"
        lines.append(f'    {state} [label={label}, fillcolor="{FILL[state]}"{final}]\n')
    lines.append("\n    {rank=same; COMPLETED; ENDED}\n\n")
    order = list(State)
    for (state, to), events in edges().items():
        label = "".join(f" {event}\\l" for event in events)
        ends, how = f"{state} -> {to}", HOW.get((state, to), "")
        if order.index(to) < order.index(state):  # so that the first state stays on top
            ends, how = f"{to} -> {state}", ", dir=back"
        lines.append(f'    {ends} [label="{label}"{how}]\n')
    lines.append("}\n")
    return "".join(lines)


def table() -> str:
    """The same as a table in reStructuredText."""
    head = ("state", "event", "leads to")
    rows = [(state, words(event), " or ".join(row.to)) for (state, event), row in TABLE.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, map(str, row), widths)).rstrip() for row in (head, *rows)]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def page(text: str) -> str:
    """``text`` of states.rst with the table as it is today."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    DOT.write_text(dot())
    PAGE.write_text(page(PAGE.read_text()))
    if command := shutil.which("dot"):
        subprocess.run([command, "-Tsvg", "-o", SVG, DOT], check=True)
    else:
        print("states.svg is left as it was: there is no dot here (Debian: apt-get install graphviz)")


if __name__ == "__main__":
    main()
