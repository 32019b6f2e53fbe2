"""What goes wrong between a name and its weights, said in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from ..registry import UserError


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def hub_errors(name: str, repository: str) -> Iterator[None]:
    """Turn the hub client's and the loaders' errors about a model into one ``UserError``."""
    from huggingface_hub import errors
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"source {name!r}: the repository is gated; accept its terms on the hub and run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"source {name!r}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"source {name!r}: the hub has no such repository, or it is private") from error
    except SafetensorError as error:
        raise UserError(
            f"source {name!r}: a weight file is damaged ({_first_line(error)}); fetch it anew"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise _not_here(name, repository) from error
    except OSError as error:
        if any(word in str(error) for word in ("connect", "cached", "offline", "couldn't find them")):
            raise _not_here(name, repository) from error
        raise UserError(f"source {name!r}: {_first_line(error)}") from error
    except Exception as error:  # the loaders raise a dozen unrelated types on damaged configs
        raise UserError(f"source {name!r} does not load: {_first_line(error)}") from error


def _not_here(name: str, repository: str) -> UserError:
    repository = repository.removeprefix("hf-hub:").partition("@")[0]
    return UserError(
        f"source {name!r}: not in the local hub cache, and the hub cannot be asked; "
        f"fetch it where there is a network (`hf download {repository}`), or give a local folder"
    )


def fetch_folder(repository: str, revision: str | None, local_files_only: bool) -> str:
    """Return the local folder of a hub repository's model files, fetched where they are not there yet."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    with offline_if(local_files_only):
        return snapshot_download(repository, revision=revision, allow_patterns=patterns)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' own bars for a load that takes less time than to read them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def offline_if(local_files_only: bool) -> Iterator[None]:
    """Keep a library that has no ``local_files_only`` of its own from asking the network."""
    if not local_files_only:
        yield
        return
    from huggingface_hub import constants

    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        yield
