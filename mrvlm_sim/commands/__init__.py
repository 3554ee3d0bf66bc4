"""The commands behind `mrvlm_sim.cli`: parsing and printing only."""
