# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# The shared beginning of tests/all and of the tests in tests/shell, which source this file first.
# To tools/prologue.sh it adds results in TAP, a temporary directory that goes away at the end, and
# programs that are found by the names of their tests. It sets
#
#	$temporary	the directory
#	$slowdown	how many times longer everything takes here: $EXMAP_TEST_SLOWDOWN (vm/init)
#	$once		no if what vm/check runs on one kernel only is left out: $EXMAP_TEST_ONCE
#	$examples	no if tests of programs, not of the module, are left out: if $once is no, and on
#			a slow machine, whose kernel looks for bugs of the module
#	$failed		1 if a test has failed: then the script's exit status is 1
#
# Tests change the machine and need root.
# shellcheck source=tools/prologue.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/prologue.sh"

slowdown=${EXMAP_TEST_SLOWDOWN:-1}
once=${EXMAP_TEST_ONCE:-yes}
examples=$once
[ "$slowdown" = 1 ] || examples=no
failed=0
temporary=$(mktemp -d)
undo=()

# at_exit COMMAND...: run the command at the end of the script; the last one given runs first
at_exit()
{
	undo=("${*@Q}" "${undo[@]}")
}

# shellcheck disable=SC2317  # the trap calls it
finish()
{
	local status=$? command
	set +e
	for command in "${undo[@]}"; do
		eval "$command"
	done
	rm -rf --one-file-system "$temporary"
	[ "$status" != 0 ] || status=$failed
	exit "$status"
}
trap finish EXIT

# check NAME COMMAND...: a test that passes if the command succeeds; its output is printed if it
# fails. The command runs in a subshell, and "set -e" has no effect in it.
check()
{
	local name=$1 output
	shift
	if output=$("$@" 2>&1); then
		echo "ok - $name"
	else
		echo "not ok - $name"
		echo "# ${output//$'\n'/$'\n'# }"
		failed=1
	fi
}

# skip NAME REASON: a test that cannot run here
skip()
{
	echo "ok - $1 # SKIP $2"
}

# only_programs NAME: end a test of programs, not of the module, if it does not run on this kernel
only_programs()
{
	[ "$examples" = no ] || return 0
	skip "$1" "it tests programs, which is done on another kernel"
	exit
}

# test_programs: print the test programs, one a line. Every source in tests/ is one; those of
# exmap_user.h are also built as C++, which is run along with other tests of programs.
test_programs()
{
	local source
	for source in test-exmap.c tests/*.c; do
		echo "./${source%.c}"
		[[ $source != tests/user* || $examples = no ]] || echo "./${source%.c}-cxx"
	done
}

# run_program WHERE PROGRAM [TEST...]: run the tests (default all) and print their results. WHERE,
# if it is not empty, is printed behind their names.
run_program()
{
	local status
	"${@:2}" </dev/null | sed -u "/ passed, /d; /ok /s|\$|${1:+ on $1}|" || {
		status=${PIPESTATUS[0]}
		failed=1
		[ "$status" = 1 ] || echo "not ok - ${*:2} (it ended with status $status)"
	}
}

# list_tests: print a line "PROGRAM TEST" for each test of each program
list_tests()
{
	local program
	# Only the first call asks the programs.
	[ -e "$temporary/tests" ] || test_programs | while read -r program; do
		"$program" --list | sed "s|^|$program |"
	done >"$temporary/tests"
	cat "$temporary/tests"
}

# run_tests WHERE PATTERN...: run the tests whose whole names match one of the patterns (extended
# regular expressions), of whatever programs they are. It is a failure if a pattern matches no test.
run_tests()
{
	local where=$1 pattern program programs tests found=
	shift
	for pattern; do
		list_tests | grep -E " ($pattern)\$" >>"$temporary/found" || {
			echo "not ok - no test is called $pattern"
			failed=1
		}
	done
	# In the order of the programs, and of their tests, each once.
	found=$(list_tests | grep -Fx -f "$temporary/found") || :
	rm -f "$temporary/found"
	[ -n "$found" ] || return 0
	mapfile -t programs < <(cut -d ' ' -f 1 <<<"$found" | uniq)
	for program in "${programs[@]}"; do
		mapfile -t tests < <(sed -n "s|^$program ||p" <<<"$found")
		run_program "$where" "$program" "${tests[@]}"
	done
}
