"""Whole evaluations: carry out a plan, and everything that its folder then knows of its episodes."""

from pathlib import Path

from mrvlm_sim.evaluation.condition import Condition
from mrvlm_sim.evaluation.evaluate import Evaluation
from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import Key, read_episodes, read_log

CLEAN = Condition()
Outcomes = dict[Key, dict[str, object]]


def plan_of(*policies: str, episodes: int) -> Plan:
    return Plan("pick_place", policies, (CLEAN,), 0, episodes)


def carry_out(plan: Plan, folder: Path, workers: int | None = 0, **options: object) -> Outcomes:
    evaluation = Evaluation(plan, folder, workers, **options)  # type: ignore[arg-type]
    try:
        evaluation.run(lambda _: None)
    finally:
        evaluation.finish()
    return outcomes(folder)


def outcomes(folder: Path) -> Outcomes:
    """Everything that a run knows of its episodes, but for timings."""
    found = {}
    for row in read_episodes(folder).to_dict("records"):
        key = Key(*(row[name] for name in Key._fields))
        state, actions = read_log(folder, key)
        found[key] = row | {"latency_ms": "", "state": state.tobytes(), "actions": actions.tobytes()}
    return found


TROUBLE = """
import ctypes, os, time
import numpy as np
from pathlib import Path

class Still:
    def reset(self, episodes):
        self.instruction = episodes[0].instruction
    def act(self, observations):
        return np.zeros((1, 5), np.float32)

class Hangs(Still):
    def act(self, observations):
        if "put the red" in self.instruction:
            time.sleep(600)
        return super().act(observations)

class HangsInC(Still):
    def act(self, observations):
        if "put the red" in self.instruction:
            ctypes.PyDLL(None).sleep(600)  # with the interpreter locked
        return super().act(observations)

class Dies(Still):
    def act(self, observations):
        if "put the red" in self.instruction:
            os._exit(3)
        return super().act(observations)

class DiesOnce(Still):
    def act(self, observations):
        flag = Path(__file__).with_name("died")
        if "put the red" in self.instruction and not flag.exists():
            flag.touch()
            os._exit(3)
        return super().act(observations)

class Raises(Still):
    def act(self, observations):
        if "put the red" in self.instruction:
            raise ValueError("I do not like red")
        return super().act(observations)
"""


def errors(timeout: float) -> dict[str, str]:
    """Of the policies above, wherever they run, in episodes with a red cube."""
    return {
        "Hangs": f"TimeoutError: not finished after {timeout:g} s",
        "Dies": "WorkerDied: two worker processes died of it (out of memory, or a crash in native code?)",
        "DiesOnce": "",
        "Raises": "ValueError: I do not like red",
    }
