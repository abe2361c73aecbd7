import createSubscriber, { type Subscriber } from 'pg-listen';
import { within } from '../wait.js';
import { CLOSE_MS, Sockets, sessionConfig, type Connection } from './session.js';
import type { LoginGate } from './pool.js';

interface ListenerOptions {
  readonly connection: Connection;
  readonly channel: string;
  /** Something may have happened: look at the table. Also called when listening begins again. */
  readonly onWake: () => void;
  /** Listening has begun once more, after it was interrupted. */
  readonly onReconnected?: () => void;
  readonly onError: (error: unknown) => void;
  /** Shared by all sessions that log in with the same credentials. */
  readonly gate?: LoginGate;
}

const RETRY_MS = 500;

/**
 * Wakes the caller on NOTIFY, for as long as it is started, through any number of lost sessions.
 * A notification is only ever a hint; a listener also polls.
 */
export class Listener {
  readonly #options: ListenerOptions;
  #subscriber: Subscriber | undefined;
  /** Of the subscriber; pg-listen does not give its sessions out. */
  #sockets: Sockets | undefined;
  #rebuild: NodeJS.Timeout | undefined;
  #stopped = true;
  #hasListened = false;

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  start(): void {
    if (!this.#stopped) return;
    this.#stopped = false;
    this.#build();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#rebuild);
    await this.#discard();
  }

  #build(): void {
    const { connection, channel, onWake, onError } = this.#options;
    const config = sessionConfig(connection, 'listen');
    const sockets = new Sockets(config);
    const subscriber = createSubscriber.default(
      { ...config, query_timeout: 5_000, stream: sockets.create },
      {
        // The default gives up after 3 s, and is then deaf for ever.
        retryTimeout: 0,
        // After close() it would go on reconnecting; an error is the only way to make it stop.
        retryInterval: () => {
          if (this.#subscriber !== subscriber) throw new Error('the listener was stopped');
          return this.#retryMs();
        },
        paranoidChecking: 10_000,
        // Any role may send any payload.
        parse: () => undefined,
      },
    );
    this.#subscriber = subscriber;
    this.#sockets = sockets;
    subscriber.events.on('error', (error) => this.#restart(subscriber, error));
    subscriber.notifications.on(channel, onWake);
    subscriber.events.on('connected', () => {
      if (this.#subscriber !== subscriber) return void close(subscriber, sockets);
      this.#options.gate?.succeeded();
      const listening = subscriber.listenTo(channel) ?? Promise.resolve();
      listening.then(
        () => this.#listens(),
        (error: unknown) => this.#restart(subscriber, error),
      );
    });
    // On failure it goes on trying by itself, and says "connected" when it has succeeded.
    subscriber.connect().catch((error: unknown) => {
      this.#options.gate?.failed(error);
      onError(error);
    });
  }

  #listens(): void {
    if (this.#hasListened) this.#options.onReconnected?.();
    this.#hasListened = true;
    this.#options.onWake();
  }

  #restart(subscriber: Subscriber, error: unknown): void {
    if (this.#stopped || this.#subscriber !== subscriber) return;
    this.#options.onError(error);
    void this.#discard();
    this.#rebuild = setTimeout(() => this.#build(), this.#retryMs());
  }

  /** The attempts in between are pg-listen's own, and say nothing: they are as rare as they may become. */
  #retryMs(): number {
    return Math.max(RETRY_MS, this.#options.gate?.waitMs ?? 0);
  }

  async #discard(): Promise<void> {
    const [subscriber, sockets] = [this.#subscriber, this.#sockets];
    this.#subscriber = undefined;
    this.#sockets = undefined;
    if (subscriber && sockets) await close(subscriber, sockets);
  }
}

/** Never throws, and waits for no peer that has vanished. */
async function close(subscriber: Subscriber, sockets: Sockets): Promise<void> {
  await within(
    CLOSE_MS,
    subscriber.close().catch(() => undefined),
    undefined,
  );
  sockets.destroy();
}
