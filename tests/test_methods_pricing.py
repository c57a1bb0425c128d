import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import pricing as P
from mktai_kit.settings import KitError
from mktai_kit.world import ecommerce, truth

FACTORS = {"list_price": 1.0, "minus_15": 0.85, "minus_5": 0.95, "plus_5": 1.05, "plus_15": 1.15}


def market(seed=0, products=60, weeks=30, beta=-2.0, level=2.0, confounded=0.3):
    rng = np.random.default_rng(seed)
    n = products * weeks
    d = pd.DataFrame({"product": np.repeat(np.arange(products), weeks), "week": np.tile(np.arange(weeks), products)})
    shock = 0.3 * rng.normal(size=n)
    d["cost"] = np.exp(0.1 * rng.normal(size=n))
    d["drawn"] = d["week"] >= weeks // 2
    shop = np.exp(confounded * shock + 0.5 * np.log(d["cost"]) + 0.03 * rng.normal(size=n))
    d["factor"] = np.where(d["drawn"], rng.choice([0.85, 0.95, 1, 1.05, 1.15], n), shop)
    own = level * np.exp(0.5 * rng.normal(size=products))[d["product"]]
    d["quantity"] = rng.poisson(own * np.exp(shock) * d["factor"] ** beta)
    d["draw"] = np.arange(n)
    return d


@pytest.fixture(scope="module")
def shop():
    return market()


def test_poisson_equals_statsmodels(shop):
    import statsmodels.api as sm

    d = shop.assign(season=np.sin(shop["week"]))
    dummies = pd.get_dummies(d["product"], dtype=float)
    X = np.column_stack([np.log(d["factor"]), d["season"], dummies])
    groups = d["product"].to_numpy()
    model = sm.GLM(d["quantity"], X, family=sm.families.Poisson())
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    e = P.elasticity(d, price="factor", fixed="product", cluster="product", controls=["season"])
    assert e.estimate.value == pytest.approx(fit.params.iloc[0], abs=1e-7)
    assert e.se == pytest.approx(fit.bse.iloc[0], rel=1e-6)


def test_poisson_with_exposure_and_category_equals_statsmodels(shop):
    import statsmodels.api as sm

    d = shop.assign(visits=1 + shop["week"] % 5, kind=np.array(["a", "b", "c"])[shop["product"] % 3])
    X = np.column_stack([np.log(d["factor"]), pd.get_dummies(d["kind"], dtype=float)])
    fit = sm.GLM(d["quantity"], X, family=sm.families.Poisson(), offset=np.log(d["visits"])).fit(cov_type="HC0")
    e = P.elasticity(d, price="factor", exposure="visits", controls=["kind"])
    assert e.estimate.value == pytest.approx(fit.params.iloc[0], abs=1e-7)
    assert e.se == pytest.approx(fit.bse.iloc[0], rel=1e-6)


def test_ols_equals_statsmodels(shop):
    import statsmodels.api as sm

    d = shop[shop["quantity"] > 0]
    X = sm.add_constant(np.column_stack([np.log(d["factor"]), d["week"]]))
    fit = sm.OLS(np.log(d["quantity"]), X).fit(cov_type="cluster", cov_kwds={"groups": d["product"]}, use_t=True)
    e = P.elasticity(shop, "ols", price="factor", cluster="product", controls=["week"])
    assert e.estimate.value == pytest.approx(fit.params.iloc[1])
    assert e.se == pytest.approx(fit.bse.iloc[1], rel=1e-6)
    assert [e.estimate.low, e.estimate.high] == pytest.approx(fit.conf_int().iloc[1].tolist(), rel=1e-6)
    assert e.diagnostics["dropped"] == pytest.approx((shop["quantity"] == 0).mean())


def test_methods_against_what_is_known():
    found = {}
    for seed in range(20):
        d = market(seed)
        usual, k = d[~d["drawn"]], {"price": "factor", "fixed": "product"}
        for name, e in {
            "naive": P.elasticity(usual, cluster="product", **k),
            "iv": P.elasticity(usual, "iv", cluster="product", instrument="cost", **k),
            "randomised": P.elasticity(d, "randomised", cluster="draw", randomised="drawn", **k),
        }.items():
            found.setdefault(name, []).append((e.estimate.value, e.estimate.low <= -2 <= e.estimate.high))
    means = {k: np.mean([v for v, _c in rows]) for k, rows in found.items()}
    covered = {k: np.mean([c for _v, c in rows]) for k, rows in found.items()}
    assert means["naive"] > -1.5 and covered["naive"] == 0
    assert means["iv"] == pytest.approx(-2, abs=0.25) and means["randomised"] == pytest.approx(-2, abs=0.1)
    assert covered["iv"] >= 0.8 and covered["randomised"] >= 0.8


