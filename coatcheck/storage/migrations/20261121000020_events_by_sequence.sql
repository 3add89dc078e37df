-- The order of what happened is the order of the audit log, whose sequence the projector keeps in the payload, since
-- the columns of events are the requirements'. Readers ask for one run in that order, the rebuild for a span of it.

-- migrate:up
CREATE INDEX events_sequence_idx ON events (workflow_id, ((payload -> '_meta' ->> 'sequence')::bigint));

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
