//! Peers in network namespaces, on links that are slow, lose packets and are cut while they run.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{SOON, file, program, room};

/// Three peers, 10 ms apart from each other.
const SCENARIO: &str = "mesh = \"canal\"\n[[peer]]\ncount = 3\n[[link]]\nbetween = [\"*\", \"*\"]\ndelay_ms = 10\n";

/// `canal-testnet up`, ended when it is dropped.
struct Up {
    child: Child,
    address: String,
}

impl Drop for Up {
    fn drop(&mut self) {
        // it ends its peers, which a kill would leave to notice by themselves
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// Starts it; `None` where the system allows no namespaces, which it then says.
fn up(dir: &Path, scenario: &str) -> Option<Up> {
    let mut command = Command::new(program());
    command.args(["up", scenario, "--dir"]).arg(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (lines, said) = mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || BufReader::new(stdout).lines().try_for_each(|line| lines.send(line.unwrap())));
    let mut up = Up { child, address: String::new() };
    let mut until = Instant::now() + SOON;
    loop {
        let Ok(line) = said.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            up.child.kill().unwrap();
            let mut text = String::new();
            up.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            if text.contains("the peers run on loopback") {
                return None;
            }
            panic!("it is not up: {text}");
        };
        if let Some((_, address)) = line.split_once("CANAL_PEER=") {
            up.address = address.split(' ').next().unwrap().to_owned();
        }
        if line.contains("nsenter ") {
            return Some(up);
        }
        if line.contains("end it with Ctrl-C") {
            // where there are namespaces, it goes on in the same breath
            until = until.min(Instant::now() + Duration::from_secs(5));
        }
    }
}

impl Up {
    fn canal(&self, arguments: &[&str]) -> (bool, String, Duration) {
        let began = Instant::now();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.child.id())).arg(program()).arg("canal").args(arguments);
        let output = command.args(["--peer", &self.address]).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text, began.elapsed())
    }

    fn link(&self, dir: &Path, arguments: &[&str]) -> String {
        let mut command = Command::new(program());
        let output = command.args(["link", "--dir"]).arg(dir).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_behind_a_cut_link_stops_nobody_and_comes_back() {
    let _room = room(3).await;
    let dir = tempfile::tempdir().unwrap();
    let scenario = file(dir.path(), "links.toml", SCENARIO.as_bytes());
    let data = dir.path().join("data");
    let Some(up) = up(&data, &scenario) else {
        eprintln!("no network namespaces can be made here: not tested");
        return;
    };
    let (created, text, _) = up.canal(&["topic", "create", "t", "--group", "g"]);
    assert!(created, "{text}");
    let (published, text, took) = up.canal(&["pub", "t", "one"]);
    assert!(published, "{text}");
    assert!(took > Duration::from_millis(20), "a majority is 20 ms away and back, this took {took:?}");
    assert!(up.link(&data, &["0", "1"]).contains("10 ms"));

    for other in ["0", "1"] {
        assert!(up.link(&data, &["2", other, "--cut"]).contains("cut"));
    }
    let (published, text, _) = up.canal(&["pub", "t", "two"]);
    assert!(published, "two of three go on: {text}");
    for other in ["0", "1"] {
        assert!(up.link(&data, &["2", other, "--heal", "--loss", "0.05"]).contains("loss 0.05"));
    }
    let until = Instant::now() + SOON;
    loop {
        let (_, text, _) = up.canal(&["group", "info", "g", "--json"]);
        let info: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let replicas = info["replicas"].as_array().cloned().unwrap_or_default();
        let has: Vec<_> = replicas.iter().map(|replica| replica["matched"].as_u64()).collect();
        if replicas.len() == 3 && has.iter().all(|matched| matched.is_some() && *matched == has[0]) {
            break;
        }
        assert!(Instant::now() < until, "the third has not caught up: {text}");
    }
    let (read, text, _) = up.canal(&["sub", "t", "--from", "earliest", "--count", "2"]);
    assert!(read && text.contains("t 0 - one") && text.contains("t 1 - two"), "{text}");
}
