//! Feeds any bytes to the reader of layers, twice: once as the first layer, once as one on top of it. What can be read is built.
#![no_main]

use actors::ext4::layer::Layer;
use actors::ext4::{Hashes, ImageFile, Label, Spool, Tree, build_as};
use libfuzzer_sys::fuzz_target;
use messages::{ErrorKind, WireError};
use std::sync::Arc;

fuzz_target!(|bytes: &[u8]| {
    let directory = std::env::temp_dir();
    let image = Arc::new(ImageFile::create(&directory).expect("there is room for temporary files"));
    let mut tree = Tree::layered(Arc::clone(&image));
    for number in 0..2 {
        // An error is as good as a layer: what counts is that it returns, in bounded time and memory.
        let Ok(layer) = Layer::read(bytes, Spool::new(&image, number, Hashes::Left)) else { return };
        if tree.add_layer(layer).is_err() {
            return;
        }
    }
    let path = directory.join(format!("fuzz-layers-{}", std::process::id()));
    match build_as(tree, &path, Label("fuzz"), &[7; 32]) {
        Ok(built) => assert_eq!(std::fs::metadata(&path).map(|made| made.len()).ok(), Some(built.size_bytes)),
        // Whatever is in an archive, that it has no room in a file system is never a mistake of ours.
        Err(error) => assert!(WireError::from(&error).kind != ErrorKind::Internal, "{error}"),
    }
});
