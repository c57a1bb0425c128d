"""Account-months, hazards by kind, lifetimes and money: against counts by hand, closed forms and the worlds' sealed truth."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mktai_kit.methods import hazard as H
from mktai_kit.methods import survival as S
from mktai_kit.settings import KitError
from mktai_kit.world import saas, truth

CLOSE = pd.Timestamp("2026-01-01")


@pytest.fixture(scope="module")
def company():
    return saas.simulate(0.03, 3)


@pytest.fixture(scope="module")
def accounts(company):
    return saas.clean(company.tables, "accounts")


def geometric(n, months, seed):
    """Accounts that stay alike: x raises the voluntary hazard, z the involuntary one; rows of account-months and the true hazards."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=n), rng.integers(0, 2, n).astype(float)
    by_choice, unpaid = 0.08 * np.exp(0.6 * x) / (1 + 0.08 * np.exp(0.6 * x)), 0.02 + 0.03 * z
    rows, alive = [], np.arange(n)
    for month in range(months):
        u = rng.random(len(alive))
        kind = np.where(u < by_choice[alive], "voluntary", np.where(u < (by_choice + unpaid)[alive], "involuntary", ""))
        rows.append(pd.DataFrame({"account_id": alive, "age": month + 1, "x": x[alive], "z": z[alive], "kind": kind}))
        alive = alive[kind == ""]
    rows = pd.concat(rows, ignore_index=True)
    true = {"voluntary": by_choice[rows["account_id"]], "involuntary": unpaid[rows["account_id"]]}
    return rows, pd.DataFrame(true)


def test_rows_are_the_worlds_account_months(company, accounts):
    """The sealed hazards have one row for each account alive on a month's first day: the same rows, the same ends."""
    months = pd.date_range("2023-01-01", "2025-12-01", freq="MS")
    rows = H.person_periods(accounts, months, CLOSE)
    sealed = truth.unseal(company).table("hazards")
    sealed = sealed[sealed["month"] < CLOSE]
    both = rows.merge(
        sealed, left_on=["account_id", "snapshot"], right_on=["account_id", "month"], how="outer", indicator=True
    )
    assert (both["_merge"] == "both").all()
    life = truth.unseal(company).table("lifetimes")
    ended = life[life["end_date"] < CLOSE].set_index("account_id")
    assert rows["event"].sum() == ended.index.isin(rows["account_id"]).sum() == len(ended)
    left = rows[rows["event"] == 1].set_index("account_id")
    assert (left["kind"].astype(str) == ended.loc[left.index, "churn_kind"].astype(str)).all()
    start = accounts.set_index("account_id").loc[rows["account_id"], "start_date"]
    assert (rows["age"].to_numpy() >= 1).all() and (rows["snapshot"].to_numpy() > start.to_numpy()).all()


def test_leads_are_later_rows_of_the_same_snapshot(accounts):
    day = pd.Timestamp("2024-06-01")
    months = [day + pd.DateOffset(months=k) for k in range(6)]
    ahead, monthly = H.person_periods(accounts, [day], CLOSE, leads=6), H.person_periods(accounts, months, CLOSE)
    monthly = monthly[monthly["account_id"].isin(ahead["account_id"])]
    ahead = ahead.assign(when=[months[k] for k in ahead["lead"]]).sort_values(["when", "account_id"], ignore_index=True)
    assert len(ahead) == len(monthly)
    for column in ("account_id", "age", "event"):
        assert np.array_equal(ahead[column], monthly[column])


def test_rows_know_nothing_beyond_until(accounts):
    day = pd.Timestamp("2024-06-01")
    assert H.person_periods(accounts, [day], "2024-08-15", leads=6)["lead"].max() == 1
    changed = accounts.assign(end_date=accounts["end_date"].where(accounts["end_date"] < "2024-08-15"))
    a, b = (H.person_periods(t, [day], "2024-08-15", leads=6) for t in (accounts, changed))
    pd.testing.assert_frame_equal(a.drop(columns="kind"), b.drop(columns="kind"))


