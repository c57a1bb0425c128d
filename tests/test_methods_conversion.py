"""Conversion: people on one side, nothing from the future, chances that mean what they say, lists counted by hand."""

from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import conversion as co
from mktai_kit.settings import KitError

matplotlib.use("Agg")
SPLIT = {"folds": 2, "n_test": 1}


def visits(seed=1, people=900, effect=1.0, each=5):
    """Rows after 1 and 3 clicks with known chances; the same person comes several times in a year."""
    rng = np.random.default_rng(seed)
    n = people * each
    taste, who = rng.normal(0, 0.5, people), np.repeat(np.arange(people), each)
    t = pd.DataFrame({"session_id": np.arange(n), "visitor_id": who})
    t["timestamp"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 365 * 86400, n), unit="s")
    t["carts"] = rng.poisson(0.4, n)
    t["seconds"] = rng.exponential(60, n).round()
    t["device"] = rng.choice(["mobile", "desktop"], n)
    t["true"] = 1 / (1 + np.exp(-(-2.2 + effect * (1.2 * t["carts"] + 0.6 * (t["device"] == "desktop")) + taste[who])))
    t["buys"] = (rng.random(n) < t["true"]).astype(int)
    return pd.concat([t.assign(after=1), t[t["seconds"] > 20].assign(after=3)], ignore_index=True)


FEATURES = ["carts", "seconds", "device"]


@pytest.fixture(scope="module")
def models():
    return co.conversion_models({"is there a cart?": "carts"}, trees=30)


@pytest.fixture(scope="module")
def scored(models):
    return co.score_as_it_unfolds(visits(), FEATURES, models=models, split=SPLIT, n_boot=200)


def test_same_person_links_through_others():
    t = pd.DataFrame({"visitor_id": [1, 2, 2, 3, 4, None], "customer_id": ["a", "a", "b", "b", None, None]})
    got = co.same_person(t)
    assert got[:4].nunique() == 1 and got.nunique() == 3
    again = co.same_person(t.sample(frac=1, random_state=1)).loc[t.index]
    assert (again[:5] == got[:5]).all()
    with pytest.raises(KitError, match="ids"):
        co.same_person(t, ids=["nobody"])


def test_blocks_learn_from_the_past_of_other_people():
    t = visits()
    known = t["timestamp"] + pd.Timedelta(days=7)
    cv = co.ForwardBlocks(t["timestamp"], t["visitor_id"], known, n_test=3, gap_days=2)
    tested = []
    for train, test in cv.split():
        assert known.iloc[train].max() <= t["timestamp"].iloc[test].min() - pd.Timedelta(days=2)
        assert not set(t["visitor_id"].iloc[train]) & set(t["visitor_id"].iloc[test])
        out = cv.left_out(train)
        assert len(out) and not set(t["visitor_id"].iloc[train]) & set(t["visitor_id"].iloc[out])
        assert known.iloc[out].max() <= known.iloc[train].max()
        tested.append(test)
    assert len(np.concatenate(tested)) == len(np.unique(np.concatenate(tested))) == cv.table()["n_test"].sum()
    assert cv.get_n_splits() == len(tested) == 9


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"first": 1.5}, "first"),
        ({"folds": 1}, "folds"),
        ({"gap_days": -1}, "gap"),
        ({"label_to": pd.Series(pd.Timestamp("2020-01-01"), index=range(40))}, "before their row"),
        ({"cluster": pd.Series([None] * 40)}, "missing"),
        ({"cluster": pd.Series(range(39))}, "clusters"),
        ({"time": pd.Series([pd.NaT] * 40)}, "missing"),
        ({"time": pd.Series(["soon"] * 40)}, "no times"),
    ],
)
def test_bad_blocks_are_refused(args, says):
    given = {"time": pd.date_range("2025-01-01", periods=40), "cluster": pd.Series(range(40))} | args
    with pytest.raises(KitError, match=says):
        co.ForwardBlocks(**given)


