import type { Node, Step } from '../../src/mpp/abstract.js';
import { formatAddress, sameAddress, type Address } from '../../src/address.js';

/** `pg_dist_node` in memory: the steps of a transition, each checked at once as Citus checks it. */
export class NodeTable {
  #rows: Node[];
  #nextNodeid: number;

  constructor(rows: readonly Node[]) {
    this.#rows = [...rows];
    this.#nextNodeid = Math.max(0, ...rows.map(({ nodeid }) => nodeid)) + 1;
  }

  get rows(): readonly Node[] {
    return this.#rows;
  }

  copy(): NodeTable {
    return new NodeTable(this.#rows);
  }

  /** What a task about `addresses` of a group is shown, as the query of src/mpp/citus/nodes.ts. */
  visible(groupid: number, addresses: readonly Address[]): Node[] {
    const group = this.#rows.filter((row) => row.groupid === groupid);
    const parked = group.map(({ address: { host, port } }) => ({ host: `${host}-demoted`, port }));
    const named = [...addresses, ...parked];
    return this.#rows.filter(
      (row) =>
        row.groupid === groupid || named.some((address) => sameAddress(address, row.address)),
    );
  }

  /** @throws Error when the step takes an address twice, or touches a row that is not there or not ours. */
  apply(step: Step): void {
    switch (step.op) {
      case 'update':
        this.#update(
          this.#own((row) => row.nodeid === step.nodeid, step),
          step.to,
        );
        return;
      case 'remove': {
        const gone = this.#own((row) => sameAddress(row.address, step.node), step);
        if (gone.role === 'primary') throw new Error('a primary is removed');
        this.#rows = this.#rows.filter((row) => row !== gone);
        return;
      }
      case 'removeClone':
        this.#rows = this.#rows.filter((row) => !sameAddress(row.address, step.node));
        return;
      case 'add':
        this.#add(step.groupid, step.role, step.node);
        return;
      case 'coordinator':
        this.#add(0, 'primary', step.node);
    }
  }

  #own(test: (row: Node) => boolean, step: Step): Node {
    const row = this.#rows.find(test);
    if (row?.isInCluster !== true) throw new Error(`no row of ours for ${JSON.stringify(step)}`);
    return row;
  }

  #update(row: Node, to: Address): void {
    if (sameAddress(row.address, to)) return;
    this.#ensureFree(to);
    this.#rows = this.#rows.map((other) => (other === row ? { ...row, address: to } : other));
  }

  #add(groupid: number, role: Node['role'], address: Address): void {
    this.#ensureFree(address);
    if (role === 'primary' && this.#rows.some((row) => isPrimaryOf(row, groupid))) {
      throw new Error(`group ${groupid} has a primary already`);
    }
    this.#rows.push({ nodeid: this.#nextNodeid, groupid, role, address, isInCluster: true });
    this.#nextNodeid += 1;
  }

  #ensureFree(address: Address): void {
    if (this.#rows.some((row) => sameAddress(row.address, address))) {
      throw new Error(`${formatAddress(address)} is there already`);
    }
  }
}

export function isPrimaryOf(row: Node, groupid: number): boolean {
  return row.isInCluster && row.groupid === groupid && row.role === 'primary';
}
