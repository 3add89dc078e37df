-- The ledger: integer micro-credits (1,000,000 to the US dollar), every transfer one row with both of its ends.
--
-- A transfer is one row, so no set of rows sums to anything but zero: the two entries of double entry are the view
-- `entries`. Balances are kept beside it, and changed by `ledger_transfer` alone; `coatcheck ledger check` compares.
-- There are no foreign keys to accounts: they would lock both rows before they are updated, and the function finds a
-- missing account by itself.
--
-- Locks are taken in one order everywhere: limit_usage by id, accounts by id, holds. Nothing deadlocks.

-- migrate:up
CREATE TABLE accounts (
    account_id VARCHAR(300) COLLATE "C" PRIMARY KEY, -- treasury, market, tenant/…, run/…, agent/…, provider/…
    kind VARCHAR(20) NOT NULL GENERATED ALWAYS AS (split_part(account_id, '/', 1)) STORED,
    balance BIGINT NOT NULL DEFAULT 0,
    held BIGINT NOT NULL DEFAULT 0, -- of the balance, what reservations hold
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    CONSTRAINT accounts_kind_check CHECK (kind IN ('treasury', 'tenant', 'run', 'agent', 'market', 'provider')),
    CONSTRAINT accounts_held_check CHECK (held >= 0),
    -- The treasury alone is negative: by as much as all others have together.
    CONSTRAINT accounts_overdraft_check CHECK (kind = 'treasury' OR balance >= held)
) WITH (fillfactor = 50); -- a hot account's new versions stay on its page, without touching the index

INSERT INTO accounts (account_id) VALUES ('treasury'), ('market');

CREATE TABLE transactions (
    transfer_id VARCHAR(400) COLLATE "C" PRIMARY KEY, -- the idempotency key
    sequence BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY,
    kind VARCHAR(20) NOT NULL CHECK (
        kind IN ('topup', 'transfer', 'escrow', 'refund', 'model', 'purchase', 'shortfall')
    ),
    source VARCHAR(300) COLLATE "C" NOT NULL,
    target VARCHAR(300) COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    agent_id VARCHAR(255), -- whose work it was for
    memo TEXT NOT NULL DEFAULT '',
    "timestamp" TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    CONSTRAINT transactions_ends_check CHECK (source <> target)
);

CREATE INDEX transactions_agent_idx ON transactions (agent_id, "timestamp");
CREATE INDEX transactions_source_idx ON transactions (source, sequence);
CREATE INDEX transactions_target_idx ON transactions (target, sequence);

CREATE FUNCTION transactions_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'transactions is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER transactions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transactions
    FOR EACH STATEMENT EXECUTE FUNCTION transactions_refuse_change();
ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_append_only;

CREATE VIEW entries AS
SELECT transfer_id, sequence, kind, source AS account_id, target AS other_id, -amount AS amount, agent_id, memo, "timestamp"
FROM transactions
UNION ALL
SELECT transfer_id, sequence, kind, target, source, amount, agent_id, memo, "timestamp"
FROM transactions;

-- What may still be spent by somebody who has begun to: not yet money that moved.
CREATE TABLE holds (
    hold_id VARCHAR(400) COLLATE "C" PRIMARY KEY,
    account_id VARCHAR(300) COLLATE "C", -- NULL: nothing but limits is held
    target VARCHAR(300) COLLATE "C" NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    tokens BIGINT NOT NULL DEFAULT 0 CHECK (tokens >= 0),
    limit_ids TEXT[] NOT NULL DEFAULT '{}',
    agent_id VARCHAR(255),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    expires_at TIMESTAMPTZ NOT NULL
);

CREATE INDEX holds_account_idx ON holds (account_id, expires_at);
CREATE INDEX holds_expiry_idx ON holds (expires_at);

