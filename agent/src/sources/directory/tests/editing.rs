//! Ways people and programs change files and folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use futures_util::FutureExt;
use shared::mappings::{Change, Content};

use super::{DEADLINE, Follower, Maps, PODS, State, VIPS, state_of, write_in};
use crate::sources::directory::objects::Objects;

const ONE: (&str, &str) = ("10.0.0.1", "one");
const TWO: (&str, &str) = ("10.0.0.2", "two");

fn shell(maps: &Maps, script: &str) {
    let shell = Command::new("sh").arg("-ec").arg(script).current_dir(maps.directory()).status();
    assert!(shell.unwrap().success(), "{script}");
}

fn one_key(key: &str, value: Option<&str>) -> Change {
    let keys = vec![(key.to_owned(), value.map(str::to_owned))];
    Change { object: PODS.to_owned(), content: Content::Keys(keys) }
}

#[tokio::test]
async fn the_first_batch_has_every_wanted_object_and_nothing_else() {
    let maps = Maps::with_pods();
    maps.write(VIPS, "192.168.0.1", "7");
    maps.write("something-else", "key", "value");
    maps.write(".hidden-mappings", "key", "value");
    maps.write(PODS, ".hidden", "value");
    fs::create_dir(maps.key("folder")).unwrap();
    let follower = maps.followed().await;
    assert_eq!(follower.state, state_of(&[(PODS, &[ONE, TWO]), (VIPS, &[("192.168.0.1", "7")])]));
    assert!(follower.unreadable.is_empty());
}

#[tokio::test]
async fn a_folder_of_many_files_is_read_completely() {
    let maps = Maps::with_pods();
    for n in 0..10_001 {
        fs::write(maps.key(&format!("k{n}")), n.to_string()).unwrap();
    }
    assert_eq!(maps.followed().await.state, maps.found());
}

#[tokio::test]
async fn an_empty_directory_gives_an_empty_first_batch() {
    let follower = Maps::new().followed().await;
    assert_eq!(follower.state, State::new());
}

#[tokio::test]
async fn a_written_file_is_told_as_that_key_alone() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    maps.write(PODS, "10.0.0.1", "other");
    follower.step().await;
    assert_eq!(follower.changes[1..], [one_key("10.0.0.1", Some("other"))]);
}

#[tokio::test]
async fn a_deleted_file_is_told_as_gone() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    fs::remove_file(maps.key("10.0.0.1")).unwrap();
    follower.step().await;
    assert_eq!(follower.changes[1..], [one_key("10.0.0.1", None)]);
}

#[tokio::test]
async fn a_file_renamed_over_another_is_told_once() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    write_in(&maps.aside(), "new", "other");
    fs::rename(maps.aside().join("new"), maps.key("10.0.0.1")).unwrap();
    follower.step().await;
    assert_eq!(follower.changes[1..], [one_key("10.0.0.1", Some("other"))]);
}

#[tokio::test]
async fn shell_commands_and_editors_are_followed() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    for script in [
        "echo three > podip-vip-mappings/10.0.0.3",
        "printf more >> podip-vip-mappings/10.0.0.3",
        "sed -i s/one/uno/ podip-vip-mappings/10.0.0.1",
        "cp podip-vip-mappings/10.0.0.1 podip-vip-mappings/10.0.0.4",
        "cp -p podip-vip-mappings/10.0.0.1 podip-vip-mappings/10.0.0.5",
        "mv podip-vip-mappings/10.0.0.4 podip-vip-mappings/10.0.0.6",
        "rm podip-vip-mappings/10.0.0.6; echo six > podip-vip-mappings/10.0.0.6",
        "ln podip-vip-mappings/10.0.0.6 podip-vip-mappings/10.0.0.7",
        "ln -f podip-vip-mappings/10.0.0.1 podip-vip-mappings/10.0.0.7",
        "ln -s 10.0.0.7 podip-vip-mappings/10.0.0.8",
        "ln -sf 10.0.0.6 podip-vip-mappings/10.0.0.8",
        "touch podip-vip-mappings/empty",
        "truncate -s 1 podip-vip-mappings/10.0.0.3",
        "tar -cf - podip-vip-mappings | tar -xf - --transform s/podip/all-podip/",
        "cp -r podip-vip-mappings more-mappings",
        // as vim does: the old file moves out of the way, the new one is written, the old one goes
        "cd podip-vip-mappings; mv 10.0.0.2 10.0.0.2~; echo 2 > 10.0.0.2; rm 10.0.0.2~",
        "mv more-mappings moved-mappings",
        "mkdir new-mappings; echo x > new-mappings/x; rm -r moved-mappings; mv new-mappings moved-mappings",
        "rm -r podip-vip-mappings",
    ] {
        shell(&maps, script);
        let found = maps.found();
        follower.until(script, |follower| follower.state == found).await;
    }
    assert!(follower.unreadable.is_empty(), "{:?}", follower.unreadable);
}

#[tokio::test]
async fn changes_made_while_nobody_asks_are_told_together() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    (0..2000).for_each(|n| fs::write(maps.key(&format!("k{n}")), "v").unwrap());
    follower.step().await;
    assert_eq!(follower.state, maps.found());
    assert_eq!(follower.changes.len(), 2);
}

#[tokio::test]
async fn more_changes_than_the_kernel_queues_are_not_lost() {
    let maps = Maps::with_pods();
    // without the thread, so that nobody takes the events in time
    let mut objects = Objects::watch(maps.directory(), Box::new(|_| true)).unwrap();
    let mut follower = maps.follow();
    follower.apply(objects.collect().unwrap());
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for _ in 0..queue.trim().parse::<usize>().unwrap() / 4 {
        fs::rename(maps.key("10.0.0.1"), maps.key("10.0.0.3")).unwrap();
        fs::rename(maps.key("10.0.0.3"), maps.key("10.0.0.1")).unwrap();
    }
    maps.write(PODS, "10.0.0.4", "four");
    maps.write(VIPS, "192.168.0.1", "7");
    assert!(objects.drain(Instant::now() + DEADLINE).unwrap());
    follower.apply(objects.collect().unwrap());
    assert_eq!(follower.state, maps.found());
    assert!(matches!(follower.changes[1].content, Content::Whole(_)));
}

