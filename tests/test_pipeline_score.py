"""Alerts as a product: what is refused and why, what the list holds, and that it is the same bytes again."""

import hashlib
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mktai_kit.cli import main
from mktai_kit.data import account_features as features
from mktai_kit.data.contracts import ContractError
from mktai_kit.pipeline import score as module
from mktai_kit.pipeline.results import Results
from mktai_kit.pipeline.score import drift_of, load_scorer, read_tables, reasons_of, score, scoring_spec
from mktai_kit.settings import KitError
from mktai_kit.world import saas

xgboost = pytest.importorskip("xgboost")
DAY, CLOSE = "2025-09-01", pd.Timestamp("2025-07-01")
TIME = {"history_days": 84, "gap_days": 7, "horizon_days": 56}


def left(panel, accounts):
    ends = panel["account_id"].map(accounts.drop_duplicates("account_id").set_index("account_id")["end_date"])
    first = panel["snapshot"] + pd.Timedelta(days=7)
    return ((ends >= first) & (ends < first + pd.Timedelta(days=56))).astype(int)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small company since 2024, a small run, and the run's parts."""
    folder = tmp_path_factory.mktemp("score")
    tables = saas.simulate(0.03, 7).tables
    tables["usage"] = tables["usage"][tables["usage"]["period_start"] >= "2024-06-03"]
    (folder / "data").mkdir()
    for name, frame in tables.items():
        frame.to_parquet(folder / "data" / f"{name}.parquet")
    known = features.known_on(tables, CLOSE)
    panel = features.account_panel(known, pd.to_datetime(["2024-10-01", "2025-01-01", "2025-04-01"]), history_days=84)
    levels = features.levels_of(panel)
    X = features.encode(panel, levels)
    model = xgboost.XGBClassifier(n_estimators=25, max_depth=3, learning_rate=0.15, n_jobs=1).fit(
        X, left(panel, known["accounts"])
    )
    more = {"case": "saas", "trained_until": CLOSE, "levels": levels, "threshold": 0.08, "capacity": 12, **TIME}
    more |= {"labels": features.describe_accounts(list(X.columns)), "cluster": panel["account_id"]}
    spec = scoring_spec(model, X, known, **more)
    run = write_run(folder / "run", model, spec)
    return SimpleNamespace(
        folder=folder, data=folder / "data", run=run, tables=tables, known=known, X=X, model=model, spec=spec, more=more
    )


def write_run(folder, model, spec, case="saas"):
    results = Results(folder)
    results.model({"churn": model}, preprocessing=spec)
    results.record({"case": case, "profile": "smoke", "commit": "abc"})
    return folder


@pytest.fixture
def variant(made, tmp_path):
    """A folder of data in which some tables are others, or absent (None)."""

    def make(**changed):
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in made.tables:
            if name not in changed:
                (folder / f"{name}.parquet").symlink_to(made.data / f"{name}.parquet")
            elif changed[name] is not None:
                changed[name].to_parquet(folder / f"{name}.parquet")
        return folder

    return make


@pytest.fixture(scope="module")
def listed(made):
    """One list that many tests read."""
    return score("saas", made.data, made.run, DAY, out=made.folder / "lists")


def ready(made, day=DAY):
    """Panel and encoded rows of a day."""
    scorer = load_scorer(made.run, "saas")
    panel = scorer.recipe.features(features.known_on(made.tables, day), pd.Timestamp(day), 84)
    return scorer, panel, features.encode(panel, scorer.spec["levels"])[scorer.spec["columns"]]


# ---- the file


def test_the_spec_reads_back_and_names_nobody(made):
    text = (made.run / "model" / "preprocessing.json").read_text()
    assert json.loads(text) == made.spec and set(made.spec) == module._KEYS
    assert sum(made.spec["weights"].values()) == pytest.approx(1) and len(made.spec["units"]) == 64
    assert not any(f'"{i}"' in text for i in made.known["accounts"]["account_id"].head(50))


def test_the_chance_is_the_model_s(made):
    scorer = load_scorer(made.run, "saas")
    assert (
        np.allclose(scorer.chance(made.X), made.model.predict_proba(made.X)[:, 1], atol=1e-6) and scorer.commit == "abc"
    )
    bent = scoring_spec(made.model, made.X, made.known, calibration=(-0.3, 0.8), **made.more)
    raw = made.model.predict(made.X, output_margin=True)
    expected = 1 / (1 + np.exp(-(-0.3 + 0.8 * raw)))
    assert np.allclose(module._chance(scorer.booster, made.X, bent["calibration"]), expected, atol=1e-6)


