# Run as `sh -c THIS supervisor DIRECTORY`: starts and kills the programs that DIRECTORY/NAME.run describes, one command a
# line. When nobody can send commands any more, kills them all and removes DIRECTORY. Each program is killed by the kernel
# when this shell is.
directory=$1
end() {
    [ -n "$1" ] || return 0
    kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}
while read -r verb name; do
    case $verb in
        start)
            setpriv --pdeathsig KILL sh "$directory/$name.run" </dev/null >>"$directory/$name.log" 2>&1 &
            eval "pid_$name=$!"
            running="$running $name"
            echo started ;;
        kill)
            eval "end \"\$pid_$name\"; pid_$name="
            echo killed ;;
        alive)
            eval "kill -0 \"\$pid_$name\"" 2>/dev/null && echo yes || echo no ;;
    esac
done
for name in $running; do
    eval "end \"\$pid_$name\"; pid_$name="
done
rm -rf "$directory"
