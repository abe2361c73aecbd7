import { afterAll, afterEach, beforeAll, describe, expect, inject, it } from 'vitest';
import { runCli } from '../kit/cli.js';
import { Actor } from '../kit/faults/actor.js';
import { subjectOf, type Subject } from '../kit/faults/subject.js';
import { Harness, type ReportInput } from '../kit/harness.js';
import { waitFor } from '../kit/servers/index.js';

const UPDATE = 'UPDATE items SET v = v + 1 WHERE id = $1';

interface Switchover {
  readonly kind: string;
  readonly old_primary: string | null;
  readonly new_primary: string | null;
  readonly held: boolean;
  readonly ordered: boolean;
  readonly waited: boolean | null;
  readonly sessions_waiting: number | null;
  readonly sessions_terminated: number | null;
  readonly pause: string | null;
  readonly tasks: string[];
  readonly reason: string | null;
}

describe('what was done, in mpp_switchovers, and what blocks, in mpp_blockers', () => {
  let h: Harness;
  let url: string;
  const actors: Actor[] = [];

  beforeAll(async () => {
    h = await Harness.start({ template: inject('template'), standbys: false });
    url = `postgresql://postgres@${h.cluster.coordinator.address}/postgres`;
    await h.db.query('CREATE ROLE forger LOGIN');
    await h.db.query('GRANT mpp_client TO forger');
    await h.startController({ MPP_MIN_COOLDOWN: '0ms' });
  });
  afterEach(async () => {
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    await h.db.query('SELECT mpp_release(1)');
  });
  afterAll(async () => h.stop());

  async function client(): Promise<Actor> {
    const actor = await Actor.connect(h.cluster.coordinator);
    actors.push(actor);
    return actor;
  }

  async function request(
    event: ReportInput['event'],
    { groupid }: Subject,
    node: ReportInput['node'],
    more: Partial<ReportInput> = {},
  ): Promise<string> {
    return (await h.request({ event, groupid, node, ...more })).id;
  }

  async function newest(groupid = 1): Promise<Switchover | undefined> {
    const { rows } = await h.db.query<Switchover>(NEWEST, [groupid]);
    return rows[0];
  }

  it('has a planned switchover with its steps, and the client that waited', async () => {
    const subject = await subjectOf(h, 1);
    const demote = await request('before_demote', subject, subject.node, { pause: 'all' });
    const writer = await client();
    const sent = await writer.sendAndWait(UPDATE, [subject.key]);
    const promote = await request('before_promote', subject, subject.next);
    const after = await request('after_promote', subject, subject.next);
    await sent.answer;
    expect(await newest()).toEqual({
      kind: 'switchover',
      old_primary: addressOf(subject.node),
      new_primary: addressOf(subject.next),
      held: true,
      ordered: true,
      waited: true,
      sessions_waiting: 1,
      sessions_terminated: 0,
      pause: 'all',
      tasks: [demote, promote, after],
      reason: null,
    });
  });

  it('has a failover without a hold', async () => {
    const subject = await subjectOf(h, 1);
    const after = await request('after_promote', subject, subject.next);
    expect(await newest()).toMatchObject({
      kind: 'failover',
      old_primary: addressOf(subject.node),
      new_primary: addressOf(subject.next),
      held: null,
      sessions_waiting: null,
      tasks: [after],
    });
  });

  it('has a restart, and an interruption, of a primary that stays', async () => {
    const subject = await subjectOf(h, 1);
    await request('before_demote', subject, subject.node);
    const writer = await client();
    const sent = await writer.sendAndWait(UPDATE, [subject.key]);
    await request('after_promote', subject, subject.node);
    await sent.answer;
    const same = { old_primary: addressOf(subject.node), new_primary: addressOf(subject.node) };
    expect(await newest()).toMatchObject({ kind: 'restart', ...same, sessions_waiting: 1 });
    await request('suspect', subject, subject.node);
    await request('after_promote', subject, subject.node);
    expect(await newest()).toMatchObject({ kind: 'interruption', ...same, pause: 'writes' });
  });

  it('has one row for a hold that ended at its deadline, and for one that was released', async () => {
    const subject = await subjectOf(h, 1);
    const late = await request('before_demote', subject, subject.node, { timeout: '1s' });
    await h.ended(late);
    const gone = { kind: 'rolled back', old_primary: addressOf(subject.node), new_primary: null };
    expect(await newest()).toMatchObject({
      ...gone,
      tasks: [late],
      reason: 'its deadline passed before after_promote was reported',
    });
    const demote = await request('before_demote', subject, subject.node);
    const promote = await request('before_promote', subject, subject.next);
    await h.db.query('SELECT mpp_release(1)');
    expect(await newest()).toMatchObject({
      ...gone,
      tasks: [demote, promote],
      reason: 'released by postgres',
    });
    const { rows } = await h.db.query('SELECT FROM mpp_switchovers WHERE tasks && $1::bigint[]', [
      [demote, promote],
    ]);
    expect(rows).toHaveLength(1);
  });

  it('names a blocker of a hold while it blocks, and counts it once it is terminated', async () => {
    const subject = await subjectOf(h, 1);
    const idle = await client();
    await idle.begin(UPDATE, [subject.key]);
    const id = await h.report({
      event: 'before_demote',
      groupid: 1,
      node: subject.node,
      cooldown: '3s',
    });
    const named = await waitFor('the blocker to be named', async () => {
      const { rows } = await h.db.query<Record<string, unknown>>('TABLE mpp_blockers');
      return rows[0];
    });
    expect(named).toMatchObject({
      ...{ groupid: 1, task: id, blocks: 'hold', pid: idle.pid },
      ...{ usename: 'postgres', application_name: 'shop', state: 'idle in transaction' },
    });
    expect(named['ends_at']).toBeInstanceOf(Date);
    expect((await h.acknowledged(id)).status).toBe('holding');
    expect((await h.db.query('TABLE mpp_blockers')).rowCount).toBe(0);
    await request('after_promote', subject, subject.next);
    expect(await newest()).toMatchObject({ kind: 'switchover', sessions_terminated: 1 });
  });

  it('has the blocker of a change, which is terminated as well', async () => {
    const subject = await subjectOf(h, 1);
    const idle = await client();
    await idle.begin(UPDATE, [subject.key]);
    const id = await h.report({
      event: 'after_promote',
      groupid: 1,
      node: subject.next,
      cooldown: '3s',
    });
    const named = await waitFor('the blocker to be named', async () => {
      const { rows } = await h.db.query<Record<string, unknown>>('TABLE mpp_blockers');
      return rows[0];
    });
    expect(named).toMatchObject({ groupid: 1, task: id, blocks: 'change', pid: idle.pid });
    expect((await h.ended(id)).status).toBe('done');
    expect(await newest()).toMatchObject({ kind: 'failover', sessions_terminated: 1 });
  });

  it('keeps what a client sets from the log', async () => {
    const before = await newest();
    const session = await Actor.connect(h.cluster.coordinator, 'forger', 'forger');
    actors.push(session);
    const { rows } = await session.query('SELECT max(id) + 1 AS next FROM mpp_tasks');
    await session.query("SELECT set_config('mpp.ended', $1, false)", [
      JSON.stringify({ task: rows[0]?.['next'], tasks: [] }),
    ]);
    await session.query(
      "INSERT INTO mpp_tasks (event, groupid, nodename) VALUES ('after_promote', 1, 'nowhere')",
    );
    expect(await newest()).toEqual(before);
  });

  it('is shown by the command history, newest first, for people and for machines', async () => {
    const text = await runCli(['history', '--group', '1', '--limit', '2'], { DATABASE_URL: url });
    expect(text).toMatchObject({ exitCode: 0, stderr: '' });
    const [titles = '', ...lines] = text.stdout.trim().split('\n');
    expect(titles).toMatch(/^ENDED +GROUP +KIND +FROM +TO +OPENED IN +HELD +COMMITTED IN/);
    expect(lines).toHaveLength(2);
    expect(lines[0]).toMatch(/failover/);
    const json = await runCli(['history', '--json', '--since', '1h'], { DATABASE_URL: url });
    const all = JSON.parse(json.stdout) as { id: number; kind: string; heldMs: number | null }[];
    expect(all.map(({ kind }) => kind)).toContain('switchover');
    expect(all.map(({ id }) => id)).toEqual(all.map(({ id }) => id).sort((a, b) => b - a));
    expect(all.find(({ kind }) => kind === 'switchover')?.heldMs).toBeGreaterThan(0);
    const none = await runCli(['history', '--group', '7'], { DATABASE_URL: url });
    expect(none).toMatchObject({ exitCode: 0, stdout: 'nothing has happened in group 7\n' });
  });
});

function addressOf({ host, port }: ReportInput['node']): string {
  return `${host}:${port}`;
}

const NEWEST = `
  SELECT s.kind, s.old_primary, s.new_primary, s.held > '0' AS held,
         (s.reported_at <= coalesce(s.held_at, s.reported_at)
           AND coalesce(s.held_at, s.reported_at) <= s.promoted_at AND s.promoted_at <= s.ended_at
           AND s.opening + s.held = s.ended_at - s.reported_at) AS ordered,
         s.longest_wait > '0' AS waited, s.sessions_waiting, s.sessions_terminated, s.pause, s.tasks, s.reason
  FROM mpp_switchovers AS s
  WHERE s.groupid = $1
  ORDER BY s.id DESC
  LIMIT 1`;
