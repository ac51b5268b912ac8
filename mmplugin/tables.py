"""One table type for every command, printed to a terminal, a page or a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import table as rich_table
from rich.console import Console


@dataclass
class Table:
    """Content of a table, independent of how it is rendered.

    Args:
        title: Heading above the table.
        head: Column names.
        rows: Cells, one sequence per row.
        left: Columns aligned left. The first column is always aligned left, the others right.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, without its title."""
        rows = [self.head, ['---'] * len(self.head), *self.rows]
        return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def show(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables to a terminal. A table without rows is skipped."""
    console = console or Console(highlight=False)
    for table in tables:
        if not table.rows:
            continue
        rendered = rich_table.Table(title=table.title, title_justify='left')
        for i, name in enumerate(table.head):
            rendered.add_column(name, justify='left' if i == 0 or name in table.left else 'right')
        for row in table.rows:
            rendered.add_row(*row)
        console.print(rendered)


def number(value: float, digits: int = 3) -> str:
    """Format a number for a table; NaN means that there was nothing to measure."""
    return 'n/a' if math.isnan(value) else f'{value:.{digits}f}'
