"""The audit log's own processes: who may tell what, the table, what could not be digested."""
