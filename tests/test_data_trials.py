"""Trials: one row per draw, what it earned, what was known, who agreed."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import trials
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce


@pytest.fixture(scope="module")
def shop():
    return ecommerce.simulate(0.01, seed=3).tables


@pytest.mark.parametrize("name", [p.name for p in ecommerce.PROGRAMMES])
def test_agrees_with_the_world(shop, name):
    mine = trials.trial(shop, name.removeprefix("holdout_"))
    theirs = ecommerce.readout(shop, name)
    theirs = theirs.set_index(theirs.columns[0]).reindex(mine.index)
    assert len(theirs) == len(ecommerce.readout(shop, name))
    assert np.allclose(mine["profit"], theirs["profit"])
    assert (mine["action"] == theirs["action"].astype(str)).all()
    assert np.allclose(mine["propensity"], theirs["propensity"])
    if name not in ("price_test",):  # orders there, units bought in the world's own reading
        assert np.allclose(mine["goal"], theirs["goal"])
    if "cluster" in theirs:
        assert (
            len(set(zip(mine["cluster"], theirs["cluster"])))
            == mine["cluster"].nunique()
            == theirs["cluster"].nunique()
        )


def test_copies_and_order_of_rows_do_not_matter(shop):
    worse = dict(
        shop, assignments=pd.concat([shop["assignments"], shop["assignments"].head(500)]).sample(frac=1, random_state=1)
    )
    a, b = trials.trial(shop, "checkout"), trials.trial(worse, "checkout")
    pd.testing.assert_frame_equal(a.sort_index(), b.sort_index())


def toy():
    return {
        "assignments": pd.DataFrame(
            {
                "campaign_id": 1,
                "visitor_id": ["a", "b", "c", "d"],
                "arm": ["control", "new", "new", "control"],
                "propensity": 0.5,
                "timestamp": pd.to_datetime(["2025-01-01", "2025-01-02", "2025-01-03", "2025-01-03"]),
            }
        ),
        "sessions": pd.DataFrame(
            {
                "session_id": [1, 2, 3, 4, 5],
                "visitor_id": ["a", "a", "b", "c", "z"],
                "timestamp": pd.to_datetime(["2024-12-01", "2025-01-01", "2025-01-02", "2025-01-03", "2025-01-03"]),
                "device": ["mobile", "desktop", "desktop", "mobile", "mobile"],
                "channel": ["direct", "direct", "direct", "saved cart", "direct"],
            }
        ),
        "orders": pd.DataFrame(
            {
                "order_id": [10, 11, 12, 13],
                "session_id": [1, 3, 4, 5],
                "timestamp": pd.to_datetime(["2024-12-01", "2025-01-02", "2025-01-03", "2025-01-03"]),
                "amount": [50.0, 30.0, 20.0, 99.0],
                "cost": [20.0, 10.0, 5.0, 1.0],
            }
        ),
    }


def test_units_that_bought_nothing_stay():
    found = trials.trial(toy(), 1)
    assert found["goal"].tolist() == [0.0, 1.0, 0.0, 0.0]  # a: bought in December, before the draw; c: a saved cart
    assert found["profit"].tolist() == [0.0, 20.0, 0.0, 0.0]
    assert found["cluster"].tolist() == ["a", "b", "c", "d"]


def test_campaign_days_count_by_visit():
    days = pd.DataFrame(
        {
            "campaign_id": [1],
            "objective": ["page"],
            "start_date": pd.to_datetime(["2025-01-01"]),
            "end_date": pd.to_datetime(["2025-01-02"]),
        }
    )
    found = trials.trial(toy() | {"campaigns": days}, "page", without=())
    assert found["goal"].tolist() == [0.0, 1.0, 0.0, 0.0]


def campaign(**more):
    return pd.DataFrame(
        {"campaign_id": [1], "objective": ["page"], "start_date": [pd.NaT], "end_date": [pd.NaT]} | more
    )


def test_a_campaign_without_dates_counts_all_orders_since_the_draw():
    assert trials.trial(toy() | {"campaigns": campaign()}, "page", without=())["goal"].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_campaigns_of_the_same_name_are_told_apart():
    t = toy()
    t["assignments"] = pd.concat([t["assignments"], t["assignments"].assign(campaign_id=2, arm="control")])
    t["campaigns"] = pd.concat([campaign(), campaign(campaign_id=[2])])
    assert trials.programmes(t)["objective"].tolist() == ["page 1", "page 2"]
    assert trials.trial(t, "page 1")["action"].nunique() == 2 and trials.trial(t, 2)["action"].nunique() == 1


def test_first_visit_and_what_was_before():
    t = toy()
    came = trials.first_visit(t, trials.trial(t, 1))
    assert came["device"].tolist() == ["desktop", "desktop", "mobile", "unknown"]
    assert came["past_visits"].tolist() == [1.0, 0.0, 0.0, 0.0] and came["past_orders"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_nobody_who_was_not_asked_has_agreed(shop):
    may = trials.trial_consent(shop, "retargeting", ["ads", "profiling"])
    known = trials.trial_context(shop, "retargeting")["known"] == 1
    assert not may[~known].any() and 0 < may[known].mean() < 1
    only = trials.trial_consent(shop, "retargeting", ["ads"])
    assert (only | ~may).all() and may.sum() < known.sum()


def test_context_knows_nothing_protected_and_nothing_later(shop):
    for name in ("creatives", "retargeting", "price_test", "checkout"):
        X = trials.trial_context(shop, name)
        assert X.notna().all().all() and X.index.equals(trials.trial(shop, name).index)
        assert not {"age_band", "gender", "region", "language", "income_band", "converted", "reward"} & set(X)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("assignments"), "who was assigned"),
        (lambda t: t.pop("orders"), "no orders"),
        (lambda t: t.pop("sessions"), "sessions has no session_id"),
        (lambda t: t.__setitem__("orders", t["orders"].drop(columns="session_id")), "orders has no session_id"),
        (lambda t: t.__setitem__("orders", t["orders"].drop(columns="amount")), "orders has no amount"),
        (lambda t: t.__setitem__("sessions", t["sessions"].drop(columns="visitor_id")), "sessions has no visitor_id"),
        (lambda t: t["orders"].__setitem__("cost", [1.0, None, 1.0, 1.0]), "no amount or no cost"),
        (lambda t: t.__setitem__("assignments", t["assignments"].drop(columns="timestamp")), "moment of the draw"),
        (lambda t: t["assignments"].__setitem__("timestamp", pd.NaT), "moment of the draw"),
        (lambda t: t["assignments"].__setitem__("arm", ["control", "new", "new", None]), None),
        (
            lambda t: t.__setitem__(
                "assignments", pd.concat([t["assignments"], t["assignments"].head(1).assign(arm="new")])
            ),
            "two arms",
        ),
        (lambda t: t["assignments"].__setitem__("visitor_id", ["a", "b", "c", None]), "no id is complete"),
    ],
)
def test_bad_tables_speak(change, says):
    t = toy()
    change(t)
    if says is None:
        assert len(trials.trial(t, 1)) == 3
        return
    with pytest.raises(KitError, match=says):
        trials.trial(t, 1)


def test_unknown_programme_is_suggested(shop):
    with pytest.raises(KitError, match="checkout"):
        trials.trial(shop, "chekout")
    with pytest.raises(KitError, match="for tests that draw visitors"):
        trials.first_visit(shop, trials.trial(shop, "retargeting"))


def test_what_was_paid_is_the_orders_amount(shop):
    found = trials.trial(shop, "checkout")
    assert (found.loc[found["goal"] == 0, "paid"] == 0).all() and (found.loc[found["goal"] > 0, "paid"] > 0).all()
    assert "paid" not in trials.trial(shop, "retargeting")  # the log has its own reward