def test_models_beat_rule_and_base_rate_and_are_calibrated(scored):
    t = scored.table
    assert list(t.index.get_level_values("after").unique()) == [1, 3]
    assert t.loc[(1, "logistic"), "pr_auc"].low > t.loc[(1, "base rate"), "pr_auc"].high
    assert t.loc[(1, "logistic"), "pr_auc against is there a cart?"].low > 0
    assert (t["calibration_error"].map(lambda e: e.low) < 0.01).all()
    rows = scored.chances.query("after == 1").merge(
        visits().query("after == 1")[["session_id", "true"]], on="session_id"
    )
    assert abs(rows["logistic"].mean() - rows["true"].mean()) < 0.02
    assert np.corrcoef(rows["logistic"], rows["true"])[0, 1] > 0.8


def test_only_the_later_part_is_scored_and_order_does_not_matter(scored, models):
    t = visits()
    assert scored.chances["time"].min() >= pd.Timestamp("2025-06-30")
    mixed = t.sample(frac=1, random_state=5)
    again = co.score_as_it_unfolds(mixed, FEATURES, models=models, split=SPLIT, n_boot=200)
    pd.testing.assert_frame_equal(
        scored.chances.reset_index(drop=True), again.chances.reset_index(drop=True), check_dtype=False
    )
    pd.testing.assert_frame_equal(scored.table, again.table)


def test_ids_of_words_are_as_good(scored, models):
    t = visits().assign(visitor_id=lambda t: "v" + (10_000 + t["visitor_id"]).astype(str))
    again = co.score_as_it_unfolds(t, FEATURES, models=models, split=SPLIT, n_boot=200)
    assert again.table.loc[(1, "boosting"), "pr_auc"] == scored.table.loc[(1, "boosting"), "pr_auc"]


def test_nothing_is_gained_where_there_is_nothing():
    logistic = co.conversion_models()["logistic"]
    base = co.conversion_models()["base rate"]
    beaten = 0
    for seed in range(12):
        t = visits(seed, 400, effect=0.0).query("after == 1")
        got = co.abandonment(t, FEATURES, "buys", {"base rate": base, "logistic": logistic}, split=SPLIT, n_boot=200)
        e = got.table.loc["logistic", "pr_auc against base rate"]
        beaten += e.low > 0
    assert beaten <= 3


def test_open_and_missing_outcomes_are_left_out(models):
    t = visits().query("after == 1").assign(returned=lambda t: t["buys"].astype(float))
    t.loc[t.index[:50], "returned"] = np.nan
    got = co.abandonment(t, FEATURES, "returned", models, horizon_days=7, split=SPLIT, n_boot=200)
    assert len(got.notes) == 2 and got.chances["time"].max() <= t["timestamp"].max() - pd.Timedelta(days=7)
    assert not set(got.chances["session_id"]) & set(t["session_id"][:50])


def test_too_few_say_so(models):
    got = co.score_as_it_unfolds(visits(people=30), FEATURES, models=models, split=SPLIT, n_boot=200)
    assert got.table["pr_auc"].map(lambda e: e.value is None and "not enough data" in e.note).all()
    assert got.notes and not len(got.chances)


