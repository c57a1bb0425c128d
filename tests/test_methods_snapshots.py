"""Honest time: grids that fit, labels that know their population, splits that cannot look ahead."""

import numpy as np
import pandas as pd
import pytest

from mktai_kit.methods import snapshots as sn
from mktai_kit.settings import KitError

GRID = {"start": "2024-01-01", "end": "2025-01-01", "horizon_days": 28, "gap_days": 7, "history_days": 90}


def shop(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "customer_id": rng.integers(0, 300, n) ** 2 // 300,
            "transaction_id": rng.integers(0, n, n),
            "timestamp": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 366 * 24, n) * 3600, unit="s"),
            "amount": rng.integers(1, 10_000, n) / 100,
        }
    )


def panel(folds=3, **kwargs):
    grid = sn.snapshot_grid(**GRID, n=6)
    rows = sn.labels(shop(), grid, until="2025-01-01")
    return rows, grid, sn.ForwardGroupSplit(rows["snapshot"], rows["customer_id"], grid, folds=folds, **kwargs)


@pytest.mark.parametrize("gap", [0, 7])
@pytest.mark.parametrize("step", [1, 28, 40])
def test_windows_fit_and_end_with_the_data(gap, step):
    grid = sn.snapshot_grid(**GRID | {"gap_days": gap}, step_days=step)
    assert grid["label_to"].max() == pd.Timestamp("2025-01-01") and grid["features_from"].min() >= pd.Timestamp(
        "2024-01-01"
    )
    assert (grid["snapshot"].diff().dropna() == pd.Timedelta(days=step)).all() and (
        grid["features_to"] == grid["snapshot"]
    ).all()
    with pytest.raises(KitError, match=f"{len(grid)} fit"):
        sn.snapshot_grid(**GRID | {"gap_days": gap}, step_days=step, n=len(grid) + 1)


def test_broken_days_are_left_out():
    grid = sn.snapshot_grid(**GRID | {"start": "2024-01-01 09:30", "end": "2024-12-31 23:59:59"})
    assert grid["label_to"].max() == pd.Timestamp("2024-12-31") and grid["features_from"].min() >= pd.Timestamp(
        "2024-01-02"
    )


def test_exactly_one_day_decides():
    need = {"horizon_days": 10, "gap_days": 5, "history_days": 15}
    assert len(sn.snapshot_grid("2024-01-01", "2024-01-31", **need)) == 1
    with pytest.raises(KitError, match="1 more days of data, or history_days <= 14"):
        sn.snapshot_grid("2024-01-01", "2024-01-30", **need)


def test_what_would_fit_does_fit():
    with pytest.raises(KitError) as e:
        sn.snapshot_grid(**GRID, n=11)
    mends = dict(part.strip(" .").split(" <= ") for part in e.value.mend.replace("or ", "").split(",") if "<=" in part)
    assert set(mends) == {"history_days", "step_days", "n"}
    for name, value in mends.items():
        kwargs = GRID | {"n": 11, "step_days": 28} | {name: int(value)}
        sn.snapshot_grid(**kwargs)
        with pytest.raises(KitError):
            sn.snapshot_grid(**kwargs | {name: int(value) + 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon_days": 0}, "horizon_days = 0"),
        ({"gap_days": -1}, "gap_days = -1"),
        ({"history_days": 1.5}, "history_days = 1.5"),
        ({"step_days": True}, "step_days = True"),
        ({"n": 0}, "n = 0"),
        ({"start": "not a day"}, "is no date"),
        ({"start": None}, "missing or has a time zone"),
        ({"end": pd.Timestamp("2025-01-01", tz="UTC")}, "time zone"),
        ({"end": "2023-01-01"}, "0 fit into the 0 days"),
    ],
)
def test_bad_grids_are_refused(change, message):
    with pytest.raises(KitError) as e:
        sn.snapshot_grid(**GRID | change)
    assert message in str(e.value)


