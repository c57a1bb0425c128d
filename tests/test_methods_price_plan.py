import itertools
import json

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import price_plan as P
from mktai_kit.settings import KitError

TESTED = (0.85, 1.15)


def shelf(n=4, seed=0, **more):
    rng = np.random.default_rng(seed)
    price = np.round(rng.uniform(6, 30, n)) - 0.01
    d = pd.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(n)],
            "price": price,
            "cost": (price * rng.uniform(0.3, 0.8, n)).round(2),
            "demand": rng.uniform(2, 50, n).round(1),
            "elasticity": -rng.uniform(0.5, 4, n).round(2),
            "se": rng.uniform(0.1, 1, n).round(2),
        }
    )
    return d.assign(**more)


def every_list(products, **rules):
    groups = [g for _row, g in P.candidates(products, TESTED, **rules).groupby(level=0)]
    for pick in itertools.product(*(range(len(g)) for g in groups)):
        yield pd.concat([g.iloc[[i]] for g, i in zip(groups, pick)])


RULES = [
    {},
    {"max_changes": 1},
    {"max_changes": 2, "robust": True},
    {"objective": "revenue", "max_step": 0.1},
    {"objective": "volume", "at_least": {"profit": "now"}},
    {"objective": "profit", "at_least": {"revenue": "now"}, "max_changes": 2},
    {"margin_floor": 0.18, "endings": (0.49, 0.99), "max_step": 0.07},
    {"ladder": (0.85, 0.95, 1.0, 1.05, 1.15), "not_above": [("p0", "p1")]},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_brute_force(rules, seed):
    d, rules = shelf(3, seed), dict(rules)
    floor = 1 - rules.get("margin_floor", 0.0)
    d["cost"] = np.minimum(d["cost"], (d["price"] * floor * 0.97).round(2))
    if "not_above" in rules:
        d = d.sort_values("price", ignore_index=True).assign(product_id=["p0", "p1", "p2"])
    now = P.optimise(
        d, TESTED, max_changes=0, **{k: v for k, v in rules.items() if k not in ("max_changes", "at_least")}
    ).totals
    least = {k: now.loc["now", k] for k in rules.pop("at_least", {})}
    plan = P.optimise(d, TESTED, at_least=least, **rules)
    tied = {
        k: rules.pop(k, v)
        for k, v in (("max_changes", 99), ("not_above", []), ("robust", False), ("objective", "profit"))
    }
    key = tied["objective"] + ("_worst" if tied["robust"] else "")
    best = -np.inf
    for t in every_list(d, **rules):
        price = dict(zip(t["product_id"], t["price"]))
        if (~t["now"]).sum() > tied["max_changes"] or any(price[a] > price[b] for a, b in tied["not_above"]):
            continue
        if all(t[k].sum() >= v - 1e-9 for k, v in least.items()):
            best = max(best, t[key].sum())
    assert plan.totals.loc["worst" if tied["robust"] else "plan", tied["objective"]] == pytest.approx(best, rel=1e-6)


def test_never_outside_the_tested_range():
    for seed in range(10):
        d = shelf(20, seed)
        for objective in P.OBJECTIVES:
            ratio = P.optimise(d, TESTED, objective, max_changes=15).table["price"] / d["price"]
            assert ratio.between(TESTED[0] - 1e-9, TESTED[1] + 1e-9).all()
        reference = d.assign(reference=d["price"] * 1.1)
        table = P.optimise(reference, TESTED, "volume").table
        assert (table["price"] / reference["reference"]).between(*TESTED).all()
        own = d.assign(tested_low=d["price"] * 0.98, tested_high=d["price"] * 1.3)
        table = P.optimise(own, max_step=0.2).table
        assert (table["price"] >= own["tested_low"] - 1e-9).all() and (
            table["price"] <= 1.2 * own["price"] + 1e-9
        ).all()


def test_rules_are_kept():
    d = shelf(30, 3)
    d["cost"] = np.minimum(d["cost"], d["price"] * 0.7)
    plan = P.optimise(d, TESTED, max_step=0.08, margin_floor=0.25, max_changes=7, endings=(0.49, 0.99))
    moved = plan.table["change"].abs() > 1e-9
    assert plan.changes == moved.sum() <= 7 and (plan.table["change"].abs() <= 0.08 + 1e-9).all()
    assert (1 - d["cost"] / plan.table["price"] >= 0.25 - 1e-9).all()
    assert set((plan.table["price"][moved] % 1).round(2)) <= {0.49, 0.99}
    assert P.optimise(d, TESTED, max_changes=0).changes == 0


def test_stock_caps_sales_and_raises_prices():
    d = shelf(1, 0, elasticity=-3.0, cost=1.0)
    free, short = (P.optimise(d.assign(stock=s), TESTED) for s in (1e9, 0.5 * d["demand"].iloc[0]))
    assert short.table["price"][0] > free.table["price"][0]
    assert short.table["volume"][0] <= 0.5 * d["demand"].iloc[0] + 1e-9


def test_what_comes_along_makes_prices_lower():
    d = shelf(12, 4, elasticity=-2.0)
    alone, basket = (P.optimise(d.assign(attached=a), TESTED) for a in (0.0, 8.0))
    assert (basket.table["price"] <= alone.table["price"]).all() and basket.table["price"].sum() < alone.table[
        "price"
    ].sum()
    expected = ((basket.table["price"] - d["cost"] + 8) * basket.table["volume"]).sum()
    assert basket.totals.loc["plan", "profit"] == pytest.approx(expected)
    assert P.scenario_table(basket).loc["as estimated", "gain"] == pytest.approx(P.plan_gain(basket).value)


def test_robust_never_loses_within_the_intervals():
    for seed in range(10):
        d = shelf(15, seed)
        plan = P.optimise(d, TESTED, robust=True)
        assert plan.totals.loc["worst", "profit"] >= plan.totals.loc["now", "profit"] - 1e-6
        moved = P.scenario_table(plan)
        assert moved.loc[["buyers answer more", "buyers answer less"], "losers"].max() == 0
        assert P.plan_gain(plan, shared=0.3, n_draws=300).low > -0.05 * plan.totals.loc["now", "profit"]


def test_unknown_elasticities_move_no_price():
    plan = P.optimise(shelf(10, 2, se=50.0), TESTED, robust=True)
    assert plan.changes == 0


def test_gain_covers_the_truth():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        d = shelf(8, seed, se=0.4)
        true = d["elasticity"].copy()
        d["elasticity"] = np.minimum(true + 0.4 * rng.normal(), -0.05)
        plan = P.optimise(d, TESTED)
        gain = P.plan_gain(plan, n_draws=500)
        real = P.optimise(d.assign(elasticity=true), TESTED, max_changes=0)
        sold = d["demand"] * (plan.table["price"] / d["price"]) ** true
        value = ((plan.table["price"] - d["cost"]) * sold).sum() - real.totals.loc["now", "profit"]
        covered += gain.low <= value <= gain.high
    assert 52 <= covered


def test_pareto_front():
    d = shelf(12, 5)
    for against in ("revenue", "volume"):
        front = P.pareto(d, TESTED, against, points=6)
        assert front["profit"].is_monotonic_decreasing and front[against].is_monotonic_increasing
        assert front["profit"].iloc[0] == pytest.approx(P.optimise(d, TESTED).totals.loc["plan", "profit"])
        assert front[against].iloc[-1] == pytest.approx(P.optimise(d, TESTED, against).totals.loc["plan", against])
        ax = P.plot_pareto(front, against)
        assert ax.get_ylabel() == "Profit"


def test_deterministic_and_free_of_row_order():
    d = shelf(25, 7)
    a = P.optimise(d, TESTED, max_changes=9)
    pd.testing.assert_frame_equal(a.table, P.optimise(d, TESTED, max_changes=9).table)
    b = P.optimise(d.sample(frac=1, random_state=0), TESTED, max_changes=9)
    pd.testing.assert_series_equal(
        a.table.set_index("product_id")["price"],
        b.table.set_index("product_id")["price"].loc[d["product_id"]],
        check_names=False,
    )
    text = json.dumps(a.to_dict())
    assert text == json.dumps(P.optimise(d, TESTED, max_changes=9).to_dict())
    assert (
        json.loads(json.dumps(P.optimise(d.assign(product_id=range(25)), TESTED).to_dict()))["prices"][0]["product_id"]
        == 0
    )


def test_many_products_are_no_burden():
    import time

    start = time.perf_counter()
    plan = P.optimise(shelf(2000, 1), TESTED, max_changes=300, step=1.0)
    assert plan.changes <= 300 and time.perf_counter() - start < 40


def test_ladder():
    assert list(P.price_ladder(1.0, 3.0)) == [1.99, 2.99]
    assert list(P.price_ladder(9, 11, (0.49, 0.99))) == [9.49, 9.99, 10.49, 10.99]
    assert list(P.price_ladder(1.0, 1.03, ())) == [1.0, 1.01, 1.02, 1.03]
    assert list(P.price_ladder(8, 25, (4.99, 9.99), step=10)) == [9.99, 14.99, 19.99, 24.99]
    assert len(P.price_ladder(1.01, 1.5)) == 0
    for low, high, more in ((0, 1, {}), (2, 1, {}), (1, 2, {"step": 0}), (1, 2, {"endings": (1.5,)})):
        with pytest.raises(KitError, match="no prices"):
            P.price_ladder(low, high, **more)


@pytest.mark.parametrize(
    "change, options, holds",
    [
        (lambda d: d.head(0), {}, "no products"),
        (lambda d: d.drop(columns="cost"), {}, "cost"),
        (lambda d: d.assign(product_id="x"), {}, "twice"),
        (lambda d: d.assign(price=np.nan), {}, "missing"),
        (lambda d: d.assign(price=0.0), {}, "out of range"),
        (lambda d: d.assign(demand=-1.0), {}, "out of range"),
        (lambda d: d.assign(elasticity="high"), {}, "not numbers"),
        (lambda d: d.assign(elasticity=0.5), {}, "costs more"),
        (lambda d: d, {"tested": None}, "tested"),
        (lambda d: d, {"tested": (1.15, 0.85)}, "no range"),
        (lambda d: d.assign(reference=2 * d["price"]), {}, "outside the tested range"),
        (lambda d: d, {"objective": "fame"}, "fame"),
        (lambda d: d, {"ladder": [0.8, 1.0]}, "beyond what was tested"),
        (lambda d: d, {"margin_floor": 0.99}, "margin floor"),
        (lambda d: d, {"margin_floor": 1.5}, "no share"),
        (lambda d: d, {"max_changes": -1}, "no number"),
        (lambda d: d, {"at_least": {"revenue": 1e9}}, "no price list"),
        (lambda d: d, {"at_least": {"fame": 1}}, "fame"),
        (lambda d: d, {"not_above": [("p0", "zz")]}, "zz"),
    ],
)
def test_bad_input_speaks(change, options, holds):
    with pytest.raises(KitError, match=holds):
        P.optimise(change(shelf(3)), **({"tested": TESTED} | options))


def test_other_refusals():
    plan = P.optimise(shelf(3), TESTED)
    with pytest.raises(KitError, match="fame"):
        P.plan_gain(plan, "fame")
    with pytest.raises(KitError, match="weather"):
        P.scenario_table(plan, {"rain": {"weather": 1.0}})
    with pytest.raises(KitError, match="against|profit"):
        P.pareto(shelf(3), TESTED, "profit")
    with pytest.raises(KitError, match="front"):
        P.pareto(shelf(3), TESTED, points=1)


def test_price_frame():
    lines = pd.DataFrame(
        {
            "order_id": [1, 1, 1, 2, 3, 4],
            "line": [1, 1, 2, 1, 1, 1],
            "quantity": [2, 2, 1, 1, 1, 1],
            "price": [9.0, 9.0, 5.0, 8.0, 7.0, 3.0],
            "list_price": [10.0, 10.0, 5.0, 10.0, 10.0, 0.0],
            "discount": [2.0, 2.0, 0.0, 0.0, 1.0, 0.0],
        }
    )
    orders = pd.DataFrame(
        {"order_id": [1, 2, 3, 4], "customer_id": pd.array([7, 8, None, 7], dtype="Int64"), "device": list("mdmd")}
    )
    customers = pd.DataFrame({"customer_id": [7, 8, 8], "age_band": ["65+", "18-24", "18-24"]})
    out = P.price_frame(lines, orders, customers, ["age_band"], ["device"])
    assert out["paid"].tolist() == [0.9, 1.0, 0.8] and out["asked"].tolist() == [1.0, 1.0, 0.8]
    assert out["age_band"].tolist() == ["65+", "65+", "18-24"] and out.attrs["left_out"] == 2
    with pytest.raises(KitError, match="income"):
        P.price_frame(lines, orders, customers, ["income"])


def test_what_a_careless_caller_gives():
    two = pd.DataFrame({"product_id": ["a", "b"], "price": [9.99, 19.99], "cost": [5.0, 9.0], "demand": [40.0, 9.0]})
    two, t = two.assign(elasticity=-2.0, se=0.3), (0.85, 1.15)
    plan = P.optimise(two, t, at_least={"profit": 0})
    assert plan.table.equals(P.optimise(two, t).table)
    lines = pd.DataFrame(
        {"order_id": [1], "line": [1], "quantity": [1], "price": [5.0], "list_price": [6.0], "discount": [0.0]}
    )
    orders = pd.DataFrame({"order_id": [1], "customer_id": [7], "device": ["m"]})
    people = pd.DataFrame({"customer_id": [7], "age_band": ["x"]})
    assert (
        P.price_frame(lines.assign(customer_id=0, device="z"), orders, people, ["age_band"], ["device"])["device"][0]
        == "m"
    )
    for bad, holds in [
        (lambda: P.optimise(two, 0.15), "no range"),
        (lambda: P.optimise(two, "0.85-1.15"), "no range"),
        (lambda: P.optimise(two, t, level=95), "level 95"),
        (lambda: P.optimise(two, t, max_step="10%"), "max_step"),
        (lambda: P.optimise(two, t, max_changes=float("nan")), "no number of products"),
        (lambda: P.optimise(two, t, at_least={"profit": "5"}), "no number"),
        (lambda: P.optimise(two, t, not_above=("a", "b")), "no list of pairs"),
        (lambda: P.optimise(two.assign(tested_low="x", tested_high=30.0)), "outside the tested range"),
        (lambda: P.plan_gain(plan, n_draws=0), "0 draws"),
        (lambda: P.plan_gain(plan, level=95), "level 95"),
        (lambda: P.pareto(two, t, points=2.5), "make no front"),
        (lambda: P.price_frame(lines, orders, people.assign(customer_id="c1"), ["age_band"]), "words in one table"),
        (lambda: P.price_frame(lines, orders, people.assign(device="x"), ["device"], ["device"]), "group and a proxy"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()
