"""Drift: published and library values, false alarms and power, and what must not pass for a column."""

import json

import numpy as np
import pandas as pd
import pytest

from mktai_kit.settings import KitError
from mktai_kit.trust import drift as module
from mktai_kit.trust.drift import (
    DRIFTED,
    SEVERE,
    STABLE,
    UNKNOWN,
    drift,
    plot_drift,
    psi,
    psi_by_chance,
    reference,
    statement,
)


def one(then, now, **options):
    return drift(reference(pd.DataFrame({"x": then})), pd.DataFrame({"x": now}), **options).iloc[0]


# ---- the index


@pytest.mark.parametrize(
    "then, now, published",  # BBVA's mercury-monitoring, tests of drift.metrics.psi, given to 1 %
    [
        ([12, 11, 14, 12, 12, 10, 12, 6, 6, 5], [11, 11, 12, 13, 11, 11, 13, 5, 7, 6], 0.0125),
        ([12, 4, 14, 2, 12, 1, 12, 1, 6, 1], [6, 11, 5, 13, 6, 11, 6, 5, 1, 6], 1.436),
    ],
)
def test_published_values(then, now, published):
    assert psi(then, now) == pytest.approx(published, rel=0.01) == psi(now, then)


def test_index_of_equal_empty_and_odd_counts():
    assert psi([5, 0, 5], [10, 0, 10]) == 0
    assert 0 < psi([5, 0, 5], [10, 3, 10]) < 10
    for then, now in (([1, 2], [1]), ([0, 0], [1, 1]), ([1, -1], [1, 1]), ([[1]], [[1]])):
        with pytest.raises(KitError):
            psi(then, now)


def test_what_chance_gives():
    assert psi_by_chance(1000, 1000, 10) == pytest.approx(
        16.918978 * 2 / 1000, rel=1e-6
    )  # Yurdakul (2018), chi-square table
    rng = np.random.default_rng(1)
    drawn = [psi(rng.multinomial(3000, np.full(10, 0.1)), rng.multinomial(800, np.full(10, 0.1))) for _ in range(1500)]
    assert np.quantile(drawn, 0.95) == pytest.approx(psi_by_chance(3000, 800, 10), rel=0.08)


# ---- against scipy


def test_equal_to_scipy_where_both_can():
    from scipy.stats import chi2_contingency, ks_2samp

    rng = np.random.default_rng(2)
    then, now = rng.poisson(4, 3000).astype(float), rng.poisson(4.3, 900).astype(float)
    row = one(then, now)
    assert row["ks"] == pytest.approx(ks_2samp(then, now).statistic, abs=1e-12)  # few values: the cuts miss nothing
    words = [
        np.array(list("abc"))[rng.choice(3, n, p=p)] for n, p in ((2000, (0.5, 0.3, 0.2)), (500, (0.45, 0.35, 0.2)))
    ]
    counts = [[(w == c).sum() for c in "abc"] for w in words]
    assert one(*words)["p"] == pytest.approx(chi2_contingency(counts, correction=False).pvalue, rel=1e-9)


def test_a_rare_class_is_judged_by_dealing_again():
    from scipy.stats import fisher_exact

    then, now = np.repeat([1.0, 0.0], [20, 1980]), np.repeat([1.0, 0.0], [7, 93])
    p = module._null(np.array([1980.0, 20.0]), np.array([93.0, 7.0]))[1]
    assert p == pytest.approx(fisher_exact([[1980, 20], [93, 7]]).pvalue, abs=1e-3) and one(then, now)["p"] < 0.01


# ---- the reference


def test_reference_reads_back_and_holds_no_row():
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {"x": rng.normal(size=500) / 3, "w": ["a", None, "b", "a", "c"] * 100, "f": [True, False] * 250, "c": 1.0}
    )
    known = reference(frame)
    assert (
        json.loads(json.dumps(known)) == known
        and json.loads(json.dumps(reference(frame.sample(frac=1, random_state=1)))) == known
    )
    assert known["columns"]["c"]["cuts"] == [] and known["columns"]["f"]["kind"] == "number"
    assert set(drift(known, frame)["psi"]) == {0.0} and set(drift(known, frame)["p"]) == {1.0}
    assert not set(np.round(frame["x"], 9)) & set(np.round(known["columns"]["x"]["cuts"], 9))


def test_the_last_digit_decides_nothing():
    then = np.repeat([0.1 + 0.2, 0.6, 0.9], 100)
    assert one(then, np.repeat([0.3, 0.6, 0.9], 100))["psi"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        pd.DataFrame(),
        pd.DataFrame({"d": pd.to_datetime(["2025-01-01"])}),
        pd.DataFrame({"x": [1.0, np.inf]}),
        "no frame",
    ],
)
def test_no_columns_to_look_at(bad):
    with pytest.raises(KitError):
        reference(bad)


