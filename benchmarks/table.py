"""The table of a record, in Markdown: medians, and ratios within the rounds of one run."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = ("what", "who", "measured", "× best peer", "× limit")
SIDES = ("ours", "peer", "limit")


def rows(case: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of a case, one for each contestant: ours, then peers, then limits.

    A ratio above 1 means faster, or smaller. It is the median over the rounds, in each of which
    the contestants took turns.
    """
    best: dict[str, Mapping[str, Any] | None] = {}
    for side in ("peer", "limit"):
        own = [c for c in case["contestants"] if c["side"] == side and costs(case, c)]
        best[side] = min(own, key=lambda c: statistics.median(costs(case, c)), default=None)
    lines = []
    for contestant in sorted(case["contestants"], key=lambda c: SIDES.index(c["side"])):
        side = contestant["side"]
        compared = [best[other] if other != side else None for other in ("peer", "limit")]
        known = costs(case, contestant) and side != "limit"
        ratios = [ratio(case, o, contestant) if o and known else "" for o in compared]
        title = "" if lines else case["title"]
        lines.append((title, contestant["name"], show(case, contestant), *ratios))
    return lines


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
    """The median of one contestant."""
    own = costs(case, contestant)
    accuracies = [accuracy(r) for r in contestant["results"] if accuracy(r)]
    mean = f"{100 * statistics.mean(accuracies):.1f} %" if accuracies else ""
    if case["unit"] == "%":
        return mean or "missing"
    if not own:
        return "missing"
    cost = statistics.median(own)
    number = {
        "ms": 1e3 * cost,
        "s": cost,
        "images/s": case.get("images", 0) / cost,
        "MiB": cost,
    }[case["unit"]]
    text = f"{significant(number)} {case['unit']}"
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
    lines = itertools.chain.from_iterable(map(rows, cases))
    return "".join(map(line, [COLUMNS, ("---",) * len(COLUMNS), *lines]))


# ---- Several records -----------------------------------------------------------------------------


def by_machine(records: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The records of each machine, since times of two machines do not compare; newest first."""
    machines: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["date"], reverse=True):
        machines.setdefault(describe(record["machine"]), []).append(record)
    return list(machines.values())


def describe(machine: Mapping[str, Any]) -> str:
    """The processor: its name, number of cores and instruction sets."""
    return f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['instructions'])}"


def page_block(records: Iterable[Mapping[str, Any]]) -> str:
    """The newest cases of each machine; empty without a record."""
    return "\n".join(map(machine_block, by_machine(records)))


def machine_block(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest case of each title, of one machine's records from new to old."""
    newest, commits, commands, cases = records[0], [], [], {}
    for record in records:
        new = {case["title"]: case for case in record["cases"] if case["title"] not in cases}
        cases |= new
        if new:
            changes = " with changes" if record["git_dirty"] else ""
            commits.append(f"{str(record['git_commit'])[:8]}{changes}")
            commands.append(f"`{record['command']}`")
    versions = dict(newest["versions"])
    for packages in newest["peers"].values():
        versions |= packages
    lines = [
        f"### {describe(newest['machine'])}",
        "",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        f"- Commits: {', '.join(dict.fromkeys(commits))}.",
        f"- Commands: {', '.join(dict.fromkeys(commands))}.",
        "",
    ]
    return "\n".join([*lines, markdown(cases.values())])
