# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Completion of exmap-top's options in bash.
_exmap_top()
{
	local options="--batch --csv --delay= --help --prometheus --rounds="

	# The value of an option is a number, which has no completion.
	case $2 in
	-*) mapfile -t COMPREPLY < <(compgen -W "$options" -- "$2") ;;
	*) COMPREPLY=() ;;
	esac
	[[ ${COMPREPLY-} != *= ]] || compopt -o nospace
}
complete -F _exmap_top exmap-top
