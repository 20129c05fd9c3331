# fish completion of orch: orch completion fish | source

function __orch_words
    set -l given (commandline -opc)[2..-1]
    set -l current (commandline -ct)
    if test "$given[1]" = kubectl
        # The last line tells how to complete, those before it are words and their meaning.
        orch kubectl __complete $given[2..-1] "$current" 2>/dev/null | string match -rv '^:[0-9]*$'
    else
        set -l dash
        string match -q -- '-*' "$current"; and set dash -
        orch $given $dash --generate-bash-completion 2>/dev/null | string replace -r ':.*' ''
    end
end

complete -c orch -f -a '(__orch_words)'
