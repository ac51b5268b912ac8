"""Downloads are cached by URL, complete or not at all, and fail in all processes of a training together."""

import os
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from mmengine.registry import MODELS
from parity import kit
from safetensors.torch import save
from torch import distributed as dist
from two_processes import run_in_two_processes

from mmplugin.convert import load_pretrained
from mmplugin.errors import UserError


class Server(ThreadingHTTPServer):
    """Serve ``files``, bytes by path. A path in ``truncated`` announces one byte more than it sends."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files: dict[str, bytes] = {}
        self.truncated: set[str] = set()
        self.requests: Counter = Counter()

    def url(self, path: str) -> str:
        return f'http://127.0.0.1:{self.server_port}{path}'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.requests[self.path] += 1
        if content is None:
            return self.send_error(404, 'Not Found')
        self.send_response(200)
        self.send_header('Content-Length', str(len(content) + (self.path in self.server.truncated)))
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def weights(name: str) -> bytes:
    return save({key: value.contiguous() for key, value in kit.cheap(f'timm/{name}').items()})


def build(arch: str):
    return MODELS.build(dict(type='EfficientViTMSRA', arch=arch))


def test_urls_that_end_in_the_same_name_are_cached_separately(server):
    for arch in ('m0', 'm1'):
        server.files[f'/efficientvit_{arch}/resolve/main/model.safetensors'] = weights(f'efficientvit_{arch}')
    for _ in range(2):
        for arch, path in zip(('m0', 'm1'), server.files, strict=True):
            load_pretrained(build(arch), server.url(path))
    assert list(server.requests.values()) == [1, 1]


def test_the_query_of_a_url_is_part_of_its_identity(server):
    server.files = {f'/download.safetensors?id={arch}': weights(f'efficientvit_{arch}') for arch in ('m0', 'm1')}
    for arch, path in zip(('m0', 'm1'), server.files, strict=True):
        load_pretrained(build(arch), server.url(path))  # raises if the other arch's file is found
    assert list(server.requests.values()) == [1, 1]


def test_an_interrupted_download_leaves_no_file_and_is_repeated(server, tmp_path):
    server.files['/m0.safetensors'] = weights('efficientvit_m0')
    server.truncated.add('/m0.safetensors')
    with pytest.raises(UserError, match=r'm0\.safetensors: download failed .*closed after [\d,]+ of [\d,]+ bytes'):
        load_pretrained(build('m0'), server.url('/m0.safetensors'))
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
    server.truncated.clear()
    load_pretrained(build('m0'), server.url('/m0.safetensors'))


@pytest.mark.parametrize('url', ['http://127.0.0.1:1/m0.pth', 'https://exa mple.org/m0.pth'])
def test_a_server_that_cannot_be_reached_is_a_user_error(url, server):
    with pytest.raises(UserError, match='download failed'):
        load_pretrained(build('m0'), url)


def test_other_schemes_are_a_user_error():
    with pytest.raises(UserError, match='s3:// is not supported; download the file'):
        load_pretrained(build('m0'), 's3://bucket/m0.pth')


def _one_of_two_nodes(rank: int, folder: str, good: str, missing: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(TORCH_HOME=f'{folder}/node{rank}', LOCAL_RANK='0')
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    load_pretrained(build('m0'), good)
    try:
        load_pretrained(build('m0'), missing)
    except UserError as error:
        Path(folder, f'error{rank}').write_text(str(error))
    dist.barrier()
    dist.destroy_process_group()


def test_every_node_downloads_and_every_process_raises_the_same_error(server, tmp_path):
    server.files['/m0.safetensors'] = weights('efficientvit_m0')
    urls = server.url('/m0.safetensors'), server.url('/missing.safetensors')
    run_in_two_processes(_one_of_two_nodes, str(tmp_path), *urls)
    assert server.requests == {'/m0.safetensors': 2, '/missing.safetensors': 1}
    errors = {(tmp_path / f'error{rank}').read_text() for rank in range(2)}
    assert len(errors) == 1
    assert '404: Not Found' in errors.pop()