def test_few_sales_interval_is_honest_or_refused():
    covered, refused = [], 0
    for seed in range(100):
        d = market(seed, products=20, weeks=12, level=0.2, confounded=0.0)
        e = P.elasticity(d[d["drawn"]], "randomised", price="factor", cluster="draw", min_sold=10).estimate
        refused += e.value is None
        covered += [] if e.value is None else [e.low <= -2 <= e.high]
    assert refused < 70 and 0.88 <= np.mean(covered) <= 1


def test_clusters_that_share_a_price_widen_the_interval():
    rng = np.random.default_rng(0)
    draw = np.repeat(np.arange(80), 100)
    x = rng.choice([0.85, 1, 1.15], 80)[draw]
    d = pd.DataFrame({"draw": draw, "factor": x, "visit": range(8000)})
    d["quantity"] = rng.poisson(0.3 * np.exp(0.5 * rng.normal(size=80))[draw] * x**-2.0)
    by_draw = P.elasticity(d, "randomised", price="factor", cluster="draw")
    by_visit = P.elasticity(d, "randomised", price="factor", cluster="visit")
    assert by_draw.se > 1.5 * by_visit.se


def test_row_order_and_string_ids_change_nothing(shop):
    other = shop.sample(frac=1, random_state=1).assign(product=lambda d: "p" + d["product"].astype(str))
    for method, more in (("randomised", {"cluster": "draw"}), ("iv", {"cluster": "product", "instrument": "cost"})):
        a, b = (P.elasticity(d, method, price="factor", fixed="product", **more).estimate for d in (shop, other))
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-5)


def test_reference_and_units_of_price_do_not_matter(shop):
    d = shop.assign(list_price=5.0 + shop["product"], price=(5.0 + shop["product"]) * shop["factor"])
    a = P.elasticity(d, price="factor", cluster="product")
    b = P.elasticity(d, price="price", reference="list_price", cluster="product")
    assert a.estimate.value == pytest.approx(b.estimate.value)
    assert b.diagnostics["price_high"] == pytest.approx(d["factor"].max())


def test_to_dict_is_json(shop):
    import json

    e = P.elasticity(shop, price="factor", cluster="product")
    assert json.loads(json.dumps(e.to_dict()))["estimate"]["n"] == len(shop)
    assert str(e).startswith("poisson: ")


def test_a_weak_instrument_is_refused_or_wide():
    rng = np.random.default_rng(5)
    d = market(3, products=20, weeks=10).assign(noise=np.exp(0.01 * rng.normal(size=200)))
    e = P.elasticity(d, "iv", price="factor", fixed="product", cluster="draw", instrument="noise")
    assert e.estimate.value is None or e.estimate.high - e.estimate.low > 5
    assert e.diagnostics["first_stage_F"] < 10


@pytest.mark.parametrize(
    "change, note",
    [
        (lambda d: d.head(5), "clusters,"),
        (lambda d: d.assign(quantity=0), "with a sale"),
        (lambda d: d.assign(factor=1.0), "never moves"),
        (lambda d: d.assign(factor=1.0 + d["product"] / 100), "never moves"),
    ],
)
def test_not_enough_data(shop, change, note):
    e = P.elasticity(change(shop), price="factor", fixed="product", cluster="draw").estimate
    assert e.value is None and "not enough data" in e.note and note in e.note


@pytest.mark.parametrize(
    "change, options, holds",
    [
        (lambda d: d.head(0), {}, "no rows"),
        (lambda d: d.assign(factor=np.nan), {}, "missing"),
        (lambda d: d.assign(factor=-1.0), {}, "not positive"),
        (lambda d: d.assign(quantity=-1), {}, "negative"),
        (lambda d: d.assign(quantity="two"), {}, "not numbers"),
        (lambda d: d.assign(product=None), {"fixed": "product"}, "ids are missing"),
        (lambda d: d.assign(heat=np.inf), {"controls": ["heat"]}, "infinite"),
        (lambda d: d, {"price": "factr"}, "factr"),
        (lambda d: d, {"method": "magic"}, "magic"),
        (lambda d: d, {"controls": "week"}, "single name"),
        (lambda d: d, {"controls": ["weak"]}, "weak"),
        (lambda d: d, {"method": "iv"}, "instrument"),
        (lambda d: d, {"method": "randomised"}, "one draw"),
        (lambda d: d, {"randomised": "lot"}, "lot"),
        (lambda d: d, {"level": 95}, "coverage"),
        (lambda d: d.assign(cost=1.0), {"method": "iv", "instrument": "cost"}, "does not vary"),
    ],
)
def test_bad_input_speaks(shop, change, options, holds):
    with pytest.raises(KitError, match=holds):
        P.elasticity(change(shop), **({"price": "factor"} | options))


