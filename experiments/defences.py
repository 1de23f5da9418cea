"""Every defence around a model, under plain PGD and under what knows it: what is left of each.

One row for each defence of ``advjax.defences``. "pgd" is what most papers report: 40 steps along
the gradient of the defended model as it is, one draw a step where it is random, of the undefended
network where there is a detector; JPEG has no gradient. "known" is APGD that knows the defence:
through the identity or ReLU in the place of what has no gradient (BPDA), over the mean of draws
(EOT), past a detector towards a class it lets pass; "c&w" the same with Carlini & Wagner's loss,
the margin; "transfer" APGD on the undefended network; "square" asks for scores alone. "worst"
counts the images that withstand all five.

Source: Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018
(arXiv 1802.00420): transforms of the input end at 0, whatever plain attacks say; Carlini, Wagner,
"Adversarial Examples Are Not Easily Detected", AISec 2017 (arXiv 1705.07263); Cohen, Rosenfeld,
Kolter, ICML 2019 (arXiv 1902.02918). The papers of the defences are in their docstrings.

    advjax train experiments/defences.py --data-dir tensorflow_datasets
    advjax train experiments/defences.py --data-dir tensorflow_datasets \\
        --data fashion_mnist --eps 0.05 --bits 3 --sigma 0.25    # greys, which one bit cannot clean

Hardware and time: 2 CPU cores, 36 minutes for two seeds beside other work.

Expected: for every seed the undefended network is below 10 % under PGD; JumpReLU, the transforms
and the detectors end within 10 points of it in the worst case, random self-ensemble and smoothing
well below what PGD says; 0 violated certificates.

Measured on MNIST, eps .2, seeds 0 and 1, accuracy in percent on 250 test images:

                       clean          pgd            known          worst
    none             98.8  98.4      0.4   0.4      0.4   0.4      0.4   0.0
    JumpReLU         98.4  97.2     27.6  28.8      6.4  16.4      5.2  16.0
    self-ensemble    98.0  97.2      2.4   1.2      1.2   0.8      1.2   0.8
    smoothing        98.0  96.8     19.2  13.2     10.8   8.4      6.4   6.4
    interval bounds  91.6  93.2     67.6  74.0     66.4  73.2     63.2  72.0
    JPEG             98.8  98.4           -         0.4   0.4      0.4   0.4
    bit depth        98.0  98.8     96.8  98.0     86.0  85.2     86.0  85.2
    median           98.4  97.2      0.8   0.4      0.8   0.4      0.4   0.4
    total variation  96.0  96.8      0.4   0.4      8.8   6.4      0.4   0.4
    pixel dropout    96.0  96.4      3.6   0.8      0.8   0.4      0.8   0.4
    squeezing        94.0  96.4     90.8  92.0     88.8  90.0     87.6  88.4
    Mahalanobis      94.8  95.2      4.4   2.4      0.4   0.0      0.4   0.0
    kernel density   93.6  94.8      5.6   5.2      0.4   0.8      0.4   0.4

On Fashion-MNIST, eps .05 (the second command with --seeds 0 --examples 150):

                       clean   pgd  known  worst
    none                81.3  36.7   36.7   36.7
    JumpReLU            72.0  46.7   44.7   44.7
    self-ensemble       79.3  47.3   48.0   46.7
    smoothing           77.3  51.3   48.7   46.7
    interval bounds     74.0  62.7   62.7   61.3
    JPEG                80.0     -   38.0   37.3
    3 bits              82.0  81.3   54.0   53.3
    median              78.7  40.7   42.0   40.7
    total variation     72.7  48.7   60.7   48.7
    pixel dropout       80.0  58.0   50.7   48.7
    squeezing           78.7  51.3   50.7   43.3
    Mahalanobis         78.7  38.7   34.7   34.7
    kernel density      79.3  40.0   37.3   37.3

Of 954 images that smoothing certified (median L2 radius 1.1 and 1.0) no attack inside contradicted
one. One bit, alone or in feature squeezing, does not fall: eps .2 cannot carry black or white over
the middle, so on MNIST it is a real defence (Tramer et al., ICLR 2018, say so of binarisation).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from advjax import (
    APGD,
    EOT,
    IBP,
    JPEG,
    L2,
    PGD,
    BitDepth,
    Classifier,
    JumpReLU,
    Linf,
    Preprocessed,
    RandomSelfEnsemble,
    Smoothed,
    Square,
    Standard,
    Targeted,
    Training,
    Transferred,
    Transformed,
    create,
    evaluate,
    fit,
    load,
    margin,
    replace,
)
from advjax.answers import is_stochastic
from advjax.data import Dataset, to_float
from advjax.defences import (
    ABSTAIN,
    FeatureSqueezing,
    KernelDensity,
    Mahalanobis,
    MedianFilter,
    NoisyConvolutions,
    PixelDropout,
    TotalVariation,
    WithDetector,
    roc,
    threshold_at,
    undetected_target,
)
from advjax.report.charts import Chart
from advjax.report.page import Text, write_report
from advjax.training import optimizer, schedule

ATTACKS = ("pgd", "known", "c&w", "transfer", "square")


@dataclasses.dataclass(frozen=True)
class Config:
    eps: float = 0.2
    """L-inf radius of the attacks."""
    kappa: float = 0.4
    """JumpReLU's threshold."""
    sigma: float = 0.5
    """Standard deviation of smoothing's noise, in training too."""
    quality: int = 50
    """Of JPEG."""
    bits: int = 1
    """Of the reduced bit depth, as a transform and in feature squeezing."""
    weight: float = 0.3
    """Of total variation."""
    false_positives: float = 0.05
    """Share of clean images that a detector may reject."""
    scales: tuple[float, ...] = (0.1, 1.0)
    """Of ``WithDetector``; the attack that knows the detector tries each."""
    network: str = "mnist_fast"
    size: int = 20_000
    """Training images, drawn by the seed; ``held_out`` of them no network is trained on."""
    epochs: int = 4
    batch_size: int = 100
    learning_rate: float = 2e-3
    """Adam's, falling to 0 along a cosine."""
    held_out: int = 2000
    """Half of them fit the statistics of the detectors, half set the thresholds."""
    steps: int = 40
    """Of APGD; 20 where it averages draws."""
    queries: int = 200
    """Of Square; a tenth where the model is random."""
    samples: int = 20
    """Draws that EOT averages."""
    draws: int = 10
    """A prediction of a random model is the majority of so many, as many further ones are counted;
    smoothing's costs so many passes."""
    certify: int = 500
    """Draws behind a certificate of smoothing, and behind the answer to the attack on it."""
    alpha: float = 0.001
    """Probability that a certificate of smoothing is wrong, per image."""
    seeds: tuple[int, ...] = (0, 1)
    examples: int = 250
    """Test images of the table, a seeded subset."""
    certificates: int = 500
    """Test images whose certificates by smoothing are attacked, for each seed."""
    data: str = "mnist"
    data_dir: str | None = None
    """Where tensorflow-datasets are; None: ~/tensorflow_datasets."""


