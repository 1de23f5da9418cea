import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from doubles import Brighten, brightness, greys

from advjax import Linf
from advjax.data import Dataset
from advjax.evaluation import evaluate, robustness_curve
from advjax.evaluation.sections import accuracy_table, attack_gallery, curve_line
from advjax.report.charts import Chart, Line, number, ticks, training_charts
from advjax.report.page import Facts, Gallery, Picture, Row, Table, Text, write_report

VOID = {"meta", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Checks that tags nest, and collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.said = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture(scope="module")
def found():
    x = greys(0.1, 0.2, 0.3, 0.4, 0.45, 0.6)
    data = Dataset(x, [0, 0, 0, 0, 0, 0], ("dark <i>", "light"))
    attacks, one = {"b & c": Brighten(ball=Linf(0.15))}, jax.devices()[:1]
    key = jax.random.key(0)
    out = evaluate(brightness, data, attacks, key=key, keep_images=True, devices=one)
    curve = robustness_curve(
        brightness, data, attacks["b & c"], [0, 0.1, 0.2], key=key, devices=one
    )
    return data, out, curve


def test_a_report_is_one_well_formed_page_that_loads_nothing(found, tmp_path):
    data, out, curve = found
    chart = Chart("curve <x>", [curve_line("model & more", curve)], "eps", "accuracy, %", (0, 100))
    sections = [
        Text("One <script>alert(1)</script>.\n\nTwo.", "Head"),
        accuracy_table(out),
        Row([chart, chart]),
        attack_gallery(out, "b & c", data.x, data.classes),
        Facts({"a": 1, "deep": {"er": 0.1 + 0.2}}, "Settings"),
    ]
    write_report(tmp_path / "r.html", "Title & <more>", sections, "sub")
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    said = "".join(page.said)
    assert "<script" not in text and "One <script>alert(1)</script>." in said
    for needed in ("Title & <more>", "dark <i>", "model & more", "deep.er", "0.3", "✗ light"):
        assert needed in said
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "default-src 'none'" in text and "script-src" not in text
    assert "prefers-color-scheme: dark" in text
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_gallery_shows_the_attacked_and_marks_the_fooled(found):
    data, out, _ = found
    gallery = attack_gallery(out, "b & c", data.x, data.classes, n=4)
    (_, before), (name, change), (_, after) = gallery.rows
    assert len(before) == 4 and name == "perturbation × 2"
    assert [p.wrong for p in after] == [False, False, False, True]
    assert before[0].caption.startswith("dark <i>, ") and after[3].caption.startswith("light, ")
    np.testing.assert_allclose(change[0].image, 0.8, atol=1e-5)
    assert len(attack_gallery(out, "b & c", data.x, data.classes, n=99).rows[0][1]) == 5
    bare = evaluate(brightness, data, {"a": Brighten(ball=Linf(0.1))}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no images were kept"):
        attack_gallery(bare, "a", data.x, data.classes)


def test_small_pictures_are_enlarged_by_whole_numbers():
    html = Gallery([("row", [Picture(np.zeros((8, 6)), 'a "quote"')])]).html()
    assert 'width="72" height="96"' in html and "a &quot;quote&quot;" in html
    assert 'width="300" height="200"' in Gallery([("row", [Picture(np.zeros((200, 300)))])]).html()


def test_a_curve_is_drawn_where_its_numbers_are(found):
    *_, curve = found
    chart = Chart("c", [curve_line("m", curve)], "eps", "%", (0, 100))
    svg = chart.svg()
    points = re.search(r'<polyline class="line" points="([^"]*)"', svg)[1].split()
    x, y = np.array([p.split(",") for p in points], float).T
    np.testing.assert_allclose(x, [62, 340, 618], atol=0.1)
    shares = [a.value for a in curve.accuracy]
    np.testing.assert_allclose(y, 314 - 302 * np.array(shares), atol=0.1)
    band = re.search(r'<polygon class="band" points="([^"]*)"', svg)[1].split()
    assert len(band) == 6
    assert f"m: {100 * shares[1]:.4g} at 0.1 [" in svg


def test_broken_values_break_the_line_and_nothing_else():
    nan = float("nan")
    svg = Chart("c", [Line("m", [0, 1, 2, 3, 4], [1, 2, nan, 2, float("inf")])]).svg()
    assert "nan" not in svg and "inf" not in svg
    pieces = re.findall(r'<polyline class="line" points="([^"]*)"', svg)
    assert [len(piece.split()) for piece in pieces] == [2, 1]
    assert "no finite values" in Chart("c", [Line("m", [0], [nan])]).svg()
    assert "no finite values" in Chart("c", []).html()
    single = Chart("c", [Line("m", [3], [5])]).svg()
    assert "nan" not in single and "<circle" in single


def test_a_long_line_is_thinned_and_keeps_its_ends():
    n = 100_000
    svg = Chart("c", [Line("m", list(range(n)), list(range(n)))]).svg()
    points = re.search(r'points="([^"]*)"', svg)[1].split()
    assert len(svg) < 20_000 and points[0].startswith("62.0,") and points[-1].startswith("618.0,")


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 0.3, [0, 0.1, 0.2, 0.3]),
        (0.013, 0.019, [0.012, 0.014, 0.016, 0.018, 0.02]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (-1e-9, 1e-9, [-1e-9, -5e-10, 0, 5e-10, 1e-9]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, want):
    got = ticks(low, high)
    assert got[0] <= low <= high <= got[-1] and len(got) <= 8
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_numbers_are_short():
    assert [number(v) for v in (0.0, 0.05, 1200.0, 3e-5, 99.999)] == [
        "0", "0.05", "1200", "3e-05", "100",
    ]  # fmt: skip


def test_a_history_becomes_charts_of_loss_and_accuracy():
    history = [
        {"kind": "train", "step": 1, "seconds": 0.1, "loss": 2.0, "clean_accuracy": 0.2},
        {"kind": "train", "step": 2, "seconds": 0.2, "loss": 1.0, "clean_accuracy": 0.4, "lr": 0.1},
        {"kind": "evaluation", "step": 2, "clean": 0.5, "robust/pgd": 0.25, "note": "text"},
        {"kind": "evaluation", "step": 3, "validation/clean": 0.75, "validation/robust/pgd": 0.5},
    ]
    charts = training_charts(history)
    assert [chart.title for chart in charts] == ["Training loss", "Accuracy while training", "lr"]
    loss, accuracy, _ = charts
    assert [(line.name, list(line.x), list(line.y)) for line in loss.lines] == [
        ("loss", [1.0, 2.0], [2.0, 1.0])
    ]
    assert {line.name: list(line.y) for line in accuracy.lines} == {
        "training: clean accuracy": [20.0, 40.0],
        "test: clean": [50.0],
        "test: pgd": [25.0],
        "validation: clean": [75.0],
        "validation: pgd": [50.0],
    }
    assert training_charts([]) == []


def test_uneven_tables_and_lines_are_refused():
    with pytest.raises(ValueError, match="a row has 1 cells, the header 2"):
        Table(("a", "b"), [("x",)])
    with pytest.raises(ValueError, match="equal lengths"):
        Line("m", [1, 2], [1])
    with pytest.raises(ValueError, match="one interval per point"):
        Line("m", [1, 2], [1, 2], [1], [2])
