#!/bin/sh
# The same as `mpp-controller hook patroni`, with psql alone: docs/hooks/patroni.md. Always ends with 0.

file=$(dirname -- "$0")/report.sh
# A missing file would end the shell with another exit code.
if [ ! -r "$file" ]; then
  echo "mpp-controller hook: $file is missing; copy it beside $0" >&2
  exit 0
fi
# shellcheck source=hooks/report.sh
. "$file"
read_arguments "$@"

moment=$word1
role=$word2
if [ "$word2" = "$moment" ]; then role=$word3; fi

case $moment in
  before_stop) hold_before_demote ;;
  pre_promote) report before_promote "$host" "$port" 3 '' '' '' ;;
  on_role_change | on_start | on_restart)
    case $role in
      master | primary | promoted) report after_promote "$host" "$port" 0 '' primary running ;;
      replica | demoted | standby_leader) report '' "$host" "$port" 0 '' replica running ;;
      uninitialized) finish "nothing reported: the node is uninitialized" ;;
    esac
    ;;
  on_stop)
    case $role in
      master | primary | promoted) report '' "$host" "$port" 0 '' primary stopped ;;
      replica | demoted | standby_leader) report '' "$host" "$port" 0 '' replica stopped ;;
      uninitialized) finish "nothing reported: the node is uninitialized" ;;
    esac
    ;;
  on_reload) finish "nothing reported: on_reload changes no role" ;;
esac
complain "nothing reported: Patroni has no moment \"$moment\" with the role \"$role\"; see docs/hooks/patroni.md"
