import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

/** The folders of src, the lowest first: each may import those before it, and no other. */
const LAYERS = [
  'postgres',
  'config',
  'locks',
  'tasks',
  'mpp',
  'topology',
  'databases',
  'controller',
  'http',
  'doctor',
  'commands',
];

/**
 * What stands below it in LAYERS, and is no business of its.
 *
 * @type {ReadonlyMap<string, readonly string[]>}
 */
const APART = new Map([
  ['locks', ['config']],
  ['tasks', ['config', 'locks']],
  ['databases', ['topology', 'mpp']],
  ['doctor', ['locks', 'tasks', 'databases', 'controller']],
]);

export default defineConfig(
  { ignores: ['dist/', 'build/', 'node_modules/'] },
  tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ['eslint.config.js'] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      'max-lines': ['error', { max: 500 }],
      eqeqeq: 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
    },
  },
  ...LAYERS.map((layer, index) => ({
    files: [`src/${layer}/**`],
    rules: onlyBelow([...LAYERS.slice(index + 1), ...(APART.get(layer) ?? [])]),
  })),
  {
    files: ['src/**'],
    rules: {
      'max-lines-per-function': ['error', { max: 40, skipBlankLines: true, skipComments: true }],
    },
  },
  { files: ['src/*.ts'], ignores: ['src/index.ts', 'src/cli.ts'], rules: onlyBelow(LAYERS) },
);

/**
 * Refuses imports of these folders of src, and of what is no part of the package.
 *
 * @param {readonly string[]} folders
 * @returns {import('eslint').Linter.RulesRecord}
 */
function onlyBelow(folders) {
  const group = [
    ...folders.map((folder) => `**/${folder}/**`),
    '**/test/**',
    '**/demo/**',
    '**/bench/**',
  ];
  return {
    'no-restricted-imports': [
      'error',
      { patterns: [{ group, message: 'Arrows go down: see docs/architecture.md, Folders.' }] },
    ],
  };
}
