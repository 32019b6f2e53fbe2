"""The console script ``clipvp``: a verb for each recipe, which runs the recipe itself, and the verbs of ``verbs.py``.

Each verb imports what it needs when it is called, so that ``--help`` and a mistyped word cost nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from typing import NoReturn

from .. import __version__
from ..config.parse import with_underscores
from ..config.plugins import load_plugins
from ..presets import FOLDER, header, recipes
from .command_line import fail, prepare_console, user_errors

_FIRST = ("train", "compare", "evaluate", "sweep")  # of the recipes, in the help


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="clipvp",
        description="Adapt a frozen vision model to your own classes: train, compare and use visual prompts and heads.",
        epilog="Begin with: clipvp train --config quickstart, or clipvp train --data.name FOLDER. "
        "clipvp VERB --help lists the options of a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clipvp {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    found = recipes()
    for name in [*_FIRST, *(name for name in found if name not in _FIRST)]:
        verbs.add_parser(name, help=header(found[name]))

    def verb(
        name: str,
        help: str,
        prompt: bool = True,
        loads: bool = False,
        what: str = "folder or hub id of a saved prompt",
        many: bool = False,
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        if prompt:
            name, count = ("prompts", "+") if many else ("prompt", None)
            sub.add_argument(name, metavar="PROMPT", help=what, nargs=count)
            sub.add_argument("--revision", help="branch, tag or commit of the prompt on the hub")
            sub.add_argument("--local_files_only", action="store_true", help="never ask the network")
        if loads:
            sub.add_argument("--source", help="overrides the saved source name")
            sub.add_argument(
                "--plugins",
                action="append",
                default=[],
                metavar="FILE",
                help="a plug-in that the prompt needs",
            )
        return sub

    predict = verb("predict", "Classify images.", loads=True)
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders or patterns")
    predict.add_argument("--top_k", type=_positive, default=3, help="classes shown for each image (3)")
    predict.add_argument("--batch_size", type=_positive, default=64, help="images at a time (64)")
    predict.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    predict.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="an unreadable image ends the command (raise), or gets a row and exit code 2 at the end (skip)",
    )
    predict.add_argument("--json", action="store_true", help="print JSON")
    show = verb("show", "Describe a saved prompt: its source, method, classes and scores.")
    show.add_argument("--json", action="store_true", help="print its whole config as JSON")
    mapping = verb("map", "Print which source label each class takes.", loads=True)
    mapping.add_argument("--json", action="store_true", help="print JSON")
    either = "folder or hub id of a saved prompt, or a config: a YAML file or the name of one of the package"
    texts = verb(
        "texts",
        "Print which texts each class of a CLIP has, and which were left out.",
        loads=True,
        what=either,
    )
    texts.add_argument("--class", dest="wanted", metavar="NAME", help="list the texts of one class")
    texts.add_argument("--json", action="store_true", help="print JSON")
    names = verb(
        "list",
        "List the names of configs, methods, sources, tasks, templates, prompts or mappings.",
        prompt=False,
    )
    names.add_argument(
        "what", choices=["configs", "methods", "sources", "tasks", "templates", "prompts", "mappings"]
    )
    copied = verb("copy-recipe", "Copy a recipe, a config or a method, to read and change it.", prompt=False)
    copied.add_argument("name", metavar="NAME", help="train, quickstart, paper/resnet18, blm_plus, ...")
    copied.add_argument("folder", metavar="FOLDER", nargs="?", default=".", help="where to (.)")
    cache = verb(
        "cache", "List or remove decoded images, text embeddings and features on disk.", prompt=False
    )
    cache.add_argument("--list", dest="shown", action="store_true", help="list them, the default")
    cache.add_argument("--clear", action="store_true", help="remove them; they are made again when needed")
    cache.add_argument(
        "--only", choices=["images", "texts", "features", "cores"], help="list or remove only this kind"
    )
    cache.add_argument(
        "--cache_dir", metavar="FOLDER", help="where they are ($CLIPVP_CACHE, or the user's cache)"
    )
    verb("env", "Print the versions that a bug report needs.", prompt=False)
    verb("doctor", "Check versions, GPU, caches, hub and extras, and give advice.", prompt=False)
    demo = verb(
        "demo",
        "Classify images on a page in the browser, by several prompts side by side.",
        loads=True,
        many=True,
    )
    demo.add_argument("--host", help="address to listen on (127.0.0.1: this machine only)")
    demo.add_argument("--port", type=_port, help="its port, 0 for a free one (the first free one from 7860)")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    demo.add_argument("--browser", action="store_true", help="open a browser")
    demo.add_argument("--space", metavar="FOLDER", help="write the files of a hub Space instead")
    export = verb("export", "Write prompt, frozen source and mapping as one ONNX file.", loads=True)
    export.add_argument("--onnx", metavar="FILE", required=True, help="the file to write")
    export.add_argument("--logits", action="store_true", help="give target logits, not probabilities")
    serve = verb("serve", "Serve a saved prompt: answer requests to classify images over HTTP.", loads=True)
    serve.add_argument("--host", default="127.0.0.1", help="address to answer at (127.0.0.1: this machine)")
    serve.add_argument("--port", type=_port, default=8000, help="its port, 0 for a free one (8000)")
    serve.add_argument("--batch_size", type=_positive, default=64, help="images at a time (64)")
    serve.add_argument("--most_images", type=_positive, default=256, help="most images in a request (256)")
    serve.add_argument("--most_megabytes", type=_positive, default=64, help="largest request in MB (64)")
    serve.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    imports = verb("import", "Turn a best.pth of ILM-VP's code into a saved prompt.", prompt=False)
    imports.add_argument(
        "checkpoint", metavar="FILE", help="best.pth or ckpt.pth; tensors are read, never code"
    )
    imports.add_argument("--source", required=True, help="the model it was trained on: timm:resnet18.tv_in1k")
    imports.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help="a file of class names, one a line in the order of the labels, or a task whose names are known",
    )
    imports.add_argument("--output", required=True, metavar="FOLDER", help="where the prompt is saved")
    report = verb("report", "Write one run, or a comparison of several, as one HTML file.", prompt=False)
    report.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    report.add_argument("--output", metavar="FILE", default=None, help="RUN/report.html for one run")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def run_recipe(name: str, arguments: Sequence[str]) -> None:
    """Run a recipe as ``python recipes/NAME.py`` does: its folder is searched for what it imports."""
    spec = spec_from_file_location(f"clipvp_recipe_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None  # as of any Python file
    module = sys.modules[spec.name] = module_from_spec(spec)
    before = sys.argv, sys.path[:]
    sys.argv = [f"clipvp {name}", *arguments]
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
        module.main()
    finally:
        sys.argv, sys.path[:] = before


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and (name := arguments[0].replace("-", "_")) in recipes():
        run_recipe(name, arguments[1:])
        return
    prepare_console()
    options = vars(build_parser().parse_args(with_underscores(arguments)))
    with user_errors():
        from .verbs import VERBS

        try:
            load_plugins(options.pop("plugins", []))
            VERBS[options.pop("verb").replace("-", "_")](**options)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
