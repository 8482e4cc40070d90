from __future__ import annotations

import functools
import pickle
import threading
import types
from typing import Any, ClassVar

import cloudpickle
import hist
import numba
import numpy as np
import pytest

from hepdask.accumulator import add
from hepdask.completeness import Completeness
from hepdask.errors import ExecutorError, OptionError, ProcessorError
from hepdask.processor import ProcessorCopies, call_postprocess, find_process

COMPLETENESS = Completeness({})


def empty_histogram() -> Any:
    return hist.Hist.new.Reg(4, 0, 4, name="x").Double()


class Fresh:
    """Makes a new output for each range, as it should."""

    def process(self, events: Any) -> dict[str, Any]:
        return {"h": empty_histogram().fill(events), "n": len(events)}


class Keeps:
    """Fills what it keeps and returns it, which coffea allows."""

    def __init__(self) -> None:
        self.output = {"h": empty_histogram(), "n": 0}

    def process(self, events: Any) -> dict[str, Any]:
        self.output["h"].fill(events)
        self.output["n"] += len(events)
        return self.output


class KeepsDeep:
    """Returns a part of a part of what it keeps."""

    def __init__(self) -> None:
        self.by_channel = {"mm": [empty_histogram()]}

    def process(self, events: Any) -> dict[str, Any]:
        histogram = self.by_channel["mm"][0]
        histogram.fill(events)
        return {"h": (histogram,)[0], "n": len(events)}


class Unpicklable(Keeps):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class UnpicklableFresh(Fresh):
    def __init__(self) -> None:
        self.lock = threading.Lock()


def run(copies: ProcessorCopies, num_ranges: int = 4) -> Any:
    total = None
    for number in range(num_ranges):
        total = add(total, copies(np.full(10, number % 4 + 0.5)))
    return total


@pytest.mark.parametrize("processor", [Fresh, Keeps, KeepsDeep])
def test_each_event_counts_once(processor: Any) -> None:
    output = run(ProcessorCopies(processor()))
    assert output["h"].values().tolist() == [10, 10, 10, 10]
    assert output["n"] == 40


@pytest.mark.parametrize("processor", [Fresh, Keeps, KeepsDeep])
def test_each_event_counts_once_on_a_worker(processor: Any) -> None:
    copies = ProcessorCopies(processor())
    copies(np.array([0.5]))  # what was run before it was sent is not in it
    for dumps in (pickle.dumps, cloudpickle.dumps):
        sent = pickle.loads(dumps(copies))
        assert run(sent)["h"].values().tolist() == [10, 10, 10, 10]


def test_it_can_be_sent_again_from_where_it_came_to() -> None:
    sent = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(ProcessorCopies(Keeps())))))
    assert run(sent)["n"] == 40


def test_a_processor_that_keeps_nothing_is_not_copied() -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def process(self, events: Any) -> dict[str, int]:
            self.seen.append(len(events))
            return {"calls": len(self.seen)}

    processor = Counting()
    copies = ProcessorCopies(processor)
    assert [copies([1, 2])["calls"] for _ in range(3)] == [1, 2, 3]
    assert processor.seen == [2, 2, 2]


@pytest.mark.parametrize("processor", [Fresh, Keeps, KeepsDeep])
def test_a_trial_leaves_no_trace(processor: Any) -> None:
    copies = ProcessorCopies(processor())
    for _ in range(2):
        assert copies.trial()(np.full(7, 0.5))["n"] == 7
    assert run(copies)["n"] == 40
    assert copies.trial()(np.full(7, 0.5))["h"].sum() == 7
    assert run(pickle.loads(pickle.dumps(copies)))["h"].sum() == 40


def test_bound_methods_are_looked_at_through_their_instance() -> None:
    assert run(ProcessorCopies(Keeps().process))["n"] == 40


def test_callables_with_state_are_copied_too() -> None:
    class Callable_(Keeps):
        def __call__(self, events: Any) -> Any:
            return super().process(events)

        process = None  # type: ignore[assignment]  # it is called itself

    assert run(ProcessorCopies(Callable_()))["n"] == 40