-- What was used of each limit, reservations included: of a run, or of an agent, a tenant or everybody on one day.
CREATE TABLE limit_usage (
    limit_id VARCHAR(300) COLLATE "C" PRIMARY KEY,
    credits BIGINT NOT NULL DEFAULT 0,
    tokens BIGINT NOT NULL DEFAULT 0,
    calls BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The only way in which money moves. A transfer id is used once: again with the same content changes nothing.
-- CL001: the source has less than that free. CL002: no such account. CL003: the id belongs to another transfer.
CREATE FUNCTION ledger_transfer(
    p_id text, p_kind text, p_source text, p_target text, p_amount bigint, p_agent text DEFAULT NULL,
    p_memo text DEFAULT ''
) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO transactions (transfer_id, kind, source, target, amount, agent_id, memo)
    VALUES (p_id, p_kind, p_source, p_target, p_amount, p_agent, p_memo)
    ON CONFLICT (transfer_id) DO NOTHING;
    IF NOT FOUND THEN
        PERFORM FROM transactions
        WHERE transfer_id = p_id AND (kind, source, target, amount) = (p_kind, p_source, p_target, p_amount);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the transfer % is another one', p_id USING ERRCODE = 'CL003';
        END IF;
        RETURN 'duplicate';
    END IF;
    IF p_source COLLATE "C" < p_target COLLATE "C" THEN
        PERFORM ledger_debit(p_source, p_amount);
        PERFORM ledger_credit(p_target, p_amount);
    ELSE
        PERFORM ledger_credit(p_target, p_amount);
        PERFORM ledger_debit(p_source, p_amount);
    END IF;
    RETURN 'moved';
END
$$;

CREATE FUNCTION ledger_debit(p_account text, p_amount bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET balance = balance - p_amount
    WHERE account_id = p_account AND (balance - held >= p_amount OR kind = 'treasury');
    IF NOT FOUND THEN
        PERFORM FROM accounts WHERE account_id = p_account;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no account %', p_account USING ERRCODE = 'CL002';
        END IF;
        RAISE EXCEPTION '% has less than % micro-credits free', p_account, p_amount USING ERRCODE = 'CL001';
    END IF;
END
$$;

CREATE FUNCTION ledger_credit(p_account text, p_amount bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET balance = balance + p_amount WHERE account_id = p_account;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no account %', p_account USING ERRCODE = 'CL002';
    END IF;
END
$$;

-- Gives back what a hold held; its row is deleted already, its limits and its account are locked.
CREATE FUNCTION ledger_give_back(p_hold holds) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_hold.limit_ids <> '{}' THEN
        UPDATE limit_usage SET credits = credits - p_hold.amount, tokens = tokens - p_hold.tokens, calls = calls - 1
        WHERE limit_id = ANY (p_hold.limit_ids);
    END IF;
    UPDATE accounts SET held = held - p_hold.amount WHERE account_id = p_hold.account_id;
END
$$;

-- Holds an amount, or says what is in the way. The same id again replaces its hold; what has expired on the account is
-- given back first. p_keep and p_keep_tokens must stay free besides. p_limits: [{"id", "credits", "tokens", "calls"}],
-- NULL or absent is without limit. Returns {"status": "held" | "settled" | "refused", …}; a refusal names what is short.
CREATE FUNCTION ledger_reserve(
    p_hold text, p_account text, p_target text, p_amount bigint, p_lifetime interval, p_agent text DEFAULT NULL,
    p_keep bigint DEFAULT 0, p_tokens bigint DEFAULT 0, p_keep_tokens bigint DEFAULT 0, p_limits jsonb DEFAULT '[]'
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
        ('calls', given.calls, used.calls, 1 + (p_keep_tokens > 0)::int)
    ) AS need (unit, most, used, amount)
    WHERE need.used + need.amount > need.most
    ORDER BY given.id, need.unit
    LIMIT 1;
    IF short IS NOT NULL THEN
        RETURN short;
    END IF;
    UPDATE limit_usage SET credits = credits + p_amount, tokens = tokens + p_tokens, calls = calls + 1
    WHERE limit_id = ANY (own_limits);
    UPDATE accounts SET held = held + p_amount WHERE account_id = p_account;
    INSERT INTO holds (hold_id, account_id, target, amount, tokens, limit_ids, agent_id, expires_at)
    VALUES (p_hold, p_account, p_target, p_amount, p_tokens, own_limits, p_agent, now() + p_lifetime);
    RETURN jsonb_build_object('status', 'held', 'amount', p_amount);
END
$$;

-- Limits are made when they are first used. Not more than the caller needs, and in the one order.
CREATE FUNCTION ledger_lock(p_limits text[], p_accounts text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_limits <> '{}' THEN
        INSERT INTO limit_usage (limit_id)
        SELECT limit_id FROM unnest(p_limits) AS limit_id GROUP BY limit_id ORDER BY limit_id COLLATE "C"
        ON CONFLICT DO NOTHING;
        PERFORM FROM limit_usage WHERE limit_id = ANY (p_limits) ORDER BY limit_id FOR NO KEY UPDATE;
    END IF;
    PERFORM FROM accounts WHERE account_id = ANY (p_accounts) ORDER BY account_id FOR NO KEY UPDATE;
END
$$;

-- Pays what was really used and gives the rest back. More than was held is taken from what else is free; what even that
-- does not cover has been spent all the same, so the treasury pays it and the row says so.
-- 'settled', 'duplicate' when it was before, 'gone' when nothing is held (any more) under that id.
CREATE FUNCTION ledger_settle(p_hold text, p_kind text, p_amount bigint, p_tokens bigint DEFAULT 0, p_memo text DEFAULT '')
RETURNS text LANGUAGE plpgsql AS $$
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
        UPDATE limit_usage SET credits = credits + p_amount, tokens = tokens + p_tokens, calls = calls + 1
        WHERE limit_id = ANY (hold.limit_ids);
    END IF;
    IF hold.account_id IS NOT NULL AND p_amount > 0 THEN
        PERFORM ledger_pay(p_hold, p_kind, hold.account_id, hold.target, p_amount, hold.agent_id, p_memo);
    END IF;
    RETURN 'settled';
END
$$;

-- Pays as much as the source has free, and the treasury the rest.
CREATE FUNCTION ledger_pay(
    p_id text, p_kind text, p_source text, p_target text, p_amount bigint, p_agent text, p_memo text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    paid bigint := (SELECT least(p_amount, balance - held) FROM accounts WHERE account_id = p_source);
BEGIN
    IF paid > 0 THEN
        PERFORM ledger_transfer(p_id, p_kind, p_source, p_target, paid, p_agent, p_memo);
    END IF;
    IF paid < p_amount THEN
        PERFORM ledger_transfer(
            p_id || '/shortfall', 'shortfall', 'treasury', p_target, p_amount - paid, p_agent, p_source
        );
    END IF;
END
$$;

-- Gives back what is held under that id, nothing of it having been used; false when nothing is.
CREATE FUNCTION ledger_release(p_hold text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    hold holds;
BEGIN
    SELECT * INTO hold FROM holds WHERE hold_id = p_hold;
    PERFORM ledger_lock(hold.limit_ids, ARRAY[hold.account_id]);
    DELETE FROM holds WHERE hold_id = p_hold RETURNING * INTO hold;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM ledger_give_back(hold);
    RETURN true;
END
$$;

REVOKE EXECUTE ON FUNCTION
    ledger_transfer, ledger_debit, ledger_credit, ledger_give_back, ledger_reserve, ledger_lock, ledger_settle,
    ledger_pay, ledger_release
FROM PUBLIC;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
