//! A value is told when its writer has closed the file, never before.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use super::{Maps, PODS};

#[tokio::test]
async fn a_file_that_is_being_written_keeps_its_value_until_it_is_closed() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    let mut file = File::create(maps.key("10.0.0.1")).unwrap();
    file.write_all(b"192.168.").unwrap();
    follower.fence(&maps).await;
    assert_eq!(follower.state[PODS]["10.0.0.1"], "one");
    file.write_all(b"0.1").unwrap();
    drop(file);
    follower.until_pods(&[("10.0.0.1", "192.168.0.1"), ("10.0.0.2", "two")]).await;
    assert!(!follower.ever_told("192.168.") && !follower.ever_told(""));
}

#[tokio::test]
async fn a_new_file_is_told_when_it_is_closed() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    let mut file = File::create(maps.key("10.0.0.3")).unwrap();
    file.write_all(b"thr").unwrap();
    follower.fence(&maps).await;
    assert_eq!(follower.state[PODS].len(), 2);
    file.write_all(b"ee").unwrap();
    drop(file);
    follower.until("it", |follower| follower.state[PODS].len() == 3).await;
    assert!(!follower.ever_told("thr") && !follower.ever_told(""));
    assert_eq!(follower.state[PODS]["10.0.0.3"], "three");
}

#[tokio::test]
async fn a_file_that_is_being_written_at_the_first_look_is_told_later() {
    let maps = Maps::with_pods();
    let mut file = OpenOptions::new().append(true).open(maps.key("10.0.0.1")).unwrap();
    file.write_all(b"-half").unwrap();
    let mut follower = maps.followed().await;
    follower.until_pods(&[("10.0.0.2", "two")]).await;
    file.write_all(b"-done").unwrap();
    drop(file);
    follower.until_pods(&[("10.0.0.1", "one-half-done"), ("10.0.0.2", "two")]).await;
    assert!(!follower.ever_told("one-half"));
}

#[tokio::test]
async fn a_folder_read_anew_keeps_the_value_of_a_file_that_is_being_written() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    fs::remove_file(maps.key("10.0.0.2")).unwrap();
    let mut file = File::create(maps.key("10.0.0.1")).unwrap();
    file.write_all(b"half").unwrap();
    fs::rename(maps.object(PODS), maps.aside()).unwrap();
    fs::rename(maps.aside(), maps.object(PODS)).unwrap();
    follower.fence(&maps).await;
    follower.until("10.0.0.2 gone", |follower| follower.state[PODS].len() == 1).await;
    assert_eq!(follower.state[PODS].get("10.0.0.1").map(String::as_str), Some("one"));
    drop(file);
    follower.until_pods(&[("10.0.0.1", "half")]).await;
}

#[tokio::test]
async fn a_half_written_file_that_is_moved_here_is_told_when_it_is_closed() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    let mut file = File::create(maps.aside()).unwrap();
    file.write_all(b"half").unwrap();
    fs::rename(maps.aside(), maps.key("10.0.0.1")).unwrap();
    follower.fence(&maps).await;
    assert_eq!(follower.state[PODS]["10.0.0.1"], "one");
    file.write_all(b"-done").unwrap();
    drop(file);
    follower.until_pods(&[("10.0.0.1", "half-done"), ("10.0.0.2", "two")]).await;
    assert!(!follower.ever_told("half"));
}

#[tokio::test]
async fn a_file_that_stays_open_for_writing_is_reported() {
    let maps = Maps::with_pods();
    let file = File::create(maps.key("10.0.0.3")).unwrap();
    let mut follower = maps.followed().await;
    follower.until("a report", |follower| !follower.unreadable.is_empty()).await;
    assert_eq!(follower.unreadable[0].key.as_deref(), Some("10.0.0.3"));
    drop(file);
    follower.until("its value", |follower| follower.state[PODS].len() == 3).await;
}
