//! kubelet's way: every key is a link through `..data`, which is swapped for another link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use shared::mappings::Content;

use super::{Maps, PODS};

/// Publishes `keys` in the order kubelet does.
pub(super) fn publish(folder: &Path, version: usize, keys: &[(&str, &str)]) {
    fs::create_dir_all(folder).unwrap();
    let old = fs::read_link(folder.join("..data")).ok();
    let new = format!("..2026_11_23_{version}");
    for (key, value) in keys {
        super::write_in(&folder.join(&new), key, value);
    }
    fs::create_dir_all(folder.join(&new)).unwrap();
    let _left_over = fs::remove_file(folder.join("..data_tmp"));
    symlink(&new, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for (key, _) in keys {
        let _there_already = symlink(format!("..data/{key}"), folder.join(key));
    }
    for path in super::visible(folder).filter(|path| fs::metadata(path).is_err()) {
        fs::remove_file(path).unwrap();
    }
    if let Some(old) = old.filter(|old| old != Path::new(&new)) {
        fs::remove_dir_all(folder.join(old)).unwrap();
    }
}

#[tokio::test]
async fn a_swap_is_told_as_the_whole_new_content() {
    let maps = Maps::new();
    publish(&maps.object(PODS), 1, &[("10.0.0.1", "one"), ("10.0.0.2", "two")]);
    let mut follower = maps.followed().await;
    follower.until_pods(&[("10.0.0.1", "one"), ("10.0.0.2", "two")]).await;
    publish(&maps.object(PODS), 2, &[("10.0.0.2", "zwei"), ("10.0.0.3", "drei")]);
    follower.until_pods(&[("10.0.0.2", "zwei"), ("10.0.0.3", "drei")]).await;
    assert!(follower.changes.iter().any(|change| matches!(change.content, Content::Whole(_))));
    assert!(follower.unreadable.is_empty());
}

#[tokio::test]
async fn a_swap_is_never_told_in_parts() {
    let maps = Maps::new();
    let folder = maps.object(PODS);
    let keys: Vec<String> = (0..20).map(|n| format!("key{n}")).collect();
    let publish_version = move |version: usize| {
        let value = version.to_string();
        let content: Vec<_> = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
        publish(&folder, version, &content);
    };
    publish_version(0);
    let mut follower = maps.followed().await;
    let writer = std::thread::spawn(move || (1..60).for_each(publish_version));
    follower
        .until("the last version", |follower| {
            let content = &follower.state[PODS];
            let version = &content["key0"];
            assert!(content.values().all(|value| value == version), "{content:?}");
            assert_eq!(content.len(), 20);
            version == "59"
        })
        .await;
    writer.join().unwrap();
}

#[tokio::test]
async fn all_objects_may_be_one_volume() {
    let maps = Maps::new();
    let publish_volume = |version: &str, value: &str| {
        let data = format!("..{version}");
        super::write_in(&maps.directory().join(&data).join(PODS), "10.0.0.1", value);
        symlink(&data, maps.directory().join("..data_tmp")).unwrap();
        fs::rename(maps.directory().join("..data_tmp"), maps.directory().join("..data")).unwrap();
        let _there_already = symlink(format!("..data/{PODS}"), maps.object(PODS));
    };
    publish_volume("1", "one");
    let mut follower = maps.followed().await;
    follower.until_pods(&[("10.0.0.1", "one")]).await;
    publish_volume("2", "two");
    follower.until_pods(&[("10.0.0.1", "two")]).await;
}
