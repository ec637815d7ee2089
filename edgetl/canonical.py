"""The one JSON form that digests are taken of."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["canonical_json"]


def canonical_json(data: Any) -> bytes:
    """Returns JSON with sorted keys, without spaces or NaN.

    Raises:
        ValueError: There is NaN or infinity in it.
        TypeError: It is nothing that JSON knows.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
