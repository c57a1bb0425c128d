"""The chain of stores: its figures, its bytes, and above all that its truth is what would have happened."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.data import contracts
from mktai_kit.settings import KitError
from mktai_kit.world import baskets, chain, engine, faults, ledger, offers, retail, stores, till
from mktai_kit.world.chain import APP_PUSH, MAILER, OFFERS, PROGRAMMES, SHELF_TEST, Params
from mktai_kit.world.engine import Draws, read_manifest, to_frame
from mktai_kit.world.retail import figures, mended, readout
from mktai_kit.world.stores import GROUPS, ITEMS, SHELF, STORES, WEEKS

STORE = 0.005  # one store
CLEAN = dict.fromkeys(("fault_copies", "fault_late", "fault_broken", "fault_units", "fault_slips"), 0.0)
by_name = {"argvalues": PROGRAMMES, "ids": lambda p: p.name}


@pytest.fixture(scope="module")
def world():
    return retail.simulate(STORE, seed=7)


@pytest.fixture(scope="module")
def district():
    return retail.simulate(0.025, seed=11)


def sealed(world, programme):
    return to_frame(world.sealed[programme.name]).sort_values(programme.unit, ignore_index=True)


def under(truth, actions, kind="goal"):
    """The sealed outcome of each unit under its own action."""
    columns = list(dict.fromkeys(actions))
    out = pd.Series(np.nan, index=truth.index)
    for a in columns:
        out[actions == a] = truth.loc[actions == a, f"{kind}__{a}"]
    return out


# ------------------------------------------------------------------------------------------------------------ the truth
@pytest.mark.parametrize("programme", **by_name)
def test_what_was_done_led_to_what_is_sealed(world, programme):
    seen, truth = readout(world, programme.name), sealed(world, programme)
    assert (seen[programme.unit].to_numpy() == truth[programme.unit].to_numpy()).all()
    action = truth["action"].astype(str)
    assert (seen["action"] == action).all()
    assert (seen["goal"] == under(truth, action)).all()
    assert np.allclose(seen["profit"], under(truth, action, "profit"), atol=1e-9)
    assert set(seen["action"]) <= set(programme.actions) and len(seen) > 100


@pytest.mark.parametrize("programme", **by_name)
def test_a_replayed_policy_gives_the_sealed_outcomes(world, programme):
    truth = sealed(world, programme)
    rng = np.random.default_rng(1)
    wanted = pd.Series(rng.choice(programme.actions, len(truth)), index=truth[programme.unit])
    for policy in (wanted, wanted[::3], programme.actions[-1]):
        again = readout(retail.simulate(STORE, seed=7, policies={programme.name: policy}), programme.name)
        if isinstance(policy, str):
            done = pd.Series(policy, index=truth.index)
        else:
            done = policy.reindex(truth[programme.unit]).reset_index(drop=True).fillna(truth["action"].astype(str))
        assert (again["action"] == done).all()
        assert (again["goal"] == under(truth, done)).all()
        assert np.allclose(again["profit"], under(truth, done, "profit"), atol=1e-9)


def test_programmes_do_not_touch_one_another_goals(world):
    everything = {p.name: p.actions[-1] for p in PROGRAMMES}
    again = retail.simulate(STORE, seed=7, policies=everything)
    for p in PROGRAMMES:
        kinds = [f"{kind}__{a}" for kind in ("goal", "expected") for a in p.actions]
        a, b = sealed(world, p)[kinds], sealed(again, p)[kinds]
        off = [c for c in kinds if not np.allclose(a[c], b[c], atol=1e-4 if c.startswith("expected") else 0)]
        assert not off or p is not SHELF_TEST, off
        assert (a == b).all().all() or (
            (a != b).mean() < 0.01
        ).all()  # a test may let a basket with one line come about


@pytest.mark.parametrize("programme", **by_name)
def test_null_effects_are_exactly_zero(programme):
    truth = sealed(retail.simulate(STORE, seed=3, preset="null"), programme)
    for kind in ("goal", "expected"):
        for a in programme.actions[1:]:
            assert (truth[f"{kind}__{a}"] == truth[f"{kind}__{programme.actions[0]}"]).all()


@pytest.mark.parametrize("programme", **by_name)
def test_goals_are_as_expected(district, programme):
    truth = sealed(district, programme)
    for a in programme.actions:
        gap = truth[f"goal__{a}"] - truth[f"expected__{a}"]
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))
        gap = truth[f"profit__{a}"] - truth[f"expected_profit__{a}"]
        assert abs(gap.mean()) < 4.5 * gap.std() / np.sqrt(len(gap))
    assert truth[f"goal__{programme.actions[0]}"].corr(truth[f"expected__{programme.actions[0]}"]) > 0.1
    if programme is not SHELF_TEST:
        assert ((truth.filter(like="expected__") >= 0) & (truth.filter(like="expected__") <= 1)).all().all()


def compared(world, programme):
    """For each action and kind: the difference in means to doing nothing, its error, and the true mean effect on the units compared."""
    seen, truth = readout(world, programme.name), sealed(world, programme)
    first, out = programme.actions[0], {}
    for action in programme.actions[1:]:
        both = seen["action"].isin([action, first])
        for kind, expected in (("goal", "expected"), ("profit", "expected_profit")):
            a, b = (seen.loc[seen["action"] == k, kind] for k in (action, first))
            true = (truth.loc[both, f"{expected}__{action}"] - truth.loc[both, f"{expected}__{first}"]).mean()
            out[action, kind] = a.mean() - b.mean(), np.sqrt(a.var() / len(a) + b.var() / len(b)), true
    return out


def test_a_single_experiment_is_near_and_the_mailer_is_not(district):
    for p in PROGRAMMES:
        for (a, kind), (found, error, true) in compared(district, p).items():
            assert (abs(found - true) < 4 * error) == (p is not MAILER), (p.name, a, kind, found, error, true)


@pytest.mark.slow
def test_coverage_of_every_arm():
    held = {}
    for seed in range(200):
        w = retail.simulate(STORE, seed=seed)
        for p in (OFFERS, APP_PUSH, SHELF_TEST):
            for key, (found, error, true) in compared(w, p).items():
                held.setdefault((p.name, *key), []).append(abs(found - true) < 1.96 * error)
    rates = {key: np.mean(v) for key, v in held.items()}
    assert all(0.90 <= rate <= 0.985 for rate in rates.values()), rates


# ---------------------------------------------------------------------------------------------------------- the figures
@pytest.mark.slow
def test_figures_over_ten_seeds():
    for seed in range(1, 11):
        ratio = figures(retail.simulate(0.05, seed=seed))["ratio"]
        assert (ratio - 1).abs().max() < 0.03, (seed, ratio.to_dict())


def test_figures_of_a_district(district):
    found = figures(district)
    assert list(found.columns) == ["guide", "found", "ratio", "unit", "meaning"]
    assert (found["ratio"] - 1).abs().max() < 0.03
    t = mended(district["transactions"])
    assert 1.2 < t["transaction_id"].nunique() / len(district["customers"]["customer_id"].unique()) < 1.6
    assert 3.2 < len(t) / t["transaction_id"].nunique() < 4.2


def test_faults_do_not_move_the_figures_and_can_be_mended(world):
    clean = retail.simulate(STORE, seed=7, **CLEAN)
    assert np.allclose(figures(clean)["found"], figures(world)["found"], rtol=0.003)
    columns = ["transaction_id", "line", "customer_id", "product_id", "quantity", "amount", "cost"]
    a, b = (
        mended(w["transactions"])[columns].sort_values(["transaction_id", "line"], ignore_index=True)
        for w in (world, clean)
    )
    pd.testing.assert_frame_equal(a, b, check_dtype=False)
    listed = to_frame(world.sealed["faults"])
    assert {"copy", "near copy", "late", "broken id"} <= set(listed["kind"].astype(str))
    assert not len(clean.sealed["faults"])


def test_faults_are_undone_by_the_list(world):
    clean = retail.simulate(STORE, seed=7, **CLEAN)
    back = faults.undo(world.arrow, world.sealed["faults"], part=1)
    for name in retail.PLANS:
        columns = clean.arrow[name].column_names
        assert to_frame(back[name].select(columns)).astype(str).equals(to_frame(clean.arrow[name]).astype(str)), name


# ----------------------------------------------------------------------------------------------------- bytes and scales
@pytest.mark.slow
def test_same_bytes_for_any_workers_and_other_bytes_for_another_seed(tmp_path):
    scale = 0.0255  # two blocks, the second small
    one, two = (read_manifest(retail.make(tmp_path / f"w{n}", scale, seed=5, workers=n)) for n in (1, 2))
    assert one == two
    other = read_manifest(retail.make(tmp_path / "other", STORE, seed=6))
    same = read_manifest(retail.make(tmp_path / "same", STORE, seed=6))
    assert other == same
    small = read_manifest(retail.make(tmp_path / "w1", STORE, seed=5))
    still = {"stores", "offers", "campaigns", "complements"}  # few rows that chance hardly touches
    for part in ("tables", "truth"):
        assert not [k for k in small[part] if small[part][k]["sha256"] == other[part][k]["sha256"] and k not in still]


@pytest.mark.slow
def test_scale_changes_size_and_not_distributions():
    from scipy import stats

    a, b = retail.simulate(0.05, seed=2), retail.simulate(0.1, seed=3)
    values = []
    for w in (a, b):
        t = mended(w["transactions"])
        basket = t.groupby("transaction_id").agg(amount=("amount", "sum"), lines=("line", "size"))
        stock = w["stock"]
        values.append({
            "baskets": len(basket) / len(w["customers"]), "amount": basket["amount"].mean(), "lines": basket["lines"].mean(),
            "named": t["customer_id"].notna().mean(), "remote": t["channel"].isin(["app", "online"]).mean(),
            "out": stock["stock_out"].mean(), "stock": stock["on_hand"].mean(), "items a store": len(stock) / WEEKS / len(w["stores"]),
            "stores an item": len(stock) / WEEKS / stock["product_id"].nunique(), "basket": basket["amount"],
        })  # fmt: skip
    for name in values[0]:
        if name == "basket":
            d = stats.ks_2samp(
                values[0][name].sample(20_000, random_state=1), values[1][name].sample(20_000, random_state=1)
            ).statistic
            assert d < 0.03, d  # districts have their own items
        elif name == "stores an item":
            assert values[1][name] > values[0][name]  # the core is in all stores, a district's items in its five
        else:
            assert values[0][name] == pytest.approx(values[1][name], rel=0.04), name


def test_a_larger_world_begins_with_the_smaller():
    a, b = retail.simulate(0.025, seed=4, **CLEAN), retail.simulate(0.03, seed=4, **CLEAN)
    for name in ("customers", "transactions", "stock", "exposures"):
        assert b[name].head(len(a[name])).astype(str).equals(a[name].astype(str)), name


@pytest.mark.parametrize("scale", [5e-7, 5e-5])
@pytest.mark.parametrize("preset", ["guide", "tiny", "null", "hard"])
def test_the_smallest_chains(scale, preset):
    w = retail.simulate(scale, seed=3, preset=preset)
    assert len(w["customers"]["customer_id"].unique()) == round(2e6 * scale) and len(w["stores"]) == 1
    assert len(figures(w)) == 5 and all(len(readout(w, p.name)) >= 0 for p in PROGRAMMES)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_share": 0}, {"promotion_share": 0}, {"walk_ins": 0}, {"offers_share": 0}, {"has_app": 0}, {"agrees_email": 0}, {"habit": 1},
        {"basket_size": 1}, {"switching": 0}, {"switching": 1}, {"web_only": 1, "store_only": 0}, {"web_only": 0, "store_only": 1}, {"trips": 0.01},
        {"case_size": 100}, {"test_discount": 0.9, "price_sensitivity": 10}, {"surveyed": 0, "returned": 0},
    ],
    ids=str,
)  # fmt: skip
def test_extreme_parameters(changes):
    w = retail.simulate(0.001, seed=3, **changes)
    for p in PROGRAMMES:
        truth, seen = sealed(w, p), readout(w, p.name)
        assert (seen["goal"] == under(truth, truth["action"].astype(str))).all() or not len(seen)


@pytest.mark.parametrize(
    "call, holds",
    [
        (lambda: retail.simulate(0), "give a number above 0"),
        (lambda: retail.simulate(-1), "give a number above 0"),
        (lambda: retail.simulate(1e9), "out of range"),
        (lambda: retail.simulate(STORE, loyality=0.2), "did you mean 'loyalty'"),
        (lambda: retail.simulate(STORE, preset="gide"), "did you mean 'guide'"),
        (lambda: retail.simulate(STORE, policies={"ofers": "none"}), "did you mean 'offers'"),
        (lambda: retail.simulate(0.0005, policies={"offers": "coupon"}), "is not an action"),
        (lambda: retail.simulate(STORE, test_discount=1.0), "at most 0.9"),
    ],
)
def test_bad_input(call, holds):
    with pytest.raises(KitError, match=holds):
        call()


# ----------------------------------------------------------------------------------------------------------- the tables
def test_tables_keep_their_contracts():
    w = retail.simulate(STORE, seed=7, **CLEAN)
    assert set(w.tables) <= set(contracts.TABLES)
    valid = contracts.validate_all(w.tables, as_of="2026-01-31")
    assert set(valid) == set(w.tables)


def test_stock_adds_up(world):
    s, d = world["stock"], to_frame(world.sealed["demand"])
    left = s["on_hand"] + s["received"] + s["adjusted"] - s["sold"]
    n = len(s) // WEEKS
    assert (left.to_numpy()[:-n] == s["on_hand"].to_numpy()[n:]).all() and (left >= 0).all()
    assert (s["sold"] == d["sold"]).all() and (d["sold"] == d["demand"] - d["lost"] + d["switched_in"]).all()
    tests = world["prices"].query("randomised")
    cell = ["store_id", "week", "subcategory"]
    sub = world["products"].set_index("product_id")["subcategory"].astype(str)
    s["subcategory"], tests = s["product_id"].map(sub), tests.assign(subcategory=tests["product_id"].map(sub))
    on_test = pd.MultiIndex.from_frame(s[cell]).isin(pd.MultiIndex.from_frame(tests[cell].astype(s[cell].dtypes)))
    assert (s["adjusted"] == s["sold"].where(on_test, 0)).all(), "a test's goods come from elsewhere"
    t = mended(world["transactions"]).query("channel == 'store'")
    sold = t.groupby(["store_id", "product_id", "week"])["quantity"].sum()
    counted = s[s["sold"] > 0].set_index(["store_id", "product_id", "week"])["sold"]
    assert sold.sort_index().equals(counted.sort_index().astype(sold.dtype))
    assert 0.01 < d["lost"].sum() / d["demand"].sum() < 0.1 and 0.01 < s["stock_out"].mean() < 0.15


def test_stock_does_not_tell_what_the_other_price_would_have_sold(world):
    columns = ["on_hand", "received", "ordered", "stock_out"]
    for arm in SHELF_TEST.actions:
        other = retail.simulate(STORE, seed=7, policies={"shelf_promotion": arm})["stock"]
        assert other[columns].equals(world["stock"][columns]), "the same whatever the test does"
    truth = sealed(world, SHELF_TEST).merge(world["prices"].query("randomised"), on="test_id")
    left = truth.merge(world["stock"], on=["store_id", "product_id", "week"]).query("action == 'price_cut'")
    assert not (left["sold"] - left["adjusted"]).any() and left["goal__usual"].std() > 1
    bare = retail.simulate(0.0005, seed=3, safety=-5)["stock"]
    assert (bare["on_hand"] >= 0).all()


def test_no_fault_touches_a_day_of_a_campaign():
    worst = {"fault_slips": 0.2, "fault_units": 0.2, "fault_copies": 0.2, "fault_broken": 0.2, "fault_late": 0.2}
    w = retail.simulate(0.01, seed=5, **worst)
    for p in PROGRAMMES:
        seen, truth = readout(w, p.name), sealed(w, p)
        action = truth["action"].astype(str)
        assert (seen["goal"] == under(truth, action)).all(), p.name
        assert np.allclose(seen["profit"], under(truth, action, "profit"), atol=1e-9), p.name


def test_receipts(world):
    t = mended(world["transactions"]).sort_values(["transaction_id", "line"])
    assert not t.duplicated(["transaction_id", "product_id"]).any()
    lines = t.groupby("transaction_id")["line"].agg(["min", "max", "size"])
    assert (lines["min"] == 1).all() and (lines["max"] == lines["size"]).all()
    one = t.groupby("transaction_id")[["customer_id", "store_id", "channel", "week"]].nunique(dropna=False)
    assert (one == 1).all().all()
    assert (t["amount"] >= 0).all() and (t["cost"] > 0).all() and t["quantity"].min() == 1
    used = world["redemptions"]
    coupons = used[used["product_id"].notna()]
    assert coupons["amount"].sum() == pytest.approx(t["coupon_discount"].sum())
    both = coupons.merge(t, on=["transaction_id", "product_id", "customer_id"])
    assert len(both) == len(coupons) and np.allclose(both["amount_x"], both["coupon_discount"])
    back = world["returns"].merge(t, left_on=["order_id", "product_id"], right_on=["transaction_id", "product_id"])
    assert (back["timestamp_x"] > back["timestamp_y"]).all() and (back["amount_x"] <= back["amount_y"] + 1e-9).all()


def test_numbers_of_baskets_do_not_tell_which_were_added():
    clean = retail.simulate(STORE, seed=7, **CLEAN, policies={"offers": "coupon_favourite", "app_push": "push"})
    t = clean["transactions"].drop_duplicates("transaction_id")
    assert t["timestamp"].is_monotonic_increasing and (np.diff(t["transaction_id"]) == 1).all()
    quiet = retail.simulate(STORE, seed=7, **CLEAN, policies={p.name: "none" for p in (OFFERS, APP_PUSH, MAILER)})
    members = clean["customers"].set_index("customer_id")
    web = to_frame(clean.sealed["links"]).query("system == 'web'")["customer_id"].unique()
    for w in (clean, quiet):
        remote = w["transactions"].query("channel == 'online' or channel == 'app'")
        assert remote["customer_id"].isin(web).all()
        assert members.loc[w["transactions"].query("channel == 'app'")["customer_id"].unique(), "has_app"].all()


def test_baskets_hold_habits_and_complements(district):
    t = mended(district["transactions"])
    sub = district["products"].set_index("product_id")["subcategory"].astype(str)
    pairs = to_frame(district.sealed["complements"])
    t = t.assign(sub=sub[t["product_id"]].to_numpy())
    n = t["transaction_id"].nunique()
    has = t.drop_duplicates(["transaction_id", "sub"]).groupby("sub")["transaction_id"].agg(set)
    lifts = [
        len(has[a] & has[b]) * n / (len(has[a]) * len(has[b]))
        for a, b in zip(pairs["subcategory"], pairs["complement"])
    ]
    others = [
        len(has[a] & has[b]) * n / (len(has[a]) * len(has[b]))
        for a, b in zip(pairs["subcategory"], pairs["complement"][::-1])
    ]
    assert np.median(lifts) > 2 * np.median(others)
    regular = t[t["customer_id"].notna()].groupby("customer_id").filter(lambda d: d["transaction_id"].nunique() >= 8)
    again = regular.drop_duplicates(["transaction_id", "sub"]).duplicated(["customer_id", "sub"]).mean()
    shuffled = regular.assign(sub=np.random.default_rng(0).permutation(regular["sub"]))
    assert again > 1.4 * shuffled.drop_duplicates(["transaction_id", "sub"]).duplicated(["customer_id", "sub"]).mean()


# --------------------------------------------------------------------------------------------- promotions, gaps, fairness
def test_promotions_answer_demand_and_tests_do_not():
    p, draws = Params(), Draws(5, "retail")
    cat = stores.catalogue(p, draws, 0)
    cal = stores.calendar(p, draws, cat, 0)
    felt, up = cal.demand.ravel(), np.tile(cat.category % 2 == 0, WEEKS * STORES)
    planned, tested = cal.item >= 0, cal.test >= 0
    assert felt[planned & up].mean() > 0.5 and felt[planned & ~up].mean() < -0.5 and abs(felt[tested].mean()) < 0.05
    assert planned.mean() == pytest.approx(p.promotion_share, abs=0.02) and tested.mean() == pytest.approx(
        p.test_share, abs=0.003
    )
    assert abs(cal.coin.mean() - 0.5) < 0.03 and not (planned & tested).any()


def test_a_price_cut_takes_from_the_other_items_as_the_elasticities_say():
    p = engine.change(Params(), test_discount=0.01, promotion_quantity=0.0)
    draws = Draws(5, "retail")
    cat = stores.catalogue(p, draws, 0)
    cal = stores.calendar(p, draws, cat, 0, 1)
    usual, cut = stores.shelf(p, cat, cal)
    known = to_frame(ledger._elasticities(p, cat, slice(0, GROUPS))).set_index("product_id")
    before, after = (np.diff(x, axis=1, prepend=0, append=1) for x in (usual.upto[cal.test_cell], cut.upto))
    early = cal.test_cell // GROUPS < WEEKS // 2
    n, item, group = np.arange(len(item := cal.test_item)), cal.test_item, cal.test_cell % GROUPS
    moved = np.log(after / before) / np.log1p(-p.test_discount)
    product = cat.product_id[group, item]
    for found, column in ((moved[n, item], "switching"), (moved[n, (item + 1) % SHELF], "cross")):
        gap = np.abs(found - known.loc[product, column].to_numpy())[early]
        assert gap.max() < 0.05, column
    assert (known["own"] < known["switching"]).all() and (known["cross"] > 0).all()


def test_missing_incomes_are_random_given_the_channel_and_missing_scores_are_not(district):
    gone = to_frame(district.sealed["complete"])
    assert set(gone["table"]) == {"customers", "surveys"}
    c = district["customers"].drop_duplicates("customer_id").set_index("customer_id")
    hidden = gone.query("table == 'customers'").set_index("id")["value"]
    assert set(hidden.index) == set(c.index[c["income_band"].isna()])
    whole = c["income_band"].astype(object).where(c["income_band"].notna(), hidden.reindex(c.index))
    came = c["acquisition_channel"].astype(str).str.lower() == "store"
    rate = c["income_band"].isna().groupby(came).mean()
    assert rate[True] > rate[False] + 0.1
    by_income = c["income_band"].isna().groupby([came, whole.astype(str)]).mean().unstack()
    assert (by_income.max(axis=1) - by_income.min(axis=1)).max() < 0.04
    s = district["surveys"]
    silent = gone.query("table == 'surveys'")["value"].astype(float)
    assert len(silent) == (~s["answered"]).sum() and s["score"].mean() > silent.mean() + 0.4


def test_the_mailer_passes_by_one_language_and_the_offers_do_not(district):
    known = to_frame(district.sealed["unfairness"]).set_index(["action", "attribute"])
    assert known.loc[("mailer", "language"), "verdict"] == "unfair" and known.loc[("mailer", "language"), "gap"] < -0.02
    c = district["customers"].drop_duplicates("customer_id").set_index("customer_id")
    for programme, unfair in ((MAILER, True), (OFFERS, False)):
        seen = readout(district, programme.name).set_index("customer_id")
        treated = seen["action"] != "none"
        gap = treated.groupby(c.loc[seen.index, "language"].astype(str)).mean()
        error = np.sqrt(sum(treated.var() / n for n in c.loc[seen.index, "language"].value_counts()))
        assert (abs(gap["en"] - gap["es"]) > 4 * error) == unfair
        if unfair:
            assert abs(gap["en"] - gap["es"] - known.loc[("mailer", "language"), "gap"]) < 4 * error + 0.01
    free = to_frame(retail.simulate(STORE, seed=7, mailer_gap=0).sealed["unfairness"]).set_index("action")
    assert free.loc["mailer", "gap"] == 0 and free.loc["mailer", "verdict"] == "fair"


def test_only_who_agreed_is_written_to(world):
    asked = (
        world["consent"]
        .query("system == 'store' and purpose == 'email'")
        .sort_values("timestamp")
        .groupby("customer_id")
        .last()
    )
    written = readout(world, "offers")["customer_id"]
    assert asked.loc[written, "granted"].all()
    web = (
        world["consent"]
        .query("system == 'web' and purpose == 'email'")
        .sort_values("timestamp")
        .groupby("customer_id")
        .last()
    )
    assert not web.loc[web.index.intersection(written), "granted"].all(), "some told the web shop otherwise"


def test_links_lead_from_records_to_customers(world):
    links, found = to_frame(world.sealed["links"]), world["identities"]
    assert (
        len(links) == len(found) and set(links["record_id"]) == set(found["record_id"]) and "customer_id" not in found
    )
    assert set(links["customer_id"]) == set(world["customers"]["customer_id"])


def test_no_table_lists_customers_in_the_order_of_their_records(world):
    links = to_frame(world.sealed["links"]).drop_duplicates(["system", "customer_id"])
    for system, found in links.groupby("system", observed=True):
        rank = found.set_index("customer_id")["record_id"].rank()
        for name in ("customers", "consent", "exposures", "surveys", "events", "transactions"):
            t = world[name]
            t = t[t["system"] == system] if "system" in t else t
            listed = pd.Series(t["customer_id"].dropna().unique()).map(rank).dropna()
            assert abs(listed.corr(pd.Series(listed.index, listed.index))) < 5 / np.sqrt(len(listed)), (system, name)


# ------------------------------------------------------------------------------------------------------------ the pieces
def test_the_core_is_the_same_in_all_districts_and_ids_are_not_shared():
    p, draws = Params(), Draws(5, "retail")
    cats = [stores.catalogue(p, draws, k) for k in range(3)]
    ids = np.concatenate([c.product_id[stores.CORE :].ravel() for c in cats])
    assert len(np.unique(ids)) == len(ids) and ids.min() == stores.CORE * SHELF + 1
    assert all((c.popularity[: stores.CORE] == cats[0].popularity[: stores.CORE]).all() for c in cats)
    assert all(
        c.popularity.sum() == pytest.approx(1) and (c.price > 0).all() and (c.cost < c.price[0]).all() for c in cats
    )


def test_an_empty_shelf_is_first_come_first_served():
    p = engine.change(stores.StoreParams(), switching=0.0, late_delivery=0.0)
    place = np.array([0, 0, 0, 0] * 20)
    moment = np.arange(len(place))[::-1]
    s = stores.replenish(
        p,
        Draws(1),
        0,
        place,
        np.ones(len(place), np.int64),
        moment,
        np.full(ITEMS, 1.0),
        np.zeros((WEEKS, ITEMS), bool),
    )
    taken = s.got == 0
    assert (
        taken.sum() == s.on_hand[0, 0] == s.wanted[0, 0] - s.lost[0, 0] and moment[taken].max() < moment[~taken].min()
    )


def test_switchers_take_what_is_left():
    place, units = np.array([0, 0, 0, 4]), np.array([1, 1, 1, 1])
    left = np.array([0, 2, 0, 0, 0, 0, 0, 0])
    to = stores._switch(place, units, left, np.full(4, 0.1), 0.9)
    assert to.tolist() == [1, 1, -1, -1]
    assert stores._switch(place, units, left, np.full(4, 0.95), 0.9).tolist() == [-1] * 4


def test_day_weights_follow_their_parameters():
    flat = engine.change(baskets.BasketParams(), weekend=1.0, payday=0.0, december=0.0)
    days = baskets.day_weights(flat).reshape(WEEKS, 7)
    assert np.allclose(days, days[0])
    busy = baskets.day_weights(engine.change(flat, december=1.0))
    assert busy[-20] == pytest.approx(2 * busy[0] * days[0, -20 % 7] / days[0, 0], rel=1e-9)


def test_a_mean_line_by_category_adds_up():
    p, draws = Params(), Draws(5, "retail")
    cat = stores.catalogue(p, draws, 0)
    n = 200
    yes = np.ones(n, bool)
    people = baskets.shoppers(p, draws, cat, 0, np.zeros(n, np.int64), yes, yes, yes, np.zeros(n))
    who = np.arange(n)
    whole = offers.mean_line(p, cat, people, who, cat.price[0])
    parts = sum(
        offers.mean_line(p, cat, people, who, cat.price[0], np.full(n, c)) for c in range(len(stores.CATEGORIES))
    )
    assert (
        np.allclose(whole, parts) and (offers.mean_line(p, cat, people, who, cat.price[0], np.full(n, -1)) == 0).all()
    )


def test_parameters_have_sources_and_no_name_twice():
    table = engine.describe_params(Params)
    assert (
        table.index.is_unique and (table["source"].astype(str) != "").all() and (table["meaning"].str.len() > 3).all()
    )
    for preset in retail.PRESETS.values():
        engine.change(Params(), **preset)
    assert set(retail.PRESETS) == {"guide", "null", "hard", "tiny"} and isinstance(retail.COMPANY, engine.Company)
    assert till.Sold._fields and chain.Year._fields and isinstance(retail.simulate(5e-5).arrow["products"], pa.Table)
