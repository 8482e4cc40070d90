"""The user's code in runs: on workers that have none of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from hepdask import (
    DaskExecutor,
    ExecutorError,
    LocalExecutor,
    OptionError,
    RunError,
    Runner,
    Shipping,
)
from hepdask.executors.dask_shipping import Delivery
from hepdask.fingerprint import fingerprint
from hepdask.shipping import load_cargo, seal
from tests.servers import REPOSITORY
from tests.shipping.conftest import write

if TYPE_CHECKING:
    from tests.conftest import NanoFiles
    from tests.sites import Site

PACKAGE = {
    "analysis/__init__.py": "from analysis.cuts import select\n",
    "analysis/cuts.py": """
import json
from pathlib import Path

from analysis.deep.constants import FACTOR
import tools

CUT = json.loads((Path(__file__).parent / "data" / "cuts.json").read_text())["pt"]

def select(events):
    from lazily import identity
    return identity(events["MET_pt"] > CUT * FACTOR * tools.ONE)
""",
    "analysis/deep/constants.py": "FACTOR = 1.0\n",
    "analysis/data/cuts.json": '{"pt": 30.0}',
    "tools.py": "ONE = 1\n",
    "lazily.py": "def identity(x):\n    return x\n",
    "processor.py": """
import os
import analysis

class Processor:
    def process(self, events):
        passed = analysis.select(events).to_numpy().sum()
        return {"passed": int(passed), "places": {os.path.dirname(analysis.__file__)}}
""",
}
NUMBER = "def number():\n    return {}\n"
CALLS_NUMBER = """
def process(events):
    import late
    from early import number
    return {"numbers": {number()}, "late": {late.NUMBER}}
"""


def run(executor: Any, nano_files: NanoFiles, processor: Any, **options: Any) -> Any:
    options = {"schema": None, "metadata_cache": False, "progress": False, **options}
    return Runner(executor, chunksize=50, **options).run(nano_files.fileset, processor).output


def everywhere(site: Site) -> DaskExecutor:
    return DaskExecutor(site.client, max_ranges_per_task=1)


def test_package_next_to_the_notebook(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, PACKAGE)
    processor = importlib.import_module("processor").Processor()
    here = run(LocalExecutor(), nano_files, processor)
    there = run(everywhere(site), nano_files, processor)
    assert there["passed"] == here["passed"] > 0
    assert here["places"] == {str(workspace / "analysis")}
    assert all(one.startswith(str(site.directory)) for one in there["places"])
    # and in their child processes, where ranges run that may kill
    cargo = load_cargo(processor, Shipping(), {})
    packed = seal(cargo.manifest, cloudpickle.dumps(processor.process))
    assert site.call(place_in_child, packed) in there["places"]
    # the source counts, not where it lies
    assert site.call(fingerprint_there, packed) == fingerprint(processor.process)


def place_in_child(packed: bytes) -> str:
    from hepdask.isolation import child_runner

    return str(child_runner().call(place_of, packed))


def place_of(packed: bytes) -> str:
    process = cloudpickle.loads(packed)
    return str(Path(process.__globals__["analysis"].__file__).parent)


def call_in_child(packed: bytes) -> Any:
    from hepdask.isolation import child_runner

    return child_runner().call(call_unpickled, packed)


def call_unpickled(packed: bytes) -> Any:
    return cloudpickle.loads(packed)(None)


def fingerprint_there(packed: bytes) -> str:
    return fingerprint(cloudpickle.loads(packed))


# workers need not have the tests
cloudpickle.register_pickle_by_value(sys.modules[__name__])


SCRIPT = """
import json, sys
from hepdask import DaskExecutor, Runner
from helpers import CUT, Base

class Processor(Base):
    def process(self, events):
        return {"passed": int((events["MET_pt"] > CUT).to_numpy().sum()), "names": {self.name()}}

if __name__ == "__main__":
    address, fileset = sys.argv[1:]
    with DaskExecutor(address) as executor:
        run = Runner(executor, schema=None, metadata_cache=False, progress=False, chunksize=50)
        output = run(json.loads(fileset), processor_instance=Processor())
    print(output["passed"], *output["names"])
"""


def test_processor_in_the_main_of_a_script(
    site: Site, tmp_path: Path, nano_files: NanoFiles
) -> None:
    helpers = "CUT = 30.0\nclass Base:\n    def name(self):\n        return __name__\n"
    write(tmp_path, {"script.py": SCRIPT, "helpers.py": helpers})
    arguments = [site.client.scheduler.address, json.dumps(nano_files.fileset)]
    done = subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.stderr == ""
    passed, name = done.stdout.split()
    assert (int(passed) > 0, name) == (True, "helpers")


def test_processor_in_a_notebook_that_edits_its_module(
    site: Site, tmp_path: Path, nano_files: NanoFiles
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    head = f"""
import importlib, json, sys
from pathlib import Path
sys.path[:0] = [{str(REPOSITORY)!r}, ""]
Path("helpers.py").write_text("def number():\\n    return 1\\n")
from hepdask import DaskExecutor, Runner
import helpers
executor = DaskExecutor({site.client.scheduler.address!r})
run = Runner(executor, schema=None, metadata_cache=False, progress=False)
fileset = json.loads({json.dumps(nano_files.fileset)!r})
"""
    first = """
