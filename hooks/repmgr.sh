#!/bin/sh
# The same as `mpp-controller hook repmgr`, with psql alone: docs/hooks/repmgr.md. Always ends with 0.

file=$(dirname -- "$0")/report.sh
# A missing file would end the shell with another exit code.
if [ ! -r "$file" ]; then
  echo "mpp-controller hook: $file is missing; copy it beside $0" >&2
  exit 0
fi
# shellcheck source=hooks/report.sh
. "$file"
read_arguments "$@"

event=$word1
case $event in
  service_stop_command) hold_before_demote ;;
  promote_command) report before_promote "$host" "$port" 3 '' '' '' ;;
esac
case $success in
  0 | 1) ;;
  *) complain "nothing reported: --success is missing, or neither 0 nor 1; give --success %s for the event \"$event\"" ;;
esac

case $event in
  repmgrd_local_disconnect) suspect "$host" "$port" ;;
  repmgrd_local_reconnect) back "$host" "$port" ;;
  repmgrd_upstream_disconnect)
    find_registered
    suspect "$registered_host" "$registered_port"
    ;;
  repmgrd_upstream_reconnect)
    find_registered
    back "$registered_host" "$registered_port"
    ;;
  standby_promote | standby_follow | standby_register | node_rejoin)
    if [ "$success" = 0 ]; then finish "nothing reported: $event has failed"; fi
    if [ "$event" = standby_promote ]; then
      report after_promote "$host" "$port" 0 '' primary running
    fi
    report '' "$host" "$port" 0 '' replica running
    ;;
esac
finish "nothing reported: $event of repmgr says nothing of the primary"
