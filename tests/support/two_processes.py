"""Start a program of this folder in two processes on the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType


def run(module: ModuleType, program: str, folder: Path) -> None:
    """Run ``python MODULE PROGRAM FOLDER RANK PORT`` twice at once, for a hundred seconds at most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    search = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"{program}.{rank}.log" for rank in range(2)]
    started = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            command = [sys.executable, str(module.__file__), program, str(folder), str(rank), port]
            started.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment))
    try:
        for process in started:
            process.wait(timeout=100)
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(log.read_text() for log in logs)
