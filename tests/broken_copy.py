"""A copy of a built-in set for tests to damage."""

import shutil
from pathlib import Path

from mmengine.config import Config

from mmplugin.data.synthetic import MiniSet
from mmplugin.engine.check_data import check_config
from mmplugin.findings import Finding


class BrokenCopy:
    """Files of a set, and a config that reads them; tests change either of them."""

    def __init__(self, drawn: MiniSet, folder: Path):
        self.root = folder / 'set'
        shutil.copytree(drawn.root, self.root)
        self.cfg = Config(self.config(drawn))

    def config(self, drawn: MiniSet) -> dict:
        raise NotImplementedError

    def findings(self, fast: bool = False) -> list[Finding]:
        return check_config(self.cfg, fast)

    def assert_reports(self, severity: str, problem: str, fix: str) -> None:
        findings = self.findings()
        assert [f for f in findings if f.severity == severity and problem in f.problem and fix in f.fix], findings
