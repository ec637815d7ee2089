"""Reads Dockerfile.jetson: instructions as (name, arguments), lines that continue joined, comments left out."""

from __future__ import annotations

import re
from pathlib import Path

PATH = Path(__file__).parents[1] / "Dockerfile.jetson"


def instructions(text: str | None = None) -> list[tuple[str, str]]:
    text = PATH.read_text() if text is None else text
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", lines)
    pairs = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in pairs]


def pip_line() -> str:
    (line,) = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    return line
