#!/bin/sh
# Stands in for tsim-quick, tsim-detailed and tsim check. SITE is replaced by the test's directory; the lab's
# name says what to do. It notes its start and end in SITE/log, so that a test sees who ran when.
args=$*
while [ $# -gt 0 ]; do
    case $1 in
        --lab) lab=$2 ;;
        --run-id) id=$2 ;;
        --dscp) dscp=$2 ;;
        --progress) progress=$2 ;;
        -s) from=$2 ;;
        -d) to=$2 ;;
        --out) out=$2 ;;
        -P | --routers | --config) ;;
        check)
            lab=$2
            [ -s "$3" ] || exit 2
            shift 3
            continue
            ;;
        --answers) answers=$2 ;;
        -o) html=${html:-$2} text=$2 ;;
        --sent)
            shift
            continue
            ;;
        --json | --trust-facts | --patient | --*=*)
            shift
            continue
            ;;
        *)
            echo "error: unexpected argument $1" >&2
            exit 2
            ;;
    esac
    shift 2
done
echo '{"percent":0,"phase":"waiting"}' >>"$progress"
[ "$lab" = stubborn ] && trap '' TERM
echo "start $id $$ ${dscp:-none}" >>SITE/log
case $lab in
    # Opening blocks until the test opens the other end.
    gate | stubborn) read -r _ <"SITE/gate" ;;
    fail)
        echo "error: no such lab" >&2
        exit 4
        ;;
    crash)
        [ -z "${out:-}" ] || echo '{"port":80,"result":"YES"}' >"$out/measured.jsonl"
        kill -KILL $$
        ;;
    brim) while echo '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"'; do :; done; exit 4 ;;
    talk) while :; do echo '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"'; done ;;
    env) env >SITE/env ;;
    args) echo "$args" >SITE/args ;;
esac
echo '{"percent":60,"phase":"probing"}' >>"$progress"
if [ -n "${answers:-}" ]; then
    # shellcheck disable=SC1091 # the test fills in where the repository is
    . "REPO/tests/browser/check.sh"
    say_check "$lab" "$id" "$answers" "$html" "$text"
    found=$?
    echo '{"percent":100,"phase":"done"}' >>"$progress"
    echo "end $id" >>SITE/log
    exit $found
fi
cat <<RESULT
{"source":"$from","destination":"$to","dscp":${dscp:-0},"run_id":"$id","backend":"nft","routers":[
{"name":"hq-gw","iface_in":"eth0","iface_out":"eth1","next_hop":null,"services":[
{"port":80,"protocol":"tcp","result":"YES"},
{"port":81,"protocol":"tcp","result":"NO","reason":"dropped by policy"}]}],
"warnings":[],"timing_ms":{"resolve":0,"lock":0,"hosts":0,"install":0,"probe":0,"read":0,"explain":0,"undo":0,"total":0}}
RESULT
if [ -n "${out:-}" ]; then
    mkdir "$out"
    echo "<!doctype html><title>$id</title>" >"$out/report.html"
    echo "evidence of $id" >"$out/report.txt"
fi
echo '{"percent":100,"phase":"done"}' >>"$progress"
echo "end $id" >>SITE/log
exit 1
