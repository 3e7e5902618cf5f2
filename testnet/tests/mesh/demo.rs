//! The demo, as a newcomer runs it, for a few seconds.

use crate::common::{file, room, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_keeps_every_promise() {
    let _room = room(5).await;
    let ran = run(&["demo", "--seconds", "8", "--rate", "10", "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["ok"], &report["problems"]), (&true.into(), &serde_json::json!([])));
    assert_eq!((&report["events_published"], &report["events_acknowledged"]), (&400.into(), &400.into()));
    // 4 × 80 smoothed, 73 models, 73 predictions, and errors
    assert!(report["effects"].as_u64().unwrap() >= 320 + 73 + 73, "{report}");
    assert!(report["leader_changes"].as_u64().unwrap() >= 1, "{report}");
    assert!(report["outage"]["first_ack_ms"].is_u64(), "{report}");
    assert_ne!(report["loss"]["peer"], report["outage"]["peer"], "{report}");
    assert_restored(&report);
}

/// Each group had its replicas back at some time after the loss.
fn assert_restored(report: &serde_json::Value) {
    let restored = report["restored_after_s"].as_object().unwrap();
    assert_eq!(restored.keys().collect::<Vec<_>>(), ["catalog", "learning", "sensing"]);
    assert!(restored.values().all(|after| after.as_f64().is_some_and(|after| after > 0.0)), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_streams_a_file() {
    let _room = room(3).await;
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..60).map(|n| format!("day {n},{},{}\n", n % 7, 3 * (n % 7) + 1)).collect();
    let csv = file(dir.path(), "rows.csv", format!("when,x,y\n{rows}").as_bytes());
    let ran = run(&["demo", "--csv", &csv, "--seconds", "20", "--rate", "10", "--peers", "3", "--json"], b"").await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["ok"], &report["events_acknowledged"]), (&true.into(), &120.into()), "{report}");
    assert_eq!(report["source"], "60 rows of x; target y");
    // of the first three peers two are left: the groups stand on the fresh one as well
    assert_restored(&report);
    assert_eq!((&report["loss"]["fresh"], &report["replicas_read"]), (&3.into(), &3.into()), "{report}");
}
