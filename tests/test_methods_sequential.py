"""Always-valid intervals: the formula, its duality with p, false alarms under peeking, and replays of tests."""

import json

import numpy as np
import pandas as pd
import pytest

from mktai_kit.decide import programme
from mktai_kit.methods import sequential as S
from mktai_kit.methods.experiments import Metric, ratio_effect
from mktai_kit.methods.sequential import confidence_sequence, peek, peeking_rates, plot_peek
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce

BOUGHT = Metric("bought", "proportion", "bought")


def made(seed, n=4000, lift=0.0):
    rng = np.random.default_rng(seed)
    d = pd.DataFrame(
        {
            "entered": pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(n), unit="min"),
            "arm": rng.choice(["control", "treatment"], n),
        }
    )
    return d.assign(bought=(rng.random(n) < 0.1 + lift * (d["arm"] == "treatment")).astype(int))


def test_one_core():
    assert programme._sequence is S._sequence and programme._scores_so_far is S._scores_so_far
    rng = np.random.default_rng(1)
    score = rng.normal(0.2, 1, 500)
    path = S._sequence(score, np.ones(500, bool), 0.05, 400)
    n = np.array([100, 300, 500])
    looks = confidence_sequence([score[:k].mean() for k in n], [score[:k].std() / np.sqrt(k) for k in n], n, 400)
    assert looks[["value", "low", "high"]].to_numpy() == pytest.approx(path.loc[n].to_numpy())


def test_interval_and_p_say_the_same():
    rng = np.random.default_rng(2)
    for _k in range(40):
        looks = confidence_sequence(rng.normal(0.1, 0.1, 6), [0.05] * 6, np.arange(1, 7) * 100, 300, level=0.9)
        out = (looks["low"] > 0) | (looks["high"] < 0)
        assert (out.cummax() == (looks["p"] < 0.1)).all() and looks["p"].is_monotonic_decreasing
    wide = confidence_sequence([0.0] * 3, [1 / np.sqrt(n) for n in (10, 400, 40_000)], [10, 400, 40_000], 400)
    ratio = wide["high"] * np.sqrt(wide["n"])
    assert ratio.idxmin() == 1 and ratio[1] / 1.96 == pytest.approx(1.55, abs=0.01)


def test_a_replay():
    d = made(3, lift=0.06)
    seen = peek(d, BOUGHT, "entered", planned=4000)
    assert seen.verdict == "better" and seen.naive_at <= seen.at and seen.estimate.low > 0 and len(seen.table) == 10
    last = ratio_effect(d["bought"], 1, d["arm"])
    assert seen.table[["value", "se", "naive_p"]].iloc[-1].tolist() == pytest.approx(
        [last.absolute.value, last.se, last.p]
    )
    again = peek(d.sample(frac=1, random_state=1), BOUGHT, "entered", planned=4000)
    assert np.allclose(again.table["low"], seen.table["low"], equal_nan=True) and json.dumps(seen.to_dict())
    down = peek(d, Metric("b", "proportion", "bought", direction="down"), "entered", planned=4000)
    assert (down.verdict, down.at) == ("worse", seen.at)
    assert plot_peek(seen).get_xlabel() == "Units so far"
    weeks = pd.to_datetime(["2025-01-01 12:00", "2025-01-02 00:00"])
    dated = peek(d, BOUGHT, "entered", looks=weeks)
    assert dated.table["n"].tolist() == [721, 1441]


def test_clusters_and_covariates():
    d = (
        made(4, 1500)
        .loc[lambda x: x.index.repeat(2)]
        .assign(visitor=lambda x: "v" + x.index.astype(str))
        .reset_index(drop=True)
    )
    d["past"] = d["bought"] + np.random.default_rng(1).normal(0, 0.2, len(d))
    by_visitor, per_row = (peek(d, BOUGHT, "entered", cluster=c) for c in ("visitor", None))
    assert (
        by_visitor.table["se"].iloc[-1] > 1.3 * per_row.table["se"].iloc[-1] and by_visitor.table["n"].iloc[-1] == 1500
    )
    helped = peek(d, BOUGHT, "entered", cluster="visitor", covariates=["past"])
    assert helped.table["se"].iloc[-1] < 0.8 * by_visitor.table["se"].iloc[-1]


