"""The recipes and configs that come with the package, by name: in a wheel inside the package, else in the checkout.

``recipes()`` are the scripts, ``configs()`` the YAML files, ``methods()`` those of one method each.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .registry import UserError, nearest

_INSIDE = Path(__file__).parent / "_recipes"
FOLDER = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[1] / "recipes"


def recipes() -> dict[str, Path]:
    """Return the scripts by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


def configs() -> dict[str, Path]:
    """Return the configs by name, such as ``quickstart`` and ``paper/resnet18``, without the methods."""
    found = _yaml_files(FOLDER / "configs")
    return {name: path for name, path in found.items() if not name.startswith("methods/")}


def methods() -> dict[str, Path]:
    """Return the configs of methods by name, such as ``blm_plus``."""
    return _yaml_files(FOLDER / "configs" / "methods")


def _yaml_files(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def find_config(name: str) -> str:
    """Return the file of ``--config``: a path as it is, or that of a config's name.

    Raises:
        UserError: There is neither a file nor a config of this name.
    """
    return _find(
        "config", name, configs() | {f"methods/{method}": path for method, path in methods().items()}
    )


def is_config(name: str) -> bool:
    """Return whether a name is that of a YAML file or of a config that comes with the package, and of no folder."""
    path = Path(name).expanduser()
    known = name in configs() or name.removeprefix("methods/") in methods()
    return path.suffix.lower() in (".yaml", ".yml") or (known and not path.is_dir())


def find_method(name: str) -> str:
    """Return the file of ``--method``: a path as it is, or that of a method's name.

    Raises:
        UserError: There is neither a file nor a method of this name.
    """
    return _find("method", name, methods())


def _find(what: str, name: str, known: dict[str, Path]) -> str:
    path = os.path.expanduser(name)
    if os.path.exists(path) and not (os.path.isdir(path) and name in known):
        return name
    if name in known:
        return str(known[name])
    stem = re.sub(r"^(?:.*/)?configs/|\.ya?ml$", "", name)
    for inside in (stem, stem.removeprefix("methods/")):
        if inside in known:  # a path of the repository, outside of it
            hint = f"did you mean {inside!r}, which comes with the package?"
            raise UserError(f"{what}: there is no file {name!r}; {hint}")
    if stem != name:
        return name  # reading it says what is wrong
    raise UserError(f"{what}: there is no file and no {what} {name!r}; {nearest(name, known)}")


def header(path: Path) -> str:
    """Return the first line of what a recipe or config says of itself."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.strip().strip("#\"' "):
            return text
    return ""


def copy_preset(name: str, folder: str | Path = ".") -> list[Path]:
    """Copy a recipe, a config or a method to a folder, and return what was written.

    Raises:
        UserError: Nothing has this name, or a file is there already.
    """
    name = name.removesuffix(".yaml").removesuffix(".py")
    named = methods()
    known = named | {f"methods/{method}": path for method, path in named.items()} | configs() | recipes()
    found = known.get(name) or known.get(name.replace("-", "_"))
    if found is None:
        raise UserError(f"there is no recipe, config or method {name!r}; {nearest(name, known)}")
    needed = [found, *_beside(found)]
    targets = [Path(folder).expanduser() / path.name for path in needed]
    for target in targets:
        if target.exists():
            raise UserError(f"{str(target)!r} is there already; give another folder")
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{str(folder)!r} is a file; give a folder") from error
    for path, target in zip(needed, targets, strict=True):
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, target)
    return targets


def _beside(path: Path) -> list[Path]:
    """Return what a recipe imports from its own folder: packages and other recipes, also through them."""
    found: list[Path] = []
    waiting = [path] if path.suffix == ".py" else []
    while waiting:
        current = waiting.pop()
        sources = sorted(current.rglob("*.py")) if current.is_dir() else [current]
        text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
        for module in sorted(set(re.findall(r"^ *(?:from|import) (\w+)", text, re.MULTILINE))):
            package, script = FOLDER / module, FOLDER / f"{module}.py"
            needed = package if package.is_dir() else script
            if needed.exists() and needed not in (path, *found):
                found.append(needed)
                waiting.append(needed)
    return found
