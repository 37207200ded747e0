"""What is shipped: the wheel holds the package, the command and the dialplan."""

import subprocess
import sys
import zipfile
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_the_dialplan_travels_inside_the_wheel(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(TOP),
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    [wheel] = tmp_path.glob("asterisk_callcompletion-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (TOP / "dialplan").glob("*.conf"):
        assert any(name.endswith(f"data/share/fastagi/dialplan/{path.name}") for name in names), path
    for path in (TOP / "fastagi").rglob("*.py"):
        assert str(path.relative_to(TOP)) in names
    assert not [name for name in names if name.startswith("tests")]
