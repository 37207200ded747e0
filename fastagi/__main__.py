"""``python -m fastagi``."""

from fastagi.cli import main

main()
