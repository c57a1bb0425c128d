"""Worlds: parameters, draws, blocks, folders; whole or not at all, and the same bytes from any number of workers."""

import ast
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.settings import KitError
from mktai_kit.world import engine
from mktai_kit.world.engine import Coded, Company, Draws, Gaps, Parts, Programme, param, simulate, table, to_frame

PACKAGE = Path(engine.__file__).resolve().parent.parent
SIGN = Programme("sign", "customer_id", ("no", "yes"), "glasses", "randomised", "Half see the sign.")


@dataclasses.dataclass(frozen=True)
class StandParams:
    """A stand."""

    thirst: float = param(0.3, "chance to buy", low=0, high=1)
    effect_of_sign: float = param(0.1, "what the sign adds", low=-1, high=1)
    glasses: int = param(1, "glasses per buyer", low=1)
    open_on_sunday: bool = param(True, "whether it opens on Sundays")


def ground(ctx):
    return ctx.draws.uniform("weather", np.arange(3))


def shared(ctx):
    return Parts({"days": table(day=np.arange(3), weather=ctx.ground)}, {})


def stand(ctx, block):
    ids, p = block.ids, ctx.params
    luck = ctx.draws.uniform("buys", ids)
    chance = [np.full(len(ids), p.thirst), np.full(len(ids), p.thirst + p.effect_of_sign)]
    arm = ctx.taken(SIGN, ids, ctx.draws.choice("sign", [1, 1], ids))
    buys = np.choose(arm, [luck < c for c in chance])
    noise = ctx.draws.generator("noise", block.number).normal(size=len(ids))
    sealed = {"customer_id": ids}
    for a, c in zip(SIGN.actions, chance):
        sealed |= {f"goal__{a}": (luck < c) * 1.0, f"expected__{a}": c, f"profit__{a}": (luck < c) * 2.0}
        sealed |= {f"expected_profit__{a}": c * 2}
    tables = {
        "customers": table(customer_id=ids, noise=noise, arm=Coded(arm, SIGN.actions)),
        "orders": table(order_id=ids[buys], customer_id=ids[buys], amount=np.full(buys.sum(), 2.0)),
    }
    return Parts(tables, {"sign": table(**sealed)})


def slow_stand(ctx, block):
    time.sleep(0.5)
    return stand(ctx, block)


def big_stand(ctx, block):
    return Parts({"noise": table(x=ctx.draws.generator("x", block.number).normal(size=400_000))}, {})


def dying_stand(ctx, block):
    os.kill(os.getpid(), signal.SIGKILL)


STAND = Company(
    "stand", StandParams, {"guide": {}, "null": {"effect_of_sign": 0.0}}, 2_000, 300, 0.001, ground, shared, stand, (SIGN,)
)  # fmt: skip


def files(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in Path(folder).rglob("*")
        if p.is_file()
    }


# ------------------------------------------------------------------------------------------------------------ parameters
@pytest.mark.parametrize(
    "changes, holds",
    [
        ({"tirst": 1}, "did you mean 'thirst'"),
        ({"thirst": 2}, "at most 1"),
        ({"thirst": "much"}, "not a number"),
        ({"thirst": float("nan")}, "not a number"),
        ({"thirst": True}, "not a number"),
        ({"thirst": None}, "not a number"),
        ({"glasses": 1.5}, "not a whole number"),
        ({"glasses": 0}, "at least 1"),
        ({"open_on_sunday": 1}, "true or false"),
        ({"open_on_sunday": "perhaps"}, "true or false"),
    ],
)
def test_parameters_are_checked(changes, holds):
    with pytest.raises(KitError, match=holds):
        simulate(STAND, scale=0.1, **changes)


def test_parameters_may_come_as_text():
    got = engine.change(StandParams(), thirst="0.5", glasses="2", open_on_sunday="false")
    assert (got.thirst, got.glasses, got.open_on_sunday) == (0.5, 2, False)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 1e-9, 1e9, None, "big", True])
