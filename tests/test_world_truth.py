"""The sealed side: true effects and profits, the best policy, and estimates held against them."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from mktai_kit.settings import KitError
from mktai_kit.world import engine, truth
from mktai_kit.world.engine import Company, Parts, Programme, param, simulate, table
from mktai_kit.world.truth import best, effect, effects, judge, score, unseal, value

CALL = Programme("call", "account_id", ("nothing", "call", "gift"), "stayed", "randomised", "A call or a gift.")


@dataclasses.dataclass(frozen=True)
class OfficeParams:
    """An office."""

    lift: float = param(0.2, "what a call adds for odd ids; it takes as much from even ones", low=-1, high=1)


def office(ctx, block):
    ids = block.ids
    luck, sign = ctx.draws.uniform("stays", ids), np.where(ids % 2, 1, -1)
    chance = [np.full(len(ids), 0.5), 0.5 + ctx.params.lift * sign, np.full(len(ids), 0.5 + ctx.params.lift / 2)]
    cost = [0.0, 1.0, 2.0]
    arm = ctx.taken(CALL, ids, ctx.draws.choice("arm", [1, 1, 1], ids))
    sealed = {"account_id": ids}
    for a, c, k in zip(CALL.actions, chance, cost):
        sealed |= {f"goal__{a}": (luck < c) * 1.0, f"expected__{a}": c}
        sealed |= {f"profit__{a}": (luck < c) * 10 - k, f"expected_profit__{a}": c * 10 - k}
    stayed = luck < np.choose(arm, chance)
    return Parts(
        {"accounts": table(account_id=ids, arm=arm, stayed=stayed)}, {"call": table(**sealed), "extra": table(a=ids)}
    )


OFFICE = Company(
    "office", OfficeParams, {"guide": {}, "null": {"lift": 0.0}}, 1000, 100, 0.001,
    lambda ctx: None, lambda ctx: Parts({}, {}), office, (CALL,),
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return simulate(OFFICE, scale=1, seed=1)


@pytest.fixture(scope="module")
def opened(world):
    return unseal(world)


def test_effects_are_those_of_the_parameters(opened):
    odd = [i for i in range(1, 1001) if i % 2]
    assert effect(opened, "call", "call") == pytest.approx(0, abs=1e-12)
    assert effect(opened, "call", "call", units=odd) == pytest.approx(0.2)
    assert effect(opened, "call", "gift") == pytest.approx(0.1)
    assert effect(opened, "call", "call", versus="gift", units=odd) == pytest.approx(0.1)
    moved = effects(opened, "call")
    assert moved.loc["call", ["raised", "lowered"]].tolist() == [0.5, 0.5] and moved.index[0] == "nothing"
    assert np.isnan(moved.loc["nothing", "effect"])


def test_null_effects_are_exactly_zero():
    t = unseal(simulate(OFFICE, scale=1, preset="null"))
    for kind in ("goal", "expected"):
        frame = t.outcomes("call", kind)
        assert (frame.sub(frame["nothing"], axis=0) == 0).all().all()


def test_value_of_policies(opened):
    money = opened.outcomes("call", "expected_profit")
    assert value(opened, "call", "gift") == pytest.approx(money["gift"].sum())
    mixed = {i: "call" if i % 2 else "nothing" for i in range(1, 1001)}
    assert value(opened, "call", mixed) == pytest.approx(500 * 6 + 500 * 5)
    assert value(opened, "call", mixed, units=[1, 2]) == pytest.approx(11)
    top = best(opened, "call")
    assert (top == pd.Series(mixed)).all() and top.name == "action"
    assert value(opened, "call", top) >= max(value(opened, "call", a) for a in CALL.actions)


def test_best_under_capacity(opened):
    assert (best(opened, "call", capacity=0) == "nothing").all()
    few = best(opened, "call", capacity=0.1)
    assert (few == "call").sum() == 100 and (few[few == "call"].index % 2 == 1).all()
    low = best(opened, "call", kind="expected", maximise=False)
    assert set(low[low == "call"].index % 2) == {0}


def test_a_replayed_policy_gives_the_sealed_answer(world, opened):
    policy = best(opened, "call")
    again = simulate(OFFICE, scale=1, seed=1, policies={"call": policy})["accounts"].set_index("account_id")
    assert again["stayed"].sum() == value(opened, "call", policy, kind="goal")


def test_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(truth, "find", lambda name: OFFICE)
    folder = engine.make(OFFICE, tmp_path / "w", scale=1, seed=1)
    t = unseal(folder)
    assert t.names == ["call", "extra"] and t.programmes.loc["call", "unit"] == "account_id"
    pd.testing.assert_frame_equal(t.outcomes("call"), unseal(simulate(OFFICE, scale=1, seed=1)).outcomes("call"))
    shutil.rmtree(folder / "truth" / "call")
    with pytest.raises(KitError, match="make the world again"):
        unseal(folder)
    with pytest.raises(KitError, match="make one"):
        unseal(tmp_path)


@pytest.mark.parametrize(
    "call, holds",
    [
        (lambda t: t.table("cal"), "did you mean 'call'"),
        (lambda t: t.programme("extra"), "use one of call"),
        (lambda t: t.outcomes("call", "goals"), "did you mean 'goal'"),
        (lambda t: effect(t, "call", "cal"), "did you mean 'call'"),
        (lambda t: effect(t, "call", "call", versus="nothin"), "did you mean 'nothing'"),
        (lambda t: effect(t, "call", "call", units=[1, 5000]), "1 of 2 units are not in the programme"),
        (lambda t: value(t, "call", {1: "call"}), "says nothing for 999 of 1000 units"),
        (lambda t: value(t, "call", dict.fromkeys(range(1, 1001), "cal")), "did you mean 'call'"),
        (lambda t: best(t, "call", capacity=2), "from 0 to 1"),
        (lambda t: judge((None, 0, 1), 0), "no estimate"),
        (lambda t: judge(3.0, 0), "no estimate"),
        (lambda t: score([]), "nothing to score"),
    ],
)
def test_bad_questions_are_answered_in_words(opened, call, holds):
    with pytest.raises(KitError, match=holds):
        call(opened)


def test_judgements():
    hit, miss = judge((1.0, 0.5, 1.5), 1.4), judge((1.0, 0.5, 1.5), 2)
    assert hit.covers and not miss.covers and miss.error == -1 and "misses" in str(miss) and "holds" in str(hit)
    s = score([hit, miss, hit, hit])
    assert (s["runs"], s["coverage"]) == (4, 0.75) and s["bias"] == pytest.approx((-0.4 * 3 - 1) / 4)
    assert s["coverage_low"] < 0.75 < s["coverage_high"]
    assert np.isnan(score([hit])["bias_se"])


def test_difference_in_means_covers():
    def once(seed):
        w = simulate(OFFICE, scale=1, seed=seed)
        t, seen = unseal(w), w["accounts"]
        a, b = (seen.loc[seen["arm"] == arm, "stayed"] for arm in (2, 0))
        d, half = a.mean() - b.mean(), 1.96 * np.sqrt(a.var() / len(a) + b.var() / len(b))
        return judge((d, d - half, d + half), effect(t, "call", "gift"))

    s = score(once(seed) for seed in range(200))
    assert 0.90 <= s["coverage"] <= 0.98 and abs(s["bias"]) < 4 * s["bias_se"]