def test_instrument_check(shop):
    k = {"price": "factor", "fixed": "product", "cluster": "product", "draw": "draw"}
    found = P.instrument_check(shop, "cost", "drawn", **k)
    assert list(found["verdict"]) == ["strong", "no sign of it"]
    assert found["estimate"].iloc[0].low < 0.5 < found["estimate"].iloc[0].high
    assert list(P.instrument_check(shop, "cost", **k).index) == ["moves the price"]
    sells = shop.assign(quantity=np.random.default_rng(0).poisson(shop["quantity"] * shop["cost"] ** 2))
    assert P.instrument_check(sells, "cost", "drawn", **k).loc["moves sales by itself", "verdict"] == "invalid"


def test_overlap():
    drawn = P.draw_prices(range(200), range(10), [0.9, 1.0, 1.1], [0.25, 0.5, 0.25])
    drawn["cell"], drawn["quantity"] = range(len(drawn)), 1
    fair = P.overlap(drawn, "factor", "cell", "propensity")
    assert (fair["verdict"] == "as planned").all() and fair["planned"].sum() == 1
    lost = P.overlap(drawn.drop(drawn.index[drawn["factor"] == 1.1][:150]), "factor", "cell", "propensity")
    assert (lost["verdict"] == "not as planned").all() and lost.attrs["p"] < 0.001
    with pytest.raises(KitError, match="more than one price"):
        P.overlap(drawn.assign(cell=0), "factor", "cell", "propensity")
    with pytest.raises(KitError, match="chance"):
        P.overlap(drawn.assign(propensity=np.linspace(0.1, 0.9, len(drawn))), "factor", "cell", "propensity")


def test_groups_alike_raise_no_alarm_and_shrinking_helps():
    alarms, raw, shrunk = 0, [], []
    for seed in range(16):
        d = market(seed, products=64, weeks=16).assign(group=lambda d: d["product"] % 8)
        g = P.elasticity_by(d, "group", price="factor", cluster="draw", fixed="product", randomised="drawn")
        alarms += (g["verdict"] != "no difference shown").any()
        raw += [e.value + 2 for e in g["elasticity"]]
        shrunk += [e.value + 2 for e in g["shrunk"]]
    assert alarms <= 4
    assert np.std(shrunk) < 0.75 * np.std(raw)


def test_a_group_that_differs_is_found_and_small_ones_are_refused():
    d = market(1, products=64, weeks=30)
    d["group"] = np.where(d["product"] < 16, "lamps", np.where(d["product"] < 63, "rest", "rare"))
    rng = np.random.default_rng(1)
    d["quantity"] = rng.poisson(2.0 * d["factor"] ** np.where(d["group"] == "lamps", -4.0, -1.0))
    d.loc[(d["group"] == "rare") & (d["week"] > 15), "quantity"] = 0
    g = P.elasticity_by(d, "group", price="factor", cluster="draw", randomised="drawn")
    assert g.loc["lamps", "verdict"] == "answers more" and g.loc["rest", "verdict"] == "answers less"
    assert g.loc["rare", "verdict"] == "not enough data" and g.loc["rare", "elasticity"].value is None
    assert g.attrs["all"].estimate.value is not None


@pytest.mark.parametrize("by", ["age_band", "Gender", "region", "income_band", "postal_code", "language"])
def test_protected_attributes_are_refused(shop, by):
    with pytest.raises(KitError, match="protected"):
        P.elasticity_by(shop.assign(**{by: "x"}), by, price="factor", cluster="draw")


def test_price_weeks_counts_once_and_leaves_out_old_promises():
    prices = pd.DataFrame(
        {"product_id": [1, 1, 2], "week": [1, 2, 1], "price": [9.0, 10.0, 5.0], "list_price": [10.0, 10.0, 5.0]}
    )
    orders = pd.DataFrame(
        {
            "order_id": [1, 1, 2, 3, 4],
            "timestamp": pd.to_datetime(["2025-01-01", "2025-01-01", "2025-01-08", "2025-01-08", "2025-01-02"]),
            "channel": ["direct", "direct", "search", "retargeting", "direct"],
        }
    )
    lines = pd.DataFrame(
        {
            "order_id": [1, 1, 1, 2, 3, 4],
            "line": [1, 1, 2, 1, 1, 1],
            "product_id": [1, 1, 2, 1, 1, 7],
            "quantity": [2, 2, 9, 1, 5, 3],
        }
    )
    out = P.price_weeks(prices, lines, orders)
    assert list(out["quantity"]) == [2, 1, 0] and list(out["factor"]) == [0.9, 1.0, 1.0] and out["cell"].is_unique
    with pytest.raises(KitError, match="another row has"):
        P.price_weeks(pd.concat([prices, prices]), lines, orders)
    with pytest.raises(KitError, match="list|price"):
        P.price_weeks(prices.drop(columns="price"), lines, orders)


