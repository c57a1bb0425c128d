"""Curves, competing risks and Cox against published implementations, printed numbers and known truths."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import survival as S
from mktai_kit.settings import KitError

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "survival_oracle.json").read_text())


def lives(n, seed, whole=False, kinds=2):
    """Weibull and exponential ways of leaving; accounts come over 60 months and are watched in the last 24."""
    rng = np.random.default_rng(seed)
    born = rng.uniform(0, 60, n)
    first, second = 14 * rng.weibull(0.8, n), rng.exponential(30, n)
    life = np.minimum(first, second)
    entry, last = np.maximum(36 - born, 0), 60 - born
    seen = np.minimum(life, last)
    kind = np.where(life > last, 0, np.where(first < second, 1, 2))
    if whole:
        entry, seen = np.floor(entry), np.ceil(seen)
    keep = seen > entry
    return entry[keep], seen[keep], np.minimum(kind, kinds)[keep]


def true_survival(t):
    t = np.asarray(t, dtype=float)
    return np.exp(-((t / 14) ** 0.8) - t / 30)


def test_kaplan_meier_on_the_trial_of_freireich():
    """Weeks to relapse under placebo: no censoring, so the curve is a share; and 6-MP as printed (Kalbfleisch & Prentice 1980)."""
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    km = S.kaplan_meier(None, placebo, np.ones(21))
    assert np.allclose(S.at(km, [1, 4, 8, 12, 22, 23, 30]), np.array([19, 14, 8, 4, 1, 0, 0]) / 21)
    weeks = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
    relapse = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    km = S.kaplan_meier(None, weeks, relapse)
    assert np.allclose(
        S.at(km, [6, 7, 10, 13, 16, 22, 23]), [0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], atol=5e-4
    )
    assert np.allclose(
        S.at(km, [6, 7, 10, 13, 16, 22, 23], "std_error"),
        [0.0764, 0.0869, 0.0963, 0.1068, 0.1141, 0.1282, 0.1346],
        atol=5e-5,
    )
    # hazard ratio of placebo to 6-MP by Efron's method: 1.57 on the log scale, standard error 0.412 (R's coxph, Therneau & Grambsch 2000)
    X = pd.DataFrame({"placebo": [0.0] * 21 + [1.0] * 21})
    row = S.cox(X, None, [*weeks, *placebo], [*relapse, *[1] * 21]).table.loc["placebo"]
    assert abs(row["coefficient"] - 1.572) < 1e-3 and abs(row["std_error"] - 0.412) < 1e-3


@pytest.mark.parametrize("case", sorted(GOLDEN["kaplan_meier"]))
def test_kaplan_meier_equals_lifelines(case):
    """With and without ties (first digit) and delayed entry (second)."""
    g = GOLDEN["kaplan_meier"][case]
    km = S.kaplan_meier(g["entry"] if case[1] == "1" else None, g["duration"], np.array(g["kind"]) > 0).set_index(
        "time"
    )
    mine = km[km["events"] > 0]
    assert np.allclose(mine.index, g["time"], atol=1e-12)
    for column in ("survival", "low", "high"):
        theirs = np.array(g[column])
        alive = np.array(g["survival"]) > 1e-12  # where it is 0, lifelines gives (0, 0) and we none
        assert np.abs(mine[column].to_numpy() - theirs)[alive].max() < 1e-8, column


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("delayed", [False, True])
def test_kaplan_meier_equals_statsmodels(whole, delayed):
    from statsmodels.duration.survfunc import SurvfuncRight

    entry, duration, kind = lives(400, 3, whole)
    late = duration > 3
    entry, duration, event = np.maximum(entry, 3)[late], duration[late], (kind > 0).astype(int)[late]
    km = S.kaplan_meier(entry if delayed else None, duration, event)
    theirs = SurvfuncRight(duration, event, entry=entry if delayed else None)
    mine = km[km["events"] > 0]
    n = len(mine)  # ours may end before a hole in the thin end
    assert n > 0.9 * len(theirs.surv_times)
    assert np.array_equal(mine["time"], theirs.surv_times[:n]) and np.array_equal(mine["at_risk"], theirs.n_risk[:n])
    assert np.abs(mine["survival"] - theirs.surv_prob[:n]).max() < 1e-12
    assert np.nanmax(np.abs(mine["std_error"] - theirs.surv_prob_se[:n])) < 1e-12


@pytest.mark.parametrize("whole", [False, True])
def test_aalen_johansen_equals_statsmodels(whole):
    from statsmodels.duration.survfunc import CumIncidenceRight

    _entry, duration, kind = lives(400, 5, whole)
    theirs = CumIncidenceRight(duration, kind)
    aj = S.aalen_johansen(None, duration, kind)
    for k in (1, 2):
        mine = aj[aj["kind"] == k]
        for column, other in (("incidence", theirs.cinc[k - 1]), ("std_error", theirs.cinc_se[k - 1])):
            other = pd.Series(other, theirs.times).reindex(mine["time"]).ffill().fillna(0.0).to_numpy()
            assert np.nanmax(np.abs(mine[column] - other)) < 1e-10


@pytest.mark.parametrize("ties", ["0", "1"])
def test_aalen_johansen_equals_scikit_survival(ties):
    """Same incidence and, through its limits, the same variance; theirs are on the scale log(-log incidence)."""
    g = GOLDEN["incidence"][ties]
    aj = S.aalen_johansen(None, g["duration"], g["kind"])
    for k, name in ((1, "first"), (2, "second")):
        mine, theirs = aj[aj["kind"] == k], g[name]
        f = S.at(mine, theirs["time"], "incidence")
        assert np.abs(f - theirs["incidence"]).max() < 1e-10
        wide = S.at(mine, theirs["time"], "std_error")
        inside = (f > 0) & (f < 1)
        step = np.exp(S._z(0.95) * wide[inside] / (f * np.log(np.where(inside, f, 0.5)))[inside])
        assert np.abs(f[inside] ** (1 / step) - np.array(theirs["low"])[inside]).max() < 1e-8
        assert np.abs(f[inside] ** step - np.array(theirs["high"])[inside]).max() < 1e-8


def test_aalen_johansen_with_delayed_entry_equals_lifelines():
    g = GOLDEN["incidence_delayed"]
    aj = S.aalen_johansen(g["entry"], g["duration"], g["kind"])
    for k in (1, 2):
        mine = aj[aj["kind"] == k]
        theirs = pd.Series(g[str(k)]["incidence"], g[str(k)]["time"])
        inside = theirs.index[theirs.index <= mine["time"].iloc[-1]]
        assert len(inside) > 100 and np.abs(S.at(mine, inside, "incidence") - theirs[inside]).max() < 1e-8


def aalen_johansen_by_matrices(entry, duration, kind):
    """A second implementation: product of transition matrices, and Greenwood's covariance by recursion (Andersen et al. 1993, IV.4.1.3)."""
    p, cov, rows = np.eye(3), np.zeros((9, 9)), []
    for t in np.unique(duration[kind > 0]):
        n = ((entry < t) & (t <= duration)).sum()
        q = np.array([((duration == t) & (kind == k)).sum() for k in (1, 2)]) / n
        step = np.eye(3)
        step[0] = [1 - q.sum(), *q]
        multinomial = (np.diag(step[0]) - np.outer(step[0], step[0])) / n
        increment = np.zeros((9, 9))
        for i in range(3):
            for j in range(3):
                increment[3 * i, 3 * j] = 0
        block = np.zeros((9, 9))
        block[np.ix_([0, 3, 6], [0, 3, 6])] = multinomial  # row 0 of the step, stacked by columns
        left = np.kron(step.T, np.eye(3))
        right = np.kron(np.eye(3), p)
        cov = left @ cov @ left.T + right @ block @ right.T
        p = p @ step
        rows.append((t, p[0, 1], p[0, 2], cov[3, 3], cov[6, 6]))
    return np.array(rows)


