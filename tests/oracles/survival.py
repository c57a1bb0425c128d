"""Golden values of published implementations for tests/test_methods_survival.py and tests/test_methods_survival_score.py.

Run it where lifelines and scikit-survival are installed (they need pandas below 3): `python tests/oracles/survival.py`.
It writes tests/fixtures/survival_oracle.json with the data, the results and the versions.
"""

import json
import warnings
from pathlib import Path

import lifelines
import numpy as np
import pandas as pd
import sksurv
from lifelines import AalenJohansenFitter, CoxPHFitter, KaplanMeierFitter
from lifelines.statistics import proportional_hazard_test
from sksurv.metrics import brier_score, integrated_brier_score
from sksurv.nonparametric import cumulative_incidence_competing_risks
from sksurv.util import Surv

warnings.simplefilter("ignore")


def lives(n, seed, ties, delayed):
    """Entry, duration, kind (0 still there, 1, 2); whole numbers where there are ties."""
    rng = np.random.default_rng(seed)
    first, second, last = rng.exponential(12, n), rng.exponential(20, n), rng.uniform(2, 30, n)
    entry = np.where(rng.random(n) < 0.5, rng.uniform(0, 6, n), 0.0) if delayed else np.zeros(n)
    duration = np.minimum(np.minimum(first, second), last)
    kind = np.where(last <= duration, 0, np.where(first < second, 1, 2))
    if ties:
        entry, duration = np.floor(entry), np.ceil(duration)
    keep = duration > entry
    # many are watched at the beginning, so that the first risk sets do not die out
    return entry[keep], duration[keep], kind[keep]


def kaplan_meier(ties, delayed):
    entry, duration, kind = lives(120, 1, ties, delayed)
    # lifelines counts who enters at an age as at risk at that age; entering just after gives (entry, exit]
    f = KaplanMeierFitter().fit(duration, kind > 0, entry=entry + 1e-9 if delayed else None)
    table = f.survival_function_.join(f.confidence_interval_)
    table.columns = ["survival", "low", "high"]
    table = table[f.event_table["observed"].reindex(table.index).fillna(0) > 0]
    columns = {c: table[c].tolist() for c in table}
    return {
        "entry": entry.tolist(),
        "duration": duration.tolist(),
        "kind": kind.tolist(),
        "time": table.index.tolist(),
        **columns,
    }


def incidence(ties):
    _entry, duration, kind = lives(150, 2, ties, False)
    out = {"duration": duration.tolist(), "kind": kind.tolist()}
    for kind_of, name in ((1, "first"), (2, "second")):
        time, f, ends = cumulative_incidence_competing_risks(
            kind, duration, conf_type="log-log", var_type="Dinse_Approx"
        )
        out[name] = {
            "time": time.tolist(),
            "incidence": f[kind_of].tolist(),
            "low": ends[kind_of][0].tolist(),
            "high": ends[kind_of][1].tolist(),
        }
    return out


def incidence_delayed():
    entry, duration, kind = lives(150, 3, False, True)
    out = {"entry": entry.tolist(), "duration": duration.tolist(), "kind": kind.tolist()}
    for k in (1, 2):
        f = AalenJohansenFitter(calculate_variance=False).fit(duration, kind, event_of_interest=k, entry=entry)
        curve = f.cumulative_density_.iloc[:, 0]
        out[str(k)] = {"time": curve.index.tolist(), "incidence": curve.tolist()}
    return out


def cox(ties, delayed):
    entry, duration, kind = lives(200, 4, ties, delayed)
    rng = np.random.default_rng(5)
    x = pd.DataFrame({"a": rng.normal(size=len(entry)), "b": rng.integers(0, 2, len(entry)).astype(float)})
    data = x.assign(entry=entry, duration=duration, event=(kind > 0).astype(int))
    data = data if delayed else data.drop(columns="entry")
    f = CoxPHFitter().fit(
        data, "duration", "event", entry_col="entry" if delayed else None, fit_options={"precision": 1e-12}
    )
    out = {c: data[c].tolist() for c in data}
    out |= {"coefficient": f.params_.tolist(), "std_error": f.standard_errors_.tolist()}
    if not ties and not delayed:
        for transform in ("rank", "identity", "log"):
            test = proportional_hazard_test(f, data, time_transform=transform)
            out[transform] = np.atleast_1d(test.test_statistic).tolist()
        schoenfeld = f.compute_residuals(data, kind="schoenfeld")
        out["schoenfeld"] = (
            schoenfeld.loc[data.loc[schoenfeld.index, "duration"].sort_values().index].to_numpy().tolist()
        )
    return out


def brier():
    rng = np.random.default_rng(6)
    rate = rng.gamma(2, 0.03, 150)
    life, watch = rng.exponential(1 / rate), rng.uniform(1, 36, 150)
    duration, event, times = np.minimum(life, watch), life <= watch, np.array([3.0, 6, 12, 24])
    p, y = np.exp(-np.outer(rate, times)), Surv.from_arrays(life <= watch, duration)
    scores = brier_score(y, y, p, times)[1].tolist()
    out = {
        "survival": p.tolist(),
        "times": times.tolist(),
        "duration": duration.tolist(),
        "event": event.astype(int).tolist(),
    }
    return {**out, "brier": scores, "integrated": float(integrated_brier_score(y, y, p, times))}


if __name__ == "__main__":
    golden = {
        "versions": {"lifelines": lifelines.__version__, "scikit-survival": sksurv.__version__},
        "kaplan_meier": {f"{t}{d}": kaplan_meier(t, d) for t in (0, 1) for d in (0, 1)},
        "incidence": {str(t): incidence(t) for t in (0, 1)},
        "incidence_delayed": incidence_delayed(),
        "cox": {f"{t}{d}": cox(t, d) for t in (0, 1) for d in (0, 1)},
        "brier": brier(),
    }
    path = Path(__file__).parent.parent / "fixtures" / "survival_oracle.json"
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