def test_forecast_interval_covers_and_beats_the_naive_rule():
    rng = np.random.default_rng(2)
    t = np.arange(400)
    mu = 30 * np.exp(0.4 * np.sin(2 * np.pi * t / 7) + 0.001 * t)
    history = pd.DataFrame({"quantity": rng.negative_binomial(20, 20 / (20 + mu))})
    found = P.demand_forecast(history.iloc[:380], 14, folds=12)
    assert 0.9 <= found.covered <= 1 and found.gain.low > 0
    assert found.tests.groupby("fold")["step"].min().is_monotonic_increasing
    assert found.table["step"].tolist() == list(range(380, 394))


def test_forecast_never_looks_ahead():
    rng = np.random.default_rng(3)
    history = pd.DataFrame({"quantity": rng.poisson(20, 120)})
    a = P.demand_forecast(history, 7, folds=3)
    last = history.copy()
    last.loc[113:, "quantity"] = 500
    b = P.demand_forecast(last, 7, folds=3)
    pd.testing.assert_frame_equal(a.tests[["forecast", "naive"]], b.tests[["forecast", "naive"]])


def test_forecast_refuses():
    history = pd.DataFrame({"quantity": np.arange(60), "price": 1.0})
    with pytest.raises(KitError, match="go together"):
        P.demand_forecast(history, 7, price="price")
    with pytest.raises(KitError, match="prices to come"):
        P.demand_forecast(history, 7, price="price", elasticity=-2.0)
    with pytest.raises(KitError, match="too few"):
        P.demand_forecast(history, 14, period=52)
    with pytest.raises(KitError, match="no figure"):
        P.demand_forecast(
            history, history.head(3), price="price", elasticity=P.Estimate(None, None, None, 3, note="not enough data")
        )


def test_design_agrees_with_simulation():
    factors, chances = [0.85, 1.0, 1.15], [0.3, 0.4, 0.3]
    design = P.price_test_design(factors, 20.0, chances, dispersion=1.0, weeks=[20])
    values = []
    for seed in range(60):
        d = P.draw_prices(range(10), range(20), factors, chances, seed=seed).assign(cell=lambda d: range(len(d)))
        d["quantity"] = np.random.default_rng(seed).poisson(2.0 * d["factor"] ** -2.0)
        values.append(P.elasticity(d, "randomised", price="factor", cluster="cell").estimate.value)
    assert np.std(values) == pytest.approx(design.loc[20, "se"], rel=0.25)
    needed = design.attrs["weeks_needed"]
    assert P.price_test_design(factors, 20.0, chances, dispersion=1.0, weeks=[needed]).loc[needed, "power"] >= 0.8
    with pytest.raises(KitError, match="no test"):
        P.price_test_design([1.0, 1.0], 20.0)
    with pytest.raises(KitError, match="fit"):
        P.draw_prices([1], [1], [0.9, 1.0], [1.0])


def test_plot_shows_what_is_missing(shop):
    e = P.elasticity(shop, price="factor", cluster="product")
    ax = P.plot_elasticities({"one": e, "none": P.Estimate(None, None, None, 3)}, truth=-2)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "none"]


def expected_slope(world):
    """The Poisson slope that potential outcomes give with the test's own chances: no luck of the draw, none of the buyers."""
    mean = truth.unseal(world).outcomes("price_test", "expected").mean()
    x = np.log([FACTORS[a] for a in mean.index])
    p = dict(zip(FACTORS, (0.3, 0.15, 0.2, 0.2, 0.15)))
    p, y, theta = np.array([p[a] for a in mean.index]), mean.to_numpy(), np.array([np.log(mean.mean()), -1.0])
    X = np.column_stack([np.ones(5), x])
    for _step in range(50):
        mu = np.exp(X @ theta)
        theta = theta + np.linalg.solve(X.T @ (X * (p * mu)[:, None]), X.T @ (p * (y - mu)))
    return theta[1]


