"""What hz-bench prints: its results as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def speed_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `measure_speed` as lines."""
    machine, model = result["machine"], result["model"]
    yield f"{result['bundle']['name']}, {model['role']} on {machine['cpu']}, {result['threads']} threads"
    if machine["gpu"]:
        yield f"GPU {machine['gpu']['name']}, driver {machine['gpu']['driver']}"
    for device, peaks in result["peak"].items():
        for precision, peak in peaks.items():
            yield f"peak of {precision} on {device}: {peak['flops_per_s'] / 1e9:.0f} GFLOP/s ({peak['how']})"
    for device, name in result["baseline"].items():
        yield f"baseline on {device}: {name}"
    reads = model.get("reads", "volumes")
    rows = [("engine", "batch", "what", "ms", "p95", f"{reads}/s", "GFLOP/s", "of peak", "x base")]
    for candidate in result["contenders"]:
        for batch, scopes in candidate["batches"].items():
            rows += [(candidate["name"], batch, scope, *_timed(row)) for scope, row in scopes.items()]
    yield ""
    yield from table(rows)
    if "end_to_end" in result:
        whole = [("whole run", "scans", "s/scan", "p95", "precision")]
        for engine, row in result["end_to_end"].items():
            whole.append((engine, *_whole(row)))
        yield ""
        yield from table(whole)
    yield ""
    for item in result["left_out"]:
        yield f"left out: {item['name']}: {item['why']}"


def parity_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result of `measure_bundle` as lines."""
    rows = [("file", "engine", "arithmetic", "brain mean", "brain p99.9", "brain max", "answer")]
    references: dict[str, None] = {}
    for model in result["models"]:
        references[f"{model['role']} reference: {model['parity']['reference']}"] = None
        for row in model["parity"]["measured"]:
            brain = row.get("brain")
            answer = f"{row['years']['max']:.3f} years" if "years" in row else "-"
            answer = f"{row['probability']['max']:.1e}" if "probability" in row else answer
            numbers = [f"{brain[k]:.1e}" for k in ("mean", "p999", "max")] if brain else ["-"] * 3
            ran = row["backend"]
            engine = f"{ran['rung']} in {ran['hint']}" if "hint" in ran else ran["rung"]
            rows.append((model["file"], engine, ran["precision"], *numbers, answer))
    yield from references
    yield from table(rows)
    for model in result["models"]:
        for row in model["parity"]["measured"]:
            if "not_fast" in row and row["backend"]["precision"] != "fp32":
                ran = row["backend"]
                verdict = f"no: {'; '.join(row['not_fast'])}" if row["not_fast"] else "yes"
                where = f"{ran['rung']}, {ran['instructions']}"
                yield f"fast: {model['file']} as {ran['precision']} on {where}: {verdict}"
    for model in result["models"]:
        for item in model["not_run"]:
            yield f"not run: {model['file']} on {item['backend']}: {item['why']}"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as aligned lines: words to the left, what follows the first column to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _timed(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (f"failed: {row['error'][:60]}", *[""] * 5)
    rate, share, times = (row.get(key) for key in ("flops_per_s", "share_of_peak", "times_baseline"))
    return (
        f"{row['median_ms']:.3f}",
        f"{row['p95_ms']:.3f}",
        f"{1e3 / row['median_ms']:.2f}",
        f"{rate / 1e9:.0f}" if rate else "-",
        f"{share:.0%}" if share else "-",
        f"{times:.2f}" if times else "-",
    )


def _whole(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (f"failed: {row['error'][:60]}", "", "", "")
    seconds = (f"{row[key] / 1e3:.3f}" for key in ("median_ms", "p95_ms"))
    return (str(row["scans"]), *seconds, row["precision"])
