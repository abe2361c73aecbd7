import { readFileSync } from 'node:fs';
import { request as httpRequest, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { ConfigError, UnreachableError } from '../../errors.js';
import { linkSignals } from '../../wait.js';
import { errorText } from '../../postgres/session.js';

/** How Patroni's REST API is reached. */
export interface Access {
  /** PEM of the authority that signs its certificates; without it those that node knows. */
  readonly ca: string | undefined;
  /** `user:password`. */
  readonly auth: string | undefined;
}

/** A cluster of thousands of members is far smaller. */
const MOST_BYTES = 1_000_000;

/**
 * GET of a JSON document.
 *
 * @param url of the endpoint; `path` is added to it.
 * @throws UnreachableError when there is no answer in time, or one other than 200 and JSON.
 */
export async function getJson(
  url: string,
  path: string,
  access: Access,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<unknown> {
  const target = new URL(url);
  target.pathname = `${target.pathname.replace(/\/$/, '')}${path}`;
  const over = linkSignals([signal], timeoutMs);
  try {
    return JSON.parse(await get(target, access, over.signal)) as unknown;
  } catch (error) {
    throw new UnreachableError(`no answer from ${target.href}: ${errorText(error)}`, error);
  } finally {
    over.release();
  }
}

/** fetch would do, but takes no certificate authority. */
async function get(target: URL, { ca, auth }: Access, signal: AbortSignal): Promise<string> {
  const options: RequestOptions & { ca?: string } = {
    signal,
    headers: { accept: 'application/json' },
    ...(auth === undefined ? {} : { auth }),
    ...(ca === undefined ? {} : { ca }),
  };
  const request = target.protocol === 'https:' ? httpsRequest : httpRequest;
  return new Promise((resolve, reject) => {
    request(target, options, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('error', reject);
      response.on('data', (chunk: string) => {
        text += chunk;
        if (text.length > MOST_BYTES) response.destroy(new Error('the answer is too long'));
      });
      response.on('end', () => {
        if (response.statusCode === 200) resolve(text);
        else reject(new Error(`HTTP status ${response.statusCode ?? 'unknown'}`));
      });
    })
      .on('error', reject)
      .end();
  });
}

/** @throws ConfigError when the file cannot be read. */
export function readAuthority(path: string | undefined): string | undefined {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new ConfigError(`MPP_PATRONI_CA names a file that cannot be read: ${path}`, error);
  }
}
