"""Write the results of an inspection as text for a terminal."""

from collections.abc import Mapping

import pandas as pd

from data_pipelines.inspect.image_statistics import OUTLIERS

_NAMED = 5  # images of a kind that the text names; the json and csv files name all


def summary_text(summary: Mapping) -> str:
    """Write the result of ``inspection.inspect`` in paragraphs."""
    paragraphs = [
        _head(summary),
        *summary["oddities"]["warnings"],
        _part_table(summary["parts"]),
        _finding_table(summary["parts"]),
        *_set_table(summary["sets"]),
        _leak(summary["leak"], summary["rule"]),
        _pixels(summary["pixels"]),
        _doubles(summary["duplicates"], summary["pixels"]),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _head(summary: Mapping) -> str:
    images, patients = summary["images"], summary["patients"]
    lines = [
        f"{summary['directory']} as {summary['source']}",
        f"images: {images['table']:,} in the table, {images['present']:,} present, "
        f"{images['missing']:,} missing, {images['refused']:,} refused",
    ]
    if summary["simulated"]:
        lines.insert(0, "SIMULATED data: drawn by a program, of no patient.")
    if images["refused"]:
        lines.append("refused images and the reasons: quarantine.csv")
    lines.append(
        f"patients of the usable images: {patients['patients']:,}; images a patient: "
        f"{patients['mean']:.2f} on average, median {patients['median']:g}, "
        f"most {patients['max']:g}"
    )
    lines += _terms(summary["card"])
    for name, own in summary["sets"].items():
        lines += [f"{name} is {own['source']}, {own['images']:,} images", *_terms(own["card"])]
    return "\n".join(lines)


def _terms(card: Mapping[str, str]) -> list[str]:
    """Return the terms of a published set; nothing for another."""
    titles = {"terms": "license", "to cite": "citation", "from": "homepage"}
    return [f"{title}: {card[key]}" for title, key in titles.items() if card["homepage"]]


def _part_table(parts: Mapping[str, Mapping]) -> str:
    columns = {}
    for name, part in parts.items():
        ages = part["ages"]
        rows = {
            "images in the table": f"{part['listed']:,}",
            "usable images": f"{part['images']:,}",
            "patients": f"{part['patients']:,}",
            "abnormal images": _count(part["abnormal"], part["images"]),
        }
        for key in ("views", "sexes"):
            for value, count in part[key].items():
                rows[f"{key[: -1 if key == 'views' else -2]} {value}"] = _count(
                    count, part["images"]
                )
        if ages["median"] is not None:
            rows["age, median"] = f"{ages['median']:g} years"
            rows["age, range"] = f"{ages['min']:g} to {ages['max']:g}"
        rows["age unknown"] = f"{ages['unknown']:,}"
        columns[name] = rows
    table = pd.DataFrame(columns).fillna("0")
    return "Splits (a name without a stage is the same in every stage)\n" + table.to_string()


def _finding_table(parts: Mapping[str, Mapping]) -> str:
    positives = pd.DataFrame(
        {
            name: {f: counts["positive"] for f, counts in part["findings"].items()}
            for name, part in parts.items()
        }
    )
    order = positives.sum(axis=1).sort_values(ascending=False, kind="stable").index
    table = pd.DataFrame(
        {
            name: {f: _prevalence(counts) for f, counts in part["findings"].items()}
            for name, part in parts.items()
        }
    )
    unknown = {
        name: {f: counts["unknown"] for f, counts in part["findings"].items()}
        for name, part in parts.items()
    }
    text = "Positive images and prevalence among the images whose label is known\n"
    text += table.loc[order].to_string()
    unknown_table = pd.DataFrame(unknown).loc[order]
    if not unknown_table.to_numpy().any():
        return text + "\nNo label is unknown."
    return f"{text}\n\nImages whose label is unknown\n{unknown_table.to_string()}"


def _set_table(sets: Mapping[str, Mapping]) -> list[str]:
    """Return a table of the findings of each merged set; nothing for a single set."""
    if not sets:
        return []
    table = pd.DataFrame(
        {
            name: {finding: _prevalence(counts) for finding, counts in own["findings"].items()}
            for name, own in sets.items()
        }
    )
    return [
        "Positive images and prevalence in each set; - where it has no label\n" + table.to_string()
    ]


def _prevalence(counts: Mapping) -> str:
    if counts["prevalence"] is None:
        return "-"
    return f"{counts['positive']:,} ({100 * counts['prevalence']:.2f} %)"


def _count(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if of else f"{count:,}"


def _leak(leak: Mapping[str, Mapping], rule: str) -> str:
    table, used = leak["table"], leak["used"]
    return (
        f"Leakage of the split rule {rule!r}: {table['images']:,} of {table['of']:,} abnormal test "
        "images are of patients that some stage trains or validates on "
        f"({used['images']:,} of {used['of']:,} among the usable images)."
    )


def _pixels(pixels: Mapping) -> str:
    read, of, size = pixels["read"], pixels["of"], pixels["size"]
    limit = "" if read == of else "; --sample 0 reads all"
    lines = [
        f"Image statistics of {read:,} of {of:,} images, read at {size} x {size}{limit}",
        f"grey levels: mean {pixels['mean']:.1f}, SD {pixels['sd']:.1f} (0 to 255); "
        f"{pixels['black']:.2%} of the pixels are 0, {pixels['saturated']:.2%} are 255",
    ]
    for kind, names in pixels["outliers"].items():
        lines.append(f"{kind} ({OUTLIERS[kind]}): {len(names):,}{_named(names)}")
    return "\n".join(lines)


def _named(names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _NAMED:,} more in summary.json" if len(names) > _NAMED else ""
    return ": " + ", ".join(names[:_NAMED]) + more


def _doubles(doubles: Mapping[str, int], pixels: Mapping) -> str:
    size = pixels["size"]
    lines = [
        f"Duplicates (equal pixels at {size} x {size}): {doubles['images']:,} images in "
        f"{doubles['groups']:,} groups" + (": see duplicates.csv" if doubles["groups"] else "")
    ]
    if doubles["groups"]:
        lines.append(
            f"groups across splits: {doubles['across_parts']:,}, across patients: "
            f"{doubles['across_patients']:,}, with different findings: "
            f"{doubles['findings_differ']:,}"
        )
    if pixels["read"] < pixels["of"]:
        lines.append(
            f"Only the {pixels['read']:,} images read were compared; --sample 0 compares all."
        )
    return "\n".join(lines)
