import createSubscriber, { type Subscriber } from 'pg-listen';
import { sessionConfig, type Connection } from './session.js';

export interface ListenerOptions {
  readonly connection: Connection;
  readonly channel: string;
  /** Something may have happened: look at the table. Also called when listening begins again. */
  readonly onWake: () => void;
  readonly onError: (error: unknown) => void;
}

const RETRY_MS = 500;

/**
 * Wakes the caller on NOTIFY, for as long as it is started, through any number of lost sessions.
 * A notification is only ever a hint; whoever listens also polls.
 */
export class Listener {
  readonly #options: ListenerOptions;
  #subscriber: Subscriber | undefined;
  #rebuild: NodeJS.Timeout | undefined;
  #stopped = true;

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
    const subscriber = createSubscriber.default(
      { ...sessionConfig(connection, 'listen'), query_timeout: 5_000 },
      {
        // The default gives up after 3 s, and is then deaf for ever.
        retryTimeout: 0,
        // After close() it would go on reconnecting; an error is the only way to make it stop.
        retryInterval: () => {
          if (this.#subscriber !== subscriber) throw new Error('the listener was stopped');
          return RETRY_MS;
        },
        paranoidChecking: 10_000,
        // Any role may send any payload.
        parse: () => undefined,
      },
    );
    this.#subscriber = subscriber;
    subscriber.events.on('error', (error) => this.#restart(subscriber, error));
    subscriber.notifications.on(channel, onWake);
    subscriber.events.on('connected', () => {
      if (this.#subscriber !== subscriber) return void subscriber.close().catch(() => undefined);
      const listening = subscriber.listenTo(channel) ?? Promise.resolve();
      listening.then(onWake, (error: unknown) => this.#restart(subscriber, error));
    });
    // On failure it goes on trying by itself, and says "connected" when it has succeeded.
    subscriber.connect().catch(onError);
  }

  #restart(subscriber: Subscriber, error: unknown): void {
    if (this.#stopped || this.#subscriber !== subscriber) return;
    this.#options.onError(error);
    void this.#discard();
    this.#rebuild = setTimeout(() => this.#build(), RETRY_MS);
  }

  async #discard(): Promise<void> {
    const subscriber = this.#subscriber;
    this.#subscriber = undefined;
    await subscriber?.close().catch(() => undefined);
  }
}