def test_trees_behind_the_best_are_not_used(made, tmp_path):
    y = left(features.account_panel(made.known, ["2025-01-01"], history_days=84), made.known["accounts"])
    X = made.X.iloc[: len(y)]
    early = xgboost.XGBClassifier(n_estimators=60, max_depth=4, learning_rate=0.5, early_stopping_rounds=3, n_jobs=1)
    early.fit(X, y, eval_set=[(X.iloc[::-1], y)], verbose=False)
    run = write_run(tmp_path / "run", early, scoring_spec(early, X, made.known, **{**made.more, "cluster": None}))
    scorer = load_scorer(run, "saas")
    assert early.best_iteration + 1 < early.get_booster().num_boosted_rounds()
    assert np.allclose(scorer.chance(X), early.predict_proba(X)[:, 1], atol=1e-6)
    added = module._contributions(scorer.booster, X)
    assert added.shape == X.shape and np.isfinite(added.to_numpy()).all()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"threshold": 1.5}, "no chance"),
        ({"capacity": -1}, "capacity"),
        ({"capacity": 2.5}, "capacity"),
        ({"calibration": (0, -1)}, "slope"),
        ({"recipe": "account"}, "did you mean"),
        ({"purposes": {"score": None}}, "purposes"),
    ],
)
def test_specs_that_do_not_fit(made, change, said):
    with pytest.raises(KitError, match=said):
        scoring_spec(made.model, made.X, made.known, **{**made.more, **change})


def test_models_that_do_not_fit(made):
    y = np.arange(len(made.X)) % 2
    regression = xgboost.XGBRegressor(n_estimators=2).fit(made.X, y)
    nameless = xgboost.XGBClassifier(n_estimators=2).fit(made.X.to_numpy(), y)
    for model in (regression, nameless, "a pickle"):
        with pytest.raises(KitError, match="XGBClassifier"):
            scoring_spec(model, made.X, made.known, **made.more)
    with pytest.raises(KitError, match="another order"):
        scoring_spec(made.model, made.X[made.X.columns[::-1]], made.known, **made.more)


# ---- the run


def changed_run(made, folder, **change):
    shutil.copytree(made.run, folder)
    path = folder / "model" / "preprocessing.json"
    spec = {k: v for k, v in {**json.loads(path.read_text()), **change}.items() if v is not None}
    path.write_text(json.dumps(spec))
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": "other"}, "no model that can score"),
        ({"probe": None}, "lacks probe"),
        ({"case": "other"}, "belongs to the case 'other'"),
        ({"recipe": "os.system"}, "no recipe"),
        ({"threshold": "0.1"}, "no chance"),
        ({"calibration": {"intercept": 0.5, "slope": 1}}, "computes other chances"),
        ({"columns": ["a"]}, "over the columns of the model"),
    ],
)
def test_changed_runs_are_refused(made, tmp_path, change, said):
    with pytest.raises(KitError, match=said):
        load_scorer(changed_run(made, tmp_path / "run", **change), "saas")


def test_trees_that_are_not_those_of_the_run(made, tmp_path):
    run = changed_run(made, tmp_path / "run")
    with pytest.raises(KitError, match="run of 'saas'"):
        load_scorer(run, "retail")
    swapped = xgboost.XGBClassifier(n_estimators=3).fit(made.X, np.arange(len(made.X)) % 2)
    (run / "model" / "churn.ubj").write_bytes(swapped.get_booster().save_raw("ubj"))
    with pytest.raises(KitError, match="not the one that the run wrote"):
        load_scorer(run, "saas")
    (run / "model" / "churn.ubj").unlink()
    with pytest.raises(KitError, match="is missing"):
        load_scorer(run, "saas")
    with pytest.raises(KitError, match="run folder"):
        load_scorer(tmp_path / "none", "saas")


