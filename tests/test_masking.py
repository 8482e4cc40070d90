from __future__ import annotations

import pytest

from hepdask.masking import mask_secrets

TOKEN = "eyJhbGciOi.eyJzdWIi-x.c2ln_"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("authorization='Basic dXNlcg=='", "authorization='Basic ***'"),
        ("header bearer abc123 is old", "header bearer *** is old"),
        (f"got {TOKEN}, expired", "got ***, expired"),
        ("token=hunter2", "token=***"),
        ("access_token = 'hunter two'", "access_token = ***"),
        ("{'token': b'hunter\\'two'}", "{'token': ***}"),
        ('{"password": "hunter two", "n": 1}', '{"password": ***, "n": 1}'),
        ("token='hunter two that was cut", "token=***"),
        ("AWS_SECRET_ACCESS_KEY=hunter/2+x", "AWS_SECRET_ACCESS_KEY=***"),
        ("X509_USER_PROXY=/tmp/x509up_u1000 is old", "X509_USER_PROXY=*** is old"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIhunter2\n-----END RSA PRIVATE KEY----- x", "*** x"),
        ("-----BEGIN CERTIFICATE-----\nMIIhunter2", "***"),
        ("root://h//f.root?authz=Bearer%20hunter2&xrd.x=1", "root://h//f.root?authz=***&xrd.x=1"),
        ("https://s3/f?X-Amz-Signature=hunter2&n=1", "https://s3/f?X-Amz-Signature=***&n=1"),
        ("https://me:hunter2@host:1094/f", "https://***@host:1094/f"),
        ("https://me:hunt@er2@host/f", "https://***@host/f"),
        ("me:hunter2@host", "***@host"),
    ],
)
def test_secrets_are_masked(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "the bearer token has expired",
        "BEARER_TOKEN_FILE is not set",
        "root://me@host:1094//store/a.root: no such file",
        "/home/me/muons.py:12: UserWarning: 3 muons",
        "a tokenizer for 3 tokens",
        "keyjoy.of.sorts",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_secrets(text) == text


@pytest.mark.parametrize(
    "part",
    ["a", "a-", "a:", "eyJ-", "eyJaaaaa.", "token ", "token=\"", "bearer ", "-----BEGIN A-----", "&a", "://", "1e"],
)  # fmt: skip
def test_the_search_for_secrets_is_linear(part: str) -> None:
    """Hangs, until pytest ends it, if the time grows with the square of the length."""
    text = part * (1_000_000 // len(part))
    masked = mask_secrets(text)
    assert len(masked) <= len(text)
