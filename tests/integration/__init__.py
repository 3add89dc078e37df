"""Tests on real PostgreSQL, NATS and Temporal servers."""
