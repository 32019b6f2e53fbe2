"""Plug-ins: Python files or modules of the user's that register methods."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from ..registry import UserError


def load_plugins(names: Iterable[str]) -> None:
    """Import plug-ins; one that is imported already is left as it is.

    Args:
        names: Paths that end in .py, or names of modules.

    Raises:
        UserError: A plug-in is missing, or raises an error while it is imported.
    """
    for name in names:
        try:
            _import_file(Path(name).expanduser()) if name.endswith(".py") else importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"plugins: {name!r} cannot be imported: {type(error).__name__}: {reason}"
            ) from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"plugins: there is no file {str(path)!r}")
    path = path.resolve()
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    if any(file and Path(file).resolve() == path for file in files):
        return
    name = path.stem if path.stem not in sys.modules else f"clipvp_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
