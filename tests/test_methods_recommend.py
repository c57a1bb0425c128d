"""methods.recommend: against dense brute force, hand computation, and bad input."""

import time

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import recommend as r
from mktai_kit.settings import KitError

DAY = pd.Timedelta(days=1)


def clicks(n=400, users=30, items=20, seed=1):
    rng = np.random.default_rng(seed)
    item = (items * rng.random(n) ** 2).astype(int)
    when = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 90 * 86_400, n), unit="s")
    frame = pd.DataFrame({"user_id": rng.integers(0, users, n), "item_id": item, "timestamp": when})
    return frame.assign(weight=rng.choice([1.0, 3.0], n)).sort_values("timestamp", ignore_index=True)


def goods(items=20):
    n = np.arange(items)
    names = np.array(["red tent", "blue tent", "red stove", "lamp"])[n % 4]
    return pd.DataFrame({"item_id": n, "shelf": np.array(list("ABC"))[n % 3], "price": 1.5 * n, "name": names})


MODELS = {
    "popular": r.Popularity(window_days=30),
    "decayed": r.Popularity(decay_days=10),
    "own": r.OwnHistory(half_life=20),
    "knn": r.ItemKNN(neighbours=5, shrink=2.0, half_life=20),
    "als": r.ImplicitALS(factors=4, iterations=5),
    "content": r.ContentBased(columns=("shelf", "price"), text=("name",)),
    "visits": r.SessionKNN(neighbours=10, gap_minutes=600),
    "hybrid": r.Hybrid({"own": r.OwnHistory(), "knn": r.ItemKNN()}, weights={"own": 0.5, "knn": 0.5}),
}


def weights(frame):
    return frame.groupby(["user_id", "item_id"])["weight"].sum().unstack(fill_value=0.0)


def complaint(call, *args, **kwargs):
    with pytest.raises(KitError) as e:
        call(*args, **kwargs)
    return str(e.value)


# --- every model


@pytest.mark.parametrize("name", MODELS)
def test_order_of_rows_and_copies_of_models_do_not_matter(name):
    frame, model = clicks(), MODELS[name]
    one = r.replace(model).fit(frame, goods())
    two = r.replace(model).fit(frame.sample(frac=1, random_state=3), goods().sample(frac=1, random_state=4))
    pd.testing.assert_frame_equal(one.recommend(range(30)), two.recommend(range(30)))
    assert np.array_equal(one.scores(range(30)), two.scores(range(30)))
    assert not hasattr(model, "items_"), "a copy was fitted, not the model itself"


@pytest.mark.parametrize("name", MODELS)
def test_lists_are_the_sorted_scores(name):
    frame = clicks()
    model = r.replace(MODELS[name]).fit(frame, goods())
    scores, place = model.scores(range(30)), model.place_
    seen = set(zip(frame["user_id"], frame["item_id"]))
    for exclude in ("seen", None):
        lists = model.recommend(range(30), k=6, exclude=exclude)
        for u in range(30):
            free = [i for i in range(20) if exclude is None or (u, i) not in seen]
            right = sorted(free, key=lambda i: (-scores[u, i], place[i]))[:6]
            mine = lists[lists["user_id"] == u]
            assert mine["item_id"].tolist() == right and mine["rank"].tolist() == list(range(1, len(right) + 1))
            assert np.array_equal(mine["score"], scores[u, right])


@pytest.mark.parametrize("name", MODELS)
def test_batches_do_not_matter(name, monkeypatch):
    model = r.replace(MODELS[name]).fit(clicks(), goods())
    whole = model.recommend(range(30))
    monkeypatch.setattr(r, "CELLS", 70)
    parts = r.replace(MODELS[name]).fit(clicks(), goods()).recommend(range(30))
    pd.testing.assert_frame_equal(whole.drop(columns="score"), parts.drop(columns="score"))
    assert np.allclose(whole["score"], parts["score"], atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"popular", "decayed"}))