@pytest.mark.parametrize("sends", [False, True])
def test_functions_and_lambdas(sends: bool) -> None:
    def process(events: Any) -> dict[str, int]:
        return {"n": len(events)}

    for function in (process, lambda events: {"n": len(events)}):
        copies = ProcessorCopies(function)
        assert run(pickle.loads(pickle.dumps(copies)) if sends else copies) == {"n": 40}
    assert run(ProcessorCopies(len)) == 40


def test_a_processor_that_cannot_be_pickled_runs_here() -> None:
    copies = ProcessorCopies(UnpicklableFresh())
    assert run(copies)["n"] == 40
    assert copies.trial()([1])["n"] == 1
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(copies)


def test_a_processor_that_keeps_its_output_and_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ProcessorError, match=r"belongs to a processor that can't be pickled"):
        run(ProcessorCopies(Unpicklable()))


def unpickle_nothing() -> None:
    raise ImportError("No module named 'my_selection'")


class Homesick:
    def __reduce__(self) -> Any:
        return unpickle_nothing, ()

    def process(self, events: Any) -> int:
        return len(events)


def test_a_processor_that_cannot_be_unpickled_says_what_to_do() -> None:
    copies = pickle.loads(pickle.dumps(ProcessorCopies(Homesick())))
    with pytest.raises(ExecutorError, match=r"can't be unpickled here: .*'my_selection'; install"):
        copies([1])


def test_each_thread_has_its_own() -> None:
    copies = ProcessorCopies(Keeps())
    copies(np.array([0.5]))  # with the user's own instance
    both_inside = threading.Barrier(2, timeout=30)
    outputs: list[Any] = []

    def work() -> None:
        both_inside.wait()
        outputs.append(run(copies))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output["n"] for output in outputs] == [40, 40]


def test_an_error_of_the_processor_is_left_alone() -> None:
    def process(events: Any) -> None:
        raise ValueError("no muons")

    with pytest.raises(ValueError, match="no muons"):
        ProcessorCopies(process)([1])


def test_find_process() -> None:
    fresh = Fresh()
    assert find_process(fresh) == fresh.process
    assert find_process(len) is len