def bent(raw, name, value, kind=b"[$l#L", width=4):
    """The trees with the first number of the first list of that name changed."""
    at = raw.index(name + kind) + len(name + kind) + 8
    return raw[:at] + value.to_bytes(width, "big", signed=True) + raw[at + width :]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: bent(
            raw, b"left_children", 10**6
        ),  # a node that is not there: xgboost would read beyond its memory
        lambda raw: bent(raw, b"left_children", 0),  # a tree that never ends
        lambda raw: bent(raw, b"right_children", -2),
        lambda raw: bent(raw, b"split_indices", 10**6),  # a column that is not there
        lambda raw: raw.replace(b"iteration_indptr[#L" + bytes(7), b"iteration_indptr[#L" + b"\x7f" + bytes(6)),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw + b"}",
        lambda raw: raw.replace(b"gbtree", b"dart__"),
        lambda raw: b"{" * 5000,
        lambda raw: b"\x80\x04cos\nsystem\n",
    ],
)
def test_bent_trees_with_a_fitting_hash_never_reach_xgboost(made, tmp_path, monkeypatch, change):
    shutil.copytree(made.run, tmp_path / "run")
    trees, spec = tmp_path / "run" / "model" / "churn.ubj", tmp_path / "run" / "model" / "preprocessing.json"
    raw = change(trees.read_bytes())
    assert raw != trees.read_bytes()
    trees.write_bytes(raw)
    own = {**made.spec, "model": {**made.spec["model"], "sha256": hashlib.sha256(raw).hexdigest()}}
    spec.write_text(json.dumps(own))
    monkeypatch.setattr(xgboost.Booster, "load_model", None)
    with pytest.raises(KitError, match="no trees of a classifier"):
        load_scorer(tmp_path / "run", "saas")


def test_sound_trees_of_all_kinds_pass(made):
    y = made.model.predict(made.X)
    y[:40] = 1
    for options in (
        {"gamma": 2.0},
        {"grow_policy": "lossguide", "max_leaves": 9},
        {"max_depth": 1},
        {"tree_method": "exact"},
    ):
        model = xgboost.XGBClassifier(n_estimators=9, n_jobs=1, **options).fit(made.X, y)
        assert module._sound(bytes(model.get_booster().save_raw("ubj")), list(made.X.columns)), options


@pytest.mark.parametrize(
    "part, value",
    [
        ("labels", []), ("levels", {"plan": 3}), ("weights", None), ("model", "churn"), ("recipe", []), ("columns", "abc"),
        ("probe", {"rows": [], "chance": []}), ("reference", {}), ("units", "abc"), ("feeds", ["sales"]),
        ("purposes", {"score": [], "act": 3}), ("trained_until", "2025-99-99"), ("quiet_weeks", 10**12),
    ],
)  # fmt: skip
def test_each_part_of_the_spec_is_looked_at(made, tmp_path, part, value):
    shutil.copytree(made.run, tmp_path / "run")
    (tmp_path / "run" / "model" / "preprocessing.json").write_text(json.dumps({**made.spec, part: value}))
    with pytest.raises(KitError):
        load_scorer(tmp_path / "run", "saas")


def test_words_lost_and_words_gained(made, variant, tmp_path):
    accounts = made.tables["accounts"]
    with pytest.raises(KitError, match="cannot be made: plan"):
        score("saas", variant(accounts=accounts.drop(columns="plan")), made.run, DAY, out=tmp_path / "a")
    spec = {**made.spec, "levels": {c: v for c, v in made.spec["levels"].items() if c != "plan"}}
    scorer = module.Scorer({**spec, "columns": [c for c in spec["columns"] if not c.startswith("plan=")]}, None)
    panel = features.account_panel(made.known, ["2025-04-01"])
    assert list(module._encoded(scorer, panel)) == scorer.spec["columns"]


# ---- the tables