@pytest.mark.parametrize("whole", [False, True])
def test_aalen_johansen_with_delayed_entry_equals_a_second_implementation(whole):
    entry, duration, kind = lives(500, 11, whole)
    late = duration > 2
    entry, duration, kind = np.maximum(entry, 2)[late], duration[late], kind[late]
    aj = S.aalen_johansen(entry, duration, kind)
    theirs = aalen_johansen_by_matrices(entry, duration, kind)
    theirs = theirs[theirs[:, 0] < aj["time"].max()]
    assert len(theirs) > 25
    for k in (1, 2):
        mine = aj[aj["kind"] == k]
        assert np.abs(S.at(mine, theirs[:, 0], "incidence") - theirs[:, k]).max() < 1e-10
        assert np.abs(S.at(mine, theirs[:, 0], "std_error") - np.sqrt(theirs[:, 2 + k])).max() < 1e-10


def test_one_kind_is_kaplan_meier():
    entry, duration, kind = lives(300, 8, True, kinds=1)
    km, aj = S.kaplan_meier(entry, duration, kind), S.aalen_johansen(entry, duration, kind)
    assert np.allclose(1 - km["survival"], aj["incidence"])
    km, aj = km[km["survival"] > 0], aj[km["survival"] > 0]
    assert np.allclose(km["std_error"], aj["std_error"])
    assert np.allclose(1 - km["low"], aj["high"]) and np.allclose(1 - km["high"], aj["low"])


