"""Sources: what can go wrong on the way to the data gives one clear message, leaves nothing behind, and the next try works.

No test here needs the network. Tests on real data run where the data are: fetched already, or in the mirror folder.
"""

import dataclasses
import errno
import hashlib
import http.server
import json
import lzma
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mktai_kit.data import contracts, sources
from mktai_kit.settings import KitError, Settings
from mktai_kit.settings import load as load_settings

DATA = b"customer_id,amount\n1,10\n2,20\n"
MORE = b"more\n" * 9

# A pip that does what FAKE_PIP says; each call leaves a line in the log.
FAKE_PIP = """
import os, pathlib, shutil, sys, time
mode, wheel, log = {mode!r}, {wheel!r}, {log!r}
dest = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--dest="))
with open(log, "a") as f: f.write(" ".join(sys.argv[1:]) + "\\n")
says = {{"network": "WARNING: Retrying after connection broken by 'NewConnectionError'\\nERROR: No matching distribution found",
        "missing": "ERROR: Could not find a version\\nERROR: No matching distribution found for tiny==1.0",
        "full": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "crash": "Traceback\\nZeroDivisionError: what nobody foresaw",
        "wrong": "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."}}
if mode == "sleep":
    (pathlib.Path(dest) / "half.whl").write_bytes(b"half")
    time.sleep(60)
if mode == "slow": time.sleep(0.5)
if mode in says: sys.exit(says[mode])
shutil.copy(wheel, dest)
"""


def sha(content):
    return hashlib.sha256(content).hexdigest()


def make_wheel(path, members):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in {**members, "tiny-1.0.dist-info/RECORD": b""}.items():
            z.writestr(zipfile.ZipInfo(name), content)
        z.writestr(zipfile.ZipInfo("tiny-1.0.dist-info/METADATA"), "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        z.writestr(
            zipfile.ZipInfo("tiny-1.0.dist-info/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    return sources.Wheel("tiny", "1.0", path.name, path.stat().st_size, sha(path.read_bytes()))


def make_source(**changes):
    facts = dict.fromkeys(("title", "what", "period", "licence", "citation", "page"), "-")
    return sources.Source(**{"name": "tiny", **facts, **changes})


class World:
    """A data folder, a cache, an index folder with one wheel of two files, and no mirror."""

    def __init__(self, home):
        self.home, self.index = home, home / "index"
        self.index.mkdir()
        self.wheel_path = self.index / "tiny-1.0-py3-none-any.whl"
        self.wheel = make_wheel(
            self.wheel_path, {"tiny/data.csv": DATA, "tiny/more.txt": MORE, "tiny/__init__.py": b"1 / 0"}
        )
        files = (
            sources.File("data.csv", len(DATA), sha(DATA), "tiny/data.csv"),
            sources.File("more.txt", len(MORE), sha(MORE), "tiny/more.txt"),
        )
        self.source = make_source(files=files, wheel=self.wheel)
        self.settings = Settings(root=home, data_dir=home / "raw", runs_dir=home / "runs", cache_dir=home / "cache")
        self.folder = home / "raw" / "tiny"
        self.cached = home / "cache" / self.wheel_path.name
        self.log = home / "pip.log"

    def pip(self, mode="ok"):
        script = self.home / f"pip_{mode}.py"
        script.write_text(FAKE_PIP.format(mode=mode, wheel=str(self.wheel_path), log=str(self.log)))
        return lambda: [sys.executable, str(script)]

    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def fetch(self, source=None, **options):
        return sources.fetch(source or self.source, settings=self.settings, progress=False, **options)

    def is_whole(self):
        names = sorted(p.name for p in self.folder.iterdir())
        return names == ["data.csv", "manifest.json", "more.txt"] and (self.folder / "data.csv").read_bytes() == DATA

    def is_clean(self):
        left = [p for d in ("raw", "cache") for p in (self.home / d).rglob("*") if p != self.cached]
        return left == []


@pytest.fixture
def world(tmp_path, monkeypatch):
    w = World(tmp_path)
    monkeypatch.setattr(sources, "_pip", w.pip())
    return w


def complaint(call, *args, **options):
    with pytest.raises(KitError) as e:
        call(*args, **options)
    assert e.value.mend and e.value.where is not None
    return str(e.value)


# The catalogue


def test_the_catalogue_is_whole():
    named = {"complete_journey", "cdnow", "telco", "online_shoppers", "online_retail_ii", "open_bandit"}
    assert named <= set(sources.CATALOGUE)
    for name, source in sources.CATALOGUE.items():
        assert source.name == name and source.variants and source.faults and source.tables
        assert all((source.title, source.what, source.period, source.licence, source.citation, source.page))
        assert name in sources.LOADERS
        for table, spec in source.tables.items():
            assert table in contracts.TABLES and spec.rows > 0 and all(spec.columns.values())
        for variant in source.variants:
            assert source.files_of(variant)
        for fault in source.faults:
            assert bool(fault.sql) == (fault.rows is not None) and fault.variant in ("", *source.variants)
        assert sources.show(name).count("sha256 ") == len(source.files)


def test_catalogue_lists_what_is_fetched(world):
    listed = sources.catalogue(world.settings)
    assert list(listed.index) == list(sources.CATALOGUE) and not listed["fetched"].any()
    assert listed.loc["complete_journey", "rows"] == 1_469_307


@pytest.mark.parametrize("call", [sources.show, sources.fetch, sources.load, sources.count_faults])
def test_unknown_name_is_answered_with_the_nearest(call):
    text = complaint(call, "complete_jorney")
    assert "did you mean 'complete_journey'" in text and "online_shoppers" in text


def test_unknown_variant_and_table(world):
    assert "did you mean 'local'" in complaint(
        sources.fetch, "complete_journey", settings=world.settings, variant="locale"
    )
    assert "did you mean 'transactions'" in complaint(
        sources.load, "complete_journey", ["transaction"], settings=world.settings
    )


ENTRY = """
[tiny]
title = "t"
what = "w"
period = "p"
licence = "l"
citation = "c"
page = "p"
wheel = {package = "tiny", version = "1.0", file = "t.whl", size = 1, sha256 = "SHA"}
files = [{name = "data.csv", member = "tiny/data.csv", size = 24, sha256 = "SHA"}]
""".replace("SHA", "a" * 64)


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('name = "data.csv"', 'name = "../data.csv"', "no plain file name"),
        ('name = "data.csv"', 'name = "/etc/data.csv"', "no plain file name"),
        ('name = "data.csv"', 'name = ".."', "no plain file name"),
        ('name = "data.csv"', "name = 'C:\\data.csv'", "no plain file name"),
        ('name = "data.csv"', 'name = "manifest.json"', "no plain file name"),
        ("a" * 64, "a" * 63, "64 hexadecimal"),
        ("size = 24,", 'size = 24, origin = "address",', "'address' is not given"),
        ("size = 24,", 'size = 24, origin = "nowhere",', "origin"),
        ("size = 24,", 'size = 24, variant = "big",', "no variant 'big'"),
        ("size = 24,", "siez = 24,", "siez"),
        ('title = "t"', "", "title"),
        ("[tiny]", "[tiny", "cannot be read"),
    ],
)
def test_bad_catalogue_entries(tmp_path, old, new, says):
    (tmp_path / "c.toml").write_text(ENTRY)
    assert set(sources.read_catalogue(tmp_path / "c.toml")) == {"tiny"}
    (tmp_path / "c.toml").write_text(ENTRY.replace(old, new))
    text = complaint(sources.read_catalogue, tmp_path / "c.toml")
    assert says in text and "c.toml" in text


