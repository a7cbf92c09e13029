"""The report: one HTML file with style, script and data inside; nothing is fetched, nothing has to run."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlkd.report.curves import Curve, draw_curve, draw_shares, number
from rlkd.report.reading import Row, RunRecord, read_run, readable_tokens

PANELS = (
    ("reward", "reward", "", False),
    ("pass_rate", "pass rate (training prompts)", "", False),
    ("eval/pass@1", "held-out pass@1", "", False),
    ("kl_to_teacher", "KL(policy || teacher)", "nats/token", False),
    ("right_logprob", "right traces, log-prob", "nats/token", False),
    ("wrong_logprob", "wrong traces, log-prob", "nats/token", False),
    ("margin", "right minus wrong", "nats/token", False),
    ("entropy", "entropy", "nats", False),
    ("completion_tokens", "completion length", "tokens", False),
    ("truncated", "truncated share", "", False),
    ("zero_variance_groups", "groups without contrast", "", False),
    ("rollout_policy_logprob_gap/mean", "rollout/policy gap, mean", "nats", True),
    ("rollout_policy_logprob_gap/max", "rollout/policy gap, max", "nats", True),
    ("loss", "loss", "", False),
    ("grad_norm", "gradient norm", "", False),
    ("clip_fraction", "clipped tokens", "", False),
    ("staleness", "staleness", "updates", False),
    ("lr", "learning rate", "", False),
    ("tokens_per_s", "whole-step throughput", "tokens/s", False),
)
PARTS = ("generate_s", "judge_s", "teacher_s", "learn_s", "publish_s")
_TOKEN_FIELDS = ("policy_logprobs", "rollout_logprobs", "teacher_logprobs")


def write_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not. Returns: the file (default: ``report.html`` in the folder)."""
    run = read_run(folder)
    path = Path(target) if target else run.path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(run), encoding="utf-8")
    return path


def render(run: RunRecord) -> str:
    """The whole page as text."""
    name = html.escape(str(run.recipe.get("name", run.path.name)))
    home = files("rlkd.report")
    sections = [
        _section("Result", _figures(run) + _table(run)),
        _section("Learning", _curves(run)),
        _section("Fine-tuning", _fine_tuning(run)),
        _section("Rollouts", _rollouts(run)),
        _section("Recipe and environment", _environment(run)),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name} - rlkd</title><style>{home.joinpath('page.css').read_text('utf-8')}</style>"
        f"<header><h1>{name}</h1><p>{html.escape(str(run.recipe.get('description', '')))}</p></header>"
        f"<main>{''.join(sections)}</main>"
        f'<script type="application/json" id="rollouts">{_embedded(_viewer_data(run))}</script>'
        f"<script>{home.joinpath('page.js').read_text('utf-8')}</script></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# ---------------------------------------------------------------- summary


def _figures(run: RunRecord) -> str:
    summary = run.summary
    last = run.metrics[-1] if run.metrics else {}
    tiles: list[tuple[str, str]] = [("status", str(summary["status"]) if summary else "not finished")]
    tiles.append(("RL steps", str(summary["steps"] if summary else last.get("step", 0))))
    if summary and summary.get("offline_updates"):
        tiles.append(("offline updates", str(summary["offline_updates"])))
    if summary:
        before, after = summary["eval"]["before"], summary["eval"]["after"]
        if before and after:
            tiles.append(("held-out pass@1", f"{before['pass@1']:.1%} &rarr; {after['pass@1']:.1%}"))
        tiles.append(("wall time", f"{summary['wall_s'] / 60:.1f} min"))
        tiles.append(("tokens generated", f"{summary['tokens']['generated']:,}"))
        tiles.append(("gap, mean / max", f"{summary['gap']['mean']:.1e} / {summary['gap']['max']:.1e} nats"))
        tiles.append(("abstained verdicts", str(summary["abstained"])))
    elif last.get("reward") is not None:
        tiles.append(("reward, last step", number(float(last["reward"]))))
    return '<dl class="tiles">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles) + "</dl>"


def _table(run: RunRecord) -> str:
    rows: list[tuple[str, Row]] = []
    if run.summary:
        evaluation = run.summary["eval"]
        rows = [(f"after {name}", figures) for name, figures in evaluation["per_stage"].items() if figures]
        rows = [("before", evaluation["before"])] * bool(evaluation["before"]) + rows
    else:
        rows = [(f"after {name}", record["eval"]) for name, record in run.stages.items() if record.get("eval")]
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{f['pass@1']:.1%}</td><td>{f['ci95'][0]:.1%} to {f['ci95'][1]:.1%}</td>"
        f"<td>{_interval(f)}</td><td>{f['n']}</td><td>{f['mean_tokens']:.0f}</td><td>{f['truncated']:.1%}</td>"
        f"<td>{f['abstained']}</td></tr>"
        for name, f in rows
    )
    heads = ("model", "pass@1", "95 % CI", "", "problems", "mean tokens", "truncated", "abstained")
    return "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + f"</tr>{cells}</table>"