def noise(keys: Any, x: Any, sigma: float) -> Any:
    """Images with Gaussian noise, as the base of a smoothed classifier is trained on them."""
    return x + sigma * jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)


def networks(
    config: Config, train: Dataset, seed: int, run_dir: Path, progress: Any
) -> dict[str, Any]:
    """The network undefended, and as it has to be trained for three of the defences."""
    steps = config.epochs * (len(train) // config.batch_size)
    bare = create(config.network)
    ramp = {"transition_steps": steps // 2, "transition_begin": steps // 10}
    bounds = IBP(
        ball=Linf(1.1 * config.eps),
        eps_schedule=schedule("linear", 0.0, 1.0, **ramp),
        kappa_schedule=schedule("linear", 1.0, 0.5, **ramp),
    )
    augment = jax.tree_util.Partial(noise, sigma=config.sigma)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"module": bare},
        "noisy": {"module": NoisyConvolutions(bare)},
        "gaussian": {"module": bare, "augment": augment},
        "bounds": {"module": bare, "objective": bounds},
    }
    found = {}
    for name, kind in kinds.items():
        training = Training(
            **{"objective": Standard(), **kind},
            optimizer=optimizer("adam", schedule("cosine_decay", config.learning_rate, steps)),
            train=train,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=seed,
        )
        settings = {**dataclasses.asdict(config), "seeds": seed}
        folder = run_dir / f"{name}-seed-{seed}"
        model = fit(training, folder, config=settings, progress=progress).last.model
        found[name] = Classifier(bare, model.variables)
    return found