def test_csv_parquet_and_mapping_give_the_same(made, tmp_path):
    names = ["accounts", "tickets", "invoices", "consent"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "own").mkdir()
    for name in names:
        made.tables[name].to_csv(tmp_path / "csv" / f"{name}.csv", index=False)
    own = made.tables["accounts"].rename(columns={"account_id": "id", "start_date": "since"})
    own.assign(monthly_amount=own["monthly_amount"] * 100).to_csv(tmp_path / "own" / "kunden.csv", index=False)
    (tmp_path / "own" / "map.yaml").write_text(
        "tables:\n  accounts:\n    file: kunden.csv\n    columns:\n      account_id: id\n      start_date: since\n"
        "      monthly_amount: {from: monthly_amount, unit: cents}\n"
    )
    parquet, _ = read_tables(made.data)
    csv, repaired = read_tables(tmp_path / "csv")
    mapped, _ = read_tables(tmp_path / "own", tmp_path / "own" / "map.yaml")
    assert repaired.set_index("table")["rows"]["accounts"] > 0 and set(csv) == set(names)
    for name in names:
        a, b = (t[name].reset_index(drop=True).astype(object).fillna("") for t in (parquet, csv))
        assert (a.astype(str) == b[a.columns].astype(str)).all().all(), name
    assert np.allclose(mapped["accounts"]["monthly_amount"], parquet["accounts"]["monthly_amount"])
    assert (mapped["accounts"]["account_id"].to_numpy() == parquet["accounts"]["account_id"].to_numpy()).all()


def test_all_violations_in_one_message(made, variant):
    bad = variant(
        accounts=made.tables["accounts"].assign(margin=7.0),
        tickets=made.tables["tickets"].drop(columns="timestamp"),
        invoices=pd.concat([made.tables["invoices"]] * 2),
    )
    with pytest.raises(ContractError) as e:
        score("saas", bad, made.run, DAY)
    assert {"accounts", "tickets", "invoices"} <= {v.table for v in e.value.violations} and e.value.code == 2


def test_few_copies_and_strangers_are_left_out_and_more_are_refused(made, variant):
    tickets = made.tables["tickets"].drop_duplicates("ticket_id")
    tickets = tickets[tickets["account_id"].isin(made.tables["accounts"]["account_id"])]
    some = len(tickets) // 150
    strange = tickets.assign(account_id=tickets["account_id"].where(np.arange(len(tickets)) >= some, -1))
    tables, repaired = read_tables(variant(tickets=strange))
    assert len(tables["tickets"]) == len(tickets) - some and some in repaired["rows"].tolist()
    many = tickets.assign(account_id=tickets["account_id"].where(np.arange(len(tickets)) >= 5 * some, -1))
    with pytest.raises(ContractError, match="known in accounts"):
        read_tables(variant(tickets=many))


def test_folders_that_cannot_be_read(made, tmp_path):
    with pytest.raises(KitError, match="no such folder"):
        read_tables(tmp_path / "none")
    with pytest.raises(KitError, match="no tables here"):
        read_tables(tmp_path)
    made.tables["offers"].iloc[:0].to_csv(tmp_path / "offers.csv", index=False)
    with pytest.raises(ContractError, match="not empty"):
        read_tables(tmp_path)
    (tmp_path / "accounts.parquet").write_bytes(b"no parquet")
    with pytest.raises(KitError, match="cannot be read"):
        read_tables(tmp_path)
    (tmp_path / "accounts.csv").write_text("account_id\n1\n")
    with pytest.raises(KitError, match="both there"):
        read_tables(tmp_path)


# ---- time


@pytest.mark.parametrize("day", ["yesterday", "2025-02-30", "2025-9-1", "2025-09-01T10:00", 20250901, "２０25-09-01"])
def test_days_that_are_none(made, day):
    with pytest.raises(KitError, match="as-of"):
        score("saas", made.data, made.run, day)


def test_before_the_model_and_long_after(made):
    with pytest.raises(KitError, match="already knows"):
        module._model_in_time(made.spec, CLOSE - pd.Timedelta(days=1))
    assert module._model_in_time(made.spec, CLOSE) == []
    assert "187 days" in module._model_in_time(made.spec, CLOSE + pd.Timedelta(days=187))[0]


def test_each_table_must_be_fresh(made):
    day, tables = pd.Timestamp(DAY), dict(made.tables)
    module._fresh(tables, made.spec, day, 8)
    for name, column in (("usage", "period_start"), ("tickets", "timestamp"), ("invoices", "issue_date")):
        stale = {**tables, name: tables[name][tables[name][column] < day - pd.Timedelta(days=60)]}
        with pytest.raises(KitError, match=f"{name} ends on 2025-0"):
            module._fresh(stale, made.spec, day, 8)
        module._fresh(stale, made.spec, day, 70)
    with pytest.raises(KitError, match="usage begins on"):
        short = tables["usage"][tables["usage"]["period_start"] >= "2025-07-14"]
        module._fresh({**tables, "usage": short}, made.spec, day, 8)
    with pytest.raises(KitError, match="no row before"):
        module._fresh({**tables, "tickets": tables["tickets"][tables["tickets"]["timestamp"] > DAY]}, made.spec, day, 8)


