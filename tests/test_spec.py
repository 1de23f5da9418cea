"""What is written as a spec comes back the same, to the bit; what cannot says why."""

import dataclasses
import json
import math
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import comes_back, same

import advjax
from advjax import L2, PGD, Linf, Madry, Restarts, Targeted, create, defences, pytree, random_target
from advjax.attacks import registry
from advjax.balls import L0, L1
from advjax.experiment import load_experiment
from advjax.models import Transformed
from advjax.spec import SpecError, checksum, describe, from_json, readable, to_json
from advjax.training import optimizer, schedule

ROOT = Path(__file__).resolve().parents[1]
ATTACK = PGD(ball=Linf(8 / 255), steps=3)
MINE = (__name__,)  # a package that these tests trust


@pytest.mark.parametrize("entry", registry.ENTRIES, ids=lambda entry: entry.name)
def test_every_registered_attack_comes_back(entry):
    for norm in entry.norms or ("l2",):
        comes_back(entry.make(registry.ball_of(norm, 0.3 if entry.norms else math.inf)))


def test_every_row_of_the_contract_comes_back(monkeypatch):
    folder = Path(__file__).parent / "contract"
    monkeypatch.syspath_prepend(folder)
    rows = [path.stem for path in sorted(folder.glob("rows_*.py"))]
    for row in rows:
        for make in import_module(row).ROWS.values():
            attack = make()
            places = {
                "source": getattr(attack, "source", None),  # a model that holds large arrays
                "pixels": getattr(attack, "pixels", None),
            }
            values = {n: v for n, v in places.items() if v is not None}
            comes_back(attack, trusted=rows, values=values)


def test_every_ball_comes_back():
    mask = np.arange(6, dtype=np.float32).reshape(2, 3) > 2
    for ball in (Linf(8 / 255), L2(jnp.array([0.1, 1 / 3])), L1(), L0(3), Linf(0.1, mask=mask)):
        comes_back(ball)


WRAPPERS = (
    Targeted(attack=Restarts(ATTACK, n=3), choose=random_target),
    advjax.WorstOf(attacks=(ATTACK, advjax.APGD(ball=L2(0.5), loss=advjax.dlr))),
    advjax.EOT(attack=ATTACK, samples=4),
    advjax.MinimalNorm(ATTACK),
    advjax.Lattice(attack=ATTACK),
)


@pytest.mark.parametrize("attack", WRAPPERS, ids=lambda attack: type(attack).__name__)
def test_every_wrapper_comes_back(attack):
    comes_back(attack)


def points(model):
    return model


def test_transforms_and_augmentation_come_back():
    comes_back(advjax.Augment())
    comes_back(Transformed(points, defences.PixelDropout()), trusted=MINE)


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiments_config_comes_back(path):
    experiment = load_experiment(path)
    config = experiment.config(data_dir=Path("somewhere"))
    again = from_json(to_json(config), trusted=(experiment.config.__module__,))
    assert again == config and dataclasses.asdict(again) == dataclasses.asdict(config)
    assert all(
        type(getattr(again, f.name)) is type(getattr(config, f.name))
        for f in dataclasses.fields(config)
    )


def test_every_number_has_its_bits():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 300, dtype=np.uint32)
    for value in [*words.view(np.float32), np.float32("inf"), np.float32(-0.0), np.float32(1e-45)]:
        if np.isnan(value):
            continue
        leaf = from_json(to_json(Held(value=value)), trusted=MINE).value
        assert leaf.dtype == np.float32 and leaf.tobytes() == value.tobytes()
    for value in (0.1, 1 / 3, math.inf, -0.0, 5e-324):
        assert str(from_json(to_json({"a": value}))["a"]) == str(value)
    for dtype in ("float32", "bfloat16", "float16", "int32", "bool"):
        array = jnp.asarray(rng.normal(size=(2, 3)) * 3, dtype)
        back = from_json(to_json(Held(value=array)), trusted=MINE).value
        assert back.dtype == array.dtype and back.tobytes() == np.asarray(array).tobytes()
    odd = np.array([math.nan, math.inf, -math.inf], np.float32)
    assert same(from_json(to_json(Held(value=odd)), trusted=MINE), Held(value=odd))


@pytree
class Held:
    value: object = dataclasses.field()
    function: object = dataclasses.field(default=None)


def test_large_arrays_are_asked_for_and_checked():
    large = np.arange(100, dtype=np.float32)
    text = to_json({"defence": Held(value=large)})
    said = r"defence.value is known by its checksum, crc32:\w+; expected its value: from_json\(spec"
    with pytest.raises(SpecError, match=said):
        from_json(text, trusted=MINE)
    back = from_json(text, trusted=MINE, values={"defence.value": large})["defence"]
    assert np.array_equal(back.value, large)
    with pytest.raises(SpecError, match=r"values\['defence.value'\] has checksum .*; expected"):
        from_json(text, trusted=MINE, values={"defence.value": large + 1})
    with pytest.raises(SpecError, match="no place 'defense'"):
        from_json(text, trusted=MINE, values={"defence.value": large, "defense": 1})
    assert checksum({"a": large}) != checksum({"b": large}) != checksum({"b": large[None]})


