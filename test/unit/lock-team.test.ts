import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { LockSession } from '../../src/drain/lock-session.js';
import { LockTeam, obtain } from '../../src/drain/lock-team.js';
import { Server } from '../../src/drain/server.js';
import { doorsOf, readersOf, writersOf } from '../../src/mpp/citus/traffic/targets.js';
import { LockServer } from '../support/faults/lock-server.js';

const MANY = Array.from({ length: 100 }, (_, index) => `table_${index}`);
const KINDS = { readersOf, writersOf, doorsOf };

function memberOf(server: LockServer): LockSession {
  const { pid, client } = server.session();
  return new LockSession({
    server: new Server({ key: '1', name: 'a:1', watch: server.watch }),
    pid,
    client: () => client,
    onActive: () => undefined,
  });
}

function teamOf(server: LockServer, size: number): LockTeam {
  const team = new LockTeam(memberOf(server));
  team.add(Array.from({ length: size - 1 }, () => memberOf(server)));
  return team;
}

function idle(team: LockTeam): Promise<boolean> {
  return vi.waitUntil(() => team.members.every(({ active }) => !active));
}

describe('LockTeam', () => {
  it('takes what is free on one session, and deals out the rest among all of them', async () => {
    const server = new LockServer();
    const team = teamOf(server, 1);
    expect(await team.takeAtOnce(writersOf(['a', 'b', 'c']))).toBe(true);
    expect(team.members.map(({ order }) => order.length)).toEqual([3]);

    await server.client(['d', 'ACCESS SHARE'], ['e', 'ACCESS SHARE'], ['f', 'ACCESS SHARE']);
    const readers = readersOf(['d', 'e', 'f']);
    expect(await team.takeAtOnce(readers)).toBe(false);
    team.add([memberOf(server), memberOf(server), memberOf(server)]);
    team.want(readers);
    await vi.waitUntil(() => team.members.filter(({ waiting }) => waiting).length === 3);
  });

  it('takes what becomes free soon on one session, in its order', async () => {
    const server = new LockServer();
    const team = teamOf(server, 2);
    const client = await server.client(['a', 'ACCESS SHARE'], ['b', 'ACCESS SHARE']);
    const readers = readersOf(['a', 'b']);
    const taken = team.takeSoon(readers);
    await vi.waitUntil(() => team.longestWaiting);
    // A door is shut as soon as it is queued for; the next one is not reached yet.
    expect([server.of('a').length, server.of('b').length]).toEqual([2, 1]);
    server.end(client);
    expect(await taken).toBe(true);
    expect(team.members.map(({ order }) => order.length)).toEqual([2, 0]);
  });

  it('gives all of it back when somebody waits for it, or when it takes long', async () => {
    const server = new LockServer();
    const team = teamOf(server, 1);
    const [first] = team.members;
    const client = await server.client(['b', 'ROW EXCLUSIVE']);
    const readers = readersOf(['a', 'b']);
    expect(await team.takeSoon(readers)).toBe(false);
    expect([server.of('a'), server.of('b')]).toEqual([[], [`${client} ROW EXCLUSIVE`]]);

    const taken = team.takeSoon(readers);
    await vi.waitUntil(() => first?.waiting);
    const entering = server.lock(client, 'a', 'ROW EXCLUSIVE');
    first?.giveWayTo([client]);
    expect(await taken).toBe(false);
    await entering;
    expect(server.of('a')).toEqual([`${client} ROW EXCLUSIVE`]);
    server.end(client);
    expect(server.ownWaits).toEqual([]);
  });

  it('takes the same table in another mode on the session that has it', async () => {
    const server = new LockServer();
    const team = teamOf(server, 1);
    await team.takeAtOnce(writersOf(['lookup']));
    team.keep(writersOf(['lookup']), {});
    const client = await server.client(['items', 'ROW EXCLUSIVE']);
    const readers = readersOf(['items', 'notes', 'lookup']);
    expect(await team.takeAtOnce(readers)).toBe(false);
    team.add([memberOf(server), memberOf(server), memberOf(server)]);
    team.want(readers);
    await vi.waitUntil(() => server.of('lookup').length === 2);
    expect(server.of('lookup')).toEqual(['1 EXCLUSIVE', '1 ACCESS EXCLUSIVE']);
    server.end(client);
    expect(await team.obtain(readers)).toBe(true);
    expect(server.ownWaits).toEqual([]);
  });

  it('also when it was dropped by one hold and is kept by another', async () => {
    const server = new LockServer();
    const team = teamOf(server, 4);
    const [kept, more] = [readersOf(['a', 'b', 'c']), readersOf(['a', 'b', 'c', 'd'])];
    await obtain(team, kept);
    await idle(team);
    team.keep(kept, {});
    const client = await server.client(['d', 'ACCESS SHARE']);
    team.want(more);
    await vi.waitUntil(() => team.longestWaiting);
    await team.drop(more);
    expect(team.has(kept)).toBe(true);
    await obtain(team, writersOf(['d', 'c', 'b', 'a']).concat());
    server.end(client);
    expect(server.ownWaits).toEqual([]);
  });

  it('bundles that overlap in part, with what different sessions have of them', async () => {
    const server = new LockServer();
    const team = teamOf(server, 4);
    const single = MANY.slice(10, 20);
    await obtain(team, writersOf(single));
    team.keep(writersOf(single), {});
    for (const tables of [MANY.slice(0, 80), MANY.slice(5, 95), MANY.slice(30), MANY]) {
      await obtain(team, readersOf(tables));
      team.keep(readersOf(tables), {});
    }
    expect(server.ownWaits).toEqual([]);
    expect(new Set(MANY.map((table) => server.of(table).length > 0))).toEqual(new Set([true]));
  });

  it('never waits for itself, whatever holds ask for at once, keep, drop and yield', async () => {
    const hold = fc.record({
      tables: fc.oneof(
        fc.subarray(MANY.slice(0, 6), { minLength: 1 }),
        fc.subarray(MANY, { minLength: 60 }),
      ),
      kind: fc.constantFrom('readersOf', 'writersOf', 'doorsOf'),
      end: fc.constantFrom('keep', 'drop', 'stay'),
      first: fc.constantFrom('at once', 'soon', 'want'),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(hold, { minLength: 2, maxLength: 6 }),
        fc.subarray(MANY.slice(0, 6)),
        fc.integer({ min: 1, max: 5 }),
        async (holds, busy, size) => {
          const server = new LockServer();
          const team = teamOf(server, size);
          const client = await server.client(
            ...busy.map((table) => [table, 'ROW EXCLUSIVE'] as const),
          );
          const units = holds.map(({ tables, kind }) => KINDS[kind](tables));
          const taken = holds.map(async ({ first, end }, index) => {
            const wanted = units[index] ?? [];
            if (first === 'at once' && (await team.takeAtOnce(wanted))) return;
            if (first === 'soon' && (await team.takeSoon(wanted))) return;
            team.want(wanted);
            if (end === 'drop') await team.drop(wanted);
          });
          // One that is refused what is not free comes to wait with another that wants the same.
          const waits = ({ active, waiting }: LockSession): boolean => !active || !!waiting;
          await vi.waitUntil(() => team.members.every(waits), { interval: 1 });
          server.end(client);
          await Promise.all(taken);
          for (const [index, { end }] of holds.entries()) {
            const wanted = units[index] ?? [];
            if (end === 'drop') continue;
            await obtain(team, wanted);
            if (end === 'keep') team.keep(wanted, {});
          }
          expect(server.ownWaits).toEqual([]);
          await team.stop();
        },
      ),
      { numRuns: 100 },
    );
  }, 30_000);

  it('waits on no session that keeps something, as long as there is another', async () => {
    const server = new LockServer();
    const team = teamOf(server, 2);
    await obtain(team, writersOf(['lookup']));
    team.keep(writersOf(['lookup']), {});
    expect(team.free).toBe(1);
    const client = await server.client(
      ['a', 'ROW EXCLUSIVE'],
      ['b', 'ROW EXCLUSIVE'],
      ['c', 'ROW EXCLUSIVE'],
    );
    team.want(writersOf(['a', 'b', 'c']));
    await vi.waitUntil(() => team.longestWaiting);
    const keeper = team.members.find(({ isKept }) => isKept);
    expect(keeper?.units.map(({ key }) => key)).toEqual(['writers of lookup']);
    server.end(client);
    await team.obtain(writersOf(['a', 'b', 'c']));
  });

  it('what one hold wants only if it is free is not refused to another that waits for it', async () => {
    const server = new LockServer();
    const team = teamOf(server, 1);
    const client = await server.client(['a', 'ROW EXCLUSIVE']);
    const atOnce = team.takeAtOnce(writersOf(['a']));
    const waiting = obtain(team, writersOf(['a']));
    await vi.waitUntil(() => team.longestWaiting && server.of('a').length === 2);
    server.end(client);
    await waiting;
    // It has come to be there after all.
    expect(await atOnce).toBe(true);
  });
});