def test_what_comes_later_changes_nothing(made, variant, listed, tmp_path):
    cut = features.known_on(made.tables, DAY)
    there = variant(**{n: f for n, f in cut.items() if len(f) < len(made.tables[n])})
    early = score("saas", there, made.run, DAY, out=tmp_path / "lists")
    assert (early.folder / "alerts.csv").read_bytes() == (listed.folder / "alerts.csv").read_bytes()
    assert any("were left out" in n for n in listed.notices) and not early.notices
    assert early.record["data"]["tickets"] == listed.record["data"]["tickets"]


# ---- whose data


def test_other_companies_and_lost_tables(made, variant):
    with pytest.raises(KitError, match="another company"):
        module._own_company(saas.simulate(0.02, 8).tables, made.spec, load_scorer(made.run, "saas").recipe)
    with pytest.raises(KitError, match="missing tables: tickets"):
        score("saas", variant(tickets=None), made.run, DAY)
    with pytest.raises(KitError, match="consent; who agreed"):
        score("saas", variant(consent=None), made.run, DAY)
    with pytest.raises(KitError, match="plan"):
        score("saas", variant(accounts=made.tables["accounts"].drop(columns="plan")), made.run, DAY)


def test_another_currency(made, variant):
    money = made.tables["invoices"].assign(amount=made.tables["invoices"]["amount"] * 4000)
    with pytest.raises(KitError, match="unit or currency"):
        score("saas", variant(invoices=money), made.run, DAY, allow_drift="it is fine")


# ---- drift


def test_words_never_seen_are_refused_or_overruled(made, variant, tmp_path):
    plan = made.tables["accounts"]["plan"].astype(str).replace({"team": "teams 2.0"})
    there = variant(accounts=made.tables["accounts"].assign(plan=plan))
    with pytest.raises(KitError, match="words never seen"):
        score("saas", there, made.run, DAY, out=tmp_path / "lists")
    assert not (tmp_path / "lists").exists()
    week = score("saas", there, made.run, DAY, out=tmp_path / "lists", allow_drift="the plan was renamed")
    told = week.record["drift"]
    assert told["verdict"] == "refused" and told["allowed"] == "the plan was renamed" and told["unseen"]["plan"] > 0.05
    assert any("the plan was renamed" in n for n in week.notices)


def test_weighty_columns_and_the_score_itself(made):
    scorer, _panel, X = ready(made)
    chance = scorer.chance(X)
    told, table = drift_of(scorer, X, chance, {})
    assert told["reasons"] == [] and told["allowed"] == "" and len(table) == len(made.spec["columns"])
    heavy = [c for c in sorted(made.spec["weights"], key=made.spec["weights"].get) if X[c].nunique() > 20][-6:]
    moved = X.assign(**{c: X[c] + 0.8 * X[c].std() for c in heavy})
    with pytest.raises(KitError, match="of the scores have moved severely"):
        drift_of(scorer, moved, chance, {})
    light = min(made.spec["weights"], key=made.spec["weights"].get)
    assert drift_of(scorer, X.assign(**{light: 1e-9 * np.arange(len(X)) + 5}), chance, {})[0]["reasons"] == []
    own = scoring_spec(made.model, made.X, made.known, chance=made.model.predict_proba(made.X)[:, 1], **made.more)
    with pytest.raises(KitError, match="scores themselves"):
        drift_of(module.Scorer(own, scorer.booster), X, chance**0.3, {})


# ---- the list


