"""The command line: ``khop COMMAND …``."""

from khop.cli.commands import COMMANDS as COMMANDS
from khop.cli.commands import entry as entry
from khop.cli.commands import main as main
