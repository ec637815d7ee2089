"""A headless Chromium, driven over its remote debugging pipe: what a page does when a reader opens it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

_TIMEOUT_S = 30.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
_PROBE = """(() => {
  const root = document.documentElement;
  return {
    title: document.title,
    scheme: matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light',
    paper: getComputedStyle(document.body).backgroundColor,
    overflow: root.scrollWidth - root.clientWidth,
    wide: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
      && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 120)),
    broken: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.alt),
    images: document.images.length,
    charts: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width),
    clipped: [...document.querySelectorAll('svg text')].filter(t => {
      const own = t.getBoundingClientRect(), all = t.closest('svg').getBoundingClientRect();
      return own.right > all.right + 2 || own.left < all.left - 2;
    }).map(t => t.textContent),
    ids: (ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id)),
    scripts: document.scripts.length,
    handlers: [...document.querySelectorAll('*')].filter(
      e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
  };
})()"""


@dataclass
class Seen:
    """What a page did: its requests beyond its own file, its errors, and what `_PROBE` found."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    found: dict = field(default_factory=dict)


class Browser:
    """One Chromium; a context manager."""

    def __init__(self, profile: Path) -> None:
        there, self._write = os.pipe()
        self._read, back = os.pipe()
        flags = " ".join((*_FLAGS, f"--user-data-dir='{profile}'"))
        # it reads commands from 3 and writes answers to 4
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {CHROMIUM} {flags} about:blank 3<&{there} 4>&{back}"],
            pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._buffer = b""
        self._number = 0
        self._events: list[dict] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        with contextlib.suppress(OSError, TimeoutError):
            self.call("Browser.close")
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def call(self, method: str, **params: object) -> dict:
        """Sends a command and returns its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._events.append(answer)

    def _next(self) -> dict:
        deadline = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise OSError("Chromium ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def look(self, page: Path, width: int, scheme: str, *, opened: bool = True, shot: Path | None = None) -> Seen:
        """Opens a page at a width in a colour scheme, and returns what it did."""
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        if opened:  # what is folded is part of the page
            self._evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        seen = Seen(found=self._evaluate(_PROBE))
        if shot is not None:
            self._shoot(shot, width)
        for event in self._events:
            self._sort(event, page.as_uri(), seen)
        return seen

    def _evaluate(self, expression: str) -> dict:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value", {})

    def _shoot(self, path: Path, width: int) -> None:
        height = self._evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    @staticmethod
    def _sort(event: dict, own: str, seen: Seen) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url != own and not url.startswith("data:"):
                seen.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            seen.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            seen.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            seen.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
