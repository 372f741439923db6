//! What cannot be read is reported, stops nothing else, and leaves the value told before or stands for one that nobody
//! can use.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::{Follower, Maps, PODS};
use crate::sources::directory::folder::UNREADABLE;
use crate::sources::directory::{DirectorySource, MAX_VALUE, SourceError};

impl Follower {
    fn reports(&self) -> Vec<String> {
        let mut reports: Vec<String> = self
            .unreadable
            .iter()
            .map(|it| format!("{} {:?}: {}", it.object, it.key.as_deref().unwrap_or(""), it.reason))
            .collect();
        reports.sort();
        reports
    }

    async fn until_reports(&mut self, wanted: &[&str]) {
        self.until(&format!("{wanted:?}"), |follower| follower.reports() == wanted).await;
    }
}

fn spoil(maps: &Maps) {
    fs::write(maps.key("binary"), [0xff, 0xfe]).unwrap();
    fs::write(maps.key("large"), vec![b'x'; MAX_VALUE + 1]).unwrap();
    mkfifo(&maps.key("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    drop(UnixListener::bind(maps.key("socket")).unwrap());
    fs::write(maps.object(PODS).join(OsStr::from_bytes(b"na\xffme")), "value").unwrap();
    std::os::unix::fs::symlink("/dev/zero", maps.key("device")).unwrap();
    std::os::unix::fs::symlink("nowhere", maps.key("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", maps.key("loop")).unwrap();
    fs::create_dir(maps.key("folder")).unwrap();
}

const SPOILT: [&str; 6] = [
    "podip-vip-mappings \"binary\": it is not UTF-8 text",
    "podip-vip-mappings \"device\": it is not a regular file",
    "podip-vip-mappings \"large\": it is larger than 1048576 bytes",
    "podip-vip-mappings \"na\u{fffd}me\": its name is not UTF-8",
    "podip-vip-mappings \"pipe\": it is not a regular file",
    "podip-vip-mappings \"socket\": it is not a regular file",
];

const STAND_IN: [(&str, &str); 5] = [
    ("binary", UNREADABLE),
    ("device", UNREADABLE),
    ("large", UNREADABLE),
    ("pipe", UNREADABLE),
    ("socket", UNREADABLE),
];

#[tokio::test]
async fn the_first_look_reports_what_cannot_be_used_and_tells_the_rest() {
    let maps = Maps::with_pods();
    spoil(&maps);
    let mut follower = maps.followed().await;
    let readable = [("10.0.0.1", "one"), ("10.0.0.2", "two")];
    follower.until_pods(&[&readable[..], &STAND_IN].concat()).await;
    follower.until_reports(&SPOILT).await;
    for (key, _) in STAND_IN {
        fs::remove_file(maps.key(key)).unwrap();
    }
    follower.until_pods(&readable).await;
}

#[tokio::test]
async fn what_comes_later_and_cannot_be_used_is_reported() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    spoil(&maps);
    follower.until("reports", |follower| follower.reports().len() >= SPOILT.len()).await;
    maps.write(PODS, "10.0.0.1", "other");
    let readable = [("10.0.0.1", "other"), ("10.0.0.2", "two")];
    follower.until_pods(&[&readable[..], &STAND_IN].concat()).await;
    let mut reports = follower.reports();
    reports.dedup();
    assert_eq!(reports, SPOILT);
}

#[tokio::test]
async fn the_largest_value_is_read_whole() {
    let maps = Maps::new();
    let value = "x".repeat(MAX_VALUE);
    maps.write(PODS, "large", &value);
    let follower = maps.followed().await;
    assert!(follower.state[PODS]["large"] == value);
}

#[tokio::test]
async fn a_key_that_turns_unusable_keeps_its_value_until_its_file_goes() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    fs::write(maps.key("10.0.0.1"), [0xff]).unwrap();
    follower.until("a report", |follower| !follower.unreadable.is_empty()).await;
    // read as a whole, with one key less
    fs::remove_file(maps.key("10.0.0.2")).unwrap();
    fs::rename(maps.object(PODS), maps.aside()).unwrap();
    fs::rename(maps.aside(), maps.object(PODS)).unwrap();
    follower.until_pods(&[("10.0.0.1", "one")]).await;
    follower.fence(&maps).await;
    follower.until_pods(&[("10.0.0.1", "one")]).await;
    fs::remove_file(maps.key("10.0.0.1")).unwrap();
    follower.until_pods(&[]).await;
}

#[tokio::test]
async fn an_object_that_is_a_file_is_reported_once() {
    let maps = Maps::new();
    fs::write(maps.object(PODS), "not a folder").unwrap();
    let mut follower = maps.followed().await;
    follower.until_reports(&["podip-vip-mappings \"\": it is not a folder"]).await;
    follower.fence(&maps).await;
    assert_eq!(follower.unreadable.len(), 1);
    fs::remove_file(maps.object(PODS)).unwrap();
    maps.write(PODS, "10.0.0.1", "one");
    follower.until_pods(&[("10.0.0.1", "one")]).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_refused_with_a_remedy() {
    let wrong = Path::new("/nonexistent/maps");
    let error = DirectorySource::open(wrong, |_| true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot watch /nonexistent/maps: it does not exist; create it, or correct --mappings-dir"
    );
    let maps = Maps::new();
    fs::write(maps.aside(), "").unwrap();
    let error = DirectorySource::open(&maps.aside(), |_| true).unwrap_err();
    assert!(matches!(error, SourceError::NotADirectory { .. }), "{error}");
}
