import type { Narrator } from './narrator.js';
import type { Stage } from './stage.js';

/** Makes the cluster whole again, and says what one can do with it. */
export async function offer(stage: Stage, narrator: Narrator, pid: number): Promise<void> {
  await Promise.all(stage.cluster.workers.map((group) => stage.restoreStandby(group)));
  stage.startLightTraffic();
  narrator.step('all groups have a standby again; light traffic goes on');
  narrator.paragraph(`\n${invitation(stage, pid)}`);
}

function invitation(stage: Stage, pid: number): string {
  const { coordinator, url } = stage;
  const { groupid, primary } = stage.group;
  return `STILL RUNNING, until Ctrl-C. The controller is process ${pid}.

  psql ${url}

Any other client: host ${coordinator.host}, port ${coordinator.port}, user and database postgres, no password.

Hold all traffic of group ${groupid} for 20 seconds; then the hold ends by rollback:

  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport, timeout, pause)
  VALUES ('before_demote', ${groupid}, '${primary.host}', ${primary.port}, '20s', 'all');

or sooner, once somebody says that the node is the primary after all:

  INSERT INTO mpp_tasks (event, groupid, nodename, nodeport)
  VALUES ('after_promote', ${groupid}, '${primary.host}', ${primary.port});

Look while it lasts:

  SELECT * FROM mpp_holds;   -- groups held, until when, sessions waiting
  SELECT * FROM mpp_queue;   -- what runs and waits, and why in that order
  SELECT * FROM mpp_status;  -- the controllers
  SELECT * FROM mpp_task_log ORDER BY id DESC LIMIT 10;

The same for people, by the command:

  export DATABASE_URL=${url}
  node dist/cli.js status`;
}
