"""Planted faults: each is on the list, nothing else changes, and the list undoes them."""

import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.data import quality
from mktai_kit.settings import KitError
from mktai_kit.world.engine import Coded, Draws, Gaps, change, describe_params, table, to_frame, write_parquet
from mktai_kit.world.faults import FAR, LIST, FaultParams, Plan, Spell, arrival, inject, undo

NONE = {name: 0 for name in ("fault_copies", "fault_late", "fault_broken", "fault_units", "fault_slips")}
DAY = np.timedelta64(1, "D")


def orders(n=5_000, seed=1, recorded=True):
    rng = np.random.default_rng(seed)
    moments = np.sort(np.datetime64("2025-01-01", "s") + rng.integers(0, 365 * 86_400, n))
    columns = dict(
        order_id=np.arange(1, n + 1),
        customer_id=Gaps(rng.integers(1, 500, n), rng.random(n) < 0.1),
        session=pa.array([f"s{i}" for i in rng.integers(1, 900, n)]),
        timestamp=moments,
        device=Coded(rng.integers(-1, 3, n), ["desktop", "mobile", "tablet"]),
        quantity=rng.integers(1, 5, n),
        amount=np.where(rng.random(n) < 0.02, np.nan, rng.lognormal(3.6, 0.7, n)),
    )
    return table(**columns, **({"recorded": arrival(moments)} if recorded else {}))


PLAN = Plan(
    key=["order_id", "device"],
    near="device",
    late=("timestamp", "recorded"),
    broken=["customer_id", "session"],
    units=Spell("amount", 100, np.datetime64("2025-05-12"), source=("device", "tablet")),
    slips=Spell("timestamp", 5, np.datetime64("2025-09-01"), source=("device", "mobile")),
)


def plant(tab, plan=PLAN, seed=7, number=0, **changes):
    params = change(FaultParams(), **changes)
    out, faults = inject({"orders": tab, "other": tab}, {"orders": plan}, params, Draws(seed, "test"), number)
    assert out["other"] is tab, "only planned tables are touched"
    return out["orders"], faults


def same(a, b):
    """Equal, whatever labels a dictionary holds besides."""
    pd.testing.assert_frame_equal(*(to_frame(x).astype({"device": "str"}) for x in (a, b)))
    return a.schema == b.schema


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("near", [None, "timestamp", "session", "device", "customer_id"])
def test_the_list_undoes_everything(seed, near):
    tab, rng = orders(300 + 37 * seed, seed), np.random.default_rng(seed)
    changes = {name: float(rng.choice([0, 0.01, 0.2])) for name in NONE}
    if near == "customer_id":  # a whole number has no case
        with pytest.raises(KitError, match="near"):
            plant(tab, Plan(["order_id"], near=near), fault_copies=0.2)
        return
    faulty, faults = plant(tab, Plan(**{**PLAN.__dict__, "near": near}), seed, **changes)
    assert same(undo({"orders": faulty}, faults, part=1)["orders"], tab)


def test_the_list_is_true():
    tab = orders()
    faulty, faults = plant(tab, fault_copies=0.05, fault_late=0.05, fault_broken=0.05)
    assert faults.schema == LIST
    old, new, found = to_frame(tab), to_frame(faulty), to_frame(faults).astype({"kind": "str", "column": "str"})
    assert set(found["kind"]) == {"copy", "near copy", "late", "unit", "time zone", "broken id"}
    for f in found.itertuples():
        before, after = old.iloc[f.origin], new.iloc[f.row]
        gone = before.isna() | after.isna()
        differ = {c for c in old if (before.isna()[c] != after.isna()[c] if gone[c] else before[c] != after[c])}
        assert differ == ({f.column} if f.column else set()), f
        assert f.key == f"{before['order_id']}/{'' if pd.isna(before['device']) else before['device']}" and f.part == 1
    in_place = found[~found["kind"].isin(["copy", "near copy"])]
    assert not in_place["origin"].duplicated().any() and not found["row"].duplicated().any()
    assert len(new) == len(old) + found["kind"].isin(["copy", "near copy"]).sum()
    touched = set(found["row"])
    rest = new.drop(index=list(touched))
    expected = old.drop(index=list(in_place["origin"]))
    pd.testing.assert_frame_equal(
        rest.astype({"device": "str"}).reset_index(drop=True), expected.astype({"device": "str"}).reset_index(drop=True)
    )


def test_each_kind_looks_as_it_should():
    tab = orders(20_000)
    faulty, faults = plant(tab)
    new, found = to_frame(faulty), to_frame(faults).astype({"kind": "str", "column": "str"})
    kind = {name: group for name, group in found.groupby("kind")}
    late = new.iloc[kind["late"]["row"]]
    assert ((late["recorded"] - late["timestamp"]) > DAY).all()
    copies = len(kind["copy"]) + len(kind["near copy"])
    end = len(new) - copies
    assert sorted(kind["late"]["row"]) == list(range(end - len(late), end)), (
        "late rows stand at the end, before the copies"
    )
    assert new["recorded"].iloc[end - len(late) : end].is_monotonic_increasing
    assert (new["recorded"] <= to_frame(tab)["recorded"].max()).all(), "what comes after the last load is not there"
    ids = new.iloc[kind["broken id"]["row"]]
    assert ((ids["customer_id"] > FAR) | ids["session"].str.startswith("Xs")).all()
    units = new.iloc[kind["unit"]["row"]]
    assert set(units["device"]) == {"tablet"} and units["timestamp"].between("2025-05-12", "2025-05-16").all()
    assert (kind["unit"]["now"].astype(float) / kind["unit"]["was"].astype(float)).round(6).eq(100).all()
    slips = pd.to_datetime(kind["time zone"]["now"]) - pd.to_datetime(kind["time zone"]["was"])
    assert (slips == pd.Timedelta(hours=5)).all() and set(new.iloc[kind["time zone"]["row"]]["device"]) == {"mobile"}
    assert kind["near copy"]["now"].isin(["DESKTOP", "MOBILE", "TABLET"]).all()


