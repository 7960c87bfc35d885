"""The page as visitors meet it: `spi space` serves a policy, Chromium opens it, clicks and looks."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from policy_factory import make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gradio") is None, reason='needs Gradio: pip install -e ".[space]"'),
    pytest.mark.skipif(find_spec("selenium") is None, reason='needs selenium: pip install -e ".[slow]"'),
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Chromium: apt-get install chromium chromium-driver",
    ),
    pytest.mark.skipif(find_spec("bullet_safety_gym") is None, reason="needs the Bullet simulator"),
]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1400,2400"),
)
#: An episode with its pictures takes ten seconds on a quiet machine.
PATIENCE = 300


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where `spi space` serves a run's folder."""
    folder = tmp_path_factory.mktemp("space")
    make_run(folder / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "spi_diffusers", "space", str(folder / "run"), "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    found, end = f"http://127.0.0.1:{port}/", time.monotonic() + PATIENCE
    try:
        while True:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(found, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.5)
        yield found
        assert server.poll() is None, "it is still there"
        assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()
    finally:
        server.terminate()
        server.wait(30)


class Visitor:
    """A browser with a profile of its own, on the page."""

    def __init__(self, address: str, profile: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.get(address)
        self.until(lambda: "trained for OfflineBallCircle-v0" in self.text("#said"))

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        found = self.driver.find_elements("css selector", selector)
        return found[0].text if found else ""

    def until(self, holds) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE, 0.2, (StaleElementReferenceException,))
        waiting.until(lambda _: holds(), self.text("body")[-2000:])

    def press(self, selector: str, *keys: str) -> None:
        self.find(selector).send_keys(*keys)

    def number(self, name: str) -> float:
        return float(self.find(f"#{name} input[type=number]").get_attribute("value"))

    def source(self, selector: str) -> str:
        """The address of a picture or video; empty while there is none."""
        found = self.driver.find_elements("css selector", selector)
        return (found[0].get_attribute("src") or "") if found else ""

    def play(self) -> None:
        self.find("#play").click()

    def has_played(self) -> bool:
        return "Return" in self.text("#said")

    def tab(self, name: str) -> None:
        self.driver.find_element("xpath", f"//button[@role='tab'][normalize-space()='{name}']").click()

    def upload(self, file: Path) -> None:
        self.press("#upload input[type=file]", str(file))

    def messages(self) -> str:
        return self.text(".toast-wrap")

    def severe(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def visit(address):
    """Opens the page in a new browser."""
    opened = []
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profiles:

        def new_visitor() -> Visitor:
            opened.append(Visitor(address, f"{profiles}/{len(opened)}"))
            return opened[-1]

        yield new_visitor
        for visitor in opened:
            visitor.driver.quit()


def test_the_page_plays_and_shows_what_was_weighed(visit):
    visitor = visit()
    before = visitor.number("limit")
    assert before == 10, "the smallest limit of the results"
    visitor.press("#limit input[type=range]", "\ue014")  # the right arrow
    visitor.until(lambda: visitor.number("limit") == before + 1)
    visitor.play()
    visitor.until(visitor.has_played)
    assert "of 11: limit" in visitor.text("#said")
    visitor.until(lambda: ".mp4" in visitor.source("#replay video"))
    video = visitor.find("#replay video")
    visitor.until(lambda: visitor.driver.execute_script("return arguments[0].readyState", video) >= 2)
    assert visitor.driver.execute_script("return arguments[0].duration", video) == pytest.approx(8, abs=0.5)
    visitor.until(lambda: visitor.source("#candidates img"))
    first = visitor.source("#candidates img")
    visitor.press("#step input[type=range]", "\ue014")
    visitor.until(lambda: visitor.source("#candidates img") not in ("", first))
    assert visitor.source("#frontier img")
    assert visitor.severe() == []


def test_two_visitors_at_once_see_their_own_episodes(visit):
    one, other = visit(), visit()
    other.press("#limit input[type=range]", "\ue014")
    other.until(lambda: other.number("limit") == 11)
    one.play()
    other.play()
    for visitor, limit in ((one, 10), (other, 11)):
        visitor.until(visitor.has_played)
        assert f"of {limit}: limit" in visitor.text("#said")
    assert one.source("#replay video") != other.source("#replay video")


def test_a_broken_upload_is_a_message_and_good_data_is_trained_on_after_it(visit, tmp_path):
    broken, good = tmp_path / "broken.parquet", tmp_path / "log.csv"
    broken.write_bytes(b"PAR1 and no more")
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal():.3f},{rng.uniform(-1, 1):.3f},1,{row % 2},{row // 20}" for row in range(400)]
    good.write_text("\n".join(["observation_0,action_0,reward,cost,episode", *lines]))
    visitor = visit()
    visitor.tab("Your data")
    visitor.upload(broken)
    visitor.until(lambda: "broken.parquet" in visitor.messages())
    assert str(tmp_path) not in visitor.messages()
    visitor.driver.refresh()
    visitor.until(lambda: "trained for" in visitor.text("#said"))
    visitor.tab("Your data")
    visitor.upload(good)
    visitor.until(lambda: "20 episodes, 400 transitions" in visitor.text("#tables"))
    visitor.press("#updates input[type=range]", "\ue011")  # the Home key
    visitor.until(lambda: visitor.number("updates") == 100)
    visitor.find("#train").click()
    visitor.until(lambda: "What to expect, at a risk of 0.05" in visitor.text("#assessment"))
    assert "2 held-out episodes (40 steps) of log.csv" in visitor.text("#assessment")
    assert visitor.severe() == []
