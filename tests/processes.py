"""Commands in processes of their own: start, wait, interrupt, and see what is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mrvlm_sim.paths import CHECKOUT


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line as a process of its own, in a process group of its own."""
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mrvlm_sim.cli", *arguments],
        cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def living(group: int) -> list[str]:
    """Processes of a group that are not dead, by their command lines."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if folder.name.isdigit() and int(process_group) == group and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def interrupt(process: subprocess.Popen[str], send: Callable[[int, int], None]) -> tuple[str, str]:
    """Ctrl-C, then what was printed; nothing of the process's group may be left."""
    try:
        send(process.pid, signal.SIGINT)
        printed = process.communicate(timeout=60)
        assert wait_for(lambda: living(process.pid) == [], 10), living(process.pid)
        return printed
    finally:
        if living(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
