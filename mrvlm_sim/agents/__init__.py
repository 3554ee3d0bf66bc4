"""What can be evaluated: the Policy contract, trained networks and baselines."""