def test_shares():
    n = 60_000
    _, faults = plant(orders(n), fault_copies=0.02, fault_late=0.03, fault_broken=0.01)
    many = to_frame(faults)["kind"].astype("str").value_counts()
    assert many["copy"] + many["near copy"] == pytest.approx(0.02 * n, rel=0.1)
    assert many["late"] == pytest.approx(0.03 * n, rel=0.1)
    assert many["broken id"] == pytest.approx(0.01 * n * 0.95, rel=0.15), "missing ids cannot be broken"
    assert many["near copy"] / (many["copy"] + many["near copy"]) == pytest.approx(3 / 8, abs=0.03), (
        "a quarter has no device"
    )


def test_nothing_to_do():
    tab = orders()
    faulty, faults = plant(tab, **NONE)
    assert faulty.equals(tab) and faults.num_rows == 0 and faults.schema == LIST
    _, empty = inject({}, {"orders": PLAN}, FaultParams(), Draws(7, "test"), 0)
    assert empty.schema == faults.schema == plant(tab)[1].schema
    none, faults = plant(tab.slice(0, 0))
    assert none.num_rows == faults.num_rows == 0
    one, _ = plant(tab.slice(0, 1), fault_copies=0.2, fault_late=0.2)
    assert one.num_rows >= 1


def test_a_bare_plan():
    tab = orders(recorded=False)
    faulty, faults = plant(tab, Plan(["order_id"]), fault_copies=0.1)
    assert set(faults["kind"].to_pylist()) == {"copy"} and faulty.column_names == tab.column_names
    faulty, _ = plant(tab, Plan(["order_id"], duplicates=False))
    assert faulty.equals(tab)
    faulty, faults = plant(tab, Plan(["order_id"], late=("timestamp", "recorded")))
    assert faulty.column_names == [*tab.column_names, "recorded"]
    assert same(undo({"orders": faulty}, faults, 1)["orders"].select(tab.column_names), tab)


def test_weeks_as_time():
    n = 5_200
    tab = table(
        account_id=np.arange(n), week=np.tile(np.arange(1, 53), 100), minutes=np.full(n, 30.0), events=np.full(n, 3)
    )
    tab = tab.append_column("device", tab["week"].cast(pa.string()))
    plan = Plan(["account_id"], units=Spell("minutes", 60, 20, when="week"))
    faulty, faults = plant(tab, plan, fault_units=0.04, fault_copies=0)
    new = to_frame(faulty)
    assert set(new.loc[new["minutes"] == 1800, "week"]) == {20, 21} and faults.num_rows == 200
    whole, _ = plant(tab, Plan(["account_id"], units=Spell("events", 1000, 20, when="week")), fault_copies=0)
    assert to_frame(whole)["events"].max() == 3000 and whole.schema == tab.schema


def test_deterministic(tmp_path):
    tab = orders()
    a, b, other, block = plant(tab), plant(tab), plant(tab, seed=8), plant(tab, number=1)
    assert a[0].equals(b[0]) and a[1].equals(b[1])
    assert not a[1].equals(other[1]) and not a[1].equals(block[1]) and set(block[1]["part"].to_pylist()) == {2}
    write_parquet(a[0], tmp_path / "a")
    write_parquet(b[0], tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert tab.equals(orders()), "what was given stays as it was"
    whole = pa.concat_tables([a[1], block[1]]).unify_dictionaries()
    assert same(undo({"orders": block[0]}, whole, part=2)["orders"], tab)


def test_parameters_in_bounds():
    assert (describe_params(FaultParams)["low"] >= 0).all()
    with pytest.raises(KitError, match="at most 0.2"):
        change(FaultParams(), fault_late=0.3)


def test_an_audit_finds_every_kind():
    faulty, _ = plant(orders(20_000))
    frames = {"orders": to_frame(faulty), "customers": pd.DataFrame({"customer_id": np.arange(1, 500)})}
    said = " ".join(quality.audit(frames, as_of="2026-01-01")["finding"])
    for sign in (
        "exact copies",
        "other spellings",
        "key given",
        "reached the warehouse",
        "times the usual",
        "lies before",
        "not known",
    ):
        assert sign in said, sign
    clean = quality.audit({**frames, "orders": to_frame(orders(20_000))}, as_of="2026-01-01")
    for sign in (
        "copies",
        "spellings",
        "key given",
        "reached the warehouse",
        "times the usual",
        "lies before",
        "not known",
    ):
        assert sign not in " ".join(clean["finding"]), sign


def test_quick():
    tab = orders(300_000)
    plant(tab)
    start = time.perf_counter()
    plant(tab)
    assert time.perf_counter() - start < 0.25
