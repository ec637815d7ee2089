"""What runs on a board while it is measured. Sent over the connection, standard library alone, Python 3.6 or newer.

It makes a folder, tells about the machine, waits for a job, runs it, and removes the folder whatever happens: when the
job is done, when the connection breaks (its standard input ends), when it is told to end. Lines on standard output
are JSON objects.
"""

import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["Keeper", "main"]

_HEARTBEAT_S = 5


class Keeper:
    """Owns the folder and the job's processes."""

    def __init__(self, parent: Any) -> None:
        place = str(Path(parent).expanduser()) if parent else None
        self.folder = Path(tempfile.mkdtemp(prefix="edgetl-", dir=place))
        self.child: Any = None
        self.speaking = threading.Lock()
        self.working = threading.Lock()  # whoever writes into the folder, or starts a process, holds it
        self.ended = threading.Event()

    def end(self, *_: Any) -> None:
        """Stops the job with all its children, and removes the folder."""
        self.ended.set()
        if self.child is not None:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)  # also where it was killed: its children may live
            except OSError:
                pass
        with self.working:
            for _attempt in range(20):  # a dying process may still write
                shutil.rmtree(str(self.folder), ignore_errors=True)
                if not self.folder.exists():
                    break
                time.sleep(0.1)
        os._exit(0)

    def say(self, **what: Any) -> None:
        """Writes one line; nobody to hear it is the end."""
        try:
            with self.speaking:
                sys.stdout.write(json.dumps(what) + "\n")
                sys.stdout.flush()
        except OSError:
            self.end()

    def beat(self) -> None:
        """Shows that this side is alive."""
        while not self.ended.wait(_HEARTBEAT_S):
            self.say(alive=True)

    def run(self, job: Any) -> None:
        """Does the job; whatever goes wrong is told, or home would wait for ever."""
        try:
            self.say(exit=self.work(job))
        except Exception as error:
            self.say(line="edgetl: the board: {}".format(error))
            self.say(exit=2)

    def work(self, job: Any) -> int:
        """Unpacks what was brought and runs a command, whose standard error goes home line by line."""
        site = str(self.folder / "site")
        with tarfile.open(str(self.folder / job["luggage"])) as archive:
            for member in archive:
                self.unless_over(archive.extract, member, str(self.folder))
        for wheel in job["wheels"]:
            with zipfile.ZipFile(str(self.folder / wheel)) as archive:
                for name in archive.namelist():
                    self.unless_over(archive.extract, name, site)
        environment = dict(os.environ, PYTHONPATH=site, PYTHONIOENCODING="utf-8")
        for name in ("EDGETL_CACHE", "XDG_CACHE_HOME", "TMPDIR"):
            environment[name] = str(self.folder)
        self.unless_over(self.start, job["arguments"], environment)
        for line in self.child.stderr:
            self.say(line=line.decode("utf-8", "replace").rstrip())
        return int(self.child.wait())

    def unless_over(self, step: Any, *arguments: Any) -> None:
        """Takes one step that would leave something behind."""
        with self.working:
            if self.ended.is_set():
                raise SystemExit
            step(*arguments)

    def start(self, arguments: Any, environment: Any) -> None:
        """Starts the job in a process group of its own."""
        self.child = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=str(self.folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def listen(self) -> None:
        """Takes one job, and ends where standard input ends."""
        for line in sys.stdin:
            threading.Thread(target=self.run, args=(json.loads(line),), daemon=True).start()
        self.end()

    def facts(self) -> Any:
        """Returns what a wheelhouse depends on."""
        modules = ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda")
        return {
            "folder": str(self.folder),
            "python": list(sys.version_info[:3]),
            "machine": platform.machine(),
            "libc": list(platform.libc_ver()),
            "free_bytes": shutil.disk_usage(str(self.folder)).free,
            "has": [name for name in modules if importlib.util.find_spec(name) is not None],
        }


def main(parent: Any) -> None:
    """Runs until the connection ends."""
    try:
        keeper = Keeper(parent)
    except OSError as error:
        sys.exit("the folder for temporary files cannot be used ({}): folder: in boards.yaml".format(error))
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.end)
    threading.Thread(target=keeper.beat, daemon=True).start()
    keeper.say(**keeper.facts())
    keeper.listen()
