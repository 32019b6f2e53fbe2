"""The house has one direction: a room knows the rooms below it, and starting up is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipvp"
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

# A room imports only from lines above its own, lazily or not.
LEVELS = [
    {"registry", "files", "interrupt", "cpu"},
    {"images", "templates", "tasks"},
    {"config", "labels", "assignment"},
    {"config_dict"},
    {"prompts", "mappings", "optim", "checkpoint", "progress", "run", "text", "processes"},
    {"sources", "data", "sharing", "plots", "cli", "compare"},
    {"hub"},
    {"card"},
    {"pretrained", "page"},
    {"model"},
    {"build"},
    {"scores"},
    {"trainer", "report", "baselines", "zero_shot", "evaluation", "export", "tracking"},
    {"train"},
    {"pictures", "base_to_new", "benchmark"},
    {"verbs"},
    {"main"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
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
)


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def nodes(tree: ast.AST, types: bool):
    yield tree
    for child in ast.iter_child_nodes(tree):
        if types or not only_for_types(child):
            yield from nodes(child, types)


def imported(module: str, path: Path, types: bool = True) -> set[str]:
    """Return the modules of the package that a file imports anywhere in it, for types alone too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), types):
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


def room(module: str) -> str | None:
    return module.split(".")[1] if "." in module else None


def test_every_room_has_its_place():
    rooms = {room(module) for module in MODULES} - {None}
    assert rooms <= set(LEVEL), f"give {sorted(rooms - set(LEVEL))} a line in LEVELS"


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if room(module) and room(other) not in (None, room(module))
        if LEVEL[room(other)] >= LEVEL[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_a_detour():
    graph = {module: imported(module, path, types=False) for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(graph[module]):
                visit(other)
            done.add(path.pop())

    for module in sorted(graph):
        visit(module)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT
    )


LOADED = f"print(*(name for name in {HEAVY!r} if name in __import__('sys').modules))"


def test_names_and_configs_load_nothing_heavy():
    quick = ["cli", "config", "registry", "compare", "labels", "files", "run", "progress"]
    done = run_python("import " + ", ".join(f"clipvp.{name}" for name in quick) + "\n" + LOADED)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout + done.stderr


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
    done = run_python(HELP, str(recipe))
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert done.returncode == 0, done.stderr
    assert loaded.split() == []
    first = recipe.read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
    assert first in text  # the recipe's own first line, unbroken
