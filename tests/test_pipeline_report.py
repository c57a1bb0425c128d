"""Edge cases of pipeline.report, on a run folder as a case leaves it."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from importlib.resources import files

import nbformat.v4 as v4
import numpy as np
import pandas as pd
import pytest

from mktai_kit.pipeline import report
from mktai_kit.pipeline.report import Page, facts, output, prose, render, safe_html, set_tables
from mktai_kit.settings import KitError

EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)", "=1+1"]


def estimate(value, half, n, note=""):
    ends = (None, None) if value is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "n": n, "level": 0.95, "unit": "", "note": note}


def picture(seed, kind):
    """A matplotlib figure as a notebook stores it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng, fig = np.random.default_rng(seed), Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    ax = FigureCanvasAgg(fig).figure.subplots()
    if kind == "reliability":
        x = np.linspace(0.05, 0.95, 10)
        ax.errorbar(x, x + rng.normal(0, 0.03, 10), yerr=0.05, fmt="o-", color="#17536b", capsize=3)
        ax.plot([0, 1], [0, 1], "--", color="#777")
        ax.set(xlabel="predicted probability", ylabel="share that came back", title="Reliability")
    else:
        ax.barh(
            ["nobody", "at random", "recency", "everybody", "model"], np.sort(rng.normal(900, 700, 5)), color="#17536b"
        )
        ax.set(xlabel="profit, EUR per 1,000 customers", title="Policies compared")
    out = io.BytesIO()
    fig.savefig(out, format="png", metadata={"Software": None})
    return base64.b64encode(out.getvalue()).decode()


def table(frame, **about):
    return v4.new_output("execute_result", {"text/html": frame.to_html(), "text/plain": str(frame)}, metadata=about)


def cells():
    scores = pd.DataFrame(
        {
            "PR-AUC": ["0.612 [0.587, 0.636]", "0.655 [0.631, 0.678]", "0.671 [0.648, 0.693]"],
            "Brier": [0.1812, 0.1730, 0.1698],
            "lift at 10 %": ["1.92 [1.80, 2.05]", "2.11 [1.98, 2.24]", "2.18 [2.05, 2.31]"],
            "n": [4938, 4938, 4938],
        },
        index=pd.Index(["recency only", "logistic regression", "gradient boosting"], name="model"),
    )
    wide = pd.DataFrame(
        np.random.default_rng(1).normal(50, 20, (5, 14)).round(1), columns=[f"week {i}" for i in range(1, 15)]
    )
    dirty = pd.DataFrame({"product": EVIL, "<script>alert(2)</script>": [1, 2, 3, 4]})
    code, md = v4.new_code_cell, v4.new_markdown_cell
    image = lambda seed, kind, **about: v4.new_output(
        "display_data", {"image/png": picture(seed, kind), "text/plain": "<Figure>"}, metadata=about
    )
    return [
        md("# Coming back to the bookshop\n\n> Who will be active in the next 28 days?\n\nEvery figure rests on what was known before."),
        code("PROFILE = 'demo'", metadata={"tags": ["parameters"]}, outputs=[v4.new_output("stream", name="stdout", text="PARAMS")]),
        code("PROFILE = 'full'", metadata={"tags": ["injected-parameters"]}),
        code("import pandas", metadata={"tags": ["setup"]}, outputs=[v4.new_output("stream", name="stdout", text="SETUP")]),
        md("## Who can be harmed\n\nA customer who is left out of every offer pays more than her neighbour. **Decision point:** a person decides who may be left out."),
        md("## The data\n\nOne row is one product line of a basket, see [the source](https://example.org/data). Money is in $ (US); a basket costs $12 to $15. The score is $p_i = P(y_i = 1)$."),
        code("quality", outputs=[v4.new_output("stream", name="stderr", text="STDERR"), v4.new_output("stream", name="stdout", text="rows   1,469,307\nfaults 12 < 20\n")]),
        code("wide", outputs=[table(wide)]),
        md("### Values as customers typed them"),
        code("dirty", outputs=[table(dirty)]),
        md("## How good is the model\n\n| question | answer |\n|---|---:|\n| splits forward in time | 4 |\n| gap in days | 7 |\n\n- calibrated at the original prevalence\n- intervals by households"),
        code("scores", outputs=[table(scores)]),
        code("plot", outputs=[v4.new_output("execute_result", {"text/plain": "<Axes: xlabel='p'>"}), image(1, "reliability", alt="Predicted and observed shares agree")]),
        md("## What a policy would earn\n\n> An assumption, not a measurement: a coupon brings one more visit to one in ten."),
        code("policies", outputs=[image(2, "policy")]),
        md("## Exercise", metadata={"tags": ["exercise"]}),
        code("SOLUTION", metadata={"tags": ["solution"]}, outputs=[v4.new_output("stream", name="stdout", text="SOLVED")]),
    ]  # fmt: skip


