"""Visits rebuilt and customers on a day: equal to plain pandas, blind to the future, refused where the data do not reach."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import clicks as cl
from mktai_kit.data import visitor_features as vf
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce

DAYS = ["2025-04-01", "2025-10-06"]


@pytest.fixture(scope="module")
def tables():
    return dict(ecommerce.simulate(0.002, 4).tables)


@pytest.fixture(scope="module")
def shop(tables):
    with cl.open_shop(tables) as shop:
        yield shop


@pytest.fixture(scope="module")
def panel(shop):
    return vf.visitor_panel(shop, DAYS)


def test_visits_are_rebuilt_as_in_pandas(shop, tables):
    people = ecommerce.people_only(tables["sessions"].drop_duplicates("session_id"))
    e = tables["events"].drop_duplicates()
    e = e[e["session_id"].isin(people["session_id"])].sort_values(
        ["visitor_id", "timestamp", "session_id"], kind="stable"
    )
    fresh = (e["visitor_id"] != e["visitor_id"].shift()) | (e["timestamp"].diff() > pd.Timedelta(minutes=30))
    wanted = e.groupby(fresh.cumsum()).agg(
        visitor_id=("visitor_id", "first"),
        timestamp=("timestamp", "min"),
        n_events=("visitor_id", "size"),
        own=("session_id", "nunique"),
    )
    found = vf.sessions_from_events(shop)
    for column, other in (
        ("visitor_id", "visitor_id"),
        ("timestamp", "timestamp"),
        ("n_events", "n_events"),
        ("own_sessions", "own"),
    ):
        assert (found[column].to_numpy() == wanted[other].to_numpy()).all(), column
    assert found["session_id"].is_unique and found["agrees"].mean() > 0.97
    assert (
        found["n_events"] == found[["pages", "searches", "views", "carts", "checkouts", "purchases"]].sum(axis=1)
    ).all()


def test_visits_without_session_ids_lose_machines_and_copies(tables, shop):
    events = tables["events"].drop(columns="session_id")
    with cl.open_shop({"events": events}) as alone:
        found = vf.sessions_from_events(alone)
        clicks = vf.sessions_from_events(alone, per="event")
    flagged = set(tables["sessions"].loc[tables["sessions"]["is_bot"], "visitor_id"])
    own = vf.sessions_from_events(shop)
    shared = found[~found["visitor_id"].isin(flagged)]
    assert abs(len(shared) - len(own)) < 0.01 * len(own)
    assert "agrees" not in found and len(clicks) == len(events.drop_duplicates())
    with cl.open_shop({"events": clicks}) as again:
        assert len(again.sql("SELECT 1")) == 1
        again.need("sums")
        assert again.sql("SELECT count(*) AS n FROM sums")["n"].iloc[0] == len(found)


@pytest.mark.parametrize(
    "wrong", [{"gap_minutes": 0}, {"gap_minutes": "30"}, {"gap_minutes": np.nan}, {"per": "visit"}]
)
def test_visits_that_are_refused(shop, wrong):
    with pytest.raises(KitError, match="is not possible"):
        vf.sessions_from_events(shop, **wrong)


def test_panel_equals_plain_pandas(panel, tables):
    s = tables["sessions"].sort_values("timestamp", kind="stable").drop_duplicates("session_id")
    s = ecommerce.people_only(s)
    s["end"] = s["timestamp"] + pd.to_timedelta(s["duration"], "s")
    kinds = (
        tables["events"]
        .drop_duplicates()
        .groupby(["session_id", "event_type"], observed=False)
        .size()
        .unstack(fill_value=0)
    )
    s = s.join(kinds, on="session_id")
    o = tables["orders"].sort_values("timestamp").drop_duplicates("order_id")
    x = tables["exposures"].drop_duplicates("exposure_id")
    bought = (
        tables["events"]
        .query("event_type == 'purchase'")
        .drop_duplicates("session_id")
        .set_index("session_id")["timestamp"]
    )
    for day in map(pd.Timestamp, DAYS):
        old = s[s["end"] < day]
        link = old.dropna(subset="customer_id").sort_values("end").groupby("visitor_id")["customer_id"].last()
        old = old.assign(customer=old["customer_id"].fillna(old["visitor_id"].map(link)))
        lately = old[(old["timestamp"] >= day - pd.Timedelta(days=28)) & old["customer"].notna()]
        rows = panel[panel["snapshot"] == day].set_index("customer_id")
        assert rows.index.tolist() == sorted(lately["customer"].unique())
        after = s[
            s["session_id"]
            .map(bought)
            .between(day + pd.Timedelta(days=1), day + pd.Timedelta(days=15), inclusive="left")
        ]
        buyers = set(after["customer_id"].fillna(after["visitor_id"].map(link)).dropna())
        assert set(rows.index[rows["buys"] == 1]) == buyers & set(rows.index) and rows["buys"].sum() > 0
        assert (rows["label_to"] == day + pd.Timedelta(days=15)).all()
        for customer in rows.sample(60, random_state=3).index:
            mine, row = lately[lately["customer"] == customer], rows.loc[customer]
            known = o[(o["customer_id"] == customer) & (o["recorded"] < day)]
            touched = x[
                (x["customer_id"] == customer)
                & x["timestamp"].between(day - pd.Timedelta(days=28), day, inclusive="left")
            ]
            assert (
                row["sessions"] == len(mine)
                and row["views"] == mine["view"].sum()
                and row["carts"] == (mine["cart"] > 0).sum()
            )
            assert (
                row["active_days"] == mine["timestamp"].dt.date.nunique()
                and row["devices"] == mine["visitor_id"].nunique()
            )
            assert row["last_days"] == pytest.approx((day - mine["end"].max()).total_seconds() / 86400)
            assert row["seconds"] == mine["duration"].sum() and row["mail_visits"] == (mine["channel"] == "email").sum()
            assert row["orders"] == len(known) and row["spent"] == pytest.approx(known["amount"].sum())
            assert row["touches"] == len(touched) and row["mails"] == (touched["channel"] == "email").sum()


@pytest.mark.parametrize("day", DAYS)
def test_panel_knows_nothing_of_the_future(panel, tables, day):
    with cl.open_shop(cl.known_at(tables, day)) as shop:
        then = vf.visitor_panel(shop, day, horizon_days=None)
    now = panel[panel["snapshot"] == day].drop(columns=["label_to", "buys", "amount"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(then, now)


def test_panel_of_shuffled_rows_is_the_same(panel, tables):
    shuffled = {n: t.sample(frac=1, random_state=8) for n, t in tables.items()}
    with cl.open_shop(shuffled) as shop:
        pd.testing.assert_frame_equal(vf.visitor_panel(shop, DAYS), panel)


def test_panel_without_orders_and_contacts(tables):
    with cl.open_shop({n: tables[n] for n in ("sessions", "events")}) as shop:
        bare = vf.visitor_panel(shop, DAYS[0])
    assert "mails" not in bare and bare["orders"].eq(0).all() and bare["buys"].sum() > 0


@pytest.mark.parametrize(
    "days, wrong, says",
    [
        ("2025-01-10", {}, "are not all there"),
        ("2025-12-25", {}, "reach beyond the clicks"),
        ("2026-06-01", {"horizon_days": None}, "reach beyond the clicks"),
        (DAYS, {"history_days": 7}, "14, or more|14 or more|whole number"),
        (DAYS, {"horizon_days": 0}, "whole number"),
        (DAYS, {"gap_days": -1}, "whole number"),
        (DAYS, {"gap_days": True}, "whole number"),
        ([], {}, "there are none"),
    ],
)
def test_panels_that_are_refused(shop, days, wrong, says):
    with pytest.raises(KitError, match=says):
        vf.visitor_panel(shop, days, **wrong)


def test_every_feature_is_described(panel):
    features = [c for c in panel if c not in ("customer_id", "snapshot", "label_to", "buys", "amount")]
    assert not set(features) ^ set(vf.VISITOR_FEATURES)
    assert (vf.describe_visitors(features) != "").all().all()


def test_a_panel_of_nobody_is_refused():
    toy = cl.tiny_shop()
    with (
        cl.open_shop(toy | {"sessions": toy["sessions"].drop(columns="customer_id")}) as shop,
        pytest.raises(KitError, match="known customer"),
    ):
        vf.visitor_panel(shop, ["2025-03-19"], history_days=14, horizon_days=None)
