/**
 * The program of the watcher process (see reaper.ts), plain CommonJS for `node -e`: as text it is
 * there both from the sources and from build/, where tsc copies no script.
 *
 * A postmaster that gets SIGQUIT ends its backends, by SIGKILL after 5 s, and frees its shared
 * memory; SIGKILL comes only to what is left after that.
 */
export const WATCHER_SOURCE = `
'use strict';
const { readFileSync, rmSync } = require('node:fs');
const { setTimeout: delay } = require('node:timers/promises');
const processes = new Set();
const folders = new Set();
let rest = '';

function signal(pid, name) {
  try {
    return process.kill(pid, name);
  } catch {
    return false;
  }
}

// Where nobody collects orphans (many containers), an ended process stays as a zombie.
function isAlive(pid) {
  try {
    return !/\\) [ZX] /.test(readFileSync('/proc/' + pid + '/stat', 'utf8'));
  } catch {
    return signal(pid, 0);
  }
}

function obey(line) {
  const message = JSON.parse(line);
  if ('watchProcess' in message) processes.add(message.watchProcess);
  if ('forgetProcess' in message) processes.delete(message.forgetProcess);
  if ('watchFolder' in message) folders.add(message.watchFolder);
}

async function reap() {
  for (const pid of processes) {
    signal(pid, 'SIGQUIT');
    signal(pid, 'SIGCONT');
  }
  const deadline = Date.now() + 7000;
  while (Date.now() < deadline && [...processes].some(isAlive)) await delay(10);
  for (const pid of processes) signal(pid, 'SIGKILL');
  for (const folder of folders) {
    rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }
}

process.stdin.setEncoding('utf8');
process.stdin.on('data', (text) => {
  const lines = (rest + text).split('\\n');
  rest = lines.pop();
  lines.forEach(obey);
});
process.stdin.on('end', reap);
`;
