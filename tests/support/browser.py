"""A real browser without a window, spoken to in its own protocol over a pair of pipes."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

from tests.support.polling import eventually

NAMES = (
    "chromium-headless-shell", "chromium", "chromium-browser", "chrome-headless-shell",
    "google-chrome-stable", "google-chrome",
)  # fmt: skip
LACKS = "no Chromium is installed; `apt-get install chromium-headless-shell` is enough"
SECONDS = 60
"""For what a browser does at once where the machine has time for it."""

# It reads 3 and writes 4.
_LAUNCH = """
import os, sys
for given, high in ((int(sys.argv[1]), 63), (int(sys.argv[2]), 62)):
    os.dup2(given, high)  # out of the way of 3 and 4
for high, low in ((63, 3), (62, 4)):
    os.dup2(high, low)
    os.close(high)
os.execv(sys.argv[3], sys.argv[3:])
"""


def browser_path() -> str | None:
    """Return where a browser is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser process; its pages share nothing with those of another."""

    def __init__(self, path: str, folder: Path) -> None:
        """Start it; its files are in `folder`."""
        reading, theirs_out = os.pipe()
        theirs_in, writing = os.pipe()
        options = (
            "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox",
            "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "about:blank",
        )  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), path, *options],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._answers: BinaryIO = os.fdopen(reading, "rb", buffering=0)
        self._writing = writing
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        self._number = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str = "", /, **params: Any) -> dict[str, Any]:
        """Return what the browser answers to one command."""
        self._number += 1
        number = self._number
        answer: Future[dict[str, Any]] = Future()
        self._waiting[number] = answer
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        return answer.result(timeout=SECONDS)

    @contextlib.contextmanager
    def page(self) -> "Iterator[Page]":
        """Yield a page of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._listeners[attached["sessionId"]] = page.heard
        page.begin()
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            os.write(self._writing, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self._process.wait(timeout=SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            os.close(self._writing)
            self._answers.close()

    def _read(self) -> None:
        held = bytearray()
        while piece := self._answers.read(1 << 16):
            held += piece
            *messages, rest = held.split(b"\0")
            held = bytearray(rest)
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if waiting := self._waiting.pop(message.get("id", -1), None):
            if "error" in message:
                waiting.set_exception(AssertionError(message["error"]))
            else:
                waiting.set_result(message["result"])
        elif listener := self._listeners.get(message.get("sessionId", "")):
            listener(message["method"], message["params"])


class Page:
    """A page, used as people use it: by clicks, keys and drops."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        """What went wrong in the page: errors of scripts, and what a policy refused."""
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self.sent: list[str] = []
        """Bodies that are texts."""

    def call(self, method: str, /, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def begin(self) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def heard(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Log.entryAdded" and said["entry"]["source"] in ("security", "javascript"):
            self.complaints.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
            self.sent.append(said["request"].get("postData", ""))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """Return the value of an expression, or of what it promises."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression holds."""
        assert eventually(lambda: bool(self.js(f"Boolean({expression})")), SECONDS), (
            f"never: {expression}\n{self.complaints}\n{self.js('document.body.innerText')}"
        )

    def text(self, selector: str) -> str:
        """Return the text of an element as people see it; empty where there is none."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str, text: str = "") -> None:
        """Click the first element of `selector` with `text` in it, once it is there."""
        self.wait(f"Boolean({_element(selector, text)})")
        x, y = self._place(selector, text)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        """Write `text` in place of what is in a field."""
        self.wait(f"Boolean({_element(selector)})")
        self.js(
            f"(() => {{ const field = {_element(selector)}; field.focus(); field.select(); }})()"
        )
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.press("Delete", 46)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key; 2 as `modifiers` is Ctrl."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, modifiers=modifiers,
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )  # fmt: skip

    def drop(self, selector: str, path: Path) -> None:
        """Drag a file from the desktop over an element and let it go."""
        x, y = self._place(selector)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def colours(self, scheme: str) -> None:
        """Be `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path, *, is_whole: bool = False) -> None:
        """Write what is seen to a PNG file, or the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=is_whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _place(self, selector: str, text: str = "") -> tuple[float, float]:
        """Return the middle of an element, which is scrolled to."""
        place = self.js(
            f"(() => {{ const it = {_element(selector, text)};"
            " it.scrollIntoView({block: 'center'}); const box = it.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return place[0], place[1]


def _element(selector: str, text: str = "") -> str:
    """Return the expression for the first such element that is seen."""
    return (
        f"[...document.querySelectorAll({json.dumps(selector)})].find((each) =>"
        f" each.checkVisibility() && each.innerText.includes({json.dumps(text)}))"
    )