def test_recovers_known_hazards_by_kind_and_deciles():
    rows, true = geometric(4000, 12, 1)
    X = rows[["age", "x", "z"]]
    model = H.HazardModel(LogisticRegression(C=1e6), folds=5).fit(X, rows["kind"], cluster=rows["account_id"])
    assert model.kinds_ == ["involuntary", "voluntary"]
    found = model.predict_hazard(X)
    assert (found - true[found.columns]).abs().max().max() < 0.05 and (
        found.mean() - true[found.columns].mean()
    ).abs().max() < 0.004
    table = H.hazard_table(found.sum(axis=1), rows["kind"] != "", rows["account_id"], true=true.sum(axis=1))
    assert (table["predicted"] - table["true"]).abs().max() < 0.01 and (
        table["predicted"] - table["observed"]
    ).abs().max() < 0.025
    assert table["n"].sum() == len(rows) and table["events"].sum() == (rows["kind"] != "").sum()


def test_recalibration_mends_a_model_that_is_too_sure():
    rows, true = geometric(1500, 8, 2)
    noise = np.random.default_rng(1).normal(size=(len(rows), 25))
    from xgboost import XGBClassifier

    X = pd.concat([rows[["x", "z"]], pd.DataFrame(noise, columns=[f"n{i}" for i in range(25)])], axis=1)
    wild = XGBClassifier(n_estimators=60, max_depth=5, learning_rate=0.3, n_jobs=1, random_state=1)
    train = rows["account_id"] % 2 == 0
    miss = {}
    for folds in (0, 3):
        m = H.HazardModel(wild, folds=folds).fit(X[train], rows["kind"][train], cluster=rows["account_id"][train])
        t = H.hazard_table(
            m.predict_hazard(X[~train]).sum(axis=1), rows["kind"][~train] != "", true=true.sum(axis=1)[~train]
        )
        miss[folds] = (t["predicted"] - t["true"]).abs().mean()
    assert miss[3] < 0.5 * miss[0], miss


def test_survival_and_lifetime_have_their_closed_form():
    rows, true = geometric(6000, 18, 3)
    model = H.HazardModel(LogisticRegression(C=1e6), folds=0).fit(rows[["x", "z"]], rows["kind"])
    two = pd.DataFrame({"x": [0.0, 1.0], "z": [0.0, 1.0]}, index=["a", "b"])
    total = model.predict_hazard(two).sum(axis=1).to_numpy()
    there = model.predict_survival(two, 12)
    assert list(there.index) == ["a", "b"] and np.allclose(there, (1 - total[:, None]) ** np.arange(13))
    for beyond, expected in (("constant", 1 / total), ("nothing", (1 - (1 - total) ** 12) / total)):
        assert np.allclose(model.expected_lifetime(two, 12, beyond=beyond)["total"], expected)
    factor = 1.1 ** (-1 / 12)
    money = H.lifetime_value(there, [10.0, 20.0], discount_rate=0.1)
    assert np.allclose(money["total"], np.array([10, 20]) / (1 - (1 - total) * factor)) and np.allclose(
        money["level"], total
    )
    assert np.isclose(1 / total[0], 1 / (0.08 / 1.08 + 0.02), rtol=0.08)
    proba = model.predict_path(two, 3)
    assert set(proba) == {"voluntary", "involuntary"} and proba["voluntary"].shape == (2, 3)


