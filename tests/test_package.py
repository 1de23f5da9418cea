import subprocess
import sys

import advjax


def test_every_public_name_is_importable():
    for name in advjax.__all__:
        assert getattr(advjax, name) is not None, name
    assert set(advjax.__all__) - {"__version__"} == set(advjax._HOME)


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, advjax; from advjax import PGD, Linf, WorstOf; "
        "print([m for m in ('flax', 'orbax', 'sklearn', 'tensorflow_datasets', 'PIL') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
