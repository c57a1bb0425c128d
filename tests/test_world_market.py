"""The market: sizes, stable means, prices by chance and by demand, and elasticities that come back where they should."""

import time

import numpy as np
import pyarrow.compute as pc
import pytest

from mktai_kit.data import contracts
from mktai_kit.settings import KitError
from mktai_kit.world.engine import Draws, change, describe_params, to_frame
from mktai_kit.world.market import ARMS, CHANCES, LIMITS, TREE, Market, MarketParams, triangular


def market(n=4_000, seed=7, weeks=52, **changes):
    return Market(change(MarketParams(), **changes), Draws(seed, "test"), n, weeks)


def pairs(shop, n=200_000, seed=1):
    rng = np.random.default_rng(seed)
    u = rng.random((2, n))
    return shop.pick(shop.pick_category(u[0]), u[1]), rng.integers(0, shop.weeks, n)


# ------------------------------------------------------------------------------------------------ what there is
@pytest.mark.parametrize("n", [1, 2, 60, 127, 128, 129, 1_000, 30_001])
def test_any_size(n):
    shop = market(n)
    product, week = pairs(shop, 20_000)
    assert len(shop.category) == len(shop.list_price) == n and product.min() >= 0 and product.max() < n
    assert (shop._size.sum() == n) and (n < 128 or shop._size.min() >= 1)
    assert abs(shop.weight.sum() - 1) < 1e-9 and (shop.list_price > 0).all() and (shop.cost > 0).all()
    assert (shop.cost < shop.list_price).all()
    picked = shop.pick_category(np.array([1e-16, 0.5, 1 - 2**-53]))
    assert (shop._size[picked] > 0).all(), "an empty subcategory is never picked"
    assert (shop.category[shop.pick(picked, np.array([1e-16, 0.5, 1 - 2**-53]))] == picked).all()
    contracts.validate("products", to_frame(shop.products()))
    contracts.validate("prices", to_frame(shop.prices()))
    assert shop.lift(product, week).max() < shop.bound()


def test_no_market():
    for given in ({"n": 0}, {"n": -3}, {"weeks": 0}):
        with pytest.raises(KitError, match="1 or more"):
            market(**given)


def test_one_week():
    shop = market(500, weeks=1)
    assert not shop.tested(np.arange(500), 0).any() and len(shop.prices()) == shop.in_panel.sum()


def test_picks_follow_the_weights():
    shop = market(600)
    product, _ = pairs(shop, 2_000_000)
    seen = np.bincount(product, minlength=shop.n) / len(product)
    error = (seen - shop.weight) / np.sqrt(shop.weight / len(product))
    assert np.abs(error).max() < 5 and abs(error.std() - 1) < 0.1