def defences(config: Config, nets: Mapping[str, Any]) -> dict[str, tuple[Any, Any, int]]:
    """Name to the model, the one with its answers and a gradient, and passes per prediction."""
    plain, jump = nets["plain"], JumpReLU(nets["plain"], config.kappa)
    ensemble, smoothed = RandomSelfEnsemble(nets["noisy"]), Smoothed(nets["gaussian"], config.sigma)
    transforms = {
        "JPEG": JPEG(config.quality),
        "bit depth": BitDepth(config.bits),
        "median": MedianFilter(3),
        "total variation": TotalVariation(config.weight),
    }
    # Its gradient goes through the minimisation; fewer steps than by default, for the time.
    dropped = Transformed(plain, PixelDropout(steps=25))
    behind = {name: Preprocessed(plain, transform) for name, transform in transforms.items()}
    return {
        "none": (plain, plain, 1),
        "JumpReLU": (jump, replace(jump, backward="relu"), 1),
        "self-ensemble": (ensemble, replace(ensemble, n=1), ensemble.n),
        "smoothing": (smoothed, smoothed, config.draws),
        "interval bounds": (nets["bounds"], nets["bounds"], 1),
        **{name: (model, model.adaptive(), 1) for name, model in behind.items()},
        "pixel dropout": (dropped, dropped, 1),
    }


