"""The SaaS case away from its defaults: where nothing works, on one moment's data, on a practitioner's few tables; and its model at work."""

import pandas as pd
import pytest
import yaml

from mktai_kit.cli import main
from mktai_kit.data import sources
from mktai_kit.pipeline.gates import check_run
from mktai_kit.pipeline.run import run_case
from mktai_kit.settings import load
from mktai_kit.world import engine

pytestmark = pytest.mark.slow
SMALL = {
    "trees": 20,
    "n_boot": 100,
    "n_perm": 100,
    "n_refits": 2,
    "fits": 2,
    "explain_rows": 100,
    "lifetime_accounts": 300,
}


@pytest.fixture(scope="module")
def null_run(tmp_path_factory):
    """A run on a company in which no action does anything, and the company's folder."""
    folder = tmp_path_factory.mktemp("null")
    world = engine.make("saas", folder / "world-none", 0.05, 11, "null")
    asked = {**SMALL, "world": "none", "preset": "null", "world_seed": 11}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKTAI_DATA_DIR", str(folder))
        return run_case("saas", asked, "smoke", folder / "run", progress=False), world


def test_where_nothing_works_nobody_is_treated(told, null_run):
    metrics, summary, said = told(null_run[0])
    assert metrics["recommended"]["programme"] == "nobody" and summary["decision"].startswith("Contact nobody")
    actions = pd.read_parquet(null_run[0] / "actions.parquet")
    assert set(actions["list"]) == {"early warning"} and len(actions) > 0
    assert metrics["truth"]["possible"] <= 0 and metrics["lists"]["contacted_without_consent"] == 0
    assert check_run(null_run[0], load().root / "params.yaml").passed


def test_its_model_scores_a_new_week(null_run, tmp_path, capsys):
    run, world = null_run
    ask = ["score", "saas", "--data", str(world), "--model", str(run), "--as-of", "2026-01-01", "--out"]
    for place in (tmp_path / "one", tmp_path / "two"):
        assert main([*ask, str(place)]) == 0, capsys.readouterr().err
    one, two = ((tmp_path / d / "2026-01-01").iterdir() for d in ("one", "two"))
    assert {p.name: p.read_bytes() for p in one} == {p.name: p.read_bytes() for p in two}
    rows = pd.read_csv(tmp_path / "one" / "2026-01-01" / "alerts.csv")
    own = pd.read_parquet(run / "actions.parquet").set_index("account_id")["chance_to_leave"]
    both = rows[rows["account_id"].isin(own.index)]
    assert len(rows) and rows["reason_1"].notna().all()
    assert ((both["chance_to_leave"] - both["account_id"].map(own)).abs() < 2e-3).all()  # the run's own of that day
    assert main([*ask[:7], "2027-01-01", "--out", str(tmp_path / "late")]) == 2
    assert "the data do not reach" in capsys.readouterr().err and not (tmp_path / "late").exists()


def test_one_moment_says_what_it_cannot_do(told, tmp_path):
    sources.fetch("telco", progress=False)
    run = run_case("saas", {**SMALL, "source": "telco"}, "smoke", tmp_path / "run", progress=False)
    metrics, summary, said = told(run)
    for model in ("logistic", "boosting", "additive"):
        assert 0.83 < metrics["model"][model]["roc_auc"]["value"] < 0.86
    assert metrics["leaks"]["no_model_too_good"] == "pass"
    assert said.count("**Not here:**") >= 6 and "Measure first" in said
    assert metrics["early_warning"]["value"] is None and metrics["programme"]["value"] is None
    assert "one moment" in " ".join(summary["limits"]).lower()


def test_a_practitioners_accounts_alone_suffice(told, null_run, tmp_path):
    accounts = engine.read(null_run[1], ["accounts"])["accounts"].drop_duplicates("account_id")
    own = {"account_id": "Kundennr", "start_date": "Beginn", "end_date": "Ende", "monthly_amount": "Betrag"}
    accounts[list(own)].rename(columns=own).to_csv(tmp_path / "konten.csv", index=False)
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"tables": {"accounts": {"file": "konten.csv", "columns": own}}}))
    given = {**SMALL, "source": "mine", "data": str(tmp_path), "mapping_file": str(tmp_path / "map.yaml")}
    metrics, summary, said = told(run_case("saas", given, "smoke", tmp_path / "run", progress=False))
    assert metrics["fairness"]["verdict"] == "not enough data" and "no attribute" in said
    assert metrics["data"]["features"] == 1 and "No action was drawn by lot" in summary["limits"][0]
    ask = [
        "score",
        "saas",
        "--data",
        str(tmp_path),
        "--mapping",
        str(tmp_path / "map.yaml"),
        "--model",
        str(tmp_path / "run"),
    ]
    assert main([*ask, "--as-of", "2026-01-01", "--out", str(tmp_path / "alerts")]) == 0