def test_strangers_get_what_is_popular(name):
    frame = clicks()
    model = r.replace(MODELS[name], popular_days=30).fit(frame, goods())
    counts = (
        frame[frame["timestamp"] >= model.now_ - 30 * DAY]
        .groupby("item_id")["user_id"]
        .nunique()
        .reindex(range(20))
        .fillna(0)
    )
    right = counts.sort_values(ascending=False, kind="stable").index[:7].tolist()
    assert model.recommend([999], k=7)["item_id"].tolist() == right


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"als"}))
def test_a_history_that_is_the_training_data_changes_nothing(name):
    frame = clicks()
    model = r.replace(MODELS[name]).fit(frame, goods())
    pd.testing.assert_frame_equal(model.recommend(range(30)), model.recommend(range(30), history=frame))


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_str(name):
    frame, items = clicks(), goods()
    named = frame.assign(
        user_id="u" + frame["user_id"].astype(str).str.zfill(3), item_id="i" + frame["item_id"].astype(str).str.zfill(3)
    )
    items_named = items.assign(item_id="i" + items["item_id"].astype(str).str.zfill(3))
    one = r.replace(MODELS[name]).fit(frame, items).recommend(range(30), k=5)
    two = r.replace(MODELS[name]).fit(named, items_named).recommend([f"u{i:03}" for i in range(30)], k=5)
    assert ("i" + one["item_id"].astype(str).str.zfill(3)).tolist() == two["item_id"].tolist()


def test_exclude_pairs_and_short_lists():
    frame = clicks()
    model = r.Popularity().fit(frame)
    out = pd.DataFrame({"user_id": [1, 1, 77], "item_id": [0, 1, 5]})
    lists = model.recommend([1, 2], k=50, exclude=out)
    assert (
        lists.groupby("user_id").size().to_dict() == {1: 18, 2: 20}
        and not lists.query("user_id == 1")["item_id"].isin([0, 1]).any()
    )
    everything = pd.DataFrame({"user_id": 1, "item_id": range(20)})
    assert model.recommend([1], exclude=everything).empty


# --- against brute force


def test_popularity_by_hand():
    frame = clicks()
    now = frame["timestamp"].max() + pd.Timedelta(1, "us")
    model = r.Popularity(window_days=20, decay_days=5).fit(frame)
    for item in range(20):
        part = frame[(frame["item_id"] == item) & (frame["timestamp"] >= now - 20 * DAY)]
        last = part.groupby("user_id")["timestamp"].max()
        right = sum(0.5 ** ((now - t) / (5 * DAY)) for t in last)
        assert abs(model.value_[item] - right) < 1e-9


@pytest.mark.parametrize("neighbours", [3, 1000])
def test_knn_against_dense(neighbours):
    frame = clicks()
    w = weights(frame).to_numpy()
    met = (w > 0).astype(float)
    shared, n = met.T @ met, met.sum(axis=0)
    like = shared / (np.sqrt(np.outer(n, n)) + 4)
    for i in range(len(like)):
        out = np.argsort(-like[i].astype(np.float32), kind="stable")[neighbours + 1 :]
        like[i, out] = 0
    model = r.ItemKNN(neighbours, shrink=4).fit(frame)
    assert np.allclose(model.like_.toarray(), like, atol=1e-6)
    assert np.allclose(model.scores(range(30)), np.log1p(w) @ like, atol=1e-4)


def test_half_life_counts_from_ones_own_last_interaction():
    when = pd.to_datetime(["2025-01-01", "2025-01-11", "2025-01-21", "2025-01-05"])
    frame = pd.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [5, 6, 7, 5], "timestamp": when})
    scores = r.OwnHistory(half_life=10).fit(frame).scores([1, 2])
    assert np.allclose(scores, [[0.25, 0.5, 1], [1, 0, 0]])


def test_content_against_dense():
    frame, items = clicks(), goods()
    tokens = []
    fifth = np.ceil(items["price"].rank(pct=True) * 5)
    for i in range(20):
        tokens.append(
            {f"shelf={items['shelf'][i]}", f"price={fifth[i]}", *[w for w in items["name"][i].split() if len(w) > 2]}
        )
    words = sorted(set().union(*tokens))
    m = np.array([[w in t for w in words] for t in tokens], float)
    m *= np.log(21 / (1 + m.sum(axis=0))) + 1
    m /= np.linalg.norm(m, axis=1, keepdims=True)
    model = r.ContentBased(columns=("shelf", "price"), text=("name",)).fit(frame, items)
    right = np.log1p(weights(frame).reindex(columns=range(20), fill_value=0).to_numpy()) @ m @ m.T
    assert np.allclose(model.scores(range(30)), right, atol=1e-4)


