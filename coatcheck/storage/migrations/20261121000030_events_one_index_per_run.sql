-- The index by sequence, which is the order of a run's events, serves what the one by time served.

-- migrate:up
DROP INDEX events_workflow_idx;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
