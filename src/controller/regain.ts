import { sameServer, type ServerIdentity } from '../postgres/identity.js';
import type { LoginGate } from '../postgres/login-gate.js';
import { errorText } from '../postgres/session.js';
import type { ControlSession } from './control-session.js';
import { pause } from './signal.js';

export interface RegainOptions {
  /** Opens another control session. */
  readonly open: () => Promise<ControlSession>;
  /** The server that it must be with. */
  readonly identity: ServerIdentity;
  readonly gate: LoginGate;
  readonly signal: AbortSignal;
  readonly onFailure: (error: unknown) => void;
}

/** How long the control session may be away before the holds are given up. */
const REGAIN_MS = 2_000;
const REGAIN_EVERY_MS = 50;

/**
 * Leads again on another control session. The holds live on other sessions; they are kept if the
 * leadership can be had again at once.
 */
export async function regain(
  options: RegainOptions,
): Promise<{ readonly control: ControlSession } | { readonly reason: string }> {
  const { gate, signal, onFailure } = options;
  const until = performance.now() + REGAIN_MS;
  let reason = 'the control session could not be opened again in time';
  while (!signal.aborted && performance.now() < until) {
    try {
      const outcome = await openLeading(options);
      if ('control' in outcome) return outcome;
      reason = outcome.reason;
    } catch (error) {
      gate.failed(error);
      onFailure(error);
      reason = errorText(error);
    }
    await pause(Math.max(REGAIN_EVERY_MS, gate.waitMs), signal);
  }
  return { reason };
}

/** A session that leads, or none: one left open could lead later, and would keep it from this controller. */
async function openLeading({
  open,
  identity,
}: RegainOptions): Promise<{ readonly control: ControlSession } | { readonly reason: string }> {
  const control = await open();
  let leads = false;
  try {
    if (!sameServer(control.identity, identity)) return { reason: 'another server answers' };
    const attempt = await control.regain();
    leads = attempt.leads;
    if (attempt.leads) return { control };
    return { reason: attempt.reason ?? 'another controller leads' };
  } finally {
    if (!leads) await control.close();
  }
}
