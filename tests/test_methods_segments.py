import json
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_get_params_invariance, check_set_params
from statsmodels.stats.multitest import multipletests

from mktai_kit.methods import segments as S
from mktai_kit.settings import KitError

every_method = pytest.mark.parametrize("method", S.METHODS)
QUICK = dict(ks=range(2, 6), n_ref=10, n_boot=10)


def crowd(kind, seed, n=400, d=4):
    """Data with one group."""
    rng = np.random.default_rng(seed)
    one, own = rng.normal(size=(n, 1)), rng.normal(size=(n, d))
    if kind == "normal":
        return own
    if kind == "correlated":
        return one + 0.4 * own
    if kind == "uniform":
        return rng.random((n, d))
    if kind == "long tails":
        return np.exp(0.8 * one + 0.7 * own)
    active = rng.gamma(1.5, 1 / 1.5, (n, 1))
    counts = rng.poisson(active * [1, 5]).astype(float)
    if kind == "counts":
        return np.column_stack([counts, rng.poisson(3 * active[:, 0])])
    money = np.exp(3 + 0.5 * np.log(active[:, 0]) + 0.6 * own[:, 0])
    return np.column_stack([counts, money, np.log(money) + own[:, 1], rng.random(n) < 0.3])


KINDS = ["normal", "correlated", "uniform", "long tails", "counts", "mixed"]


