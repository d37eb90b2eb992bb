"""Gather what gpu_day.sh found into day.json and day.md; the exit code is 1 if a part failed.

python benchmarks/gpu_table.py OUT
"""

import json
import sys
from pathlib import Path

import jax
import jaxlib

CODES = {0: "passed", 124: "out of time"}


def table(parts: dict[str, dict], found: dict[str, dict]) -> list[str]:
    lines = ["| part | result | s |", "| --- | --- | --- |"]
    for name, part in parts.items():
        lines.append(f"| {name} | {CODES.get(part['code'], 'FAILED')} | {part['seconds']} |")
    lines += [
        "",
        "| step | side | median, ms | images/s | device memory, MB |",
        "| --- |" + " --- |" * 4,
    ]
    groups = [found.get(name, {}) for name in ("speed_train", "speed_rest")]
    for result in [result for group in groups for result in group.get("results", [])]:
        case = result["case"]
        step = f"{case['kind']}, batch {case['batch']}, {case['side']}², {case.get('loss', 'bce')}"
        for side, facts in result["sides"].items():
            rate = case["batch"] / facts["median_s"]
            lines.append(
                f"| {step} | {side} | {1e3 * facts['median_s']:.2f} | {rate:.0f} | "
                f"{facts.get('device_peak_mb', 0):.0f} |"
            )
    if "kernels" in found:
        lines += ["", "| operation of a train step | ms | runs |", "| --- | --- | --- |"]
        for row in found["kernels"]["a_step"][:20]:
            lines.append(f"| {row['operation']} | {row['ms']:.3f} | {row['runs']:.0f} |")
    if "depthwise" in found:
        lines += ["", "| depthwise: side, channels, strides | grouped, ms | shifted, ms |"]
        lines += ["| --- | --- | --- |"]
        for row in found["depthwise"]["milliseconds"]:
            shape = f"{row['side']}, {row['channels']}, {row['strides']}"
            lines.append(f"| {shape} | {row['grouped']:.3f} | {row['shifted']:.3f} |")
    if "recipe" in found:
        lines += [
            "",
            f"The published recipe: {found['recipe']['minutes']:.1f} minutes (projected).",
        ]
    for score, values in found.get("bfloat16", {}).items():
        apart = values["apart"]
        lines.append(
            f"{score}: bfloat16 is {apart['bfloat16']:.4f} from float32, another seed "
            f"{apart['seed']:.4f} (SIMULATED images)."
        )
    return lines


def main(out: Path) -> int:
    rows = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
    # The last line of a part counts: an earlier one is of a try that failed.
    parts = {name: {"code": int(code), "seconds": int(s)} for name, code, s in rows}
    files = [path for path in sorted(out.glob("*.json")) if path.name != "day.json"]
    found = {path.stem: json.loads(path.read_text()) for path in files}
    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    day = {"device": device, "versions": versions, "parts": parts, **found}
    lines = [f"{device}, JAX {jax.__version__}", "", *table(parts, found)]
    (out / "day.md").write_text("\n".join(lines) + "\n")
    (out / "day.json").write_text(json.dumps(day, indent=1) + "\n")
    print("\n".join(lines))
    return int(any(part["code"] for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
