"""Readouts: effects against statsmodels and known truths, CUPED, guardrails, decisions, A/A tests, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from mktai_kit.methods import experiments as X
from mktai_kit.methods.experiments import (
    Metric,
    aa_simulation,
    cuped,
    non_inferiority,
    plot_effects,
    ratio_effect,
    readout,
    spread,
)
from mktai_kit.methods.metrics import Estimate
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce, truth

BOUGHT = Metric("bought", "proportion", "bought")


def visitors(seed, n=4000, lift=0.0):
    """Visitors with a past, of whom half are treated; spend is a habit."""
    rng = np.random.default_rng(seed)
    past = rng.gamma(2, 2, n)
    arm = np.where(rng.random(n) < 0.5, "treatment", "control")
    spend = past + rng.normal(0, 2, n) + lift * (arm == "treatment")
    bought = (rng.random(n) < 0.1 + 0.05 * lift * (arm == "treatment")).astype(int)
    return pd.DataFrame({"arm": arm, "past": past, "spend": spend, "bought": bought}, index=[f"v{k}" for k in range(n)])


def in_sessions(seed, n=600, lift=0.0):
    """Sessions whose outcome is largely the visitor's."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(n), rng.poisson(2, n) + 1)
    arm = np.where(rng.random(n) < 0.5, "treatment", "control")
    y = rng.normal(2 + lift * (arm == "treatment"), 1, n)[of] + rng.normal(0, 0.5, len(of))
    return pd.DataFrame({"visitor": of, "arm": arm[of], "y": y, "one": 1.0})


# effects


def test_welch_as_in_statsmodels():
    d = visitors(1, 300, 0.4)
    mine = ratio_effect(d["spend"], 1, d["arm"])
    a, b = (DescrStatsW(d.loc[d["arm"] == x, "spend"]) for x in ("treatment", "control"))
    theirs = CompareMeans(a, b)
    assert (mine.absolute.low, mine.absolute.high) == pytest.approx(theirs.tconfint_diff(usevar="unequal"))
    assert mine.p == pytest.approx(theirs.ttest_ind(usevar="unequal")[1]) and mine.absolute.value == pytest.approx(
        a.mean - b.mean
    )


def test_clusters_as_in_statsmodels():
    d = in_sessions(2, lift=0.1)
    mine = ratio_effect(d["y"], 1, d["arm"], cluster=d["visitor"])
    X1 = sm.add_constant((d["arm"] == "treatment").astype(float))
    theirs = sm.OLS(d["y"], X1).fit(cov_type="cluster", cov_kwds={"groups": d["visitor"], "use_correction": False})
    assert mine.absolute.value == pytest.approx(theirs.params["arm"]) and mine.se == pytest.approx(
        theirs.bse["arm"], rel=3e-3
    )
    assert mine.se > 1.3 * ratio_effect(d["y"], 1, d["arm"]).se
    same = ratio_effect(
        d.groupby("visitor")["y"].sum(), d.groupby("visitor").size(), d.groupby("visitor")["arm"].first()
    )
    assert (same.se, same.absolute.value) == pytest.approx((mine.se, mine.absolute.value))


def test_cuped_is_the_analysis_of_covariance():
    d = visitors(3, 500, 0.3)
    mine = ratio_effect(d["spend"], 1, d["arm"], covariates=d["past"])
    theirs = sm.OLS(
        d["spend"], sm.add_constant(pd.DataFrame({"t": (d["arm"] == "treatment") * 1.0, "x": d["past"]}))
    ).fit(cov_type="HC1")
    assert mine.absolute.value == pytest.approx(theirs.params["t"]) and mine.se == pytest.approx(
        theirs.bse["t"], rel=0.01
    )
    done = cuped(d["spend"], d["past"], d["arm"])
    assert done.kept.low < mine.kept < done.kept.high and done.theta[0] == pytest.approx(theirs.params["x"])
    after = ratio_effect(done.adjusted, 1, d["arm"])
    assert after.absolute.value == pytest.approx(mine.absolute.value) and done.balance > 0.001
    shuffled = cuped(d["spend"], d["past"].sample(frac=1, random_state=2), d["arm"].sample(frac=1, random_state=3))
    pd.testing.assert_series_equal(shuffled.adjusted, done.adjusted)
    assert cuped(d["spend"], d[["past"]].assign(again=d["past"], none=1.0), d["arm"]).kept.value == pytest.approx(
        done.kept.value
    )
    assert cuped(d["spend"], d["spend"] + 3 * (d["arm"] == "treatment"), d["arm"]).balance < 1e-6


