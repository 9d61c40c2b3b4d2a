"""The joint law: forms, their limits, what fits recover, held-out cells, and what is read of results."""

import csv
import dataclasses

import joint_law as benchmark
import numpy as np
import pytest

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.laws.joint import cells, judging, surface
from big_vision_lite.scaling.laws.joint.forms import FORMULAS, At, forms, log_effective

EVERY_FORM = forms(0.9, 0.2, 2, ("parent", "uniform")) + forms(None, 0.2, 1, ())
by_name = pytest.mark.parametrize("form", EVERY_FORM, ids=lambda form: form.name)


def points(seed=0, n=40):
    rng = np.random.default_rng(seed)
    return At(rng.normal(size=n), rng.normal(size=n) + 1, rng.normal(size=n), -rng.uniform(0, 0.5, n),
              rng.integers(0, 2, n))


def parameters(form, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([[rng.choice(p.starts) + 0.01 * rng.random() for p in form.parameters]])


# Forms.


@by_name
def test_derivatives_are_those_of_differences(form):
    at, theta = points(), parameters(form)
    _, slopes = form.predict(theta, at)
    for i in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, i] = 1e-6
        above, below = (form.predict(theta + sign * step, at)[0] for sign in (1, -1))
        np.testing.assert_allclose(slopes[..., i], (above - below) / 2e-6, rtol=1e-5, atol=1e-7)


@by_name
def test_limits(form):
    at, theta = points(), parameters(form)
    error = np.exp(form.predict(theta, at)[0])
    assert form.e0 is None or (error < form.e0).all()
    # Images that are never seen count for nothing.
    unseen = at._replace(images=at.seen)
    more = at._replace(images=at.seen + 2)
    np.testing.assert_allclose(form.predict(theta, unseen)[0], form.predict(theta, more)[0])
    # Neither more images, nor more passes, nor cleaner labels harm.
    for better in (at._replace(images=at.images + 0.5), at._replace(seen=at.seen + 0.5),
                   at._replace(clean=at.clean / 2)):
        assert (np.exp(form.predict(theta, better)[0]) <= error + 1e-12).all()
    clean = at._replace(clean=np.zeros_like(at.clean))
    other_kappa = theta + np.array([float(p.name.startswith("kappa")) for p in form.parameters])
    np.testing.assert_array_equal(form.predict(theta, clean)[0], form.predict(other_kappa, clean)[0])


def test_effective_images_are_those_of_the_paper():
    images, seen, r_star = np.array([1000.0]), np.array([10.0, 1000, 2500, 16_000, 1e6]), 15.4
    repeats = np.maximum(seen / images - 1, 0)
    expected = np.where(seen < images, seen, images + images * r_star * (1 - np.exp(-repeats / r_star)))
    log_d_eff, *_ = log_effective(np.log(images), np.log(seen), np.array([r_star]))
    np.testing.assert_allclose(np.exp(log_d_eff), expected)


def test_forms_have_only_what_cells_determine():
    names = {p.name for form in forms(0.9, 0.2, 1, ()) for p in form.parameters}
    assert names == {"A", "a", "B", "b", "p", "R*", "e_inf"}
    assert {form.noise for form in forms(None, 0.2, 1, ("",))} == {"seen", "images", "both"}
    assert all(form.capacity for form in forms(None, 0.2, 2, ()))


# Fits.

NOISY = ((0.0, ""), (0.2, "uniform"), (0.4, "uniform"))


def fitted(seed, repeats="repeated"):
    rng = np.random.default_rng(seed)
    form, theta = benchmark.truth(repeats, rng)
    return form, theta, surface.fit(benchmark.cells(form, theta, rng), benchmark.CHANCE, 32)


def noisy(seed, place, images=benchmark.IMAGES[::2], seen=benchmark.SEEN):
    rng = np.random.default_rng(seed)
    form, theta = benchmark.truth("repeated", rng, noise=place, kinds=("uniform",))
    found = benchmark.cells(form, theta, rng, 0.01, images=images, seen=seen, noise=NOISY)
    return form, theta, surface.fit(found, benchmark.CHANCE, 32)


