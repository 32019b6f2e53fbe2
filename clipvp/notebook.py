"""How results show themselves in a notebook: plain HTML tables, everything in them escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_MOST_ROWS = 20


def html_table(
    title: str, rows: Iterable[Sequence[Any]], headers: Sequence[str] = (), most: int = _MOST_ROWS
) -> str:
    """Return a table for ``_repr_html_``.

    Args:
        title: The line above.
        rows: Any values; None is a dash.
        headers: One a column, or none.
        most: Rows that are shown; a last line says how many more there are.

    >>> html_table("a & b", [["x", None]])
    '<p><b>a &amp; b</b></p><table><tbody><tr><td>x</td><td>-</td></tr></tbody></table>'
    """
    rows = list(rows)
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:most])
    more = f"<p>... and {len(rows) - most} more</p>" if len(rows) > most else ""
    return (
        f"<p><b>{html.escape(title)}</b></p><table>{f'<thead><tr>{head}</tr></thead>' if head else ''}"
        f"<tbody>{body}</tbody></table>{more}"
    )


def _cell(value: Any) -> str:
    return f"<td>{'-' if value is None else html.escape(str(value))}</td>"
