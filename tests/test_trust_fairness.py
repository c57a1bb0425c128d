"""The fairness gate: against oracles, under simulated nulls, and with bad input."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mktai_kit.settings import KitError
from mktai_kit.trust import fairness as f

ALL = {"decision": "dec", "y_true": "y", "score": "score", "amount": "amount"}


def people(n=2000, gap=0.0, seed=0, shares=((0.5, 0.3, 0.2),), base=0.3):
    """Independent customers; the last group of a0 is selected less often by `gap`."""
    rng = np.random.default_rng([1, seed])
    score = rng.beta(base * 4, (1 - base) * 4, n)
    out = {f"a{k}": rng.choice(len(p), size=n, p=p) for k, p in enumerate(shares)}
    out |= {"score": score, "y": rng.binomial(1, score), "amount": rng.lognormal(2, 1, n)}
    out["dec"] = (rng.random(n) < np.clip(score + 0.1, 0, 1) - gap * (out["a0"] == len(shares[0]) - 1)).astype(int)
    return pd.DataFrame(out)


def households(h=400, seed=0):
    """Several rows per household, which share its score: strongly dependent."""
    rng = np.random.default_rng([2, seed])
    of = np.repeat(np.arange(h), rng.integers(1, 9, h))
    score = np.clip(rng.beta(1.2, 2.8, h)[of] + rng.normal(0, 0.02, len(of)), 0, 1)
    out = pd.DataFrame({"h": of, "score": score, "y": rng.binomial(1, score), "dec": (score > 0.35).astype(int)})
    return out.assign(a0=rng.choice(3, size=h, p=[0.5, 0.3, 0.2])[of], amount=rng.lognormal(2, 1, h)[of])


# ---------------------------------------------------------------- oracles


def test_values_equal_fairlearn():
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate

    d = people(5000)
    metrics = {"selection": selection_rate, "tpr": true_positive_rate, "fpr": false_positive_rate}
    oracle = MetricFrame(metrics=metrics, y_true=d.y, y_pred=d.dec, sensitive_features=d.a0).by_group
    mine = f.group_metrics(d, "a0", decision="dec", y_true="y", metrics=list(metrics), n_boot=99)
    mine = mine.pivot(index="group", columns="metric", values="value")
    assert np.allclose(mine[list(metrics)].to_numpy(), oracle.to_numpy(dtype=float), rtol=0, atol=1e-12)


def test_calibration_and_amount_equal_pandas_also_in_classes_and_clusters():
    for d, cluster in ((people(5000), None), (households(), "h")):
        mine = f.group_metrics(d, "a0", **ALL, cluster=cluster, n_boot=99).set_index(["metric", "group"]).value
        for g, rows in d.groupby("a0"):
            assert mine["calibration", str(g)] == pytest.approx((rows.y - rows.score).mean(), abs=1e-12)
            assert mine["amount", str(g)] == pytest.approx(rows.amount.mean(), abs=1e-10)


@pytest.mark.parametrize(("mine", "theirs"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_adjusted_p_values_equal_statsmodels(mine, theirs):
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(40) ** 3
    assert np.allclose(f.adjust_p(p, mine), multipletests(p, method=theirs)[1], atol=1e-15)
    with_gap = f.adjust_p([0.01, np.nan, 0.04], mine)
    assert np.isnan(with_gap[1]) and np.allclose(with_gap[[0, 2]], f.adjust_p([0.01, 0.04], mine))


def test_permutation_p_equals_full_enumeration():
    """Ten customers with one to three rows, five in each group: all 252 arrangements."""
    rng = np.random.default_rng(4)
    size = rng.integers(1, 4, 10)
    unit = np.repeat(np.arange(10), size)
    values = rng.normal(0, 1, len(unit)) + (unit < 5)
    cells = f._cells(values, (unit >= 5).astype(int), ["a", "b"], unit)
    total, rows = np.bincount(unit, values), size.astype(float)
    total = total - rows * values.mean()
    picks = [np.isin(np.arange(10), c).astype(float) for c in combinations(range(10), 5)]
    t = np.abs(f._t_value(np.array(picks), np.ones(10), total, rows))
    exact = (t >= t[0] * (1 - 1e-9)).mean()
    assert f._permutation_p(cells, 0, 1, 40_000, 40_000, rng) == pytest.approx(exact, abs=0.01)


def test_t_value_is_welch_for_single_rows():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    x, g = rng.normal(size=60), np.repeat([0, 1], [20, 40])
    t = f._t_value((g == 0)[None, :].astype(float), np.ones(60), x, np.ones(60))[0]
    assert t == pytest.approx(ttest_ind(x[g == 0], x[g == 1], equal_var=False).statistic)


def test_auc_equals_sklearn_and_its_error_is_right():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.3
    score = np.round(rng.normal(size=400) + y, 1)  # with ties
    assert f._auc(score, y)[0] == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    drawn = [f._auc(rng.normal(size=400) + y, y) for _i in range(200)]
    assert np.std([a for a, _e in drawn]) == pytest.approx(np.mean([np.sqrt((e**2).sum()) for _a, e in drawn]), rel=0.2)


# ---------------------------------------------------------------- what the gate may and may not do


def alarms(make, attributes, runs, **options):
    options = {"tolerance": 0, "n_perm": 499, "n_boot": 99} | options
    return np.mean([f.audit(make(s), attributes, seed=s, **options).verdict == f.FAIL for s in range(runs)])


def test_few_false_alarms():
    two = ((0.5, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1))
    rates = {"decision": "dec", "y_true": "y"}
    assert alarms(lambda s: people(800, seed=s, shares=two), ["a0", "a1"], 60, **rates) <= 0.07
    clustered = lambda s: households(300, seed=s)
    assert alarms(clustered, "a0", 60, cluster="h", **rates) <= 0.07
    assert alarms(clustered, "a0", 30, **rates) > 0.3  # rows taken for customers


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["holm", "bh"])
def test_false_alarms_in_400_runs(correction):
    """Two attributes, nine pairs, two metrics; every fail is a false one. Nominal level 5 %."""
    two = ((0.5, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1))
    make = lambda s: people(1000, seed=s, shares=two)
    assert alarms(make, ["a0", "a1"], 400, decision="dec", y_true="y", correction=correction) <= 0.07


@pytest.mark.slow
def test_false_alarms_in_400_runs_clustered():
    assert alarms(lambda s: households(300, seed=s), "a0", 400, cluster="h", n_perm=199, **ALL) <= 0.07


def test_unequal_spread_raises_no_false_alarm():
    """Calibrated scores, base rates of 5 and 50 %, a small group: spreads differ, means do not."""

    def make(seed):
        rng = np.random.default_rng([3, seed])
        g = (rng.random(800) < 0.1).astype(int)
        score = np.where(g == 1, rng.beta(4, 4, 800), rng.beta(0.5, 9, 800))
        return pd.DataFrame({"a0": g, "score": score, "y": rng.binomial(1, score)})

    assert alarms(make, "a0", 100, y_true="y", score="score", n_perm=199) <= 0.1


def test_power_and_pass():
    verdict = lambda n, gap: [
        f.audit(people(n, gap, s), "a0", decision="dec", n_perm=499, n_boot=199).verdict for s in range(10)
    ]
    assert verdict(3000, 0.2).count(f.FAIL) == 10
    assert verdict(20_000, 0.0).count(f.PASS) >= 8
    assert verdict(300, 0.0).count(f.UNKNOWN) >= 9


def test_a_gap_at_the_tolerance_is_not_certified():
    """A wrong pass happens at most at half the level (2.5 %)."""
    n, runs, passed = 4000, 400, 0
    for s in range(runs):
        rng = np.random.default_rng([4, s])
        g = np.repeat([0, 1], n // 2)
        cells = f._cells(rng.binomial(1, np.where(g == 0, 0.35, 0.30)).astype(float), g, ["a", "b"], np.arange(n))
        draws = f._draws(cells, 199, rng, np.tile([0.0, 1.0], (2, 1)))
        low, high = f._interval(draws[0] - draws[1], 0.05)
        passed += -0.05 <= low and high <= 0.05
    assert passed / runs <= 0.05


@pytest.mark.parametrize(("n_a", "p_a"), [(50, 0.02), (50, 0.3), (200, 0.1)])
def test_intervals_cover(n_a, p_a):
    g, covered, runs = np.repeat([0, 1], [n_a, 500]), 0, 400
    for s in range(runs):
        rng = np.random.default_rng([5, s])
        cells = f._cells(rng.binomial(1, np.where(g == 0, p_a, 0.1)).astype(float), g, ["a", "b"], np.arange(len(g)))
        draws = f._draws(cells, 399, rng, np.tile([0.0, 1.0], (2, 1)))
        low, high = f._interval(draws[0] - draws[1], 0.05)
        covered += low <= p_a - 0.1 <= high
    assert 0.92 <= covered / runs <= 0.995


def test_the_interval_holds_zero_without_a_gap():
    """fairlearn's difference (largest minus smallest) never can."""
    table = f.audit(people(3000, seed=1), "a0", decision="dec").table
    assert ((table.low < 0) & (0 < table.high)).all()


