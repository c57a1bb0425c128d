"""What holds in all three worlds: contracts, the seal, replays, bytes, and sizes."""

import dataclasses
import hashlib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mktai_kit.cli import main
from mktai_kit.data import contracts, quality
from mktai_kit.settings import KitError
from mktai_kit.trust.fairness import audit
from mktai_kit.world import engine
from mktai_kit.world.truth import KINDS, unseal

SMALL = {"ecommerce": 0.002, "saas": 0.02, "retail": 0.005}
MODULES = {name: import_module(f"mktai_kit.world.{name}") for name in engine.COMPANIES}
PROGRAMMES = [(name, p.name) for name, m in MODULES.items() for p in m.COMPANY.programmes]
NO_FAULTS = {
    name: {f: 0.0 for f in vars(m.Params()) if f.startswith("fault_") and f != "fault_late_days"}
    for name, m in MODULES.items()
}


@pytest.fixture(scope="module")
def worlds():
    return {name: m.simulate(scale=SMALL[name], seed=7) for name, m in MODULES.items()}


@pytest.fixture(scope="module")
def sound():
    return {name: m.simulate(scale=SMALL[name], seed=7, **NO_FAULTS[name]) for name, m in MODULES.items()}


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_tables_keep_their_contracts(sound, name):
    tables = sound[name].tables
    assert set(tables) <= set(contracts.TABLES)
    for table, frame in tables.items():
        unknown = set(frame.columns) - set(contracts.TABLES[table].columns)
        assert not unknown, f"{table} has columns that no contract names: {unknown}"
        if len(frame):
            contracts.validate(table, frame)
    contracts.validate_all({t: f for t, f in tables.items() if len(f)}, broken=0)


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_faults_are_there_and_listed(worlds, sound, name):
    faults = unseal(worlds[name]).table("faults")
    assert len(faults) and {"table", "kind"} <= set(faults.columns)
    assert len(unseal(sound[name]).table("faults")) == 0
    for table, found in faults.groupby("table", observed=True):
        assert found["kind"].notna().all() and table in worlds[name].arrow


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_numbers_are_rounded(worlds, name):
    """The last bits of a logarithm differ between processors; nothing recorded may show them."""
    for part in (worlds[name].arrow, worlds[name].sealed):
        for table, arrow in part.items():
            for column in arrow.column_names:
                if pa.types.is_floating(arrow[column].type):
                    x = arrow[column].to_numpy()
                    assert np.array_equal(x, np.round(x, 6), equal_nan=True), f"{table}.{column}"


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_the_seal_is_complete(worlds, name):
    truth = unseal(worlds[name])
    assert set(truth.programmes.index) == {p.name for p in MODULES[name].COMPANY.programmes}
    assert "unfairness" in truth.names and set(truth.table("unfairness")["verdict"]) == {"fair", "unfair"}
    assert "complete" in truth.names and "faults" in truth.names
    public = {c for t in worlds[name].arrow.values() for c in t.column_names}
    assert not [c for c in public if "__" in c or c.startswith("expected")]


@pytest.mark.parametrize("name, programme", PROGRAMMES)
def test_what_is_seen_is_what_was_sealed(sound, name, programme):
    truth, seen = unseal(sound[name]), MODULES[name].readout(sound[name], programme)
    p = truth.programme(programme)
    for kind in KINDS:
        assert truth.outcomes(programme, kind).notna().all().all()
    goals = truth.outcomes(programme, "goal")
    assert goals.index.is_unique and len(seen) and not seen[p.unit].duplicated().any()
    place = pd.Index(p.actions).get_indexer(seen["action"].astype(str))
    assert (place >= 0).all()
    sealed = goals.loc[seen[p.unit]].to_numpy()[np.arange(len(seen)), place]
    assert np.array_equal(seen["goal"].to_numpy(float), sealed)


