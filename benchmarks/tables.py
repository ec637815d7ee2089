"""Writes the tables of benchmarks/README.md and README.md from the committed results.

python benchmarks/tables.py [--check]

With ``--check`` nothing is written; the exit code is 1 where a table is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def figure(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{float(f'{value:.3g}'):g}"


def checks_table(result: dict[str, Any]) -> str:
    """Returns the checks of one result as Markdown."""
    lines = ["| figure | measured | limit | |", "| --- | --- | --- | --- |"]
    for check in result["checks"]:
        verdict = "holds" if check["ok"] else "MISSED"
        lines.append(f"| {check['name']} | {figure(check['value'])} | {figure(check['limit'])} | {verdict} |")
    return "\n".join(lines)


def host_line(result: dict[str, Any]) -> str:
    """Says where a result comes from."""
    host = result["host"]
    versions = ", ".join(f"{n} {host['versions'][n]}" for n in ("torch", "onnxruntime") if n in host["versions"])
    return f"Measured on {host['cpu']}, {host['cores']} cores; {versions}."


def transfer_rows(result: dict[str, Any]) -> str:
    """Returns what each training reached, and what each variant of the export is worth."""
    lines = ["| training | seed | top-1 | macro F1 | minutes |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r['name']} | {r['seed']} | {r['top1']:.1%} | {r['macro_f1']:.1%} | {r['seconds'] / 60:.1f} |"
        for r in result["rows"]
        if "seed" in r
    ]
    exported = next(row for row in result["rows"] if row["name"] == "export")["variants"]
    timed = {e["variant"]: e for e in next(row for row in result["rows"] if row["name"] == "bench")["results"]}
    head = "| variant | MB | top-1 | drop, points | flips | latency / FP32 |"
    lines += ["", head, "| --- | --- | --- | --- | --- | --- |"]
    for name, v in exported.items():
        ratio = f"{timed[name]['latency_ratio']:.2f}" if name in timed else ""
        worth = f"{v['top1']:.1%} | {v['top1_drop'] * 100:+.2f} | {v['flip_rate']:.1%}"
        lines.append(f"| {name} | {v['bytes'] / 1e6:.1f} | {worth} | {ratio} |")
    return "\n".join(lines)


def transfer_table(result: dict[str, Any]) -> str:
    """Returns the checks and rows of the transfer benchmark."""
    return f"{checks_table(result)}\n\n{transfer_rows(result)}"


def quality_table(result: dict[str, Any], networks: list[str]) -> str:
    """Returns what each tool and method leaves of networks, by TensorRT's arithmetic."""
    lines = [
        "| network | INT8 by | top-1 | drop, points (95 %) | same decision | SQNR, dB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["name"] != "quality" or row["network"] not in networks:
            continue
        low, high = (100 * end for end in row["top1_drop_interval"])
        worth = "" if row["side"] == "fp32" else f"{row['top1_drop'] * 100:+.1f} ({low:+.1f} to {high:+.1f})"
        near = " | " if row["side"] == "fp32" else f"{row['agreement']:.1%} | {row['sqnr_db']:.1f}"
        side = row["side"]
        if "int8_share" in row:
            side += f" ({row['int8_share']:.1%} of multiply-adds in INT8)"
        lines.append(f"| {row['network']} | {side} | {row['top1']:.1%} | {worth} | {near} |")
    return "\n".join(lines)


def ptq_rows(result: dict[str, Any]) -> str:
    """Returns cost, quality and the speed of the x86 form."""
    lines = ["| calibration by | pictures | seconds | peak MB |", "| --- | --- | --- | --- |"]
    costs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row["name"] == "cost":
            costs.setdefault((row["side"], row["pictures"]), []).append(row)
    for (side, pictures), rounds in costs.items():
        seconds = median(row["seconds"] for row in rounds)
        megabytes = max(row["peak_bytes"] for row in rounds) / 1e6
        lines.append(f"| {side} | {pictures} | {seconds:.1f} | {megabytes:.0f} |")
    networks = list(dict.fromkeys(r["network"] for r in result["rows"] if r["name"] == "quality"))
    lines += ["", quality_table(result, networks), ""]
    head = "| x86 form | latency / onnxruntime's U8S8 | latency / FP32 | same decision | onnxruntime's |"
    lines += [head, "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r['network']} | {r['latency_over_onnxruntime']:.2f} | {r['latency_over_fp32']:.2f} "
        f"| {r['edgetl_agreement']:.1%} | {r['onnxruntime_agreement']:.1%} |"
        for r in result["rows"]
        if r["name"] == "x86"
    ]
    return "\n".join(lines)


def gate_rows(result: dict[str, Any]) -> str:
    """Returns what the gate said, live and simulated, beside fixed thresholds on means."""
    lines = [
        "| network | p50, ms | A/A alarms, live | planted 5 % caught, live | a decision, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['network']} | {r['p50_ms']:.2f} | {r['live_alarms']} of {r['live_aa']} "
        f"| {r['live_caught']} of {r['live_planted']} | {median(r['seconds']):.0f} |"
        for r in result["rows"]
    ]
    head = "| rule, limit 3 %, on the same samples | false alarms | planted 5 % caught |"
    lines += ["", head, "| --- | --- | --- |"]
    rules = {
        "edgetl's gate": "gate",
        "means of interleaved calls": "means_in_turn",
        "means of two runs, as pytest-benchmark compares": "means_of_two_runs",
    }
    for name, key in rules.items():
        alarms, caught = (
            sum(r[f"{kind}_{key}"] for r in result["rows"]) / len(result["rows"]) for kind in ("alarms", "caught")
        )
        lines.append(f"| {name} | {alarms:.2%} | {caught:.2%} |")
    return "\n".join(lines)


def finetune_rows(result: dict[str, Any]) -> str:
    """Returns strategies by seed, and the ranking of `select` beside what fine-tuning reached."""
    of = {part: [row for row in result["rows"] if row["name"] == part] for part in ("strategies", "select")}
    lines = [
        "| data | strategy | epochs | top-1 by seed | mean (95 %) | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in of["strategies"]:
        groups.setdefault((row["data"], row["strategy"]), []).append(row)
    for (data, strategy), rows in groups.items():
        seeds = ", ".join(f"{row['top1']:.1%}" for row in rows)
        minutes = sum(row["seconds"] for row in rows) / len(rows) / 60
        low, high = interval([row["top1"] for row in rows])
        middle = f"{(low + high) / 2:.1%} ({low:.1%} to {high:.1%})"
        lines.append(f"| {data} | {strategy} | {rows[0]['epochs']} | {seeds} | {middle} | {minutes:.1f} |")
    reached: dict[str, list[float]] = {}
    for row in of["select"]:
        if "candidate" in row:
            reached.setdefault(row["candidate"], []).append(row["top1"])
    ranked = next((row["candidates"] for row in of["select"] if "candidates" in row), [])
    head = "| candidate, as ranked | probe | LogME | INT8 ms | top-1 after fine-tuning, mean (each seed) |"
    lines = [*lines, ""] if groups else []
    lines += [head, "| --- | --- | --- | --- | --- |"] if reached else []
    for c in ranked:
        if c["name"] in reached:
            tops = reached[c["name"]]
            seeds = ", ".join(f"{top1:.1%}" for top1 in tops)
            told = f"{c['probe_top1']:.1%} | {c['logme']:.3f} | {c['latency_ms']:.2f}"
            lines.append(f"| {c['name']} | {told} | {mean(tops):.1%} ({seeds}) |")
    return "\n".join(lines)


def runtime_rows(result: dict[str, Any]) -> str:
    """Returns what a user waits for, what many threads get, and how long it holds."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = []
    if {"classify", "cold", "memory"} <= rows.keys():
        p50, cold, memory = rows["classify"]["p50_ms"], rows["cold"], rows["memory"]
        kilobytes = rows["classify"]["bytes_per_picture"] / 1e3
        lines += [
            f"| JPEG of 1280 x 960, {kilobytes:.0f} kB | p50, ms | top-1 | import, load, first answer, s | peak MB |",
            "| --- | --- | --- | --- | --- |",
        ]
        for side, name in (("loop", "the loop people write"), ("tuned", "the best by hand"), ("edgetl", "edgetl")):
            top1 = rows["classify"]["top1"].get(side)
            shown = ["" if top1 is None else f"{top1:.1%}"]
            shown += [
                f"{cold[side]:.2f}" if side in cold else "",
                f"{memory[side] / 1e6:.0f}" if side in memory else "",
            ]
            lines.append(f"| {name} | {p50[side]:.1f} | {' | '.join(shown)} |")
    if "submit" in rows:
        lines += ["", "| 32 threads | calls, pictures/s | submit, pictures/s | pictures in a batch |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {made['call']:.0f} | {made['submit']:.0f} | {made['mean_batch']:.1f} |"
            for name, made in rows["submit"]["networks"].items()
        ]
    if "soak" in rows:
        soak = rows["soak"]
        lines += ["", f"Soak: {soak['seconds'] / 60:.0f} minutes, {soak['answered']} answers, {soak['swaps']} swaps."]
    return "\n".join(lines)


def learn_rows(result: dict[str, Any]) -> str:
    """Returns how well new classes are found, and what old ones lose, by the number of pictures."""
    lines = [
        "| pictures of each | new classes | old before | old after | lost, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shots in sorted({row["shots"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["shots"] == shots]
        new, before, after = (mean(row[key] for row in rows) for key in ("new", "old_before", "old_after"))
        lines.append(f"| {shots} | {new:.1%} | {before:.1%} | {after:.1%} | {100 * (before - after):.1f} |")
    return "\n".join(lines)


def interval(values: list[float]) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of three seeds, by Student's t."""
    half = {2: 12.706, 3: 4.303}.get(len(values), 0.0) * (stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0)
    return mean(values) - half, mean(values) + half


def zoo_rows(result: dict[str, Any]) -> str:
    """Returns trained entries, then the recipes' networks."""
    native = next(n for n in result["rows"][0]["p50_ms"] if n.startswith("int8"))
    lines = [
        "| backbone | pictures | input | M parameters | M multiply-adds | FP32 | FP16 "
        f"| INT8 ({native.removeprefix('int8-')}) | INT8 (TensorRT) | FP32 ms | INT8 ms | INT8 MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["name"] == "trained":
            top1 = [f"{row['top1'][name]:.1%}" for name in ("fp32", "fp16", native, "int8-tensorrt")]
            lines.append("| " + " | ".join([row["entry"], row["data"], *_work(row), *top1, *_cost(row, native)]) + " |")
    lines += ["", "| recipe | input | M parameters | M multiply-adds | FP32 ms | INT8 ms | INT8 MB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        if row["name"] == "recipe":
            name = f"[{row['recipe']}]({row['recipe']}.md)"
            lines.append("| " + " | ".join([name, *_work(row), *_cost(row, native)]) + " |")
    return "\n".join(lines)


def _work(row: dict[str, Any]) -> list[str]:
    size = "x".join(str(side) for side in row["size"])
    return [size, figure(row["parameters"] / 1e6), figure(row["multiply_adds"] / 1e6)]


def _cost(row: dict[str, Any], native: str) -> list[str]:
    return [f"{row['p50_ms']['fp32']:.2f}", f"{row['p50_ms'][native]:.2f}", f"{row['bytes'][native] / 1e6:.1f}"]


def fuzz_rows(result: dict[str, Any]) -> str:
    """Returns how mutated inputs were answered."""
    lines = ["| inputs | fed | taken | refused | minutes |", "| --- | --- | --- | --- | --- |"]
    for row in result["rows"]:
        refused = ", ".join(f"{count} {name}" for name, count in row["answers"].items() if name != "taken")
        taken, minutes = row["answers"].get("taken", 0), row["seconds"] / 60
        lines.append(f"| {row['name']} | {row['inputs']} | {taken} | {refused} | {minutes:.1f} |")
    return "\n".join(lines)


ROWS = {
    "transfer": transfer_rows,
    "ptq": ptq_rows,
    "gate": gate_rows,
    "finetune": finetune_rows,
    "zoo": zoo_rows,
    "runtime": runtime_rows,
    "learn": learn_rows,
    "fuzz": fuzz_rows,
}


def put(text: str, name: str, content: str) -> str:
    """Replaces what stands between two marks."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)


def main() -> None:
    """Writes or checks both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = ROWS[path.stem](result)
        parts.append("\n\n".join(p for p in (f"## {path.stem}", host_line(result), checks_table(result), rows) if p))
    wanted = [(ROOT / "benchmarks" / "README.md", "results", "\n\n".join(parts) or "No full results yet.")]
    zoo = RESULTS / "zoo.json"
    if zoo.exists():
        result = json.loads(zoo.read_text(encoding="utf-8"))
        wanted.append((ROOT / "models" / "README.md", "zoo", f"{zoo_rows(result)}\n\n{host_line(result)}"))
    tables = {
        "transfer": transfer_table,
        "ptq": lambda r: quality_table(r, ["mobilenet_v2_tf"]),
        "gate": gate_rows,
        "finetune": finetune_rows,
        "runtime": runtime_rows,
        "learn": learn_rows,
    }
    for name, table in tables.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            shown = table(result)
            wanted.append((ROOT / "README.md", name, f"{shown}\n\n{host_line(result)}" if shown else ""))
    stale = []
    for path, mark, content in wanted:
        text = path.read_text(encoding="utf-8")
        new = put(text, mark, content)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the results say; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
