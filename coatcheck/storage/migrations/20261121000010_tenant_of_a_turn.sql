-- The LLM proxy shares scarce capacity between tenants, and learns whose turn it is from the run's row.

-- migrate:up
GRANT SELECT (metadata) ON workflows TO coatcheck_gateway;
-- Its column tells whose run a task belongs to.
GRANT SELECT (workflow_id) ON task_executions TO coatcheck_gateway;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
