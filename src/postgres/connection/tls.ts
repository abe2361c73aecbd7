import { readFileSync, statSync, type Stats } from 'node:fs';
import { isIP } from 'node:net';
import { X509Certificate } from 'node:crypto';
import { createSecureContext, type ConnectionOptions, type SecureVersion } from 'node:tls';
import { ConfigError } from '../../errors.js';
import { homeFile } from './password.js';
import type { Parameters } from './parameters.js';

type SslMode = (typeof MODES)[number];

const MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;

const VERSIONS = ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'] as const satisfies SecureVersion[];

/** A file by its path, and whether a setting named it: a default file need not be there. */
interface NamedFile {
  readonly path: string;
  readonly origin: string | undefined;
}

interface TlsFiles {
  readonly rootCert: NamedFile | 'system';
  readonly crl: NamedFile;
  readonly cert: NamedFile;
  readonly key: NamedFile;
}

/** How sessions are encrypted and servers verified, in libpq's meaning of its words. */
export class TlsPolicy {
  readonly mode: SslMode;
  /** TLS begins at once, without asking the server in PostgreSQL's protocol first. */
  readonly isDirect: boolean;
  readonly #files: TlsFiles;
  readonly #options: ConnectionOptions;
  readonly #sendsName: boolean;

  constructor(
    mode: SslMode,
    isDirect: boolean,
    files: TlsFiles,
    rest: { options: ConnectionOptions; sendsName: boolean },
  ) {
    this.mode = mode;
    this.isDirect = isDirect;
    this.#files = files;
    this.#options = rest.options;
    this.#sendsName = rest.sendsName;
  }

  /** Whether a session without TLS will do. */
  get mayBePlain(): boolean {
    return this.mode === 'disable' || this.mode === 'allow' || this.mode === 'prefer';
  }

