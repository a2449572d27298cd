# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of pinlease(1) for bash. Processes and leases are asked of pinleased, as "pinlease ps" does.

_pinlease_options() {
	case $1 in
	demo) echo --dir= --html= --tmpfs= ;;
	doctor) echo --dir= --iommufd= --json --markdown --vfio= --without ;;
	p2p) echo --json --root= ;;
	pins) echo --buffer= --bytes --delay= --exact --file= --json --kind= --pid= --sort= --trace --watch ;;
	ps) echo --bytes --file= --json --pid= --sort= ;;
	recall) echo --bytes --file= --force --grace= --lease= --no-wait --pid= --range= --wait ;;
	run) echo --no-io-uring ;;
	status) echo --bytes --json ;;
	top) echo --by= --bytes --delay= --once ;;
	trace) echo --bytes --file= --json --pid= ;;
	esac
	echo --help --usage --version
}

# What follows an option: a file, a directory, or words.
_pinlease_values() {
	case $1 in
	--pid | -p) pinlease ps --json 2>/dev/null | sed -n 's/^ *"pid":\([0-9]*\),$/\1/p' | sort -un ;;
	--lease | -l) pinlease ps --json 2>/dev/null |
		sed -n 's/^ *"pid":\([0-9]*\),$/\1/p; s/^ *"lease":\([0-9]*\),$/:\1/p' | sed 'N;s/\n//' ;;
	--sort | -s) if [[ $2 == pins ]]; then echo bytes pid pins; else echo pid age bytes; fi ;;
	--by) echo holder file device ;;
	--kind) echo io_uring rdma vfio iommufd af_xdp dma-buf vmsplice direct-io other ;;
	-k) if [[ $2 == pins ]]; then _pinlease_values --kind; else _pinlease_values --by; fi ;;
	esac
}

_pinlease_pci() {
	(cd /sys/bus/pci/devices 2>/dev/null && echo *)
	(cd /sys/class/net 2>/dev/null && echo *)
	(cd /sys/class/infiniband 2>/dev/null && echo *)
}

_pinlease() {
	local line=${COMP_LINE:0:COMP_POINT} words word last="" reply before
	read -ra words <<<"$line"
	word=${line##*[[:space:]]}
	COMPREPLY=()
	if [[ -n $word ]]; then
		unset 'words[${#words[@]}-1]'
	fi
	if [[ ${#words[@]} -gt 2 ]]; then
		last=${words[${#words[@]}-1]}
	fi
	before=$word # what bash has already, of a word that it takes for several
	if [[ $word == --*=* ]]; then
		last=${word%%=*}
		word=${word#*=}
	elif [[ $last == *=* || $last == --no-wait || $last == --json || $last == --bytes ]]; then
		last=""
	fi
	if [[ ${#words[@]} -lt 2 ]]; then
		mapfile -t COMPREPLY < <(compgen -W "demo doctor p2p pins ps recall run sources status top trace --help --usage --version" -- "$word")
		return
	fi
	if [[ ${words[1]} == p2p && $word != -* && $last != --root ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$(_pinlease_pci)" -- "$word")
		return
	fi
	if [[ ${words[1]} == run && $word != -* ]]; then
		mapfile -t COMPREPLY < <(compgen -c -- "$word")
		return
	fi
	case $last in
	--file | -f | --html)
		compopt -o filenames 2>/dev/null || :
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		return
		;;
	--dir | --tmpfs | --root)
		compopt -o filenames 2>/dev/null || :
		mapfile -t COMPREPLY < <(compgen -d -- "$word")
		return
		;;
	--pid | -p | --lease | -l | --sort | -s | --by | --kind | -k)
		mapfile -t COMPREPLY < <(compgen -W "$(_pinlease_values "$last" "${words[1]}")" -- "$word")
		if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
			COMPREPLY=("${COMPREPLY[@]#"${word%:*}:"}")
		fi
		return
		;;
	--grace | -g | --range | -r | --delay | -d | --buffer) return ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$(_pinlease_options "${words[1]}")" -- "$before")
	for reply in "${COMPREPLY[@]}"; do
		if [[ $reply == *= ]]; then
			compopt -o nospace 2>/dev/null || :
		fi
	done
}

complete -F _pinlease pinlease
