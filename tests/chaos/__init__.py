"""Processes die at chosen points, servers are killed and stopped, and a checker that knows no product code judges."""
