"""A user's script: ``python -m tests.clusters.analysis WORD CERTIFICATES FILE...`` prints a hash of the output's bits."""

from __future__ import annotations

import hashlib
import sys

from hepdask import DaskExecutor, Runner
from tests.example_processors import Weighted


def main() -> None:
    """Run the processor over the files on the cluster of the word."""
    word, certificates, *paths = sys.argv[1:]
    files = {name: f"{certificates}/{name}.pem" for name in ("ca", "cert", "key")}
    with DaskExecutor(word, security=files) as executor:
        run = Runner(executor, chunksize=20, progress=False, metadata_cache=False)
        output = run({"nano": paths}, "Events", processor_instance=Weighted())
    print(hash_of(output))


def hash_of(output: dict[str, object]) -> str:
    """Hash the bits of the histogram."""
    values = output["pt"].view(flow=True)  # type: ignore[attr-defined]
    return hashlib.sha256(values.tobytes()).hexdigest()


if __name__ == "__main__":
    main()
