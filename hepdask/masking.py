"""Take secrets out of a text before it is shown, logged or kept."""

from __future__ import annotations

import re

__all__ = ["mask_secrets"]

# Each search is linear in the length of the text: a repetition begins at a fixed text or behind a separator.
# A value ends with its quote, or before a space. What is cut off may have no end.
_VALUE = r"""(?:[bru]{0,2}\\?"(?:\\.|[^"\\])*"?|[bru]{0,2}\\?'(?:\\.|[^'\\])*'?|[^\s"'&]+)"""
_SECRET_NAMES = "token|secret|secret_key|access_key|private_key|api_?key|password|passwd|passphrase|authz|x509_user_proxy"
_SECRETS = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), replacement)
    for pattern, replacement in (
        # a proxy certificate with its key
        (r"-----BEGIN [A-Z ]{1,40}-----.*?(?:-----END [A-Z ]{1,40}-----|\Z)", "***"),
        # a JSON web token, wherever it stands
        (r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?", "***"),
        (rf"(\bbearer(?:\s+|%20)(?!tokens?\b)){_VALUE}", r"\1***"),
        (
            rf"""(\bauthorization(?:\\?["'])?\s*[=:]\s*(?:\\?["'])?(?:(?:basic|bearer)\s+)?){_VALUE}""",
            r"\1***",
        ),
        (rf"""((?:{_SECRET_NAMES})(?:\\?["'])?\s*[=:]+\s*){_VALUE}""", r"\1***"),
        # URLs that object stores have signed
        (rf"([?&][\w-]{{0,40}}signature=){_VALUE}", r"\1***"),
        # user:password@
        (r"""(?<![^\s/@"'(<=])[^\s/@:"'(<=]{1,100}:[^\s/]{1,1000}@""", "***@"),
    )
)


def mask_secrets(text: str) -> str:
    """Return a text with ``***`` for tokens, passwords and proxies that can be told by what stands around them.

    Parameters
    ----------
    text : str
        Anything that is to be shown or logged.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
