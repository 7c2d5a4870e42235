#!/bin/sh
# Stands in for tsim-quick, tsim-detailed, tsim check and tsim matrix. It waits at 30 and 70 percent until the test makes
# SITE/steps/RUN.30 and RUN.70; labs named `fast` and `chain` do not wait.
while [ $# -gt 0 ]; do
    case $1 in
        --lab) lab=$2 ;;
        --run-id) id=$2 ;;
        --dscp) dscp=$2 ;;
        --progress) progress=$2 ;;
        --out) out=$2 ;;
        check | matrix) kind=$1 lab=$2 ;;
        --answers) answers=$2 ;;
        -o) html=${html:-$2} text=$2 ;;
        -s) from=$2 ;;
        -d) to=$2 ;;
    esac
    shift
done
say() { printf '{"percent":%s,"phase":"%s"}\n' "$1" "$2" >>"$progress"; }
wait_for() {
    case $lab in fast | chain) return ;; esac
    # A test that is over took its directory along.
    while [ -d SITE ] && [ ! -e "SITE/steps/$id.$1" ]; do sleep 0.05; done
}
say 5 "waiting for locks"
wait_for 30
say 30 "installing taps"
wait_for 70
say 70 probing
case $lab in
    broken)
        echo "error: router hq-gw: cannot open its namespace: No such file or directory (os error 2)" >&2
        exit 4
        ;;
esac
if [ -n "${kind:-}" ]; then
    # shellcheck disable=SC1091 # the test fills in where the repository is
    . "REPO/tests/browser/check.sh"
    case $kind in
        check) say_check "$lab" "$id" "$answers" "$html" "$text" ;;
        # A matrix is the answers and nothing else.
        matrix) say_check "$lab" "$id" answers "$html" "$text" >rules; found=$?; cat answers; (exit $found) ;;
    esac
    found=$?
    say 100 "done"
    exit $found