def test_labels_equal_a_plain_count():
    t, grid = shop(), sn.snapshot_grid(**GRID, n=3)
    got = sn.labels(t.sample(frac=1, random_state=1), grid, until="2025-01-01")
    assert list(got) == ["customer_id", "snapshot", "label_to", "active", "spend", "n_transactions"]
    for g in grid.itertuples():
        rows = got[got["snapshot"] == g.snapshot]
        seen = t[(t["timestamp"] >= g.features_from) & (t["timestamp"] < g.snapshot)]["customer_id"].unique()
        assert rows["customer_id"].tolist() == sorted(seen)
        for r in rows.itertuples():
            own = t[
                (t["customer_id"] == r.customer_id) & (t["timestamp"] >= g.label_from) & (t["timestamp"] < g.label_to)
            ]
            assert (r.n_transactions, r.active) == (own["transaction_id"].nunique(), int(len(own) > 0))
            assert r.spend == pytest.approx(own["amount"].sum(), abs=1e-9)
    few = sn.labels(t, grid, customers=[3, 5, 10_000], until="2025-01-01")
    assert set(few["customer_id"]) <= {3, 5}
    pd.testing.assert_frame_equal(got, sn.labels(t, grid, until="2025-01-01"), check_exact=True)


def test_borders_are_half_open():
    grid = sn.snapshot_grid("2024-01-01", "2024-03-01", horizon_days=10, gap_days=5, history_days=20, n=1)
    g = grid.iloc[0]
    second = pd.Timedelta(seconds=1)
    times = {
        "first": g.features_from,
        "last": g.snapshot - second,
        "too_late": g.snapshot,
        "too_early": g.features_from - second,
    }
    t = pd.DataFrame(
        {"customer_id": list(times), "timestamp": list(times.values()), "transaction_id": range(4), "amount": 1.0}
    )
    later = pd.DataFrame(
        {
            "customer_id": ["first", "first", "last", "last"],
            "timestamp": [g.label_from, g.label_to - second, g.label_from - second, g.label_to],
            "transaction_id": range(4, 8),
            "amount": 1.0,
        }
    )
    got = sn.labels(pd.concat([t, later]), grid).set_index("customer_id")["n_transactions"]
    assert got.to_dict() == {"first": 2, "last": 0}


def test_labels_refuse_what_would_lie():
    t, grid = shop(), sn.snapshot_grid(**GRID, n=3)
    cut = t[t["timestamp"] < "2024-12-20"]
    with pytest.raises(KitError, match="labels reach to 2025-01-01, the transactions end at 2024-12-20"):
        sn.labels(cut, grid)
    for bad, message in [
        (t.assign(amount=np.nan), "column 'amount' is missing or infinite"),
        (t.drop(columns="transaction_id"), "column 'transaction_id' is missing"),
        (t.iloc[:0], "no line has a customer"),
        (t.assign(timestamp=t["timestamp"].astype(str)), "column 'timestamp' is str"),
    ]:
        with pytest.raises(KitError, match=message):
            sn.labels(bad, grid)


def test_no_split_looks_ahead_or_knows_its_customers():
    rows, grid, split = panel()
    seen = 0
    for train, test in split.split():
        learned, tested = rows.loc[train], rows.loc[test]
        assert len(train) and len(test) and tested["snapshot"].nunique() == 1
        assert learned["label_to"].max() <= tested["snapshot"].min()
        assert not set(learned["customer_id"]) & set(tested["customer_id"])
        seen += len(test)
    assert seen == rows["snapshot"].isin(grid["snapshot"].iloc[split.tests]).sum() and split.get_n_splits() == 4 * 3
    table = sn.split_table(split)
    assert len(table) == 12 and (table["known_until"] <= table["snapshot"]).all()
    assert panel(n_test=2)[2].get_n_splits() == 6


def test_splits_do_not_depend_on_the_order_of_rows():
    rows, grid, split = panel()
    order = np.random.default_rng(1).permutation(len(rows))
    mixed = rows.iloc[order]
    again = sn.ForwardGroupSplit(mixed["snapshot"], mixed["customer_id"], grid, folds=3)
    for (a, b), (c, d) in zip(split.split(), again.split()):
        assert set(order[c]) == set(a) and set(order[d]) == set(b)


def test_works_in_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_validate

    rows, _grid, split = panel()
    X = np.random.default_rng(0).normal(size=(len(rows), 2))
    out = cross_validate(LogisticRegression(), X, rows["active"], groups=rows["customer_id"], cv=split)
    assert len(out["test_score"]) == split.get_n_splits()
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=split).fit(X, rows["active"])