def test_scale_is_checked(scale, tmp_path):
    with pytest.raises(KitError, match="scale"):
        engine.make(STAND, tmp_path / "w", scale=scale)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True])
def test_seed_is_checked(seed):
    with pytest.raises(KitError, match="seed"):
        simulate(STAND, scale=0.1, seed=seed)


def test_unknown_names_are_answered_with_the_nearest():
    for call, holds in [
        (lambda: simulate(STAND, preset="nul"), "did you mean 'null'"),
        (lambda: simulate(STAND, policies={"sing": "yes"}), "did you mean 'sign'"),
        (lambda: simulate(STAND, policies={"sign": "yees"}), "did you mean 'yes'"),
        (lambda: simulate(STAND, policies={"sign": {1: "noo"}}), "did you mean 'no'"),
        (lambda: engine.find("ecomerce"), "did you mean 'ecommerce'"),
        (lambda: simulate(STAND)["order"], "did you mean 'orders'"),
    ]:
        with pytest.raises(KitError, match=holds):
            call()


# ----------------------------------------------------------------------------------------------------------------- draws
def test_draws_belong_to_purpose_and_ids():
    d = Draws(7, "a")
    x = d.uniform("p", np.arange(1000), 3)
    assert (x == d.uniform("p", np.arange(1000), np.full(1000, 3))).all()
    assert (d.uniform("p", np.arange(500, 600), 3) == x[500:600]).all()
    others = [Draws(8, "a").uniform("p", np.arange(1000), 3), Draws(7, "b").uniform("p", np.arange(1000), 3)]
    others += [
        d.uniform("q", np.arange(1000), 3),
        d.uniform("p", 3, np.arange(1000)),
        d.uniform("p", np.arange(1000), 4),
    ]
    for other in others:
        assert abs(np.corrcoef(x, other)[0, 1]) < 0.12 and (x == other).sum() <= 1  # (3, 3) is one question
    assert d.uniform("p", np.arange(6)[:, None], np.arange(4)).shape == (6, 4)


def test_draws_are_uniform_and_independent():
    from scipy import stats

    d = Draws(1, "check")
    u = d.uniform("u", np.arange(200_000) * 64)
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    grid = d.uniform("grid", np.arange(400)[:, None], np.arange(400))
    cells = np.histogram2d(grid[:, :-1].ravel(), grid[:, 1:].ravel(), bins=20)[0].ravel()
    assert stats.chisquare(cells).pvalue > 1e-3
    rows = np.corrcoef(grid)
    assert np.abs(rows[np.triu_indices(400, 1)]).mean() < 1.2 * np.sqrt(2 / np.pi / 400)
    seeds = [float(Draws(s, "x").uniform("u", 1)[0]) for s in range(2000)]
    assert stats.kstest(seeds, "uniform").pvalue > 1e-3
    assert stats.kstest(d.normal("n", np.arange(100_000)), "norm").pvalue > 1e-3
    codes = d.choice("c", [1, 2, 1], np.arange(100_000))
    assert np.abs(np.bincount(codes) / 1e5 - [0.25, 0.5, 0.25]).max() < 0.01


def test_generators_differ_by_purpose_and_block():
    d = Draws(7, "a")
    first = d.generator("p", 0).random(5)
    assert (first == d.generator("p", 0).random(5)).all()
    assert (first != d.generator("p", 1).random(5)).all() and (first != d.generator("q", 0).random(5)).all()


