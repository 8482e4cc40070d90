"""Events that are built as far as they are used: the same as those with all fields, whatever is asked for."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import awkward as ak
import cloudpickle
import numpy as np
import pytest
import uproot

from hepdask.attempt import Work
from hepdask.fileset import InputFile
from hepdask.opening import ReadOptions
from hepdask.processor import ProcessorCopies
from hepdask.ranges import EntryRange
from hepdask.readers import build_reader, cut
from hepdask.readers.branches import layout_key
from hepdask.readers.cut import EventsLayout, LazyEvents, UnbuiltFieldError, plain_behavior
from hepdask.readers.handles import lease
from hepdask.readers.uses import Seed, Use, Uses
from hepdask.task import attempt_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hepdask.partial import PartialResult

NUM_ENTRIES = 60
SCHEMAS = ("NanoAODSchema", None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> InputFile:
    """A tree with two collections, one of which points to the other, and single branches."""
    path = tmp_path_factory.mktemp("cut") / "nano.root"
    counts = np.arange(NUM_ENTRIES) % 4
    pt = ak.unflatten(np.linspace(5, 95, counts.sum(), dtype=np.float32), counts)
    sign = ak.values_astype(ak.ones_like(pt), np.int32)
    vectors = {"pt": pt, "eta": pt / 40, "phi": pt / 50, "mass": pt / 10}
    arrays = {
        "run": np.ones(NUM_ENTRIES, np.uint32),
        "luminosityBlock": np.ones(NUM_ENTRIES, np.uint32),
        "event": np.arange(NUM_ENTRIES, dtype=np.uint64),
        "MET_pt": np.linspace(0, 100, NUM_ENTRIES, dtype=np.float32),
        "MET_phi": np.linspace(-3, 3, NUM_ENTRIES, dtype=np.float32),
        "Jet": ak.zip(vectors),
        "Muon": ak.zip({**vectors, "charge": sign, "jetIdx": sign - 1}),
    }
    types = {name: ak.Array(array).type.content for name, array in arrays.items()}
    with uproot.recreate(path) as out:
        tree = out.mktree("Events", types, counter_name=lambda counted: f"n{counted}")
        tree.extend(arrays)
    return InputFile("dy", str(path), "Events", (str(path),), {}, num_entries=NUM_ENTRIES)


def key_of(file: InputFile) -> str:
    with lease(file, ReadOptions()) as handle:
        return layout_key(handle.open_file)


def knowing(file: InputFile, *fields: str, branches: tuple[str, ...] = ()) -> Uses:
    return Uses({key_of(file): Seed(Use(frozenset(fields), frozenset(branches)))})


def all_of(file: InputFile) -> Uses:
    return Uses({key_of(file): Seed(Use(None, frozenset()))})


def attempt(
    file: InputFile, process: Callable[[Any], Any], uses: Uses, schema: str | None = SCHEMAS[0]
) -> PartialResult:
    work = Work(ProcessorCopies(process), build_reader(schema, ReadOptions()), uses=uses)
    return attempt_range(EntryRange(file, 0, NUM_ENTRIES), work, "here")


def selected(events: Any) -> Any:
    return events[events.MET.pt > 50].Jet.pt


def masked(events: Any) -> Any:
    return ak.mask(events, events.MET.pt > 50).Jet.pt


def sliced_twice(events: Any) -> Any:
    return events[10:][::-2].Muon.pt


def by_list(events: Any) -> Any:
    part = events[["MET", "Jet"]]
    return ak.zip({"met": part.MET.pt, "num": ak.num(part.Jet.pt)})


def by_tuple(events: Any) -> Any:
    return events[events.MET.pt > 20, "Jet", "pt"]


def nested_name(events: Any) -> Any:
    return events["Jet", "eta"]


def crossed(events: Any) -> Any:
    return events[5:].Muon.matched_jet.pt


def sorted_events(events: Any) -> Any:
    return events[ak.argsort(events.MET.pt, ascending=False)].Muon.pt


def counted(events: Any) -> Any:
    events["n"] = ak.num(events.Jet)
    return events[events.n > 1].Muon.pt


def replaced(events: Any) -> Any:
    events["Muon"] = events.Jet
    return events.Muon.pt


def joined(events: Any) -> Any:
    return ak.concatenate([events[:5], events[50:]]).Jet.pt


def one_by_one(events: Any) -> Any:
    return ak.Array([event.Jet.pt.to_list() for event in events[:9]])


def taken_apart(events: Any) -> Any:
    return dict(zip(ak.fields(events), ak.unzip(events), strict=True))["Jet"].pt


def by_layout(events: Any) -> Any:
    return ak.Array(events.layout["Jet"]["pt"])


def by_layout_of_selected(events: Any) -> Any:
    return ak.Array(events[events.MET.pt > 50].layout["Jet"]["pt"])


def swallowed(events: Any) -> Any:
    try:
        num = ak.num(taken_apart(events))
    except Exception:  # noqa: BLE001  # what user code often does
        num = ak.Array([0])
    return num


NANO = [
    selected, masked, sliced_twice, by_list, by_tuple, nested_name, crossed, sorted_events, counted, replaced, joined,
    by_layout, by_layout_of_selected, one_by_one, taken_apart, swallowed,
]  # fmt: skip
#: These ask in ways that are not seen: they are called again.
BYPASS = {by_layout_of_selected, one_by_one}


@pytest.mark.parametrize("process", NANO, ids=lambda one: str(one.__name__))
@pytest.mark.parametrize("known", [None, (), ("MET",), ("MET", "Jet"), ("Muon",)])
def test_whatever_was_built_the_result_is_the_same(
    file: InputFile, process: Callable[[Any], Any], known: tuple[str, ...] | None
) -> None:
    whole = attempt(file, process, all_of(file))
    uses = Uses() if known is None else knowing(file, *known)
    some = attempt(file, process, uses)
    assert whole.failures == some.failures == ()
    assert some.accumulator.to_list() == whole.accumulator.to_list()


@pytest.mark.parametrize("process", NANO, ids=lambda one: str(one.__name__))
def test_the_next_range_knows_better(file: InputFile, process: Callable[[Any], Any]) -> None:
    calls = []

    def noting(events: Any) -> Any:
        calls.append(len(events))
        return process(events)

    uses = knowing(file, "event")
    attempt(file, noting, uses)
    assert len(calls) == (2 if process in BYPASS else 1)
    calls.clear()
    second = attempt(file, noting, uses)
    assert len(calls) == 1
    assert second.metrics.missed == frozenset()


def test_plain_arrays_are_cut_too(file: InputFile) -> None:
    def process(events: Any) -> Any:
        return events[events["MET_pt"] > 50]["Jet_pt"]

    whole = attempt(file, process, all_of(file), None)
    some = attempt(file, process, knowing(file, "MET_pt", branches=("MET_pt",)), None)
    assert some.accumulator.to_list() == whole.accumulator.to_list()
    assert some.metrics.missed == {"Jet_pt"}


def test_what_is_read_already_is_not_read_again(file: InputFile) -> None:
    def process(events: Any) -> Any:
        first = ak.sum(events.MET.pt)
        return float(first + ak.sum(events.Jet.pt) + ak.sum(events.MET.pt))

    whole = attempt(file, process, all_of(file)).metrics
    some = attempt(file, process, knowing(file, "MET", branches=("MET_pt",))).metrics
    figures = [next(iter(one.files.values())).num_uncompressed_bytes for one in (whole, some)]
    assert figures[0] == figures[1]
    assert some.missed == {"nJet", "Jet_pt"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_fields_are_all_there(file: InputFile, schema: str | None) -> None:
    def process(events: Any) -> Any:
        return {"fields": events.fields, "by_function": ak.fields(events), "num": len(events)}

    whole = attempt(file, process, all_of(file), schema).accumulator
    assert attempt(file, process, knowing(file), schema).accumulator == whole
    assert whole["by_function"] == whole["fields"]


def test_a_missing_field_is_the_users_error(file: InputFile) -> None:
    (failure,) = attempt(file, lambda events: events.Tau.pt, knowing(file, "MET")).failures
    assert failure.kind == "user"
    assert "Tau" in failure.traceback


def test_the_mistake_of_a_processor_is_its_own(file: InputFile) -> None:
    def process(events: Any) -> Any:
        raise ValueError(f"no {float(ak.sum(events.Jet.pt)):g}")

    (failure,) = attempt(file, process, knowing(file, "MET")).failures
    assert failure.kind == "user"


def test_nothing_that_leaves_refers_to_the_events(file: InputFile) -> None:
    def process(events: Any) -> Any:
        return {"jets": events.Jet[events.Jet.pt > 50], "some": events[:3], "all": events}

    output = attempt(file, process, knowing(file, "Jet")).accumulator
    for one in output.values():
        assert not any(key.startswith("@") for key in one.attrs)
        assert plain_behavior(one.behavior) is one.behavior
        assert type(one.layout).__module__.startswith("awkward.")
        again = pickle.loads(cloudpickle.dumps(one))
        assert again.to_list() == one.to_list()


def test_classes_of_events_are_pickled(file: InputFile) -> None:
    with build_reader("NanoAODSchema", ReadOptions()).read(EntryRange(file, 0, 9)) as opened:
        kind = type(opened.events)
        assert pickle.loads(pickle.dumps(kind)) is kind
        assert issubclass(kind, plain_behavior(opened.events.behavior)["*", "NanoEvents"])


@pytest.fixture
def lazy() -> Iterator[LazyEvents]:
    form = ak.forms.RecordForm(
        [ak.forms.NumpyForm("int64", form_key="a"), ak.forms.NumpyForm("int64", form_key="b")],
        ["a", "b"],
        parameters={"__record__": "Event"},
    )

    class Source(dict[str, Any]):
        key = ""

    source = Source({"/data/a": np.arange(3), "/data/b": np.arange(3) * 10})
    layout = EventsLayout.build(form, {})
    return LazyEvents(layout, source, 3, parameters={}, attributes={}, fields=frozenset("a"))


def test_an_unbuilt_field_does_not_let_itself_be_read(lazy: LazyEvents) -> None:
    events = lazy.build()
    assert events.b.to_list() == [0, 10, 20]
    assert not lazy.is_bypassed
    with pytest.raises(UnbuiltFieldError, match="not built"):
        ak.materialize(events)
    assert lazy.is_bypassed
    assert lazy.missed == {"b"}


def test_events_of_events_are_not_guessed_at(lazy: LazyEvents) -> None:
    nested = ak.unflatten(lazy.build(), [1, 2])
    with pytest.raises(Exception, match="not built"):
        nested.b.to_list()
    assert lazy.is_bypassed


def test_few_cuts_are_kept(lazy: LazyEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "_MAX_CUTS", 4)
    layout = lazy._layout
    for fields in (frozenset(), frozenset("a"), frozenset("b"), frozenset("ab"), frozenset("abc")):
        assert set(layout.cut(fields).fields) == fields & {"a", "b"}
    assert len(layout._cuts) == 4


def test_forms_without_a_name_are_not_cut() -> None:
    form = ak.forms.RecordForm([ak.forms.NumpyForm("int64", form_key="a")], ["a"])
    assert not EventsLayout(form, {}).can_be_cut
    assert not EventsLayout(ak.forms.NumpyForm("int64"), {}).can_be_cut
