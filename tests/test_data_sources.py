"""Sources: what can go wrong on the way to the data gives one clear message, leaves nothing behind, and the next try works.

No test here needs the network. Tests on real data run where the data are: fetched already, or in the mirror folder.
"""

import dataclasses
import errno
import hashlib
import http.server
import json
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

import pandas as pd
import pytest

from mktai_kit.data import contracts, sources
from mktai_kit.settings import KitError, Settings

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


@pytest.mark.parametrize("call", [sources.find, sources.show, sources.fetch, sources.fetched])
def test_unknown_name_is_answered_with_the_nearest(call):
    text = complaint(call, "complete_jorney")
    assert "did you mean 'complete_journey'" in text


def test_unknown_variant_and_table(world):
    assert "did you mean 'local'" in complaint(
        sources.fetch, "complete_journey", settings=world.settings, variant="locale"
    )
    entry = sources.find("complete_journey")
    assert "did you mean 'transactions'" in complaint(entry.choose, ["transaction"])
    assert (
        "promotions" not in entry.choose() and entry.choose("promotions") == ["promotions"] and entry.choose([]) == []
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


# Where the data are


def test_fetched_gives_the_folder_or_the_command(world, tmp_path):
    assert "mktai data fetch tiny" in complaint(sources.fetched, world.source, settings=world.settings)
    assert "mktai data fetch telco --variant full" in complaint(
        sources.fetched, "telco", "full", settings=world.settings
    )
    assert world.is_clean()
    assert world.fetch() == sources.fetched(world.source, settings=world.settings)
    assert sources.fetched(world.source, folder=str(world.folder)) == world.folder
    (world.folder / "more.txt").unlink()
    assert "not wholly" in complaint(sources.fetched, world.source, settings=world.settings)


def test_import_is_light():
    code = "import sys, mktai_kit.data.sources; print([m for m in ('duckdb', 'pandera', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
