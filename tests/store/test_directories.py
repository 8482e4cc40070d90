from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hepdask.errors import StoreError
from hepdask.store import Store
from tests.store.storing import (
    CODE,
    KEY,
    NOBODY,
    OTHER_KEY,
    REPOSITORY,
    all_files,
    make_histograms,
    not_as_root,
    object_path,
    run_python,
    set_age,
    umask,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hepdask.store import Section

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_store_is_private_whatever_the_umask(section: Section, mask: int) -> None:
    with umask(mask):
        section.save(KEY, 1, summary={})
        section.describe({"processor": "Dimuon"})
    root = Path(section.url)
    assert [mode(path) for path in (root, root / CODE)] == [0o700, 0o700]
    names = {f"{CODE}/{KEY}.hepdask", f"{CODE}/about.json", "README.txt"}
    assert all_files(root) == names
    assert {mode(root / name) for name in names} == {0o600}
    assert section.load(KEY) == 1


def test_the_readme_warns_and_stays_as_it_is(section: Section) -> None:
    section.save(KEY, 1, summary={})
    readme = Path(section.url) / "README.txt"
    text = readme.read_text()
    assert "whoever can write here can run code" in text
    assert "hepdask store prune" in text
    readme.write_text("mine")
    Store(section.url).section("feedfeed").save(KEY, 1, summary={})
    assert readme.read_text() == "mine"


def test_looking_makes_nothing(section: Section) -> None:
    assert section.keys() == section.read_about() == section.summaries() == {}
    assert Store(section.url).sections() == []
    assert not Path(section.url).exists()


def test_a_section_that_was_removed_is_made_again(section: Section) -> None:
    section.save(KEY, 1, summary={})
    object_path(section).unlink()
    object_path(section).parent.rmdir()
    section.save(KEY, 2, summary={})
    assert section.load(KEY) == 2


def test_loading_is_a_use(section: Section) -> None:
    section.save(KEY, 1, summary={})
    path = object_path(section)
    set_age(path, 1_000)
    before = path.stat().st_mtime
    section.keys()
    section.summaries()
    assert path.stat().st_mtime == before
    section.load(KEY)
    assert path.stat().st_mtime > before + 900


@pytest.mark.parametrize("where", ["", CODE, f"{CODE}/{KEY}.hepdask"])
def test_what_everyone_can_write_to_is_not_loaded(section: Section, where: str) -> None:
    section.save(KEY, 1, summary={})
    path = Path(section.url) / where
    path.chmod(mode(path) | 0o002)
    with pytest.raises(StoreError, match=f"everyone can write to {path}, .*chmod o-w"):
        section.load(KEY)
    path.chmod(mode(path) & ~0o002)
    assert section.load(KEY) == 1


@as_root
@pytest.mark.parametrize("where", ["", CODE, f"{CODE}/{KEY}.hepdask"])
def test_what_belongs_to_another_user_is_not_loaded(section: Section, where: str) -> None:
    section.save(KEY, 1, summary={})
    path = Path(section.url) / where
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StoreError, match=f"{path} belongs to another user .uid {NOBODY}"):
        section.load(KEY)
    if path.is_dir():
        for action in (section.keys, lambda: section.save(OTHER_KEY, 1, summary={})):
            with pytest.raises(StoreError, match="belongs to another user"):
                action()
    os.chown(path, 0, 0)
    assert section.load(KEY) == 1


def test_links_and_pipes_are_not_followed(section: Section, tmp_path: Path) -> None:
    section.save(KEY, 1, summary={})
    path = object_path(section)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert section.keys() == {}
    with pytest.raises(StoreError, match="there is a link where a file of the store should be"):
        section.load(KEY)
    path.unlink()
    os.mkfifo(path)
    assert section.keys() == {}
    with pytest.raises(StoreError, match="is no file of a store"):
        section.load(KEY)
    section.save(KEY, 2, summary={})
    assert section.load(KEY) == 2


@pytest.mark.parametrize("where", ["file", f"directory/{CODE}"])
def test_a_file_in_the_way_is_explained(tmp_path: Path, where: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / where).touch()
    section = Store(tmp_path / where.partition("/")[0]).section(CODE)
    with pytest.raises(StoreError, match="a file where a directory should be"):
        section.save(KEY, 1, summary={})
    with pytest.raises(StoreError, match=r"can't be listed \(Not a directory\)"):
        section.keys()


