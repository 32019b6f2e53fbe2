"""Between a name and its weights: whether the hub can be asked, and what is said when it does not give them."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..registry import UserError

# Seconds: one attempt to connect, and all of looking up the host's name and connecting.
_CONNECT, _REACH = 3.0, 6.0
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
    """Load a source with this around: errors become one line, and a hub out of reach is not asked.

    Without it the hub client repeats its requests for half a minute before it says that there is no network.

    Args:
        name: The source's, for the message.
        repositories: The hub repositories that its files come from; none for a local folder.
        revision: Branch, tag or commit, for the message.
        local_files_only: The user's wish.
        what: What is loaded, for the message.

    Yields:
        Whether the load must do without the hub.

    Raises:
        UserError: The model is not to be had.
    """
    from huggingface_hub import constants

    why = None
    if local_files_only:
        why = "local_files_only is set"
    elif constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    elif repositories and not _reachable(constants.ENDPOINT):
        why = f"{constants.ENDPOINT} cannot be reached"
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = why is not None
    try:
        yield why is not None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} {name!r}: {_explain(error, repositories, revision, why)}") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    """Return whether the host of a URL takes connections; with a proxy between, it is taken to do so."""
    url = urlsplit(endpoint)
    proxies = getproxies()
    proxied = url.scheme in proxies or "all" in proxies
    if not url.hostname or (proxied and not proxy_bypass(url.hostname)):
        return True
    reached = threading.Event()
    tried = threading.Event()

    def connect() -> None:  # in a thread, because looking up a name has no time limit of its own
        with contextlib.suppress(OSError):
            port = url.port or (80 if url.scheme == "http" else 443)
            socket.create_connection((url.hostname, port), timeout=_CONNECT).close()
            reached.set()
        tried.set()

    threading.Thread(target=connect, daemon=True).start()
    tried.wait(_REACH)
    return reached.is_set()


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and all that led to it, the nearest first."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is not None and all(current is not seen for seen in found):
            found.append(current)
            waiting += [current.__cause__, current.__context__]
    return found


def _explain(error: Exception, repositories: Sequence[str], revision: str | None, why: str | None) -> str:
    """Return what went wrong and what to do, in one line.

    The libraries wrap the hub client's errors in their own, so all that led to an error is looked through.
    """
    from huggingface_hub import errors
    from safetensors import SafetensorError

    chain = _chain(error)

    def among(*kinds: type) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    where = " or ".join(map(repr, repositories))
    if among(errors.GatedRepoError):
        return f"the repository {where} is gated; accept its terms on the hub, then run `hf auth login`"
    if among(errors.RevisionNotFoundError):
        return f"the repository {where} has no revision {revision!r}"
    if among(errors.RepositoryNotFoundError):
        return f"the hub has no repository {where}, or it is private and needs `hf auth login`"
    damage = among(SafetensorError, pickle.UnpicklingError, EOFError)
    if damage or (damage := next((cause for cause in chain if "PytorchStreamReader" in str(cause)), None)):
        anew = "".join(
            f" with `hf download {repository} --force-download`" for repository in repositories[:1]
        )
        return f"a weight file is damaged ({_first_line(damage)}); fetch it anew{anew}"
    away = among(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    if why and repositories and (away or re.search("cached files|does not appear to have", str(error))):
        option = f" --revision {revision}" if revision else ""
        fetch = " and ".join(f"`hf download {repository}{option}`" for repository in repositories)
        return (
            f"not in the local hub cache, and {why}; fetch it where there is a network ({fetch}), "
            "or give a local folder"
        )
    if missing := among(errors.EntryNotFoundError):
        file = re.search(r"/resolve/[^/]+/(\S+?)\.?$", str(missing), re.MULTILINE)
        return f"the repository {where} lacks the file {file[1] if file else _first_line(missing)!r}"
    if refused := among(errors.HfHubHTTPError):
        return f"the hub refuses: {_first_line(refused)}"
    if broken := next((cause for cause in chain if _is_transport(cause)), away):
        return f"the download broke off ({_first_line(broken)}); start again, it goes on where it stopped"
    if isinstance(error, ImportError):
        return f"it needs a package that is not installed: {_first_line(error).partition('. ')[0]}"
    return f"it does not load: {_first_line(error)}"


def _is_transport(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return library in ("httpx", "httpx2", "requests") and "Status" not in type(error).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text if len(text) <= 300 else f"{text[:297]}..."


def fetch_open_clip(repository: str, revision: str | None) -> str:
    """Return the local folder of an open_clip model on the hub: its config, its tokenizer and one file of weights."""
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
    commit = Path(folder).name  # the weights of the same commit, should a branch move meanwhile
    hf_hub_download(repository, "open_clip_config.json", revision=commit)
    for file in _OPEN_CLIP_WEIGHTS:
        try:
            hf_hub_download(repository, file, revision=commit)
        except errors.EntryNotFoundError:
            continue
        return folder
    raise FileNotFoundError(f"it holds no weights ({', '.join(_OPEN_CLIP_WEIGHTS)})")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' own bars and warnings for a load: what matters of them is checked and said by us."""
    from transformers.utils import logging as their_logging

    bars, level = their_logging.is_progress_bar_enabled(), their_logging.get_verbosity()
    their_logging.disable_progress_bar()
    their_logging.set_verbosity_error()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_open_clip() -> Iterator[None]:
    """Keep open_clip's messages off the root logger, which they would set up for the whole process."""
    root, silent = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return f"{os.sep}open_clip{os.sep}" not in record.pathname

    root.addHandler(silent)
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(silent)
