"""Weights by name from a server that answers like the Hugging Face hub: complete, verified, once, or one message."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from mmengine.registry import MODELS
from parity import kit
from safetensors.torch import save
from torch import distributed as dist
from torch import multiprocessing as mp

from mmplugin.convert import hub, load_pretrained
from mmplugin.convert.download import local_path
from mmplugin.errors import UserError

COMMIT = '0123456789abcdef0123456789abcdef01234567'
M0, M1 = (f'hf-hub:timm/efficientvit_{arch}.r224_in1k' for arch in ('m0', 'm1'))


class FakeHub(ThreadingHTTPServer):
    """Serve ``files``, bytes by repository and file name, and count the requests for their content.

    Args:
        sent: What is sent for a path instead of its file; headers still announce the file.
        interrupted: Paths whose next transfer is cut off in the middle.
        portal: Answer everything with a web page, as the login page of a network does.
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files: dict[str, bytes] = {}
        self.sent: dict[str, bytes] = {}
        self.interrupted: set[str] = set()
        self.portal = False
        self.downloads: Counter = Counter()

    @property
    def address(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def add(self, name: str, content: bytes, file: str = 'model.safetensors') -> str:
        path = f'/{name.removeprefix("hf-hub:")}/resolve/main/{file}'
        self.files[path] = content
        return path


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self):
        self._start(self.server.files.get(self.path), 0)

    def do_GET(self):
        content = self.server.files.get(self.path)
        start = int(re.findall(r'\d+', self.headers.get('Range', '0'))[0])
        if '/resolve/' in self.path:  # the client also asks for news of its own
            self.server.downloads[self.path] += 1
        if self.path in self.server.sent:
            content = self.server.sent[self.path]
        if self._start(content, start):
            rest = content[start:]
            if self.path in self.server.interrupted:
                self.server.interrupted.discard(self.path)
                rest = rest[: len(rest) // 2]
                self.close_connection = True
            self.wfile.write(rest)

    def _start(self, content: bytes | None, start: int) -> bool:
        if self.server.portal:
            self.send_response(200)
            self.send_header('Content-Length', '0')
        elif content is None:
            known = any(path.startswith(self.path.split('/resolve/')[0] + '/') for path in self.server.files)
            self.send_response(404)
            self.send_header('X-Error-Code', 'EntryNotFound' if known else 'RepoNotFound')
            self.send_header('Content-Length', '0')
        else:
            self.send_response(206 if start else 200)
            self.send_header('ETag', f'"{hashlib.sha256(self.server.files[self.path]).hexdigest()}"')
            self.send_header('X-Repo-Commit', COMMIT)
            self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        return content is not None and not self.server.portal

    def log_message(self, *args):
        pass


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    template = address + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    # A retry would wait: no test of an answer that does not come may need one.
    no_retry = SimpleNamespace(sleep=lambda seconds: pytest.fail('the client retries'), time=time.time)
    monkeypatch.setattr('huggingface_hub.utils._http.time', no_retry)
    with FakeHub() as server:
        use(server.address, monkeypatch)
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def weights(arch: str) -> bytes:
    return save({key: value.contiguous() for key, value in kit.cheap(f'timm/efficientvit_{arch}').items()})


def build(arch: str):
    return MODELS.build(dict(type='EfficientViTMSRA', arch=arch))


def incomplete(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if path.suffix in ('.incomplete', '.part')]


def test_two_archs_are_downloaded_once_each_and_loaded(fake):
    paths = {arch: fake.add(name, weights(arch)) for arch, name in (('m0', M0), ('m1', M1))}
    for _ in range(2):
        for arch, name in (('m0', M0), ('m1', M1)):
            assert 'from timm' in load_pretrained(build(arch), name)
    assert fake.downloads == dict.fromkeys(paths.values(), 1)


def test_a_cached_file_needs_no_server(fake, monkeypatch):
    fake.add(M0, weights('m0'))
    cached = local_path(M0)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    use('http://127.0.0.1:1', monkeypatch)
    assert local_path(M0) == cached
    with pytest.raises(
        UserError, match=rf'HF_HUB_OFFLINE is set\); download .*/{M1[7:]}/resolve/main/model.safetensors '
    ):
        local_path(M1)


def test_repositories_without_safetensors_have_a_torch_file(fake, tmp_path):
    torch.save(kit.cheap('timm/efficientvit_m0'), tmp_path / 'm0.bin')
    path = fake.add(M0, (tmp_path / 'm0.bin').read_bytes(), 'pytorch_model.bin')
    load_pretrained(build('m0'), M0)
    assert fake.downloads[path] == 1


def test_an_interrupted_transfer_is_continued(fake, monkeypatch):
    path = fake.add(M0, weights('m0'))
    fake.interrupted.add(path)
    monkeypatch.setattr('huggingface_hub.file_download.time', SimpleNamespace(sleep=lambda seconds: None))
    load_pretrained(build('m0'), M0)
    assert fake.downloads[path] == 2


@pytest.mark.parametrize('damage', ['truncated', 'changed', 'web page'])
def test_other_content_than_announced_is_not_cached(damage, fake, tmp_path):
    content = weights('m0')
    path = fake.add(M0, content)
    page = b'<html>'.ljust(len(content))
    fake.sent[path] = {'truncated': content[:-9], 'changed': content[:-9] + bytes(9), 'web page': page}[damage]
    for _ in range(2):
        with pytest.raises(UserError, match=r'download failed \((Consistency check failed|the content that arrived)'):
            load_pretrained(build('m0'), M0)
    assert hub.find_cached(M0) is None
    assert incomplete(tmp_path) == []
    fake.sent.clear()
    load_pretrained(build('m0'), M0)


def test_weights_of_another_arch_are_refused(fake):
    fake.add(M0, weights('m1'))
    with pytest.raises(UserError, match=rf"{M0}: the config builds EfficientViTMSRA 'm0'.*weights of .*'m1'"):
        load_pretrained(build('m0'), M0)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        (M1, r'has no repository timm/efficientvit_m1\.r224_in1k with model\.safetensors'),
        ('hf-hub:m0', r'hf-hub:m0 is not a name on the hub; write hf-hub:OWNER/NAME'),
    ],
)
def test_names_that_do_not_exist_are_a_user_error(name, message, fake):
    fake.add(M0, weights('m0'))
    with pytest.raises(UserError, match=message):
        local_path(name)