def test_a_directory_without_rights_is_explained(served_path: Path, section: Section) -> None:
    section.save(KEY, 1, summary={})  # what is imported on the way is there by now
    store = served_path / "store"
    store.mkdir(mode=0o555)
    with not_as_root(), pytest.raises(StoreError, match=r"Permission denied\): choose a directory"):
        Store(store).section(CODE).save(KEY, 1, summary={})
    assert all_files(store) == set()


def test_a_store_of_root_can_be_read_by_all_whom_root_lets(served_path: Path) -> None:
    section = Store(served_path / "store").section(CODE)
    section.save(KEY, 1, summary={})
    path = object_path(section)
    for one in (path.parent.parent, path.parent, path):
        one.chmod(mode(one) | 0o055)
    with not_as_root():
        assert section.load(KEY) == 1  # the time of use can't be noted
        with pytest.raises(StoreError, match="choose a directory that you can write to"):
            section.save(KEY, 2, summary={})
    assert section.load(KEY) == 1


def test_a_file_too_large_for_the_limit_leaves_nothing_behind(section: Section) -> None:
    section.save(KEY, "before", summary={})
    code = (
        "import resource, sys, numpy as np\nfrom hepdask.store import Store\n"
        "from hepdask.errors import StoreError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "value = np.random.default_rng(0).bytes(1_000_000)\n"
        f"section = Store(sys.argv[1]).section('{CODE}')\n"
        f"for key in ('{KEY}', '{OTHER_KEY}'):\n"
        "    try: section.save(key, value, summary={})\n"
        "    except StoreError as error: print(error)\n"
    )
    run = run_python(code, section.url)
    assert run.stdout.count("the largest size of a file is reached") == 2, run.stderr
    assert all_files(Path(section.url)) == {"README.txt", f"{CODE}/{KEY}.hepdask"}
    assert section.load(KEY) == "before"


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB; skip the test where that isn't allowed."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        section = Store(disk / "store").section(CODE)
        section.save(KEY, "before", summary={})
        for key in (KEY, OTHER_KEY):
            with pytest.raises(StoreError, match=r"No space left on device.*store prune"):
                section.save(key, np.random.default_rng(0).bytes(2_000_000), summary={})
        assert all_files(disk / "store") == {"README.txt", f"{CODE}/{KEY}.hepdask"}
        assert section.load(KEY) == "before"


SAVE_FOR_EVER = f"""
import sys
from hepdask.store import Store
from tests.store.storing import make_histograms
value = make_histograms(60_000, random=True)
section = Store(sys.argv[1]).section('{CODE}')
print("ready", flush=True)
while True:
    section.save('{KEY}', value, summary={{}})
"""


@contextmanager
def savers(url: str, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes that save the same key again and again, until they are killed."""
    running = []
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, "-c", SAVE_FOR_EVER, url],
                stdout=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield running


def wait_for_file(directory: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not any(directory.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_two_processes_write_the_same_key(section: Section) -> None:
    value = make_histograms(60_000, random=True)
    with savers(section.url, 2):
        wait_for_file(object_path(section).parent, f"{KEY}.hepdask")
        for _ in range(20):
            assert section.load(KEY) == value
            assert set(section.keys()) == {KEY}


def test_two_processes_describe_and_prune_at_once(section: Section) -> None:
    store = Store(section.url)
    with savers(section.url, 2) as running:
        for number in range(30):
            section.describe({"processor": "Dimuon"})
            section.save(OTHER_KEY, number, summary={})
            assert store.prune(0).problems == ()
        assert [process.poll() for process in running] == [None, None]


def test_a_process_killed_while_it_saves_leaves_no_broken_object(section: Section) -> None:
    value = make_histograms(60_000, random=True)
    directory = object_path(section).parent
    with savers(section.url, 1) as (process,):
        wait_for_file(directory, "*.hepdask")
        while True:
            wait_for_file(directory, ".*.hepdask-tmp")
            process.send_signal(signal.SIGSTOP)
            if any(directory.glob(".*.hepdask-tmp")):  # it was in the middle of it
                break
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
    assert section.load(KEY) == value
    assert len(all_files(directory)) == 2
    assert set(section.keys()) == {KEY}
    assert Store(section.url).prune().num_leftovers == 0  # it might be in use
    (leftover,) = directory.glob(".*.hepdask-tmp")
    set_age(leftover, 90_000)
    assert Store(section.url).prune().num_leftovers == 1
    assert all_files(directory) == {f"{KEY}.hepdask"}
