from __future__ import annotations

import pickle

from hepdask.metadata import Branch, Branches
from tests.metadata.describing import metadata_of


def test_branches_are_a_tuple_to_the_eye() -> None:
    plain = (Branch("x", "double", 70, 80), Branch("run", "int32_t", 10, 40))
    packed = Branches(plain)
    assert packed == plain
    assert hash(packed) == hash(plain)
    assert (len(packed), packed[1], packed[:1]) == (2, plain[1], plain[:1])
    assert packed.names == ("x", "run")
    assert packed != Branches(plain[:1])
    assert packed != 1


def test_branches_share_their_layout_after_pickling() -> None:
    one, other = metadata_of("a.root"), metadata_of("b.root")
    copies = pickle.loads(pickle.dumps([one, other]))
    assert copies == [one, other]
    assert copies[0].branches.names is copies[1].branches.names