def test_clock_moves_on_and_chances_never_exceed_one():
    rng = np.random.default_rng(4)
    X = pd.DataFrame({"age": rng.integers(1, 37, 6000)})
    left = rng.random(6000) < np.where(X["age"] % 12 == 0, 0.6, 0.01)
    other = ~left & (rng.random(6000) < np.where(X["age"] % 12 == 0, 0.9, 0.02))
    kind = np.where(left, "a", np.where(other, "b", ""))
    clock = lambda t: t.assign(renews=(t["age"] % 12 == 0).astype(float))
    model = H.HazardModel(LogisticRegression(C=100), folds=3, clock=clock).fit(X, kind)
    path = model.predict_path(pd.DataFrame({"age": [10]}), 4)
    total = sum(p.to_numpy()[0] for p in path.values())
    assert total[2] > 0.85 and (total[[0, 1, 3]] < 0.1).all() and total.max() <= 1 + 1e-12
    assert (model.predict_survival(pd.DataFrame({"age": [10]}), 4).diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)


def test_the_same_seed_gives_the_same_bytes():
    rows, _true = geometric(600, 6, 5)
    fits = [
        H.HazardModel(LogisticRegression(), seed=3).fit(rows[["x", "z"]], rows["kind"], cluster=rows["account_id"])
        for _ in range(2)
    ]
    assert fits[0].curves_ == fits[1].curves_
    shuffled = rows.sample(frac=1, random_state=1)
    other = H.HazardModel(LogisticRegression(), seed=3).fit(
        shuffled[["x", "z"]], shuffled["kind"], cluster=shuffled["account_id"]
    )
    assert np.allclose(list(other.curves_.values()), list(fits[0].curves_.values()), atol=1e-3)


def test_landmark_hazards_are_those_of_the_world(company, accounts):
    """A light version, one small world: mean survival predicted a year ahead against what the world then did."""
    day = pd.Timestamp("2024-10-01")
    static = accounts.set_index("account_id")[["plan", "contract", "payment_method", "acquisition_channel"]]
    static = pd.get_dummies(static, prefix_sep="=", dtype=float)
    quarters = pd.date_range("2023-01-01", "2024-07-01", freq="QS")
    clock = lambda t: t.assign(renews=t["contract=annual"] * (t["age"] % 12 == 0), young=np.exp(-t["age"] / 6))
    rows = H.person_periods(accounts, quarters, day, leads=12)
    columns = ["lead", "age", *static.columns]
    wide = lambda t: t.join(static, on="account_id")[columns]
    model = H.HazardModel(LogisticRegression(C=1.0, max_iter=500), folds=0, clock=clock).fit(
        wide(rows), rows["kind"], cluster=rows["account_id"]
    )
    now = H.person_periods(accounts, [day], CLOSE)
    there = model.predict_survival(wide(now), 12).mean()
    left = now["account_id"].map(accounts.set_index("account_id")["end_date"])
    observed = [1 - (left < day + pd.DateOffset(months=m)).mean() for m in range(13)]
    assert np.abs(there - observed).max() < 0.09


def test_curve_value_is_the_area_in_money():
    rng = np.random.default_rng(6)
    life, last = rng.exponential(12, 3000), rng.uniform(20, 40, 3000)
    seen, event = np.minimum(life, last), (life <= last).astype(int)
    flat = H.curve_value(None, seen, event, np.full(3000, 10.0), horizon=18, discount_rate=0.0, n_boot=200)
    curve = S.kaplan_meier(None, seen, event)
    assert np.isclose(flat.value, 10 * S.at(curve, np.arange(18)).sum())
    true = 10 * np.exp(-np.arange(18) / 12).sum()
    assert flat.low < true < flat.high
    # who pays double stays twice as long: the mean margin times the mean curve would be too little
    pays = np.where(np.arange(3000) % 2 == 0, 10.0, 20.0)
    life = rng.exponential(np.where(pays == 10, 8, 16))
    seen, event = np.minimum(life, last), (life <= last).astype(int)
    worth = H.curve_value(None, seen, event, pays, horizon=18, discount_rate=0.0, n_boot=200)
    true = np.mean([10 * np.exp(-np.arange(18) / 8).sum(), 20 * np.exp(-np.arange(18) / 16).sum()])
    naive = 15 * S.at(S.kaplan_meier(None, seen, event), np.arange(18)).sum()
    assert worth.low < true < worth.high and naive < worth.low


