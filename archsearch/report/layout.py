"""The page around a report's parts: one style sheet, headed sections, tables."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from html import escape

CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #222;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 26px; margin: 0 0 14px; }
h2 { font-size: 18px; margin: 34px 0 10px; padding-top: 12px; border-top: 1px solid #e6e8eb; }
.lead { font-size: 17px; }
.note { color: #5d636b; font-size: 13px; }
img { max-width: 100%; height: auto; display: block; margin: 6px 0 10px; }
ul { padding-left: 20px; margin: 8px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: 5px 10px 5px 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid #eef0f2; font-variant-numeric: tabular-nums; }
th { color: #5d636b; font-weight: 600; vertical-align: bottom; }
td:first-child { white-space: nowrap; }
.left { text-align: left; overflow-wrap: anywhere; }
pre { background: #f5f6f7; padding: 12px 14px; border-radius: 6px; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """An HTML document from (heading, HTML) pairs; an empty heading goes on with the last."""
    body = "\n".join(
        (f"<h2>{escape(heading)}</h2>\n" if heading else "") + content
        for heading, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """An HTML table whose first `left` columns are text and whose others are numbers."""
    return (
        f'<div class="scroll"><table><thead>{_row("th", head, left)}</thead>'
        f"<tbody>{''.join(_row('td', row, left) for row in rows)}</tbody></table></div>"
    )


def _row(tag: str, cells: Sequence[str], left: int) -> str:
    parts = (
        f"<{tag}{' class=left' if index < left else ''}>{escape(cell)}</{tag}>"
        for index, cell in enumerate(cells)
    )
    return f"<tr>{''.join(parts)}</tr>"
