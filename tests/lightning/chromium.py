"""A page in headless Chromium, driven over the DevTools protocol's pipe: no driver, no WebSocket."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """The Chromium of this machine; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    In conditions `deep(selector)` finds elements in shadow roots and frames too, `shown(element)` is all its text.
    """

    DEEP = """
        const deep = (selector, root = document) => {
            const found = [...root.querySelectorAll(selector)];
            for (const element of root.querySelectorAll('*')) {
                if (element.shadowRoot) found.push(...deep(selector, element.shadowRoot));
                if (element.tagName === 'IFRAME' && element.contentDocument)
                    found.push(...deep(selector, element.contentDocument));
            }
            return found;
        };
        const shown = (element) => [...element.childNodes, ...(element.shadowRoot ? element.shadowRoot.childNodes : [])]
            .map(node => node.nodeType === 3 ? node.textContent : node.nodeType !== 1 ? ''
                : ['STYLE', 'SCRIPT', 'TEMPLATE', 'DOM-MODULE'].includes(node.tagName) ? '' : shown(node)).join(' ');
    """

    def __init__(self, chromium: str, profile: Path, *, width: int = 1400, height: int = 1200) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def hand_over() -> None:  # in the child: DevTools reads file 3 and writes file 4
            os.dup2(to_browser, 103)
            os.dup2(from_browser, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._browser = subprocess.Popen(
            [
                chromium,
                "--headless=new",
                "--no-sandbox",  # of use as root, in a container
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=hand_over,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(to_browser)
        os.close(from_browser)
        self._messages = os.fdopen(self._read, "rb")
        self._number = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.resize(width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._browser.terminate()
        self._browser.wait(20)
        os.close(self._write)
        self._messages.close()

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)

    def go(self, url: str) -> None:
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, within_s: float = 60.0) -> None:
        """Until the JavaScript expression `condition` holds in the page."""
        script = f"""new Promise((resolve, reject) => {{
            {self.DEEP}
            const end = Date.now() + {1000 * within_s};
            const look = () => {{
                let holds = false;
                try {{ holds = {condition}; }} catch (error) {{ holds = false; }}
                if (holds) resolve(true);
                else if (Date.now() > end) reject(new Error('not within {within_s:g} s: ' + {json.dumps(condition)}));
                else setTimeout(look, 100);
            }};
            look();
        }})"""
        self.evaluate(script)

    def texts(self, selector: str) -> list[str]:
        """What the elements of `selector` show, wherever they are."""
        return self.evaluate(f"(() => {{ {self.DEEP} return deep({json.dumps(selector)}).map(shown); }})()")

    def save(self, path: Path) -> None:
        """The page as it is seen, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> bytes:
        parts: list[bytes] = []
        while (part := self._messages.read(1)) not in (b"\0", b""):
            parts.append(part)
        assert parts, "Chromium has ended"
        return b"".join(parts)
