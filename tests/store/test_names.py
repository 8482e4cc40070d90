from __future__ import annotations

import pytest

from hepdask.errors import OptionError
from hepdask.store.names import (
    ABOUT_NAME,
    README_NAME,
    check_hex,
    is_temporary,
    key_of,
    make_temporary_name,
    object_name,
)
from tests.store.storing import KEY


@pytest.mark.parametrize(
    "name",
    ["", "..", "abc", "a/b", "../" + KEY, KEY + "/", KEY + "\n", KEY.upper(), "0" * 129, "０" * 32],
)
def test_what_is_no_hex_number_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"the key of a store is .* take a hash"):
        check_hex(name, "key")
    assert key_of(object_name(name)) is None


def test_keys_are_found_in_names() -> None:
    assert check_hex(KEY, "key") == KEY
    assert key_of(object_name(KEY)) == KEY
    assert key_of(KEY) is None
    assert key_of(ABOUT_NAME) is None
    assert key_of(make_temporary_name(object_name(KEY))) is None


def test_temporary_names_are_new_and_known() -> None:
    for name in (object_name(KEY), ABOUT_NAME, README_NAME):
        first, second = make_temporary_name(name), make_temporary_name(name)
        assert first != second
        assert is_temporary(first)
        assert is_temporary(second)
    assert not is_temporary(object_name(KEY))
    assert not is_temporary(".bashrc.0123456789abcdef.hepdask-tmp")