  /**
   * The TLS options for a session with `host`. The files are read each time: certificates are renewed
   * more often than a controller is restarted.
   *
   * @throws ConfigError naming a file that is missing, cannot be read, or may be read by too many
   */
  optionsFor(host: string): ConnectionOptions {
    const { rootCert, crl, cert, key } = this.#files;
    const ca = rootCert === 'system' ? undefined : readFile(rootCert, 'root certificate file');
    const isVerified = rootCert === 'system' || ca !== undefined;
    if (!isVerified && this.mode.startsWith('verify-')) {
      throw new ConfigError(
        `the root certificate file ${rootCert.path} does not exist, and sslmode=${this.mode} needs it; ` +
          'make it, name another in sslrootcert, or give sslrootcert=system',
      );
    }
    const revoked = isVerified ? readFile(crl, 'certificate revocation list') : undefined;
    return {
      host,
      // A name only: RFC 6066 knows no addresses.
      ...(isIP(host) === 0 && this.#sendsName && { servername: host }),
      ...(this.isDirect && { ALPNProtocols: ['postgresql'] }),
      rejectUnauthorized: isVerified,
      ...(ca !== undefined && { ca }),
      ...(revoked !== undefined && { crl: revoked }),
      ...clientCertificate(cert, key),
      ...(this.mode !== 'verify-full' && { checkServerIdentity: () => undefined }),
      ...this.#options,
    };
  }

  /** @throws ConfigError naming a file that is not what it should be, beside what optionsFor throws */
  check(): void {
    const { rootCert, crl, cert, key } = this.#files;
    const { passphrase } = this.#options;
    const options = this.optionsFor('localhost');
    if (options.ca !== undefined && rootCert !== 'system') {
      use('root certificate file', rootCert, () => new X509Certificate(options.ca as Buffer));
    }
    if (options.crl !== undefined) {
      use('certificate revocation list', crl, () => createSecureContext({ crl: options.crl }));
    }
    if (options.cert !== undefined) {
      use('certificate file', cert, () => createSecureContext({ cert: options.cert }));
      use('private key file', key, () =>
        createSecureContext({ cert: options.cert, key: options.key, passphrase }),
      );
    }
  }

  /** What to say of a session that could not be encrypted. */
  explain(host: string, error: unknown): Error {
    const text = error instanceof Error ? error.message : String(error);
    const { rootCert } = this.#files;
    const root = rootCert === 'system' ? "Node.js's own root certificates" : rootCert.path;
    const code = error instanceof Error && 'code' in error ? String(error.code) : '';
    const isTrust = /CERT|VERIFY|ISSUER|SELF_SIGNED|CRL/.test(code);
    const with_ = isTrust
      ? `sslmode=${this.mode} verifies it with ${root}`
      : `sslmode=${this.mode}`;
    return new Error(`TLS with ${host} failed: ${text} (${with_})`, { cause: error });
  }
}

/**
 * Reads what libpq's ssl parameters say. The files that TLS needs are read once here, so that a wrong name
 * is found at start.
 *
 * @param isTcp whether some server is reached by TCP: Unix sockets have no TLS
 * @throws ConfigError
 */
export function readTls(parameters: Parameters, isTcp: boolean): TlsPolicy {
  const isSystem = parameters.get('sslrootcert') === 'system';
  const mode = parameters.choice('sslmode', MODES) ?? (isSystem ? 'verify-full' : 'prefer');
  if (isSystem && mode !== 'verify-full') {
    throw parameters.wrong('sslmode', 'give verify-full, which sslrootcert=system needs');
  }
  const negotiation = parameters.choice('sslnegotiation', ['postgres', 'direct']);
  const isWeak = mode === 'disable' || mode === 'allow' || mode === 'prefer';
  if (negotiation === 'direct' && isWeak) {
    throw parameters.wrong('sslnegotiation', 'give sslmode=require or a stricter one with direct');
  }
  const minVersion = parameters.choice('ssl_min_protocol_version', VERSIONS);
  const maxVersion = parameters.choice('ssl_max_protocol_version', VERSIONS);
  const passphrase = parameters.get('sslpassword');
  const options: ConnectionOptions = {
    ...(minVersion && { minVersion }),
    ...(maxVersion && { maxVersion }),
    ...(passphrase !== undefined && { passphrase }),
  };
  const file = (name: string, byDefault: string): NamedFile => {
    const path = parameters.get(name);
    if (path !== undefined) return { path, origin: parameters.origin(name) };
    return { path: homeFile('.postgresql', byDefault), origin: undefined };
  };
  const policy = new TlsPolicy(
    mode,
    negotiation === 'direct',
    {
      rootCert: isSystem ? 'system' : file('sslrootcert', 'root.crt'),
      crl: file('sslcrl', 'root.crl'),
      cert: file('sslcert', 'postgresql.crt'),
      key: file('sslkey', 'postgresql.key'),
    },
    { options, sendsName: parameters.choice('sslsni', ['0', '1']) !== '0' },
  );
  if (isTcp && mode !== 'disable') policy.check();
  return policy;
}

/** @returns undefined when there is none */
function clientCertificate(
  certFile: NamedFile,
  keyFile: NamedFile,
): { cert?: Buffer; key?: Buffer } {
  const cert = readFile(certFile, 'certificate file');
  if (cert === undefined) return {};
  checkKeyMode(keyFile);
  const key = readFile(keyFile, 'private key file');
  if (key !== undefined) return { cert, key };
  throw new ConfigError(
    `the certificate file ${certFile.path} has no private key: ${keyFile.path} does not exist; ` +
      'name the key in sslkey',
  );
}

/** As libpq: for the owner alone, or for root's group where root owns it. */
function checkKeyMode({ path }: NamedFile): void {
  if (process.platform === 'win32') return;
  let stats: Stats;
  try {
    stats = statSync(path);
  } catch {
    return;
  }
  const forbidden = stats.uid === 0 && process.getuid?.() !== 0 ? 0o037 : 0o077;
  if ((stats.mode & forbidden) === 0) return;
  const octal = (stats.mode & 0o777).toString(8).padStart(4, '0');
  throw new ConfigError(
    `the private key file ${path} may be read by others: its mode is ${octal}; chmod 0600 ${path}`,
  );
}

/** @throws ConfigError when OpenSSL cannot */
function use(what: string, { path }: NamedFile, work: () => unknown): void {
  try {
    work();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const hint = what.startsWith('private key')
      ? '; is sslpassword right, and the key this one?'
      : '';
    throw new ConfigError(`the ${what} ${path} cannot be used: ${text}${hint}`);
  }
}

/** @returns undefined for a default file that is not there. @throws ConfigError */
function readFile({ path, origin }: NamedFile, what: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    if (origin === undefined && (code === 'ENOENT' || code === 'ENOTDIR')) return undefined;
    const from = origin === undefined ? '' : ` that ${origin} names`;
    throw new ConfigError(
      `the ${what}${from} cannot be read: ${path} (${code}); correct its name or its rights`,
    );
  }
}
