# shellcheck shell=sh
# What a fake `tsim check` finds out; read by the fake runners. Of the run `before` everything is as the
# policy says, of every other one rule is contradicted.
say_check() { # LAB RUN ANSWERS HTML TEXT
    head=$(cat <<HEAD
"version":1,"tsim":"0.1.0","time":"2026-11-29T10:00:00Z","lab":{"name":"$1","made":"2026-11-29T09:00:00Z","facts":"/srv/facts","identity":"0123456789abcdef"},"backend":"nft"
HEAD
    )
    way=$(cat <<WAY
[{"router":"hq-gw","iface_in":"eth1","iface_out":"wg0","next_hop":"10.100.1.2","source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443},{"router":"br-gw","iface_in":"wg0","iface_out":null,"next_hop":null,"source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443}]
WAY
    )
    ask='"source":"10.1.1.1","destination":"10.2.1.2","protocol":"tcp"'
    yes=$(cat <<YES
{$ask,"port":443,"result":"YES","end":"delivered","router":"br-gw","way":$way}
YES
    )
    no=$(cat <<NO
{$ask,"port":443,"result":"NO","end":"stopped","router":"br-gw","reason":"dropped by rule 59 of chain FORWARD (table filter): -A FORWARD -m comment --comment \\"<b>no</b>\\" -j DROP","way":$way}
NO
    )
    other=$(cat <<OTHER
{$ask,"port":22,"result":"NO","end":"stopped","router":"hq-gw","reason":"dropped by the policy of chain FORWARD (table filter)","way":[]}
OTHER
    )
    case $2 in
        before) web=$yes result=as_stated contradicted=0 surprises='' ;;
        *) web=$no result=contradicted contradicted=1 surprises=$no ;;
    esac
    held=$((2 - contradicted)) passed=$((1 - contradicted)) stopped=$((1 + contradicted))
    cat >"$3" <<ANSWERS
{$head,"kind":"matrix","counts":{"yes":$passed,"no":$stopped,"unknown":0},"cells":[$web,$other],"warnings":[]}
ANSWERS
    echo "<!doctype html><title>$2</title>" >"$4"
    echo "report of $2" >"$5"
    cat <<CHECK
{$head,"kind":"check","policy":"policy.toml","result":"$result","rule_counts":{"as_stated":$held,"contradicted":$contradicted,"unknown":0},"questions":2,"rules":[
{"name":"nobody logs in","place":"policy.toml:8","must":"not-pass","result":"as_stated","questions":1,"owner":"netops","surprises":[]},
{"name":"the office reaches the web","place":"policy.toml:2","must":"pass","result":"$result","questions":1,"ticket":"CHG-4711","surprises":[$surprises]}],"warnings":["br-gw: 2 rules could not be loaded"]}
CHECK
    [ "$2" = before ]
}
