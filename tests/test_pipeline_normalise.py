"""The same notebook twice, the same bytes: what is taken out, and what must stay."""

import json
import os
import sys
from pathlib import Path

import pytest

from mktai_kit.pipeline.normalise import normalise, read_notebook, write_notebook
from mktai_kit.pipeline.run import execute
from mktai_kit.settings import KitError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize(
    "name, said", [("not_json", "not a notebook"), ("not_a_notebook", "not a notebook"), ("no_such", "cannot be read")]
)
def test_files_that_are_no_notebooks(name, said):
    with pytest.raises(KitError, match=said) as e:
        read_notebook(FIXTURES / f"{name}.ipynb")
    assert name in str(e.value) and e.value.mend


def test_older_notebooks_get_stable_ids(tmp_path):
    nb = json.loads((FIXTURES / "ok.ipynb").read_text())
    for cell in nb["cells"]:
        del cell["id"]
        cell["source"] = "".join(cell["source"])
    (tmp_path / "old.ipynb").write_text(json.dumps({**nb, "nbformat_minor": 4}))
    assert [c["id"] for c in read_notebook(tmp_path / "old.ipynb")["cells"]][:2] == ["cell-0", "cell-1"]


def output_of(kind, value):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "x", "execution_count": 1}
    out = {"output_type": "display_data", "data": {kind: value}, "metadata": {}}
    cell["outputs"] = (
        [{"output_type": "stream", "name": kind, "text": value}] if kind in ("stdout", "stderr") else [out]
    )
    return {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def cleaned(kind, value, root="/srv/shop"):
    outputs = normalise(output_of(kind, value), root)["cells"][0]["outputs"]
    return None if not outputs else outputs[0]["text"] if "text" in outputs[0] else outputs[0]["data"].get(kind)


@pytest.mark.parametrize(
    "kind, value, result",
    [
        ("stdout", "<A at 0x7f0011223344>\n", "<A at 0x0>\n"),
        ("stdout", "at 0x7f is a byte\n", "at 0x7f is a byte\n"),
        (
            "stdout",
            "/srv/shop/data/x.csv and /srv/shop2/x and my/srv/shop\n",
            "[workspace]/data/x.csv and /srv/shop2/x and my/srv/shop\n",
        ),
        ("stdout", "in /srv/shop.\n", "in [workspace].\n"),
        ("stdout", "a   \nb\t\n", "a\nb\n"),
        ("stdout", " 1%\r 50%\r100%\n", "100%\n"),
        ("stdout", "windows\r\n", "windows\n"),
        ("stdout", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\n", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\n"),
        ("stderr", " 10%|#  | 1/10 [00:00<00:01, 9it/s]\r100%|###| 10/10 [00:01<00:00, 9it/s]\n", None),
        ("stderr", "123it [00:12, 99.3it/s]\n", None),
        ("stderr", "UserWarning: 5% of rows | left\n", "UserWarning: 5% of rows | left\n"),
        ("text/plain", "x  \ny", "x\ny"),
        ("application/json", {"path": "/srv/shop/a", "n": [1]}, {"path": "[workspace]/a", "n": [1]}),
        ("application/vnd.jupyter.widget-view+json", {"model_id": "1"}, None),
        ("image/png", "bm90IGEgcG5n", "bm90IGEgcG5n"),
    ],
)
def test_what_is_cleaned(kind, value, result):
    assert cleaned(kind, value) == result


def test_ids_are_numbered_but_data_that_look_like_ids_stay():
    html = '<style>#T_9f3ab_row0 {}</style><table id="T_9f3ab"><td id="T_9f3ab_row0">T_12345</td></table>'
    assert cleaned("text/html", html) == html.replace("9f3ab", "00000")
    first = "<div id='1b4e28ba-2fa1-41d2-883f-0016d3cca427'></div>"
    customer = "<td>1b4e28ba-2fa1-41d2-883f-0016d3cca428</td>"
    assert cleaned("text/html", first + customer) == "<div id='00000000-0000-4000-8000-000000000000'></div>" + customer


def test_own_folders_are_named(tmp_path):
    here = f"{Path.home()}/a {sys.prefix}/lib {sys.base_prefix}/lib /nowhere/else\n"
    assert cleaned("stdout", here) == "[home]/a [python]/lib [python]/lib /nowhere/else\n"
    assert cleaned("stderr", f"{os.path.realpath('/tmp')}/ipykernel_12/345.py:3: UserWarning\n") in (
        "[cell]:3: UserWarning\n",
    )
    assert cleaned("stdout", f"{tmp_path}/x\n", tmp_path) == "[workspace]/x\n"


def test_stdout_comes_before_stderr_between_displays():
    nb = output_of("stdout", "1\n")
    stream = lambda name, text: {"output_type": "stream", "name": name, "text": text}
    show = {"output_type": "display_data", "data": {"text/plain": "shown"}, "metadata": {}}
    nb["cells"][0]["outputs"] = [
        stream("stderr", "e"),
        stream("stdout", "1"),
        stream("stderr", "f"),
        stream("stdout", "2"),
        show,
        stream("stdout", "3"),
    ]
    found = [o.get("text", "shown") for o in normalise(nb)["cells"][0]["outputs"]]
    assert found == ["12", "ef", "shown", "3"]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The same notebook run twice, under different names, folders and environments."""
    folder = tmp_path_factory.mktemp("twice")
    first = execute(FIXTURES / "prints_ids.ipynb", folder / "a" / "first.ipynb", {"words": ["x", "y"]}, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/Bogota")
        patch.setenv("PYTHONHASHSEED", "5")
        second = execute(FIXTURES / "prints_ids.ipynb", folder / "b" / "second.ipynb", {"words": "x,y"}, progress=False)
    return first, second


def test_same_notebook_same_bytes(twice):
    assert twice[0].read_bytes() == twice[1].read_bytes()


def test_normalising_again_changes_nothing(twice, tmp_path):
    nb = read_notebook(twice[0])
    again = normalise(nb)
    assert again == normalise(again)
    assert write_notebook(again, tmp_path / "again.ipynb").read_bytes() == twice[0].read_bytes()


def test_nothing_of_this_machine_is_in_the_output(twice):
    text = "\n".join(json.dumps(c.get("outputs")) for c in read_notebook(twice[0])["cells"])
    for word in (
        str(Path.home()),
        sys.prefix,
        str(Path.cwd()),
        "papermill",
        "0x7",
        "it/s",
        "tEXt",
        "ipykernel_",
        "2.4.",
    ):
        assert word not in text, word
    cells = {c["id"]: c for c in read_notebook(twice[0])["cells"]}
    assert cells["injected-parameters"]["source"] == "# Parameters\nwords = ['x', 'y']"
    assert not any("papermill" in c["metadata"] for c in cells.values())
    styled = "".join(cells["styled"]["outputs"][0]["data"]["text/html"])
    assert "T_12345" in styled and "T_abcde" in styled and 'id="T_00000"' in styled
    printed = ["".join(o["text"]) for o in cells["printed"]["outputs"]]
    assert (
        printed[0].startswith("one two\n<object object at 0x0> [temp]/* [workspace]")
        and "[cell]" in printed[1]
        and "ready" in printed[1]
    )


def test_the_place_of_a_run_does_not_show():
    for out in ("runs/ok-demo", "/srv/elsewhere/ok"):
        here = out if out.startswith("/") else f"/srv/shop/{out}"
        nb = output_of("stdout", f"{out}/plots {here}/plots {out}2 '{out}' /srv/shop/data\n")
        text = normalise(nb, "/srv/shop", out)["cells"][0]["outputs"][0]["text"]
        assert text == f"[run]/plots [run]/plots {out.replace('/srv/shop', '[workspace]')}2 '[run]' [workspace]/data\n"
    assert (
        normalise(output_of("stdout", "r r/x /srv/shop/r/x\n"), "/srv/shop", "r")["cells"][0]["outputs"][0]["text"]
        == "r r/x [run]/x\n"
    )
