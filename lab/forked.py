"""A child that runs one function and ends with its status, whatever happens in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
