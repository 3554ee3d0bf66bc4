"""Ctrl-C keeps what is done and leaves no process behind."""

import os
import sys
import time
from pathlib import Path

import pytest
from processes import interrupt, start, wait_for

from mrvlm_sim.evaluation.store import read_episodes

pytestmark = pytest.mark.slow

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks for left processes in /proc")
MANY = (
    "eval", "--env", "pick_place", "--policy", "expert", "--no-baselines", "--episodes", "5000", "--workers", "2",
    "--output", "run",
)  # fmt: skip


@needs_proc
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    episodes, run = 5000, tmp_path / "run"
    with start(*MANY, cwd=tmp_path) as process:
        begun = wait_for(lambda: (run / "run.sqlite").exists() and len(read_episodes(run)) > 3, 90)
        out, err = interrupt(process, os.kill)
    assert begun
    assert process.returncode == 130
    assert "Traceback" not in err
    done = read_episodes(run)
    assert 3 <= len(done) < episodes
    assert (done["error"] == "").all()
    assert f"{episodes - len(done)} of {episodes} episodes are missing" in out
    text = (run / "table.md").read_text()
    assert f"{episodes - len(done)} of {episodes} episodes are missing" in text
    header, _, row = text.splitlines()[:3]
    table = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row)), strict=True))
    assert table["missing"] == str(episodes - len(done))
    assert not list(run.glob("*.partial"))


@needs_proc
def test_ctrl_c_while_the_workers_start_is_quiet(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the group, also to workers that are still importing."""
    with start(*MANY, cwd=tmp_path) as process:
        begun = wait_for((tmp_path / "run" / "run.sqlite").exists, 90)
        time.sleep(0.5)
        out, err = interrupt(process, os.killpg)
    assert begun
    assert process.returncode == 130
    assert "5000 of 5000 episodes are missing" in out
    assert "Traceback" not in err