def process(events):
    return {"numbers": {helpers.number()}}
print(run(fileset, processor_instance=process)["numbers"])
"""
    second = """
Path("helpers.py").write_text("def number():\\n    return 23\\n")
importlib.reload(helpers)
print(run(fileset, processor_instance=process)["numbers"])
executor.close()
"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(one) for one in (head, first, second)]
    )
    client = nbclient.NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    printed = [cell.outputs[0]["text"].strip() for cell in notebook.cells[1:]]
    assert printed == ["{1}", "{23}"]


def test_editable_install(
    site: Site, tmp_path: Path, nano_files: NanoFiles, workspace: Path, monkeypatch: Any
) -> None:
    source, installed = tmp_path / "checkout" / "src", tmp_path / "site-packages"
    write(source, {"mypackage/__init__.py": "from mypackage.inner import number\n"})
    write(source, {"mypackage/inner.py": NUMBER.format(5)})
    information = installed / "mypackage-0.1.dist-info"
    write(information, {"METADATA": "Metadata-Version: 2.1\nName: mypackage\nVersion: 0.1\n"})
    url = {"url": source.parent.as_uri(), "dir_info": {"editable": True}}
    write(information, {"direct_url.json": json.dumps(url), "top_level.txt": "mypackage\n"})
    # what the .pth file of an editable install does
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.syspath_prepend(str(source))
    write(
        workspace,
        {"edited.py": "import mypackage\ndef process(events):\n    return {mypackage.number()}\n"},
    )
    process = importlib.import_module("edited").process
    assert run(everywhere(site), nano_files, process) == {5}


def test_edits_arrive_and_go_away_again(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, {"early.py": NUMBER.format(1), "late.py": "from early import number\n"})
    write(
        workspace, {"calls.py": CALLS_NUMBER, "late.py": "import early\nNUMBER = early.number()\n"}
    )
    process = importlib.import_module("calls").process
    for number in (1, 22, 1, 333):
        write(workspace, {"early.py": NUMBER.format(number)})
        for name in ("early", "late"):
            sys.modules.pop(name, None)
        # modules that did not change have imported those that did
        expected = {"numbers": {number}, "late": {number}}
        assert run(everywhere(site), nano_files, process) == expected
        # in child processes that have had the old ones, too
        manifest = load_cargo(process, Shipping(), {}).manifest
        packed = seal(manifest, cloudpickle.dumps(process))
        assert site.call(call_in_child, packed) == expected
    plugins = site.client.run_on_scheduler(
        lambda dask_scheduler: list(dask_scheduler.worker_plugins)
    )
    assert sum(name.startswith("hepdask module early ") for name in plugins) == 1


def test_an_edit_without_a_reload_is_a_warning(
    site: Site, workspace: Path, nano_files: NanoFiles
) -> None:
    write(workspace, {"edited_only.py": NUMBER.format(1)})
    module = importlib.import_module("edited_only")
    write(workspace, {"edited_only.py": NUMBER.format(22)})

    def process(events: Any) -> Any:
        return {module.number()}

    with pytest.warns(
        UserWarning, match="the functions of edited_only are not what is in the file"
    ):
        assert run(everywhere(site), nano_files, process) == {22}


def test_workers_that_come_late_have_it(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, {"steady.py": NUMBER.format(3)})
    steady = importlib.import_module("steady")

    def process(events: Any) -> Any:
        import distributed

        return {"numbers": {steady.number()}, "names": {distributed.get_worker().name}}

    run(everywhere(site), nano_files, process)
    site.start_worker("late", "--resources", "LATE=1", "--nanny")
    site.wait()
    # before any task has come to it: a merge may be the first
    found = site.client.run(lambda: __import__("steady").number(), on_error="return")
    assert list(found.values()) == [3] * len(site.processes)
    late = DaskExecutor(site.client, resources={"LATE": 1})
    assert run(late, nano_files, process) == {"numbers": {3}, "names": {"late"}}
    # and those that are started again
    workers = site.client.scheduler_info(n_workers=-1)["workers"]
    address = next(one for one, facts in workers.items() if facts["name"] == "late")
    assert site.client.restart_workers([address], timeout=60) == {address: "OK"}
    assert run(late, nano_files, process) == {"numbers": {3}, "names": {"late"}}


def test_outputs_of_the_users_own_class(site: Site, workspace: Path, nano_files: NanoFiles) -> None:
    code = """
class Tally:
    def __init__(self, number):
        self.number = number

    def __add__(self, other):
        return Tally(self.number + other.number)
"""
    write(workspace, {"tallies.py": code})
    tallies = importlib.import_module("tallies")

    def process(events: Any) -> Any:
        return {"tally": tallies.Tally(len(events))}

    tally = run(everywhere(site), nano_files, process)["tally"]
    assert type(tally) is tallies.Tally
    assert tally.number == sum(nano_files.num_entries)


