"""The rows of a contract table as parameters of its tests."""

import pytest


def rows(kind, names, slow=(), optimised=()):
    """These rows. All tests of a row run in one process: they share its programs."""

    def marks(name):
        yield pytest.mark.xdist_group(f"{kind} {name}")
        if name in optimised:
            yield pytest.mark.optimised
        if name in slow:
            yield pytest.mark.slow

    return [pytest.param(name, marks=tuple(marks(name))) for name in names]