def test_fieller_by_hand():
    value, cov, q = np.array([2.0, 3.0]), np.array([[0.04, 0.01], [0.01, 0.09]]), 1.96
    for end in X._fieller(value, cov, q):
        rho = 1 + end
        assert (3 - rho * 2) ** 2 == pytest.approx(q**2 * (0.09 - 2 * rho * 0.01 + rho**2 * 0.04))
    assert X._fieller(np.array([0.1, 3.0]), cov, q) is None and X._fieller(np.array([-2.0, 3.0]), cov, q) is None


def test_intervals_cover_and_the_naive_one_does_not():
    hits = []
    for seed in range(100):
        d = in_sessions(seed, 200, lift=0.2)
        right = ratio_effect(d["y"], 1, d["arm"], cluster=d["visitor"])
        wrong = ratio_effect(d["y"], 1, d["arm"])
        past = ratio_effect(
            d["y"], 1, d["arm"], cluster=d["visitor"], covariates=d["y"].groupby(d["visitor"]).transform("size")
        )
        hits.append([e.low <= v <= e.high for e, v in
                     ((right.absolute, 0.2), (right.relative, 0.1), (past.absolute, 0.2), (wrong.absolute, 0.2))])  # fmt: skip
    right, relative, past, wrong = np.mean(hits, axis=0)
    assert min(right, relative, past) > 0.9 > 0.85 > wrong


def test_too_little_data():
    d = visitors(4, 80)
    assert "not enough data" in ratio_effect(d["spend"], 1, d["arm"]).absolute.note
    few = ratio_effect([1] * 4 + [0] * 196, 1, ["control", "new"] * 100)
    assert few.p is None and "2 units of control" in few.absolute.note and json.dumps(few.to_dict())
    assert "does not vary" in ratio_effect([2.0] * 200, 1, ["control", "new"] * 100).absolute.note
    none = ratio_effect(np.tile([-1.0, -1.0, 1.1, 1.0], 50), 1, ["control", "new"] * 100)
    assert none.relative.value is None and none.absolute.value is not None


# the readout


def test_decisions():
    d = visitors(5, 6000, 1.0)
    guard = Metric("spend", "mean", "spend", role="guardrail", margin=0.05)
    assert readout(d, [BOUGHT, guard]).decision == "ship"
    bad = d.assign(spend=d["spend"] - 2 * (d["arm"] == "treatment"))
    assert (
        readout(bad, [BOUGHT, guard]).decision == "do not ship" and "Guardrail" in readout(bad, [BOUGHT, guard]).reason
    )
    vague = Metric("spend", "mean", "spend", role="guardrail", margin=0.0)
    same = d.assign(spend=d["past"])
    assert readout(same, [BOUGHT, vague]).decision == "keep running"
    assert readout(d, [Metric("bought", "proportion", "bought", direction="down")]).decision == "do not ship"
    assert readout(d, [BOUGHT], planned=10_000).decision == "keep running"
    flat = visitors(6, 6000)
    assert readout(flat, [BOUGHT]).decision == "do not ship"
    assert readout(flat, [Metric("bought", "proportion", "bought", worth=0.05)]).decision == "keep running"
    assert readout(flat, [Metric("bought", "proportion", "bought", worth=0.9)]).decision == "do not ship"
    assert readout(visitors(7, 300), [BOUGHT], min_events=60).decision == "keep running"


def test_a_broken_split_is_not_read():
    d = visitors(8, 4000, 1.0)
    lost = d[(d["arm"] == "control") | (d["past"] > 2)].assign(who=lambda x: np.where(x["past"] > 2, "keen", "cool"))
    read = readout(lost, [BOUGHT], by="who")
    assert read.decision == "invalid" and not len(read.table) and "cool (100% of treatment)" in read.reason
    assert read.arm is None and json.dumps(read.to_dict()) and "invalid" in read._repr_markdown_()
    assert readout(lost, [BOUGHT], expected=lost["arm"].value_counts().to_dict()).decision != "invalid"
    leaked = readout(d.assign(after=d["past"] + (d["arm"] == "treatment")), [BOUGHT], covariates=["after"])
    assert leaked.decision == "invalid" and "not measured before" in leaked.reason
    only = readout(d[d["arm"] == "control"], [BOUGHT], expected={"control": 1, "treatment": 1})
    assert only.decision == "invalid"


