"""The page of a sweep: its text without a browser, and what it does in a real one."""

import json
import math
import os
import random
import re
import select
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from advjax.sweeps import Cell, tabulate, write_page
from advjax.sweeps.page import _layout, lost

VOID = {"meta", "input"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "</script><img src=x onerror=hacked=1><!-- & \" ' \u2028"


def cell(place, status="done", metrics=None, reason="", **config):
    config = {"net": "plain", "eps": 0.1, "lr": 0.01, "seed": 0, "widths": [4, 8], **config}
    return Cell(f"cell{place}", place, config, status, reason, metrics or {}, seconds=1.5)


def grid(n=10_000, seed=0):
    """Cells of a grid of four axes, with every way to end."""
    draw, cells = random.Random(seed), []
    for place in range(n):
        setting = {
            "net": ("plain", "dense")[place % 2],
            "eps": (0.1, 0.2, 0.3)[place // 2 % 3],
            "lr": (1e-4, 1e-3, 1e-2)[place // 6 % 3],
            "seed": place // 18,
        }
        clean = 0.9 - setting["eps"] + 0.05 * draw.random()
        worst = clean * (0.4 + 0.2 * (place % 2)) + 0.01 * draw.random()
        found = {"best/clean": clean, "best/worst": worst, "best/robust/pgd": worst + 0.01}
        found |= {"last/loss": 2 - worst, "step": 4000}
        if setting["net"] == "dense" and setting["eps"] == 0.3:
            ended = ("ko", "ko", "failed", "waiting")[place % 36 // 9]
            found = {}
            reason = "" if ended == "waiting" else f"diverged at step {place % 3}"
            cells.append(cell(place, ended, found, reason, **setting))
        else:
            cells.append(cell(place, metrics=found, **setting))
    return cells


class Reader(HTMLParser):
    """Checks that tags nest; keeps attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.said, self.scripts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kept = self.scripts if self.open and self.open[-1] == "script" else self.said
        kept.append(data)


def test_the_page_is_one_file_that_loads_nothing(tmp_path):
    about = {"experiment": "a<b>.py", "summary": HOSTILE, "versions": {"advjax": "0.1.0"}}
    assert write_page(grid(90), tmp_path / "p.html", about=about) == tmp_path / "p.html"
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert [p.name for p in tmp_path.iterdir()] == ["p.html"]
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "onclick"}
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(|innerHTML", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    said = "".join(page.said)
    for needed in ("a<b>.py", HOSTILE, "90 cells", "75 done", "KO: diverged at step", "4x8"):
        assert needed in said
    assert len(page.scripts) == 2


def test_the_data_is_whole_and_cannot_leave_its_element(tmp_path):
    cells = [
        cell(0, metrics={HOSTILE: 0.123456789, "best/worst": math.nan, "n": 12345678}, net=HOSTILE),
        cell(1, metrics={HOSTILE: math.inf, "best/worst": 0.5}),
        cell(2, "failed", {"best/worst": 0.7}, HOSTILE, net=None),
    ]
    page = Reader(write_page(cells, tmp_path / "p.html").read_text(encoding="utf-8"))
    raw, script = page.scripts
    assert not set(raw) & set("<>&\u2028") and HOSTILE not in script
    data = json.loads(raw)
    assert [axis["name"] for axis in data["axes"]] == ["net"]
    assert data["axes"][0]["values"] == [HOSTILE, "plain", "none"]
    assert data["axes"][0]["cells"] == [0, 1, 2] and data["axes"][0]["numbers"] is None
    metrics = {metric["name"]: metric for metric in data["metrics"]}
    assert metrics[HOSTILE]["values"] == [0.1234568, None, None]
    assert metrics["best/worst"]["values"] == [None, 0.5, None] and metrics["best/worst"]["percent"]
    assert metrics["n"]["values"] == [12345678, None, None] and not metrics["n"]["percent"]
    assert data["reasons"][data["cells"]["reason"][2]] == HOSTILE
    assert data["metrics"][data["start"]["metric"]]["name"] == "best/worst"


def test_what_it_shows_first_is_the_table_unless_that_is_too_large(tmp_path):
    cells = grid(180)
    page = Reader(write_page(cells, tmp_path / "p.html").read_text(encoding="utf-8"))
    data, table = json.loads(page.scripts[0]), tabulate(cells)
    names = [axis["name"] for axis in data["axes"]]
    assert tuple(names[k] for k in data["start"]["rows"]) == table.row_axes
    assert (names[data["start"]["column"]],) == table.column_axes
    sampled = [
        {"name": name, "values": list(range(n)), "cells": [i % n for i in range(5000)]}
        for name, n in (("lr", 5000), ("width", 3), ("net", 2), ("dropout", 4000))
    ]
    assert _layout(sampled) == ([1], 2)
    assert _layout([]) == ([], -1)


def test_bad_input_leaves_the_page_as_it_was(tmp_path):
    path = write_page([], tmp_path / "p.html")
    before = path.read_text()
    with pytest.raises(ValueError, match="no cell has a metric accuracy; there are: best/clean"):
        write_page(grid(36), path, metric="accuracy")
    assert path.read_text() == before
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_page([], tmp_path / "none" / "p.html")


def test_reasons_are_counted():
    ended = [("ko", "a"), ("ko", "b"), ("done", ""), ("failed", "b"), ("ko", "b"), ("waiting", "")]
    cells = [cell(i, status, reason=reason) for i, (status, reason) in enumerate(ended)]
    assert lost(cells) == ["2 x KO: b", "1 x KO: a", "1 x failed: b"] and lost(cells[2:3]) == []


def test_a_page_is_written_without_jax(tmp_path):
    code = (
        "import sys; from advjax.sweeps import Cell, write_page; "
        "write_page([Cell('a', 0, {'lr': .1})], sys.argv[1]); "
        "print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "p.html")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# --- in a browser ---------------------------------------------------------------------------------


class Browser:
    """Headless Chromium, driven over its own pipe: no driver program and no package."""

    def __init__(self, program, folder):
        ours, theirs = os.pipe(), os.pipe()
        command = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        command += ["--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")  # it does not start as root otherwise
        # It reads from 3 and writes to 4, whichever numbers the pipes have here.
        ends = (
            "import fcntl, os, sys; high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) "
            "for n in sys.argv[1:3]]; os.dup2(high[0], 3); os.dup2(high[1], 4); "
            "os.execvp(sys.argv[3], sys.argv[3:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", ends, str(theirs[0]), str(ours[1]), *command],
            pass_fds=(theirs[0], ours[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs[0])
        os.close(ours[1])
        self.reads, self.writes = ours[0], theirs[1]
        self.rest, self.sent, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=1300, height=1000, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def receive(self):
        while b"\0" not in self.rest:
            assert select.select([self.reads], [], [], 60)[0], "the browser says nothing"
            new = os.read(self.reads, 1 << 16)
            assert new, "the browser has ended"
            self.rest += new
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path):
        """Loads a page; seconds until it is drawn."""
        self.events.clear()
        began = time.monotonic()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        self.drawn()
        return time.monotonic() - began

    def drawn(self):
        self.run("new Promise((d) => requestAnimationFrame(() => requestAnimationFrame(d)))")

    def run(self, code):
        answer = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, code):
        """With the mouse, in the middle of the element."""
        x, y = self.run(
            f"(() => {{ const e = {code}; e.scrollIntoView({{ block: 'center' }}); "
            "const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def mouse(self, kind, x, y):
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def choose(self, selector, text):
        """An entry of a chooser, by its text."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            f"e.value = [...e.options].find((o) => o.text === {json.dumps(text)}).value; "
            "e.dispatchEvent(new Event('change')); })()"
        )

    def texts(self, selector):
        wanted = json.dumps(selector)
        return self.run(f"[...document.querySelectorAll({wanted})].map((e) => e.textContent)")

    def column(self, name):
        """What a column of the table of all cells shows."""
        titles = self.texts("#cells thead th")
        return self.texts(f"#cells tbody td:nth-child({titles.index(name) + 1})")

    def errors(self):
        return [e for e in self.events if e.get("method") == "Runtime.exceptionThrown"]

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.reads)
        os.close(self.writes)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"NO BROWSER: the page is not tried out; looked for {', '.join(NAMES)}")
    made = Browser(program, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


in_browser = pytest.mark.xdist_group("browser")


@in_browser
def test_ten_thousand_cells_open_in_two_seconds(browser, tmp_path):
    path = write_page(grid(), tmp_path / "p.html")
    seconds = sorted(browser.open(path) for _ in range(3))
    print(f"10,000 cells, {path.stat().st_size / 1e6:.1f} MB: opened in {seconds} s")
    assert browser.texts("#count") == ["10,000 cells"] and not browser.errors()
    assert len(browser.texts("#cells tbody tr")) == 50
    assert browser.run("document.querySelectorAll('*').length") < 10_000
    assert seconds[0] < 5  # 2 on a machine that does nothing else


@in_browser
def test_the_means_are_those_of_tabulate(browser, tmp_path):
    cells = grid(90)
    browser.open(write_page(cells, tmp_path / "p.html"))

    def check(metric, rows, columns):
        table = tabulate(cells, metric, rows=rows, columns=columns)
        shown = browser.run(
            "[...document.querySelectorAll('#pivot tbody tr')].map((r) => "
            "[...r.cells].map((c) => c.textContent))"
        )
        # The page keeps rows with the same first axis together; tabulate has the grid's order.
        lines = [[c.replace("+-", "±") for c in line] for line in table.lines()]
        assert sorted(shown) == sorted(lines)
        assert browser.texts("#over")[0].startswith(metric)

    check("best/worst", ["net", "eps"], ["lr"])
    assert len(browser.texts("td.ko")) and len(browser.texts("td.failed, td.waiting"))
    browser.choose("#metric", "last/loss")
    check("last/loss", ["net", "eps"], ["lr"])
    browser.choose("#column", "eps")
    check("last/loss", ["net"], ["eps"])
    browser.click("document.querySelector('#rows input[data-axis=seed]')")
    check("last/loss", ["net", "seed"], ["eps"])
    browser.choose("#column", "none")
    browser.choose("#metric", "best/clean")
    check("best/clean", ["net", "seed"], [])
    assert [line.split()[0] for line in browser.texts("#pivot tbody th")][::2][:2] == ["plain"] * 2
    assert not browser.errors()


@in_browser
def test_cells_are_sorted_filtered_and_paged(browser, tmp_path):
    cells = grid(180)
    browser.open(write_page(cells, tmp_path / "p.html"))
    header = (
        "[...document.querySelectorAll('#cells th button')].find((b) => b.textContent === '{}')"
    )
    browser.click(header.format("best/worst, %"))
    known = sorted(c.metrics["best/worst"] for c in cells if c.metrics)
    assert browser.column("best/worst, %") == [f"{100 * v:.1f}" for v in known[:50]]
    browser.run("document.activeElement.click()")  # as Enter does
    assert browser.column("best/worst, %") == [f"{100 * v:.1f}" for v in known[:-51:-1]]
    assert browser.texts("#cells th[aria-sort=descending]") == ["best/worst, %"]
    for _ in range(3):
        browser.click("document.getElementById('next')")
    assert browser.texts("#page") == ["151 to 180 of 180 cells"]
    assert browser.column("best/worst, %")[-1] == "–"  # without a number: last, either way

    browser.choose("#filters [data-axis=eps]", "0.3")
    browser.choose("#filters [data-axis=status]", "KO")
    found = [c for c in cells if c.config["eps"] == 0.3 and c.status == "ko"]
    assert sorted(browser.column("cell")) == sorted(c.name for c in found)
    assert browser.texts("#count") == [f"{len(found)} of 180 cells"]
    assert set(browser.texts("#pivot td")) == {"KO"}  # the charts and means are of the same cells
    browser.click("document.getElementById('find')")
    browser.call("Input.insertText", text="STEP lr=0.001")
    time.sleep(0.3)
    left = [c for c in found if c.config["lr"] == 0.001]
    assert left and sorted(browser.column("cell")) == sorted(c.name for c in left)
    browser.click("document.getElementById('all')")
    assert browser.texts("#count") == ["180 cells"] and not browser.errors()


@in_browser
def test_charts_follow_the_metric_and_tell_configurations(browser, tmp_path):
    cells = grid(90)
    browser.open(write_page(cells, tmp_path / "p.html"))
    assert set(browser.texts("#effects h3")) == {"net", "eps", "lr", "seed"}
    numbers = [c.metrics["best/worst"] for c in cells if c.metrics and c.config["eps"] == 0.2]
    mean = sum(numbers) / len(numbers)
    error = math.sqrt(sum((v - mean) ** 2 for v in numbers) / (len(numbers) - 1) / len(numbers))
    said = f"eps 0.2: {100 * mean:.1f} ± {100 * error:.1f} ({len(numbers)} cells)"
    assert said in browser.texts("#effects title")
    browser.choose("#metric", "last/loss")
    assert "eps 0.2: 1." in " ".join(browser.texts("#effects title"))
    assert browser.texts(".of") == ["last/loss"] * 3

    browser.run("document.querySelector('#scatter svg').focus()")
    browser.key("End")
    best = max((c for c in cells if c.metrics), key=lambda c: c.metrics["best/clean"])
    told = browser.texts("#tip div")
    assert told[1] == f"best/clean, %: {100 * best.metrics['best/clean']:.1f}"
    assert told[2:] == [f"{n} {best.config[n]:g}" if n != "net" else f"net {best.config[n]}"
                        for n in ("net", "eps", "lr", "seed")]  # fmt: skip
    browser.key("Escape")
    assert browser.run("document.getElementById('tip').hidden")

    x, y, width, height = browser.run(
        "(() => { const e = document.querySelector('#parallel svg'); "
        "e.scrollIntoView({ block: 'center' }); const r = e.getBoundingClientRect(); "
        "return [r.x, r.y, r.width, r.height]; })()"
    )
    for share in range(20, 90):  # down the middle: some line is met
        browser.mouse("mouseMoved", x + width / 2, y + height * share / 100)
        if not browser.run("document.getElementById('tip').hidden"):
            break
    assert any(line.startswith("eps 0.") for line in browser.texts("#tip div"))
    assert not browser.errors()


@in_browser
def test_hostile_names_and_odd_sweeps_are_shown(browser, tmp_path):
    cells = [cell(i, metrics={HOSTILE: i, "clean": 1, "worst": 0}, net=f"{i}{HOSTILE}")
             for i in range(3)]  # fmt: skip
    cells.append(cell(3, "failed", reason=HOSTILE))
    browser.open(write_page(cells, tmp_path / "p.html", metric=HOSTILE))
    assert browser.run("typeof hacked") == "undefined"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.column("reason")[3] == HOSTILE and HOSTILE in browser.texts("#metric option")
    for few in ([], [cell(0)], [cell(0, "waiting"), cell(1, "running", seed=1)]):
        browser.open(write_page(few, tmp_path / "p.html"))
        assert len(browser.texts("#cells tbody tr")) == len(few)
        assert not browser.errors()
    draw = random.Random(0)
    sampled = [cell(i, metrics={"loss": draw.random()}, lr=10 ** draw.uniform(-5, -1), seed=i)
               for i in range(400)]  # fmt: skip
    browser.open(write_page(sampled, tmp_path / "p.html"))
    choices = browser.texts("#filters [data-axis=lr] option")
    assert len(choices) == 5 and " to " in choices[1]
    browser.choose("#filters [data-axis=lr]", choices[1])
    assert browser.texts("#count") == ["100 of 400 cells"] and not browser.errors()
