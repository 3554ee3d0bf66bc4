"""Comparisons that stop when they are decided: every arm against the reference, looked at after every round."""

from collections.abc import Iterable
from pathlib import Path

from mrvlm_sim.evaluation.runs import Plan
from mrvlm_sim.evaluation.store import read_episodes
from mrvlm_sim.evaluation.tables import paired
from mrvlm_sim.metrics.sequential import Verdict, verdict

ROUND = 10  # episodes of every arm between two looks


class Race:
    """Reads the store of a run; what it says depends on complete rounds only, so not on workers or interruptions."""

    def __init__(self, folder: Path, plan: Plan, policies: Iterable[str]) -> None:
        self.folder, self.plan = folder, plan
        self.arms = [name for name in policies if name != plan.reference]

    def undecided(self, episodes: int) -> list[str]:
        """Arms that no look within the first `episodes` told apart from the reference."""
        decided = self._decided(episodes)
        return [arm for arm in self.arms if arm not in decided]

    def notes(self) -> list[str]:
        """What was decided and when, for people."""
        decided, reference = self._decided(self.plan.episodes), self.plan.reference
        notes = [
            f"{arm} is told apart from {reference} after {episodes} episodes "
            f"(e-value {found.evidence:.3g}, needed {found.needed:g})"
            for arm, (episodes, found) in decided.items()
        ]
        if left := [arm for arm in self.arms if arm not in decided]:
            notes.append(f"not told apart from {reference} so far: {', '.join(left)}")
        return notes

    def _decided(self, episodes: int) -> dict[str, tuple[int, Verdict]]:
        """Arms that are told apart, with the look at which it happened."""
        rows, decided = read_episodes(self.folder), dict[str, tuple[int, Verdict]]()
        rows = rows[(rows["condition"] == self.plan.conditions[0].name) & (rows["suite_seed"] == self.plan.suite_seed)]
        base = rows[rows["policy"] == self.plan.reference]
        for arm in self.arms:
            own = rows[rows["policy"] == arm]
            for look in range(ROUND, episodes + 1, ROUND):
                a, b = paired(own[own["episode"] < look], base[base["episode"] < look])
                found = verdict(a, b, len(self.arms))
                if len(a) == look and found.decided:
                    decided[arm] = look, found
                    break
        return decided
