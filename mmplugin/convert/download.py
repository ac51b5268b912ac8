"""Download of checkpoints: once per address, complete or not at all, and in step with the other processes."""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from mmengine.dist import all_gather_object, is_main_process
from rich.console import Console
from rich.progress import wrap_file

from mmplugin.errors import UserError
from mmplugin.files import atomic_write

from . import hub

TIMEOUT = 10  # seconds without a byte from the server


class DownloadError(UserError):
    """A checkpoint that cannot be downloaded.

    Args:
        url: Address of the file.
        reason: What went wrong.
    """

    def __init__(self, url: str, reason: str):
        super().__init__(f'download failed ({reason}); download {url} yourself and use its path')
        self.url, self.reason = url, reason


def is_remote(checkpoint: str) -> bool:
    """Return whether a checkpoint has to be downloaded: a URL, or ``hf-hub:OWNER/NAME``."""
    return checkpoint.startswith(('http://', 'https://')) or hub.is_hub_name(checkpoint)


def is_local(checkpoint: str) -> bool:
    """Return whether a checkpoint is a path, rather than a URL, ``hf-hub:...`` or ``torchvision://...``."""
    return '://' not in checkpoint and not is_remote(checkpoint)


def local_path(checkpoint: str) -> Path:
    """Return the path of a checkpoint that is given as a path, a URL, or ``hf-hub:OWNER/NAME``.

    In distributed training all processes must call this. If a download fails, all of them raise the same error.
    """
    scheme = urlparse(checkpoint).scheme
    if scheme in ('http', 'https'):
        path = cache_path(checkpoint)
        return _cached(checkpoint, lambda: path if path.exists() else None, partial(_try_download, checkpoint, path))
    if hub.is_hub_name(checkpoint):
        url = hub.file_url(checkpoint)
        return _cached(url, partial(hub.find_cached, checkpoint), partial(hub.try_download, checkpoint))
    if not is_local(checkpoint):
        raise UserError(f'{scheme}:// is not supported; download the file and use its path')
    return Path(checkpoint).expanduser()


def _cached(url: str, find: Callable[[], Path | None], download: Callable[[], str | None]) -> Path:
    """Return the path that ``find`` returns, after a download by one process per file system if needed."""
    # Rank 0 downloads. The first process of another node downloads again only if its node has a file system of its own.
    for downloads in (is_main_process(), os.environ.get('LOCAL_RANK', '0') == '0'):
        error = download() if downloads and find() is None else None
        # Without this exchange, the other processes would wait for a failed one until they time out.
        if errors := [error for error in all_gather_object(error) if error]:
            raise DownloadError(url, errors[0])
    path = find()
    if path is None:  # another process removed it
        raise DownloadError(url, 'it was removed from the cache meanwhile')
    return path


def cache_path(url: str) -> Path:
    """Return where ``url`` is cached: a readable name, and a hash, because many URLs end in ``model.safetensors``."""
    name = Path(urlparse(url).path)
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return Path(torch.hub.get_dir()) / 'checkpoints' / f'{name.stem}-{digest}{name.suffix}'


def _try_download(url: str, path: Path) -> str | None:
    """Download to a temporary file and rename it. Return the error message if that fails."""
    request = Request(url, headers={'User-Agent': 'mmplugin'})
    try:
        with urlopen(request, timeout=TIMEOUT) as response, atomic_write(path) as draft:
            size = int(response.headers.get('Content-Length') or 0)
            progress = wrap_file(response, size, description=f'Downloading {path.name}', console=Console(stderr=True))
            with progress as source, draft.open('wb') as file:
                shutil.copyfileobj(source, file)
            if draft.stat().st_size < size:
                raise OSError(f'the connection was closed after {draft.stat().st_size:,} of {size:,} bytes')
    except (OSError, ValueError, HTTPException) as error:
        return str(error) or type(error).__name__
    return None