def test_a_login_page_in_place_of_the_hub_is_a_user_error(fake):
    fake.portal = True
    with pytest.raises(UserError, match='does not seem to be served by a Hugging Face Hub endpoint'):
        local_path(M0)


def test_a_hub_that_refuses_connections_or_is_silent_is_a_user_error_at_once(fake, monkeypatch):
    use('http://127.0.0.1:1', monkeypatch)
    with pytest.raises(
        UserError, match=f'download http://127.0.0.1:1/{M0[7:]}/resolve/main/model.safetensors yourself'
    ):
        local_path(M0)
    monkeypatch.setattr(hub, 'ANSWER_WITHIN', 0.2)
    monkeypatch.setattr('huggingface_hub.get_hf_file_metadata', lambda *args, **kwargs: Thread.join(Thread()))
    monkeypatch.setattr('mmplugin.convert.hub.Thread.start', lambda thread: None)  # as if it hung in a name server
    with pytest.raises(UserError, match=r'no answer within 0\.2 seconds'):
        local_path(M0)


def _load(rank: int, folder: str, distributed: bool) -> None:
    torch.set_num_threads(1)
    if distributed:
        os.environ.update(LOCAL_RANK=str(rank))
        dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=4)
    load_pretrained(build('m0'), M0)
    if distributed:
        dist.destroy_process_group()


@pytest.mark.parametrize('distributed', [False, True], ids=['four trainings', 'four processes of one training'])
def test_four_processes_share_one_intact_file(distributed, fake, tmp_path):
    path = fake.add(M0, weights('m0'))
    mp.start_processes(_load, (str(tmp_path), distributed), nprocs=4, start_method='fork')
    assert fake.downloads[path] == 1
    assert hub.find_cached(M0).read_bytes() == fake.files[path]
    assert incomplete(tmp_path) == []


def test_the_command_convert_takes_a_name_and_honors_the_environment(fake, tmp_path):
    fake.add(M0, weights('m0'))
    environment = {**os.environ, 'HF_ENDPOINT': fake.address, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_OFFLINE': '0'}
    command = [sys.executable, '-m', 'mmplugin', 'convert', M0, str(tmp_path / 'm0.pth')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    load_pretrained(build('m0'), tmp_path / 'm0.pth')
    (blob,) = (tmp_path / 'home').rglob('blobs/*')
    assert blob.name == hashlib.sha256(weights('m0')).hexdigest()
