"""Access to the model hub: whether it can be reached, and one-line errors for what cannot be loaded from it."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..registry import UserError

# Seconds: for one attempt to connect, and for looking up the host's name and all attempts together.
_CONNECT_TIMEOUT, _TOTAL_TIMEOUT = 3.0, 6.0
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)


@contextlib.contextmanager
def hub_access(
    name: str,
    repositories: Sequence[str],
    revision: str | None,
    local_files_only: bool,
    what: str = "source",
) -> Iterator[bool]:
    """Context manager for loading from the hub: errors become one line, and a hub that cannot be reached is not used.

    Without it the hub client repeats its requests for half a minute before it reports that there is no network.

    Args:
        name: The name of the source, for the message.
        repositories: The hub repositories that its files come from; none for a local folder.
        revision: Branch, tag or commit, for the message.
        local_files_only: Whether the user asked to use the local hub cache only.
        what: What is loaded, for the message.

    Yields:
        Whether the hub must not be used.

    Raises:
        UserError: The files cannot be loaded.
    """
    from huggingface_hub import constants

    why_offline = None
    if local_files_only:
        why_offline = "local_files_only is set"
    elif constants.HF_HUB_OFFLINE:
        why_offline = "HF_HUB_OFFLINE is set"
    elif repositories and not is_reachable(constants.ENDPOINT):
        why_offline = f"{constants.ENDPOINT} cannot be reached"
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = why_offline is not None
    try:
        yield why_offline is not None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} {name!r}: {_explain(error, repositories, revision, why_offline)}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def is_reachable(endpoint: str) -> bool:
    """Return whether the host of a URL accepts connections; True without a test if a proxy is set for it."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxied = url.scheme in proxies or "all" in proxies
    if not url.hostname or (proxied and not proxy_bypass(url.hostname)):
        return True
    connected, done = threading.Event(), threading.Event()

    def connect() -> None:  # in a thread, because looking up a name has no timeout
        with contextlib.suppress(OSError):
            port = url.port or (80 if url.scheme == "http" else 443)
            socket.create_connection((url.hostname, port), timeout=_CONNECT_TIMEOUT).close()
            connected.set()
        done.set()

    threading.Thread(target=connect, daemon=True).start()
    done.wait(_TOTAL_TIMEOUT)
    return connected.is_set()


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all its causes and contexts, the nearest first."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is not None and all(current is not seen for seen in found):
            found.append(current)
            waiting += [current.__cause__, current.__context__]
    return found


def _explain(
    error: Exception, repositories: Sequence[str], revision: str | None, why_offline: str | None
) -> str:
    """Return what went wrong and what to do, in one line.

    The libraries wrap the hub client's errors in their own, so all causes of an error are searched.
    """
    from huggingface_hub import errors
    from safetensors import SafetensorError

    chain = _chain(error)

    def find(*types: type) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, types)), None)

    where = " or ".join(map(repr, repositories))
    if find(errors.GatedRepoError):
        return f"the repository {where} is gated; accept its terms on the hub, then run `hf auth login`"
    if find(errors.RevisionNotFoundError):
        return f"the repository {where} has no revision {revision!r}"
    if find(errors.RepositoryNotFoundError):
        return f"the hub has no repository {where}, or it is private and needs `hf auth login`"
    damage = find(SafetensorError, pickle.UnpicklingError, EOFError)
    if damage and (found := re.search(r"GLOBAL (\S+)", str(damage))):
        return (
            f"a weight file holds Python objects ({found[1]}), and they can run code; save its tensors alone"
        )
    if damage or (damage := next((cause for cause in chain if "PytorchStreamReader" in str(cause)), None)):
        command = f" with `hf download {repositories[0]} --force-download`" if repositories else ""
        return f"a weight file is damaged ({_first_line(damage)}); download it again{command}"
    unavailable = find(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    missing = unavailable or re.search("cached files|does not appear to have", str(error))
    if why_offline and repositories and missing:
        option = f" --revision {revision}" if revision else ""
        commands = " and ".join(f"`hf download {repository}{option}`" for repository in repositories)
        return (
            f"not in the local hub cache, and {why_offline}; download it where there is a network ({commands}), "
            "or give a local folder"
        )
    if no_entry := find(errors.EntryNotFoundError):
        file = re.search(r"/resolve/[^/]+/(\S+?)\.?$", str(no_entry), re.MULTILINE)
        return f"the repository {where} has no file {file[1] if file else _first_line(no_entry)!r}"
    if refused := find(errors.HfHubHTTPError):
        return f"the hub refused the request: {_first_line(refused)}"
    if broken := next((cause for cause in chain if _is_transport(cause)), unavailable):
        return f"the download was interrupted ({_first_line(broken)}); start again to continue it"
    if isinstance(error, ImportError):
        return f"it needs a package that is not installed: {_first_line(error).partition('. ')[0]}"
    return f"it does not load: {_first_line(error)}"


def _is_transport(error: BaseException) -> bool:
    """Return whether an error is one of the connection, not an answer of the hub."""
    library = type(error).__module__.partition(".")[0]
    return library in ("httpx", "httpx2", "requests") and "Status" not in type(error).__name__


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, up to 300 characters, with the second if the first ends with a colon."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]  # before it, torch advises to trust the file
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= 300 else f"{text[:297]}..."


def fetch_open_clip(repository: str, revision: str | None) -> str:
    """Download config, tokenizer and one weight file of an open_clip model from the hub; return the local folder."""
    from huggingface_hub import errors, hf_hub_download, snapshot_download
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": True})

    folder = snapshot_download(
        repository,
        revision=revision,
        allow_patterns=["*.json", "*.txt", "*.model"],
        ignore_patterns=["*/*"],
        tqdm_class=Silent,
    )
    commit = Path(folder).name  # so that all files are of one commit, even if the branch changes meanwhile
    hf_hub_download(repository, "open_clip_config.json", revision=commit)
    for file in _OPEN_CLIP_WEIGHTS:
        try:
            hf_hub_download(repository, file, revision=commit)
        except errors.EntryNotFoundError:
            continue
        return folder
    raise FileNotFoundError(f"it has no weights ({', '.join(_OPEN_CLIP_WEIGHTS)})")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context manager that hides the progress bars and warnings of transformers; the loaders report what matters.

    Afterwards all settings are as before, also those of the hub client's bars, which transformers switches together
    with its own.
    """
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging as transformers_logging

    logger = transformers_logging.get_logger("transformers")
    level, hub_bars = logger.level, dict(progress_bar_states)
    bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    _without_warnings(transformers_logging.disable_progress_bar)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            _without_warnings(transformers_logging.enable_progress_bar)
        progress_bar_states.clear()
        progress_bar_states.update(hub_bars)


def _without_warnings(function: Callable[[], None]) -> None:
    with warnings.catch_warnings():  # the hub client warns if HF_HUB_DISABLE_PROGRESS_BARS decides instead
        warnings.simplefilter("ignore")
        function()


@contextlib.contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Context manager that drops open_clip's log messages, which would otherwise configure the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return f"{os.sep}open_clip{os.sep}" not in record.pathname

    root.addHandler(handler)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)