fi
if [ "$lab" = chain ]; then
    # Through thirty routers; the last one drops what is not 80.
    legs='' routers=''
    for n in 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        in='"eth0"' out='"eth1"'
        [ $n = 01 ] && in='"lan0"'
        [ $n = 30 ] && out='"lan0"'
        legs="$legs${legs:+,}{\"router\":\"r$n\",\"iface_in\":$in,\"iface_out\":$out,\"next_hop\":null,\"source\":\"$from\",\"destination\":\"$to\",\"sport\":40000,\"dport\":80}"
        routers="$routers${routers:+,}{\"name\":\"r$n\",\"iface_in\":$in,\"iface_out\":$out,\"next_hop\":null,\"services\":[{\"port\":80,\"protocol\":\"tcp\",\"result\":\"YES\"},{\"port\":22,\"protocol\":\"tcp\",\"result\":\"YES\"}]}"
    done
    cat <<RESULT
{"source":"$from","destination":"$to","dscp":${dscp:-0},"run_id":"$id","backend":"nft","scope":"whole","end_to_end":[
{"port":80,"protocol":"tcp","result":"YES","router":"r30","end":"delivered","way":[$legs]},
{"port":22,"protocol":"tcp","result":"NO","reason":"policy DROP of chain FORWARD","router":"r02","end":"stopped","way":[
{"router":"r01","iface_in":"lan0","iface_out":"eth1","next_hop":null,"source":"$from","destination":"$to","sport":40000,"dport":22},
{"router":"r02","iface_in":"eth0","iface_out":null,"next_hop":null,"source":"$from","destination":"$to","sport":40000,"dport":22}]}],
"routers":[$routers],"warnings":[],"timing_ms":{"total":3.2}}
RESULT
elif [ "${0##*/}" = tsim-detailed ]; then
    mkdir "$out"
    cat >"$out/443_tcp.json" <<EVIDENCE
{"run_id":"$id","summary":{"destination_port":443,"protocol":"tcp"},"reachability_tests":{"service":{"result":{"tests":[
{"source_host":"$id-src","via_router":"hq-gw","incoming_interface":"eth1","outgoing_interface":"eth0","status":"OK","message":"connected in 0.4 ms","nat":[],"warnings":[],"trace":[],
"allowing_rules":[{"family":"ip","table":"filter","chain":"FORWARD","position":12,"rule":"-A FORWARD -p tcp -m tcp --dport 443 -j ACCEPT","action":"accept","packets_before":10,"packets_after":16,"packet_increase":6}],"blocking_rules":[],"touched_rules":[]},
{"source_host":"$id-src","via_router":"br-gw","incoming_interface":"wg0","outgoing_interface":"eth1","status":"TIMEOUT","message":"no answer within 2 s","nat":[{"direction":"request","before":{"source":"10.1.1.1","source_port":40000,"destination":"10.2.1.2","destination_port":443},"after":{"source":"10.1.1.1","source_port":40000,"destination":"10.2.1.9","destination_port":8443}}],"warnings":[],
"trace":[{"direction":"request","packet":"tcp SYN","count":3,"end":"dropped","passed":false,"steps":[{"hook":"prerouting","family":"ip","table":"mangle","chain":"PREROUTING","rule":"policy accept","verdict":"accept"},{"hook":"forward","family":"ip","table":"filter","chain":"FORWARD","rule":"-A FORWARD -s 10.1.0.0/16 -j DROP","verdict":"drop"}]}],
"allowing_rules":[],"blocking_rules":[{"family":"ip","table":"filter","chain":"FORWARD","position":59,"rule":"-A FORWARD -s 10.1.0.0/16 -j DROP","action":"drop","packets_before":3,"packets_after":6,"packet_increase":3}],"touched_rules":[]}]}}}}
EVIDENCE
    echo "<!doctype html><title>$id</title>" >"$out/report.html"
    cat <<RESULT
{"run_id":"$id","summary":{"yes":0,"no":1,"unknown":0},"warnings":[],"timing_ms":{"total":2040.5},
"end_to_end":[{"port":443,"protocol":"tcp","result":"NO","status":"TIMEOUT","reason":"dropped by rule 59 of chain FORWARD","router":"br-gw","end":"stopped","answer":[],"way":[
{"router":"hq-gw","iface_in":"eth1","iface_out":"eth0","next_hop":"203.0.113.1","source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443},
{"router":"br-gw","iface_in":"wg0","iface_out":null,"next_hop":null,"source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443}]}],
"routers":[{"name":"hq-gw","iface_in":"eth1","iface_out":"eth0","next_hop":"203.0.113.1","services":[{"port":443,"protocol":"tcp","result":"YES"}]},
{"name":"br-gw","iface_in":"wg0","iface_out":"eth1","next_hop":null,"services":[{"port":443,"protocol":"tcp","result":"NO","reason":"dropped by rule 59 of chain FORWARD"}]}],
"services":[]}
RESULT
else
    cat <<RESULT
{"source":"$from","destination":"$to","dscp":${dscp:-0},"run_id":"$id","backend":"nft","scope":"whole",
"end_to_end":[
{"port":22,"protocol":"tcp","result":"NO","reason":"<b>policy</b> DROP of chain FORWARD","router":"br-gw","end":"stopped","way":[
{"router":"hq-gw","iface_in":"eth1","iface_out":"wg0","next_hop":"10.100.1.2","source":"$from","destination":"$to","sport":40000,"dport":22},
{"router":"br-gw","iface_in":"wg0","iface_out":null,"next_hop":null,"source":"$from","destination":"$to","sport":40000,"dport":22}]},
{"port":80,"protocol":"tcp","result":"YES","router":"br-gw","end":"delivered","way":[]},
{"port":443,"protocol":"tcp","result":"YES","router":"br-gw","end":"delivered","way":[]},
{"port":53,"protocol":"udp","result":"NO","reason":"iptables filter FORWARD rule 12: -p udp --dport 53 -j DROP","router":"hq-gw","end":"stopped","way":[]},
{"port":161,"protocol":"udp","result":"UNKNOWN","reason":"rate-limited: 5/s on rule 3 \u202eTPECCA\u001b[2J","router":"br-gw","end":"not_known","way":[]}],
"routers":[
{"name":"hq-gw","iface_in":"eth1","iface_out":"wg0","next_hop":"10.100.1.2","services":[
{"port":22,"protocol":"tcp","result":"YES"},{"port":80,"protocol":"tcp","result":"YES"},{"port":443,"protocol":"tcp","result":"YES"},{"port":53,"protocol":"udp","result":"NO","reason":"iptables filter FORWARD rule 12: -p udp --dport 53 -j DROP"},{"port":161,"protocol":"udp","result":"YES"}]},
{"name":"br-gw","iface_in":"wg0","iface_out":"eth1","next_hop":null,"services":[
{"port":22,"protocol":"tcp","result":"NO","reason":"<b>policy</b> DROP of chain FORWARD"},{"port":80,"protocol":"tcp","result":"YES"},{"port":443,"protocol":"tcp","result":"YES"},{"port":53,"protocol":"udp","result":"UNKNOWN","reached":false},{"port":161,"protocol":"udp","result":"UNKNOWN","reason":"rate-limited: 5/s on rule 3 \u202eTPECCA\u001b[2J"}]}],
"warnings":["br-gw: 2 rules could not be loaded"],
"timing_ms":{"resolve":0.4,"lock":0.1,"hosts":1.2,"install":0.3,"probe":0.2,"read":0.1,"explain":0.5,"undo":0.4,"total":3.2}}
RESULT
fi
say 100 "done"
