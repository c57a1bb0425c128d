"""methods.recommend_score: conventions, paired intervals, bias and product scores, against loops and planted truth."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import recommend as r
from mktai_kit.methods import recommend_score as s
from mktai_kit.settings import KitError

DAY = pd.Timedelta(days=1)


def fans(n=300, per_shelf=20, rows=5000, loyal=0.8, seed=1):
    """Persons who love one of five shelves, with chance `loyal` each time; 100 days."""
    rng = np.random.default_rng(seed)
    loves, who = rng.integers(0, 5, n), rng.integers(0, n, rows)
    shelf = np.where(rng.random(rows) < loyal, loves[who], rng.integers(0, 5, rows))
    item = shelf * per_shelf + (per_shelf * rng.random(rows) ** 2).astype(int)
    when = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 100 * 86_400, rows), unit="s")
    goods = pd.DataFrame({"item_id": np.arange(5 * per_shelf), "shelf": np.repeat(list("ABCDE"), per_shelf)})
    return pd.DataFrame({"user_id": who, "item_id": item, "timestamp": when}), goods


@pytest.fixture(scope="module")
def world():
    met, goods = fans()
    return met, goods, r.time_split(met, valid_days=20, test_days=20)


MODELS = {
    "popularity": r.Popularity(window_days=30),
    "knn": r.ItemKNN(neighbours=40),
    "content": r.ContentBased(columns=("shelf",)),
}


@pytest.fixture(scope="module")
def found(world):
    _met, goods, cut = world
    return s.evaluate(MODELS, cut.known, cut.test, goods, now=cut.test_from, category="shelf", k=5, n_boot=300)


def complaint(call, *args, **kwargs):
    with pytest.raises(KitError) as e:
        call(*args, **kwargs)
    return str(e.value)


# --- tune


def test_tune_never_looks_at_the_test(world):
    _met, goods, cut = world
    grid = {str(d): r.Popularity(window_days=d) for d in (3, 30, None)} | {"knn": r.ItemKNN()}
    one = s.tune(grid, cut, goods)
    other = cut._replace(test=cut.test.assign(item_id=0))
    two = s.tune(grid, other, goods)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert one.label == "knn" and one.model is grid["knn"] and not hasattr(one.model, "items_")
    by_hand = r.ItemKNN().fit(cut.train, goods, cut.valid_from)
    relevant = r._unseen(cut.valid, cut.train)
    lists = by_hand.recommend(relevant["user_id"].unique())
    known = relevant[relevant["user_id"].isin(cut.train["user_id"])]
    assert one.table["ndcg"][0] == pytest.approx(r.per_user(lists, known)["ndcg"].mean())


def test_tune_refuses(world):
    _met, goods, cut = world
    assert "did you mean 'ndcg'" in complaint(s.tune, MODELS, cut, metric="ndgc")
    assert "did you mean 'drop'" in complaint(s.tune, MODELS, cut, repeats="drp")
    assert "dict of recommenders" in complaint(s.tune, {"a": 1}, cut)
    strangers = cut._replace(valid=cut.valid.assign(user_id=cut.valid["user_id"] + 1000))
    assert "nobody" in complaint(s.tune, MODELS, strangers)


# --- evaluate


def test_planted_taste_is_found_and_none_is_not(found):
    assert found.differences.loc["knn", "ndcg"].low > 0 and "beats" in found.verdict()["knn"]
    met, goods = fans(loyal=0.0)
    cut = r.time_split(met, valid_days=20, test_days=20)
    no = s.evaluate(MODELS, cut.known, cut.test, goods, now=cut.test_from, n_boot=300)
    assert all(e.low <= 0 for e in no.differences["ndcg"]), "nobody has a taste: nothing to beat popularity with"


def test_the_difference_is_paired_by_user(found):
    wide = found.users[found.users["known"]].pivot(index="user_id", columns="model", values="ndcg")
    gain = wide["knn"] - wide["popularity"]
    e = found.differences.loc["knn", "ndcg"]
    assert e.value == pytest.approx(gain.mean()) and e.n == len(gain)
    assert e.level == pytest.approx(0.975), "two models: a joint level"
    se = gain.std() / len(gain) ** 0.5
    assert (e.high - e.low) == pytest.approx(2 * 2.2414 * se, rel=0.15)
    apart = np.hypot(wide["knn"].std(), wide["popularity"].std()) / len(gain) ** 0.5
    assert se < apart


@pytest.mark.parametrize("repeats", s.REPEATS)
def test_the_convention_on_repeats(world, repeats):
    _met, goods, cut = world
    e = s.evaluate(MODELS, cut.known, cut.test, goods, now=cut.test_from, repeats=repeats, n_boot=100)
    seen = set(zip(cut.known["user_id"], cut.known["item_id"]))
    later = set(zip(cut.test["user_id"], cut.test["item_id"]))
    for shown in e.lists.values():
        again = sum(p in seen for p in zip(shown["user_id"], shown["item_id"]))
        assert again == 0 if repeats == "drop" else again > 0
    counted = later - seen if repeats == "drop" else later
    mine = e.users[e.users["model"] == "knn"]
    assert mine["n_relevant"].sum() == len(counted)
    assert (
        mine.set_index("user_id")["n_relevant"].to_dict()
        == pd.Series([u for u, _i in counted]).value_counts().to_dict()
    )


def test_figures_beside_accuracy_by_loops(world, found):
    _met, goods, cut = world
    shelf, users = goods.set_index("item_id")["shelf"], cut.known["user_id"].nunique()
    met = cut.known.drop_duplicates(["user_id", "item_id"]).groupby("item_id").size()
    usual = set(zip(found.lists["popularity"]["user_id"], found.lists["popularity"]["item_id"]))
    later = set(zip(cut.test["user_id"], cut.test["item_id"])) - set(zip(cut.known["user_id"], cut.known["item_id"]))
    rows = found.users[found.users["model"] == "knn"].set_index("user_id")
    for u in rows.index[:30]:
        shown = found.lists["knn"].query("user_id == @u")["item_id"].tolist()
        assert rows.loc[u, "novelty"] == pytest.approx(
            np.mean([-np.log2((met.get(i, 0) + 1) / (users + 1)) for i in shown])
        )
        pairs = [(a, b) for a in shown for b in shown if a != b]
        assert rows.loc[u, "diversity"] == pytest.approx(np.mean([shelf[a] != shelf[b] for a, b in pairs]))
        assert rows.loc[u, "serendipity"] == sum((u, i) in later and (u, i) not in usual for i in shown) / 5
    e = found.table.loc["knn", "coverage"]
    assert e.value == found.lists["knn"]["item_id"].nunique() / len(goods) and e.low is None
    assert found.table.loc["popularity", "serendipity"].value is None, "the baseline cannot surprise itself"


def test_new_users_and_new_products_stand_apart(world):
    met, goods, _cut = world
    late = met["timestamp"] >= met["timestamp"].max() - 20 * DAY
    keep = late | ~((met["user_id"] % 3 == 0) | (met["item_id"] % 4 == 0))
    cut = r.time_split(met[keep], valid_days=20, test_days=20)
    e = s.evaluate(MODELS, cut.known, cut.test, goods, now=cut.test_from, k=20, n_boot=200)
    strangers = e.users.loc[~e.users["known"], "user_id"].unique()
    assert e.about["n_cold_users"] == len(strangers) >= 50 and set(strangers % 3) == {0}
    assert (
        e.cold_users.loc["knn", "ndcg_difference"].value is None
        or abs(e.cold_users.loc["knn", "ndcg_difference"].value) < 0.05
    )
    assert e.about["share_cold_items"] > 0.15
    assert e.cold_items.loc["content", "recall"].value > 0.2, "content knows what a new product is like"
    none = e.cold_items.loc["popularity", "recall"]
    assert none.value is None or none.value < e.cold_items.loc["content", "recall"].low
    without = s.evaluate({"popularity": r.Popularity()}, cut.known, cut.test, now=cut.test_from, n_boot=100)
    assert without.about["outside"] > 0 and without.about["share_cold_items"] == 0


def test_too_little_is_not_enough(world):
    _met, goods, cut = world
    few = s.evaluate(MODELS, cut.known, cut.test, goods, now=cut.test_from, max_users=30, n_boot=100)
    assert all(e.value is None and "not enough data" in e.note for e in few.table["ndcg"])
    assert "not enough data" in few.verdict()["knn"]
    same = {"popularity": r.Popularity(), "twin": r.Popularity()}
    alike = s.evaluate(same, cut.known, cut.test, goods, now=cut.test_from, n_boot=100)
    assert "0 users for whom" in alike.differences.loc["twin", "ndcg"].note


def test_evaluate_is_the_same_every_time_and_for_any_order(world, found):
    _met, goods, cut = world
    again = s.evaluate(
        MODELS,
        cut.known.sample(frac=1, random_state=1),
        cut.test.sample(frac=1, random_state=2),
        goods,
        now=cut.test_from,
        category="shelf",
        k=5,
        n_boot=300,
    )
    pd.testing.assert_frame_equal(again.table.map(str), found.table.map(str))
    pd.testing.assert_frame_equal(again.differences.map(str), found.differences.map(str))


def test_clusters_widen_the_interval(world):
    _met, goods, cut = world
    users = pd.Index(cut.test["user_id"].unique())
    wide = s.evaluate(
        MODELS, cut.known, cut.test, goods, now=cut.test_from, cluster=pd.Series(users % 60, users), n_boot=200
    )
    assert wide.table.loc["knn", "ndcg"].note == "60 clusters"


def test_evaluate_refuses(world):
    _met, goods, cut = world
    call = dict(train=cut.known, test=cut.test, items=goods)
    assert "did you mean 'popularity'" in complaint(s.evaluate, MODELS, baseline="popularty", **call)
    assert "no column 'colour'" in complaint(s.evaluate, MODELS, category="colour", **call)
    assert "not before now" in complaint(s.evaluate, MODELS, cut.test, cut.known, goods, now=cut.test_from)
    assert "without a cluster" in complaint(s.evaluate, MODELS, cluster=pd.Series([1], [0]), **call)
    assert "nothing that counts" in complaint(s.evaluate, MODELS, cut.known, cut.test.assign(item_id=9999), goods)


def test_false_alarms_are_rare():
    """Models that know nothing, against one that knows nothing: about one in twenty intervals excludes zero."""
    rng, alarms = np.random.default_rng(3), 0
    for i in range(12):
        met, goods = fans(n=120, per_shelf=4, rows=900, loyal=0.0, seed=100 + i)
        met["item_id"] = rng.integers(0, 20, len(met))
        cut = r.time_split(met, valid_days=20, test_days=30)
        two = {"popularity": r.Popularity(window_days=10), "other": r.Popularity(window_days=40)}
        e = s.evaluate(
            two, cut.known, cut.test, goods, now=cut.test_from, repeats="keep", k=3, n_boot=200
        ).differences.loc["other", "recall"]
        alarms += not e.low <= 0 <= e.high
    assert alarms <= 3


# --- visits


def test_next_items_by_hand():
    when = pd.Timestamp("2025-01-01")
    rows = [
        ("a", 1, 10, 0),
        ("a", 1, 11, 1),
        ("a", 1, 10, 2),
        ("a", 1, 12, 3),
        ("b", 2, 10, 4),
        ("b", 3, 13, 5),
        ("b", 3, 14, 6),
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "session_id", "item_id", "m"])
    frame["timestamp"] = when + pd.to_timedelta(frame["m"], unit="min")
    q = s.next_items(frame)
    asked = {
        (q.cluster[t.user_id], t.item_id): set(q.history.loc[q.history["user_id"] == t.user_id, "item_id"])
        for t in q.test.itertuples()
    }
    assert asked == {("a", 11): {10}, ("a", 12): {10, 11}, ("b", 14): {13}}
    assert s.next_items(frame, last=1).history["item_id"].tolist() == [10, 11, 13]
    assert s.next_items(frame, since=when + pd.Timedelta(minutes=4)).test["item_id"].tolist() == [14]
    assert len(s.next_items(frame, max_questions=2).test) == 2
    assert "no visit holds two" in complaint(s.next_items, frame.iloc[[0]])
    assert "session_id" in complaint(s.next_items, frame.drop(columns="session_id"))


def test_the_visit_tells_what_comes_next(world):
    met, goods, _cut = world
    met = met.sort_values(["user_id", "timestamp"]).assign(
        session_id=lambda d: d["user_id"] * 100 + d["timestamp"].dt.day_of_year // 5
    )
    cut = r.time_split(met, valid_days=20, test_days=20)
    q = s.next_items(cut.test)
    models = {"popularity": r.Popularity(), "visits": r.SessionKNN(neighbours=100)}
    e = s.evaluate(
        models, cut.known, q.test, goods, now=cut.test_from, history=q.history, cluster=q.cluster, n_boot=200
    )
    assert e.differences.loc["visits", "ndcg"].low > 0 and e.about["n_cold_users"] == 0


# --- bias and the loop


def test_popularity_bias_against_loops(world, found):
    _met, goods, cut = world
    bias = s.popularity_bias(found.lists, cut.known, goods, n_boot=100)
    pairs = cut.known[["user_id", "item_id"]].drop_duplicates()
    met = pairs.groupby("item_id").size().reindex(range(100)).fillna(0)
    tenth = pd.Series(np.arange(100) // 10 + 1, met.sort_values(ascending=False, kind="stable").index)
    assert np.allclose(bias.table.sum(), 1) and np.allclose(bias.table["products"], 0.1)
    assert bias.table.loc[1, "knn"] == pytest.approx((found.lists["knn"]["item_id"].map(tenth) == 1).mean())
    x = met.to_numpy()
    assert bias.gini["consumption"] == pytest.approx(np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean()))
    assert bias.gini["popularity"] > bias.gini["knn"] > bias.gini["consumption"] - 0.2
    u = found.lists["knn"]["user_id"].iloc[0]
    own = np.log2(met[pairs.loc[pairs["user_id"] == u, "item_id"]]).mean()
    shown = np.log2(met[found.lists["knn"].query("user_id == @u")["item_id"]].clip(lower=1)).mean()
    one = s.popularity_bias(found.lists, cut.known, goods, groups=pd.Series(["x"], [u]), n_boot=100, min_n=1)
    assert one.groups.loc["x", "knn"].value is None or one.groups.loc["x", "knn"].value == pytest.approx(shown - own)
    assert bias.groups.map(lambda e: e.n).sum().iloc[0] == found.lists["knn"]["user_id"].nunique()


def test_exposure_repeats_itself_and_chance_opens_it(world):
    met, goods, _cut = world
    one, two = (
        s.exposure_over_time(r.Popularity(window_days=5), met, goods, rounds=3, users=100, k=5) for _ in range(2)
    )
    pd.testing.assert_frame_equal(one, two)
    assert (one["covered"] <= 0.05 + 1e-9).all() and one["round"].tolist() == [1, 2, 3]
    open_ = s.exposure_over_time(r.Popularity(window_days=5), met, goods, rounds=3, users=100, k=5, explore=0.5)
    assert (open_["covered"] > one["covered"]).all() and (open_["gini"] < one["gini"]).all()
    assert "no share" in complaint(s.exposure_over_time, r.Popularity(), met, explore=2)


# --- products


def sales(n=400, weeks=13, shape=1.5, mean=6.0, seed=1, views=None):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(shape, mean / shape, n) if views is None else views * rng.gamma(shape, 1 / shape, n)
    lines = pd.DataFrame({"product_id": np.repeat(np.arange(n), rng.poisson(rate))})
    lines["timestamp"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(
        rng.uniform(0, weeks * 7 * 86_400 - 1, len(lines)), unit="s"
    )
    price = 10 + np.arange(n) % 7
    return (
        lines.assign(quantity=1, amount=price[lines["product_id"]], cost=0.6 * price[lines["product_id"]]),
        rate / weeks,
        price,
    )


def test_intervals_of_demand_cover_the_truth():
    hits, width = [], []
    for seed in range(10):
        lines, rate, _price = sales(seed=seed)
        e = s.product_scores(lines, now="2025-04-02", days=91, products=range(400), draws=200).sort_index()
        hits.append(((e["demand_low"] <= rate) & (rate <= e["demand_high"])).mean())
        width.append(np.mean((e["demand"] - rate) ** 2) < np.mean((e["n"] / 13 - rate) ** 2))
    assert 0.92 < np.mean(hits) < 0.975 and all(width), "covered, and nearer the truth than the plain counts"


def test_views_tell_what_counts_do_not():
    views = np.random.default_rng(2).gamma(1, 100, 400)
    lines, rate, _price = sales(views=views / 100, seed=3)
    given = dict(now="2025-04-02", days=91, products=range(400), draws=200)
    plain, told = (s.product_scores(lines, views=v, **given).sort_index()["demand"] for v in (None, pd.Series(views)))
    assert np.mean((told - rate) ** 2) < 0.85 * np.mean((plain - rate) ** 2)


def test_returns_cost_and_order():
    lines, rate, price = sales()
    back = lines.iloc[::2][["product_id", "timestamp", "quantity"]]
    given = dict(now="2025-04-02", days=91, draws=200)
    kept, returned = s.product_scores(lines, **given), s.product_scores(lines, returns=back, **given)
    assert returned["earns"].sum() == pytest.approx(0.5 * kept["earns"].sum(), rel=0.05)
    assert kept["earns"].sum() == pytest.approx(0.4 * (lines["amount"].sum() / 13), rel=0.05)
    assert kept["points"].is_monotonic_decreasing and (kept["thin"] == (kept["n"] < 10)).all()
    pd.testing.assert_frame_equal(kept, s.product_scores(lines.sample(frac=1, random_state=1), **given))
    true = pd.Series(rate * price * 0.4).rank(pct=True)
    assert kept["points"].corr(true.reindex(kept.index), method="spearman") > 0.8
    rising = lines[(lines["product_id"] > 50) | (lines["timestamp"] > "2025-02-15 12:00")]
    trend = s.product_scores(rising, **given)["trend"].sort_index()
    assert trend.iloc[:50].mean() > trend.iloc[51:].mean() + 0.08
    assert "50 are needed" in complaint(s.product_scores, lines, now="2026-01-01")
    assert "no column 'amount'" in complaint(s.product_scores, lines.drop(columns="amount"))


def test_plots(found, world):
    matplotlib.use("Agg")
    ax = s.plot_differences(found)
    assert "NDCG@5" in ax.get_xlabel() and [t.get_text() for t in ax.get_yticklabels()] == ["knn", "content"]
    bias = s.popularity_bias(found.lists, world[2].known, world[1], n_boot=100)
    ax = s.plot_popularity_bias(bias)
    assert ax.get_legend() is not None
    assert "did you mean 'ndcg'" in complaint(s.plot_differences, found, "ndgc")
    matplotlib.pyplot.close("all")


def test_ids_of_another_type_are_refused(world):
    _met, _goods, split = world
    for name in ("user_id", "item_id"):
        with pytest.raises(KitError, match=f"test.{name}.*same type"):
            s.evaluate({"popularity": r.Popularity()}, split.known.astype({name: str}), split.test)


@pytest.mark.parametrize(
    ("change", "args", "says"),
    [
        (lambda t: t.assign(cost=np.nan), {}, "lines.cost"),
        (lambda t: t.assign(amount="dear"), {}, "lines.amount"),
        (lambda t: t.assign(quantity=-1), {}, "belongs into `returns`"),
        (lambda t: t.assign(timestamp=t["timestamp"].astype(str)), {}, "lines.timestamp"),
        (lambda t: t, {"views": pd.Series([3], ["zz"])}, "views"),
        (lambda t: t, {"level": 95}, "level = 95"),
        (lambda t: t, {"now": "soon"}, "no date"),
    ],
)
def test_order_lines_that_are_refused(change, args, says):
    when = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(100), "h")
    lines = pd.DataFrame(
        {"product_id": np.arange(100) % 5, "timestamp": when, "quantity": 1, "amount": 10.0, "cost": 6.0}
    )
    with pytest.raises(KitError, match=says):
        s.product_scores(change(lines), **args)
