"""A real Chromium with one page in it, for the tests of pages.

Debian's ``chromium`` and ``chromium-driver`` are driven through selenium; axe, the accessibility checker, comes in the
package ``axe-core-python``.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
TAB, ENTER, ESCAPE, RIGHT, DOWN, END = "\ue004", "\ue007", "\ue00c", "\ue014", "\ue015", "\ue010"


def missing() -> str | None:
    """What is not here of what these tests need."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt-get install chromium chromium-driver)"
    for package, name in (("selenium", "selenium"), ("axe_core_python", "axe-core-python")):
        if importlib.util.find_spec(package) is None:
            return f"{name} is not installed (pip install {name})"
    return None


class Browser:
    """A Chromium with one page in it."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for switch in (*SWITCHES, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_script_timeout(60)
        self.folder = folder

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def open(self, page: str, *, width: int = 1280, dark: bool = False) -> Browser:
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command(
            "Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        file = self.folder / "page.html"
        file.write_text(page, encoding="utf-8")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(file.as_uri())
        return self

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        """Keys for whatever has the focus."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self) -> str:
        return str(self.run("const e = document.activeElement; return e.getAttribute('href') || e.id || e.textContent"))

    def rows(self) -> list[list[str]]:
        """The cells of the rows that are to be seen, in their order."""
        return self.run(  # type: ignore[no-any-return]
            "return Array.from(document.querySelectorAll('#rows tbody tr'))"
            ".filter((row) => row.checkVisibility())"
            ".map((row) => Array.from(row.cells, (cell) => cell.textContent.trim().replace(/\\s+/g, ' ')))"
        )

    def column(self, index: int) -> list[str]:
        return [row[index] for row in self.rows()]

    def shown(self) -> str:
        return str(self.find("#shown").text)

    def complaints(self) -> list[str]:
        """What the browser's console says, and which addresses other than the page's own were asked for."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert any(url.startswith("file:") for url in asked), "requests are not being watched"
        own = (self.folder / "page.html").as_uri()
        return said + [url for url in asked if url.split("#")[0] != own and not url.startswith("data:")]

    def axe(self) -> list[str]:
        """What axe finds of serious or critical impact."""
        import axe_core_python

        self.run((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then(done, (error) => done(String(error)))"
        )
        assert isinstance(found, dict), found
        assert len(found["passes"]) > 15
        return [
            f"{one['id']}: {one['help']}: {node['html'][:200]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