def planted(seed, n=800, apart=5.0, d=4, share=(0.4, 0.3, 0.2, 0.1)):
    """Normal clouds of unequal size whose nearest centres are `apart` standard deviations from each other."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(share), d))
    between = np.linalg.norm(centres[:, None] - centres, axis=2) + 1e9 * np.eye(len(share))
    kind = rng.choice(len(share), n, p=share)
    return centres[kind] * apart / between.min() + rng.normal(size=(n, d)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_no_structure_no_segments(kind):
    for seed in range(2):
        assert S.choose(crowd(kind, seed), seed=seed, **QUICK).n_segments == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_structure_no_segments_often(kind):
    said = [S.choose(crowd(kind, 100 + seed), seed=seed, **QUICK).n_segments for seed in range(8)]
    assert np.count_nonzero(said) <= 1


@pytest.mark.parametrize("method", ["kmeans", "ward"])
def test_planted_segments_are_found(method):
    for seed in range(2):
        X, kind = planted(seed)
        choice = S.choose(X, method, **QUICK)
        assert choice.n_segments == 4
        assert adjusted_rand_score(kind, S.Segmenter(method, 4).fit(X).labels_) >= 0.8


@pytest.mark.slow
@every_method
def test_planted_and_none_by_every_method(method):
    X, kind = planted(3)
    choice = S.choose(X, method, **QUICK)
    assert adjusted_rand_score(kind, S.Segmenter(method, max(choice.n_segments, 1)).fit(X).labels_) >= 0.8
    assert S.choose(crowd("long tails", 1), method, **QUICK).n_segments == 0


def test_skewed_segments_are_found_after_scaling():
    X, kind = planted(5, share=(0.6, 0.25, 0.15))
    skewed = pd.DataFrame(np.exp(X))
    choice = S.choose(S.scaled(skewed), **QUICK)
    assert choice.n_segments == 3
    assert adjusted_rand_score(kind, S.Segmenter(n_segments=3).fit(S.scaled(skewed)).labels_) >= 0.8


def test_the_box_is_fooled_by_a_tail_and_one_mode_is_not():
    X = crowd("long tails", 4)
    box, ours = (S.gap_statistic(X, ks=[2, 3], n_ref=10, reference=r) for r in ("box", "one mode"))
    assert (box["gap"] / box["se"] > 20).all() and (ours["gap"] / ours["se"] < 5).all()


@every_method
def test_segmenter(method):
    X, kind = planted(1, n=300)
    X = pd.DataFrame(X, columns=list("abcd"), index=[f"c{i}" for i in range(300)])
    fitted = S.Segmenter(method, 4).fit(X)
    assert adjusted_rand_score(kind, fitted.labels_) > 0.8
    assert (np.diff(np.bincount(fitted.labels_)) <= 0).all(), "numbered by size"
    np.testing.assert_array_equal(fitted.predict(X), fitted.labels_)
    np.testing.assert_array_equal(S.Segmenter(method, 4).fit_predict(X), fitted.labels_)
    mixed = X.sample(frac=1, random_state=2)
    np.testing.assert_array_equal(clone(fitted).fit(mixed).predict(X), fitted.labels_)
    np.testing.assert_allclose(fitted.cluster_centers_[0], X[fitted.labels_ == 0].mean(), atol=1e-9)
    pipe = make_pipeline(StandardScaler(), S.Segmenter(method, 4)).fit(X)
    assert adjusted_rand_score(pipe.predict(X), fitted.labels_) > 0.9
    check_get_params_invariance("Segmenter", S.Segmenter(method))
    check_set_params("Segmenter", S.Segmenter(method))
    assert (S.Segmenter(method, 1).fit(X).labels_ == 0).all()


def test_segmenter_refuses():
    X = pd.DataFrame(planted(1, n=60)[0], columns=list("abcd"))
    for bad, holds in [
        (X.assign(a="x"), "does not hold numbers"),
        (X.mask(X > 3), "missing or infinite"),
        (X.assign(b=1.0), "'b' has one value only"),
        (X.iloc[:0], "there are 0 rows"),
        (X.iloc[:3], "4 segments of 3 distinct rows"),
        (X["a"], "one column per feature"),
    ]:
        with pytest.raises(KitError, match=holds):
            S.Segmenter().fit(bad)
    fitted = S.Segmenter().fit(X)
    with pytest.raises(KitError, match="columns differ"):
        fitted.predict(X[["b", "a", "c", "d"]])
    with pytest.raises(KitError, match="missing"):
        fitted.predict(X.mask(X > 3))
    for params, holds in [
        ({"method": "k-means"}, "kmeans"),
        ({"n_segments": 0}, "whole numbers"),
        ({"n_segments": 2.5}, "whole"),
    ]:
        with pytest.raises(KitError, match=holds):
            S.Segmenter(**params).fit(X)


def test_a_map_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minisom", None)
    with pytest.raises(KitError, match=r"mktai-kit\[segments\]"):
        S.Segmenter("som").fit(planted(1, n=60)[0])


def test_scaled():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {"money": np.exp(rng.normal(size=500)), "share": rng.normal(3, 0.1, 500), "flag": (rng.random(500) < 0.2) * 1.0}
    )
    out = S.scaled(X)
    assert (
        abs(out["money"].skew()) < 1.5 < X["money"].skew()
        and 0.8 < out["share"].std() < 1.2
        and out["flag"].nunique() == 2
    )
    pd.testing.assert_frame_equal(S.scaled(X.iloc[:7], like=X), out.iloc[:7])
    owed = S.scaled(
        pd.DataFrame({"balance": np.concatenate([-np.exp(3 * rng.normal(size=300)), np.exp(3 * rng.normal(size=900))])})
    )
    assert np.isfinite(owed).all().all()
    with pytest.raises(KitError, match="columns differ"):
        S.scaled(X[["money"]], like=X)
    with pytest.raises(KitError, match="missing"):
        S.scaled(X.iloc[:7].replace(0, np.nan), like=X)


def test_one_group_keeps_shapes_and_correlations():
    rng = np.random.default_rng(1)
    one = rng.normal(size=800)
    X = np.column_stack(
        [np.exp(one), one + rng.normal(size=800), rng.poisson(np.exp(0.5 * one)), rng.random(800) < 0.2]
    ).astype(float)
    D = next(S.one_group(X, 1))
    for j in (0, 1):
        assert np.quantile(np.abs(np.sort(D[:, j]) - np.sort(X[:, j])), 0.95) < 0.2 * X[:, j].std()
    assert D[:, 0].max() == pytest.approx(X[:, 0].max())
    assert set(D[:, 2]) <= set(X[:, 2]) and abs(D[:, 3].mean() - X[:, 3].mean()) < 0.01
    ranks = [pd.DataFrame(v).corr("spearman").to_numpy() for v in (X, D)]
    assert np.abs(ranks[0] - ranks[1]).max() < 0.1
    two = np.concatenate([rng.normal(-4, 1, 400), rng.normal(4, 1, 400)])[:, None]
    hollow = (np.abs(two) < 1.5).mean(), (np.abs(next(S.one_group(two, 1))) < 1.5).mean()
    assert hollow[0] < 0.03 and hollow[1] > 0.1
    with pytest.raises(KitError, match="one mode"):
        next(S.one_group(X, 1, reference="one-mode"))


def test_gap_of_the_box_is_that_of_the_paper():
    """Well separated clouds: the classic gap rises to the true number and no further."""
    X, _kind = planted(2, apart=8)
    t = S.gap_statistic(X, ks=range(2, 7), n_ref=10, reference="box").set_index("n_segments")
    assert t["gap"].idxmax() == 4
    with pytest.raises(KitError, match="n_ref"):
        S.gap_statistic(X, n_ref=2)


def test_valleys():
    rng = np.random.default_rng(2)
    X = np.concatenate([rng.normal(0, 1, (400, 2)), rng.normal([6, 0], 1, (200, 2))])
    true = S.valleys(X, np.repeat([0, 1], [400, 200]))
    split = S.valleys(X[:400], (X[:400, 0] > 0).astype(int))
    assert true["valley"].item() < 0.3 and true["p"].item() < 0.01 and split["valley"].item() > 0.8
    with pytest.raises(KitError, match="one segment per row"):
        S.valleys(X, [0, 1])


def test_stability():
    X, _kind = planted(4, n=400)
    found = S.stability(X, S.Segmenter(n_segments=4), n_boot=10)
    assert (found.table["verdict"] == "stable").all() and found.seeds.value > 0.9
    assert found.table["n"].sum() == 400 and found.table["jaccard"].iloc[0].n == 400
    loose = S.stability(crowd("normal", 1), S.Segmenter(n_segments=5), n_boot=10)
    assert (loose.table["verdict"] != "stable").any()


def test_choose_speaks_and_repeats_itself():
    X, _kind = planted(6)
    X = pd.DataFrame(X)
    one, same = S.choose(X, **QUICK), S.choose(X.sample(frac=1, random_state=1), **QUICK)
    pd.testing.assert_frame_equal(one.table, same.table)
    assert one.statement.startswith("4 segments") and json.dumps(one.to_dict())
    few = S.choose(X.iloc[:60], **QUICK)
    assert few.n_segments == 0 and few.statement.startswith("not enough data")
    assert json.dumps(few.to_dict()) and S.plot_choice(few)
    sampled = S.choose(X, max_rows=300, **QUICK)
    assert "a sample of 300 of 800" in sampled.statement
    with pytest.raises(KitError, match="from 2 up|start at 2"):
        S.choose(X, ks=[1, 2])
    ax = S.plot_choice(one)
    assert ax.get_xlabel() and ax.get_title() == "4 segments"
    plt.close("all")


def test_few_different_rows():
    rng = np.random.default_rng(8)
    flags = (rng.random((300, 2)) < 0.4).astype(float)
    choice = S.choose(flags)
    assert choice.n_segments == 0 and "different rows" in choice.statement and json.dumps(choice.to_dict())
    levels = rng.integers(0, 3, (300, 3)).astype(float)
    assert S.choose(levels, ks=range(2, 5), n_ref=10, n_boot=10).n_segments == 0
    for method in S.METHODS:
        with pytest.raises(KitError, match="of 4 distinct rows"):
            S.Segmenter(method, 5).fit(flags)
        assert len(np.unique(S.Segmenter(method, 4).fit(flags).labels_)) == 4


def test_holm_is_statsmodels():
    p = np.random.default_rng(0).random(9) ** 3
    np.testing.assert_allclose(S._holm(p), multipletests(p, method="holm")[1])


def test_the_split_of_a_segment_does_not_stand_for_long():
    """Here five segments pass all three checks by chance; the gap is larger at four."""
    rng = np.random.default_rng(1006)
    centres = rng.normal(size=(4, 4))
    between = np.linalg.norm(centres[:, None] - centres, axis=2) + 99 * np.eye(4)
    kind = rng.choice(4, 1000, p=[0.4, 0.3, 0.2, 0.1])
    X = (centres * 4.5 / between.min())[kind] + rng.normal(size=(1000, 4))
    assert S.choose(X, ks=[4, 5], seed=6).n_segments == 4


def test_tiny_groups_of_outliers_are_no_segments():
    rng = np.random.default_rng(3)
    X = np.concatenate([rng.normal(size=(500, 3)), 12 + rng.normal(size=(3, 3))])
    assert S.choose(X, **QUICK).n_segments == 0


@pytest.mark.slow
def test_a_hundred_thousand_customers():
    X, kind = planted(7, n=100_000)
    start = time.perf_counter()
    choice = S.choose(X)
    assert choice.n_segments == 4 and time.perf_counter() - start < 60
    assert adjusted_rand_score(kind, S.Segmenter("ward", 4).fit(X).labels_) > 0.8