def test_bootstrap_of_100k_rows_is_quick():
    import time

    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 100_000)
    start = time.perf_counter()
    cells = f._cells(rng.binomial(1, 0.3, 100_000).astype(float), group, list("abcd"), np.arange(100_000))
    f._draws(cells, 1000, rng, np.tile([0.0, 1.0], (4, 1)))
    assert time.perf_counter() - start < 1


def test_same_seed_same_report_whatever_the_row_order():
    d = people(600, 0.2)
    first = f.audit(d, "a0", decision="dec", y_true="y").to_dict()
    assert first == f.audit(d.sample(frac=1, random_state=1), "a0", decision="dec", y_true="y").to_dict()
    assert first != f.audit(d, "a0", decision="dec", y_true="y", seed=1).to_dict()


def test_more_shuffles_where_many_comparisons_need_them():
    """With 99 shuffles and 18 comparisons the smallest p could never pass Holm's first step."""
    d = people(3000, 0.25, shares=((0.5, 0.3, 0.2), (0.4, 0.3, 0.2, 0.1)))
    assert f.audit(d, ["a0", "a1"], decision="dec", y_true="y", n_perm=99).verdict == f.FAIL


def test_repeating_every_row_changes_nothing_when_clustered():
    d = people(600, 0.15).assign(who=np.arange(600))
    thrice = pd.concat([d] * 3, ignore_index=True)
    single, many = (f.audit(x, "a0", decision="dec", cluster="who").table for x in (d, thrice))
    pd.testing.assert_frame_equal(single, many, rtol=1e-9)