def test_start_is_the_curve_of_those_who_reach_an_age():
    entry, duration, kind = lives(800, 2)
    event = (kind > 0).astype(int)
    whole, later = S.kaplan_meier(entry, duration, event), S.kaplan_meier(entry, duration, event, start=6)
    ages = [7, 12, 24]
    assert np.allclose(S.at(later, ages), S.at(whole, ages) / S.at(whole, 6))
    both = [S.restricted_mean(entry, duration, event, 18, start=a).value for a in (None, 6)]
    first_six = S.restricted_mean(entry, duration, event, 6).value
    assert np.isclose(both[0], first_six + S.at(whole, 6)[0] * both[1])


@pytest.mark.slow
def test_coverage_of_curves_and_their_area():
    """A light version, with 150 sets."""
    from scipy.integrate import quad

    ages, horizon = np.array([3.0, 12, 24]), 24
    density = lambda t: 0.8 / 14 * (t / 14) ** -0.2 * true_survival(t)
    left = np.array([quad(density, 0, t, limit=200)[0] for t in ages])
    area = quad(true_survival, 0, horizon)[0]
    hit, sets = np.zeros(7), 150
    for seed in range(sets):
        entry, duration, kind = lives(1500, seed)
        km = S.kaplan_meier(entry, duration, (kind > 0).astype(int))
        aj = S.aalen_johansen(entry, duration, kind)
        aj = aj[aj["kind"] == 1]
        mean = S.restricted_mean(entry, duration, (kind > 0).astype(int), horizon)
        truth = true_survival(ages)
        hit[:3] += (S.at(km, ages, "low") <= truth) & (truth <= S.at(km, ages, "high"))
        hit[3:6] += (S.at(aj, ages, "low") <= left) & (left <= S.at(aj, ages, "high"))
        hit[6] += mean.low <= area <= mean.high
    assert (hit / sets > 0.90).all() and (hit / sets < 0.995).all(), hit / sets


def test_bootstrap_of_lives_agrees_with_the_formula_and_clusters_widen():
    entry, duration, kind = lives(900, 4)
    event = (kind > 0).astype(int)
    formula = S.restricted_mean(entry, duration, event, 24)
    rows = S.restricted_mean(entry, duration, event, 24, cluster=np.arange(len(event)), n_boot=800)
    assert rows.value == formula.value and abs((rows.high - rows.low) / (formula.high - formula.low) - 1) < 0.12
    twice = [np.concatenate([a, a]) for a in (entry, duration, event)]
    narrow = S.restricted_mean(*twice, 24)
    honest = S.restricted_mean(*twice, 24, cluster=np.tile(np.arange(len(event)), 2), n_boot=800)
    assert honest.high - honest.low > 1.25 * (narrow.high - narrow.low)
    assert S.restricted_mean(*twice, 24, cluster=np.tile(np.arange(len(event)), 2), n_boot=800) == honest


@pytest.mark.parametrize("case", sorted(GOLDEN["cox"]))
def test_cox_equals_lifelines(case):
    g = GOLDEN["cox"][case]
    X = pd.DataFrame({"a": g["a"], "b": g["b"]})
    fit = S.cox(X, g.get("entry"), g["duration"], g["event"])
    assert np.abs(fit.table["coefficient"] - g["coefficient"]).max() < 1e-6
    assert np.abs(fit.table["std_error"] - g["std_error"]).max() < 1e-6
    assert np.abs(fit.residuals.to_numpy().sum(axis=0)).max() < 1e-4  # the score is 0 at the solution, ties or not
    if "rank" in g:
        assert np.abs(fit.residuals.to_numpy() - np.array(g["schoenfeld"])).max() < 1e-6
        for transform in S.TRANSFORMS:
            check = S.proportional_check(fit, transform)
            assert np.abs(check["statistic"][:2] - g[transform]).max() < 1e-6


