"""The main job: run a plan, keep every row, end with one table."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mrvlm_sim.errors import UserError
from mrvlm_sim.evaluation.episode import EpisodeRecord
from mrvlm_sim.evaluation.runner import run_jobs
from mrvlm_sim.evaluation.runs import Plan, RunFolder, provenance
from mrvlm_sim.evaluation.tables import cost_columns, pretty, success_table


class Evaluation:
    """A plan that is carried out in a folder; `table` can be asked at any time, also after an interruption."""

    def __init__(self, plan: Plan, folder: Path, workers: int) -> None:
        if workers < 1:
            raise UserError(f"--workers must be at least 1, not {workers}")
        self.plan, self.workers = plan, workers
        self.policies, self.problems = plan.load()
        if not self.policies:
            raise UserError("no policy fits the environment:\n" + "\n".join(self.problems.values()))
        self.jobs = plan.jobs(folder, self.policies)
        self.records: list[EpisodeRecord] = []
        self.folder = RunFolder(folder)
        self.folder.write("provenance.json", provenance(plan, workers))

    def run(self, progress: Callable[[EpisodeRecord], None]) -> None:
        """Run every episode; on KeyboardInterrupt what is done stays."""
        for record in run_jobs(self.jobs, self.workers):
            self.folder.add(record)
            self.records.append(record)
            progress(record)

    def missing(self) -> int:
        """How many planned episodes were not finished."""
        return len(self.jobs) - len(self.records)

    def errors(self) -> list[str]:
        """Every different error of the episodes, with the policy it belongs to and how often it came."""
        counted = Counter(f"{record.policy}: {record.error}" for record in self.records if record.error)
        return [f"{text} ({count} episodes)" for text, count in counted.items()]

    def notes(self) -> list[str]:
        """What a reader of the table must know: what is missing, was left out, or went wrong."""
        notes = [f"left out {name}: {problem}" for name, problem in self.problems.items()]
        if self.missing():
            notes.append(f"interrupted: {self.missing()} of {len(self.jobs)} episodes are missing")
        planned = {(job.name, job.condition.name) for job in self.jobs}
        for condition in self.plan.conditions:
            untouched = [n for n in dict.fromkeys(job.name for job in self.jobs) if (n, condition.name) not in planned]
            if untouched:
                notes.append(f"{condition.name} does not apply to {', '.join(untouched)}")
        return notes + [f"error of {error}" for error in self.errors()]

    def finish(self) -> pd.DataFrame:
        """Write `table.md` and `table.csv` from the rows there are, and return the table with raw numbers."""
        planned = Counter(job.name for job in self.jobs)
        table = success_table(self.folder.close(self.jobs), planned, self.plan.reference)
        if not table.empty:
            table = table.merge(cost_columns(self.policies), on="policy", how="left")
        text = "no episode was finished" if table.empty else pretty(table, self.plan.reference).to_markdown(index=False)
        self.folder.write("table.csv", table.to_csv(index=False))
        self.folder.write("table.md", "\n".join([text, *(f"\n- {note}" for note in self.notes())]) + "\n")
        return table


def default_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
