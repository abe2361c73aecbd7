/**
 * The advisory locks of this package, as (classid, objid). They belong to one database, as
 * pg_dist_node does. The migrations have the same numbers in the functions and views that read them.
 */

/**
 * classids in versions before the tables mpp_leadership and mpp_groups: "this controller is the active one",
 * with objid 0, and "this session works on a group", with its groupid. mpp_older_leader_pid() looks for
 * them; only sessions of members of mpp_controller count.
 */
export const OLDER_LEADER_LOCK = 1297109066;
export const OLDER_GROUP_LOCK = 1297109064;
/**
 * classid of "this controller leads", for the schema whose oid has these lower 16 bits: objid is the random
 * key in mpp_leadership; session-level. SQL has it in mpp_leader_lock_class().
 */
export const LEADER_LOCK_FIRST = 1297154048;
/** classid of "this session sets the database up": objid 0; session-level. */
export const BOOTSTRAP_LOCK = 1297109067;
