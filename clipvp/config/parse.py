"""The command line: configs from YAML and dotted overrides, and errors that a person can act on.

Nothing heavy is imported before the config is read and found right.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from ..registry import UserError
from ..training.interrupt import EXIT_CODE, Interrupted
from .schema import RunConfig

Config = TypeVar("Config")

_KINDS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "list": "a list such as [a, b]",
    "list[int]": "a list of whole numbers",
    "NoneType": "null",
}


class _Help(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of a description as they are."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that is not the program's into one line on the main process.

    Exit code 2 for a ``UserError``, 75 for a stop on request, 1 for what the system refused.
    """
    try:
        yield
    except UserError as error:
        fail(str(error))
    except Interrupted as stopped:
        _leave_group()
        fail(str(stopped), EXIT_CODE)
    except OSError as error:  # a full disk, a folder that may not be written
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    else:
        _leave_group()


def _leave_group() -> None:
    """Leave the group of processes, where there is one: a process that ends inside may crash at its very end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def fail(message: str, code: int = 2) -> None:
    """Print one line and exit."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{'' if code == EXIT_CODE else 'error: '}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _explain(message: str, keys: Sequence[str]) -> str:
    """Return jsonargparse's message in one line, with the nearest key where one is unknown."""
    message = " ".join(str(message).split())
    for pattern in (r"Group '([^']+)' does not accept option '([^']+)'", r"Option '([^']+)' is not accepted"):
        if found := re.search(pattern, message):
            return _unknown(".".join(found.groups()), keys)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        given = found[1].partition("=")[0]
        return _unknown(given.lstrip("-"), keys) if given.startswith("--") else f"{given!r} belongs to no key"
    if found := re.search(
        r'Parser key "([^"]+)": (.*)Expected an? <class .*(?:Got|Given) value: (.*)$', message
    ):
        key, union, value = found.groups()
        kinds = re.findall(r"list\[int\]|(?<=<class ')\w+", union.partition("Errors:")[0] or message)
        allowed = [_KINDS.get(kind, kind) for kind in dict.fromkeys(kinds)]
        return f"{key}: {value!r} is not allowed; give {' or '.join(allowed)}"
    return message


def _unknown(key: str, keys: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"unknown key {key!r}; " + (f"did you mean {close[0]!r}?" if close else "--help lists all keys")


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
        defaults: Dotted keys and the values that take the place of the config's own.
        extend: Adds options beyond the config to the parser.

    Returns:
        The config, and the namespace with the other options.
    """
    parser = ArgumentParser(
        usage="%(prog)s [--config FILE.yaml] [--key VALUE] [--section.key VALUE ...]",
        description=description,
        formatter_class=_Help,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file; what follows on the command line overrides it."
    )
    if extend is not None:
        extend(parser)
    parser.add_class_arguments(config_class)
    parser.set_defaults(defaults or {})
    keys = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    fields = config_class.__dataclass_fields__
    with user_errors():
        try:
            parsed = parser.parse_args(arguments)
            for name, field in fields.items():
                if is_dataclass(field.default_factory) and not isinstance(parsed[name], Namespace):
                    raise UserError(f"{name}: {parsed[name]!r} is not a section with keys")
            values = parser.instantiate(parsed)
            return config_class(**{name: values[name] for name in fields}), values
        except UserError:
            raise
        except Exception as error:  # jsonargparse raises several types; each is about what was typed
            fail(_explain(str(error), keys))
