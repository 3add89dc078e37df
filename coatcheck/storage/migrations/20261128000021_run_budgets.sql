-- What runs may spend: escrowed when a run begins, reserved before each model call, settled after it, returned at the end.
--
-- A run's row here is absolute, as its other rows are: `record.sql` writes what the run may spend in all, guarded by the
-- step's revision, and the trigger moves the difference. So the escrow is part of the statement that records the step.

-- migrate:up
CREATE TABLE run_budgets (
    run_key VARCHAR(255) COLLATE "C" PRIMARY KEY,
    tenant VARCHAR(255) NOT NULL,
    credits BIGINT CHECK (credits > 0), -- micro-credits in all; NULL: money is not what limits the run
    tokens BIGINT CHECK (tokens > 0),
    calls BIGINT CHECK (calls > 0),
    revision BIGINT NOT NULL,
    closed_at TIMESTAMPTZ -- the run has ended, and what is free goes back
);

-- Makes the run's account what its row says. A tenant without an account of its own is paid for by the treasury.
-- What comes back goes to who has paid.
CREATE FUNCTION run_budgets_fund() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own text := 'run/' || NEW.run_key;
    id text := NEW.run_key || '/' || pg_current_xact_id();
    free bigint;
    granted bigint;
    payer text;
    missing bigint;
BEGIN
    IF NEW.credits IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO accounts (account_id) VALUES (own) ON CONFLICT DO NOTHING;
    SELECT balance - held INTO free FROM accounts WHERE account_id = own FOR NO KEY UPDATE;
    SELECT coalesce(sum(amount), 0), min(other_id) FILTER (WHERE kind = 'escrow') INTO granted, payer
    FROM entries WHERE account_id = own AND kind IN ('escrow', 'refund');
    payer := coalesce(
        payer, (SELECT account_id FROM accounts WHERE account_id = 'tenant/' || NEW.tenant), 'treasury'
    );
    missing := CASE WHEN NEW.closed_at IS NULL THEN greatest(NEW.credits - granted, -free) ELSE -free END;
    IF missing > 0 THEN
        PERFORM ledger_transfer('escrow/' || id, 'escrow', payer, own, missing);
    ELSIF missing < 0 THEN
        PERFORM ledger_transfer('refund/' || id, 'refund', own, payer, -missing);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER run_budgets_fund AFTER INSERT OR UPDATE ON run_budgets
    FOR EACH ROW EXECUTE FUNCTION run_budgets_fund();

