"""The web shop: its truth is the truth, its figures are the guide's, and its bytes depend on the seed alone."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.data import contracts
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce, engine
from mktai_kit.world.media import CHANNELS
from mktai_kit.world.truth import effect, unseal
from mktai_kit.world.visits import Calendar, VisitParams, week_of

NAMES = [p.name for p in ecommerce.PROGRAMMES]
SMALL = {"scale": 0.002, "seed": 3, "creative_share": 0.5}


@pytest.fixture(scope="module")
def small():
    return ecommerce.simulate(**SMALL)


@pytest.fixture(scope="module")
def big():
    return ecommerce.simulate(scale=0.05, seed=7)


def programme(name):
    return next(p for p in ecommerce.PROGRAMMES if p.name == name)


def under(frame, kind, actions, taken):
    """The sealed outcome of the action that each unit got."""
    table = np.stack([frame[f"{kind}__{a}"] for a in actions], axis=1)
    return table[np.arange(len(frame)), pd.Index(actions).get_indexer(taken)]


# ------------------------------------------------------------------------------------------------------------ the truth
@pytest.mark.parametrize("name", NAMES)
def test_the_readout_is_the_truth_of_what_was_done(small, name):
    p, found = programme(name), ecommerce.readout(small, name)
    sealed = unseal(small).table(name).set_index(p.unit)
    assert sealed.index.is_unique and found[p.unit].is_unique
    assert name == "redesign" or set(found[p.unit]) == set(sealed.index)
    sealed = sealed.loc[found[p.unit]]
    assert (sealed["action"].astype(str).to_numpy() == found["action"].astype(str).to_numpy()).all()
    assert (under(sealed, "goal", p.actions, found["action"]) == found["goal"]).all()
    assert np.allclose(under(sealed, "profit", p.actions, found["action"]), found["profit"], atol=1e-6)
    assert found["propensity"].between(0, 1, inclusive="neither").all()
    if name == "price_test":
        assert (found["cluster"].to_numpy() == sealed["cluster"].to_numpy()).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_simulated_is_the_sealed_answer(small, name):
    p, sealed = programme(name), unseal(small).table(name).set_index(programme(name).unit)
    rng = np.random.default_rng(1)
    policy = pd.Series(np.array(p.actions)[rng.integers(0, len(p.actions), len(sealed))], index=sealed.index)
    found = ecommerce.readout(ecommerce.simulate(**SMALL, policies={name: policy}), name)
    assert len(found) > 0.9 * len(sealed)
    assert (found["action"].astype(str).to_numpy() == policy.loc[found[p.unit]].to_numpy()).all()
    sealed = sealed.loc[found[p.unit]]
    assert (under(sealed, "goal", p.actions, found["action"]) == found["goal"]).all()
    assert np.allclose(under(sealed, "profit", p.actions, found["action"]), found["profit"], atol=1e-6)


def test_a_policy_leaves_other_programmes_units_alone(small):
    other = ecommerce.simulate(**SMALL, policies={"checkout": "treatment"})
    for name in ("holdout_email", "creatives", "homepage"):
        unit = programme(name).unit
        assert (unseal(small).table(name)[unit] == unseal(other).table(name)[unit]).all()
    assert small.arrow["customers"].equals(other.arrow["customers"])


def test_goals_and_profits_are_what_expectations_expect(big):
    truth = unseal(big)
    for p in ecommerce.PROGRAMMES:
        assert (truth.outcomes(p.name, "expected").to_numpy() >= 0).all()
        for kind, expectation in (("goal", "expected"), ("profit", "expected_profit")):
            off = truth.outcomes(p.name, kind) - truth.outcomes(p.name, expectation)
            z = off.mean() / (off.std() / np.sqrt(len(off)))
            assert z.abs().max() < 4, (p.name, kind)


def test_a_reminder_costs_what_its_contacts_cost(small):
    sent = small["exposures"].loc[lambda e: e["channel"] == "retargeting"].drop_duplicates("exposure_id")
    log = small["assignments"].loc[lambda a: a["recent"].notna()].drop_duplicates("session_id").set_index("session_id")
    paid = sent.groupby("session_id")["cost"].sum().reindex(log.index).fillna(0)
    assert np.allclose(paid, log["cost"]) and log["cost"].max() == 0.2, "two contacts cost twice"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_has_an_effect_in_the_null_world(name):
    truth = unseal(null_world())
    for kind in ("goal", "expected"):
        frame = truth.outcomes(name, kind)
        assert (frame.eq(frame.iloc[:, 0], axis=0)).all().all()


_NULL = []


def null_world():
    if not _NULL:
        _NULL.append(ecommerce.simulate(scale=0.002, seed=2, preset="null"))
    return _NULL[0]


def test_elasticities_are_zero_in_the_null_world():
    assert (unseal(null_world()).table("elasticities")["elasticity"] == 0).all()


def test_display_does_nothing_and_is_the_only_channel_that_does(big):
    truth = unseal(big)
    for c in CHANNELS:
        frame = truth.outcomes(f"holdout_{c}")
        assert (frame["held_out"] == frame["reached"]).all() == (c == "display")
    needed = truth.table("causes")
    assert not needed["needs_display"].any() and needed["needs_email"].any()


# ------------------------------------------------------------------------------------------------- how experiments read
def difference(found, actions, treated):
    """Difference in means against the first action, with its standard error; by inverse propensity where chances are unequal."""
    y, hit = found["goal"].to_numpy(), [(found["action"] == a).to_numpy() for a in (actions[0], treated)]
    weight = [h / found["propensity"].to_numpy() for h in hit]
    mean = [(w * y).sum() / w.sum() for w in weight]
    part = [w * (y - m) / w.sum() for w, m in zip(weight, mean, strict=True)]
    return mean[1] - mean[0], np.sqrt(((part[1] - part[0]) ** 2).sum())


@pytest.mark.slow
def test_experiments_cover_the_truth():
    hits = {}
    for seed in range(200):
        world = ecommerce.simulate(scale=0.003, seed=seed)
        truth, tables = unseal(world), world.tables
        for p in ecommerce.PROGRAMMES:
            found = ecommerce.readout(tables, p.name)
            for action in p.actions[1:]:
                value, se = difference(found, p.actions, action)
                true = effect(truth, p.name, action, units=found[p.unit])
                hits.setdefault((p.name, action), []).append(abs(value - true) <= 1.96 * se)
    covered = pd.Series({k: np.mean(v) for k, v in hits.items()})
    wrong = covered[~covered.between(0.90, 0.98)].drop("redesign", errors="ignore")
    assert wrong.empty, wrong


def journeys(tables):
    """Touches and orders of customers, in order; a path ends with an order or a pause of 30 days."""
    touches = tables["exposures"]
    touches = touches[touches["channel"].isin(CHANNELS)].dropna(subset="customer_id").astype({"channel": str})
    orders = tables["orders"].dropna(subset="customer_id").drop_duplicates("order_id").assign(channel="order")
    both = pd.concat([t[["customer_id", "timestamp", "channel"]] for t in (touches, orders)])
    both = both.sort_values(["customer_id", "timestamp"], kind="stable", ignore_index=True)
    pause = both["timestamp"].diff() > pd.Timedelta(days=30)
    fresh = (both["customer_id"] != both["customer_id"].shift()) | (both["channel"].shift() == "order") | pause
    return both.assign(path=fresh.cumsum())


def last_touch(paths):
    before = paths["channel"].shift().where(paths["path"] == paths["path"].shift())
    return before[paths["channel"] == "order"].value_counts(normalize=True)


def markov(paths, channels=CHANNELS):
    """Removal effects in an absorbing chain (Anderl et al. 2016), as shares."""
    n = len(channels)
    state = paths["channel"].map({c: i + 1 for i, c in enumerate(channels)} | {"order": n + 1}).to_numpy()
    first = np.append(True, np.diff(paths["path"]) > 0)
    last = np.append(first[1:], True) & (state <= n)
    moves = np.zeros((n + 1, n + 3))
    np.add.at(moves, (0, state[first]), 1)
    np.add.at(moves, (state[:-1][~first[1:]], state[1:][~first[1:]]), 1)
    np.add.at(moves, (state[last], n + 2), 1)

    def reaches(moves):
        share = moves / np.maximum(moves.sum(axis=1, keepdims=True), 1)
        return np.linalg.solve(np.eye(n + 1) - share[:, : n + 1], share[:, n + 1])[0]

    lost = []
    for c in range(1, n + 1):
        without = moves.copy()
        without[:, n + 2] += without[:, c]
        without[:, c] = 0
        lost.append(1 - reaches(without) / reaches(moves))
    return pd.Series(lost, index=list(channels)) / np.sum(lost)


def test_markov_on_three_paths_by_hand():
    # a, order / a, b, order / b: without a nobody buys but along b, which nobody starts who buys; removal 1 and 1/2
    paths = pd.DataFrame({"path": [1, 1, 2, 2, 2, 3], "channel": ["a", "order", "a", "b", "order", "b"]})
    # chain: start -> a 2/3, b 1/3; a -> order 1/2, b 1/2; b -> order 1/2, null 1/2. P = 2/3 * 3/4 + 1/3 * 1/2 = 2/3
    # without a: 1/6, removal 3/4; without b: 2/3 * 1/2 = 1/3, removal 1/2
    found = markov(paths, ("a", "b"))
    assert np.allclose(found, [0.75 / 1.25, 0.5 / 1.25])


def test_attribution_credits_the_channel_that_causes_nothing(big):
    paths = journeys(big)
    with_order = paths["path"].isin(paths.loc[paths["channel"] == "order", "path"])
    n_orders = (paths["channel"] == "order").sum()
    touched = paths.loc[with_order & (paths["channel"] == "display"), "path"].nunique() / n_orders
    assert touched > 0.5, "it touches most buyers"
    last, removal = last_touch(paths), markov(paths)
    assert last.idxmax() == "display" and last["display"] > 0.25
    assert removal.idxmax() == "display" and removal["display"] > 0.25


@pytest.mark.parametrize("channel", CHANNELS)
def test_naive_comparisons_miss_and_holdouts_do_not(big, channel):
    name = f"holdout_{channel}"
    found, true = ecommerce.readout(big, name), effect(unseal(big), name, "reached")
    value, se = difference(found, ("held_out", "reached"), "reached")
    assert abs(value - true) < 4 * se
    sent = big["exposures"].loc[lambda e: e["channel"] == channel, "customer_id"].dropna()
    reached = found[found["action"] == "reached"]
    y, touched = reached["goal"], reached["customer_id"].isin(sent)
    naive = y[touched].mean() - y[~touched].mean()
    error = np.sqrt(y[touched].var() / touched.sum() + y[~touched].var() / (~touched).sum())
    assert (naive - true) / error > 15, "who was touched had more needs to be touched in"


def elasticity(rows):
    """Slope of log units on the log factor within products (conditional Poisson likelihood), with its standard error."""
    x, units, product = (
        np.log(rows["price"] / rows["list_price"]).to_numpy(),
        rows["units"].to_numpy(),
        pd.factorize(rows["product_id"])[0],
    )
    total, slope = np.bincount(product, units), 0.0
    for _ in range(15):
        weight = np.exp(slope * x)
        mean, square = (np.bincount(product, weight * x**k) / np.bincount(product, weight) for k in (1, 2))
        information = (total * (square - mean**2)).sum()
        slope += ((units * x).sum() - (total * mean).sum()) / information
    return slope, information**-0.5


def test_prices_that_the_shop_chose_mislead_and_the_test_does_not(big):
    orders, lines = big["orders"].drop_duplicates("order_id"), big["order_lines"].drop_duplicates(["order_id", "line"])
    orders = orders[
        ~orders["channel"].isin(["saved cart", "retargeting"])
    ]  # who comes back to a cart no longer asks for the price
    lines = lines[lines["line"] == 1].merge(orders[["order_id", "timestamp"]], on="order_id")
    week = (lines["timestamp"].dt.day_of_year - 1).floordiv(7).clip(upper=51) + 1
    sold = lines.groupby(["product_id", week])["quantity"].sum().rename_axis(["product_id", "week"]).rename("units")
    prices = big["prices"].join(sold, on=["product_id", "week"]).fillna({"units": 0})
    true = -unseal(big).table("elasticities").set_index("product_id")["elasticity"].reindex(lines["product_id"]).mean()
    chosen, tested = (elasticity(prices[prices["randomised"] == drawn]) for drawn in (False, True))
    assert chosen[0] - true > 3 * chosen[1], "more was asked where more was wanted"
    assert abs(tested[0] - true) < 3 * tested[1]


def test_the_mismatch_shows_and_hides_the_harm(big):
    truth = unseal(big)
    for name, log_p in (("checkout", -4), ("homepage", -4), ("redesign", None)):
        n = ecommerce.readout(big, name)["action"].value_counts()
        z = (n["treatment"] - n["control"]) / np.sqrt(n.sum())
        assert (abs(z) > 5) if log_p is None else (abs(z) < 4), name
    sealed, true = truth.table("redesign"), effect(truth, "redesign", "treatment")
    treated = sealed[sealed["action"] == "treatment"]
    gained = treated.loc[treated["logged"], "expected__treatment"].mean() - treated["expected__treatment"].mean()
    assert true < 0 and gained > 0.6 * abs(true), "who is missing would have bought less than the others"


def test_the_site_tests_know_their_effects(big):
    truth = unseal(big)
    assert effect(truth, "homepage", "treatment", kind="goal") == 0
    frame = truth.outcomes("checkout", "expected")
    assert 1.04 < frame["treatment"].mean() / frame["control"].mean() < 1.13


def test_fatigue_turns_the_offer_around(big):
    sealed = unseal(big).table("retargeting").set_index("session_id")
    log = big["assignments"].dropna(subset="recent").drop_duplicates("session_id").set_index("session_id")
    gain = (sealed["expected__offer"] - sealed["expected__none"]).groupby(log["recent"]).mean()
    assert gain[0] > 0 and gain[gain.index > 4].max() < 0 and gain.iloc[:5].is_monotonic_decreasing


def test_urgency_wears_out(big):
    sealed = unseal(big).table("creatives").set_index("exposure_id")
    shown = big["exposures"].dropna(subset="propensity").drop_duplicates("exposure_id").set_index("exposure_id")
    gain = sealed["expected__urgency"] - sealed["expected__plain"]
    by_quarter = gain.groupby(shown["timestamp"].dt.quarter).mean()
    assert by_quarter.iloc[0] > 0 > by_quarter.iloc[3]
    chances = shown["propensity"]
    assert chances.min() >= 0.06 and abs((1 / chances).mean() - 5) < 0.2
    assert (shown["rewarded"].notna() == shown["converted"].astype(bool)).all()
    assert (shown["rewarded"] - shown["timestamp"]).dropna().between(pd.Timedelta(0), pd.Timedelta(days=7)).all()


# --------------------------------------------------------------------------------------------------------- the fixtures
@pytest.mark.slow
def test_figures_are_the_guides():
    for seed in range(10):
        found = ecommerce.figures(ecommerce.simulate(scale=0.05, seed=seed))
        assert found["ratio"].between(0.97, 1.03).all(), (seed, found["ratio"].to_dict())


def test_faults_do_not_move_the_figures(big):
    clean = ecommerce.figures(ecommerce.simulate(0.01, seed=5, **{f: 0 for f in FAULTS}))
    dirty = ecommerce.figures(ecommerce.simulate(0.01, seed=5))
    assert (clean["found"] / dirty["found"]).sub(1).abs().max() < 0.003
    assert set(big.arrow) == {*contracts.TABLES} & set(big.arrow) | {"assignments"}
    assert len(unseal(big).table("faults")) > 100


FAULTS = ("fault_copies", "fault_late", "fault_broken", "fault_units", "fault_slips")


def test_tables_keep_their_contracts():
    world = ecommerce.simulate(scale=0.002, seed=5, preset="tiny")
    for name in set(world.arrow) & set(contracts.TABLES):
        contracts.validate(name, world[name])
    keys = {"sessions": ["session_id"], "orders": ["order_id"], "exposures": ["exposure_id"], "events": ["session_id", "timestamp"]}  # fmt: skip
    for name, key in keys.items():
        assert not world[name].duplicated(key).any(), name
    assert world["events"]["session_id"].isin(world["sessions"]["session_id"]).all()
    assert world["orders"]["session_id"].isin(world["sessions"]["session_id"]).all()
    lines = world["order_lines"].groupby("order_id")[["amount", "cost", "quantity", "discount"]].sum()
    orders = world["orders"].set_index("order_id")[["amount", "cost", "quantity", "discount"]]
    assert np.allclose(lines.loc[orders.index], orders, atol=0.005)


def test_orders_agree_with_clicks():
    world = ecommerce.simulate(scale=0.002, seed=5, preset="tiny")
    events, sessions, orders = world["events"], world["sessions"].set_index("session_id"), world["orders"]
    bought = events[events["event_type"] == "purchase"]
    assert set(bought["session_id"]) == set(orders["session_id"]) and len(bought) == len(orders)
    assert (
        orders.set_index("session_id")["timestamp"].loc[bought["session_id"]].to_numpy()
        == bought["timestamp"].to_numpy()
    ).all()
    assert set(sessions.index[sessions["converted"]]) == set(orders["session_id"])
    for before, after in (("cart", "checkout"), ("checkout", "purchase")):
        assert set(events.loc[events["event_type"] == after, "session_id"]) <= set(
            events.loc[events["event_type"] == before, "session_id"]
        )
    start = events.groupby("session_id")["timestamp"].min()
    assert (start == sessions["timestamp"].loc[start.index]).all() and len(start) == len(sessions)
    clicks = events[~events["event_type"].isin(["cart", "checkout", "purchase"])].groupby("session_id").size()
    assert (sessions["pages"] == clicks.reindex(sessions.index).fillna(0)).all()


def test_nobody_is_reached_against_their_will(small):
    consent = small["consent"].sort_values("timestamp", kind="stable")
    for channel, purpose in (("email", "email"), ("social", "ads"), ("display", "ads"), ("retargeting", "profiling")):
        sent = small["exposures"].loc[lambda e: e["channel"] == channel].dropna(subset="customer_id")  # noqa: B023
        sent = sent.drop_duplicates("exposure_id").sort_values("timestamp")
        answer = consent[consent["purpose"] == purpose].astype({"customer_id": "int64"})
        sent = sent.assign(customer_id=sent["customer_id"].astype("int64"))
        if channel == "email":  # whose clock slips for some days
            sent = sent[~sent["timestamp"].between(pd.Timestamp("2025-08-31"), pd.Timestamp("2025-09-12"))]
        last = pd.merge_asof(sent, answer, on="timestamp", by="customer_id")
        assert last["granted"].notna().all() and last["granted"].all(), channel


def test_nobody_is_a_customer_before_registering(small):
    since = small["consent"].groupby("customer_id")["timestamp"].min()
    for name in ("sessions", "orders", "exposures", "assignments", "returns", "surveys"):
        rows = small[name].dropna(subset="customer_id")
        if name == "exposures":  # the clock of e-mails slips for some days
            rows = rows[rows["channel"] != "email"]
        assert (rows["timestamp"].to_numpy() >= since.loc[rows["customer_id"].astype(int)].to_numpy()).all(), name


def test_the_age_that_nobody_asked_moves_no_banner():
    world = ecommerce.simulate(scale=0.004, seed=3, preset="tiny")
    ages = world["customers"].drop_duplicates("customer_id").set_index("customer_id")["age_band"]
    shown = world["exposures"].dropna(subset=["propensity", "customer_id"])
    shown = shown[(shown["arm"] == "discount") & ages.reindex(shown["customer_id"]).isna().to_numpy()]
    told = world["exposures"].dropna(subset=["propensity", "customer_id"]).loc[lambda e: e["arm"] == "discount"]
    old = told[ages.reindex(told["customer_id"]).to_numpy() == "65+"]["propensity"]
    assert len(shown) > 20 and not shown["propensity"].round(6).isin(old.round(6)).any()


def test_ids_and_rows_tell_nothing():
    world = ecommerce.simulate(scale=0.01, seed=3, preset="tiny")
    truth = unseal(world)
    links, bots = truth.table("links"), truth.table("bots")["visitor_id"]
    ranks = pd.concat([links["visitor_id"], bots]).rank(pct=True).to_numpy()
    machine = np.arange(len(ranks)) >= len(links)
    customer = np.append(links["customer_id"].notna().to_numpy(), np.zeros(len(bots), bool))
    for some in (machine, customer):
        assert abs(ranks[some].mean() - ranks[~some].mean()) < 4 * np.sqrt(
            1 / 12 * (1 / some.sum() + 1 / (~some).sum())
        )
    person = links.sort_values("visitor_id")["person"].to_numpy()
    assert (np.diff(person) == 0).mean() < 0.002, "browsers of one person do not stand side by side"
    sessions, orders = world["sessions"], world["orders"]
    assert sessions["timestamp"].is_monotonic_increasing and orders["timestamp"].is_monotonic_increasing
    for name, key in (("sessions", "session_id"), ("orders", "order_id"), ("exposures", "exposure_id")):
        ids = world[name].dropna(subset="customer_id")
        assert ids[key].is_unique and abs(ids[key].corr(ids["customer_id"].astype(float), "spearman")) < 0.04, name
    assert (world["events"]["session_id"].drop_duplicates().to_numpy() == sessions["session_id"].to_numpy()).all()
    assert (world["order_lines"]["order_id"].drop_duplicates().to_numpy() == orders["order_id"].to_numpy()).all()


def test_campaigns_know_when_they_run(small):
    told = small["campaigns"].set_index("objective")
    for name in ("price_test", "checkout", "homepage", "redesign"):
        log = small["assignments"].loc[lambda a: a["campaign_id"] == told.loc[name, "campaign_id"], "timestamp"]  # noqa: B023
        assert log.dt.date.min() >= told.loc[name, "start_date"] and log.dt.date.max() <= told.loc[name, "end_date"], (
            name
        )


def test_machines_are_found_and_people_are_not(big):
    sealed = set(unseal(big).table("bots")["visitor_id"])
    sessions = big["sessions"].drop_duplicates("session_id")
    kept = ecommerce.people_only(sessions)
    machine = sessions["visitor_id"].isin(sealed)
    assert not kept["visitor_id"].isin(sealed).any() and len(kept) == (~machine).sum()
    assert 0.5 < sessions.loc[machine, "is_bot"].mean() < 0.8 and not sessions.loc[~machine, "is_bot"].any()


def test_unfairness_is_where_it_is_said_to_be(big):
    told = unseal(big).table("unfairness").set_index("table")
    ages = big["customers"].drop_duplicates("customer_id").set_index("customer_id")["age_band"]
    shown = big["exposures"].dropna(subset=["propensity", "customer_id"])
    old = ages.reindex(shown["customer_id"]).to_numpy() == "65+"
    gap = (shown["arm"] == "discount")[old].mean() - (shown["arm"] == "discount")[~old].mean()
    assert (
        told.loc["exposures", "verdict"] == "unfair" and abs(gap - told.loc["exposures", "gap"]) < 0.04 and gap < -0.05
    )
    held = ecommerce.readout(big, "holdout_email")
    old = ages.reindex(held["customer_id"]).to_numpy() == "65+"
    out = held["action"] == "held_out"
    assert abs(out[old].mean() - out[~old].mean()) < 4 * np.sqrt(0.2 * 0.8 * (1 / old.sum() + 1 / (~old).sum()))


def test_missing_values_are_missing_for_a_reason(big):
    customers = big["customers"].drop_duplicates("customer_id")
    gone = customers["age_band"].isna().groupby(customers["acquisition_channel"], observed=True).mean()
    assert gone["social"] > 3 * gone["search"]
    complete = unseal(big).table("complete")
    ages = complete[complete["table"] == "customers"].set_index("id")["value"]
    assert set(ages.index) == set(customers.loc[customers["age_band"].isna(), "customer_id"])
    surveys, scores = big["surveys"], complete[complete["table"] == "surveys"].set_index("id")["value"].astype(int)
    heard = surveys.loc[surveys["answered"], "score"].astype(int)
    assert heard.std() > 1.05 * pd.concat([heard, scores]).std(), "the ends of the scale answer more"


def test_stock_outs_lose_orders(big):
    lost, orders = unseal(big).table("demand"), big["orders"].drop_duplicates("order_id")
    assert 0.01 < len(lost) / len(orders) < 0.05
    assert not lost["session_id"].isin(orders["session_id"]).any()


def test_several_browsers_are_one_person(big):
    links = unseal(big).table("links")
    per = links.dropna(subset="customer_id").groupby("customer_id").size()
    assert per.max() == 3 and 1.3 < per.mean() < 1.6 and links["visitor_id"].is_unique
    seen = big["sessions"].dropna(subset="customer_id").drop_duplicates("visitor_id")
    linked = seen.merge(links, on="visitor_id", suffixes=("", "_true"))
    assert (linked["customer_id"] == linked["customer_id_true"]).all()


# ---------------------------------------------------------------------------------------------- the same world, again
def same(a, b):
    return set(a) == set(b) and all(a[k].equals(b[k]) for k in a)


def test_the_seed_decides(small):
    again, other = ecommerce.simulate(**SMALL), ecommerce.simulate(**SMALL | {"seed": 4})
    assert same(small.arrow, again.arrow) and same(small.sealed, again.sealed)
    assert not any(
        small.arrow[k].equals(other.arrow[k]) for k in ("sessions", "events", "orders", "customers", "products")
    )


@pytest.mark.slow
def test_workers_do_not_matter(tmp_path):
    found = []
    for i, workers in enumerate((0, 2, 0)):
        ecommerce.make(tmp_path / str(i), scale=0.03, seed=3, workers=workers)
        found.append(engine.read_manifest(tmp_path / str(i)))
    assert found[0] == found[1] == found[2]
    assert found[0]["tables"]["events"]["files"] == 2


def test_a_folder_gives_what_memory_gives(tmp_path):
    folder = ecommerce.make(tmp_path / "shop", scale=0.001, seed=3)
    world = ecommerce.simulate(scale=0.001, seed=3)
    assert engine.find("ecommerce") is ecommerce.COMPANY
    for name, table in engine.read(folder).items():
        assert table.equals(world[name]), name
    truth = unseal(folder)
    assert effect(truth, "checkout", "treatment") == effect(unseal(world), "checkout", "treatment")
    assert list(truth.programmes.index) == NAMES


def test_a_block_does_not_know_how_many_follow():
    one, two = (
        ecommerce.COMPANY.context(s, 5, "tiny", None, {"products_per_customer": r})
        for s, r in ((0.02, 2.0), (0.04, 1.0))
    )
    a, b = (ecommerce.COMPANY.simulate(ctx, engine.Block(0, 0, 10_000)) for ctx in (one, two))
    assert same(a.tables, b.tables) and same(a.truth, b.truth)


@pytest.mark.slow
def test_scale_changes_the_size_and_nothing_else(big):
    from scipy.stats import ks_2samp

    double = ecommerce.simulate(scale=0.1, seed=8)
    for name, column in (
        ("orders", "amount"),
        ("sessions", "pages"),
        ("sessions", "duration"),
        ("order_lines", "list_price"),
    ):
        a, b = (w[name][column].to_numpy(float) for w in (big, double))
        assert ks_2samp(a, b).statistic < 0.02, (name, column)
    for name in ("customers", "sessions", "events", "orders", "exposures", "assignments"):
        assert 1.93 < double.arrow[name].num_rows / big.arrow[name].num_rows < 2.07, name


# --------------------------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 2e-6},
        {"scale": 4e-6, "seed": 1},
        {"creative_share": 0},
        {"price_test_weeks": 0},
        {"anonymous_visitors": 0},
        {"bots_per_customer": 0},
        {"needs_customer": 0, "needs_anonymous": 0},
        {"browsing_customer": 0, "browsing_anonymous": 0, "further_visit": 0},
        {"email_touch": 1.0, "display_touch": 0},
        {"consent_email": 0, "consent_ads": 0, "consent_profiling": 0},
        {"joined_this_year": 1, "guests": 1},
        {"return_early": 0, "return_late": 0, "more_products": 0, "line_returned": 0},
        {"creative_discount": -0.4, "creative_share": 1.0},
        {"preset": "hard"},
    ],
    ids=str,
)
def test_extremes(changes):
    world = ecommerce.simulate(**{"scale": 0.0005, "seed": 3} | changes)
    ecommerce.figures(world)
    for name in NAMES:
        ecommerce.readout(world, name)


def test_unknown_programme():
    with pytest.raises(KitError, match="did you mean 'checkout'"):
        ecommerce.readout({}, "chekout")
    with pytest.raises(KitError, match="did you mean 'treatment'"):
        ecommerce.simulate(scale=0.0005, policies={"checkout": "treatmnt"})


def test_every_parameter_is_told():
    told = engine.describe_params(ecommerce.Params)
    assert (told["meaning"].str.len() > 15).all() and (told["source"].str.len() > 5).all()
    for preset, changed in ecommerce.PRESETS.items():
        engine.change(ecommerce.Params(), **changed)
        assert preset == "guide" or changed


def test_weeks_and_moments():
    calendar = Calendar(VisitParams())
    moments = calendar.moments(np.random.default_rng(1), 200_000)
    assert moments.min() >= 0 and moments.max() < 365 * 86_400
    assert week_of(np.array([0, 7 * 86_400 - 1, 7 * 86_400, 364 * 86_400])).tolist() == [0, 0, 1, 51]
    by_day = np.bincount(moments // 86_400, minlength=365)
    assert abs(np.corrcoef(by_day, calendar.weight)[0, 1]) > 0.9


def test_arrow_types(small):
    assert small.arrow["events"].schema.field("event_type").type == pa.dictionary(pa.int8(), pa.string())
    assert all(t.num_rows for t in small.arrow.values())
