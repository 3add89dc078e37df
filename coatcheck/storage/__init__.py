"""PostgreSQL: the schema and its migrations, the pool, the rows of runs, and the journal of model turns."""
