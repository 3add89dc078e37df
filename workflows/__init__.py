"""Deterministic code only: what happens in which order. No I/O, no clock, no randomness of its own."""