SUMMARY = {
    "title": "Who comes back to the bookshop?",
    "question": "Which customers will be active in the next 28 days, and whom should a coupon budget of 5,000 EUR reach?",
    "findings": [
        "Of ten customers the model ranks highest, nine come back: precision at 10 % is 0.91 [0.88, 0.93] (n = 4,938).",
        "The model beats a simple ranking by recency, but not by much: lift 2.18 [2.05, 2.31] against 1.92 [1.80, 2.05].",
        "Its probabilities can be taken at their word: the Brier score is 0.170 [0.164, 0.176].",
        "If one coupon in ten brings a visit, the policy earns 1,240 EUR [310, 2,190] more than no campaign.",
        "Whether it treats age groups alike is not known: only 801 of 2,469 households told us their age.",
    ],
    "decision": "Run the coupon campaign as an experiment: draw half of the 1,000 chosen customers by lot, send to them only, "
    "and measure the effect before the budget is renewed.",
    "limits": [
        "The effect of a coupon is an assumption. The data hold no randomised campaign, so nothing here shows that coupons cause visits.",
        "One chain, one year: a season, a competitor or a price change may alter all of it.",
        "Fairness was judged on the households that gave their age, and they may differ from the rest.",
    ],
}
CARD = {
    "name": "Return within 28 days",
    "version": "1",
    "intended_use": {"primary": "Rank customers for a coupon experiment", "out_of_scope": ["credit", "prices per person"]},
    "training_data": {"rows": 14812, "households": 2469, "snapshots": ["2017-08-01", "2017-09-01"]},
    "metrics": [{"metric": "PR-AUC", "value": estimate(0.671, 0.022, 4938)}, {"metric": "Brier", "value": estimate(0.1698, 0.006, 4938)}],
    "caveats": [EVIL[0], "Calibrated on one year."],
    "human_decisions": {"who_decides": "the marketing manager", "appeal": "customers may ask to be left in"},
}  # fmt: skip
RECORD = {
    "case": "bookshop",
    "profile": "demo",
    "seed": 20240101,
    "parameters": {"budget_per_week": 5000.0, "note": EVIL[1], "formula": "=1+1"},
    "data": [{"file": "transactions.parquet", "rows": 1469307, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}],
    "versions": {"python": "3.11.7", "pandas": "3.1.1", "xgboost": "3.2.0"},
}  # fmt: skip
METRICS = {
    "model": {"pr_auc": estimate(0.671, 0.022, 4938), "brier": estimate(0.1698, 0.006, 4938), "lift_10": estimate(2.18, 0.13, 4938)},
    "fairness": {"verdict": "not enough data", "age_gap": estimate(None, 0, 801, "not enough data: 14 households of 65+, 50 needed")},
    "policy": {"profit": estimate(1240.0, 940.0, 4938)},
}  # fmt: skip
PARAMS = """
gates:
  bookshop:
    ranking_quality: {metric: model.pr_auc.low, min: 0.6, why: "below this a ranking by recency does as well"}
    calibration: {metric: model.brier.high, max: 0.2, why: "the budget is set from the probabilities"}
    fairness: {metric: fairness.age_gap.high, max: 0.1, why: "no age group may be left out", if_not_enough: allow}
    profit: {metric: policy.profit.low, min: 500, why: "a campaign that may earn less is not worth its work"}
"""


def build(root):
    """A workspace with one run folder."""
    run = root / "runs" / "bookshop-demo"
    run.mkdir(parents=True)
    (root / "settings.ini").write_text("[mktai]\n")
    (root / "params.yaml").write_text(PARAMS)
    for name, content in (("summary", SUMMARY), ("card", CARD), ("record", RECORD), ("metrics", METRICS)):
        (run / f"{name}.json").write_text(json.dumps(content))
    put(run, cells())
    return run


def put(run, cells):
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    (run / "notebook.ipynb").write_text(json.dumps(v4.new_notebook(cells=cells)))


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return render(build(tmp_path_factory.mktemp("shown"))).read_text()


