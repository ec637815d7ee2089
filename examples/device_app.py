"""The skeleton of a device app: classifies every picture that arrives in a folder, one line each.

    python device_app.py BUNDLE FOLDER [--engine auto] [--plans DIR] [--once]

A camera process writes pictures under another name and renames them into the folder; this app answers and leaves them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import edgetl

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def arrived(folder: Path, seen: set[str]) -> list[Path]:
    """Returns new pictures, the oldest first; remembers them as long as they are there."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries if entry.name.lower().endswith(PICTURES)}
    new = []
    for name in there.keys() - seen:
        with suppress(FileNotFoundError):  # gone again already
            new.append((there[name].stat().st_mtime, name))
    seen &= there.keys()
    seen |= {name for _, name in new}
    return [folder / name for _, name in sorted(new)]


def main() -> int:
    """Loads the bundle, then answers until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="auto", help="auto, tensorrt, tensorrt-rtx, cuda or cpu")
    parser.add_argument("--plans", type=Path, help="folder of plans that edgetl compile --out made")
    parser.add_argument("--once", action="store_true", help="answer what is there, then end")
    options = parser.parse_args()
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        classify = edgetl.load(options.bundle, engine=options.engine, plans=options.plans)
    except edgetl.EdgetlError as error:
        print(f"device_app: {error}", file=sys.stderr)
        return error.exit_code
    seen: set[str] = set()
    with classify:
        print(f"device_app: {classify.variant} on {classify.engine}: {classify.reason}", file=sys.stderr, flush=True)
        while not stopped:
            try:
                paths = arrived(options.folder, seen)
            except OSError as error:
                print(f"device_app: {options.folder}: cannot be read ({error.strerror})", file=sys.stderr)
                return 2
            for path in paths:
                try:
                    answer = classify(path)
                except edgetl.EdgetlError as error:  # one bad picture is no reason to stop
                    print(f"device_app: {error}", file=sys.stderr, flush=True)
                    continue
                told = {"picture": path.name, "label": answer.label, "confidence": round(answer.confidence, 4)}
                print(json.dumps(told), flush=True)
            if options.once:
                return 0
            time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
