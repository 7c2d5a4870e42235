#!/bin/sh
# A policy from nothing, a change of a firewall that is tried before it is made, and both in a CI job, as
# docs/policies.md tells.
#
#   netns-fixtures/policy.sh [options of tsim, such as --config FILE]
#
# Needs root, and tsim in PATH. Works on corp10. Removes what it made.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
clean() {
    tsim "$@" lab down policy-demo >/dev/null 2>&1 || true
    tsim "$@" lab down policy-ci >/dev/null 2>&1 || true
    rm -r "$dir"
}
trap 'clean "$@"' EXIT

# Runs a command that is to end with a code.
ends_with() {
    want=$1
    shift
    code=0
    "$@" || code=$?
    [ "$code" -eq "$want" ] || {
        echo "exit code $code and not $want: $*" >&2
        exit 1
    }
}

echo "== a lab, and a policy from nothing: what is measured now"
tsim "$@" lab up policy-demo --facts "$here/corp10" | tail -n 1
ends_with 1 tsim "$@" matrix policy-demo -s 10.3.10.50 -d 10.2.1.60 \
    -P ssh,https,33434-33435/udp -o "$dir/policy.toml" > "$dir/matrix.txt"
tail -n 1 "$dir/matrix.txt"
cat "$dir/policy.toml"
tsim "$@" check policy-demo "$dir/policy.toml" > "$dir/check.txt"
tail -n 1 "$dir/check.txt"

echo "== a change of dc-srv's firewall that somebody wants to make"
awk '/^=== TSIM_SECTION_START:iptables_save/ { inside = 1 } /^EXIT_CODE/ { inside = 0 }
     inside && body { print } inside && /^---/ { body = 1 }' \
    "$here/corp10/dc-srv_facts.txt" > "$dir/rules.txt"
sed '0,/^-A FORWARD/s//-A FORWARD -p udp --dport 33434:33435 -j DROP\n-A FORWARD/' \
    "$dir/rules.txt" > "$dir/new-rules.txt"
ends_with 1 tsim "$@" what-if policy-demo --router dc-srv --ruleset "$dir/new-rules.txt" \
    --policy "$dir/policy.toml" -o "$dir/comment.md"
grep -q '2 services no longer get there' "$dir/comment.md"

echo "== the CI job: facts with the change, the policy, a report"
mkdir "$dir/facts"
cp "$here"/corp10/* "$dir/facts"
awk -v rules="$dir/new-rules.txt" '
    /^=== TSIM_SECTION_START:iptables_save/ { inside = 1 }
    !inside || !body { print }
    inside && /^---/ && !body { body = 1; while ((getline line < rules) > 0) print line }
    /^EXIT_CODE/ && inside { inside = 0; print }
' "$here/corp10/dc-srv_facts.txt" > "$dir/facts/dc-srv_facts.txt"
tsim "$@" lab up policy-ci --facts "$dir/facts" | tail -n 1
ends_with 1 tsim "$@" check policy-ci "$dir/policy.toml" -o "$dir/report.xml" -o "$dir/report.html"
grep -q '<testsuites tests="2" failures="1" errors="0">' "$dir/report.xml"
echo "== the change is found, and the policy holds without it"
