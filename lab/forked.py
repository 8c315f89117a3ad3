"""A child that runs one function and ends with its status, whatever happens in it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn


def child(body: Callable[[], int]) -> int:
    """The pid of a child of this process that runs `body` and ends with what it returns.

    It ends with 130 after an interrupt, and with 70 and the traceback after anything else that `body` raises.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = body()
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # the last frame of this process
        sys.excepthook(*sys.exc_info())
    finally:
        leave(status)


def leave(status: int) -> NoReturn:
    """End this process with what it printed written out, as far as anybody still reads it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def reader_gone() -> bool:
    """Whether whoever read our standard output has left, as `head` does when it has seen enough."""
    watch = select.poll()
    watch.register(1, 0)
    return any(events & select.POLLERR for _fd, events in watch.poll(0))