def _interval(figures: Row) -> str:
    """The interval on a line from 0 to 100 %."""
    low, high = (200 * bound for bound in figures["ci95"])
    at = 200 * figures["pass@1"]
    return (
        '<svg class="interval" viewBox="-6 0 212 14" aria-hidden="true">'
        '<line class="axis" x1="0" x2="200" y1="7" y2="7"/>'
        f'<line class="span" x1="{low:.1f}" x2="{max(high, low + 1):.1f}" y1="7" y2="7"/>'
        f'<circle cx="{at:.1f}" cy="7" r="4"/></svg>'
    )


# ---------------------------------------------------------------- curves


def _curves(run: RunRecord) -> str:
    rows = run.metrics
    if not rows:
        return ""
    # Several RL stages count their steps anew; here they follow one another.
    steps = list(range(1, len(rows) + 1))
    panels = [
        draw_curve(Curve(title, _points(rows, steps, key), unit, log))
        for key, title, unit, log in PANELS
        if not _constant_zero(rows, key)
    ]
    if all(part in row for row in rows for part in PARTS):
        parts = {part.removesuffix("_s"): [float(row[part]) for row in rows] for part in PARTS}
        panels.append(draw_shares("time of a step", steps, parts, "s"))
    return f'<div class="panels">{"".join(panels)}</div>'


def _points(rows: list[Row], steps: list[int], key: str) -> list[tuple[float, float]]:
    return [(step, float(row[key])) for step, row in zip(steps, rows, strict=True) if row.get(key) is not None]


def _constant_zero(rows: list[Row], key: str) -> bool:
    """Staleness in a synchronous run and the like: a panel that says nothing."""
    return key in ("staleness", "clip_fraction") and not any(row.get(key) for row in rows)


def _fine_tuning(run: RunRecord) -> str:
    panels = [draw_curve(Curve(f"{name}: loss", losses, "nats/token")) for name, losses in run.fine_tuning.items()]
    return f'<div class="panels">{"".join(panels)}</div>' if any(panels) else ""


# ---------------------------------------------------------------- rollouts


def _rollouts(run: RunRecord) -> str:
    if not run.rollouts:
        return ""
    steps = "".join(f'<option value="{label}">{label}</option>' for label in _labels(run))
    modes = (
        ("policy_logprobs", "policy log-prob"),
        ("teacher_logprobs", "teacher log-prob"),
        ("rollout_logprobs", "rollout log-prob"),
        ("log_ratio", "teacher minus policy"),
        ("gap", "policy minus rollout"),
        ("advantage", "advantage"),
        ("mask", "mask: trained, distilled"),
        ("staleness", "staleness"),
    )
    options = "".join(f'<option value="{key}">{name}</option>' for key, name in modes)
    return (
        f'<form class="controls"><label>rollouts of <select id="step">{steps}</select></label>'
        f'<label>colour by <select id="mode">{options}</select></label><span id="scale"></span></form>'
        '<div id="groups"><noscript>The rollouts are drawn by script.</noscript></div>'
    )


def _viewer_data(run: RunRecord) -> dict[str, list[Row]]:
    return {label: [_viewer_row(row) for row in rows] for label, rows in _labels(run).items()}


def _labels(run: RunRecord) -> dict[str, list[Row]]:
    """Kept rollouts by what the reader picks them by; no label is a number alone, which a script would reorder."""
    stages = {stage for stage, _ in run.rollouts}
    return {
        f"step {step}" if len(stages) == 1 else f"{stage}, step {step}": rows
        for (stage, step), rows in run.rollouts.items()
    }


def _viewer_row(row: Row) -> Row:
    slim = {key: value for key, value in row.items() if key not in ("tokens", "token_ids", *_TOKEN_FIELDS)}
    slim["tokens"] = readable_tokens(row["tokens"])
    slim["ids"] = row["token_ids"]
    for name in _TOKEN_FIELDS:
        slim[name] = _rounded(row.get(name))
    if row.get("policy_logprobs") and row.get("rollout_logprobs"):  # before rounding: the gap is far below 1e-4
        pairs = zip(row["policy_logprobs"], row["rollout_logprobs"], strict=True)
        slim["gap"] = [float(f"{policy - rollout:.2e}") for policy, rollout in pairs]
    return slim


def _rounded(values: Iterable[float] | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values]


def _environment(run: RunRecord) -> str:
    manifest = run.manifest
    pairs = [
        ("folder", str(run.path)),
        ("seed", manifest.get("seed")),
        ("commit", (manifest.get("commit") or {}).get("id")),
    ]
    pairs += [("python", manifest.get("python")), *(manifest.get("packages") or {}).items()]
    pairs += [("started", f"{start['at']} on {start['hardware']}") for start in manifest.get("starts", [])]
    rows = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in pairs if v is not None
    )
    recipe = html.escape(json.dumps(run.recipe, indent=1, ensure_ascii=False))
    return (
        f"<details><summary>Environment</summary><table>{rows}</table></details>"
        f"<details><summary>Resolved recipe</summary><pre>{recipe}</pre></details>"
    )
