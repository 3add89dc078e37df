"""Tests of the benchmark itself: its grammar, its rules, its mutants."""
