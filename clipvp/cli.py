"""The command line: configs from YAML and dotted overrides, and errors that a person can act on.

Nothing heavy is imported before the config is read and found right.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from .config import RunConfig
from .registry import UserError

Config = TypeVar("Config")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ``UserError`` into one line on the main process and exit code 2 on all."""
    try:
        yield
    except UserError as error:
        fail(str(error))


def fail(message: str) -> None:
    """Print one line and exit with code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _explain(message: str, keys: Sequence[str]) -> str:
    """Return jsonargparse's message in one line, with the nearest key where one is unknown."""
    message = " ".join(str(message).split())
    group = re.search(r"Group '([^']+)' does not accept option '([^']+)'", message)
    single = re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([^\s=]+)", message)
    unknown = (
        ".".join(group.groups())
        if group
        else next((g for g in single.groups() if g), None)
        if single
        else None
    )
    if unknown is None:
        return message
    close = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.6)
    return f"unknown key {unknown!r}; " + (
        f"did you mean {close[0]!r}?" if close else "--help lists all keys"
    )


def parse(
    description: str,
    config_class: type[Config] = RunConfig,
    arguments: Sequence[str] | None = None,
    defaults: dict[str, Any] | None = None,
    extend: Callable[[ArgumentParser], None] | None = None,
) -> tuple[Config, Any]:
    """Read a config from ``--config FILE`` and ``--section.key value``; exit with code 2 where it is wrong.

    Args:
        description: The first lines of ``--help``.
        config_class: A dataclass, its sections dataclasses.
        arguments: The command line; the program's own when None.
        defaults: Values of the config's fields that take the place of its own.
        extend: Adds options beyond the config to the parser.

    Returns:
        The config, and the namespace with the other options.
    """
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument(
        "--config", action="config", help="YAML file; what follows on the command line overrides it."
    )
    if extend is not None:
        extend(parser)
    parser.add_class_arguments(config_class)
    parser.set_defaults(defaults or {})
    keys = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    with user_errors():
        try:
            values = parser.instantiate(parser.parse_args(arguments))
        except UserError:
            raise
        except Exception as error:  # jsonargparse raises several types; each is about what was typed
            fail(_explain(str(error), keys))
    fields = config_class.__dataclass_fields__
    return config_class(**{name: values[name] for name in fields}), values