def test_r_star_is_recovered():
    held = []
    for seed in range(4):
        _, theta, law = fitted(seed)
        low, high = law.parameters["R*"].intervals[-1]
        held.append(low <= np.exp(theta[2]) <= high)
        assert high / low < 4
    assert sum(held) >= 3


@pytest.mark.parametrize("place", ["seen", "images"])
def test_kappa_is_recovered_and_its_place_told(place):
    what = {"seen": "images seen", "images": "images"}[place]
    for seed in range(2):
        _, theta, law = noisy(seed, place)
        assert place in law.noise_acts_on
        if seed:  # kappa is 1.7; at 0.7, noise does too little for its place to be told
            assert {"seen": "images", "images": "seen"}[place] not in law.noise_acts_on
        low, high = law.parameters[f"kappa uniform on {what}"].intervals[-1]
        assert low <= theta[3] <= high and high - low < 2


def test_where_steps_limit_every_cell_the_place_of_noise_cannot_be_told():
    _, _, law = noisy(0, "seen", images=(45_000, 90_000), seen=(11_000, 22_000, 45_000))
    assert {"seen", "both"} <= set(law.noise_acts_on)


def test_the_true_form_is_not_ruled_out_and_a_wrong_one_is():
    form, _, law = fitted(1, "sum")
    repeats = [fit.form.repeats for fit in law.plausible]
    assert "sum" in repeats and "repeated" not in repeats
    assert form.repeats == law.fits[0].form.repeats


def judged(repeats, envelope, surfaces, samples):
    judgements = []
    for seed in range(surfaces):
        rng = np.random.default_rng(seed)
        form, theta = benchmark.truth(repeats, rng, envelope)
        judgements.append(judging.judge(benchmark.cells(form, theta, rng), benchmark.CHANCE, samples))
    return judgements


@pytest.mark.parametrize("repeats", FORMULAS)
def test_held_out_cells_are_predicted(repeats):
    judgements = judged(repeats, "Rosenfeld", 4, 24)
    assert all(len(judgement.held_out) >= 10 for judgement in judgements)
    assert np.mean([judgement.relative for judgement in judgements]) < 0.05
    assert np.mean([judgement.holds.mean() for judgement in judgements]) >= 0.85
    # Intervals are no wider than would tell these scores from those at half of the images.
    assert np.median(np.concatenate([one.intervals[:, 1] / one.intervals[:, 0] for one in judgements])) < 1.4


def test_a_law_of_other_cells_is_judged_to_be_wrong():
    law = judged("sum", "Rosenfeld", 1, 24)[0]
    shifted = dataclasses.replace(law, held_out=dataclasses.replace(law.held_out, error=1.3 * law.held_out.error))
    assert shifted.relative > 0.15 and shifted.holds.mean() < 0.5 and shifted.bias < -0.15


@pytest.mark.slow
@pytest.mark.parametrize("envelope", ["Rosenfeld", "sigmoid"])
@pytest.mark.parametrize("repeats", FORMULAS)
def test_held_out_cells_of_twenty_surfaces(repeats, envelope):
    judgements = judged(repeats, envelope, 20, 64)
    assert np.mean([judgement.relative for judgement in judgements]) < 0.05
    assert np.mean([judgement.holds.mean() for judgement in judgements]) >= 0.85


def test_networks_and_noise_that_only_large_cells_have_are_not_judged():
    rng = np.random.default_rng(0)
    form, theta = benchmark.truth("sum", rng, noise="seen", kinds=("uniform",), capacity="limit")
    found = benchmark.runs(form, theta, rng, operations=(1e8, 2e8), noise=NOISY[:2])
    kept = [run for run in found if run.images > 20_000 or (run.operations == 1e8 and not run.noise)]
    judged = judging.judge(cells.cells_of(kept), benchmark.CHANCE, 20).held_out
    assert (judged.operations == 1e8).all() and (judged.noise == 0).all() and len(judged) > 10


