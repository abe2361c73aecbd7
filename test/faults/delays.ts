import type { Fault } from './schedule.js';

/** From so many rows in one statement on, the server itself is busy with them. */
const MANY_ROWS = 1_000;

/**
 * Whether the answer to a report of a group may come late because of a fault. Transactions and locks of other
 * sessions delay what they have locked and nothing else, and the trouble of one group delays no other.
 */
export function mayDelay(fault: Fault, groupid: number): boolean {
  switch (fault.kind) {
    case 'xmin':
    case 'open transaction':
    case 'notifications':
      return false;
    case 'rows':
      return fault.count >= MANY_ROWS;
    case 'operator transaction':
    case 'stop worker':
    case 'worker link':
      return fault.groupid === groupid;
    case 'terminate':
    case 'cancel':
      return fault.groupid === 0 || fault.groupid === groupid;
    case 'lock':
      return delaysAll(fault.place) || (isOfGroup(fault.place) && fault.groupid === groupid);
    default:
      return true;
  }
}

type Place = (Fault & { readonly kind: 'lock' })['place'];

function delaysAll(place: Place): boolean {
  return place === 'table mpp_tasks' || place === 'row of mpp_leadership';
}

function isOfGroup(place: Place): boolean {
  return place === 'tasks of the group' || place === 'row of mpp_groups';
}
