//! Files of users', as they are and as they should not be.

use super::*;
use crate::ext4::SuperblockError;
use crate::ext4::disk::create_disk;
use messages::WireError;
use messages::reply::Stage;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

struct World {
    directory: tempfile::TempDir,
    store: ImageStore,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::new(directory.path().join("images"));
        Self { directory, store }
    }

    fn rootfs(&self) -> PathBuf {
        let path = self.directory.path().join("mine.ext4");
        create_disk(&self.directory.path().join("templates"), &path, 64 << 20).unwrap();
        path
    }

    fn register(&self, path: &Path) -> Result<ImageRecord, ImageError> {
        let silent = Reporter::silent(Stage::ImagePull);
        register(&self.store, &"mine".parse().unwrap(), path, &"k".parse().unwrap(), &Cancel::new(), &silent)
    }

    fn promote(&self, record: ImageRecord) -> Result<ImageRecord, ImageError> {
        promote(&self.store, record, &Cancel::new(), &Reporter::silent(Stage::ImagePull))
    }

    fn left_over(&self) -> usize {
        fs::read_dir(self.store.directory()).map_or(0, Iterator::count)
    }
}

#[test]
fn a_registered_file_is_used_where_it_is_until_it_is_promoted() {
    let world = World::new();
    let path = world.rootfs();
    let record = world.register(&path).unwrap();
    assert_eq!(world.store.rootfs(&record).unwrap(), path);
    assert!(matches!(world.register(&path), Err(ImageError::Taken { .. })));

    let promoted = world.promote(world.store.show("mine").unwrap()).unwrap();
    let ours = world.store.rootfs(&promoted).unwrap();
    assert_ne!(ours, path);
    assert_eq!(fs::read(&ours).unwrap(), fs::read(&path).unwrap());
    assert_eq!(world.store.show("mine").unwrap(), promoted);
    assert!(matches!(world.promote(promoted.clone()), Err(ImageError::Promoted { .. })));
    fs::remove_file(&path).unwrap();
    assert!(world.store.rootfs(&promoted).is_ok(), "nothing of the user's is needed any more");
    assert_eq!(world.left_over(), 1);
}

#[test]
fn a_file_that_changed_is_not_used_and_not_promoted() {
    let world = World::new();
    let path = world.rootfs();
    let record = world.register(&path).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"x", 40 << 20).unwrap();
    let error = world.store.rootfs(&record).unwrap_err();
    assert!(error.to_string().contains("written to"), "{error}");
    assert!(world.promote(record.clone()).is_err());
    fs::remove_file(&path).unwrap();
    assert!(matches!(world.store.rootfs(&record), Err(ImageError::Changed { .. })));
    assert_eq!(world.left_over(), 1, "the image itself, and nothing half-copied");
}

#[test]
fn what_cannot_be_mounted_read_only_is_refused_and_leaves_nothing() {
    let world = World::new();
    let relative = world.register(Path::new("mine.ext4")).unwrap_err();
    assert!(WireError::from(&relative).to_string().contains("absolute"));
    assert!(world.register(Path::new("/no/such/file")).is_err());
    assert!(world.register(world.directory.path()).is_err(), "a directory is no file");
    let text = world.directory.path().join("text");
    fs::write(&text, "no file system").unwrap();
    assert!(matches!(world.register(&text), Err(ImageError::Unfit { source: Unfit::FileSystem(_), .. })));
    let path = world.rootfs();
    // s_feature_incompat with RECOVER.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut features = [0; 1];
    file.read_exact_at(&mut features, 1024 + 0x60).unwrap();
    file.write_all_at(&[features[0] | 4], 1024 + 0x60).unwrap();
    assert!(matches!(
        world.register(&path),
        Err(ImageError::Unfit { source: Unfit::FileSystem(SuperblockError::Unclean), .. })
    ));
    assert_eq!(world.left_over(), 0);
}
