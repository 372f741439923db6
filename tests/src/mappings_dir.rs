//! The directory an agent reads with `--mappings-dir`: a sub-directory per `ConfigMap`, a file per key.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::host::Host;
use crate::lab::{Family, Lab};

/// The `ConfigMap` of VIPs and their route ids.
const VIPS: &str = "vip-routeid-mappings";
/// The `ConfigMap` of pod addresses and their VIPs.
const PODS: &str = "podip-vip-mappings";
/// The `ConfigMap` of the cluster's networks.
const NETWORKS: &str = "egress-networks";

fn blocks_of(vip: IpAddr) -> String {
    format!("vip-blocks-{}", key(vip))
}

/// How the files are laid out and change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Plain files, each replaced by renaming a complete one.
    #[default]
    Plain,
    /// As kubelet mounts a `ConfigMap`: keys are links into `..data`, itself a link to a directory with
    /// a name of its time; a change makes a new directory and renames the link `..data`.
    Kubelet,
}

/// A directory of mappings; removed when dropped.
#[derive(Debug)]
pub struct MappingsDir {
    root: TempDir,
    layout: Layout,
    objects: BTreeMap<String, BTreeMap<String, String>>,
    version: u64,
}

impl MappingsDir {
    /// An empty directory of plain files.
    pub fn new() -> Result<Self> {
        Self::with_layout(Layout::Plain)
    }

    /// An empty directory of plain files below `parent`, as on a file system of memory.
    pub fn new_in(parent: &Path) -> Result<Self> {
        let root = tempfile::tempdir_in(parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        Ok(Self { root, layout: Layout::Plain, objects: BTreeMap::new(), version: 0 })
    }

    /// An empty directory of that layout.
    pub fn with_layout(layout: Layout) -> Result<Self> {
        let root = tempfile::tempdir().context("cannot make a directory for mappings")?;
        Ok(Self { root, layout, objects: BTreeMap::new(), version: 0 })
    }

    /// A directory that knows a laboratory's networks and nothing else.
    pub fn of(lab: &Lab) -> Result<Self> {
        let mut mappings = Self::new()?;
        mappings.networks(lab)?;
        Ok(mappings)
    }

    /// What to give to `--mappings-dir`.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Gives a VIP its route id.
    pub fn set_vip(&mut self, vip: IpAddr, route_id: u8) -> Result<()> {
        self.set(VIPS, &key(vip), &route_id.to_string())
    }

    /// Says which blocks of the VIP's ports a node has, such as `1,3 draining 4`, and gives it the
    /// answers that come for them.
    pub fn set_blocks(&mut self, vip: IpAddr, node: &Host, blocks: &str) -> Result<()> {
        let value = format!("{blocks} via {}", node.ip(Family::of(vip)));
        self.set(&blocks_of(vip), &node.name, value.trim_start())
    }

    /// Says that a node has no blocks of the VIP's ports.
    pub fn remove_blocks(&mut self, vip: IpAddr, node: &Host) -> Result<()> {
        self.remove(&blocks_of(vip), &node.name)
    }

    /// Takes a VIP out.
    pub fn remove_vip(&mut self, vip: IpAddr) -> Result<()> {
        self.remove(VIPS, &key(vip))
    }

    /// Maps a pod to a VIP.
    pub fn map(&mut self, pod: IpAddr, vip: IpAddr) -> Result<()> {
        self.set(PODS, &key(pod), &vip.to_string())
    }

    /// Maps many pods at once, replacing all mappings there were.
    pub fn map_only(&mut self, pods: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Result<()> {
        let entries = pods.into_iter().map(|(pod, vip)| (key(pod), vip.to_string())).collect();
        self.replace(PODS, &entries)
    }

    /// Holds a pod's external traffic: an empty value.
    pub fn hold(&mut self, pod: IpAddr) -> Result<()> {
        self.set(PODS, &key(pod), "")
    }

    /// Takes a pod out.
    pub fn unmap(&mut self, pod: IpAddr) -> Result<()> {
        self.remove(PODS, &key(pod))
    }

    /// Writes the laboratory's networks: pods, services, node addresses; nothing excluded.
    pub fn networks(&mut self, lab: &Lab) -> Result<()> {
        let both = |of: fn(&Lab, Family) -> &'static str| {
            Family::ALL.map(|family| of(lab, family)).join(",")
        };
        let nodes: Vec<String> = Family::ALL
            .iter()
            .flat_map(|family| lab.nodes().iter().map(|node| node.ip(*family).to_string()))
            .collect();
        self.replace(
            NETWORKS,
            &BTreeMap::from([
                ("pod-subnets".to_owned(), both(Lab::pod_subnet)),
                ("service-subnets".to_owned(), both(Lab::service_subnet)),
                ("node-addresses".to_owned(), nodes.join("\n")),
                ("excluded".to_owned(), String::new()),
            ]),
        )
    }

    /// Networks that pods reach with the node's address as before.
    pub fn exclude(&mut self, networks: &str) -> Result<()> {
        self.set(NETWORKS, "excluded", networks)
    }

    /// Writes any key of any object, valid or not.
    pub fn set(&mut self, object: &str, key: &str, value: &str) -> Result<()> {
        let entries = self.objects.entry(object.to_owned()).or_default();
        entries.insert(key.to_owned(), value.to_owned());
        match self.layout {
            Layout::Plain => self.write_plain(object, key, value),
            Layout::Kubelet => self.swap(object),
        }
    }

    /// Removes any key of any object.
    pub fn remove(&mut self, object: &str, key: &str) -> Result<()> {
        let Some(entries) = self.objects.get_mut(object) else { return Ok(()) };
        if entries.remove(key).is_none() {
            return Ok(());
        }
        match self.layout {
            Layout::Plain => {
                let path = self.object_dir(object).join(key);
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
            }
            Layout::Kubelet => self.swap(object),
        }
    }

    /// Replaces all keys of an object; in the kubelet's layout at one moment.
    pub fn replace(&mut self, object: &str, entries: &BTreeMap<String, String>) -> Result<()> {
        let old = self.objects.insert(object.to_owned(), entries.clone()).unwrap_or_default();
        if self.layout == Layout::Kubelet {
            return self.swap(object);
        }
        for (key, value) in entries {
            if old.get(key) != Some(value) {
                self.write_plain(object, key, value)?;
            }
        }
        for key in old.keys().filter(|key| !entries.contains_key(*key)) {
            fs::remove_file(self.object_dir(object).join(key))
                .with_context(|| format!("cannot remove {object}/{key}"))?;
        }
        Ok(())
    }

    /// Removes an object and its directory.
    pub fn remove_object(&mut self, object: &str) -> Result<()> {
        self.objects.remove(object);
        fs::remove_dir_all(self.object_dir(object))
            .with_context(|| format!("cannot remove {object}"))
    }

    fn object_dir(&self, object: &str) -> PathBuf {
        self.root.path().join(object)
    }

    fn write_plain(&mut self, object: &str, key: &str, value: &str) -> Result<()> {
        let directory = self.object_dir(object);
        // Not in the object's directory: a reader must not take it for a key.
        let complete = self.root.path().join(".new");
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(&directory)?;
            fs::write(&complete, value)?;
            fs::rename(&complete, directory.join(key))
        };
        write().with_context(|| format!("cannot write {object}/{key}"))
    }

