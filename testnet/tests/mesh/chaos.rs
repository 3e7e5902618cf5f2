//! Faults in real peers: that they are made, and what the peers make of them.

use std::time::{Duration, Instant};

use canal_sdk::Client;
use canal_testnet::{Error, Faults, Options, Peer, Scenario, Testnet, faults, until};

use crate::common::{SOON, assert_numbered, numbered, patient, program, read_back, room, run};

/// A mesh of one peer in which faults can be made.
async fn faulty(peers: usize) -> Testnet {
    let options = Options { faults: true, ..Options::new(program()) };
    Testnet::start(&Scenario::of(peers), options).await.unwrap()
}

async fn publish_one(client: &Client) -> Duration {
    let publisher = patient(client, "t").await;
    let begins = Instant::now();
    publisher.publish(numbered(0)).await.unwrap();
    begins.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_is_slow_and_a_wrong_clock_is_wrong() {
    if let Err(why) = faults::available() {
        eprintln!("not tested: {why}");
        return;
    }
    let _room = room(1).await;
    let net = faulty(1).await;
    let client = net.client(0).await.unwrap();
    net.create_topic(&client, "t", "g", 1).await.unwrap();
    let peer = net.peer(0).unwrap();
    assert_eq!(peer.faults_made().unwrap(), faults::Made::default());

    peer.faults(&Faults { slow_sync_ms: 700, ..Faults::default() }).unwrap();
    let took = publish_one(&client).await;
    assert!(took >= Duration::from_millis(700), "a publish with a slow disk took {took:?}");
    let made = peer.faults_made().unwrap();
    assert!(made.slowed >= 1 && made.failed == 0 && made.refused == 0, "{made:?}");

    // what it logs has its time: while it runs (it leads a group more), and when it starts again
    const DAYS: i64 = 86_400;
    let day = |shift: i64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        date(i64::try_from(now).unwrap() + shift)
    };
    for (shift, name) in [(40 * DAYS, "ahead"), (-40 * DAYS, "behind")] {
        let logged = peer.logs().unwrap().len();
        peer.faults(&Faults { clock_shift_ms: shift * 1000, ..Faults::default() }).unwrap();
        net.create_topic(&client, name, name, 1).await.unwrap();
        let said = says(peer, logged, &day(shift)).await;
        assert!(peer.terminate(SOON).await.unwrap().success());
        net.restart(0).await.unwrap();
        says(peer, said, &day(shift)).await;
        publish_one(&client).await;
    }
    peer.faults(&Faults::default()).unwrap();
    let made = peer.faults_made().unwrap();
    publish_one(&client).await;
    assert_eq!(peer.faults_made().unwrap(), made, "without faults nothing is done");
}

/// Waits until a peer has logged this behind so many bytes, and returns how many it has logged then.
async fn says(peer: &Peer, behind: usize, what: &str) -> usize {
    until(&format!("its log says {what}"), SOON, async || {
        let logs = peer.logs().map_err(|error| error.to_string())?;
        let new = logs.get(behind..).unwrap_or_default();
        if new.contains(what) { Ok(logs.len()) } else { Err(format!("it says {new}")) }
    })
    .await
    .unwrap()
}

/// The day of a time in seconds, as logs write it (Hinnant, "chrono-compatible low-level date algorithms").
fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year + era * 400) } else { (month - 9, year + era * 400 + 1) };
    format!("{year:04}-{month:02}-{day:02}T")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_ends_its_peer_and_nothing_acknowledged_is_lost() {
    if let Err(why) = faults::available() {
        eprintln!("not tested: {why}");
        return;
    }
    let _room = room(3).await;
    let net = faulty(3).await;
    let client = net.client(0).await.unwrap();
    let group = net.create_topic(&client, "t", "g", 3).await.unwrap();
    let publisher = patient(&client, "t").await;
    let mut sent = 0;
    let fails = [
        (Faults { fail_sync: true, ..Faults::default() }, "Input/output error"),
        (Faults { full_disk: true, ..Faults::default() }, "StorageFull"),
    ];
    for (faults, said) in fails {
        let leader = net.leader(group).await.unwrap();
        let peer = net.peer(leader).unwrap();
        let logged = peer.logs().unwrap().len();
        peer.faults(&faults).unwrap();
        for _ in 0..20 {
            publisher.publish(numbered(sent)).await.unwrap();
            sent += 1;
        }
        let status = peer.ended(SOON).await.unwrap();
        assert!(!status.success(), "{faults:?}: it ended with {status}");
        let logs = peer.logs().unwrap();
        assert!(logs[logged..].contains(said), "{faults:?}: {}", &logs[logged..]);
        let made = peer.faults_made().unwrap();
        assert!(made.failed + made.refused > 0, "{made:?}");
        // while the disk is as it was, it does not come back
        if faults.fail_sync {
            assert!(matches!(net.restart(leader).await, Err(Error::NotStarted { .. })));
        }
        peer.faults(&Faults::default()).unwrap();
        net.restart(leader).await.unwrap();
    }
    let count = usize::try_from(sent).unwrap();
    let events = read_back(&net, &client, "t", count, 3).await;
    assert_numbered("t", events.iter().map(|stored| (stored.offset, &stored.event)), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_testnet_that_was_not_asked_for_faults_makes_none() {
    let _room = room(1).await;
    let net = Testnet::start(&Scenario::of(1), Options::new(program())).await.unwrap();
    let error = net.peer(0).unwrap().faults(&Faults::default()).unwrap_err();
    assert!(error.to_string().contains("was not started for it"), "{error}");
}

/// What follows the minute of faults: the mesh heals, functions catch up, everything is read back and compared.
const AFTERWARDS: Duration = Duration::from_secs(540);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_chaos_breaks_no_promise() {
    let _room = room(5).await;
    let mut command = tokio::process::Command::new(program());
    command.args(["chaos", "--minutes", "1", "--seed", "1", "--json"]).kill_on_drop(true);
    let ran = tokio::time::timeout(Duration::from_secs(60) + AFTERWARDS, command.output()).await;
    let ran = ran.expect("it ends").unwrap();
    let (told, said) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{}: {told}{said}", ran.status);
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&report["ok"], &report["problems"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(report["events_published"], report["events_acknowledged"], "{report}");
    let number = |name: &str| report[name].as_u64().unwrap();
    // it was not quiet, and something was done meanwhile
    assert!(report["made"].as_array().unwrap().len() >= 2, "{report}");
    assert!(number("events_published") > 1_000 && number("effects") > 100, "{report}");
    assert!(number("events_queued") > 50 && number("queue_restarts") >= 2, "{report}");
    assert!(number("register_operations") > 50 && number("durable_openings") >= 3, "{report}");
    assert!(number("replicas_read") >= 3, "{report}");
    assert!(report["directory"].is_null(), "what went well is not kept: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_says_what_it_can_not_do() {
    let ran = run(&["chaos", "--minutes", "500"], b"").await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("use 0.1 to 120 minutes"), "{ran:?}");
}