def test_several_arms_and_metrics():
    rng = np.random.default_rng(9)
    d = pd.DataFrame({"arm": rng.choice(["control", "a", "b"], 9000)})
    d["bought"] = (rng.random(9000) < d["arm"].map({"control": 0.1, "a": 0.1, "b": 0.14})).astype(int)
    for k in range(8):
        d[f"m{k}"] = rng.normal(0, 1, 9000) + 1
    others = [Metric(f"m{k}", "mean", f"m{k}", role="secondary") for k in range(8)]
    read = readout(d, [BOUGHT, *others])
    assert (read.decision, read.arm) == ("ship", "b") and read.decisions["decision"].to_dict() == {
        "a": "do not ship",
        "b": "ship",
    }
    second = read.table[read.table["role"] == "secondary"]
    assert (second["p_adjusted"] >= second["p"]).all() and len(second) == 16
    shuffled = readout(d.sample(frac=1, random_state=1), [BOUGHT, *others])
    assert np.allclose(shuffled.table["p"], read.table["p"]) and shuffled.reason == read.reason
    assert readout(d, [BOUGHT, *others])._repr_markdown_() == read._repr_markdown_() and json.dumps(read.to_dict())


def test_clusters_covariates_and_pictures():
    d = in_sessions(10, 800).assign(past=lambda x: x.groupby("visitor")["y"].transform("mean").round())
    ratio = Metric("y per session", "ratio", "y", denominator="one")
    plain, helped = (readout(d, [ratio], cluster="visitor", covariates=c) for c in (None, ["past"]))
    assert plain.check.n == 800 and helped.table["kept"][0] < 0.6
    assert helped.table["absolute"][0].high - helped.table["absolute"][0].low < 0.8 * (
        plain.table["absolute"][0].high - plain.table["absolute"][0].low
    )
    ax = plot_effects(helped)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["y per session"]
    assert plot_effects(readout(d, [ratio], cluster="visitor", expected={"control": 9, "treatment": 1})) is not None
    s = spread(d, ratio, cluster="visitor")
    assert s["n"] == 800 and 2 * s["sd"] / 800**0.5 * 1.96 == pytest.approx(
        plain.table["absolute"][0].high - plain.table["absolute"][0].value, rel=0.05
    )
    assert spread(d, ratio, cluster="visitor", covariates=["past"])["sd"] < 0.8 * s["sd"]


def test_non_inferiority():
    e = Estimate(-0.01, -0.03, 0.01, 100)
    assert [non_inferiority(e, m) for m in (0.04, 0.02)] == ["within", "not shown"]
    assert (
        non_inferiority(e, 0.02, "down") == "within"
        and non_inferiority(Estimate(-0.1, -0.12, -0.08, 9), 0.05) == "beyond"
    )
    assert non_inferiority(Estimate(None, None, None, 3), 0.05) == "not enough data"
    with pytest.raises(KitError, match="margin -1"):
        non_inferiority(e, -1)