def test_a_run_goes_on_with_a_module_that_was_mended(
    site: Site, workspace: Path, nano_files: NanoFiles
) -> None:
    write(workspace, {"mended.py": "def number():\n    raise ValueError('a bug')\n"})
    mended = importlib.import_module("mended")

    def process(events: Any) -> Any:
        return {mended.number()}

    runner = Runner(everywhere(site), schema=None, metadata_cache=False, progress=False)
    with pytest.raises(RunError, match="a bug") as caught:
        runner.run(nano_files.fileset, process)
    write(workspace, {"mended.py": NUMBER.format(4)})
    importlib.reload(mended)
    assert caught.value.partial_result.resume().output == {4}


def test_a_local_run_ships_nothing(workspace: Path, nano_files: NanoFiles) -> None:
    write(workspace, {"large.py": NUMBER.format(4)})
    large = importlib.import_module("large")

    def process(events: Any) -> Any:
        return {large.number()}

    assert run(LocalExecutor(), nano_files, process, shipping=Shipping(max_bytes=1)) == {4}


def test_two_versions_at_a_time_are_an_error(
    site: Site, workspace: Path, nano_files: NanoFiles, tmp_path: Path
) -> None:
    write(workspace, {"shared.py": NUMBER.format(1)})
    shared = importlib.import_module("shared")
    begun, go_on = tmp_path / "begun", tmp_path / "go on"

    def slow(events: Any) -> Any:
        import time

        try:
            begun.touch(exist_ok=False)
        except FileExistsError:
            return {shared.number()}  # one worker stays free
        while not go_on.exists():
            time.sleep(0.02)
        return {shared.number()}

    def fast(events: Any) -> Any:
        return {shared.number()}

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(everywhere(site), nano_files, slow)))
    thread.start()
    try:
        while not begun.exists():
            thread.join(0.02)
            assert thread.is_alive()
        # the same version may be used by many
        assert run(everywhere(site), nano_files, lambda _: {0}) == {0}
        write(workspace, {"shared.py": NUMBER.format(22)})
        importlib.reload(shared)
        text = "another run of this session on this cluster uses another version of the module shared now"
        with pytest.raises(ExecutorError, match=text):
            run(everywhere(site), nano_files, fast)
    finally:
        go_on.touch()
        thread.join(60)
    assert found == [{1}]
    assert run(everywhere(site), nano_files, fast) == {22}


def test_without_shipping_workers_must_have_it(
    site: Site, workspace: Path, nano_files: NanoFiles
) -> None:
    write(workspace, {"absent.py": "def process(events):\n    return {1}\n"})
    process = importlib.import_module("absent").process
    with pytest.raises(Exception, match="No module named 'absent'"):
        run(everywhere(site), nano_files, process, shipping=False)
    with warnings.catch_warnings():
        assert run(everywhere(site), nano_files, process, shipping=True) == {1}


def test_names_that_are_put_together_can_be_named(
    site: Site, workspace: Path, nano_files: NanoFiles
) -> None:
    write(
        workspace,
        {"cuts_2018.py": "import cuts_base\nX = cuts_base.X\n", "cuts_base.py": "X = 7\n"},
    )

    def process(events: Any) -> Any:
        import importlib

        year = 2018
        return {importlib.import_module(f"cuts_{year}").X}

    shipping = Shipping(modules=("cuts_2018",))
    assert run(everywhere(site), nano_files, process, shipping=shipping) == {7}
    with pytest.raises(OptionError, match="has 'numpy', but it is a library module"):
        run(everywhere(site), nano_files, process, shipping=Shipping(modules=("numpy",)))
    with pytest.raises(OptionError, match="shipping is 'all': give Shipping"):
        run(LocalExecutor(), nano_files, process, shipping="all")


def test_what_another_scheduler_lacks_is_sent_again(site: Site, workspace: Path) -> None:
    write(workspace, {"known.py": NUMBER.format(7)})
    number = importlib.import_module("known").number
    delivery = Delivery(lambda: load_cargo(number, Shipping(credentials=False), {}))
    delivery.deliver(site.client)
    assert site.client.run_on_scheduler(drop_plugin, "hepdask module known ")
    delivery.deliver(site.client)  # it was brought here
    assert not site.client.run_on_scheduler(drop_plugin, "hepdask module known ")
    delivery.forget()
    delivery.deliver(site.client)
    assert site.client.run_on_scheduler(drop_plugin, "hepdask module known ")
    delivery.close()


def drop_plugin(start: str, dask_scheduler: Any) -> bool:
    """Let a scheduler be as one that was started anew, in this respect; return whether it had the plugin."""
    names = [one for one in dask_scheduler.worker_plugins if one.startswith(start)]
    for name in names:
        del dask_scheduler.worker_plugins[name]
    return bool(names)
