/**
 * The advisory locks of this package, as (classid, objid). They belong to one database, as
 * pg_dist_node does. The migrations have the same numbers in the functions and views that read them.
 */

/** classid of "this session works on a group": objid is the groupid; transaction-level. */
export const GROUP_LOCK = 1297109064;
/** classid of "this session reports for a group": objid is the groupid; transaction-level. */
export const REPORT_LOCK = 1297109065;
/**
 * classid of "this controller is the active one" in versions before the table mpp_leadership: objid 0;
 * session-level. mpp_older_leader_pid() looks for it; only sessions of members of mpp_controller count.
 * Their group locks were (GROUP_LOCK, groupid).
 */
export const OLDER_LEADER_LOCK = 1297109066;
/**
 * classid of "this controller leads", for the schema whose oid has these lower 16 bits: objid is the random
 * key in mpp_leadership; session-level. SQL has it in mpp_leader_lock_class().
 */
export const LEADER_LOCK_FIRST = 1297154048;
/** classid of "this session sets the database up": objid 0; session-level. */
export const BOOTSTRAP_LOCK = 1297109067;