@pytest.mark.slow
def test_worlds_randomised_covers_and_naive_is_biased():
    judged, naive = [], []
    for seed in range(12):
        w = ecommerce.simulate(0.005, seed=seed, price_panel_share=0.2)
        units = ecommerce.readout(w, "price_test").assign(factor=lambda d: d["action"].map(FACTORS).astype(float))
        e = P.elasticity(units, "randomised", quantity="goal", price="factor", cluster="cluster").estimate
        if e.value is not None:
            judged.append(truth.judge(e, expected_slope(w)).covers)
        weeks = P.price_weeks(*(w.tables[t] for t in ("prices", "order_lines", "orders")))
        naive.append(P.elasticity(weeks[~weeks["randomised"]], price="factor", cluster="product_id").estimate.value)
    assert len(judged) >= 10 and np.mean(judged) >= 0.75
    assert np.mean(naive) > -1.6


def test_what_a_careless_caller_gives():
    rng = np.random.default_rng(3)
    d = pd.DataFrame(
        {"f": rng.choice([0.85, 0.95, 1, 1.05, 1.15], 800), "cell": np.arange(800), "chance": 0.2, "r": True}
    )
    d["q"] = rng.poisson(3 * d["f"] ** -2.0)
    how = {"quantity": "q", "price": "f", "cluster": "cell"}
    plain = P.elasticity(d, **how)
    assert P.elasticity(d.assign(q=d["q"].where(d["f"] < 0.9, 0)), **how).estimate.value is None
    large = P.elasticity(d.assign(c=np.arange(800) * 1e6), **how, controls=["c"]).estimate
    small = P.elasticity(d.assign(c=np.arange(800.0)), **how, controls=["c"]).estimate
    assert large.value == pytest.approx(small.value) and abs(large.value - plain.estimate.value) < 0.1
    assert P.overlap(d, "f", "cell", "chance", "q").attrs["p"] > 0.001
    assert set(P.overlap(d[d["f"] != 1.15], "f", "cell", "chance", "q")["verdict"]) == {
        "not as planned"
    }  # a price that nobody got
    history = pd.DataFrame({"quantity": rng.poisson(20, 120), "price": 1.0})
    told = P.demand_forecast(history, history.iloc[:7], price="price", elasticity=plain)
    assert told.table.equals(
        P.demand_forecast(history, history.iloc[:7], price="price", elasticity=plain.estimate).table
    )
    assert P.demand_forecast(history, np.int64(7)).table.equals(P.demand_forecast(history, 7).table)
    for bad, holds in [
        (lambda: P.elasticity(d.assign(r="yes"), randomised="r", **how), "True and False"),
        (lambda: P.elasticity_by(d.assign(g="x"), "g", correction="tukey", **how), "tukey"),
        (lambda: P.elasticity_by(d, None, **how), "by None"),
        (lambda: P.overlap(d.assign(f=d["f"].where(d.index > 3)), "f", "cell", "chance", "q"), "no price or no draw"),
        (lambda: P.demand_forecast(history, 7.0), "no steps"),
        (lambda: P.demand_forecast(history.assign(quantity=0), 7), "nothing was sold"),
        (lambda: P.demand_forecast(history, 7, period=0), "whole numbers"),
        (lambda: P.demand_forecast(history, history.iloc[:7], price="price", elasticity="-2"), "no elasticity"),
        (lambda: P.price_test_design(["a", "b"], 20), "no numbers"),
        (lambda: P.price_test_design([0.9, 1.1], 20, level=95), "level 95"),
        (lambda: P.draw_prices(["a"], [1], []), "make no test"),
        (lambda: P.draw_prices(["a"], [1], [-1, 1]), "make no test"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()


def test_price_weeks_refuses_what_it_would_misread():
    prices = pd.DataFrame({"product_id": ["a", "a"], "week": [1, 2], "price": [1.0, 2.0]})
    lines = pd.DataFrame({"order_id": [1, 2], "line": 1, "product_id": "a", "quantity": [1, 2]})
    orders = pd.DataFrame({"order_id": [1, 2], "timestamp": pd.to_datetime(["2025-01-02", "2025-01-09"])})
    assert P.price_weeks(prices, lines, orders)["quantity"].tolist() == [1, 2]
    later = pd.to_datetime(["2025-01-02", "2026-01-02"])
    for bad, holds in [
        (lambda: P.price_weeks(prices, lines, orders.assign(timestamp=later)), "2025, 2026"),
        (lambda: P.price_weeks(prices, lines, orders.assign(timestamp=["2025-01-02", "x"])), "no moments"),
        (lambda: P.price_weeks(prices, lines.assign(product_id=[1, 2]), orders), "words in one table"),
        (lambda: P.price_weeks(prices, lines.assign(line="1"), orders), "no order has a line 1"),
    ]:
        with pytest.raises(KitError, match=holds):
            bad()
