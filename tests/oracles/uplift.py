"""Golden values for uplift learners and Qini curves, from published implementations.

The tests read uplift.json and make the same data again with `trial`. To write the file anew, in an environment of its own:

    pip install econml==0.17.0 scikit-uplift==0.5.1 scikit-learn==1.9.1
    pip install --no-deps causalml==0.18.0 && pip install xgboost-cpu==3.2.0 seaborn dill forestci pathos pydot graphviz
    python tests/oracles/uplift.py
"""

import json
import sys
from pathlib import Path

import numpy as np

SEED = 11
SHOWN = 12  # rows whose effects are stored


def trial(seed=SEED, n=600, arms=2):
    """Features, arm (0 is the control), outcome of 0 or 1, outcome in money, a score without ties and one with many."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    arm = rng.integers(0, arms, n)
    tau = 0.2 * np.tanh(X[:, 0]) * arm
    y = (rng.random(n) < np.clip(0.5 - 0.1 * X[:, 1] + tau, 0, 1)).astype(int)
    money = 100 + 20 * X[:, 1] + 30 * X[:, 0] * arm + 15 * rng.normal(size=n)
    score = 0.3 * X[:, 0] + 0.2 * rng.normal(size=n)
    return {
        "X": X,
        "arm": arm,
        "y": y,
        "money": money,
        "fold": np.arange(n) % 4,
        "score": score,
        "tied": np.round(score, 1),
    }


def curves():
    """scikit-uplift's curves and areas; causalml's cumulative gain."""
    from causalml.metrics import auuc_score, get_cumgain
    from pandas import DataFrame
    from sklearn.metrics import auc
    from sklift import metrics as sk

    out = {}
    d = trial()
    for name in ("score", "tied"):
        given = d["y"], d[name], d["arm"]
        qini, uplift = sk.qini_curve(*given), sk.uplift_curve(*given)
        out[name] = {
            "qini_x": qini[0].tolist() if name == "tied" else None,
            "qini_y": qini[1].tolist() if name == "tied" else None,
            "qini_area": auc(*qini),
            "uplift_area": auc(*uplift),
            "qini_auc_score": sk.qini_auc_score(*given),
            "uplift_at_30": sk.uplift_at_k(*given, strategy="overall", k=0.3),
        }
    frame = DataFrame({"y": d["y"], "w": d["arm"], "s": d["score"]})
    names = {"outcome_col": "y", "treatment_col": "w"}
    out["causalml"] = {
        "gain_end": float(get_cumgain(frame, normalize=False, **names)["s"].iloc[-1]),
        "auuc": float(auuc_score(frame, normalize=False, **names)["s"]),
        "auuc_default": float(auuc_score(frame, **names)["s"]),
    }
    return out


class PerArm:
    """One regression per arm behind econml's single regression on [X, one-hot arm]: what a DR-learner with T-type nuisances needs."""

    def __init__(self, base, d):
        self.base, self.d = base, d

    def get_params(self, deep=True):
        return {"base": self.base, "d": self.d}

    def _split(self, XT):
        flags = XT[:, self.d :]
        return XT[:, : self.d], np.where(flags.any(axis=1), flags.argmax(axis=1) + 1, 0)

    def fit(self, XT, y, **_):
        from sklearn.base import clone

        X, arm = self._split(XT)
        self.models = {k: clone(self.base).fit(X[arm == k], y[arm == k]) for k in np.unique(arm)}
        return self

    def predict(self, XT):
        X, arm = self._split(XT)
        return np.select([arm == k for k in self.models], [m.predict(X) for m in self.models.values()])


def learners():
    """econml's effects of the first rows, linear and boosted base models, one and two treatments."""
    from econml.dr import DRLearner
    from econml.metalearners import SLearner, TLearner, XLearner
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LinearRegression

    out = {}
    bases = {"linear": LinearRegression(), "boosted": GradientBoostingRegressor(n_estimators=30, random_state=0)}
    for arms in (2, 3):
        d = trial(n=900, arms=arms)
        X, y, arm, fold = d["X"], d["money"], d["arm"], d["fold"]
        splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(4)]
        for name, base in bases.items():
            fitted = {
                "S": SLearner(overall_model=base),
                "T": TLearner(models=base),
                "X": XLearner(models=base, propensity_model=DummyClassifier(strategy="prior")),
                "DR": DRLearner(
                    model_propensity=DummyClassifier(strategy="prior"),
                    model_regression=PerArm(base, X.shape[1]),
                    model_final=base,
                    cv=splits,
                ),
            }
            for kind, model in fitted.items():
                model.fit(y, arm, X=X)
                effects = np.column_stack([model.effect(X, T0=0, T1=k) for k in range(1, arms)])
                out[f"{kind} {name} {arms - 1}"] = {
                    "first": effects[:SHOWN].tolist(),
                    "mean": effects.mean(axis=0).tolist(),
                }
    return out


def main():
    from importlib.metadata import version

    made_with = {p: version(p) for p in ("econml", "scikit-uplift", "causalml", "scikit-learn", "numpy")}
    golden = {"seed": SEED, "made_with": made_with, "curves": curves(), "learners": learners()}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden, indent=1) + "\n")
    print(path.name, path.stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
