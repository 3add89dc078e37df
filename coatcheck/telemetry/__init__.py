"""Telemetry: one provider per process, the trace of a run, what may leave the process, logs."""
