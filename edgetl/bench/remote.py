"""Benchmarks on boards that are reached by SSH: everything they need is brought, and nothing is left behind.

Each board gets a folder of its own for as long as the connection lives; a keeper (`edgetl.bench.keeper`) runs the
benchmark there and removes the folder whatever happens. Boards run in parallel, and one that is lost costs its own
result alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edgetl.bench.boards import Board
from edgetl.bench.connection import connected, kept, printable
from edgetl.bench.luggage import RESULT, Job, pack
from edgetl.errors import EdgetlError, EngineError, require

__all__ = ["Outcome", "bench_on_boards"]


@dataclass(frozen=True)
class Outcome:
    """What became of one board: a result as JSON, or why there is none."""

    board: Board
    result: dict[str, Any] | None = None
    problem: str | None = None


def bench_on_boards(boards: Sequence[Board], job: Job, *, say: Callable[[str, str], None]) -> list[Outcome]:
    """Runs ``edgetl bench`` on every board at once.

    Args:
        boards: Where.
        job: What.
        say: Called with (board's name, line) from several threads.

    Returns:
        An outcome for each board, in their order; a board that fails stops no other.

    Raises:
        MissingExtraError: paramiko is not installed.
    """
    require("paramiko", "remote")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it writes tracebacks of what is raised anyway

    clients: list[Any] = []

    def one(board: Board) -> Outcome:
        try:
            return Outcome(board, result=_bench_on(board, job, clients, lambda line: say(board.name, line)))
        except EdgetlError as error:
            return Outcome(board, problem=printable(str(error)))

    with ThreadPoolExecutor(len(boards)) as pool:
        try:
            return list(pool.map(one, boards))
        except BaseException:  # Ctrl-C: every keeper ends when its connection does
            for client in clients:
                client.close()
            raise


def _bench_on(board: Board, job: Job, clients: list[Any], say: Callable[[str], None]) -> dict[str, Any]:
    with connected(board) as client, kept(client, board) as session:
        clients.append(client)
        facts = session.facts
        say(f"Python {'.'.join(map(str, facts['python']))} on {facts['machine']}, in {facts['folder']}")
        luggage = pack(job, facts)
        size = sum(luggage.sizes)
        if size * 4 > facts["free_bytes"]:  # packed, unpacked twice, and what is built there
            raise EngineError(
                f"{facts['folder']}: {size * 4 / 1e6:.0f} MB are needed, {facts['free_bytes'] / 1e6:.0f} MB are free: "
                "name another place as folder: in boards.yaml"
            )
        say(f"copying {size / 1e6:.0f} MB")
        session.upload(luggage.files)
        session.run(luggage.command, luggage.wheels, say)
        return luggage.at_home(session.fetch(RESULT), board.name, facts["folder"])
