"""Censored Brier scores against scikit-survival, complete data and a known truth."""

import json
from pathlib import Path

import numpy as np
import pytest

from mktai_kit.methods import survival_score as B
from mktai_kit.settings import KitError

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "survival_oracle.json").read_text())


def test_brier_equals_scikit_survival():
    g = GOLDEN["brier"]
    scores = B.brier_survival(g["survival"], g["times"], g["duration"], g["event"], n_boot=100)
    assert np.abs(scores["brier"] - g["brier"]).max() < 1e-10
    assert (
        abs(
            B.integrated_brier(g["survival"], g["times"], g["duration"], g["event"], n_boot=100).value - g["integrated"]
        )
        < 1e-10
    )
    assert ((scores["low"] < scores["brier"]) & (scores["brier"] < scores["high"])).all()


def test_brier_is_unbiased_with_ties_between_leaving_and_censoring():
    """Whole months: at equal times who leaves goes first, so the mean over sets is that of complete data."""
    rng, miss = np.random.default_rng(1), []
    for _ in range(150):
        rate = rng.gamma(2, 0.04, 400)
        life, watch = np.ceil(rng.exponential(1 / rate)), rng.integers(1, 25, 400).astype(float)
        times = np.array([6.0, 12, 18])
        p = np.exp(-np.outer(rate, times))
        complete = (((life[:, None] > times) - p) ** 2).mean(axis=0)
        s, t, q = B._predicted(p, times, np.minimum(life, watch), (life <= watch).astype(int))
        miss.append(B._brier_of(s, q, t, np.ones((1, 400)))[0] - complete)
    miss = np.array(miss)
    assert (np.abs(miss.mean(axis=0)) < 4 * miss.std(axis=0) / np.sqrt(len(miss)) + 1e-4).all()


def draw(n, seed):
    """A prediction that gives everybody the same hazard, what was seen, and the times."""
    rng, times = np.random.default_rng(seed), np.array([3.0, 6, 9, 12, 18])
    rate = rng.gamma(2, 0.04, n)
    life, watch = rng.exponential(1 / rate), rng.uniform(1, 30, n)
    return np.tile(np.exp(-0.08 * times), (n, 1)), times, np.minimum(life, watch), (life <= watch).astype(int)


@pytest.mark.slow
def test_interval_covers():
    """A light version, with 120 sets."""
    times = draw(2, 0)[1]
    rate = np.random.default_rng(999).gamma(2, 0.04, 400_000)
    p, q = np.exp(-np.outer(rate, times)), np.exp(-0.08 * times)
    truth = np.trapezoid((p * (1 - q) ** 2 + (1 - p) * q**2).mean(axis=0), times) / 15
    found = [B.integrated_brier(*draw(300, seed), n_boot=200) for seed in range(120)]
    assert 0.88 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99
    assert abs(np.mean([e.value for e in found]) - truth) < 0.003


def test_refusals():
    p, times, seen, left = draw(60, 1)
    for match, call in (
        ("one row per account", lambda: B.brier_survival(np.ones((4, 2)), [1], [1.0, 2, 3, 4], [1, 0, 1, 0])),
        ("must rise", lambda: B.brier_survival(p[:, :2], [2, 1], seen, left)),
        ("must rise", lambda: B.brier_survival(p[:, :0], [], seen, left)),
        ("not numbers", lambda: B.brier_survival(p[:, :1], ["a"], seen, left)),
        ("one time only", lambda: B.integrated_brier(p[:, :1], [1], seen, left)),
        ("no coverage", lambda: B.integrated_brier(p, times, seen, left, level=95)),
        ("no draws", lambda: B.integrated_brier(p, times, seen, left, n_boot=0)),
    ):
        with pytest.raises(KitError, match=match):
            call()
    few = B.integrated_brier(np.full((3, 2), 0.5), [1, 2], [1.5, 2, 3], [1, 0, 1])
    assert few.value is None and few.note.startswith("not enough data")


def test_plot_draws_on_given_axes():
    from matplotlib.figure import Figure

    p, times, seen, left = draw(200, 2)
    ax = Figure().subplots()
    assert B.plot_brier(B.brier_survival(p, times, seen, left, n_boot=50), ax=ax) is ax
