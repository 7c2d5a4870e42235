# What a fake `tsim check` finds out; read by the fake runners. Of the run `before` everything is as the
# policy says, of every other one rule is contradicted.
say_check() { # LAB RUN ANSWERS HTML TEXT
    head='"version":1,"tsim":"0.1.0","time":"2026-11-29T10:00:00Z","lab":{"name":"'$1'","made":"2026-11-29T09:00:00Z","facts":"/srv/facts","identity":"0123456789abcdef"},"backend":"nft"'
    way='[{"router":"hq-gw","iface_in":"eth1","iface_out":"wg0","next_hop":"10.100.1.2","source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443},{"router":"br-gw","iface_in":"wg0","iface_out":null,"next_hop":null,"source":"10.1.1.1","destination":"10.2.1.2","sport":40000,"dport":443}]'
    ask='"source":"10.1.1.1","destination":"10.2.1.2","protocol":"tcp"'
    yes='{'$ask',"port":443,"result":"YES","end":"delivered","router":"br-gw","way":'$way'}'
    no='{'$ask',"port":443,"result":"NO","end":"stopped","router":"br-gw","reason":"dropped by rule 59 of chain FORWARD (table filter): -A FORWARD -m comment --comment \"<b>no</b>\" -j DROP","way":'$way'}'
    other='{'$ask',"port":22,"result":"NO","end":"stopped","router":"hq-gw","reason":"dropped by the policy of chain FORWARD (table filter)","way":[]}'
    case $2 in
        before) web=$yes result=as_stated counts='"as_stated":2,"contradicted":0,"unknown":0' all='"yes":1,"no":1,"unknown":0' surprises='' ;;
        *) web=$no result=contradicted counts='"as_stated":1,"contradicted":1,"unknown":0' all='"yes":0,"no":2,"unknown":0' surprises=$no ;;
    esac
    echo '{'$head',"kind":"matrix","counts":{'$all'},"cells":['$web','$other'],"warnings":[]}' >"$3"
    echo "<!doctype html><title>$2</title>" >"$4"
    echo "report of $2" >"$5"
    echo '{'$head',"kind":"check","policy":"policy.toml","result":"'$result'","rule_counts":{'$counts'},"questions":2,"rules":[
{"name":"nobody logs in","place":"policy.toml:8","must":"not-pass","result":"as_stated","questions":1,"owner":"netops","surprises":[]},
{"name":"the office reaches the web","place":"policy.toml:2","must":"pass","result":"'$result'","questions":1,"ticket":"CHG-4711","surprises":['$surprises']}],"warnings":["br-gw: 2 rules could not be loaded"]}'
    [ "$2" = before ]
}
