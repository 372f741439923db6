//! Whatever is done to the directory, in the end the batches add up to what is there; and no value is ever told that
//! no writer left behind.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::prop_assert;

use super::{Maps, kubelet};

const OBJECTS: [&str; 3] = ["a-mappings", "b-mappings", "c-mappings"];
const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize),
    Append(usize, usize),
    RenameOver(usize, usize),
    MoveKey(usize, usize, usize),
    Delete(usize, usize),
    SoftLink(usize, usize, usize),
    HardLink(usize, usize, usize),
    KeepOpen(usize, usize),
    CloseAll,
    Publish(usize, usize),
    CreateObject(usize),
    RemoveObject(usize),
    MoveObject(usize, usize),
    ReplaceDirectory,
    Pause(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let (object, key) = (0..OBJECTS.len(), 0..KEYS.len());
    let at = (object.clone(), key.clone());
    let pair = (object.clone(), key.clone(), key);
    prop_oneof![
        6 => at.clone().prop_map(|(o, k)| Step::Write(o, k)),
        3 => at.clone().prop_map(|(o, k)| Step::Append(o, k)),
        3 => at.clone().prop_map(|(o, k)| Step::RenameOver(o, k)),
        2 => pair.clone().prop_map(|(o, k, l)| Step::MoveKey(o, k, l)),
        3 => at.clone().prop_map(|(o, k)| Step::Delete(o, k)),
        1 => pair.clone().prop_map(|(o, k, l)| Step::SoftLink(o, k, l)),
        1 => pair.prop_map(|(o, k, l)| Step::HardLink(o, k, l)),
        2 => at.clone().prop_map(|(o, k)| Step::KeepOpen(o, k)),
        1 => Just(Step::CloseAll),
        2 => at.prop_map(|(o, n)| Step::Publish(o, n)),
        2 => object.clone().prop_map(Step::CreateObject),
        1 => object.clone().prop_map(Step::RemoveObject),
        1 => (object.clone(), object).prop_map(|(o, p)| Step::MoveObject(o, p)),
        1 => Just(Step::ReplaceDirectory),
        2 => (0..5000_u64).prop_map(Step::Pause),
    ]
}

/// Does the steps. Those that do not fit what is there fail, which is as good a step as any.
struct Writer {
    directory: PathBuf,
    aside: PathBuf,
    open: Vec<File>,
    serial: usize,
}

impl Writer {
    fn run(mut self, steps: &[Step]) {
        for step in steps {
            let _may_not_fit = self.step(step);
        }
        self.close_all().unwrap();
    }

    fn object(&self, object: usize) -> PathBuf {
        self.directory.join(OBJECTS[object])
    }

    fn key(&self, object: usize, key: usize) -> PathBuf {
        self.object(object).join(KEYS[key])
    }

    /// In two writes, so that there is something to see in between.
    fn write_to(&mut self, file: &mut File) -> std::io::Result<()> {
        self.serial += 1;
        write!(file, "<{}", self.serial)?;
        std::thread::yield_now();
        write!(file, "{}>", "+".repeat(self.serial % 7))
    }

    fn create(&mut self, path: &Path) -> std::io::Result<()> {
        let mut file = not_through_a_link(path).and_then(File::create)?;
        self.write_to(&mut file)
    }

    fn close_all(&mut self) -> std::io::Result<()> {
        self.open.drain(..).try_for_each(|mut file| file.write_all(b">"))
    }

    fn step(&mut self, step: &Step) -> std::io::Result<()> {
        match *step {
            Step::Write(o, k) => self.create(&self.key(o, k)),
            Step::Append(o, k) => {
                let mut file =
                    OpenOptions::new().append(true).open(not_through_a_link(&self.key(o, k))?)?;
                self.write_to(&mut file)
            }
            Step::RenameOver(o, k) => {
                let draft = self.object(o).join("draft~");
                self.create(&draft)?;
                fs::rename(draft, self.key(o, k))
            }
            Step::MoveKey(o, k, l) => fs::rename(self.key(o, k), self.key(o, l)),
            Step::Delete(o, k) => fs::remove_file(self.key(o, k)),
            Step::SoftLink(o, k, l) => symlink(format!("../hidden/{}", KEYS[k]), self.key(o, l)),
            Step::HardLink(o, k, l) => {
                // moved away, so that no other name leads to what a link leads to
                let path = self.aside.join("link");
                self.create(&path)?;
                fs::hard_link(&path, self.key(o, if k > l { k } else { l }))?;
                fs::remove_file(path)
            }
            Step::KeepOpen(o, k) => {
                let mut file = File::create(not_through_a_link(&self.key(o, k))?)?;
                file.write_all(b"<half")?;
                self.open.push(file);
                Ok(())
            }
            Step::CloseAll => self.close_all(),
            Step::Publish(o, n) => {
                self.serial += 1;
                let value = format!("<{}>", self.serial);
                let keys: Vec<_> = KEYS[..n].iter().map(|key| (*key, value.as_str())).collect();
                let object = self.object(o);
                let _left_over = fs::remove_dir_all(&object);
                kubelet::publish(&object, self.serial, &keys);
                kubelet::publish(&object, self.serial + 1, &keys);
                self.serial += 1;
                Ok(())
            }
            Step::CreateObject(o) => fs::create_dir(self.object(o)),
            Step::RemoveObject(o) => fs::remove_dir_all(self.object(o)),
            Step::MoveObject(o, p) => fs::rename(self.object(o), self.object(p)),
            Step::ReplaceDirectory => {
                self.serial += 1;
                fs::rename(&self.directory, self.aside.join(self.serial.to_string()))?;
                fs::create_dir(&self.directory)?;
                fs::create_dir(self.object(0))
            }
            Step::Pause(micros) => {
                std::thread::sleep(std::time::Duration::from_micros(micros));
                Ok(())
            }
        }
    }
}

/// What is written through a link is not seen by who watches the link's folder.
fn not_through_a_link(path: &Path) -> std::io::Result<&Path> {
    if path.is_symlink() { Err(std::io::ErrorKind::Unsupported.into()) } else { Ok(path) }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, max_shrink_iters: 20, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_changes_add_up_to_what_is_there(
        steps in proptest::collection::vec(any_step(), 1..150),
        look_first in any::<bool>(),
    ) {
        let maps = Maps::new();
        fs::create_dir(maps.aside()).unwrap();
        for object in OBJECTS {
            fs::create_dir(maps.object(object)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let follower = runtime.block_on(async {
            let mut follower = maps.follow();
            if look_first {
                follower.step().await;
            }
            let writer = Writer { directory: maps.directory(), aside: maps.aside(), open: Vec::new(), serial: 0 };
            let writer = tokio::task::spawn_blocking(move || writer.run(&steps));
            while !writer.is_finished() {
                if let Ok(batch) = tokio::time::timeout(std::time::Duration::from_millis(5), follower.source.next()).await {
                    follower.apply(batch.unwrap());
                }
            }
            writer.await.unwrap();
            let found = maps.found();
            follower.until_state(&found).await;
            follower
        });
        for value in follower.values_told() {
            prop_assert!(value.starts_with('<') && value.ends_with('>'), "half a value: {value}");
        }
    }
}
