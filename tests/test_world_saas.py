"""The subscription company: calibrated, deterministic, and true to what it seals."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mktai_kit.data import contracts
from mktai_kit.settings import KitError
from mktai_kit.world import accounts, engine, faults, saas, truth
from mktai_kit.world.accounts import MONTHS, OUTREACH, PROGRAMMES, RETENTION

NO_FAULTS = {"fault_copies": 0.0, "fault_late": 0.0, "fault_broken": 0.0, "fault_units": 0.0, "fault_slips": 0.0}


@cache
def world(scale=0.05, seed=7, preset="guide", clean=False):
    return saas.simulate(scale, seed, preset, **(NO_FAULTS if clean else {}))


@cache
def seal(scale=0.05, seed=7, preset="guide"):
    return truth.unseal(world(scale, seed, preset))


def taken(outcomes, action):
    return outcomes.to_numpy()[np.arange(len(outcomes)), outcomes.columns.get_indexer(action)]


# ---------------------------------------------------------------------------------------------------------- calibration
@pytest.mark.parametrize("scale", [0.05, 0.1])
@pytest.mark.slow
def test_the_guides_figures_on_every_seed(scale):
    for seed in range(10):
        found = saas.figures(world(scale, seed))
        assert (found["ratio"] - 1).abs().max() < 0.03, (seed, found["ratio"].to_dict())


def test_figures_by_other_means():
    accounts_, invoices = saas.clean(world(), "accounts"), saas.clean(world(), "invoices")
    alive = left = 0
    for first in pd.date_range("2023-01-01", "2025-12-01", freq="MS"):
        there = (accounts_["start_date"] < first) & ~(accounts_["end_date"] < first)
        alive += there.sum()
        left += (there & (accounts_["end_date"] < first + pd.offsets.MonthBegin(1))).sum()
    found = saas.figures(world())["found"]
    assert found["monthly churn"] == pytest.approx(left / alive) and found["retention"] == pytest.approx(
        1 - left / alive
    )
    assert found["accounts"] == pytest.approx(alive / MONTHS / 0.05)
    assert 190 < invoices["amount"].mean() * 0.8 < 205
    assert "accounts" not in saas.figures(world().tables).index


def test_faults_do_not_move_the_figures():
    with_faults, without = (saas.figures(world(clean=c))["found"] for c in (False, True))
    assert (with_faults / without - 1).abs().max() < 0.003


@pytest.mark.slow
def test_scale_changes_size_and_not_distributions():
    small, large = (pd.concat([world(scale, seed, clean=True)[name] for seed in seeds]) for name in ("accounts",) for scale, seeds in ((0.02, range(10)), (0.2, (11,))))  # fmt: skip
    for column in ("seats", "monthly_amount", "tenure_months"):
        assert stats.ks_2samp(small[column], large[column]).pvalue > 0.001, column
    for column in ("plan", "language", "payment_method", "churned", "onboarded", "acquisition_channel"):
        a, b = (f[column].value_counts(normalize=True) for f in (small, large))
        assert (a - b).abs().max() < 0.03, column
    assert len(small) / 10 == pytest.approx(len(large) / 10, rel=0.05)
    uses = [world(*size, clean=True)["usage"]["events"] for size in ((0.02, 1), (0.2, 11))]
    assert uses[0].mean() == pytest.approx(uses[1].mean(), rel=0.15)


def test_a_level_for_the_hazards_does_not_touch_their_ratios():
    sealed = seal().table("hazards")
    lost = saas.clean(world(), "accounts").set_index("account_id")["end_date"].reindex(sealed["account_id"]).to_numpy()
    ends = (lost >= sealed["month"]) & (lost < sealed["month"] + pd.offsets.MonthBegin(1))
    inside = sealed["month"] < pd.Timestamp("2026-01-01")
    total = (sealed["voluntary"] + sealed["involuntary"])[inside]
    ten = pd.qcut(total, 10, labels=False)
    gap = ends[inside].groupby(ten).mean() - total.groupby(ten).mean()
    assert gap.abs().max() < 0.02
    assert total.sum() == pytest.approx(ends[inside].sum(), abs=25)


# ---------------------------------------------------------------------------------------------------------- determinism
@pytest.mark.slow
def test_same_bytes_for_any_workers_and_other_bytes_for_other_seeds(tmp_path):
    one, two, again, other = (
        engine.read_manifest(saas.make(tmp_path / str(i), scale=0.14, seed=seed, workers=workers))
        for i, (seed, workers) in enumerate([(7, 1), (7, 2), (7, 1), (8, 1)])
    )
    assert one == two == again
    assert one["tables"]["accounts"]["files"] == 2
    for table in ("accounts", "usage", "tickets", "invoices", "surveys", "events", "exposures", "consent"):
        assert one["tables"][table]["sha256"] != other["tables"][table]["sha256"]


def test_a_block_does_not_depend_on_the_others():
    ctx = saas.COMPANY.context(0.2, 7, "guide", {}, NO_FAULTS)
    blocks = saas.COMPANY.blocks(0.2)
    ids = [np.asarray(saas.COMPANY.simulate(ctx, b).tables["accounts"]["account_id"]) for b in blocks]
    whole = np.asarray(world(0.2, 7, clean=True).arrow["accounts"]["account_id"])
    assert (np.concatenate(ids) == whole).all() and len(set(whole)) == len(whole)
    alone = saas.COMPANY.simulate(saas.COMPANY.context(0.13, 7, "guide", {}, NO_FAULTS), blocks[0])
    assert alone.tables["usage"].equals(saas.COMPANY.simulate(ctx, blocks[0]).tables["usage"])


# -------------------------------------------------------------------------------------------------------- truth is truth
@pytest.mark.parametrize("programme", PROGRAMMES, ids=lambda p: p.name)
def test_readout_is_the_sealed_outcome_of_what_was_done(programme):
    read = saas.readout(world(), programme.name).set_index("account_id")
    goal, profit = (seal().outcomes(programme.name, kind) for kind in ("goal", "profit"))
    assert (read.index == goal.index).all()
    assert (read["goal"] == taken(goal, read["action"])).all()
    assert np.abs(read["profit"] - taken(profit, read["action"])).max() < 1e-6
    assert (seal().table(programme.name)["action"].astype(str).to_numpy() == read["action"].astype(str)).all()


@pytest.mark.parametrize("programme", PROGRAMMES, ids=lambda p: p.name)
def test_a_policy_replayed_gives_the_sealed_answer(programme):
    goal, profit = (seal().outcomes(programme.name, kind) for kind in ("goal", "profit"))
    lot = np.random.default_rng(0).integers(0, len(programme.actions), len(goal))
    mixed = pd.Series(np.asarray(programme.actions)[lot], index=goal.index)
    for policy in (*programme.actions, mixed):
        new = saas.simulate(0.05, 7, policies={programme.name: policy})
        read = saas.readout(new, programme.name).set_index("account_id")
        wanted = mixed if isinstance(policy, pd.Series) else pd.Series(policy, index=goal.index)
        assert (read["action"].astype(str) == wanted).all()
        assert (read["goal"] == taken(goal, wanted)).all()
        assert np.abs(read["profit"] - taken(profit, wanted)).max() < 1e-6
        other = next(p.name for p in PROGRAMMES if p is not programme)
        assert new.sealed[other].equals(world().sealed[other]), "the other programme's units do not notice"


def test_nobody_else_notices_a_policy():
    new = saas.simulate(0.05, 7, policies={"retention": "training"}, **NO_FAULTS)
    units = seal().outcomes("retention").index
    for name in ("accounts", "usage", "tickets", "invoices", "surveys", "events"):
        old_rows, new_rows = (
            w[name][~w[name]["account_id"].isin(units)].reset_index(drop=True) for w in (world(clean=True), new)
        )
        assert old_rows.equals(new_rows), name
    assert new["exposures"]["propensity"].isna().all(), "a policy is no lot"


def test_effects_are_exactly_nil_under_null():
    for programme in PROGRAMMES:
        for kind in ("goal", "expected"):
            outcomes = seal(preset="null").outcomes(programme.name, kind)
            assert outcomes.eq(outcomes["nothing"], axis=0).all(axis=None)
    assert not seal().outcomes("retention")["call"].equals(seal().outcomes("retention")["nothing"])


def test_expectations_agree_with_what_comes():
    seeds = range(8)
    for programme in PROGRAMMES:
        for kinds in (("goal", "expected"), ("profit", "expected_profit")):
            came, meant = (pd.concat([seal(seed=s).outcomes(programme.name, k) for s in seeds]) for k in kinds)
            gap = came - meant
            assert (gap.mean().abs() < 4 * gap.sem()).all()
    assert tuple(came.columns) == OUTREACH.actions


def compared(w, programme, action):
    """Estimate, half its 95 % interval (Welch), and the truth for the units in the comparison."""
    read = saas.readout(w, programme).set_index("account_id")
    expected = truth.unseal(w).outcomes(programme, "expected")
    arms = [read.loc[read["action"] == a, "goal"] for a in (action, "nothing")]
    interval = stats.ttest_ind(*arms, equal_var=False).confidence_interval()
    both = read["action"].isin([action, "nothing"]).to_numpy()
    true = (expected[action] - expected["nothing"])[both].mean()
    return (interval.low + interval.high) / 2, (interval.high - interval.low) / 2, true


@pytest.mark.slow
def test_difference_in_means_covers_and_the_naive_comparison_misses():
    pairs = [("retention", a) for a in RETENTION.actions[1:]] + [("outreach", "check_in")]
    found = {pair: [] for pair in pairs}
    for seed in range(200):
        w = saas.simulate(0.03, seed)
        for pair in pairs:
            found[pair].append(compared(w, *pair))
    for pair in pairs[:3]:
        estimate, half, true = np.array(found[pair]).T
        hits = (np.abs(estimate - true) <= half).mean()
        assert 0.90 <= hits <= 0.98, (pair, hits)
    estimate, half, true = np.array(found[pairs[3]]).T
    assert true.mean() > 0.02, "a check-in does good"
    assert estimate.mean() < -0.03, "and seems to do harm"
    bias = estimate - true
    assert bias.mean() < -5 * bias.std() / np.sqrt(len(bias))


def test_no_action_pays_for_everybody_and_ranking_by_risk_does_worse_than_uplift():
    for seed in range(4):
        profit, kept = (seal(seed=seed).outcomes("retention", k) for k in ("expected_profit", "expected"))
        gain = profit.sub(profit["nothing"], axis=0)
        assert (gain.drop(columns="nothing").mean() < 0).all()
        top = kept["nothing"].rank() <= 0.2 * len(kept)
        by_risk = gain[top].drop(columns="nothing").sum().max()
        by_uplift = gain.max(axis=1).nlargest(int(top.sum())).sum()
        assert by_uplift > 0 and by_risk < 0.35 * by_uplift
        harmed = kept["call"] < kept["nothing"] - 0.01
        assert harmed[top].mean() > 2 * harmed[~top].mean(), "sleeping dogs lie where risk is high"


# -------------------------------------------------------------------------------------------------------------- tables
def test_tables_keep_their_contracts():
    contracts.validate_all(world(clean=True).tables)
    with pytest.raises(contracts.ContractError):
        contracts.validate_all(world().tables)


def test_traces_lie_within_lives():
    w = world(clean=True)
    lives = w["accounts"].set_index("account_id")
    for name, column in (("usage", "period_start"), ("invoices", "issue_date"), ("surveys", "timestamp"), ("events", "timestamp"), ("exposures", "timestamp")):  # fmt: skip
        rows = w[name]
        life = lives.loc[rows["account_id"]]
        day = rows[column].dt.normalize().to_numpy()
        assert (day >= life["start_date"].to_numpy()).all(), name
        assert (~(day > life["end_date"].to_numpy())).all(), name
    assert (w["usage"]["events"] > 0).all() and (w["usage"]["active_users"] <= w["usage"]["events"]).all()
    months = w["invoices"].groupby("account_id").size()
    until = lives["end_date"].fillna(pd.Timestamp("2025-12-31")).dt.to_period("M")
    lived = (until.astype("int64") - lives["observed_from"].dt.to_period("M").astype("int64")) + 1
    assert (months.reindex(lives.index) == lived).all(), "one invoice a month"


def test_left_truncation_and_censoring():
    lives = world(clean=True)["accounts"]
    old = lives["start_date"] < "2023-01-01"
    assert 0.15 < old.mean() < 0.5 and (lives.loc[old, "observed_from"] == pd.Timestamp("2023-01-01")).all()
    assert (lives.loc[~old, "observed_from"] == lives.loc[~old, "start_date"]).all()
    assert lives.loc[lives["churned"], "end_date"].between("2023-01-01", "2025-12-31").all()
    assert lives.loc[~lives["churned"], "end_date"].isna().all() and 0.2 < (~lives["churned"]).mean() < 0.35
    ends = lives["churn_kind"].value_counts(normalize=True)
    assert 0.18 < ends["involuntary"] < 0.35


def test_lifetimes_go_on_where_the_tables_stop():
    lives = saas.clean(world(), "accounts").set_index("account_id")
    sealed = seal().table("lifetimes").set_index("account_id").reindex(lives.index)
    assert (sealed["alive_at_close"] == ~lives["churned"]).all()
    assert sealed.loc[lives["churned"], "end_date"].equals(lives.loc[lives["churned"], "end_date"])
    later = sealed[sealed["alive_at_close"]]
    assert (later["end_date"].dropna() > pd.Timestamp("2025-12-31")).all() and later["end_date"].isna().mean() < 0.12
    soon = (later["months_left"] <= 3).mean()
    assert soon == pytest.approx(later["chance_of_leaving_3"].mean(), abs=0.06)
    assert later["value_left"].notna().all() and (later["value_left"] >= 0).all()


def test_missing_values_are_kept_apart():
    w, complete = world(clean=True), truth.unseal(world(clean=True)).table("complete")
    assert (complete["table"] == "accounts").sum() == w["accounts"]["industry"].isna().sum()
    silent = complete[complete["table"] == "surveys"]
    assert len(silent) == w["surveys"]["score"].isna().sum()
    assert silent["value"].astype(int).mean() < w["surveys"]["score"].mean() - 0.5
    gaps = w["accounts"].groupby("acquisition_channel", observed=True)["industry"].agg(lambda x: x.isna().mean())
    assert gaps[["organic", "paid"]].min() > 2 * gaps[["partner", "outbound", "referral"]].max()


def test_consent_comes_before_contact():
    w = world(clean=True)
    asked = w["consent"].query("purpose == 'contact'").sort_values("timestamp")
    answer = pd.merge_asof(w["exposures"].sort_values("timestamp"), asked, on="timestamp", by="account_id")
    assert answer["granted"].all()
    assert (~asked["granted"]).any()


def test_nobody_is_surveyed_without_consent_and_a_survey_does_not_tell_who_stays():
    w = world(0.1, clean=True)
    asked = w["consent"].query("purpose == 'contact'").sort_values("timestamp")
    answer = pd.merge_asof(w["surveys"].sort_values("timestamp"), asked, on="timestamp", by="account_id")
    assert answer["granted"].all()
    end = w["accounts"].set_index("account_id")["end_date"].reindex(answer["account_id"])
    leaving = (end.dt.to_period("M").to_numpy() == answer["timestamp"].dt.to_period("M").to_numpy()).mean()
    assert 0.03 < leaving < 0.08, "accounts are asked in their last month too"


def test_requests_for_help_do_not_crowd_before_the_end():
    w = world(0.1, clean=True)
    lives = w["accounts"].set_index("account_id").query("churned")
    everyday = w["tickets"][(w["tickets"]["priority"] != "high") & w["tickets"]["account_id"].isin(lives.index)]
    days = (lives["end_date"].reindex(everyday["account_id"]).to_numpy() - everyday["timestamp"].to_numpy().astype("M8[D]")) / np.timedelta64(1, "D")  # fmt: skip
    lived = (lives["end_date"] - lives["observed_from"]).dt.days
    last, before = (((days >= a) & (days < b)).sum() / np.clip(lived - a, 0, b - a).sum() for a, b in ((1, 8), (29, 57)))  # fmt: skip
    assert last < 1.25 * before
    order = w["tickets"][w["tickets"]["ticket_id"] % 10 != 9].sort_values("ticket_id")
    same = order["ticket_id"].diff() == 1
    assert same.any() and (order["timestamp"].diff()[same] >= pd.Timedelta(0)).all(), "numbers follow time"
    start = w["accounts"].set_index("account_id")["start_date"].reindex(w["tickets"]["account_id"])
    assert (w["tickets"]["timestamp"].dt.normalize().to_numpy() >= start.to_numpy()).all()


def test_invoices_end_as_they_would():
    w = world(0.1, clean=True)
    rows = w["invoices"].join(w["accounts"].set_index("account_id")[["end_date"]], on="account_id")
    lost = rows[rows["status"] == "written off"]
    assert (lost["end_date"] >= lost["issue_date"] + pd.Timedelta(days=20)).all(), "after four attempts"
    assert (rows["paid_date"].dropna() < pd.Timestamp("2026-01-01")).all()
    still_open = rows[rows["status"] == "open"]
    assert len(still_open) and (still_open["issue_date"] >= pd.Timestamp("2025-12-01")).all()
    assert (rows["paid_date"].isna() == (rows["status"] != "paid")).all()


def test_who_leaves_in_the_month_of_the_renewal_has_not_renewed():
    w = world(0.1, clean=True)
    annual = w["accounts"].query("contract == 'annual'").set_index("account_id")
    last = annual["end_date"].fillna(pd.Timestamp("2025-12-31")).dt.to_period("M")
    age = last.astype("int64") - annual["start_date"].dt.to_period("M").astype("int64")
    renewed = w["events"].query("event_type == 'renewed'").groupby("account_id")["timestamp"].max().dt.to_period("M")
    assert (annual["contract_end"].dt.to_period("M")[renewed.index] == renewed + 12).all()
    leavers = annual["churned"] & (age % 12 == 0)
    assert leavers.any() and (annual["contract_end"].dt.to_period("M") == last)[leavers].all()


def test_managers_neglect_a_language_and_the_lot_does_not():
    rows = []
    for seed in range(8):
        who = saas.clean(world(seed=seed), "accounts").set_index("account_id")
        for name in ("retention", "outreach"):
            read = saas.readout(world(seed=seed), name).set_index("account_id")
            risk = 1 - seal(seed=seed).outcomes(name, "expected")["nothing"]
            rows.append(pd.DataFrame({"name": name, "got": read["action"] != "nothing", "risk": risk, "english": who["language"].reindex(read.index) == "en"}))  # fmt: skip
    rows = pd.concat(rows)
    for name, low, high in (("outreach", 0.4, 0.65), ("retention", 0.9, 1.1)):
        some = rows[rows["name"] == name]
        rate = some.groupby([pd.qcut(some["risk"], 5), "english"], observed=True)["got"].mean().unstack()
        assert low < rate[False].mean() / rate[True].mean() < high, name
    unfair = seal().table("unfairness")
    assert set(unfair["verdict"]) == {"fair", "unfair"} and (unfair.loc[unfair["verdict"] == "fair", "gap"] == 0).all()


def test_faults_are_listed():
    listed = seal().table("faults")
    assert {"copy", "late", "broken id", "unit", "time zone"} <= set(listed["kind"])
    ctx = saas.COMPANY.context(0.05, 7, "guide", {}, {})
    block = saas.COMPANY.simulate(ctx, saas.COMPANY.blocks(0.05)[0])
    undone = faults.undo(block.tables, block.truth["faults"], 1)
    assert undone["usage"].equals(world(clean=True).arrow["usage"].unify_dictionaries())


# ------------------------------------------------------------------------------------------------------- presets, input
@pytest.mark.parametrize("preset", saas.PRESETS)
@pytest.mark.parametrize("scale", [0.0001, 0.0005, 0.002])
def test_smallest_worlds(preset, scale):
    w = saas.simulate(scale, 3, preset)
    assert len(w["invoices"]) >= len(w["accounts"]) > 0
    for programme in PROGRAMMES:
        assert len(saas.readout(w, programme.name)) == len(truth.unseal(w).table(programme.name))


def test_hard_is_harder():
    def loudness(w):
        last = (
            w["usage"][w["usage"]["period_start"].between("2024-03-01", "2024-05-31")]
            .groupby("account_id")["events"]
            .sum()
        )
        life = saas.clean(w, "accounts").set_index("account_id")
        life = life[(life["start_date"] < "2024-03-01") & ~(life["end_date"] < "2024-06-01")]
        left = life["end_date"] < "2024-09-01"
        use = last.reindex(life.index, fill_value=0) / life["seats"]
        return stats.mannwhitneyu(use[~left], use[left]).statistic / (left.sum() * (~left).sum())

    easy, hard = (np.mean([loudness(world(seed=s, preset=p)) for s in range(3)]) for p in ("guide", "hard"))
    assert easy > hard > 0.45


def test_all_parameters_have_meaning_and_source():
    found = engine.describe_params(saas.Params)
    assert found["meaning"].str.len().min() > 3 and found["source"].str.len().min() > 3
    assert saas.PRESETS.keys() == {"guide", "null", "hard", "tiny"}
    for preset in saas.PRESETS.values():
        engine.change(saas.Params(), **preset)


@pytest.mark.parametrize("limits", [{"unrecovered": 0.0}, {"fail_debit": 0.0}, {"unrecovered": 1.0, "fail_card": 1.0}])
def test_payments_that_never_or_always_fail(limits):
    w = saas.simulate(0.01, 3, **limits)
    closed = (saas.clean(w, "accounts")["churn_kind"] == "involuntary").any()
    assert closed == (limits.get("unrecovered") != 0.0)
    if "fail_card" not in limits:
        assert saas.figures(w).loc["monthly churn", "ratio"] == pytest.approx(1, abs=0.05)


def test_bad_input_is_told():
    for scale in (0, -1, 1e9, True):
        with pytest.raises(KitError):
            saas.simulate(scale)
    with pytest.raises(KitError, match="did you mean 'call_ticket'"):
        saas.simulate(0.002, call_tiket=0.0)
    with pytest.raises(KitError, match="did you mean 'discount'"):
        saas.simulate(0.01, policies={"retention": "discnt"})
    with pytest.raises(KitError, match="no account"):
        saas.story(world(), 0)
    with pytest.raises(KitError, match="no programme"):
        saas.readout(world(), "nothing")


def test_every_account_has_a_story():
    w = saas.simulate(0.005, 7)
    ids = saas.clean(w, "accounts")["account_id"]
    assert not ids.isin(w["surveys"]["account_id"]).all(), "some were never asked"
    assert all(len(saas.story(w, i)) for i in ids)


def test_plot_has_labels():
    import matplotlib

    matplotlib.use("Agg")
    ax = saas.plot_leaving(world())
    assert ax.get_xlabel() and ax.get_ylabel() and len(ax.patches) == 2 * MONTHS
    matplotlib.pyplot.close("all")


def test_the_branch_of_doing_nothing_is_the_life_without_programmes():
    ctx = saas.COMPANY.context(0.03, 5, "guide", {}, {})
    block = saas.COMPANY.blocks(0.03)[0]
    who = accounts.roster(ctx, block)
    life = accounts.live(ctx, block, who)
    units, drawn = life.units["retention"]
    found = accounts.branches(ctx, who, life, units, drawn, np.arange(4), np.zeros(len(drawn), int))
    alone = {(r, m): (h, e) for months in life.months for r, m, h, e in zip(months.row, months.month, months.health, months.ending, strict=True)}  # fmt: skip
    rows = [(r, m, h, e) for months in found.months for r, m, h, e in zip(months.row, months.month, months.health, months.ending, strict=True)]  # fmt: skip
    assert len(rows) > 100 and all(alone[r, m] == (h, e) for r, m, h, e in rows)