def test_errors():
    d = visitors(11, 400)
    for bad, holds in [
        (lambda: readout(d, []), "one of them the role 'primary'"),
        (lambda: readout(d, [BOUGHT, BOUGHT]), "different names"),
        (lambda: readout(d[:0], [BOUGHT]), "no units"),
        (lambda: readout(d, [Metric("x", "mean", "spent")]), "no column 'spent'"),
        (lambda: readout(d, [Metric("x", "proportion", "spend")]), "other values than 0 and 1"),
        (lambda: readout(d.assign(spend=np.nan), [Metric("x", "mean", "spend")]), "missing or infinite"),
        (lambda: readout(d.assign(spend="a"), [Metric("x", "mean", "spend")]), "not numbers"),
        (lambda: readout(d, [BOUGHT], arm="group"), "no column 'group'"),
        (lambda: readout(d, [BOUGHT], control="old"), "no row has the control 'old'"),
        (lambda: readout(pd.concat([d, d]), [BOUGHT]), "ids appear twice"),
        (lambda: readout(d.assign(arm=None), [BOUGHT]), "have no arm"),
        (lambda: readout(d, [BOUGHT], covariates=["before"]), "no column 'before'"),
        (lambda: readout(d, [BOUGHT], level=95), "no coverage"),
        (lambda: readout(d.assign(id=1), [BOUGHT], cluster="id"), "rows in several arms"),
        (lambda: Metric("x", "median", "spend"), "no kind"),
        (lambda: Metric("x", "ratio", "spend"), "has a denominator"),
        (lambda: Metric("x", "mean", "spend", margin=0.1), "margin is for guardrails"),
        (lambda: ratio_effect(d["spend"], -d["bought"], d["arm"]), "denominator is negative"),
        (lambda: ratio_effect(d["spend"], 1, d["arm"].to_numpy()[:9]), "9 arms for 400"),
        (lambda: ratio_effect(d["spend"], 1, d["arm"], covariates=[1, 2]), "2 rows, 400 expected"),
        (lambda: aa_simulation(d, [BOUGHT], n_sims=3), "20 tosses"),
        (lambda: spread(d[:1], BOUGHT.__class__("x", "mean", "past")), "have no spread"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()


# the worlds


def test_aa_keeps_its_word_and_sessions_do_not():
    d = in_sessions(12, 500)
    right, wrong = (
        aa_simulation(d, [Metric("y", "mean", "y")], "visitor", per_row=w, n_sims=200) for w in (False, True)
    )
    assert right["alarms"][0].low < 0.05 < right["alarms"][0].high and right["uniform"][0] > 0.001
    assert wrong["alarms"][0].low > 0.1 and wrong["uniform"][0] < 0.01


@pytest.mark.slow
def test_false_alarms_and_coverage_over_worlds():
    # Two hundred worlds of each preset were read once, beside the suite; this is a light version.
    alarms, covered = [], []
    for seed in range(6):
        null = ecommerce.simulate(0.002, 100 + seed, "null").tables
        for name in ("checkout", "homepage"):
            u = ecommerce.readout(null, name)
            alarms.append(ratio_effect(u["goal"], 1, u["action"].astype(str), min_events=5).p < 0.05)
        world = ecommerce.simulate(0.002, 200 + seed)
        u = ecommerce.readout(world.tables, "checkout")
        e = ratio_effect(u["goal"], 1, u["action"].astype(str), min_events=5).absolute
        covered.append(e.low <= truth.effect(truth.unseal(world), "checkout", "treatment") <= e.high)
    assert sum(alarms) <= 3 and sum(covered) >= 4


def test_what_a_careless_caller_gives():
    rng = np.random.default_rng(8)
    units = pd.DataFrame({"arm": rng.choice(["control", "new"], 400), "y": rng.poisson(1.0, 400).astype(float)})
    orders = X.Metric("orders", "mean", "y")
    assert X.readout(units, orders).decision == X.readout(units, [orders]).decision
    new_only = (units["arm"] == "new").astype(float)
    assert "denominator of control" in X.ratio_effect(units["y"], new_only, units["arm"]).absolute.note
    for bad, holds in [
        (lambda: X.readout(units, ["y"]), "no `Metric`"),
        (lambda: X.readout(units, [orders], planned="10"), "no number"),
        (lambda: X.readout(units, [orders], covariates="y"), "single name"),
        (lambda: X.ratio_effect(units["y"], 1, units["arm"], cluster=["a"]), "1 clusters for 400"),
        (lambda: X.spread(units, orders, cluster="zz"), "no column 'zz'"),
        (lambda: X.spread(units, orders, covariates=["zz"]), "no column 'zz'"),
        (lambda: X.aa_simulation(units, [orders], cluster="zz"), "no column 'zz'"),
        (lambda: X.cuped(units["y"], None, units["arm"]), "no covariate"),
        (lambda: X.cuped(np.ones(400), units["y"].to_numpy(), units["arm"].to_numpy()), "does not vary"),
        (lambda: X.Metric("g", "mean", "y", role="guardrail", margin="5 %"), "no number"),
        (lambda: X.non_inferiority(0.1, 0.05), "no interval"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()


def test_heavy_tails_do_not_make_a_test_invalid():
    rng = np.random.default_rng(9)
    p = [X._balance(rng.lognormal(0, 2, (500, 1)), (rng.random(500) < 0.1).astype(int)) for _k in range(800)]
    assert np.mean(np.array(p) < 0.01) <= 0.02 and abs(np.mean(np.array(p) < 0.1) - 0.1) < 0.04
    arm = (rng.random(2000) < 0.5).astype(int)
    assert X._balance((rng.lognormal(0, 2, 2000) * (1 + 0.5 * arm))[:, None], arm) < 0.001


def test_margins_are_drawn():
    rng = np.random.default_rng(10)
    units = pd.DataFrame({"arm": rng.choice(["control", "new"], 900), "y": rng.poisson(2.0, 900)})
    slow = Metric("slow", "mean", "y", role="guardrail", direction="down", margin=0.1)
    read = readout(units, [Metric("y", "mean", "y"), slow])
    ax = plot_effects(read)
    assert read.margins == {"slow": 0.1} and "margin" in [t.get_text() for t in ax.get_legend().get_texts()]