@pytest.mark.slow
def test_refit_interval_covers():
    """Mean months of the next ten; a light version, with ten sets."""
    hit = 0
    for seed in range(10):
        rows, _true = geometric(300, 6, seed)
        some = pd.DataFrame({"x": np.linspace(-1, 1, 20), "z": np.tile([0.0, 1.0], 10)})
        total = (
            0.08 * np.exp(0.6 * some["x"]) / (1 + 0.08 * np.exp(0.6 * some["x"])) + 0.02 + 0.03 * some["z"]
        ).to_numpy()
        truth_ = ((1 - total[:, None]) ** np.arange(10)).sum(axis=1).mean()
        figure = lambda m, some=some: m.expected_lifetime(some, 10, beyond="nothing")["total"].mean()
        e = H.refit_interval(
            H.HazardModel(LogisticRegression(C=1e6), folds=0),
            rows[["x", "z"]],
            rows["kind"],
            rows["account_id"],
            figure,
            n_boot=20,
            seed=seed,
        )
        hit += e.low <= truth_ <= e.high
    assert hit >= 7, hit


def refused(match, call, *args, **kwargs):
    with pytest.raises(KitError, match=match):
        call(*args, **kwargs)


def test_refusals(accounts):
    rows, _true = geometric(300, 5, 7)
    X = rows[["x", "z"]]
    model = H.HazardModel(LogisticRegression(), folds=0).fit(X.assign(lead=0), rows["kind"])
    refused("leads = 0", H.person_periods, accounts, ["2024-01-01"], CLOSE, leads=0)
    refused("whole month", H.person_periods, accounts, ["2026-01-01"], CLOSE)
    panel = pd.DataFrame({"account_id": [-1], "snapshot": pd.to_datetime(["2024-01-01"]), "f": [1.0]})
    refused("have no features", H.person_periods, accounts, ["2024-01-01"], CLOSE, panel=panel)
    refused("rows that stayed", H.HazardModel(LogisticRegression()).fit, X, np.full(len(X), ""))
    refused("no column 'z'", model.predict_hazard, X[["x"]].assign(lead=0))
    refused("1 months ahead", model.predict_survival, X.assign(lead=0), 3)
    one = pd.DataFrame([[1.0, 0.9, 0.8]])
    refused("beyond = 'hope'", H.lifetime_value, one, 1.0, 0.1, "hope")
    refused("rise with time", H.lifetime_value, pd.DataFrame([[1.0, 0.8, 0.9]]), 1.0)
    refused("has no end", H.lifetime_value, pd.DataFrame([[1.0, 1.0]]), 1.0, 0.0)
    refused("too few", H.refit_interval, model, X, rows["kind"], rows["account_id"], len, n_boot=5)
    refused("from its start", H.curve_value, [1.0, 1], [2.0, 3], [1, 1], [1.0, 1], 2, min_n=2, min_events=1)


def test_value_by_hand():
    """Two accounts, three months known, the last two months' hazard for ever after, 12 % a year, month by month."""
    there = pd.DataFrame([[1, 0.9, 0.8, 0.72], [1, 1, 0.5, 0.25]], index=["a", "b"])
    margin, factor = pd.Series([100.0, 40.0], index=["a", "b"]), 1.12 ** (-1 / 12)
    found = H.lifetime_value(there, margin, 0.12, tail=2)
    for who, stay in (("a", np.sqrt(0.72 / 0.9)), ("b", np.sqrt(0.25))):
        within = sum(there.loc[who, k] * factor**k for k in range(3))
        later = sum(there.loc[who, 3] * stay**j * factor ** (3 + j) for j in range(2000))
        assert np.allclose(
            found.loc[who], [margin[who] * within, margin[who] * later, margin[who] * (within + later), 1 - stay]
        )
    refused("index is not that", H.lifetime_value, there, margin.iloc[::-1])
    refused("missing or infinite", H.lifetime_value, there, [1.0, np.nan])
    refused("2 values", H.lifetime_value, there, [1.0, 2, 3])
    refused("tail = 0", H.lifetime_value, there, 1.0, tail=0)
    refused("outside", H.lifetime_value, there * 1.2, 1.0)