@pytest.mark.parametrize(
    ("processor", "match"),
    [
        (Fresh, r"the processor is the class Fresh: give an instance, Fresh\(\.\.\.\)"),
        (3, "the processor is int: it needs a method process"),
        (None, "the processor is NoneType"),
    ],
)
def test_what_is_no_processor_is_refused(processor: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        find_process(processor)


class Postprocess:
    def __init__(self, postprocess: Any) -> None:
        self.postprocess = postprocess


@pytest.mark.parametrize(
    ("postprocess", "expected"),
    [
        (lambda accumulator: ("one", accumulator), ("one", 5)),
        (lambda accumulator, completeness: (accumulator, completeness), (5, COMPLETENESS)),
        (lambda *arguments: arguments, (5, COMPLETENESS)),
        (lambda accumulator, *, scale=2: accumulator * scale, 10),
        (lambda _, completeness=None: completeness, COMPLETENESS),
        (lambda _: None, 5),
        (str, "5"),
        (None, 5),
    ],
)
def test_postprocess_takes_one_or_two(postprocess: Any, expected: Any) -> None:
    assert call_postprocess(Postprocess(postprocess), 5, COMPLETENESS) == expected


def test_postprocess_may_change_the_output_in_place() -> None:
    output = {"n": 1}
    changed = call_postprocess(Postprocess(lambda one: one.update(n=2)), output, COMPLETENESS)
    assert changed == {"n": 2}


def test_there_may_be_no_postprocess_and_nothing_to_postprocess() -> None:
    assert call_postprocess(Fresh(), 5, COMPLETENESS) == 5
    assert call_postprocess(Postprocess(lambda _: 1 / 0), None, COMPLETENESS) is None


def test_an_error_of_postprocess_says_so() -> None:
    def postprocess(accumulator: Any) -> None:
        raise KeyError("mass")

    with pytest.raises(ProcessorError, match=r"postprocess\(\) raised KeyError: 'mass'") as caught:
        call_postprocess(Postprocess(postprocess), 5, COMPLETENESS)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_type_error_inside_postprocess_is_not_taken_for_a_wrong_number_of_arguments() -> None:
    def postprocess(accumulator: Any) -> None:
        raise TypeError("unsupported operand")

    with pytest.raises(ProcessorError, match="raised TypeError: unsupported operand"):
        call_postprocess(Postprocess(postprocess), 5, COMPLETENESS)


class _Box:
    """Holds a histogram, as an object of the user's might."""

    def __init__(self) -> None:
        self.counts = {"entries": 0}


class _Nested:
    def __init__(self) -> None:
        self.box = _Box()

    def process(self, events: Any) -> Any:
        self.box.counts["entries"] += len(events)
        return self.box.counts


class _Slotted:
    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = {"entries": 0}

    def process(self, events: Any) -> Any:
        self.counts["entries"] += len(events)
        return self.counts


def _closure() -> Any:
    counts = {"entries": 0}

    def process(events: Any) -> Any:
        counts["entries"] += len(events)
        return {"nested": counts}

    return process


def _fill(counts: dict[str, int], events: Any) -> Any:
    counts["entries"] += len(events)
    return [counts]


@pytest.mark.parametrize(
    "make",
    [_Nested, _Slotted, _closure, lambda: functools.partial(_fill, {"entries": 0})],
    ids=["nested", "slots", "closure", "partial"],
)
@pytest.mark.parametrize("is_sent", [False, True])
def test_what_a_processor_keeps_is_counted_once(make: Any, is_sent: bool) -> None:
    copies = ProcessorCopies(make())
    if is_sent:
        copies = cloudpickle.loads(cloudpickle.dumps(copies))
    for _ in range(3):
        assert "'entries': 5" in str(copies([0] * 5))


_GLOBAL_COUNTS = {"entries": 0}


def _fill_global(events: Any) -> Any:
    _GLOBAL_COUNTS["entries"] += len(events)
    return _GLOBAL_COUNTS


class _FillsClass:
    counts: ClassVar[dict[str, int]] = {"entries": 0}

    def process(self, events: Any) -> Any:
        self.counts["entries"] += len(events)
        return self.counts


@pytest.mark.parametrize("processor", [_fill_global, _FillsClass()], ids=["global", "class"])
def test_what_all_copies_share_is_an_error(processor: Any) -> None:
    with pytest.raises(ProcessorError, match="is a global or a class attribute"):
        ProcessorCopies(processor)([0] * 5)


class ClosedFile(dict[str, Any]):
    """Something that must be left alone."""

    def values(self) -> Any:
        raise OSError("closed")


def test_the_name_of_an_attribute_is_no_global() -> None:
    """``events.run`` is not the `run` of a notebook."""
    notebook: dict[str, Any] = {"run": ClosedFile()}
    exec("def process(events):\n    return {'runs': [events.run]}", notebook)  # noqa: S102
    events = types.SimpleNamespace(run=3)
    assert ProcessorCopies(notebook["process"])(events) == {"runs": [3]}


@numba.njit
def _sum(values: Any) -> float:
    total = 0.0
    for one in values:
        total += one
    return total


class _Answers:
    """A proxy that answers to every name, as that of a compiled library does."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return len


_answers = _Answers()


def _use_compiled(events: Any) -> Any:
    return {"sum": _sum(events), "has": [_answers.anything([1])]}


def test_compiled_functions_and_proxies_are_left_alone() -> None:
    copies = ProcessorCopies(_use_compiled)
    for _ in range(2):  # at the second call there is machine code
        assert copies(np.ones(5)) == {"sum": 5.0, "has": [1]}
