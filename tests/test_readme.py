"""The Python of the README and of docs/new_attack.md runs as written, top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, NEW_ATTACK = ROOT / "README.md", ROOT / "docs" / "new_attack.md"


def run(page):
    """The names that a page's blocks leave behind."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    return blocks, names


@pytest.mark.slow
def test_the_readmes_python_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks, names = run(README)
    assert len(blocks) >= 4
    assert names["result"].last.step > 0
    assert "PGD x 5" in capsys.readouterr().out
    assert names["curve"].shape == (8,)


def test_the_page_on_new_attacks_runs_and_quotes_what_stands():
    blocks, names = run(NEW_ATTACK)
    assert len(blocks) == 3 and names["record"].success.any()
    quoted = ["advjax/attacks/acg.py", "advjax/attacks/__init__.py", "advjax/attacks/registry.py"]
    sources = [(ROOT / path).read_text() for path in (*quoted, "tests/contract/rows_apgd.py")]
    quotes = re.findall(r"```text\n(.*?)```", NEW_ATTACK.read_text(), re.DOTALL)
    assert len(quotes) == 4
    for quote in quotes:
        assert any(quote in source for source in sources), quote