@pytest.mark.parametrize("name, programme", PROGRAMMES)
def test_no_effect_under_null(name, programme):
    truth = unseal(null(name))
    for kind in ("goal", "expected"):
        frame = truth.outcomes(programme, kind)
        assert (frame.sub(frame.iloc[:, 0], axis=0) == 0).all().all()


_null: dict = {}


def null(name):
    if name not in _null:
        _null[name] = MODULES[name].simulate(scale=SMALL[name], seed=5, preset="null")
    return _null[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", engine.COMPANIES)
def test_a_replayed_policy_gives_the_sealed_answer(sound, name):
    """All programmes at once, a random action for each unit: every unit answers as was sealed."""
    m, truth = MODULES[name], unseal(sound[name])
    for p in m.COMPANY.programmes:
        units = truth.outcomes(p.name).index
        codes = np.random.default_rng(3).integers(0, len(p.actions), len(units))
        policy = pd.Series(np.asarray(p.actions)[codes], index=units)
        again = m.simulate(scale=SMALL[name], seed=7, policies={p.name: policy}, **NO_FAULTS[name])
        seen = m.readout(again, p.name).set_index(p.unit)
        assert (seen["action"].astype(str) == policy[seen.index]).all()
        sealed = truth.outcomes(p.name).loc[seen.index].to_numpy()
        place = pd.Index(p.actions).get_indexer(policy[seen.index])
        assert np.array_equal(seen["goal"].to_numpy(float), sealed[np.arange(len(seen)), place]), p.name


def hashes(folder):
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.parquet")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", engine.COMPANIES)
def test_same_bytes_from_any_number_of_workers(tmp_path, name):
    m, scale = MODULES[name], 2.2 * MODULES[name].COMPANY.block / MODULES[name].COMPANY.units
    scale = min(scale, 0.06)
    first = hashes(m.make(tmp_path / "a", scale=scale, seed=7))
    assert hashes(m.make(tmp_path / "b", scale=scale, seed=7, workers=2)) == first
    assert (
        main(["world", "make", name, "--scale", str(scale), "--seed", "7", "--out", str(tmp_path / "c"), "--quiet"])
        == 0
    )
    assert hashes(tmp_path / "c") == first
    other = hashes(m.make(tmp_path / "d", scale=scale, seed=8))
    by_design = {"campaigns", "offers", "stores", "unfairness"}  # what the company plans, or has few of
    shared = [f for f in first if first[f] == other.get(f) and f.split("/")[-2] not in by_design]
    assert not shared, f"the seed does not reach {shared}"


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_parameters_are_documented(name):
    params = MODULES[name].Params
    table = engine.describe_params(params)
    assert (table["meaning"].str.split().str.len() >= 3).all() and table["source"].str.len().gt(0).all()
    assert {type(getattr(params(), f.name)) for f in dataclasses.fields(params)} <= {float, int, bool}
    assert {"guide", "null", "hard", "tiny"} <= set(MODULES[name].COMPANY.presets)
    for preset in MODULES[name].COMPANY.presets:
        engine.change(params(), **engine.preset_of(MODULES[name].COMPANY, preset))


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_command_line(name, tmp_path, capsys):
    assert main(["world", "show", name]) == 0
    assert "our assumption" in capsys.readouterr().out
    out = str(tmp_path / "w")
    for words, holds in [
        (["--scale", "0"], "scale"),
        (["--scale", "-1"], "scale"),
        (["--scale", "1e9"], "out of range"),
        (["--seed", "-3"], "seed"),
        (["--preset", "guid"], "did you mean 'guide'"),
        (["--set", "nonsense=3"], "no parameter 'nonsense'"),
        (["--set", "nonsense"], "not name=value"),
        (["--workers", "0"], "1 or more"),
    ]:
        assert main(["world", "make", name, "--out", out, "--quiet", *words]) == 2
        assert holds in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_list_names_all_programmes(capsys):
    assert main(["world", "list"]) == 0
    said = capsys.readouterr().out
    assert all(p in said for _, p in PROGRAMMES)


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_tiny_is_quick_and_small(name):
    world = MODULES[name].simulate(scale=SMALL[name], preset="tiny")
    assert all(len(unseal(world).outcomes(p.name)) for p in MODULES[name].COMPANY.programmes)


