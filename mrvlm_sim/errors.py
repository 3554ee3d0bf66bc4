"""Errors that are the user's to mend: each says the rule, the value received and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Wrong input from outside; the command line prints it without a traceback and exits with 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in the list: nearest name first, then the whole list."""
    choices = sorted(known)
    nearest = get_close_matches(name, choices, n=1, cutoff=0.4)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {name!r}.{suggestion} Known: {', '.join(choices) or '(none)'}")