@pytest.fixture
def run(tmp_path):
    return build(tmp_path)


class Outline(HTMLParser):
    """What a browser would see: tags with their attributes, headings, ids, text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]


def assert_inert(html):
    """No tag or attribute in `html` can run, load or lead anywhere."""
    banned = {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "input",
        "base",
        "svg",
        "math",
        "video",
        "audio",
        "source",
    }
    for tag, attrs in Outline(html).tags:
        assert tag not in banned, tag
        for name, value in attrs.items():
            assert not name.startswith("on") and name not in (
                "srcset",
                "action",
                "formaction",
                "style",
                "background",
            ), (tag, name)
            if name == "href":
                assert tag == "a" and re.fullmatch(r"#[\w-]+", value), value
            if name == "src":
                assert tag == "img" and re.match(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=]+$", value), (
                    value[:60]
                )
            if name == "http-equiv":
                assert value == "Content-Security-Policy"


def test_it_is_inert_and_calls_nowhere(shown):
    assert_inert(shown)
    assert "url(" not in shown and "@import" not in shown and "@font-face" not in shown
    assert "default-src 'none'" in shown and "example.org" not in shown


def test_order_for_a_manager(shown):
    marks = [
        'id="summary"', "What was found", "Decision</h3>", "May we rely on it?", "What this does not show",
        'id="evidence"', "Who can be harmed</h3>", "Figure 1.", 'id="limits"', 'id="card"', 'id="record"',
    ]  # fmt: skip
    places = [shown.index(mark) for mark in marks]
    assert places == sorted(places)
    for text in (SUMMARY["title"], SUMMARY["question"], SUMMARY["decision"], *SUMMARY["limits"]):
        assert text in shown
    text = " ".join("".join(Outline(shown).text).split())
    for finding in SUMMARY["findings"]:
        assert finding in text


def test_it_is_accessible(shown):
    page = Outline(shown)
    assert (
        page.of("html") == [{"lang": "en"}] and len(page.of("h1")) == len(page.of("main")) == len(page.of("title")) == 1
    )
    levels = [int(tag[1]) for tag, _attrs in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    assert all(img["alt"].strip() for img in page.of("img")) and len(page.of("img")) == 2
    assert all(th["scope"] in ("col", "row") for th in page.of("th"))
    assert all(
        region["aria-label"] and region["tabindex"] == "0"
        for region in page.of("div")
        if region.get("class") == "scroll"
    )
    ids = [attrs["id"] for _tag, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.of("a")} <= set(ids)
    assert {s["aria-labelledby"] for s in page.of("section")} <= set(ids)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast(theme):
    css = (files("mktai_kit") / "pipeline" / "report.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css, re.S)[theme]))
    on = [("ink", "paper"), ("soft", "paper"), ("accent", "paper"), ("ink", "wash"), ("open", "open-wash")]
    for text, ground in [*on, ("pass", "pass-wash"), ("fail", "fail-wash")]:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_states_are_said_and_not_only_coloured(shown):
    assert shown.count("✕</span> fail") == 2 and "?</span> not enough data" in shown and "✓</span> pass" in shown
    assert "2 pass, 1 fail, 1 not enough data. The run was stopped: do not act on it." in shown
    assert "Not enough data: 14 households of 65+, 50 needed. The run may go on without it." in shown


def test_what_readers_do_not_see(shown):
    for word in (
        "PARAMS",
        "SETUP",
        "SOLVED",
        "SOLUTION",
        "STDERR",
        "PROFILE",
        "Exercise",
        "&lt;Axes",
        "Coming back to the bookshop",
        "Code</summary>",
    ):
        assert word not in shown, word


def test_code_is_folded_when_asked_for(run):
    html = render(run, code=True).read_text()
    assert (
        html.count("<summary>Code</summary>") == 6
        and "<details><summary>Code</summary><pre><code>scores</code>" in html
    )
    assert "SOLUTION" not in html and "PROFILE" not in html


def test_same_bytes_again_and_elsewhere(run, tmp_path):
    first = render(run).read_bytes()
    assert render(str(run)).read_bytes() == first
    assert render(build(tmp_path / "elsewhere")).read_bytes() == first
    assert str(tmp_path).encode() not in first


@pytest.mark.parametrize(
    "evil", [*EVIL, "</style><script>alert(1)</script>", "</title><svg onload=alert(1)>", "{{ 7*7 }}", "\ud800\x00"]
)
def test_values_from_data_are_only_text(run, evil):
    summary = {
        **SUMMARY,
        "title": evil,
        "question": evil,
        "findings": [evil + " [1, 2]"] * 3,
        "decision": evil,
        "limits": [evil] * 4,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "card.json").write_text(
        json.dumps({evil: evil, "nested": {evil: [evil, {evil: evil}]}, "rows": [{evil: evil}, {"a": None}]})
    )
    (run / "record.json").write_text(json.dumps({**RECORD, "parameters": {evil: evil}, "case": "bookshop"}))
    (run / "metrics.json").write_text(json.dumps({**METRICS, evil: {evil: evil}}))
    quoted = evil.replace('"', "'")
    (run.parent.parent / "params.yaml").write_text(
        PARAMS + f"    {json.dumps(evil)}: {{metric: fairness.verdict, equals: pass, why: {json.dumps(quoted)}}}\n"
    )
    try:
        frame = pd.DataFrame({evil: [evil], "n": [1]}, index=pd.Index([evil], name=evil))
    except UnicodeEncodeError:  # pandas refuses a lone surrogate itself
        frame = pd.DataFrame({"n": [1]})
    md = [
        v4.new_markdown_cell(
            f"## {evil}\n\n{evil} [x]({evil}) ![{evil}](https://example.org/x.png) <https://example.org>\n\n| {evil} |\n|---|\n| {evil} |"
        )
    ]
    code = v4.new_code_cell("x", outputs=[
        table(frame), v4.new_output("stream", name="stdout", text=evil), v4.new_output("display_data", {"text/markdown": f"# {evil}"}),
        v4.new_output("display_data", {"image/png": picture(1, "policy")}, metadata={"alt": evil}),
        v4.new_output("display_data", {"text/html": f"<p>{evil}</p>", "text/plain": "<IPython.core.display.HTML object>"}),
    ])  # fmt: skip
    put(run, [*md, code])
    html = render(run, code=True).read_text()
    assert_inert(html)
    if evil.isprintable() and evil.isascii():
        assert evil in "".join(Outline(html).text)


def test_tables_survive_only_as_tables():
    assert_inert(
        safe_html(
            '<a href="javascript:x">a</a><img src=x onerror=y><svg><script>z</script></svg><table onclick=q style="x"><td>1</table>'
        )
    )
    assert (
        safe_html('<td colspan="9999">1</td><table><td colspan="2" rowspan="x" class="c">1</table>').count("span") == 1
    )
    assert "<style" not in safe_html(pd.DataFrame({"a": [1]}).to_html(notebook=True))


def test_tables_are_set_for_reading():
    frame = pd.DataFrame(
        {
            "name": ["a", "b"],
            "share": ["12 %", "-3.5 %"],
            "est": ["0.5 [0.4, 0.6] (n = 12)", "-0.1 [-0.2, 0.0] (n = 9)"],
        }
    )
    html = set_tables(safe_html(frame.set_index("name").to_html()), "T & co")
    assert html.count('class="number"') == 2 + 4 and html.count("<tr>") == 3 and 'aria-label="T &amp; co"' in html
    two = frame.assign(g=["x", "x"]).set_index(["g", "name"]).to_html()
    assert "rowspan" in set_tables(safe_html(two), "t")
    columns = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")]))
    assert 'colspan="2"' in set_tables(safe_html(columns.to_html()), "t")
    nested = "<table><tbody><tr><td><table><tbody><tr><td>1</td></tr></tbody></table></td></tr></tbody></table>"
    assert set_tables(nested, "t") == nested
    assert set_tables("<table></table><p>x</p>", "t").endswith("<p>x</p>")
    assert "<caption>" in set_tables(safe_html(frame.style.set_caption("c").to_html()), "t")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("costs $12 and $15", "<p>costs $12 and $15</p>"),
        ("from $12-$15, all in US$", "<p>from $12-$15, all in US$</p>"),
        ("is $x_1 * y_2 * z$.", "<p>is <code>x_1 * y_2 * z</code>.</p>"),
        ("$$\n\\sum_i x_i\n$$", "<p><code>\\sum_i x_i</code></p>"),
        ("$2^n$ and `$x$` and \\$5$", "<p><code>2^n</code> and <code>$x$</code> and $5$</p>"),
        ("$<b>$ $", "<p><code>&lt;b&gt;</code> $</p>"),
        (r"\\$5, then -\\$6 [-\\$7, \\$8]", "<p>$5, then -$6 [-$7, $8]</p>"),
        ("[x](javascript:alert(1)) <https://a.b> ![pic & co](https://a.b/c.png)", "<p>x https://a.b pic &amp; co</p>"),
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>"),
    ],
)
def test_prose(text, html):
    assert prose(text).strip() == html


def test_headings_follow_each_other_without_a_gap():
    page = Page()
    html = (
        prose("# Title\n\n> subtitle\n\ntext", page)
        + prose("##### Deep", page)
        + prose("# Again\n\n#### Deeper\n\n###### Deepest", page)
    )
    assert re.findall(r"<(h\d)", html) == ["h3", "h3", "h4", "h5"] and "Title" not in html and "subtitle" not in html
    assert [text for _id, text in page.headings] == ["Deep", "Again"]


def test_outputs():
    page = Page(heading="Above")
    stdout = {"output_type": "stream", "name": "stdout", "text": "\x1b[31mred\x1b[0m\n 10%\r100%\r\nend\n"}
    assert output(stdout, page) == "<pre>red\n100%\nend</pre>"
    show = lambda **data: output(
        {"output_type": "display_data", "data": {k.replace("_", "/", 1): v for k, v in data.items()}, "metadata": {}},
        page,
    )
    assert show(text_plain="<Axes: xlabel='x'>") == "" and show(text_plain="3 < 5") == "<pre>3 &lt; 5</pre>"
    assert show(text_html="<p>rich</p>", text_plain="<IPython.core.display.HTML object>") == "<p>rich</p>"
    assert show(text_html="<div>widget</div>", text_plain="plain") == "<pre>plain</pre>"
    assert 'alt="Above"' in output(
        {"output_type": "display_data", "data": {"image/svg+xml": "<svg onload='x'/>"}, "metadata": {}}, page
    )
    assert output({"output_type": "display_data", "data": {}, "metadata": {}}, page) == ""
    with pytest.raises(KitError, match="ended in ZeroDivisionError"):
        output({"output_type": "error", "ename": "ZeroDivisionError", "evalue": "", "traceback": []}, page)


def test_facts_of_any_shape():
    assert facts({"seed_value": 20240101, "x": 0.1 + 0.2}, exact=True).count("20240101") == 1
    assert "0.30000000000000004" in facts(0.1 + 0.2, exact=True) and facts(0.1 + 0.2) == "0.3"
    assert facts(None) == "–" and facts(True) == "yes" and facts([]) == facts({}) == "none"
    assert facts([1, "a"]) == "<ul><li>1</li><li>a</li></ul>"
    assert facts([{"a": 1}, {"b": 2}]).count("<td") == 4
    assert "<code>" in facts("9f86d081884c7d65")
    assert "not enough data: few" in facts(estimate(None, 0, 3, "not enough data: few"))


@pytest.mark.parametrize("name", ["metrics", "card", "record"])
def test_what_is_missing_is_said(run, name):
    (run / f"{name}.json").unlink()
    assert f"{name}.json is not in the run folder." in render(run).read_text()


def test_gates_never_stop_the_report(run):
    params = run.parent.parent / "params.yaml"
    for text, said in [
        ("gates: {other: {a: {metric: v, min: 1}}}", "no gates are set for the case &#39;bookshop&#39;"),
        ("gates: [", "line 1: "),
    ]:
        params.write_text(text)
        html = render(run).read_text()
        assert "The gates were not judged" in html and said in html and str(run.parent) not in html
    params.unlink()
    assert "The gates were not judged: the file is missing" in render(run).read_text()


def test_a_folder_that_does_not_say_its_case(run):
    (run / "record.json").unlink()
    odd = run.rename(run.parent / "odd")
    html = render(odd).read_text()
    assert "does not say which case" in html and '<p class="kicker">Case report</p>' in html


def test_trial_runs_are_marked(run, shown):
    (run / "record.json").write_text(json.dumps({**RECORD, "profile": "smoke"}))
    assert "Trial run." in render(run).read_text() and "Trial run." not in shown


def test_language(run, monkeypatch):
    monkeypatch.setenv("MKTAI_LANGUAGE", "es")
    monkeypatch.setattr(report, "_", lambda text: {"Decision": "Decisión"}.get(text, text))
    html = render(run).read_text()
    assert '<html lang="en">' in html and "Decisión</h3>" in html  # no catalogue: the tag must not claim Spanish
    monkeypatch.setattr(report, "translated_into", lambda: "es")
    assert '<html lang="es">' in render(run).read_text()


def test_every_fixed_string_of_the_template_can_be_translated(run, monkeypatch):
    monkeypatch.setattr(report, "_", lambda text: f"¡{text}!")
    html = render(run).read_text()
    own = html.partition('<section id="evidence"')[0] + html.partition('<section id="limits"')[2]
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>|<th scope=\"col\">(.*?)</th>|<summary>(.*?)</summary>", own)
    texts = [t for m in headings for t in m if t]
    assert len(texts) > 8 and all(
        t.startswith("¡") or t in ("Metric", "Value", "file", "rows", "sha256") for t in texts
    ), texts


def test_a_large_file_is_a_warning(run, monkeypatch):
    monkeypatch.setattr(report, "LARGE", 1000)
    with pytest.warns(UserWarning, match="bytes; many mail servers"):
        assert render(run).is_file()


def damage(name, content):
    def change(run):
        path = run / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return change


NB = v4.new_notebook(
    cells=[
        v4.new_code_cell(
            "1/0", id="a", outputs=[v4.new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])]
        )
    ]
)
BAD_PNG = v4.new_notebook(
    cells=[v4.new_code_cell("p", id="a", outputs=[v4.new_output("display_data", {"image/png": "AAAA"})])]
)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (damage("notebook.ipynb", None), "notebook.ipynb: the notebook cannot be read"),
        (damage("notebook.ipynb", b"{"), "notebook.ipynb: this is not a notebook"),
        (damage("notebook.ipynb", {"cells": []}), "notebook.ipynb: this is not a notebook of format 4"),
        (
            damage("notebook.ipynb", {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": 1}),
            "notebook.ipynb: this is not a notebook of format 4",
        ),
        (
            damage(
                "notebook.ipynb", {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}
            ),
            "not a notebook of format 4",
        ),
        (damage("notebook.ipynb", {"nbformat": "x"}), "notebook.ipynb: this is not a notebook of format 4"),
        (
            damage(
                "notebook.ipynb", {**v4.new_notebook(), "cells": [{"cell_type": "code", "source": "", "outputs": [3]}]}
            ),
            "notebook.ipynb: the file is not a valid notebook",
        ),
        (damage("notebook.ipynb", NB), "notebook.ipynb: a cell below '' ended in ZeroDivisionError"),
        (damage("notebook.ipynb", BAD_PNG), "notebook.ipynb: a figure below '' is not a valid image/png"),
        (damage("summary.json", None), "summary.json: the file is missing"),
        (damage("summary.json", b"[]"), "summary.json: the file holds a list"),
        (damage("summary.json", {**SUMMARY, "findings": []}), "summary.json: the summary has no findings"),
        (damage("summary.json", {k: v for k, v in SUMMARY.items() if k != "findings"}), "no findings"),
        (damage("summary.json", {**SUMMARY, "findings": [1]}), "no findings"),
        (damage("summary.json", {**SUMMARY, "findings": "one"}), "no findings"),
        (damage("summary.json", {**SUMMARY, "limits": [" "]}), "no limits"),
        (damage("summary.json", {**SUMMARY, "decision": ""}), "no decision"),
        (damage("metrics.json", b'{"a": NaN}'), "metrics.json: the file holds NaN"),
        (damage("card.json", b"{,}"), "card.json: the file is not valid JSON"),
        (damage("record.json", b"\xff"), "record.json: the file is not text in UTF-8"),
    ],
)
def test_damaged_runs(run, change, match):
    change(run)
    (run / "report.html").write_text("old")
    with pytest.raises(KitError, match=re.escape(match)) as e:
        render(run)
    assert e.value.mend and (run / "report.html").read_text() == "old"
    assert not [name for name in os.listdir(run) if "partial" in name]


def test_no_folder_or_no_leave_to_write(run):
    with pytest.raises(KitError, match="no such run folder"):
        render(run / "none")
    (run / "report.html").mkdir()
    with pytest.raises(KitError, match="report.html"):
        render(run)


def test_a_missing_library_names_its_extra(run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "nh3", None)
    with pytest.raises(KitError, match=r"mktai-kit\[run\]"):
        render(run)
