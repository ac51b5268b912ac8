"""Weights on the Hugging Face hub: ``hf-hub:OWNER/NAME``, optionally with ``@REVISION``, as in timm.

The official client does the work. It caches each file under its repository and commit, and knows mirrors
(``HF_ENDPOINT``), tokens, and ``HF_HUB_OFFLINE``.
"""

import re
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from mmplugin.errors import UserError

from .checkpoint_io import sha256

PREFIX = 'hf-hub:'
FILES = ('model.safetensors', 'pytorch_model.bin')  # the first one that exists
ANSWER_WITHIN = 8  # seconds, after which a server that is not heard of counts as unreachable
_NAME = re.compile(r'hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')
_SHA256 = re.compile(r'[0-9a-f]{64}')


def is_hub_name(checkpoint: str) -> bool:
    """Return whether a checkpoint is named by its repository on the hub."""
    return checkpoint.startswith(PREFIX)


def find_cached(name: str) -> Path | None:
    """Return the file of a repository if it is in the cache. The server is not asked."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = _parse(name)
    for file in FILES:
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def file_url(name: str, file: str = FILES[0]) -> str:
    """Return the address of a file of a repository, on the mirror if there is one."""
    from huggingface_hub import hf_hub_url

    repository, revision = _parse(name)
    return hf_hub_url(repository, file, revision=revision)


def try_download(name: str) -> str | None:
    """Download a file into the cache, complete or not at all. Return the error message if that fails."""
    from huggingface_hub import constants

    repository, revision = _parse(name)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError('HF_HUB_OFFLINE is set')
        if any(_download(repository, file, revision, file_url(name, file)) for file in FILES):
            return None
        raise OSError(f'{constants.ENDPOINT} has no repository {repository} with {" or ".join(FILES)}')
    except Exception as error:  # the client raises errors of its own, of its HTTP library, and of the file system
        return _reason(error)


def _parse(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f'{name} is not a name on the hub; write hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION')
    return match[1], match[2]


def _download(repository: str, file: str, revision: str | None, url: str) -> bool:
    """Download one file; return False if the repository does not have it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        # Ask once and briefly: the download itself repeats failed requests for half a minute.
        metadata = _within(ANSWER_WITHIN, lambda: get_hf_file_metadata(url, timeout=ANSWER_WITHIN / 2))
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return False
        raise
    path = Path(hf_hub_download(repository, file, revision=revision))
    if _SHA256.fullmatch(metadata.etag or '') and sha256(path) != metadata.etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise OSError('the content that arrived is not the one that the server announced')
    return True


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return the result of a call. A name server or a firewall that does not answer would hold it up for minutes."""
    answers: Queue[tuple[Any, Exception | None]] = Queue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:
            answers.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except Empty:
        raise OSError(f'no answer within {seconds} seconds') from None
    if error is not None:
        raise error
    return result


def _reason(error: Exception) -> str:
    """Return the first line of what went wrong."""
    line = str(error).strip().partition('\n')[0].rstrip('.')
    return re.sub(r'^\[Errno -?\d+\] ', '', line) or type(error).__name__
