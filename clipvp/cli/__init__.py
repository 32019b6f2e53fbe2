"""The command line: the verbs of ``clipvp``, and what recipes share."""

from .command_line import parse, user_errors

__all__ = ["parse", "user_errors"]
