"""Format predictions for a terminal."""

from collections.abc import Mapping
from typing import Any

_SHOWN = 3  # findings of a case, and contributions, that a line has room for
_VOTES = 5  # cases of a vote that have a line
UNFAMILIAR = "unlike the images that it was trained on"


def describe(record: Mapping[str, Any], thresholds: Mapping[str, float | None]) -> str:
    """Format the record of an image as a few lines, given the thresholds on its scores."""
    if "error" in record:
        return f"{record['file']}\n  not read: {record['error']}"
    lines = [record["file"], f"  {_verdict(record, thresholds)}", *_sets(record)]
    if record.get("seen_in_training"):
        lines.append("  training or validation saw this patient")
    if "members" in record:
        for name, member in record["members"].items():
            lines += [f"  {name}: highest scores {_highest(member['scores'])}"]
            lines += [f"  {line}" for line in (*_evidence(member), f"  {_familiar(member)}")]
    else:
        lines += [*_evidence(record), f"  {_familiar(record)}"]
    lines += [f"  warning: {text}" for text in record.get("warnings", [])]
    lines += [f"  {title}: {path}" for title, path in record.get("overlays", {}).items()]
    lines += [f"  DICOM {kind}: {path}" for kind, path in record.get("dicom", {}).items()]
    lines += [f"  stored {kind}: {uid}" for kind, uid in record.get("stored", {}).items()]
    return "\n".join(lines)


def _verdict(record: Mapping[str, Any], thresholds: Mapping[str, float | None]) -> str:
    scores = record["scores"]
    if record["unfamiliar"]:
        return (
            f"{UNFAMILIAR} ({', '.join(record['unfamiliar_in'])}): no finding is reported; highest "
            f"scores {_highest(scores)}"
        )
    if record["findings"] is None:
        return f"no threshold is known, so no finding is decided; highest scores {_highest(scores)}"
    if record["findings"]:
        found = sorted(record["findings"], key=scores.get, reverse=True)
        return ", ".join(
            f"{name} {scores[name]:.3f} (from {thresholds[name]:.3f})" for name in found
        )
    undecided = [name for name, threshold in thresholds.items() if threshold is None]
    without = f" (not decided: {', '.join(undecided)})" if undecided else ""
    return f"no finding reaches its threshold{without}; highest scores {_highest(scores)}"


def _highest(values: Mapping[str, float]) -> str:
    names = sorted(values, key=values.get, reverse=True)[:_SHOWN]
    return ", ".join(f"{name} {values[name]:.3f}" for name in names)


def _sets(record: Mapping[str, Any]) -> list[str]:
    """Format the conformal sets on one line; most findings have "absent" alone, and are counted."""
    sets = record.get("sets")
    if sets is None:
        return []
    parts = []
    for words, labels in (
        ("present", ["present"]),
        ("present or absent", ["absent", "present"]),
        ("neither", []),
    ):
        names = [name for name, held in sets.items() if held == labels]
        parts += [f"{words}: {', '.join(names)}"] * bool(names)
    absent = sum(held == ["absent"] for held in sets.values())
    parts.append(f"absent: {'all' if absent == len(sets) else absent}")
    return [f"  at a coverage of {record['coverage']:g} {'; '.join(parts)}"]


def _evidence(record: Mapping[str, Any]) -> list[str]:
    lines = []
    if "vote" in record:
        known = {name: vote for name, vote in record["vote"].items() if vote is not None}
        lines.append(f"  vote of similar cases: {_highest(known) or 'their labels are unknown'}")
    for entry in record.get("evidence", [])[: _VOTES if "vote" in record else None]:
        known = entry["labels"]
        labels = "labels unknown" if known is None else ", ".join(known) or "no finding"
        shares = {name: share for name, share in entry["contributions"].items() if share}
        largest = sorted(shares, key=lambda name: -abs(shares[name]))[:_SHOWN]
        moved = ", ".join(f"{name} {shares[name]:+.2f}" for name in largest)
        end = f": {moved}" if moved else ""
        lines.append(f"  leaned on {entry['case']} ({labels}), cosine {entry['cosine']:.3f}{end}")
    if "without_memory" in record:
        without, scores = record["without_memory"], record.get("single_view", record["scores"])
        largest = sorted(scores, key=lambda name: -abs(scores[name] - without[name]))[:_SHOWN]
        moved = ", ".join(f"{name} {without[name]:.3f}, not {scores[name]:.3f}" for name in largest)
        lines.append(f"  without memory: {moved}")
    return lines


def _familiar(record: Mapping[str, Any]) -> str:
    parts = [
        f"{name} higher than {record[f'{name}_percentile']:.1f} % of validation"
        for name in ("novelty", "disagreement", "appearance")
        if f"{name}_percentile" in record
    ]
    return "; ".join(parts) or f"not judged whether it is {UNFAMILIAR}"
