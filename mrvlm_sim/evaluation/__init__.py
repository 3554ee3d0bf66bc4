"""Evaluation: the unit of work, the runner, the run folder and the tables."""
