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
        parts.append(f"## {path.stem}\n\n{host_line(result)}\n\n{checks_table(result)}\n\n{transfer_rows(result)}")
    files = {ROOT / "benchmarks" / "README.md": "\n\n".join(parts) or "No full results yet."}
    transfer = RESULTS / "transfer.json"
    if transfer.exists():
        result = json.loads(transfer.read_text(encoding="utf-8"))
        files[ROOT / "README.md"] = f"{checks_table(result)}\n\n{transfer_rows(result)}\n\n{host_line(result)}"
    stale = []
    for path, content in files.items():
        text = path.read_text(encoding="utf-8")
        new = put(text, "transfer" if path.parent == ROOT else "results", content)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not what the results say; run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
