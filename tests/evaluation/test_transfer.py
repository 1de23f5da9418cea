"""The transfer matrix: every cell by hand, what is asked of whom, and its picture."""

import json
import re
import xml.etree.ElementTree as ElementTree
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import Brighten, brightness, greys
from linear import linear

from advjax import FGSM, L2, PGD, Linf
from advjax.data import Dataset
from advjax.evaluation.transfer import transfer_matrix
from advjax.models.external import External
from advjax.report.heatmap import HeatMap
from advjax.report.page import write_report

X = greys(0.1, 0.2, 0.3, 0.4, 0.45, 0.7, 0.8, 0.6)
Y = np.array([0, 0, 0, 0, 0, 1, 1, 0])  # the last one is wrong when clean
ONE = jax.devices()[:1]
run = partial(transfer_matrix, devices=ONE)


def strict(x):
    """``brightness`` that calls less light enough: class 1 from 0.33 on."""
    return brightness(x + 0.17)


def on_host(x):
    mean = x.reshape(len(x), -1).mean(1)
    return np.stack([0.5 - mean, mean - 0.5], 1)


HOST = External(on_host, 2)


@pytest.fixture(scope="module")
def task():
    """Three linear models on 60 images; the second is near the first, the third is not."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(40, 6)).astype(np.float32)
    other = rng.normal(size=(40, 6)).astype(np.float32)
    near = weights + 0.2 * rng.normal(size=weights.shape).astype(np.float32)
    models = {
        name: jax.tree_util.Partial(linear, jnp.asarray(w))
        for name, w in (("first", weights), ("near", near), ("far", other))
    }
    x = rng.integers(0, 256, (60, 4, 5, 2), dtype=np.uint8)
    y = np.array(jnp.argmax(models["first"](x / np.float32(255)), -1))
    y[::10] = (y[::10] + 1) % 6
    return models, Dataset(x, y, tuple("abcdef"))


def test_cells_by_hand(key):
    models = {"half": brightness, "strict": strict}
    attack = Brighten(ball=Linf(0.15))
    found = run(models, attack, (X, Y), key=key, levels=None)
    assert found.sources == found.targets == ("half", "strict")
    # 0.4 and 0.45 are wrong for the strict one when clean already, and so is 0.6 for both.
    assert (found.accuracy("half").correct, found.accuracy("strict").correct) == (7, 5)
    for source in models:  # brightening does not depend on the source
        fooled, errors = found.fooled(source, "half"), found.errors(source, "half")
        assert (fooled.correct, fooled.total) == (2, 7)  # 0.4 and 0.45
        assert (errors.correct, errors.total) == (3, 8)
        fooled, errors = found.fooled(source, "strict"), found.errors(source, "strict")
        assert (fooled.correct, fooled.total) == (2, 5)  # 0.2 and 0.3
        assert (errors.correct, errors.total) == (5, 8)
    assert found.shares()[0, 1] == 2 / 5 and found.shares("errors")[1, 0] == 3 / 8
    low, high = found.fooled("half", "strict").low, found.fooled("half", "strict").high
    assert 0.1 < low < 0.4 < high < 0.8


def test_each_row_is_the_attack_on_its_source_as_bytes(task, key):
    models, data = task
    attack = FGSM(ball=Linf(0.08))
    found = run(models, attack, data, key=key)
    x = data.x / np.float32(255)
    for s, source in enumerate(models.values()):
        x_adv = np.asarray(attack(key, source, x, data.y))
        grown = x_adv > x
        cut = np.where(grown, np.floor(x_adv * 255 + 1e-3), np.ceil(x_adv * 255 - 1e-3))
        shown = (cut / 255).astype(np.float32)
        for t, target in enumerate(models.values()):
            np.testing.assert_array_equal(found.crafted[s, t], jnp.argmax(target(shown), -1))
            np.testing.assert_array_equal(found.clean[t], jnp.argmax(target(x), -1))
    shares = found.shares()
    # A model is fooled by its own images most, by a near model's more than by a far one's.
    assert shares[0, 0] > 0.5 and shares[1, 1] > shares[0, 1] > shares[2, 1]


def test_levels_decide_what_the_targets_see(key):
    """A change below half a byte's level is none in a file."""
    x, y = greys(102 / 255, 127.2 / 255), np.array([0, 0])
    for levels, wrong in ((None, 1), (256, 0)):
        found = run({"m": brightness}, Brighten(ball=Linf(0.002)), (x, y), key=key, levels=levels)
        assert found.errors("m", "m").correct == wrong
        assert found.about["invalid"] == {"m": 0}


def test_host_models_are_targets_and_no_sources(key):
    models = {"jax": brightness, "host": HOST}
    attack = Brighten(ball=Linf(0.15))
    found = transfer_matrix(models, attack, (X, Y), key=key)  # on all devices it would block
    assert found.sources == ("jax",) and found.targets == ("jax", "host")
    np.testing.assert_array_equal(found.crafted[0, 0], found.crafted[0, 1])
    own = transfer_matrix({"host": HOST}, None, (X, Y), key=key, sources={"host": (HOST, attack)})
    np.testing.assert_array_equal(own.crafted[0, 0], found.crafted[0, 1])
    with pytest.raises(ValueError, match="gradient"):
        run({"host": HOST}, attack, (X, Y), key=key)
    with pytest.raises(TypeError, match="no gradient"):
        run(models, FGSM(ball=Linf(0.1)), (X, Y), key=key, sources=["host"])


