/** Where one group's Patroni answers: any of these will do. */
export interface GroupEndpoints {
  readonly groupid: number;
  readonly urls: readonly string[];
}

/** Whether MPP_PATRONI is written as it should be. */
export function isEndpoints(text: string): boolean {
  const groups = split(text).map(([groupid]) => groupid);
  return (
    groups.length > 0 &&
    new Set(groups).size === groups.length &&
    split(text).every(
      ([groupid, urls]) => /^\d{1,9}$/.test(groupid) && urls.length > 0 && urls.every(isEndpoint),
    )
  );
}

/** Reads `1=http://a:8008,http://b:8008;2=https://c:8008`. */
export function parseEndpoints(text: string): readonly GroupEndpoints[] {
  return Object.freeze(split(text).map(([groupid, urls]) => ({ groupid: Number(groupid), urls })));
}

function split(text: string): [string, string[]][] {
  return text
    .split(';')
    .map((part) => part.trim())
    .filter((part) => part !== '')
    .map((part) => {
      const [, groupid = '', urls = ''] = /^([^=]*)=(.*)$/s.exec(part) ?? [];
      return [groupid.trim(), urls.split(',').map((url) => url.trim())];
    });
}

/** A user in the URL would show in the list of processes; MPP_PATRONI_AUTH does not. */
function isEndpoint(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, username, password, search, hash } = new URL(text);
  return /^https?:$/.test(protocol) && `${username}${password}${search}${hash}` === '';
}
