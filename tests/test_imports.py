"""Imports go one way between the folders of the package, never in a circle, and starting up loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipvp"
# recipes/textbook.py is read as a page of plain torch, which it imports at its top.
RECIPES = sorted(set((ROOT / "recipes").glob("*.py")) - {ROOT / "recipes" / "textbook.py"})

# The folders of the package, and the modules beside them. Each imports only from lines above its own.
ORDER = [
    {"registry"},
    {"files", "cpu", "presets", "notebook"},
    {"progress", "image_files", "pixels"},
    {"images"},
    {"config"},
    {"labels", "sharing"},
    {"prompts"},
    {"weights"},
    {"sources"},
    {"mappings"},
    {"data"},
    {"results"},
    {"artifact"},
    {"model"},
    {"build"},
    {"scoring", "export", "reference", "serve"},
    {"training"},
    {"comparison", "demo"},
    {"search"},
    {"cli"},
    {"__main__"},
]
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
HEAVY = (
    "torch",
    "timm",
    "transformers",
    "accelerate",
    "datasets",
    "open_clip",
    "matplotlib",
    "scipy",
    "sklearn",
    "optuna",
    "peft",
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def nodes(tree: ast.AST):
    """Yield the nodes of a module, without imports that serve type checkers alone."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", None) == "TYPE_CHECKING"):
            yield from nodes(child)


def imported(module: str, path: Path) -> set[str]:
    """Return the modules of the package that a file imports, at its top or in a function."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for name in node.names:
                inner = ".".join([*base, name.name])
                found.add(inner if inner in MODULES else ".".join(base))
    return {name for name in found if name in MODULES} - {module}


GRAPH = {module: imported(module, path) for module, path in MODULES.items()}


def folder(module: str) -> str | None:
    """Return the folder or top-level module of a module; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def test_every_folder_has_its_place():
    assert {folder(module) for module in MODULES} - {None} == set(PLACE)


def test_imports_between_folders_go_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if folder(module) and folder(other) not in (None, folder(module))
        if PLACE[folder(other)] >= PLACE[folder(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(GRAPH[module]):
                visit(other)
            done.add(path.pop())

    for module in sorted(GRAPH):
        visit(module)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT
    )


LOADED = f"print(*(name for name in {HEAVY!r} if name in __import__('sys').modules))"


def test_names_and_configs_load_nothing_heavy():
    quick = ["config.parse", "config.schema", "registry", "results.compare", "labels.space", "files"]
    quick += ["results.folder", "results.tables", "progress", "data.catalog", "cli.main", "cli.verbs"]
    quick += ["search.check"]
    done = run_python("import " + ", ".join(f"clipvp.{name}" for name in quick) + "\n" + LOADED)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr


def test_type_checkers_see_the_public_names():
    import clipvp

    checked = next(
        node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {name.asname: node.module for node in checked.body for name in node.names}
    assert seen == clipvp._HOMES and (PACKAGE / "py.typed").exists()


def test_the_public_names_exist_and_load_when_asked():
    done = run_python(
        "import clipvp\n" + LOADED + "\nfor name in dir(clipvp): assert getattr(clipvp, name), name"
    )
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr
    import clipvp

    # An imported submodule takes its name in the package, so that a public name of that spelling is lost.
    assert not {f"clipvp.{name}" for name in clipvp.__all__} & set(MODULES)
    with pytest.raises(AttributeError, match="no_such_name"):
        clipvp.no_such_name  # noqa: B018


def test_an_old_public_name_works_and_warns_with_the_new_one(monkeypatch):
    import clipvp

    monkeypatch.setitem(clipvp._RENAMED, "train", "fit")
    with pytest.warns(FutureWarning, match="clipvp.train is deprecated; use clipvp.fit") as found:
        assert clipvp.train is clipvp.fit
    assert found[0].filename == __file__


HELP = f"""
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", end="")
{LOADED}
"""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_help_of_every_recipe_loads_nothing_heavy(recipe):
    code = f"import sys; sys.path.insert(0, {str(recipe.parent)!r})\n{HELP}"
    done = run_python(code, str(recipe))
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert done.returncode == 0, done.stderr
    assert loaded.split() == []
    first = recipe.read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
    assert first in text  # the recipe's own first line, unbroken


VERBS = f"""
import sys
from clipvp.cli.main import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as end:
        assert not end.code, end.code
print("LOADED", end="")
{LOADED}
"""


def test_commands_that_only_say_something_load_nothing_heavy():
    said = [
        "--help",
        "train --help",
        "list methods",
        "list configs",
        "train --config quickstart --print_config",
    ]
    done = run_python(VERBS, *said)
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert done.returncode == 0 and loaded.split() == [], done.stderr
    assert all(words in text for words in ("VERB", "--config", "blm_plus", "quickstart", "offline:lite0"))
