"""A shop opened: what is mended, what is refused, and tables cut at a moment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import clicks as cl
from mktai_kit.data import session_features as sf
from mktai_kit.settings import KitError, load
from mktai_kit.world import ecommerce


@pytest.fixture(scope="module")
def tables():
    return dict(ecommerce.simulate(0.002, 3).tables)


@pytest.fixture(scope="module")
def shop(tables):
    with cl.open_shop(tables) as shop:
        yield shop


# ------------------------------------------------------------------------------------------------------------- what is mended
def test_repairs_are_those_that_the_world_planted(shop, tables):
    rows = shop.repairs.set_index(["table", "fault"])["rows"]
    s = tables["sessions"]
    assert rows["sessions", "copies of a session"] == s["session_id"].duplicated().sum() > 0
    people = set(ecommerce.people_only(s)["session_id"])
    copies = tables["events"][tables["events"].duplicated()]
    assert rows["events", "copies of a click"] == copies["session_id"].isin(people).sum() > 0
    machines = s.drop_duplicates("session_id")["is_bot"].sum()
    assert rows["sessions", "machines that the shop knows"] == machines > 0
    assert rows["sessions", "machines that read a page a second"] == len(
        s.drop_duplicates("session_id")
    ) - machines - len(people)
    assert rows["orders", "copies of an order"] == tables["orders"]["order_id"].duplicated().sum()


def test_ties_have_an_order_and_kinds_that_are_not_known_are_pages():
    toy = cl.tiny_shop()
    e = toy["events"]
    e.loc[e["session_id"] == 2, "timestamp"] = pd.Timestamp("2025-03-05 20:00")  # all at once
    e.loc[e["session_id"] == 4, "event_type"] = "Wishlist"
    e.loc[e["session_id"] == 1, "event_type"] = e["event_type"].str.upper() + " "
    for frame in (e, e.iloc[::-1]):
        with cl.open_shop(toy | {"events": frame}) as shop:
            rows = sf.unfolding(shop, (1, 2, 3, 4, 5))
            assert rows.loc[rows["session_id"] == 2, "last_click"].tolist() == ["view", "view", "cart", "checkout"]
            assert shop.repairs.set_index("fault")["rows"]["kind not known"] == 1
            assert rows.loc[rows["session_id"] == 1, "carts"].tolist() == [0, 0, 1]


def test_what_was_interrupted_begins_anew():
    with cl.open_shop(cl.tiny_shop()) as whole, cl.open_shop(cl.tiny_shop()) as broken:
        broken.con.execute("CREATE TABLE past_visitor AS SELECT 1 AS half; CREATE TABLE clicks AS SELECT 2 AS half")
        for name in ("past", "clicks"):
            broken.need(name)
            query = f"SELECT * FROM {name} ORDER BY ALL"
            pd.testing.assert_frame_equal(broken.sql(query), (whole.need(name), whole.sql(query))[1])
        cl._BUILD["visits"](broken)  # counted once more, told once
        pd.testing.assert_frame_equal(broken.repairs, whole.repairs)


def test_gaps_are_left_out_and_said():
    toy = cl.tiny_shop()
    e = toy["events"].astype({"session_id": "Int64"})
    e.loc[0, "session_id"], e.loc[1, "timestamp"] = pd.NA, pd.NaT
    odd = pd.DataFrame(
        {"session_id": [99], "visitor_id": [1], "timestamp": [pd.Timestamp("2025-03-04")], "event_type": ["view"]}
    )
    s = toy["sessions"].astype({"visitor_id": "Int64"})
    s.loc[3, "visitor_id"] = pd.NA
    o = toy["orders"].assign(amount=[40.0, np.nan])
    with cl.open_shop(toy | {"events": pd.concat([e, odd]), "sessions": s, "orders": o}) as shop:
        rows = shop.repairs.set_index(["table", "fault"])["rows"]
        assert rows["events", "no session or time"] == 2 and rows["events", "of a session that is not there"] == 2
        assert rows["sessions", "no session, visitor or time"] == 1 and rows["orders", "no id, time or amount"] == 1
        assert sf.shop_sessions(shop)["n_events"].tolist() == [2, 5, 4]


def test_less_is_enough(tables):
    """Events alone make a shop; without columns of length, machines are found by their clicks."""
    keep = tables["events"]
    with cl.open_shop({"events": keep}) as shop, cl.open_shop(tables) as whole:
        alone, full = (
            sf.shop_sessions(shop).set_index("session_id").sort_index(),
            sf.shop_sessions(whole).set_index("session_id").sort_index(),
        )
        assert alone["device"].isna().all() and alone["amount"].eq(0).all()
        unflagged = tables["sessions"].loc[~tables["sessions"]["is_bot"], "session_id"]
        assert set(alone.index) & set(unflagged) == set(full.index)
        assert (alone.loc[full.index, "views"] == full["views"]).all()
        assert sf.unfolding(shop)["known"].eq(0).all()


# ------------------------------------------------------------------------------------------------------------ refusals
def test_a_source_without_clicks_is_refused(tmp_path):
    with (
        pytest.raises(KitError, match="no clicks.*transactions"),
        cl.open_shop({"transactions": pd.DataFrame({"a": [1]})}),
    ):
        pass
    with pytest.raises(KitError, match="no such folder"), cl.open_shop(tmp_path / "nowhere"):
        pass
    with pytest.raises(KitError, match="no clicks.*none"), cl.open_shop(tmp_path):
        pass


@pytest.mark.parametrize(
    "table, change, says",
    [
        ("events", lambda t: t.drop(columns="timestamp"), "'timestamp' is missing"),
        ("events", lambda t: t.assign(timestamp=t["timestamp"].astype(str)), "convert it to local"),
        ("events", lambda t: t.assign(timestamp=t["timestamp"].dt.tz_localize("UTC")), "without time zone"),
        ("events", lambda t: t.drop(columns=["visitor_id", "session_id"]), "'visitor_id' is missing"),
        ("sessions", lambda t: t.drop(columns="visitor_id"), "'visitor_id' is missing"),
        ("sessions", lambda t: t.assign(session_id=t["session_id"].astype(str)), "same type"),
        ("orders", lambda t: t.assign(amount="dear"), "not a number"),
        ("orders", lambda t: [1], "give a DataFrame"),
        ("events", lambda t: t.assign(visitor_id=pd.Series([1, "a"] * 20, dtype=object)), "several types"),
        ("events", lambda t: pd.concat([t, t[["visitor_id"]]], axis=1), "there twice"),
        ("events", lambda t: t.assign(visitor_id=t["visitor_id"] + 0.25), "not whole.*as text"),
        ("events", lambda t: t.assign(event_type="add_to_cart"), "no kind of click is known.*add_to_cart"),
        ("sessions", lambda t: t.assign(is_bot="no"), "not true or false"),
        ("sessions", lambda t: t.assign(pages=3, duration=pd.Timedelta("60s")), "not a number"),
    ],
)
def test_tables_that_do_not_fit_are_refused(table, change, says):
    toy = cl.tiny_shop()
    with pytest.raises(KitError, match=says), cl.open_shop(toy | {table: change(toy[table])}) as shop:
        sf.unfolding(shop)


def test_no_session_numbers_is_said_with_the_way_out():
    toy = cl.tiny_shop()
    with (
        pytest.raises(KitError, match="sessions_from_events"),
        cl.open_shop({"events": toy["events"].drop(columns="session_id")}) as shop,
    ):
        sf.shop_sessions(shop)


def test_too_little_memory_is_an_error_of_one_line(tables):
    with pytest.raises(KitError, match="memory"), cl.open_shop(tables, replace(load(), memory="much")):
        pass


def test_tables_are_cut_at_a_moment(tables):
    moment = pd.Timestamp("2025-09-02 18:00:01")
    cut = cl.known_at(tables, moment)
    assert (cut["events"]["timestamp"] < moment).all() and (cut["orders"]["recorded"] < moment).all()
    assert cut["products"] is tables["products"]
    s = cut["sessions"]
    going = s["timestamp"] + pd.to_timedelta(s["duration"].astype(float), "s")
    assert (going.dropna() < moment).all()
    each = cl.known_at(tables, pd.Series([moment], index=s["visitor_id"].iloc[:1]))
    assert (
        len(each["events"]) >= len(tables["events"]) - (tables["events"]["visitor_id"] == s["visitor_id"].iloc[0]).sum()
    )
    other = tables["sessions"]["visitor_id"] != s["visitor_id"].iloc[0]
    assert (each["sessions"]["visitor_id"] != s["visitor_id"].iloc[0]).sum() == other.sum()
    with pytest.raises(KitError, match="no date"):
        cl.known_at(tables, "soon")


def test_a_handle_leaves_nothing_behind(tables, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with cl.open_shop(tables) as shop:
        shop.need("past")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_clicks_of_sessions_need_no_visitor():
    toy = cl.tiny_shop()
    less = toy | {"events": toy["events"].drop(columns="visitor_id")}
    with cl.open_shop(toy) as whole, cl.open_shop(less) as shop:
        pd.testing.assert_frame_equal(sf.unfolding(whole), sf.unfolding(shop))
    sf.assert_sessions_as_of(less)
    with pytest.raises(KitError, match="'visitor_id' is missing"), cl.open_shop({"events": less["events"]}):
        pass


def test_a_column_without_any_value_is_no_column():
    toy = cl.tiny_shop()
    orders = toy["orders"].assign(customer_id="seven")
    nobody = toy["sessions"].assign(customer_id=None)
    with cl.open_shop(toy | {"sessions": nobody, "orders": orders}) as shop:
        assert len(sf.shop_sessions(shop)) == 4


def test_large_and_infinite_prices():
    toy = cl.tiny_shop()
    with cl.open_shop(toy | {"products": pd.DataFrame({"product_id": [11, 12], "price": [4e8, np.inf]})}) as shop:
        got = sf.left_carts(shop).set_index("session_id")["price"]
    assert got[1] == 4e8 and np.isnan(got[2])


def test_kinds_in_capitals_count_for_machines():
    toy = cl.tiny_shop()
    with cl.open_shop({"events": toy["events"].assign(event_type=toy["events"]["event_type"].str.upper())}) as shop:
        assert 5 not in set(sf.shop_sessions(shop)["session_id"])