#[tokio::test]
async fn an_object_that_goes_is_missing_and_comes_back_whole() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    fs::remove_dir_all(maps.object(PODS)).unwrap();
    follower.until_state(&State::new()).await;
    assert_eq!(follower.changes.last().unwrap().content, Content::Missing);
    maps.write(PODS, "10.0.0.3", "three");
    follower.until_pods(&[("10.0.0.3", "three")]).await;
}

#[tokio::test]
async fn a_folder_replaced_by_another_is_told_whole_and_the_old_one_is_forgotten() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    write_in(&maps.aside(), "10.0.0.3", "three");
    fs::rename(maps.object(PODS), maps.temporary.path().join("old")).unwrap();
    fs::rename(maps.aside(), maps.object(PODS)).unwrap();
    follower.until_pods(&[("10.0.0.3", "three")]).await;
    write_in(&maps.temporary.path().join("old"), "10.0.0.1", "stale");
    maps.write(PODS, "10.0.0.4", "four");
    follower.until_pods(&[("10.0.0.3", "three"), ("10.0.0.4", "four")]).await;
    assert!(!follower.ever_told("stale"));
}

async fn sees_changes(maps: &Maps, follower: &mut Follower) {
    maps.write(PODS, "probe", "probe");
    let found = maps.found();
    follower.until_state(&found).await;
}

#[tokio::test]
async fn the_directory_may_be_deleted_and_created_again() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    fs::remove_dir_all(maps.directory()).unwrap();
    follower.until_state(&State::new()).await;
    maps.write(PODS, "10.0.0.1", "one");
    follower.until_pods(&[ONE]).await;
    sees_changes(&maps, &mut follower).await;
}

#[tokio::test]
async fn the_directory_may_be_replaced_by_a_rename() {
    let maps = Maps::with_pods();
    let mut follower = maps.followed().await;
    write_in(&maps.aside().join(PODS), "10.0.0.2", "two");
    fs::rename(maps.directory(), maps.temporary.path().join("old")).unwrap();
    fs::rename(maps.aside(), maps.directory()).unwrap();
    follower.until_pods(&[TWO]).await;
    sees_changes(&maps, &mut follower).await;
}

#[tokio::test]
async fn the_directory_may_be_a_link_that_is_swapped() {
    let maps = Maps::new();
    let real = |n: u8| maps.temporary.path().join(format!("v{n}"));
    write_in(&real(1).join(PODS), "10.0.0.1", "one");
    write_in(&real(2).join(PODS), "10.0.0.2", "two");
    fs::remove_dir(maps.directory()).unwrap();
    symlink(real(1), maps.directory()).unwrap();
    let mut follower = maps.followed().await;
    follower.until_pods(&[ONE]).await;
    symlink(real(2), maps.aside()).unwrap();
    fs::rename(maps.aside(), maps.directory()).unwrap();
    follower.until_pods(&[TWO]).await;
    sees_changes(&maps, &mut follower).await;
}

#[tokio::test]
async fn the_folders_above_the_directory_may_be_replaced() {
    let maps = Maps::with_pods();
    let above = tempfile::tempdir().unwrap();
    let path = above.path().join("a/b/maps");
    write_in(&path.join(PODS), "10.0.0.1", "one");
    let source = super::DirectorySource::open(&path, |_| true).unwrap();
    let mut follower = Follower { source, ..maps.follow() };
    follower.until_pods(&[ONE]).await;
    fs::rename(above.path().join("a"), above.path().join("old")).unwrap();
    follower.until_state(&State::new()).await;
    write_in(&path.join(PODS), "10.0.0.2", "two");
    follower.until_pods(&[TWO]).await;
}

#[tokio::test]
async fn objects_may_be_links_even_to_one_folder() {
    let maps = Maps::new();
    write_in(&maps.aside(), "10.0.0.1", "one");
    symlink(maps.aside(), maps.object("a-mappings")).unwrap();
    symlink(maps.aside(), maps.object("b-mappings")).unwrap();
    let mut follower = maps.followed().await;
    follower.until_state(&state_of(&[("a-mappings", &[ONE]), ("b-mappings", &[ONE])])).await;
    write_in(&maps.aside(), "10.0.0.2", "two");
    follower.until_state(&maps.found()).await;
    fs::remove_file(maps.object("a-mappings")).unwrap();
    follower.until_state(&state_of(&[("b-mappings", &[ONE, TWO])])).await;
    write_in(&maps.aside(), "10.0.0.3", "three");
    follower.until_state(&maps.found()).await;
    fs::remove_dir_all(maps.aside()).unwrap();
    follower.until_state(&State::new()).await;
}

#[tokio::test]
async fn a_batch_asked_for_and_not_awaited_is_not_lost() {
    let maps = Maps::with_pods();
    let mut follower = maps.follow();
    let ask = |follower: &mut Follower| {
        let _dropped_if_none =
            follower.source.next().now_or_never().map(|batch| follower.apply(batch.unwrap()));
    };
    ask(&mut follower);
    follower.until_pods(&[ONE, TWO]).await;
    for n in 0..20 {
        maps.write(PODS, "10.0.0.1", &n.to_string());
        ask(&mut follower);
    }
    follower.until_pods(&[("10.0.0.1", "19"), TWO]).await;
}
