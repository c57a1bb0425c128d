"""Clicks, session features: equal to plain pandas, blind to what comes later, the same bytes whatever the order, and errors that speak."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import clicks as cl
from mktai_kit.data import session_features as sf
from mktai_kit.settings import KitError, load
from mktai_kit.world import ecommerce

AFTER = (1, 3, 5, 10)


@pytest.fixture(scope="module")
def tables():
    return dict(ecommerce.simulate(0.002, 3).tables)


@pytest.fixture(scope="module")
def shop(tables):
    with cl.open_shop(tables) as shop:
        yield shop


@pytest.fixture(scope="module")
def unfolded(shop):
    return sf.unfolding(shop, AFTER)


@pytest.fixture(scope="module")
def carts(shop):
    return sf.left_carts(shop)


@pytest.fixture(scope="module")
def plain(tables):
    """Sessions of people, clicks in order with their place, orders: the obvious way."""
    s = tables["sessions"].sort_values("timestamp", kind="stable").drop_duplicates("session_id")
    s = ecommerce.people_only(s).set_index("session_id").sort_index()
    e = tables["events"].drop_duplicates()
    e = e[e["session_id"].isin(s.index)].assign(kind=lambda x: x["event_type"].astype(str).map(cl.KINDS.index))
    e = e.sort_values(["session_id", "timestamp", "kind", "product_id"], kind="stable")
    e["place"] = e.groupby("session_id").cumcount() + 1
    o = tables["orders"].sort_values("timestamp").drop_duplicates("order_id")
    return s, e, o


def same(a, b):
    pd.testing.assert_frame_equal(a, b)


# -------------------------------------------------------------------------------------------------- equal to plain pandas
def test_sessions_are_those_of_people(shop, plain, tables):
    s, e, o = plain
    found = sf.shop_sessions(shop)
    assert found["timestamp"].is_monotonic_increasing
    found = found.set_index("session_id").sort_index()
    assert found.index.equals(s.index)
    assert (found["timestamp"] == s["timestamp"]).all()
    counts = e.groupby(["session_id", "event_type"], observed=False).size().unstack(fill_value=0).reindex(s.index)
    for column, kind in (("views", "view"), ("searches", "search"), ("carts", "cart")):
        assert (found[column] == counts[kind]).all()
    assert (found["n_events"] == counts.sum(axis=1)).all()
    assert (found["bought"] == s["converted"]).all() and (found["seconds"] == s["duration"]).all()
    money = o.groupby("session_id")["amount"].sum().reindex(s.index).fillna(0)
    assert found["amount"].to_numpy() == pytest.approx(money.to_numpy())
    assert found["margin"].sum() == pytest.approx((o["amount"] - o["cost"])[o["session_id"].isin(s.index)].sum())


def plain_row(plain, products, session, k):
    """Features of one session after k clicks."""
    s, e, o = plain
    clicks = e[e["session_id"] == session]
    first, visitor = clicks["timestamp"].iloc[0], s.loc[session, "visitor_id"]
    seen = clicks[clicks["place"] <= k]
    price = seen["product_id"].map(products).astype("float64")
    views, looked = seen["event_type"] == "view", seen["event_type"].isin(["view", "cart"])
    others = e[e["session_id"].isin(s.index[s["visitor_id"] == visitor])]
    ends = others.groupby("session_id")["timestamp"].max()
    before = ends.index[ends < first]
    old = others[others["session_id"].isin(before)]
    kinds = old.groupby("session_id")["event_type"].agg(set)
    has, got = kinds.map(lambda x: "cart" in x), kinds.map(lambda x: "purchase" in x)
    named = s.loc[before, "customer_id"].dropna()
    customer = named.loc[ends[named.index].sort_values().index[-1]] if len(named) else None
    theirs = o[(o["customer_id"] == customer) & (o["recorded"] < first)] if customer is not None else o.iloc[:0]

    def days(t):
        return (first - t).total_seconds() / 86400 if pd.notna(t) else np.nan

    return {
        "moment": seen["timestamp"].iloc[-1],
        "pages": (seen["event_type"] == "page").sum(),
        "views": views.sum(),
        "carts": (seen["event_type"] == "cart").sum(),
        "products": seen.loc[views, "product_id"].nunique(),
        "seconds": (seen["timestamp"].iloc[-1] - first).total_seconds(),
        "last_seconds": (seen["timestamp"].iloc[-1] - seen["timestamp"].iloc[-2]).total_seconds() if k > 1 else np.nan,
        "last_click": str(seen["event_type"].iloc[-1]),
        "price_mean": price[views].mean(),
        "price_max": price[looked].max(),
        "hour": first.hour,
        "weekday": first.isoweekday(),
        "past_sessions": len(before),
        "past_days": days(ends[before].max()),
        "past_views": (old["event_type"] == "view").sum(),
        "past_carts": has.sum(),
        "past_left_carts": (has & ~got).sum() if len(has) else 0,
        "past_purchases": got.sum(),
        "past_purchase_days": days(ends[got.index[got.astype(bool)]].max()) if len(got) else np.nan,
        "known": int(customer is not None),
        "past_orders": len(theirs),
        "past_spent": theirs["amount"].sum(),
        "past_order_days": days(theirs["timestamp"].max()),
        "buys": int((clicks[clicks["place"] > k]["event_type"] == "purchase").any()),
    }


def check_rows(frame, plain, tables, n):
    products = tables["products"].drop_duplicates("product_id").set_index("product_id")["price"]
    interesting = frame[(frame["past_orders"] > 0) | (frame["carts"] > 0)]
    rows = pd.concat([frame.sample(n, random_state=1), interesting.sample(n, random_state=2)])
    for _, row in rows.iterrows():
        for name, value in plain_row(plain, products, row["session_id"], row["after"]).items():
            if name not in row.index:
                continue
            here = row[name]
            if isinstance(value, (str, pd.Timestamp)):
                assert here == value, (name, row["session_id"])
            else:
                assert float(here) == pytest.approx(float(value), nan_ok=True), (name, row["session_id"], row["after"])


def test_unfolding_equals_plain_pandas(unfolded, plain, tables):
    check_rows(unfolded, plain, tables, 60)


def test_left_carts_equal_plain_pandas(carts, plain, tables):
    check_rows(carts, plain, tables, 40)


def test_unfolding_has_the_sessions_that_came_so_far(unfolded, plain):
    s, e, o = plain
    bought = e[e["event_type"] == "purchase"].groupby("session_id")["place"].min().reindex(s.index)
    n = e.groupby("session_id").size()
    for k in AFTER:
        wanted = s.index[(n >= k) & ~(bought <= k)]
        rows = unfolded[unfolded["after"] == k]
        assert rows["session_id"].tolist() == wanted.tolist()
        assert (rows["buys"].to_numpy() == bought[wanted].notna()).all()


def test_what_becomes_of_a_cart(carts, plain):
    s, e, o = plain
    first = e[e["event_type"] == "cart"].groupby("session_id")[["timestamp", "product_id"]].first()
    assert carts["session_id"].tolist() == first.index.tolist()
    assert (carts["moment"].to_numpy() == first["timestamp"].to_numpy()).all()
    assert (carts["product_id"].to_numpy() == first["product_id"].to_numpy()).all()
    bought = e[e["event_type"] == "purchase"].groupby("session_id")["timestamp"].min().rename("t")
    bought = s.join(bought, how="inner")
    end, week = e["timestamp"].max(), pd.Timedelta(days=7)
    for row in carts.sample(150, random_state=4).itertuples():
        assert row.abandoned == (row.session_id not in bought.index)
        known = s.loc[row.session_id, "customer_id"]
        names = s[(s["visitor_id"] == row.visitor_id) & (s["timestamp"] < row.timestamp)]["customer_id"].dropna()
        known = known if pd.notna(known) else (names.iloc[-1] if len(names) else None)
        mine = (bought["visitor_id"] == row.visitor_id) | (
            (bought["customer_id"] == known) if known is not None else False
        )
        back = mine & (bought["t"] > row.moment) & (bought["t"] <= row.moment + week) & (bought.index != row.session_id)
        wanted = np.nan if not row.abandoned or row.moment + week > end else float(back.any())
        assert row.returned == pytest.approx(wanted, nan_ok=True)


# -------------------------------------------------------------------------------------------------------------- funnels
def test_funnel_counts_sessions(shop, plain):
    s, e, o = plain
    deepest = e.groupby("session_id")["kind"].max()
    counts = sf.funnel_counts(shop)
    assert counts["bucket"].is_unique and counts["bucket"].between(0, cl.BUCKETS - 1).all() and len(counts) > 150
    wanted = [len(s), *((deepest >= k).sum() for k in (2, 3, 4, 5))]
    assert counts[list(sf.STEPS)].sum().tolist() == wanted
    units = sf.funnel_counts(shop, per="unit")
    assert units[list(sf.STEPS)].sum().tolist() == wanted and units["session_id"].is_unique
    by = sf.funnel_counts(shop, by=["device", "month"], start="2025-02-01", end="2025-04-01")
    assert set(by["month"]) == {"2025-02", "2025-03"}
    inside = s["timestamp"].between("2025-02-01", "2025-03-31 23:59:59")
    assert by.groupby("device")["session"].sum().to_dict() == s[inside]["device"].astype(str).value_counts().to_dict()
    assert (np.diff(by[list(sf.STEPS)].to_numpy(), axis=1) <= 0).all()
    strict = sf.funnel_counts(shop, strict=True)[list(sf.STEPS)].sum()
    assert (strict.to_numpy() <= np.array(wanted)).all() and strict["purchase"] < wanted[-1]
    two = sf.funnel_counts(shop, steps=("session", "purchase"))
    assert two[["session", "purchase"]].sum().tolist() == [wanted[0], wanted[-1]]


def test_funnel_follows_visitors(shop, plain):
    s, e, o = plain
    start, end = pd.Timestamp("2025-03-01"), pd.Timestamp("2025-05-01")
    entry = s[s["timestamp"].between(start, end, inclusive="left")].groupby("visitor_id")["timestamp"].min()
    e = e.assign(entry=e["session_id"].map(s["visitor_id"]).map(entry)).dropna(subset="entry")
    e = e[(e["timestamp"] >= e["entry"]) & (e["timestamp"] < e["entry"] + pd.Timedelta(days=14))]
    deepest = e.assign(visitor_id=e["session_id"].map(s["visitor_id"])).groupby("visitor_id")["kind"].max()
    counts = sf.funnel_counts(shop, start=start, end=end, within=14)
    assert counts[list(sf.STEPS)].sum().tolist() == [len(entry), *((deepest >= k).sum() for k in (2, 3, 4, 5))]
    units = sf.funnel_counts(shop, start=start, end=end, within=14, per="unit", by="device")
    assert units["visitor_id"].is_unique and len(units) == len(entry) and "device" in units


def test_nobody_in_the_cohort_is_an_empty_table(shop):
    assert sf.funnel_counts(shop, start="2030-01-01").empty
    assert sf.unfolding(shop, start="2030-01-01").empty and sf.left_carts(shop, end="2020-01-01").empty


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"steps": ("session", "veiw")}, "did you mean 'view'"),
        ({"steps": ("view", "cart")}, "begin with"),
        ({"steps": ("session",)}, "no funnel"),
        ({"by": "devise"}, "did you mean 'device'"),
        ({"within": 0}, "whole number of days"),
        ({"within": True}, "whole number of days"),
        ({"within": 30}, "cannot be followed"),
        ({"per": "row"}, "bucket"),
        ({"start": "yesterday-ish"}, "is no date"),
    ],
)
def test_funnels_that_are_refused(shop, wrong, says):
    with pytest.raises(KitError, match=says):
        sf.funnel_counts(shop, **wrong)


# ---------------------------------------------------------------------------------------------------------------- as of
@pytest.mark.parametrize("moment", ["2025-09-02 18:00:01", None])
def test_nothing_comes_from_later(tables, moment):
    sf.assert_sessions_as_of(tables, moment)
    sf.assert_sessions_as_of(tables, moment, build=sf.left_carts)


@pytest.mark.parametrize(
    "name, sql",
    [
        (
            "pages_in_all",
            "SELECT session_id, pages_in_all FROM (SELECT session_id, max(pages) AS pages_in_all FROM sums GROUP BY 1)",
        ),
        ("logged_in", "SELECT session_id, (customer_id IS NOT NULL)::INTEGER AS logged_in FROM visits"),
        (
            "orders_of_all_time",
            "SELECT v.session_id, count(b.order_id) AS orders_of_all_time FROM visits AS v LEFT JOIN bills AS b USING (customer_id) GROUP BY 1",
        ),
    ],
)
def test_the_proof_catches_what_came_later(tables, name, sql):
    def leaking(shop):
        return sf.unfolding(shop, (3,)).merge(shop.sql(sql), on="session_id")

    with pytest.raises(KitError, match=name):
        sf.assert_sessions_as_of(tables, build=leaking)


def test_a_proof_that_sees_nothing_is_refused(tables):
    for moment in ("2030-01-01", "2020-01-01"):
        with pytest.raises(KitError, match="inside the data"):
            sf.assert_sessions_as_of(tables, moment)


def test_a_customer_number_of_the_session_itself_is_no_feature(unfolded, plain):
    """In this world most log in to pay: the number would tell the end."""
    s, e, o = plain
    told = s["customer_id"].notna()
    assert s["converted"][told].mean() > 2 * s["converted"][~told].mean()
    rows = unfolded[unfolded["after"] == 1]
    assert rows.groupby("known")["buys"].mean().diff().iloc[-1] < 0.02
    assert not rows.loc[rows["past_sessions"] == 0, "known"].any()


# ----------------------------------------------------------------------------------------------------- same bytes, any order
def everything(source, settings=None, after=(1, 3)):
    with cl.open_shop(source, settings) as shop:
        return [
            shop.repairs,
            sf.shop_sessions(shop),
            sf.funnel_counts(shop, by="device"),
            sf.unfolding(shop, after),
            sf.left_carts(shop),
        ]


def test_order_of_rows_and_threads_do_not_matter(tables):
    shuffled = {n: t.sample(frac=1, random_state=8).reset_index(drop=True) for n, t in tables.items()}
    two = replace(load(), threads=2, memory="1GB")
    for a, b in zip(everything(tables), everything(shuffled, two)):
        same(a, b)


def test_a_folder_and_a_file_are_the_same_as_frames(tables, tmp_path):
    for name in ("sessions", "events", "orders", "products"):
        tables[name].to_parquet(tmp_path / f"{name}.parquet")
    found = everything(tmp_path)
    for a, b in zip(everything(tables), found):
        same(a, b)
    with cl.open_shop(tmp_path) as shop:
        path = sf.unfolding(shop, (1, 3), out=tmp_path / "out" / "unfolding.parquet")
        same(pd.read_parquet(path).astype(found[3].dtypes), found[3])
        again = sf.unfolding(shop, (1, 3), out=tmp_path / "again.parquet")
        assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["again.parquet", "out", *(f"{n}.parquet" for n in ("sessions", "events", "orders", "products"))]
    )


def test_ids_may_be_words_and_floats(tables):
    ids = ["session_id", "visitor_id", "customer_id", "product_id", "order_id"]
    keep = {n: tables[n] for n in ("sessions", "events", "orders", "products")}
    words = {n: t.assign(**{c: "x" + t[c].astype("string") for c in ids if c in t}) for n, t in keep.items()}
    floats = {n: t.assign(**{c: t[c].astype("float64") for c in ids if c in t}) for n, t in keep.items()}
    numbers = everything(keep)
    for a, b in zip(numbers, everything(floats)):
        same(a, b)
    named = everything(words)
    same(named[0], numbers[0])
    assert (named[3]["buys"].sum(), len(named[3])) == (numbers[3]["buys"].sum(), len(numbers[3]))
    assert named[4]["past_spent"].sum() == pytest.approx(numbers[4]["past_spent"].sum())


def test_a_sample_is_of_visitors_and_stays_itself(shop, unfolded):
    third = sf.unfolding(shop, AFTER, share=0.3)
    assert 0.2 < third["visitor_id"].nunique() / unfolded["visitor_id"].nunique() < 0.4
    same(
        third,
        unfolded[unfolded["visitor_id"].isin(set(third["visitor_id"]))].reset_index(drop=True).astype(third.dtypes),
    )
    tenth = sf.unfolding(shop, AFTER, share=0.1)
    assert set(tenth["visitor_id"]) < set(third["visitor_id"])
    assert set(sf.unfolding(shop, AFTER, share=0.1, seed=8)["visitor_id"]) != set(tenth["visitor_id"])
    assert set(sf.left_carts(shop, share=0.3)["visitor_id"]) <= set(third["visitor_id"])
    for share in (0, 1.5, True, "half"):
        with pytest.raises(KitError, match="share"):
            sf.unfolding(shop, share=share)
    for after in ((), (0,), (1.5,), (True,)):
        with pytest.raises(KitError, match="after"):
            sf.unfolding(shop, after)


def test_every_feature_is_described(unfolded, carts):
    for frame in (unfolded, carts):
        features = [c for c in frame if c not in (*sf.UNITS, *sf.TARGETS, "product_id")]
        words = sf.describe_sessions(features)
        assert not set(features) - set(sf.SESSION_FEATURES)
        assert (words[["label", "meaning", "says_high", "says_low"]] != "").all().all() and words["label"].is_unique
    assert sf.describe_sessions(["channel=email", "own"])["label"].tolist() == ["Channel: email", "own"]


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda s: sf.unfolding(s, 3), "after = 3"),
        (lambda s: sf.unfolding(s, share=0.5, seed="x"), "seed"),
        (lambda s: sf.funnel_counts(s, steps=5), "no funnel"),
        (lambda s: sf.funnel_counts(s, by=3), "no group 3"),
    ],
)
def test_odd_questions_are_refused(shop, ask, says):
    with pytest.raises(KitError, match=says):
        ask(shop)


def test_the_proof_refuses_tables_that_do_not_fit():
    toy = cl.tiny_shop()
    zone = toy["events"].assign(timestamp=toy["events"]["timestamp"].dt.tz_localize("UTC"))
    for tables, says in ((toy | {"events": zone}, "without time zone"), ({"orders": toy["orders"]}, "no clicks")):
        with pytest.raises(KitError, match=says):
            sf.assert_sessions_as_of(tables)