def test_scale_changes_size_and_not_distributions():
    small, large = market(5_000), market(40_000)
    for name in ("list_price", "elasticity"):
        means = [shop.weight @ getattr(shop, name) for shop in (small, large)]
        assert means[0] == pytest.approx(means[1], rel=0.01)
    assert abs(np.std(np.log(small.list_price)) - np.std(np.log(large.list_price))) < 0.03
    # The best fifth's share of the units sold, at any size.
    head = [np.sort(shop.weight)[-shop.n // 5 :].sum() for shop in (small, large)]
    assert head[0] == pytest.approx(head[1], rel=0.03)


def test_the_mean_order_hardly_depends_on_the_seed():
    means, orders = [], []
    for seed in range(10):
        shop = market(50_000, seed)
        product, week = pairs(shop, 22_500, seed)  # 15,000 orders of one and a half lines
        price, lift = shop.price(product, week).price, shop.lift(product, week)
        means.append(shop.weight @ shop.list_price)
        orders.append(np.average(price, weights=lift))
    assert np.ptp(means) / 22 < 0.003 and np.abs(np.array(means) / 22 - 1).max() < 0.005
    assert np.std(orders) / np.mean(orders) < 0.01


def test_parameters_have_a_meaning():
    about = describe_params(MarketParams)
    assert len(about) > 20 and about["source"].str.len().min() > 5 and (about["low"].notna()).all()


# --------------------------------------------------------------------------------------------------- week by week
def test_same_seed_same_bits():
    a, b, other = market(), market(), market(seed=8)
    product, week = pairs(a, 10_000)
    back = slice(None, None, -1)
    for ask in (lambda m, *x: m.price(*x).price, Market.lift, Market.available, Market.shock, Market.cost_in):
        first = ask(a, product, week)
        assert (first == ask(b, product, week)).all() and (first == ask(a, product[back], week[back])[back]).all()
        assert (first[:50] == ask(a, product[:50], week[:50])).all() and (first != ask(other, product, week)).any()
    assert a.products().equals(b.products()) and a.prices().equals(b.prices()) and not a.prices().equals(other.prices())


def test_shocks_have_mean_one_and_last():
    shop = market(8_000)
    product, week = np.arange(8_000)[:, None], np.arange(52)[None]
    shock = shop.shock(product, week)
    assert np.exp(shock).mean() == pytest.approx(1, abs=0.01) and shock.std() == pytest.approx(shop.swing, rel=0.05)
    later = np.corrcoef(shock[:, :-1].ravel(), shock[:, 1:].ravel())[0, 1]
    assert 0.5 < later < 0.9
    assert abs(triangular(np.random.default_rng(1).integers(0, 2**64, 10**6, np.uint64)).std() - 1) < 0.003


def test_stock():
    shop = market(8_000)
    there = shop.available(np.arange(8_000)[:, None], np.arange(52)[None])
    assert 1 - there.mean() == pytest.approx(0.03, rel=0.1)
    out = ~there
    again = out[:, 1:][out[:, :-1]].mean()
    assert again > 10 * out.mean(), "out this week, likely out the next"
    starts = out[:, 1:] & ~out[:, :-1]
    assert 1.5 < out.sum() / starts.sum() < 3.5, "for a few weeks"
    shock = shop.shock(np.arange(8_000)[:, None], np.arange(52)[None])
    assert shock[out].mean() > shock[there].mean() + 0.2 * shop.swing
    never = market(1_000, stockout_share=0)
    assert never.available(np.arange(1_000)[:, None], np.arange(52)[None]).all()


def test_prices_in_the_test_are_random_with_known_chances():
    shop = market(20_000)
    product, week = shop.recorded()
    asked = shop.price(product, week)
    arm = asked.arm[asked.tested]
    seen = np.bincount(arm, minlength=len(ARMS)) / len(arm)
    assert np.abs(seen - CHANCES).max() < 4 * np.sqrt(0.25 / len(arm))
    assert np.abs(asked.factor[asked.tested] - np.array(ARMS)[arm]).max() < 0.01, "but for cents"
    shock = shop.shock(product, week)[asked.tested]
    assert abs(np.corrcoef(asked.factor[asked.tested], shock)[0, 1]) < 4 / np.sqrt(len(arm))
    table = to_frame(shop.prices())
    assert (table["randomised"] == asked.tested).all() and table["propensity"].notna().equals(table["randomised"])
    weeks = table.loc[table["randomised"], "week"]
    assert (weeks.min(), weeks.max()) == (15, 30), "tables count weeks from 1"
    assert 0.01 < (~table["randomised"]).sum() / (shop.n * 52) < 0.03


def test_the_shop_answers_to_demand():
    shop = market(20_000)
    product, week = pairs(shop)
    usual = ~shop.tested(product, week)
    asked, shock = shop.price(product, week), shop.shock(product, week)
    assert np.corrcoef(asked.factor[usual], shock[usual])[0, 1] > 0.5
    assert asked.factor.min() > LIMITS[0] - 0.01 and asked.factor.max() < LIMITS[1] + 0.01
    assert abs(np.mean(asked.factor) - 1) < 0.02 and shop.lift(product, week).mean() == pytest.approx(1, abs=0.05)
    assert (np.abs(np.round(asked.price, 2) - asked.price) < 1e-9).all()
    indifferent = market(20_000, price_confounding=0)
    factor, shock = indifferent.price(product, week).factor, indifferent.shock(product, week)
    assert abs(np.corrcoef(factor, shock)[0, 1]) < 0.02


def test_costs_move_prices_and_nothing_else():
    shop = market(20_000)
    product, week = pairs(shop)
    usual = ~shop.tested(product, week)
    moved, factor = shop.cost_change(product, week), shop.price(product, week).factor
    assert np.corrcoef(moved[usual], factor[usual])[0, 1] > 0.3
    for other in (shop.shock(product, week), shop.available(product, week)):
        assert abs(np.corrcoef(moved, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(moved[~usual], factor[~usual])[0, 1]) < 0.05


def test_other_arms_change_the_price_and_not_the_luck():
    shop = market(2_000)
    product, week = pairs(shop, 5_000)
    for code, factor in enumerate(ARMS):
        asked = shop.price(product, week, np.full(5_000, code))
        assert np.abs(asked.factor - factor).max() < 0.01 and asked.tested.all()
    chance = shop.price(product, week)
    same = shop.price(product, week, chance.arm)
    assert (same.price == chance.price).all()
    shop_only = shop.price(product, week, np.full(5_000, -1))
    assert (shop_only.price[~chance.tested] == chance.price[~chance.tested]).all() and not shop_only.tested.any()
    halved = shop.lift(product, week, 0.5) / np.exp(shop.shock(product, week))
    assert np.allclose(halved**2, shop.lift(product, week) / np.exp(shop.shock(product, week)))
    given = shop.lift(product, week, factor=np.ones(5_000))
    assert np.allclose(given, np.exp(shop.shock(product, week)))


def test_nobody_looks_at_prices_in_a_null_market():
    shop = market(elasticity_mean=0)
    assert (shop.elasticity == 0).all() and pc.sum(shop.elasticities()["elasticity"]).as_py() == 0
    product, week = pairs(shop, 5_000)
    lifts = [shop.lift(product, week, factor=np.full(5_000, f)) for f in ARMS]
    assert all((x == lifts[0]).all() for x in lifts)


def test_another_tree():
    tree = [TREE[0]._replace(name="Only", categories={"one": ("thing", "other thing")})]
    shop = Market(MarketParams(), Draws(7, "test"), 300, tree=tree)
    table = to_frame(shop.products())
    assert set(table["department"]) == {"Only"} and set(table["subcategory"]) == {"thing", "other thing"}


def test_quick():
    start = time.perf_counter()
    for seed in range(5):
        market(10_000, seed)
    assert (time.perf_counter() - start) / 5 < 0.05
    shop = market(100_000)
    product, week = pairs(shop)
    start = time.perf_counter()
    asked = shop.price(product, week)
    shop.lift(product, week, factor=asked.factor)
    shop.available(product, week)
    assert time.perf_counter() - start < 0.5


# ---------------------------------------------------------------------------------------- elasticities come back
def within(product, *columns):
    """Columns less their product's mean."""
    many = np.bincount(product)
    return [x - (np.bincount(product, x) / np.maximum(many, 1))[product] for x in columns]


def poisson(product, units, x):
    """Slope of log demand on x with an effect for each product (conditional likelihood), its error by product, and weights."""
    slope = 0.0
    for _ in range(8):
        w = np.exp(slope * x)
        total = np.bincount(product, w)
        sold = np.bincount(product, units)
        mean = (np.bincount(product, w * x) / np.maximum(total, 1e-300))[product]
        score = np.bincount(product, units * (x - mean))
        spread = sold * np.bincount(product, w * (x - mean) ** 2) / np.maximum(total, 1e-300)
        slope += score.sum() / spread.sum()
    return slope, np.sqrt((score**2).sum()) / spread.sum(), spread


def experiment(seed, units=15):
    """Elasticity by the test, by the shop's own prices and by the cost: (estimate, error, truth) each."""
    shop = market(6_000, seed, price_panel_share=0.08)
    product, week = shop.recorded()
    asked = shop.price(product, week)
    lift = shop.lift(product, week, factor=asked.factor)
    rng = np.random.default_rng(seed)
    base = units * shop.weight[product] / shop.weight[product].mean()
    sold, x, z = rng.poisson(base * lift), -np.log(asked.factor), np.log(shop.cost_change(product, week))
    out = {}
    for name, rows in (("test", asked.tested), ("naive", ~asked.tested)):
        slope, error, weight = poisson(product[rows], sold[rows], x[rows])
        out[name] = slope, error, np.average(shop.elasticity[: len(weight)], weights=weight)
    # The instrument, on log units whose luck is normal, so that no zero spoils the logs.
    rows = ~asked.tested
    p, y = product[rows], np.log(lift[rows]) + rng.normal(0, 0.2, rows.sum())
    y, x, z = within(p, y, x[rows], z[rows])
    slope = (z @ y) / (z @ x)
    error = np.sqrt((np.bincount(p, z * (y - slope * x)) ** 2).sum()) / abs(z @ x)
    weight = np.bincount(p, z * x)
    out["instrument"] = slope, error, np.average(shop.elasticity[: len(weight)], weights=weight)
    return out


def study(seeds):
    runs = [experiment(seed) for seed in seeds]
    return {name: np.array([run[name] for run in runs]) for name in runs[0]}


def covered(found):
    return (np.abs(found[:, 0] - found[:, 2]) < 1.96 * found[:, 1]).mean()


def test_elasticity_intervals_cover():
    found = study(range(200))
    for name in ("test", "instrument"):
        assert 0.90 <= covered(found[name]) <= 0.99, (name, covered(found[name]))
        assert found[name][:, 0].mean() == pytest.approx(found[name][:, 2].mean(), rel=0.02)
    off = (found["naive"][:, 0] - found["naive"][:, 2]) / found["naive"][:, 1]
    assert covered(found["naive"]) == 0 and off.max() < -5, "the naive interval never comes near"