# ---------------------------------------------------------------- missing groups


def test_worst_case_bounds_hold_every_completion():
    """All ways to give three unknown customers a group stay within the bounds, and reach them."""
    d = pd.DataFrame({"g": list("aaaabbbb") + [None] * 3, "dec": [1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1]})
    row = f.missingness_bounds(d, "g", decision="dec", min_n=2, n_perm=99, n_boot=99).query("kind == 'bounds'").iloc[0]
    gaps = []
    for choice in np.ndindex(3, 3, 3):  # a, b, or some third group
        g = np.array(list("aaaabbbb") + ["abc"[i] for i in choice])
        gaps.append(d.dec[g == "a"].mean() - d.dec[g == "b"].mean())
    assert (row.worst_low, row.worst_high) == pytest.approx((min(gaps), max(gaps)))
    assert row.worst_low <= row.mix_low <= row.gap <= row.mix_high <= row.worst_high


def test_bounds_of_amounts_by_household_hold_the_truth():
    d = households(300)
    known = np.random.default_rng(0).random(300) < 0.7
    part = d.assign(a0=d.a0.where(known[d.h]))
    table = f.missingness_bounds(part, "a0", amount="amount", cluster="h", min_n=20, n_perm=99, n_boot=99)
    truth = d.groupby(d.a0.astype(float).astype(str)).amount.mean()
    for row in table.query("kind == 'bounds'").itertuples():
        assert row.worst_low <= truth[row.group_a] - truth[row.group_b] <= row.worst_high


def test_low_coverage_takes_the_pass_away():
    d = people(20_000, seed=3)
    assert f.audit(d, "a0", decision="dec").verdict == f.PASS
    part = d.assign(a0=d.a0.where(np.arange(len(d)) % 10 < 7))
    report = f.audit(part, "a0", decision="dec")
    assert (report.table.verdict == f.PASS).all() and report.verdict == f.UNKNOWN
    assert report.coverage.n_known[0] == 14_000 and "70%" in report.reasons[0]
    assert f.audit(part, "a0", decision="dec", min_coverage=0.5).verdict == f.PASS
    assert f.missingness_bounds(d, "a0", decision="dec").empty


# ---------------------------------------------------------------- proxies