@pytest.mark.parametrize(
    ("change", "args", "says"),
    [
        (lambda t: t, {"features": ["carts", "buys"]}, "no feature"),
        (lambda t: t, {"features": []}, "no features"),
        (lambda t: t, {"features": ["cart"]}, "cart"),
        (lambda t: t.assign(buys="often"), {}, "0 and 1"),
        (lambda t: t.assign(buys=2), {}, "0 and 1"),
        (lambda t: pd.concat([t, t.head(3)]), {}, "repeat"),
        (lambda t: t.assign(timestamp=pd.NaT), {}, "missing"),
        (lambda t: t.drop(columns="after"), {}, "after"),
        (lambda t: t.iloc[:0], {}, "after"),
        (lambda t: t.assign(buys=np.nan), {}, "known outcome"),
        (lambda t: t, {"reference": "magic"}, "magic"),
        (lambda t: t.drop(columns="session_id"), {}, "no column 'session_id'"),
        (lambda t: t.assign(seconds=np.inf), {}, "'seconds' holds infinite"),
        (lambda t: t, {"split": {"blocks": 2}}, "no setting 'blocks'"),
    ],
)
def test_bad_frames_are_refused(models, change, args, says):
    given = {"features": FEATURES, "models": models} | args
    with pytest.raises(KitError, match=says):
        co.score_as_it_unfolds(change(visits(people=50)), **given)


def test_quality_keeps_its_scale():
    t = visits(people=1200).query("after == 1")
    q = co.session_quality(t, FEATURES, "buys", co.conversion_models()["logistic"], split={"folds": 2}, n_boot=200)
    s = q.scores.sort_values("chance")
    assert s["score"].is_monotonic_increasing and s["score"].between(0, 100).all()
    early = s[s["time"] < pd.Timestamp("2025-10-01")]["score"]
    assert abs(early.mean() - 50) < 2
    again = co.session_quality(
        t, FEATURES, "buys", co.conversion_models()["logistic"], split={"folds": 2}, scale=q.scale, n_boot=200
    )
    pd.testing.assert_frame_equal(q.scores, again.scores)
    y = t.set_index("session_id")["buys"]
    table = co.quality_table(q, {"buys": y.sample(frac=1, random_state=2)}, bins=5)
    assert table["n"].sum() == len(s) and table["buys"].iloc[-1].low > table["buys"].iloc[0].high
    inside = [e.low - 0.02 <= c <= e.high + 0.02 for e, c in zip(table["buys"], table["chance"])]
    assert all(inside)
    with pytest.raises(KitError, match="outcomes"):
        co.quality_table(q, {"buys": y.set_axis(-1 - y.index)})
    with pytest.raises(KitError, match="not enough data"):
        co.session_quality(t.head(60), FEATURES, "buys")


def panel(customers=500, snapshots=6, seed=3):
    rng = np.random.default_rng(seed)
    days = pd.date_range("2025-01-06", periods=snapshots, freq="14D")
    p = pd.DataFrame({"customer_id": np.tile(np.arange(customers), snapshots), "snapshot": np.repeat(days, customers)})
    p["label_to"] = p["snapshot"] + pd.Timedelta(days=14)
    p["views"] = rng.poisson(1.5, len(p))
    p["value"] = rng.gamma(2, 20, customers)[p["customer_id"]].round(2)
    p["true"] = 1 / (1 + np.exp(-(-3 + 0.6 * p["views"])))
    p["buys"] = (rng.random(len(p)) < p["true"]).astype(int)
    return p.assign(spent=p["buys"] * p["value"])


GIVEN = dict(features=["views"], capacity=60, split={"folds": 2, "gap_days": 0, "first": 0.4}, n_boot=200)


