# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion for drover. What can stand where is drover's own to say (drover __complete); it takes a second at the
# most, whatever droverd does. Needs bash 4.4. The package bash-completion loads it at first use; else: source drover.bash

# bash takes words apart at '=' and ':' too. Puts the pieces behind the command's name that belong together into `words`;
# of the last one, $1 is what stands before the cursor.
_drover_words()
{
  local rest=$COMP_LINE gap piece i
  words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    gap=${rest%%[![:blank:]]*}
    rest=${rest#"$gap"}
    piece=${COMP_WORDS[i]}
    rest=${rest#"$piece"}
    ((i < COMP_CWORD)) || [[ $piece == [=:]* ]] || piece=$1
    if ((i > 1)) && [[ -z $gap && -n ${COMP_WORDS[i]} ]]; then
      words[${#words[@]} - 1]+=$piece
    elif ((i > 0)); then
      words+=("$piece")
    fi
  done
  words=("${words[@]//[\"\'\\]/}") # as the shell would hand them over; nothing is expanded
}

_drover()
{
  local program=${1/#\~\//$HOME/} words line before last
  COMPREPLY=()
  _drover_words "$2"
  # Of the last word, bash replaces what stands behind the last of its word breaks.
  last=${words[${#words[@]} - 1]}
  before=${last%"${last##*[=:]}"}
  [[ $COMP_WORDBREAKS == *:* ]] || before=${last%"${last##*=}"}
  while IFS= read -r line; do
    case $line in
    :files)
      compopt -o filenames 2>/dev/null
      mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "${last#"$before"}")
      ;;
    :dirs)
      compopt -o filenames 2>/dev/null
      mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "${last#"$before"}")
      ;;
    :*) ;; # for a later drover's wishes
    *)
      line=${line%%$'\t'*}
      [[ $line == *[^[:alnum:]_.,:=@%+/-]* ]] && printf -v line %q "$line" # a name may be anything
      COMPREPLY+=("${line#"$before"}")
      ;;
    esac
  done < <("$program" __complete "${words[@]}" 2>/dev/null)
}

complete -F _drover drover
