"""What every command does: read its config, and end with an error that a person can act on."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from functools import wraps
from typing import Any, NoReturn

from ..config import parse as config_parse
from ..registry import UserError
from ..training.interrupt import EXIT_CODE, Interrupted


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that is not the program's into one line on the main process, and each warning to the user too.

    Exit code 2 for a ``UserError``, 75 for a stop on request, 1 for an error of the system.
    """
    try:
        with _plain_warnings():
            yield
    except UserError as error:
        fail(str(error))
    except Interrupted as stopped:
        _leave_group()
        fail(str(stopped), EXIT_CODE)
    except OSError as error:  # a full disk, a folder without the right to write
        fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    else:
        _leave_group()


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        if category is not UserWarning and category.__name__ != "ImageWarning":
            usual(message, category, *where, **options)
        elif os.environ.get("RANK", "0") == "0" or category is UserWarning:  # each process reads all images
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _leave_group() -> None:
    """Leave the process group, if there is one: a process that ends inside it may crash at its very end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line and exit."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{'' if code == EXIT_CODE else 'error: '}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def prepare_console() -> None:
    """Let what the console's encoding lacks be printed as an escape (\\u732b), not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@wraps(config_parse.parse)
def parse(*args: Any, **options: Any) -> Any:
    prepare_console()
    with user_errors():
        return config_parse.parse(*args, **options)
