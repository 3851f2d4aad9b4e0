"""The report as a page for people: charts, tables, sentences; it needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workload.experience import Experience, milliseconds
from workload.roundtrips import Explanation


def page(
    rows: Sequence[Experience],
    explanations: Sequence[Explanation],
    wan: Sequence[Mapping[str, Any]],
) -> str:
    """Return the report as one HTML page that needs no network."""
    charts = [_chart(rows, operation) for operation in ("buy", "look", "connect")]
    table = _table(
        ("phase", "region", "operation", "requests", "failed", "p50 ms", "p95 ms", "p99 ms",
         "stale"),
        [
            (
                row.phase, row.region, row.operation, f"{row.requests:,}", f"{row.failures:,}",
                milliseconds(row.p50_ms), milliseconds(row.p95_ms), milliseconds(row.p99_ms),
                f"{row.stale_reads:,}",
            )
            for row in rows
        ],
    )  # fmt: skip
    ledger = _table(
        ("phase", "region", "operation", "round trips", "RTT ms", "at the server ms",
         "predicted ms", "measured p50 ms"),
        [
            (
                found.phase, found.region, found.operation, str(found.round_trips),
                f"{found.rtt_ms:g}", milliseconds(found.local_ms), milliseconds(found.predicted_ms),
                milliseconds(found.measured_ms),
            )
            for found in explanations
        ],
    )  # fmt: skip
    links = _table(
        ("phase", "from", "to node", "configured RTT ms", "measured p50 ms"),
        [
            (
                row["phase"], row["from"], row["node"], f"{row['configured_ms']:g}",
                "no answer" if row["measured_ms"] is None else f"{row['measured_ms']:.1f}",
            )
            for row in wan
        ],
    )  # fmt: skip
    sentences = "".join(f"<li>{html.escape(found.sentence())}</li>" for found in explanations)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The geo-sharding lab: what the customers experienced</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2933; background: #fff; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; }}
th:nth-child(-n+3), td:nth-child(-n+3) {{ text-align: left; }}
th {{ font-weight: 600; color: #52606d; }}
.wide {{ overflow-x: auto; }}
</style>
<h1>What the customers experienced</h1>
<p>Median time of an operation, by phase and region, as the customers measured it. The scale is
logarithmic: from one line to the next is ten times as long. The whisker ends at p99; the first time
that a connection sends a statement it is prepared, which is a round trip more.</p>
{"".join(charts)}
<h2>Why it takes that long</h2>
{
        f"<ul>{sentences}</ul><div class=wide>{ledger}</div>"
        if explanations
        else "<p>All customers are at home: nothing crosses the WAN yet.</p>"
    }
<h2>All figures</h2>
<div class=wide>{table}</div>
{f"<h2>The WAN, measured around the traffic</h2><div class=wide>{links}</div>" if wan else ""}
</html>
"""


def _chart(rows: Sequence[Experience], operation: str) -> str:
    # Plotly takes half a second to import, and only the report needs it.
    import plotly.graph_objects as go

    phases = list(dict.fromkeys(row.phase for row in rows))
    regions = list(dict.fromkeys(row.region for row in rows))
    colours = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")
    by = {(row.phase, row.region): row for row in rows if row.operation == operation}
    figure = go.Figure()
    for region, colour in zip(regions, colours * len(regions), strict=False):
        found = [by.get((phase, region)) for phase in phases]
        figure.add_bar(
            name=region,
            x=phases,
            y=[row.p50_ms if row else None for row in found],
            text=[f"{milliseconds(row.p50_ms)} ms" if row else "" for row in found],
            textposition="outside",
            cliponaxis=False,
            marker_color=colour,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [row.p99_ms - row.p50_ms if row else None for row in found],
                "arrayminus": [0 for _ in found],
                "color": "#9aa5b1",
                "thickness": 1,
            },
        )
    figure.update_layout(
        title={"text": f"{operation}: p50 in ms"},
        barmode="group",
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 60, "b": 40},
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
        # From 0.1 ms in every chart: a logarithmic bar has no natural foot, and a common one makes
        # the charts comparable.
        yaxis={"type": "log", "title": {"text": "ms"}, "dtick": 1, "range": [-1, 3.7]},
    )
    first = operation == "buy"
    markup: str = figure.to_html(
        full_html=False, include_plotlyjs=first, config={"displayModeBar": False}
    )
    return markup


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{lines}</tbody></table>"
