import { describe, expect, it } from 'vitest';
import { showSettings } from '../../src/commands/config.js';

const URL = { DATABASE_URL: 'postgresql://mpp:s3cret@c1,c2/db?password=s3cret&sslmode=require' };

function find(env: NodeJS.ProcessEnv, name: string, flags: Record<string, string> = {}) {
  return showSettings(env, flags).find((one) => one.name === name);
}

describe('config show', () => {
  it('has the value of each setting, and where it comes from', () => {
    const env = { ...URL, MPP_POLL: '2s', MPP_PAUSE: '' };
    expect(find(env, 'MPP_POLL')).toMatchObject({ value: '2s', origin: 'environment' });
    expect(find(env, 'MPP_POLL', { poll: '3s' })).toMatchObject({ value: '3s', origin: 'flag' });
    expect(find(env, 'MPP_PAUSE')).toMatchObject({ value: 'auto', origin: 'default' });
  });

  it('shows no password, wherever it stands', () => {
    const env = {
      ...URL,
      MPP_NODE_URL: 'postgres://u:s3cret@/db',
      MPP_PATRONI_AUTH: 'u:s3cret',
      MPP_AUTHINFO: 'password=s3cret',
      PGPASSWORD: 's3cret',
      MPP_PATRONI_AUHT: 'u:s3cret',
    };
    expect(JSON.stringify(showSettings(env, {}))).not.toContain('s3cret');
    expect(find(env, 'DATABASE_URL')?.value).toBe(
      'postgresql://mpp:***@c1,c2/db?(parameters not shown)',
    );
    expect(find(env, 'MPP_PATRONI_AUTH')?.value).toBe('(set, not shown)');
  });

  it.each([
    'postgresql://u:a@b:s3cret@h/db',
    'postgresql://u:s3/cret@h/db',
    'host=h password=s3cret',
  ])('shows no password of a URL that is odd: %s', (url) => {
    expect(find({ DATABASE_URL: url }, 'DATABASE_URL')?.value).not.toMatch(/s3|cret/);
  });

  it('shows no login of a URL where none belongs', () => {
    const env = {
      ...URL,
      MPP_PATRONI: '1=http://u:s3cret@a:8008,http://u:s3@cret@b:8008;2=http://c:8008',
    };
    expect(find(env, 'MPP_PATRONI')).toMatchObject({
      value: '1=http://***@a:8008,http://***@b:8008;2=http://c:8008',
      problem: expect.stringContaining('give ') as string,
    });
  });

  it('names every problem, not only the first', () => {
    const env = { ...URL, MPP_POLL: 'soon', MPP_PAUSE: 'some', MPP_POL: '1s' };
    const wrong = showSettings(env, {}).filter(({ problem }) => problem !== null);
    expect(wrong.map(({ name }) => name)).toEqual(['MPP_PAUSE', 'MPP_POLL', 'MPP_POL']);
    expect(find(env, 'MPP_POL')).toMatchObject({ origin: 'unknown' });
    const bad = { DATABASE_URL: 'mysql://h/db' };
    expect(find(bad, 'DATABASE_URL')?.problem).toMatch(/DATABASE_URL/);
  });
});
