"""The status page of the HTTP mode: one read-only HTML page, rendered here, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from ragtune_mcp.core.errors import RagTuneError
from ragtune_mcp.core.results import AbResults, ModelInfo, StatusResult
from ragtune_mcp.surface.plain_text import visible

if TYPE_CHECKING:
    from ragtune_mcp.core.app import RagTune

_JOBS = 10
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } svg { max-width: 100%; height: auto }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8884 }
th, .muted { font-weight: 600; opacity: .65 }
@media (prefers-color-scheme: dark) { body { color: #e4e6eb; background: #18191a } svg { background: #fff } }
"""


def status_page(core: RagTune) -> str:
    """Render the workspace as it is now: what serves, versions, jobs, the latest test and its plot.

    Args:
        core: the open workspace.

    Returns:
        A complete HTML document; everything that comes from outside is escaped.
    """
    status = core.status()
    sections = [
        _overview(status),
        _models(core.list_models().models),
        _jobs(core),
        _test(core),
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><meta http-equiv=refresh content=30>"
        f"<title>ragtune: {_text(status.workspace)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>ragtune</h1>{''.join(sections)}</body></html>"
    )


def _overview(status: StatusResult) -> str:
    return _table(
        (),
        [
            ("workspace", status.workspace),
            ("serving version", status.champion or "none: call index_documents"),
            ("documents", status.documents),
            ("running jobs", ", ".join(status.running_jobs) or "none"),
            ("active A/B test", status.active_test or "none"),
            ("waiting for ConPort", f"{status.outbox_pending} {status.outbox_error or ''}"),
            ("ragtune-mcp", status.version),
        ],
    )


def _models(models: Sequence[ModelInfo]) -> str:
    rows = [
        (
            model.version,
            ", ".join(model.aliases),
            model.base_model,
            model.dataset_id or "",
            model.gate.verdict if model.gate else "",
            _metrics(model.metrics),
            model.created_at,
        )
        for model in models
    ]
    head = ("version", "alias", "base model", "data set", "gate", "metrics", "created")
    return "<h2>Model versions</h2>" + _table(head, rows)


def _jobs(core: RagTune) -> str:
    jobs = [core.job_status(job.job_id) for job in core.jobs.list(_JOBS)]
    rows = [
        (
            job.job_id,
            job.kind,
            job.status,
            f"{job.progress:.0f} %",
            job.error.message if job.error else job.message,
        )
        for job in jobs
    ]
    return f"<h2>Latest {_JOBS} jobs</h2>" + _table(("job", "kind", "status", "progress", "message"), rows)


def _test(core: RagTune) -> str:
    title = "<h2>Latest A/B test</h2>"
    try:
        results = core.ab_results()
    except RagTuneError as error:
        return f"{title}<p class=muted>{_text(error.message)}</p>"
    plot = core.plot_ab_results(results.test_id).read_text(encoding="utf-8")
    return title + _comparison(results) + plot[plot.index("<svg") :]


def _comparison(results: AbResults) -> str:
    pairs = zip(
        results.baseline_metrics.model_dump().items(),
        results.test_metrics.model_dump().values(),
        strict=True,
    )
    rows: list[tuple[object, ...]] = [(name, baseline, test) for (name, baseline), test in pairs]
    rows.append(
        ("p-value", "", f"{_number(results.p_value)} at the end, {_number(results.p_anytime)} at any time")
    )
    rows.append(("recommendation", "", f"{results.recommendation}: {'; '.join(results.reasons)}"))
    head = (f"{results.test_id} ({results.status})", results.baseline_model, results.test_model)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(_number(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    if not body:
        return "<p class=muted>none yet</p>"
    top = (
        "<thead><tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr></thead>" if head else ""
    )
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _metrics(metrics: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())


def _number(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return escape(visible(value))
