"""Fixtures and environment for all tests: threads, no display, and timm as a reference."""

import os

# Set before torch is imported, and inherited by the processes that tests start. More than two threads slow down small
# tensors, and the two processes of `make test` have one each. Waiting threads sleep, so that others can use the cores.
for _name, _value in {
    'OMP_NUM_THREADS': '2',
    'OMP_WAIT_POLICY': 'passive',
    'MPLBACKEND': 'Agg',
    'HF_HUB_OFFLINE': '1',
}.items():
    os.environ.setdefault(_name, _value)
if 'PYTEST_XDIST_WORKER' in os.environ:  # it has inherited the number that was set above
    os.environ['OMP_NUM_THREADS'] = '1'

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))  # as in the processes that tests start


# The files that take longest start first, so that no process waits for the other at the end.
LONGEST = tuple(
    f'tests/{name}.py'
    for name in (
        'test_configs', 'deploy/test_export', 'engine/test_resume', 'layers/test_compile', 'layers/test_freeze',
        'search/test_importance', 'search/test_joint', 'search/test_run', 'search/test_slim',
    )
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True)
def _same_seed_every_test() -> None:
    """Seed every test, so that it does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def timm():
    """Return timm, which is the reference for many tests, also with a CPU build of torch."""
    from mmplugin.benchmark.timm_reference import import_timm

    try:
        return import_timm()
    except ImportError:
        pytest.skip('timm is not installed: run `make setup`')


@pytest.fixture(scope='session')
def tiny_sets(tmp_path_factory: pytest.TempPathFactory):
    """Make ``--mini`` use eight images for training and two for validation; return their folder."""
    from tiny_training import use_tiny_sets

    root = tmp_path_factory.mktemp('sets')
    with use_tiny_sets(root):
        yield root
