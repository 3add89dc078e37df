"""The benchmark: scenarios that runs are held against, from their recorded events alone."""
