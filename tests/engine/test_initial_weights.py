"""Which weights a training starts from: those of the config, of a local file, of an option, or random ones."""

import re
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from parity import kit

from mmplugin.engine import train
from mmplugin.engine.arguments import config_from
from mmplugin.engine.initial_weights import SUFFIXES, check_weights, weights_of
from mmplugin.engine.overrides import apply_training_overrides_
from mmplugin.errors import UserError
from mmplugin.paths import config_names

M0 = 'hf-hub:timm/efficientvit_m0.r224_in1k'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: pytest.fail('a name is looked up'))
    monkeypatch.setattr(socket.socket, 'connect', lambda *args: pytest.fail('a connection is opened'))


def load(*arguments: str, name: str = 'retinanet_evit_m0') -> Config:
    return config_from(train.parse([name, *arguments]), True, apply_training_overrides_)


def write(path: str, arch: str = 'm0') -> str:
    """Write a file as timm publishes it."""
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(kit.cheap(f'timm/efficientvit_{arch}'), path)
    return path


@pytest.mark.parametrize('name', config_names())
def test_every_config_names_weights_that_timm_publishes(name: str, timm):
    found = re.fullmatch(r'hf-hub:timm/(\w+)\.(\w+)', weights_of(load(name=name)))
    family, arch = name.split('_')[1:]
    assert found[1] == {'v1': 'efficientformer_', 'v2': 'efficientformerv2_', 'evit': 'efficientvit_'}[family] + arch
    published = timm.models.get_pretrained_cfg(f'{found[1]}.{found[2]}')
    assert published.hf_hub_id in ('timm/', f'timm/{found[1]}.{found[2]}')
    assert published.num_classes == 1000


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_a_local_file_is_used_in_place_of_the_hub(suffix: str, no_network, tiny_sets, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr('mmplugin.engine.initial_weights.print_log', lambda text, logger: said.append(text))
    path = f'checkpoints/evit_m0{suffix}'
    write(path) if suffix == '.pth' else _write_safetensors(path)
    cfg = load()
    assert weights_of(cfg) == path
    assert said == [f'{path} is used in place of {M0}.']
    check_weights(cfg)
    mini = load('--mini', '--data-root', str(tiny_sets))
    assert weights_of(mini) == path
    assert mini.model.backbone.norm_eval is True


def _write_safetensors(path: str) -> None:
    from safetensors.torch import save_file

    Path(path).parent.mkdir()
    save_file({key: value.contiguous() for key, value in kit.cheap('timm/efficientvit_m0').items()}, path)


@pytest.mark.usefixtures('no_network')
def test_mini_never_uses_the_network(tiny_sets):
    cfg = load('--mini', '--data-root', str(tiny_sets))
    assert weights_of(cfg) is None
    assert cfg.model.backbone.norm_eval is False
    check_weights(cfg)


def test_an_option_wins_over_config_and_local_file(tiny_sets):
    write('checkpoints/evit_m0.pth')
    for weights in ('other.pth', 'https://example.org/a.pth', 'hf-hub:me/mine'):
        assert weights_of(load('--weights', weights)) == weights
        assert weights_of(load('--mini', '--data-root', str(tiny_sets), '--weights', weights)) == weights
    cfg = load('--weights', 'none')
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.backbone.norm_eval is False
    assert load('--weights', 'none', name='maskrcnn_r18').model.backbone.init_cfg is None


def test_weights_are_compared_with_the_arch_before_data_is_read():
    write('m1.pth', 'm1')
    with pytest.raises(UserError, match=r"the config builds EfficientViTMSRA 'm0'.*weights of EfficientViTMSRA 'm1'"):
        train.main(['retinanet_evit_m0', '--weights', 'm1.pth', '--no-check'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], rf'{M0} cannot be downloaded: HF_HUB_OFFLINE is set\.\nDownload https://.*/model\.safetensors\n.*'
             r'Save the published file as checkpoints/evit_m0\.safetensors, or .*--weights FILE\n.*: --weights none\n'),
        (['--weights', 'gone.pth'], r'weights gone\.pth do not exist\. Save the .*\n.*--weights none'),
        (['--weights', 's3://a/b.pth'], 's3://a/b.pth: s3:// is not supported'),
        (['--weights', 'hf-hub:b'], 'hf-hub:b is not a name on the hub'),
        (['--weights', 'none', '--resume'], '--weights and --resume exclude each other'),
    ],
)  # fmt: skip
def test_missing_weights_are_one_message(arguments: list[str], message: str, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', 'empty')
    with pytest.raises(UserError, match=message):
        train.main(['retinanet_evit_m0', '--no-check', *arguments])


def test_a_checkpoint_of_the_whole_model_replaces_the_weights(monkeypatch, no_network):
    found = []
    monkeypatch.setattr('mmplugin.engine.train.run', lambda cfg, options: found.append(weights_of(cfg)))
    train.main(['retinanet_evit_m0', '--no-check', '--cfg-options', 'load_from=whole.pth'])
    assert found == [None]