def test_a_rise_beyond_noise_is_memorised_and_a_bump_is_not():
    seen = np.array([1e3, 2e3, 4e3, 8e3])
    for rise, outside in ((0.10, [False, False, True, True]), (0.01, [False] * 4)):
        errors = np.array([0.5, 0.4, 0.4 * (1 + rise), 0.4 * (1 + rise)])
        found = [cells.Run(f"{s}{seed}", 500, s, 1, 0, "", "n", str(seed), e * (1 + 0.01 * (seed - 1)))
                 for s, e in zip(seen, errors, strict=True) for seed in range(3)]
        assert cells.cells_of(found).memorised().tolist() == outside


# Reading.


def row(images, seen, seed=0, score=0.5, **more):
    return {"run": f"n{images}-s{seen}-{seed}", "study": "surface", "status": "done", "stage": "pretraining",
            "head": "Classification", "init": "random", "images": images, "depth": 10, "seed": seed, "noise": 0.0,
            "classes": 10, "images_seen": seen, "operations": 3e8 * seen, "main_metric": "test/top1",
            "direction": "higher", "unit": "", "test/top1": score, "test/loss": 1.0} | more


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "results.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for one in rows for name in one)), restval="")
        table.writeheader()
        table.writerows(rows)
    return folder


def test_what_is_read(tmp_path):
    one = write(tmp_path / "one", [
        row(100, 400, 0, 0.5), row(100, 400, 1, 0.6), row(100, 800, 0, 0.7),
        row(100, 900, stage="trunk"), row(100, 900, status="failed"), row(100, 900, target_images=50),
        row(100, 1000, classes=2)])
    two = write(tmp_path / "two", [row(200, 400, 0, 0.4, learning_rate=0.1),
                                   row(200, 400, 1, 0.5, learning_rate=0.2) | {"run": "better"}])
    found = cells.read_surface([one / "results.csv", two, two])
    assert found.cells.images.tolist() == [100, 100, 200] and found.cells.seen.tolist() == [400, 800, 400]
    np.testing.assert_allclose(found.cells.error, [0.45, 0.3, 0.5])
    assert found.cells.seeds.tolist() == [2, 1, 1] and set(found.cells.operations) == {1e8}
    assert found.chance == pytest.approx(0.9) and found.metric.name == "test/top1"
    assert any("1 runs of other heads" in note for note in found.notes)
    assert any("several levels of learning_rate" in note for note in found.notes)


def test_networks_of_one_name_are_told_apart(tmp_path):
    found = cells.read_surface([write(tmp_path, [row(100, 400), row(200, 400, operations=6e8 * 400)])])
    assert found.cells.networks == {"depth 10, 1e+08 operations per image": 1e8,
                                    "depth 10, 2e+08 operations per image": 2e8}


@pytest.mark.parametrize("rows, message", [
    ([row(100, 400, stage="trunk")], "no finished pretraining runs"),
    ([{"images": 5}], "no column 'run'"),
    ([row(100, 400, images_seen="many")], "images_seen is 'many', expected a number"),
    ([row(100, -1)], "images_seen is -1, expected a number from"),
    ([row(100, 400, noise=1.5)], "noise is 1.5, expected a number from 0"),
    ([row(100, 400, 0, 1.0)], "test/top1 is 1, expected a score below 1"),
    ([row(100, 400, main_metric="")], "no run names its main metric; give --score"),
    ([row(100, 400, operations=""), row(100, 400, depth=18) | {"run": "b"}], "networks differ but some runs have no"),
    ([{k: v for k, v in row(100, 400).items() if k != "images_seen"}], "no column 'images_seen'"),
])
def test_bad_results_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        cells.read_surface([write(tmp_path / "bad", rows)])
    assert "\n" not in str(error.value)


def test_too_little_variation_is_refused():
    rng = np.random.default_rng(0)
    form, theta = benchmark.truth("sum", rng)
    with pytest.raises(UserError, match=r"all cells have the same number of images seen; .* bvl laws"):
        surface.fit(benchmark.cells(form, theta, rng, images=np.geomspace(1e4, 1e5, 7), seen=(56_000,)))
    with pytest.raises(UserError, match="4 cells of different images"):
        surface.fit(benchmark.cells(form, theta, rng, images=(1e4, 2e4), seen=(1e4, 2e4)))