# ---------------------------------------------------------------------------------------------------------------- tables
def test_table_types_are_canonical():
    t = table(
        customer_id=Gaps(np.array([1, 2]), np.array([True, False])),
        flag=Gaps(np.array([True, False]), np.array([False, True])),
        channel=Coded(np.array([-1, 0]), ["web"]),
        timestamp=np.array(["2025-01-01", "NaT"], "datetime64[D]"),
        amount=np.array([1.23456, np.nan], np.float32),
        ratio=np.array([1 / 3, 2.0]),
    )
    frame = to_frame(t)
    types = {k: str(v) for k, v in frame.dtypes.items()}
    assert types == {
        "customer_id": "Int64", "flag": "boolean", "channel": "category", "timestamp": "datetime64[us]",
        "amount": "float64", "ratio": "float64",
    }  # fmt: skip
    assert frame["amount"].iloc[0] == 1.23 and frame["ratio"].iloc[0] == 0.333333 and frame.isna().sum().sum() == 5
    assert frame["channel"].cat.categories.dtype == "str"
    many = Coded(np.arange(300), [str(i) for i in range(300)])
    assert to_frame(table(a=many))["a"].astype(str).tolist() == many.labels


# --------------------------------------------------------------------------------------------------------------- folders
def test_same_bytes_for_any_number_of_workers_and_again(tmp_path):
    made = [engine.make(STAND, tmp_path / str(i), scale=1, seed=7, workers=w) for i, w in enumerate((0, 1, 2, 0))]
    first = files(made[0])
    assert all(files(m) == first for m in made[1:])
    other = files(engine.make(STAND, tmp_path / "other", scale=1, seed=8))
    same = [name for name in first if first[name] == other.get(name)]
    assert same == ["truth/README.txt"]


def test_folder_and_memory_agree(tmp_path):
    folder, world = engine.make(STAND, tmp_path / "w", scale=0.7, seed=3), simulate(STAND, scale=0.7, seed=3)
    read = engine.read(folder)
    assert set(read) == {"customers", "orders", "days"}
    for name, frame in read.items():
        pd.testing.assert_frame_equal(frame, world[name])
    manifest = engine.read_manifest(folder)
    assert manifest["tables"]["customers"]["rows"] == 1400 and manifest["truth"]["sign"]["rows"] == 1400
    assert str(tmp_path) not in json.dumps(manifest)
    with pytest.raises(KitError, match="did you mean 'orders'"):
        engine.read(folder, ["order"])
    with pytest.raises(KitError, match="mktai world make"):
        engine.read(tmp_path)


def test_blocks_do_not_depend_on_scale():
    small, large = simulate(STAND, scale=0.3), simulate(STAND, scale=0.9)
    pd.testing.assert_frame_equal(small["customers"], large["customers"].head(600))


def test_policies_replace_what_was_done_and_nothing_else():
    usual = simulate(STAND, scale=0.5)
    wanted = {1: "yes", 2: "no", 5: "yes"}
    mixed = simulate(STAND, scale=0.5, policies={"sign": wanted})
    arms = usual["customers"].set_index("customer_id")["arm"].astype(str)
    got = mixed["customers"].set_index("customer_id")["arm"].astype(str)
    assert got[list(wanted)].to_dict() == wanted and (got.drop(list(wanted)) == arms.drop(list(wanted))).all()
    sealed = to_frame(usual.sealed["sign"]).set_index("customer_id")
    bought = sealed.index.isin(mixed["orders"]["customer_id"])
    assert (bought == np.where(got == "yes", sealed["goal__yes"], sealed["goal__no"])).all()


def test_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KitError, match="something else"):
        engine.make(STAND, tmp_path)
    with pytest.raises(KitError, match="something else"):
        engine.make(STAND, tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    again = engine.make(STAND, tmp_path / "empty", scale=0.1)
    engine.make(STAND, again, scale=0.2)
    assert engine.read_manifest(again)["scale"] == 0.2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(KitError, match="cannot write"):
        engine.make(STAND, tmp_path / "w")
    tmp_path.chmod(0o700)


def test_place_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KitError, match="cannot write"):
        engine.make(STAND, tmp_path / "file" / "w")


