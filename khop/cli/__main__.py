"""``python -m khop.cli``."""

from khop.cli.commands import entry

entry()