def test_proxies_are_named_and_blindness_is_seen():
    rng = np.random.default_rng(0)
    d = people(1500).assign(noise=rng.normal(size=1500), city=rng.choice(list("xyz"), 1500), gap=np.nan)
    d["hint"] = np.where(rng.random(1500) < 0.8, d.a0, rng.integers(0, 3, 1500)).astype(str)
    found = f.proxy_auc(d, "a0", ["noise", "city", "hint", "gap"]).set_index(["group", "feature"])
    assert (found.low[:, "hint"] > 0.75).all() and (found.low[:, "(all)"] > 0.75).all()
    for blind in ("noise", "city"):
        assert found.auc[:, blind].between(0.44, 0.56).all()
    assert (found.auc[:, "gap"] == 0.5).all()  # an empty feature says nothing


def test_proxy_interval_counts_households():
    d = households(200).assign(tall=lambda x: np.random.default_rng(1).normal(size=200)[x.h])
    width = lambda t: (t.high - t.low).mean()
    rows, whole = (f.proxy_auc(d, "a0", ["tall"], cluster=c, min_n=20) for c in (None, "h"))
    assert width(whole) > width(rows) and whole.auc.between(0.35, 0.65).all()


def test_proxies_with_too_little_data():
    d = people(60)
    assert f.proxy_auc(d, "a0", ["score"]).auc.isna().all()
    assert f.proxy_auc(d.assign(a0=np.nan), "a0", ["score"]).empty
    report = f.audit(d.assign(a0=np.nan), "a0", decision="dec", features=["score"])
    assert report.verdict == f.UNKNOWN and report.table.empty
    assert f.proxy_auc(people(3000), "a0", ["score"], max_units=500).n.sum() == 2 * 500  # "(all)" and the feature


# ---------------------------------------------------------------- input that is bad, or thin

