"""Agents: roles, prompts, the loop, and the model that is a client of the LLM proxy."""