def test_what_the_list_holds(made, listed):
    rows, steps = listed.rows, listed.record["steps"]
    assert list(rows) == [
        "account_id",
        "rank",
        "chance_to_leave",
        "margin_at_stake",
        "reason_1",
        "reason_2",
        "reason_3",
        "consent",
        "as_of",
    ]
    assert (
        len(rows) == steps["named"] == 12
        and rows["chance_to_leave"].is_monotonic_decreasing
        and rows["account_id"].is_unique
    )
    assert rows["rank"].tolist() == list(range(1, 13)) and (rows["chance_to_leave"] >= 0.08 - 5e-4).all()
    assert steps["accounts"] == steps["no_consent_to_be_scored"] + steps["scored"]
    kept = ["no_consent_to_contact", "named_in_the_weeks_before", "over_capacity", "named"]
    assert steps["above_threshold"] == sum(steps[k] for k in kept)
    for purpose in ("contact", "profiling"):
        agreed = features.consent_as_of(made.tables["consent"], purpose, DAY)
        assert rows["account_id"].map(agreed).all()
    ends = made.tables["accounts"].drop_duplicates("account_id").set_index("account_id")["end_date"]
    assert not (rows["account_id"].map(ends) < DAY).any()
    assert [p.name for p in sorted(listed.folder.iterdir())] == ["alerts.csv", "alerts.json", "alerts.parquet"]
    for name, sha in listed.record["files"].items():
        assert hashlib.sha256((listed.folder / name).read_bytes()).hexdigest() == sha
    text = (listed.folder / "alerts.json").read_text()
    assert str(made.folder) not in text and listed.record["model"]["commit"] == "abc"


def test_reasons_are_plain_and_not_said_twice(made):
    scorer, _panel, X = ready(made)
    top = X.iloc[np.argsort(-scorer.chance(X))[:40]]
    why = reasons_of(scorer, top)
    assert (why["reason_1"] != "").all() and not why.map(lambda t: "=" in t or "_" in t).any().any()
    for row in why.to_numpy():
        said = [t for t in row if t]
        assert len(said) == len(set(said))
    assert reasons_of(scorer, top.iloc[:0]).shape == (0, 3) and list(reasons_of(scorer, top, most=1)) == ["reason_1"]


def test_names_that_a_spreadsheet_would_run(made, tmp_path):
    rows = pd.DataFrame({"account_id": ["=cmd()", "b"], "rank": [1, 2]})
    module._make_list(tmp_path, rows, {})
    assert '"\'=cmd()"' in (tmp_path / "alerts.csv").read_text()
    assert pd.read_parquet(tmp_path / "alerts.parquet")["account_id"].tolist() == ["=cmd()", "b"]


def test_consent_withdrawn(made, variant, tmp_path):
    said = made.tables["consent"]
    last = (
        said[said["purpose"] == "contact"]
        .drop_duplicates("account_id")
        .assign(granted=False, timestamp=pd.Timestamp("2025-08-31"))
    )
    week = score("saas", variant(consent=pd.concat([said, last])), made.run, DAY, out=tmp_path / "lists")
    assert (
        week.rows.empty and week.record["steps"]["no_consent_to_contact"] == week.record["steps"]["above_threshold"] > 0
    )
    assert pd.read_parquet(week.folder / "alerts.parquet").empty
    none = said[said["purpose"] == "profiling"].assign(granted=False)
    with pytest.raises(KitError, match="nobody is left"):
        score("saas", variant(consent=none), made.run, DAY, out=tmp_path / "lists")


def test_the_quiet_weeks(made, listed):
    out = listed.folder.parent
    days = module._lists(out, "saas")
    named = lambda day, weeks: module._named_before(out, list(days), pd.Timestamp(day), weeks, "account_id")
    everyone = set(listed.rows["account_id"])
    assert named("2025-09-08", 8) == everyone == named("2025-10-26", 8)
    assert named("2025-10-27", 8) == set() == named(DAY, 8) == named("2025-08-25", 8) == named("2025-09-08", 0)
    ids, chance = pd.Series([5, 3, 4, 1]), np.array([0.5, 0.5, 0.9, 0.05])
    chosen, steps = module._choose(ids, chance, np.array([True] * 4), {4}, {"threshold": 0.1}, 1)
    assert ids[chosen].tolist() == [3] and steps["over_capacity"] == 1 and steps["named_in_the_weeks_before"] == 1


# ---- the folder


def fake_rows(n):
    return pd.DataFrame({"account_id": range(n), "rank": range(1, n + 1), "chance": 0.5})


def write(out, day, rows, replace=False):
    return module._write_list(out, day, rows, {"case": "c", "as_of": day}, module._lists(out, "c"), replace)


