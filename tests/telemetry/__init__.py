"""A collector that misbehaves as real ones do, and what a trace must be."""