def test_what_cannot_be_foreseen_is_not_turned_round():
    """A kind that is pure chance: the recalibrated hazards never run against the classifier's own order."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = pd.DataFrame(rng.normal(size=(600, 8)), columns=list("abcdefgh"))
        model = H.HazardModel(LogisticRegression(C=1e6), folds=3, seed=seed).fit(
            X, np.where(rng.random(600) < 0.05, "gone", "")
        )
        intercept, slope = model.curves_["gone"]
        assert slope >= 0 and 0.02 < model.predict_hazard(X)["gone"].mean() < 0.09, (intercept, slope)


def test_a_practitioners_tables(accounts):
    day = "2024-06-01"
    one, several = (
        H.person_periods(accounts, day, CLOSE, leads=np.int64(2)),
        H.person_periods(accounts, [day], CLOSE, leads=2),
    )
    pd.testing.assert_frame_equal(one, several)
    features = one[one["lead"] == 0][["account_id", "snapshot"]].assign(f=1.0)
    make = lambda panel: H.person_periods(accounts, day, CLOSE, panel=panel)
    assert make(features)["f"].eq(1).all()
    refused("repeat an account and snapshot", make, pd.concat([features, features]))
    refused("a number in one table", make, features.astype({"account_id": str}))
    refused("no column 'snapshot'", make, features.drop(columns="snapshot"))
    refused("has the name 'age'", make, features.assign(age=1))
    refused("without time zone", H.person_periods, accounts, pd.DatetimeIndex([day], tz="UTC"), CLOSE)
    refused("an estimator", H.HazardModel().fit, features, ["a"] * len(features))
    X = pd.DataFrame({"x": np.arange(20.0)})
    model = H.HazardModel(LogisticRegression(), folds=0).fit(X, np.where(X["x"] % 3 == 0, "a", ""))
    assert model.predict_survival(X.iloc[:0], 3).shape == (0, 4)
    refused("horizon = 0", model.predict_survival, X, 0)
    refused("shape", H.hazard_table, [0.1, 0.2], [1])
    refused("missing or infinite", H.hazard_table, [0.1, 0.2], [1, np.nan])
    refused("bins", H.hazard_table, [0.1, 0.2], [1, 0], bins=0)
    refused("below 0", H.curve_value, None, [1.0, 2], [1, 0], [-1.0, 1], 1)
    seen, event = np.arange(1.0, 101), np.arange(100) % 2
    assert H.curve_value(None, seen, event, np.full(100, 5.0), 1, n_boot=50).value == 5


def test_not_enough_data_has_no_number():
    rows, _true = geometric(300, 5, 7)
    few = rows["account_id"] < 20
    model = H.HazardModel(LogisticRegression(), folds=0)
    e = H.refit_interval(model, rows[["x"]][few], rows["kind"][few], rows["account_id"][few], len)
    assert e.value is None and e.note.startswith("not enough data")
    assert H.curve_value(None, [1.0, 2], [1, 0], [1.0, 1], 1).value is None


def test_plots_draw_on_given_axes():
    from matplotlib.figure import Figure

    rows, true = geometric(500, 6, 1)
    table = H.hazard_table(true.sum(axis=1), rows["kind"] != "", rows["account_id"])
    ax = Figure().subplots()
    assert H.plot_hazard(table, ax=ax) is ax
    there = pd.DataFrame(0.9 ** np.arange(7) * np.ones((80, 1)))
    assert len(H.plot_predicted(there, np.full(80, 6.0), np.zeros(80), ax=Figure().subplots()).lines) == 8
