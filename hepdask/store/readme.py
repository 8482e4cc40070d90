"""The text that explains a store to whoever finds it."""

from __future__ import annotations

__all__ = ["README"]

README = """\
This is a store of hepdask: results of analysis runs, kept so that later runs need not compute them again.

* WARNING: the results are Python pickles. Loading one runs whatever is in it, so whoever can write here can run code as
  everyone who uses this store. Keep it private: local directories of a store have mode 0700, files 0600. Elsewhere
  (S3, XRootD, ...) the rights are those of the place: give nobody else the right to write.
* Each directory with a hexadecimal name holds the results of one processor, with its arguments and its code; about.json
  in it says which. Each file KEY.hepdask is the result of a part of the data.
* Everything here can be removed at any time; it is then computed again. To see what is there and to remove what is
  old:

      hepdask store ls STORE
      hepdask store prune STORE --older-than 30d

* Format of a KEY.hepdask: a line "hepdask-object VERSION", a line with a checksum (xxh3_128, hex) of all that follows, a line
  of JSON, and the pickle (protocol 5) with its buffers, in blocks compressed by LZ4 where that pays; see hepdask/store/objects.py.
* A file ....hepdask-tmp is being written, or was left by a process that was killed; prune removes those older than a day.
"""