def test_sources_may_be_others_have_their_own_attack_or_be_images(key):
    sources = {
        "stranger": strict,
        "stronger": (strict, Brighten(ball=Linf(0.25))),
        "white": np.ones_like(X),
        "broken": np.full_like(X, np.nan),
    }
    found = run({"m": brightness}, Brighten(ball=Linf(0.15)), (X, Y), key=key, sources=sources)
    assert found.sources == tuple(sources) and found.targets == ("m",)
    counts = [found.fooled(name, "m").correct for name in sources]
    assert counts == [2, 3, 5, 0]
    # What is no image is judged as if it had not been changed: it fools nobody.
    assert found.about["invalid"] == {"stranger": 0, "stronger": 1, "white": 0, "broken": 8}


def test_batches_order_and_devices_change_nothing(task, key):
    models, data = task
    attack = PGD(ball=L2(0.3), steps=2)
    two = {name: models[name] for name in ("first", "near")}
    whole = transfer_matrix(two, attack, data, key=key)  # on all devices
    order = np.random.default_rng(0).permutation(60)[:23]
    part = run(two, attack, data.take(order), key=key, batch_size=8)
    np.testing.assert_array_equal(whole.crafted[:, :, order], part.crafted)
    np.testing.assert_array_equal(whole.ids[order], part.ids)


def test_a_target_that_is_never_right_has_an_empty_cell(key):
    opposite = lambda x: brightness(1 - x)
    found = run({"m": brightness, "o": opposite}, Brighten(ball=Linf(0.0)), (X[:5], Y[:5]), key=key)
    assert found.fooled("m", "o") is None and np.isnan(found.shares()[0, 1])
    assert found.errors("m", "o").value == 1
    assert "-" in found.table().splitlines()[3]
    assert found.to_dict()["cells"][1]["fooled"] is None


def test_tables_and_dictionaries_say_which_rate_they_show(key):
    models = {"half": brightness, "strict": strict}
    found = run(models, Brighten(ball=Linf(0.15)), (X, Y), key=key, levels=None)
    lines = found.table().splitlines()
    assert "right when clean" in lines[0] and lines[1].split()[-2:] == ["half", "strict"]
    assert lines[3].split() == ["half", "28.6", "40.0"]
    assert lines[-1].split() == ["clean", "accuracy", "87.5", "62.5"]
    errors = found.table("errors").splitlines()
    assert "all images" in errors[0] and errors[4].split() == ["strict", "37.5", "62.5"]
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["cells"][1] == {
        "source": "half",
        "target": "strict",
        "fooled": found.fooled("half", "strict").to_dict(),
        "errors": found.errors("half", "strict").to_dict(),
    }
    with pytest.raises(ValueError, match="fooled, errors"):
        found.table("success")
    with pytest.raises(KeyError, match="half, strict"):
        found.fooled("half", "third")


def test_wrong_arguments_are_refused(key):
    attack, models = Brighten(ball=Linf(0.1)), {"m": brightness}
    for given, settings, error, said in (
        ({}, {}, ValueError, "none"),
        (models, {"sources": ["n"]}, ValueError, "no model 'n'"),
        (models, {"sources": "m"}, TypeError, "list"),
        (models, {"sources": {"m": (brightness, None)}}, TypeError, "attack"),
        (models, {"sources": {"m": X[:3]}}, ValueError, "one per example"),
        (models, {"levels": 1}, ValueError, "levels"),
        (models, {"level": 1.5}, ValueError, "level"),
    ):
        with pytest.raises(error, match=said):
            run(given, attack, (X, Y), key=key, **settings)
    with pytest.raises(TypeError, match="attack"):
        run(models, None, (X, Y), key=key)


def test_the_heat_map_shows_every_number_once(tmp_path):
    values = np.array([[0.0, 12.34], [100.0, np.nan]])
    picture = HeatMap(
        title="T & <t>",
        rows=("a", "b<"),
        columns=("c", "d"),
        values=values,
        hints=[["a to c", "a to d"], ["b to c", "b to d"]],
        row_label="crafted on",
        column_label="judged by",
        footer=("clean", ["91.0", "92.0"]),
        note="Note.",
    )
    picture.save(tmp_path / "map.svg")
    root = ElementTree.parse(tmp_path / "map.svg").getroot()
    texts = [e.text for e in root.iter() if e.tag.endswith("text")]
    for said in ("0.0", "12.3", "100.0", "-", "a", "b<", "c", "d", "91.0", "crafted on"):
        assert texts.count(said) == 1, said
    cells = [e for e in root.iter() if e.get("class") == "cell"]
    assert [float(e.get("fill-opacity")) for e in cells] == pytest.approx(
        [0, 0.099, 0.8, 0], abs=1e-3
    )
    boxes = [tuple(float(e.get(k)) for k in ("x", "y", "width", "height")) for e in cells]
    assert len(set(boxes)) == 4
    _, _, wide, high = map(float, root.get("viewBox").split())
    assert all(x > 0 and y > 0 and x + w <= wide and y + h <= high for x, y, w, h in boxes)
    write_report(tmp_path / "page.html", "T", [picture])
    page = (tmp_path / "page.html").read_text()
    assert "T &amp; &lt;t&gt;" in page and re.search("<title>b to c</title>", page)


def test_a_matrix_draws_itself_with_counts_to_hover(key):
    found = run({"m": brightness}, Brighten(ball=Linf(0.15)), (X, Y), key=key, levels=None)
    drawn = found.heat_map().html()
    assert "m to m: 2 of 7, 28.6 %" in drawn and "28.6</text>" in drawn and "87.5" in drawn
    assert "m to m: 3 of 8" in found.heat_map("errors").html()
