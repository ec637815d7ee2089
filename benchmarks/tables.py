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
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def figure(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{value:.3g}"


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


ROWS = {"transfer": transfer_rows, "ptq": ptq_rows, "gate": gate_rows}


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
        parts.append(f"## {path.stem}\n\n{host_line(result)}\n\n{checks_table(result)}\n\n{rows}")
    wanted = [(ROOT / "benchmarks" / "README.md", "results", "\n\n".join(parts) or "No full results yet.")]
    tables = {"transfer": transfer_table, "ptq": lambda r: quality_table(r, ["mobilenet_v2_tf"]), "gate": gate_rows}
    for name, table in tables.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            wanted.append((ROOT / "README.md", name, f"{table(result)}\n\n{host_line(result)}"))
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
