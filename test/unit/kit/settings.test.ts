import { expect, it } from 'vitest';
import { renderSettings } from '../../kit/servers/settings.js';

it('writes booleans as on and off, and quotes the rest', () => {
  const text = renderSettings({
    fsync: false,
    hot_standby: true,
    port: 20000,
    note: "it's \\ here",
  });
  expect(text).toBe("fsync = off\nhot_standby = on\nport = '20000'\nnote = 'it''s \\\\ here'\n");
});
