"""Starting the processes of a training on several devices, and hearing from the first."""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edgetl.backbones import WeightsReport
from edgetl.errors import EdgetlError, InputError, InternalError
from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.job import Reporter
from edgetl.finetune.ranks import Ranks, joined
from edgetl.finetune.signals import STOP_SIGNALS, signals_restored

__all__ = ["launched", "node_rank"]

_PATIENCE_S = 20.0  # for processes to end when told to
_GRACE_S = 5.0  # for the first one's last words


def node_rank() -> int:
    """Returns this machine's number among ``--nodes``, from NODE_RANK.

    Raises:
        InputError: It is no number.
    """
    text = os.environ.get("NODE_RANK", "0")
    if not text.isdecimal():
        raise InputError(f'NODE_RANK is "{text}": it must be the number of this machine, from 0')
    return int(text)


def launched(work: Callable[[Ranks, Reporter], None], config: FinetuneConfig, reporter: Reporter) -> None:
    """Runs ``work`` in ``config.devices`` processes of this machine, and returns when all are done.

    Args:
        work: Can be pickled; called in each process with its place among them.
        config: Of devices and nodes.
        reporter: Hears what the first process says.

    Raises:
        InputError: There are not so many GPUs, or several machines do not know where to meet.
        EdgetlError: What the first process that failed raised.
    """
    _check(config)
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    with _meeting_point(config), signals_restored():
        ranks = range(node_rank() * config.devices, (node_rank() + 1) * config.devices)
        processes = [context.Process(target=_run, args=(rank, work, config, told)) for rank in ranks]
        for process in processes:
            process.start()

        def pass_on(number: int, _: Any) -> None:
            for process in processes:
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, number)

        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, pass_on)
        try:
            failure = _listen(processes, told, reporter)
        finally:
            _end(processes)
    if failure is not None:
        raise failure


def _check(config: FinetuneConfig) -> None:
    if torch.cuda.is_available() and config.devices > torch.cuda.device_count():
        raise InputError(f"--devices is {config.devices}, but there are {torch.cuda.device_count()} GPUs here")
    if node_rank() >= config.nodes:
        raise InputError(f"NODE_RANK is {node_rank()}: with --nodes {config.nodes} it must be below that")
    if config.nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise InputError(
            "--nodes needs MASTER_ADDR, MASTER_PORT (of the first machine) and NODE_RANK (0, 1, ...) on every machine, "
            "and the same command on each"
        )


@contextmanager
def _meeting_point(config: FinetuneConfig) -> Iterator[None]:
    """Names a free port of this machine where nothing else is said, for as long as the block lasts."""
    before = dict(os.environ)
    if config.nodes == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    if not torch.cuda.is_available():  # processes on one CPU share its cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.devices)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + _PATIENCE_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():  # waiting for the others within a library
            process.kill()


def _listen(processes: list[Any], told: Any, reporter: Reporter) -> BaseException | None:
    """Hands on what the first process says, until all are done or one has failed; returns why.

    Where one fails, others wait for it in vain; but the first one's own words, if it has any, say more.
    """
    failure: BaseException | None = None
    until = math.inf
    while time.monotonic() < until:
        try:
            kind, *rest = told.get(timeout=0.2)
        except queue.Empty:
            if all(not process.is_alive() for process in processes):
                break
        else:
            if kind != "failed":
                getattr(reporter, kind)(*rest)
                continue
            rank, error, text = rest
            if rank == 0 or failure is None:
                failure = error or InternalError(f"a training process failed:\n{text}")
            if rank == 0:
                break
        if any(process.exitcode for process in processes) or failure is not None:
            until = min(until, time.monotonic() + _GRACE_S)
    dead = next((process.exitcode for process in processes if process.exitcode), None)
    if failure is None and dead is not None:
        failure = InternalError(f"a training process ended with code {dead}")
    return failure


def _run(rank: int, work: Callable[[Ranks, Reporter], None], config: FinetuneConfig, told: Any) -> None:
    os.setsid()  # Ctrl-C comes from the parent, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with joined(rank, config.devices, config.nodes) as ranks:
            work(ranks, _Far(told, ranks.first))
    except BaseException as error:
        told.put(("failed", rank, error if isinstance(error, EdgetlError) else None, traceback.format_exc()))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Far:
    """A reporter in another process; those of others than the first are silent."""

    def __init__(self, told: Any, first: bool) -> None:
        self._told = told
        self._first = first

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        if self._first:
            self._told.put(("progress", stage, done, total, text))

    def note(self, text: str) -> None:
        if self._first:
            self._told.put(("note", text))

    def weights(self, report: WeightsReport) -> None:
        if self._first:
            self._told.put(("weights", report))
