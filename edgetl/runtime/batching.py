"""How requests are put together; apart from what does it, which an app that asks for one picture need not import."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.errors import InputError

__all__ = ["Batching"]


@dataclass(frozen=True)
class Batching:
    """How requests are put together.

    Attributes:
        max_batch: Most pictures in one call of the engine.
        max_wait_ms: How long the first picture of a batch waits for others, at most until shortly before one of them
            would be answered too late; 0 takes what has come while the engine was busy, which costs a lonely request
            nothing.
        max_queue: Most requests that wait; beyond it `Overloaded` is raised. Those that were cancelled, or could not
            be answered within their deadline any more, make room.
        workers: Threads that decode and run batches; 0 for one on each core, up to four.
    """

    max_batch: int = 8
    max_wait_ms: float = 0.0
    max_queue: int = 256
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_wait_ms", 0), ("max_queue", 1), ("workers", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"batching {name} is {getattr(self, name)}: it must be {least} or more")