def test_the_same_list_stays_and_another_is_refused(tmp_path):
    folder = write(tmp_path, "2025-09-01", fake_rows(3))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    assert write(tmp_path, "2025-09-01", fake_rows(3)) == folder
    with pytest.raises(KitError, match="--replace"):
        write(tmp_path, "2025-09-01", fake_rows(2))
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    write(tmp_path, "2025-09-01", fake_rows(2), replace=True)
    assert len(pd.read_parquet(folder / "alerts.parquet")) == 2
    write(tmp_path, "2025-09-08", fake_rows(1))
    for day in ("2025-09-01", "2025-09-04"):
        with pytest.raises(KitError, match="rests on it"):
            write(tmp_path, day, fake_rows(5), replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2025-09-01", "2025-09-08"]


def test_folders_with_something_else(tmp_path):
    folder = write(tmp_path, "2025-09-01", fake_rows(3))
    with pytest.raises(KitError, match="list of 'c'"):
        module._lists(tmp_path, "d")
    (tmp_path / "notes").mkdir()
    (folder / "alerts.csv").write_text("changed by hand")
    with pytest.raises(KitError, match="changed after"):
        module._lists(tmp_path, "c")
    (tmp_path / "2025-08-25").mkdir()
    with pytest.raises(KitError, match="alerts.json"):
        module._lists(tmp_path, "c")
    assert module._lists(tmp_path / "none", "c") == {}


def test_records_that_say_nothing_of_their_files(made, listed, tmp_path):
    shutil.copytree(listed.folder.parent, tmp_path / "lists")
    path = tmp_path / "lists" / DAY / "alerts.json"
    record = json.loads(path.read_text())
    for files in ({}, [], None, {**record["files"], "../secret": ""}):
        path.write_text(json.dumps({**record, "files": files}))
        with pytest.raises(KitError, match="changed after"):
            score("saas", made.data, made.run, "2025-09-08", out=tmp_path / "lists")
    shutil.rmtree(path.parent)
    (tmp_path / "lists" / "2025-13-45").mkdir()
    with pytest.raises(KitError, match="calendar"):
        score("saas", made.data, made.run, DAY, out=tmp_path / "lists")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.shutil, "copytree", full)
    with pytest.raises(KitError, match="nothing was changed"):
        write(tmp_path, "2025-09-01", fake_rows(3))
    assert list(tmp_path.iterdir()) == []


# ---- the command


def test_the_command(made, listed, tmp_path, capsys):
    words = [
        "score",
        "saas",
        "--data",
        str(made.data),
        "--model",
        str(made.run),
        "--as-of",
        DAY,
        "--out",
        str(tmp_path / "lists"),
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("list: ") and "named 12" in out and "drift: " in out and err.startswith("mktai: note: ")
    for name in ("alerts.csv", "alerts.parquet", "alerts.json"):
        assert (tmp_path / "lists" / DAY / name).read_bytes() == (listed.folder / name).read_bytes()
    assert main([*words, "--capacity", "3"]) == 2
    assert main([*words, "--capacity", "3", "--replace"]) == 0
    assert len(pd.read_csv(tmp_path / "lists" / DAY / "alerts.csv")) == 3


@pytest.mark.parametrize(
    "change, said",
    [
        ({"--as-of": "soon"}, "not a day"),
        ({"--as-of": "2025-06-01"}, "already knows"),
        ({"--model": "nowhere"}, "no such run folder"),
        ({"--data": "nowhere"}, "no such folder"),
        ({"--capacity": "-1"}, "--capacity"),
        ({"--mapping": "none.yaml"}, "none.yaml"),
    ],
)
def test_the_command_refuses_in_one_line(made, tmp_path, monkeypatch, capsys, change, said):
    monkeypatch.chdir(tmp_path)
    options = {"--data": str(made.data), "--model": str(made.run), "--as-of": DAY, "--out": "lists", **change}
    assert main(["score", "saas", *(w for pair in options.items() for w in pair)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mktai: error: ") and said in err and "Mend:" in err
    assert not (tmp_path / "lists").exists()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(made, listed, tmp_path):
    code = "import sys; from mktai_kit.cli import main; sys.exit(main())"
    words = ["score", "saas", "--data", made.data, "--model", made.run, "--as-of", DAY, "--out", tmp_path / "lists"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True)
    for path in listed.folder.iterdir():
        assert (tmp_path / "lists" / DAY / path.name).read_bytes() == path.read_bytes()
