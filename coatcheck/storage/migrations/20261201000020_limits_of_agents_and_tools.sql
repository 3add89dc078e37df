-- What one agent may use of a run's budget, and priced calls of tools, which are reserved and paid as model turns are.

-- migrate:up
ALTER TABLE run_budgets ADD COLUMN agents JSONB NOT NULL DEFAULT '{}'; -- agent → {"credits", "tokens", "calls"}

-- What has to stay free in a run for a task's last turn, as its latest turn was quoted: no tool call may take it.
CREATE TABLE kept_free (
    task_key VARCHAR(255) COLLATE "C" PRIMARY KEY,
    amount BIGINT NOT NULL CHECK (amount >= 0)
);

ALTER TABLE holds ADD COLUMN calls INTEGER NOT NULL DEFAULT 1; -- against limits of calls: 0 for a tool's

CREATE OR REPLACE FUNCTION ledger_give_back(p_hold holds) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_hold.limit_ids <> '{}' THEN
        UPDATE limit_usage
        SET credits = credits - p_hold.amount, tokens = tokens - p_hold.tokens, calls = calls - p_hold.calls
        WHERE limit_id = ANY (p_hold.limit_ids);
    END IF;
    UPDATE accounts SET held = held - p_hold.amount WHERE account_id = p_hold.account_id;
END
$$;

-- As before, and p_calls: how many calls it is for limits of calls.
DROP FUNCTION ledger_reserve(text, text, text, bigint, interval, text, bigint, bigint, bigint, jsonb);
CREATE FUNCTION ledger_reserve(
    p_hold text, p_account text, p_target text, p_amount bigint, p_lifetime interval, p_agent text DEFAULT NULL,
    p_keep bigint DEFAULT 0, p_tokens bigint DEFAULT 0, p_keep_tokens bigint DEFAULT 0, p_limits jsonb DEFAULT '[]',
    p_calls int DEFAULT 1
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    own_limits text[] := ARRAY(SELECT item ->> 'id' FROM jsonb_array_elements(p_limits) AS item ORDER BY 1);
    old holds;
    free bigint;
    short jsonb;
BEGIN
    IF p_amount < 0 THEN
        RAISE EXCEPTION 'a reservation of % micro-credits', p_amount USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM ledger_lock(
        own_limits || ARRAY(
            SELECT unnest(limit_ids) FROM holds
            WHERE hold_id = p_hold OR (account_id = p_account AND expires_at <= now())
        ),
        ARRAY[p_account]
    );
    IF EXISTS (SELECT FROM transactions WHERE transfer_id = p_hold) THEN
        RETURN jsonb_build_object('status', 'settled');
    END IF;
    FOR old IN
        DELETE FROM holds WHERE hold_id = p_hold OR (account_id = p_account AND expires_at <= now()) RETURNING *
    LOOP
        PERFORM ledger_give_back(old);
    END LOOP;
    IF p_account IS NOT NULL THEN
        SELECT balance - held INTO free FROM accounts WHERE account_id = p_account;
        IF free IS NULL THEN
            RAISE EXCEPTION 'there is no account %', p_account USING ERRCODE = 'CL002';
        ELSIF free < p_amount + p_keep THEN
            RETURN jsonb_build_object(
                'status', 'refused', 'by', p_account, 'unit', 'credits', 'left', free, 'needed', p_amount + p_keep
            );
        END IF;
    END IF;
    SELECT jsonb_build_object(
        'status', 'refused', 'by', given.id, 'unit', need.unit, 'left', need.most - need.used, 'needed', need.amount
    ) INTO short
    FROM jsonb_to_recordset(p_limits) AS given (id text, credits bigint, tokens bigint, calls bigint)
    JOIN limit_usage AS used ON used.limit_id = given.id
    CROSS JOIN LATERAL (VALUES
        ('credits', given.credits, used.credits, p_amount + p_keep),
        ('tokens', given.tokens, used.tokens, p_tokens + p_keep_tokens),
        ('calls', given.calls, used.calls, p_calls + (p_keep_tokens > 0)::int)
    ) AS need (unit, most, used, amount)
    WHERE need.used + need.amount > need.most
    ORDER BY given.id, need.unit
    LIMIT 1;
    IF short IS NOT NULL THEN
        RETURN short;
    END IF;
    UPDATE limit_usage SET credits = credits + p_amount, tokens = tokens + p_tokens, calls = calls + p_calls
    WHERE limit_id = ANY (own_limits);
    UPDATE accounts SET held = held + p_amount WHERE account_id = p_account;
    INSERT INTO holds (hold_id, account_id, target, amount, tokens, limit_ids, agent_id, expires_at, calls)
    VALUES (p_hold, p_account, p_target, p_amount, p_tokens, own_limits, p_agent, now() + p_lifetime, p_calls);
    RETURN jsonb_build_object('status', 'held', 'amount', p_amount);
END
$$;

CREATE OR REPLACE FUNCTION ledger_settle(
    p_hold text, p_kind text, p_amount bigint, p_tokens bigint DEFAULT 0, p_memo text DEFAULT ''
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hold holds;
BEGIN
    SELECT * INTO hold FROM holds WHERE hold_id = p_hold;
    PERFORM ledger_lock(hold.limit_ids, ARRAY[hold.account_id, hold.target]);
    DELETE FROM holds WHERE hold_id = p_hold RETURNING * INTO hold;
    IF NOT FOUND THEN
        RETURN CASE WHEN EXISTS (SELECT FROM transactions WHERE transfer_id = p_hold) THEN 'duplicate' ELSE 'gone' END;
    END IF;
    PERFORM ledger_give_back(hold);
    IF hold.limit_ids <> '{}' THEN
        UPDATE limit_usage SET credits = credits + p_amount, tokens = tokens + p_tokens, calls = calls + hold.calls
        WHERE limit_id = ANY (hold.limit_ids);
    END IF;
    IF hold.account_id IS NOT NULL AND p_amount > 0 THEN
        PERFORM ledger_pay(p_hold, p_kind, hold.account_id, hold.target, p_amount, hold.agent_id, p_memo);
    END IF;
    RETURN 'settled';
END
$$;

-- As before, and what the agent may use of this run.
CREATE OR REPLACE FUNCTION turn_limits(p_budget run_budgets, p_run text, p_agent text, p_limits jsonb) RETURNS jsonb
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
            ('run-agent/' || p_agent || '/' || p_run, p_budget.agents -> p_agent),
            ('agent/' || p_agent || '/' || today, p_limits -> 'agent'),
            ('tenant/' || tenant || '/' || today, p_limits -> 'tenants' -> tenant),
            ('day/' || today, p_limits -> 'day')
        ) AS given (id, most)
        WHERE coalesce(given.most ->> 'credits', given.most ->> 'tokens', given.most ->> 'calls') IS NOT NULL
    );
