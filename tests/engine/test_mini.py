"""``--mini`` adapts a config once, also if it is given again for a config that was saved afterwards."""

from pathlib import Path

import pytest

from mmplugin.engine.config import load_config


@pytest.mark.parametrize('name', ['semfpn_v2_s0', 'retinanet_v2_s0', 'maskrcnn_v2_s0'])
@pytest.mark.parametrize('options', [{}, {'weights': 'none'}])
def test_a_saved_config_is_not_adapted_again(name: str, options: dict, tmp_path: Path, tiny_sets: Path):
    own = {'optim_wrapper.optimizer.lr': 0.5}
    first = load_config(name, mini=True, data_root=tiny_sets, cfg_options=own)
    first.dump(tmp_path / 'saved.py')
    again = load_config(tmp_path / 'saved.py', mini=True, data_root=tiny_sets, **options)
    if options:
        assert again.custom_hooks.pop().type == 'LayerScaleHook'
    assert again.to_dict() == first.to_dict()
