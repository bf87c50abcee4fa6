"""Where fetched tools are kept, outside the build tree, and the lock that keeps two runs apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def folder() -> Path:
    """`$PLIMSOLL_CACHE`, else `$XDG_CACHE_HOME/plimsoll`, else `~/.cache/plimsoll`."""
    if value := os.environ.get("PLIMSOLL_CACHE"):
        return Path(value).absolute()
    if value := os.environ.get("XDG_CACHE_HOME"):
        return Path(value).absolute() / "plimsoll"
    return Path.home() / ".cache" / "plimsoll"


@contextlib.contextmanager
def alone():
    """Makes the cache and holds its lock, so that two runs do not make the same things. Waits for the other run."""
    folder().mkdir(parents=True, exist_ok=True)
    with open(folder() / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
