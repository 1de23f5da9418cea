"""Stores what every attack of the table finds, and what three short trainings end at, to the bit.

Before and after a change that should leave results alone, on one machine:

    python tests/contract/records.py before.npz
    python tests/contract/records.py after.npz --against before.npz

Prints every array that differs, by how much, and ends with 1 if there is one.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from linear import linear  # noqa: E402
from test_attacks import ATTACKS  # noqa: E402

from advjax import (  # noqa: E402
    FGSM,
    PGD,
    TRADES,
    Classifier,
    Linf,
    Madry,
    Record,
    Standard,
    Training,
    create,
    fit,
    init,
    load,
)

FIELDS = [field.name for field in dataclasses.fields(Record)]


def models():
    """Name to model and images: a linear one, and a convolutional network of random weights."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(24, 5)), jnp.float32)
    x = jnp.asarray(rng.uniform(0.1, 0.9, size=(8, 4, 3, 2)), jnp.float32)
    yield "linear", jax.tree_util.Partial(linear, weights), x
    network = create("lenet5", filters=(4, 8), width=16, classes=5)
    variables = init(network, jax.random.key(0), (8, 8, 1))
    images = jnp.asarray(load("digits", "test").x[:16] / np.float32(255))
    yield "convolutional", Classifier(network, variables), images


def records(only):
    for kind, model, x in models():
        y = jnp.argmax(model(x), axis=1).astype(jnp.int32)
        for name, make in ATTACKS.items():
            if not any(word in name for word in only):
                continue
            if name == "patch" and kind == "convolutional":  # its pixels have two channels
                continue
            record = make().run(jax.random.key(7), model, x, y)
            for field in FIELDS:
                yield f"{kind}/{name}/{field}", np.asarray(getattr(record, field))
            print(f"{kind}/{name}", file=sys.stderr)


def trainings():
    pgd = PGD(ball=Linf(0.1), steps=3, best=False)
    fast = FGSM(ball=Linf(0.1), step_size=0.12, random_start=True)
    for objective in (Standard(), Madry(fast), TRADES(pgd, beta=3.0)):
        training = Training(
            module=create("lenet5", filters=(4, 8), width=16),
            objective=objective,
            optimizer=optax.adam(3e-3),
            train=load("digits"),
            steps=30,
            batch_size=32,
        )
        with tempfile.TemporaryDirectory() as folder:
            model = fit(training, Path(folder) / "run", devices=jax.local_devices()[:1]).last.model
        name = type(objective).__name__
        for i, leaf in enumerate(jax.tree.leaves(model)):
            yield f"training/{name}/{i}", np.asarray(leaf)
        print(f"training/{name}", file=sys.stderr)


def differences(found, before):
    for name in sorted(found.keys() | before.keys()):
        if name not in found or name not in before:
            yield f"{name}: only {'after' if name in found else 'before'}"
            continue
        a, b = before[name], found[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            yield f"{name}: {a.dtype}{a.shape} -> {b.dtype}{b.shape}"
        elif a.tobytes() != b.tobytes():
            gap = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            yield f"{name}: differs by up to {gap:.3g} in {(a != b).sum()} of {a.size}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="rows with one of these in the name"
    )
    options = parser.parse_args()
    found = dict(records(options.only))
    if "" in options.only or "training" in options.only:
        found |= dict(trainings())
    np.savez_compressed(options.out, **found)
    print(f"{len(found)} arrays in {options.out}")
    if options.against is None:
        return 0
    with np.load(options.against) as stored:
        before = dict(stored.items())
    if "" not in options.only:
        before = {name: before[name] for name in found.keys() & before.keys()}
    told = list(differences(found, before))
    print("\n".join(told) or f"every array is bit-identical to {options.against}")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