def test_leads_by_hand():
    p = panel()
    models = co.conversion_models({"most views": "views"}, trees=30)
    got = co.lead_scores(p, models=models, rules={"most views": "views"}, value="value", money="spent", **GIVEN)
    lists = got.lists
    assert lists.groupby("snapshot").size().eq(60).all() and lists["rank"].max() == 60
    assert (lists["score"] - lists["chance"] * lists["value"]).abs().max() < 1e-9
    truth = lists.merge(p[["customer_id", "snapshot", "buys"]], on=["customer_id", "snapshot"])
    assert (truth["y"] == truth["buys"]).all()
    row = got.table.loc[got.way]
    scored = p[p["snapshot"] >= lists["snapshot"].min()]
    assert row["precision"].value == pytest.approx(lists["y"].mean())
    assert row["recall"].value == pytest.approx(lists["y"].sum() / scored["buys"].sum())
    assert row["lift"].value == pytest.approx(lists["y"].mean() / scored["buys"].mean())
    spent = truth.merge(p[["customer_id", "snapshot", "spent"]])["spent"].sum()
    assert row["money"].value == pytest.approx(spent / scored["spent"].sum())
    assert got.table.loc["logistic", "precision"].low > got.table.loc["by lot", "precision"].high
    assert got.table.loc["most views", "precision against most views"].value == 0
    assert got.table.loc[got.way, "money"].value > got.table.loc["logistic", "money"].value
    again = co.lead_scores(
        p.sample(frac=1, random_state=1).reset_index(drop=True),
        models=models, rules={"most views": "views"}, value="value", money="spent", **GIVEN,
    )  # fmt: skip
    pd.testing.assert_frame_equal(lists, again.lists)


def test_precision_at_capacity_covers_what_the_listed_were_worth():
    hits = 0
    models = {"base rate": co.conversion_models()["base rate"], "logistic": co.conversion_models()["logistic"]}
    for seed in range(10):
        p = panel(400, 5, seed)
        got = co.lead_scores(p, models=models, **GIVEN)
        true = got.lists.merge(p[["customer_id", "snapshot", "true"]], on=["customer_id", "snapshot"])["true"].mean()
        e = got.table.loc["logistic", "precision"]
        hits += e.low <= true <= e.high
    assert hits >= 8


@pytest.mark.parametrize(
    ("change", "args", "says"),
    [
        (lambda p: p, {"capacity": 0}, "capacity"),
        (lambda p: p, {"value": "worth"}, "worth"),
        (lambda p: p.assign(value=np.nan), {"value": "value"}, "missing or below"),
        (lambda p: p, {"way": "magic"}, "magic"),
        (lambda p: p, {"reference": "magic"}, "magic"),
        (lambda p: pd.concat([p, p.head(2)]), {}, "repeat"),
        (lambda p: p.assign(buys=0), {}, "not enough data"),
    ],
)
def test_bad_leads_are_refused(change, args, says):
    with pytest.raises(KitError, match=says):
        co.lead_scores(change(panel(200, 4)), **(GIVEN | args))


def test_a_promise_by_hand():
    lists = pd.DataFrame({"customer_id": list("abcde"), "snapshot": pd.Timestamp("2025-03-01"), "rank": range(1, 6)})
    lists = lists.assign(y=[1, 0, 1, 0, 0], person=range(5))
    bought = pd.Series(
        [pd.Timestamp("2025-03-01 10:00"), pd.Timestamp("2025-03-01 11:00")],
        index=pd.MultiIndex.from_product([["a", "c"], [pd.Timestamp("2025-03-01")]]),
    )
    out, summary = co.work_through(lists, per_day=2, within_days=2, bought_at=bought)
    assert out["work_day"].tolist() == [1, 1, 2, 2, 3] and summary["kept"] == 0.8 and summary["needed_per_day"] == 3
    assert out["reached"].tolist()[0] is True and out["reached"].tolist()[2] is False
    assert "not enough data" in summary["precision_kept"].note
    with pytest.raises(KitError, match="per_day"):
        co.work_through(lists, per_day=0, within_days=2)
    with pytest.raises(KitError, match="bought_at"):
        co.work_through(lists, 1, 1, bought_at=bought.reset_index(drop=True))
    with pytest.raises(KitError, match="Leads.lists"):
        co.work_through(lists.drop(columns="rank"), 1, 1)


def shoppers(seed=1, n=1500, leak=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-(-1.5 + x)))).astype(int)
    X = pd.DataFrame({"pages": x + rng.normal(size=n), "kind": rng.choice(["a", "b"], n)})
    return X.assign(page_value=np.where(rng.random(n) < 0.1 + leak * y, rng.gamma(2, 10, n), 0)), y