def test_too_little_data():
    seen = peek(made(5, 300), BOUGHT, "entered", looks=5)
    assert seen.table["valid"].iloc[0] == "not enough data" and seen.table["value"].isna().iloc[0]
    none = peek(made(5, 60), BOUGHT, "entered", looks=2)
    assert none.estimate.value is None and none.verdict == "no difference shown" and json.dumps(none.to_dict())
    plot_peek(none)


def test_peeking_is_punished_and_the_sequence_holds():
    rates = peeking_rates(made(6, 2000), BOUGHT, "entered", n_sims=100)["alarms"]
    assert rates[0].low < 0.05 < rates[0].high and rates[1].low > 0.06 and rates[2].value <= 0.055
    two = (peeking_rates(made(6, 500), BOUGHT, "entered", n_sims=20)["alarms"] for _k in range(2))
    assert next(two).equals(next(two))


def test_in_a_world():
    tables = ecommerce.simulate(0.005, 3, "null").tables
    u = ecommerce.readout(tables, "homepage").rename(columns={"action": "arm"}).astype({"arm": str})
    given = tables["assignments"].dropna(subset="visitor_id").drop_duplicates(["campaign_id", "visitor_id"])
    number = tables["campaigns"].set_index("objective").loc["homepage", "campaign_id"]
    u["entered"] = u["visitor_id"].map(given[given["campaign_id"] == number].set_index("visitor_id")["timestamp"])
    assert peek(u, Metric("orders", "mean", "goal"), "entered").verdict == "no difference shown"


def test_errors():
    d = made(7, 200)
    for bad, holds in [
        (lambda: peek(d, BOUGHT, "when"), "no column 'when'"),
        (lambda: peek(d, BOUGHT, "entered", arm="group"), "no column 'group'"),
        (lambda: peek(d, BOUGHT, "entered", control="old"), "no row has the control 'old'"),
        (lambda: peek(d, BOUGHT, "entered", looks=0), "0 looks"),
        (lambda: peek(d, BOUGHT, "entered", looks=pd.to_datetime(["2025-01-02", "2025-01-01"])), "growing moments"),
        (lambda: peek(d.assign(entered=pd.NaT), BOUGHT, "entered"), "200 units have no moment"),
        (lambda: peeking_rates(d, BOUGHT, "entered", n_sims=1), "20 tosses"),
        (lambda: confidence_sequence([1, 2], [1], [1, 2], 10), "differ in length"),
        (lambda: confidence_sequence([1, 2], [1, 1], [2, 1], 10), "n shrinks"),
        (lambda: confidence_sequence([1], [1], [2], 0), "expected_n 0"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()


def test_moments_of_all_kinds():
    rng = np.random.default_rng(12)
    when = pd.Series(pd.date_range("2025-01-01", periods=600, freq="h"))
    units = pd.DataFrame({"t": when, "arm": rng.choice(["control", "new"], 600), "y": rng.poisson(1.0, 600)})
    y, days = Metric("y", "mean", "y"), ["2025-01-09", "2025-01-25"]
    plain = peek(units, y, "t", looks=days)
    for zoned in (
        units.assign(t=when.dt.tz_localize("UTC")),
        units.assign(t=when.dt.tz_localize("UTC").dt.tz_convert("Europe/Paris")),
    ):
        for looks in (days, [pd.Timestamp(d, tz="UTC") for d in days]):
            pd.testing.assert_frame_equal(peek(zoned, y, "t", looks=looks).table, plain.table)
    for bad, holds in [
        (lambda: peek(units, y, "t", looks="weekly"), "no moments"),
        (lambda: peek(units, y, "t", looks=["2024-01-01"]), "before the first unit"),
        (lambda: peek(units.assign(t=when.astype(object).where(when.index > 3, "a")), y, "t"), "several kinds"),
        (lambda: peek(units, y, "t", cluster="zz"), "no column 'zz'"),
        (lambda: peek(units, y, "t", covariates="y"), "single name"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()


def test_an_effect_without_error_is_no_chance():
    assert (
        confidence_sequence([1.0], [0.0], [100], 100)["p"][0] == 0
        and confidence_sequence([0.0], [0.0], [100], 100)["p"][0] == 1
    )