def test_splits_that_could_lie_are_refused():
    rows, grid, split = panel()
    make = lambda **k: sn.ForwardGroupSplit(
        **{"snapshot": rows["snapshot"], "customer": rows["customer_id"], "grid": grid} | k
    )
    for change, message in [
        ({"grid": grid.drop(columns="label_to")}, "no column 'label_to'"),
        ({"grid": None}, "no column"),
        (
            {"grid": grid.assign(label_from=grid["snapshot"] - pd.Timedelta(days=1))},
            "snapshot is after label_from for 6 of 6",
        ),
        ({"grid": grid.assign(features_to=grid["snapshot"] + pd.Timedelta(days=1))}, "features_to is after snapshot"),
        ({"grid": grid.iloc[:3]}, "rows have a snapshot that is not in the grid"),
        ({"grid": pd.concat([grid, grid])}, "repeated snapshots"),
        ({"grid": grid.iloc[:0]}, "empty"),
        ({"folds": 1}, "folds = 1"),
        ({"folds": 10_000}, "but 10000 folds"),
        ({"n_test": 5}, "4 snapshot(s) have a label window that had ended before them, 5 needed"),
        ({"customer": rows["customer_id"].astype("Int64").where(rows.index > 0)}, "1 ids are missing"),
        ({"snapshot": rows["snapshot"].iloc[1:]}, "give both for every row"),
    ]:
        with pytest.raises(KitError) as e:
            make(**change)
        assert message in str(e.value), str(e.value)
    close = sn.snapshot_grid(**GRID, n=3, step_days=1)
    late = rows[rows["snapshot"].isin(close["snapshot"])]
    with pytest.raises(KitError, match="0 snapshot"):
        sn.ForwardGroupSplit(late["snapshot"], late["customer_id"], close)
    with pytest.raises(KitError, match="the split was made for"):
        next(split.split(X=np.zeros((3, 1))))
    with pytest.raises(KitError, match="not the customers"):
        next(split.split(groups=np.zeros(len(rows))))


def honest(t, day):
    return (
        t[t["timestamp"] < day].groupby("customer_id").agg(n=("amount", "size"), spend=("amount", "sum")).reset_index()
    )


@pytest.mark.parametrize(
    ("leak", "message"),
    [
        (lambda t, day: honest(t, day).assign(last=t["timestamp"].max()), "'last' use(s) what happened at or after"),
        (lambda t, day: honest(t, day + pd.Timedelta(hours=1)), "'n', 'spend' use(s)"),
        (lambda t, day: honest(t, pd.Timestamp("2030-01-01")), "rows exist with or without the future only"),
        (lambda t, day: honest(t, day).assign(**({"x": 1} if (t["timestamp"] >= day).any() else {})), "'x' use(s)"),
    ],
)
def test_the_probe_finds_leaks(leak, message):
    t = pd.concat([shop(), shop().iloc[:1].assign(timestamp=pd.Timestamp("2024-06-01"), customer_id=0)])
    extra = shop().iloc[:1].assign(timestamp=pd.Timestamp("2024-12-01"), customer_id=999_999)
    t = pd.concat([t, extra], ignore_index=True)
    sn.assert_as_of(honest, t, "2024-06-01")
    with pytest.raises(KitError) as e:
        sn.assert_as_of(leak, t, "2024-06-01")
    assert message in str(e.value)


def test_a_blind_probe_is_refused():
    for day in ("2023-01-01", "2026-01-01"):
        with pytest.raises(KitError, match="no transaction lies"):
            sn.assert_as_of(honest, shop(), day)


def test_the_kits_features_pass_the_probe():
    from mktai_kit.data.features import feature_panel

    t = shop()
    sn.assert_as_of(lambda x, day: feature_panel(x, None, day, 90), t, "2024-09-01")
    grid = sn.snapshot_grid(**GRID, n=2)
    keys = ["customer_id", "snapshot"]
    features, labels = feature_panel(t, None, grid, 90), sn.labels(t, grid, until="2025-01-01")
    assert features[keys].equals(labels[keys])  # one population


def test_plot_grid():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    grid = sn.snapshot_grid(**GRID, n=3)
    ax = sn.plot_grid(grid)
    assert ax.get_xlabel() and ax.get_ylabel() and sn.plot_grid(grid, ax=ax) is ax
    with pytest.raises(KitError):
        sn.plot_grid(pd.DataFrame())
    plt.close("all")
