use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::time::timeout;

use super::*;

const UID: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c21";
const OTHER: &str = "8f14e45f-ceea-467f-a0e6-5d1c5a3b7c22";

fn result(interface: &str, uid: &str, ips: &[&str]) -> String {
    let ips: Vec<String> = ips.iter().map(|ip| format!(r#"{{"address":"{ip}"}}"#)).collect();
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"c","config":"e30=","ifName":"{interface}",
           "networkName":"pods","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],
           ["K8S_POD_UID","{uid}"]],"capabilityArgs":{{}},
           "result":{{"cniVersion":"1.0.0","dns":{{}},"ips":[{}]}}}}"#,
        ips.join(",")
    )
}

fn open(directory: &Path) -> CniResults {
    CniResults::open(directory, false, ResultMetrics::default())
}

fn lines(results: &CniResults) -> Vec<String> {
    let line = |(uid, ips): (PodUid, BTreeSet<PodIp>)| {
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        format!("{uid} {}", ips.join(","))
    };
    results.addresses().unwrap_or_default().pods.into_iter().map(line).collect()
}

/// Waits until the results say that.
async fn settle(results: &mut CniResults, expected: &[String]) {
    let all = async {
        while lines(results) != expected {
            results.changed().await;
        }
    };
    let outcome = timeout(Duration::from_secs(10), all).await;
    assert!(outcome.is_ok(), "{:?} instead of {expected:?}", lines(results));
}

#[tokio::test]
async fn addresses_come_with_files_and_go_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::write(path.join("pods-a-eth0"), result("eth0", UID, &["10.244.1.5/24", "fd00::5/64"]))
        .unwrap();
    let mut results = open(path);
    let first = format!("{UID} 10.244.1.5,fd00::5");
    assert_eq!(lines(&results), std::slice::from_ref(&first));

    fs::write(path.join("pods-b-eth0"), result("eth0", OTHER, &["10.244.1.6/24"])).unwrap();
    settle(&mut results, &[first.clone(), format!("{OTHER} 10.244.1.6")]).await;
    // Moved there, as careful writers do.
    fs::write(path.join(".new"), result("eth0", OTHER, &["10.244.1.7/24"])).unwrap();
    fs::rename(path.join(".new"), path.join("pods-b-eth0")).unwrap();
    settle(&mut results, &[first, format!("{OTHER} 10.244.1.7")]).await;
    fs::remove_file(path.join("pods-a-eth0")).unwrap();
    settle(&mut results, &[format!("{OTHER} 10.244.1.7")]).await;
}

#[tokio::test]
async fn an_address_belongs_to_whom_it_was_given_last() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("pods-z-eth0");
    fs::write(&old, result("eth0", OTHER, &["10.244.1.5/24"])).unwrap();
    let long_ago = SystemTime::now() - Duration::from_mins(1);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    fs::write(directory.path().join("pods-a-eth0"), result("eth0", UID, &["10.244.1.5/24"]))
        .unwrap();
    assert_eq!(lines(&open(directory.path())), [format!("{UID} 10.244.1.5")]);
}

#[tokio::test]
async fn the_directory_may_come_late_and_be_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("results");
    let mut results = open(&path);
    assert_eq!(lines(&results), [""; 0]);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a"), result("eth0", UID, &["10.244.1.5/24"])).unwrap();
    settle(&mut results, &[format!("{UID} 10.244.1.5")]).await;
    fs::rename(&path, parent.path().join("old")).unwrap();
    settle(&mut results, &[]).await;
    fs::create_dir(&path).unwrap();
    fs::write(path.join("b"), result("eth0", OTHER, &["10.244.1.6/24"])).unwrap();
    settle(&mut results, &[format!("{OTHER} 10.244.1.6")]).await;
}

#[tokio::test]
async fn what_is_no_result_of_a_pod_is_passed_over_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let good = result("eth0", UID, &["10.244.1.5/24"]);
    fs::write(path.join("good"), &good).unwrap();
    fs::write(path.join("half"), &good[..good.len() / 2]).unwrap();
    fs::write(path.join("empty"), "").unwrap();
    fs::write(path.join("old"), r#"{"ip4":{"ip":"10.244.1.9/24"}}"#).unwrap();
    fs::write(path.join("other kind"), good.replace("cniCacheV1", "cniCacheV9")).unwrap();
    fs::write(path.join("other shape"), good.replace(r#""result":{"#, r#""result":3,"x":{"#))
        .unwrap();
    fs::write(path.join("no result"), good.replace("\"result\"", "\"outcome\"")).unwrap();
    fs::write(path.join("huge"), format!("{good}{}", " ".repeat(1 << 20))).unwrap();
    fs::write(path.join(OsStr::from_bytes(b"\xff\xfe")), [0xff, 0, b'{']).unwrap();
    fs::create_dir(path.join("directory")).unwrap();
    mkfifo(&path.join("pipe"), Mode::S_IRWXU).unwrap();
    fs::write(directory.path().with_extension("target"), result("eth0", OTHER, &["10.244.1.6/24"]))
        .unwrap();
    symlink(directory.path().with_extension("target"), path.join("link")).unwrap();
    // Understood, but of no use.
    fs::write(path.join("second"), result("net1", OTHER, &["10.99.0.1/24"])).unwrap();
    fs::write(path.join("loopback"), result("lo", OTHER, &["127.0.0.1/8", "::1/128"])).unwrap();
    fs::write(path.join("no pod"), good.replace("K8S_POD_UID", "OTHER")).unwrap();
    fs::write(path.join("no uid"), result("eth0", "static-pod", &["10.244.1.8/24"])).unwrap();
    fs::write(path.join("bad ip"), result("eth0", OTHER, &["10.244.1.300/24", "x"])).unwrap();

    let results = open(path);
    fs::remove_file(directory.path().with_extension("target")).unwrap();
    assert_eq!(lines(&results), [format!("{UID} 10.244.1.5")]);
    let counts = [
        (Ignored::Broken, 5),
        (Ignored::Foreign, 2),
        (Ignored::TooLarge, 1),
        (Ignored::NotAFile, 3),
        (Ignored::Unreadable, 0),
    ];
    for (why, count) in counts {
        assert_eq!(results.metrics.count_of(why), count, "{why:?}");
    }
}
