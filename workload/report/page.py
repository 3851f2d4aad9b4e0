"""The report as a page for people: charts, tables, sentences; it needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workload.report.experience import Experience, milliseconds
from workload.report.findings import Change, Holding, Receipts
from workload.report.roundtrips import FIRST, Explanation
from workload.report.steps import Step, cells

#: One for each region, in their order.
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#0891b2")
STYLE = """
body { font: 17px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; max-width: 78rem;
  margin: 2rem auto; padding: 0 1.5rem; color: #1f2933; background: #fff; }
h1 { font-size: 1.8rem; margin-bottom: .3rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 62rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; }
th { font-weight: 600; color: #52606d; }
.l1 :is(th, td):nth-child(-n+1), .l2 :is(th, td):nth-child(-n+2),
.l3 :is(th, td):nth-child(-n+3) { text-align: left; }
.wide { overflow-x: auto; }
.beside { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 2rem; }
.matrix td { text-align: center; border: 1px solid #dde3ea; }
.matrix th { text-align: center; }
.home { background: #dcfce7; } .foreign { background: #fee2e2; color: #991b1b; font-weight: 600; }
.none { color: #9aa5b1; }
.verdict { border-radius: .3rem; padding: .05rem .5rem; font-size: .9rem; font-weight: 600; }
.HOLDS { background: #dcfce7; color: #166534; }
.VIOLATED { background: #fee2e2; color: #991b1b; }
.small { color: #52606d; font-size: .9rem; }
.times { font-weight: 700; }
details { margin-top: .8rem; } summary { cursor: pointer; color: #2563eb; }
@media (max-width: 60rem) { .beside { grid-template-columns: 1fr; } }
"""
CHARTS = {"buy": "A purchase", "read": "A read of one's purchases", "connect": "A connection"}

Audit = tuple[Mapping[str, Any], Sequence[Holding]]


def page(
    rows: Sequence[Experience],
    explanations: Sequence[Explanation],
    notes: Sequence[str],
    wan: Sequence[Mapping[str, Any]],
    changes: Sequence[Change] = (),
    audits: Sequence[Audit] = (),
    receipts: Receipts | None = None,
    taken: Sequence[Step] = (),
) -> str:
    """Return the report as one HTML page that needs no network."""
    charts = _chart(rows, "buy", script=True) + _chart(rows, "read")
    matrices = "".join(_matrix(entry, cells) for entry, cells in audits)
    if matrices:
        charts = (
            f"<div class=beside><div>{charts}</div><div><h2>Where the data is</h2>"
            "<p class=small>Each line a node, each column a region: rows + traces in files and"
            f" statistics.</p>{matrices}</div></div>"
        )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The geo-sharding lab: what the customers experienced</title>
<style>{STYLE}</style>
<h1>What the customers experienced, and where their data is</h1>
<p>Median times by phase and region, as the customers measured them. The scale is logarithmic: from
one line to the next is ten times as long.</p>
{charts}
{_changes(changes) if changes else ""}
{_receipts(receipts) if receipts else ""}
{_steps(taken) if taken else ""}
<h2>Why it takes that long</h2>
{_explanations(explanations, notes)}
{_chart(rows, "connect")}
<h2>All figures</h2>
<div class=wide>{_figures(rows)}</div>
{f"<h2>The WAN, measured around the traffic</h2><div class=wide>{_links(wan)}</div>" if wan else ""}
</html>
"""


def _chart(rows: Sequence[Experience], operation: str, script: bool = False) -> str:
    # Plotly takes half a second to import, and only the report needs it.
    import plotly.graph_objects as go

    phases = list(dict.fromkeys(row.phase for row in rows))
    regions = list(dict.fromkeys(row.region for row in rows))
    by = {(row.phase, row.region): row for row in rows if row.operation == operation}
    figure = go.Figure()
    for region, colour in zip(regions, COLOURS * len(regions), strict=False):
        bars = [by.get((phase, region)) for phase in phases]
        figure.add_bar(
            name=region,
            x=phases,
            y=[row.p50_ms if row else None for row in bars],
            text=[milliseconds(row.p50_ms) if row else "" for row in bars],
            customdata=[(row.p95_ms, row.p99_ms) if row else (0, 0) for row in bars],
            hovertemplate="%{x}, " + region + "<br>p50 %{y:.3g} ms<br>p95 %{customdata[0]:.3g} ms"
            "<br>p99 %{customdata[1]:.3g} ms<extra></extra>",
            textposition="outside",
            textangle=0,
            textfont={"size": 13},
            cliponaxis=False,
            constraintext="none",
            marker_color=colour,
        )
    figure.update_layout(
        title={"text": f"{CHARTS[operation]} ({operation}): p50 in ms", "font": {"size": 18}},
        barmode="group",
        bargap=0.15,
        template="plotly_white",
        font={"size": 14},
        height=340,
        margin={"l": 60, "r": 10, "t": 70, "b": 40},
        legend={"orientation": "h", "y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"},
        # From 0.1 ms in every chart: a logarithmic bar has no natural foot, and a common one makes
        # the charts comparable.
        yaxis={"type": "log", "dtick": 1, "range": [-1, 3.7]},
    )
    markup: str = figure.to_html(
        full_html=False, include_plotlyjs=script, config={"displayModeBar": False}
    )
    return markup


def _matrix(entry: Mapping[str, Any], cells: Sequence[Holding]) -> str:
    regions = list(dict.fromkeys(cell.region for cell in cells))
    by = {(cell.node, cell.region): cell for cell in cells}

    def cell(node: str, region: str) -> str:
        holding = by[node, region]
        if not holding.is_there:
            return "<td class=none>-</td>"
        return f"<td class={'foreign' if holding.is_foreign else 'home'}>{holding.text}</td>"

    head = "".join(f"<th>of {html.escape(region)}</th>" for region in regions)
    body = "".join(
        f"<tr><th>{html.escape(node)}</th>{''.join(cell(node, region) for region in regions)}</tr>"
        for node in entry["nodes"]
    )
    verdict = html.escape(entry["verdict"])
    return (
        f"<h3>{html.escape(entry['phase'])}"
        f" <span class='verdict {verdict}'>residency {verdict}</span></h3>"
        f"<table class=matrix><tr><th></th>{head}</tr>{body}</table>"
    )


def _changes(changes: Sequence[Change]) -> str:
    def ms(value: float | None) -> str:
        return "" if value is None else milliseconds(value)

    table = _table(
        ("region", "operation", "expand_world", "shard", "stale in shard", "after",
         "speed-up"),
        [
            (
                c.region, c.operation, ms(c.far_ms), ms(c.shard_ms), c.stale, ms(c.home_ms),
                c.speed_up,
            )
            for c in changes
        ],
        left=2,
    )  # fmt: skip
    return (
        "<h2>What sharding changed</h2><p>p50 in ms. In expand_world everybody is served from the"
        " first region; in shard reads are at home and may be stale, and writes are not; in after"
        " both are at home. The last column is expand_world against after, which is about the RTT"
        f" against the time at home.</p><div class=wide>{table}</div>"
    )


def _receipts(receipts: Receipts) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in receipts.lines())
    if not (lines or receipts.cutovers):
        return ""
    table = ""
    if receipts.cutovers:
        table = _table(
            ("region", "rows", "RTT ms", "its customers' pause ms", "others' pause ms",
             "acknowledged writes", "failed meanwhile", "lost"),
            [receipts.cells(row) for row in receipts.cutovers],
            left=1,
        )  # fmt: skip
        table = (
            "<h3>Cutovers</h3><p>A pause is the longest time for which writes waited. The moved"
            " region's customers wait for the last rows to arrive, which takes one RTT.</p>"
            f"<div class=wide>{table}</div>"
        )
    return f"<h2>What the moves took</h2><ul>{lines}</ul>{table}"


def _steps(taken: Sequence[Step]) -> str:
    table = _table(
        ("on the way to", "region", "requests", "failed", "buy p50 ms", "slowest buy ms",
         "read p50 ms", "slowest read ms"),
        map(cells, taken),
        left=2,
    )  # fmt: skip
    return (
        "<h2>What each step did to the customers who traded meanwhile</h2><p>The slowest request of"
        " all is what the step cost somebody: a lock that was waited for, a new connection,"
        f" a link that was slower for a moment.</p><div class=wide>{table}</div>"
    )


def _explanations(explanations: Sequence[Explanation], notes: Sequence[str]) -> str:
    if not explanations:
        return "<p>All customers are at home: nothing crosses the WAN.</p>"
    # A sentence for each write; the table has the rest.
    sentences = "".join(
        f"<li>{html.escape(each.phase)}, {html.escape(each.sentence())}</li>"
        for each in explanations
        if each.operation == "buy"
    ) + "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    ledger = _table(
        ("phase", "region", "operation", "round trips", "RTT ms", "at the server ms",
         "predicted ms", "measured p50 ms"),
        [
            (
                each.phase, each.region, each.operation, str(each.round_trips),
                f"{each.rtt_ms:g}", milliseconds(each.local_ms), milliseconds(each.predicted_ms),
                milliseconds(each.measured_ms),
            )
            for each in explanations
        ],
    )  # fmt: skip
    note = f"<p class=small>{FIRST}</p>" if any(each.is_first for each in explanations) else ""
    rest = "What is not in this table was done at home"
    rest += (
        ", but for connections in shard: there a customer has one that goes home and one that does"
        " not."
        if notes
        else "."
    )
    return f"<ul>{sentences}</ul>{note}<p>{rest}</p><div class=wide>{ledger}</div>"


def _figures(rows: Sequence[Experience]) -> str:
    return _table(
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


def _links(wan: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("phase", "from", "to node", "configured RTT ms", "measured p50 ms", "customers"),
        [
            (
                row["phase"], row["from"], row["node"], f"{row['configured_ms']:g}",
                "no answer" if row["measured_ms"] is None else f"{row['measured_ms']:.1f}",
                " and ".join(
                    word
                    for word, used in (
                        ("write", row["serves"]), ("read", row.get("looks", row["serves"])),
                    )
                    if used
                ),
            )
            for row in wan
        ],
    )  # fmt: skip


def _table(head: Sequence[str], body: Iterable[Sequence[str]], left: int = 3) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return (
        f"<table class=l{left}><thead><tr>{cells(head, 'th')}</tr></thead>"
        f"<tbody>{lines}</tbody></table>"
    )
