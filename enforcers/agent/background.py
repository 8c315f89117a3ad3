"""A daemon in the background of whoever starts it.

It goes along in the agents' archives, where there is the standard library alone, and of that as little as will do.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

OK = "ok"


def start(serve: Callable[[Callable[[], None]], None], log: str, refusal: type[Exception]) -> str:
    """Run `serve` in a session of its own; returns its first word.

    `serve` gets what it calls once it can be asked: then the word is OK. Where it raises `refusal` or an OSError before
    that, the word is what that says; where it ends otherwise it is empty. Whatever it prints is in `log`.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os.setsid()
        if os.fork():
            os._exit(0)
        _be(serve, log, refusal, write_end)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as said:
        return said.read().strip()


def hold(lock: int) -> None:
    """Write into the file of a lock that is held who holds it."""
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())


def _be(serve: Callable[[Callable[[], None]], None], log: str, refusal: type[Exception], report: int) -> None:
    """In the grandchild: never returns."""
    open_reports = [report]

    def tell(word: object) -> None:
        """Once: the number is another file's afterwards."""
        if open_reports:
            os.write(report, f"{word}\n".encode())
            os.close(open_reports.pop())

    status = 1
    try:
        _leave_caller(log, report)
        serve(lambda: tell(OK))
        status = 0
    except (refusal, OSError) as err:
        try:  # noqa: SIM105 (contextlib is larger than all that this imports)
            tell(err)
        except OSError:
            pass  # nobody listens any more: the log has it
        print(err, file=sys.stderr, flush=True)
    except BaseException:  # the last frame of this process: the log is the only place to say it
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _leave_caller(log: str, report: int) -> None:
    """No terminal, and no descriptor of the caller's: its locks would stay held with them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (null, 1), (kept, 2)):
        os.dup2(source, target)
    os.closerange(3, report)
    os.closerange(report + 1, 4096)
