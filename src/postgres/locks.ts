/**
 * The advisory locks of this package, as (classid, objid). They belong to one database, as
 * pg_dist_node does. The migrations have the same numbers in the functions and views that read them.
 */

/** classid of "this session works on a group": objid is the groupid; transaction-level. */
export const GROUP_LOCK = 1297109064;
/** classid of "this session reports for a group": objid is the groupid; transaction-level. */
export const REPORT_LOCK = 1297109065;
/** classid of "this controller is the active one": objid 0; session-level. */
export const LEADER_LOCK = 1297109066;
/** classid of "this session sets the database up": objid 0; session-level. */
export const BOOTSTRAP_LOCK = 1297109067;
