"""``python -m mmplugin.doctor``: one screen that says what is installed, what is wrong, and the command that mends it.

Three steps, one file each: ``facts`` looks at the environment, ``rules`` turns facts into findings without looking at
anything else, and this file prints both. Only the standard library is imported at the top, so that it starts anywhere.
"""

import argparse
import sys
from collections.abc import Sequence

from mmplugin.doctor.facts import Facts, gather
from mmplugin.doctor.rules import Finding, diagnose

__all__ = ['Facts', 'Finding', 'diagnose', 'gather', 'main', 'report']


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; return 1 when something is broken, else 0."""
    parser = argparse.ArgumentParser(description='Check the environment: versions, doubled or mixed packages, '
                                     'operators, devices. Ends with 1 when something is broken.')
    parser.parse_args(argv)
    facts = gather()
    findings = diagnose(facts)
    sys.stdout.write(report(facts, findings))
    return 1 if any(finding.broken for finding in findings) else 0


def report(facts: Facts, findings: Sequence[Finding]) -> str:
    """Lay facts and findings out as one screen of text."""
    lines = [f'{title:<11}{text}' for title, text in facts.table()]
    lines.append('')
    if not findings:
        lines.append('Healthy: nothing to mend.')
    for finding in findings:
        lines += [f'{"BROKEN" if finding.broken else "note":<11}{finding.problem}', f'{"  mend":<11}{finding.command}']
    return '\n'.join([*lines, ''])
