from __future__ import annotations

import dask
import pytest

from hepdask import DaskExecutor, OptionError
from hepdask.clusters import choose_cluster, configured_word


def test_options_win_over_the_configuration() -> None:
    clusters = {"slurm": {"queue": "long", "worker-ports": "10000:10100", "minimum": 1}}
    with dask.config.set({"hepdask.clusters": clusters}):
        choice = choose_cluster("slurm", {"queue": "short", "workers": 4})
    assert choice.options == {"queue": "short", "worker_ports": "10000:10100", "workers": 4}


def test_words_in_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_HEPDASK__CLUSTER", "slurm")
    monkeypatch.setenv("DASK_HEPDASK__CLUSTERS__SLURM__QUEUE", "long")
    monkeypatch.setenv("DASK_HEPDASK__CLUSTERS__SLURM__MAXIMUM", "7")
    with dask.config.set(dask.config.collect(paths=[])):
        assert configured_word() == "slurm"
        assert choose_cluster("slurm").options == {"queue": "long", "maximum": 7}
        assert repr(DaskExecutor(cores=2)) == "DaskExecutor('slurm')"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("slrm", "there is no cluster 'slrm'; did you mean 'slurm'"),
        ("?", r"there is no cluster '\?'; there is local, slurm, .*, lxplus, .*tls://HOST:PORT"),
    ],
)
def test_a_wrong_word_lists_the_right_ones(word: str, expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        choose_cluster(word)


def test_a_wrong_system_of_a_facility_names_it(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "facilities.yaml"  # type: ignore[operator]
    path.write_text("mine: {system: slrum}")
    with (
        dask.config.set({"hepdask.facilities-file": str(path)}),
        pytest.raises(OptionError, match=r"no cluster 'slrum' \(of the facility 'mine'\)"),
    ):
        choose_cluster("mine")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hepdask.cluster", 3, "hepdask.cluster in dask's configuration is 3: give a word"),
        ("hepdask.clusters", {"slurm": [1]}, "hepdask.clusters.slurm .* is no mapping"),
    ],
)
def test_a_wrong_configuration_is_named(name: str, value: object, expected: str) -> None:
    with dask.config.set({name: value}), pytest.raises(OptionError, match=expected):
        choose_cluster(configured_word() or "slurm")


def test_executors_take_the_words() -> None:
    with pytest.raises(OptionError, match="slurm has no option 'imagination'; its options are"):
        DaskExecutor("slurm", imagination=1)
    with pytest.raises(OptionError, match=r"DaskExecutor has no option 'retires'.*'retries'"):
        DaskExecutor("slurm", retires=1)
    with pytest.raises(OptionError, match="tcp://x:1 has no option 'queue'; its options are addr"):
        DaskExecutor("tcp://x:1", queue="x")
    with pytest.raises(OptionError, match="queue describes a cluster that is to be made"):
        DaskExecutor(lambda: None, queue="x")
