"""The judges: `checks` counts, `llm` asks a model through phoenix-evals, `scripted` stands in for a model.

Owns how each of them comes to a score, and the questions that are built in. A judge that cannot give a score has
failed, which is told as such and never counts as a zero. What the scores are held against is the scenario's.
"""
