"""Funnels: counted by hand, intervals that cover, friction that is there and not elsewhere, a chain whose truth is known."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import funnels as fu
from mktai_kit.settings import KitError

matplotlib.use("Agg")
STEPS = ["session", "view", "cart", "purchase"]


def shop(seed, visitors=400, broken=0.0):
    rng = np.random.default_rng(seed)
    taste = rng.normal(0, 0.8, visitors)
    device = rng.choice(["a", "b", "c"], visitors, p=[0.5, 0.35, 0.15])
    who = np.repeat(np.arange(visitors), 1 + rng.poisson(2.5, visitors))
    visits = pd.DataFrame({"visitor_id": who, "device": device[who], "session": 1})
    for step, base in zip(STEPS[1:], (1.0, -0.8, 0.5)):
        p = 1 / (1 + np.exp(-(base + taste[who])))
        p = p * (1 - broken * ((visits["device"] == "c") & (step == "purchase")))
        visits[step] = ((rng.random(len(who)) < p) & (visits.iloc[:, -1] == 1)).astype(int)
    return visits


@pytest.fixture(scope="module")
def visits():
    return shop(1, 1200, broken=0.4)


def test_a_step_is_reached_by_it_or_a_later_one():
    table = pd.DataFrame({"session": [1] * 4, "view": [1, 0, 1, 0], "cart": [0, 1, 1, 0], "purchase": [0, 1, 0, 0]})
    got = fu.funnel(table, STEPS)
    assert got["n"].tolist() == [4, 3, 2, 1] and got["lost"].tolist() == [0, 1, 1, 1]
    assert got.attrs["skipped"] == {"view": 1}
    assert "not enough data" in got["of_start"][3].note


def test_row_order_and_ids_do_not_matter(visits):
    once = fu.funnel(visits, STEPS, "visitor_id", by="device")
    mixed = visits.sample(frac=1, random_state=3).assign(visitor_id=lambda t: "v" + t["visitor_id"].astype(str))
    again = fu.funnel(mixed, STEPS, "visitor_id", by="device")
    assert once["n"].tolist() == again["n"].tolist()
    for a, b in zip(once["of_start"], again["of_start"]):
        assert a.value == pytest.approx(b.value) and a.low == pytest.approx(b.low) and a.high == pytest.approx(b.high)


def test_rows_alone_give_wilsons_interval():
    from statsmodels.stats.proportion import proportion_confint

    table = pd.DataFrame({"session": 1, "purchase": [1] * 70 + [0] * 930})
    got = fu.funnel(table, ["session", "purchase"])["of_start"][1]
    low, high = proportion_confint(70, 1000, method="wilson")
    assert (got.low, got.high) == (pytest.approx(low, abs=3e-4), pytest.approx(high, abs=3e-4))


def test_buckets_give_what_rows_give(visits):
    rows = fu.funnel(visits, STEPS, "visitor_id").set_index("step")
    counts = visits.assign(bucket=visits["visitor_id"] % 200).groupby(["bucket", "device"])[STEPS].sum().reset_index()
    counted = fu.funnel(counts, STEPS, "bucket").set_index("step")
    assert rows["n"].tolist() == counted["n"].tolist()
    for step in STEPS[1:]:
        a, b = rows.loc[step, "of_start"], counted.loc[step, "of_start"]
        assert a.value == pytest.approx(b.value) and b.high - b.low == pytest.approx(a.high - a.low, rel=0.15)


def test_shares_are_covered_and_rows_alone_are_not():
    rng = np.random.default_rng(0)
    taste = lambda r, n: 1 / (1 + np.exp(-(-2 + r.normal(0, 1.2, n))))
    true, hits, naive = taste(rng, 500_000).mean(), 0, 0
    for seed in range(300):
        r = np.random.default_rng(seed)
        n = 1 + r.poisson(4, 400)
        bought = r.binomial(n, taste(r, 400)).astype(float)
        e = fu._share(bought, n.astype(float), 0.95, 50, "")
        hits += e.low <= true <= e.high
        half = 1.96 * np.sqrt(e.value * (1 - e.value) / n.sum())
        naive += abs(e.value - true) <= half
    assert 0.92 <= hits / 300 <= 0.985 and naive / 300 < 0.9


def test_friction_finds_the_fault_and_what_it_costs(visits):
    got = fu.friction(visits, STEPS, "device", "visitor_id")
    assert len(got) == 9
    assert got.loc[got["friction"], ["group", "step"]].values.tolist() == [["c", "purchase"]]
    sound = shop(1, 1200)
    old = visits["device"] == "c"
    lost = sound.loc[old, "purchase"].sum() - visits.loc[old, "purchase"].sum()
    assert got["at_stake"][0].low <= lost <= got["at_stake"][0].high
    assert (got["p_adjusted"] >= got["p"] - 1e-12).all()


def test_friction_does_not_slander():
    accused = sum(fu.friction(shop(s, 250), STEPS, "device", "visitor_id")["friction"].any() for s in range(16))
    assert accused <= 3


def test_a_counted_table_gives_the_same_friction(visits):
    counts = visits.assign(bucket=visits["visitor_id"] % 200).groupby(["bucket", "device"])[STEPS].sum().reset_index()
    a, b = (fu.friction(t, STEPS, "device", c).iloc[0] for t, c in ((visits, "visitor_id"), (counts, "bucket")))
    assert (a["group"], a["step"], a["n"]) == (b["group"], b["step"], b["n"])
    assert a["difference"].value == pytest.approx(b["difference"].value)


def test_a_difference_of_two_shares_is_statsmodels(visits):
    from statsmodels.stats.proportion import confint_proportions_2indep

    one = visits.drop_duplicates("visitor_id")
    got = fu.friction(one, ["session", "view"], "device", reference="b").set_index("group").loc["a"]
    a, b = (one.loc[one["device"] == d, "view"] for d in "ab")
    low, high = confint_proportions_2indep(a.sum(), len(a), b.sum(), len(b), method="wald")
    assert got["difference"].value == pytest.approx(a.mean() - b.mean())
    assert got["difference"].low == pytest.approx(low, abs=2e-3) and got["difference"].high == pytest.approx(
        high, abs=2e-3
    )


def test_adjusting_compares_like_with_like():
    rng = np.random.default_rng(7)
    t = pd.DataFrame({"session": 1, "new": rng.random(8000) < 0.5})
    t["device"] = np.where(rng.random(8000) < np.where(t["new"], 0.8, 0.3), "mobile", "desktop")
    t["purchase"] = (rng.random(8000) < np.where(t["new"], 0.05, 0.15)).astype(int)
    args = (t, ["session", "purchase"], "device")
    assert fu.friction(*args, reference="desktop")["friction"].any()
    assert not fu.friction(*args, reference="desktop", adjust="new")["friction"].any()


def test_few_units_say_so(visits):
    rare = pd.concat([visits, visits.head(5).assign(device="watch")])
    got = fu.friction(rare, STEPS, "device", "visitor_id").set_index(["group", "step"])
    assert got.loc[("watch", "view"), "difference"].value is None and not got.loc["watch", "friction"].any()
    assert (fu.funnel(visits.assign(device=None), STEPS, by="device")["group"] == "unknown").all()


@pytest.mark.parametrize(
    ("change", "args", "says"),
    [
        (lambda t: t.drop(columns="cart"), {}, "cart"),
        (lambda t: t.iloc[:0], {}, "no rows"),
        (lambda t: t.assign(cart=np.nan), {}, "missing"),
        (lambda t: t.assign(cart="yes"), {}, "numbers"),
        (lambda t: t.assign(cart=-1), {}, "negative"),
        (lambda t: t.assign(session=5), {}, "nothing says whose"),
        (lambda t: t.assign(session=5, purchase=9), {"cluster": "visitor_id"}, "later step"),
        (lambda t: t.assign(visitor_id=None), {"cluster": "visitor_id"}, "missing"),
        (lambda t: t, {"by": "colour"}, "colour"),
    ],
)
def test_bad_tables_are_refused(visits, change, args, says):
    with pytest.raises(KitError, match=says):
        fu.funnel(change(visits.head(30)), STEPS, **args)


def test_bad_groups_are_refused(visits):
    with pytest.raises(KitError, match="groups"):
        fu.friction(visits[visits["device"] == "a"], STEPS, "device")
    with pytest.raises(KitError, match="reference"):
        fu.friction(visits, STEPS, "device", reference="z")
    with pytest.raises(KitError, match="two steps"):
        fu.funnel(visits, ["session"])


P = np.array([[0.2, 0.5, 0.02, 0, 0.28], [0.3, 0.3, 0.15, 0, 0.25], [0.2, 0.2, 0.1, 0.2, 0.3]])
NEXT = np.array(["page", "view", "cart", "purchase", "exit"])
TRUE = np.linalg.solve(np.eye(3) - P[:, :3], P[:, 3])


def clicks(seed, n=600):
    """Visits of a Markov chain that begins on a page; two visits per visitor."""
    rng, state, alive, rows, k = np.random.default_rng(seed), np.zeros(n, int), np.arange(n), [], 0
    while len(alive):
        rows.append(np.column_stack([alive, np.full(len(alive), k), state[alive]]))
        state[alive] = (rng.random(len(alive))[:, None] > P.cumsum(axis=1)[state[alive]]).sum(axis=1).clip(max=4)
        k += 1
        done = alive[state[alive] == 3]
        rows.append(np.column_stack([done, np.full(len(done), k), np.full(len(done), 3)]))
        alive = alive[state[alive] < 3]
    a = np.concatenate(rows)
    names = {"session_id": a[:, 0], "visitor_id": a[:, 0] // 2, "timestamp": a[:, 1], "event_type": NEXT[a[:, 2]]}
    return pd.DataFrame(names)


def test_the_chain_is_covered():
    hits = {s: 0 for s in ("page", "view", "cart")}
    for seed in range(50):
        t = fu.progression(fu.transitions(clicks(seed)))
        for s, x in zip(hits, TRUE):
            hits[s] += t.loc[s, "chance"].low <= x <= t.loc[s, "chance"].high
    assert all(h >= 42 for h in hits.values()), hits


def test_the_chain_by_hand():
    e = clicks(3)
    t = fu.progression(fu.transitions(e))
    bought = e.loc[e["event_type"] == "purchase", "session_id"].nunique() / e["session_id"].nunique()
    assert t.loc["start", "chance"].value == pytest.approx(bought) == t.loc["start", "seen"].value
    assert abs(t["memory"]).max() < 0.05 and t.index[-1] == "cart"
    steps = np.linalg.inv(np.eye(3) - P[:, :3]).sum(axis=1)
    assert t.loc["page", "steps_left"] == pytest.approx(steps[0], rel=0.1)
    shuffled = fu.progression(fu.transitions(e.sample(frac=1, random_state=1)))
    pd.testing.assert_frame_equal(t, shuffled)


def test_memory_is_seen():
    path = [["view", "cart", "page", "purchase"]] * 300 + [["view", "page"]] * 300
    e = pd.DataFrame(
        [(u, u, k, s) for u, p in enumerate(path) for k, s in enumerate(p)],
        columns=["session_id", "visitor_id", "timestamp", "event_type"],
    )
    t = fu.progression(fu.transitions(e))
    assert t.loc["cart", "seen"].value == 1 and t.loc["cart", "chance"].value == pytest.approx(0.5)
    assert t.loc["cart", "memory"] == pytest.approx(0.5)


def test_ties_repeats_and_what_follows_the_goal():
    e = pd.DataFrame(
        {
            "session_id": [1] * 5,
            "timestamp": [0, 1, 1, 2, 3],
            "event_type": ["page", "cart", "view", "purchase", "page"],
        }
    )
    moves = fu.transitions(e, cluster=None)
    assert list(zip(moves["state"], moves["next"])) == [
        ("cart", "purchase"), ("page", "view"), ("start", "page"), ("view", "cart")
    ]  # fmt: skip
    assert (moves["won"] == 1).all()


def test_bad_moves_are_refused():
    e = clicks(1, 50)
    with pytest.raises(KitError, match="visitor_id"):
        fu.transitions(e.assign(visitor_id=None))
    with pytest.raises(KitError, match="kept for the ends"):
        fu.transitions(e.assign(event_type="exit"))
    with pytest.raises(KitError, match="no visit reaches"):
        fu.progression(fu.transitions(e, goal="sale"), goal="sale")
    with pytest.raises(KitError, match="no moves"):
        fu.progression(fu.transitions(e).iloc[:0])
    small = fu.progression(fu.transitions(clicks(1, 20)))
    assert "not enough data" in small.loc["page", "chance"].note


def test_plots(visits):
    import matplotlib.pyplot as plt

    table = fu.funnel(visits, STEPS, "visitor_id", by="device")
    ax = fu.plot_funnel(table, "of_before")
    assert len(ax.patches) == 12 and ax.get_xlabel()
    assert fu.plot_funnel(table[table["group"] == "a"], ax=plt.subplots()[1]).get_legend() is None
    with pytest.raises(KitError, match="share"):
        fu.plot_funnel(table, "n")
    assert fu.plot_progression(fu.progression(fu.transitions(clicks(1)))).get_legend() is not None
    plt.close("all")


def test_bad_settings_are_refused(visits):
    with pytest.raises(KitError, match="level = 95"):
        fu.funnel(visits, STEPS, "visitor_id", level=95)
    with pytest.raises(KitError, match="level = 95"):
        fu.friction(visits, STEPS, "device", "visitor_id", level=95)
    with pytest.raises(KitError, match="'fdr' is not known"):
        fu.friction(visits, STEPS, "device", "visitor_id", correction="fdr")
    with pytest.raises(KitError, match="no column"):
        fu.transitions([1])
