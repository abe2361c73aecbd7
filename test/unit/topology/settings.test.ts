import { describe, expect, it } from 'vitest';
import { loadSettings } from '../../../src/config/settings.js';
import { checkTopology } from '../../../src/topology/topology.js';

function check(env: Readonly<Record<string, string>>): () => void {
  return () => checkTopology(loadSettings(env));
}

describe('the time that a report counts', () => {
  it('fits the defaults', () => {
    expect(check({})).not.toThrow();
  });

  it.each([
    [{ MPP_HEARTBEAT: '12s', MPP_MEMBER_TTL: '3s' }, 'give MPP_MEMBER_TTL 24s or more'],
    [{ MPP_HEARTBEAT: '12s', MPP_MEMBER_TTL: '23999ms' }, 'give MPP_MEMBER_TTL 24s or more'],
    [{ MPP_HEARTBEAT: '20s' }, 'give MPP_MEMBER_TTL 40s or more'],
    [{ MPP_HEARTBEAT: '1s', MPP_MEMBER_TTL: '5s', MPP_PROBE_INTERVAL: '5s' }, 'MPP_PROBE_INTERVAL'],
  ])('is refused as too short: %j', (env, line) => {
    expect(check(env)).toThrow(line);
  });

  it('may be two heartbeats', () => {
    expect(check({ MPP_HEARTBEAT: '12s', MPP_MEMBER_TTL: '24s' })).not.toThrow();
  });
});
