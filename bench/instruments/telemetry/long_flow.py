"""One connection that lasts: a request and its echo every so often. Runs on a host with the standard library alone.

    ADDRESS PORT SECONDS EVERY_S SIZE

Prints one JSON line: the client's port, CLOCK_MONOTONIC seconds of beginning and end, payload in both directions.
"""

import json
import socket
import struct
import sys
import time

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for no time


def main(address: str, port: str, seconds: str, every_s: str, size: str) -> None:
    """Whatever fails is told as the outcome."""
    begun, sport, count, outcome = time.monotonic(), 0, 0, "OPEN"
    request = b"l" * int(size)
    try:
        with socket.create_connection((address, int(port)), timeout=2.0) as sock:
            sport = sock.getsockname()[1]
            while time.monotonic() < begun + float(seconds):
                sock.sendall(request)
                left = len(request)
                while left and (piece := sock.recv(left)):
                    left -= len(piece)
                count += 2 * len(request) - left
                if left:
                    raise ConnectionError
                time.sleep(float(every_s))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except TimeoutError:
        outcome = "TIMED_OUT" if not sport else "BROKEN"
    except ConnectionRefusedError:
        outcome = "REFUSED"
    except OSError:
        outcome = "BROKEN"
    sys.stdout.write(json.dumps({"sport": sport, "start": begun, "end": time.monotonic(), "bytes": count,
                                 "outcome": outcome}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:6])
