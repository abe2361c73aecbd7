/** A word that the glossary refuses, and where it stands. */
export interface RefusedWord {
  readonly file: string;
  /** From 1 on. */
  readonly line: number;
  readonly word: string;
  readonly text: string;
}

/** The words in the last column of the glossary's tables. */
export function refusedWords(glossary: string): string[] {
  return glossary
    .split('\n')
    .filter((line) => line.startsWith('|') && !line.startsWith('| --'))
    .map((line) => line.split('|').at(-2)?.trim() ?? '')
    .filter((cell) => cell !== '' && cell !== 'not')
    .flatMap((cell) => cell.split(',').map((word) => word.trim()));
}

/** Where a text has one of these words, by itself or as a part of a name: `inTheWay`, `in_the_way`. */
export function findWords(file: string, text: string, words: readonly string[]): RefusedWord[] {
  const patterns = words.map((word) => ({ word, pattern: new RegExp(`\\b${word}(s|ed|ing)?\\b`) }));
  return text.split('\n').flatMap((line, index) => {
    const plain = inWords(line);
    return patterns
      .filter(({ pattern }) => pattern.test(plain))
      .map(({ word }) => ({ file, line: index + 1, word, text: line.trim() }));
  });
}

/** The lines of a test file that name a test or a group of tests, each at its place. */
export function testNames(source: string): string {
  return source
    .split('\n')
    .map((line) =>
      /^\s*(?:it|describe)(?:\.\w+)*\b/.test(line) || /^\s*['"`]/.test(line) ? line : '',
    )
    .join('\n');
}

function inWords(line: string): string {
  return line
    .replace(/([a-z0-9])([A-Z])/g, '$1 $2')
    .replace(/_/g, ' ')
    .toLowerCase();
}
