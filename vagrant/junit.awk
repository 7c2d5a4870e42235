# Turns what Rust's test harness prints into JUnit XML.
#
#   awk -v suite=NAME -f junit.awk LIST OUTPUT
#
# LIST is what the same tests print with --list: a test of the list without an
# outcome in OUTPUT did not finish, which is an error of its own. Prints the
# report; with -v names=1 the names of the tests that did not pass instead.

function xml(text) {
    gsub(/&/, "\\&amp;", text)
    gsub(/</, "\\&lt;", text)
    gsub(/>/, "\\&gt;", text)
    gsub(/"/, "\\&quot;", text)
    # XML 1.0 has no way to write the other control characters.
    gsub(/[\001-\010\013\014\016-\037]/, "?", text)
    return text
}

function settle(name, word) {
    if (word ~ /^ok/) outcome[name] = "ok"
    else if (word ~ /^FAILED/) outcome[name] = "failed"
    else if (word ~ /^ignored/) outcome[name] = "ignored"
    else return 0
    return 1
}

function testcase(name,    body) {
    if (outcome[name] == "ok") body = ""
    else if (outcome[name] == "ignored") body = "<skipped/>"
    else if (outcome[name] == "failed")
        body = "<failure message=\"failed\">" xml(said[name]) "</failure>"
    else body = "<error message=\"the test did not finish\"/>"
    return "  <testcase classname=\"" xml(suite) "\" name=\"" xml(name) "\">" body "</testcase>"
}

FNR == NR {
    if (sub(/: test$/, "")) order[++count] = $0
    next
}

{ sub(/\r$/, "") }

/^test .* \.\.\. / {
    pending = $0
    sub(/^test /, "", pending)
    word = pending
    sub(/ \.\.\. .*$/, "", pending)
    sub(/ - should panic$/, "", pending)
    sub(/^.* \.\.\. /, "", word)
    if (settle(pending, word)) pending = ""
    next
}

# With one thread the outcome comes after what the test's children printed.
pending != "" && /^(ok|FAILED|ignored)$/ {
    settle(pending, $0)
    pending = ""
    next
}

/^---- .* stdout ----$/ {
    speaker = $0
    sub(/^---- /, "", speaker)
    sub(/ stdout ----$/, "", speaker)
    next
}

/^failures:$/ { speaker = "" }

speaker != "" { said[speaker] = said[speaker] $0 "\n" }

END {
    for (i = 1; i <= count; i++) {
        word = outcome[order[i]]
        if (word == "failed") failures++
        else if (word == "ignored") ignored++
        else if (word != "ok") errors++
        if (names && word != "ok" && word != "ignored")
            print order[i] (word == "failed" ? "" : " (did not finish)")
    }
    if (names) exit
    print "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
    printf "<testsuite name=\"%s\" tests=\"%d\" failures=\"%d\" errors=\"%d\" skipped=\"%d\">\n",
        xml(suite), count, failures, errors, ignored
    for (i = 1; i <= count; i++) print testcase(order[i])
    print "</testsuite>"
}
