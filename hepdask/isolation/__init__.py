"""Call functions in a child process that may crash, without harm to the process that calls.

A processor may take its process with it: SIGSEGV in C++ code, a kill for memory. To find the event that does it, ranges
are run over and over in a process that may die, so a death has to be cheap. Three processes::

    caller     a dask worker: threads, open sockets, daemonic (`multiprocessing` refuses to start a process there)
      | subprocess.Popen, once
    server     has imported what ranges need, has one thread, never runs user code: it can be forked at any time
      | os.fork, again after each death: some milliseconds
    child      runs the calls, one after the other, so that its open files stay open; dies or not

Opening a file of 1,500 branches takes 0.3 s, and importing the user's modules may take longer: a search in which each
death costs that again would take half a minute. So after a death, the next child does what comes first (`ChildRunner.call`),
and then becomes what the server is: children are forked from it that have all this, until another call has to begin
otherwise. That is only done where it has left no thread behind, which a fork would not have::

    server -- os.fork --> prepared child: its work unpickled, its file open; runs no range
                            | os.fork, again after each death
                          child

The caller and the child speak over a socket pair of their own, new for each child: half a message of a dead one can't
be mistaken for the next one's. The caller makes it, and sends one end to the server over the socket that the server
inherited; there the server reports how a child died. Nobody else can connect to any of them. Standard output and error
are those of the caller, and carry nothing of this.

Nothing outlives the caller: the server sees the end of its socket, and kills the child; and on Linux the child dies
with what it was forked from. Needs fork, so Linux or macOS.

`runner` is the caller, by its `ends` of the connections; `server` and `child` are the other two processes. All send
`frames`; `calls` has what is asked for and what the user is told of a death, `exceptions` those of the child.
"""

from __future__ import annotations

from hepdask.isolation.runner import ChildRunner, child_runner

__all__ = ["ChildRunner", "child_runner"]
