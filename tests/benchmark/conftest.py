"""What the tests of wrong arguments share."""

from collections.abc import Callable, Sequence

import pytest

from mmplugin import cli
from mmplugin.benchmark import command


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[[Sequence[str]], str]:
    """Return a function that runs ``mmplugin benchmark``, checks exit code 2, and returns the message."""
    monkeypatch.setattr(command, 'run', None)  # nothing is measured

    def call(argv: Sequence[str]) -> str:
        try:
            code = cli.main(['benchmark', *argv])
        except SystemExit as error:  # argparse
            code = error.code
        assert code == 2
        return capsys.readouterr().err

    return call