-- Reserves the worst case of one model turn; part of `claim.sql`, and undone with it. NULL: nothing limits this turn.
-- CL010: it does not fit; the detail is the refusal of `ledger_reserve`.
--
-- p_quote (coatcheck/gateway/budgets.py): {"model", "rate": micro-credits of a token of the conversation so far or NULL
-- when no price is known, "fixed", "keep": micro-credits of the rest of this turn and of what must stay free after it,
-- "tokens", "keep_tokens": the same in tokens, "has_brief", "lifetime": seconds,
-- "limits": {"agent", "tenants": {…}, "day": {"credits", "tokens", "calls"}}}.
CREATE FUNCTION reserve_turn(p_task_key text, p_turn int, p_agent text, p_quote jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    run text := regexp_replace(p_task_key, '/[^/]*$', '');
    budget run_budgets;
    limits jsonb;
    said bigint; -- tokens of the conversation before this turn
    rate numeric := (p_quote ->> 'rate')::numeric;
    target text := 'provider/' || split_part(p_quote ->> 'model', ':', 1);
    outcome jsonb;
BEGIN
    SELECT * INTO budget FROM run_budgets WHERE run_key = run;
    limits := turn_limits(budget, run, p_agent, p_quote -> 'limits');
    IF budget.run_key IS NULL AND limits = '[]' THEN
        RETURN NULL;
    END IF;
    IF rate IS NULL AND (
        (budget.credits IS NOT NULL AND coalesce(budget.tokens, budget.calls) IS NULL)
        OR EXISTS (
            SELECT FROM jsonb_array_elements(limits) AS item
            WHERE item ->> 'credits' IS NOT NULL AND coalesce(item ->> 'tokens', item ->> 'calls') IS NULL
        )
    ) THEN
        outcome := jsonb_build_object('status', 'refused', 'by', 'price/' || (p_quote ->> 'model'));
    ELSE
        SELECT coalesce(nullif(tokens_in, 0) + tokens_out, ( -- a provider that does not count: as many as there may be
            SELECT sum(octet_length(content)) / 2 FROM agent_playground_messages WHERE instance_id = p_task_key
        )) INTO said
        FROM llm_turns WHERE task_key = p_task_key AND turn = p_turn - 1;
        said := coalesce(said, 0);
        IF (p_quote ->> 'has_brief')::bool THEN
            said := said + (SELECT octet_length(description) / 2 FROM workflows WHERE workflow_id = run);
        END IF;
        INSERT INTO accounts (account_id)
        SELECT target WHERE NOT EXISTS (SELECT FROM accounts WHERE account_id = target) ON CONFLICT DO NOTHING;
        outcome := ledger_reserve(
            'turn/' || p_task_key || '/' || p_turn,
            CASE WHEN budget.credits IS NOT NULL THEN 'run/' || run END,
            target,
            coalesce(ceil(said * rate) + (p_quote ->> 'fixed')::bigint, 0)::bigint,
            make_interval(secs => (p_quote ->> 'lifetime')::int),
            p_agent,
            CASE WHEN rate IS NULL OR (p_quote ->> 'keep')::bigint = 0 THEN 0
                ELSE ceil(said * rate)::bigint + (p_quote ->> 'keep')::bigint END,
            said + (p_quote ->> 'tokens')::bigint,
            CASE WHEN (p_quote ->> 'keep_tokens')::bigint = 0 THEN 0
                ELSE said + (p_quote ->> 'keep_tokens')::bigint END,
            limits
        );
    END IF;
    IF outcome ->> 'status' = 'refused' THEN
        RAISE EXCEPTION 'the turn does not fit' USING ERRCODE = 'CL010', DETAIL = outcome::text;
    END IF;
    RETURN outcome;
END
$$;

-- What limits a turn besides its run's money: the run's tokens and calls, and what its agent, its tenant and everybody
-- may use on this day (UTC).
CREATE FUNCTION turn_limits(p_budget run_budgets, p_run text, p_agent text, p_limits jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    today text := to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD');
    tenant text := coalesce(
        p_budget.tenant, (SELECT metadata ->> 'tenant' FROM workflows WHERE workflow_id = p_run)
    );
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', given.id) || given.most), '[]')
        FROM (VALUES
            ('run/' || p_run, jsonb_build_object('tokens', p_budget.tokens, 'calls', p_budget.calls)),
            ('agent/' || p_agent || '/' || today, p_limits -> 'agent'),
            ('tenant/' || tenant || '/' || today, p_limits -> 'tenants' -> tenant),
            ('day/' || today, p_limits -> 'day')
        ) AS given (id, most)
        WHERE coalesce(given.most ->> 'credits', given.most ->> 'tokens', given.most ->> 'calls') IS NOT NULL
    );
END
$$;

-- Pays an answered turn; part of `complete.sql`. A cost that nobody knows is the worst case. A turn whose reservation has
-- expired is paid all the same.
CREATE FUNCTION settle_turn(p_task_key text, p_turn int, p_model text, p_cost numeric, p_tokens bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    id text := 'turn/' || p_task_key || '/' || p_turn;
    own text := 'run/' || regexp_replace(p_task_key, '/[^/]*$', '');
    target text := 'provider/' || split_part(p_model, ':', 1);
    cost bigint := ceil(coalesce(p_cost * 1000000, (SELECT amount FROM holds WHERE hold_id = id), 0));
    outcome text := ledger_settle(id, 'model', cost, p_tokens);
BEGIN
    IF outcome = 'gone' AND cost > 0 AND EXISTS (SELECT FROM accounts WHERE account_id = own) THEN
        PERFORM ledger_lock('{}', ARRAY[own, target]);
        PERFORM ledger_pay(
            id, 'model', own, target, cost, (SELECT agent_id FROM llm_turns WHERE task_key = p_task_key AND turn = p_turn),
            'after its reservation had expired'
        );
    END IF;
    RETURN outcome;
END
$$;

-- Gives back what is held for a turn whose call failed.
CREATE FUNCTION release_turn(p_task_key text, p_turn int) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT ledger_release('turn/' || p_task_key || '/' || p_turn)
$$;

REVOKE EXECUTE ON FUNCTION run_budgets_fund, reserve_turn, turn_limits, settle_turn, release_turn FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reserve_turn, settle_turn, release_turn TO coatcheck_gateway;
GRANT SELECT (run_key) ON run_budgets TO coatcheck_gateway;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
