"""Success statistics and cost: pure functions, each figure with its source."""
