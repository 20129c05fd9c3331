# bash completion of orch: source <(orch completion bash)

_orch_words() { # prints the words that may come next, one a line
	if [ "${1:-}" = kubectl ]; then
		shift
		# The last line tells how to complete, those before it are words and their meaning.
		orch kubectl __complete "$@" 2>/dev/null | sed '/^:[0-9]*$/d; s/\t.*//'
	else
		set -- "${@:1:$#-1}"
		orch "$@" ${_orch_dash:+-} --generate-bash-completion 2>/dev/null | sed 's/:.*//'
	fi
}

_orch() {
	local cur=${COMP_WORDS[COMP_CWORD]} _orch_dash=
	case $cur in -*) _orch_dash=1 ;; esac
	local IFS=$'\n'
	COMPREPLY=($(compgen -W "$(_orch_words "${COMP_WORDS[@]:1:COMP_CWORD}")" -- "$cur"))
}

complete -o default -F _orch orch
