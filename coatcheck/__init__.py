"""Coatcheck: takes a feature request through a team of LLM agents, durably."""
