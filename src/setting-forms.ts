import { z } from 'zod';
import { DURATION_FORM, formatDuration, parseDuration } from './duration.js';
import { ConfigError } from './errors.js';
import { HOST_FORM, isHost, plainHost } from './host.js';

/** What a setting takes: in words, to follow "give", and as a schema that reads its text. */
interface Form<T> {
  readonly accepts: string;
  readonly schema: z.ZodType<T, string>;
}

/** One of a few words. */
export function choice<const T extends readonly [string, ...string[]]>(...values: T) {
  const last = values.at(-1) ?? '';
  return { accepts: `${values.slice(0, -1).join(', ')} or ${last}`, schema: z.enum(values) };
}

/** A duration in milliseconds, within bounds. */
export function duration(min: number, max: number) {
  return {
    accepts: `${DURATION_FORM}, from ${formatDuration(min)} to ${formatDuration(max)}`,
    schema: z
      .string()
      .transform((text, context) => {
        try {
          return parseDuration(text);
        } catch (error) {
          if (!(error instanceof ConfigError)) throw error;
          context.addIssue({ code: 'custom', message: error.message });
          return z.NEVER;
        }
      })
      .pipe(z.number().min(min).max(max)),
  };
}

/** See `isHost`; an IPv6 address may have brackets around it. */
export function host() {
  return {
    accepts: HOST_FORM,
    schema: z.string().transform(plainHost).refine(isHost),
  };
}

/** The same, or nothing at all. */
export function optional<T>({ accepts, schema }: Form<T>) {
  return { accepts, schema: z.union([z.literal('').transform(() => undefined), schema]) };
}

export function isSchemaName(text: string): boolean {
  return /^(?!pg_)[^\p{Cc}]+$/u.test(text) && Buffer.byteLength(text) <= 63;
}
