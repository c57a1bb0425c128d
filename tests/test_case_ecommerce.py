"""The e-commerce case away from its defaults: where nothing works, on real data that hold a part each, on a practitioner's few tables."""

import pandas as pd
import pytest
import yaml

from mktai_kit.data import sources
from mktai_kit.pipeline.gates import check_run
from mktai_kit.pipeline.run import run_case
from mktai_kit.settings import load
from mktai_kit.world import engine

pytestmark = pytest.mark.slow
SMALL = {
    "trees": 15,
    "n_boot": 100,
    "n_perm": 100,
    "n_refits": 2,
    "explain_rows": 100,
    "segment_rows": 300,
    "most_users": 300,
    "learn_share": 0.5,
}


@pytest.fixture(scope="module")
def null_run(tmp_path_factory):
    """A run on a shop in which nothing works, and the shop's folder."""
    folder = tmp_path_factory.mktemp("null")
    world = engine.make("ecommerce", folder / "world-none", 0.005, 11, "null")
    asked = {**SMALL, "world": "none", "preset": "null", "scale": 0.005, "world_seed": 11}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKTAI_DATA_DIR", str(folder))
        return run_case("ecommerce", asked, "smoke", folder / "run", progress=False), world


def test_where_nothing_works_nothing_is_adopted(told, null_run):
    metrics, summary, said = told(null_run[0])
    assert metrics["joint"]["adopted"] == 0 and metrics["joint"]["spent"] == 0
    assert metrics["joint"]["profit"]["value"] == 0 and summary["decision"].startswith("Adopt nothing yet")
    assert metrics["joint"]["truth"]["joint_policy"] == 0
    assert metrics["tests"]["redesign"]["split"] == "fail" and "redesign" in summary["decision"]
    actions = pd.read_parquet(null_run[0] / "actions.parquet")
    assert (actions.loc[actions["list"] == "cart left", "action"] == "none").all()
    assert metrics["lists"]["contacted_without_consent"] == 0
    gates = check_run(null_run[0], load().root / "params.yaml")
    # A tiny shop may not show that a score ranks, or that a recommender beats what is popular.
    assert {g.gate for g in gates.rows if not g.allowed} <= {"ranks", "recommends"}


def test_the_honest_score_is_recommended(told, real, tmp_path):
    real("online_shoppers")
    run = run_case("ecommerce", {**SMALL, "source": "online_shoppers"}, "smoke", tmp_path / "run", progress=False)
    metrics, _summary, said = told(run)
    folds = metrics["page_value"]["folds"]
    assert folds["with_page_value"]["roc_auc_folds"] >= 0.93 and folds["with_page_value"]["pr_auc_folds"] >= 0.75
    assert folds["without_page_value"]["roc_auc_folds"] >= 0.78
    assert metrics["page_value"]["recommended"] == "without page_value"
    assert (
        said.count("**Not here:**") >= 7
        and "page_value" not in (run / "model" / "preprocessing.json").read_text().split("note")[0]
    )


def test_a_small_log_is_refused(told, tmp_path):
    sources.fetch("open_bandit", variant="bts-women", progress=False)
    asked = {**SMALL, "source": "open_bandit", "variant": "bts-women"}
    metrics, summary, said = told(run_case("ecommerce", asked, "smoke", tmp_path / "run", progress=False))
    assert all(e["value"] is None for e in metrics["banner_gains"].values())
    assert all(e["value"]["value"] is None for e in metrics["banners"].values()) and "not enough data" in said
    assert summary["decision"].startswith("Do not switch policies")


def test_purchases_alone(told, tmp_path):
    sources.fetch("cdnow", progress=False)
    metrics, summary, _said = told(
        run_case("ecommerce", {**SMALL, "source": "cdnow"}, "smoke", tmp_path / "run", progress=False)
    )
    assert set(metrics["segments"]) == {"kmeans", "ward", "mixture", "som"}
    assert summary["decision"].startswith("Draw something by lot")


def test_a_practitioners_clicks_alone_suffice(told, null_run, tmp_path):
    given = engine.read(null_run[1], ["sessions", "events"])
    some = given["sessions"].drop_duplicates("session_id")
    some = some[some["visitor_id"] % 3 == 0]
    own = {
        "sessions": {
            "session_id": "Besuch",
            "visitor_id": "Besucher",
            "timestamp": "Beginn",
            "device": "Geraet",
            "visitor_type": "Art",
        },
        "events": {"session_id": "Besuch", "visitor_id": "Besucher", "timestamp": "Zeit", "event_type": "Ereignis"},
    }
    frames = {
        "sessions": some,
        "events": given["events"][given["events"]["session_id"].isin(some["session_id"])].drop_duplicates(),
    }
    for name, columns in own.items():
        frames[name][list(columns)].rename(columns=columns).to_csv(tmp_path / f"{name}.csv", index=False)
    tables = {name: {"file": f"{name}.csv", "columns": columns} for name, columns in own.items()}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({"tables": tables}))
    asked = {
        **SMALL,
        "learn_share": 1.0,
        "source": "mine",
        "data": str(tmp_path),
        "mapping_file": str(tmp_path / "map.yaml"),
    }
    metrics, summary, said = told(run_case("ecommerce", asked, "smoke", tmp_path / "run", progress=False))
    assert 0.01 < metrics["figures"]["conversion"]["value"] < 0.04
    assert metrics["fairness"]["verdict"] == "not enough data" and summary["decision"].startswith(
        "Draw something by lot"
    )
    assert "order value" not in metrics["figures"] and said.count("**Not here:**") >= 5
