"""The table of a record, in Markdown: medians, and ratios within the rounds of one run."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

COLUMNS = ("what", "ours", "peers", "limit", "ours ÷ best peer", "ours ÷ limit")


def cells(case: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table.

    A ratio above 1 means faster, or smaller. It is the median over the rounds, in each of which
    the contestants took turns.
    """
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": [], "limit": []}
    for contestant in case["contestants"]:
        sides[contestant["side"]].append(contestant)
    measured = {side: [c for c in own if costs(case, c)] for side, own in sides.items()}
    ratios = []
    for side in ("peer", "limit"):
        best = min(measured[side], key=lambda c: statistics.median(costs(case, c)), default=None)
        if best is None:
            ratios.append("")
        else:
            ratios.append(", ".join(ratio(case, best, c) for c in measured["ours"]))
    shown = [", ".join(show(case, c) for c in own) for own in sides.values()]
    return (case["title"], *shown, *ratios)


def costs(case: Mapping[str, Any], contestant: Mapping[str, Any]) -> list[float]:
    """Seconds of a step in each round, or bytes; empty if the contestant is missing."""
    facts = contestant["facts"]
    if case["unit"] == "MiB":
        return [facts["MiB"]] if "MiB" in facts else []
    # A limit is the machine's rate at the amount of work that a step needs.
    scale = facts["needed"] / facts["amount"] if "needed" in facts else 1
    return [scale * seconds for seconds in contestant["seconds"]]


def ratio(case: Mapping[str, Any], other: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """How many times as fast, or as small, as another contestant."""
    paired = zip(costs(case, other), costs(case, own), strict=False)
    return f"{statistics.median(theirs / mine for theirs, mine in paired):.2f}"


def show(case: Mapping[str, Any], contestant: Mapping[str, Any]) -> str:
    """The name and the median of one contestant."""
    name, own = contestant["name"], costs(case, contestant)
    accuracies = [accuracy(r) for r in contestant["results"] if accuracy(r)]
    mean = f"{100 * statistics.mean(accuracies):.1f} %" if accuracies else ""
    if case["unit"] == "%":
        return f"{name} {mean or 'missing'}"
    if not own:
        return f"{name} missing"
    cost = statistics.median(own)
    number = {
        "ms": 1e3 * cost,
        "s": cost,
        "images/s": case["images"] / cost,
        "MiB": cost,
    }[case["unit"]]
    text = f"{name} {significant(number)} {case['unit']}"
    notes = []
    if "needed" in contestant["facts"]:
        facts = contestant["facts"]
        rate = facts["needed"] / cost
        notes.append(f"{significant(rate)} {facts['rate']}")
    if mean:
        notes.append(mean)
    return f"{text} ({', '.join(notes)})" if notes else text


def accuracy(result: Mapping[str, Any]) -> float:
    """Of a job, or of train.py; 0 if the result has none."""
    return result.get("accuracy", result.get("test_accuracy", 0.0))


def significant(number: float) -> str:
    """Three digits, or all of the integer part."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |\n"


def markdown(cases: Iterable[Mapping[str, Any]]) -> str:
    """The whole table."""
    return "".join(map(line, [COLUMNS, ("---",) * len(COLUMNS), *map(cells, cases)]))
