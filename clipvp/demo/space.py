"""The files of a hub Space that serves the demo of a prompt."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..artifact.format import find_artifact, read_config
from ..files import write_text
from ..registry import WEIGHTS, UserError

_APP = '''"""The demo of {title}."""

from clipvp.demo import open_demo

open_demo({prompts}, host="0.0.0.0"{options})
'''
_README = """---
title: {title}
emoji: 🖼️
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
{models}---

A visual prompt made with clipvp: drop an image, and see what the source model sees, the classes with their scores,
and the source labels or texts behind them. The source is {sources}.
"""


def write_space(
    prompts: Sequence[str],
    folder: Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> list[Path]:
    """Write app.py, requirements.txt, README.md and the prompts that are folders here.

    Args:
        prompts: Folders, which are copied, or hub ids.
        folder: Made where it is missing; it must not hold a Space already.
        source: Overrides the saved source name, in the Space too.
        revision: Branch, tag or commit of prompts on the hub, in the Space too.
        local_files_only: Take what the local hub cache holds.

    Returns:
        What was written.

    Raises:
        UserError: A prompt is missing or needs a plug-in, its source is a local folder, or the folder holds a file of
            the same name.
    """
    found = [find_artifact(prompt, revision, local_files_only) for prompt in prompts]
    configs = [read_config(path) for path in found]
    if plugins := sorted({plugin for config in configs for plugin in config["plugins"]}):
        raise UserError(f"a prompt needs the plug-in {', '.join(plugins)}, which a Space does not hold")
    sources = [source] if source else list(dict.fromkeys(config["source"]["name"] for config in configs))
    for name in sources:
        if "local-dir:" in name or Path(name.partition(":")[2]).expanduser().exists():
            raise UserError(f"the source {name!r} is a folder of this machine; a Space loads it from the hub")
    named, copied = [], {}
    for place, (prompt, path) in enumerate(zip(prompts, found, strict=True)):
        if Path(prompt).expanduser().is_dir():
            name = plain_name(prompt).replace(" ", "-")
            named.append("prompt" if len(prompts) == 1 else f"prompts/{name}-{place + 1}")
            copied[named[-1]] = path
        else:
            named.append(str(prompt))
    title = plain_name(prompts[0]) if len(prompts) == 1 else f"{len(prompts)} visual prompts"
    hub = [prompt for prompt in named if prompt not in copied]
    needed = {WEIGHTS.get(config["weights"]["kind"]).extra for config in configs}
    needed |= {"offline" if name.startswith("offline:") else None for name in sources}
    extras = ",".join(["demo", *sorted(filter(None, needed))])
    options = {"source": source, "revision": revision if hub else None}
    given = "".join(f", {key}={json.dumps(value)}" for key, value in options.items() if value)
    try:
        gradio = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        gradio = "6.0.0"
    models = "models:\n" + "".join(f"- {prompt}\n" for prompt in hub) if hub else ""
    texts = {
        "app.py": _APP.format(title=title, prompts=json.dumps(named), options=given),
        "requirements.txt": f"clipvp[{extras}]=={__version__}\n",
        "README.md": _README.format(
            title=json.dumps(title),
            gradio=gradio,
            models=models,
            sources=", ".join(f"`{name}`" for name in sources),
        ),
    }
    for name in (*texts, *copied):
        if (folder / name).exists():
            raise UserError(f"{str(folder / name)!r} is there already; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    for name, path in copied.items():
        shutil.copytree(path, folder / name)
    return [folder / name for name in (*texts, *copied)]


def plain_name(prompt: str) -> str:
    """Return a name for people.

    >>> plain_name("runs/mine/prompt"), plain_name("runs/compare/blm_lite0/seed0/prompt")
    ('mine', 'blm_lite0 seed0')
    """
    parts = [part for part in Path(prompt).parts if part not in ("prompt", "prompt_average", "/")]
    of_comparison = len(parts) > 1 and re.fullmatch(r"seed\d+", parts[-1])
    return " ".join(parts[-2:] if of_comparison else parts[-1:]) or "prompt"