def test_sessions_against_loops():
    frame = clicks(n=300).assign(session_id=lambda d: d["user_id"] * 100 + d["timestamp"].dt.day // 6)
    frame = frame.drop_duplicates(["user_id", "timestamp"])
    visits = [set(v) for v in frame.groupby("session_id")["item_id"].agg(set) if len(v) > 1]
    items = sorted(frame["item_id"].unique())
    rare = {i: np.log((1 + len(visits)) / (1 + sum(i in v for v in visits))) for i in items}
    ask = pd.DataFrame(
        {"user_id": "q", "item_id": [3, 0, 3], "timestamp": pd.date_range("2025-06-01", periods=3, freq="min")}
    )
    query = {3: 1 + 1 / 3, 0: 1 / 2}
    alike = np.array([sum(w * rare[i] for i, w in query.items() if i in v) / np.sqrt(len(v)) for v in visits])
    order = np.argsort(-alike.astype(np.float32), kind="stable")[:8]
    right = [sum(alike[v] for v in order if i in visits[v]) for i in items]
    model = r.SessionKNN(neighbours=8).fit(frame)
    assert np.allclose(model.scores(["q"], history=ask)[0], right, atol=1e-4)


def test_visits_without_session_id_end_with_a_pause():
    when = pd.to_datetime(["2025-01-01 10:00", "2025-01-01 10:20", "2025-01-01 11:00", "2025-01-01 10:05"])
    frame = pd.DataFrame({"user_id": ["b", "b", "b", "a"], "item_id": 1, "timestamp": when})
    visit = r._visits(frame, 30)
    assert visit[0] == visit[1] and len(set(visit)) == 3


def test_als_solves_the_normal_equations():
    frame = clicks()
    model = r.ImplicitALS(factors=4, iterations=30, alpha=3.0, regularization=0.1).fit(frame)
    y, w = model.model_.item_factors.astype(float), weights(frame).to_numpy()
    w = np.where(w > 0, 1 + 3 * np.log1p(w), 0)  # Hu, Koren & Volinsky (2008), formula 4
    for u in range(30):
        a = y.T @ y + sum((w[u, i] - 1) * np.outer(y[i], y[i]) for i in np.flatnonzero(w[u])) + 0.1 * np.eye(4)
        exact = np.linalg.solve(a, y.T @ w[u])
        folded = model.scores([u], history=frame[frame["user_id"] == u])[0]
        assert np.allclose(folded, y @ exact, atol=2e-3)


def test_als_is_the_same_every_time_and_moves_with_the_seed():
    frame = clicks(2000, 200, 100)
    one, two, other = (r.ImplicitALS(factors=8, seed=s).fit(frame).scores(range(200)) for s in (1, 1, 2))
    assert one.tobytes() == two.tobytes() and one.tobytes() != other.tobytes()


def test_hybrid_adds_scores_over_their_largest():
    frame, items = clicks(), goods()
    parts = {"a": r.ItemKNN(), "b": r.ContentBased(columns=("shelf",)), "c": r.Popularity()}
    mix = r.Hybrid(parts, weights={"a": 0.5, "b": 0.25, "c": 0}).fit(frame, items)
    a, b = (r.replace(parts[p]).fit(frame, items).scores(range(30)) for p in "ab")
    right = 0.5 * a / a.max(axis=1, keepdims=True) + 0.25 * b / b.max(axis=1, keepdims=True)
    assert np.allclose(mix.scores(range(30)), right, atol=1e-6)


def test_hybrid_learns_its_weights_before_now():
    frame = clicks(4000, 120, 60)
    parts = {"a": r.ItemKNN(), "b": r.Popularity(window_days=30)}
    mix = r.Hybrid(parts, valid_days=20, k=5, repeats="keep").fit(frame)
    since = mix.now_ - 20 * DAY
    past, later = frame[frame["timestamp"] < since], frame[frame["timestamp"] >= since]
    later = later[later["user_id"].isin(past["user_id"])]
    items = pd.DataFrame({"item_id": mix.items_})
    for _i, row in mix.tried_.iterrows():
        model = r.Hybrid(parts, weights={"a": row["a"], "b": row["b"]}).fit(past, items, since)
        lists = model.recommend(later["user_id"].unique(), k=5, exclude=None)
        assert abs(r.per_user(lists, later, 5)["ndcg"].mean() - row["ndcg"]) < 1e-9
    assert mix.tried_["ndcg"].is_monotonic_decreasing and sum(mix.weights_.values()) == 1


# --- figures of a list


def test_per_user_against_loops():
    rng = np.random.default_rng(5)
    lists = pd.concat(
        [pd.DataFrame({"user_id": u, "rank": range(1, 9), "item_id": rng.permutation(30)[:8]}) for u in range(40)]
    )
    took = pd.DataFrame({"user_id": rng.integers(0, 45, 200), "item_id": rng.integers(0, 30, 200)})
    found = r.per_user(lists.sample(frac=1, random_state=1), took, k=5)
    assert set(found.index) == set(took["user_id"])
    for u, row in found.iterrows():
        want = set(took.loc[took["user_id"] == u, "item_id"])
        shown = lists[(lists["user_id"] == u) & (lists["rank"] <= 5)].sort_values("rank")["item_id"].tolist()
        hits = [k + 1 for k, i in enumerate(shown) if i in want]
        best = sum(1 / np.log2(k + 1) for k in range(1, min(5, len(want)) + 1))
        assert abs(row["recall"] - len(hits) / len(want)) < 1e-12
        assert abs(row["ndcg"] - sum(1 / np.log2(k + 1) for k in hits) / best) < 1e-12
        assert row["mrr"] == (1 / hits[0] if hits else 0) and row["hits"] == len(hits)


# --- splits and interactions


def test_split_at_one_moment():
    frame = clicks()
    s = r.time_split(frame, at="2025-03-01", valid_days=10, test_days=10)
    t = frame["timestamp"]
    assert len(s.train) == (t < "2025-02-19").sum() and len(s.valid) == ((t >= "2025-02-19") & (t < "2025-03-01")).sum()
    assert len(s.test) == ((t >= "2025-03-01") & (t < "2025-03-11")).sum() and len(s.known) == len(s.train) + len(
        s.valid
    )
    assert r.time_split(frame).test["timestamp"].max() == t.max(), "the last interaction belongs to the test"
    assert "no interaction lies in the test time" in complaint(r.time_split, frame, at="2025-04-02")
    assert "no length" in complaint(r.time_split, frame, test_days=0)


def test_interactions_keep_what_has_a_weight():
    frame = pd.DataFrame(
        {"u": pd.array([1, 1, None], "Int64"), "i": [1, 2, 3], "event_type": pd.Categorical(["view", "cart", "page"])}
    )
    frame["timestamp"] = pd.Timestamp("2025-01-01")
    found = r.interactions(frame, "u", "i", weights={"view": 1, "cart": 3})
    assert found["user_id"].dtype == "int64" and found["weight"].tolist() == [1, 3]
    assert "missing" in complaint(r.interactions, frame, "u", "i")


# --- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.iloc[:0], "no rows"),
        (lambda d: d.drop(columns="item_id"), "item_id"),
        (lambda d: d.assign(user_id=d["user_id"].where(d.index > 0)), "missing"),
        (lambda d: d.assign(timestamp=d["timestamp"].astype(str)), "to_datetime"),
        (lambda d: d.assign(timestamp=d["timestamp"].where(d.index > 0)), "missing"),
        (lambda d: d.assign(weight=0), "above 0"),
        (lambda d: d.assign(weight=np.inf), "above 0"),
        (lambda d: d.assign(weight="x"), "above 0"),
        (lambda d: d.assign(item_id=d["item_id"].astype(object).where(d.index > 0, "x")), "several types"),
        (lambda d: d.to_dict("list"), "not a DataFrame"),
    ],
)
def test_bad_interactions(change, says):
    assert says in complaint(r.ItemKNN().fit, change(clicks()))