    fn swap(&mut self, object: &str) -> Result<()> {
        self.version += 1;
        let directory = self.object_dir(object);
        let entries = self.objects.get(object).cloned().unwrap_or_default();
        let version = format!("..2026_01_01_00_00_00.{}", self.version);
        let write = || -> std::io::Result<()> {
            let fresh = directory.join(&version);
            fs::create_dir_all(&fresh)?;
            for (key, value) in &entries {
                fs::write(fresh.join(key), value)?;
            }
            let data = directory.join("..data");
            let old = fs::read_link(&data).ok();
            symlink(&version, directory.join("..data_tmp"))?;
            fs::rename(directory.join("..data_tmp"), &data)?;
            for key in entries.keys() {
                let link = directory.join(key);
                if fs::symlink_metadata(&link).is_err() {
                    symlink(Path::new("..data").join(key), link)?;
                }
            }
            for entry in fs::read_dir(&directory)? {
                let name = entry?.file_name();
                let name = name.to_string_lossy();
                if !name.starts_with("..") && !entries.contains_key(name.as_ref()) {
                    fs::remove_file(directory.join(name.as_ref()))?;
                }
            }
            old.map_or(Ok(()), |old| fs::remove_dir_all(directory.join(old)))
        };
        write().with_context(|| format!("cannot write {object}"))
    }
}

/// An address as a key: `:` is illegal there.
fn key(address: IpAddr) -> String {
    address.to_string().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mappings: &MappingsDir, key: &str) -> Option<String> {
        fs::read_to_string(mappings.path().join(PODS).join(key)).ok()
    }

    #[test]
    fn both_layouts_show_what_was_written_last() {
        for layout in [Layout::Plain, Layout::Kubelet] {
            let mut mappings = MappingsDir::with_layout(layout).unwrap();
            let (pod, vip) = ("fd00::1".parse().unwrap(), "fd00::222".parse().unwrap());
            mappings.map(pod, vip).unwrap();
            assert_eq!(read(&mappings, "fd00--1").as_deref(), Some("fd00::222"));
            mappings.hold(pod).unwrap();
            assert_eq!(read(&mappings, "fd00--1").as_deref(), Some(""));
            mappings.unmap(pod).unwrap();
            assert_eq!(read(&mappings, "fd00--1"), None);
            mappings.map_only([(vip, pod)]).unwrap();
            assert_eq!(read(&mappings, "fd00--222").as_deref(), Some("fd00::1"));
        }
    }
}