def test_the_probe_recommends_the_honest_model():
    logistic = co.conversion_models()["logistic"]
    X, y = shoppers()
    got = co.page_value_probe(X, y, model=logistic, order=np.arange(1500), n_boot=200)
    assert got.recommended == "without page_value" and got.gain.low > 0 and "honest" in got.statement
    assert len(got.table) == 4 and got.table["n"].tolist()[-1] == 300
    X, y = shoppers(leak=0.0)
    got = co.page_value_probe(X, y, model=logistic, n_boot=200)
    assert got.recommended == "with page_value"
    for bad, kind in ((X.drop(columns="page_value"), y), (X, y[:-1]), (X, y + 1), (X, np.zeros(len(X)))):
        with pytest.raises(KitError):
            co.page_value_probe(bad, kind, model=logistic)
    with pytest.raises(KitError, match="test_from"):
        co.page_value_probe(X, y, model=logistic, order=np.arange(1500), test_from=5000, n_boot=200)


def test_plot(scored):
    import matplotlib.pyplot as plt

    ax = co.plot_unfolding(scored, "roc_auc")
    assert len(ax.get_legend_handles_labels()[1]) == 4 and ax.get_ylabel() == "ROC-AUC"
    again = [scored.table.rename(index={m: f"{m}{k}" for m in scored.table.index.levels[1]}) for k in range(3)]
    many = co.plot_unfolding(replace(scored, table=pd.concat(again)), "roc_auc")
    assert len(many.get_legend_handles_labels()[1]) == 12, "each model is drawn"
    with pytest.raises(KitError, match="metric"):
        co.plot_unfolding(scored, "beauty")
    plt.close("all")


@pytest.mark.slow
def test_online_shoppers_benchmark(real):
    from mktai_kit.data import loaders

    sessions = loaders.load("online_shoppers", folder=real("online_shoppers"))["sessions"]
    months = ["Jan", "Feb", "Mar", "Apr", "May", "June", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    order = sessions["month"].map({m: i + 1 for i, m in enumerate(months)})
    X = sessions.drop(columns=["session_id", "converted", "region"])
    got = co.page_value_probe(X, sessions["converted"].astype(int), order=order, test_from=11, n_boot=200)
    with_it, without, _alone, ahead = got.table.to_dict("records")
    assert with_it["roc_auc_folds"] >= 0.93 and with_it["pr_auc_folds"] >= 0.75
    assert without["roc_auc_folds"] >= 0.78 and got.recommended == "without page_value"
    assert ahead["roc_auc"].high < without["roc_auc"].low, "months that it has not seen are harder"


def test_an_index_that_repeats_and_features_named_twice_do_no_harm(models):
    t = visits(people=120)
    plain = co.abandonment(t[t["after"] == 1], ["carts"], "buys", models=models, split=SPLIT, n_boot=100)
    again = co.abandonment(
        t[t["after"] == 1].set_axis([0] * 600), ["carts", "carts"], "buys", models=models, split=SPLIT, n_boot=100
    )
    pd.testing.assert_frame_equal(plain.table, again.table)
    with pytest.raises(KitError, match="until"):
        co.abandonment(t[t["after"] == 1], ["carts"], "buys", models=models, until="later")


def test_outcomes_in_another_order_are_refused():
    X = pd.DataFrame({"page_value": np.arange(100.0), "carts": 1.0})
    y = pd.Series(np.arange(100) % 2)
    with pytest.raises(KitError, match="index is not that of X"):
        co.page_value_probe(X, y.sample(frac=1, random_state=1))
    for odd, args, says in (
        (y.map({0: "no", 1: "yes"}), {}, "0 or 1"),
        (y, {"folds": 1}, "folds"),
        (y, {"repeats": 0}, "repeats"),
    ):
        with pytest.raises(KitError, match=says):
            co.page_value_probe(X, odd, **args)
