#compdef orch
# zsh completion of orch: source <(orch completion zsh)

_orch() {
	local -a given found
	given=("${(@)words[2,CURRENT]}")
	if [[ ${given[1]} == kubectl ]]; then
		# The last line tells how to complete, those before it are words and their meaning.
		found=("${(@f)$(orch kubectl __complete "${(@)given[2,-1]}" 2>/dev/null | sed '/^:[0-9]*$/d; s/\t.*//')}")
	else
		local dash=()
		[[ ${given[-1]} == -* ]] && dash=(-)
		found=("${(@f)$(orch "${(@)given[1,-2]}" "${dash[@]}" --generate-bash-completion 2>/dev/null | sed 's/:.*//')}")
	fi
	found=(${found:#})
	if (( ${#found} )); then compadd -a found; else _files; fi
}

compdef _orch orch
