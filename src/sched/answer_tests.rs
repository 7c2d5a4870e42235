use super::*;

/// Two routers; 80 is stopped at the first, 443 passes both, 444 too, 53/udp is not known.
const RESULT_TEXT: &str = r#"{"source":"10.0.0.1","backend":"nft","scope":"whole","end_to_end":[
    {"port":80,"protocol":"tcp","result":"NO","reason":"dropped by rule 3","router":"a","end":"stopped",
     "way":[{"router":"a"}]},
    {"port":443,"protocol":"tcp","result":"YES","router":"b","end":"delivered","way":[{"router":"a"},{"router":"b"}]},
    {"port":444,"protocol":"tcp","result":"YES","router":"b","end":"delivered","way":[]},
    {"port":53,"protocol":"udp","result":"UNKNOWN","reason":"limit","router":"b","end":"not_known","way":[]}],
  "routers":[
    {"name":"a","iface_in":"eth0","iface_out":"eth1","next_hop":"10.0.9.1","services":[
      {"port":80,"protocol":"tcp","result":"NO","reason":"dropped by rule 3"},
      {"port":443,"protocol":"tcp","result":"YES"},{"port":444,"protocol":"tcp","result":"YES"},
      {"port":53,"protocol":"udp","result":"YES"}]},
    {"name":"b","iface_in":"eth0","iface_out":null,"next_hop":null,"services":[
      {"port":80,"protocol":"tcp","result":"UNKNOWN","reached":false},
      {"port":443,"protocol":"tcp","result":"YES"},{"port":444,"protocol":"tcp","result":"YES"},
      {"port":53,"protocol":"udp","result":"UNKNOWN","reason":"limit"}]}],
  "warnings":["w"],"timing_ms":{"total":3.5}}"#;

fn answer(text: &str) -> Answer {
    Answer::of(serde_json::from_str(text).unwrap())
}

fn found(answer: &Answer, find: &str, result: Option<Verdict>) -> Vec<String> {
    let wanted = Wanted {
        find: find.to_owned(),
        result,
        offset: 0,
        limit: 100,
    };
    let page = answer.page(&wanted);
    assert_eq!(page.total, page.lines.len());
    page.lines.into_iter().map(|line| line.services).collect()
}

#[test]
fn the_answer_begins_from_end_to_end() {
    let head = answer(RESULT_TEXT).head;
    let said: Vec<_> = head
        .ends
        .iter()
        .map(|end| format!("{} {} {}", end.result, end.services, end.text))
        .collect();
    assert_eq!(
        said,
        [
            "NO 80/tcp stops first at a: dropped by rule 3",
            "YES 443-444/tcp arrives",
            "UNKNOWN 53/udp is not known at b: limit"
        ]
    );
    let way = serde_json::to_value(&head.ends[1].way).unwrap();
    assert_eq!(way[1]["router"], "b");
    let Verdicts { yes, no, unknown } = head.verdicts;
    // The unknown of b about 80, which does not reach it, does not count.
    assert_eq!((yes, no, unknown), (2, 1, 1));
}

#[test]
fn what_is_not_reached_is_shown_so_and_looked_for_in_vain() {
    let answer = answer(RESULT_TEXT);
    let page = answer.page(&Wanted {
        limit: 1,
        ..Wanted::default()
    });
    assert_eq!((page.total, page.lines.len()), (3, 1));
    let cells: Vec<_> = page.lines[0].cells.iter().flatten().collect();
    assert!(cells[0].reached && !cells[1].reached);
    assert_eq!(
        &*page.reasons[&cells[0].reason.unwrap()],
        "dropped by rule 3"
    );
    assert_eq!(page.reasons.len(), 1);
    assert_eq!(found(&answer, "", Some(Verdict::Unknown)), ["53/udp"]);
}

#[test]
fn lines_are_found_by_port_protocol_router_and_reason() {
    let answer = answer(RESULT_TEXT);
    assert_eq!(found(&answer, "444", None), ["443-444/tcp"]);
    assert_eq!(found(&answer, "TCP", None), ["80/tcp", "443-444/tcp"]);
    assert_eq!(found(&answer, "rule dropped", None), ["80/tcp"]);
    assert_eq!(found(&answer, "udp limit", None), ["53/udp"]);
    assert!(found(&answer, "udp dropped", None).is_empty());
    assert_eq!(found(&answer, "", None).len(), 3);
}

#[test]
fn a_router_off_the_way_does_not_count_even_in_an_older_result() {
    let text = r#"{"routers":[
        {"name":"a","services":[{"port":1,"protocol":"tcp","result":"YES"}]},
        {"name":"b","on_way":false,"services":[{"port":1,"protocol":"tcp","result":"NO"}]}]}"#;
    let answer = answer(text);
    let Verdicts { yes, no, unknown } = answer.head.verdicts;
    assert_eq!((yes, no, unknown), (1, 0, 0));
    assert!(answer.head.ends.is_empty());
}

#[test]
fn a_detailed_result_is_read_without_its_evidence() {
    let (_dir, spool) = crate::sched::spool::temporary();
    let run_id = RunId::new("run").unwrap();
    let run = spool.run_dir(&run_id);
    std::fs::create_dir_all(run.join("report")).unwrap();
    std::fs::write(run.join(RESULT), "nobody reads this").unwrap();
    let overview = r#"{"end_to_end":[{"port":22,"protocol":"tcp","result":"YES","end":"delivered",
        "router":"gw","way":[]}],"routers":[]}"#;
    std::fs::write(run.join(OVERVIEW), overview).unwrap();
    let answer = Answer::read(&spool, &run_id).unwrap();
    assert_eq!(answer.head.services, 1);
}
