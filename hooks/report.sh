# shellcheck shell=sh
# The scripts that read this file use what it sets.
# shellcheck disable=SC2034
# What the hooks of this folder share. Each way through it ends the script: with 0, in bounded time, after one line.
# Values reach SQL as variables of psql, and the password is in no argument: the server is that of a service of libpq.

# Sets group, host, port, success, timeout, schema, service and word1 to word3.
read_arguments() {
  group='' host='' port=5432 success='' timeout=75s schema=public service=mpp
  word1='' word2='' word3=''
  while [ $# -gt 0 ]; do
    case $1 in
      --group | --host | --port | --success | --timeout | --schema | --service)
        if [ $# -lt 2 ]; then complain "nothing reported: $1 has no value"; fi
        case $1 in
          --group) group=$2 ;;
          --host) host=$2 ;;
          --port) port=$2 ;;
          --success) success=$2 ;;
          --timeout) timeout=$2 ;;
          --schema) schema=$2 ;;
          --service) service=$2 ;;
        esac
        shift 2
        ;;
      --*) complain "nothing reported: unknown option $1" ;;
      *)
        if [ -z "$word1" ]; then
          word1=$1
        elif [ -z "$word2" ]; then
          word2=$1
        elif [ -z "$word3" ]; then
          word3=$1
        fi
        shift
        ;;
    esac
  done
  if [ -z "$host" ]; then complain "nothing reported: --host is missing; give the host of this node"; fi
  need_number --group "$group"
  need_number --port "$port"
  case $service in
    '' | *[!A-Za-z0-9_.-]*) complain "nothing reported: --service cannot be \"$service\"" ;;
  esac
  for program in psql timeout; do
    if ! command -v "$program" >/dev/null 2>&1; then
      complain "nothing reported: $program is not on the PATH of this hook"
    fi
  done
}

need_number() {
  case $2 in
    '' | *[!0-9]*) complain "nothing reported: $1 cannot be \"$2\"; give a number" ;;
  esac
}

# Ends the hook, when all is well.
finish() {
  printf '%s\n' "$(printf '%s' "$1" | tr '\n\t' '  ')"
  exit 0
}

# Ends the hook, when it is not.
complain() {
  printf 'mpp-controller hook: %s\n' "$(printf '%s' "$1" | tr '\n\t' '  ')" >&2
  exit 0
}

# Runs statements of the standard input: SECONDS, the connection, then more arguments of psql.
# Sets answer to what they print, or to the error.
run_sql() {
  seconds=$1
  connection=$2
  shift 2
  answer=$(PGCONNECT_TIMEOUT=2 PGAPPNAME='mpp-controller hook' \
    timeout -k 1 "$seconds" psql -X -q -A -t -w -v ON_ERROR_STOP=1 -d "$connection" "$@" 2>&1)
  code=$?
  case $code in
    0) return 0 ;;
    124 | 137) answer="no answer within $seconds s" ;;
  esac
  return 1
}

# Reports and ends the hook: EVENT HOST PORT WAIT TIMEOUT ROLE STATE. Without EVENT only what the node is.
report() {
  event=$1 node=$2 node_port=$3 wait=$4
  limit=5
  if [ "$wait" -gt 0 ]; then limit=$((wait + 1)); fi
  is_task=on
  if [ -z "$event" ]; then is_task=off; fi
  is_member=on
  if [ -z "$6" ]; then is_member=off; fi
  # Locks: the task's own row, or the node's in mpp_members, until each statement ends.
  run_sql "$limit" "service=$service" -v schema="$schema" -v event="$event" -v group="$group" \
    -v host="$node" -v port="$node_port" -v wait="$wait s" -v timeout="$5" -v role="$6" -v state="$7" \
    -v is_task="$is_task" -v is_member="$is_member" <<'SQL' || complain "$(unreported)"
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = error;
SET statement_timeout = '4s';
\if :is_task
SELECT :"schema".mpp_submit(event => :'event'::text, groupid => :'group'::integer, nodename => :'host'::text,
    nodeport => :'port'::integer, timeout => nullif(:'timeout'::text, '')::interval) AS id \gset
\endif
\if :is_member
SELECT :"schema".mpp_report(:'group'::integer, :'host'::text, :'port'::integer, :'role'::text, :'state'::text) AS nothing \gset
\endif
\if :is_task
SET statement_timeout = 0;
CALL :"schema".mpp_wait(:'id'::bigint, :'wait'::interval, NULL::text) \gset
SELECT pg_catalog.concat_ws(' ', :'id', t.status, t.reason) FROM :"schema".mpp_task_status(:'id'::bigint) AS t;
\endif
SQL
  member="$node:$node_port is reported as $6, $7"
  if [ -z "$event" ]; then finish "$member"; fi
  id=${answer%% *}
  rest=${answer#* }
  status=${rest%% *}
  reason=${rest#"$status"}
  line="$event of $node:$node_port is task $id: $status${reason:+ (${reason# })}"
  if [ -n "$6" ]; then line="$line; $member"; fi
  case $wait/$status in
    0/* | */holding | */done) finish "$line" ;;
    *) complain "$line; see mpp-controller status" ;;
  esac
}

unreported() {
  printf '%s' "$event $node:$node_port may not be reported: $answer; see mpp-controller status, or report again, which does no harm"
}

# Sets standing to t for a standby, f for a primary.
ask() {
  run_sql 1 "service=$service target_session_attrs=any" -h "$1" -p "$2" <<'SQL'
SELECT pg_catalog.pg_is_in_recovery();
SQL
  asked=$?
  standing=$answer
  return $asked
}

# Ends the hook unless the node is a primary.
need_primary() {
  if ! ask "$1" "$2"; then
    complain "nothing reported: $1:$2 does not say whether it is a primary: $answer"
  fi
  if [ "$standing" != f ]; then finish "nothing reported: $1:$2 is a standby"; fi
}

# Every node is stopped through the same hook: only of a primary is it reported.
hold_before_demote() {
  need_primary "$host" "$port"
  report before_demote "$host" "$port" 5 '' '' ''
}

# The same node is the primary again; a standby that is back is none.
back() {
  need_primary "$1" "$2"
  report after_promote "$1" "$2" 0 '' '' ''
}

# A standby may follow another standby: what it has lost need not be the primary.
suspect() {
  if timeout -k 1 2 pg_isready -q -t 1 -h "$1" -p "$2" -d "service=$service" 2>/dev/null; then
    finish "nothing reported: $1:$2 answers, so it is no suspect"
  fi
  report suspect "$1" "$2" 0 "$timeout" '' ''
}

# Sets registered_host and registered_port to the primary that pg_dist_node has.
find_registered() {
  # Locks: pg_dist_node for reading, until the statement ends.
  run_sql 3 "service=$service" -v group="$group" <<'SQL' || complain "nothing reported: $answer"
SELECT n.nodename || ' ' || n.nodeport
FROM pg_catalog.pg_dist_node AS n
WHERE n.groupid = :'group'::integer AND n.noderole = 'primary';
SQL
  registered_host=${answer%% *}
  registered_port=${answer##* }
  if [ -z "$answer" ]; then complain "nothing reported: group $group has no primary in pg_dist_node"; fi
}
