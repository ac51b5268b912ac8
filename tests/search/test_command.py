"""``mmplugin search``: what it refuses before anything is measured, and what it passes on."""

import pytest
import torch

from mmplugin import cli
from mmplugin.search import command, methods, rank

CONFIG, TARGET = 'semfpn_v2_s0', ('--target-latency', '20ms')


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank, 'run_rank', None)
    monkeypatch.setattr(methods, 'run_search', None)


def exit_code(*argv):
    try:
        return cli.main(['search', *argv])
    except SystemExit as error:  # argparse
        return error.code


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([CONFIG], 'there is no budget: give at least one of --target-latency, --target-params, --target-macs and'),
        ([CONFIG, '--target-latency', '20'], '--target-latency: 20: allowed are 20ms or 60% (of the start)'),
        ([CONFIG, '--target-latency', '20s'], '--target-latency: 20s: allowed are 20ms or 60%'),
        ([CONFIG, '--target-latency', '-3ms'], '--target-latency: -3ms: allowed are 20ms or 60%'),
        ([CONFIG, '--target-latency', '0%'], '--target-latency: 0%: allowed are 20ms or 60%'),
        ([CONFIG, '--target-latency', '140%'], '--target-latency: 140%: allowed are 20ms or 60%'),
        ([CONFIG, '--target-params', '6'], '--target-params: 6: allowed are 6M or 80%'),
        ([CONFIG, '--target-macs', '5T'], '--target-macs: 5T: allowed are 5G or 80%'),
        ([CONFIG, '--target-memory', '300MB'], '--target-memory: 300MB: allowed are 300MiB or 80%'),
        ([CONFIG, *TARGET, '--size', '16'], '--size: 16: allowed are 512 or 800x1333'),
        ([CONFIG, *TARGET, '--device', 'tpu'], '--device: tpu: allowed are cpu, cuda'),
        ([CONFIG, *TARGET, '--mode', 'fast'], '--mode: fast: allowed are eager, fused'),
        ([CONFIG, *TARGET, '--images', '0'], '--images: 0: allowed are whole numbers from 1'),
        ([CONFIG, *TARGET, '--recover', '-1'], '--recover: -1: allowed are whole numbers from 0'),
        ([CONFIG, *TARGET, '--method', 'evolution'], "--method: invalid choice: 'evolution'"),
        ([CONFIG, *TARGET, '--targets', '40%,60%'], '--targets and --target-latency exclude each other'),
        ([CONFIG, '--targets', '40%,6'], '--targets: 6: allowed are 20ms or 60%'),
        ([CONFIG, '--targets', '40%,40%'], 'a target occurs twice'),
        ([CONFIG, *TARGET, '--steps', '9', '--method', 'prune'], '--method prune has no use for --steps; omit it'),
        ([CONFIG, *TARGET, '--method', 'slim'], '--method slim is the method of v1, and this config is of v2'),
        ([CONFIG, *TARGET, '--from', 's9'], '--from s9: allowed are s0, s1, s2, l'),
        (['retinanet_evit_m0', *TARGET, '--method', 'joint', '--grow'], '--grow is for configs of v2'),
        ([CONFIG, *TARGET, '--rank-only', '--steps', '9'], 'has no use for --steps; omit it'),
        ([CONFIG, *TARGET, '--launcher', 'pytorch', '--rank-only'], 'measurements run in one process; omit --launcher'),
        ([CONFIG, 'no.pth', *TARGET], 'no.pth is not a file; name a checkpoint'),
        ([CONFIG, *TARGET, '--latency-table', 'no.json'], '--latency-table no.json is not a file'),
        ([CONFIG, *TARGET, '--rank-only', '--resume'], 'has no use for --resume; omit it'),
        ([CONFIG, *TARGET, '--rank-only', '--method', 'prune'], 'has no use for --method; omit it'),
        ([CONFIG, *TARGET, '--by', 'importance'], '--method joint has no use for --by; omit it, or add --method prune'),
        ([CONFIG, *TARGET, '--steps', '0', '--method', 'prune'], 'has no use for --steps; omit it, or add --method jo'),
        ([CONFIG, '--target-params', '2M', '--latency-table', __file__], 'no use without a latency to reach: add --ta'),
        (['v2_s0_imagenet', *TARGET], 'is a classifier; use a detector or segmentor, such as'),
        (['semfpn_v2_s9', *TARGET], "Config 'semfpn_v2_s9' not found"),
        ([CONFIG, *TARGET, '--cfg-options', 'model.backbone.type=ResNet'], 'is ResNet; allowed are'),
    ],
)
def test_a_wrong_argument_ends_with_exit_code_2_before_anything_runs(argv, message, capsys):
    assert exit_code(*argv) == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert exit_code(CONFIG, *TARGET, '--device', 'cuda') == 2
    assert 'torch finds no CUDA GPU' in capsys.readouterr().err


@pytest.fixture
def passed(monkeypatch):
    calls = []
    monkeypatch.setattr(rank, 'run_rank', lambda *args: calls.append(('rank', *args)) or 0)
    monkeypatch.setattr(methods, 'run_search', lambda *args: calls.append(('search', *args)) or 0)
    return calls


def test_ranking_gets_config_options_and_budget_and_needs_no_weights(passed):
    assert exit_code(CONFIG, *TARGET, '--target-params', '80%', '--rank-only') == 0
    ((method, cfg, options, budget),) = passed
    assert (method, cfg.model.backbone.init_cfg, options.size) == ('rank', None, (512, 512))
    assert str(budget) == 'latency 20 ms, parameters 80% of the start'
    assert options.command == f'mmplugin search {CONFIG} --target-latency 20ms --target-params 80% --rank-only'


def test_each_family_has_a_default_method_and_small_images_get_their_own_size(passed, monkeypatch):
    monkeypatch.setattr(command, 'config_from', lambda options: command_config(options.config))
    assert exit_code(CONFIG, '--mini', '--target-latency', '60%', '--size', '64x96') == 0
    assert exit_code('retinanet_evit_m0', '--mini', '--target-latency', '60%') == 0
    chosen = [(call[0], call[2].method, call[2].size) for call in passed]
    assert chosen == [('search', 'joint', (64, 96)), ('search', 'prune', (192, 224))]


def test_a_search_may_start_from_a_larger_network_and_have_several_targets(passed, monkeypatch):
    monkeypatch.setattr(command, 'config_from', lambda options: command_config(options.config))
    assert exit_code(CONFIG, '--mini', '--targets', '60%,40%', '--from', 's1', '--grow') == 0
    ((_, cfg, options, budget),) = passed
    backbone = cfg.model.backbone
    assert (backbone.arch.depths, backbone.arch.attention_blocks) == ((3, 3, 9, 6), (9, 6))
    assert (list(cfg.model.neck.in_channels), backbone.init_cfg) == ([32, 48, 120, 224], None)
    assert not backbone.get('norm_eval')  # of random weights
    assert cfg.custom_hooks[-1].type == 'LayerScaleHook'
    assert (options.targets, str(budget)) == (['60%', '40%'], 'latency 60% of the start')


def command_config(name):
    from mmplugin.engine.config import load_config

    return load_config(name)