def test_missing_catalogue_file(tmp_path):
    assert "No such file" in complaint(sources.read_catalogue, tmp_path / "none.toml")


# Fetching, when all is well


def test_fetch_is_whole_and_clean(world):
    assert world.fetch() == world.folder and world.is_whole()
    assert sorted(p.name for p in world.cached.parent.iterdir()) == [world.cached.name]
    manifest = json.loads((world.folder / "manifest.json").read_text())
    assert manifest == {
        "data": "tiny",
        "files": {
            "data.csv": {"sha256": sha(DATA), "size": len(DATA)},
            "more.txt": {"sha256": sha(MORE), "size": len(MORE)},
        },
    }


def test_the_manifest_is_the_same_everywhere(world, tmp_path):
    one, two = world.fetch(dest=tmp_path / "a"), world.fetch(dest=tmp_path / "b" / "c")
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_fetching_twice_costs_nothing(world, monkeypatch):
    world.fetch()
    monkeypatch.setattr(sources, "_fill", None)
    monkeypatch.setattr(sources, "_sha256", None)
    start = time.perf_counter()
    for _ in range(10):
        world.fetch()
    assert time.perf_counter() - start < 0.5 and len(world.calls()) == 1


def test_progress_goes_to_stderr(world, capsys):
    sources.fetch(world.source, settings=world.settings)
    out, err = capsys.readouterr()
    assert out == "" and "fetching tiny 1.0" in err


def test_mirror_comes_before_the_package_index(world):
    mirrored = dataclasses.replace(world.settings, mirror=world.index)
    assert sources.fetch(world.source, settings=mirrored, progress=False) == world.folder
    assert world.is_whole() and not world.calls() and not world.cached.exists()


