import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { packageVersion } from '../package-root.js';
import { type MetricDefinition, type MetricName, METRICS } from './metric-table.js';

export type Labels = Readonly<Record<string, string | number>>;

type NamesOf<T extends MetricDefinition['type']> = {
  [N in MetricName]: (typeof METRICS)[N]['type'] extends T ? N : never;
}[MetricName];

/** The metrics of one database. */
export interface DatabaseMetrics {
  add(name: NamesOf<'counter'>, labels: Labels, by?: number): void;
  set(name: NamesOf<'gauge'>, labels: Labels, value: number): void;
  observe(name: NamesOf<'histogram'>, labels: Labels, value: number): void;
}

const DEFINITIONS: ReadonlyMap<MetricName, MetricDefinition> = new Map(
  Object.entries(METRICS) as [MetricName, MetricDefinition][],
);

/**
 * All metrics of this process, in a registry of its own.
 *
 * The label `database` is there with MPP_DATABASES alone: elsewhere it would be one more label to match in each
 * rule and query, with one value. Rules that aggregate `by (database)` are right in both cases.
 */
export class Metrics {
  readonly #registry = new Registry();
  readonly #counters = new Map<string, Counter>();
  readonly #gauges = new Map<string, Gauge>();
  readonly #histograms = new Map<string, Histogram>();
  readonly #hasDatabases: boolean;

  /** @param databases those of MPP_DATABASES; undefined without it */
  constructor(databases: readonly string[] | undefined) {
    this.#hasDatabases = databases !== undefined;
    for (const [name, definition] of DEFINITIONS) this.#register(name, definition);
    this.forgetCluster();
    this.#gauge('mpp_build_info').set({ version: packageVersion(), node: process.version }, 1);
    for (const database of databases ?? [undefined]) this.#zero(database);
  }

  /** @param database of MPP_DATABASES; undefined without it */
  of(database: string | undefined): DatabaseMetrics {
    const own = ownLabels(database);
    return {
      add: (name, labels, by = 1) => this.#counter(name).inc({ ...labels, ...own }, by),
      set: (name, labels, value) => this.#gauge(name).set({ ...labels, ...own }, value),
      observe: (name, labels, value) => this.#histogram(name).observe({ ...labels, ...own }, value),
    };
  }

  /** Takes the state of the cluster out: what is not known now must not look as if it were. */
  forgetCluster(): void {
    for (const [name, { from }] of DEFINITIONS) {
      if (from === 'cluster') this.#clear(name);
    }
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  async text(): Promise<string> {
    return this.#registry.metrics();
  }

  #register(name: MetricName, { type, help, labels, from, buckets }: MetricDefinition): void {
    const perDatabase = from !== 'process' && this.#hasDatabases;
    const labelNames = [...Object.keys(labels), ...(perDatabase ? ['database'] : [])];
    const options = { name, help, labelNames, registers: [this.#registry] };
    if (type === 'counter') this.#counters.set(name, new Counter(options));
    else if (type === 'gauge') this.#gauges.set(name, new Gauge(options));
    else this.#histograms.set(name, new Histogram({ ...options, buckets: [...(buckets ?? [])] }));
    if (from === 'once') this.#clear(name);
  }

  /** Without labels a gauge of prom-client is 0 from the start. */
  #clear(name: MetricName): void {
    const gauge = this.#gauge(name);
    gauge.reset();
    if (Object.keys(METRICS[name].labels).length === 0 && !this.#hasDatabases) gauge.remove();
  }

  /** A set of labels that came with its first event would hide that event from rate() and increase(). */
  #zero(database: string | undefined): void {
    for (const [name, { type, labels, from }] of DEFINITIONS) {
      if (from !== 'controller') continue;
      for (const values of combinations(labels)) {
        const set = { ...values, ...ownLabels(database) };
        if (type === 'counter') this.#counter(name).inc(set, 0);
        else if (type === 'gauge') this.#gauge(name).set(set, 0);
        else this.#histogram(name).zero(set);
      }
    }
  }

  #counter(name: string): Counter {
    return required(this.#counters, name);
  }

  #gauge(name: string): Gauge {
    return required(this.#gauges, name);
  }

  #histogram(name: string): Histogram {
    return required(this.#histograms, name);
  }
}

function ownLabels(database: string | undefined): Labels {
  return database === undefined ? {} : { database };
}

function required<T>(map: ReadonlyMap<string, T>, name: string): T {
  const found = map.get(name);
  if (found === undefined) throw new Error(`there is no metric ${name} of that type`);
  return found;
}

/** All sets of label values; none where a label's values are not known beforehand. */
export function combinations(labels: MetricDefinition['labels']): Labels[] {
  return Object.entries(labels).reduce<Labels[]>(
    (sets, [label, values = []]) =>
      sets.flatMap((set) => values.map((value) => ({ ...set, [label]: value }))),
    [{}],
  );
}