@pytest.mark.parametrize("workers", [0, 2])
def test_disk_full_leaves_the_old_world(tmp_path, workers):
    resource = pytest.importorskip("resource")
    old = files(engine.make(STAND, tmp_path / "w", scale=0.1))
    company = dataclasses.replace(STAND, simulate=big_stand)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # a file that may not grow: the write fails, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
        with pytest.raises(KitError, match="nothing was changed"):
            engine.make(company, tmp_path / "w", workers=workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(tmp_path / "w") == old and len(list(tmp_path.iterdir())) == 1


def test_no_space_is_said_before(tmp_path):
    with pytest.raises(KitError, match="GB are free"):
        engine.make(dataclasses.replace(STAND, gigabytes=1e9), tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_a_killed_worker_is_told(tmp_path):
    with pytest.raises(KitError, match="was killed"):
        engine.make(dataclasses.replace(STAND, simulate=dying_stand), tmp_path / "w", workers=2)
    assert not list(tmp_path.iterdir())


RUN = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from mktai_kit.world import engine
import test_world_engine as t
if __name__ == "__main__":
    engine.make(dataclasses.replace(t.STAND, simulate=t.slow_stand), {out!r}, scale=1, workers={workers})
"""


def start(tmp_path, workers):
    script = tmp_path / "run.py"
    script.write_text(RUN.format(tests=str(Path(__file__).parent), out=str(tmp_path / "place" / "w"), workers=workers))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list((tmp_path / "place").glob(".w.*.partial/w/customers/*")):
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"nothing was written: {process.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_leaves_nothing(tmp_path, workers):
    process = start(tmp_path, workers)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not list((tmp_path / "place").iterdir())


@pytest.mark.slow
def test_killed_leaves_no_world_and_the_next_run_starts_clean(tmp_path):
    process = start(tmp_path, 0)
    process.kill()
    process.communicate()
    assert not (tmp_path / "place" / "w").exists() and len(list((tmp_path / "place").iterdir())) == 1
    engine.make(STAND, tmp_path / "place" / "w", scale=0.1)
    assert [p.name for p in (tmp_path / "place").iterdir()] == ["w"]


def test_a_run_that_is_alive_is_not_swept_away(tmp_path):
    mine = tmp_path / ".w.abc.partial"
    mine.mkdir()
    (mine / f"{os.getpid()}.pid").touch()
    engine.make(STAND, tmp_path / "w", scale=0.1)
    assert mine.is_dir()


def test_progress_goes_to_standard_error(tmp_path, capsys):
    engine.make(STAND, tmp_path / "w", scale=0.1, progress=True)
    seen = capsys.readouterr()
    assert seen.out == "" and "stand" in seen.err


# -------------------------------------------------------------------------------------------------------------- the seal
def test_no_method_opens_the_seal():
    """Only world.truth reads what is sealed; no part but world may import it, nor read the folder around it."""
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0]
        if path.name == "_modidx.py" or part == "world":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{a.name}" for a in node.names]
            assert not any("world.truth" in n or n.endswith("unseal") for n in names), f"{path} opens the seal"
            if isinstance(node, ast.Attribute):
                assert node.attr != "sealed", f"{path} looks at what is sealed"
    readers = [p.name for p in (PACKAGE / "world").glob("*.py") if ".sealed" in p.read_text(encoding="utf-8")]
    assert set(readers) <= {"truth.py", "engine.py"}, "only the truth reads what is sealed"


def test_arrow_tables_are_written_the_same_way_each_time(tmp_path):
    t = pa.table({"a": np.arange(1000), "b": pa.array(["x", "y"] * 500).dictionary_encode()})
    for name in ("one", "two"):
        engine.write_parquet(t, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_obtain_makes_once_and_refuses_another_world(tmp_path):
    folder = engine.obtain("saas", tmp_path / "w", 0.002, 7, "tiny")
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert engine.obtain("saas", folder, 0.002, 7, "tiny") == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    for other in ({"scale": 0.003}, {"seed": 8}, {"preset": "null"}):
        with pytest.raises(KitError, match=f"the world there has {next(iter(other))}"):
            engine.obtain("saas", folder, **{"scale": 0.002, "seed": 7, "preset": "tiny", **other})
    with pytest.raises(KitError, match="company"):
        engine.obtain("retail", folder, 0.002, 7, "tiny")
