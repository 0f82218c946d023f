"""What khop says when an input cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """The user's input cannot be used; the message is one sentence that says what would be valid.

    No ValueError: the option parser would take one for its own and wrap the sentence in a page of its own.
    """


def unknown(kind: str, name: str, choices: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
        kind: what the name should have been, e.g. ``"system"``.
        name: what was given.
        choices: the valid names.
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices) or 'nothing (none exist)'}."
    return InputError(f"Unknown {kind} {name!r}: {hint}")