def test_other_files_in_the_destination_are_left_alone(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    world.fetch(dest=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    third = dataclasses.replace(world.source.files[0], name="third.csv")
    other = make_source(name="other", files=(third,), wheel=world.wheel)
    assert "holds the data set tiny" in complaint(world.fetch, other, dest=tmp_path / "mine")


def test_relative_destination(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert world.fetch(dest="here") == tmp_path / "here"


@pytest.mark.parametrize("harm", ["short", "gone", "manifest", "not json", "a list"])
def test_a_harmed_folder_is_made_whole(world, harm):
    world.fetch()
    manifest = world.folder / "manifest.json"
    {
        "short": lambda: (world.folder / "data.csv").write_bytes(DATA[:5]),
        "gone": lambda: (world.folder / "data.csv").unlink(),
        "manifest": manifest.unlink,
        "not json": lambda: manifest.write_text("{"),
        "a list": lambda: manifest.write_text('["files"]'),
    }[harm]()
    world.fetch()
    assert world.is_whole()


def test_verify_notices_what_the_size_does_not_show(world):
    world.fetch()
    (world.folder / "data.csv").write_bytes(DATA.replace(b"10", b"99"))
    world.fetch()
    assert not world.is_whole()
    world.fetch(verify=True)
    assert world.is_whole()


def test_a_new_catalogue_replaces_the_old_file(world):
    world.fetch()
    files = (sources.File("data.csv", len(MORE), sha(MORE), "tiny/more.txt"),)
    world.fetch(dataclasses.replace(world.source, files=files))
    assert (world.folder / "data.csv").read_bytes() == MORE


def test_variants_with_files_of_their_own_have_folders_of_their_own(world):
    own = tuple(dataclasses.replace(f, variant=v) for f, v in zip(world.source.files, ("a", "b"), strict=True))
    split = dataclasses.replace(world.source, files=own, variants={"a": "-", "b": "-"})
    one, two = world.fetch(split), world.fetch(split, variant="b")
    assert (one.name, two.name) == ("tiny", "tiny-b")
    assert (one / "data.csv").exists() and not (one / "more.txt").exists() and (two / "more.txt").exists()


# Fetching, when something fails


def check_failure(world, says, **options):
    text = complaint(world.fetch, **options)
    assert says in text, text
    assert world.is_clean(), "something was left behind"
    return text


@pytest.mark.parametrize(
    "mode, says",
    [
        ("network", "no network"),
        ("missing", "does not have it"),
        ("full", "disk is full"),
        ("wrong", "SHA-256 is not the one"),
        ("crash", "pip failed: ZeroDivisionError"),
    ],
)
def test_pip_fails(world, monkeypatch, mode, says):
    monkeypatch.setattr(sources, "_pip", world.pip(mode))
    text = check_failure(world, says)
    assert "tiny 1.0" in text and "mirror" in text
    assert len(world.calls()) == (2 if mode == "wrong" else 1)  # pip's own cache gets no second chance
    monkeypatch.setattr(sources, "_pip", world.pip())
    world.fetch()
    assert world.is_whole()


def test_pip_is_asked_for_nothing_but_the_wheel(world):
    world.fetch()
    for option in ("download", "--no-deps", "--only-binary=:all:", "--require-hashes"):
        assert option in world.calls()[0].split()


def test_no_pip(world, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "_base_executable", shutil.which("false"))
    assert "ensurepip" in check_failure(world, "no pip")


def test_pip_gives_another_wheel(world):
    make_wheel(world.wheel_path, {"tiny/data.csv": b"other"})
    check_failure(world, "SHA-256")


def real_pip(monkeypatch, index):
    monkeypatch.undo()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def test_with_the_real_pip(world, monkeypatch):
    real_pip(monkeypatch, world.index)
    world.fetch()
    assert world.is_whole()


def test_the_real_pip_refuses_a_wrong_hash_and_a_missing_version(world, monkeypatch):
    real_pip(monkeypatch, world.index)
    for change, says in (({"sha256": "0" * 64}, "SHA-256 is not the one"), ({"version": "9.9"}, "does not have it")):
        wrong = dataclasses.replace(world.source, wheel=dataclasses.replace(world.wheel, **change))
        assert says in complaint(world.fetch, wrong)
        assert world.is_clean()


def test_wrong_hash_of_a_file(world):
    bad = dataclasses.replace(world.source.files[1], sha256="0" * 64)
    text = check_failure(
        world, "more.txt has SHA-256", source=dataclasses.replace(world.source, files=(world.source.files[0], bad))
    )
    assert "the catalogue says 000000000000" in text
    world.fetch()
    assert world.is_whole()


def test_a_failed_try_keeps_what_was_there(world):
    world.fetch()
    bad = (dataclasses.replace(world.source.files[0], sha256="0" * 64), world.source.files[1])
    complaint(world.fetch, dataclasses.replace(world.source, files=bad))
    assert world.is_whole()


def test_corrupt_cache_is_fetched_anew(world):
    world.cached.parent.mkdir()
    world.cached.write_bytes(world.wheel_path.read_bytes()[:-7])
    world.fetch()
    assert world.is_whole() and len(world.calls()) == 1 and world.cached.read_bytes() == world.wheel_path.read_bytes()


def test_whole_cache_is_used(world):
    world.cached.parent.mkdir()
    shutil.copy(world.wheel_path, world.cached)
    world.fetch()
    assert world.is_whole() and not world.calls()


def test_corrupt_mirror_is_an_error(world, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / world.wheel.file).write_bytes(b"not a wheel")
    mirrored = dataclasses.replace(world.settings, mirror=tmp_path / "mirror")
    assert "SHA-256" in complaint(sources.fetch, world.source, settings=mirrored, progress=False)
    assert world.is_clean()


def test_mirror_folder_does_not_exist(world, tmp_path):
    mirrored = dataclasses.replace(world.settings, mirror=tmp_path / "none")
    assert "MKTAI_MIRROR" in complaint(sources.fetch, world.source, settings=mirrored, progress=False)
    assert world.is_clean()


def unpack_from(path, world, **changes):
    sources._unpack(path, dataclasses.replace(world.source.files[0], **changes), world.home / "out")


def test_broken_archives(world):
    (world.home / "broken.zip").write_bytes(world.wheel_path.read_bytes()[:60])
    assert "archive is broken" in complaint(unpack_from, world.home / "broken.zip", world)
    assert "no member 'tiny/none'" in complaint(unpack_from, world.wheel_path, world, member="tiny/none")
    assert "larger than" in complaint(unpack_from, world.wheel_path, world, size=5)


def test_a_member_that_points_elsewhere_goes_where_we_say(world):
    evil = world.home / "evil" / "tiny-1.0-py3-none-any.whl"
    evil.parent.mkdir()
    make_wheel(evil, {"../../evil.txt": b"evil", "tiny/data.csv": DATA})
    unpack_from(evil, world, member="../../evil.txt")
    assert (world.home / "out").read_bytes() == b"evil" and not list(world.home.parent.glob("evil.txt"))


@pytest.mark.parametrize(
    "number, says",
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "folder that you may"),
        (errno.EROFS, "folder that you may"),
    ],
)
@pytest.mark.parametrize("mode", ["wb", "a"])
def test_disk_that_does_not_take_it(world, monkeypatch, number, says, mode):
    """`wb` is the first data file, `a` the lock in a folder that cannot be written."""

    def failing(path, how="r", *args, **options):
        if how == mode:
            raise OSError(number, os.strerror(number), str(path))
        return open(path, how, *args, **options)

    monkeypatch.setattr(sources, "open", failing, raising=False)
    check_failure(world, says)
    monkeypatch.undo()
    monkeypatch.setattr(sources, "_pip", world.pip())
    world.fetch()
    assert world.is_whole()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere; simulated above"
)
def test_folder_that_may_not_be_written_to(world, tmp_path):
    (tmp_path / "raw").mkdir(mode=0o500)
    assert "Permission denied" in complaint(world.fetch)


