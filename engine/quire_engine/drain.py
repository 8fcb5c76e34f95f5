"""The control socket between `quire-engine drain` and the server in the same container.

A Unix socket and not a loopback port: behind a service mesh every client seems to come from loopback.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

DRAINED = b"drained\n"


def control_socket(port: int) -> Path:
    """Where the server that listens on `port` takes commands. QUIRE_RUN_DIR moves it from /tmp."""
    return Path(os.environ.get("QUIRE_RUN_DIR") or "/tmp") / f"quire-engine-{port}.sock"


async def serve_control(path: Path, drain: Callable[[], Awaitable[None]]) -> asyncio.Server:
    """Answer each `drain` line with `drained` once `drain()` has returned.

    Raises `ValueError` where no socket can be made at `path`.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (await reader.readline()).strip() == b"drain":
                await drain()
                writer.write(DRAINED)
                await writer.drain()
        except ConnectionError:
            pass  # the drain command was killed: the drain itself goes on
        except asyncio.CancelledError:
            pass  # the server ends while it drains: asyncio would log this task's cancellation as an error
        finally:
            writer.close()

    old_mask = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(answer, path)
    except OSError as error:
        raise ValueError(
            f"the control socket {path} cannot be made ({error.strerror or error}): "
            "set QUIRE_RUN_DIR to a directory with a short path that can be written"
        ) from error
    finally:
        os.umask(old_mask)


def request_drain(port: int, timeout: float) -> str | None:
    """Ask the server on `port` to drain and wait until it has. None when it has, else what went wrong."""
    path = control_socket(port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(b"drain\n")
            answer = connection.recv(64)
        except FileNotFoundError:
            return f"no server listens on port {port} here ({path} is not there): name its port with --port"
        except ConnectionRefusedError:
            return f"the server that made {path} is gone"
        except TimeoutError:
            return f"the server on port {port} did not finish draining within {timeout:.0f} s"
        except OSError as error:
            return f"{path} cannot be used ({error.strerror or error}): run as the server's user"
    return None if answer == DRAINED else f"the server on port {port} ended while draining"