def attacks(config: Config, plain: Any, model: Any, seen: Any) -> dict[str, Any]:
    """The five attacks on a defended model; ``seen`` is what the gradients come from."""
    ball, random = Linf(config.eps), is_stochastic(model)
    # What fools the source may not yet fool the model: the search goes on after a success.
    apgd = APGD(ball=ball, steps=config.steps, until_success=False)
    square = Square(ball=ball, steps=config.queries)
    known = {"known": apgd, "c&w": replace(apgd, loss=margin)}
    if random:
        few = lambda attack: EOT(replace(attack, steps=20), samples=config.samples)
        known = {name: few(attack) for name, attack in known.items()}
        square = EOT(replace(square, steps=config.queries // 10), samples=config.samples)
    found: dict[str, Any] = {name: Transferred(a, source=seen) for name, a in known.items()}
    found |= {"transfer": Transferred(apgd, source=plain)}
    found |= {"square": Transferred(square, source=seen)}
    if not (isinstance(model, Preprocessed) and isinstance(model.transform, JPEG)):
        source = seen if random else model
        found["pgd"] = Transferred(PGD(ball=ball, steps=40), source=source)
    return found


def detected(
    config: Config, plain: Any, detector: Any, held: Dataset, test: Dataset, size: Mapping[str, Any]
) -> tuple[dict[str, float], list[Chart], Any]:
    """The row of a detector, its curves before and after, and the guarded model.

    What withstands is right when clean and passed, and is right or rejected under attack.
    """
    ball, classes = Linf(config.eps), len(test.classes)
    score = jax.jit(lambda detector, x: detector(x))
    threshold = threshold_at(score(detector, to_float(held.x)), config.false_positives)
    guarded = WithDetector(plain, detector, threshold)
    open_ = detector.adaptive() if isinstance(detector, FeatureSqueezing) else detector
    apgd = APGD(ball=ball, steps=config.steps)
    at = lambda attack: Targeted(attack, choose=undetected_target)
    knowing: dict[str, Any] = {"square": at(Square(ball=ball, steps=config.queries))}
    for scale in config.scales:
        seen = WithDetector(plain, open_, threshold, scale=scale)
        for name, loss in (("known", apgd.loss), ("c&w", margin)):
            attack = Transferred(replace(apgd, loss=loss), source=seen)
            knowing[f"{name} {scale:g}"] = at(attack)
    keep = {"keep_images": True}
    naive = {"pgd": PGD(ball=ball, steps=40), "transfer": replace(apgd, until_success=False)}
    bare = evaluate(plain, test, naive, **size, **keep)
    found = evaluate(guarded, test, knowing, **size, **keep)
    images = {name: one.x_adv for name, one in (bare.attacks | found.attacks).items()}
    said = {
        name: evaluate(guarded, (x, test.y), {}, **size).prediction for name, x in images.items()
    }
    held_up = {name: (p == test.y) | (p == classes) for name, p in said.items()}
    standing = {
        name: found.correct & np.all([v for key, v in held_up.items() if key.split()[0] == name], 0)
        for name in ATTACKS
    }
    row = {name: 100 * float(np.mean(v)) for name, v in standing.items()}
    row |= {"clean": 100 * found.clean.value}
    row |= {"worst": 100 * float(np.mean(np.all(list(standing.values()), 0)))}
    best = min(images, key=lambda name: np.sum(held_up[name] & found.correct))
    curves = []
    for when, name in (("PGD", "pgd"), ("an attack that knows it", best)):
        x = jnp.asarray(images[name])
        fooling = np.asarray(jnp.argmax(plain(x), -1) != test.y)
        curve = roc(score(detector, to_float(test.x)), score(detector, x[fooling]))
        row[f"auc {'before' if name == 'pgd' else 'after'}"] = curve.auc
        curves.append(curve.chart(f"{type(detector).__name__} against {when}"))
    return row, curves, guarded


def milliseconds(call: Callable[[Any], Any], x: Any) -> float:
    """Of one call on a batch: the fastest of many."""
    jax.block_until_ready(call(x))
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        jax.block_until_ready(call(x))
        taken.append(1e3 * (time.perf_counter() - began))
    return min(taken)


def contradicted(config: Config, smoothed: Smoothed, test: Dataset, seed: int) -> dict[str, Any]:
    """Smoothing's certificates against PGD inside each image's own certified radius.

    What judges is the smoothed classifier again, with ``certify`` draws; where it cannot tell, it
    abstains and contradicts nothing.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    found = smoothed.certify(keys[0], to_float(test.x), n=config.certify, alpha=config.alpha)
    sure = found.covers(test.y, 0.0)
    if not sure.any():
        return {"certified": 0, "radius": 0.0, "violations": 0, "abstains": 0}
    inside, radius = test.take(sure), found.radius[sure]
    pgd = EOT(PGD(ball=L2(radius), steps=10), samples=config.samples)
    run = evaluate(smoothed, inside, pgd, key=keys[1], draws=config.draws, keep_images=True)
    (attacked,) = run.attacks.values()
    said = smoothed.predict(keys[2], attacked.x_adv, n=config.certify, alpha=config.alpha)
    return {
        "certified": int(sure.sum()),
        "radius": float(np.median(radius)),
        "violations": int(np.sum((said != inside.y) & (said != ABSTAIN))),
        "abstains": int(np.sum(said == ABSTAIN)),
    }


def predicting(config: Config, model: Any) -> Callable[[Any], Any]:
    """What one prediction for a batch takes; of smoothing ``draws`` passes."""
    key = jax.random.key(0)
    if isinstance(model, Smoothed):
        return lambda x: model.counts(key, x, config.draws)
    run = jax.jit(lambda model, x, **more: model(x, **more))
    if is_stochastic(model):
        return lambda x: run(model, x, key=jax.random.split(key, len(x)))
    return lambda x: run(model, x)


def main(config: Config, run_dir: Path, progress: Any = None) -> dict[str, Any]:
    whole = load(config.data, "train", config.data_dir)
    test = load(config.data, "test", config.data_dir)
    few, many = test.subset(config.examples), test.subset(config.certificates)
    x = to_float(few.x[:100])
    rows, certificates, charts = [], [], []
    for seed in config.seeds:
        order = np.random.default_rng(seed).permutation(len(whole))[: config.size]
        parts = np.split(order, [config.held_out // 2, config.held_out])
        fitting, setting, train = (whole.take(np.sort(part)) for part in parts)
        nets = networks(config, train, seed, run_dir, progress)
        plain = nets["plain"]
        size: dict[str, Any] = {"key": jax.random.key(seed), "draws": config.draws}
        size |= {"batch_size": config.examples, "devices": jax.devices()[:1]}
        unit = milliseconds(predicting(config, plain), x)
        for name, (model, seen, passes) in defences(config, nets).items():
            run = evaluate(model, few, attacks(config, plain, model, seen), **size)
            accuracy = {"clean": run.clean, **run.robust, "worst": run.worst}
            row = {kind: 100 * a.value for kind, a in accuracy.items()}
            row["time"] = milliseconds(predicting(config, model), x) / unit
            rows.append({"seed": seed, "defence": name, "passes": passes, **row})
        squeezing = FeatureSqueezing(plain, (BitDepth(config.bits), MedianFilter(2)))
        distance = Mahalanobis.fit(plain, to_float(fitting.x), fitting.y)
        density = KernelDensity.fit(plain, plain, to_float(fitting.x), fitting.y)
        detectors = {"squeezing": (squeezing, 3), "Mahalanobis": (distance, 2)}
        detectors["kernel density"] = (density, 3)
        for name, (detector, passes) in detectors.items():
            row, curves, guarded = detected(config, plain, detector, setting, few, size)
            row["time"] = milliseconds(predicting(config, guarded), x) / unit
            rows.append({"seed": seed, "defence": name, "passes": passes, **row})
            charts += [dataclasses.replace(curve, note=f"Seed {seed}.") for curve in curves]
        smoothed = Smoothed(nets["gaussian"], config.sigma)
        certificates.append({"seed": seed, **contradicted(config, smoothed, many, seed)})
    said = (__doc__ or "").split("Source:")[0]
    write_report(run_dir / "report.html", "Defences and what breaks them", [Text(said), *charts])
    return {
        "rows": rows,
        "certificates": certificates,
        "examples": len(few),
        "certificates_of": len(many),
        "table": table(rows, certificates, len(many)),
    }


def table(rows: list[dict[str, Any]], certificates: list[dict[str, Any]], images: int) -> str:
    names = ("clean", *ATTACKS, "worst", "passes", "time", "auc before", "auc after")
    lines = ["seed  " + f"{'defence':16}" + "".join(f"{name:>11}" for name in names)]
    for row in rows:
        shown = ("-" if row.get(name) is None else f"{row[name]:.4g}" for name in names)
        lines.append(
            f"{row['seed']:4}  {row['defence']:16}" + "".join(f"{cell:>11}" for cell in shown)
        )
    lines += [
        f"smoothing, seed {c['seed']}: {c['certified']} of {images} images certified, median L2 "
        f"radius {c['radius']:.2f}; attacked inside it {c['violations']} violations, "
        f"{c['abstains']} abstentions"
        for c in certificates
    ]
    return "\n".join(lines)
