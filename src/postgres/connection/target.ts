import type { ClientBase } from 'pg';
import { DatabaseStateError } from '../../errors.js';
import type { TargetSessionAttrs } from './hosts.js';

interface State {
  readonly standby: boolean;
  readonly readonly: boolean;
}

/**
 * Checks that a session is what target_session_attrs asks for; `prefer-standby` asks for nothing that a server
 * could lack.
 *
 * @throws DatabaseStateError `IN_RECOVERY` for a standby, `READ_ONLY` for a server that takes no writes,
 *   `NOT_IN_RECOVERY` and `READ_WRITE` for the opposite
 */
export async function checkTarget(
  client: ClientBase,
  target: TargetSessionAttrs,
  queryTimeoutMs: number | undefined,
): Promise<void> {
  if (target === 'any' || target === 'prefer-standby') return;
  const query = { text: STATE, ...(queryTimeoutMs ? { query_timeout: queryTimeoutMs } : {}) };
  const { rows } = await client.query<State>(query);
  const [state] = rows;
  if (state === undefined) throw new Error('the statement STATE returns one row');
  const lack = lackOf(state, target);
  if (lack === undefined) return;
  const [code, text] = lack;
  throw new DatabaseStateError(code, `${text}, and target_session_attrs is ${target}`, {
    retryable: true,
  });
}

/** @throws DatabaseStateError `READ_ONLY` when sessions of this server or role take no writes */
export async function refuseReadOnly(client: ClientBase): Promise<void> {
  const { rows } = await client.query<State>(STATE);
  if (rows[0]?.readonly !== true) return;
  throw new DatabaseStateError(
    'READ_ONLY',
    'the coordinator takes no writes: default_transaction_read_only is on for the server, this database ' +
      'or this role; turn it off',
    { retryable: true },
  );
}

function lackOf(
  state: State,
  target: Exclude<TargetSessionAttrs, 'any' | 'prefer-standby'>,
): readonly [code: string, text: string] | undefined {
  switch (target) {
    case 'read-write':
      if (state.standby) return IS_STANDBY;
      return state.readonly ? ['READ_ONLY', 'it is read-only'] : undefined;
    case 'read-only':
      return state.readonly ? undefined : ['READ_WRITE', 'it takes writes'];
    case 'primary':
      return state.standby ? IS_STANDBY : undefined;
    case 'standby':
      return state.standby ? undefined : ['NOT_IN_RECOVERY', 'it is no standby'];
  }
}

const IS_STANDBY = ['IN_RECOVERY', 'it is a standby'] as const;

const STATE = `
  SELECT pg_catalog.pg_is_in_recovery() AS standby,
         pg_catalog.current_setting('transaction_read_only') = 'on' AS readonly`;