BAD = {
    "no rows": (lambda d: d.head(0), {}, "no table with rows"),
    "no table": (lambda d: [1, 2], {}, "no table with rows"),
    "missing column": (lambda d: d, {"decision": "nope"}, "'nope' is missing"),
    "missing attribute": (lambda d: d.drop(columns="a0"), {}, "'a0' is missing"),
    "no attribute": (lambda d: d, {"attributes": []}, "no attribute"),
    "column twice": (lambda d: d[["a0", "dec", "dec"]], {"decision": "dec"}, "2 times"),
    "decision 2": (lambda d: d.assign(dec=2), {}, "not 0 or 1"),
    "decision text": (lambda d: d.assign(dec="yes"), {}, "'yes'"),
    "decision NaN": (lambda d: d.assign(dec=np.nan), {}, "not 0 or 1"),
    "score NaN": (lambda d: d.assign(score=np.nan), {}, "probabilities"),
    "score 1.2": (lambda d: d.assign(score=1.2), {}, "probabilities"),
    "amount infinite": (lambda d: d.assign(amount=np.inf), {}, "finite"),
    "length": (lambda d: d, {"decision": [0, 1]}, "2 values for 300 rows"),
    "scalar": (lambda d: d, {"decision": 1}, "1 values for 300 rows"),
    "other index": (lambda d: d, {"decision": pd.Series(np.zeros(300), index=range(5, 305))}, "index"),
    "nothing to compare": (
        lambda d: d,
        {"decision": None, "y_true": None, "score": None, "amount": None},
        "nothing to compare",
    ),
    "metric without columns": (lambda d: d, {"y_true": None, "metrics": ["tpr"]}, "tpr needs decision and y_true"),
    "unknown metric": (lambda d: d, {"metrics": ["luck"]}, "'luck' is no metric"),
    "tolerance of no metric": (lambda d: d, {"tolerance": {"luck": 1}}, "'luck' is no metric"),
    "negative tolerance": (lambda d: d, {"tolerance": -0.1}, "0 or more"),
    "NaN tolerance": (lambda d: d, {"tolerance": np.nan}, "0 or more"),
    "correction": (lambda d: d, {"correction": "none"}, "'none' is not known"),
    "level": (lambda d: d, {"level": 5}, "between 0 and 1"),
    "few shuffles": (lambda d: d, {"n_perm": 10}, "below 99"),
    "min_n": (lambda d: d, {"min_n": 0}, "below 2"),
    "an id as attribute": (lambda d: d.assign(a0=np.arange(300)), {}, "bands"),
    "cluster missing": (lambda d: d.assign(h=np.nan), {"cluster": "h"}, "no cluster"),
    "two groups in a cluster": (lambda d: d.assign(h=1), {"cluster": "h"}, "more than one group"),
    "group and gap in a cluster": (
        lambda d: d.assign(h=1, a0=["x"] + [None] * 299),
        {"cluster": "h"},
        "a group and a gap",
    ),
    "feature missing": (lambda d: d, {"features": ["nope"]}, "'nope' is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    change, options, message = BAD[case]
    with pytest.raises(KitError, match=message) as e:
        f.audit(change(people(300)), **({"attributes": "a0"} | ALL | options))
    assert "Mend" in str(e.value)


THIN = {
    "one group": lambda d: d.assign(a0="all"),
    "all missing": lambda d: d.assign(a0=None),
    "all missing, categorical": lambda d: d.assign(a0=pd.Categorical([None] * len(d), categories=["x", "y"])),
    "one outcome": lambda d: d.assign(y=0),
    "a single row": lambda d: d.head(1),
    "small groups": lambda d: d.head(90),
    "nullable": lambda d: d.convert_dtypes(),
}


@pytest.mark.parametrize("case", THIN)
def test_thin_data_is_not_enough_data(case):
    report = f.audit(THIN[case](people(300)), "a0", **ALL)
    assert report.verdict == f.UNKNOWN and report.reasons
    json.dumps(report.to_dict(), allow_nan=False)


def test_small_groups_show_no_number():
    table = f.audit(people(3000, shares=((0.6, 0.39, 0.01),)), "a0", decision="dec").table
    small = table[(table.n_b < 50) | (table.n_a < 50)]
    assert len(small) == 2 and small[["gap", "low", "high", "p", "p_adjusted"]].isna().all(axis=None)
    assert (small.verdict == f.UNKNOWN).all() and small.value_b.isna().all()


def test_nobody_chosen_is_not_certain():
    d = pd.DataFrame({"a0": ["x"] * 40 + ["y"] * 40, "dec": 0})
    report = f.audit(d, "a0", decision="dec", min_n=20)
    assert report.verdict == f.UNKNOWN and report.table.p[0] == 1
    everything = f.audit(d.assign(dec=[0] * 40 + [1] * 40), "a0", decision="dec", min_n=20)
    assert everything.verdict == f.FAIL


def test_one_price_for_all_passes():
    report = f.audit(people(300).assign(amount=9.99), "a0", amount="amount", min_n=20)
    assert report.verdict == f.PASS and (report.table.gap.abs() < 1e-9).all()


def test_hostile_names_stay_text():
    import matplotlib.pyplot as plt

    names = np.array(["<script>alert(1)</script>", "$50K-74K", "=1+1"])
    d = people(900, 0.3)
    d["a0"] = names[d.a0]
    report = f.audit(d, "a0", decision="dec")
    assert set(report.table.group_a) | set(report.table.group_b) == set(names)
    assert "<script>" not in report.table.to_html() and "$50K-74K" in json.dumps(report.to_dict())
    ax = f.plot_gaps(report)
    ax.figure.canvas.draw()
    assert len(ax.get_yticklabels()) == 3
    plt.close("all")


def test_plot_without_numbers_and_for_money():
    import matplotlib.pyplot as plt

    empty = f.plot_gaps(f.audit(people(60), "a0", decision="dec"))
    money = f.plot_gaps(f.audit(people(900), "a0", **ALL), metrics=["amount"], ax=plt.figure().subplots())
    assert len(empty.get_yticks()) == 0 and len(money.get_yticks()) == 3
    plt.close("all")


def test_categories_keep_their_order_and_arrays_work():
    d = people(600)
    age = pd.Categorical.from_codes(d.a0, ["young", "middle", "aged"])
    table = f.audit(d.assign(a0=age), "a0", decision=d.dec.astype(bool), cluster=np.arange(600)).table
    assert table.group_a.tolist() == ["young", "young", "middle"]


def test_amount_tolerance_is_a_share_unless_given():
    d = people(900)
    share, unit = (f.audit(d, "a0", amount="amount", tolerance=t).table.tolerance[0] for t in (0.1, {"amount": 3}))
    assert share == pytest.approx(0.1 * d.amount.mean()) and unit == 3


def test_reasons_say_when_the_known_are_no_sample_and_point_one_way():
    d = people(4000, 0.3, seed=2)
    known = np.random.default_rng(0).random(4000) < np.where(d.dec == 1, 0.9, 0.4)
    report = f.audit(d.assign(a0=d.a0.where(known)), "a0", decision="dec")
    assert any("no sample of all" in r and "higher" in r for r in report.reasons)
    gap = f.audit(d, "a0", decision="dec").reasons[0]
    low, high = (float(x) for x in gap.split("[")[1].split("]")[0].split(", "))
    assert 0 < low < high and " higher than of 2 " in gap  # group a minus group b, in words
