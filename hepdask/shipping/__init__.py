"""The user's own modules, data files, environment and credentials: on every worker, late ones too.

::

    processor -> origins of the user's modules (`hepdask.fingerprint`)     client
       | packing: files that belong together, hashed, one archive each
    Cargo
       | executors.dask_shipping: asks the scheduler what it has, sends what is new, once
    plugins of workers, kept by the scheduler
       | arrival: unpacked into the scratch directory of each worker that is there or will come
    tasks say by their `Manifest` which versions they need; unpickling them activates these

The user's modules always come from the client, even where a worker could import something of the same name: what the user has edited
is what runs. Libraries are not sent: those are compared by ``hepdask doctor``.

A module is sent as its file is now. What was edited since it was imported here runs in its new form on the workers, and is named in a
warning. Two runs that need different versions of a module at a time can't share a cluster: the second one is told so.
"""

from __future__ import annotations

from hepdask.shipping.arrival import Manifest, receive, seal
from hepdask.shipping.cargo import Cargo, load_cargo
from hepdask.shipping.options import Shipping
from hepdask.shipping.resources import Resource, declare, read_resources, resource

__all__ = [
    "Cargo",
    "Manifest",
    "Resource",
    "Shipping",
    "declare",
    "load_cargo",
    "read_resources",
    "receive",
    "resource",
    "seal",
]
