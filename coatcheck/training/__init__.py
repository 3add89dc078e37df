"""Training data: what the audit log and the conversations teach, as files without secrets.

`exporting` walks the audit log by day, `rows`, `rounds` and `dialogues` make the rows, `redaction` takes secrets and
personal data out of every text in them, `scanning` reads the finished bytes once more with other eyes.
Nothing here is imported by a worker.
"""
