"""The verbs of the console script, one function each."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..artifact.format import WEIGHTS, find_artifact, read_config
from ..data.catalog import TASK_TABLE
from ..data.loaders.files import printable
from ..presets import configs, copy_preset, header, methods
from ..registry import MAPPINGS, PROMPTS, TASKS, UserError
from ..results.tables import MAPPING_COLUMNS, MOST_LINKS, mapping_rows, mapping_table, percent, scores_table

_SOURCES = {
    "timm:resnet18.a1_in1k": "a timm classifier; timm:hf-hub:ORG/NAME; timm:local-dir:FOLDER",
    "hf:microsoft/resnet-50": "a transformers image classifier; hf:FOLDER",
    "hf:openai/clip-vit-base-patch32": "a transformers CLIP or SigLIP; hf:FOLDER",
    "open_clip:ViT-B-32-quickgelu/openai": "an open_clip model; open_clip:hf-hub:ORG/NAME; open_clip:local-dir:FOLDER",
    "distilled:FOLDER": "a local source with a head that clipvp ares made of a service's answers",
    "onnx:FILE": "a model in an ONNX file, such as one of clipvp export; no gradient",
    "http://HOST:PORT": "a service such as clipvp serve, also https://; no gradient",
    "offline:lite0": "EfficientNet-Lite0, trained on ImageNet-1k, out of a pip package",
    "offline:lite0-minilm": "a small CLIP, made of two networks out of pip packages",
}

_UNREADABLE = {"label": "cannot be read", "score": None, "source_label": None}


def predict(
    prompt: str,
    images: list[str],
    top_k: int,
    batch_size: int,
    device: str,
    on_error: str,
    json: bool,
    **where: Any,
) -> None:
    from ..data.inputs import single_images
    from ..images import ImageError, check_image
    from ..model import PromptedClassifier

    _check_device(device)
    paths = single_images(images)
    if on_error == "raise":
        for path in paths:  # a file that is not an image is reported before a model loads
            check_image(path)
    model = PromptedClassifier.from_pretrained(prompt, device=device, **where)
    found = model.predict(paths, top_k=top_k, batch_size=batch_size, on_error=on_error)
    pairs = list(zip(map(printable, paths), found, strict=True))
    if json:
        _print_json(
            [
                {"image": path, "predictions": [], "error": str(rows)}
                if isinstance(rows, ImageError)
                else {"image": path, "predictions": rows}
                for path, rows in pairs
            ]
        )
    else:
        table = [
            [path if rank == 0 else "", row["label"], percent(row["score"]), row["source_label"]]
            for path, rows in pairs
            for rank, row in enumerate([_UNREADABLE] if isinstance(rows, ImageError) else rows)
        ]
        _print_table(table, ["image", "label", "score", MAPPING_COLUMNS["label"]], "llrl")
    if errors := [rows for rows in found if isinstance(rows, ImageError)]:
        raise UserError(f"{len(errors)} of {len(paths)} images cannot be read, the first: {errors[0]}")


def show(prompt: str, json: bool, **where: Any) -> None:
    folder = find_artifact(prompt, **where)
    config = read_config(folder)
    if json:
        _print_json(config)
        return
    source, results = config["source"], config.get("results") or {}
    names = config["class_names"]
    few = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    rows = [
        ["prompt", _settings(config["prompt"])],
        ["mapping", _settings(config["mapping"])],
        ["weights", _settings(config["weights"])],
        ["source", source["name"] + (f" @ {source['revision']}" if source.get("revision") else "")],
        ["source weights", source.get("fingerprint")],
        ["classes", f"{len(names)}: {few}"],
        ["image size", " x ".join(map(str, config["preprocessing"]["resize"]["size"]))],
        ["size", f"{(folder / WEIGHTS).stat().st_size / 1e3:.0f} kB, format version {config['version']}"],
    ]
    if results:
        rows += [["task", f"{results['task']}, seed {results['seed']}, split {results['split_hash']}"]]
        rows += [[label, acc1] for label, acc1, *_ in scores_table(results["metrics"])]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True, maxcolwidths=[None, 90]))


def show_mapping(prompt: str, json: bool, **where: Any) -> None:
    found = {key: where[key] for key in ("revision", "local_files_only")}
    config = read_config(find_artifact(prompt, **found))
    rows = config.get("mapping_table")
    if rows is None:  # saved by an early version without the labels' names, which the source has
        from ..model import PromptedClassifier

        model = PromptedClassifier.from_pretrained(prompt, **where)
        links = model.mapping.links(MOST_LINKS)
        rows = mapping_rows(links, model.source.labels.names, model.class_names)
    if json:
        _print_json(rows)
        return
    print(mapping_table(rows))


def show_texts(prompt: str, wanted: str | None, json: bool, **where: Any) -> None:
    from .texts import as_text, describe

    found = describe(prompt, wanted, **where)
    _print_json(found) if json else print(as_text(found))


def list_names(what: str) -> None:
    if what == "sources":
        print(tabulate(_SOURCES.items(), tablefmt="plain"))
    elif what == "templates":
        from ..labels.templates import template_set, template_sets

        rows = [[name, len(template_set(name)), template_set(name)[0]] for name in template_sets()]
        _print_table(rows, ["set", "templates", "the first"], "lrl")
    elif what == "tasks":
        _list_tasks()
    elif what in ("configs", "methods"):
        found = {"configs": configs, "methods": methods}[what]()
        print(tabulate([[name, header(path)] for name, path in found.items()], tablefmt="plain"))
    else:
        print("\n".join({"prompts": PROMPTS, "mappings": MAPPINGS}[what].names()))


def _list_tasks() -> None:
    rows = []
    for name in TASKS.names():
        if (entry := TASK_TABLE.get(name)) is None:  # registered by a plug-in
            rows.append([name, *[None] * 9])
            continue
        where = f"{entry.repo} @ {entry.revision[:7]}" if entry.repo else entry.package
        where = where or f"data.folder .../{entry.coop}"
        paper = [entry.image_size, entry.batch_size, *entry.paper] if entry.paper else [None] * 4
        rows.append([name, entry.num_classes, *entry.sizes, *paper, where])
    paper = [f"paper:\n{what}" for what in ("image", "batch", "train", "test")]
    _print_table(rows, ["", "classes", "train", "val", "test", *paper, "from"], "l" + "r" * 8 + "l")
    print(
        "or a folder of images or with CoOp's split file, a .parquet or .csv file, or a hub data set ORG/NAME"
    )


def copy_recipe(name: str, folder: str) -> None:
    written = copy_preset(name, folder)
    print("\n".join(map(str, written)))
    first = written[0]
    verb = "sweep" if name.startswith("sweeps/") else "train"
    option = "--method" if name.removeprefix("methods/") in methods() else "--config"
    print(f"run it:  {f'python {first}' if first.suffix == '.py' else f'clipvp {verb} {option} {first}'}")


def cache(shown: bool, clear: bool, only: str | None, cache_dir: str | None) -> None:
    from ..data.cache import list_cores, list_images
    from ..files import cache_root, list_features, remove_entries
    from ..sources.text import list_texts

    kinds = {"images": list_images, "texts": list_texts, "features": list_features, "cores": list_cores}
    entries = [entry for kind in ([only] if only else kinds) for entry in kinds[kind](cache_dir)]
    if shown or not clear:
        print(f"cache in {cache_root(cache_dir)}" + ("" if entries else ": empty"))
        if entries:
            rows = [[e.kind, e.what, f"{e.num_bytes / 1e6:.1f}", e.path.name] for e in entries]
            total = f"{sum(entry.num_bytes for entry in entries) / 1e6:.1f}"
            _print_table([*rows, ["total", "", total, ""]], ["kind", "what", "MB", "entry"], "llrl")
    if clear:
        print(
            f"removed {remove_entries(entries) / 1e6:.1f} MB of {only or 'images, texts, features and cores'}"
        )


def env() -> None:
    import platform

    import torch

    from ..results.record import git_commit, versions

    found = {**versions(), "platform": platform.platform(), "git commit": git_commit()}
    found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    found["CPU threads"] = torch.get_num_threads()
    print(tabulate(found.items(), tablefmt="plain", disable_numparse=True, missingval="not installed"))


def doctor() -> None:
    from .doctor import doctor as examine_and_say

    examine_and_say()


def demo(
    prompts: list[str],
    space: str | None,
    host: str | None,
    port: int | None,
    browser: bool,
    device: str,
    **where: Any,
) -> None:
    if space is not None:
        from ..demo.space import write_space

        print("\n".join(map(str, write_space(prompts, Path(space).expanduser(), **where))))
        return
    from ..demo import open_demo

    _check_device(device)
    open_demo(prompts, host=host, port=port or None, browser=browser, device=device, **where)


def export(prompt: str, onnx: str, logits: bool, **where: Any) -> None:
    from ..export import export_onnx
    from ..model import PromptedClassifier

    model = PromptedClassifier.from_pretrained(prompt, share_border=False, **where)
    worst = export_onnx(model, Path(onnx).expanduser(), logits)
    height, width = model.prompt.image_size
    print(f"{onnx}: uint8 images (B, {height}, {width}, 3) to {'logits' if logits else 'probabilities'}")
    print(f"checked against onnxruntime: it differs by at most {worst:.1e}")


def serve(
    prompt: str,
    host: str,
    port: int,
    batch_size: int,
    most_images: int,
    most_megabytes: int,
    device: str,
    **where: Any,
) -> None:
    from ..cpu import prepare_cpu
    from ..model import PromptedClassifier
    from ..serve import Bounds, serve

    prepare_cpu()
    _check_device(device)
    load = partial(PromptedClassifier.from_pretrained, prompt, device=device, **where)
    serve(load, host, port, Bounds(most_images, most_megabytes << 20, batch_size))


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from error


def import_checkpoint(checkpoint: str, source: str, classes: str, output: str) -> None:
    from ..data.catalog import reference_names
    from ..labels.names import read_names

    entry, folder = TASK_TABLE.get(classes), Path(output).expanduser()
    names = entry.names() if entry is not None else read_names("--classes", classes)
    if names is None:
        raise UserError(
            f"--classes: the names of {classes} come with its data; give a file with one name a line"
        )
    if folder.exists():
        raise UserError(f"--output: {output!r} is there already; choose another folder")
    from ..reference import import_prompt

    model = import_prompt(checkpoint, source, reference_names(classes, list(names)))
    model.save_pretrained(folder)
    print(f"{folder}: {model.prompt.kind} prompt of {len(model.class_names)} classes for {source}")
    print(f"score it:  clipvp evaluate {folder} --data.name DATA --data.names reference")


def report(runs: list[str], output: str | None) -> None:
    from ..results.page import write_page
    from ..results.page.sweep import write_sweep_page
    from ..results.sweep_files import SWEEP

    folders = [Path(run).expanduser() for run in runs]
    file = Path(output).expanduser() if output else None
    is_sweep = len(folders) == 1 and (folders[0] / SWEEP).is_file()
    print(write_sweep_page(folders[0], file) if is_sweep else write_page(folders, file))


VERBS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "show": show,
    "map": show_mapping,
    "texts": show_texts,
    "list": list_names,
    "copy_recipe": copy_recipe,
    "cache": cache,
    "env": env,
    "doctor": doctor,
    "demo": demo,
    "export": export,
    "serve": serve,
    "import": import_checkpoint,
    "report": report,
}


def _settings(section: dict[str, Any]) -> str:
    """Return the kind of a prompt or mapping with its settings in brackets, without long lists."""
    parts = [
        f"{key} {value}"
        for key, value in section.items()
        if key != "kind" and value is not None and not (isinstance(value, list) and len(value) > 3)
    ]
    return section["kind"] + (f" ({', '.join(parts)})" if parts else "")


def _print_json(value: Any) -> None:
    """Print JSON; on a console that is not UTF-8, with the escapes of JSON."""
    plain = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json_format.dumps(value, indent=2, ensure_ascii=not plain))


def _print_table(rows: list[Any], headers: list[str], align: str) -> None:
    sides = {"l": "left", "r": "right"}
    print(tabulate(rows, headers, colalign=[sides[c] for c in align], disable_numparse=True, missingval="-"))
