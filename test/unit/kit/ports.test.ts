import { connect } from 'node:net';
import { once } from 'node:events';
import { afterEach, expect, it } from 'vitest';
import { LOOPBACK, PortAllocator } from '../../kit/servers/ports.js';

const allocators: PortAllocator[] = [];

function allocator(): PortAllocator {
  const made = new PortAllocator();
  allocators.push(made);
  return made;
}

afterEach(async () => {
  await Promise.all(allocators.splice(0).map((made) => made.releaseAll()));
});

it('gives every port once, over allocators as over processes', async () => {
  const [first, second] = [allocator(), allocator()];
  const ports = await Promise.all(
    Array.from({ length: 40 }, (_, index) => (index % 2 === 0 ? first : second).allocate()),
  );
  expect(new Set(ports).size).toBe(40);
});

it('keeps a lock on the port beside it until the port is released', async () => {
  const ports = allocator();
  const port = await ports.allocate();
  const socket = connect(port + 1, LOOPBACK);
  await once(socket, 'connect');
  socket.destroy();

  await ports.release(port);
  await expect(once(connect(port + 1, LOOPBACK), 'connect')).rejects.toMatchObject({
    code: 'ECONNREFUSED',
  });
});
