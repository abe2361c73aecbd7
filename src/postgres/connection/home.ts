import { homedir } from 'node:os';
import { join } from 'node:path';

/** The path of a file below the user's home; where there is no home, of one that does not exist. */
export function homeFile(...parts: readonly string[]): string {
  try {
    return join(homedir(), ...parts);
  } catch {
    return join('/nonexistent', ...parts);
  }
}