def test_another_kind_of_value_is_an_error():
    with pytest.raises(KitError, match="numbers at the reference"):
        one([1.0, 2.0] * 50, ["a", "b"] * 50)
    with pytest.raises(KitError, match="clusters"):
        reference(pd.DataFrame({"x": [1.0, 2.0]}), cluster=[1])


# ---- verdicts


def test_missing_values_are_drift_too():
    x = np.arange(1000.0)
    lost = [np.where(np.arange(1000) % 20 < k, np.nan, x) for k in (0, 2, 8)]
    assert [one(x, now)["verdict"] for now in lost] == [STABLE, DRIFTED, SEVERE]
    assert one(lost[2], lost[2])["verdict"] == STABLE


def test_few_rows_and_nothing_known():
    assert one(np.arange(1000.0), np.arange(0, 1000.0, 25))["verdict"] == UNKNOWN  # 40 rows
    assert one(np.arange(1000.0), np.full(400, np.nan))["verdict"] == SEVERE  # all gone
    assert one(np.full(400, np.nan), np.full(400, np.nan))["verdict"] == UNKNOWN


def test_words_never_seen_and_rare_ones():
    row = one(["a", "b"] * 500, ["a", "b", "new", "a"] * 100)
    assert row["verdict"] == SEVERE and row["unseen"] == 0.25
    many = [f"w{i}" for i in range(300)] * 4
    known = reference(pd.DataFrame({"x": many}))
    assert len(known["columns"]["x"]["levels"]) == module.LEVELS and one(many, many)["psi"] == 0


def test_another_currency_shows_as_a_multiple():
    rng = np.random.default_rng(4)
    amounts = rng.gamma(2, 50, 2000)
    row = one(amounts, amounts[:500] * 100)
    assert row["times"] == pytest.approx(100, rel=0.1) and row["verdict"] == SEVERE


def test_rows_of_one_person_are_not_many():
    rng = np.random.default_rng(5)
    people = rng.normal(size=60)
    then, now = (
        pd.DataFrame({"x": rng.normal(size=3000)}),
        pd.DataFrame({"x": np.repeat(people, 50) + rng.normal(0, 0.01, 3000)}),
    )
    as_rows, as_people = (drift(reference(then), now, cluster=c).iloc[0] for c in (None, np.repeat(np.arange(60), 50)))
    assert as_rows["verdict"] != STABLE and as_rows["p"] < 1e-6
    assert as_people["p"] > 0.05 and as_people["verdict"] == UNKNOWN and as_people["chance"] > 0.1


def rates(worlds, m, shift, seed, columns=12):
    """Share of worlds with any alarm, and with the right one."""
    rng, found = np.random.default_rng(seed), []
    names = [str(c) for c in range(columns)]
    for _ in range(worlds):
        then, now = rng.normal(size=(2000, columns)), rng.normal(size=(m, columns))
        now[:, 0] += shift
        table = drift(reference(pd.DataFrame(then, columns=names)), pd.DataFrame(now, columns=names))
        alarm = table["verdict"].isin([DRIFTED, SEVERE])
        found.append([alarm.any(), alarm.iloc[0], table["p"].min() <= 0.05])
    return np.mean(found, axis=0)


def test_false_alarms_and_power():
    quiet = rates(60, 400, 0.0, seed=6)
    assert quiet[0] <= 0.03 and quiet[2] <= 0.12
    assert rates(25, 400, 0.5, seed=7)[1] >= 0.9


@pytest.mark.slow
def test_false_alarms_over_many_worlds():
    quiet = rates(500, 300, 0.0, seed=8)
    assert quiet[0] <= 0.01 and quiet[2] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)
    assert rates(200, 300, 0.5, seed=9)[1] >= 0.95


# ---- told


def test_statement_and_plot():
    import matplotlib

    matplotlib.use("Agg")
    rng = np.random.default_rng(9)
    then = pd.DataFrame(rng.normal(size=(900, 8)), columns=list("abcdefgh"))
    table = drift(reference(then), then + 2)
    said = statement(table)
    assert said.startswith("8 of 8 columns drifted; severe: ") and "and 3 more" in said
    assert "not enough data" in statement(drift(reference(then), then.iloc[:60]))
    axes = plot_drift(table, most=5)
    assert len(axes.get_yticklabels()) == 5 and axes.get_legend() is not None
    assert plot_drift(table, ax=axes) is axes
    matplotlib.pyplot.close("all")


def test_input_stays_as_it_was():
    frame = pd.DataFrame({"x": np.arange(200.0), "w": ["a", "b"] * 100})
    before, known = frame.copy(), reference(frame)
    kept = json.dumps(known)
    drift(known, frame)
    pd.testing.assert_frame_equal(frame, before)
    assert json.dumps(known) == kept
    with pytest.raises(KitError, match="w"):
        drift(known, frame[["x"]])