def test_bad_questions():
    frame, items = clicks(), goods()
    model = r.Popularity().fit(frame)
    assert "not fitted" in complaint(r.Popularity().recommend, [1])
    assert "same type" in complaint(model.recommend, ["1"])
    assert "once" in complaint(model.recommend, [1, 1]) and "once" in complaint(model.recommend, [])
    assert "no whole number" in complaint(model.recommend, [1], k=0)
    assert "not known" in complaint(model.recommend, [1], exclude="all")
    assert "not before now" in complaint(r.Popularity().fit, frame, now="2025-02-01")
    assert "twice" in complaint(r.Popularity().fit, frame, pd.concat([items, items]))
    assert "not in the catalogue" in complaint(r.Popularity().fit, frame, items[items["item_id"] > 3])
    assert "same type" in complaint(r.Popularity().fit, frame, items.assign(item_id=items["item_id"].astype(str)))
    assert "did you mean 'shelf'" in complaint(r.ContentBased(columns=("shelff",)).fit, frame, items)
    assert "no feature" in complaint(r.ContentBased().fit, frame, items)
    assert "fit(items=...)" in complaint(r.ContentBased(columns=("shelf",)).fit, frame)
    assert "no whole number" in complaint(r.ItemKNN(neighbours=0).fit, frame)
    assert "two or more" in complaint(r.Hybrid({"a": r.Popularity()}).fit, frame)
    assert "50 are needed" in complaint(r.Hybrid({"a": r.Popularity(), "b": r.ItemKNN()}).fit, frame)
    assert "for each of" in complaint(r.Hybrid({"a": r.Popularity(), "b": r.ItemKNN()}, weights={"a": 1}).fit, frame)


