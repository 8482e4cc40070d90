from __future__ import annotations

import subprocess

import pytest

from hepdask.clusters.environment import export_lines, warn_of_threads, worker_environment


def test_workers_have_one_thread_and_the_users_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRD_REQUESTTIMEOUT", "123")
    monkeypatch.setenv("X509_USER_PROXY", "/tmp/secret")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    variables = worker_environment({"environment": {"OMP_NUM_THREADS": "2", "A": "b"}})
    assert variables["OPENBLAS_NUM_THREADS"] == "1"
    assert variables["MALLOC_TRIM_THRESHOLD_"] == "0"  # the user's choice, see hepdask.allocator
    assert variables["XRD_REQUESTTIMEOUT"] == "123"
    assert variables["OMP_NUM_THREADS"] == "2"  # the user's word is the last
    assert variables["A"] == "b"
    assert "secret" not in str(variables)


def test_a_shell_reads_what_was_written() -> None:
    lines = export_lines({"A": "it's $HOME; `x`", "B": ""})
    script = "\n".join([*lines, 'printf "%s|%s" "$A" "$B"'])
    assert subprocess.check_output(["/bin/sh", "-c", script], text=True) == "it's $HOME; `x`|"


def test_several_threads_are_warned_of() -> None:
    warn_of_threads(1)
    with pytest.warns(UserWarning, match="workers with 4 threads: .* in turns"):
        warn_of_threads(4)