def with_fading(n, seed, ratio=3.0):
    """b triples the hazard until age 6 (ratio 1: it does not); a and c are proportional. Half are watched from later on."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"a": rng.normal(size=n), "b": rng.integers(0, 2, n).astype(float), "c": rng.exponential(size=n)})
    slow = 0.05 * np.exp(0.5 * X["a"] + 0.7 * X["b"] - 0.3 * X["c"]).to_numpy()
    need, young = rng.exponential(1, n), slow * np.where(X["b"] == 1, ratio, 1)
    life = np.where(need < 6 * young, need / young, 6 + (need - 6 * young) / slow)
    entry, last = rng.integers(0, 2, n) * rng.uniform(0, 12, n), rng.uniform(6, 36, n)
    seen = np.minimum(life, last)
    keep = seen > entry
    return X[keep].reset_index(drop=True), entry[keep], seen[keep], (life <= last).astype(int)[keep]


@pytest.mark.slow
def test_the_check_of_proportional_hazards_rejects_what_it_should():
    """A light version, with few sets."""
    false = np.mean(
        [S.proportional_check(S.cox(*with_fading(300, s, 1.0)))["p_value"].to_numpy() < 0.05 for s in range(40)], axis=0
    )
    assert (false < 0.2).all(), false
    found = [S.proportional_check(S.cox(*with_fading(700, s)))["p_value"] < 0.05 for s in range(6)]
    assert np.mean([f["b"] for f in found]) > 0.6


def test_cox_predicts_survival():
    X, entry, duration, event = with_fading(1500, 1, 1.0)
    fit = S.cox(X, entry, duration, event)
    two = pd.DataFrame({"a": [0.0, 1.0], "b": [0.0, 1.0], "c": [1.0, 1.0]})
    times = np.array([1.0, 6, 12])
    rate = 0.05 * np.exp(0.5 * two["a"] + 0.7 * two["b"] - 0.3 * two["c"]).to_numpy()
    assert np.abs(fit.survival(two, times).to_numpy() - np.exp(-np.outer(rate, times))).max() < 0.07
    assert np.allclose(fit.survival(two, [12], start=6), fit.survival(two, [12]) / fit.survival(two, [6]).to_numpy())


def accounts(**columns):
    base = {
        "account_id": [1, 2],
        "start_date": pd.to_datetime(["2023-01-01", "2023-02-01"]),
        "end_date": pd.to_datetime(["2023-06-01", None]),
    }
    return pd.DataFrame({**base, **columns})


def test_lifetimes_know_nothing_of_the_future():
    both = accounts(churn_kind=["voluntary", None])
    late, early = S.lifetimes(both, "2024-01-01"), S.lifetimes(both, "2023-03-01")
    assert list(late["event"]) == [1, 0] and list(early["event"]) == [0, 0] and early["kind"].isna().all()
    assert late["kind"][0] == "voluntary" and np.isclose(early["duration"][1], 28 / S.DAYS)
    assert len(S.lifetimes(both, "2023-01-15")) == 1
    assert list(S.lifetimes(accounts(churn_kind=[None, None]), "2024-01-01")["kind"].astype(object))[0] == "unknown"
    assert S.lifetimes(both, "2024-01-01", days=1)["duration"][0] == 151


def test_a_hole_in_the_thin_end_ends_the_curve():
    entry, duration, event = [0, 0, 0, 0, 0, 9], [1, 2, 3, 4, 6, 12], [1, 0, 1, 0, 1, 1]
    km = S.kaplan_meier(entry, duration, event)
    assert km["time"].iloc[-1] == 6 and km["survival"].iloc[-1] > 0 and np.isnan(S.at(km, 7)[0])
    with pytest.raises(KitError, match="nobody was watched after 6"):
        S.restricted_mean(entry, duration, event, 8, min_n=2, min_events=1)


def refused(match, call, *args, **kwargs):
    with pytest.raises(KitError, match=match):
        call(*args, **kwargs)


def test_refusals():
    ok = ([0.0] * 4, [1.0, 2, 3, 4], [1, 0, 1, 0])
    refused("repeat an account", S.lifetimes, accounts(account_id=[1, 1]), "2024-01-01")
    refused("no column 'end_date'", S.lifetimes, accounts().drop(columns="end_date"), "2024-01-01")
    refused("end before it", S.lifetimes, accounts(end_date=pd.to_datetime(["2022-06-01", None])), "2024-01-01")
    refused("first seen", S.kaplan_meier, [0, 5], [1, 5], [1, 1])
    refused("not numbers", S.kaplan_meier, None, ["a"], [1])
    refused("missing or infinite", S.kaplan_meier, None, [1.0, np.nan], [1, 0])
    refused("0 and 1", S.kaplan_meier, None, [1.0, 2], [1, 2])
    refused("no coverage", S.kaplan_meier, *ok, level=95)
    refused("nobody was watched", S.kaplan_meier, *ok, start=9)
    refused("is not after", S.restricted_mean, *ok, horizon=-1, min_n=2, min_events=1)
    refused("nobody left", S.aalen_johansen, None, [1.0, 2], [0, 0])
    refused("twice", S.at, S.aalen_johansen(None, [1.0, 2], [1, 2]), 1)
    refused("does not vary", S.cox, pd.DataFrame({"x": [1.0] * 4}), *ok)
    refused(
        "did you mean 'rank'",
        S.proportional_check,
        S.cox(pd.DataFrame({"x": [1.0, 0, 0, 1]}), None, [1.0, 2, 3, 4], [1, 1, 1, 1]),
        "rang",
    )


def test_not_enough_data_has_no_number():
    few = S.restricted_mean(None, [1.0, 2, 3], [1, 0, 1], 2)
    assert few.value is None and few.note == "not enough data: 3 accounts, 50 needed"
    few = S.restricted_mean(None, np.arange(1.0, 101), np.r_[1, np.zeros(99)], 50)
    assert few.value is None and "1 accounts left" in few.note


def test_dates_of_a_practitioners_table():
    """Nobody has left: a column without any date; text, time zones, missing and mixed ids are refused; who leaves on the first day counts."""
    assert S.lifetimes(accounts(end_date=[None, None]), "2024-01-01")["event"].sum() == 0
    refused("not dates", S.lifetimes, accounts(end_date=["2023-06-01", None]), "2024-01-01")
    zoned = accounts()
    zoned["start_date"] = zoned["start_date"].dt.tz_localize("UTC")
    refused("time zone", S.lifetimes, zoned, "2024-01-01")
    refused("time zone", S.lifetimes, accounts(), pd.Timestamp("2024-01-01", tz="UTC"))
    refused("no date", S.lifetimes, accounts(), "soon")
    refused("ids are missing", S.lifetimes, accounts(account_id=["a", None]), "2024-01-01")
    refused("ids are missing", S.lifetimes, accounts(account_id=["a", 1]), "2024-01-01")
    refused("no length", S.lifetimes, accounts(), "2024-01-01", days=0)
    same_day = S.lifetimes(accounts(end_date=pd.to_datetime(["2023-01-01", None])), "2024-01-01", days=1)
    assert list(same_day["event"]) == [1, 0] and same_day["duration"][0] == 0.5
    assert S.at(S.kaplan_meier(same_day["entry"], same_day["duration"], same_day["event"]), 1)[0] == 0.5


def test_more_refusals():
    refused("2 values, but 3 durations", S.kaplan_meier, None, [1.0, 2, 3], [1, 0])
    refused("no coverage", S.kaplan_meier, None, [1.0, 2], [1, 0], level="high")
    refused("is not after", S.restricted_mean, None, [1.0, 2], [1, 0], horizon=None, min_n=2, min_events=1)
    mixed = S.aalen_johansen(None, [1.0, 2, 3], ["card", 2, None])
    assert set(mixed["kind"]) == {"card", 2}
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=60), "b": np.arange(60) % 2.0})
    duration, event = rng.exponential(5, 60), (np.arange(60) % 3 > 0).astype(int)
    refused("nobody left", S.cox, X, None, duration, np.zeros(60))
    refused("not a table of numbers", S.cox, X.assign(c="x"), None, duration, event)
    refused("not a table of numbers", S.cox, X.to_numpy(), None, duration, event)
    refused("2 of them distinct", S.cox, pd.concat([X, X], axis=1), None, duration, event)
    refused("no solution", S.cox, X.assign(c=1 - X["b"]), None, duration, event)
    refused("no solution", S.cox, pd.DataFrame({"parts": event * 1.0}), None, duration, event)
    first = np.where(np.arange(60) == 1, 0.0, duration)
    refused("no logarithm", S.proportional_check, S.cox(X, None, first, event), "log")
    refused("no draws", S.restricted_mean, None, duration, event, 3, cluster=np.arange(60), n_boot=0)


def test_plots_draw_on_given_axes():
    from matplotlib.figure import Figure

    entry, duration, kind = lives(300, 1)
    ax = Figure().subplots()
    assert S.plot_survival(S.kaplan_meier(entry, duration, (kind > 0).astype(int)), ax=ax) is ax
    assert S.plot_incidence(S.aalen_johansen(entry, duration, kind), ax=Figure().subplots()).get_ylim() == (0, 1)
