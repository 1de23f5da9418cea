"""The example of a new defence, and the page that goes through its file."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from advjax.answers import example_keys
from advjax.evaluation import Accuracy
from advjax.experiment import load_experiment

ROOT = Path(__file__).parents[2]
FILE, PAGE = ROOT / "experiments" / "prototype_defence.py", ROOT / "docs" / "new_defence.md"


def module():
    load_experiment(FILE)
    return sys.modules["advjax_experiment_prototype_defence"]


def test_the_pages_code_is_the_files():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    lines = [line.strip() for line in FILE.read_text().splitlines() if line.strip()]
    text = "\n".join(lines)
    for block in blocks:
        for part in block.split("...\n"):  # what is left out
            wanted = "\n".join(line.strip() for line in part.splitlines() if line.strip())
            assert wanted in text, wanted
    assert figures(FILE.read_text()) == figures(PAGE.read_text())


def figures(text):
    """The measured lines, ``name  numbers``."""
    lines = r"^ *((?:clean|worst case|PGD|Auto|transfer|Square|APGD).*\d)$"
    return re.findall(lines, text, re.MULTILINE)


def test_the_defence_has_two_gradients_and_one_answer():
    defence = module().RandomGrid(lambda x: jnp.sum(x, axis=(1, 2, 3))[:, None] * jnp.arange(3.0))
    x = jax.random.uniform(jax.random.key(1), (4, 5, 5, 1))
    keys = example_keys(jax.random.key(0), 4)
    knowing = defence.adaptive()
    np.testing.assert_allclose(defence(x, key=keys), knowing(x, key=keys), rtol=1e-6)
    slope = lambda model: jax.grad(lambda x: model(x, key=keys)[:, 1].sum())(x)
    assert not slope(defence).any() and (slope(knowing) == 1).all()
    many = jax.vmap(defence.round, (0, None))(example_keys(jax.random.key(2), 4000), x[0])
    assert np.abs(many - x[0]).max() <= 0.2 + 1e-6  # half the widest spacing
    np.testing.assert_allclose(many.mean(axis=0), x[0], atol=0.01)


def test_signs_of_masking_are_named():
    attacked = np.ones(4, bool)
    result = SimpleNamespace(attacked=attacked, zero_gradient=np.array([0, 3, 40, 40]))
    robust = {"PGD-40": Accuracy(90, 100), "PGD-40 at eps 1": Accuracy(80, 100)}
    found = SimpleNamespace(attacks={"PGD-40": result}, robust=robust)
    signs = module().masking_signs(found, Accuracy(20, 100))
    assert [sign.split(" ")[0] for sign in signs] == ["no", "80.0", "images"]
    result.zero_gradient[:] = 0
    robust["PGD-40 at eps 1"] = Accuracy(0, 100)
    assert module().masking_signs(found, Accuracy(95, 100)) == []
