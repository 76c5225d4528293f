"""The gates of a scan's preparation as traffic lights: green and red, and readable without colours.

A gate is an object of a scan's "gates" in run.json: {gate, passed, value, limits: [low or null, high or
null], unit}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hz_runtime.report import markup

Gates = Sequence[Mapping[str, Any]]


def gates_of(scan: Mapping[str, Any]) -> Gates:
    """What run.json says about the gates of a scan; empty where it went through none."""
    gates = (markup.mapping(gate) for gate in markup.sequence(scan.get("gates")))
    return [gate for gate in gates if gate.get("gate")]


def summary(gates: Gates) -> str:
    """One short line, HTML; "" without gates."""
    if not gates:
        return ""
    failed = [markup.text(gate["gate"]) for gate in gates if gate.get("passed") is not True]
    if failed:
        return f'{light(False)} <span class="gate-name">{", ".join(failed)}</span>'
    return f"{light(True)} all {len(gates)}"


def lights(gates: Gates) -> str:
    """A list with a light, the value and the limits of every gate, the red ones first; "" without gates."""
    if not gates:
        return ""
    rows = "".join(_row(gate) for gate in sorted(gates, key=lambda gate: gate.get("passed") is True))
    return f'<ul class="gates">{rows}</ul>\n'


def _row(gate: Mapping[str, Any]) -> str:
    passed = gate.get("passed") is True
    value = markup.number(gate.get("value"))
    unit = markup.text(gate.get("unit"))
    measured = "not measurable" if value is None else f"{value:.4g} {unit}".strip()
    return line(light(passed), gate["gate"], measured, wanted(markup.sequence(gate.get("limits"))))


def line(sign: str, name: object, measured: str, limits: str) -> str:
    """An item of a list: a light or no sign, a name, what was measured (HTML) and what is wanted (HTML)."""
    return (
        f'<li>{sign}<span><span class="gate-name">{markup.text(name)}</span> '
        f'<span class="small">{measured}</span> <span class="soft small">{limits}</span></span></li>'
    )


def wanted(limits: Sequence[Any]) -> str:
    """Limits in words, plain text; "" without any."""
    low, high = (markup.number(limit) for limit in limits) if len(limits) == 2 else (None, None)
    if low is not None and high is not None:
        return f"({low:g} to {high:g} wanted)"
    if low is not None:
        return f"(at least {low:g} wanted)"
    return f"(at most {high:g} wanted)" if high is not None else ""


def light(passed: bool) -> str:
    """Green or red, and readable without colours."""
    word, sign = ("passed", "M4.5 8.5l2.5 2.5l4.5-5.5") if passed else ("failed", "M5 5l6 6M11 5l-6 6")
    return (
        f'<svg class="light {word}" viewBox="0 0 16 16" width="16" height="16" role="img" '
        f'aria-label="{word}"><circle cx="8" cy="8" r="7.5"/><path d="{sign}"/></svg>'
    )
