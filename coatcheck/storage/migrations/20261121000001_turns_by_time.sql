-- Reports since a day (coatcheck/storage/spending.py) read the turns of that time only.

-- migrate:up
-- A block range index of a few pages: turns are stored nearly in the order of their time.
CREATE INDEX IF NOT EXISTS llm_turns_started_idx ON llm_turns USING brin (started_at);

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
