import type { ObservedDatabase } from './observed-database.js';
import { pageOf, type Shown } from './page.js';
import { PAGE_CSS, PAGE_JS } from './page-files.js';
import type { Route } from './server.js';

/** The page for people, and its two files. */
export function pageRoutes(databases: readonly ObservedDatabase[]): Route[] {
  const file = (path: Route['path'], type: string, body: string): Route => ({
    path,
    description: 'a file of the page',
    answer: () => Promise.resolve({ status: 200, type: `${type}; charset=utf-8`, body }),
  });
  return [
    {
      path: '/',
      description: 'the page for people',
      answer: async () => {
        const shown = await Promise.all(databases.map(readShown));
        return { status: 200, type: 'text/html; charset=utf-8', body: pageOf(shown, new Date()) };
      },
    },
    file('/page.css', 'text/css', PAGE_CSS),
    file('/page.js', 'text/javascript', PAGE_JS),
  ];
}

async function readShown(database: ObservedDatabase): Promise<Shown> {
  const name = database.database;
  try {
    return { database: name, overview: await database.overview() };
  } catch (error) {
    return { database: name, overview: error instanceof Error ? error : new Error(String(error)) };
  }
}
