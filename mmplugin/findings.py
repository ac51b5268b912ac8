"""The result of a check, of data or of the environment. Imports only the standard library, so that the doctor can."""

from collections.abc import Iterable
from dataclasses import dataclass

ERROR, WARNING, NOTE = 'error', 'warning', 'note'
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One problem and its fix.

    Args:
        severity: ``ERROR`` if it must be fixed, ``WARNING`` if it is suspicious, ``NOTE`` if it is only worth knowing.
        problem: What is wrong.
        where: What it is about: a config key, a file, or a part of the environment.
        fix: The config line to change, or the command to run.
    """

    severity: str
    problem: str
    where: str
    fix: str


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, errors first; findings of the same severity keep their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def has_errors(findings: Iterable[Finding]) -> bool:
    """Return whether any finding is an error."""
    return any(finding.severity == ERROR for finding in findings)
