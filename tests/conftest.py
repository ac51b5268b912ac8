"""What every test shares: sane threads, no screen, and the door to timm, the test oracle."""

import os

# Before torch is imported. Two threads: small tensors get slower with more, and the suite is meant for two cores.
# Threads that wait do so asleep: it matters where other processes want the cores. Processes that tests start obey too.
for _name, _value in {
    'OMP_NUM_THREADS': '2',
    'OMP_WAIT_POLICY': 'passive',
    'MPLBACKEND': 'Agg',
    'HF_HUB_OFFLINE': '1',
}.items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))  # as in the processes that tests start


@pytest.fixture(autouse=True)
def _same_seed_every_test() -> None:
    """Start every test from one seed, so that its numbers do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def timm():
    """Give timm, the test oracle, also beside a CPU-only torch."""
    from mmplugin.benchmark.timm_reference import import_timm

    try:
        return import_timm()
    except ImportError:
        pytest.skip('timm is a test oracle: `make setup` installs it')