END
$$;

ALTER FUNCTION reserve_turn RENAME TO hold_turn;

-- Reserves a turn's worst case (see the migration before), and remembers what it has to leave.
CREATE FUNCTION reserve_turn(p_task_key text, p_turn int, p_agent text, p_quote jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    outcome jsonb := hold_turn(p_task_key, p_turn, p_agent, p_quote);
    keep bigint := (p_quote ->> 'keep')::bigint;
BEGIN
    IF outcome ->> 'status' = 'held' AND p_quote ->> 'rate' IS NOT NULL THEN
        INSERT INTO kept_free AS kept (task_key, amount) VALUES (
            p_task_key,
            CASE WHEN keep = 0 THEN 0
                ELSE (outcome ->> 'amount')::bigint - (p_quote ->> 'fixed')::bigint + keep END
        ) ON CONFLICT (task_key) DO UPDATE SET amount = excluded.amount;
    END IF;
    RETURN outcome;
END
$$;

-- Reserves the price of one tool call; part of `tool_claim.sql`, and undone with it. NULL: nothing limits this call.
-- CL010: it does not fit; the detail is the refusal of `ledger_reserve`.
--
-- p_quote (coatcheck/gateway/budgets.py): {"cost": micro-credits, "lifetime": seconds, "limits": as for a turn}. Limits
-- of tokens and calls are of model calls.
CREATE FUNCTION reserve_tool(p_task_key text, p_call text, p_agent text, p_server text, p_quote jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    run text := regexp_replace(p_task_key, '/[^/]*$', '');
    budget run_budgets;
    limits jsonb;
    target text := 'provider/mcp-' || p_server;
    outcome jsonb;
BEGIN
    SELECT * INTO budget FROM run_budgets WHERE run_key = run;
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', item -> 'id', 'credits', item -> 'credits')), '[]') INTO limits
    FROM jsonb_array_elements(turn_limits(budget, run, p_agent, p_quote -> 'limits')) AS item
    WHERE item ->> 'credits' IS NOT NULL;
    IF budget.credits IS NULL AND limits = '[]' THEN
        RETURN NULL;
    END IF;
    INSERT INTO accounts (account_id)
    SELECT target WHERE NOT EXISTS (SELECT FROM accounts WHERE account_id = target) ON CONFLICT DO NOTHING;
    outcome := ledger_reserve(
        'tool/' || p_task_key || '/' || md5(p_call),
        CASE WHEN budget.credits IS NOT NULL THEN 'run/' || run END,
        target,
        (p_quote ->> 'cost')::bigint,
        make_interval(secs => (p_quote ->> 'lifetime')::int),
        p_agent,
        p_keep => coalesce((SELECT amount FROM kept_free WHERE task_key = p_task_key), 0),
        p_limits => limits,
        p_calls => 0
    );
    IF outcome ->> 'status' = 'refused' THEN
        RAISE EXCEPTION 'the call does not fit' USING ERRCODE = 'CL010', DETAIL = outcome::text;
    END IF;
    RETURN outcome;
END
$$;

-- Pays a tool call that has ended, or gives back what was held for one that cost nothing. One whose reservation has
-- expired is paid all the same.
CREATE FUNCTION settle_tool(p_task_key text, p_call text, p_cost numeric) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    id text := 'tool/' || p_task_key || '/' || md5(p_call);
    own text := 'run/' || regexp_replace(p_task_key, '/[^/]*$', '');
    cost bigint := ceil(p_cost * 1000000);
    called tool_calls := (
        SELECT kept FROM tool_calls AS kept WHERE kept.task_key = p_task_key AND kept.tool_call_id = p_call
    );
    target text := 'provider/mcp-' || called.server;
    outcome text := ledger_settle(id, 'purchase', cost, 0, called.server || ': ' || called.tool);
BEGIN
    IF outcome = 'gone' AND cost > 0 AND EXISTS (SELECT FROM accounts WHERE account_id = own) THEN
        INSERT INTO accounts (account_id)
        SELECT target WHERE NOT EXISTS (SELECT FROM accounts WHERE account_id = target) ON CONFLICT DO NOTHING;
        PERFORM ledger_lock('{}', ARRAY[own, target]);
        PERFORM ledger_pay(id, 'purchase', own, target, cost, called.agent_id, 'after its reservation had expired');
    END IF;
    RETURN outcome;
END
$$;

REVOKE EXECUTE ON FUNCTION ledger_reserve, hold_turn, reserve_turn, reserve_tool, settle_tool FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION hold_turn FROM coatcheck_gateway;
GRANT EXECUTE ON FUNCTION reserve_turn, reserve_tool, settle_tool TO coatcheck_gateway;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
