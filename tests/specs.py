"""What is written as a spec comes back the same, to the bit."""

import jax
import numpy as np

from advjax.spec import from_json, to_json


def same(a, b):
    """Whether two objects have the same structure and the same bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    bits = lambda x: (x.dtype, x.shape, np.asarray(x).tobytes()) if hasattr(x, "dtype") else x
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bits(x) == bits(y) for x, y in pairs)


def comes_back(thing, **options):
    text = to_json(thing)
    again = from_json(text, **options)
    assert same(again, thing) and to_json(again) == text
    return again