@pytest.mark.parametrize("name", engine.COMPANIES)
def test_bad_programme_names(worlds, name):
    with pytest.raises(KitError):
        MODULES[name].readout(worlds[name], "no such programme")


def test_worlds_are_light_to_import():
    code = "import sys, mktai_kit.world.ecommerce, mktai_kit.world.saas, mktai_kit.world.retail, mktai_kit.world.truth; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"sklearn", "xgboost", "shap", "matplotlib", "duckdb", "ibis", "statsmodels", "pandera"}
    assert not heavy & set(out.stdout.split())
    assert Path(engine.__file__).is_file()


FOUND = {  # kind of fault: words of a finding that names it
    "copy": "copies of an earlier row", "near copy": "more than once|other spellings|differs within", "late": "days late",
    "broken id": "not known in", "unit": "times the usual one", "time zone": "lies before",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name, scale", [("ecommerce", 0.01), ("saas", 0.1), ("retail", 0.02)])
def test_the_audit_finds_the_faults(name, scale):
    """Each kind of fault that a table of a hundred faulty rows or more holds is among the findings of the audit."""
    world = MODULES[name].simulate(scale=scale, seed=7)
    found = quality.audit(world.tables)
    assert {"copy", "late", "broken id"} <= set(unseal(world).table("faults")["kind"])
    listed = unseal(world).table("faults").groupby(["table", "kind"], observed=True).size()
    for (table, kind), rows in listed[listed >= 100].items():
        said = found.loc[found["table"] == table, "finding"]
        assert said.str.contains(FOUND[kind]).any(), f"{rows} rows of {table} with the fault {kind!r} are not found"


def decided(world, name, programme, action, attribute):
    """One row per unit with a known customer: its group, and whether it got the action."""
    who, unit = ("accounts", "account_id") if name == "saas" else ("customers", "customer_id")
    group = world[who].drop_duplicates(unit).set_index(unit)[attribute].astype("str")
    if programme == "creatives":
        seen = world["exposures"].query("campaign_id == 7").drop_duplicates("exposure_id").dropna(subset="customer_id")
        frame = pd.DataFrame({unit: seen["customer_id"].astype("int64"), "got": seen["arm"] == action})
    else:
        seen = MODULES[name].readout(world, programme)
        frame = pd.DataFrame({unit: seen[unit], "got": seen["action"] == action})
    frame[attribute] = frame[unit].map(group)
    return frame.dropna().astype({"got": int})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, scale, attribute, unfair, fair",
    [
        ("ecommerce", 0.02, "age_band", ("creatives", "discount"), ("holdout_email", "held_out")),
        ("saas", 0.4, "language", ("outreach", "check_in"), ("retention", "call")),
        ("retail", 0.03, "language", ("mailer", "mailer"), ("offers", "points")),
    ],
)
def test_the_gate_tells_unfair_from_fair(name, scale, attribute, unfair, fair):
    world = MODULES[name].simulate(scale=scale, seed=7)
    listed = unseal(world).table("unfairness").query("attribute == @attribute")
    assert {"fair", "unfair"} <= set(listed["verdict"])
    options = dict(metrics=["selection"], tolerance=0.02, n_perm=300, n_boot=200)
    for (programme, action), expected in ((unfair, {"fail"}), (fair, {"pass", "not enough data"})):
        frame = decided(world, name, programme, action, attribute)
        cluster = frame.columns[0] if programme == "creatives" else None
        verdict = audit(frame, attribute, decision="got", cluster=cluster, **options).verdict
        assert verdict in expected, f"{programme} by {attribute}: {verdict}"
