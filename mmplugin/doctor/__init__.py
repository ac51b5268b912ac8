"""Check the environment: ``mmplugin doctor``, or ``python -m mmplugin.doctor`` where nothing else starts.

``facts`` inspects the environment, ``rules`` turns the facts into findings, and this file prints both. Modules outside
the standard library are imported only while the facts are gathered, so that the doctor starts in a broken environment.
"""

import argparse
import sys
from collections.abc import Sequence

from mmplugin.doctor.facts import Facts, gather
from mmplugin.doctor.rules import diagnose
from mmplugin.findings import Finding, has_errors

__all__ = ['Facts', 'diagnose', 'gather', 'main', 'report']


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Print the report. Return 1 if there are errors, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description='Check the environment: versions, conflicting packages, operators and devices. '
        'Prints a command that fixes each problem. The exit code is 1 if there are errors.',
    )
    parser.parse_args(argv)
    facts = gather()
    findings = diagnose(facts)
    sys.stdout.write(report(facts, findings))
    return 1 if has_errors(findings) else 0


def report(facts: Facts, findings: Sequence[Finding]) -> str:
    """Format facts and findings as one screen of text."""
    lines = [f'{title:<11}{text}' for title, text in facts.table()]
    lines.append('')
    if not findings:
        lines.append('No problems found.')
    for finding in findings:
        lines.append(f'{finding.severity.upper():<11}{finding.where}: {finding.problem}')
        lines.append(f'{"  fix":<11}{finding.fix}')
    return '\n'.join([*lines, ''])