def test_destination_is_a_file(world, tmp_path):
    (tmp_path / "raw").write_text("a file")
    assert "cannot read or write here" in complaint(world.fetch)


# Interruptions


def test_interrupted_between_two_files(world, monkeypatch):
    seen = []

    def check(file, path, where, real=sources._check):
        seen.append(file.name)
        if file.name == "more.txt":
            raise KeyboardInterrupt
        return real(file, path, where)

    monkeypatch.setattr(sources, "_check", check)
    with pytest.raises(KeyboardInterrupt):
        world.fetch()
    assert "data.csv" in seen and world.is_clean()


def test_interrupted_while_the_files_move(world, monkeypatch):
    def replace(old, new, real=os.replace):
        if Path(new).name == "more.txt":
            raise KeyboardInterrupt
        real(old, new)

    monkeypatch.setattr(sources.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        world.fetch()
    assert [p.name for p in world.folder.iterdir()] == ["data.csv"]  # whole, and not taken for a whole data set
    monkeypatch.undo()
    monkeypatch.setattr(sources, "_pip", world.pip())
    world.fetch()
    assert world.is_whole()


def start_fetch(home, mode):
    """In a process of its own."""
    home = Path(home)
    w = World.__new__(World)
    w.home, w.log, w.wheel_path = home, home / "pip.log", home / "index" / "tiny-1.0-py3-none-any.whl"
    sources._pip = w.pip(mode)
    source, settings = pickle.loads((home / "job.pkl").read_bytes())
    sources.fetch(source, settings=settings, progress=False)


def in_process(world, mode):
    (world.home / "job.pkl").write_bytes(pickle.dumps((world.source, world.settings)))
    process = multiprocessing.get_context("spawn").Process(target=start_fetch, args=(str(world.home), mode))
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle_of_a_download(world, how):
    process = in_process(world, "sleep")
    deadline = time.monotonic() + 60
    while not list((world.home / "cache").glob(".*.partial/half.whl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode not in (0, None)
    if how == signal.SIGINT:
        assert world.is_clean()
    world.fetch()  # neither the lock nor the half file of the dead process stands in the way
    assert world.is_whole() and [p.name for p in (world.home / "cache").iterdir()] == [world.cached.name]


@pytest.mark.slow
def test_two_at_once_download_once(world):
    both = [in_process(world, "slow") for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert world.is_whole() and len(world.calls()) == 1


def test_stale_lock_file_does_not_block(world):
    world.folder.mkdir(parents=True)
    (world.folder / ".fetch.lock").write_text("left by a process that is long gone")
    world.fetch()
    assert world.is_whole()


def test_a_lock_held_for_too_long_is_said(world):
    with sources._lock(world.home / "x" / ".lock", False), pytest.raises(KitError, match="another process"):
        with sources._lock(world.home / "x" / ".lock", False, patience=0.3):
            pass
    assert not (world.home / "x").exists()


def test_threads_take_turns(world):
    order = []

    def work(n):
        with sources._lock(world.home / "x" / ".lock", False):
            order.append(("in", n))
            time.sleep(0.05)
            order.append(("out", n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(order[i][1] == order[i + 1][1] for i in range(0, 8, 2)), order


# Addresses


@pytest.fixture
def site(tmp_path):
    """A web server on this machine: /data.csv, /data.zip, /long, /cut and nothing else."""
    (tmp_path / "zipped").mkdir()
    make_wheel(tmp_path / "zipped" / "data.zip", {"inner/data.csv": DATA})
    pages = {
        "/data.csv": DATA,
        "/data.zip": (tmp_path / "zipped" / "data.zip").read_bytes(),
        "/long": DATA * 99,
        "/cut": DATA[:-9],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in pages:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(pages[self.path]) + (9 if self.path == "/cut" else 0)))
            self.end_headers()
            self.wfile.write(pages[self.path])

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def at_address(url, member="", by_hand="", **changes):
    file = sources.File("data.csv", len(DATA), sha(DATA), member, "address", **changes)
    return make_source(files=(file,), address=sources.Address(url, by_hand))


def test_from_an_address(world, site):
    folder = world.fetch(at_address(f"{site}/data.csv"))
    assert (folder / "data.csv").read_bytes() == DATA


def test_from_a_zip_at_an_address(world, site):
    folder = world.fetch(at_address(f"{site}/data.zip", "inner/data.csv"))
    assert sorted(p.name for p in folder.iterdir()) == ["data.csv", "manifest.json"]


@pytest.mark.parametrize(
    "path, says",
    [("/none", "404"), ("/long", "more than the"), ("/cut", "no network"), ("/data.zip", "SHA-256|more than the")],
)
def test_address_fails(world, site, path, says):
    text = complaint(world.fetch, at_address(site + path))
    assert any(s in text for s in says.split("|")), text
    assert world.is_clean()


def test_no_network(world):
    text = complaint(world.fetch, at_address("http://127.0.0.1:9/data.csv"))
    assert "no network" in text and "mirror folder" in text and "as data.csv" in text
    assert world.is_clean()


def test_mirror_comes_before_the_address(world, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.csv").write_bytes(DATA)
    mirrored = dataclasses.replace(world.settings, mirror=tmp_path / "mirror")
    source = at_address("http://127.0.0.1:9/data.csv")
    folder = sources.fetch(source, settings=mirrored, progress=False)
    assert (folder / "data.csv").read_bytes() == DATA


def test_what_must_be_done_by_hand_is_said(world):
    text = complaint(world.fetch, "online_retail_ii")
    assert "read_excel" in text and "to_parquet" in text and world.is_clean()
    assert all(line in sources.show("online_retail_ii") for line in text.splitlines() if line.startswith("    t"))


def test_a_table_of_other_bytes_passes_by_its_content(world, tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    frame.to_parquet(tmp_path / "ours.parquet", compression="snappy")
    content = sources._table_sha256(tmp_path / "ours.parquet")
    (tmp_path / "mirror").mkdir()
    mine = tmp_path / "mirror" / "data.parquet"
    frame.to_parquet(mine, compression="gzip")
    file = sources.File("data.parquet", 1, sha((tmp_path / "ours.parquet").read_bytes()), "", "address", "", content)
    source = make_source(files=(file,), address=sources.Address("http://127.0.0.1:9/", "do it by hand"))
    mirrored = dataclasses.replace(world.settings, mirror=tmp_path / "mirror")
    sources.fetch(source, settings=mirrored, progress=False)
    assert sources.fetch(source, settings=world.settings, verify=True) == world.folder  # nothing to do
    frame.assign(a=[1, 3]).to_parquet(mine)
    assert "SHA-256" in complaint(sources.fetch, source, dest=tmp_path / "again", settings=mirrored, progress=False)


# Raw files that broke, and pickles


def place(folder, name, files):
    """Raw files with a manifest as `fetch` would leave it."""
    folder.mkdir()
    lines = {}
    for file in sources.CATALOGUE[name].files:
        if file.name in files:
            (folder / file.name).write_bytes(files[file.name])
            lines[file.name] = {"sha256": file.sha256, "size": len(files[file.name])}
    (folder / "manifest.json").write_text(json.dumps({"data": name, "files": lines}))
    return folder


def as_parquet(**columns):
    import io

    pd.DataFrame(columns).to_parquet(out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"\0" * 100])
def test_corrupt_parquet(tmp_path, content):
    folder = place(tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": content})
    text = complaint(sources.load, "online_retail_ii", folder=folder)
    assert "online_retail_II_2009_2010.parquet" in text and "--verify" in text


def test_parquet_without_a_column(tmp_path):
    folder = place(
        tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": as_parquet(Invoice=["1"])}
    )
    assert "cannot be read" in complaint(sources.load, "online_retail_ii", folder=folder)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"customer\n 1 notadate 1 2\n", b"customer\n 1 2 3 4 5 6\n"])
def test_corrupt_text_file(tmp_path, content):
    folder = place(tmp_path / "f", "cdnow", {"CDNOW_master.txt": content, "CDNOW_sample.txt": b" 1 1 19970101 1 1\n"})
    assert "CDNOW_master.txt" in complaint(sources.load, "cdnow", folder=folder)


class Asks:
    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


def dotted(name):
    """A pickle that asks for `DataFrame.<name>` by one dotted name."""
    return b"\x80\x04\x8c\x11pandas.core.frame\x8c" + bytes([len(name)]) + name.encode() + b"\x93."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Asks(os.system, "touch hacked")),
        pickle.dumps(Asks(eval, "open('hacked', 'w')"), protocol=0),
        pickle.dumps(Asks(pd.read_pickle, "other.pkl")),
        pickle.dumps(Asks(getattr, pd.DataFrame, "to_csv")),
        pickle.dumps([pd.DataFrame({"a": [1]}, columns=pd.Index(["a"], dtype=object)), Asks(subprocess.Popen, "true")]),
        lzma.compress(pickle.dumps(Asks(os.system, "touch hacked"))),
        dotted("DataFrame.to_csv"),
        b"cos\nsystem\n(S'touch hacked'\ntR.",
    ],
)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("p.pkl").write_bytes(content)
    assert "no plain frame needs; refused" in complaint(sources.read_pickled_frame, "p.pkl")
    assert os.listdir() == ["p.pkl"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        pickle.dumps(slice(1)),
        pickle.dumps({"a": 1}),
        lzma.compress(b"x" * 99)[:40],
        pickle.dumps(7)[:-1],
    ],
)
def test_pickles_that_hold_no_frame(tmp_path, content):
    (tmp_path / "p.pkl").write_bytes(content)
    complaint(sources.read_pickled_frame, tmp_path / "p.pkl")


# Loaders, on small files of the real form


def check_tables(name, tables, on_request=()):
    """Each table keeps its contract without any conversion, they fit together, and the catalogue describes their columns."""
    for table, frame in tables.items():
        pd.testing.assert_frame_equal(contracts.validate(table, frame), frame)
        if name != "open_bandit":
            assert list(frame) == list(sources.CATALOGUE[name].tables[table].columns), table
        assert isinstance(frame.index, pd.RangeIndex)
    contracts.validate_all(tables, broken=0)


def journey(folder):
    day = pd.to_datetime(["2017-01-02 04:30:00", "2017-07-01 12:00:00"]).as_unit("ns")
    return place(
        folder,
        "complete_journey",
        {
            "transactions.parquet": as_parquet(
                household_id=[2, 1], store_id=[9, 8], basket_id=[5, 6], product_id=[11, 99], quantity=[1, 0], sales_value=[1.5, 0.0],
                retail_disc=[0.0, 0.1], coupon_disc=[0.0, 1.0], coupon_match_disc=[0.0, 0.0], week=[1, 26], transaction_timestamp=day,
            ),
            "demographics.parquet": as_parquet(
                household_id=[2], age=["65+"], income=["35-49K"], home_ownership=["Homeowner"], marital_status=["Married"], household_size=["2"],
                household_comp=["2 Adults No Kids"], kids_count=["0"],
            ),
            "products.parquet": as_parquet(
                product_id=[11], manufacturer_id=[3], department=["DELI"], brand=["Private"], product_category=["HAM"], product_type=["SMOKED"],
                package_size=["1 LB"],
            ),
            "campaign_descriptions.parquet": as_parquet(campaign_id=[1], campaign_type=["Type A"], start_date=day.normalize()[:1], end_date=day.normalize()[1:]),
            "campaigns.parquet": as_parquet(campaign_id=[1], household_id=[1]),
            "coupons.parquet": as_parquet(coupon_upc=[7, 7], product_id=[12, 12], campaign_id=[1, 1]),
            "coupon_redemptions.parquet": as_parquet(household_id=[1], coupon_upc=[7], campaign_id=[1], redemption_date=day.normalize()[1:]),
            "promotions.parquet": as_parquet(product_id=[11], store_id=[9], display_location=["0"], mailer_location=["A"], week=[1]),
        },
    )  # fmt: skip


def test_complete_journey(tmp_path):
    folder = journey(tmp_path / "f")
    t = sources.load("complete_journey", folder=folder)
    check_tables("complete_journey", t)
    assert "promotions" not in t
    assert t["customers"]["customer_id"].tolist() == [1, 2] and t["customers"]["age_band"].isna().tolist() == [
        True,
        False,
    ]
    assert t["products"]["product_id"].tolist() == [11, 12, 99] and t["products"]["department"].isna().tolist() == [
        False,
        True,
        True,
    ]
    assert len(t["offers"]) == 1 and t["events"]["event_type"].tolist() == ["coupon_redemption"]
    check_tables("complete_journey", sources.load("complete_journey", "promotions", folder=folder))


def test_complete_journey_on_the_shops_clock(tmp_path):
    folder = journey(tmp_path / "f")
    local = sources.load("complete_journey", ["transactions"], "local", folder=folder)["transactions"]["timestamp"]
    assert local.astype("str").tolist() == ["2017-01-01 23:30:00", "2017-07-01 08:00:00"]


def test_cdnow(tmp_path):
    master = b" customer_id  date number_of_cds  dollar_value\r\n 00001 19970101  1   11.77\r\n 00004 19970112  2   0.00\r\n 00004 19970112  2   0.00\r\n"
    folder = place(
        tmp_path / "f", "cdnow", {"CDNOW_master.txt": master, "CDNOW_sample.txt": b" 00004 0001 19970112  2   0.00\r\n"}
    )
    t = sources.load("cdnow", folder=folder)
    check_tables("cdnow", t)
    assert t["customers"]["in_sample"].tolist() == [False, True] and t["orders"]["order_id"].tolist() == [1, 2, 3]
    sample = sources.load("cdnow", variant="sample", folder=folder)
    check_tables("cdnow", sample)
    assert sample["orders"]["order_id"].tolist() == [2, 3]


SERVICES = ["No phone service", "DSL", "Yes", "No", "No", "No", "No", "Yes", "Month-to-month"]


def test_telco_variants_agree(tmp_path):
    head = "customerID,gender,SeniorCitizen,Partner,Dependents,tenure,PhoneService,MultipleLines,InternetService,OnlineSecurity,OnlineBackup,"
    head += "DeviceProtection,TechSupport,StreamingTV,StreamingMovies,Contract,PaperlessBilling,PaymentMethod,MonthlyCharges,TotalCharges,Churn\n"
    row = "{},{},0,Yes,No,{},No," + ",".join(SERVICES) + ",Yes,Mailed check,29.85,{},{}\n"
    csv = head + row.format("7590-A", "Female", 1, "29.85", "Yes") + row.format("7590-B", "Male", 0, " ", "No")
    full = sources.load(
        "telco", variant="full", folder=place(tmp_path / "a", "telco", {"Telco-Customer-Churn.csv": csv.encode()})
    )
    names = [sources._snake(c) for c in head.strip().replace("StreamingTV", "StreamingTv").split(",")[7:16]]
    columns = {
        "rownames": [1, 2], "churn": ["Yes", "No"], "female": [1, 0], "senior_citizen": [0, 0], "partner": [1, 1], "dependents": [0, 0],
        "tenure": [1, 0], "phone_service": [0, 0], **{n: [v, v] for n, v in zip(names, SERVICES, strict=True)}, "paperless_billing": [1, 1],
        "payment_method": ["Mailed check"] * 2, "monthly_charges": [29.85] * 2, "total_charges": [29.85, np.nan],
    }  # fmt: skip
    frame = pd.DataFrame({k: pd.Series(v, dtype=object if isinstance(v[0], str) else None) for k, v in columns.items()})
    frame.columns = frame.columns.astype(object)
    packed = lzma.compress(pickle.dumps(frame))
    model = sources.load("telco", folder=place(tmp_path / "b", "telco", {"wa_churn.pkl.compress": packed}))
    check_tables("telco", full)
    check_tables("telco", model)
    without = [t["accounts"].drop(columns="account_id") for t in (full, model)]
    pd.testing.assert_frame_equal(*without)
    assert full["accounts"]["total_amount"].isna().tolist() == [False, True] and full["accounts"][
        "churned"
    ].tolist() == [True, False]


def test_online_shoppers(tmp_path):
    head = "Administrative,Administrative_Duration,Informational,Informational_Duration,ProductRelated,ProductRelated_Duration,BounceRates,"
    head += "ExitRates,PageValues,SpecialDay,Month,OperatingSystems,Browser,Region,TrafficType,VisitorType,Weekend,Revenue\n"
    row = "0,0,0,0,1,64.5,0.2,0.2,0,0,Feb,1,1,9,1,Returning_Visitor,FALSE,TRUE\n"
    folder = place(tmp_path / "f", "online_shoppers", {"online_shoppers_intention.csv": (head + row * 2).encode()})
    t = sources.load("online_shoppers", folder=folder)
    check_tables("online_shoppers", t)
    assert t["sessions"]["converted"].all() and t["sessions"]["session_id"].tolist() == [1, 2]


def test_online_retail(tmp_path):
    lines = [  # invoice, code, description, quantity, price, customer
        ("1", "85123a ", " HEART ", 2, 2.5, 7.0),
        ("1", "85123A", "HEART", 1, 2.5, 7.0),
        ("1", "POST", "POSTAGE", 1, 18.0, 7.0),
        ("2", "22222", "CUP", 1, 1.0, None),  # a guest
        ("3", "22222", "damaged", -5, 0.0, None),  # written off
        ("4", "22222", "found", 5, 0.0, None),  # stock correction
        ("5", "22222", "CUP", 1, 0.0, 8.0),  # a gift
        ("C6", "22222", "CUP", -1, 1.0, 8.0),  # a return
        ("C7", "M", "Manual", 1, 9.0, None),  # a cancellation of positive quantity
        ("A8", "B", "Adjust bad debt", 1, -99.0, None),
    ]
    invoice, code, text, quantity, price, customer = zip(*lines, strict=True)
    raw = as_parquet(
        Invoice=invoice, StockCode=code, Description=text, Quantity=quantity, Price=price, Country=["Spain"] * len(lines),
        **{"Customer ID": customer, "InvoiceDate": ["2009-12-01 07:45:00"] * len(lines)},
    )  # fmt: skip
    t = sources.load(
        "online_retail_ii",
        folder=place(tmp_path / "f", "online_retail_ii", {"online_retail_II_2009_2010.parquet": raw}),
    )
    check_tables("online_retail_ii", t)
    orders = t["orders"].set_index("order_id")
    assert orders["amount"].to_dict() == {"1": 25.5, "2": 1.0, "5": 0.0} and orders["customer_id"].isna().to_dict() == {
        "1": False,
        "2": True,
        "5": False,
    }
    assert t["order_lines"]["line"].tolist() == [1, 2, 3, 1, 1]
    assert t["returns"][["quantity", "amount", "cancellation_id"]].values.tolist() == [[1, 1.0, "C6"]]
    products = t["products"].set_index("product_id")
    assert products["name"]["22222"] == "CUP" and products["name"]["85123A"] == "HEART"
    assert products["is_product"].to_dict() == {"22222": True, "85123A": True, "B": False, "M": False, "POST": False}


def test_open_bandit(tmp_path):
    log = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_0\n"
    log += "0,2019-11-24 00:00:17.004101+00:00,1,3,1,0.5,aa,0.0\n1,2019-11-24 00:00:18+00:00,0,1,0,0.5,bb,1.0\n"
    items = ",item_id,item_feature_0,item_feature_1\n0,0,-0.5,aa\n1,1,0.5,bb\n"
    source = sources.CATALOGUE["open_bandit"]
    files = {f.name: (log if "log" in f.name else items).encode() for f in source.files}
    folder = place(tmp_path / "f", "open_bandit", files)
    t = sources.load("open_bandit", variant="bts-men", folder=folder)
    check_tables("open_bandit", t)
    seen = t["exposures"]
    assert (
        seen["clicked"].tolist() == [True, False]
        and seen["reward"].tolist() == [1.0, 0.0]
        and seen["campaign_id"].tolist() == ["men"] * 2
    )
    assert seen["creative_id"].isin(t["products"]["product_id"]).all() and seen["timestamp"][0] == pd.Timestamp(
        "2019-11-24 00:00:17.004101"
    )


def test_load_before_fetch(world):
    assert "mktai data fetch telco --variant full" in complaint(
        sources.load, "telco", variant="full", settings=world.settings
    )
    assert "no loader" in complaint(sources.load, world.source, settings=world.settings)


def test_import_is_light():
    code = "import sys, mktai_kit.data.sources; print([m for m in ('duckdb', 'pandera', 'matplotlib', 'lzma.x') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# The real data, where they are


@pytest.fixture
def real(tmp_path):
    """A function that gives the folder of a real data set, or skips."""

    def folder(name, variant=None):
        settings, source = load_settings(), sources.CATALOGUE[name]
        files, fetched = source.files_of(variant), settings.data_dir / source.folder(variant)
        if sources._complete(files, fetched):
            return fetched
        if settings.mirror is not None and all(
            f.origin == "address" and (settings.mirror / f.name).is_file() for f in files
        ):
            return sources.fetch(
                name, tmp_path / source.folder(variant), settings=settings, variant=variant, progress=False
            )
        pytest.skip(f"{name} is neither fetched nor in the mirror (MKTAI_MIRROR)")

    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(sources.CATALOGUE))
def test_real_data_are_as_the_catalogue_says(name, real):
    source, folder = sources.CATALOGUE[name], real(name)
    tables = sources.load(name, folder=folder)
    assert {t: len(f) for t, f in tables.items()} == {t: s.rows for t, s in source.tables.items() if not s.on_request}
    check_tables(name, tables)
    counted = sources.count_faults(name, folder=folder)
    assert len(counted) and counted["listed"].tolist() == counted["found"].tolist()


@pytest.mark.slow
def test_real_telco_variants_agree(real):
    frames = [sources.load("telco", variant=v, folder=real("telco", v))["accounts"] for v in ("modeldata", "full")]
    pd.testing.assert_frame_equal(*(f.drop(columns="account_id") for f in frames))


@pytest.mark.slow
def test_real_complete_journey_loads_fast(real):
    folder = real("complete_journey")
    sources.load("complete_journey", folder=folder)
    start = time.process_time()
    sources.load("complete_journey", folder=folder)
    assert time.process_time() - start < 4
