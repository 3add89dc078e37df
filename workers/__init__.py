"""Composition roots: one module per kind of process, where settings meet clients and clients meet the work."""
