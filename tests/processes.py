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
    """The command line as a process of its own, in a session of its own."""
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mrvlm_sim.cli", *arguments],
        cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job would ignore
    )  # fmt: skip


def living(session: int) -> dict[int, str]:
    """Processes of a session that are not dead, and their command lines; some of Ray's have groups of their own."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if folder.name.isdigit() and int(its_session) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
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
    """Ctrl-C, then what was printed; nothing of the process's session may be left."""
    send(process.pid, signal.SIGINT)
    return nothing_left(process)


def nothing_left(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process printed until its end; nothing of its session may be left then."""
    try:
        printed = process.communicate(timeout=60)
        assert wait_for(lambda: living(process.pid) == {}, 10), living(process.pid)
        return printed
    finally:
        for left in living(process.pid):
            os.kill(left, signal.SIGKILL)
