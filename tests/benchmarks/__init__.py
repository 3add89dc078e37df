"""`make bench`: what the orchestration costs, as ratios measured in one run on the real servers."""