def test_without_implicit_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    assert "mktai-kit[recommend]" in complaint(r.ImplicitALS().fit, clicks())


@pytest.mark.slow
def test_fifty_thousand_users():
    rng = np.random.default_rng(1)
    n = 1_000_000
    frame = pd.DataFrame({"user_id": rng.integers(0, 50_000, n), "item_id": (10_000 * rng.random(n) ** 3).astype(int)})
    frame["timestamp"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 10_000_000, n), unit="s")
    start = time.perf_counter()
    model = r.ItemKNN(neighbours=50).fit(frame)
    lists = model.recommend(range(5_000), k=10)
    assert len(lists) == 50_000 and time.perf_counter() - start < 120


def test_times_with_a_zone_and_odd_moments_are_refused():
    frame = clicks()
    zone = frame.assign(timestamp=frame["timestamp"].dt.tz_localize("UTC"))
    for ask, says in (
        (lambda: r.time_split(zone), "tz_localize"),
        (lambda: r.time_split(frame, at="soon"), "no date"),
        (lambda: r.time_split(frame, valid_days="7"), "length of time"),
        (lambda: r.Popularity().fit(frame, now=pd.Timestamp("2026-01-01", tz="UTC")), "time zone"),
        (lambda: r.Popularity(decay_days=-5).fit(frame), "decay_days"),
        (lambda: r.ItemKNN(half_life=0).fit(frame), "half_life"),
        (lambda: r.Hybrid({"a": r.Popularity(), "b": r.ItemKNN()}, weights={"a": 0, "b": 0}).fit(frame), "not all 0"),
    ):
        with pytest.raises(KitError, match=says):
            ask()


def test_a_hybrid_answers_whom_the_history_does_not_know():
    frame = clicks()
    h = r.Hybrid({"a": r.Popularity(), "b": r.ItemKNN()}, weights={"a": 0.5, "b": 0.5}).fit(frame)
    got = h.recommend([999], 5, history=frame[frame["user_id"] < 5])
    assert got["item_id"].tolist() == r.Popularity().fit(frame).recommend([999], 5)["item_id"].tolist()


def test_ids_that_are_categories_are_their_values():
    frame = clicks().astype({"user_id": str, "item_id": str})
    of = frame.astype({"user_id": "category", "item_id": "category"})
    a, b = (r.ItemKNN().fit(t).recommend(["1", "2"], 5) for t in (frame, of))
    pd.testing.assert_frame_equal(a, b)