def test_what_has_no_import_path_is_refused_by_its_place():
    with pytest.raises(SpecError, match=r"function is <function .* no import path; exp"):
        to_json(Held(value=1, function=lambda x: x))
    with pytest.raises(SpecError, match="eps_schedule is <function polynomial_schedule.* schedule"):
        to_json(Madry(ATTACK, eps_schedule=optax.linear_schedule(0.0, 1.0, 3)))
    with pytest.raises(SpecError, match="value is a key; expected settings"):
        to_json(Held(value=jax.random.key(0)))
    with pytest.raises(SpecError, match="ball.eps is traced; expected values"):
        jax.jit(lambda eps: to_json(PGD(ball=Linf(eps))))(0.1)

    @dataclasses.dataclass
    class Local:
        a: int = 1

    with pytest.raises(SpecError, match="Local has no import path; expected a module's class"):
        to_json(Local())
    told = describe(Held(value=Local(), function=lambda x: x))
    assert told["value"]["a"] == 1
    with pytest.raises(SpecError, match="function was .*lambda.*; expected its value: from_json"):
        from_json({**told, "value": 1}, trusted=MINE)
    read = from_json({**told, "value": 1}, values={"function": points}, trusted=MINE)
    assert read.function is points


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "no spec: expected what to_json wrote"),
        ("[1]", "no spec: expected what to_json wrote, given"),
        ({"name": "mlp", "fields": {}}, "no spec: expected what to_json wrote, given"),
        ({"spec": 9, "of": 1}, "format 9; expected format 1: read it with the version of advjax"),
        ({"is": "PGD", "steps": 3}, "'PGD', which is no import path: expected a spec of format 1;"),
        ({"is": "advjax.PDG"}, "advjax has no PDG; did you mean PGD"),
        ({"is": "advjax.PGD", "step": 3}, "unknown field 'step' of advjax.PGD; did you mean steps"),
        ({"is": "advjax.PGD"}, "advjax.PGD: .*missing .* 'ball'"),
        ({"is": "advjax.Linf", "eps": -1.0}, "advjax.Linf: .*eps"),
        ({"is": "float"}, "a damaged spec: expected what to_json wrote"),
        ({"is": "network", "name": "mlp"}, "a damaged spec: .*fields"),
        ({"is": "advjax.evaluate"}, "advjax.evaluate is no dataclass"),
        ({"is": "my.attacks.Mine"}, r"my.attacks.Mine is not of advjax, .*trusted=\('my',\)"),
        ({"is": "os.system"}, "os.system is not of advjax"),
        ({"is": "advjax.files.os.system"}, "is not defined there"),
        ({"is": "advjax.__main__.main"}, "is not of advjax"),
        ({"is": "advjaxes.PGD"}, "advjaxes.PGD is not of advjax"),
    ],
)
def test_what_is_no_spec_is_refused_by_name(spec, said):
    with pytest.raises(SpecError, match=said):
        from_json(spec)


def test_reading_runs_nothing_but_constructors(tmp_path, monkeypatch):
    """A module that is not trusted is not even imported."""
    (tmp_path / "hostile_module.py").write_text("raise AssertionError('was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"is": "advjax.Madry", "attack": {"is": "hostile_module.Attack"}}
    with pytest.raises(SpecError, match="hostile_module.Attack is not of"):
        from_json(json.dumps(spec))
    assert "hostile_module" not in sys.modules


def test_networks_of_the_zoo_are_written_by_their_name():
    for name in ("mlp", "densenet121", "resnet18"):
        module = create(name, classes=7, dtype=jnp.bfloat16)
        told = describe(module)
        assert told["is"] == "network" and told["name"] == name and told["fields"]["classes"] == 7
        assert from_json(to_json(module)) == module
    assert readable(describe(create("mlp", hidden=(3,)))) == "mlp(hidden=[3])"
    with pytest.raises(ValueError, match="unknown model 'mpl'; did you mean mlp"):
        from_json({"is": "network", "name": "mpl", "fields": {}})


def test_people_read_it():
    adam = optimizer("adam", schedule("triangular", peak=0.005, top=20, steps=100))
    said = readable({"optimizer": describe(adam), "n": [1, describe(Linf(0.1))]})
    assert said["optimizer"] == "adam(learning_rate=triangular(peak=0.005, top=20, steps=100))"
    assert said["n"] == [1, "Linf(eps=0.1, lower=0.0, upper=1.0, mask=None)"]
    assert "loss=advjax.cross_entropy" in readable(describe(ATTACK))
    assert readable(describe(Held(value=1))) == "Held(value=1.0, function=None)"
    assert readable({"is": "my.Config", "name": "a", "lr": 0.1}) == "Config(name=a, lr=0.1)"
